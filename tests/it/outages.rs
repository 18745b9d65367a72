//! PostgreSQL away, and nodes that are replaced, under load.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use callvault::domain::key::KeyId;
use callvault::domain::recording::{RecordingId, State};
use callvault::twilio::simulator::{Fault, RestFault};
use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::Value;

use crate::support::audit::{self, content};
use crate::support::cluster::{self, Node};
use crate::support::eventually;
use crate::support::servers::{Nginx, Postgres, free_port};
use crate::support::world::{Parts, World, account, call_sid, recording_id};

/// What Twilio allows, less what the way there takes.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Longer than every time limit of a statement, of a connection and of a
/// session, and than many leases. `make soak` takes two minutes.
fn outage() -> Duration {
    let seconds = std::env::var("CALLVAULT_TEST_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(15, |seconds| seconds.parse().expect("a number of seconds")))
}

/// What a restart of PostgreSQL may take.
const RESTART: Duration = Duration::from_secs(10);

/// Callbacks of one new recording after the other, and what was answered.
#[derive(Default)]
struct Load {
    number: AtomicU32,
    acknowledged: Mutex<Vec<RecordingId>>,
    refused: AtomicU32,
    over: AtomicBool,
}

impl Load {
    /// Sends callbacks to that node until the load is over.
    async fn on(&self, world: &World, node: &Node) {
        while !self.over.load(Ordering::SeqCst) {
            let id = world.record(self.number.fetch_add(1, Ordering::SeqCst) + 1);
            let began = Instant::now();
            let answer = node.send(&world.callback(id.recording)).await;
            let took = began.elapsed();
            assert!(took < ANSWERED_WITHIN, "a callback was answered after {took:?}");
            match answer.status() {
                StatusCode::NO_CONTENT => self.acknowledged.lock().unwrap().push(id),
                StatusCode::SERVICE_UNAVAILABLE => drop(self.refused.fetch_add(1, Ordering::SeqCst)),
                other => panic!("{other}: {}", answer.text().await.unwrap()),
            }
            // Twenty a second and node at most: what is tested is the outage.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Load {
    /// Plays what that node has played before, to many at once, until the load is over.
    async fn plays_on(&self, node: &Node, played: RecordingId) {
        while !self.over.load(Ordering::SeqCst) {
            // More at once than look-ups have a turn.
            let path = format!("/v1/recordings/{}/audio", played.recording);
            for answer in join_all((0..20).map(|_| node.get(&path))).await {
                assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "a hit is answered throughout");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn acknowledges_again(world: &World, node: &Node, number: u32) {
    let id = world.record(number);
    eventually("callbacks are taken again", async || {
        let answer = node.send(&world.callback(id.recording)).await;
        (answer.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
}

async fn is(world: &World, node: &Node, status: &str) {
    eventually(&format!("the node says that it is {status}"), async || {
        let answer = world.http.get(format!("{}/readyz", node.url)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        (answer.json::<Value>().await.unwrap()["status"] == status).then_some(())
    })
    .await;
}

/// Nothing that was acknowledged is lost, and what was played before is played on, whatever `outage` does to the catalog.
async fn survives(outage: impl AsyncFnOnce(&World, &Postgres, &[Node])) {
    let postgres = Postgres::start();
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "1s");
    world.set("CALLVAULT_DATABASE_URL", postgres.new_database().await);
    let nodes = cluster::start(&world, 3).await;
    let played = world.record(9100);
    assert_eq!(nodes[0].send(&world.callback(played.recording)).await.status(), StatusCode::NO_CONTENT);
    nodes[0].recording_in(played.recording, "stored").await;
    let load = Load::default();
    let loaded = join_all(nodes.iter().map(|node| load.on(&world, node)));
    let heard = join_all(nodes.iter().map(|node| load.plays_on(node, played)));
    let course = async {
        eventually("all is in motion", async || (load.acknowledged.lock().unwrap().len() > 20).then_some(())).await;
        outage(&world, &postgres, &nodes).await;
        join_all((9001..).zip(&nodes).map(|(number, node)| acknowledges_again(&world, node, number))).await;
        join_all(nodes.iter().map(|node| is(&world, node, "ok"))).await;
        load.over.store(true, Ordering::SeqCst);
    };
    tokio::join!(loaded, heard, course);
    assert!(load.refused.load(Ordering::SeqCst) > 0, "the outage was felt");

    let vault = audit::vault(&world).await;
    for id in load.acknowledged.into_inner().unwrap() {
        eventually("what was acknowledged is stored", async || {
            let row = vault.catalog.recording(&id).await.unwrap().expect("an acknowledged recording is known");
            (row.state == State::Stored).then_some(())
        })
        .await;
    }
    // What was not acknowledged may have been taken all the same.
    eventually("nothing is on its way", async || {
        audit::rows(&vault).await.iter().all(|row| row.state == State::Stored).then_some(())
    })
    .await;
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_postgres_stops_and_starts_again() {
    survives(async |world, postgres, nodes| {
        postgres.interrupt().await;
        let degraded = join_all(nodes.iter().map(|node| is(world, node, "degraded")));
        tokio::join!(degraded, tokio::time::sleep(RESTART));
        postgres.resume().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_every_byte_to_postgres_is_swallowed() {
    survives(async |world, _, nodes| {
        nodes.iter().for_each(|node| node.catalog.swallow());
        let degraded = join_all(nodes.iter().map(|node| is(world, node, "degraded")));
        tokio::join!(degraded, tokio::time::sleep(outage()));
        nodes.iter().for_each(|node| node.catalog.heal());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_every_node_loses_no_request() {
    let mut world = World::new(Parts::Servers).await;
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    world.set("CALLVAULT_PUBLIC_URL", &url);
    world.set("CALLVAULT_DRAIN", "1s");
    let mut nodes = cluster::start(&world, 3).await;
    let _nginx = Nginx::start(port, &nodes.iter().map(|node| node.port).collect::<Vec<_>>());
    let played = world.record(1);
    let webhook = format!("{url}/webhooks/twilio/recording");
    assert_eq!(
        world.callback(played.recording).send(&world.http, &webhook).await.unwrap().status(),
        StatusCode::NO_CONTENT
    );
    nodes[0].recording_in(played.recording, "stored").await;

    let (number, over) = (AtomicU32::new(1), AtomicBool::new(false));
    let (world_now, audio) = (&world, format!("{url}/v1/recordings/{}/audio", played.recording));
    let client = async || {
        while !over.load(Ordering::SeqCst) {
            let id = world_now.record(number.fetch_add(1, Ordering::SeqCst) + 1);
            let answer = world_now.callback(id.recording).send(&world_now.http, &webhook).await.unwrap();
            assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{:?}", answer.text().await);
            let request = world_now.http.get(&audio).bearer_auth(crate::support::world::ADMIN_KEY);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "{:?}", answer.text().await);
        }
    };
    let rollout = async {
        for node in &mut nodes {
            let before = number.load(Ordering::SeqCst);
            node.signal("TERM");
            assert_eq!(node.end().await.code(), Some(0));
            node.start_again(&world).await;
            assert!(number.load(Ordering::SeqCst) > before, "the load went on");
        }
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(join_all((0..6).map(|_| client())), rollout);
    for number in 1..=number.load(Ordering::SeqCst) {
        nodes[0].recording_in(recording_id(number).recording, "stored").await;
    }
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_connected_when_a_node_stops_is_still_answered() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    // Frozen, it accepts nothing: the kernel has taken these connections, and their requests.
    node.freeze().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = tokio::net::TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
        client.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
        clients.push(client);
    }
    node.signal("TERM");
    node.thaw();
    for mut client in clients {
        let mut answer = [0; 15];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
    assert_eq!(node.end().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_when_a_node_stops_is_answered_in_time() {
    let mut world = World::new(Parts::Embedded).await;
    // Whoever comes while it drains is let in, and waits on.
    world.set("CALLVAULT_DRAIN", "2s");
    world.set("CALLVAULT_SHUTDOWN_TIMEOUT", "6s");
    let service = world.start().await;
    let id = world.record(1);
    world.simulator.always(id.recording, Some(Fault::NotReady));
    assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    world.simulator.rest_fault(account(), Some(RestFault::Silent));
    let waits = [(1, "audio", 404), (1, "content", 404), (1, "link", 202), (404, "audio", 404), (404, "link", 404)];
    let waiting = join_all(waits.map(async |(call, manner, status)| {
        let answer = service.get(&format!("/v1/calls/{}/{manner}?wait=30", call_sid(call))).await;
        assert_eq!(answer.status().as_u16(), status, "{manner} of {call}");
        assert!(answer.headers().contains_key("retry-after"));
    }));
    let stopped = async {
        service.signal("TERM");
        assert_eq!(service.end().await.code(), Some(0));
    };
    tokio::join!(waiting, stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_stored_while_every_byte_to_the_store_is_swallowed() {
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    let played = world.record(1);
    assert_eq!(node.send(&world.callback(played.recording)).await.status(), StatusCode::NO_CONTENT);
    node.recording_in(played.recording, "stored").await;
    node.store.swallow();
    let id = world.record(2);
    assert_eq!(node.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    eventually("it is told", async || node.trouble("bucket_unreachable").await).await;
    assert_eq!(world.simulator.counts(id.recording).fetches, 1, "it was fetched, and the put hangs");
    node.recording_in(id.recording, "fetching").await;
    let answer = node.get(&format!("/v1/recordings/{}/audio", played.recording)).await;
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "a link needs no store");
    // What failed over resets the connections that it does not know.
    node.store.refuse();
    node.store.heal();
    node.recording_in(id.recording, "stored").await;
    is(&world, &node, "ok").await;
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_says_nothing_keeps_no_node_from_stopping() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DRAIN", "1s");
    let node = Node::start(&world).await;
    let id = world.record(1);
    assert_eq!(node.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    node.recording_in(id.recording, "stored").await;
    node.store.swallow();
    let vault = audit::vault(&world).await;
    vault.catalog.set_hold(&id, true, KeyId::from([7; 8])).await.unwrap();
    eventually("the node is at the marker that is owed", async || {
        vault.catalog.hold_markers_due(1).await.unwrap().is_empty().then_some(())
    })
    .await;
    let began = Instant::now();
    node.signal("TERM");
    assert_eq!(node.end().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(12), "it took {:?}", began.elapsed());
}
