//! A catalog that was lost, and a node on a new one before it is made anew.

use std::time::Duration;

use callvault::twilio::simulator::{RestFault, speech_mp3};
use object_store::{Attribute, Attributes};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sqlx::Connection;

use crate::disasters::scene::{cursor, sids, told as told_after};
use crate::erase::{delete, path};
use crate::holds::hold;
use crate::recheck::{sql, stored};
use crate::support::bucket::{command, document, plant, plant_many, put, run};
use crate::support::cluster::Node;
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::servers::{Postgres, free_port};
use crate::support::world::{ACCOUNT, Parts, Service, World, account, call_sid, debug_binary, recording_id};
use crate::verify::behind_relay;

/// The marker of a recording.
fn marker(kind: &str, number: u32) -> String {
    format!(".{kind}/{ACCOUNT}/{}", recording_id(number).recording)
}

/// Throws the catalog away, as a disk does.
async fn lose_the_catalog(world: &mut World) {
    match world.parts {
        Parts::Servers => world.set("CALLVAULT_DATABASE_URL", Postgres::shared().new_database().await),
        Parts::Embedded => {
            for end in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(world.folder().join(format!("callvault.db{end}")));
            }
        }
    }
}

/// A bucket with ten recordings that Twilio has too, of which the second was erased and
/// the third is held; no catalog knows of them.
async fn full_bucket(world: &mut World) -> Vec<String> {
    let service = world.start().await;
    let store = world.store(&service);
    for number in 1..=10 {
        world.record(number);
    }
    let mut keys = plant_many(&store, 1..=10, &speech_mp3()).await;
    document(&run(world, &["reindex", "--json"]).await, 0);
    let erased = keys.remove(1);
    let path = |number| format!("/v1/recordings/{}", recording_id(number).recording);
    let answer = service.request(Method::DELETE, &path(2)).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let answer = service.request(Method::PUT, &format!("{}/hold", path(3))).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    eventually("it is erased", async || (!store.keys().await.contains(&erased)).then_some(())).await;
    service.kill();
    lose_the_catalog(world).await;
    keys
}

async fn fetches(world: &World) -> u64 {
    (1..=10).map(|number| world.simulator.counts(recording_id(number).recording).fetches).sum()
}

async fn everything_is_as_it_was(world: &World, service: &Service) {
    for number in (1..=10).filter(|number| *number != 2) {
        let (bytes, _) = service.play(&format!("/v1/calls/{}/audio", call_sid(number))).await;
        assert_eq!(bytes, speech_mp3());
    }
    let (_, held) = service.json(&format!("/v1/recordings/{}", recording_id(3).recording)).await;
    assert_eq!(held["hold"], true, "{held}");
    for path in
        [format!("/v1/recordings/{}/audio", recording_id(2).recording), format!("/v1/calls/{}/audio", call_sid(2))]
    {
        assert_eq!(service.get(&path).await.status(), StatusCode::GONE, "{path}");
    }
    let refused =
        service.request(Method::DELETE, &format!("/v1/recordings/{}", recording_id(3).recording)).send().await;
    assert_eq!(refused.unwrap().status(), StatusCode::CONFLICT, "it is held");
    assert_eq!(service.send(&world.callback(recording_id(2).recording)).await.status(), StatusCode::NO_CONTENT);
    let erased = service.get(&format!("/v1/calls/{}/audio", call_sid(2))).await;
    assert_eq!(erased.status(), StatusCode::GONE);
    assert_eq!(fetches(world).await, 0);
}

/// The recordings of which the feed tells that, in its order.
async fn told(service: &Service, kind: &str) -> Vec<String> {
    let (_, feed) = service.json(&format!("/v1/events?type={kind}&limit=100&wait=0")).await;
    let events = feed["events"].as_array().expect("events").iter();
    events.map(|event| event["recording"]["recording_sid"].as_str().expect("a recording").to_owned()).collect()
}

