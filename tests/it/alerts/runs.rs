//! The runs, each with troubles that are really made, and the alerts that fire then.

use std::collections::BTreeSet;

use aws_lc_rs::rsa::KeySize;
use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{Audio, Fault, RestFault, SimulatedRecording, speech_mp3};
use reqwest::{Method, StatusCode};
use sqlx::Connection;

use super::measured::{Measured, Scrape, measures, scrape, until};
use crate::encrypted::{configure, encryption, pair, record};
use crate::erase::path;
use crate::recheck::{owe, sql, stored};
use crate::support::bucket::{attributes, put, remove};
use crate::support::cluster::Node;
use crate::support::eventually;
use crate::support::servers::Postgres;
use crate::support::world::{Parts, Service, World, account, call_sid, recording_id, started_at};
use crate::webhooks::{Application, Reply, post_to, post_to_another};

type Fired = BTreeSet<String>;
type Labels<'l> = &'l [(&'l str, &'l str)];

/// Of an alert that names nothing.
const NONE: Labels<'static> = &[];
const OF_NODE: Labels<'static> = &[("instance", "node")];

/// A world in which no lease runs out because the machine is busy.
pub(super) async fn world() -> World {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "1m");
    world
}

/// Another account.
fn other() -> AccountSid {
    format!("AC{}", "b".repeat(32)).parse().unwrap()
}

pub(super) fn value(scrape: &Scrape, series: &str) -> f64 {
    scrape.get(series).copied().unwrap_or_default()
}

fn sum(scrape: &Scrape, begins: &str) -> f64 {
    scrape.iter().filter(|(series, _)| series.starts_with(begins)).map(|(_, value)| value).sum()
}

/// Two scrapes, between which each of these grew by a second at least.
pub(super) async fn while_they_grow(world: &World, service: &Service, ages: &[&str]) -> (Scrape, Scrape) {
    let before = until(world, service, "they wait", |now| ages.iter().all(|age| value(now, age) >= 1.0)).await;
    // That of the feed is a moment's, where it is not what is waited for.
    let feed = "callvault_feed_lag_seconds";
    let is_calm = |now: &Scrape| ages.contains(&feed) || value(now, feed) == 0.0;
    let grew = |now: &Scrape| is_calm(now) && ages.iter().all(|age| value(now, age) >= value(&before, age) + 1.0);
    let ended = until(world, service, "they wait on", grew).await;
    (before, ended)
}

/// So many callbacks of a recording come that its account's token has not signed.
pub(super) async fn badly_signed(world: &World, service: &Service, id: RecordingId, times: u32) {
    let mut callback = world.callback(id.recording);
    callback.auth_token = "another-token".to_owned();
    for _ in 0..times {
        assert_eq!(service.send(&callback).await.status(), StatusCode::FORBIDDEN);
    }
}

pub(super) async fn no_node_is_seen() -> Fired {
    let world = World::new(Parts::Embedded).await;
    let mut run = Measured::of(&world);
    run.fire(4, &[]);
    run.fire(6, &[("CallvaultDown", NONE)]);
    run.fired()
}

pub(super) async fn twilio_refuses_and_limits() -> Fired {
    let mut world = world().await;
    world.add_account(other());
    let service = world.start().await;
    let began = scrape(&world, &service).await;

    world.simulator.always_of(account(), Some(Fault::RateLimited { retry_after: None }));
    for number in 1..=5 {
        service.deliver(&world.callback(world.record(number).recording)).await;
    }
    world.simulator.refuse_credentials(other(), true);
    let id = RecordingId { account: other(), recording: recording_id(50).recording };
    world.simulator.add(SimulatedRecording::speech(id, call_sid(50), started_at()));
    assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    // Of its callbacks all but one are signed with a token that the node does not have.
    badly_signed(&world, &service, id, 12).await;
    let limited = format!("callvault_twilio_rate_limited_total{{account=\"{}\"}}", account());
    measures(&world, &service, &limited, 25.0).await;
    measures(&world, &service, "callvault_accounts_paused", 1.0).await;
    let (before, ended) = while_they_grow(&world, &service, &["callvault_oldest_pending_seconds"]).await;

    let mut run = Measured::of(&world).node("node", &began, &before, &ended);
    run.fire(9, &[]);
    let (account, other) = (account().to_string(), other().to_string());
    let (of_account, of_other) = ([("account", account.as_str())], [("account", other.as_str())]);
    let limited = ("CallvaultRateLimited", &of_account[..]);
    let paused = ("CallvaultAccountPaused", NONE);
    let badly_signed = ("CallvaultCallbacksBadlySigned", &of_other[..]);
    run.fire(20, &[limited, paused, badly_signed]);
    // What was counted is over by then; what waits has waited too long.
    run.fire(80, &[paused, ("CallvaultPendingTooLong", NONE)]);
    run.fired()
}

