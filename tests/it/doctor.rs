//! `callvault doctor`: silent about what is well, and right about what is not.

use std::collections::BTreeMap;
use std::process::Output;

use axum::Router;
use callvault::twilio::simulator::SimulatedAccount;
use futures::StreamExt;
use object_store::ObjectStore as _;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::recheck::sql;
use crate::support::bucket::{document, run};
use crate::support::eventually;
use crate::support::python::{PYTHON, said};
use crate::support::servers::{Postgres, free_port};
use crate::support::world::{ACCOUNT, AUTH_TOKEN, Parts, Service, World, account, debug_binary};

/// Settings that differ from those of the service.
type Own<'a> = &'a [(&'a str, &'a str)];

/// A world that knows its public URL, and a service in it.
pub async fn running(world: &mut World) -> Service {
    let port = free_port();
    world.set("CALLVAULT_PUBLIC_URL", format!("http://127.0.0.1:{port}"));
    world.start_on(port, debug_binary()).await
}

async fn doctor(world: &World, own: Own<'_>) -> Output {
    let mut settings: BTreeMap<String, String> = world.settings.clone();
    settings.extend(own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let mut command = tokio::process::Command::new(debug_binary());
    command.args(["doctor", "--json"]).current_dir(world.folder()).env_clear().envs(settings);
    let output = command.output().await.expect("the binary starts");
    for told in [&output.stdout, &output.stderr] {
        world.forbidden().is_not_in(&String::from_utf8_lossy(told));
    }
    output
}

/// What it finds that is not well: the check, and its status.
pub async fn finds(world: &World, own: Own<'_>) -> Vec<(String, String)> {
    let not_well = checks(world, own).await.into_iter().filter(|check| check["status"] != "ok");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    not_well.map(|check| (text(&check["check"]), text(&check["status"]))).collect()
}

/// All that it looks at.
async fn checks(world: &World, own: Own<'_>) -> Vec<Value> {
    let ended = doctor(world, own).await;
    let told = String::from_utf8_lossy(&ended.stdout).into_owned();
    let report: Value =
        serde_json::from_str(&told).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&ended.stderr)));
    let checks = report["checks"].as_array().unwrap();
    let is_wrong = checks.iter().any(|check| check["status"] == "wrong");
    assert_eq!(ended.status.code(), Some(i32::from(is_wrong)), "{told}");
    assert_eq!(report["ok"], !is_wrong);
    for check in checks.iter().filter(|check| check["status"] != "ok") {
        // Each says what would mend it, and none shows a secret or a link.
        assert!(check["cure"].as_str().is_some_and(|cure| !cure.is_empty()), "{check}");
        assert!(!told.contains("X-Amz-Signature") && !told.contains("auth-token-of"), "{told}");
    }
    checks.clone()
}

/// The checks that find something wrong, warnings apart.
async fn wrong(world: &World, own: Own<'_>) -> Vec<String> {
    let found = finds(world, own).await;
    found.into_iter().filter(|(_, status)| status == "wrong").map(|(check, _)| check).collect()
}