on_all_parts! {
    async fn a_lost_catalog_is_made_anew_and_nothing_is_fetched(world: World) {
        let keys = full_bucket(&mut world).await;
        let report = document(&run(&world, &["reindex", "--json"]).await, 0);
        assert_eq!((&report["recordings"], &report["markers"], &report["complete"]), (&9.into(), &2.into(), &true.into()));
        let again = document(&run(&world, &["reindex", "--json"]).await, 0);
        assert_eq!(again["recordings"], 0, "a second run finds nothing to do");
        let service = world.start().await;
        let ready: Value = service.json("/readyz").await.1;
        assert_eq!(ready["status"], "ok", "{ready}");
        everything_is_as_it_was(&world, &service).await;
        let stored = eventually("all were told", async || {
            let stored = told(&service, "recording.stored").await;
            (stored.len() == 9).then_some(stored)
        })
        .await;
        let in_order: Vec<String> =
            (1..=10).filter(|number| *number != 2).map(|number| recording_id(number).recording.to_string()).collect();
        assert_eq!(stored, in_order, "in the order in which they were stored");
        let (_, shown) = service.json(&format!("/v1/recordings/{}", recording_id(1).recording)).await;
        assert_eq!((&shown["key"], &shown["duration_seconds"], &shown["channels"]), (&keys[0].as_str().into(), &6.into(), &2.into()));
        assert_eq!(shown["stored_at"], "2026-11-23T09:30:01Z");
        let unknown = service.get(&format!("/v1/recordings/{}", recording_id(404).recording)).await;
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    }

    async fn a_node_on_an_empty_catalog_plays_what_the_bucket_has_and_fetches_nothing(world: World) {
        full_bucket(&mut world).await;
        let service = world.start().await;
        eventually("it says that it is not indexed", async || service.trouble("unindexed").await).await;
        // Told by a callback, and asked for: Twilio knows the call, the bucket has the audio.
        service.deliver(&world.callback(recording_id(3).recording)).await;
        let held = service.recording_in(recording_id(3).recording, "stored").await;
        assert_eq!(held["hold"], true);
        let (bytes, _) = service.play(&format!("/v1/calls/{}/audio?wait=30", call_sid(4))).await;
        assert_eq!(bytes, speech_mp3());
        service.deliver(&world.callback(recording_id(2).recording)).await;
        service.recording_in(recording_id(2).recording, "erased").await;
        assert_eq!(fetches(&world).await, 0);
        document(&run(&world, &["reindex", "--json"]).await, 0);
        everything_is_as_it_was(&world, &service).await;
        eventually("it is well again", async || (service.json("/readyz").await.1["status"] == "ok").then_some(())).await;
    }

    async fn what_twilio_does_not_have_any_more_is_found_though_it_was_put_before_the_reindex(world: World) {
        let service = world.start().await;
        let store = world.store(&service);
        plant_many(&store, 1..=3, &speech_mp3()).await;
        service.kill();
        lose_the_catalog(&mut world).await;
        let service = world.start().await;
        let store = world.store(&service);
        eventually("it says that it is not indexed", async || service.trouble("unindexed").await).await;

        let (own, other_leg, erased) = (recording_id(1).recording, recording_id(2).recording, recording_id(3).recording);
        let url = |sid| format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{sid}");
        assert_eq!(service.put(call_sid(1), &url(own)).await.status(), StatusCode::ACCEPTED);
        assert_eq!(service.recording_in(own, "stored").await["channels"], 2, "the object says so");
        for (sid, call) in [(other_leg, call_sid(12)), (erased, call_sid(13))] {
            assert_eq!(service.put(call, &url(sid)).await.status(), StatusCode::ACCEPTED);
        }
        eventually("Twilio was asked for it in vain", async || {
            let (_, shown) = service.json(&format!("/v1/recordings/{other_leg}")).await;
            (shown["last_error"]["code"] == "not_ready").then_some(())
        })
        .await;
        let answer = service.request(Method::DELETE, &format!("/v1/calls/{}", call_sid(13))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "the call may have more recordings");
        let answer = service.request(Method::DELETE, &format!("/v1/recordings/{erased}")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "nobody knows yet where it lies");

        document(&run(&world, &["reindex", "--json"]).await, 0);
        let (bytes, _) = service.play(&format!("/v1/calls/{}/audio?wait=30", call_sid(12))).await;
        assert_eq!(bytes, speech_mp3());
        let shown = service.recording_in(other_leg, "stored").await;
        assert_eq!((&shown["call_sid"], &shown["channels"]), (&call_sid(2).to_string().into(), &2.into()));
        eventually("what was erased is gone", async || {
            (!store.keys().await.contains(&crate::support::bucket::key(3, &speech_mp3()))).then_some(())
        })
        .await;
        let marker = store.object(&marker("erased", 3)).await.1;
        assert_eq!(marker.get(&Attribute::Metadata("call-sid".into())), Some(&call_sid(3).to_string().into()));
        let answer = service.request(Method::DELETE, &format!("/v1/calls/{}", call_sid(13))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }

    async fn what_nobody_may_claim_is_found_all_the_same(world: World) {
        world.set("CALLVAULT_RECHECK_AFTER", "1s");
        full_bucket(&mut world).await;
        world.simulator.refuse_credentials(account(), true);
        let service = world.start().await;
        world.record(11);
        eventually("the markers are read", async || service.trouble("unindexed").await).await;
        service.deliver(&world.callback(recording_id(11).recording)).await;
        eventually("the account is paused", async || service.trouble("accounts_paused").await).await;
        service.deliver(&world.callback(recording_id(1).recording)).await;
        assert_eq!(service.json(&format!("/v1/recordings/{}", recording_id(1).recording)).await.1["state"], "pending");
        document(&run(&world, &["reindex", "--json"]).await, 0);
        service.recording_in(recording_id(1).recording, "stored").await;
        everything_is_as_it_was(&world, &service).await;
        assert_eq!(service.json(&format!("/v1/recordings/{}", recording_id(11).recording)).await.1["state"], "pending");
    }

    async fn what_is_not_known_is_never_said_not_to_exist_before_it_is_indexed(world: World) {
        full_bucket(&mut world).await;
        let service = world.start().await;
        let (sid, call) = (recording_id(404).recording, call_sid(404));
        let paths = [
            (Method::GET, format!("/v1/recordings/{sid}")),
            (Method::GET, format!("/v1/recordings/{sid}/audio")),
            (Method::HEAD, format!("/v1/recordings/{sid}/audio")),
            (Method::GET, format!("/v1/recordings/{sid}/link")),
            (Method::POST, format!("/v1/recordings/{sid}/fetch")),
            (Method::DELETE, format!("/v1/recordings/{sid}")),
            (Method::PUT, format!("/v1/recordings/{sid}/hold")),
            (Method::DELETE, format!("/v1/recordings/{sid}/hold")),
            (Method::DELETE, format!("/v1/calls/{call}")),
            (Method::GET, format!("/v1/recordings/{sid}/content")),
            (Method::GET, format!("/v1/calls/{call}/content?wait=30")),
            (Method::GET, format!("/v1/blobs/sha256:{}", "0".repeat(64))),
            (Method::GET, format!("/v1/calls/{call}")),
            (Method::GET, format!("/v1/calls/{call}/audio?wait=30")),
            (Method::GET, format!("/v1/calls/{call}/link?wait=30")),
        ];
        for (method, path) in &paths {
            let answer = service.request(method.clone(), path).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{method} {path}");
        }
        document(&run(&world, &["reindex", "--json"]).await, 0);
        for (method, path) in &paths {
            let answer = service.request(method.clone(), path).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{method} {path}");
        }
    }

    async fn what_is_to_go_at_twilio_goes_though_the_catalog_is_lost_meanwhile(world: World) {
        let service = world.start().await;
        let at_once = stored(&world, &service, 1).await.0;
        let later = stored(&world, &service, 2).await.0;
        let deleted = async |service: &Service, path: &str| delete(service, path).await.status();
        world.simulator.rest_fault(account(), Some(RestFault::Status(503)));
        assert_eq!(deleted(&service, &path(&later)).await, StatusCode::NO_CONTENT);
        for id in [&at_once, &later] {
            assert_eq!(deleted(&service, &format!("{}?twilio=true", path(id))).await, StatusCode::ACCEPTED);
        }
        service.kill();
        lose_the_catalog(&mut world).await;
        document(&run(&world, &["reindex", "--json"]).await, 0);
        let service = world.start().await;
        let gone = || {
            let seen = world.simulator.seen();
            seen.iter().filter(|seen| seen.method == "DELETE" && seen.status == 204).count()
        };
        assert_eq!(gone(), 0);
        world.simulator.rest_fault(account(), None);
        eventually("both are deleted at Twilio", async || (gone() == 2).then_some(())).await;
        let owed = async |world: &World| {
            sql(world, "SELECT count(*) FROM recordings WHERE erase_due_at IS NOT NULL".to_owned()).await
        };
        eventually("nothing is owed", async || (owed(&world).await == 0).then_some(())).await;

        // And nothing asks for it again.
        service.kill();
        lose_the_catalog(&mut world).await;
        document(&run(&world, &["reindex", "--json"]).await, 0);
        assert_eq!(sql(&world, "SELECT count(*) FROM recordings WHERE erase_twilio = 0".to_owned()).await, 2);
    }

    async fn of_several_objects_the_newest_is_named_and_the_others_go(world: World) {
        world.set("CALLVAULT_RECHECK_AFTER", "1s");
        let service = world.start().await;
        let store = world.store(&service);
        for (bytes, seconds) in [(&b"older"[..], 10), (b"the newest", 30), (b"old", 20)] {
            plant(&store, 1, bytes, seconds).await;
        }
        document(&run(&world, &["reindex", "--json"]).await, 0);
        let shown = service.recording_in(recording_id(1).recording, "stored").await;
        let newest = crate::support::bucket::key(1, b"the newest");
        assert_eq!(shown["key"], newest);
        eventually("the others are removed", async || (store.keys().await == [newest.clone()]).then_some(())).await;
    }

    async fn a_catalog_older_than_its_bucket_begins_its_feed_anew_once_beside_a_node(world: World) {
        let service = world.start().await;
        let store = world.store(&service);
        let reindex = async |args: &[&str]| {
            let report = document(&run(&world, &[&["reindex", "--json"], args].concat()).await, 0);
            report["feed_began_anew"].as_bool().expect("it is told")
        };
        for number in 1..=3 {
            stored(&world, &service, number).await;
        }
        assert_eq!(hold(&service, &recording_id(3), true).await.0, 200);
        let read_until = cursor(&service).await;
        assert!(!reindex(&[]).await, "both agree");
        assert_eq!(told_after(&service, &read_until).await, sids([]));

        // The node has the second one in its memory when the bucket tells that it was erased.
        service.play(&format!("/v1/calls/{}/audio", call_sid(2))).await;
        let path = format!("/v1/events?after={read_until}&type=recording.stored&wait=30");
        let waiting = service.request(Method::GET, &path).send();
        plant_many(&store, 4..=5, &speech_mp3()).await;
        put(&store, &marker("erased", 2), b"", Attributes::new()).await;
        let (waited, began_anew) = tokio::join!(waiting, reindex(&[]));
        assert!(began_anew);
        let page: Value = waited.unwrap().json().await.unwrap();
        assert_ne!(page["events"], Value::Array(Vec::new()), "whoever waits is told");
        let gone = format!("/v1/calls/{}/audio", call_sid(2));
        eventually("it is gone", async || (service.get(&gone).await.status() == StatusCode::GONE).then_some(())).await;
        eventually("a reader is told of all", async || {
            (told_after(&service, &read_until).await == sids([1, 2, 3, 4, 5])).then_some(())
        })
        .await;

        let read_until = cursor(&service).await;
        assert!(!reindex(&[]).await, "they agree by now");
        assert_eq!(told_after(&service, &read_until).await, sids([]));
        assert!(reindex(&["--restored"]).await);
        assert_eq!(told_after(&service, &read_until).await, sids([1, 2, 3, 4, 5]));
    }
}

/// The backup was made of a catalog whose reindex was cut off behind all that there was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_catalog_whose_reindex_was_cut_off_is_brought_up_to_date() {
    for (args, made_before) in [(&["reindex", "--restored", "--json"][..], 0), (&["reindex", "--json"], 7_200_000)] {
        let mut world = World::new(Parts::Embedded).await;
        let service = world.start().await;
        for number in 1..=3 {
            stored(&world, &service, number).await;
        }
        for (walk, after) in [("markers", ".erased/ACf"), ("objects", "CAf")] {
            let cut_off = format!(
                "UPDATE bucket_walks SET begun_at = 1, position = '{after}', \
                 due_at = (SELECT now_ms FROM clock) - {made_before} WHERE name = '{walk}'"
            );
            sql(&world, cut_off).await;
        }
        let (catalog, backup) = (world.folder().join("callvault.db"), world.folder().join("backup.db"));
        sql(&world, format!("VACUUM INTO '{}'", backup.display())).await;

        stored(&world, &service, 4).await;
        assert_eq!(delete(&service, &path(&recording_id(1))).await.status(), StatusCode::NO_CONTENT);
        assert_eq!(hold(&service, &recording_id(2), true).await.0, 200);
        service.kill();
        lose_the_catalog(&mut world).await;
        std::fs::rename(&backup, &catalog).unwrap();
        document(&run(&world, args).await, 0);

        let service = world.start().await;
        for number in 2..=4 {
            service.play(&format!("/v1/calls/{}/audio", call_sid(number))).await;
            assert_eq!(world.simulator.counts(recording_id(number).recording).fetches, 1);
        }
        let erased = service.get(&format!("/v1/calls/{}/audio", call_sid(1))).await;
        assert_eq!(erased.status(), StatusCode::GONE, "{args:?}");
        let (_, held) = service.json(&path(&recording_id(2))).await;
        assert_eq!(held["hold"], true);
    }
}

