//! Verifying and repairing by hand, and the scrub that does it always.

use std::collections::BTreeSet;
use std::time::Duration;

use callvault::domain::digest::Digest;
use callvault::twilio::simulator::speech_mp3;
use object_store::{Attribute, Attributes};
use serde_json::Value;

use crate::doctor;
use crate::erase::{delete, marker, path};
use crate::holds::{held_marker, hold};
use crate::recheck::{metric, owe, sql, stored};
use crate::support::bucket::{attributes, command, document, plant, plant_many, put, remove, run};
use crate::support::cluster::Node;
use crate::support::eventually;
use crate::support::relay::{Act, Relay, Rule};
use crate::support::servers::ObjectStore;
use crate::support::world::{ACCOUNT, Parts, Service, Store, World, call_sid, recording_id};

/// The recordings of which something was found of that kind.
fn of_kind(document: &Value, kind: &str) -> BTreeSet<String> {
    let findings = document["findings"].as_array().expect("findings").iter();
    let of_kind = findings.filter(|finding| finding["kind"] == kind);
    let name = |finding: &Value| finding["recording_sid"].as_str().or(finding["key"].as_str()).unwrap().to_owned();
    of_kind.map(name).collect()
}

fn names(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<String> {
    numbers.into_iter().map(|number| recording_id(number).recording.to_string()).collect()
}

fn found_in_all(document: &Value) -> u64 {
    document["found"].as_object().expect("counts").values().filter_map(Value::as_u64).sum()
}

/// A service whose bucket has so many recordings, indexed; Twilio has them all.
async fn stocked(world: &World, count: u32) -> (Service, Store, Vec<String>) {
    let service = world.start().await;
    let store = world.store(&service);
    for number in 1..=count {
        world.record(number);
    }
    let keys = plant_many(&store, 1..=count, &speech_mp3()).await;
    document(&run(world, &["reindex", "--json"]).await, 0);
    (service, store, keys)
}

/// Ten objects that this service did not write, some where its own could lie.
async fn plant_aliens(store: &Store, keys: &[String]) -> BTreeSet<String> {
    let folder = |at: usize| keys[at].rsplit_once('/').unwrap().0.to_owned();
    let theirs = Digest::of(b"theirs");
    let mut aliens: BTreeSet<String> =
        ["notes.txt", "backup/2026/all.tar", "CA1/RE1/x.mp3", ".hidden/x", "a b/c+d&e.txt"].map(str::to_owned).into();
    aliens.insert(format!("{}/notes.txt", folder(200)));
    aliens.insert(format!("{}/{theirs}.mp3", folder(201)));
    aliens.insert(format!("{}/{theirs}.ogg", folder(202)));
    aliens.insert(format!("{}/{}/{theirs}.wav", call_sid(99_999), recording_id(99_999).recording));
    aliens.insert(format!(".staging/{ACCOUNT}/notes"));
    for alien in &aliens {
        put(store, alien, b"theirs", Attributes::new()).await;
    }
    aliens
}

on_all_parts! {
    async fn of_a_thousand_objects_what_is_wrong_is_found_and_repaired_and_what_is_not_ours_stays(world: World) {
        let (_service, store, keys) = stocked(&world, 1000).await;
        let clean = document(&run(&world, &["verify", "--json"]).await, 0);
        assert_eq!((found_in_all(&clean), &clean["recordings"], &clean["objects"]), (0, &1000.into(), &1000.into()));

        let (corrupted, deleted) = (names(11..=20), names(21..=30));
        for number in 11..=20_u32 {
            let key = &keys[number as usize - 1];
            let mut bytes = speech_mp3().to_vec();
            bytes[100] ^= 1;
            // Half of them as rot behind intact metadata, half as written over by somebody.
            let written = if number % 2 == 0 { Attributes::new() } else { attributes(&recording_id(number), number, &speech_mp3(), 1) };
            put(&store, key, &bytes, written).await;
        }
        for number in 21..=30 {
            remove(&store, &keys[number - 1]).await;
        }
        let aliens = plant_aliens(&store, &keys).await;

        let found = document(&run(&world, &["verify", "--json"]).await, 1);
        assert_eq!(of_kind(&found, "corrupted"), corrupted, "{found}");
        assert_eq!(of_kind(&found, "missing"), deleted);
        assert_eq!(of_kind(&found, "alien"), aliens);
        assert_eq!(found_in_all(&found), 30, "{}", found["found"]);

        let repaired = document(&run(&world, &["verify", "--repair", "--json"]).await, 1);
        assert_eq!((found_in_all(&repaired), &repaired["left"], &repaired["lost"]), (30, &10.into(), &0.into()), "{repaired}");
        let second = document(&run(&world, &["verify", "--repair", "--json"]).await, 1);
        assert_eq!((of_kind(&second, "alien"), found_in_all(&second)), (aliens.clone(), 10), "{}", second["found"]);

        let left: BTreeSet<String> = store.keys().await.into_iter().collect();
        assert_eq!(left, keys.iter().cloned().chain(aliens.iter().cloned()).collect());
        for alien in &aliens {
            assert_eq!(store.object(alien).await.0, b"theirs"[..], "{alien}");
        }
        for number in 11..=30 {
            let (bytes, described) = store.object(&keys[number - 1]).await;
            assert_eq!(bytes, speech_mp3());
            assert_eq!(described.get(&Attribute::Metadata("account-sid".into())), Some(&ACCOUNT.into()), "{number}");
            assert_eq!(world.simulator.counts(recording_id(number as u32).recording).fetches, 1);
        }
        assert_eq!(world.simulator.fetches(), 20, "what was right is not fetched");
    }

    async fn metadata_is_mended_and_what_the_bucket_has_is_registered(world: World) {
        let (service, store, keys) = stocked(&world, 5).await;
        let mut wrong = attributes(&recording_id(1), 1, &speech_mp3(), 1);
        wrong.insert(Attribute::Metadata("call-sid".into()), call_sid(4).to_string().into());
        put(&store, &keys[0], &speech_mp3(), wrong).await;
        put(&store, &keys[1], &speech_mp3(), Attributes::new()).await;
        let unknown = plant(&store, 7, &speech_mp3(), 7).await;
        let leftover = plant(&store, 3, b"another take", 1).await;

        let found = document(&run(&world, &["verify", "--json"]).await, 1);
        assert_eq!(of_kind(&found, "misdescribed"), names([1, 2]));
        assert_eq!((of_kind(&found, "unregistered"), of_kind(&found, "leftover")), (names([7]), names([3])));
        assert_eq!(found_in_all(&found), 4, "{found}");
        document(&run(&world, &["verify", "--repair", "--json"]).await, 0);
        let clean = document(&run(&world, &["verify", "--json"]).await, 0);
        assert_eq!(found_in_all(&clean), 0, "what is owed is no find: {clean}");

        let (_, attributes) = store.object(&keys[0]).await;
        assert_eq!(attributes.get(&Attribute::Metadata("call-sid".into())), Some(&call_sid(1).to_string().into()));
        let shown = service.recording_in(recording_id(7).recording, "stored").await;
        assert_eq!(shown["key"], unknown);
        assert!(store.keys().await.contains(&leftover), "it is looked at again later");
        let fetches: u64 = (1..=7).map(|number| world.simulator.counts(recording_id(number).recording).fetches).sum();
        assert_eq!(fetches, 0);
    }

    async fn what_was_given_up_under_another_legs_name_is_told_where_it_lies(world: World) {
        world.set("CALLVAULT_NOT_READY_FOR", "1s");
        let service = world.start().await;
        let sid = recording_id(1).recording;
        let url = format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{sid}");
        assert_eq!(service.put(call_sid(11), &url).await.status(), 202);
        service.recording_in(sid, "failed").await;
        let key = plant(&world.store(&service), 1, &speech_mp3(), 1).await;
        let found = document(&run(&world, &["verify", "--json"]).await, 1);
        assert_eq!(of_kind(&found, "leftover"), names([1]), "{found}");
        document(&run(&world, &["verify", "--repair", "--json"]).await, 0);
        assert_eq!(service.recording_in(sid, "stored").await["key"], key);
        for call in [1, 11].map(call_sid) {
            assert_eq!(service.play(&format!("/v1/calls/{call}/audio")).await.0, speech_mp3());
        }
        assert_eq!(found_in_all(&document(&run(&world, &["verify", "--json"]).await, 0)), 0);
    }

    async fn what_only_the_object_tells_is_kept_when_it_is_described_anew(world: World) {
        let service = world.start().await;
        let store = world.store(&service);
        let whole = attributes(&recording_id(1), 1, &speech_mp3(), 1);
        let channels = Attribute::Metadata("channels".into());
        let mut bare = whole.clone();
        bare.remove(&channels);
        let key = plant(&store, 1, &speech_mp3(), 1).await;
        put(&store, &key, &speech_mp3(), bare).await;
        document(&run(&world, &["reindex", "--json"]).await, 0);
        let mut wrong = whole.clone();
        wrong.insert(Attribute::ContentType, "text/plain".into());
        put(&store, &key, &speech_mp3(), wrong).await;
        let repaired = document(&run(&world, &["verify", "--repair", "--json"]).await, 0);
        assert_eq!(of_kind(&repaired, "misdescribed"), names([1]), "{repaired}");
        let (_, described) = store.object(&key).await;
        assert_eq!(described.get(&Attribute::ContentType), whole.get(&Attribute::ContentType));
        assert_eq!(described.get(&channels), whole.get(&channels), "the row does not know it");
    }

    async fn what_neither_the_bucket_nor_twilio_has_is_said_to_be_lost(world: World) {
        let service = world.start().await;
        let store = world.store(&service);
        let keys = plant_many(&store, 1..=2, &speech_mp3()).await;
        document(&run(&world, &["reindex", "--json"]).await, 0);
        remove(&store, &keys[0]).await;
        put(&store, &keys[1], b"damaged", attributes(&recording_id(2), 2, &speech_mp3(), 1)).await;
        let output = run(&world, &["verify", "--repair"]).await;
        let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1));
        for number in [1, 2] {
            let sid = recording_id(number).recording;
            let line = told.lines().find(|line| line.contains(sid.as_str())).expect("it is named");
            assert!(line.contains("neither the bucket nor Twilio has it"), "{line}");
            let shown = service.recording_in(sid, "failed").await;
            assert_eq!(shown["last_error"]["code"], "object_lost");
            let history = shown["history"].as_array().unwrap();
            assert!(history.iter().any(|entry| entry["type"] == "recording.lost"), "{history:?}");
        }
        assert!(error.contains("2 recordings are lost"), "{error}");
        assert!(store.keys().await.contains(&keys[1]), "the damaged copy may be all there is");
    }

    async fn what_twilio_has_no_more_is_stored_at_once_as_what_else_lies_there(world: World) {
        let service = world.start().await;
        let store = world.store(&service);
        let key = plant(&store, 1, &speech_mp3(), 1).await;
        document(&run(&world, &["reindex", "--json"]).await, 0);
        let other = plant(&store, 1, b"another take", 0).await;
        remove(&store, &key).await;
        let repaired = document(&run(&world, &["verify", "--repair", "--json"]).await, 0);
        assert_eq!((of_kind(&repaired, "missing"), &repaired["lost"]), (names([1]), &0.into()), "{repaired}");
        let shown = service.recording_in(recording_id(1).recording, "stored").await;
        assert_eq!(shown["key"], other);
        assert_eq!(found_in_all(&document(&run(&world, &["verify", "--json"]).await, 0)), 0);
    }

    async fn repairing_reads_no_faster_than_it_may(world: World) {
        let (_service, store, keys) = stocked(&world, 1).await;
        let mut rotten = speech_mp3().to_vec();
        rotten[100] ^= 1;
        put(&store, &keys[0], &rotten, attributes(&recording_id(1), 1, &speech_mp3(), 1)).await;
        plant(&store, 7, &speech_mp3(), 7).await;
        // Found, read again before it is mended, and read before it becomes a row: five seconds each.
        let bandwidth = (rotten.len() / 5).to_string();
        let began = std::time::Instant::now();
        let repaired = document(&run(&world, &["verify", "--repair", "--json", "--bandwidth", &bandwidth]).await, 0);
        assert_eq!(found_in_all(&repaired), 2, "{repaired}");
        assert!(began.elapsed() >= Duration::from_secs(15), "{:?}", began.elapsed());
    }

    async fn a_part_of_the_recordings_is_verified_where_that_is_wished(world: World) {
        let (_service, store, keys) = stocked(&world, 20).await;
        for key in &keys {
            remove(&store, key).await;
        }
        put(&store, "notes.txt", b"a note", Attributes::new()).await;
        let sample = document(&run(&world, &["verify", "--sample", "5", "--json"]).await, 1);
        assert_eq!((of_kind(&sample, "missing").len(), found_in_all(&sample)), (5, 5), "{sample}");
        for (span, expected) in [(["--since", "2026-11-24"], 0), (["--until", "2026-11-23"], 0), (["--since", "2026-11-23"], 20)] {
            let output = run(&world, &["verify", "--json", span[0], span[1]]).await;
            let part = document(&output, i32::from(expected > 0));
            assert_eq!(found_in_all(&part), expected, "{span:?}: {part}");
        }
    }

    async fn markers_that_are_gone_are_found_and_written_again(world: World) {
        let (service, store, _) = stocked(&world, 5).await;
        let markers = [(true, 2), (true, 3), (false, 4), (false, 5)].map(|(is_held, number)| (is_held, recording_id(number)));
        for (is_held, id) in &markers {
            match is_held {
                true => assert_eq!(hold(&service, id, true).await.0, 200),
                false => assert_eq!(delete(&service, &path(id)).await.status(), 204),
            }
        }
        let keys = markers.map(|(is_held, id)| if is_held { held_marker(&id) } else { marker(&id) });
        let all = store.keys().await;
        assert!(keys.iter().all(|key| all.contains(key)), "{all:?}");
        assert_eq!(found_in_all(&document(&run(&world, &["verify", "--json"]).await, 0)), 0);
        // One of each is gone, and one hold is released.
        assert_eq!(hold(&service, &markers[1].1, false).await.0, 200);
        remove(&store, &keys[0]).await;
        remove(&store, &keys[2]).await;

        // A sample is one of the three that are stored.
        let parts: [(&[&str], BTreeSet<String>); 4] = [
            (&["--sample", "5"], names([2])),
            (&["--since", "2036-01-01"], names([])),
            (&["--since", "2026-01-01"], names([2, 4])),
            (&[], names([2, 4])),
        ];
        for (part, expected) in parts {
            let found = document(&run(&world, &[&["verify", "--json"], part].concat()).await, i32::from(!expected.is_empty()));
            assert_eq!(found_in_all(&found), expected.len() as u64, "{part:?}: {found}");
            assert_eq!(of_kind(&found, "unmarked"), expected, "{part:?}");
        }
        let repaired = document(&run(&world, &["verify", "--repair", "--json"]).await, 0);
        assert_eq!((of_kind(&repaired, "unmarked"), found_in_all(&repaired)), (names([2, 4]), 2), "{repaired}");
        assert!(repaired["findings"].as_array().unwrap().iter().all(|found| found["remedy"] == "cured"), "{repaired}");
        assert_eq!(found_in_all(&document(&run(&world, &["verify", "--json"]).await, 0)), 0);
        let left = store.keys().await;
        let is_there = keys.map(|key| left.contains(&key));
        assert_eq!(is_there, [true, false, true, true], "what was released stays so");
    }

    async fn the_scrub_writes_markers_again_that_are_gone(world: World) {
        world.set("CALLVAULT_SCRUB_EVERY", "2s");
        let (service, store, _) = stocked(&world, 3).await;
        assert_eq!(hold(&service, &recording_id(1), true).await.0, 200);
        assert_eq!(delete(&service, &path(&recording_id(2))).await.status(), 204);
        let markers = [held_marker(&recording_id(1)), marker(&recording_id(2))];
        for marker in &markers {
            remove(&store, marker).await;
        }
        eventually("they are there again", async || {
            let keys = store.keys().await;
            markers.iter().all(|marker| keys.contains(marker)).then_some(())
        })
        .await;
        assert!(metric(&service, "callvault_scrub_found_total{kind=\"unmarked\"}").await >= 2);
        assert_eq!(found_in_all(&document(&run(&world, &["verify", "--json"]).await, 0)), 0);
    }

    async fn the_scrub_finds_and_mends_what_is_wrong(world: World) {
        world.set("CALLVAULT_SCRUB_EVERY", "2s");
        world.set("CALLVAULT_RECHECK_AFTER", "1s");
        let (service, store, keys) = stocked(&world, 20).await;
        let mut rotten = speech_mp3().to_vec();
        rotten[100] ^= 1;
        put(&store, &keys[0], &rotten, attributes(&recording_id(1), 1, &speech_mp3(), 1)).await;
        remove(&store, &keys[1]).await;
        put(&store, "notes.txt", b"a note", Attributes::new()).await;
        let leftover = plant(&store, 3, b"another take", 1).await;
        eventually("all is mended", async || {
            let (bytes, left) = (store.object(&keys[0]).await.0, store.keys().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
            (bytes == speech_mp3() && left.contains(&keys[1]) && !left.contains(&leftover)).then_some(())
        })
        .await;
        assert!(store.keys().await.contains(&"notes.txt".to_owned()));
        for number in [1, 2] {
            service.recording_in(recording_id(number).recording, "stored").await;
            assert_eq!(world.simulator.counts(recording_id(number).recording).fetches, 1);
        }
        let metrics = service.get("/metrics").await.text().await.unwrap();
        let value = |line: &str| -> f64 {
            let found = metrics.lines().find_map(|found| found.strip_prefix(line));
            found.unwrap_or_else(|| panic!("no {line}")).trim().parse().unwrap()
        };
        assert!(value("callvault_scrub_found_total{kind=\"corrupted\"}") >= 1.0);
        assert!(value("callvault_scrub_found_total{kind=\"missing\"}") >= 1.0);
        assert!(value("callvault_scrub_found_total{kind=\"alien\"}") >= 1.0);
        assert!(value("callvault_scrub_checked_total{what=\"recording\"}") >= 20.0);
        assert!(value("callvault_scrub_bytes_total") > 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_tells_how_far_a_scrub_is_and_how_long_none_was_done() {
    let mut world = World::new(Parts::Servers).await;
    let (_service, ..) = stocked(&world, 20).await;
    // After its first part nothing is due for long: the pass does not end.
    world.set("CALLVAULT_SCRUB_EVERY", "10h");
    for node in world.start_nodes(2).await {
        eventually("it tells what one of them did", async || {
            let metrics = node.get("/metrics").await.text().await.unwrap();
            let told = ["callvault_scrub_progress_ratio ", "callvault_scrub_lag_seconds "]
                .map(|name| metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse::<f64>().unwrap());
            (told[0] > 0.0 && told[0] < 0.9 && told[1] > 0.0).then_some(())
        })
        .await;
    }
}

/// Thirty recordings are stored, whatever became of their objects: nothing counts as lost.
async fn nothing_counts_as_lost(world: &World) {
    assert_eq!(sql(world, "SELECT count(*) FROM recordings WHERE state = 'stored'".to_owned()).await, 30);
    assert_eq!(sql(world, "SELECT count(*) FROM events WHERE type = 'recording.lost'".to_owned()).await, 0);
    let fetches: u64 = (1..=30).map(|number| world.simulator.counts(recording_id(number).recording).fetches).sum();
    assert_eq!(fetches, 0);
}

/// An operator's slip, under which another service's bucket is this one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_another_bucket_nothing_is_lost_and_nothing_removed() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECHECK_AFTER", "1h");
    let (service, ..) = stocked(&world, 30).await;
    let (erased, _) = stored(&world, &service, 31).await;
    let (owed, owed_key) = stored(&world, &service, 32).await;
    assert_eq!(delete(&service, &path(&erased)).await.status(), 204);
    drop(service);
    let its_own = world.settings["CALLVAULT_BUCKET_URL"].clone();
    let other = ObjectStore::shared().new_bucket().await;
    let others = world.real_store_of(&other);
    let theirs = plant(&others, 31, &speech_mp3(), 31).await;
    world.set("CALLVAULT_BUCKET_URL", format!("s3://{other}"));
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    world.set("CALLVAULT_SCRUB_EVERY", "2s");
    // A scrub would go on with the list, where it finds what it was told to remove.
    let listing = "UPDATE bucket_walks SET stage = 1, begun_at = 1, due_at = 1 WHERE name = 'scrub'";
    sql(&world, listing.to_owned()).await;
    owe(&world, &recording_id(1)).await;
    owe(&world, &erased).await;

    let service = world.start().await;
    assert_eq!(service.trouble("objects_missing").await, Some(()), "before anything is done");
    assert_eq!(metric(&service, "callvault_trouble{code=\"objects_missing\"}").await, 1);
    eventually("it was looked at again", async || {
        (metric(&service, "callvault_store_requests_total{method=\"HEAD\"}").await >= 40).then_some(())
    })
    .await;
    assert_eq!(delete(&service, &path(&owed)).await.status(), 503, "its marker is not written");
    assert_eq!(hold(&service, &recording_id(2), true).await.0, 503, "nor is this one's");
    nothing_counts_as_lost(&world).await;
    let found = doctor::finds(&world, &[]).await;
    assert!(found.contains(&("bucket.objects".to_owned(), "wrong".to_owned())), "{found:?}");
    drop(service);
    assert_eq!(others.keys().await, [theirs]);

    world.set("CALLVAULT_BUCKET_URL", its_own);
    let service = world.start().await;
    eventually("rechecks find all in order", async || {
        (metric(&service, "callvault_rechecks_total{outcome=\"in_order\"}").await >= 2).then_some(())
    })
    .await;
    let store = world.store(&service);
    eventually("what is owed goes, and markers come", async || {
        let keys = store.keys().await;
        let are_marked = [marker(&owed), held_marker(&recording_id(2))].iter().all(|marker| keys.contains(marker));
        (are_marked && !keys.contains(&owed_key)).then_some(())
    })
    .await;
    let (_, ready) = service.json("/readyz").await;
    assert_eq!(ready["status"], "ok", "{ready}");
    nothing_counts_as_lost(&world).await;
}

/// The same with the prefix: what is there is found by its key, and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_another_prefix_nothing_is_said_to_be_erased_that_is_there() {
    let mut world = World::new(Parts::Servers).await;
    let (service, store, keys) = stocked(&world, 31).await;
    drop(service);
    let right = world.settings["CALLVAULT_BUCKET_URL"].clone();
    world.set("CALLVAULT_BUCKET_URL", format!("{right}/elsewhere"));
    let service = world.start().await;
    assert_eq!(service.trouble("objects_missing").await, Some(()));
    let owed = path(&recording_id(31));
    assert_eq!(delete(&service, &owed).await.status(), 503);
    nothing_counts_as_lost(&world).await;
    drop(service);
    assert_eq!(store.keys().await, keys);

    world.set("CALLVAULT_BUCKET_URL", right);
    let service = world.start().await;
    eventually("it goes", async || (delete(&service, &owed).await.status() == 204).then_some(())).await;
    let left = store.keys().await;
    assert!(!left.contains(&keys[30]) && left.contains(&marker(&recording_id(31))), "{left:?}");
}

/// Whoever looks for an object first: the scrub, or a recheck.
async fn an_emptied_bucket_is_filled_again_by_hand(scrub_every: &str) {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_SCRUB_EVERY", scrub_every);
    let (service, store, keys) = stocked(&world, 30).await;
    // All at once, as it sees it.
    service.signal("STOP");
    for key in &keys {
        remove(&store, key).await;
    }
    owe(&world, &recording_id(1)).await;
    service.signal("CONT");
    eventually("it is told", async || service.trouble("objects_missing").await).await;
    nothing_counts_as_lost(&world).await;

    let repaired = document(&run(&world, &["verify", "--repair", "--json"]).await, 0);
    assert_eq!((of_kind(&repaired, "missing").len(), &repaired["left"]), (30, &0.into()), "{repaired}");
    assert_eq!(store.keys().await, keys);
    eventually("all is well", async || {
        let (_, ready) = service.json("/readyz").await;
        (ready["status"] == "ok").then_some(())
    })
    .await;
    remove(&store, &keys[0]).await;
    owe(&world, &recording_id(1)).await;
    eventually("one that is missing is fetched again", async || store.keys().await.contains(&keys[0]).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_the_scrub_finds_empty_is_filled_again_by_hand() {
    an_emptied_bucket_is_filled_again_by_hand("2s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_a_recheck_finds_empty_is_filled_again_by_hand() {
    an_emptied_bucket_is_filled_again_by_hand("off").await;
}

const DENIED: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A world whose commands and services reach the store by way of a relay from now on.
pub async fn behind_relay(world: &mut World) -> Relay {
    let endpoint = world.settings["CALLVAULT_S3_ENDPOINT"].clone();
    let relay = Relay::to(reqwest::Url::parse(&endpoint).expect("a URL").port().expect("a port")).await;
    world.set("CALLVAULT_S3_ENDPOINT", relay.instead_of(&endpoint));
    relay
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_cannot_be_read_is_a_find_and_the_rest_is_verified() {
    let mut world = World::new(Parts::Servers).await;
    let relay = behind_relay(&mut world).await;
    let (_service, store, keys) = stocked(&world, 5).await;
    remove(&store, &keys[3]).await;
    relay.rule(Rule::on(&format!("{} HTTP/1.1", keys[1]), Act::Answer(DENIED)).times(1000));
    let found = document(&run(&world, &["verify", "--json"]).await, 1);
    assert_eq!((of_kind(&found, "unreadable"), of_kind(&found, "missing")), (names([2]), names([4])), "{found}");
    assert_eq!((found_in_all(&found), &found["recordings"], &found["complete"]), (2, &5.into(), &true.into()));
}

/// The catalog drops a statement of each kind that a repair, or a sample, cannot do without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hiccup_of_the_catalog_does_not_end_a_repair() {
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    node.kill();
    let store = world.real_store();
    world.record(1);
    let keys = plant_many(&store, 1..=1, &speech_mp3()).await;
    document(&run(&world, &["reindex", "--json"]).await, 0);
    let repair = async |args: &[&str]| {
        remove(&store, &keys[0]).await;
        let mut command = command(&world, &[&["verify", "--repair", "--json"], args].concat());
        command.envs(node.settings());
        let repaired = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(node.catalog.has_acted());
        node.catalog.release();
        document(&repaired, 0)
    };
    node.catalog.rule(Rule::on("SET state = 'fetching'", Act::Reset));
    assert_eq!(of_kind(&repair(&[]).await, "missing"), names([1]));
    node.catalog.rule(Rule::on("(account_sid, recording_sid) IN", Act::Reset));
    assert_eq!(of_kind(&repair(&["--sample", "1"]).await, "missing"), names([1]));
    assert!(store.keys().await.contains(&keys[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_that_cannot_be_read_does_not_end_the_scrub() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_SCRUB_EVERY", "2s");
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    let relay = behind_relay(&mut world).await;
    let marker = format!(".held/{ACCOUNT}/{}", recording_id(1).recording);
    relay.rule(Rule::on(&format!("{marker} HTTP/1.1"), Act::Answer(DENIED)).times(1000));
    let (_service, store, _) = stocked(&world, 3).await;
    put(&store, &marker, b"", Attributes::new()).await;
    relay.acts().await;
    let leftover = plant(&store, 3, b"another take", 1).await;
    eventually("what lies behind it goes", async || (!store.keys().await.contains(&leftover)).then_some(())).await;
}

/// A marker that is still to be written is not missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_that_is_owed_is_no_find() {
    let mut world = World::new(Parts::Servers).await;
    let (service, store, _) = stocked(&world, 3).await;
    service.kill();
    let relay = behind_relay(&mut world).await;
    let service = world.start().await;
    relay.rule(Rule::on("PUT /", Act::Answer(DENIED)).times(1000));
    assert_eq!(hold(&service, &recording_id(1), true).await.0, 503);
    assert_eq!(delete(&service, &path(&recording_id(2))).await.status(), 503);
    let found = document(&run(&world, &["verify", "--json"]).await, 0);
    assert_eq!(found_in_all(&found), 0, "{found}");
    relay.release();
    let markers = [held_marker(&recording_id(1)), marker(&recording_id(2))];
    eventually("they are written", async || {
        let keys = store.keys().await;
        markers.iter().all(|marker| keys.contains(marker)).then_some(())
    })
    .await;
}

/// A hold that is released while its marker is looked for: it is not missed, nor written again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_marker_of_a_hold_that_is_released_meanwhile_is_not_written_again() {
    let mut world = World::new(Parts::Servers).await;
    let (service, store, _) = stocked(&world, 2).await;
    let marker = held_marker(&recording_id(1));
    let relay = behind_relay(&mut world).await;
    let on_look = || Rule::on(&format!("HEAD /{}/{marker}", world.bucket()), Act::Hold);
    // When it is looked for first, and when it is looked for again because it was not there.
    for was_there in [true, false] {
        assert_eq!(hold(&service, &recording_id(1), true).await.0, 200);
        if !was_there {
            remove(&store, &marker).await;
        }
        relay.rule(on_look());
        let verifying = run(&world, &["verify", "--repair", "--json"]);
        let releasing = async {
            relay.acts().await;
            if !was_there {
                relay.release();
                relay.rule(on_look());
                relay.acts().await;
            }
            assert_eq!(hold(&service, &recording_id(1), false).await.0, 200);
            relay.release();
        };
        let (verified, ()) = tokio::join!(verifying, releasing);
        assert_eq!(found_in_all(&document(&verified, 0)), 0, "{was_there}");
        assert!(!store.keys().await.contains(&marker));
        let (_, shown) = service.json(&path(&recording_id(1))).await;
        assert_eq!(shown["hold"], false, "{shown}");
    }
}

/// Each node does parts of one pass; together they do it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_share_a_scrub() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_SCRUB_EVERY", "10s");
    let nodes = world.start_nodes(2).await;
    let store = world.store(&nodes[0]);
    plant_many(&store, 1..=60, &speech_mp3()).await;
    document(&run(&world, &["reindex", "--json"]).await, 0);
    let checked = async |node: &Service| -> u64 {
        let metrics = node.get("/metrics").await.text().await.unwrap();
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("callvault_scrub_checked_total{what=\"recording\"}"));
        line.expect("the metric").trim().parse().unwrap()
    };
    eventually("both have done a part", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        (checked(&nodes[0]).await > 0 && checked(&nodes[1]).await > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_usage_is_told_as_such() {
    let world = World::new(Parts::Embedded).await;
    for args in
        [&["verify", "--sample", "0"][..], &["verify", "--since", "yesterday"], &["verify", "--bandwidth", "fast"]]
    {
        assert_eq!(run(&world, args).await.status.code(), Some(2), "{args:?}");
    }
}
