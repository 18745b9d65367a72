//! Ends that come without warning.

use callvault::domain::digest::Digest;
use callvault::twilio::simulator::{Audio, Fault, SimulatedRecording, speech_mp3};
use reqwest::StatusCode;

use crate::recheck::sql;
use crate::support::cluster::{Node, add_large};
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::world::{Parts, Service, World, call_sid, debug_binary, recording_id, started_at};

/// Nothing staged, no open upload: what lies in the bucket is what rows name.
pub async fn nothing_is_left_over(world: &World, service: &Service, keys: &[String]) {
    let store = world.store(service);
    assert_eq!(store.keys().await, keys);
    match world.parts {
        Parts::Servers => {
            let uploads = store.open_uploads(&world.http).await;
            assert!(!uploads.contains("<Upload>"), "{uploads}");
        }
        Parts::Embedded => {
            let folder = world.folder().join("callvault-data/objects");
            let left: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.contains("upload"))
                .collect();
            assert_eq!(left, Vec::<String>::new());
        }
    }
}

on_all_parts! {
    async fn what_was_acknowledged_arrives_after_a_kill(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::NotReady));
        assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
        service.kill();
        world.simulator.always(id.recording, None);
        let service = world.start_on(service.port, debug_binary()).await;
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!(shown["sha256"], Digest::of(&speech_mp3()).to_string());
    }

    async fn a_kill_in_the_middle_of_a_large_upload_leaves_no_trace(world: World) {
        let service = world.start().await;
        let id = recording_id(1);
        let mut recording = SimulatedRecording::speech(id, call_sid(1), started_at());
        recording.audio = Audio::made_up_wav(40 << 20, 7);
        let digest = recording.audio.wav.as_ref().unwrap().digest();
        world.simulator.add(recording);
        // The first attempt waits when 30 of 40 MiB have come: parts have been sent by then.
        world.simulator.script(id.recording, [Fault::Held(30 << 20)]);
        service.deliver(&world.callback(id.recording)).await;
        eventually("parts were uploaded", async || has_parts(&world, &service).await.then_some(())).await;
        service.kill();

        let service = world.start_on(service.port, debug_binary()).await;
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!(shown["sha256"], digest.to_string());
        assert_eq!(shown["size_bytes"], 40 << 20);
        let key = format!("{}/{}/{digest}.wav", call_sid(1), id.recording);
        let (bytes, attributes) = world.store(&service).object(&key).await;
        assert_eq!(Digest::of(&bytes), digest);
        let metadata = attributes.get(&object_store::Attribute::Metadata("sha256".into()));
        assert_eq!(metadata.map(|value| value.to_string()), Some(digest.to_string()));
        let content_type = attributes.get(&object_store::Attribute::ContentType);
        assert_eq!(content_type.map(|value| value.to_string()).as_deref(), Some("audio/wav"));
        nothing_is_left_over(&world, &service, &[key]).await;
    }

    async fn a_kill_after_the_upload_was_completed_leaves_no_trace(world: World) {
        let service = world.start().await;
        let id = recording_id(1);
        let mut recording = SimulatedRecording::speech(id, call_sid(1), started_at());
        recording.audio = Audio::made_up_wav(100 << 20, 7);
        let digest = recording.audio.wav.as_ref().unwrap().digest();
        world.simulator.add(recording);
        service.deliver(&world.callback(id.recording)).await;
        // From here on the copy to the key is under way, or what was staged is being removed.
        let store = world.store(&service);
        eventually("the upload was completed", async || {
            store.keys().await.iter().any(|key| key.contains(".staging")).then_some(())
        })
        .await;
        service.kill();

        let service = world.start_on(service.port, debug_binary()).await;
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!(shown["sha256"], digest.to_string());
        let key = format!("{}/{}/{digest}.wav", call_sid(1), id.recording);
        let (bytes, _) = world.store(&service).object(&key).await;
        assert_eq!(Digest::of(&bytes), digest);
        nothing_is_left_over(&world, &service, &[key]).await;
    }

    async fn a_stop_under_load_begins_nothing_new_and_keeps_no_lease(world: World) {
        world.set("CALLVAULT_FETCH_CONCURRENCY", "2");
        world.set("CALLVAULT_SHUTDOWN_TIMEOUT", "8s");
        world.set("CALLVAULT_LEASE", "10m");
        let service = world.start().await;
        for number in 1..=30 {
            let id = world.record(number);
            // Each takes about a second.
            let piece_bytes = speech_mp3().len() / 10;
            world.simulator.always(id.recording, Some(Fault::Slow { piece_bytes, wait: std::time::Duration::from_millis(100) }));
            service.deliver(&world.callback(id.recording)).await;
        }
        eventually("fetches have begun", async || (world.simulator.fetches() >= 2).then_some(())).await;
        service.signal("TERM");
        eventually("the service has begun to stop", async || service.log().contains("stopping").then_some(())).await;
        let begun = world.simulator.fetches();
        assert_eq!(service.end().await.code(), Some(0));
        // What was claimed when the signal came may still have asked.
        assert!(world.simulator.fetches() <= begun + 2, "{} after {begun}", world.simulator.fetches());

        (1..=30).for_each(|number| world.simulator.always(recording_id(number).recording, None));
        let service = world.start_on(service.port, debug_binary()).await;
        for number in 1..=30 {
            // A lease that was kept would hold its recording for ten minutes.
            service.recording_in(recording_id(number).recording, "stored").await;
        }
    }

    async fn a_large_recording_is_staged_and_copied_whole(world: World) {
        let service = world.start().await;
        // Around the sizes at which the way of writing changes.
        for (number, size) in (1..).zip([16 << 20, (16 << 20) + 1, (24 << 20) - 1, 24 << 20]) {
            let id = recording_id(number);
            let mut recording = SimulatedRecording::speech(id, call_sid(number), started_at());
            recording.audio = Audio::made_up_wav(size, u64::from(number));
            let digest = recording.audio.wav.as_ref().unwrap().digest();
            world.simulator.add(recording);
            service.deliver(&world.callback(id.recording)).await;
            let shown = service.recording_in(id.recording, "stored").await;
            assert_eq!((&shown["sha256"], &shown["size_bytes"]), (&digest.to_string().into(), &size.into()));
            let (bytes, attributes) = world.store(&service).object(shown["key"].as_str().unwrap()).await;
            assert_eq!(Digest::of(&bytes), digest);
            let cache = attributes.get(&object_store::Attribute::CacheControl);
            assert_eq!(cache.map(|value| value.to_string()).as_deref(), Some("private, max-age=31536000, immutable"));
        }
        let mut keys = world.store(&service).keys().await;
        keys.retain(|key| key.contains(".staging"));
        assert_eq!(keys, Vec::<String>::new());
    }

    async fn a_failed_large_upload_is_cleared_away_at_once(world: World) {
        world.set("CALLVAULT_NOT_READY_FOR", "1ms");
        let service = world.start().await;
        let id = recording_id(1);
        let mut recording = SimulatedRecording::speech(id, call_sid(1), started_at());
        recording.audio = Audio::made_up_wav(40 << 20, 7);
        let digest = recording.audio.wav.as_ref().unwrap().digest();
        world.simulator.add(recording);
        world.simulator.script(id.recording, [Fault::Truncated(30 << 20)]);
        service.deliver(&world.callback(id.recording)).await;
        let failed = service.recording_in(id.recording, "failed").await;
        assert_eq!((&failed["attempts"], &failed["last_error"]["code"]), (&1.into(), &"truncated".into()));
        nothing_is_left_over(&world, &service, &[]).await;

        let again = service.request(reqwest::Method::POST, &format!("/v1/recordings/{}/fetch", id.recording));
        assert_eq!(again.send().await.unwrap().status(), StatusCode::ACCEPTED);
        service.recording_in(id.recording, "stored").await;
        nothing_is_left_over(&world, &service, &[format!("{}/{}/{digest}.wav", call_sid(1), id.recording)]).await;
    }

    async fn a_stop_hands_back_what_is_not_done(world: World) {
        world.set("CALLVAULT_SHUTDOWN_TIMEOUT", "4s");
        world.set("CALLVAULT_LEASE", "10m");
        let service = world.start().await;
        let id = recording_id(1);
        let mut recording = SimulatedRecording::speech(id, call_sid(1), started_at());
        recording.audio = Audio::made_up_wav(40 << 20, 7);
        let digest = recording.audio.wav.as_ref().unwrap().digest();
        world.simulator.add(recording);
        world.simulator.script(id.recording, [Fault::Held(30 << 20)]);
        service.deliver(&world.callback(id.recording)).await;
        eventually("parts were uploaded", async || has_parts(&world, &service).await.then_some(())).await;
        service.signal("TERM");
        assert_eq!(service.end().await.code(), Some(0));

        // The lease would run for ten minutes: it was handed back.
        let service = world.start_on(service.port, debug_binary()).await;
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!(shown["attempts"], 2);
        nothing_is_left_over(&world, &service, &[format!("{}/{}/{digest}.wav", call_sid(1), id.recording)]).await;
    }

    async fn a_stop_lets_what_is_under_way_end(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.script(id.recording, [Fault::Held(1000)]);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "fetching").await;
        service.signal("TERM");
        eventually("the service has begun to stop", async || {
            service.log().contains("stopping").then_some(())
        })
        .await;
        world.simulator.release(id.recording);
        assert_eq!(service.end().await.code(), Some(0));
        let service = world.start_on(service.port, debug_binary()).await;
        assert_eq!(service.recording_in(id.recording, "stored").await["attempts"], 1);
    }
}

