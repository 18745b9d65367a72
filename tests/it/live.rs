//! Listening to a recording while it is being fetched.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use callvault::domain::digest::Digest;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{Fault, speech_mp3};
use futures::future::join_all;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use super::keys;
use crate::support::cluster::{self, Node, add_large};
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::world::{ADMIN_KEY, Parts, Service, World, call_sid};

/// A listener: what has come, and what is still to come.
struct Listener {
    answer: http::HeaderMap,
    heard: Vec<u8>,
    rest: BoxStream<'static, reqwest::Result<Bytes>>,
}

impl Listener {
    fn of(response: Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        Self { answer: response.headers().clone(), heard: Vec::new(), rest: response.bytes_stream().boxed() }
    }

    async fn to(service: &Service, path: &str) -> Self {
        Self::of(service.get(path).await)
    }

    /// Waits until so many bytes have come.
    async fn hears(&mut self, bytes: usize) {
        while self.heard.len() < bytes {
            let chunk = self.rest.try_next().await.expect("no error").expect("it has not ended");
            self.heard.extend_from_slice(&chunk);
        }
    }

    /// Whether there is nothing more to hear for now.
    async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.rest.next()).await.is_err()
    }

    /// All that comes to the end; an error where it breaks off.
    async fn listen_out(mut self) -> (Vec<u8>, Result<(), reqwest::Error>) {
        loop {
            match self.rest.try_next().await {
                Ok(Some(chunk)) => self.heard.extend_from_slice(&chunk),
                Ok(None) => return (self.heard, Ok(())),
                Err(error) => return (self.heard, Err(error)),
            }
        }
    }

    async fn ends_whole(self, expected: Digest) {
        let (bytes, ended) = self.listen_out().await;
        ended.expect("it ends cleanly");
        assert_eq!(Digest::of(&bytes), expected);
    }

    async fn breaks_off(self) {
        let (bytes, ended) = self.listen_out().await;
        assert!(ended.is_err(), "it ended cleanly after {} bytes", bytes.len());
    }
}

fn content(id: RecordingId) -> String {
    format!("/v1/recordings/{}/content?wait=30", id.recording)
}

async fn fetching(world: &World, id: RecordingId) {
    eventually("the fetch is under way", async || (world.simulator.counts(id.recording).fetches == 1).then_some(()))
        .await;
}

