//! Links: the same for all, for the endpoint that browsers reach, and no longer
//! than whoever signed them lives.

use std::collections::HashSet;
use std::process::Command;

use callvault::bucket::{Bucket, Disposition, LinkBase, LinkMethod};
use callvault::config::Config;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::speech_mp3;
use futures::future::join_all;
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use crate::support::servers::ObjectStore;
use crate::support::world::{Parts, Service, World, call_sid};

async fn stored(world: &World, service: &Service) -> RecordingId {
    let id = world.record(1);
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;
    id
}

fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Users of MinIO with less than all rights, and a session of one.
fn users(name: &str) -> Value {
    let store = ObjectStore::shared();
    assert_eq!(store.kind, "minio", "sessions are tested with MinIO's STS");
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-tools/python/bin/python");
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/minio_users.py"))
        .env("ENDPOINT", &store.endpoint)
        .env("AWS_ACCESS_KEY_ID", &store.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &store.secret_access_key)
        .env("NAME", name)
        .output()
        .expect("the tests' Python is not installed: run `make test`, or tests/install-tools.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A client for which every name of the bucket's public endpoint is this machine.
fn browser(hosts: &[&str]) -> reqwest::Client {
    let here = ([127, 0, 0, 1], 0).into();
    let builder = reqwest::Client::builder().no_proxy();
    hosts.iter().fold(builder, |builder, host| builder.resolve(host, here)).build().expect("a client")
}

async fn plays(http: &reqwest::Client, service: &Service, id: RecordingId) -> Url {
    let path = format!("/v1/recordings/{}/audio", id.recording);
    let link = |answer: reqwest::Response| Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap();
    let url = link(service.get(&path).await);
    assert_eq!(http.get(url.clone()).send().await.unwrap().bytes().await.unwrap(), speech_mp3(), "{}", url.path());
    let head = link(service.request(Method::HEAD, &path).send().await.unwrap());
    let head = http.head(head).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()["content-length"], speech_mp3().len().to_string());
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_give_one_url_a_window() {
    let mut world = World::new(Parts::Servers).await;
    // No test outlives this window, unless it is begun at its very end.
    world.set("CALLVAULT_LINK_WINDOW", "24h");
    let nodes = world.start_nodes(2).await;
    let id = stored(&world, &nodes[0]).await;
    for path in [format!("/v1/recordings/{}/audio", id.recording), format!("/v1/calls/{}/audio", call_sid(1))] {
        let asked = (0..100).map(|number| nodes[number % 2].get(&path));
        let links: HashSet<_> =
            join_all(asked).await.into_iter().map(|answer| answer.headers()["location"].clone()).collect();
        assert!(links.len() == 1 || links.len() == 2 && jiff::Timestamp::now().as_second() % 86_400 < 180, "{links:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_ends_with_the_session_that_signed_it() {
    let mut world = World::new(Parts::Servers).await;
    let session = users("session")["session"].clone();
    let folder = world.folder();
    std::fs::write(folder.join("session.json"), session.to_string()).unwrap();
    let process = format!("[default]\ncredential_process = cat {}\n", folder.join("session.json").display());
    std::fs::write(folder.join("aws-config"), process).unwrap();
    world.settings.remove("AWS_ACCESS_KEY_ID");
    world.settings.remove("AWS_SECRET_ACCESS_KEY");
    world.set("AWS_CONFIG_FILE", folder.join("aws-config").to_str().unwrap());
    world.set("PATH", "/usr/bin:/bin");
    let service = world.start().await;
    let id = stored(&world, &service).await;
    let url = plays(&world.http, &service, id).await;
    assert_eq!(parameter(&url, "X-Amz-Security-Token").as_deref(), session["SessionToken"].as_str());
    let (_, link) = service.json(&format!("/v1/recordings/{}/link", id.recording)).await;
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let end = time(&session["Expiration"]);
    // Whole seconds are signed.
    assert_eq!(time(&link["expires_at"]).as_second(), end.as_second());
    let left = end.as_second() - jiff::Timestamp::now().as_second();
    assert!((link["expires_in_seconds"].as_i64().unwrap() - left).abs() <= 5, "{link}, {left} s left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_for_links_signs_them_and_nothing_else() {
    let mut world = World::new(Parts::Servers).await;
    let reader = users("pair")["reader"].clone();
    world.set("CALLVAULT_LINK_ACCESS_KEY_ID", reader["id"].as_str().unwrap());
    world.set("CALLVAULT_LINK_SECRET_ACCESS_KEY", reader["secret"].as_str().unwrap());
    let service = world.start().await;
    // The pair may not write: what is stored was stored with the other keys.
    let id = stored(&world, &service).await;
    let url = plays(&world.http, &service, id).await;
    let signed_by = parameter(&url, "X-Amz-Credential").unwrap();
    assert!(signed_by.starts_with(&format!("{}/", reader["id"].as_str().unwrap())), "{signed_by}");
    assert_eq!(world.http.delete(url).send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_hold_at_the_public_endpoint_in_both_styles() {
    let mut world = World::new(Parts::Servers).await;
    let store = ObjectStore::shared();
    let port = Url::parse(&store.endpoint).unwrap().port().unwrap();
    let public = format!("http://store.test:{port}");
    world.set("CALLVAULT_S3_PUBLIC_ENDPOINT", &public);
    let service = world.start().await;
    let id = stored(&world, &service).await;
    let of_bucket = format!("{}.store.test", world.bucket());
    let http = browser(&["store.test", &of_bucket]);
    let by_path = plays(&http, &service, id).await;
    assert_eq!(by_path.host_str(), Some("store.test"));

    // The names of virtual hosts are known to nobody but this browser: the service
    // could not store by them, but signing asks nobody.
    world.set("CALLVAULT_S3_ADDRESSING", "virtual");
    world.set("CALLVAULT_S3_ENDPOINT", &public);
    let settings = world.settings.clone().into_iter().map(|(name, value)| (name.into(), value.into()));
    let bucket = Bucket::open(&Config::load(settings).unwrap()).await.unwrap();
    let (_, shown) = service.json(&format!("/v1/recordings/{}", id.recording)).await;
    let key = shown["key"].as_str().unwrap();
    let (now, base) = (jiff::Timestamp::now(), LinkBase { request_host: None });
    let name = Disposition::Attachment("2026-11-23 09.30 a call.mp3".to_owned());
    let link = bucket.link(key, LinkMethod::Get, &name, now, base).await.unwrap();
    let url = reqwest::Url::parse(&link.url).unwrap();
    assert_eq!(url.host_str(), Some(of_bucket.as_str()));
    let answer = http.get(link.url).send().await.unwrap();
    assert_eq!(answer.headers()["content-disposition"], "attachment; filename=\"2026-11-23 09.30 a call.mp3\"");
    assert_eq!(answer.bytes().await.unwrap(), speech_mp3());
    let head = bucket.link(key, LinkMethod::Head, &Disposition::Inline, now, base).await.unwrap();
    assert_eq!(http.head(head.url).send().await.unwrap().status(), StatusCode::OK);
}
