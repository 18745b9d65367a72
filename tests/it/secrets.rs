//! Nothing secret in what a service says at its most talkative: secrets of every
//! kind are planted, journeys are made that use or refuse them, and the logs are
//! searched.

use std::panic::AssertUnwindSafe;
use std::process::{ExitStatus, Output};

use aws_lc_rs::rsa::KeySize;
use callvault::domain::digest::Digest;
use callvault::twilio::simulator::{Audio, Fault};
use futures::FutureExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::encrypted::{Pair, encryption, pair, record};
use crate::support::bucket::command;
use crate::support::compose::root;
use crate::support::eventually;
use crate::support::pages::Terminal;
use crate::support::python::said;
use crate::support::secrets::Forbidden;
use crate::support::servers::free_port;
use crate::support::world::{
    ADMIN_KEY, AUTH_TOKEN, Parts, Service, World, account, call_sid, debug_binary, recording_id,
};
use crate::traces;
use crate::webhooks::{Application, Reply};

/// What is planted, apart from what every log is searched for.
struct Planted(Forbidden);

impl Planted {
    fn plant(&mut self, what: &str, secret: impl Into<String>) -> String {
        let secret = secret.into();
        self.0.add(what, &secret);
        secret
    }
}

/// The settings of a service that knows a secret of every kind. Of two receivers one
/// takes what it is posted, and the other does not.
fn plant_settings(world: &mut World, planted: &mut Planted, receivers: [&str; 2], pair: &Pair) {
    planted.plant("the auth token", AUTH_TOKEN);
    planted.plant("the admin key", ADMIN_KEY);
    planted.plant("the S3 secret", world.settings["AWS_SECRET_ACCESS_KEY"].clone());
    let database = url::Url::parse(&world.settings["CALLVAULT_DATABASE_URL"]).unwrap();
    let mut database = database;
    let password = planted.plant("the database password", "database-password-7f3a");
    database.set_password(Some(&password)).unwrap();
    world.set("CALLVAULT_DATABASE_URL", database.as_str());
    // The simulator takes requests as a proxy gets them.
    let password = planted.plant("the proxy password", "proxy-password-91bc");
    let proxy = world.simulator.origin().replace("http://", &format!("http://proxy-user:{password}@"));
    world.set("CALLVAULT_TWILIO_PROXY", proxy);
    let secret = planted.plant("the webhook secret", "whsec_UGxhbnRlZC13ZWJob29rLXNlY3JldC0wMDE=");
    world.set("CALLVAULT_EVENTS_SECRET", secret);
    let token = planted.plant("a token in a receiver's URL", "token=receiver-token-20ac");
    world.set("CALLVAULT_EVENTS_URL", format!("{}?{token}", receivers[0]));
    // The store must know the pair, for shares to play.
    let link = planted.plant("the secret of links", world.settings["AWS_SECRET_ACCESS_KEY"].clone());
    world.set("CALLVAULT_LINK_ACCESS_KEY_ID", world.settings["AWS_ACCESS_KEY_ID"].clone());
    world.set("CALLVAULT_LINK_SECRET_ACCESS_KEY", link);
    let file = world.folder().join("secrets.toml");
    let pem = std::fs::read_to_string(&pair.path).unwrap();
    planted.plant("the private key", &pem.lines().nth(1).unwrap()[100..160]);
    world.set("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", pair.path.as_str());
    let text = format!(
        "[[accounts]]\nsid = \"AC{}\"\nauth_token = \"{}\"\nsecondary_auth_token = \"{}\"\napi_key = \"{}\"\n\
         api_secret = \"{}\"\n\n[[webhooks]]\nurl = \"{}\"\nsecret = \"{}\"\n",
        "c".repeat(32),
        planted.plant("another account's auth token", "other-auth-token-3d1e"),
        planted.plant("the secondary auth token", "secondary-auth-token-8c2f"),
        planted.plant("the API key", "SK0123456789abcdef0123456789abcdef"),
        planted.plant("the API secret", "api-secret-of-the-key-aa11"),
        receivers[1],
        planted.plant("another webhook secret", "whsec_UGxhbnRlZC13ZWJob29rLXNlY3JldC0wMDI="),
    );
    std::fs::write(&file, text).unwrap();
    world.set("CALLVAULT_CONFIG", file.to_str().unwrap());
    world.set("CALLVAULT_LOG", all_that_can_be_said());
}

