//! The audio itself through the service: in whole and in parts, to all kinds of
//! clients, and never anything but the right bytes.

use std::process::{Command, Output};

use base64::Engine as _;
use callvault::domain::digest::Digest;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{Audio, Body, RestFault, SimulatedRecording, speech_mp3, speech_wav};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::eventually;
use crate::support::world::{ADMIN_KEY, Parts, Service, World, account, call_sid, recording_id, started_at};

async fn store_speech(world: &World, service: &Service) -> RecordingId {
    let id = world.record(1);
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;
    id
}

/// The same as WAV.
async fn store_wav(world: &World, service: &Service) -> RecordingId {
    let id = recording_id(2);
    let mut recording = SimulatedRecording::speech(id, call_sid(2), started_at());
    recording.audio = Audio { wav: Some(Body::Bytes(speech_wav())), ..Audio::default() };
    world.simulator.add(recording);
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;
    id
}

fn done(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let missing = "it is not installed: run `make test`, or tests/install-tools.sh";
    done(Command::new(program).args(args).output().unwrap_or_else(|_| panic!("{program}: {missing}")))
}

on_all_parts! {
    async fn the_whole_is_told_by_its_digest(world: World) {
        let service = world.start().await;
        let id = store_speech(&world, &service).await;
        let digest = Digest::of(&speech_mp3());
        let paths = [
            format!("/v1/recordings/{}/content", id.recording),
            format!("/v1/calls/{}/content", call_sid(1)),
            format!("/api/calls/{}/download", call_sid(1)),
        ];
        for path in &paths {
            let answer = service.get(path).await;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            let headers = answer.headers().clone();
            assert_eq!(headers["etag"], format!("\"{digest}\""));
            assert_eq!(headers["content-type"], "audio/mpeg");
            assert_eq!(headers["content-length"], speech_mp3().len().to_string());
            assert_eq!(headers["accept-ranges"], "bytes");
            assert_eq!(headers["cache-control"], "private, no-cache");
            let repr = format!("sha-256=:{}:", base64::engine::general_purpose::STANDARD.encode(digest.as_bytes()));
            assert_eq!(headers["repr-digest"], repr);
            let name = format!("2026-11-23 09.30 {}.mp3", call_sid(1));
            assert_eq!(headers["content-disposition"], format!("inline; filename=\"{name}\""));
            assert_eq!(answer.bytes().await.unwrap(), speech_mp3());

            let head = service.request(Method::HEAD, path).header("range", "bytes=0-9").send().await.unwrap();
            assert_eq!(head.status(), StatusCode::OK);
            for name in ["etag", "content-type", "content-length", "repr-digest", "last-modified", "accept-ranges"] {
                assert_eq!(head.headers()[name], headers[name], "{name}");
            }
            let named = service.get(&format!("{path}?disposition=attachment")).await;
            assert_eq!(named.headers()["content-disposition"], format!("attachment; filename=\"{name}\""));
        }
    }

    async fn parts_are_given_and_conditions_kept(world: World) {
        let service = world.start().await;
        let id = store_speech(&world, &service).await;
        let path = format!("/v1/recordings/{}/content", id.recording);
        let (audio, len) = (speech_mp3(), speech_mp3().len());
        for (range, first, last) in [
            ("bytes=0-0".to_owned(), 0, 0),
            ("bytes=100-199".to_owned(), 100, 199),
            (format!("bytes={}-", len - 10), len - 10, len - 1),
            ("bytes=-10".to_owned(), len - 10, len - 1),
            (format!("bytes=10-{}", len + 10), 10, len - 1),
        ] {
            let answer = service.request(Method::GET, &path).header("range", &range).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
            assert_eq!(answer.headers()["content-range"], format!("bytes {first}-{last}/{len}"));
            assert_eq!(answer.headers()["etag"], format!("\"{}\"", Digest::of(&audio)));
            assert!(answer.headers().contains_key("repr-digest"));
            assert_eq!(answer.bytes().await.unwrap(), audio.slice(first..=last), "{range}");
        }
        for range in [format!("bytes={len}-"), "bytes=-0".to_owned()] {
            let answer = service.request(Method::GET, &path).header("range", &range).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE, "{range}");
            assert_eq!(answer.headers()["content-range"], format!("bytes */{len}"));
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], "range_not_satisfiable");
        }
        let whole = service.get(&path).await;
        let (etag, date) = (whole.headers()["etag"].clone(), whole.headers()["last-modified"].clone());
        let asked = async |name: &str, value: &http::HeaderValue| {
            let request = service.request(Method::GET, &path).header("range", "bytes=0-9").header(name, value);
            request.send().await.unwrap()
        };
        let other = http::HeaderValue::from_static("\"other\"");
        for (name, value, status) in [
            ("if-none-match", &etag, 304), ("if-none-match", &other, 206), ("if-modified-since", &date, 304),
            ("if-range", &etag, 206), ("if-range", &date, 206), ("if-range", &other, 200),
            ("if-match", &etag, 206), ("if-match", &other, 412),
        ] {
            let answer = asked(name, value).await;
            assert_eq!(answer.status().as_u16(), status, "{name}: {value:?}");
            if status == 304 {
                assert_eq!(answer.headers()["etag"], etag);
                assert_eq!(answer.bytes().await.unwrap().len(), 0);
            }
        }
    }

    async fn a_missing_object_is_said_and_fetched_again(world: World) {
        let service = world.start().await;
        let id = store_speech(&world, &service).await;
        let path = format!("/v1/recordings/{}/content?wait=0", id.recording);
        let store = world.store(&service);
        let key = store.keys().await.remove(0);
        store.s3.delete(&Path::from(key.as_str())).await.unwrap();
        let head = service.request(Method::HEAD, &path).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE);
        let answer = service.get(&path).await;
        // It may be looked at already.
        assert!(answer.status().is_server_error() || answer.status() == StatusCode::NOT_FOUND, "{}", answer.status());
        let shown = eventually("it is fetched again", async || {
            let (_, shown) = service.json(&format!("/v1/recordings/{}", id.recording)).await;
            (shown["state"] == "stored" && shown["attempts"] == 2).then_some(shown)
        })
        .await;
        assert!(shown["history"].as_array().unwrap().iter().any(|entry| entry["type"] == "recording.lost"), "{shown}");
        let bytes = service.get(&path).await.bytes().await.unwrap();
        assert_eq!(Digest::of(&bytes), Digest::of(&speech_mp3()));
        assert_eq!(world.simulator.counts(id.recording).fetches, 2);
    }

    async fn wrong_bytes_never_end_cleanly(world: World) {
        let service = world.start().await;
        let id = store_speech(&world, &service).await;
        // Until Twilio says that it has it, it is not fetched again.
        world.simulator.rest_fault(account(), Some(RestFault::Status(500)));
        let path = format!("/v1/recordings/{}/content?wait=0", id.recording);
        let store = world.store(&service);
        let key = Path::from(store.keys().await.remove(0));
        let mut rotten = speech_mp3().to_vec();
        rotten[20_000] ^= 1;
        store.s3.put(&key, rotten.into()).await.unwrap();
        for range in [None, Some("bytes=0-")] {
            let request = service.request(Method::GET, &path);
            let request = range.into_iter().fold(request, |request, range| request.header("range", range));
            // What is short is known to be wrong in time; what is long breaks off.
            if let Ok(answer) = request.send().await {
                let status = answer.status();
                assert!(answer.bytes().await.is_err() || status == StatusCode::SERVICE_UNAVAILABLE, "{range:?}: {status}");
            }
        }
        store.s3.put(&key, speech_mp3().slice(..20_000).into()).await.unwrap();
        for range in [None, Some("bytes=0-9"), Some("bytes=25000-")] {
            let request = service.request(Method::GET, &path);
            let request = range.into_iter().fold(request, |request, range| request.header("range", range));
            assert_eq!(request.send().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE, "{range:?}");
        }
        let counted = service.get("/metrics").await.text().await.unwrap();
        assert!(counted.contains("callvault_streams_total{end=\"broken_off\"} 2"), "{counted}");
    }

    async fn what_has_no_audio_says_so(world: World) {
        let service = world.start().await;
        for (path, status, code) in [
            (format!("/v1/calls/{}/content?wait=30", call_sid(404)), 404, "not_found"),
            (format!("/api/calls/{}/download?wait=30", call_sid(404)), 404, "not_found"),
            (format!("/v1/recordings/{}/content", recording_id(404).recording), 404, "not_found"),
            (format!("/v1/calls/{}/content?wait=31", call_sid(1)), 400, "invalid_request"),
        ] {
            let answer = service.get(&path).await;
            assert_eq!(answer.status().as_u16(), status, "{path}");
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], code, "{path}");
        }
    }

    async fn curl_reads_it_whole_in_parts_and_goes_on_where_it_broke_off(world: World) {
        let service = world.start().await;
        let id = store_speech(&world, &service).await;
        let url = format!("{}/v1/recordings/{}/content", service.url, id.recording);
        let key = format!("Authorization: Bearer {ADMIN_KEY}");
        let got = |more: &[&str]| run("curl", &[&["-sSf", "-H", &key, &url], more].concat());
        assert_eq!(got(&[]), speech_mp3());
        assert_eq!(got(&["-r", "1000-1999"]), speech_mp3().slice(1000..2000));
        let file = world.folder().join("half.mp3");
        std::fs::write(&file, speech_mp3().slice(..12_345)).unwrap();
        got(&["-C", "-", "-o", file.to_str().unwrap()]);
        assert_eq!(std::fs::read(&file).unwrap(), speech_mp3());
        let audio = format!("{}/v1/recordings/{}/audio", service.url, id.recording);
        assert_eq!(run("curl", &["-sSfL", "-H", &key, &audio]), speech_mp3(), "by the link");
    }

    async fn ffmpeg_seeks_in_a_wav_over_http(world: World) {
        let service = world.start().await;
        let id = store_wav(&world, &service).await;
        let file = world.folder().join("speech.wav");
        std::fs::write(&file, speech_wav()).unwrap();
        let seek = |input: &str, more: &[&str]| {
            let from = [&["-v", "error", "-nostdin"], more, &["-ss", "4", "-i", input, "-t", "1", "-f", "s16le", "-"]];
            run("ffmpeg", &from.concat())
        };
        let expected = seek(file.to_str().unwrap(), &[]);
        assert_eq!(expected.len(), 16_000, "a second of it");
        let headers = format!("Authorization: Bearer {ADMIN_KEY}\r\n");
        let content = format!("{}/v1/recordings/{}/content", service.url, id.recording);
        assert_eq!(seek(&content, &["-headers", &headers]), expected);
        let counted = service.get("/metrics").await.text().await.unwrap();
        let parts = "callvault_http_requests_total{route=\"/v1/recordings/{recording_sid}/content\",method=\"GET\",status=\"206\"}";
        assert!(counted.contains(parts), "it asked for parts: {counted}");
        let (_, link) = service.json(&format!("/v1/recordings/{}/link", id.recording)).await;
        assert_eq!(seek(link["url"].as_str().unwrap(), &[]), expected, "by the link");
    }

    async fn the_aws_cli_reads_the_bucket(world: World) {
        let service = world.start().await;
        store_speech(&world, &service).await;
        let store = world.store(&service);
        let key = store.keys().await.remove(0);
        let object = format!("s3://{}/{key}", world.bucket());
        let aws = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-tools/python/bin/aws");
        let output = Command::new(aws)
            .args(["--endpoint-url", &store.endpoint, "s3", "cp", "--quiet", &object, "-"])
            .env("AWS_ACCESS_KEY_ID", &store.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &store.secret_access_key)
            .env("AWS_DEFAULT_REGION", store.region)
            .output()
            .expect("the AWS CLI is not installed: run `make test`, or tests/install-tools.sh");
        assert_eq!(done(output), speech_mp3());
    }
}
