//! Encrypted recordings: stored as audio once the tag was checked, and never before.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use callvault::domain::digest::Digest;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{Audio, Fault, SimulatedEncryption, SimulatedRecording, speech_mp3};
use reqwest::{Method, StatusCode};

use crate::evict::{evict_soon, evictions};
use crate::support::eventually;
use crate::support::servers::free_port;
use crate::support::world::{ACCOUNT, AUTH_TOKEN, Parts, World, call_sid, debug_binary, recording_id, started_at};

/// A pair of keys, the private one in a file.
pub struct Pair {
    sid: String,
    public_key: Vec<u8>,
    pub path: String,
}

pub fn pair(world: &World, letter: &str, size: KeySize) -> Pair {
    let key = PrivateDecryptingKey::generate(size).unwrap();
    let der = AsDer::as_der(&key).unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(der.as_ref()));
    let path = world.folder().join(format!("{letter}.pem"));
    std::fs::write(&path, pem).unwrap();
    let public_key = key.public_key();
    let public_key: PublicKeyX509Der<'_> = public_key.as_der().unwrap();
    let path = path.to_str().unwrap().to_owned();
    Pair { sid: format!("CR{}", letter.repeat(32)), public_key: public_key.as_ref().to_vec(), path }
}

/// Gives every service these keys.
pub fn configure(world: &mut World, pairs: &[&Pair]) {
    let keys: Vec<String> = pairs.iter().map(|pair| format!("{} = \"{}\"", pair.sid, pair.path)).collect();
    let text = format!(
        "[[accounts]]\nsid = \"{ACCOUNT}\"\nauth_token = \"{AUTH_TOKEN}\"\nprivate_keys = {{ {} }}\n",
        keys.join(", ")
    );
    let path = world.folder().join("keys.toml");
    std::fs::write(&path, text).unwrap();
    world.set("CALLVAULT_CONFIG", path.to_str().unwrap());
    world.settings.remove("CALLVAULT_TWILIO_ACCOUNT_SID");
    world.settings.remove("CALLVAULT_TWILIO_AUTH_TOKEN");
}

pub fn encryption(pair: &Pair, number: u32) -> SimulatedEncryption {
    let key = Digest::of(&number.to_be_bytes());
    // Twilio does not say how long an IV is.
    let iv = if number.is_multiple_of(2) { &key.as_bytes()[..12] } else { &key.as_bytes()[..16] };
    SimulatedEncryption::new(&pair.sid, &pair.public_key, *key.as_bytes(), iv).unwrap()
}

pub fn record(world: &World, number: u32, audio: Audio, encryption: Option<SimulatedEncryption>) -> RecordingId {
    let id = recording_id(number);
    world.simulator.add(SimulatedRecording {
        audio,
        encryption,
        ..SimulatedRecording::speech(id, call_sid(number), started_at())
    });
    id
}

/// Larger than what one put takes.
fn large(number: u32) -> Audio {
    Audio::made_up_wav((17 << 20) + 13, number.into())
}

