//! The way of a recording that meets no trouble, and what others see of it.

use std::process::Command;

use callvault::domain::digest::Digest;
use callvault::twilio::simulator::{Audio, Body, Fault, speech_dual_wav, speech_mp3, speech_wav};
use object_store::Attribute;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::formats::TrackType;
use symphonia::core::formats::probe::Hint;
use symphonia::core::io::MediaSourceStream;

use crate::support::world::{Parts, World, call_sid, recording_id};

/// Seconds and channels of audio that really decodes.
fn decode(bytes: bytes::Bytes) -> (f64, usize) {
    let stream = MediaSourceStream::new(Box::new(std::io::Cursor::new(bytes)), Default::default());
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), stream, Default::default(), Default::default())
        .expect("a known format");
    let track = format.first_track_known_codec(TrackType::Audio).expect("a track");
    let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio()).expect("audio").clone();
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(&parameters, &AudioDecoderOptions::default())
        .expect("a codec");
    let (mut frames, mut channels, mut rate, mut loud) = (0, 0, 1, false);
    while let Some(packet) = format.next_packet().expect("whole packets") {
        let decoded = decoder.decode(&packet).expect("audio that decodes");
        frames += decoded.frames();
        channels = decoded.spec().channels().count();
        rate = decoded.spec().rate();
        let mut samples: Vec<f32> = Vec::new();
        decoded.copy_to_vec_interleaved(&mut samples);
        loud |= samples.iter().any(|sample| sample.abs() > 0.05);
    }
    assert!(loud, "it is silent");
    (frames as f64 / f64::from(rate), channels)
}