pub(super) async fn twilio_fails_and_calls_nobody_back() -> Fired {
    let mut world = world().await;
    world.add_account(other());
    world.set("CALLVAULT_RECONCILE_EVERY", "1s");
    // The list of one account never comes; what the other's has cannot be fetched.
    world.simulator.script_lists(other(), vec![Some(Fault::Status(500)); 10_000]);
    world.simulator.always_of(account(), Some(Fault::Status(500)));
    let service = world.start().await;
    let began = scrape(&world, &service).await;
    for number in 1..=12 {
        let id = recording_id(number);
        world.simulator.add(SimulatedRecording::speech(id, call_sid(number), jiff::Timestamp::now()));
    }
    measures(&world, &service, "callvault_reconcile_found_total{what=\"new\"}", 12.0).await;
    measures(&world, &service, "callvault_fetches_total{outcome=\"upstream_error\"}", 12.0).await;
    let many = "callvault_many_pending_seconds";
    let waits = ["callvault_oldest_pending_seconds", many, "callvault_reconcile_lag_seconds"];
    let (before, ended) = while_they_grow(&world, &service, &waits).await;

    let mut run = Measured::of(&world).node("node", &began, &before, &ended);
    run.fire(9, &[]);
    let missing = ("CallvaultCallbacksMissing", NONE);
    run.fire(17, &[("CallvaultFetchesFailing", NONE), missing]);
    let pending = [("CallvaultManyPending", NONE), ("CallvaultPendingTooLong", NONE)];
    run.fire(60, &[&pending[..], &[missing]].concat());
    run.fire(150, &[&pending[..], &[("CallvaultReconcileLag", NONE)]].concat());
    run.fired()
}

pub(super) async fn what_twilio_has_cannot_be_read() -> Fired {
    let mut world = world().await;
    let [known, other_key] = ["a", "b"].map(|letter| pair(&world, letter, KeySize::Rsa2048));
    configure(&mut world, &[&known]);
    world.set("CALLVAULT_RECONCILE_EVERY", "1s");
    let nodes = world.start_nodes(2).await;
    let scrapes = async || [scrape(&world, &nodes[0]).await, scrape(&world, &nodes[1]).await];
    let began = scrapes().await;
    let listed = recording_id(9);
    world.simulator.garble(listed.recording);
    world.simulator.add(SimulatedRecording::speech(listed, call_sid(9), jiff::Timestamp::now()));
    let ids = [1, 2, 3].map(|number| record(&world, number, Audio::speech(), Some(encryption(&other_key, number))));
    for id in &ids {
        nodes[0].deliver(&world.callback(id.recording)).await;
    }
    for id in &ids {
        nodes[0].recording_in(id.recording, "failed").await;
    }
    let both = |now: &[Scrape], series: &str| now.iter().map(|node| value(node, series)).sum::<f64>();
    let unreadable = "callvault_reconcile_found_total{what=\"unreadable\"}";
    let failed = "callvault_recordings_failed_total{code=\"decryption_failed\"}";
    let ended = eventually("one of them has walked, and all is counted", async || {
        Some(scrapes().await).filter(|now| both(now, unreadable) >= 1.0 && both(now, failed) >= 3.0)
    })
    .await;
    assert_eq!(both(&ended, failed), 3.0, "each once, whichever node gave it up");

    let run = Measured::of(&world).node("one", &began[0], &ended[0], &ended[0]);
    let mut run = run.node("other", &began[1], &ended[1], &ended[1]);
    run.fire(9, &[]);
    let given_up = ("CallvaultRecordingsFailed", &[("code", "decryption_failed")][..]);
    run.fire(17, &[given_up, ("CallvaultTwilioListUnreadable", NONE)]);
    run.fire(80, &[]);
    run.fired()
}

