//! Three nodes on one catalog: one fetch, and nothing lost, whoever dies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use callvault::domain::digest::Digest;
use callvault::domain::recording::{RecordingId, State};
use callvault::twilio::simulator::{Fault, speech_mp3};
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use reqwest::StatusCode;

use crate::support::audit::{self, content};
use crate::support::cluster::{self, Dice, Node, add_large, send_until_taken};
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::world::{Parts, World, call_sid};

/// The rest of a statement's answer, for rules: prepared first, then run.
const RUN: usize = 1;

async fn world() -> World {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "1s");
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_clients_on_three_nodes_cost_one_fetch() {
    let mut world = world().await;
    // No node is to fail here, and one that is too busy to renew a lease would.
    world.set("CALLVAULT_LEASE", "30s");
    let nodes = cluster::start(&world, 3).await;
    let id = world.record(1);
    world.simulator.script(id.recording, [Fault::Held(1000)]);
    assert_eq!(nodes[0].send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    let begun = AtomicUsize::new(0);
    let path = format!("/v1/calls/{}/audio?wait=30", call_sid(1));
    let clients = (0..300).map(|at| {
        let (begun, node, path) = (&begun, &nodes[at % 3], &path);
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            // A machine that is busy with other tests may not have the time for all of them at once.
            let answer = eventually("its node has the time", async || {
                let answer = node.get(path).await;
                (answer.status() != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
            });
            assert_eq!(node.follow(answer.await).await.0, speech_mp3());
        }
    });
    let released = async {
        eventually("all have asked, and the fetch has begun", async || {
            (begun.load(Ordering::SeqCst) == 300 && world.simulator.fetches() == 1).then_some(())
        })
        .await;
        world.simulator.release(id.recording);
    };
    tokio::join!(join_all(clients), released);
    assert_eq!(world.simulator.counts(id.recording).fetches, 1);
    content(&world).await;
}

/// What a time of killing came to.
#[derive(Debug, Default)]
struct Killed {
    nodes: u64,
    /// Attempts of nodes that lived, but were too slow for their leases.
    too_slow: u64,
}

impl Killed {
    fn read(&mut self, node: &Node) {
        let lost = node.log().lines().filter(|line| line.contains("the lease was lost")).count();
        self.too_slow += lost as u64;
    }
}

/// Kills a random node every few seconds, and starts it again, until `done`.
async fn kill_and_start(world: &World, nodes: &mut [Node], dice: &mut Dice, done: impl AsyncFn() -> bool) -> Killed {
    let mut killed = Killed::default();
    while !done().await {
        let at = usize::try_from(dice.below(nodes.len() as u64)).unwrap();
        nodes[at].kill();
        killed.nodes += 1;
        killed.read(&nodes[at]);
        nodes[at].start_again(world).await;
        // How often is no claim of the test: it is what "every few seconds" means.
        tokio::time::sleep(Duration::from_millis(1500 + dice.below(2000))).await;
    }
    nodes.iter().for_each(|node| killed.read(node));
    killed
}

async fn stored(vault: &callvault::vault::Vault) -> usize {
    audit::rows(vault).await.iter().filter(|row| row.state == State::Stored).count()
}

const RECORDINGS: u32 = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_recordings_survive_nodes_that_are_killed() {
    const FETCH_CONCURRENCY: u64 = 16;
    let seed = crate::support::seed();
    let mut world = world().await;
    // Kept by nodes that share two cores with all else, and over within the test.
    world.set("CALLVAULT_LEASE", "5s");
    let mut nodes = cluster::start(&world, 3).await;
    let vault = audit::vault(&world).await;
    let ids: Vec<RecordingId> = (1..=RECORDINGS).map(|number| world.record(number)).collect();
    let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    let sending = stream::iter(ids.iter().enumerate())
        .for_each_concurrent(12, |(at, id)| send_until_taken(&world, &ports, at, *id));
    let mut dice = Dice::of(seed);
    let sent = AtomicUsize::new(0);
    let killing = kill_and_start(&world, &mut nodes, &mut dice, async || {
        sent.load(Ordering::SeqCst) == 1 && stored(&vault).await == ids.len()
    });
    let ((), killed) = tokio::join!(
        async {
            sending.await;
            sent.store(1, Ordering::SeqCst)
        },
        killing
    );
    eventually("all are stored", async || (stored(&vault).await == ids.len()).then_some(())).await;

    let mut cut = 0;
    for row in audit::rows(&vault).await {
        assert_eq!(row.object.as_ref().unwrap().digest, Digest::of(&speech_mp3()), "{}", row.id);
        cut += audit::attempts_that_failed(&vault, &row).await;
    }
    let by_kills = killed.nodes * FETCH_CONCURRENCY;
    assert!(killed.nodes > 0 && cut <= by_kills + killed.too_slow, "{cut} attempts cut: {killed:?} (seed {seed})");
    let fetches = world.simulator.fetches();
    assert!(fetches <= u64::from(RECORDINGS) + cut, "{fetches} fetches, {cut} attempts cut (seed {seed})");
    content(&world).await;
}

/// The first node takes the recording while the others are frozen; once it is
/// `reached`, it is frozen in its turn, and woken when another has stored it.
async fn freeze_past_the_lease(world: &World, nodes: &[Node], id: RecordingId, reached: impl Future<Output = ()>) {
    join_all(nodes[1..].iter().map(Node::freeze)).await;
    assert_eq!(nodes[0].send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    reached.await;
    nodes[0].freeze().await;
    nodes[1..].iter().for_each(Node::thaw);
    nodes[1].recording_in(id.recording, "stored").await;
    nodes[0].thaw();
}

/// The attempt of the node that was frozen has ended without a say.
async fn loses(node: &Node, id: RecordingId) {
    eventually("the frozen node knows that it lost", async || {
        let lost = |line: &str| line.contains("an attempt ended") && line.contains("Lost");
        node.log().lines().any(|line| line.contains(&id.recording.to_string()) && lost(line)).then_some(())
    })
    .await;
}

async fn is_whole(world: &World, id: RecordingId, digest: Digest) {
    let vault = audit::vault(world).await;
    let row = vault.catalog.recording(&id).await.unwrap().unwrap();
    assert_eq!(row.object.unwrap().digest, digest);
    assert_eq!(vault.catalog.told(&id).await.unwrap().len(), 2, "accepted once, stored once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_frozen_in_the_middle_of_a_fetch_commits_nothing() {
    let world = world().await;
    let nodes = cluster::start(&world, 3).await;
    let id = world.record(1);
    world.simulator.script(id.recording, [Fault::Held(1000)]);
    let reached = eventually("the fetch is under way", async || (world.simulator.fetches() == 1).then_some(()));
    freeze_past_the_lease(&world, &nodes, id, reached).await;
    world.simulator.release(id.recording);
    loses(&nodes[0], id).await;
    assert_eq!(world.simulator.counts(id.recording).fetches, 2);
    is_whole(&world, id, Digest::of(&speech_mp3())).await;
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_comes_late_does_no_harm() {
    let world = world().await;
    let nodes = cluster::start(&world, 3).await;
    let id = world.record(1);
    nodes[0].store.rule(Rule::on(&format!("{}/{}", call_sid(1), id.recording), Act::Hold));
    freeze_past_the_lease(&world, &nodes, id, nodes[0].store.acts()).await;
    loses(&nodes[0], id).await;
    // Its lease is long gone, and the other's object is committed: now the put arrives.
    nodes[0].store.release();
    eventually("the late put is answered", async || (nodes[0].store.arrived_late() == 1).then_some(())).await;
    is_whole(&world, id, Digest::of(&speech_mp3())).await;
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_comes_late_does_no_harm() {
    let world = world().await;
    let nodes = cluster::start(&world, 3).await;
    let (id, digest) = add_large(&world, 1);
    nodes[0].store.rule(Rule::on("x-amz-copy-source", Act::Hold));
    freeze_past_the_lease(&world, &nodes, id, nodes[0].store.acts()).await;
    loses(&nodes[0], id).await;
    nodes[0].store.release();
    eventually("the late copy is answered", async || (nodes[0].store.arrived_late() == 1).then_some(())).await;
    is_whole(&world, id, digest).await;
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_comes_late_does_not_count() {
    let world = world().await;
    let nodes = cluster::start(&world, 3).await;
    let id = world.record(1);
    nodes[0].catalog.rule(Rule::on("COMMIT", Act::Hold).after("recording.stored").then(RUN));
    freeze_past_the_lease(&world, &nodes, id, nodes[0].catalog.acts()).await;
    nodes[0].catalog.release();
    loses(&nodes[0], id).await;
    is_whole(&world, id, Digest::of(&speech_mp3())).await;
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_hands_its_fetch_to_another() {
    let mut world = world().await;
    // No test outlives this lease: whoever goes on did not wait for it.
    world.set("CALLVAULT_LEASE", "1h");
    world.set("CALLVAULT_SHUTDOWN_TIMEOUT", "4s");
    let nodes = cluster::start(&world, 3).await;
    let id = world.record(1);
    world.simulator.script(id.recording, [Fault::Held(1000)]);
    join_all(nodes[1..].iter().map(Node::freeze)).await;
    assert_eq!(nodes[0].send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    eventually("the fetch is under way", async || (world.simulator.fetches() == 1).then_some(())).await;
    nodes[1..].iter().for_each(Node::thaw);
    nodes[0].signal("TERM");
    assert_eq!(nodes[0].end().await.code(), Some(0));
    let shown = nodes[1].recording_in(id.recording, "stored").await;
    assert_eq!(shown["attempts"], 2);
    let history = shown["history"].as_array().unwrap();
    assert!(history.iter().any(|entry| entry["type"] == "handed_back"), "{history:?}");
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_wakes_while_another_fetches_leaves_it_alone() {
    let world = world().await;
    let nodes = cluster::start(&world, 3).await;
    let id = world.record(1);
    world.simulator.script(id.recording, [Fault::Held(1000), Fault::Held(1000)]);
    join_all(nodes[1..].iter().map(Node::freeze)).await;
    assert_eq!(nodes[0].send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    eventually("the fetch is under way", async || (world.simulator.fetches() == 1).then_some(())).await;
    nodes[0].freeze().await;
    nodes[1..].iter().for_each(Node::thaw);
    eventually("another node fetches", async || (world.simulator.fetches() == 2).then_some(())).await;
    // Both have half of the body now, and one of them the lease.
    nodes[0].thaw();
    loses(&nodes[0], id).await;
    world.simulator.release(id.recording);
    nodes[1].recording_in(id.recording, "stored").await;
    assert_eq!(world.simulator.counts(id.recording).fetches, 2);
    is_whole(&world, id, Digest::of(&speech_mp3())).await;
    content(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_that_go_away_cancel_no_fetch() {
    let mut world = world().await;
    world.set("CALLVAULT_LEASE", "30s");
    let nodes = cluster::start(&world, 2).await;
    let id = world.record(1);
    world.simulator.script(id.recording, [Fault::Held(1000)]);
    assert_eq!(nodes[0].send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    eventually("the fetch is under way", async || (world.simulator.fetches() == 1).then_some(())).await;
    // Some wait for a link, and some may hear it already: on the node that fetches, and on another.
    let impatient = nodes.iter().flat_map(|node| ["audio", "content"].map(|manner| (node, manner)));
    let leaving = impatient.map(|(node, manner)| {
        let whole = async move { node.get(&format!("/v1/calls/{}/{manner}?wait=30", call_sid(1))).await.bytes().await };
        tokio::time::timeout(Duration::from_millis(500), whole)
    });
    assert!(join_all(leaving).await.iter().all(Result::is_err), "there was nothing to be had yet");
    world.simulator.release(id.recording);
    let shown = nodes[1].recording_in(id.recording, "stored").await;
    assert_eq!((&shown["attempts"], world.simulator.fetches()), (&1.into(), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_of_nothing_polls() {
    let mut world = world().await;
    world.set("CALLVAULT_LEASE", "30s");
    world.set("CALLVAULT_FETCH_CONCURRENCY", "1");
    let nodes = cluster::start(&world, 2).await;
    let (teller, deaf) = (&nodes[0], &nodes[1]);
    // From now on it never comes to listen.
    deaf.catalog.rule(Rule::on("LISTEN \"", Act::Reset).times(usize::MAX));
    deaf.catalog.refuse();
    deaf.catalog.heal();
    deaf.catalog.acts().await;
    deaf.freeze().await;
    let (held, other) = (world.record(1), world.record(2));
    world.simulator.script(held.recording, [Fault::Held(1000)]);
    assert_eq!(teller.send(&world.callback(held.recording)).await.status(), StatusCode::NO_CONTENT);
    eventually("the fetch is under way", async || (world.simulator.fetches() == 1).then_some(())).await;
    deaf.thaw();
    // The only place of the node that knows of it is taken.
    assert_eq!(teller.send(&world.callback(other.recording)).await.status(), StatusCode::NO_CONTENT);
    teller.recording_in(other.recording, "stored").await;
    let path = format!("/v1/calls/{}/audio?wait=30", call_sid(1));
    let released = async {
        assert_eq!(deaf.get(&format!("/v1/calls/{}/audio?wait=0", call_sid(1))).await.status(), StatusCode::NOT_FOUND);
        world.simulator.release(held.recording);
    };
    let ((played, _), ()) = tokio::join!(deaf.play(&path), released);
    assert_eq!(played, speech_mp3());
}
