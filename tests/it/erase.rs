//! Erasing: what is erased is gone from the bucket, from Twilio where that was
//! asked for, and never comes back, whoever dies on the way.

use callvault::domain::digest::Digest;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{Audio, Fault, RestFault, SimulatedRecording};
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, multipart::MultipartStore};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use crate::crashes::{has_parts, nothing_is_left_over};
use crate::letting_go::{Step, at_catalog, at_store, at_twilio};
use crate::recheck::{
    count, folder, history, metric, none_but_rechecks, nothing_is_owed, owe, plant, sql, staging, stored,
};
use crate::support::audit;
use crate::support::cluster::{self, Node};
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::servers::ObjectStore;
use crate::support::world::{ACCOUNT, Parts, Service, World, account, call_sid, recording_id, started_at};

/// A world whose store is away for ever answers so.
const STORE_503: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

pub async fn delete(service: &Service, path: &str) -> Response {
    service.request(Method::DELETE, path).send().await.unwrap()
}

pub async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let problem: Value = answer.json().await.unwrap();
    (status, problem["code"].as_str().unwrap_or_default().to_owned())
}

pub fn path(id: &RecordingId) -> String {
    format!("/v1/recordings/{}", id.recording)
}

pub fn marker(id: &RecordingId) -> String {
    format!(".erased/{ACCOUNT}/{}", id.recording)
}

fn deletions_at_twilio(world: &World) -> usize {
    world.simulator.seen().iter().filter(|seen| seen.method == "DELETE" && seen.status == 204).count()
}

/// What the embedded store keeps beside objects, by the files' number.
fn files_beside(world: &World) -> usize {
    let objects = world.folder().join("callvault-data/objects");
    std::fs::read_dir(objects).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count()
}

