//! The feed over HTTP: pages, waiting, and streams.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::SimulatedRecording;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::keys::{HOLDS_WITHIN, ask, create, keys_done};
use crate::support::cluster::Dice;
use crate::support::world::{ACCOUNT, Parts, Service, World, call_sid, recording_id, started_at};
use crate::support::{PATIENCE, eventually, seed};

/// Lets a node hear that Twilio records: one event, and nothing to fetch.
pub async fn announce(world: &World, service: &Service, number: u32) {
    let id = world.record(number);
    let callback = world.simulator.callback(id.recording, "in-progress").unwrap();
    assert_eq!(service.send(&callback).await.status(), StatusCode::NO_CONTENT);
}

async fn page(service: &Service, query: &str) -> (Vec<Value>, String) {
    let (status, body) = service.json(&format!("/v1/events?{query}")).await;
    assert_eq!(status, StatusCode::OK, "{query}: {body}");
    (body["events"].as_array().unwrap().clone(), body["next"].as_str().unwrap().to_owned())
}

/// The recordings of events, by their numbers.
fn numbers(events: &[Value]) -> Vec<u32> {
    let number = |event: &Value| {
        let sid = event["recording"]["recording_sid"].as_str().unwrap();
        u32::from_str_radix(&sid[2..], 16).unwrap()
    };
    events.iter().map(number).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

/// A stream of the feed as a client reads it.
struct Stream {
    answer: reqwest::Response,
    text: String,
}

#[derive(Debug, PartialEq)]
enum Block {
    Event {
        id: String,
        kind: String,
        data: Value,
    },
    Comment,
    /// The wait before coming back, or a place to go on from.
    Other(String),
}

impl Stream {
    async fn open(service: &Service, query: &str, last_event_id: Option<&str>) -> Self {
        let request = service.request(Method::GET, &format!("/v1/events?{query}"));
        let mut request = request.header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, text: String::new() }
    }

    /// The next block; None where the stream has ended in order.
    async fn next(&mut self) -> Option<Block> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(Self::read(&block));
            }
            let chunk = tokio::time::timeout(PATIENCE, self.answer.chunk()).await.expect("something comes");
            self.text.push_str(std::str::from_utf8(&chunk.expect("the stream does not break off")?).unwrap());
        }
    }

    fn read(block: &str) -> Block {
        let field =
            |name: &str| block.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
        match (field("id"), field("event"), field("data")) {
            (Some(id), Some(kind), Some(data)) => Block::Event { id, kind, data: serde_json::from_str(&data).unwrap() },
            _ if block.starts_with(':') => Block::Comment,
            _ => Block::Other(block.to_owned()),
        }
    }

    async fn next_event(&mut self) -> (String, Value) {
        loop {
            match self.next().await.expect("the stream goes on") {
                Block::Event { id, kind, data } => {
                    assert_eq!((&json!(id), &json!(kind)), (&data["id"], &data["type"]));
                    return (id, data);
                }
                Block::Comment | Block::Other(_) => {}
            }
        }
    }
}

