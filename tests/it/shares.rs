//! Shares: a URL that plays one recording without a key, until it ends.

use std::time::Instant;

use callvault::domain::digest::Digest;
use callvault::domain::share::Token;
use callvault::twilio::simulator::{Fault, SimulatedRecording, speech_mp3};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::keys::{HOLDS_WITHIN, ask, create, keys_done};
use crate::support::eventually;
use crate::support::servers::Postgres;
use crate::support::world::{ADMIN_KEY, Parts, Service, World, call_sid, recording_id, started_at};

/// Shares what a path names, with the admin key.
async fn share(service: &Service, of: &str, wishes: &Value) -> Response {
    service.request(Method::POST, &format!("{of}/share")).json(wishes).send().await.expect("the service answers")
}

/// The path of a share of that, which must be made.
async fn shared(service: &Service, of: &str, wishes: &Value) -> String {
    let answer = share(service, of, wishes).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let answer: Value = answer.json().await.expect("JSON");
    let url = answer["url"].as_str().expect("a URL");
    url.strip_prefix(&service.url).expect("it begins with the public URL").to_owned()
}

async fn open(world: &World, service: &Service, path: &str) -> Response {
    world.http.get(format!("{}{path}", service.url)).send().await.expect("the service answers")
}

/// The number of the secret that a share was signed with.
fn secret_of(path: &str) -> i64 {
    path.strip_prefix("/s/").expect("a share").parse::<Token>().expect("a token").secret_id
}