/// More than one page of the bucket's list.
const MANY: u32 = 1100;

/// The recordings that the feed tells to be stored: each once, in the order in which they were.
async fn each_was_told_once(service: &Service) {
    let mut told = Vec::new();
    let mut path = "/v1/events?type=recording.stored&limit=1000&wait=0".to_owned();
    eventually("all were told", async || {
        let (_, page) = service.json(&path).await;
        let events = page["events"].as_array().expect("events").iter();
        told.extend(events.map(|event| event["recording"]["recording_sid"].as_str().expect("a recording").to_owned()));
        path = format!(
            "/v1/events?type=recording.stored&limit=1000&wait=0&after={}",
            page["next"].as_str().expect("a cursor")
        );
        (told.len() >= MANY as usize).then_some(())
    })
    .await;
    let in_order: Vec<String> = (1..=MANY).map(|number| recording_id(number).recording.to_string()).collect();
    assert!(told == in_order, "{} were told", told.len());
}

/// Killed before it has read a marker, in the middle of the first and of the second page
/// of the list, and twice while it makes rows; whoever comes next does only what is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reindex_that_is_killed_goes_on() {
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    node.kill();
    let store = world.real_store();
    let keys = plant_many(&store, 1..=MANY, &speech_mp3()).await;
    let rows = async || sql(&world, "SELECT count(*) FROM recordings".to_owned()).await;
    let gathered = async || sql(&world, "SELECT count(*) FROM found_objects".to_owned()).await;
    let looks_at = |number: usize| format!("HEAD /{}/{}", world.bucket(), keys[number - 1]);
    // Of the first page every object was gathered by then: its name comes up again as a row.
    let makes_a_row_of = |number: u32| recording_id(number).recording.to_string();
    let steps = [
        (&node.store, "prefix=.erased".to_owned(), (0, 0)),
        (&node.store, looks_at(500), (0, 0)),
        (&node.store, looks_at(1050), (0, 1000)),
        (&node.catalog, makes_a_row_of(350), (300, 800)),
        (&node.catalog, makes_a_row_of(750), (700, 400)),
    ];
    for (relay, pattern, stands) in steps {
        relay.rule(Rule::on(&pattern, Act::Hold));
        let mut killed = command(&world, &["reindex"]).envs(node.settings()).spawn().unwrap();
        relay.acts().await;
        killed.kill().unwrap();
        killed.wait().unwrap();
        relay.release();
        eventually(&format!("killed at {pattern}, it leaves what was saved"), async || {
            ((rows().await, gathered().await) == stands).then_some(())
        })
        .await;
    }
    let report = document(&run(&world, &["reindex", "--json"]).await, 0);
    let left = (&report["complete"], &report["objects"], &report["recordings"]);
    assert_eq!(left, (&true.into(), &0.into(), &400.into()), "what was done is not done again");
    let clean = document(&run(&world, &["verify", "--json"]).await, 0);
    assert_eq!(clean["recordings"], MANY, "each has one row: {clean}");
    each_was_told_once(&world.start().await).await;
}

