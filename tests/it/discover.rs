//! Calls that nobody told of: Twilio is asked, once.

use std::time::{Duration, Instant};

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{RestFault, SimulatedRecording, speech_mp3};
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::keys;
use crate::support::eventually;
use crate::support::servers::free_port;
use crate::support::world::{
    ACCOUNT, ADMIN_KEY, Parts, Service, World, account, call_sid, debug_binary, recording_id, started_at,
};

/// Longer than any question should take.
const LONG: &str = "wait=30";

/// What Twilio was asked of calls, in order.
fn asked(world: &World) -> Vec<String> {
    let calls = world.simulator.seen().into_iter().filter(|seen| seen.target.contains("/Calls/"));
    calls.map(|seen| seen.target.split_once("/Calls/").unwrap().1.replace("?PageSize=1000", "")).collect()
}

/// The targets of one round.
fn list(call: u32) -> String {
    format!("{}/Recordings.json", call_sid(call))
}

fn itself(call: u32) -> String {
    format!("{}.json", call_sid(call))
}

async fn audio(service: &Service, call: u32, query: &str) -> (StatusCode, reqwest::header::HeaderMap, Value) {
    problem(service, &format!("/v1/calls/{}/audio?{query}", call_sid(call))).await
}

async fn problem(service: &Service, path: &str) -> (StatusCode, reqwest::header::HeaderMap, Value) {
    let answer = service.get(path).await;
    let (status, headers) = (answer.status(), answer.headers().clone());
    (status, headers, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

async fn plays(service: &Service, call: u32) {
    let (bytes, _) = service.play(&format!("/v1/calls/{}/audio?{LONG}", call_sid(call))).await;
    assert_eq!(bytes, speech_mp3());
}

async fn is_not_found(service: &Service, call: u32) {
    for manner in ["audio", "link"] {
        let (status, _, body) = problem(service, &format!("/v1/calls/{}/{manner}?{LONG}", call_sid(call))).await;
        assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &"not_found".into()), "{manner}: {body}");
    }
}

/// Still asked: the same for audio and for links, and nobody is to keep it.
async fn is_not_ready(service: &Service, call: u32, query: &str) {
    for manner in ["audio", "link"] {
        let (status, headers, body) = problem(service, &format!("/v1/calls/{}/{manner}?{query}", call_sid(call))).await;
        assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &"not_ready".into()), "{manner}: {body}");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(headers["cache-control"], "no-store");
        assert!(headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    }
}

async fn is_unavailable(service: &Service, call: u32) {
    for manner in ["audio", "link"] {
        let (status, headers, body) = problem(service, &format!("/v1/calls/{}/{manner}?{LONG}", call_sid(call))).await;
        assert_eq!((status, &body["code"]), (StatusCode::SERVICE_UNAVAILABLE, &"unavailable".into()), "{body}");
        assert!(headers.contains_key("retry-after"));
    }
}

/// Waits until the call is known, without asking for its audio: that would have Twilio asked.
async fn becomes_known(service: &Service, call: u32) {
    eventually("the call is known", async || {
        let (status, _) = service.json(&format!("/v1/calls/{}", call_sid(call))).await;
        (status == StatusCode::OK).then_some(())
    })
    .await;
}

