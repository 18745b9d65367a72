//! The topology of deploy/compose.yaml, run as processes: its nodes with their
//! settings, behind a real nginx with its configuration, on PostgreSQL and a real
//! store with the service's own rights; through upgrade and rollback of a node, and
//! with nodes that are not ready or cut off. What nginx said is searched for secrets.
//!
//! Only names of hosts become ports of this machine. What is in the files is
//! read there, so that it cannot say one thing and be tested as another.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use callvault::domain::digest::Digest;
use callvault::domain::recording::RecordingId;
use callvault::twilio::signature::{self, Signed};
use callvault::twilio::simulator::{Fault, speech_mp3};
use futures::StreamExt;
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::crashes::has_parts;
use crate::support::compose::{compose, deploy, root, trial_env};
use crate::support::relay::Relay;
use crate::support::servers::{Nginx, ObjectStore, Postgres, free_port};
use crate::support::world::{
    ACCOUNT, ADMIN_KEY, AUTH_TOKEN, Parts, Service, World, call_sid, debug_binary, recording_id,
};
use crate::support::{audit, cluster, eventually};

/// What clients of the compose file's nginx see.
struct Topology {
    world: World,
    url: String,
    nginx: Nginx,
    /// What the compose file asks a node for, to know that it is ready.
    check: Vec<String>,
}

/// Replaces what must be there exactly so often.
fn replace(text: &str, from: &str, to: &str, times: usize) -> String {
    assert_eq!(text.matches(from).count(), times, "{from} in:\n{text}");
    text.replace(from, to)
}

impl Topology {
    /// All of it, and the nodes behind.
    async fn start(more: &[(&str, &str)]) -> (Self, Vec<Service>) {
        let mut world = World::new(Parts::Servers).await;
        let port = free_port();
        let url = format!("http://127.0.0.1:{port}");
        let compose = compose(&env(&world, &url));
        let database = own_database(&world).await;
        make_bucket(&compose["services"]["bucket"], &world);
        world.settings = settings(&compose["services"]["node-1"], &world, &database);
        more.iter().for_each(|(name, value)| world.set(name, *value));
        let nodes = world.start_nodes(3).await;
        let nginx = Nginx::with_config(port, &nginx_conf(port, &nodes));
        let check = compose["services"]["node-1"]["healthcheck"]["test"].as_array().expect("nodes are asked");
        let check: Vec<String> = check.iter().map(|word| word.as_str().unwrap().to_owned()).collect();
        (Self { world, url, nginx, check }, nodes)
    }

    /// Whether the compose file takes that node for ready.
    async fn is_ready(&self, node: &Service) -> bool {
        assert_eq!(self.check[0], "CMD");
        let here = |word: &String| word.replace("127.0.0.1/8080", &format!("127.0.0.1/{}", node.port));
        let words: Vec<String> = self.check[1..].iter().map(here).collect();
        let check = move || Command::new(&words[0]).args(&words[1..]).output().expect("it runs");
        tokio::task::spawn_blocking(check).await.expect("it is waited for").status.success()
    }

    /// Waits for a node as `up --wait` does.
    async fn waits_for(&self, node: &Service) {
        eventually("the node's check is content", async || self.is_ready(node).await.then_some(())).await;
    }

    /// Starts a node that reaches the catalog by way of that relay, on the port of another.
    async fn start_behind(&self, relay: &Relay, port: u16) -> Service {
        let by_relay = relay.instead_of(&self.world.settings["CALLVAULT_DATABASE_URL"]);
        let own = [("CALLVAULT_DATABASE_URL".to_owned(), by_relay)].into();
        let node = self.world.start_unready_with(port, &own);
        let alive = format!("{}/healthz", node.url);
        eventually("the process answers", async || self.world.http.get(&alive).send().await.ok()).await;
        node
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.world.http.request(method, format!("{}{path}", self.url)).bearer_auth(ADMIN_KEY)
    }