/// The same on SQLite: whoever has the write lock knows that the process is in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reindex_on_sqlite_that_is_killed_goes_on() {
    let world = World::new(Parts::Embedded).await;
    let service = world.start().await;
    plant_many(&world.store(&service), 1..=MANY, &speech_mp3()).await;
    let file = world.folder().join("callvault.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).busy_timeout(Duration::ZERO);
    let mut catalog = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let mut killed = command(&world, &["reindex"]).spawn().unwrap();
    loop {
        assert!(killed.try_wait().unwrap().is_none(), "it is over before it could be killed");
        // No sleep: while the second page is read and rows are made is all the time that there is.
        let Ok(mut locked) = catalog.begin_with("BEGIN IMMEDIATE").await else { continue };
        let gathered: i64 =
            sqlx::query_scalar("SELECT count(*) FROM found_objects").fetch_one(&mut *locked).await.unwrap();
        if gathered > 0 {
            killed.kill().unwrap();
            killed.wait().unwrap();
            locked.rollback().await.unwrap();
            break;
        }
        locked.rollback().await.unwrap();
    }
    let report = document(&run(&world, &["reindex", "--json"]).await, 0);
    assert_eq!(report["complete"], true, "{report}");
    each_was_told_once(&service).await;
}

/// Five million of them are not counted within the time that a statement has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reindex_does_not_need_to_know_how_many_there_are() {
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    node.kill();
    plant_many(&world.real_store(), 1..=3, &speech_mp3()).await;
    node.catalog.rule(Rule::on("count(*) AS found FROM found_objects", Act::HoldAnswer));
    let mut reindex = command(&world, &["reindex", "--json"]);
    reindex.envs(node.settings());
    let ran = tokio::task::spawn_blocking(move || reindex.output().unwrap()).await.unwrap();
    assert!(node.catalog.has_acted());
    let report = document(&ran, 0);
    assert_eq!((&report["recordings"], &report["complete"]), (&3.into(), &true.into()));
}

