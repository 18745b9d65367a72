//! Looking again: what attempts left behind goes, what is missing is fetched
//! again, what is whole is kept, and what others wrote is never touched.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use callvault::domain::digest::Digest;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{Audio, Fault, SimulatedRecording, speech_mp3, speech_wav};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStore as _, ObjectStoreExt as _, PutOptions};
use reqwest::Method;
use sqlx::{AssertSqlSafe, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::crashes::{has_parts, nothing_is_left_over};
use crate::support::bucket::{attributes, put};
use crate::support::cluster::Node;
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::servers::free_port;
use crate::support::world::{ACCOUNT, Parts, Service, Store, World, call_sid, debug_binary, recording_id, started_at};

/// Runs a statement beside the services; gives its number, where it has one.
pub async fn sql(world: &World, statement: String) -> i64 {
    let statement = AssertSqlSafe(statement);
    match world.settings.get("CALLVAULT_DATABASE_URL") {
        Some(url) => {
            let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
            sqlx::query_scalar(statement).fetch_optional(&mut connection).await.unwrap().unwrap_or_default()
        }
        None => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(world.folder().join("callvault.db"));
            let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            sqlx::query_scalar(statement).fetch_optional(&mut connection).await.unwrap().unwrap_or_default()
        }
    }
}

/// Makes a recording owe a recheck now.
pub async fn owe(world: &World, id: &RecordingId) {
    sql(world, format!("UPDATE recordings SET recheck_due_at = 1 WHERE recording_sid = '{}'", id.recording)).await;
}

pub async fn count(world: &World, id: &RecordingId, condition: &str) -> i64 {
    let sid = id.recording;
    sql(world, format!("SELECT count(*) FROM recordings WHERE recording_sid = '{sid}' AND {condition}")).await
}

pub async fn nothing_is_owed(world: &World, id: &RecordingId) {
    eventually("no recheck is owed", async || {
        (count(world, id, "recheck_due_at IS NULL AND duty_until IS NULL").await == 1).then_some(())
    })
    .await;
}

/// Fails where another lease than those of three rechecks is granted while they come and go.
pub async fn none_but_rechecks(world: &World, id: &RecordingId) {
    let epoch =
        async || sql(world, format!("SELECT epoch FROM recordings WHERE recording_sid = '{}'", id.recording)).await;
    nothing_is_owed(world, id).await;
    let before = epoch().await;
    for _ in 0..3 {
        owe(world, id).await;
        nothing_is_owed(world, id).await;
    }
    assert_eq!(epoch().await, before + 3);
}

/// Writes an object as a node of that account does, or as somebody else.
pub async fn plant(store: &Store, key: &str, account: Option<&str>, bytes: Vec<u8>) {
    let mut attributes = Attributes::new();
    if let Some(account) = account {
        attributes.insert(Attribute::Metadata("account-sid".into()), account.to_owned().into());
        attributes.insert(Attribute::Metadata("stored-at".into()), "2026-11-23T14:00:00Z".into());
    }
    let options = PutOptions { attributes, ..PutOptions::default() };
    store.s3.put_opts(&Path::from(key), bytes.into(), options).await.unwrap();
}

pub fn folder(number: u32) -> String {
    format!("{}/{}", call_sid(number), recording_id(number).recording)
}

pub fn staging(id: &RecordingId, epoch: i64) -> String {
    format!(".staging/{ACCOUNT}/{}.{epoch}", id.recording)
}

pub async fn history(service: &Service, id: &RecordingId) -> Vec<String> {
    let (_, shown) = service.json(&format!("/v1/recordings/{}", id.recording)).await;
    shown["history"].as_array().unwrap().iter().map(|entry| entry["type"].as_str().unwrap().to_owned()).collect()
}

pub async fn metric(service: &Service, line: &str) -> u64 {
    let text = service.get("/metrics").await.text().await.unwrap();
    let value = text.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("no {line}"));
    value.trim().parse().unwrap()
}

pub async fn stored(world: &World, service: &Service, number: u32) -> (RecordingId, String) {
    let id = world.record(number);
    service.deliver(&world.callback(id.recording)).await;
    let shown = service.recording_in(id.recording, "stored").await;
    (id, shown["key"].as_str().unwrap().to_owned())
}

/// A recording that was given up, before anything of it was stored.
async fn failed(world: &World, service: &Service, number: u32) -> RecordingId {
    let id = world.record(number);
    world.simulator.always(id.recording, Some(Fault::NotReady));
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "failed").await;
    id
}