    async fn call_back(&self, id: RecordingId) {
        let url = format!("{}/webhooks/twilio/recording", self.url);
        let answer = self.world.callback(id.recording).send(&self.world.http, &url).await.expect("nginx answers");
        assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{id}: {:?}", answer.text().await);
    }

    /// The same by GET: who spoke stands in the URL.
    async fn call_back_by_get(&self, id: RecordingId) {
        let url = format!("{}/webhooks/twilio/recording?{}", self.url, self.world.callback(id.recording).form());
        let signature = signature::sign(&SecretString::from(AUTH_TOKEN), &url, Signed::UrlAlone);
        let request = self.world.http.get(&url).header("x-twilio-signature", signature);
        let answer = request.send().await.expect("nginx answers");
        assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{id}: {:?}", answer.text().await);
    }

    async fn put(&self, number: u32, id: RecordingId) {
        let source = format!("/2010-04-01/Accounts/{}/Recordings/{}", id.account, id.recording);
        let path = format!("/v1/calls/{}/recording", call_sid(number));
        let body = serde_json::json!({"recording_url": source});
        let answer = self.request(Method::PUT, &path).json(&body).send().await.expect("nginx answers");
        // 200 where the node that nginx asked first had it done, and went away before it answered.
        let taken = [StatusCode::ACCEPTED, StatusCode::OK].contains(&answer.status());
        assert!(taken, "{number}: {} {:?}", answer.status(), answer.text().await);
    }

    /// Plays a call's recording as a browser does, waiting for it.
    async fn play(&self, number: u32) -> Digest {
        let path = format!("/v1/calls/{}/audio?wait=30", call_sid(number));
        let answer = self.request(Method::GET, &path).send().await.expect("nginx answers");
        self.listen(answer).await
    }

    /// A share of a call's recording.
    async fn share(&self, number: u32) -> String {
        let path = format!("/v1/calls/{}/share", call_sid(number));
        let answer =
            self.request(Method::POST, &path).json(&serde_json::json!({})).send().await.expect("nginx answers");
        assert_eq!(answer.status(), StatusCode::CREATED, "{number}: {:?}", answer.text().await);
        let made: serde_json::Value = answer.json().await.unwrap();
        made["url"].as_str().unwrap().to_owned()
    }

    /// Plays a share as whoever has its URL does.
    async fn play_share(&self, url: &str) -> Digest {
        self.listen(self.world.http.get(url).send().await.expect("nginx answers")).await
    }

    /// What is behind a redirect to the store.
    async fn listen(&self, answer: reqwest::Response) -> Digest {
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "{:?}", answer.text().await);
        let link = answer.headers()["location"].to_str().unwrap().to_owned();
        let audio = self.world.http.get(link).send().await.expect("the store answers");
        assert_eq!(audio.status(), StatusCode::OK);
        Digest::of(&audio.bytes().await.unwrap())
    }

    /// Follows the stream of events, and takes it up where it broke off. Never ends.
    async fn follow(&self, seen: &Seen) {
        let mut after: Option<String> = None;
        loop {
            let request = self.request(Method::GET, "/v1/events?type=recording.stored");
            let request = request.header("accept", "text/event-stream");
            let resumed = after.iter().fold(request, |request, id| request.header("last-event-id", id));
            let answer = resumed.send().await.expect("nginx answers");
            assert_eq!(answer.status(), StatusCode::OK);
            let (mut stream, mut text) = (answer.bytes_stream(), String::new());
            while let Some(Ok(chunk)) = stream.next().await {
                text.push_str(&String::from_utf8_lossy(&chunk));
                while let Some((block, rest)) = text.split_once("\n\n") {
                    seen.take(block, &mut after);
                    text = rest.to_owned();
                }
            }
            seen.breaks.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        // A second failure would end all tests of the process.
        if !std::thread::panicking() {
            self.world.forbidden().is_not_in(&self.nginx.log());
        }
    }
}