on_all_parts! {
    async fn a_healthy_world_has_nothing_wrong_and_nothing_left_behind(world: World) {
        world.set("CALLVAULT_CORS_ORIGINS", "https://app.example.com");
        let service = running(&mut world).await;
        let found = finds(&world, &[]).await;
        // MinIO knows no such rule, and does it by itself.
        let expected: &[(&str, &str)] =
            if world.parts == Parts::Servers { &[("bucket.lifecycle", "warning")] } else { &[] };
        let found: Vec<_> = found.iter().map(|(check, status)| (check.as_str(), status.as_str())).collect();
        assert_eq!(found, expected);

        let (_, listed) = service.json("/v1/recordings?limit=1").await;
        assert_eq!(listed["recordings"], serde_json::json!([]));
        let (_, feed) = service.json("/v1/events").await;
        assert_eq!(feed["events"], serde_json::json!([]));
        let left: Vec<_> = world.store(&service).s3.list(None).collect().await;
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_part_that_is_broken_is_found() {
    let mut world = World::new(Parts::Servers).await;
    let service = running(&mut world).await;
    let port = service.port;
    let nowhere = free_port();
    let (dead, dead_database) =
        (format!("http://127.0.0.1:{nowhere}"), format!("postgres://x:y@127.0.0.1:{nowhere}/z"));
    let (elsewhere, renamed) = (format!("{}/else", service.url), format!("http://localhost:{port}"));
    let broken: &[(Own<'_>, &[&str])] = &[
        (&[("CALLVAULT_DATABASE_URL", &dead_database)], &["catalog"]),
        (&[("CALLVAULT_BUCKET_URL", "s3://there-is-no-such-bucket")], &["bucket"]),
        (&[("AWS_SECRET_ACCESS_KEY", "not-the-secret")], &["bucket"]),
        (&[("CALLVAULT_S3_ENDPOINT", &dead)], &["bucket"]),
        (&[("CALLVAULT_S3_PUBLIC_ENDPOINT", &dead)], &["bucket.link"]),
        (
            &[("CALLVAULT_LINK_ACCESS_KEY_ID", "nobody"), ("CALLVAULT_LINK_SECRET_ACCESS_KEY", "nothing")],
            &["bucket.link"],
        ),
        (&[("CALLVAULT_TWILIO_ORIGIN", &dead)], &["twilio.credentials"]),
        // Nobody listens; it leads past the nodes; the nodes believe in another name.
        (&[("CALLVAULT_PUBLIC_URL", &dead)], &["public_url"]),
        (&[("CALLVAULT_PUBLIC_URL", &elsewhere)], &["public_url"]),
        (&[("CALLVAULT_PUBLIC_URL", &renamed)], &["public_url"]),
        (&[("CALLVAULT_TWILIO_AUTH_TOKEN", "not-the-token")], &["twilio.credentials", "public_url"]),
    ];
    for (own, expected) in broken {
        assert_eq!(wrong(&world, own).await, *expected, "{own:?}");
    }
    world.simulator.refuse_credentials(account(), true);
    assert_eq!(wrong(&world, &[]).await, ["twilio.credentials"]);
    world.simulator.refuse_credentials(account(), false);
    assert_eq!(wrong(&world, &[]).await, Vec::<String>::new());
}

/// As where nothing was set yet: the cure of the one does not speak of what the other lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_accounts_is_warned_of_and_nothing_else() {
    let mut world = World::new(Parts::Embedded).await;
    for name in ["ACCOUNT_SID", "AUTH_TOKEN"] {
        world.set(&format!("CALLVAULT_TWILIO_{name}"), "");
    }
    let _service = running(&mut world).await;
    let found = checks(&world, &[]).await;
    let found: Vec<_> = found.iter().filter(|check| check["status"] != "ok").collect();
    let names: Vec<_> = found.iter().map(|check| check["check"].as_str().unwrap()).collect();
    assert_eq!(names, ["settings", "public_url"]);
    assert!(found.iter().all(|check| !check["cure"].as_str().unwrap().contains("API key")), "{found:?}");
}

/// Not only that a pool's time was over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_listen_is_named() {
    let world = World::new(Parts::Servers).await;
    let address = format!("127.0.0.1:{}", free_port());
    let own = [("CALLVAULT_DATABASE_URL", &*format!("postgres://callvault:a-password@{address}/callvault"))];
    let found = checks(&world, &own).await;
    let detail = found.iter().find(|check| check["check"] == "catalog").unwrap()["detail"].as_str().unwrap();
    assert!(detail.contains(&address) && !detail.contains("a-password"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bucket_that_is_looked_at_is_named() {
    let world = World::new(Parts::Servers).await;
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let there = &world.settings["CALLVAULT_S3_ENDPOINT"];
    for (endpoint, says) in [(there, "answers"), (&nowhere, "failed")] {
        let found = checks(&world, &[("CALLVAULT_S3_ENDPOINT", endpoint)]).await;
        let detail = found.iter().find(|check| check["check"] == "bucket").unwrap()["detail"].as_str().unwrap();
        let place = format!("{} at {endpoint}", world.settings["CALLVAULT_BUCKET_URL"].trim_end_matches('/'));
        assert!(detail.starts_with(&place) && detail.contains(says), "{detail}");
    }
}

/// Settings of accounts in a file, and of none beside it.
fn accounts_in_file(world: &mut World, name: &str, accounts: &str) {
    let path = world.folder().join(name);
    std::fs::write(&path, accounts).unwrap();
    world.set("CALLVAULT_CONFIG", path.to_str().unwrap());
    for name in ["ACCOUNT_SID", "AUTH_TOKEN", "API_KEY", "API_SECRET"] {
        world.set(&format!("CALLVAULT_TWILIO_{name}"), "");
    }
}

/// Requests go well with the key, whatever becomes of callbacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_twilio_refuses_are_found_beside_a_key_that_it_takes() {
    let mut world = World::new(Parts::Embedded).await;
    let (key, secret) = (format!("SK{}", "c".repeat(32)), "secret-of-the-key");
    let keyless = format!("AC{}", "c".repeat(32));
    for (sid, auth_token) in [(account(), AUTH_TOKEN), (keyless.parse().unwrap(), "nobody-has-it")] {
        let api_key = Some((key.clone(), secret.to_owned()));
        world.simulator.add_account(SimulatedAccount { sid, auth_token: auth_token.to_owned(), api_key });
    }
    world.set("CALLVAULT_TWILIO_API_KEY", &key);
    world.set("CALLVAULT_TWILIO_API_SECRET", secret);
    world.set("CALLVAULT_TWILIO_AUTH_TOKEN", "auth-token-of-old");
    let service = running(&mut world).await;
    let refused = service.send(&world.callback(world.record(1).recording)).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(wrong(&world, &[]).await, ["twilio.auth_token"]);
    drop(service);

    let with_key =
        |sid: &str| format!("[[accounts]]\nsid = \"{sid}\"\napi_key = \"{key}\"\napi_secret = \"{secret}\"\n");
    let tokens = format!("auth_token = \"{AUTH_TOKEN}\"\nsecondary_auth_token = \"auth-token-of-old\"\n");
    let file = format!("{}{tokens}{}", with_key(ACCOUNT), with_key(&keyless));
    accounts_in_file(&mut world, "tokens.toml", &file);
    let service = running(&mut world).await;
    let found: Vec<_> = checks(&world, &[]).await;
    let found: Vec<[&str; 3]> = found
        .iter()
        .filter(|check| check["status"] != "ok")
        .map(|check| ["check", "status", "account_sid"].map(|name| check[name].as_str().unwrap()))
        .collect();
    let expected = [["twilio.secondary_auth_token", "warning", ACCOUNT], ["twilio.auth_token", "warning", &keyless]];
    assert_eq!(found, expected);
    drop(service);
}

/// Nodes may have a token of old of any account, not of the first one alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_whose_callbacks_the_nodes_refuse_is_named() {
    let mut world = World::new(Parts::Embedded).await;
    let other = format!("AC{}", "b".repeat(32));
    world.add_account(other.parse().unwrap());
    let service = running(&mut world).await;
    assert_eq!(wrong(&world, &[]).await, Vec::<String>::new());
    let auth_token = "auth-token-of-today";
    let rotated = SimulatedAccount { sid: other.parse().unwrap(), auth_token: auth_token.to_owned(), api_key: None };
    world.simulator.add_account(rotated);
    let path = world.folder().join("today.toml");
    std::fs::write(&path, format!("[[accounts]]\nsid = \"{other}\"\nauth_token = \"{auth_token}\"\n")).unwrap();
    let found = checks(&world, &[("CALLVAULT_CONFIG", path.to_str().unwrap())]).await;
    let wrong: Vec<_> = found.iter().filter(|check| check["status"] == "wrong").collect();
    assert!(matches!(wrong[..], [one] if one["check"] == "public_url" && one["account_sid"] == *other), "{wrong:?}");
    drop(service);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_that_does_not_know_the_bucket_is_found() {
    let mut world = World::new(Parts::Servers).await;
    let service = world.start().await;
    let id = world.record(1);
    assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    service.recording_in(id.recording, "stored").await;
    drop(service);
    world.set("CALLVAULT_DATABASE_URL", Postgres::shared().new_database().await);
    let service = running(&mut world).await;
    eventually("its markers are read", async || service.trouble("unindexed").await).await;
    assert_eq!(wrong(&world, &[]).await, ["catalog.bucket"]);
    sql(&world, "UPDATE catalog SET unread = 1".to_owned()).await;
    assert_eq!(wrong(&world, &[]).await, ["catalog.bucket"]);
    sql(&world, "UPDATE catalog SET unread = 0".to_owned()).await;
    document(&run(&world, &["reindex", "--json"]).await, 0);
    assert_eq!(wrong(&world, &[]).await, Vec::<String>::new());
    drop(service);
}

#[tokio::test]
async fn a_folder_without_parts_is_told_and_left_as_it_is() {
    let world = World::new(Parts::Embedded).await;
    assert_eq!(wrong(&world, &[]).await, ["catalog", "bucket"]);
    let is_there = || std::fs::read_dir(world.folder()).unwrap().count();
    assert_eq!(is_there(), 0, "nothing is made");
    // Where only the store is away, nothing is made either.
    std::fs::write(world.folder().join("callvault.db"), "").unwrap();
    assert_eq!(wrong(&world, &[]).await, ["bucket"]);
    assert_eq!(is_there(), 1, "nothing is made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lets_no_page_read_is_found() {
    let mut world = World::new(Parts::Servers).await;
    let _service = running(&mut world).await;
    // Plays every link, and says nothing of other origins.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let public = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(callvault::http::serve(
        listener,
        Router::new().fallback(|| async { "audio" }),
        tokio_util::sync::CancellationToken::new(),
    ));
    let own =
        [("CALLVAULT_S3_PUBLIC_ENDPOINT", public.as_str()), ("CALLVAULT_CORS_ORIGINS", "https://app.example.com")];
    assert_eq!(wrong(&world, &own).await, ["bucket.cors"]);
    served.abort();
}

/// Has MinIO do something, with boto3 and its administrator's client.
fn minio(world: &World, program: &str) -> String {
    let setting = |name: &str| world.settings[name].clone();
    let mut python = std::process::Command::new(PYTHON);
    python.arg("-c").arg(program).env("ENDPOINT", setting("CALLVAULT_S3_ENDPOINT")).env("BUCKET", world.bucket());
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        python.env(name, setting(name));
    }
    said(&python.output().expect("python starts"))
}

const RULE_THAT_EXPIRES: &str = r#"
import os, boto3
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1")
rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": PREFIX}, "Expiration": {"Days": 30}}
s3.put_bucket_lifecycle_configuration(Bucket=os.environ["BUCKET"], LifecycleConfiguration={"Rules": [rule]})
"#;

const VERSIONS: &str = r#"
import os, boto3
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1")
s3.put_bucket_versioning(Bucket=os.environ["BUCKET"], VersioningConfiguration={"Status": STATUS})
"#;

/// A user who may do all but one thing.
const USER_WHO_MAY_NOT: &str = r#"
import os
from minio import MinioAdmin
from minio.credentials import StaticProvider
root = StaticProvider(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
admin = MinioAdmin(endpoint=os.environ["ENDPOINT"].removeprefix("http://"), credentials=root, secure=False)
name = os.environ["BUCKET"][-12:] + "-" + FORBIDDEN.lower()
statements = [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]},
              {"Effect": "Deny", "Action": ["s3:" + FORBIDDEN], "Resource": ["arn:aws:s3:::*"]}]