/// Its lease would last for ten minutes more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reindex_that_fails_keeps_nobody_waiting() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "10m");
    plant_many(&world.real_store(), 1..=3, &speech_mp3()).await;
    let relay = behind_relay(&mut world).await;
    let denied = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    relay.rule(Rule::on(&format!("HEAD /{}/CA", world.bucket()), Act::Answer(denied)).times(1000));
    assert_eq!(run(&world, &["reindex"]).await.status.code(), Some(1));
    assert!(relay.has_acted());
    relay.release();
    let ran = tokio::time::timeout(Duration::from_secs(60), run(&world, &["reindex", "--json"])).await;
    assert_eq!(document(&ran.expect("it goes on at once"), 0)["recordings"], 3);
}

/// Its lease would last for ten minutes more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_stopped_while_it_walks_over_the_bucket_keeps_nobody_waiting() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "10m");
    let store = world.real_store();
    plant_many(&store, 1..=3, &speech_mp3()).await;
    put(&store, &marker("erased", 9), b"", Attributes::new()).await;
    let direct = world.settings["CALLVAULT_S3_ENDPOINT"].clone();
    let relay = behind_relay(&mut world).await;
    let at = |pattern: &str| relay.rule(Rule::on(pattern, Act::Hold).times(1000));

    at(&marker("erased", 9));
    let node = world.start_unready(free_port(), debug_binary());
    relay.acts().await;
    node.signal("TERM");
    node.end().await;
    relay.release();
    for (stage, pattern) in [("markers", marker("erased", 9)), ("objects", format!("HEAD /{}/CA", world.bucket()))] {
        at(&pattern);
        let mut stopped = command(&world, &["reindex"]).spawn().unwrap();
        relay.acts().await;
        let told = std::process::Command::new("kill").args(["-TERM", &stopped.id().to_string()]).status().unwrap();
        assert!(told.success());
        assert_eq!(stopped.wait().unwrap().code(), Some(1), "{stage}");
        relay.release();
    }
    world.set("CALLVAULT_S3_ENDPOINT", direct);
    let ran = tokio::time::timeout(Duration::from_secs(60), run(&world, &["reindex", "--json"])).await;
    assert_eq!(document(&ran.expect("it goes on at once"), 0)["complete"], true);
}

