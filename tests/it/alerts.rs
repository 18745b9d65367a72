//! The alerts of deploy/alerts, on what real runs measured: `promtool` is given
//! the scrapes of a run as series, and says which alerts fire.

use std::collections::BTreeMap;
use std::process::Command;

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{Fault, SimulatedRecording};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::cluster::Node;
use crate::support::compose::{deploy, root, yaml};
use crate::support::eventually;
use crate::support::world::{ADMIN_KEY, Parts, Service, World, account, call_sid, recording_id, started_at};

/// The series of one scrape, each with its labels, and their values.
type Scrape = BTreeMap<String, f64>;

/// For how long the last scrape stays as it was. Longer than any alert waits.
const MINUTES: usize = 90;

async fn scrape(world: &World, service: &Service) -> Scrape {
    let answer = world.http.get(format!("{}/metrics", service.url)).bearer_auth(ADMIN_KEY).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let text = answer.text().await.unwrap();
    let series = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    series
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

async fn measures(world: &World, service: &Service, series: &str, at_least: f64) -> Scrape {
    eventually(&format!("{series} is {at_least}"), async || {
        let scraped = scrape(world, service).await;
        (scraped.get(series).is_some_and(|value| *value >= at_least)).then_some(scraped)
    })
    .await
}

/// The label that Prometheus adds.
fn of_instance(series: &str) -> String {
    match series.strip_suffix('}') {
        Some(labelled) => format!("{labelled},instance=\"node\"}}"),
        None => format!("{series}{{instance=\"node\"}}"),
    }
}

/// What Prometheus would have of a run: as it began, for ten minutes; then as it
/// ended. An age that grew at the end grows on.
fn as_series(began: &Scrape, before_the_end: &Scrape, ended: &Scrape) -> Vec<Value> {
    let values = |(name, end): (&String, &f64)| {
        // What was not there yet had not happened.
        let begin = began.get(name).copied().unwrap_or(0.0);
        let is_age = name.ends_with("_seconds") && before_the_end.get(name).is_some_and(|before| before < end);
        let growth = if is_age { 60.0 } else { 0.0 };
        json!({"series": of_instance(name), "values": format!("{begin}+0x9 {end}+{growth}x{MINUTES}")})
    };
    ended.iter().map(values).collect()
}

/// The alerts that fire by the end of that run, and only these, each with the
/// labels that its own and its series' are.
fn fire(world: &World, series: &[Value], at_minute: usize, firing: &[(&str, &[(&str, &str)])]) {
    let rules = yaml(&deploy("alerts/callvault.yaml")).remove(0);
    let rules = rules["groups"][0]["rules"].as_array().unwrap().clone();
    let expected = |rule: &Value| {
        let alert = rule["alert"].as_str().unwrap();
        let fires = firing.iter().filter(|(name, _)| *name == alert);
        let alerts: Vec<Value> = fires
            .map(|(_, labels)| {
                let mut all = rule["labels"].as_object().unwrap().clone();
                all.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
                json!({"exp_labels": all, "exp_annotations": rule["annotations"]})
            })
            .collect();
        json!({"alertname": alert, "eval_time": format!("{at_minute}m"), "exp_alerts": alerts})
    };
    for (name, _) in firing {
        assert!(rules.iter().any(|rule| rule["alert"] == *name), "there is no alert {name}");
    }
    let tests: Vec<Value> = rules.iter().map(expected).collect();
    let file = json!({
        "rule_files": [root().join("deploy/alerts/callvault.yaml")],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": tests}],
    });
    let path = world.folder().join("alerts-test.yaml");
    std::fs::write(&path, file.to_string()).unwrap();
    let ran = Command::new("promtool").args(["test", "rules"]).arg(&path).output().expect("promtool is installed");
    assert!(ran.status.success(), "{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
}

/// Every series that an alert asks for by a label's value.
fn selected() -> Vec<(String, String)> {
    let rules = yaml(&deploy("alerts/callvault.yaml")).remove(0);
    let mut found = Vec::new();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let words = rule["expr"].as_str().unwrap().split(['(', ' ', '[', ')']);
        for (name, label) in words.filter_map(|word| word.strip_suffix('}')?.split_once('{')) {
            if !label.contains('~') {
                found.push((name.to_owned(), label.to_owned()));
            }
        }
    }
    assert!(found.len() > 5, "{found:?}");
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_alert_fires_on_a_healthy_run() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECONCILE_EVERY", "15m");
    // A machine that is busy with other tests is no trouble of the service.
    world.set("CALLVAULT_LEASE", "1m");
    let service = world.start().await;
    let began = scrape(&world, &service).await;
    for (name, label) in selected() {
        let is_there = began.keys().any(|series| series.starts_with(&name) && series.contains(&label));
        // A histogram's series come with its first value.
        assert!(is_there || name.ends_with("_bucket"), "no series of {name} has {label}");
    }
    for number in 1..=5 {
        let id = world.record(number);
        assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
        service.recording_in(id.recording, "stored").await;
        let played = service.get(&format!("/v1/recordings/{}/audio", id.recording)).await;
        assert_eq!(played.status(), StatusCode::TEMPORARY_REDIRECT);
    }
    let ended = measures(&world, &service, "callvault_fetches_total{outcome=\"stored\"}", 5.0).await;
    let series = as_series(&began, &ended, &ended);
    for minute in [5, 12, 30, 90] {
        fire(&world, &series, minute, &[]);
    }
}

/// Another account, whose credentials Twilio refuses.
fn refused() -> AccountSid {
    format!("AC{}", "b".repeat(32)).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_tell_of_trouble_with_twilio() {
    let mut world = World::new(Parts::Servers).await;
    world.add_account(refused());
    world.set("CALLVAULT_LEASE", "1m");
    let service = world.start().await;
    let began = scrape(&world, &service).await;

    world.simulator.always_of(account(), Some(Fault::RateLimited { retry_after: None }));
    for number in 1..=5 {
        service.send(&world.callback(world.record(number).recording)).await;
    }
    world.simulator.refuse_credentials(refused(), true);
    let id = RecordingId { account: refused(), recording: recording_id(50).recording };
    world.simulator.add(SimulatedRecording::speech(id, call_sid(50), started_at()));
    assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    let badly_signed = format!("{}/webhooks/twilio/recording?AccountSid={}", service.url, account());
    for _ in 0..6 {
        let answer = world.http.get(&badly_signed).header("x-twilio-signature", "bm8=").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    }

    let limited = format!("callvault_twilio_rate_limited_total{{account=\"{}\"}}", account());
    measures(&world, &service, &limited, 25.0).await;
    measures(&world, &service, "callvault_accounts_paused", 1.0).await;
    let before = measures(&world, &service, "callvault_oldest_pending_seconds", 1.0).await;
    let waited = before["callvault_oldest_pending_seconds"];
    let ended = measures(&world, &service, "callvault_oldest_pending_seconds", waited + 1.0).await;
    let series = as_series(&began, &before, &ended);
    fire(&world, &series, 9, &[]);
    let account = account().to_string();
    let of_account = [("account", account.as_str())];
    let limited = ("CallvaultRateLimited", &of_account[..]);
    let (paused, signed) = (("CallvaultAccountPaused", &[][..]), ("CallvaultCallbacksBadlySigned", &[][..]));
    fire(&world, &series, 20, &[limited, paused, signed]);
    // What was counted is over by then; what waits has waited too long.
    fire(&world, &series, 80, &[paused, ("CallvaultPendingTooLong", &[])]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_tell_of_parts_that_are_away() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "1m");
    let node = Node::start(&world).await;
    let began = scrape(&world, &node).await;

    node.store.refuse();
    measures(&world, &node, "callvault_trouble{code=\"bucket_unreachable\"}", 1.0).await;
    node.catalog.refuse();
    measures(&world, &node, "callvault_trouble{code=\"catalog_unreachable\"}", 1.0).await;
    let answer = node.send(&world.callback(world.record(1).recording)).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let before = measures(&world, &node, "callvault_feed_lag_seconds", 2.0).await;
    let lag = before["callvault_feed_lag_seconds"];
    let ended = measures(&world, &node, "callvault_feed_lag_seconds", lag + 1.0).await;

    let series = as_series(&began, &before, &ended);
    let of_node: &[(&str, &str)] = &[("instance", "node")];
    let away = [("CallvaultCatalogUnreachable", of_node), ("CallvaultBucketUnreachable", of_node)];
    fire(&world, &series, 9, &[]);
    let lost = ("CallvaultCallbacksLost", &[][..]);
    fire(&world, &series, 13, &[away[0], away[1], lost]);
    fire(&world, &series, 40, &[away[0], away[1], ("CallvaultFeedLag", of_node)]);
}

#[test]
fn prometheus_that_sees_no_node_says_so() {
    let world = tokio::runtime::Runtime::new().unwrap().block_on(World::new(Parts::Embedded));
    fire(&world, &[], 4, &[]);
    fire(&world, &[], 6, &[("CallvaultDown", &[])]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_runbook_runs() {
    let mut world = World::new(Parts::Servers).await;
    let port = crate::support::servers::free_port();
    world.set("CALLVAULT_PUBLIC_URL", format!("http://127.0.0.1:{port}"));
    let service = world.start_on(port, crate::support::world::debug_binary()).await;
    let runbook = deploy("RUNBOOK.md");
    let blocks = runbook.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let commands: std::collections::BTreeSet<&str> = blocks.flat_map(str::lines).collect();
    assert!(commands.len() > 5, "{commands:?}");
    let binaries = crate::support::world::debug_binary();
    let path = format!("{}:{}", binaries.parent().unwrap().display(), std::env::var("PATH").unwrap());
    for command in commands {
        let mut bash = Command::new("bash");
        bash.args(["-o", "pipefail", "-c", command]).current_dir(world.folder()).env_clear().envs(&world.settings);
        bash.env("PATH", &path).env("CALLVAULT_URL", &service.url).env("CALLVAULT_API_KEY", ADMIN_KEY);
        let ran = bash.output().expect("bash runs");
        assert!(ran.status.success(), "{command}\n{}", String::from_utf8_lossy(&ran.stderr));
    }
}
