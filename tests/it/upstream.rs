//! What Twilio does on a bad day: nothing but whole audio is ever stored.

use std::time::Duration;

use callvault::domain::digest::Digest;
use callvault::twilio::simulator::{Audio, Fault, SimulatedRecording, speech_mp3};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::eventually;
use crate::support::world::{Parts, World, call_sid, recording_id, started_at};

on_all_parts! {
    async fn no_broken_body_is_stored_and_the_next_whole_one_is(world: World) {
        let service = world.start().await;
        let half = speech_mp3().len() as u64 / 2;
        let faults = [
            (Fault::NotReady, "not_ready"),
            (Fault::RateLimited { retry_after: None }, "rate_limited"),
            (Fault::Status(500), "upstream_error"),
            (Fault::Status(503), "upstream_error"),
            (Fault::Html, "not_audio"),
            (Fault::Xml, "not_audio"),
            (Fault::Json, "not_audio"),
            (Fault::Empty, "empty"),
            (Fault::Truncated(half), "truncated"),
            (Fault::Truncated(0), "truncated"),
            (Fault::Reset(half), "truncated"),
            (Fault::Unframed, "truncated"),
        ];
        for (number, (fault, _)) in (1..).zip(&faults) {
            let id = world.record(number);
            world.simulator.always(id.recording, Some(fault.clone()));
            service.deliver(&world.callback(id.recording)).await;
        }
        for (number, (fault, code)) in (1..).zip(&faults) {
            let id = recording_id(number);
            let failed = eventually("two attempts have failed", async || {
                let (_, shown) = service.json(&format!("/v1/recordings/{}", id.recording)).await;
                assert_ne!(shown["state"], "stored", "{fault:?}");
                (shown["attempts"].as_i64() >= Some(2) && shown["last_error"].is_object()).then_some(shown)
            })
            .await;
            assert_eq!(failed["last_error"]["code"], *code, "{fault:?}: {failed}");
            assert!(!failed["last_error"]["detail"].as_str().unwrap().is_empty());
        }
        assert_eq!(world.store(&service).keys().await, Vec::<String>::new());
        for (number, (fault, _)) in (1..).zip(&faults) {
            let id = recording_id(number);
            world.simulator.always(id.recording, None);
            let shown = service.recording_in(id.recording, "stored").await;
            assert_eq!(shown["sha256"], Digest::of(&speech_mp3()).to_string(), "{fault:?}");
            assert_eq!(shown["last_error"], Value::Null);
        }
        assert_eq!(world.store(&service).keys().await.len(), faults.len());
    }

    async fn whole_bodies_are_taken_however_they_come(world: World) {
        let service = world.start().await;
        let faults = [
            Fault::Chunked,
            Fault::Slow { piece_bytes: 1000, wait: Duration::from_millis(1) },
            Fault::RedirectToMediaHost(1),
            Fault::RedirectToMediaHost(5),
        ];
        for (number, fault) in (1..).zip(faults) {
            let id = world.record(number);
            world.simulator.script(id.recording, [fault.clone()]);
            service.deliver(&world.callback(id.recording)).await;
            let shown = service.recording_in(id.recording, "stored").await;
            assert_eq!(shown["attempts"], 1, "{fault:?}");
            assert_eq!(shown["sha256"], Digest::of(&speech_mp3()).to_string());
        }
    }

    async fn a_retry_after_is_waited_for_even_when_someone_asks(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.script(id.recording, [Fault::RateLimited { retry_after: Some("3600".to_owned()) }]);
        service.deliver(&world.callback(id.recording)).await;
        eventually("the attempt has failed", async || {
            let shown = service.recording_in(id.recording, "pending").await;
            shown["last_error"].is_object().then_some(())
        })
        .await;
        let answer = service.get(&format!("/v1/calls/{}/audio?wait=0", call_sid(1))).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        let shown = service.recording_in(id.recording, "pending").await;
        let next: jiff::Timestamp = shown["next_attempt_at"].as_str().unwrap().parse().unwrap();
        let failed: jiff::Timestamp = shown["last_error"]["at"].as_str().unwrap().parse().unwrap();
        assert!(next.duration_since(failed).as_secs() >= 3599, "{shown}");
        assert_eq!(world.simulator.counts(id.recording).media_requests, 1);
    }

    async fn patience_ends_and_can_be_renewed_by_hand(world: World) {
        world.set("CALLVAULT_NOT_READY_FOR", "400ms");
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::Html));
        service.deliver(&world.callback(id.recording)).await;
        let failed = service.recording_in(id.recording, "failed").await;
        assert_eq!(failed["last_error"]["code"], "not_audio");
        let (status, problem) = service.json(&format!("/v1/recordings/{}/audio", id.recording)).await;
        assert_eq!((status, &problem["code"]), (StatusCode::FAILED_DEPENDENCY, &"recording_failed".into()));
        // A repeat of what was said before does not revive it.
        service.deliver(&world.callback(id.recording)).await;
        assert_eq!(service.recording_in(id.recording, "failed").await["state"], "failed");

        world.simulator.always(id.recording, None);
        let again = format!("/v1/recordings/{}/fetch", id.recording);
        let answer = service.request(Method::POST, &again).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        service.recording_in(id.recording, "stored").await;
        let answer = service.request(Method::POST, &again).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(world.simulator.counts(id.recording).fetches, failed["attempts"].as_u64().unwrap() + 1);
    }

    async fn what_is_too_large_fails_at_once(world: World) {
        world.set("CALLVAULT_MAX_RECORDING_SIZE", "100KiB");
        let service = world.start().await;
        for (number, fault) in [(1, None), (2, Some(Fault::Chunked))] {
            let id = recording_id(number);
            let mut recording = SimulatedRecording::speech(id, call_sid(number), started_at());
            recording.audio = Audio::made_up_wav(200 << 10, 7);
            world.simulator.add(recording);
            world.simulator.always(id.recording, fault);
            service.deliver(&world.callback(id.recording)).await;
            let failed = service.recording_in(id.recording, "failed").await;
            assert_eq!(failed["last_error"]["code"], "too_large");
            assert_eq!(failed["attempts"], 1);
        }
        assert_eq!(world.store(&service).keys().await, Vec::<String>::new());
    }
}