on_all_parts! {
    async fn a_page_tells_what_happened_in_its_order_and_the_recording_as_it_is_now(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        let stored = service.recording_in(id.recording, "stored").await;
        let events = eventually("both events are there", async || {
            let (events, _) = page(&service, "wait=0").await;
            (events.len() == 2).then_some(events)
        })
        .await;
        assert_eq!(kinds(&events), ["recording.accepted", "recording.stored"]);
        for event in &events {
            let mut shown = stored.clone();
            shown.as_object_mut().unwrap().remove("history");
            assert_eq!(event["recording"], shown);
            assert_eq!(event["account_sid"], ACCOUNT);
            assert!(event["at"].as_str().unwrap().ends_with('Z'), "{event}");
            let fields: Vec<_> = event.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(fields, ["account_sid", "at", "detail", "id", "recording", "type"]);
        }
        let ids: Vec<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
        assert!(ids[0] < ids[1]);
        let (rest, next) = page(&service, &format!("wait=0&after={}", ids[0])).await;
        assert_eq!((rest, next.as_str()), (events[1..].to_vec(), ids[1]));
        let (first, next) = page(&service, "limit=1").await;
        assert_eq!((first, next.as_str()), (events[..1].to_vec(), ids[0]));
        let (none, latest) = page(&service, "wait=0&after=latest").await;
        assert_eq!((none, latest.as_str()), (vec![], ids[1]));
    }

    async fn a_reader_chooses_types_accounts_and_calls_under_any_of_their_names(world: World) {
        let other = format!("AC{}", "b".repeat(32));
        world.add_account(other.parse().unwrap());
        let service = world.start().await;
        for number in 1..=2 {
            let id = world.record(number);
            service.deliver(&world.callback(id.recording)).await;
            service.recording_in(id.recording, "stored").await;
        }
        let child = call_sid(77);
        let url = format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", recording_id(2).recording);
        assert_eq!(service.put(child, &url).await.status(), StatusCode::OK);
        eventually("all events are there", async || {
            let (events, _) = page(&service, "wait=0").await;
            (events.len() == 4).then_some(())
        })
        .await;
        let chosen = async |query: &str| {
            let (events, _) = page(&service, &format!("wait=0&{query}")).await;
            (numbers(&events), kinds(&events).iter().map(|kind| kind.replace("recording.", "")).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(chosen("type=recording.stored").await, (vec![1, 2], "stored stored".to_owned()));
        let both = "type=recording.stored&type=recording.accepted&type=recording.stored";
        assert_eq!(chosen(both).await.0.len(), 4);
        assert_eq!(chosen(&format!("call_sid={}", call_sid(2))).await, (vec![2, 2], "accepted stored".to_owned()));
        assert_eq!(chosen(&format!("call_sid={child}")).await, (vec![2, 2], "accepted stored".to_owned()));
        assert_eq!(chosen(&format!("call_sid={}", call_sid(9))).await.0, Vec::<u32>::new());
        assert_eq!(chosen(&format!("account_sid={ACCOUNT}")).await.0.len(), 4);
        assert_eq!(chosen(&format!("account_sid={other}")).await.0, Vec::<u32>::new());
    }

    async fn what_makes_no_sense_is_refused_with_what_would(world: World) {
        let service = world.start().await;
        for query in [
            "after=yesterday",
            "after=1-1",
            "after=",
            "after=latest&after=latest",
            "type=recording.played",
            "type=recording.stored&type=",
            "limit=0",
            "limit=1001",
            "limit=x",
            "wait=31",
            "wait=-1",
            "account_sid=AC1",
            "call_sid=1",
        ] {
            let (status, body) = service.json(&format!("/v1/events?{query}")).await;
            assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")), "{query}");
        }
        let request = service.request(Method::GET, "/v1/events").header("accept", "text/event-stream");
        let refused = request.header("last-event-id", "nonsense").send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        let without_key = world.http.get(format!("{}/v1/events", service.url)).send().await.unwrap();
        assert_eq!(without_key.status(), StatusCode::UNAUTHORIZED);
        // The end of a catalog that was lost: all that this one has is new.
        announce(&world, &service, 1).await;
        let (events, _) = page(&service, "wait=30&after=0000000000001-000000000000999").await;
        assert_eq!(numbers(&events), [1]);
    }

    async fn whoever_waits_is_woken_by_a_commit_on_any_node_and_only_by_what_they_want(world: World) {
        let nodes = world.start_nodes(2).await;
        let (writer, reader) = (&nodes[0], nodes.last().unwrap());
        let (_, start) = page(reader, "wait=0&after=latest").await;
        let wanted = format!("wait=30&after={start}&call_sid={}", call_sid(3));
        let began = Instant::now();
        let waits = page(reader, &wanted);
        let unwanted = format!("wait=3&after={start}&type=recording.erased");
        let happens = async {
            for number in 1..=3 {
                announce(&world, writer, number).await;
            }
        };
        let ((found, next), (nothing, moved), ()) = tokio::join!(waits, page(reader, &unwanted), happens);
        assert_eq!(numbers(&found), [3]);
        assert!(found[0]["id"].as_str().unwrap() <= next.as_str());
        assert_eq!(nothing, Vec::<Value>::new());
        assert!(began.elapsed() >= Duration::from_secs(3), "it did not return early");
        assert!(moved > start, "what was looked through is behind the reader");
        let (later, _) = page(reader, &format!("wait=0&after={moved}")).await;
        assert_eq!(later, Vec::<Value>::new());
    }

    async fn a_stream_goes_on_from_its_last_event_and_ends_in_order_with_the_service(world: World) {
        let service = world.start().await;
        for number in 1..=3 {
            announce(&world, &service, number).await;
        }
        let mut stream = Stream::open(&service, "", None).await;
        assert_eq!(stream.next().await, Some(Block::Other("retry: 1000".to_owned())));
        let (_, first) = stream.next_event().await;
        let (second_id, second) = stream.next_event().await;
        assert_eq!(numbers(&[first, second]), [1, 2]);
        drop(stream);

        // The header is newer than the URL that the page was opened with.
        let mut resumed = Stream::open(&service, "after=latest", Some(&second_id)).await;
        let (_, third) = resumed.next_event().await;
        announce(&world, &service, 4).await;
        let (_, fourth) = resumed.next_event().await;
        assert_eq!(numbers(&[third, fourth]), [3, 4]);

        let mut from_now = Stream::open(&service, "after=latest", None).await;
        from_now.next().await;
        let Some(Block::Other(place)) = from_now.next().await else { panic!("no place to go on from") };
        let place = place.strip_prefix("id: ").unwrap().to_owned();
        announce(&world, &service, 5).await;
        let (_, fifth) = from_now.next_event().await;
        assert_eq!(numbers(&[fifth]), [5]);
        let (events, _) = page(&service, &format!("wait=0&after={place}")).await;
        assert_eq!(numbers(&events), [5], "whoever was cut off before it misses nothing");

        let waiting = page(&service, "wait=30&after=latest");
        let ends = async {
            service.signal("TERM");
            while let Some(block) = from_now.next().await {
                assert_eq!(block, Block::Comment);
            }
        };
        let ((nothing, _), ()) = tokio::join!(waiting, ends);
        assert_eq!(nothing, Vec::<Value>::new(), "whoever waits is answered");
        assert!(service.end().await.success());
    }

    async fn a_stream_on_which_nothing_happens_is_kept_open_by_comments(world: World) {
        let service = world.start().await;
        let mut stream = Stream::open(&service, "type=recording.erased", None).await;
        announce(&world, &service, 1).await;
        stream.next().await;
        let began = Instant::now();
        assert_eq!(stream.next().await, Some(Block::Comment));
        assert!((10..25).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    async fn a_key_sees_its_own_accounts_events_and_a_revoked_one_sees_no_more(world: World) {
        let other: AccountSid = format!("AC{}", "b".repeat(32)).parse().unwrap();
        world.add_account(other);
        let service = world.start().await;
        let (key, id) = create(&world, &["--scope", "read", "--account", &other.to_string()]);
        let foreign = RecordingId { account: other, recording: format!("RE{:032x}", 7).parse().unwrap() };
        world.simulator.add(SimulatedRecording::speech(foreign, call_sid(7), started_at()));
        announce(&world, &service, 1).await;
        let callback = world.simulator.callback(foreign.recording, "in-progress").unwrap();
        assert_eq!(service.send(&callback).await.status(), StatusCode::NO_CONTENT);
        for query in ["wait=30", &format!("wait=30&account_sid={other}"), &format!("wait=30&call_sid={}", call_sid(7))] {
            let answer = ask(&world, &service, Method::GET, &format!("/v1/events?{query}"), &key).await;
            let body: Value = answer.json().await.unwrap();
            assert_eq!(numbers(body["events"].as_array().unwrap()), [7], "{query}");
        }
        for query in [format!("wait=0&account_sid={ACCOUNT}"), format!("wait=0&call_sid={}", call_sid(1))] {
            let answer = ask(&world, &service, Method::GET, &format!("/v1/events?{query}"), &key).await;
            let body: Value = answer.json().await.unwrap();
            assert_eq!(body["events"], json!([]), "{query}");
        }
        let request = world.http.get(format!("{}/v1/events?after=latest", service.url)).bearer_auth(&key);
        let mut answer = request.header("accept", "text/event-stream").send().await.unwrap();
        assert!(answer.chunk().await.unwrap().is_some(), "the stream is open");
        // Of both accounts there is news; its own comes, and nothing of the other's before.
        announce(&world, &service, 2).await;
        let foreign = RecordingId { recording: recording_id(8).recording, ..foreign };
        world.simulator.add(SimulatedRecording::speech(foreign, call_sid(8), started_at()));
        let callback = world.simulator.callback(foreign.recording, "in-progress").unwrap();
        assert_eq!(service.send(&callback).await.status(), StatusCode::NO_CONTENT);
        let mut told = String::new();
        while !told.contains(call_sid(8).as_str()) {
            told.push_str(&String::from_utf8_lossy(&answer.chunk().await.unwrap().expect("it is open")));
        }
        assert!(!told.contains(call_sid(2).as_str()) && !told.contains(ACCOUNT), "{told}");
        keys_done(&world, &["revoke", &id.to_string()]);
        let ends = async { while let Ok(Some(_)) = answer.chunk().await {} };
        tokio::time::timeout(HOLDS_WITHIN, ends).await.expect("the stream of a revoked key ends");
    }

    async fn a_thousand_idle_readers_cost_next_to_nothing(world: World) {
        let nodes = world.start_nodes(2).await;
        let (writer, reader) = (&nodes[0], nodes.last().unwrap());
        let (_, start) = page(reader, "wait=0&after=latest").await;
        // Each waits for another call; only the last one's will have news.
        let path = |number: u32| format!("/v1/events?wait=30&after={start}&call_sid={}", call_sid(number));
        let readers = (1..=1000u32).map(|number| {
            let request = reader.request(Method::GET, &path(number));
            tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() })
        });
        let readers: Vec<_> = readers.collect();
        eventually("all of them wait", async || {
            let metrics = reader.get("/metrics").await.text().await.unwrap();
            metrics.lines().any(|line| line == "callvault_feed_readers 1000").then_some(())
        })
        .await;
        let cpu_ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", reader.pid())).unwrap();
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').map(str::to_owned).collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        eventually("a second in which they cost a tenth of a core at most", async || {
            let before = cpu_ticks();
            tokio::time::sleep(Duration::from_secs(1)).await;
            (cpu_ticks() <= before + 10).then_some(())
        })
        .await;
        announce(&world, writer, 1000).await;
        let answers: Vec<Value> = join_all(readers).await.into_iter().map(Result::unwrap).collect();
        let (woken, others): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| !answer["events"].as_array().unwrap().is_empty());
        assert_eq!(woken.len(), 1);
        assert_eq!(numbers(woken[0]["events"].as_array().unwrap()), [1000]);
        assert!(others.iter().all(|answer| answer["next"].as_str().unwrap() > start.as_str()), "all moved on");
    }
}

