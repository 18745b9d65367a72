//! The API's document: what it says is what the service does.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use callvault::twilio::simulator::Fault;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::tenants::routes;
use crate::support::eventually;
use crate::support::python::said;
use crate::support::servers::free_port;
use crate::support::world::{ADMIN_KEY, Parts, Service, World, call_sid, debug_binary, recording_id};

/// Programs that judge documents, in a folder of their own.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-tools/openapi-python/bin");
const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/hooks.py");

/// Pages that are no part of the API. The embedded store, below its bucket's name,
/// speaks S3, and is none of these routes either.
const PAGES: [&str; 4] = ["/", "/console", "/console/", "/console/{file}"];

/// What schemathesis believes of others, and is not so here: what is erased still
/// answers (200 with nulls, 410), what a PUT named may not be there at Twilio, and of
/// a query only what is known is looked at.
const NOT_CHECKED: &str =
    "use_after_free,ensure_resource_availability,negative_data_rejection,positive_data_acceptance";

fn program(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(format!("{PROGRAMS}/{name}"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("PYTHONDONTWRITEBYTECODE", "1").current_dir(folder);
    command
}

/// Waits for a program without standing in the way of the world's other parts.
async fn run(mut command: Command) -> Output {
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it is waited for");
    output.expect("it is not installed: run `make test`, or tests/install-tools.sh")
}

async fn served(world: &World, service: &Service) -> Value {
    let answer = world.http.get(format!("{}/openapi.json", service.url)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/json");
    answer.json().await.unwrap()
}

/// Every call that the document has. What answers GET answers HEAD, as it says itself.
fn documented(document: &Value) -> BTreeSet<(String, String)> {
    let mut calls = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            calls.insert((method.to_uppercase(), path.clone()));
            if method == "get" {
                calls.insert(("HEAD".to_owned(), path.clone()));
            }
        }
    }
    calls
}

on_all_parts! {
    async fn router_and_document_know_the_same_calls(world: World) {
        let service = world.start().await;
        let document = served(&world, &service).await;
        assert_eq!(documented(&document), routes(&world, &service).await);

        // Whatever is routed, by any room, is counted by its route from the start.
        let metrics = service.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        let labels = metrics.lines().filter_map(|line| line.split("route=\"").nth(1)?.split('"').next());
        let counted: BTreeSet<&str> = labels.filter(|route| route.starts_with('/')).collect();
        let paths = document["paths"].as_object().unwrap().keys().map(String::as_str);
        assert_eq!(counted, paths.chain(PAGES).collect());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_printed_served_and_shown() {
    let world = World::new(Parts::Embedded).await;
    let service = world.start().await;
    let document = served(&world, &service).await;
    let mut printing = Command::new(debug_binary());
    printing.arg("openapi").env_clear().env("CALLVAULT_LISTEN", "nowhere: it needs no settings");
    assert_eq!(serde_json::from_str::<Value>(&said(&run(printing).await)).unwrap(), document);

    let page = world.http.get(format!("{}/docs", service.url)).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = page.text().await.unwrap();
    assert!(!page.contains("<script"));
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, call) in methods.as_object().unwrap() {
            let id = call["operationId"].as_str().unwrap();
            assert_eq!(page.matches(&format!("<details id=\"{id}\">")).count(), 1, "{method} {path}");
        }
    }
    for shape in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(page.contains(&format!("id=\"shape-{shape}\"")), "{shape}");
    }
    let style = world.http.get(format!("{}/docs/style.css", service.url)).send().await.unwrap();
    assert_eq!(style.headers()["content-type"], "text/css; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_openapi_3_1() {
    let document: Value = serde_json::from_str(callvault::http::openapi()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("openapi.json"), callvault::http::openapi()).unwrap();
    let mut validator = program("openapi-spec-validator", folder.path());
    validator.args(["--schema", "3.1", "openapi.json"]);
    said(&run(validator).await);
}

/// Recordings in many states, and the names of all that can be asked for.
async fn furnish(world: &World, service: &Service) -> Value {
    let (mut calls, mut recordings, mut blobs) = (vec![], vec![], vec![]);
    for number in 1..=9 {
        let id = world.record(number).recording;
        let (status, state) = match number {
            7 => ("absent", "absent"),
            8 => ("failed", "failed"),
            9 => ("completed", "pending"),
            _ => ("completed", "stored"),
        };
        if state == "pending" {
            world.simulator.always(id, Some(Fault::NotReady));
        }
        service.deliver(&world.simulator.callback(id, status).unwrap()).await;
        let shown = service.recording_in(id, state).await;
        calls.push(call_sid(number).to_string());
        recordings.push(id.to_string());
        blobs.extend(shown["sha256"].as_str().map(|sha256| format!("sha256:{sha256}")));
    }
    let path = format!("/v1/recordings/{}/share", recordings[3]);
    let share: Value = service.request(Method::POST, &path).send().await.unwrap().json().await.unwrap();
    let token = share["url"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let receivers = service.json("/v1/webhooks").await.1;
    let receiver = receivers["webhooks"][0]["id"].as_str().unwrap().to_owned();
    let events = eventually("something is posted", async || {
        let path = format!("/v1/webhooks/{receiver}/deliveries");
        let deliveries = service.json(&path).await.1["deliveries"].as_array().cloned().unwrap_or_default();
        let events: Vec<Value> = deliveries.iter().map(|delivery| delivery["event_id"].clone()).collect();
        (!events.is_empty()).then_some(events)
    })
    .await;
    // What is erased in the course of it must not be what all the rest is asked about.
    let (erasable_calls, erasable) = (calls.drain(..3).collect::<Vec<_>>(), recordings.drain(..3).collect::<Vec<_>>());
    let id = recording_id(4);
    let url = format!("https://api.twilio.com/2010-04-01/Accounts/{}/Recordings/{}", id.account, id.recording);
    json!({
        "call_sid": calls, "recording_sid": recordings, "blob": blobs, "token": [token], "recording_url": [url],
        "receiver": [receiver], "event": events,
        "erasable": {"call_sid": erasable_calls, "recording_sid": erasable},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_answers_as_its_document_says() {
    let mut world = World::new(Parts::Servers).await;
    // Nobody takes what is posted there.
    world.set("CALLVAULT_EVENTS_URL", format!("http://127.0.0.1:{}/", free_port()));
    world.set("CALLVAULT_EVENTS_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let service = world.start().await;
    let names = furnish(&world, &service).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("openapi.json"), callvault::http::openapi()).unwrap();
    let mut asking = program("schemathesis", folder.path());
    asking
        .env("SCHEMATHESIS_HOOKS", HOOKS)
        .env("NAMES", names.to_string())
        // Where it is loaded from the service, the call that loads it is left out.
        .args(["run", "openapi.json", "--url", &service.url, "--no-color", "--warnings", "off"])
        .args(["--header", &format!("Authorization: Bearer {ADMIN_KEY}")])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--generation-deterministic"])
        .args(["--max-redirects", "0", "--request-timeout", "60", "--continue-on-failure"])
        .args(["--exclude-checks", NOT_CHECKED]);
    let told = said(&run(asking).await);
    let document = served(&world, &service).await;
    let methods = document["paths"].as_object().unwrap().values().map(|methods| methods.as_object().unwrap().len());
    assert!(told.contains(&format!("Tested: {}\n", methods.sum::<usize>())), "{told}");
}