/// What the follower of the events saw.
#[derive(Default)]
struct Seen {
    stored: Mutex<Vec<String>>,
    breaks: AtomicU32,
}

impl Seen {
    fn take(&self, block: &str, after: &mut Option<String>) {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let (Some(id), Some(data)) = (field("id: "), field("data: ")) else { return };
        *after = Some(id.to_owned());
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        let sid = data["recording"]["recording_sid"].as_str().unwrap().to_owned();
        self.stored.lock().unwrap().push(sid);
    }

    fn stored(&self) -> Vec<String> {
        let mut stored = self.stored.lock().unwrap().clone();
        stored.sort();
        stored
    }
}

/// What the environment file of a trial says, for this machine.
fn env(world: &World, url: &str) -> BTreeMap<String, String> {
    let mut env = trial_env();
    let own = [
        ("CALLVAULT_PUBLIC_URL", url.to_owned()),
        ("CALLVAULT_ADMIN_KEY", ADMIN_KEY.to_owned()),
        ("CALLVAULT_TWILIO_ACCOUNT_SID", ACCOUNT.to_owned()),
        ("CALLVAULT_TWILIO_AUTH_TOKEN", AUTH_TOKEN.to_owned()),
        ("CALLVAULT_TWILIO_ORIGIN", world.simulator.origin()),
        ("MINIO_ROOT_PASSWORD", "ROOT".to_owned()),
        ("S3_PUBLIC_ENDPOINT", ObjectStore::shared().endpoint.clone()),
    ];
    for (name, value) in own {
        assert!(env.insert(name.to_owned(), value).is_some(), "{name} is not in trial.env");
    }
    env
}

/// The world's database, owned by the user of the compose file.
async fn own_database(world: &World) -> String {
    let url = world.settings["CALLVAULT_DATABASE_URL"].clone();
    let (_, name) = url.rsplit_once('/').unwrap();
    let mut admin = sqlx::PgConnection::connect(&url).await.unwrap();
    let role = "DO $$ BEGIN CREATE ROLE callvault LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$";
    admin.execute(role).await.unwrap();
    admin.execute(AssertSqlSafe(format!("ALTER DATABASE {name} OWNER TO callvault"))).await.unwrap();
    name.to_owned()
}

