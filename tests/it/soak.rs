//! The whole product under random trouble, some of it at the same time.
//!
//! The seed decides what happens to whom and in which order, so it repeats a
//! run as far as a machine does. `make test` soaks for some seconds and always
//! alike; `make soak` for as long as it is told to, with a seed of its own.

mod letting_go;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use callvault::domain::recording::State;
use callvault::twilio::simulator::Fault;
use futures::future::join_all;

use crate::support::audit;
use crate::support::cluster::{self, Dice, Node, add_large, send_until_taken};
use crate::support::eventually_none;
use crate::support::relay::{Act, Rule};
use crate::support::world::{Parts, World, recording_id};

/// Every so often a recording is large enough to be staged.
const LARGE_ONE_IN: u32 = 25;
const STORE_504: &str = "HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn soak_for() -> Duration {
    let seconds = std::env::var("CALLVAULT_TEST_SOAK_SECONDS").ok();
    Duration::from_secs(seconds.map_or(15, |seconds| seconds.parse().expect("a number of seconds")))
}

/// Adds a recording, which may meet Twilio on a bad day, and sends its callback.
async fn one_more(world: &World, ports: &[u16], number: u32, dice: &mut Dice) {
    let id = recording_id(number);
    // One whose bytes crawl takes seconds, a large one too: its pieces are the simulator's blocks.
    let (piece_bytes, wait) = if number.is_multiple_of(LARGE_ONE_IN) {
        add_large(world, number);
        (64 << 10, Duration::from_millis(10))
    } else {
        world.record(number);
        (5000, Duration::from_millis(100))
    };
    let bad_days = [
        Fault::NotReady,
        Fault::RateLimited { retry_after: None },
        Fault::Status(503),
        Fault::Html,
        Fault::Truncated(1000),
        Fault::Reset(1000),
        Fault::Slow { piece_bytes, wait },
    ];
    if dice.below(4) == 0 {
        world.simulator.script(id.recording, [dice.one_of(&bad_days).clone()]);
    }
    send_until_taken(world, ports, number as usize, id).await;
}

/// Something happens to a node, for some seconds at most; then it is well again.
async fn trouble(world: &World, node: &mut Node, dice: &mut Dice) {
    let a_while = Duration::from_millis(200 + dice.below(4000));
    match dice.below(9) {
        0 | 1 => {
            node.kill();
            node.start_again(world).await;
        }
        2 => {
            node.signal("TERM");
            assert_eq!(node.end().await.code(), Some(0));
            node.start_again(world).await;
        }
        3 => {
            node.freeze().await;
            tokio::time::sleep(a_while).await;
            node.thaw();
        }
        4 => {
            node.catalog.swallow();
            tokio::time::sleep(a_while).await;
            node.catalog.heal();
        }
        5 => {
            let link = *dice.one_of(&[&node.catalog, &node.store, &node.twilio]);
            link.refuse();
            tokio::time::sleep(a_while).await;
            link.heal();
        }
        6 => node.catalog.rule(Rule::on("COMMIT", Act::LoseAnswer).then(1).times(3)),
        7 => {
            let act = *dice.one_of(&[Act::Reset, Act::LoseAnswer, Act::AnswerInstead(STORE_504)]);
            let request = *dice.one_of::<&str>(&["PUT /", "?uploads", "?uploadId=", "DELETE /"]);
            node.store.rule(Rule::on(request, act).times(3));
        }
        _ => {
            let rule = Rule::on("x-amz-copy-source", Act::HoldAnswer);
            node.store.rule(rule);
            tokio::time::sleep(a_while).await;
            node.store.release();
        }
    }
}

/// For as long as a soak lasts one node after the other is in trouble; then it is over, and
/// nothing is cut any more.
async fn disturb(world: &World, nodes: &mut [Node], seed: u64, over: &AtomicBool) {
    let (mut dice, until) = (Dice::of(seed), Instant::now() + soak_for());
    while Instant::now() < until {
        let at = usize::try_from(dice.below(nodes.len() as u64)).unwrap();
        trouble(world, &mut nodes[at], &mut dice).await;
    }
    for node in &*nodes {
        [&node.catalog, &node.store, &node.twilio].into_iter().for_each(|link| link.release());
    }
    over.store(true, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_trouble_loses_nothing() {
    let seed = crate::support::seed();
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "2s");
    world.set("CALLVAULT_RECHECK_AFTER", "3s");
    world.set("CALLVAULT_SHUTDOWN_TIMEOUT", "5s");
    let mut nodes = cluster::start(&world, 3).await;
    let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    let (number, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let client = async |at: u64| {
        let mut dice = Dice::of(seed ^ (at << 32));
        while !over.load(Ordering::SeqCst) {
            one_more(&world, &ports, number.fetch_add(1, Ordering::SeqCst) + 1, &mut dice).await;
            // A busy day, not a race: the machine is shared with all that disturbs.
            tokio::time::sleep(Duration::from_millis(dice.below(200))).await;
        }
    };
    let disturbing = disturb(&world, &mut nodes, seed, &over);
    tokio::join!(disturbing, join_all((1..=4).map(client)));
    let vault = audit::vault(&world).await;
    assert_eq!(audit::rows(&vault).await.len(), number.load(Ordering::SeqCst) as usize, "each callback was taken");
    eventually_none("all are stored", async || {
        audit::rows(&vault).await.into_iter().filter(|row| row.state != State::Stored).collect()
    })
    .await;
    // What attempts of unknown outcome left behind is the recheck's to clear away.
    audit::content_in_the_end(&world).await;
    eprintln!("{} recordings went through it (CALLVAULT_TEST_SEED={seed})", number.into_inner());
}