on_all_parts! {
    async fn what_is_erased_is_gone_and_says_so(world: World) {
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        let (_, neighbour) = stored(&world, &service, 2).await;
        let store = world.store(&service);
        let files = if world.parts == Parts::Embedded { files_beside(&world) } else { 0 };
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT);
        assert_eq!(store.keys().await, [marker(&id), neighbour.clone()]);
        if world.parts == Parts::Embedded {
            assert_eq!(files_beside(&world), files, "what was kept of the object went, its marker's came");
        }

        let (status, shown) = service.json(&path(&id)).await;
        assert_eq!((status, &shown["state"]), (StatusCode::OK, &"erased".into()));
        for field in ["sha256", "size_bytes", "key", "bucket", "format", "source_url", "duration_seconds", "channels",
                      "track", "recording_source", "last_error", "next_attempt_at", "content_type"] {
            assert_eq!(shown[field], Value::Null, "{field}");
        }
        assert_eq!(shown["call_sid"], call_sid(1).to_string());
        let listed = service.json("/v1/recordings").await.1;
        assert_eq!(listed["recordings"].as_array().unwrap().len(), 1);
        for route in ["audio", "link"] {
            for asked in [path(&id), format!("/v1/calls/{}", call_sid(1))] {
                assert_eq!(code(service.get(&format!("{asked}/{route}")).await).await, (410, "erased".into()));
            }
        }
        // Nobody who tells of it brings it back.
        assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
        let url = shown_url(&world, &id);
        assert_eq!(code(service.put(call_sid(1), &url).await).await, (410, "erased".into()));
        let again = service.request(Method::POST, &format!("{}/fetch", path(&id))).send().await.unwrap();
        assert_eq!(code(again).await, (410, "erased".into()));
        assert_eq!(history(&service, &id).await.last().map(String::as_str), Some("recording.erased"));
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT, "again");
        assert_eq!(delete(&service, &format!("/v1/calls/{}", call_sid(1))).await.status(), StatusCode::NO_CONTENT);
        assert_eq!(delete(&service, &path(&recording_id(9))).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
        assert_eq!(deletions_at_twilio(&world), 0);
        assert_eq!(metric(&service, "callvault_erasures_total{outcome=\"done\"}").await, 1);
    }

    /// A tool that mirrored or restored the bucket left the metadata out.
    async fn what_was_written_again_without_metadata_is_erased(world: World) {
        let service = world.start().await;
        let (id, key) = stored(&world, &service, 1).await;
        let store = world.store(&service);
        let (bytes, _) = store.object(&key).await;
        plant(&store, &key, None, bytes.to_vec()).await;
        service.play(&format!("{}/audio", path(&id))).await;
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT);
        assert_eq!(store.keys().await, [marker(&id)]);
    }

    async fn nothing_is_said_to_be_gone_while_something_does_not_say_whose_it_is(world: World) {
        let service = world.start().await;
        let (id, key) = stored(&world, &service, 1).await;
        let store = world.store(&service);
        let named = |bytes: &[u8]| format!("{}/{}.mp3", folder(1), Digest::of(bytes));
        let (unclaimed, others) = (named(b"what was there"), named(b"of another account"));
        let note = format!("{}/notes.txt", folder(1));
        let other = format!("AC{}", "9".repeat(32));
        plant(&store, &unclaimed, None, b"what is there".to_vec()).await;
        plant(&store, &others, Some(&other), b"of another account".to_vec()).await;
        plant(&store, &note, None, b"a note".to_vec()).await;
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::ACCEPTED);
        assert!(!store.keys().await.contains(&key), "what is known to be of it goes at once");
        service.recording_in(id.recording, "erased").await;
        eventually("people are told", async || service.trouble("erasures_failing").await).await;
        let log = service.log();
        assert!(log.contains(&unclaimed) && log.contains("remove it by hand"), "{log}");
        assert!(store.keys().await.contains(&unclaimed), "it may be anybody's");

        // What a row of another account names is that one's, whatever it says of itself.
        let (_, neighbour) = stored(&world, &service, 2).await;
        let anothers = named(b"of another account's row");
        let columns = "state, announced_by, details_confirmed, sha256, size_bytes, format, stored_at, accepted_at, ordered_at";
        let row = format!(
            "INSERT INTO recordings (account_sid, recording_sid, object_key, {columns}) \
             SELECT '{other}', '{}', '{anothers}', {columns} FROM recordings WHERE recording_sid = '{}'",
            id.recording, recording_id(2).recording
        );
        sql(&world, row).await;
        plant(&store, &anothers, None, b"of another account's row".to_vec()).await;

        crate::support::bucket::remove(&store, &unclaimed).await;
        eventually("it is gone", async || {
            let done = format!("account_sid = '{ACCOUNT}' AND erase_due_at IS NULL");
            (count(&world, &id, &done).await == 1).then_some(())
        })
        .await;
        let mut left = vec![marker(&id), others, note, anothers, neighbour];
        left.sort();
        assert_eq!(store.keys().await, left);
        eventually("all is well again", async || service.trouble("erasures_failing").await.is_none().then_some(())).await;
    }

    async fn of_a_call_with_a_held_recording_nothing_is_erased(world: World) {
        let service = world.start().await;
        let ids = [1, 2].map(recording_id);
        for id in ids {
            world.simulator.add(SimulatedRecording::speech(id, call_sid(1), started_at()));
            service.deliver(&world.callback(id.recording)).await;
            service.recording_in(id.recording, "stored").await;
        }
        let hold = format!("{}/hold", path(&ids[1]));
        assert_eq!(service.request(Method::PUT, &hold).send().await.unwrap().status(), StatusCode::OK);
        let call = format!("/v1/calls/{}", call_sid(1));
        assert_eq!(code(delete(&service, &call).await).await, (409, "held".into()));
        assert_eq!(code(delete(&service, &path(&ids[1])).await).await, (409, "held".into()));
        for id in ids {
            service.play(&format!("{}/audio", path(&id))).await;
        }
        assert_eq!(delete(&service, &hold).await.status(), StatusCode::OK);
        assert_eq!(delete(&service, &call).await.status(), StatusCode::NO_CONTENT);
        let mut markers = ids.map(|id| marker(&id)).to_vec();
        markers.sort();
        assert_eq!(world.store(&service).keys().await, markers);
    }

    async fn twilios_part_is_owed_until_twilio_did_it(world: World) {
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        let at_twilio = format!("{}?twilio=true", path(&id));
        assert_eq!(delete(&service, &format!("{}?twilio=perhaps", path(&id))).await.status(), StatusCode::BAD_REQUEST);
        world.simulator.rest_fault(account(), Some(RestFault::Status(500)));
        assert_eq!(delete(&service, &at_twilio).await.status(), StatusCode::ACCEPTED);
        assert_eq!(world.store(&service).keys().await, [marker(&id)]);
        assert_eq!(delete(&service, &at_twilio).await.status(), StatusCode::ACCEPTED);
        assert_eq!(metric(&service, "callvault_letting_go_owed{what=\"hold_marker\"}").await, 0);
        world.simulator.rest_fault(account(), None);
        // Without anybody's asking again.
        eventually("it is deleted at Twilio", async || (deletions_at_twilio(&world) == 1).then_some(())).await;
        eventually("nothing is owed", async || {
            (count(&world, &id, "erase_due_at IS NULL AND erase_twilio = 2").await == 1).then_some(())
        })
        .await;
        assert_eq!(delete(&service, &at_twilio).await.status(), StatusCode::NO_CONTENT);
        assert_eq!(deletions_at_twilio(&world), 1);
    }

    async fn what_is_erased_first_can_be_erased_at_twilio_later(world: World) {
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT);
        for _ in 0..2 {
            assert_eq!(delete(&service, &format!("{}?twilio=true", path(&id))).await.status(), StatusCode::NO_CONTENT);
        }
        assert_eq!(deletions_at_twilio(&world), 1);
        let told = history(&service, &id).await;
        assert_eq!(told[told.len() - 3..], ["recording.erased", "twilio_deletion_requested", "deleted_at_twilio"]);
    }

    async fn what_a_late_attempt_writes_under_an_erased_row_is_removed(world: World) {
        world.set("CALLVAULT_RECHECK_AFTER", "1s");
        let service = world.start().await;
        let (id, key) = stored(&world, &service, 1).await;
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT);
        nothing_is_owed(&world, &id).await;
        let store = world.store(&service);
        let note = format!("{}/notes.txt", folder(1));
        plant(&store, &key, Some(ACCOUNT), b"late".to_vec()).await;
        plant(&store, &note, None, b"somebody else's".to_vec()).await;
        owe(&world, &id).await;
        nothing_is_owed(&world, &id).await;
        assert_eq!(store.keys().await, [marker(&id), note]);
    }

    async fn reconciling_does_not_bring_back_what_is_erased(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1s");
        let service = world.start().await;
        let id = recording_id(1);
        let now = jiff::Timestamp::now();
        world.simulator.add(SimulatedRecording::speech(id, call_sid(1), now));
        service.recording_in(id.recording, "stored").await;
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT);
        let before = world.simulator.lists(account());
        eventually("the list is walked again", async || (world.simulator.lists(account()) > before + 2).then_some(()))
            .await;
        service.recording_in(id.recording, "erased").await;
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
        assert_eq!(world.store(&service).keys().await, [marker(&id)]);
    }

    async fn an_upload_that_is_under_way_ends_with_its_recording(world: World) {
        world.set("CALLVAULT_RECHECK_AFTER", "1s");
        let service = world.start().await;
        let id = recording_id(1);
        let mut recording = SimulatedRecording::speech(id, call_sid(1), started_at());
        recording.audio = Audio::made_up_wav(40 << 20, 7);
        world.simulator.add(recording);
        world.simulator.script(id.recording, [Fault::Held(30 << 20)]);
        service.deliver(&world.callback(id.recording)).await;
        eventually("parts were uploaded", async || has_parts(&world, &service).await.then_some(())).await;
        // Of this one the row knows nothing.
        world.store(&service).s3.create_multipart(&Path::from(staging(&id, 1))).await.unwrap();
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT);
        assert_eq!(world.store(&service).keys().await, [marker(&id)]);
        world.simulator.release(id.recording);
        eventually("the attempt finds that it is over", async || {
            (metric(&service, "callvault_fetches_total{outcome=\"lost\"}").await == 1).then_some(())
        })
        .await;
        nothing_is_owed(&world, &id).await;
        nothing_is_left_over(&world, &service, &[marker(&id)]).await;
        service.recording_in(id.recording, "erased").await;
    }
}

