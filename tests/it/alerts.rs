//! The alerts of deploy/alerts, on what real runs measured: `promtool` is given
//! the scrapes of a run as series, and says which alerts fire. Every alert there is
//! has a run that makes it fire.

use std::collections::BTreeSet;

use callvault::twilio::simulator::Fault;
use reqwest::StatusCode;
use serde_json::Value;

use crate::doctor;
use crate::support::bucket::run;
use crate::support::compose::{deploy, yaml};
use crate::support::eventually;
use crate::support::world::{Parts, World, recording_id};
use measured::{Measured, measures, scrape};

mod measured;
mod runs;

fn rules() -> Vec<Value> {
    let file = yaml(&deploy("alerts/callvault.yaml")).remove(0);
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect()
}

/// A test for each run: that the alerts fire, and no others. Together they are all there are.
macro_rules! runs {
    ($($name:ident: $($alert:literal),+;)+) => {
        const RUNS: &[(&str, &[&str])] = &[$((stringify!($name), &[$($alert),+])),+];

        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                assert_eq!(runs::$name().await, BTreeSet::from([$($alert),+].map(str::to_owned)));
            }
        )+
    };
}

runs! {
    no_node_is_seen: "CallvaultDown";
    twilio_refuses_and_limits: "CallvaultRateLimited", "CallvaultAccountPaused", "CallvaultCallbacksBadlySigned",
        "CallvaultPendingTooLong";
    twilio_fails_and_calls_nobody_back: "CallvaultFetchesFailing", "CallvaultCallbacksMissing", "CallvaultManyPending",
        "CallvaultPendingTooLong", "CallvaultReconcileLag";
    catalog_and_bucket_are_away: "CallvaultCatalogUnreachable", "CallvaultBucketUnreachable", "CallvaultCallbacksLost",
        "CallvaultFeedLag";
    what_twilio_has_cannot_be_read: "CallvaultRecordingsFailed", "CallvaultTwilioListUnreadable";
    the_store_fails: "CallvaultBucketUnreachable", "CallvaultStoreFailing", "CallvaultFetchesFailing",
        "CallvaultLettingGoOwed", "CallvaultPendingTooLong", "CallvaultScrubLag";
    a_node_dies_and_receivers_take_nothing: "CallvaultLeasesExpiring", "CallvaultNodeDown", "CallvaultWebhookLag",
        "CallvaultWebhooksGivenUp";
    objects_are_lost_and_the_catalog_is: "CallvaultRecordingsLost", "CallvaultScrubFinds", "CallvaultTwilioCopyDiffers",
        "CallvaultRecordingsFailed", "CallvaultCatalogUnindexed";
    twilio_lets_nothing_go: "CallvaultTwilioDeletionsFailing";
    the_catalog_is_slow_and_wrong_and_a_clock_is: "CallvaultCatalogSlow", "CallvaultLoopFailing", "CallvaultClockOff",
        "CallvaultBucketUnreachable";
}

#[test]
fn every_alert_is_fired_by_a_run() {
    let fired: BTreeSet<String> =
        RUNS.iter().flat_map(|(_, alerts)| alerts.iter()).map(|one| (*one).to_owned()).collect();
    let alerts: BTreeSet<String> = rules().iter().map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect();
    assert_eq!(fired, alerts);
}