admin.policy_add(name, policy={"Version": "2012-10-17", "Statement": statements})
admin.user_add(name, "secret-0123456789")
admin.policy_set(name, user=name)
print(name, end="")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_forbids_or_forgets_is_found() {
    let mut world = World::new(Parts::Servers).await;
    let service = running(&mut world).await;
    let forbidden: &[(&str, &[&str])] = &[
        ("PutObject", &["bucket.put", "bucket.copy"]),
        ("GetObject", &["bucket.copy", "bucket.get", "bucket.link", "bucket.delete"]),
        ("DeleteObject", &["bucket.delete"]),
    ];
    for (forbidden, expected) in forbidden {
        let user = minio(&world, &format!("FORBIDDEN = \"{forbidden}\"\n{USER_WHO_MAY_NOT}"));
        let own = [("AWS_ACCESS_KEY_ID", user.as_str()), ("AWS_SECRET_ACCESS_KEY", "secret-0123456789")];
        assert_eq!(wrong(&world, &own).await, *expected, "without {forbidden}");
    }
    for (prefix, expected) in [("logs/", &[][..]), ("", &["bucket.lifecycle"]), ("CA", &["bucket.lifecycle"])] {
        minio(&world, &format!("PREFIX = \"{prefix}\"\n{RULE_THAT_EXPIRES}"));
        assert_eq!(wrong(&world, &[]).await, expected, "a rule for {prefix:?}");
    }
    drop(service);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bucket_keeps_of_versions_is_told() {
    let mut world = World::new(Parts::Servers).await;
    let service = running(&mut world).await;
    let told = async || {
        let found = checks(&world, &[]).await;
        let versions = found.iter().find(|check| check["check"] == "bucket.versions").unwrap();
        versions["detail"].as_str().unwrap().to_owned()
    };
    assert_eq!(told().await, "the bucket keeps no versions");
    for (status, expected) in [("Enabled", "keeps versions"), ("Suspended", "keeps no more versions, but has")] {
        minio(&world, &format!("STATUS = \"{status}\"\n{VERSIONS}"));
        let told = told().await;
        assert!(told.contains(expected), "{status}: {told}");
    }
    drop(service);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_off_is_found() {
    let mut world = World::new(Parts::Servers).await;
    let _service = running(&mut world).await;
    let library = crate::faults::faketime();
    let library = library.to_str().unwrap();
    let own = [("LD_PRELOAD", library), ("FAKETIME", "+20m"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let found = wrong(&world, &own).await;
    assert!(found.contains(&"clock".to_owned()), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_that_is_new_is_left_as_it_is() {
    let mut world = World::new(Parts::Servers).await;
    let service = running(&mut world).await;
    let database = Postgres::shared().new_database().await;
    let own = [("CALLVAULT_DATABASE_URL", database.as_str())];
    for _ in 0..2 {
        let found = finds(&world, &own).await;
        assert!(found.contains(&("catalog".to_owned(), "warning".to_owned())), "{found:?}");
    }
    drop(service);
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_2() {
    let world = World::new(Parts::Embedded).await;
    let ended = doctor(&world, &[("CALLVAULT_LEASE", "thirty")]).await;
    assert_eq!(ended.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("CALLVAULT_LEASE"));
    assert!(ended.stdout.is_empty());
    assert!(!world.folder().join("callvault.db").exists(), "nothing is made");
}