on_all_parts! {
    async fn what_is_known_to_be_audio_is_heard_however_little_has_come(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::Held(1500)));
        service.deliver(&world.callback(id.recording)).await;
        let mut listener = Listener::to(&service, &content(id)).await;
        listener.hears(1500).await;
        assert!(listener.is_silent().await);
        world.simulator.release(id.recording);
        listener.ends_whole(Digest::of(&speech_mp3())).await;
    }

    async fn fifty_listeners_have_the_first_half_while_twilio_withholds_the_second(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        let half = speech_mp3().len() / 2;
        world.simulator.always(id.recording, Some(Fault::Held(half as u64)));
        // Half of them before anything is known of the call, half while it is fetched.
        let call = format!("/v1/calls/{}/content?wait=30", call_sid(1));
        let early = join_all((0..25).map(|_| Listener::to(&service, &call)));
        let callback = world.callback(id.recording);
        let (mut listeners, _) = tokio::join!(early, service.send(&callback));
        let path = content(id);
        listeners.extend(join_all((0..25).map(|_| Listener::to(&service, &path))).await);
        for listener in &mut listeners {
            listener.hears(half).await;
            assert_eq!(listener.heard, speech_mp3()[..half]);
            assert_eq!(listener.answer["content-type"], "audio/mpeg");
            assert_eq!(listener.answer["cache-control"], "no-store");
            for absent in ["etag", "content-length", "accept-ranges", "repr-digest"] {
                assert!(!listener.answer.contains_key(absent), "{absent}");
            }
        }
        assert!(listeners[0].is_silent().await);
        let (_, shown) = service.json(&format!("/v1/recordings/{}", id.recording)).await;
        assert_eq!(shown["state"], "fetching");
        world.simulator.release(id.recording);
        join_all(listeners.into_iter().map(|listener| listener.ends_whole(Digest::of(&speech_mp3())))).await;
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
    }

    async fn a_truncation_at_the_origin_never_ends_a_stream_cleanly(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        let len = speech_mp3().len();
        world.simulator.script(id.recording, [Fault::HeldThenTruncated(len as u64 - 2)]);
        service.deliver(&world.callback(id.recording)).await;
        fetching(&world, id).await;
        let path = content(id);
        let mut listeners = join_all((0..5).map(|_| Listener::to(&service, &path))).await;
        for listener in &mut listeners {
            listener.hears(len - 2).await;
        }
        world.simulator.release(id.recording);
        join_all(listeners.into_iter().map(Listener::breaks_off)).await;
        // The next attempt is another one.
        Listener::to(&service, &path).await.ends_whole(Digest::of(&speech_mp3())).await;
        assert_eq!(world.simulator.counts(id.recording).fetches, 2);
    }

    async fn an_origin_that_goes_away_breaks_the_streams(world: World) {
        let node = Node::start(&world).await;
        let id = world.record(1);
        world.simulator.script(id.recording, [Fault::Held(10_000)]);
        node.deliver(&world.callback(id.recording)).await;
        let mut listener = Listener::to(&node, &content(id)).await;
        listener.hears(10_000).await;
        node.twilio.refuse();
        listener.breaks_off().await;
        node.twilio.heal();
        node.recording_in(id.recording, "stored").await;
    }

    async fn ranges_and_conditions_mean_nothing_while_it_is_fetched(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::Held(10_000)));
        service.deliver(&world.callback(id.recording)).await;
        fetching(&world, id).await;
        let path = content(id);
        let asked = service.request(Method::GET, &path).header("range", "bytes=5-9").header("if-none-match", "*");
        let mut listener = Listener::of(asked.send().await.unwrap());
        listener.hears(10_000).await;
        assert_eq!(listener.heard, speech_mp3()[..10_000]);
        let named = service.get(&format!("{path}&disposition=attachment")).await;
        let disposition = named.headers()["content-disposition"].to_str().unwrap();
        assert_eq!(disposition, format!("attachment; filename=\"2026-11-23 09.30 {}.mp3\"", call_sid(1)));
        let head = service.request(Method::HEAD, &path).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        assert!(!head.headers().contains_key("content-length"), "{head:?}");
        world.simulator.release(id.recording);
        listener.ends_whole(Digest::of(&speech_mp3())).await;
    }

    async fn who_cannot_tell_an_end_from_a_break_gets_it_when_it_is_stored(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::Held(10_000)));
        service.deliver(&world.callback(id.recording)).await;
        fetching(&world, id).await;
        let mut socket = TcpStream::connect(("127.0.0.1", service.port)).unwrap();
        let request = format!("GET {} HTTP/1.0\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\r\n", content(id));
        socket.write_all(request.as_bytes()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        assert!(socket.read(&mut [0; 1]).is_err(), "nothing before it is stored");
        world.simulator.release(id.recording);
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let answer = tokio::task::spawn_blocking(move || {
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).map(|_| answer)
        });
        let answer = answer.await.unwrap().unwrap();
        let head = String::from_utf8_lossy(&answer[..1000]).to_lowercase();
        assert!(head.contains(&format!("content-length: {}\r\n", speech_mp3().len())), "{head}");
        assert!(answer.ends_with(&speech_mp3()));
    }

    async fn a_slow_listener_slows_nobody_and_goes_on_from_the_bucket(world: World) {
        let service = world.start().await;
        let (id, digest) = add_large(&world, 1);
        world.simulator.always(id.recording, Some(Fault::Held(100_000)));
        service.deliver(&world.callback(id.recording)).await;
        fetching(&world, id).await;
        let path = content(id);
        let (mut slow, fast) = tokio::join!(Listener::to(&service, &path), Listener::to(&service, &path));
        slow.hears(100_000).await;
        world.simulator.release(id.recording);
        fast.ends_whole(digest).await;
        service.recording_in(id.recording, "stored").await;
        // Of 20 MiB it had a tenth of one, and the sockets hold some more.
        assert!(slow.heard.len() < 1 << 20);
        slow.ends_whole(digest).await;
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
    }

    async fn one_who_comes_late_to_a_large_recording_gets_it_when_it_is_stored(world: World) {
        let service = world.start().await;
        let (id, digest) = add_large(&world, 1);
        world.simulator.always(id.recording, Some(Fault::Held(18 << 20)));
        service.deliver(&world.callback(id.recording)).await;
        eventually("it is being staged", async || {
            let counted = service.get("/metrics").await.text().await.unwrap();
            counted.contains("callvault_store_requests_total{method=\"POST\"} 1").then_some(())
        })
        .await;
        eventually("what came first is let go", async || {
            let answer = service.get(&format!("/v1/recordings/{}/content?wait=0", id.recording)).await;
            (answer.status() == StatusCode::NOT_FOUND).then_some(())
        })
        .await;
        world.simulator.release(id.recording);
        let answer = service.get(&content(id)).await;
        assert_eq!(answer.headers()["content-length"], (20 << 20).to_string());
        assert_eq!(Digest::of(&answer.bytes().await.unwrap()), digest);
    }

    async fn a_stream_ends_with_the_key_that_asked_for_it(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::Held(10_000)));
        service.deliver(&world.callback(id.recording)).await;
        let (key, key_id) = keys::create(&world, &["--scope", "read"]);
        let asked = world.http.get(format!("{}{}", service.url, content(id))).bearer_auth(&key).send();
        let mut revoked = Listener::of(asked.await.unwrap());
        let mut other = Listener::to(&service, &content(id)).await;
        revoked.hears(10_000).await;
        other.hears(10_000).await;
        keys::keys_done(&world, &["revoke", &key_id.to_string()]);
        tokio::time::timeout(keys::HOLDS_WITHIN, revoked.breaks_off()).await.expect("in time");
        world.simulator.release(id.recording);
        other.ends_whole(Digest::of(&speech_mp3())).await;
    }

    async fn a_node_that_stops_breaks_its_streams(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.script(id.recording, [Fault::Held(10_000)]);
        service.deliver(&world.callback(id.recording)).await;
        let mut listener = Listener::to(&service, &content(id)).await;
        listener.hears(10_000).await;
        service.kill();
        listener.breaks_off().await;
    }
}