/// Every series that an alert asks for, or passes over, by a label's value: its name, and
/// a part of its labels.
fn selected() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for rule in rules() {
        let words = rule["expr"].as_str().unwrap().split(['(', ' ', '[', ')']);
        for (name, matcher) in words.filter_map(|word| word.strip_suffix('}')?.split_once('{')) {
            let (label, values) = matcher.split_at(matcher.find(['=', '!', '~']).unwrap());
            let shown = |value: &str| match value.strip_prefix(".+") {
                Some(end) => format!("{end}\""),
                None => format!("{label}=\"{value}\""),
            };
            let values = values.trim_matches(['=', '!', '~', '"']).split('|');
            found.extend(values.map(|value| (name.to_owned(), shown(value))));
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_alert_fires_on_a_healthy_run() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECONCILE_EVERY", "15m");
    world.set("CALLVAULT_SCRUB_EVERY", "1h");
    // A machine that is busy with other tests is no trouble of the service.
    world.set("CALLVAULT_LEASE", "1m");
    let service = doctor::running(&mut world).await;
    let began = scrape(&world, &service).await;
    for (name, label) in selected() {
        let is_there = began.keys().any(|series| series.starts_with(&name) && series.contains(&label));
        assert!(is_there, "no series of {name} has {label}");
    }
    for number in 1..=5 {
        let id = world.record(number);
        assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
        service.recording_in(id.recording, "stored").await;
        let played = service.get(&format!("/v1/recordings/{}/audio", id.recording)).await;
        assert_eq!(played.status(), StatusCode::TEMPORARY_REDIRECT);
    }
    // Strangers call, and somebody has doctor look.
    let stranger = world.callback(recording_id(1).recording).with("AccountSid", &format!("AC{}", "9".repeat(32)));
    for _ in 0..10 {
        assert_eq!(service.send(&stranger).await.status(), StatusCode::FORBIDDEN);
        doctor::finds(&world, &[]).await;
    }
    let ended = measures(&world, &service, "callvault_callbacks_total{outcome=\"foreign\"}", 20.0).await;
    never_fires(Measured::of(&world).node("node", &began, &ended, &ended));
}

/// While a run goes on so, and for long after.
fn never_fires(mut run: Measured) {
    for minute in [5, 12, 30, 90] {
        run.fire(minute, &[]);
    }
}

/// By a few posts where nobody calls, and by more among the callbacks of a busy hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_alert_fires_for_a_stranger_who_knows_an_account() {
    let world = runs::world().await;
    let service = world.start().await;
    let began = scrape(&world, &service).await;
    let id = world.record(1);
    let wrong = format!("callvault_callback_signatures_total{{account=\"{}\",signature=\"wrong\"}}", id.account);
    runs::badly_signed(&world, &service, id, 8).await;
    let few = measures(&world, &service, &wrong, 8.0).await;
    never_fires(Measured::of(&world).node("node", &began, &few, &few));
    runs::badly_signed(&world, &service, id, 8).await;
    for _ in 0..200 {
        assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    }
    service.recording_in(id.recording, "stored").await;
    let busy = measures(&world, &service, &wrong, 16.0).await;
    never_fires(Measured::of(&world).node("node", &began, &busy, &busy));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_alert_fires_while_a_backfill_takes_its_time() {
    let world = runs::world().await;
    let service = world.start().await;
    let began = scrape(&world, &service).await;
    for number in 101..=120 {
        world.simulator.script(world.record(number).recording, [Fault::Held(1000)]);
    }
    let backfill = run(&world, &["backfill", "--since", "2026-11-23", "--until", "2026-11-23", "--no-wait"]).await;
    assert!(backfill.status.success(), "{}", String::from_utf8_lossy(&backfill.stderr));
    for number in 1..=5 {
        let id = world.record(number);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
    }
    let waits = ["callvault_oldest_backfill_pending_seconds"];
    let (before, ended) = runs::while_they_grow(&world, &service, &waits).await;
    never_fires(Measured::of(&world).node("node", &began, &before, &ended));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_alert_fires_while_old_recordings_go_by_their_age() {
    let mut world = runs::world().await;
    world.set("CALLVAULT_RETENTION", "1h");
    let service = world.start().await;
    let began = scrape(&world, &service).await;
    let mut number = 0;
    let ended = eventually("some are gone, and some are owed as always", async || {
        number += 1;
        service.deliver(&world.callback(world.record(number).recording)).await;
        let now = scrape(&world, &service).await;
        let [gone, owed] =
            ["callvault_erasures_total{outcome=\"done\"}", "callvault_letting_go_owed{what=\"erasure\"}"];
        (now[gone] >= 20.0 && now[owed] >= 1.0).then_some(now)
    })
    .await;
    never_fires(Measured::of(&world).node("node", &began, &ended, &ended));
}
