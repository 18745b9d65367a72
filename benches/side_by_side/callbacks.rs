//! P10 and P11: what the catalog does, under load and when it is full.

use std::sync::Arc;
use std::time::{Duration, Instant};

use callvault::catalog::{Catalog, Claimant, ListFilter, PostgresCatalog, Wish};
use callvault::domain::retry::Policy;
use callvault::twilio::simulator::Fault;

use crate::rounds::{Comparison, Goal, quantile, rounds, tell_alone};
use crate::support::servers::Postgres;
use crate::support::world::{Parts, World, account, recording_id};
use crate::{rows, setting};

/// P10: the slowest hundredth of callbacks at 1,000 a second, each synced to the disk.
pub async fn callbacks() {
    const EACH: Duration = Duration::from_millis(1);
    const ROUND: u32 = 3000;
    let postgres = Postgres::start_durable();
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DATABASE_URL", postgres.new_database().await);
    world.set("CALLVAULT_LOG", "info");
    // Nothing is fetched meanwhile: it is the callbacks that are measured.
    world.simulator.always_of(account(), Some(Fault::Silent));
    world.set("CALLVAULT_FETCH_CONCURRENCY", "1");
    let service = Arc::new(world.start().await);
    let mut slowest = Vec::new();
    for round in 0..u32::try_from(rounds()).expect("few") {
        let began = tokio::time::Instant::now();
        let numbers = round * ROUND..(round + 1) * ROUND;
        let sent: Vec<_> = (0u32..)
            .zip(numbers)
            .map(|(at, number)| {
                let callback = world.callback(world.record(number).recording);
                let service = service.clone();
                // From when it was due, however late it was sent: nobody waits for the one before.
                let due = began + Duration::from_millis(500) + EACH * at;
                tokio::spawn(async move {
                    tokio::time::sleep_until(due).await;
                    assert_eq!(service.send(&callback).await.status(), 204);
                    due.elapsed().as_secs_f64() * 1e3
                })
            })
            .collect();
        let taken = futures::future::join_all(sent).await;
        let mut taken: Vec<f64> = taken.into_iter().map(|one| one.expect("a callback is taken")).collect();
        slowest.push(quantile(&mut taken, 0.99));
    }
    tell_alone("P10", "signed callback, durable, 1,000 a second: p99", "ms", &slowest, Goal::AtMost(10.0));
    postgres.stop();
}

/// P11: the slowest hundredth of look-ups, lists and claims, in a full catalog beside an almost empty one.
pub async fn sizes() {
    let many = setting("CALLVAULT_BENCH_ROWS", 1_000_000u32);
    let (full, empty) = (Filled::with(many).await, Filled::with(10_000).await);
    let comparison = |work| Comparison { id: "P11", work, unit: "ms p99", peer: "10k rows", goal: Goal::AtMost(1.5) };
    comparison("look-up").run(async || full.look_up().await, async || empty.look_up().await).await;
    comparison("list").run(async || full.list().await, async || empty.list().await).await;
    comparison("claim").run(async || full.claim().await, async || empty.claim().await).await;
    println!("    of {many} rows: CALLVAULT_BENCH_ROWS says another number; the goal is for 10,000,000");
}

struct Filled {
    _world: World,
    catalog: Arc<dyn Catalog>,
    rows: u32,
}

impl Filled {
    async fn with(rows: u32) -> Self {
        let world = World::new(Parts::Servers).await;
        let url = world.settings["CALLVAULT_DATABASE_URL"].as_str();
        let catalog: Arc<dyn Catalog> = PostgresCatalog::open(&url.into(), 10).expect("a catalog");
        catalog.prepare().await.expect("PostgreSQL is up");
        catalog.nothing_is_there().await.expect("it is new");
        rows::fill(&world, 0, rows).await;
        Self { _world: world, catalog, rows }
    }

    async fn look_up(&self) -> f64 {
        let at = |turn: u32| recording_id((turn.wrapping_mul(2_654_435_761)) % self.rows);
        p99(2000, async |turn| {
            self.catalog.recording_named(at(turn).recording, None).await.expect("an answer").expect("it is there");
        })
        .await
    }

    async fn list(&self) -> f64 {
        p99(500, async |_| {
            let filter = ListFilter { accounts: Some(vec![account()]), ..ListFilter::default() };
            let (page, _) = self.catalog.list(&filter, None, 50).await.expect("a list");
            assert_eq!(page.len(), 50);
        })
        .await
    }

    async fn claim(&self) -> f64 {
        const CLAIMS: u32 = 300;
        rows::make_pending(&self._world, CLAIMS).await;
        let retry = Policy {
            base: Duration::from_secs(2),
            cap: Duration::from_secs(300),
            not_ready_for: Duration::from_secs(86_400),
        };
        let lease = Duration::from_secs(3600);
        let claimant = Claimant { node: "bench".to_owned(), lease, retry, recheck_after: lease };
        p99(CLAIMS, async |_| {
            let wish = Wish { account: account(), at_most: 1, of_backfill: 1 };
            assert_eq!(self.catalog.claim(&claimant, &[wish]).await.expect("a claim").len(), 1);
        })
        .await
    }
}

async fn p99(times: u32, mut step: impl AsyncFnMut(u32)) -> f64 {
    let mut taken = Vec::new();
    for turn in 0..times {
        let began = Instant::now();
        step(turn).await;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
    }
    quantile(&mut taken, 0.99)
}