on_all_parts! {
    async fn an_object_that_went_missing_is_fetched_again(world: World) {
        world.set("CALLVAULT_RECHECK_AFTER", "1s");
        let service = world.start().await;
        let (id, key) = stored(&world, &service, 1).await;
        world.store(&service).s3.delete(&Path::from(key.as_str())).await.unwrap();
        owe(&world, &id).await;
        eventually("the loss is noticed", async || {
            history(&service, &id).await.contains(&"recording.lost".to_owned()).then_some(())
        })
        .await;
        service.recording_in(id.recording, "stored").await;
        assert_eq!(world.simulator.counts(id.recording).fetches, 2);
        let (bytes, _) = world.store(&service).object(&key).await;
        assert_eq!(bytes, speech_mp3());
        assert_eq!(history(&service, &id).await.iter().filter(|kind| *kind == "recording.stored").count(), 2);
        nothing_is_owed(&world, &id).await;
        assert_eq!(metric(&service, "callvault_rechecks_total{outcome=\"lost\"}").await, 1);
    }

    async fn other_bytes_that_a_listener_meets_are_fetched_again(world: World) {
        let service = world.start().await;
        let (id, key) = stored(&world, &service, 1).await;
        let store = world.store(&service);
        let mut rotten = speech_mp3().to_vec();
        rotten[100] ^= 1;
        put(&store, &key, &rotten, attributes(&id, 1, &speech_mp3(), 1)).await;
        let listening = service.request(Method::GET, &format!("/v1/recordings/{}/content", id.recording)).send().await;
        if let Ok(answer) = listening {
            let _ = answer.bytes().await;
        }
        eventually("it is whole again", async || (store.object(&key).await.0 == speech_mp3()).then_some(())).await;
        service.recording_in(id.recording, "stored").await;
        assert!(history(&service, &id).await.contains(&"recording.lost".to_owned()));
        assert_eq!(world.simulator.counts(id.recording).fetches, 2);
    }

    async fn only_what_this_service_wrote_and_no_row_names_is_removed(world: World) {
        let service = world.start().await;
        let (id, key) = stored(&world, &service, 1).await;
        let (_, neighbour) = stored(&world, &service, 2).await;
        let store = world.store(&service);
        let extra = format!("{}/{}.wav", folder(1), Digest::of(b"extra"));
        plant(&store, &extra, Some(ACCOUNT), b"extra".to_vec()).await;
        let stays = [format!("{}/notes.txt", folder(1)), format!("{}/{}.mp3", folder(1), Digest::of(b"theirs"))];
        plant(&store, &stays[0], None, b"a note".to_vec()).await;
        plant(&store, &stays[1], Some(&format!("AC{}", "9".repeat(32))), b"theirs".to_vec()).await;
        // Staged by the only attempt, and an upload of which nobody was told the id.
        plant(&store, &staging(&id, 1), None, b"staged".to_vec()).await;
        store.s3.create_multipart(&Path::from(staging(&id, 1))).await.unwrap();
        owe(&world, &id).await;
        nothing_is_owed(&world, &id).await;
        let mut keys = vec![key, neighbour];
        keys.extend(stays);
        keys.sort();
        nothing_is_left_over(&world, &service, &keys).await;
        for kind in ["object", "staged", "upload"] {
            assert_eq!(metric(&service, &format!("callvault_recheck_removed_total{{kind=\"{kind}\"}}")).await, 1, "{kind}");
        }
    }

    async fn a_whole_object_of_what_was_given_up_is_adopted_and_no_other(world: World) {
        world.set("CALLVAULT_NOT_READY_FOR", "1ms");
        let service = world.start().await;
        let (whole, broken) = (failed(&world, &service, 1).await, failed(&world, &service, 2).await);
        let store = world.store(&service);
        let digest = Digest::of(&speech_wav());
        let key = format!("{}/{digest}.wav", folder(1));
        plant(&store, &key, Some(ACCOUNT), speech_wav().to_vec()).await;
        for number in [1, 2] {
            let wrong = format!("{}/{}.mp3", folder(number), Digest::of(b"what it is not"));
            plant(&store, &wrong, Some(ACCOUNT), b"rotten".to_vec()).await;
        }
        owe(&world, &whole).await;
        owe(&world, &broken).await;
        let shown = service.recording_in(whole.recording, "stored").await;
        assert_eq!((&shown["sha256"], &shown["key"]), (&digest.to_string().into(), &key.clone().into()));
        assert_eq!((&shown["size_bytes"], &shown["format"]), (&speech_wav().len().into(), &"wav".into()));
        let (bytes, _) = service.play(&format!("/v1/calls/{}/audio", call_sid(1))).await;
        assert_eq!(bytes, speech_wav());
        assert_eq!(world.simulator.counts(whole.recording).fetches, 0);
        nothing_is_owed(&world, &whole).await;
        nothing_is_owed(&world, &broken).await;
        service.recording_in(broken.recording, "failed").await;
        assert_eq!(store.keys().await, [key]);
    }

    async fn what_lies_there_for_a_recording_on_its_way_is_kept(world: World) {
        world.set("CALLVAULT_RETRY_BASE", "1h");
        world.set("CALLVAULT_RETRY_CAP", "1h");
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::NotReady));
        service.deliver(&world.callback(id.recording)).await;
        eventually("it waits for its next attempt", async || {
            (count(&world, &id, "state = 'pending' AND attempts = 1").await == 1).then_some(())
        })
        .await;
        let store = world.store(&service);
        let key = format!("{}/{}.wav", folder(1), Digest::of(b"perhaps the only copy"));
        plant(&store, &key, Some(ACCOUNT), b"perhaps the only copy".to_vec()).await;
        plant(&store, &staging(&id, 1), None, b"staged".to_vec()).await;
        owe(&world, &id).await;
        eventually("it was looked at", async || {
            (count(&world, &id, "recheck_due_at > 1 AND duty_until IS NULL").await == 1).then_some(())
        })
        .await;
        assert_eq!(store.keys().await, [key]);
    }

    async fn what_a_node_that_was_cut_off_left_is_cleared_away(world: World) {
        world.set("CALLVAULT_RECHECK_AFTER", "1s");
        let first = world.start().await;
        let id = recording_id(1);
        let mut recording = SimulatedRecording::speech(id, call_sid(1), started_at());
        recording.audio = Audio::made_up_wav(40 << 20, 7);
        let digest = recording.audio.wav.as_ref().unwrap().digest();
        world.simulator.add(recording);
        world.simulator.script(id.recording, [Fault::Held(30 << 20)]);
        first.deliver(&world.callback(id.recording)).await;
        eventually("parts were uploaded", async || has_parts(&world, &first).await.then_some(())).await;
        // As if it had written more than it was answered for.
        let store = world.store(&first);
        store.s3.create_multipart(&Path::from(staging(&id, 1))).await.unwrap();
        plant(&store, &format!("{}/{}.mp3", folder(1), Digest::of(b"extra")), Some(ACCOUNT), b"extra".to_vec()).await;
        let second = match world.parts {
            Parts::Servers => {
                first.signal("STOP");
                world.start().await
            }
            Parts::Embedded => {
                first.kill();
                world.start_on(first.port, debug_binary()).await
            }
        };
        second.recording_in(id.recording, "stored").await;
        nothing_is_owed(&world, &id).await;
        let key = format!("{}/{digest}.wav", folder(1));
        nothing_is_left_over(&world, &second, std::slice::from_ref(&key)).await;

        if world.parts == Parts::Servers {
            // It wakes after all was cleared away, and one more request of it arrives.
            store.s3.create_multipart(&Path::from(staging(&id, 1))).await.unwrap();
            first.signal("CONT");
            world.simulator.release(id.recording);
            eventually("it finds that it lost its lease", async || {
                (metric(&first, "callvault_fetches_total{outcome=\"lost\"}").await == 1).then_some(())
            })
            .await;
            nothing_is_owed(&world, &id).await;
            nothing_is_left_over(&world, &second, &[key]).await;
        }
        assert_eq!(world.simulator.counts(id.recording).fetches, 2);
        assert_eq!(history(&second, &id).await.iter().filter(|kind| *kind == "recording.stored").count(), 1);
    }

    async fn a_stop_gives_a_recheck_back(world: World) {
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        // Long enough under way to be met by the stop: each epoch is asked for.
        sql(&world, format!("UPDATE recordings SET epoch = 100000, recheck_due_at = 1 WHERE recording_sid = '{}'", id.recording))
            .await;
        eventually("it is being looked at", async || (count(&world, &id, "duty_until > 0").await == 1).then_some(())).await;
        service.signal("TERM");
        assert_eq!(service.end().await.code(), Some(0));
        assert_eq!(count(&world, &id, "duty_until IS NULL AND recheck_due_at > 1").await, 1);
    }
}