fn shown_url(world: &World, id: &RecordingId) -> String {
    format!("{}/2010-04-01/Accounts/{}/Recordings/{}", world.simulator.origin(), id.account, id.recording)
}

/// Nothing is acknowledged before the marker is there, and nobody has to ask again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_marker_nothing_is_acknowledged() {
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    let (id, key) = stored(&world, &node, 1).await;
    node.store.rule(Rule::on("/.erased/", Act::Answer(STORE_503)).times(1000));
    let (status, problem) = code(delete(&node, &path(&id)).await).await;
    assert_eq!((status, problem.as_str()), (503, "unavailable"));
    assert_eq!(code(service_audio(&node, &id).await).await, (410, "erased".into()), "but it is erased");
    assert_eq!(world.real_store().keys().await, [key], "in the order of the steps");
    node.store.release();
    eventually("it is gone on with", async || (world.real_store().keys().await == [marker(&id)]).then_some(())).await;
    eventually("nothing is owed any more", async || {
        (delete(&node, &path(&id)).await.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
}

/// What the bucket owes is told, and done without anybody's asking again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_buckets_part_is_owed_until_it_is_done() {
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    let (id, key) = stored(&world, &node, 1).await;
    node.store.rule(Rule::on("DELETE /", Act::Answer(STORE_503)).times(1000));
    assert_eq!(delete(&node, &path(&id)).await.status(), StatusCode::ACCEPTED);
    assert_eq!(world.real_store().keys().await, [marker(&id), key]);
    // Once it failed again and again, it is a trouble.
    sql(&world, "UPDATE recordings SET erase_failures = 99, erase_due_at = 1".to_owned()).await;
    eventually("it is told", async || node.trouble("erasures_failing").await).await;
    node.store.release();
    sql(&world, "UPDATE recordings SET erase_due_at = 1, duty_until = NULL".to_owned()).await;
    // A recheck may be what removed the object: the erasing says itself when its part is done.
    eventually("it is gone on with", async || (world.real_store().keys().await == [marker(&id)]).then_some(())).await;
    eventually("it is done", async || {
        (delete(&node, &path(&id)).await.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
    eventually("all is well again", async || {
        (metric(&node, "callvault_letting_go_owed{what=\"erasure\"}").await == 0).then_some(())
    })
    .await;
}

async fn service_audio(node: &Node, id: &RecordingId) -> Response {
    node.get(&format!("{}/audio", path(id))).await
}

/// As a node's own requests begin at each of the steps of erasing, once it was committed.
pub fn steps_from_commit_on() -> [Step; 6] {
    [
        (at_catalog, Rule::on("COMMIT", Act::HoldAnswer).after("recording.erased").then(1)),
        (at_store, Rule::on("/.erased/", Act::Hold)),
        (at_catalog, Rule::on("erase_marked = CASE WHEN erase_twilio", Act::Hold)),
        (at_store, Rule::on("DELETE /", Act::Hold)),
        (at_twilio, Rule::on("DELETE /", Act::HoldAnswer)),
        (at_catalog, Rule::on("erase_cleared = CASE", Act::Hold)),
    ]
}

/// A node is cut off at each step of erasing; another one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_step_a_node_dies_at_another_goes_on() {
    let world = World::new(Parts::Servers).await;
    let mut nodes = cluster::start(&world, 2).await;
    for (number, (break_at, rule)) in (1..).zip(steps_from_commit_on()) {
        let (id, _) = stored(&world, &nodes[1], number).await;
        break_at(&nodes[0], rule);
        let url = format!("{}{}?twilio=true", nodes[0].url, path(&id));
        let asked = world.http.delete(url).bearer_auth(crate::support::world::ADMIN_KEY).send();
        let asked = tokio::spawn(asked);
        let relay = [&nodes[0].catalog, &nodes[0].store, &nodes[0].twilio];
        eventually("the node is at the step", async || relay.iter().any(|relay| relay.has_acted()).then_some(())).await;
        nodes[0].kill();
        relay.iter().for_each(|relay| relay.release());
        assert!(asked.await.unwrap().is_err(), "step {number}: nobody was answered");
        eventually("the other node goes on", async || {
            (count(&world, &id, "state = 'erased' AND erase_due_at IS NULL AND erase_twilio = 2").await == 1)
                .then_some(())
        })
        .await;
        let answer = delete(&nodes[1], &format!("{}?twilio=true", path(&id))).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT, "step {number}");
        nodes[0].start_again(&world).await;
    }
    assert_eq!(deletions_at_twilio(&world), 6);
    audit::content_in_the_end(&world).await;
}

/// An attempt at each step, of a node that is frozen there, while another node
/// erases: nothing comes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_step_a_fetch_is_at_nothing_comes_back() {
    let mut world = World::new(Parts::Servers).await;
    // Longer than anything here is held up: what comes later still nobody looks for.
    world.set("CALLVAULT_RECHECK_AFTER", "10s");
    let nodes = cluster::start(&world, 2).await;
    let [fetcher, eraser] = &nodes[..] else { unreachable!("two were started") };
    let steps: [fn(&Node, &World, RecordingId); 7] = [
        |node, _, _| node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("recording.accepted").then(1)),
        |node, _, _| node.catalog.rule(Rule::on("COMMIT", Act::HoldAnswer).after("lease_node = $3").then(1)),
        |node, _, _| node.twilio.rule(Rule::on("GET /2010-04-01/", Act::Hold)),
        |_, world, id| world.simulator.script(id.recording, [Fault::Held(1000)]),
        |node, _, id| node.store.rule(Rule::on(&format!("/{}/", id.recording), Act::Hold)),
        |node, _, id| node.store.rule(Rule::on(&format!("/{}/", id.recording), Act::HoldAnswer)),
        |node, _, _| node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("state = 'stored'").then(1)),
    ];
    for (number, break_at) in (1..).zip(steps) {
        let id = world.record(number);
        // The first node is to be the one that takes it.
        eraser.freeze().await;
        break_at(fetcher, &world, id);
        let (callback, http) = (world.callback(id.recording), world.http.clone());
        let url = format!("{}/webhooks/twilio/recording", fetcher.url);
        let told = tokio::spawn(async move { callback.send(&http, &url).await.ok() });
        let is_at_media = async || world.simulator.counts(id.recording).fetches == 1;
        eventually("the fetch is at the step", async || {
            let relays = [&fetcher.catalog, &fetcher.store, &fetcher.twilio];
            (relays.iter().any(|relay| relay.has_acted()) || (number == 4 && is_at_media().await)).then_some(())
        })
        .await;
        eraser.thaw();
        let let_go = || {
            [&fetcher.catalog, &fetcher.store, &fetcher.twilio].iter().for_each(|relay| relay.release());
            world.simulator.release(id.recording);
        };
        // What is about to be committed has its row locked, or none yet.
        if matches!(number, 1 | 7) {
            let_go();
        }
        let status = eventually("it is known, and erased", async || {
            let status = delete(eraser, &path(&id)).await.status();
            (!matches!(status, StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE)).then_some(status)
        })
        .await;
        assert_eq!(status, StatusCode::NO_CONTENT, "step {number}");
        let_go();
        let _ = told.await.unwrap();
        eraser.deliver(&world.callback(id.recording)).await;
        eraser.recording_in(id.recording, "erased").await;
    }
    audit::content_in_the_end(&world).await;
    let mut markers: Vec<String> = (1..=7).map(|number| marker(&recording_id(number))).collect();
    markers.sort();
    eventually("only markers are left", async || (world.real_store().keys().await == markers).then_some(())).await;
}