/// Every crate that the binary is made of, by its name: a bare `trace` is meant for this one alone.
fn all_that_can_be_said() -> String {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let names = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    let all: Vec<String> = names.map(|name| format!("{}=trace", name.replace('-', "_"))).collect();
    assert!(all.len() > 200, "{all:?}");
    all.join(",")
}

/// A key that `callvault keys create` shows.
fn created_key(world: &World) -> String {
    let made = command(world, &["keys", "create", "--scope", "read"]).output().expect("the binary starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// Callbacks that name people, signed well and badly, by POST and by GET.
async fn call_back(world: &World, service: &Service, planted: &mut Planted) {
    for number in 1..=3 {
        let callback = world.callback(world.record(number).recording);
        let url = format!("{}/webhooks/twilio/recording", service.url);
        planted.plant("a callback's signature", callback.signature(&url));
        assert_eq!(service.send(&callback).await.status(), StatusCode::NO_CONTENT);
        let query = callback.form();
        let refused =
            world.http.get(format!("{url}?{query}")).header("x-twilio-signature", "bm8=").send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        service.recording_in(recording_id(number).recording, "stored").await;
    }
}

/// One that Twilio has encrypted, one of which nobody told, and one that is erased.
async fn fetch_and_erase(world: &World, service: &Service, planted: &mut Planted, pair: &Pair) {
    let number = 30;
    let id = record(world, number, Audio::speech(), Some(encryption(pair, number)));
    planted.plant("the key of an encrypted recording", Digest::of(&number.to_be_bytes()).to_string());
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;

    world.record(31);
    world.simulator.add_child_call(call_sid(32), call_sid(31));
    service.play(&format!("/v1/calls/{}/audio?wait=30", call_sid(32))).await;

    let erased = service.request(Method::DELETE, &format!("/v1/calls/{}", call_sid(2))).send().await.unwrap();
    assert!(erased.status().is_success());
}

/// What goes wrong at Twilio, with secrets in what it says.
async fn fail(world: &World, service: &Service, planted: &mut Planted) {
    let in_url = planted.plant("the query of a redirect", "redirect-token-77de");
    let faults = [
        Fault::Redirect(format!("http://169.254.169.254/latest?token={in_url}")),
        Fault::Status(500),
        Fault::Html,
        Fault::Truncated(100),
        Fault::RateLimited { retry_after: None },
    ];
    for (number, fault) in (10..).zip(faults) {
        let id = world.record(number);
        world.simulator.script(id.recording, [fault]);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
    }
    let password = planted.plant("a password in a PUT", "password-in-a-url-12ab");
    let url = format!("https://user:{password}@api.twilio.com/2010-04-01/Accounts/{}/Recordings/x", account());
    assert!(service.put(call_sid(20), &url).await.status().is_client_error());
}

/// Everything that is signed, given out and asked for.
async fn listen(world: &World, service: &Service, planted: &mut Planted) {
    let path = format!("/v1/calls/{}", call_sid(1));
    let key = planted.plant("a created key", created_key(world));
    let forged = planted.plant("a key that is none", "cv_0123456789-this-key-is-nobodys");
    let with = |key: &str, path: &str| world.http.get(format!("{}{path}", service.url)).bearer_auth(key).send();
    eventually("the key is known", async || {
        (with(&key, &format!("{path}/audio")).await.ok()?.status() == StatusCode::TEMPORARY_REDIRECT).then_some(())
    })
    .await;
    assert_eq!(with(&forged, &path).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let answer = service.get(&format!("{path}/audio")).await;
    let link = answer.headers()["location"].to_str().unwrap().to_owned();
    let signature = link.split("X-Amz-Signature=").nth(1).unwrap().split('&').next().unwrap();
    planted.plant("a link's signature", signature);
    assert_eq!(service.get(&format!("{path}/content")).await.status(), StatusCode::OK);
    let shared = service.request(Method::POST, &format!("{path}/share")).json(&json!({})).send().await.unwrap();
    let shared: Value = shared.json().await.unwrap();
    let token = shared["url"].as_str().unwrap().rsplit('/').next().unwrap();
    let token = planted.plant("a share's token", token);
    let open = |token: String| world.http.get(format!("{}/s/{token}", service.url)).send();
    let opened = open(token.clone()).await.unwrap();
    assert_eq!(opened.status(), StatusCode::TEMPORARY_REDIRECT);
    let link = opened.headers()["location"].to_str().unwrap();
    assert_eq!(world.http.get(link).send().await.unwrap().status(), StatusCode::OK, "the share plays");
    let forged = planted.plant("a forged share's token", format!("{}AAAA", &token[..token.len() - 4]));
    assert!(open(forged).await.unwrap().status().is_client_error());
}

/// What commands say beside the service, of which one finds much to say.
fn run_commands(world: &World) -> String {
    let commands: [&[&str]; 4] = [&["doctor"], &["backfill"], &["verify", "--repair"], &["keys", "list"]];
    let said = commands.map(|args| {
        let ran = command(world, args).output().expect("the binary starts");
        let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(ran.status.code().is_some_and(|code| code < 2), "{args:?}: {said}");
        said
    });
    said.concat()
}

/// A node that the store refuses, its credentials being those of a session.
async fn be_refused(world: &mut World, planted: &mut Planted) -> String {
    let token = planted.plant("the session token", "session-token-that-nobody-gave-4b");
    world.set("AWS_SESSION_TOKEN", token);
    let secret = planted.plant("a wrong S3 secret", "secret-that-is-wrong-9e");
    world.set("AWS_SECRET_ACCESS_KEY", secret);
    let refused = world.start_unready(free_port(), debug_binary());
    eventually("it says that the store refuses it", async || {
        refused.log().contains("bucket_unreachable").then_some(())
    })
    .await;
    refused.signal("TERM");
    refused.end().await;
    refused.log()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_logged_at_trace_or_traced() {
    let mut world = World::new(Parts::Servers).await;
    let mut planted = Planted(Forbidden::of(&world.settings, &world.folder()));
    let before = planted.0.count();
    let refusing = Application::start(|_, _| Reply::Status(500)).await;
    let taking = Application::start(|_, _| Reply::Status(204)).await;
    let collector = traces::Receiver::start().await;
    let pair = pair(&world, "a", KeySize::Rsa2048);
    plant_settings(&mut world, &mut planted, [&refusing.url, &taking.url], &pair);
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.clone());
    let service = world.start().await;

    call_back(&world, &service, &mut planted).await;
    fail(&world, &service, &mut planted).await;
    fetch_and_erase(&world, &service, &mut planted, &pair).await;
    listen(&world, &service, &mut planted).await;
    taking.has(10).await;
    refusing.has(3).await;
    let commands = run_commands(&world);
    let refused = be_refused(&mut world, &mut planted).await;
    service.signal("TERM");
    service.end().await;

    let log = service.log() + &refused;
    assert!(planted.0.count() >= before + 20, "{} were planted", planted.0.count() - before);
    planted.0.is_not_in(&log);
    planted.0.is_not_in(&commands);
    let traced = collector.told();
    planted.0.is_not_in(&traced);
    // The search would find what is there; and what people search for is there.
    let (recording, call) = (recording_id(1).recording, call_sid(1));
    assert!(traced.contains(recording.as_str()), "the spans have the recording");
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let tells =
        |line: &&Value| line.to_string().contains(recording.as_str()) && line.to_string().contains(call.as_str());
    assert!(lines.iter().any(|line| tells(&line)), "no line has both SIDs");
    // Who searches by a call finds all that is told of its recordings.
    let is_ours = |line: &&Value| line["target"].as_str().is_some_and(|target| target.starts_with("callvault"));
    let of_recordings = lines.iter().filter(is_ours).map(Value::to_string).filter(|line| names_sid(line, "RE"));
    let (found, lost): (Vec<String>, Vec<String>) = of_recordings.partition(|line| names_sid(line, "CA"));
    assert!(found.len() > 20 && lost.is_empty(), "{} lines name the call, and these do not: {lost:#?}", found.len());
    for target in ["callvault", "hyper_util", "reqwest", "sqlx"] {
        let is_of = |line: &&Value| line["target"].as_str().is_some_and(|name| name.split("::").next() == Some(target));
        assert!(lines.iter().filter(is_of).count() > 20, "{target} is not talkative");
    }
}

/// Whether a SID that begins so is in a line.
fn names_sid(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let hex = line.get(at + 2..at + 34);
        hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    })
}

/// A list that finds nothing proves nothing.
#[test]
fn what_is_forbidden_is_found_however_it_is_written() {
    let settings = [("CALLVAULT_ADMIN_KEY", ADMIN_KEY), ("CALLVAULT_DATABASE_URL", "postgres://me:pass+word-12@db/x")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let forbidden = Forbidden::of(&settings, std::path::Path::new("."));
    for said in [
        "X-Amz-Signature=0",
        "x-amz-credential",
        "authorization: x",
        "Bearer abc",
        "cvk_0",
        "whsec_0",
        "GET /s/AQ",
        "-----BEGIN PRIVATE KEY-----",
        ADMIN_KEY,
        "pass+word-12",
        "pass%2Bword-12",
        "+15005550101",
        "%2B15005550104",
    ] {
        let text = format!("all is well\nthis: {said}.\nand this");
        let [found] = &forbidden.found_in(&text)[..] else { panic!("{said}: {:?}", forbidden.found_in(&text)) };
        assert!(found.ends_with(&format!("this: {said}.")), "{found}");
    }
    let innocent = "route=/s/{token} recording=RE0 From Authenticated basically \"Authorization: Bearer <key>\"";
    assert_eq!(forbidden.found_in(innocent), Vec::<String>::new());
}

/// Fails as a test does whose log holds a secret.
async fn is_found(told: impl Future<Output = ()>) -> bool {
    AssertUnwindSafe(told).catch_unwind().await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pages_run_and_clients_log_is_searched_too() {
    let world = World::new(Parts::Embedded).await;
    let terminal = || Terminal::new(&world.folder(), &world.settings);
    for leak in ["echo $CALLVAULT_TWILIO_AUTH_TOKEN >&2", "echo GET /s/0123456789 >&2; false"] {
        let mut terminal = terminal();
        assert!(is_found(async move { drop(terminal.run(leak).await) }).await, "{leak}");
    }
    let mut endless = terminal();
    let leaks = async move {
        endless.tells("echo $CALLVAULT_ADMIN_KEY >&2; echo ready; sleep 100", "ready", async || {}).await
    };
    assert!(is_found(leaks).await, "a block that goes on for ever");
    let mut served = terminal();
    served.does("echo $CALLVAULT_ADMIN_KEY >serve.log").await;
    assert!(is_found(async move { served.end_servers() }).await, "what is served");
    std::fs::remove_file(world.folder().join("serve.log")).unwrap();
    let logged = |text: &str| Output { status: ExitStatus::default(), stdout: Vec::new(), stderr: text.into() };
    let leaks = logged(&format!("the key {ADMIN_KEY} is refused"));
    assert!(is_found(async move { drop(said(&leaks)) }).await, "a client");

    // Nothing is found where nothing is, and results are for whoever asked.
    let mut innocent = terminal();
    assert_eq!(innocent.does("echo $CALLVAULT_ADMIN_KEY; echo nothing >&2").await.trim(), ADMIN_KEY);
    assert_eq!(said(&logged("refused")), "");
}