/// However long it takes to write what a walk found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_over_the_bucket_keeps_its_lease_while_it_writes() {
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    node.kill();
    let store = world.real_store();
    plant(&store, 1, &speech_mp3(), 1).await;
    put(&store, &marker("erased", 9), b"", Attributes::new()).await;
    let leased_until = async |walk| sql(&world, format!("SELECT due_at FROM bucket_walks WHERE name = '{walk}'")).await;
    node.catalog.rule(Rule::on("SELECT $1, $2, 'erased'", Act::Hold));
    let mut reindexing = command(&world, &["reindex"]).envs(node.settings()).spawn().unwrap();
    for (walk, next) in [("markers", Some("INSERT INTO found_objects")), ("objects", None)] {
        node.catalog.acts().await;
        let before = leased_until(walk).await;
        eventually("the lease is renewed", async || (leased_until(walk).await > before).then_some(())).await;
        node.catalog.release();
        if let Some(next) = next {
            node.catalog.rule(Rule::on(next, Act::Hold));
        }
    }
    let ended = eventually("it ends", async || reindexing.try_wait().unwrap()).await;
    assert_eq!(ended.code(), Some(0));
}

/// The hold that a marker says is released once that was listed: before it is looked at, or right after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_is_released_while_the_markers_are_read_stays_released() {
    let mut world = World::new(Parts::Servers).await;
    let service = world.start().await;
    let relay = behind_relay(&mut world).await;
    let looks_at = |number| format!("HEAD /{}/{}", world.bucket(), marker("held", number));
    let steps =
        [("prefix=.held".to_owned(), Act::HoldAnswer), (looks_at(2), Act::Hold), (looks_at(3), Act::HoldAnswer)];
    for (number, (at, act)) in (1..).zip(steps) {
        let (id, _) = stored(&world, &service, number).await;
        assert_eq!(hold(&service, &id, true).await.0, 200);
        relay.rule(Rule::on(&at, act));
        let reindexing = run(&world, &["reindex", "--json"]);
        let releasing = async {
            relay.acts().await;
            assert_eq!(hold(&service, &id, false).await.0, 200);
            relay.release();
        };
        let (reindexed, ()) = tokio::join!(reindexing, releasing);
        document(&reindexed, 0);
        let (_, shown) = service.json(&format!("/v1/recordings/{}", id.recording)).await;
        assert_eq!(shown["hold"], false, "{at} {act:?}: {shown}");
    }
}