/// Makes the bucket keep every version of its objects.
pub async fn keep_versions(world: &World) {
    let store = ObjectStore::shared();
    assert_eq!(store.kind, "minio", "Garage keeps no versions");
    let signed = versions_url(world, rusty_s3::Method::Put, "versioning");
    let body = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    assert_eq!(world.http.put(signed).body(body).send().await.unwrap().status(), StatusCode::OK);
}

fn versions_url(world: &World, method: rusty_s3::Method, query: &str) -> reqwest::Url {
    let store = ObjectStore::shared();
    let url = reqwest::Url::parse(&format!("{}/{}", store.endpoint, world.bucket())).unwrap();
    rusty_s3::signing::sign(
        &jiff::Timestamp::now(),
        method,
        url,
        &store.access_key_id,
        &store.secret_access_key,
        None,
        store.region,
        60,
        [(query, "")].into_iter(),
        std::iter::empty(),
    )
}

/// What the bucket keeps, as its store lists it.
pub async fn versions(world: &World) -> String {
    let url = versions_url(world, rusty_s3::Method::Get, "versions");
    world.http.get(url).send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_is_erased_no_version_is_left() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    keep_versions(&world).await;
    let service = world.start().await;
    let (id, key) = stored(&world, &service, 1).await;
    let (_, neighbour) = stored(&world, &service, 2).await;
    let store = world.real_store();
    let foreign = format!("{}/notes.txt", folder(1));
    // Written again, without metadata too, deleted, and written by others: all of it has versions.
    let (bytes, _) = store.object(&key).await;
    plant(&store, &key, None, bytes.to_vec()).await;
    plant(&store, &key, Some(ACCOUNT), b"another version".to_vec()).await;
    store.s3.delete(&Path::from(key.as_str())).await.unwrap();
    plant(&store, &foreign, None, b"a note".to_vec()).await;
    store.s3.delete(&Path::from(foreign.as_str())).await.unwrap();
    plant(&store, &staging(&id, 1), Some(ACCOUNT), b"staged".to_vec()).await;
    store.s3.delete(&Path::from(staging(&id, 1))).await.unwrap();
    assert!(versions(&world).await.contains(&key));

    assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT);
    let left = versions(&world).await;
    assert!(!left.contains(&key) && !left.contains(&staging(&id, 1)), "{left}");
    assert!(left.contains(&neighbour) && left.contains(&marker(&id)), "{left}");
    assert_eq!(left.matches(&format!("<Key>{foreign}</Key>")).count(), 2, "the note stays deleted: {left}");
    assert_eq!(store.keys().await, [marker(&id), neighbour]);

    // What comes late goes with its versions, too.
    plant(&store, &key, Some(ACCOUNT), b"late".to_vec()).await;
    owe(&world, &id).await;
    nothing_is_owed(&world, &id).await;
    assert!(!versions(&world).await.contains(&key));
}