/// Questions that ended so, on that node.
async fn counted(service: &Service, outcome: &str) -> u64 {
    let metrics = service.get("/metrics").await.text().await.unwrap();
    let name = format!("callvault_questions_total{{outcome=\"{outcome}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("{name} is not counted")).parse().unwrap()
}

fn record_of(world: &World, account: AccountSid, number: u32) {
    let id = RecordingId { account, ..recording_id(number) };
    world.simulator.add(SimulatedRecording::speech(id, call_sid(number), started_at()));
}

on_all_parts! {
    async fn an_unknown_call_is_found_by_its_own_sid_and_by_its_legs(world: World) {
        let service = world.start().await;
        world.record(1);
        plays(&service, 1).await;
        assert_eq!(asked(&world), [list(1)]);

        world.record(2);
        world.simulator.add_child_call(call_sid(20), call_sid(2));
        plays(&service, 20).await;
        assert_eq!(asked(&world)[1..], [list(20), itself(20), list(2)]);
        let shown = service.recording_in(recording_id(2).recording, "stored").await;
        assert_eq!(shown["call_sid"], call_sid(2).to_string());
        assert!(shown["key"].as_str().unwrap().starts_with(call_sid(2).as_str()), "{shown}");
        assert_eq!(shown["history"][0]["detail"]["by"], "request");

        // A parent that is known is not asked for.
        world.simulator.add_child_call(call_sid(10), call_sid(1));
        plays(&service, 10).await;
        assert_eq!(asked(&world)[4..], [list(10), itself(10)]);

        // From then on each name is known, and the next process knows it too.
        let service = {
            let port = service.port;
            drop(service);
            world.start_on(port, debug_binary()).await
        };
        for call in [1, 10, 2, 20] {
            plays(&service, call).await;
        }
        assert_eq!(asked(&world).len(), 6);
        assert_eq!(world.simulator.fetches(), 2);
    }

    async fn a_call_that_twilio_does_not_know_costs_one_question(world: World) {
        const CLIENTS: usize = 10;
        const REQUESTS: usize = 100;
        let nodes = world.start_nodes(3).await;
        let began = Instant::now();
        let clients = (0..CLIENTS).map(async |client| {
            for request in 0..REQUESTS {
                let (status, _, body) = audio(&nodes[(client + request) % nodes.len()], 404, LONG).await;
                assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &"not_found".into()), "{body}");
            }
        });
        join_all(clients).await;
        // The answer holds for 10 s, the next for 20 s: a machine that is slow may see it asked again.
        let took = began.elapsed().as_secs();
        let rounds = 1 + [10, 30, 70, 150].iter().filter(|ends| took >= **ends).count();
        let asked = asked(&world);
        assert_eq!(asked[..2], [list(404), itself(404)]);
        assert!(asked.len() <= 2 * rounds, "{} in {took} s", asked.len());
        let mut nothing = 0;
        for node in &nodes {
            nothing += counted(node, "nothing").await;
        }
        assert_eq!(nothing as usize, asked.len() / 2);
    }

    async fn many_who_want_an_unknown_call_share_one_question_and_one_fetch(world: World) {
        let nodes = world.start_nodes(3).await;
        let id = world.record(1);
        world.simulator.add_child_call(call_sid(10), call_sid(1));
        // Held until all of them wait, some on each node.
        world.simulator.rest_fault(account(), Some(RestFault::Silent));
        let waiting = join_all((0..30).map(|at| plays(&nodes[at % nodes.len()], 10)));
        let lift = async {
            join_all(nodes.iter().map(|node| is_not_ready(node, 10, "wait=0"))).await;
            world.simulator.rest_fault(account(), None);
        };
        tokio::join!(waiting, lift);
        assert_eq!(asked(&world), [list(10), itself(10), list(1)]);
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
    }

    async fn news_that_comes_later_ends_the_nothing(world: World) {
        let service = world.start().await;
        // A call and its leg, of which nothing is recorded yet.
        for call in [1, 10, 2] {
            world.simulator.add_call(account(), call_sid(call));
        }
        world.simulator.add_child_call(call_sid(10), call_sid(1));
        for call in [1, 10, 2] {
            is_not_found(&service, call).await;
        }
        let before = asked(&world).len();
        let id = world.record(1);
        assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
        plays(&service, 1).await;
        assert_eq!(asked(&world).len(), before);
        plays(&service, 10).await;
        assert_eq!(asked(&world)[before..], [list(10), itself(10)]);
        // So does what an application names.
        let url = format!("/2010-04-01/Accounts/{}/Recordings/{}", account(), id.recording);
        assert!(service.put(call_sid(2), &url).await.status().is_success());
        plays(&service, 2).await;
        assert_eq!(asked(&world).len(), before + 2);
    }

    async fn while_twilio_cannot_be_asked_nothing_is_said_and_nothing_remembered(world: World) {
        let service = world.start().await;
        world.record(1);
        for fault in [RestFault::Status(500), RestFault::Status(503), RestFault::RateLimited { retry_after: None }] {
            world.simulator.rest_fault(account(), Some(fault));
            is_unavailable(&service, 1).await;
        }
        world.simulator.rest_fault(account(), None);
        plays(&service, 1).await;
        assert!(counted(&service, "unavailable").await > 0);
    }

    async fn an_account_that_is_left_alone_is_not_asked(world: World) {
        let service = world.start().await;
        world.record(1);
        world.simulator.refuse_credentials(account(), true);
        is_unavailable(&service, 1).await;
        // From then on only probes are sent.
        let is_paused = async || {
            let (_, ready) = service.json("/readyz").await;
            ready["problems"].as_array()?.iter().any(|problem| problem["code"] == "accounts_paused").then_some(())
        };
        eventually("the account is paused", is_paused).await;
        let before = asked(&world).len();
        is_unavailable(&service, 1).await;
        assert_eq!(asked(&world).len(), before);
        world.simulator.refuse_credentials(account(), false);
        eventually("it is asked again", async || {
            (audio(&service, 1, LONG).await.0 == StatusCode::TEMPORARY_REDIRECT).then_some(())
        })
        .await;
    }

    async fn a_question_that_is_open_is_not_ready_and_goes_on_without_its_client(world: World) {
        let service = world.start().await;
        for call in [1, 2, 3] {
            world.record(call);
        }
        world.simulator.rest_fault(account(), Some(RestFault::Silent));
        let began = Instant::now();
        is_not_ready(&service, 1, "wait=1").await;
        assert!(began.elapsed() >= Duration::from_secs(2), "each was waited for");
        // One that does not wait, and one that goes away.
        is_not_ready(&service, 2, "wait=0").await;
        {
            let mut leaves = std::pin::pin!(audio(&service, 3, LONG));
            tokio::select! {
                _ = &mut leaves => panic!("there is no answer yet"),
                () = is_not_ready(&service, 3, "wait=0") => {}
            }
        }
        world.simulator.rest_fault(account(), None);
        for call in [2, 3] {
            becomes_known(&service, call).await;
        }
    }

    async fn every_account_is_asked_and_none_waits_for_another(world: World) {
        let second: AccountSid = format!("AC{}", "b".repeat(32)).parse().unwrap();
        world.add_account(second);
        let service = world.start().await;
        for number in [1, 2, 3] {
            record_of(&world, second, number);
        }
        world.simulator.rest_fault(account(), Some(RestFault::Silent));
        plays(&service, 1).await;
        is_not_ready(&service, 404, "wait=1").await;
        // Nor where one of them is asked for more than it may be.
        for number in 1000..1100 {
            audio(&service, number, "wait=0").await;
        }
        plays(&service, 3).await;
        world.simulator.rest_fault(account(), Some(RestFault::Status(500)));
        plays(&service, 2).await;
        // It might be the one's that cannot be asked.
        is_unavailable(&service, 405).await;
        world.simulator.rest_fault(account(), None);
        is_not_found(&service, 405).await;
        let shown = service.recording_in(recording_id(1).recording, "stored").await;
        assert_eq!(shown["account_sid"], second.to_string());
    }

    async fn only_accounts_that_the_key_may_see_are_asked(world: World) {
        let second: AccountSid = format!("AC{}", "b".repeat(32)).parse().unwrap();
        world.add_account(second);
        let service = world.start().await;
        record_of(&world, second, 1);
        let bound = |account: &str| keys::create(&world, &["--scope", "read", "--account", account]).0;
        let status = async |call: u32, key: &str| {
            let path = format!("/v1/calls/{}/audio?{LONG}", call_sid(call));
            keys::ask(&world, &service, Method::GET, &path, key).await.status()
        };
        let asked_of = |account: &str| {
            let of = |target: &str| target.contains(&format!("/Accounts/{account}/Calls/"));
            world.simulator.seen().iter().filter(|seen| of(&seen.target)).count()
        };
        let (theirs, ours) = (bound(second.as_str()), bound(ACCOUNT));
        assert_eq!(status(404, &theirs).await, StatusCode::NOT_FOUND);
        assert_eq!(status(1, &theirs).await, StatusCode::TEMPORARY_REDIRECT);
        assert_eq!((asked_of(second.as_str()), asked_of(ACCOUNT)), (3, 0));
        // Whose key sees only the other account has that one asked, though the call is known.
        assert_eq!(status(1, &ours).await, StatusCode::NOT_FOUND);
        assert_eq!((asked_of(second.as_str()), asked_of(ACCOUNT)), (3, 2));
    }

    async fn what_twilio_lists_is_taken_as_it_says(world: World) {
        let service = world.start().await;
        for (number, status) in (1..).zip(["deleted", "absent", "in-progress", "failed"]) {
            let recording = SimulatedRecording::speech(recording_id(number), call_sid(number), started_at());
            world.simulator.add(SimulatedRecording { status: status.to_owned(), ..recording });
        }
        let answers = async |call: u32, query: &str| audio(&service, call, query).await.2["code"].clone();
        assert_eq!(answers(1, LONG).await, "not_found");
        assert_eq!(answers(2, LONG).await, "recording_absent");
        assert_eq!(answers(4, LONG).await, "recording_failed");
        // It is known by then, and waited for.
        assert_eq!(answers(3, "wait=5").await, "not_ready");
        let (_, shown) = service.json(&format!("/v1/recordings/{}", recording_id(3).recording)).await;
        assert_eq!(shown["state"], "announced");
        let (_, shown) = service.json(&format!("/v1/recordings/{}", recording_id(1).recording)).await;
        assert_eq!(shown["code"], "not_found");
    }

    async fn lists_calls_and_recordings_never_ask(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        for (path, status) in [
            (format!("/v1/calls/{}", call_sid(1)), StatusCode::NOT_FOUND),
            (format!("/v1/recordings?call_sid={}", call_sid(1)), StatusCode::OK),
            (format!("/v1/recordings/{}", id.recording), StatusCode::NOT_FOUND),
            (format!("/v1/recordings/{}/audio?{LONG}", id.recording), StatusCode::NOT_FOUND),
            (format!("/v1/recordings/{}/link?{LONG}", id.recording), StatusCode::NOT_FOUND),
        ] {
            assert_eq!(service.get(&path).await.status(), status, "{path}");
        }
        assert_eq!(world.simulator.seen(), []);
    }

    async fn a_node_asks_so_much_at_once_and_no_more(world: World) {
        const OPEN_MAX: u32 = 64;
        let service = world.start().await;
        world.simulator.rest_fault(account(), Some(RestFault::Silent));
        let flood = (0..OPEN_MAX + 20).map(|number| audio(&service, 1000 + number, "wait=0"));
        for (status, _, body) in join_all(flood).await {
            assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &"not_ready".into()), "{body}");
        }
        // Beyond it nothing is asked, unless there is room again in time.
        assert_eq!(counted(&service, "refused").await, 20);
        assert_eq!(audio(&service, 1, "wait=1").await.2["code"], "not_ready");
        assert_eq!(counted(&service, "refused").await, 21);
        world.simulator.rest_fault(account(), None);
        eventually("all are answered", async || {
            (counted(&service, "nothing").await == u64::from(OPEN_MAX)).then_some(())
        })
        .await;
        world.record(1);
        plays(&service, 1).await;
    }

    async fn get_waits_for_what_twilio_is_asked(world: World) {
        let service = world.start().await;
        world.record(1);
        // Nothing more can be asked: whoever wants to is told to come again.
        world.simulator.rest_fault(account(), Some(RestFault::Silent));
        join_all((0..64).map(|number| audio(&service, 1000 + number, "wait=0"))).await;
        let mut get = tokio::process::Command::new(debug_binary());
        get.args(["get", call_sid(1).as_str(), "--output", "-"])
            .env_clear()
            .env("CALLVAULT_URL", &service.url)
            .env("CALLVAULT_API_KEY", ADMIN_KEY);
        let lift = async {
            eventually("it was told to come again", async || (counted(&service, "refused").await > 0).then_some(())).await;
            world.simulator.rest_fault(account(), None);
        };
        let (got, ()) = tokio::join!(get.output(), lift);
        let got = got.unwrap();
        assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
        assert_eq!(got.stdout, speech_mp3());
    }

    async fn a_node_that_stops_lets_others_ask_at_once(world: World) {
        let service = world.start().await;
        world.record(1);
        world.simulator.rest_fault(account(), Some(RestFault::Silent));
        is_not_ready(&service, 1, "wait=0").await;
        service.signal("TERM");
        assert!(service.end().await.success());
        world.simulator.rest_fault(account(), None);
        let next = world.start().await;
        // The right itself would hold for 30 s.
        let answer = audio(&next, 1, "wait=15").await;
        assert_eq!(answer.0, StatusCode::TEMPORARY_REDIRECT, "{answer:?}");
    }

    async fn an_unreachable_twilio_is_no_answer(world: World) {
        world.set("CALLVAULT_TWILIO_ORIGIN", format!("http://127.0.0.1:{}", free_port()));
        let service = world.start().await;
        is_unavailable(&service, 1).await;
    }
}