on_all_parts! {
    async fn each_is_opened_with_its_key_and_plain_ones_are_taken_as_they_are(world: World) {
        let (small, big) = (pair(&world, "a", KeySize::Rsa2048), pair(&world, "b", KeySize::Rsa4096));
        configure(&mut world, &[&small, &big]);
        // Each is fetched once, as long as no lease runs out on a busy machine.
        world.set("CALLVAULT_LEASE", "1m");
        let service = world.start().await;
        let digest = |audio: &Audio| audio.wav.as_ref().unwrap().digest();
        let speech = Digest::of(&speech_mp3());
        // Twilio names one key and has taken the other, as after error 16107.
        let rotated = encryption(&big, 5).named(&small.sid);
        let unknown_sid = encryption(&small, 6).named("CR0");
        let recordings = [
            (record(&world, 1, Audio::speech(), Some(encryption(&small, 1))), speech),
            (record(&world, 2, Audio::speech(), Some(encryption(&big, 2))), speech),
            (record(&world, 3, large(3), Some(encryption(&big, 3))), digest(&large(3))),
            (record(&world, 4, Audio::speech(), None), speech),
            (record(&world, 5, Audio::speech(), Some(rotated)), speech),
            (record(&world, 6, Audio::speech(), Some(unknown_sid)), speech),
        ];
        for (id, _) in &recordings {
            service.deliver(&world.callback(id.recording)).await;
        }
        for (id, digest) in &recordings {
            let shown = service.recording_in(id.recording, "stored").await;
            assert_eq!(shown["sha256"], digest.to_string());
            let (audio, _) = service.play(&format!("/v1/recordings/{}/audio", id.recording)).await;
            assert_eq!(Digest::of(&audio), *digest, "{id}");
            let counts = world.simulator.counts(id.recording);
            assert_eq!((counts.fetches, counts.descriptions), (1, 1), "{id}");
        }
    }

    async fn what_was_altered_is_never_stored(world: World) {
        let pair = pair(&world, "a", KeySize::Rsa2048);
        configure(&mut world, &[&pair]);
        world.set("CALLVAULT_LEASE", "1m");
        let service = world.start().await;
        let whole = Audio::speech().mp3.unwrap().len_bytes();
        let spoilt = |number, at| Some(encryption(&pair, number).spoilt_at(at));
        let recordings = [
            // The first byte of the audio, one in its middle, the last of the tag.
            record(&world, 1, Audio::speech(), spoilt(1, 0)),
            record(&world, 2, Audio::speech(), spoilt(2, whole / 2)),
            record(&world, 3, Audio::speech(), spoilt(3, whole + 15)),
            // Far behind what was staged already.
            record(&world, 4, large(4), spoilt(4, 17 << 20)),
        ];
        for id in &recordings {
            service.deliver(&world.callback(id.recording)).await;
        }
        for id in &recordings {
            let shown = service.recording_in(id.recording, "failed").await;
            assert_eq!(shown["last_error"]["code"], "decryption_failed", "{shown}");
            assert_eq!((&shown["attempts"], &shown["sha256"]), (&1.into(), &serde_json::Value::Null));
            // Twilio says it once more: that changes nothing.
            service.deliver(&world.callback(id.recording).with("RecordingDuration", "7")).await;
            assert_eq!(service.get(&format!("/v1/recordings/{}/audio", id.recording)).await.status(), StatusCode::FAILED_DEPENDENCY);
        }
        let store = world.store(&service);
        eventually("nothing is left of them", async || store.keys().await.is_empty().then_some(())).await;
    }

    async fn a_missing_key_fails_clearly_and_is_retried_by_hand_once_it_is_there(world: World) {
        let (old, new) = (pair(&world, "a", KeySize::Rsa2048), pair(&world, "b", KeySize::Rsa2048));
        let id = record(&world, 1, Audio::speech(), Some(encryption(&new, 1)));
        // At first there are no keys at all, then another one.
        let service = world.start().await;
        service.deliver(&world.callback(id.recording)).await;
        let shown = service.recording_in(id.recording, "failed").await;
        assert_eq!(shown["last_error"]["code"], "decryption_failed", "{shown}");
        assert!(shown["last_error"]["detail"].as_str().unwrap().contains(&new.sid), "{shown}");
        drop(service);

        for (keys, state) in [(vec![&old], "failed"), (vec![&old, &new], "stored")] {
            configure(&mut world, &keys);
            let service = world.start().await;
            let again = service.request(Method::POST, &format!("/v1/recordings/{}/fetch", id.recording));
            assert_eq!(again.send().await.unwrap().status(), StatusCode::ACCEPTED);
            let shown = service.recording_in(id.recording, state).await;
            assert_eq!(shown["last_error"].is_null(), state == "stored", "{shown}");
            drop(service);
        }
    }

    async fn what_no_key_opens_any_more_is_not_evicted(world: World) {
        let (old, new) = (pair(&world, "a", KeySize::Rsa2048), pair(&world, "b", KeySize::Rsa2048));
        configure(&mut world, &[&old]);
        let id = record(&world, 1, Audio::speech(), Some(encryption(&old, 1)));
        let service = world.start().await;
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        drop(service);

        configure(&mut world, &[&new]);
        evict_soon(&mut world);
        let service = world.start().await;
        eventually("it is kept", async || (evictions(&service, "kept").await >= 1).then_some(())).await;
        assert!(service.log().contains(&old.sid), "people are told which key is missing");
        let (audio, _) = service.play(&format!("/v1/recordings/{}/audio", id.recording)).await;
        assert_eq!(audio, speech_mp3());
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
        drop(service);

        configure(&mut world, &[&new, &old]);
        let service = world.start().await;
        service.recording_in(id.recording, "evicted").await;
    }

    async fn an_error_page_instead_of_an_encrypted_body_passes(world: World) {
        let pair = pair(&world, "a", KeySize::Rsa2048);
        configure(&mut world, &[&pair]);
        let id = record(&world, 1, Audio::speech(), Some(encryption(&pair, 1)));
        world.simulator.script(id.recording, [Fault::Html, Fault::Json, Fault::Truncated(5000), Fault::Crumbs(7)]);
        let service = world.start().await;
        service.deliver(&world.callback(id.recording)).await;
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!((&shown["sha256"], &shown["attempts"]), (&Digest::of(&speech_mp3()).to_string().into(), &4.into()));
    }

    async fn nobody_hears_it_before_its_tag_was_checked(world: World) {
        let pair = pair(&world, "a", KeySize::Rsa2048);
        configure(&mut world, &[&pair]);
        let (sealed, plain) = (record(&world, 1, Audio::speech(), Some(encryption(&pair, 1))), record(&world, 2, Audio::speech(), None));
        let service = world.start().await;
        for id in [sealed, plain] {
            world.simulator.script(id.recording, [Fault::Held(10_000)]);
            service.deliver(&world.callback(id.recording)).await;
        }
        // The plain one flows while it is fetched, though the account has keys.
        let heard = service.get(&format!("/v1/recordings/{}/content?wait=30", plain.recording)).await;
        assert_eq!(heard.status(), StatusCode::OK);
        let silent = service.get(&format!("/v1/recordings/{}/content?wait=1", sealed.recording)).await;
        assert_eq!(silent.status(), StatusCode::NOT_FOUND);
        world.simulator.release(plain.recording);
        world.simulator.release(sealed.recording);
        assert_eq!(heard.bytes().await.unwrap(), speech_mp3());
        let whole = service.get(&format!("/v1/recordings/{}/content?wait=30", sealed.recording)).await;
        assert_eq!(whole.bytes().await.unwrap(), speech_mp3());
    }
}

#[tokio::test]
async fn a_file_that_is_no_private_key_is_refused_at_the_start() {
    let mut world = World::new(Parts::Embedded).await;
    let path = world.folder().join("wrong.pem");
    std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    world.set("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", path.to_str().unwrap());
    let service = world.start_unready(free_port(), debug_binary());
    assert_eq!(service.end().await.code(), Some(2));
    assert!(service.log().contains("CALLVAULT_TWILIO_PRIVATE_KEY_FILE"), "{}", service.log());
    assert!(service.log().contains("RSA"), "{}", service.log());
}