/// It may be owed for weeks: the bucket is not gone over again each time that it is tried,
/// and where Twilio refuses the credentials it is not tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_only_twilios_part_is_owed_the_bucket_is_left_alone() {
    let mut world = World::new(Parts::Servers).await;
    // Longer than from one try to the next.
    world.set("CALLVAULT_RECHECK_AFTER", "3s");
    world.set("CALLVAULT_RETRY_CAP", "200ms");
    let node = Node::start(&world).await;
    let (id, _) = stored(&world, &node, 1).await;
    let at_twilio = format!("{}?twilio=true", path(&id));
    world.simulator.rest_fault(account(), Some(RestFault::Status(500)));
    assert_eq!(delete(&node, &at_twilio).await.status(), StatusCode::ACCEPTED);
    // Tries that follow one another do not put the recheck off for ever.
    nothing_is_owed(&world, &id).await;

    world.simulator.refuse_credentials(account(), true);
    world.simulator.rest_fault(account(), None);
    eventually("the account is paused", async || node.trouble("accounts_paused").await).await;
    none_but_rechecks(&world, &id).await;

    node.store.refuse();
    world.simulator.refuse_credentials(account(), false);
    eventually("it is deleted at Twilio", async || (deletions_at_twilio(&world) > 0).then_some(())).await;
    node.store.heal();
    eventually("nothing is owed", async || {
        (count(&world, &id, "erase_due_at IS NULL AND erase_twilio = 2").await == 1).then_some(())
    })
    .await;
    assert_eq!(delete(&node, &at_twilio).await.status(), StatusCode::NO_CONTENT);
}

/// An account whose credentials were taken away can still be erased here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_credentials_the_buckets_part_is_done() {
    let world = World::new(Parts::Servers).await;
    let service = world.start().await;
    let (id, _) = stored(&world, &service, 1).await;
    let other = format!("AC{}", "9".repeat(32));
    for table in ["recordings", "events"] {
        sql(&world, format!("UPDATE {table} SET account_sid = '{other}'")).await;
    }
    assert_eq!(delete(&service, &format!("{}?twilio=true", path(&id))).await.status(), StatusCode::ACCEPTED);
    assert_eq!(count(&world, &id, "erase_cleared = 1 AND erase_twilio = 1").await, 1);
    assert!(world.real_store().keys().await.contains(&format!(".erased/{other}/{}", id.recording)));
}
