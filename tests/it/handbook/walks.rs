//! The pages, walked through from their first command to their last.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::extract::{RawQuery, State};
use callvault::domain::recording::{self, RecordingId};
use callvault::twilio::simulator::speech_mp3;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::compose::{deploy, root, trial_env, yaml};
use crate::support::eventually;
use crate::support::pages::{Terminal, blocks, commands, page};
use crate::support::servers::{ObjectStore, Postgres, free_port};
use crate::support::world::{ACCOUNT, ADMIN_KEY, AUTH_TOKEN, Parts, World, call_sid, debug_binary};

const GUIDE: &str = "deploy/OPERATING.md";

/// A world whose services believe in an address that they will have.
async fn world_at(parts: Parts) -> (World, u16, String) {
    let mut world = World::new(parts).await;
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    world.set("CALLVAULT_LISTEN", format!("127.0.0.1:{port}"));
    world.set("CALLVAULT_PUBLIC_URL", &url);
    (world, port, url)
}

/// A service that a page started, as its callers see it.
struct Guest<'a> {
    world: &'a World,
    url: String,
    key: String,
}

impl Guest<'_> {
    async fn is_ready(&self) {
        let ready = format!("{}/readyz", self.url);
        eventually("the service is ready", async || {
            let answer = self.world.http.get(&ready).send().await.ok()?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
    }

    async fn is_told_of(&self, id: RecordingId) {
        let url = format!("{}/webhooks/twilio/recording", self.url);
        let answer = self.world.callback(id.recording).send(&self.world.http, &url).await.expect("it answers");
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }

    /// Plays a call's recording as a browser does.
    async fn plays(&self, number: u32) {
        let url = format!("{}/v1/calls/{}/audio?wait=30", self.url, call_sid(number));
        let answer = self.world.http.get(url).bearer_auth(&self.key).send().await.expect("it answers");
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "{:?}", answer.text().await);
        let link = answer.headers()["location"].to_str().unwrap().to_owned();
        let audio = self.world.http.get(link).send().await.expect("the store answers");
        assert_eq!(audio.bytes().await.unwrap(), speech_mp3());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readme_leads_from_nothing_to_many_nodes() {
    const README: &str = "README.md";
    let (world, _, url) = world_at(Parts::Servers).await;
    // Its reader sets these, the second half of them only for many nodes.
    let of_reader =
        ["CALLVAULT_TWILIO_ACCOUNT_SID", "CALLVAULT_TWILIO_AUTH_TOKEN", "CALLVAULT_PUBLIC_URL", "CALLVAULT_ADMIN_KEY"];
    let of_many = ["CALLVAULT_DATABASE_URL", "CALLVAULT_BUCKET_URL", "CALLVAULT_S3_ENDPOINT"];
    let mut env = world.settings.clone();
    env.retain(|name, _| !of_reader.contains(&name.as_str()) && !of_many.contains(&name.as_str()));
    let mut terminal = Terminal::new(&world.folder(), &env);
    let [one_node, many_nodes, put] = commands(README, "Run it");
    // The binary that the tests were built with stands for the one that is installed.
    assert!(one_node.starts_with("cargo install --path . --locked\n"));
    terminal.put_in("cargo install --path . --locked\n", "");
    terminal.put_in("AC…", ACCOUNT);
    terminal.put_in("AUTH_TOKEN=…", format!("AUTH_TOKEN={AUTH_TOKEN}"));
    terminal.put_in("https://recordings.example.com", &url);
    terminal.put_in("postgres://callvault:…@db.internal/callvault", &world.settings["CALLVAULT_DATABASE_URL"]);
    terminal.put_in("s3://recordings", &world.settings["CALLVAULT_BUCKET_URL"]);
    terminal.put_in("http://minio.internal:9000", &world.settings["CALLVAULT_S3_ENDPOINT"]);
    terminal.put_in("CA…", call_sid(2).as_str());

    terminal.serves(&one_node).await;
    let key = terminal.var("CALLVAULT_ADMIN_KEY").to_owned();
    let guest = Guest { world: &world, url: url.clone(), key: key.clone() };
    guest.is_ready().await;
    guest.is_told_of(world.record(1)).await;
    guest.plays(1).await;
    assert!(world.folder().join("callvault.db").is_file() && world.folder().join("callvault-data").is_dir());
    terminal.end_servers();

    terminal.serves(&format!("{many_nodes}callvault serve")).await;
    guest.is_ready().await;
    guest.is_told_of(world.record(1)).await;
    guest.plays(1).await;
    terminal.put_in("RE…", world.record(2).recording.as_str());
    let taken: Value = serde_json::from_str(&terminal.does(&put).await).expect("JSON");
    assert_eq!(taken["state"], "pending", "{taken}");
    guest.plays(2).await;
    assert_eq!(world.real_store().keys().await.len(), 2, "the bucket has them");
    use_it(&guest, &mut terminal).await;
    let xml = blocks(&page(README)).into_iter().find(|block| block.language == "xml").unwrap().text;
    let callback = xml.split("recordingStatusCallback=\"").nth(1).unwrap().split('"').next().unwrap();
    // With what has Twilio repeat it, as XML writes it.
    assert_eq!(callback, "https://recordings.example.com/webhooks/twilio/recording#rc=5&amp;rp=all");
}

/// What the README says of keys, and of the feed.
async fn use_it(guest: &Guest<'_>, terminal: &mut Terminal) {
    let [keys] = commands("README.md", "Keys");
    let [feed] = commands("README.md", "Events");
    let made = terminal.does("callvault keys create --scope read --name reader --json").await;
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let id = made["id"].as_str().unwrap();
    terminal.put_in("key_0123456789abcdef", id);
    terminal.set("CALLVAULT_URL", &guest.url);
    terminal.set("CALLVAULT_API_KEY", made["key"].as_str().unwrap());
    let number = AtomicU32::new(10);
    // The page waits for an event, and the stream that follows it for another one.
    let one_more = async || {
        let number = number.fetch_add(1, Ordering::Relaxed);
        guest.is_told_of(guest.world.record(number)).await;
        guest.plays(number).await;
    };
    terminal.tells(&feed, "event: recording.stored", one_more).await;

    let told = terminal.does(&keys).await;
    let mut lines = told.lines();
    assert!(lines.next().unwrap().starts_with("cvk_"), "a key, alone: {told}");
    assert!(lines.any(|line| line.contains("read,ingest") && line.contains("crm")), "{told}");
    let listed = terminal.does("callvault keys list --json").await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let of = |id: &str| listed.as_array().unwrap().iter().find(|key| key["id"] == id).cloned().unwrap();
    assert!(!of(id)["revoked_at"].is_null(), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_targets_of_the_makefile_are_there() {
    let [demo, all] = commands("README.md", "See it");
    // The demo itself is run by tests/it/commands.rs, with the binary that is there.
    assert_eq!(demo, "cargo run --release -- demo\n");
    let mut terminal = Terminal::new(root(), &BTreeMap::new());
    terminal.put_in("make test", "make --dry-run test");
    let told = terminal.does(&all).await;
    assert!(told.contains("cargo test --locked --tests"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_the_trial_is_played_as_its_page_says() {
    let world = World::new(Parts::Embedded).await;
    let service = world.start().await;
    let id = world.record(1);
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;
    let [_, play] = commands::<2>("deploy/README.md", "A trial on one machine");
    let key = &trial_env()["CALLVAULT_ADMIN_KEY"];
    assert!(play.contains(key.as_str()), "it is the trial's key");
    let mut terminal = Terminal::new(&world.folder(), &BTreeMap::new());
    terminal.put_in(key, ADMIN_KEY);
    terminal.put_in("http://localhost:8080", &service.url);
    terminal.put_in("CA…", call_sid(1).as_str());
    terminal.does(&play).await;
    assert_eq!(std::fs::read(world.folder().join("call.mp3")).unwrap(), speech_mp3());
}

/// Every Secret that the chart refers to is one that the page makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chart_takes_what_its_page_gives_it() {
    let [install] = commands("deploy/README.md", "Kubernetes");
    let folder = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::new(folder.path(), &BTreeMap::new());
    terminal.put_in("kubectl create secret generic", "printf '%s\\n' >>secrets");
    terminal.put_in("helm install callvault deploy/helm/callvault", {
        let chart = root().join("deploy/helm/callvault");
        format!("helm template callvault {} --kube-version 1.31", chart.display())
    });
    terminal.put_in("AC…", ACCOUNT);
    let manifests = yaml(&terminal.does(&install).await);

    let mut made: Vec<(String, String)> = Vec::new();
    let mut secret = String::new();
    for word in std::fs::read_to_string(folder.path().join("secrets")).unwrap().lines() {
        match word.strip_prefix("--from-literal=") {
            Some(pair) => made.push((secret.clone(), pair.split('=').next().unwrap().to_owned())),
            None => word.clone_into(&mut secret),
        }
    }
    assert_eq!(made.len(), 3, "{made:?}");
    let deployment = manifests.iter().find(|manifest| manifest["kind"] == "Deployment").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 3);
    let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    let asked: Vec<(String, String)> = variables
        .iter()
        .map(|variable| &variable["valueFrom"]["secretKeyRef"])
        .filter(|reference| reference.is_object())
        .map(|reference| {
            (reference["name"].as_str().unwrap().to_owned(), reference["key"].as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|reference| made.contains(reference)), "{asked:?} of {made:?}");
    assert!(manifests.iter().any(|manifest| manifest["kind"] == "Ingress"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_runbook_runs() {
    let (world, port, url) = world_at(Parts::Servers).await;
    let service = world.start_on(port, debug_binary()).await;
    let id = world.record(1);
    service.deliver(&world.callback(id.recording)).await;
    let runs = blocks(&deploy("RUNBOOK.md")).into_iter().filter(|block| block.language == "sh");
    let runs: std::collections::BTreeSet<String> = runs.map(|block| block.text).collect();
    assert!(runs.len() > 5, "{runs:?}");
    let mut terminal = Terminal::new(&world.folder(), &world.settings);
    terminal.set("CALLVAULT_URL", &url);
    terminal.set("CALLVAULT_API_KEY", ADMIN_KEY);
    terminal.set("CALL", call_sid(1).to_string());
    let mut told = String::new();
    for block in runs {
        told.push_str(&terminal.does(&block).await);
    }
    assert!(told.contains(&format!("\"recording_sid\": \"{}\"", id.recording)), "the call that does not play: {told}");
}

/// Whoever is asked why a call does not play finds a line for whatever is the case.
#[test]
fn the_runbook_tells_what_to_do_for_every_state() {
    let runbook = deploy("RUNBOOK.md");
    let table = runbook.split("\n## ").next().unwrap();
    let rows: String = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
    for state in recording::State::ALL.iter().map(|state| state.as_str()) {
        assert!(rows.contains(&format!("`{state}`")), "{state}");
    }
}

/// A store that takes rules that MinIO refuses, and keeps what it was told.
struct Taker {
    url: String,
    told: tokio::sync::mpsc::UnboundedReceiver<(String, String)>,
    _end: tokio_util::sync::DropGuard,
}

impl Taker {
    async fn start() -> Self {
        type Told = tokio::sync::mpsc::UnboundedSender<(String, String)>;
        async fn take(State(told): State<Told>, RawQuery(query): RawQuery, body: String) -> StatusCode {
            told.send((query.unwrap_or_default(), body)).map_or(StatusCode::GONE, |()| StatusCode::OK)
        }
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let end = CancellationToken::new();
        tokio::spawn(callvault::http::serve(listener, Router::new().fallback(take).with_state(tell), end.clone()));
        Self { url, told, _end: end.drop_guard() }
    }

    /// What it was told of that part of a bucket.
    async fn was_told(&mut self, of: &str) -> String {
        let (query, body) = self.told.recv().await.expect("it was told");
        assert_eq!(query, of);
        body
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_sets_up_database_bucket_and_service() {
    let (mut world, port, url) = world_at(Parts::Servers).await;
    let server = Postgres::start();
    let mut terminal = Terminal::new(&world.folder(), &world.settings);
    let administrators = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
    terminal.set("ADMIN_DATABASE_URL", administrators);
    terminal.set("CALLVAULT_URL", &url);
    terminal.set("CALLVAULT_API_KEY", ADMIN_KEY);
    let [wanted] = commands(GUIDE, "Operating callvault");
    terminal.does(&wanted).await;
    let [database] = commands(GUIDE, "PostgreSQL");
    terminal.does(&database).await;
    let own = format!("postgres://callvault:letters-and-digits@127.0.0.1:{}/callvault", server.port);
    world.set("CALLVAULT_DATABASE_URL", own);
    set_up_bucket(&mut world, &mut terminal).await;

    for (name, value) in &world.settings {
        terminal.set(name, value);
    }
    let service = world.start_on(port, debug_binary()).await;
    let id = world.record(1);
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;
    let [doctor] = commands(GUIDE, "Twilio");
    let found = terminal.does(&doctor).await;
    assert!(found.contains("keeps versions") || ObjectStore::shared().kind != "minio", "{found}");
    let [measured, rows] = commands(GUIDE, "Sizing");
    terminal.does(&measured).await;
    let told = terminal.does(&rows).await;
    assert!(told.trim().parse::<f64>().is_ok_and(|bytes| bytes > 0.0), "{told}");
    let [upgraded] = commands(GUIDE, "Upgrades and rollback");
    let told = terminal.does(&upgraded).await;
    assert!(told.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{told}");
}

/// The bucket and its rules, at the world's store as far as that takes them.
async fn set_up_bucket(world: &mut World, terminal: &mut Terminal) {
    let [create, versions, lifecycle, cors] = commands(GUIDE, "The bucket");
    let bucket = format!("{}-of-the-guide", world.bucket());
    terminal.set("BUCKET", &bucket);
    let mut taker = Taker::start().await;
    terminal.set("AWS_ENDPOINT_URL_S3", &taker.url);
    terminal.does(&lifecycle).await;
    let told = taker.was_told("lifecycle").await;
    assert!(told.contains("<AbortIncompleteMultipartUpload>") && told.contains("<NoncurrentDays>30<"), "{told}");
    terminal.does(&cors).await;
    let told = taker.was_told("cors").await;
    assert!(told.contains("<AllowedOrigin>https://recordings.example.com</AllowedOrigin>"), "{told}");
    if ObjectStore::shared().kind != "minio" {
        // Garage gives each key its buckets by a way of its own.
        return;
    }
    terminal.set("AWS_ENDPOINT_URL_S3", &world.settings["CALLVAULT_S3_ENDPOINT"]);
    terminal.does(&create).await;
    terminal.does(&versions).await;
    let (kept, uploads) = lifecycle.split_once(",\n  {\"ID\": \"uploads\"").expect("two rules");
    assert!(uploads.contains("AbortIncompleteMultipartUpload"));
    terminal.does(&format!("{kept}]}}'")).await;
    world.set("CALLVAULT_BUCKET_URL", format!("s3://{bucket}"));
}
