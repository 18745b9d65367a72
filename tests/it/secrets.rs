//! Nothing secret in what a service says at its most talkative: secrets of every
//! kind are planted, journeys are made that use or refuse them, and the logs are
//! searched.

use std::process::Command;

use axum::Router;
use callvault::twilio::simulator::Fault;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::eventually;
use crate::support::servers::free_port;
use crate::support::world::{ADMIN_KEY, AUTH_TOKEN, Parts, Service, World, account, call_sid, debug_binary};

/// What must not be found, and what it is.
#[derive(Default)]
struct Planted(Vec<(&'static str, String)>);

impl Planted {
    fn plant(&mut self, what: &'static str, secret: impl Into<String>) -> String {
        let secret = secret.into();
        assert!(secret.len() >= 10, "{what} is too short to be searched for");
        self.0.push((what, secret.clone()));
        secret
    }

    /// Each as it is, and as a URL would have it.
    fn found_in(&self, log: &str) -> Vec<&'static str> {
        let spellings = |secret: &str| {
            let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            [secret.to_owned(), encoded, secret.replace('+', "%2B")]
        };
        let is_in = |secret: &str| spellings(secret).iter().any(|spelling| log.contains(spelling.as_str()));
        self.0.iter().filter(|(_, secret)| is_in(secret)).map(|(what, _)| *what).collect()
    }
}

/// The settings of a service that knows a secret of every kind.
fn plant_settings(world: &mut World, planted: &mut Planted, receiver: &str) {
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
    world.set("CALLVAULT_EVENTS_URL", format!("{receiver}/hook"));
    let link = planted.plant("the secret of links", "link-secret-access-key-55aa");
    world.set("CALLVAULT_LINK_ACCESS_KEY_ID", "link-key-id");
    world.set("CALLVAULT_LINK_SECRET_ACCESS_KEY", link);
    let file = world.folder().join("secrets.toml");
    let key = world.folder().join("private.pem");
    let made = Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-out"]).arg(&key).output();
    assert!(made.expect("openssl runs").status.success());
    let pem = std::fs::read_to_string(&key).unwrap();
    planted.plant("the private key", pem.lines().nth(3).unwrap());
    world.set("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", key.to_str().unwrap());
    let text = format!(
        "[[accounts]]\nsid = \"AC{}\"\nauth_token = \"{}\"\nsecondary_auth_token = \"{}\"\napi_key = \"{}\"\n\
         api_secret = \"{}\"\n",
        "c".repeat(32),
        planted.plant("another account's auth token", "other-auth-token-3d1e"),
        planted.plant("the secondary auth token", "secondary-auth-token-8c2f"),
        planted.plant("the API key", "SK0123456789abcdef0123456789abcdef"),
        planted.plant("the API secret", "api-secret-of-the-key-aa11"),
    );
    std::fs::write(&file, text).unwrap();
    world.set("CALLVAULT_CONFIG", file.to_str().unwrap());
    world.set("CALLVAULT_LOG", "trace");
}

/// A key that `callvault keys create` shows.
fn created_key(world: &World) -> String {
    let mut command = Command::new(debug_binary());
    command.args(["keys", "create", "--scope", "read"]).current_dir(world.folder()).env_clear().envs(&world.settings);
    let made = command.output().expect("the binary starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// Callbacks that name people, signed well and badly, by POST and by GET.
async fn call_back(world: &World, service: &Service, planted: &mut Planted) {
    let numbers =
        [("From", "+15005550101"), ("To", "+15005550102"), ("Caller", "+15005550103"), ("Called", "+15005550104")];
    let told = |mut callback: callvault::twilio::simulator::OutgoingCallback, planted: &mut Planted| {
        for (name, number) in numbers {
            callback = callback.with(name, number);
            planted.plant("a phone number", number.trim_start_matches('+'));
        }
        callback
    };
    for number in 1..=3 {
        let callback = told(world.callback(world.record(number).recording), planted);
        let url = format!("{}/webhooks/twilio/recording", service.url);
        planted.plant("a callback's signature", callback.signature(&url));
        assert_eq!(service.send(&callback).await.status(), StatusCode::NO_CONTENT);
        let query = callback.form();
        let refused =
            world.http.get(format!("{url}?{query}")).header("x-twilio-signature", "bm8=").send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    }
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
        service.send(&world.callback(id.recording)).await;
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
    assert_eq!(open(token.clone()).await.unwrap().status(), StatusCode::TEMPORARY_REDIRECT);
    let forged = planted.plant("a forged share's token", format!("{}AAAA", &token[..token.len() - 4]));
    assert!(open(forged).await.unwrap().status().is_client_error());
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
async fn no_secret_is_logged_at_trace() {
    let mut world = World::new(Parts::Servers).await;
    let mut planted = Planted::default();
    // A receiver that never takes anything.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let receiver = format!("http://{}", listener.local_addr().unwrap());
    let refuse = Router::new().fallback(|| async { StatusCode::INTERNAL_SERVER_ERROR });
    let received = tokio::spawn(callvault::http::serve(listener, refuse, tokio_util::sync::CancellationToken::new()));
    plant_settings(&mut world, &mut planted, &receiver);
    let service = world.start().await;

    call_back(&world, &service, &mut planted).await;
    for number in 1..=3 {
        let id = crate::support::world::recording_id(number);
        service.recording_in(id.recording, "stored").await;
    }
    fail(&world, &service, &mut planted).await;
    listen(&world, &service, &mut planted).await;
    let erased = service.request(Method::DELETE, &format!("/v1/calls/{}", call_sid(2))).send().await.unwrap();
    assert!(erased.status().is_success());
    let refused = be_refused(&mut world, &mut planted).await;
    service.signal("TERM");
    service.end().await;
    received.abort();

    let log = service.log() + &refused;
    assert!(planted.0.len() >= 20, "{} were planted", planted.0.len());
    assert_eq!(planted.found_in(&log), Vec::<&str>::new());
    for forbidden in ["X-Amz-Signature", "x-amz-signature", "Authorization"] {
        assert!(!log.contains(forbidden), "{forbidden} is in the log");
    }
    // The search would find what is there; and what people search for is there.
    let (recording, call) = (crate::support::world::recording_id(1).recording, call_sid(1));
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let tells =
        |line: &&Value| line.to_string().contains(recording.as_str()) && line.to_string().contains(call.as_str());
    assert!(lines.iter().any(|line| tells(&line)), "no line has both SIDs");
    assert!(lines.iter().any(|line| line["level"] == "DEBUG" || line["level"] == "TRACE"), "the log is talkative");
}