pub(super) async fn catalog_and_bucket_are_away() -> Fired {
    let world = world().await;
    let node = Node::start(&world).await;
    let began = scrape(&world, &node).await;

    node.store.refuse();
    measures(&world, &node, "callvault_trouble{code=\"bucket_unreachable\"}", 1.0).await;
    node.catalog.refuse();
    measures(&world, &node, "callvault_trouble{code=\"catalog_unreachable\"}", 1.0).await;
    let answer = node.send(&world.callback(world.record(1).recording)).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let (before, ended) = while_they_grow(&world, &node, &["callvault_feed_lag_seconds"]).await;

    let mut run = Measured::of(&world).node("node", &began, &before, &ended);
    let away = [("CallvaultCatalogUnreachable", OF_NODE), ("CallvaultBucketUnreachable", OF_NODE)];
    run.fire(9, &[]);
    run.fire(13, &[away[0], away[1], ("CallvaultCallbacksLost", NONE)]);
    run.fire(40, &[away[0], away[1], ("CallvaultFeedLag", OF_NODE)]);
    run.fired()
}

pub(super) async fn the_store_fails() -> Fired {
    let mut world = world().await;
    world.set("CALLVAULT_SCRUB_EVERY", "2s");
    let node = Node::start(&world).await;
    let (erased, _) = stored(&world, &node, 1).await;
    measures(&world, &node, "callvault_scrub_progress_ratio", 1.0).await;
    let began = scrape(&world, &node).await;

    node.store.refuse();
    let answer = node.request(Method::DELETE, &path(&erased)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "its marker cannot be written");
    for number in 2..=6 {
        node.deliver(&world.callback(world.record(number).recording)).await;
    }
    measures(&world, &node, "callvault_trouble{code=\"bucket_unreachable\"}", 1.0).await;
    measures(&world, &node, "callvault_fetches_total{outcome=\"store_error\"}", 20.0).await;
    until(&world, &node, "the store failed often", |now| sum(now, "callvault_store_failures_total") >= 30.0).await;
    let owed_for = "callvault_letting_go_oldest_seconds{what=\"erasure\"}";
    let waits = ["callvault_oldest_pending_seconds", "callvault_scrub_lag_seconds", owed_for];
    let (before, ended) = while_they_grow(&world, &node, &waits).await;

    let mut run = Measured::of(&world).node("node", &began, &before, &ended);
    run.fire(9, &[]);
    let away = ("CallvaultBucketUnreachable", OF_NODE);
    run.fire(17, &[away, ("CallvaultStoreFailing", NONE), ("CallvaultFetchesFailing", NONE)]);
    let (owed, pending) = (("CallvaultLettingGoOwed", &[("what", "erasure")][..]), ("CallvaultPendingTooLong", NONE));
    run.fire(80, &[away, owed, pending]);
    run.fire_after_hours(30 * 24, &[away, owed, pending]);
    run.fire_after_hours(61 * 24, &[away, owed, pending, ("CallvaultScrubLag", NONE)]);
    run.fired()
}

pub(super) async fn a_node_dies_and_receivers_take_nothing() -> Fired {
    let mut world = World::new(Parts::Servers).await;
    let dying = world.start().await;
    for number in 1..=5 {
        let id = world.record(number);
        world.simulator.script(id.recording, [Fault::Held(1000)]);
        dying.deliver(&world.callback(id.recording)).await;
    }
    eventually("it fetches them all", async || {
        (1..=5).all(|number| world.simulator.counts(recording_id(number).recording).media_requests > 0).then_some(())
    })
    .await;
    let last_seen = scrape(&world, &dying).await;
    dying.kill();
    let metrics = format!("{}/metrics", dying.url);
    eventually("it answers nobody", async || world.http.get(&metrics).send().await.err()).await;

    let failing = Application::start(|_, _| Reply::Status(500)).await;
    let gone = Application::start(|_, _| Reply::Status(410)).await;
    post_to(&mut world, &failing.url, "");
    post_to_another(&mut world, &gone.url);
    let service = world.start().await;
    for number in 1..=5 {
        service.recording_in(recording_id(number).recording, "stored").await;
    }
    measures(&world, &service, "callvault_leases_expired_total", 5.0).await;
    measures(&world, &service, "callvault_webhook_posts_total{outcome=\"unwanted\"}", 1.0).await;
    let (before, ended) = while_they_grow(&world, &service, &["callvault_webhook_lag_seconds"]).await;

    // The node was not there before.
    let run = Measured::of(&world).node("node", &Scrape::new(), &before, &ended);
    let mut run = run.gone("dead", &last_seen);
    run.fire(9, &[]);
    let given_up = ("CallvaultWebhooksGivenUp", NONE);
    run.fire(17, &[("CallvaultLeasesExpiring", NONE), given_up]);
    let (dead, lag) = (("CallvaultNodeDown", &[("instance", "dead")][..]), ("CallvaultWebhookLag", NONE));
    run.fire(60, &[given_up, dead, lag]);
    // For days, of which there is a scrape an hour.
    run.fire_after_hours(5 * 24, &[dead, lag]);
    run.fired()
}