/// Killed while it reads the markers, a node has not let anything in that was erased.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_reads_the_bucket_lets_nothing_back() {
    let mut world = World::new(Parts::Servers).await;
    let store = world.real_store();
    for number in 1..=600 {
        put(&store, &marker("erased", number), b"", Attributes::new()).await;
    }
    world.set("CALLVAULT_LEASE", "1s");
    world.record(600);
    let direct = world.settings["CALLVAULT_S3_ENDPOINT"].clone();
    let relay = behind_relay(&mut world).await;
    let port = free_port();
    // In the middle of each page of 200 markers.
    for (number, read) in [(100, 0), (300, 200), (500, 400)] {
        relay.rule(Rule::on(&format!("HEAD /{}/{}", world.bucket(), marker("erased", number)), Act::Hold));
        let service = world.start_unready(port, debug_binary());
        relay.acts().await;
        let url = format!("{}/webhooks/twilio/recording", service.url);
        let refused = eventually("it answers", async || {
            world.callback(recording_id(600).recording).send(&world.http, &url).await.ok()
        })
        .await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(sql(&world, "SELECT count(*) FROM recordings".to_owned()).await, read);
        service.kill();
        relay.release();
    }
    world.set("CALLVAULT_S3_ENDPOINT", direct);
    let service = world.start_on(port, debug_binary()).await;
    eventually("it is read", async || service.trouble("unindexed").await).await;
    assert_eq!(service.send(&world.callback(recording_id(600).recording)).await.status(), StatusCode::NO_CONTENT);
    for number in [1, 300, 600] {
        service.recording_in(recording_id(number).recording, "erased").await;
    }
    assert_eq!(world.simulator.counts(recording_id(600).recording).fetches, 0);
}

