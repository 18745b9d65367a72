//! Letting go by itself, cut off at each of its steps: another node goes on, and what
//! was done is told in the feed.

use std::collections::BTreeMap;

use callvault::domain::digest::Digest;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{SimulatedRecording, speech_mp3};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::erase::{keep_versions, marker, path, steps_from_commit_on, versions};
use crate::evict::evict_soon;
use crate::holds::held_marker;
use crate::keys::{ask, create};
use crate::recheck::{count, folder, history, nothing_is_owed, plant, sql, staging, stored};
use crate::retention::{account_with, deleted_at_twilio, stored_young};
use crate::support::cluster::Node;
use crate::support::relay::{Act, Rule};
use crate::support::world::{ACCOUNT, Parts, Service, World, account, call_sid, recording_id, started_at};
use crate::support::{audit, eventually};

/// Where a node is cut off: on the way to which part, and at what.
pub type Step = (fn(&Node, Rule), Rule);

pub fn at_catalog(node: &Node, rule: Rule) {
    node.catalog.rule(rule);
}

pub fn at_store(node: &Node, rule: Rule) {
    node.store.rule(rule);
}

pub fn at_twilio(node: &Node, rule: Rule) {
    node.twilio.rule(rule);
}

/// Has recordings that are stored come up one by one: what is due by that column is
/// due long from now.
async fn none_is_due(world: &World, column: &str) {
    sql(world, format!("UPDATE recordings SET {column} = 99999999999999")).await;
}

async fn is_due(world: &World, id: &RecordingId, column: &str) {
    sql(world, format!("UPDATE recordings SET {column} = 1 WHERE recording_sid = '{}'", id.recording)).await;
}

/// The node comes to the step and dies there; what it had under way may still arrive.
async fn dies_there(node: &Node) {
    let links = [&node.catalog, &node.store, &node.twilio];
    eventually("the node is at the step", async || links.iter().any(|link| link.has_acted()).then_some(())).await;
    node.kill();
    links.iter().for_each(|link| link.release());
}

/// Another node; nobody has to wait here for the two minutes of a duty's lease.
async fn another(world: &World) -> Service {
    let service = world.start().await;
    sql(world, "UPDATE recordings SET duty_until = 1 WHERE duty_until IS NOT NULL".to_owned()).await;
    service
}