/// Has an object hold other bytes than its name says.
async fn spoil(world: &World, id: &RecordingId, number: u32, key: &str) {
    let mut rotten = speech_mp3().to_vec();
    rotten[100] ^= 1;
    put(&world.real_store(), key, &rotten, attributes(id, number, &speech_mp3(), 1)).await;
}

async fn ended(service: Service) {
    service.signal("TERM");
    assert!(service.end().await.success());
}

pub(super) async fn objects_are_lost_and_the_catalog_is() -> Fired {
    let mut world = world().await;
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    let service = world.start().await;
    let began = scrape(&world, &service).await;
    let mut known = Vec::new();
    for number in 1..=4 {
        known.push(stored(&world, &service, number).await);
    }
    remove(&world.real_store(), &known[0].1).await;
    owe(&world, &known[0].0).await;
    let lost = measures(&world, &service, "callvault_rechecks_total{outcome=\"lost\"}", 1.0).await;
    service.recording_in(known[0].0.recording, "stored").await;
    ended(service).await;

    // A node that would delete at Twilio finds that its copy is the only good one.
    spoil(&world, &known[1].0, 2, &known[1].1).await;
    let mut deleting = world.settings.clone();
    deleting.insert("CALLVAULT_DELETE_AT_TWILIO_AFTER".to_owned(), "1s".to_owned());
    let service = world.start_with(crate::support::servers::free_port(), &deleting).await;
    let differing = "callvault_twilio_deletions_total{outcome=\"differs\"}";
    measures(&world, &service, differing, 1.0).await;
    let deleted = "callvault_twilio_deletions_total{outcome=\"deleted\"}";
    let differs = measures(&world, &service, deleted, 3.0).await;
    ended(service).await;

    spoil(&world, &known[2].0, 3, &known[2].1).await;
    remove(&world.real_store(), &known[3].1).await;
    world.set("CALLVAULT_SCRUB_EVERY", "2s");
    let service = world.start().await;
    let given_up = "callvault_recordings_failed_total{code=\"object_lost\"}";
    let found = until(&world, &service, "the scrub finds both, and Twilio has neither any more", |now| {
        let found = |kind: &&str| value(now, &format!("callvault_scrub_found_total{{kind=\"{kind}\"}}")) > 0.0;
        ["corrupted", "missing"].iter().all(found) && value(now, given_up) >= 2.0
    })
    .await;
    ended(service).await;

    world.set("CALLVAULT_DATABASE_URL", Postgres::shared().new_database().await);
    let service = world.start().await;
    let unindexed = until(&world, &service, "its markers are read", |now| {
        let trouble = |code: &str| value(now, &format!("callvault_trouble{{code=\"{code}\"}}"));
        (trouble("unread"), trouble("unindexed")) == (0.0, 1.0)
    })
    .await;

    let run = Measured::of(&world).node("first", &began, &lost, &lost);
    let run = run.node("second", &began, &differs, &differs).node("third", &began, &found, &found);
    let mut run = run.node("fourth", &began, &unindexed, &unindexed);
    run.fire(9, &[]);
    let [missing, corrupted] = [[("kind", "missing")], [("kind", "corrupted")]];
    let finds = [("CallvaultScrubFinds", &missing[..]), ("CallvaultScrubFinds", &corrupted[..])];
    let given_up = ("CallvaultRecordingsFailed", &[("code", "object_lost")][..]);
    let gone = [("CallvaultRecordingsLost", NONE), ("CallvaultTwilioCopyDiffers", NONE), given_up];
    run.fire(17, &[&finds[..], &gone[..]].concat());
    let unindexed = ("CallvaultCatalogUnindexed", &[("code", "unindexed")][..]);
    run.fire(45, &[&finds[..], &gone[..], &[unindexed]].concat());
    run.fired()
}