/// Passes bytes on to the store. While it is told to, it lets every put of an
/// object through, and breaks the connection instead of passing on the answer.
async fn broken_link(upstream: String, answers_are_lost: Arc<AtomicBool>) -> u16 {
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (upstream, answers_are_lost) = (upstream.clone(), answers_are_lost.clone());
            tokio::spawn(async move {
                let mut store = TcpStream::connect(upstream).await.unwrap();
                let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
                let mut lose = false;
                loop {
                    tokio::select! {
                        read = client.read(&mut asked) => {
                            let Ok(len @ 1..) = read else { return };
                            let is_object = asked.starts_with(b"PUT ") && asked[..len.min(100)].windows(3).any(|at| at == b"/CA");
                            lose |= is_object && answers_are_lost.load(Ordering::Relaxed);
                            store.write_all(&asked[..len]).await.unwrap();
                        }
                        read = store.read(&mut answered) => {
                            let Ok(len @ 1..) = read else { return };
                            if lose || client.write_all(&answered[..len]).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_without_an_answer_is_looked_at_again() {
    let mut world = World::new(Parts::Servers).await;
    let upstream = world.settings["CALLVAULT_S3_ENDPOINT"].trim_start_matches("http://").to_owned();
    let answers_are_lost = Arc::new(AtomicBool::new(true));
    let port = broken_link(upstream, answers_are_lost.clone()).await;
    world.set("CALLVAULT_S3_ENDPOINT", format!("http://127.0.0.1:{port}"));
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    let service = world.start().await;
    let id = world.record(1);
    service.deliver(&world.callback(id.recording)).await;
    eventually("a recheck is owed", async || {
        (count(&world, &id, "recheck_due_at > 1 AND error_code = 'store_error'").await == 1).then_some(())
    })
    .await;
    answers_are_lost.store(false, Ordering::Relaxed);
    let shown = service.recording_in(id.recording, "stored").await;
    nothing_is_owed(&world, &id).await;
    assert_eq!(world.store(&service).keys().await, [shown["key"].as_str().unwrap()]);
}

/// Somebody moves all below a prefix, and sets it before the rows know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_moved_below_another_prefix_is_not_removed_for_rows_that_name_the_old_keys() {
    let mut world = World::new(Parts::Servers).await;
    let service = world.start().await;
    let (id, key) = stored(&world, &service, 1).await;
    service.kill();
    let store = world.real_store();
    let (bytes, attributes) = store.object(&key).await;
    let moved = format!("calls/{key}");
    put(&store, &moved, &bytes, attributes).await;
    world.set("CALLVAULT_BUCKET_URL", format!("s3://{}/calls", world.bucket()));
    let service = world.start().await;
    owe(&world, &id).await;
    nothing_is_owed(&world, &id).await;
    assert_eq!(store.keys().await, [key, moved]);
    service.recording_in(id.recording, "stored").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_is_not_answered_keeps_the_recording_at_rest() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_NOT_READY_FOR", "1ms");
    let node = Node::start(&world).await;
    let id = failed(&world, &node, 1).await;
    let key = format!("{}/{}.mp3", folder(1), Digest::of(b"what it is not"));
    plant(&world.real_store(), &key, Some(ACCOUNT), b"rotten".to_vec()).await;
    node.store.rule(Rule::on("DELETE /", Act::Hold));
    owe(&world, &id).await;
    node.store.acts().await;
    node.signal("TERM");
    assert_eq!(node.end().await.code(), Some(0));

    // The delete is on its way: until the store refuses it, nobody may write there.
    assert_eq!(count(&world, &id, "duty_until > (SELECT now_ms FROM clock) + 60000").await, 1);
    let other = world.start().await;
    world.simulator.always(id.recording, None);
    let again = other.request(reqwest::Method::POST, &format!("/v1/recordings/{}/fetch", id.recording));
    assert_eq!(again.send().await.unwrap().status(), reqwest::StatusCode::ACCEPTED);
    // Another one, which is asked for later, comes first.
    stored(&world, &other, 2).await;
    assert_eq!(count(&world, &id, "state = 'pending' AND attempts = 1").await, 1);
    // Nobody has to wait for two minutes here.
    sql(&world, format!("UPDATE recordings SET duty_until = 1 WHERE recording_sid = '{}'", id.recording)).await;
    other.recording_in(id.recording, "stored").await;
}