/// A problem's status and code.
async fn problem(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.expect("a problem");
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

/// A recording that is stored, and its path.
async fn stored(world: &World, service: &Service, number: u32) -> String {
    let id = world.record(number);
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;
    format!("/v1/recordings/{}", id.recording)
}

async fn refused_everywhere(world: &World, nodes: &[Service], path: &str, since: Instant) {
    for node in nodes {
        let over = eventually("the share is over", async || {
            let asked_after = since.elapsed();
            let answer = open(world, node, path).await;
            let is_over = answer.status() != StatusCode::TEMPORARY_REDIRECT;
            assert!(is_over || asked_after < HOLDS_WITHIN, "{asked_after:?}");
            is_over.then_some(answer)
        });
        assert_eq!(problem(over.await).await, (410, "expired".to_owned()));
    }
}

on_all_parts! {
    async fn a_share_plays_without_a_key_on_every_node_and_leaves_no_trace(world: World) {
        world.set("CALLVAULT_LOG", "trace");
        let nodes = world.start_nodes(2).await;
        let of = stored(&world, &nodes[0], 1).await;
        let path = shared(&nodes[0], &of, &json!({})).await;
        for node in &nodes {
            let answer = open(&world, node, &path).await;
            assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
            assert_eq!(answer.headers()["referrer-policy"], "no-referrer");
            assert_eq!(answer.headers()["cache-control"], "no-store");
            let link = answer.headers()["location"].to_str().unwrap().to_owned();
            let audio = world.http.get(link).send().await.unwrap();
            assert_eq!(Digest::of(&audio.bytes().await.unwrap()), Digest::of(&speech_mp3()));
            let head = world.http.head(format!("{}{path}", node.url)).send().await.unwrap();
            assert_eq!(head.status(), StatusCode::TEMPORARY_REDIRECT);
            let there = world.http.head(head.headers()["location"].to_str().unwrap()).send().await.unwrap();
            assert_eq!(there.status(), StatusCode::OK);
            let saved = open(&world, node, &format!("{path}?disposition=attachment")).await;
            assert!(saved.headers()["location"].to_str().unwrap().contains("attachment"));
        }
        let token = path.strip_prefix("/s/").unwrap();
        assert!(nodes.iter().all(|node| !node.log().contains(&token[..40])), "the token is logged");
    }

    async fn a_share_of_a_call_stays_with_the_recording_it_was_made_for(world: World) {
        let service = world.start().await;
        let of = stored(&world, &service, 1).await;
        let first = shared(&service, &format!("/v1/calls/{}", call_sid(1)), &json!({})).await;
        // Another recording becomes the one that the call answers for.
        let second = recording_id(2);
        let later = started_at() + std::time::Duration::from_secs(60);
        world.simulator.add(SimulatedRecording::speech(second, call_sid(1), later));
        service.deliver(&world.callback(second.recording)).await;
        service.recording_in(second.recording, "stored").await;
        let of_call = service.get(&format!("/v1/calls/{}/audio", call_sid(1))).await;
        assert!(of_call.headers()["location"].to_str().unwrap().contains(second.recording.as_str()));
        let played = open(&world, &service, &first).await;
        let sid = of.strip_prefix("/v1/recordings/").unwrap();
        assert!(played.headers()["location"].to_str().unwrap().contains(sid));
    }

    async fn what_is_on_its_way_can_be_shared_and_is_waited_for(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.script(id.recording, [Fault::Held(1000)]);
        service.deliver(&world.callback(id.recording)).await;
        let path = shared(&service, &format!("/v1/recordings/{}", id.recording), &json!({})).await;
        let early = open(&world, &service, &format!("{path}?wait=0")).await;
        assert!(early.headers().contains_key("retry-after"));
        assert_eq!(early.headers()["referrer-policy"], "no-referrer");
        assert_eq!(problem(early).await, (404, "not_ready".to_owned()));
        let waiting = format!("{path}?wait=30");
        let (played, ()) = tokio::join!(open(&world, &service, &waiting), async {
            world.simulator.release(id.recording);
        });
        assert_eq!(played.status(), StatusCode::TEMPORARY_REDIRECT);

        // Nobody told of this call: Twilio is asked.
        let found = world.record(2);
        let path = shared(&service, &format!("/v1/calls/{}", call_sid(2)), &json!({})).await;
        let played = open(&world, &service, &format!("{path}?wait=30")).await;
        assert!(played.headers()["location"].to_str().unwrap().contains(found.recording.as_str()));
        let unknown = share(&service, &format!("/v1/calls/{}", call_sid(404)), &json!({})).await;
        assert_eq!(problem(unknown).await, (404, "not_found".to_owned()));
    }

    async fn a_share_ends_at_its_time_and_with_its_key_on_every_node(world: World) {
        let nodes = world.start_nodes(3).await;
        let of = stored(&world, &nodes[0], 1).await;
        let short = shared(&nodes[0], &of, &json!({"expires_in": 1})).await;
        refused_everywhere(&world, &nodes, &short, Instant::now()).await;

        let (key, id) = create(&world, &["--scope", "read"]);
        let made = ask(&world, &nodes[0], Method::POST, &format!("{of}/share"), &key).await;
        let made: Value = made.json().await.unwrap();
        let path = made["url"].as_str().unwrap().strip_prefix(&nodes[0].url).unwrap().to_owned();
        for node in &nodes {
            assert_eq!(open(&world, node, &path).await.status(), StatusCode::TEMPORARY_REDIRECT);
        }
        keys_done(&world, &["revoke", &id.to_string()]);
        refused_everywhere(&world, &nodes, &path, Instant::now()).await;
    }

    async fn another_admin_key_ends_what_the_one_before_shared(world: World) {
        let service = world.start().await;
        let of = stored(&world, &service, 1).await;
        let path = shared(&service, &of, &json!({})).await;
        drop(service);
        let same = world.start().await;
        assert_eq!(open(&world, &same, &path).await.status(), StatusCode::TEMPORARY_REDIRECT);
        drop(same);
        world.set("CALLVAULT_ADMIN_KEY", format!("another-{ADMIN_KEY}"));
        let changed = world.start().await;
        assert_eq!(problem(open(&world, &changed, &path).await).await, (410, "expired".to_owned()));
    }

    async fn a_new_secret_leaves_earlier_shares_good_unless_they_are_to_end(world: World) {
        let nodes = world.start_nodes(2).await;
        let of = stored(&world, &nodes[0], 1).await;
        let first = shared(&nodes[0], &of, &json!({})).await;
        keys_done(&world, &["rotate"]);
        let second = eventually("the new secret signs", async || {
            let path = shared(&nodes[0], &of, &json!({})).await;
            (secret_of(&path) != secret_of(&first)).then_some(path)
        })
        .await;
        for node in &nodes {
            for path in [&first, &second] {
                assert_eq!(open(&world, node, path).await.status(), StatusCode::TEMPORARY_REDIRECT);
            }
        }
        keys_done(&world, &["rotate", "--end-shares"]);
        let at = Instant::now();
        refused_everywhere(&world, &nodes, &first, at).await;
        refused_everywhere(&world, &nodes, &second, at).await;
        let third = shared(&nodes[0], &of, &json!({})).await;
        assert_eq!(open(&world, &nodes[0], &third).await.status(), StatusCode::TEMPORARY_REDIRECT);
    }

    async fn what_nobody_signed_is_not_found(world: World) {
        let service = world.start().await;
        let of = stored(&world, &service, 1).await;
        let path = shared(&service, &of, &json!({})).await;
        let other = shared(&service, &of, &json!({"expires_in": 60})).await;
        let mixed = format!("{}{}", &path[..100], &other[100..]);
        let last = if path.ends_with('A') { "B" } else { "A" };
        for forged in [&mixed, &format!("{}{last}", &path[..path.len() - 1]), &path[..path.len() - 4], "/s/x", "/s/%ff"] {
            let answer = open(&world, &service, forged).await;
            assert_eq!(answer.headers()["referrer-policy"], "no-referrer");
            assert_eq!(problem(answer).await, (404, "not_found".to_owned()), "{forged}");
        }
    }

    async fn a_share_lives_as_long_as_was_said_and_no_longer_than_the_settings_allow(world: World) {
        world.set("CALLVAULT_SHARE_MAX", "2d");
        world.set("CALLVAULT_SHARE_URL", "https://play.example/x");
        let service = world.start().await;
        let of = stored(&world, &service, 1).await;
        for (wishes, seconds) in [
            (json!({}), 86_400),
            (json!({"expires_in": null}), 86_400),
            (json!({"expires_in": 90}), 90),
            (json!({"expires_in": "90"}), 90),
            (json!({"expires_in": "1h30m"}), 5400),
            (json!({"expires_in": "2d"}), 172_800),
        ] {
            let before = jiff::Timestamp::now();
            let answer: Value = share(&service, &of, &wishes).await.json().await.unwrap();
            let url = answer["url"].as_str().unwrap();
            assert!(url.starts_with("https://play.example/x/s/"), "{url}");
            assert_eq!(format!("/v1/recordings/{}", answer["recording_sid"].as_str().unwrap()), of);
            let ends_at: jiff::Timestamp = answer["expires_at"].as_str().unwrap().parse().unwrap();
            let life = ends_at.duration_since(before).as_secs();
            assert!((seconds - 1..=seconds + 20).contains(&life), "{wishes}: {life}");
        }
        let bare = service.request(Method::POST, &format!("{of}/share")).send().await.unwrap();
        assert_eq!(bare.status(), StatusCode::CREATED);
        for wrong in [
            json!({"expires_in": 0}),
            json!({"expires_in": 172_801}),
            json!({"expires_in": -1}),
            json!({"expires_in": 1.5}),
            json!({"expires_in": "soon"}),
            json!({"expires_in": "99999999999999999999"}),
            json!({"expire_in": 60}),
            json!([]),
        ] {
            let refused = share(&service, &of, &wrong).await;
            assert_eq!(problem(refused).await, (400, "invalid_request".to_owned()), "{wrong}");
        }
        let form = service.request(Method::POST, &format!("{of}/share")).body("expires_in=60");
        assert_eq!(problem(form.send().await.unwrap()).await, (415, "unsupported_media_type".to_owned()));
        let long = share(&service, &of, &json!({"expires_in": "9".repeat(10_000)})).await;
        assert_eq!(problem(long).await, (413, "payload_too_large".to_owned()));
    }

    async fn a_share_of_what_is_gone_says_what_became_of_it(world: World) {
        world.set("CALLVAULT_NOT_READY_FOR", "3s");
        let service = world.start().await;
        let erased = stored(&world, &service, 1).await;
        let of_erased = shared(&service, &erased, &json!({})).await;
        let removed = service.request(Method::DELETE, &erased).send().await.unwrap();
        assert!(removed.status().is_success(), "{}", removed.status());
        let failing = world.record(2);
        world.simulator.always(failing.recording, Some(Fault::NotReady));
        service.deliver(&world.callback(failing.recording)).await;
        let of_failed = shared(&service, &format!("/v1/recordings/{}", failing.recording), &json!({})).await;
        service.recording_in(failing.recording, "failed").await;
        for (path, expected) in [(of_erased, (410, "erased")), (of_failed, (424, "recording_failed"))] {
            let (status, code) = problem(open(&world, &service, &path).await).await;
            assert_eq!((status, code.as_str()), expected);
        }
    }

    async fn what_has_no_audio_is_not_shared(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        let absent = world.simulator.callback(id.recording, "absent").unwrap();
        service.deliver(&absent).await;
        service.recording_in(id.recording, "absent").await;
        let refused = share(&service, &format!("/v1/recordings/{}", id.recording), &json!({})).await;
        assert_eq!(problem(refused).await, (404, "recording_absent".to_owned()));
    }

    async fn pages_of_the_origins_that_are_named_may_call_and_others_are_not_told(world: World) {
        let (ours, other) = ("https://app.example.com", "https://app.example.com.evil.example");
        world.set("CALLVAULT_CORS_ORIGINS", format!("{ours},http://localhost:3000"));
        let service = world.start().await;
        let of = stored(&world, &service, 1).await;
        let shared = shared(&service, &of, &json!({})).await;
        for path in [format!("{of}/link"), "/v1/nothing".to_owned(), shared.clone()] {
            let preflight = |origin: &str| {
                world.http.request(Method::OPTIONS, format!("{}{path}", service.url))
                    .header("origin", origin.to_owned())
                    .header("access-control-request-method", "GET")
                    .header("access-control-request-headers", "authorization")
            };
            let allowed = preflight(ours).send().await.unwrap();
            assert_eq!(allowed.status(), StatusCode::NO_CONTENT, "{path}");
            assert_eq!(allowed.headers()["access-control-allow-origin"], ours);
            let headers = allowed.headers()["access-control-allow-headers"].to_str().unwrap();
            assert!(["Authorization", "Last-Event-ID", "Range"].iter().all(|name| headers.contains(name)), "{headers}");
            let refused = preflight(other).send().await.unwrap();
            assert!(!refused.headers().contains_key("access-control-allow-origin"));
            for (origin, is_told) in [(ours, true), (other, false), ("null", false)] {
                let answer = world.http.get(format!("{}{path}", service.url)).header("origin", origin).send().await.unwrap();
                assert_eq!(answer.headers().get("access-control-allow-origin").is_some_and(|told| told == origin), is_told);
                assert!(!answer.headers().contains_key("access-control-allow-credentials"));
                assert_eq!(answer.headers()["vary"], "origin");
                let exposed = answer.headers().get("access-control-expose-headers");
                assert_eq!(exposed.is_some_and(|names| names.to_str().unwrap().contains("Retry-After")), is_told);
            }
        }
        let elsewhere = world.http.get(format!("{}/healthz", service.url)).header("origin", ours).send().await.unwrap();
        assert!(!elsewhere.headers().contains_key("access-control-allow-origin"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_was_played_is_played_on_while_the_catalog_is_away() {
    let postgres = Postgres::start();
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DATABASE_URL", postgres.new_database().await);
    let service = world.start().await;
    let of = stored(&world, &service, 1).await;
    let path = shared(&service, &of, &json!({})).await;
    let short = shared(&service, &of, &json!({"expires_in": 1})).await;
    assert_eq!(open(&world, &service, &path).await.status(), StatusCode::TEMPORARY_REDIRECT);
    postgres.stop();
    assert_eq!(open(&world, &service, &path).await.status(), StatusCode::TEMPORARY_REDIRECT);
    let over = eventually("the other is over all the same", async || {
        let answer = open(&world, &service, &short).await;
        (answer.status() != StatusCode::TEMPORARY_REDIRECT).then_some(answer)
    });
    assert_eq!(problem(over.await).await, (410, "expired".to_owned()));
}