pub(super) async fn twilio_lets_nothing_go() -> Fired {
    let mut world = world().await;
    // The list fails as well.
    world.set("CALLVAULT_RECONCILE_EVERY", "off");
    let service = world.start().await;
    let began = scrape(&world, &service).await;
    for number in 1..=12 {
        stored(&world, &service, number).await;
    }
    ended(service).await;

    world.simulator.rest_fault(account(), Some(RestFault::Status(500)));
    world.set("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1s");
    let service = world.start().await;
    let refused = measures(&world, &service, "callvault_twilio_deletions_total{outcome=\"failed\"}", 12.0).await;

    world.simulator.rest_fault(account(), None);

    let mut run = Measured::of(&world).node("node", &began, &refused, &refused);
    run.fire(30, &[]);
    run.fire(60, &[("CallvaultTwilioDeletionsFailing", NONE)]);
    let fired = run.fired();

    // Where more goes than stays, what failed is no news.
    let of = |scrape: &Scrape, outcome: &str| {
        value(scrape, &format!("callvault_twilio_deletions_total{{outcome=\"{outcome}\"}}"))
    };
    let failed = of(&scrape(&world, &service).await, "failed");
    for number in (13..).take(failed as usize) {
        stored(&world, &service, number).await;
    }
    let gone = until(&world, &service, "more goes than stays", |now| of(now, "deleted") > of(now, "failed")).await;
    Measured::of(&world).node("node", &began, &gone, &gone).fire(60, &[]);
    fired
}

pub(super) async fn the_catalog_is_slow_and_wrong_and_a_clock_is() -> Fired {
    let mut world = world().await;
    let service = world.start().await;
    let began = scrape(&world, &service).await;

    // Something beside it holds a table that every node asks for all the time.
    let mut holder = sqlx::PgConnection::connect(&world.settings["CALLVAULT_DATABASE_URL"]).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE recordings IN ACCESS EXCLUSIVE MODE").execute(&mut holder).await.unwrap();
    let statements = |now: &Scrape, le: &str| {
        let until = |scrape: &Scrape| {
            let of = scrape.iter().filter(|(series, _)| {
                series.starts_with("callvault_catalog_statement_seconds_bucket")
                    && series.contains(&format!("le=\"{le}\""))
            });
            of.map(|(_, value)| value).sum::<f64>()
        };
        until(now) - until(&began)
    };
    until(&world, &service, "one statement in twenty is slow", |now| {
        statements(now, "1") <= 0.95 * statements(now, "+Inf") && statements(now, "+Inf") > 20.0
    })
    .await;
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    let is_well = |now: &Scrape| sum(now, "callvault_trouble") == 0.0;
    until(&world, &service, "all is well again", is_well).await;
    // And somebody renamed another one.
    sql(&world, "ALTER TABLE bucket_walks RENAME TO bucket_walks_of_old".to_owned()).await;
    let ended = measures(&world, &service, "callvault_trouble{code=\"scrub_failing\"}", 1.0).await;

    for (name, value) in [
        ("LD_PRELOAD", crate::faults::faketime().to_str().unwrap()),
        ("FAKETIME", "+20m"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ] {
        world.set(name, value);
    }
    let wrong = world.start().await;
    let clock = until(&world, &wrong, "it knows what is wrong", |now| {
        let trouble = |code: &str| value(now, &format!("callvault_trouble{{code=\"{code}\"}}")) == 1.0;
        trouble("clock_off") && trouble("bucket_unreachable")
    })
    .await;

    let run = Measured::of(&world).node("wrong", &Scrape::new(), &clock, &clock);
    let mut run = run.node("node", &began, &ended, &ended).that_goes_on();
    run.fire(9, &[]);
    let of_wrong: Labels<'_> = &[("instance", "wrong")];
    let failing: Labels<'_> = &[("instance", "node"), ("code", "scrub_failing")];
    let clock = [("CallvaultClockOff", of_wrong), ("CallvaultBucketUnreachable", of_wrong)];
    run.fire(30, &[&clock[..], &[("CallvaultCatalogSlow", NONE), ("CallvaultLoopFailing", failing)]].concat());
    run.fired()
}