/// The bucket is away while the catalog is new: nothing is taken, and that is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_catalog_whose_bucket_is_away_takes_nothing() {
    let mut world = World::new(Parts::Servers).await;
    full_bucket(&mut world).await;
    let right = world.settings["CALLVAULT_S3_ENDPOINT"].clone();
    world.set("CALLVAULT_S3_ENDPOINT", format!("http://127.0.0.1:{}", free_port()));
    let service = world.start_unready(free_port(), debug_binary());
    eventually("it says that the bucket is away", async || {
        let answer = world.http.get(format!("{}/readyz", service.url)).send().await.ok()?;
        answer.text().await.ok()?.contains("bucket_unreachable").then_some(())
    })
    .await;
    for _ in 0..2 {
        let answer = service.send(&world.callback(recording_id(2).recording)).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    service.kill();
    world.set("CALLVAULT_S3_ENDPOINT", right);
    let service = world.start().await;
    eventually("it takes callbacks", async || {
        let answer = service.send(&world.callback(recording_id(2).recording)).await;
        (answer.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
    service.recording_in(recording_id(2).recording, "erased").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_nodes_on_an_empty_catalog_read_the_bucket_once() {
    let mut world = World::new(Parts::Servers).await;
    full_bucket(&mut world).await;
    let nodes = world.start_nodes(3).await;
    for node in &nodes {
        eventually("it is read", async || node.trouble("unindexed").await).await;
        let shown = node.recording_in(recording_id(2).recording, "erased").await;
        let history = shown["history"].as_array().unwrap();
        assert_eq!(history.iter().filter(|entry| entry["type"] == "recording.erased").count(), 1, "{history:?}");
    }
    let metrics = nodes[0].get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("callvault_trouble{code=\"unindexed\"} 1"), "{metrics}");
}