/// A world of several nodes.
async fn cluster_of(nodes: usize) -> (World, Vec<Node>) {
    let world = World::new(Parts::Servers).await;
    let nodes = cluster::start(&world, nodes).await;
    (world, nodes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_byte_waits_for_the_store_and_for_the_commit() {
    let (world, nodes) = cluster_of(1).await;
    let node = &nodes[0];
    let len = speech_mp3().len();
    for number in [1, 2] {
        let id = world.record(number);
        match number {
            1 => node.store.rule(Rule::on(&format!("{}/{}", call_sid(1), id.recording), Act::Hold)),
            _ => node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("recording.stored").then(1)),
        }
        world.simulator.always(id.recording, Some(Fault::Held(10_000)));
        node.deliver(&world.callback(id.recording)).await;
        let mut listener = Listener::to(node, &content(id)).await;
        world.simulator.release(id.recording);
        listener.hears(len - 1).await;
        if number == 1 {
            node.store.acts().await
        } else {
            node.catalog.acts().await
        }
        assert!(listener.is_silent().await, "recording {number}");
        assert_eq!(listener.heard.len(), len - 1);
        node.store.release();
        node.catalog.release();
        listener.ends_whole(Digest::of(&speech_mp3())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_erased_flows_no_further_on_any_node() {
    let mut world = World::new(Parts::Servers).await;
    // Not because a lease is lost, which takes longer.
    world.set("CALLVAULT_LEASE", "1h");
    let nodes = cluster::start(&world, 2).await;
    let ids = [world.record(1), world.record(2)];
    let mut listeners = Vec::new();
    for id in ids {
        world.simulator.always(id.recording, Some(Fault::Held(10_000)));
        nodes[0].deliver(&world.callback(id.recording)).await;
        // Whichever node fetches it lets it be heard.
        let path = format!("/v1/recordings/{}/content?wait=5", id.recording);
        let answers = join_all(nodes.iter().map(|node| node.get(&path))).await;
        let mut heard: Vec<_> = answers.into_iter().filter(|answer| answer.status() == StatusCode::OK).collect();
        listeners.push(Listener::of(heard.pop().expect("one of them fetches it")));
    }
    for listener in &mut listeners {
        listener.hears(10_000).await;
    }
    let path = format!("/v1/recordings/{}", ids[0].recording);
    let erasing = nodes[1].request(Method::DELETE, &path).send().await.unwrap();
    assert!(erasing.status().is_success(), "{}", erasing.status());
    let kept = listeners.pop().expect("two");
    let erased = listeners.pop().expect("two");
    tokio::time::timeout(keys::HOLDS_WITHIN, erased.breaks_off()).await.expect("in time");
    world.simulator.release(ids[1].recording);
    kept.ends_whole(Digest::of(&speech_mp3())).await;
}

const STORE_403: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_the_store_did_not_take_never_end_cleanly() {
    let (world, nodes) = cluster_of(1).await;
    let node = &nodes[0];
    let id = world.record(1);
    node.store.rule(Rule::on(&format!("{}/{}", call_sid(1), id.recording), Act::Answer(STORE_403)));
    world.simulator.script(id.recording, [Fault::Held(10_000)]);
    node.deliver(&world.callback(id.recording)).await;
    let listener = Listener::to(node, &content(id)).await;
    world.simulator.release(id.recording);
    listener.breaks_off().await;
    node.recording_in(id.recording, "stored").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_on_another_node_gets_it_when_it_is_stored() {
    let (world, nodes) = cluster_of(2).await;
    let id = world.record(1);
    world.simulator.script(id.recording, [Fault::Held(10_000)]);
    nodes[1].freeze().await;
    nodes[0].deliver(&world.callback(id.recording)).await;
    fetching(&world, id).await;
    nodes[1].thaw();
    let mut near = Listener::to(&nodes[0], &content(id)).await;
    near.hears(10_000).await;
    let not_yet = nodes[1].get(&format!("/v1/recordings/{}/content?wait=0", id.recording)).await;
    assert_eq!(not_yet.status(), StatusCode::NOT_FOUND);
    assert_eq!(not_yet.json::<Value>().await.unwrap()["code"], "not_ready");
    let path = content(id);
    let far = nodes[1].get(&path);
    let release = async {
        near.hears(10_000).await;
        world.simulator.release(id.recording);
    };
    let (far, ()) = tokio::join!(far, release);
    assert_eq!(far.headers()["content-length"], speech_mp3().len().to_string());
    assert_eq!(far.bytes().await.unwrap(), speech_mp3());
    near.ends_whole(Digest::of(&speech_mp3())).await;
    assert_eq!(world.simulator.counts(id.recording).fetches, 1);
}