/// A policy of deploy/iam for the world's bucket.
fn policy_file(world: &World, name: &str) -> String {
    let policy = deploy(&format!("iam/{name}")).replace(":::recordings", &format!(":::{}", world.bucket()));
    let file = world.folder().join(name);
    std::fs::write(&file, policy).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Runs a script that calls MinIO's client, as its root.
fn mc(world: &World, script: &str, policy: &str, more: &[&str]) {
    let store = ObjectStore::shared();
    let (scheme, host) = store.endpoint.split_once("://").unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-euc", script, "sh", policy]).args(more).env_clear().env("HOME", world.folder());
    shell.env("PATH", format!("{}:/usr/bin:/bin", root().join("target/test-tools/bin").display()));
    shell.env("MC_HOST_store", format!("{scheme}://{}:{}@{host}", store.access_key_id, store.secret_access_key));
    shell.env("S3_SECRET_ACCESS_KEY", &trial_env()["S3_SECRET_ACCESS_KEY"]);
    let output = shell.output().expect("sh starts");
    assert!(output.status.success(), "{script}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs what the compose file runs to make the bucket and the service's key.
fn make_bucket(service: &serde_json::Value, world: &World) {
    if ObjectStore::shared().kind != "minio" {
        // Garage has no policies; its own key stands for the service's.
        return;
    }
    assert_eq!(service["environment"]["MC_HOST_store"], "http://root:ROOT@minio:9000");
    let policy = policy_file(world, "service.json");
    let script = replace(service["command"][0].as_str().unwrap(), "/service.json", &policy, 1);
    let script = replace(&script, "store/recordings", &format!("store/{}", world.bucket()), 1);
    // Other tests have policies and users at this store, too.
    let script = replace(&script, "callvault-service", "POLICY", 3);
    let script = replace(&script, "callvault", &user(world), 3);
    let script = script.replace("POLICY", &format!("policy-of-{}", world.bucket()));
    // Twice: it is done again at every start.
    mc(world, &script, &policy, &[]);
    mc(world, &script, &policy, &[]);
}

/// The service's own at the store, for this world.
fn user(world: &World) -> String {
    format!("user-of-{}", world.bucket())
}

/// The settings of a node as the compose file has them, with hosts of this machine.
fn settings(node: &serde_json::Value, world: &World, database: &str) -> BTreeMap<String, String> {
    let fields = node["environment"].as_object().unwrap();
    let mut settings: BTreeMap<String, String> =
        fields.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    let mut put = |name: &str, from: &str, to: &str| {
        let value = settings.get_mut(name).unwrap_or_else(|| panic!("{name} is not in compose.yaml"));
        *value = replace(value, from, to, 1);
    };
    let postgres = format!("@127.0.0.1:{}/{database}", Postgres::shared().port);
    put("CALLVAULT_DATABASE_URL", "@postgres:5432/callvault", &postgres);
    put("CALLVAULT_S3_ENDPOINT", "http://minio:9000", &ObjectStore::shared().endpoint);
    put("CALLVAULT_BUCKET_URL", "recordings", world.bucket());
    put("AWS_ACCESS_KEY_ID", "callvault", &user(world));
    let store = ObjectStore::shared();
    if store.kind != "minio" {
        settings.insert("AWS_ACCESS_KEY_ID".to_owned(), store.access_key_id.clone());
        settings.insert("AWS_SECRET_ACCESS_KEY".to_owned(), store.secret_access_key.clone());
        settings.insert("AWS_REGION".to_owned(), store.region.to_owned());
    }
    // Every node has an address of its own there, and a port here.
    settings.remove("CALLVAULT_LISTEN").expect("nodes listen on all addresses");
    settings
}

/// The compose file's nginx.conf, before nodes of this machine.
fn nginx_conf(port: u16, nodes: &[Service]) -> String {
    let mut config = deploy("compose/nginx.conf");
    for (number, node) in nodes.iter().enumerate() {
        let server = format!("node-{}:8080", number + 1);
        config = replace(&config, &server, &format!("127.0.0.1:{}", node.port), 1);
    }
    config = replace(&config, "listen 8080;", &format!("listen 127.0.0.1:{port};"), 1);
    // Addresses need no name server.
    config = replace(&config, "resolver 127.0.0.11 valid=5s;", "", 1);
    config = replace(&config, " resolve;", ";", 3);
    replace(&config, "pid /var/run/nginx.pid;", "", 1)
}

/// Callers, Twilio, and people who listen, through nginx: nobody asks twice for anything.
#[derive(Default)]
struct Load {
    calls: AtomicU32,
    played: AtomicU32,
    is_over: AtomicBool,
}

impl Load {
    async fn run(&self, topology: &Topology) {
        while !self.is_over.load(Ordering::SeqCst) {
            let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            let id = topology.world.record(number);
            match number % 4 {
                0 => topology.put(number, id).await,
                1 => topology.call_back_by_get(id).await,
                _ => topology.call_back(id).await,
            }
            assert_eq!(topology.play(number).await, Digest::of(&speech_mp3()), "{number}");
            let share = topology.share(number).await;
            assert_eq!(topology.play_share(&share).await, Digest::of(&speech_mp3()), "{number}");
            self.played.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Runs it from several clients, until that is over.
    async fn during(&self, topology: &Topology, what: impl Future<Output = ()>) {
        const CLIENTS: usize = 6;
        let until_over = async {
            what.await;
            self.is_over.store(true, Ordering::SeqCst);
        };
        tokio::join!(until_over, join_all((0..CLIENTS).map(|_| self.run(topology))));
    }

    /// Returns when so many more have played.
    async fn goes_on(&self, more: u32) {
        let enough = self.played.load(Ordering::SeqCst) + more;
        eventually("more is played", async || (self.played.load(Ordering::SeqCst) >= enough).then_some(())).await;
    }
}

/// Does to the catalog what a newer version does when it starts, and then works with it.
async fn migrate_further(world: &World) {
    let url = &world.settings["CALLVAULT_DATABASE_URL"];
    let mut catalog = sqlx::PgConnection::connect(url).await.unwrap();
    let newer = "ALTER TABLE recordings ADD COLUMN of_a_newer_version BIGINT NOT NULL DEFAULT 0; \
                 ALTER TABLE events ADD COLUMN of_a_newer_version TEXT; \
                 CREATE TABLE of_a_newer_version (number BIGINT PRIMARY KEY); \
                 INSERT INTO of_a_newer_version VALUES (1); \
                 INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9001, 'of a newer version', TRUE, 'x', 1)";
    catalog.execute(newer).await.unwrap();
    catalog.execute("UPDATE recordings SET of_a_newer_version = 1").await.unwrap();
}

/// Ends a node as docker compose does, and starts it again, until it takes it for ready.
async fn replace_node(topology: &Topology, node: &mut Service, meanwhile: impl Future<Output = ()>) {
    node.signal("TERM");
    assert_eq!(node.end().await.code(), Some(0), "{}", node.log());
    meanwhile.await;
    *node = topology.world.start_unready(node.port, debug_binary());
    topology.waits_for(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_nodes_are_upgraded_and_rolled_back() {
    const BETWEEN_STEPS: u32 = 20;
    let (topology, mut nodes) = Topology::start(&[]).await;
    let (load, seen) = (Load::default(), Seen::default());
    let rollout = async {
        load.goes_on(BETWEEN_STEPS).await;
        replace_node(&topology, &mut nodes[2], migrate_further(&topology.world)).await;
        load.goes_on(BETWEEN_STEPS).await;
        // Back to this version, on the newer one's catalog; and then all the others.
        for at in [2, 0, 1] {
            replace_node(&topology, &mut nodes[at], async {}).await;
            load.goes_on(BETWEEN_STEPS).await;
        }
    };
    let all = async {
        load.during(&topology, rollout).await;
        let mut expected: Vec<_> = (1..=load.calls.load(Ordering::SeqCst)).map(sid).collect();
        expected.sort();
        eventually("every event has come", async || (seen.stored().len() >= expected.len()).then_some(())).await;
        assert_eq!(seen.stored(), expected, "each once");
    };
    tokio::select! {
        () = all => {}
        () = topology.follow(&seen) => {}
    }
    assert!(seen.breaks.load(Ordering::SeqCst) > 0, "no node held the stream");
    audit::content(&topology.world).await;
}

/// A node that has not met the catalog yet, as while it migrates; and one that was
/// ready and is cut off from it. Both answer 503 to what they cannot do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_ready_or_cut_off_costs_no_request() {
    const ENOUGH: u32 = 20;
    // What a node had in hand when it was cut off waits for its lease, and listeners with it.
    let (topology, mut nodes) = Topology::start(&[("CALLVAULT_LEASE", "2s")]).await;
    let (load, relay) = (Load::default(), Relay::to(Postgres::shared().port).await);
    let trouble = async {
        relay.refuse();
        nodes[2].kill();
        nodes[2] = topology.start_behind(&relay, nodes[2].port).await;
        assert!(!topology.is_ready(&nodes[2]).await, "the upgrade would go on to the next one");
        load.goes_on(ENOUGH).await;
        relay.heal();
        topology.waits_for(&nodes[2]).await;
        load.goes_on(ENOUGH).await;
        relay.refuse();
        load.goes_on(ENOUGH).await;
    };
    load.during(&topology, trouble).await;
    let said = topology.nginx.log();
    assert!(said.contains("503, 204"), "it was asked, and then another one:\n{said}");
}

/// Their 503s take no node out of the balancer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_played_is_played_on_while_no_node_reaches_the_catalog() {
    let (topology, mut nodes) = Topology::start(&[]).await;
    let relay = Relay::to(Postgres::shared().port).await;
    let (known, news) = (topology.world.record(1), topology.world.record(2));
    for node in &mut nodes {
        node.kill();
        *node = topology.start_behind(&relay, node.port).await;
        topology.waits_for(node).await;
    }
    topology.call_back(known).await;
    for node in &nodes {
        node.play(&format!("/v1/calls/{}/audio?wait=30", call_sid(1))).await;
    }
    relay.refuse();
    let webhook = format!("{}/webhooks/twilio/recording", topology.url);
    for _ in 0..10 {
        let callback = topology.world.callback(news.recording);
        let refused = callback.send(&topology.world.http, &webhook).await.expect("nginx answers");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(topology.play(1).await, Digest::of(&speech_mp3()));
    }
    relay.heal();
    eventually("callbacks are taken again", async || {
        let answer = topology.world.callback(news.recording).send(&topology.world.http, &webhook).await.ok()?;
        (answer.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
}

/// What goes wrong with a node is told of the request that it happened to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_names_no_share_and_no_person_when_nodes_are_gone() {
    let (topology, nodes) = Topology::start(&[]).await;
    topology.call_back(topology.world.record(1)).await;
    topology.play(1).await;
    let share = topology.share(1).await;
    let token = share.rsplit_once('/').unwrap().1;
    nodes[0].kill();
    for number in 2..8 {
        topology.call_back_by_get(topology.world.record(number)).await;
        topology.play_share(&share).await;
    }
    nodes[1].kill();
    nodes[2].kill();
    let otherwise_spelled = share.replace("/s/", "/%73/");
    for url in [&share, &otherwise_spelled] {
        assert_eq!(topology.world.http.get(url).send().await.unwrap().status(), StatusCode::BAD_GATEWAY);
    }
    let said = eventually("all of it is told", async || {
        let said = topology.nginx.log();
        (said.matches("GET /s/{token} 502 ").count() == 2).then_some(said)
    })
    .await;
    assert!(said.contains("GET /webhooks/twilio/recording 204 "), "{said}");
    assert!(said.contains("502, 307"), "a node was asked in vain:\n{said}");
    assert!(!said.contains(token), "{said}");
}

fn sid(number: u32) -> String {
    recording_id(number).recording.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_of_the_policy_are_enough_to_stage_to_abort_and_to_clear_up() {
    let soon = [("CALLVAULT_LEASE", "1s"), ("CALLVAULT_RECHECK_AFTER", "1s"), ("CALLVAULT_RETRY_BASE", "100ms")];
    let (topology, mut nodes) = Topology::start(&soon).await;
    let world = &topology.world;
    let (id, digest) = cluster::add_large(world, 1);
    world.simulator.script(id.recording, [Fault::Held(18 << 20)]);
    topology.call_back(id).await;
    // All nodes die in the middle of the upload.
    eventually("parts are sent", async || has_parts(world, &nodes[0]).await.then_some(())).await;
    nodes.iter().for_each(Service::kill);
    world.simulator.release(id.recording);
    nodes = join_all(nodes.iter().map(|node| world.start_on(node.port, debug_binary()))).await;
    nodes[0].recording_in(id.recording, "stored").await;
    assert_eq!(topology.play(1).await, digest);
    audit::content_in_the_end(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_of_the_policy_are_enough_to_erase_every_version() {
    if ObjectStore::shared().kind != "minio" {
        // Garage keeps no versions.
        return;
    }
    let (topology, nodes) = Topology::start(&[]).await;
    let world = &topology.world;
    mc(world, "mc version enable \"store/$2\"", "", &[world.bucket()]);
    let id = world.record(1);
    topology.call_back(id).await;
    topology.play(1).await;
    let path = format!("/v1/recordings/{}", id.recording);
    eventually("it is erased", async || {
        let answer = topology.request(Method::DELETE, &path).send().await.expect("nginx answers");
        (answer.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
    nodes[0].recording_in(id.recording, "erased").await;
    mc(world, "! mc ls --recursive --versions \"store/$2\" | grep \"$3\"", "", &[world.bucket(), call_sid(1).as_str()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_links_alone_signs_links_that_play_and_opens_nothing_else() {
    let pair = [("CALLVAULT_LINK_ACCESS_KEY_ID", "links"), ("CALLVAULT_LINK_SECRET_ACCESS_KEY", "links-secret-key")];
    let (topology, _nodes) = Topology::start(&pair).await;
    if ObjectStore::shared().kind != "minio" {
        return;
    }
    let policy = policy_file(&topology.world, "links.json");
    let script = "mc admin user add store links links-secret-key; mc admin policy create store links \"$1\"; \
                  mc admin policy attach store links --user links";
    mc(&topology.world, script, &policy, &[]);
    let id = topology.world.record(1);
    topology.call_back(id).await;
    assert_eq!(topology.play(1).await, Digest::of(&speech_mp3()));
    let refused = "MC_HOST_links=http://links:links-secret-key@${MC_HOST_store#*@}; export MC_HOST_links; \
                   ! mc ls \"links/$2\" && ! mc cp \"$1\" \"links/$2/x\"";
    mc(&topology.world, refused, &policy, &[topology.world.bucket()]);
}

/// The trial's Twilio, with the arguments that the compose file gives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_of_the_trial_records_calls_that_play() {
    let mut world = World::new(Parts::Servers).await;
    let (port, node_port) = (free_port(), free_port());
    world.set("CALLVAULT_TWILIO_ORIGIN", format!("http://127.0.0.1:{port}"));
    world.set("CALLVAULT_PUBLIC_URL", "https://recordings.example.com");
    let node = world.start_on(node_port, debug_binary()).await;
    let compose = compose(&trial_env());
    let command: Vec<&str> = compose["services"]["simulator"]["command"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let words = command.iter().map(|word| match *word {
        "0.0.0.0:4010" => format!("127.0.0.1:{port}"),
        "http://nginx:8080" => node.url.clone(),
        word => word.to_owned(),
    });
    let mut simulator = Command::new(debug_binary());
    simulator.args(words.chain(["--calls".to_owned(), "1".to_owned()])).env_clear();
    for name in ["CALLVAULT_PUBLIC_URL", "CALLVAULT_TWILIO_ACCOUNT_SID", "CALLVAULT_TWILIO_AUTH_TOKEN"] {
        assert!(compose["services"]["simulator"]["environment"][name].is_string());
        simulator.env(name, &world.settings[name]);
    }
    let mut simulator = simulator.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(simulator.stdout.take().unwrap()).lines();
    assert!(told.next().unwrap().unwrap().starts_with("Twilio, scripted, at http://127.0.0.1:"));
    let call = told.next().unwrap().unwrap();
    let (sids, answer) = call.split_once(": ").unwrap();
    assert_eq!(answer, "204", "{}", node.log());
    let (call, _) = sids.split_once(' ').unwrap();
    let (bytes, _) = node.play(&format!("/v1/calls/{call}/audio?wait=30")).await;
    assert_eq!(bytes, speech_mp3());
    let ended = Command::new("kill").args(["-TERM", &simulator.id().to_string()]).status().unwrap();
    assert!(ended.success());
    assert_eq!(simulator.wait().unwrap().code(), Some(0));
}