/// The store opened two that no row can name; the third one is used.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_creation_was_not_answered_is_cleared_away() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    let node = Node::start(&world).await;
    node.store.rule(Rule::on("?uploads", Act::LoseAnswer).times(2));
    let (id, digest) = add_large(&world, 1);
    node.deliver(&world.callback(id.recording)).await;
    let shown = node.recording_in(id.recording, "stored").await;
    assert_eq!((&shown["sha256"], &shown["attempts"]), (&digest.to_string().into(), &1.into()));
    assert!(node.store.has_acted());
    let store = world.store(&node);
    eventually("no upload is open", async || {
        (!store.open_uploads(&world.http).await.contains("<Upload>")).then_some(())
    })
    .await;
    nothing_is_left_over(&world, &node, &[shown["key"].as_str().unwrap().to_owned()]).await;
}

/// The row never came to name it, and there was no time to clear it away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_a_stop_kept_from_being_named_is_cleared_away() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    world.set("CALLVAULT_SHUTDOWN_TIMEOUT", "4s");
    world.set("CALLVAULT_LEASE", "10m");
    let stopped = Node::start(&world).await;
    stopped.catalog.rule(Rule::on("SET upload_epoch = $3", Act::Hold));
    stopped.store.rule(Rule::on("uploadId=", Act::Hold).times(usize::MAX));
    let (id, digest) = add_large(&world, 1);
    stopped.deliver(&world.callback(id.recording)).await;
    stopped.catalog.acts().await;
    stopped.signal("TERM");
    assert_eq!(stopped.end().await.code(), Some(0));
    let store = world.store(&stopped);
    assert!(store.open_uploads(&world.http).await.contains("<Upload>"), "it was begun");

    let node = Node::start(&world).await;
    let shown = node.recording_in(id.recording, "stored").await;
    assert_eq!((&shown["sha256"], &shown["attempts"]), (&digest.to_string().into(), &2.into()));
    eventually("no upload is open", async || {
        (!store.open_uploads(&world.http).await.contains("<Upload>")).then_some(())
    })
    .await;
    nothing_is_left_over(&world, &node, &[shown["key"].as_str().unwrap().to_owned()]).await;
}

/// Whether parts of an upload lie in the store, or may: its id is in the row before the
/// first of them is sent. A node that is killed before that leaves it to the recheck.
pub async fn has_parts(world: &World, service: &Service) -> bool {
    match world.parts {
        Parts::Servers => {
            let known = sql(world, "SELECT count(*) FROM recordings WHERE upload_id IS NOT NULL".to_owned()).await;
            known > 0 && world.store(service).open_uploads(&world.http).await.contains("<Upload>")
        }
        Parts::Embedded => {
            let folder = world.folder().join("callvault-data/objects");
            let names = std::fs::read_dir(folder).unwrap();
            names.flatten().any(|entry| entry.file_name().to_string_lossy().contains(".part-"))
        }
    }
}