fn times(history: &[String], kind: &str) -> usize {
    history.iter().filter(|told| *told == kind).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_step_of_a_deletion_at_twilio_a_node_dies_at_another_goes_on() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1s");
    let mut node = Node::start(&world).await;
    const MARK: &str = "SET twilio_marked_at = coalesce";
    const DELETED: &str = "SET twilio_deleted_at =";
    let read_back = |number: u32| format!("GET /{}/{}", world.bucket(), call_sid(number));
    let steps: [Step; 7] = [
        (at_catalog, Rule::on(MARK, Act::Hold)),
        (at_catalog, Rule::on("COMMIT", Act::HoldAnswer).after(MARK).then(1)),
        (at_store, Rule::on(&read_back(3), Act::Hold)),
        (at_twilio, Rule::on("DELETE /", Act::Hold)),
        (at_twilio, Rule::on("DELETE /", Act::HoldAnswer)),
        (at_catalog, Rule::on(DELETED, Act::Hold)),
        (at_catalog, Rule::on("COMMIT", Act::HoldAnswer).after(DELETED).then(1)),
    ];
    for (number, (break_at, rule)) in (1..).zip(steps) {
        break_at(&node, rule);
        let (id, _) = stored(&world, &node, number).await;
        dies_there(&node).await;
        let service = another(&world).await;
        eventually("the other node goes on", async || {
            let done = "state = 'stored' AND twilio_deleted_at IS NOT NULL AND duty_until IS NULL";
            (count(&world, &id, done).await == 1).then_some(())
        })
        .await;
        assert!(deleted_at_twilio(&world, &id), "step {number}");
        let told = history(&service, &id).await;
        assert_eq!(times(&told, "deleted_at_twilio"), 1, "step {number}: {told:?}");
        service.play(&format!("{}/audio", path(&id))).await;
        service.kill();
        node.start_again(&world).await;
    }
    let deletions = world.simulator.seen().iter().filter(|seen| seen.method == "DELETE" && seen.status == 204).count();
    assert_eq!(deletions, 7, "nothing else went there");
    audit::content_in_the_end(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_step_of_retention_a_node_dies_at_another_goes_on() {
    let mut world = World::new(Parts::Servers).await;
    let before = world.start().await;
    for number in 1..=7 {
        stored(&world, &before, number).await;
    }
    before.kill();
    none_is_due(&world, "ordered_at").await;
    account_with(&mut world, "retention = \"1h\"\nerase_at_twilio = true");
    let mut node = Node::start(&world).await;
    let before_it: Step = (at_catalog, Rule::on("COMMIT", Act::Hold).after("recording.erased").then(1));
    let steps = std::iter::once(before_it).chain(steps_from_commit_on());
    for (number, (break_at, rule)) in (1..).zip(steps) {
        let id = recording_id(number);
        break_at(&node, rule);
        is_due(&world, &id, "ordered_at").await;
        dies_there(&node).await;
        let service = another(&world).await;
        eventually("the other node goes on", async || {
            let done = "state = 'erased' AND erase_due_at IS NULL AND erase_twilio = 2";
            (count(&world, &id, done).await == 1).then_some(())
        })
        .await;
        assert!(deleted_at_twilio(&world, &id), "step {number}");
        let keys = world.real_store().keys().await;
        assert!(keys.contains(&marker(&id)), "step {number}");
        assert!(!keys.iter().any(|key| key.starts_with(&folder(number))), "step {number}: {keys:?}");
        let told = history(&service, &id).await;
        let once = ["recording.erased", "deleted_at_twilio"].map(|kind| times(&told, kind));
        assert_eq!(once, [1, 1], "step {number}: {told:?}");
        service.kill();
        node.start_again(&world).await;
    }
    audit::content_in_the_end(&world).await;
}

/// In a bucket that keeps versions, beside what is other people's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_step_of_an_eviction_a_node_dies_at_another_goes_on_until_no_version_is_left() {
    let mut world = World::new(Parts::Servers).await;
    keep_versions(&world).await;
    let before = world.start().await;
    let store = world.real_store();
    let named = |number: u32, bytes: &[u8]| format!("{}/{}.mp3", folder(number), Digest::of(bytes));
    let note = |number: u32| format!("{}/notes.txt", folder(number));
    for number in 1..=7 {
        let (id, key) = stored(&world, &before, number).await;
        // It was written twice, and something of it was deleted before.
        let (bytes, attributes) = store.object(&key).await;
        crate::support::bucket::put(&store, &key, &bytes, attributes).await;
        plant(&store, &staging(&id, 1), Some(ACCOUNT), b"staged".to_vec()).await;
        store.s3.delete(&Path::from(staging(&id, 1))).await.unwrap();
        plant(&store, &named(number, b"another take"), Some(ACCOUNT), b"another take".to_vec()).await;
        store.s3.delete(&Path::from(named(number, b"another take"))).await.unwrap();
        // Others have theirs there: a file, a file that they deleted, another account's object.
        plant(&store, &named(number, b"theirs"), Some(&format!("AC{}", "9".repeat(32))), b"theirs".to_vec()).await;
        plant(&store, &note(number), None, b"a note".to_vec()).await;
        store.s3.delete(&Path::from(note(number))).await.unwrap();
    }
    before.kill();
    none_is_due(&world, "last_asked_at").await;
    evict_soon(&mut world);
    let mut node = Node::start(&world).await;
    const EVICT: &str = "SET state = 'evicted'";
    let steps: [Step; 7] = [
        (at_twilio, Rule::on(".json", Act::HoldAnswer)),
        (at_catalog, Rule::on(EVICT, Act::Hold)),
        (at_catalog, Rule::on("COMMIT", Act::HoldAnswer).after(EVICT).then(1)),
        (at_store, Rule::on("DELETE /", Act::Hold)),
        (at_store, Rule::on("DELETE /", Act::HoldAnswer)),
        // The object itself is hidden by then, its versions are not gone.
        (at_store, Rule::on("DELETE /", Act::Hold).after("DELETE /")),
        (at_catalog, Rule::on("SET duty_until = NULL WHERE", Act::Hold)),
    ];
    for (number, (break_at, rule)) in (1..).zip(steps) {
        let id = recording_id(number);
        break_at(&node, rule);
        is_due(&world, &id, "last_asked_at").await;
        dies_there(&node).await;
        let service = another(&world).await;
        service.recording_in(id.recording, "evicted").await;
        nothing_is_owed(&world, &id).await;
        let left = versions(&world).await;
        let of = |key: &str| left.matches(&format!("<Key>{key}</Key>")).count();
        let ours = [named(number, &speech_mp3()), named(number, b"another take"), staging(&id, 1)].map(|key| of(&key));
        assert_eq!(ours, [0, 0, 0], "step {number}: {left}");
        // The note, and the mark of its deletion.
        let theirs = [named(number, b"theirs"), note(number)].map(|key| of(&key));
        assert_eq!(theirs, [1, 2], "step {number}: {left}");
        if number < 7 {
            assert!(of(&named(number + 1, &speech_mp3())) >= 2, "step {number}: its neighbour is whole");
        }
        let told = history(&service, &id).await;
        assert_eq!(times(&told, "recording.evicted"), 1, "step {number}: {told:?}");
        service.kill();
        node.start_again(&world).await;
    }
    for number in [1, 7] {
        let (bytes, _) = node.play(&format!("{}/audio?wait=30", path(&recording_id(number)))).await;
        assert_eq!(bytes, speech_mp3());
    }
}

/// Every event of the feed, by recording: its type and its detail.
async fn feed(service: &Service) -> BTreeMap<String, Vec<(String, Value)>> {
    let (_, page) = service.json("/v1/events?limit=1000").await;
    let mut told: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    for event in page["events"].as_array().unwrap() {
        let Some(sid) = event["recording"]["recording_sid"].as_str() else { continue };
        let kind = event["type"].as_str().unwrap().to_owned();
        told.entry(sid.to_owned()).or_default().push((kind, event["detail"].clone()));
    }
    told
}

on_all_parts! {
    async fn whatever_is_let_go_of_is_told_in_the_feed_and_its_markers_are_kept(world: World) {
        let service = world.start().await;
        let (held, _) = stored(&world, &service, 1).await;
        let (erased, _) = stored(&world, &service, 2).await;
        let of_call = [3, 4].map(recording_id);
        for id in of_call {
            world.simulator.add(SimulatedRecording::speech(id, call_sid(3), started_at()));
            assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
            service.recording_in(id.recording, "stored").await;
        }
        let (key, asked_by) = create(&world, &["--scope", "admin", "--name", "legal"]);
        let asked = async |method: Method, path: String| ask(&world, &service, method, &path, &key).await.status();
        for (id, set) in [(held, true), (held, false), (held, true), (erased, true), (erased, false)] {
            let method = if set { Method::PUT } else { Method::DELETE };
            assert_eq!(asked(method, format!("{}/hold", path(&id))).await, StatusCode::OK);
        }
        let at_twilio = format!("{}?twilio=true", path(&erased));
        assert_eq!(asked(Method::DELETE, at_twilio).await, StatusCode::NO_CONTENT);
        assert_eq!(asked(Method::DELETE, format!("/v1/calls/{}", call_sid(3))).await, StatusCode::NO_CONTENT);
        let (old, _) = stored(&world, &service, 5).await;
        let idle = stored_young(&world, &service, 6).await;
        service.signal("TERM");
        service.end().await;
        world.set("CALLVAULT_RETENTION", "12h");
        let service = world.start().await;
        service.recording_in(old.recording, "erased").await;
        service.signal("TERM");
        service.end().await;
        evict_soon(&mut world);
        let service = world.start().await;
        service.recording_in(idle.recording, "evicted").await;

        let plain = |kind: &str| (format!("recording.{kind}"), Value::Null);
        let request = |kind: &str| (format!("recording.{kind}"), json!({"by": "request", "key": asked_by}));
        let erased_on = |at_twilio: bool| {
            ("recording.erased".to_owned(), json!({"by": "request", "key": asked_by, "at_twilio": at_twilio}))
        };
        let by_age = ("recording.erased".to_owned(), json!({"by": "retention", "at_twilio": false}));
        // Of what is erased no more is told than that it was there, and who did what with it.
        let is_told = |id: &RecordingId, told: &BTreeMap<String, Vec<(String, Value)>>| -> Vec<(String, Value)> {
            told.get(id.recording.as_str()).into_iter().flatten().filter(|(kind, _)| kind != "recording.accepted").cloned().collect()
        };
        let expected = [
            (held, vec![plain("stored"), request("held"), request("released"), request("held")]),
            (erased, vec![plain("stored"), request("held"), request("released"), erased_on(true)]),
            (of_call[0], vec![plain("stored"), erased_on(false)]),
            (of_call[1], vec![plain("stored"), erased_on(false)]),
            (old, vec![plain("stored"), by_age]),
            (idle, vec![plain("stored"), plain("evicted")]),
        ];
        let told = eventually("all of it has its place in the feed", async || {
            let told = feed(&service).await;
            expected.iter().all(|(id, expected)| is_told(id, &told).len() == expected.len()).then_some(told)
        })
        .await;
        for (id, expected) in &expected {
            assert_eq!(is_told(id, &told), *expected, "{id}");
        }
        // That it is gone there as well is in its history.
        assert_eq!(history(&service, &erased).await.last().map(String::as_str), Some("deleted_at_twilio"));

        let mut markers = vec![held_marker(&held)];
        markers.extend([erased, of_call[0], of_call[1], old].iter().map(marker));
        let keys = eventually("all is cleared away", async || {
            let keys = world.store(&service).keys().await;
            // What is held has its object, too.
            (keys.len() == markers.len() + 1).then_some(keys)
        })
        .await;
        assert!(markers.iter().all(|marker| keys.contains(marker)), "{keys:?}");
    }
}

/// In the account's own region, too: of what only a marker knew nobody knows the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_it_is_said_to_be_gone_at_twilio_the_accounts_own_host_is_asked() {
    let mut world = World::new(Parts::Servers).await;
    account_with(&mut world, "region = \"ie1\"");
    plant(&world.real_store(), &marker(&recording_id(1)), None, Vec::new()).await;
    let service = world.start().await;
    service.recording_in(recording_id(1).recording, "erased").await;
    let index = crate::support::bucket::run(&world, &["reindex", "--json"]).await;
    crate::support::bucket::document(&index, 0);
    let at_twilio = format!("{}?twilio=true", path(&recording_id(1)));
    let answer = service.request(Method::DELETE, &at_twilio).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let asked = world.simulator.seen().iter().filter(|seen| seen.method == "DELETE" && seen.status == 404).count();
    assert_eq!(asked, 2, "the origin, and {}", account());
}
