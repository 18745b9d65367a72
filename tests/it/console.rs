//! The console, in a real Chromium.

use callvault::twilio::simulator::{Audio, Body, Fault, SimulatedRecording, speech_dual_wav, speech_mp3};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::browser;
use crate::player::{record_long, with_short_links};
use crate::recheck::count;
use crate::support::eventually;
use crate::support::world::{ADMIN_KEY, Parts, Service, World, call_sid, recording_id, started_at};

const SCREENSHOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/console-screenshots");

fn named(number: u32) -> Value {
    json!({"call": call_sid(number), "recording": recording_id(number).recording})
}

/// Recordings in many states, of calls around the day; gives their numbers by name.
async fn furnish(world: &World, service: &Service) {
    for number in (1..=3).chain(10..=19) {
        let began = started_at() - jiff::SignedDuration::from_mins(i64::from(number) * 97);
        world.simulator.add(SimulatedRecording::speech(recording_id(number), call_sid(number), began));
    }
    world.simulator.always(recording_id(16).recording, Some(Fault::NotReady));
    record_long(world, 4);
    let mut dual = SimulatedRecording::speech(recording_id(5), call_sid(5), started_at());
    dual.audio = Audio { wav: Some(Body::Bytes(speech_dual_wav())), ..Audio::default() };
    world.simulator.add(dual);
    let begun = world.simulator.callback(recording_id(17).recording, "in-progress").unwrap();
    service.deliver(&begun).await;
    for number in [1, 4, 5].into_iter().chain(10..=16) {
        service.deliver(&world.callback(recording_id(number).recording)).await;
    }
    for (number, status) in [(2, "failed"), (3, "absent"), (19, "failed")] {
        service.deliver(&world.simulator.callback(recording_id(number).recording, status).unwrap()).await;
        service.recording_in(recording_id(number).recording, status).await;
    }
    for number in [1, 4, 5, 15] {
        service.recording_in(recording_id(number).recording, "stored").await;
    }
    // Another leg of the long call.
    let url = format!(
        "{}/2010-04-01/Accounts/{}/Recordings/{}",
        world.simulator.origin(),
        recording_id(4).account,
        recording_id(4).recording
    );
    assert_eq!(service.put(call_sid(40), &url).await.status(), StatusCode::OK);
    // Known to Twilio alone.
    world.record(6);
}

/// What a program asks for that a browser cannot do.
async fn outside(world: &World, service: &Service, request: &Value, made: &mut u32) -> Value {
    match request["please"].as_str() {
        Some("a new recording") => {
            *made += 1;
            let id = world.record(100 + *made);
            world.simulator.always(id.recording, Some(Fault::NotReady));
            service.deliver(&world.callback(id.recording)).await;
            named(100 + *made)
        }
        Some("let it come") => {
            world.simulator.always(request["recording"].as_str().unwrap().parse().unwrap(), None);
            Value::Null
        }
        Some("erase") => {
            let path = format!("/v1/recordings/{}", request["recording"].as_str().unwrap());
            assert!(service.request(Method::DELETE, &path).send().await.unwrap().status().is_success());
            Value::Null
        }
        Some("is it over") => {
            let answer = world.http.get(request["link"].as_str().unwrap()).header("range", "bytes=0-0").send().await;
            json!(answer.unwrap().status() == StatusCode::FORBIDDEN)
        }
        other => panic!("nobody can do that: {other:?}"),
    }
}

on_all_parts! {
    async fn a_call_is_found_and_heard_in_the_console(world: World) {
        with_short_links(&mut world);
        world.set("CALLVAULT_FORMATS", "mp3,wav?RequestedChannels=2,wav,base");
        let service = world.start().await;
        furnish(&world, &service).await;
        let media = service.json(&format!("/v1/recordings/{}/link", recording_id(1).recording)).await.1;
        let media = reqwest::Url::parse(media["url"].as_str().unwrap()).unwrap().origin().ascii_serialization();
        let own = media == service.url;
        let mut stored = named(1);
        stored["size"] = json!(speech_mp3().len());
        let argument = json!({"service": service.url, "key": ADMIN_KEY, "screenshots": SCREENSHOTS,
            "media": if own { "'self'".to_owned() } else { media },
            "stored": stored, "failed": named(2), "to_try_again": named(19), "absent": named(3), "long": named(4), "dual": named(5),
            "at_twilio": named(6), "alias": call_sid(40), "to_erase": named(15)});
        let mut made = 0;
        browser::run("console.py", argument, async |request| outside(&world, &service, &request, &mut made).await).await;
        assert!(!service.log().contains(ADMIN_KEY));
    }

    async fn what_left_the_bucket_is_told_and_fetched_again_in_the_console(world: World) {
        world.set("CALLVAULT_LINK_TTL", "1s");
        world.set("CALLVAULT_LINK_WINDOW", "1s");
        world.set("CALLVAULT_EVICT_AFTER", "3s");
        let before = world.start().await;
        let id = recording_id(1);
        world.record(1);
        assert_eq!(before.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
        before.recording_in(id.recording, "evicted").await;
        // A node that ends in the midst of it would have the next one wait for its lease.
        eventually("its object is gone", async || (count(&world, &id, "duty_until IS NULL").await == 1).then_some(())).await;
        before.signal("TERM");
        assert!(before.end().await.success());
        // What is fetched again stays, however slow the browser is.
        world.set("CALLVAULT_EVICT_AFTER", "1h");
        let service = world.start().await;
        let argument = json!({"service": service.url, "key": ADMIN_KEY, "evicted": named(1)});
        browser::run("evicted.py", argument, async |request| panic!("nobody can do that: {request}")).await;
        service.recording_in(id.recording, "stored").await;
        assert_eq!(world.simulator.counts(id.recording).fetches, 2);
    }

    async fn the_console_is_kept_by_browsers_until_it_is_another(world: World) {
        let service = world.start().await;
        let first = world.http.get(format!("{}/console/main.js", service.url)).send().await.unwrap();
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()["content-type"], "text/javascript; charset=utf-8");
        assert_eq!(first.headers()["cache-control"], "no-cache");
        let tag = first.headers()["etag"].clone();
        let again = world.http.get(format!("{}/console/main.js", service.url)).header("if-none-match", tag).send().await.unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(again.bytes().await.unwrap().len(), 0);
        let slash = world.http.get(format!("{}/console/", service.url)).send().await.unwrap();
        assert_eq!((slash.status(), slash.headers()["location"].to_str().unwrap()), (StatusCode::PERMANENT_REDIRECT, "../console"));
        let home = world.http.get(format!("{}/", service.url)).send().await.unwrap();
        assert_eq!((home.status(), home.headers()["location"].to_str().unwrap()), (StatusCode::TEMPORARY_REDIRECT, "console"));
        let unknown = world.http.get(format!("{}/console/no.js", service.url)).send().await.unwrap();
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
        assert_eq!(unknown.headers()["content-type"], "application/problem+json");
        let posted = world.http.post(format!("{}/console", service.url)).send().await.unwrap();
        assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