/// What a reader saw that stops at random and goes on, on any node.
async fn read_on_and_off(nodes: &[Service], expected: usize, mut dice: Dice) -> Vec<Value> {
    let mut seen: Vec<Value> = Vec::new();
    let mut after = String::new();
    let done = |seen: &Vec<Value>| seen.len() >= expected;
    while !done(&seen) {
        let node = dice.one_of(nodes);
        if dice.below(2) == 0 {
            let from = if after.is_empty() { String::new() } else { format!("&after={after}") };
            let (events, next) = page(node, &format!("wait=5&limit={}{from}", 1 + dice.below(200))).await;
            seen.extend(events);
            after = next;
        } else {
            let last = Some(after.as_str()).filter(|after| !after.is_empty());
            let mut stream = Stream::open(node, "", last).await;
            for _ in 0..dice.below(300) {
                if done(&seen) {
                    break;
                }
                let (id, event) = stream.next_event().await;
                seen.push(event);
                after = id;
            }
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_events_of_three_nodes_are_read_once_and_in_order_however_readers_stop_and_resume() {
    const EVENTS: u32 = 10_000;
    let world = World::new(Parts::Servers).await;
    let nodes = world.start_nodes(3).await;
    let seed = seed();
    let writes = stream::iter(1..=EVENTS).for_each_concurrent(24, |number| {
        let node = &nodes[number as usize % nodes.len()];
        let world = &world;
        async move { announce(world, node, number).await }
    });
    let readers = (0..4).map(|at| read_on_and_off(&nodes, EVENTS as usize, Dice::of(seed + at)));
    let (seen, ()) = tokio::join!(join_all(readers), writes);
    let ids = |seen: &Vec<Value>| seen.iter().map(|event| event["id"].to_string()).collect::<Vec<_>>();
    for one in &seen {
        assert!(ids(one).is_sorted_by(|a, b| a < b), "in order, none twice");
        assert_eq!(numbers(one).into_iter().collect::<HashSet<_>>().len(), EVENTS as usize, "each");
        assert_eq!(ids(one), ids(&seen[0]), "the same for every reader");
    }
}