on_all_parts! {
    async fn a_recording_goes_from_callback_to_a_link_that_plays(world: World) {
        let service = world.start().await;
        let id = world.record(1);

        let answer = service.send(&world.callback(id.recording)).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer.bytes().await.unwrap().len(), 0);

        let shown = service.recording_in(id.recording, "stored").await;
        let digest = Digest::of(&speech_mp3());
        let key = format!("{}/{}/{digest}.mp3", call_sid(1), id.recording);
        assert_eq!(shown["sha256"], digest.to_string());
        assert_eq!(shown["key"], key);
        assert_eq!(shown["bucket"], world.bucket());
        assert_eq!(shown["size_bytes"], speech_mp3().len());

        let store = world.store(&service);
        assert_eq!(store.keys().await, [key.as_str()]);
        let (bytes, attributes) = store.object(&key).await;
        assert_eq!(Digest::of(&bytes), digest);
        let attribute = |key: Attribute| attributes.get(&key).map(|value| value.to_string());
        let metadata = |name: &'static str| attribute(Attribute::Metadata(name.into()));
        assert_eq!(attribute(Attribute::ContentType).as_deref(), Some("audio/mpeg"));
        assert_eq!(attribute(Attribute::CacheControl).as_deref(), Some("private, max-age=31536000, immutable"));
        assert_eq!(metadata("sha256"), Some(digest.to_string()));
        assert_eq!(metadata("account-sid"), Some(id.account.to_string()));
        assert_eq!(metadata("call-sid"), Some(call_sid(1).to_string()));
        assert_eq!(metadata("recording-sid"), Some(id.recording.to_string()));
        assert_eq!(metadata("duration-seconds").as_deref(), Some("6"));
        assert_eq!(metadata("channels").as_deref(), Some("2"));
        assert_eq!(metadata("recorded-at").as_deref(), Some("2026-11-23T09:30:00Z"));
        assert_eq!(metadata("conference-sid"), None);
        let stored_at: jiff::Timestamp = metadata("stored-at").expect("stored-at").parse().expect("RFC 3339");
        assert!(stored_at.duration_since(shown["accepted_at"].as_str().unwrap().parse().unwrap()).as_secs() < 60);

        for path in [format!("/v1/calls/{}/audio", call_sid(1)), format!("/v1/recordings/{}/audio", id.recording)] {
            let (played, headers) = service.play(&path).await;
            assert_eq!(Digest::of(&played), digest);
            assert_eq!(headers["content-type"], "audio/mpeg");
            let (seconds, channels) = decode(played);
            assert!((6.3..6.6).contains(&seconds), "{seconds} s");
            assert_eq!(channels, 1);
        }
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
    }

    async fn repeats_and_plays_cost_one_fetch(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        for _ in 0..20 {
            assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
        }
        service.recording_in(id.recording, "stored").await;
        let mut links = std::collections::HashSet::new();
        for _ in 0..200 {
            let answer = service.get(&format!("/v1/calls/{}/audio", call_sid(1))).await;
            assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
            assert_eq!(answer.headers()["cache-control"], "no-store");
            links.insert(answer.headers()["location"].to_str().unwrap().to_owned());
        }
        // Two where a window ends in between.
        assert!(links.len() <= 2, "{links:?}");
        assert_eq!(world.simulator.counts(id.recording).media_requests, 1);
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!(shown["attempts"], 1);
        let told = |kind: &str| shown["history"].as_array().unwrap().iter().filter(|entry| entry["type"] == kind).count();
        assert_eq!((told("recording.accepted"), told("recording.stored"), told("callback")), (1, 1, 1));
    }

    async fn a_hit_asks_neither_the_store_nor_twilio(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        let asked_before = world.simulator.seen().len();
        let stored_before = store_requests(&service).await;
        for _ in 0..200 {
            assert_eq!(service.get(&format!("/v1/calls/{}/audio", call_sid(1))).await.status(), StatusCode::TEMPORARY_REDIRECT);
            assert_eq!(service.get(&format!("/v1/recordings/{}/link", id.recording)).await.status(), StatusCode::OK);
        }
        assert_eq!(world.simulator.seen().len(), asked_before);
        // The service looks at its bucket now and then; 400 hits do not show.
        assert!(store_requests(&service).await - stored_before < 20.0);
    }

    async fn the_audio_that_twilio_has_is_stored_as_what_it_is(world: World) {
        world.set("CALLVAULT_FORMATS", "wav?RequestedChannels=2,mp3,wav,base");
        let service = world.start().await;
        let wav_alone = Audio { wav: Some(Body::Bytes(speech_wav())), ..Audio::default() };
        let wav_named_mp3 = Audio { mp3: Some(Body::Bytes(speech_wav())), ..Audio::default() };
        let mp3_alone = Audio { mp3: Some(Body::Bytes(speech_mp3())), ..Audio::default() };
        let cases = [
            (Audio::speech(), 2, "wav", speech_dual_wav(), 2),
            (Audio::speech(), 1, "mp3", speech_mp3(), 1),
            (wav_alone, 1, "wav", speech_wav(), 1),
            (wav_named_mp3, 1, "wav", speech_wav(), 1),
            (mp3_alone, 1, "mp3", speech_mp3(), 1),
        ];
        for (number, (audio, channels, format, bytes, decoded_channels)) in (1..).zip(cases) {
            let id = world.record(number);
            let mut recording = callvault::twilio::simulator::SimulatedRecording::speech(
                id, call_sid(number), crate::support::world::started_at());
            (recording.audio, recording.channels) = (audio, channels);
            world.simulator.add(recording);
            service.deliver(&world.callback(id.recording)).await;
            let shown = service.recording_in(id.recording, "stored").await;
            let content_type = if format == "mp3" { "audio/mpeg" } else { "audio/wav" };
            let digest = Digest::of(&bytes);
            assert_eq!(shown["format"], format, "case {number}");
            assert_eq!(shown["content_type"], content_type);
            assert_eq!(shown["key"], format!("{}/{}/{digest}.{format}", call_sid(number), id.recording));
            let (played, headers) = service.play(&format!("/v1/recordings/{}/audio", id.recording)).await;
            assert_eq!(headers["content-type"], content_type);
            let (seconds, channels) = decode(played);
            assert!((6.3..6.6).contains(&seconds) && channels == decoded_channels, "case {number}: {seconds} s, {channels}");
        }
    }

    async fn what_is_on_its_way_is_told_and_waited_for(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::NotReady));
        service.deliver(&world.callback(id.recording)).await;
        let audio = format!("/v1/calls/{}/audio", call_sid(1));
        let link = format!("/v1/recordings/{}/link", id.recording);

        let answer = service.get(&format!("{audio}?wait=0")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
        assert_eq!(answer.json::<Value>().await.unwrap()["code"], "not_ready");

        let answer = service.get(&format!("{link}?wait=0")).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        assert!(answer.headers().contains_key("retry-after"));
        let pending: Value = answer.json().await.unwrap();
        assert_eq!(pending["recording_sid"], id.recording.to_string());
        assert!(["pending", "fetching"].contains(&pending["state"].as_str().unwrap()), "{pending}");
        assert!(pending["retry_after_seconds"].as_u64().unwrap() >= 1);

        let waiting = service.request(Method::GET, &format!("{audio}?wait=30")).send();
        let ready = async {
            service.recording_in(id.recording, "pending").await;
            world.simulator.always(id.recording, None);
        };
        let (answer, ()) = tokio::join!(waiting, ready);
        assert_eq!(answer.unwrap().status(), StatusCode::TEMPORARY_REDIRECT);
    }

    async fn a_link_tells_all_that_a_client_needs(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        let (status, link) = service.json(&format!("/v1/calls/{}/link", call_sid(1))).await;
        assert_eq!(status, StatusCode::OK);
        let digest = Digest::of(&speech_mp3()).to_string();
        assert_eq!(link["recording_sid"], id.recording.to_string());
        assert_eq!(link["call_sid"], call_sid(1).to_string());
        assert_eq!(link["sha256"], digest);
        assert_eq!(link["size_bytes"], speech_mp3().len());
        assert_eq!(link["content_type"], "audio/mpeg");
        assert_eq!(link["bucket"], world.bucket());
        assert_eq!(link["key"], format!("{}/{}/{digest}.mp3", call_sid(1), id.recording));
        let left = link["expires_in_seconds"].as_i64().unwrap();
        assert!((3600..=4500).contains(&left), "{left}");
        let got = world.http.get(link["url"].as_str().unwrap()).send().await.unwrap();
        assert_eq!(Digest::of(&got.bytes().await.unwrap()).to_string(), digest);

        let (_, named) = service.json(&format!("/v1/recordings/{}/link?disposition=attachment", id.recording)).await;
        let got = world.http.get(named["url"].as_str().unwrap()).send().await.unwrap();
        let disposition = got.headers()["content-disposition"].to_str().unwrap();
        assert_eq!(disposition, format!("attachment; filename=\"2026-11-23 09.30 {}.mp3\"", call_sid(1)));

        let answer = service.get(&format!("/v1/recordings/{}/audio", id.recording)).await;
        let cache = answer.headers()["cache-control"].to_str().unwrap();
        let seconds: i64 = cache.strip_prefix("private, max-age=").expect(cache).parse().unwrap();
        assert!((3500..=4500).contains(&seconds), "{cache}");
    }

    async fn head_is_answered_with_a_link_for_head(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        let answer = service.request(Method::HEAD, &format!("/v1/calls/{}/audio", call_sid(1))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
        let link = answer.headers()["location"].to_str().unwrap();
        let head = world.http.head(link).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        assert_eq!(head.headers()["content-length"], speech_mp3().len().to_string());
    }

    async fn workers_read_the_bucket_itself(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        let shown = service.recording_in(id.recording, "stored").await;
        let store = world.store(&service);
        let script = r#"
import boto3, hashlib, json, os, sys
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name=os.environ["REGION"],
                  config=boto3.session.Config(s3={"addressing_style": "path"}))
keys = [o["Key"] for o in s3.list_objects_v2(Bucket=os.environ["BUCKET"], Prefix=os.environ["PREFIX"])["Contents"]]
got = s3.get_object(Bucket=os.environ["BUCKET"], Key=keys[0])
print(json.dumps({"keys": keys, "sha256": hashlib.sha256(got["Body"].read()).hexdigest(),
                  "metadata": got["Metadata"], "content_type": got["ContentType"]}))
"#;
        let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-tools/python/bin/python");
        let output = Command::new(python)
            .args(["-c", script])
            .env("AWS_ACCESS_KEY_ID", &store.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &store.secret_access_key)
            .env("ENDPOINT", &store.endpoint)
            .env("REGION", store.region)
            .env("BUCKET", world.bucket())
            .env("PREFIX", format!("{}/", call_sid(1)))
            .output()
            .expect("the tests' Python is not installed: run `make test`, or tests/install-tools.sh");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(seen["keys"], json!([shown["key"]]));
        assert_eq!(seen["sha256"], shown["sha256"]);
        assert_eq!(seen["metadata"]["sha256"], shown["sha256"]);
        assert_eq!(seen["metadata"]["call-sid"], call_sid(1).to_string());
        assert_eq!(seen["content_type"], "audio/mpeg");
    }

    async fn a_recording_is_shown_whole(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        let shown = service.recording_in(id.recording, "stored").await;
        let fields = ["recording_sid", "call_sid", "conference_sid", "account_sid", "state", "source_url", "sha256",
            "size_bytes", "content_type", "format", "bucket", "key", "duration_seconds", "channels", "track",
            "recording_source", "recorded_at", "accepted_at", "stored_at", "last_asked_at", "attempts",
            "next_attempt_at", "last_error", "hold", "history"];
        let object = shown.as_object().unwrap();
        for field in fields {
            assert!(object.contains_key(field), "{field} is missing");
        }
        assert_eq!(shown["conference_sid"], Value::Null);
        assert_eq!(shown["next_attempt_at"], Value::Null);
        assert_eq!(shown["last_error"], Value::Null);
        assert_eq!(shown["hold"], false);
        assert_eq!(shown["duration_seconds"], 6);
        assert_eq!(shown["recording_source"], "DialVerb");
        assert_eq!(shown["recorded_at"], "2026-11-23T09:30:00Z");
        assert_eq!(shown["source_url"],
            format!("https://api.twilio.com/2010-04-01/Accounts/{}/Recordings/{}", id.account, id.recording));

        let (status, call) = service.json(&format!("/v1/calls/{}", call_sid(1))).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(call["call_sid"], call_sid(1).to_string());
        assert_eq!(call["recording_sid"], id.recording.to_string());
        assert_eq!(call["recordings"][0]["state"], "stored");
        assert!(!call["recordings"][0].as_object().unwrap().contains_key("history"));
    }

    async fn a_call_answers_for_its_newest_recording(world: World) {
        let service = world.start().await;
        for (number, started_at) in [(1, "2026-11-23T09:00:00Z"), (2, "2026-11-23T11:00:00Z"), (3, "2026-11-23T10:00:00Z")] {
            let id = recording_id(number);
            let mut recording = callvault::twilio::simulator::SimulatedRecording::speech(
                id, call_sid(7), started_at.parse().unwrap());
            recording.duration = "-1".to_owned();
            world.simulator.add(recording);
            service.deliver(&world.callback(id.recording)).await;
            service.recording_in(id.recording, "stored").await;
        }
        let (_, call) = service.json(&format!("/v1/calls/{}", call_sid(7))).await;
        assert_eq!(call["recording_sid"], recording_id(2).recording.to_string());
        let order: Vec<&Value> = call["recordings"].as_array().unwrap().iter().map(|shown| &shown["recording_sid"]).collect();
        assert_eq!(order, [2, 3, 1].map(|number| json!(recording_id(number).recording)).iter().collect::<Vec<_>>());
        let (_, link) = service.json(&format!("/v1/calls/{}/link", call_sid(7))).await;
        assert_eq!(link["recording_sid"], recording_id(2).recording.to_string());
    }

    async fn lists_are_read_page_by_page(world: World) {
        let service = world.start().await;
        for number in 1..=7 {
            let id = world.record(number);
            service.deliver(&world.callback(id.recording)).await;
            service.recording_in(id.recording, "stored").await;
        }
        let mut seen = Vec::new();
        let mut path = "/v1/recordings?limit=3".to_owned();
        loop {
            let (status, page) = service.json(&path).await;
            assert_eq!(status, StatusCode::OK);
            seen.extend(page["recordings"].as_array().unwrap().iter().map(|shown| shown["recording_sid"].clone()));
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/v1/recordings?limit=3&after={next}");
        }
        let expected: Vec<Value> = (1..=7).rev().map(|number| json!(recording_id(number).recording)).collect();
        assert_eq!(seen, expected);

        let count = async |query: &str| {
            let (status, page) = service.json(&format!("/v1/recordings?{query}")).await;
            assert_eq!(status, StatusCode::OK, "{query}: {page}");
            page["recordings"].as_array().unwrap().len()
        };
        assert_eq!(count("state=stored").await, 7);
        assert_eq!(count("state=failed").await, 0);
        assert_eq!(count(&format!("call_sid={}&call_sid={}", call_sid(1), call_sid(2))).await, 2);
        assert_eq!(count("since=2026-11-24").await, 0);
        assert_eq!(count("since=2026-11-23&until=2026-11-23T10:00:00Z").await, 7);
        assert_eq!(count(&format!("account_sid={}", recording_id(1).account)).await, 7);
        assert_eq!(count(&format!("account_sid=AC{}", "9".repeat(32))).await, 0);
        for wrong in ["limit=0", "limit=1001", "limit=x", "state=gone", "after=x", "call_sid=x", "since=x", "limit=1&limit=2"] {
            let (status, problem) = service.json(&format!("/v1/recordings?{wrong}")).await;
            assert_eq!((status, &problem["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")), "{wrong}");
        }
    }

    async fn nothing_is_given_without_a_key(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        for path in [
            "/v1/recordings".to_owned(),
            format!("/v1/recordings/{}", id.recording),
            format!("/v1/recordings/{}/audio", id.recording),
            format!("/v1/calls/{}/audio", call_sid(1)),
            format!("/v1/calls/{}/link", call_sid(1)),
            "/metrics".to_owned(),
        ] {
            for key in [None, Some("Bearer wrong"), Some("Basic YWRtaW46YWRtaW4="), Some("Bearer ")] {
                let mut request = world.http.get(format!("{}{path}", service.url));
                if let Some(key) = key {
                    request = request.header("authorization", key);
                }
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
                assert_eq!(answer.json::<Value>().await.unwrap()["code"], "unauthorized");
            }
        }
        for path in ["/healthz", "/readyz"] {
            assert_eq!(world.http.get(format!("{}{path}", service.url)).send().await.unwrap().status(), StatusCode::OK);
        }
    }

    async fn what_is_not_there_is_a_problem_document(world: World) {
        let service = world.start().await;
        for (method, path, status, code) in [
            (Method::GET, format!("/v1/calls/{}", call_sid(404)), 404, "not_found"),
            (Method::GET, format!("/v1/calls/{}/audio?wait=30", call_sid(404)), 404, "not_found"),
            (Method::GET, format!("/v1/calls/{}/link?wait=30", call_sid(404)), 404, "not_found"),
            (Method::GET, format!("/v1/recordings/{}", recording_id(404).recording), 404, "not_found"),
            (Method::GET, "/v1/recordings/nonsense".to_owned(), 404, "not_found"),
            (Method::GET, "/no/such/path".to_owned(), 404, "not_found"),
            (Method::DELETE, "/v1/recordings".to_owned(), 405, "method_not_allowed"),
            (Method::GET, format!("/v1/calls/{}/audio?wait=31", call_sid(1)), 400, "invalid_request"),
            (Method::GET, format!("/v1/calls/{}/audio?wait=-1", call_sid(1)), 400, "invalid_request"),
            (Method::GET, format!("/v1/calls/{}/audio?disposition=none", call_sid(1)), 400, "invalid_request"),
        ] {
            let answer = service.request(method, &path).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{path}");
            assert_eq!(answer.headers()["content-type"], "application/problem+json", "{path}");
            let problem: Value = answer.json().await.unwrap();
            assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)), "{path}");
            assert!(problem["title"].is_string() && problem["detail"].is_string() && problem["type"].is_string());
        }
    }
}

/// Requests that the store got from this service, where the store counts them.
async fn store_requests(service: &crate::support::world::Service) -> f64 {
    let metrics = service.get("/metrics").await.text().await.unwrap();
    let ours = metrics.lines().filter(|line| line.starts_with("callvault_store_requests_total"));
    let counts: Vec<f64> = ours.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert!(!counts.is_empty(), "the service does not count its calls to the store");
    counts.iter().sum()
}
