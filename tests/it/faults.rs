//! The fault matrix: each step of a recording's way meets each fault that can
//! occur there, once; after each the auditor looks.
//!
//! A pair brings one node to a step, lets the fault happen there, and then asks
//! for what always holds: what was acknowledged is stored, what was not is taken
//! when it is sent again, and catalog, bucket, feed and origin agree. Pairs that
//! need a second node, or a catalog behind a link, run on PostgreSQL with three
//! nodes; the others on SQLite. `target/fault-matrix.md` tells which ran where.

mod clock;
mod lane;

use std::fmt::Write as _;
use std::sync::Mutex;

use futures::future::join_all;

pub(crate) use clock::faketime;
use lane::Lane;

/// Where on its way a recording is when the fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Receive,
    Verify,
    Commit,
    Acknowledge,
    Claim,
    Connect,
    Headers,
    MidBody,
    BeginPut,
    Part,
    Complete,
    CommitStored,
    Release,
    Redirect,
}
use Step::*;

const STEPS: [(Step, &str); 14] = [
    (Receive, "receive"),
    (Verify, "verify"),
    (Commit, "commit"),
    (Acknowledge, "acknowledge"),
    (Claim, "claim"),
    (Connect, "connect"),
    (Headers, "headers"),
    (MidBody, "mid-body"),
    (BeginPut, "begin put"),
    (Part, "part"),
    (Complete, "complete"),
    (CommitStored, "commit stored"),
    (Release, "release"),
    (Redirect, "redirect"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Freeze,
    CatalogGone,
    UnknownOutcome,
    Store503,
    StoreReset,
    StoreTimeOut,
    OriginReset,
    Truncation,
    RateLimits,
    Html,
    ClockOff,
}
use Fault::*;

const FAULTS: [(Fault, &str); 12] = [
    (Kill, "kill -9"),
    (Freeze, "SIGSTOP past the lease"),
    (CatalogGone, "catalog gone"),
    (UnknownOutcome, "commit with unknown outcome"),
    (Store503, "store 503"),
    (StoreReset, "store reset"),
    (StoreTimeOut, "store success reported as time-out"),
    (OriginReset, "origin reset"),
    (Truncation, "truncation"),
    (RateLimits, "429 storm"),
    (Html, "200 with HTML"),
    (ClockOff, "clock off by 20 min"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// One node on SQLite.
    Sqlite,
    /// Three nodes on PostgreSQL.
    Postgres,
}

/// Where a pair runs; None where it cannot occur.
fn stage(step: Step, fault: Fault) -> Option<Stage> {
    let store = matches!(step, BeginPut | Part | Complete);
    let occurs = match fault {
        Kill | Freeze | CatalogGone => true,
        UnknownOutcome => matches!(step, Commit | Claim | CommitStored | Release),
        Store503 | StoreReset | StoreTimeOut => store,
        OriginReset => matches!(step, Connect | Headers | MidBody),
        Truncation | Html => step == MidBody,
        RateLimits => step == Headers,
        ClockOff => CLOCK_STEPS.contains(&step),
    };
    // A step of SQLite's own cannot be stopped at: it is a call within the process.
    let in_catalog = matches!(step, Verify | Commit | Acknowledge | Claim | CommitStored | Release | Redirect);
    let stage =
        if in_catalog || matches!(fault, Freeze | CatalogGone | ClockOff) { Stage::Postgres } else { Stage::Sqlite };
    occurs.then_some(stage)
}

/// Where a node with a wrong clock still goes, or stops: one world has all of them.
const CLOCK_STEPS: [Step; 6] = [Receive, Verify, Commit, Acknowledge, Claim, Redirect];

/// What ran, for the table.
static RAN: Mutex<Vec<(Step, Fault, Stage)>> = Mutex::new(Vec::new());

async fn run_lane(stage: Stage, pairs: Vec<(Step, Fault)>) {
    let mut lane = Lane::on(stage).await;
    for (number, (step, fault)) in (1..).zip(pairs) {
        lane.run(number, step, fault).await;
        RAN.lock().unwrap().push((step, fault, stage));
    }
}

async fn run_clock() {
    clock::is_off().await;
    RAN.lock().unwrap().extend(CLOCK_STEPS.map(|step| (step, ClockOff, Stage::Postgres)));
}

fn pairs(on: Stage) -> Vec<(Step, Fault)> {
    let all = STEPS.iter().flat_map(|(step, _)| FAULTS.iter().map(|(fault, _)| (*step, *fault)));
    all.filter(|(step, fault)| *fault != ClockOff && stage(*step, *fault) == Some(on)).collect()
}

fn table() -> String {
    let ran = RAN.lock().unwrap();
    let mut text = "# The fault matrix of the last run\n\nA pair is a step at which a fault happened; after each the \
                    auditor found catalog, bucket, feed and origin in agreement. S: one node on SQLite, P: three nodes \
                    on PostgreSQL, –: cannot occur.\n\n| |"
        .to_owned();
    FAULTS.iter().for_each(|(_, name)| write!(text, " {name} |").unwrap());
    write!(text, "\n|---|{}\n", "---|".repeat(FAULTS.len())).unwrap();
    for (step, name) in STEPS {
        write!(text, "| {name} |").unwrap();
        for (fault, _) in FAULTS {
            let cell = ran.iter().find(|(at, what, _)| (*at, *what) == (step, fault));
            let cell = match cell {
                Some((.., Stage::Sqlite)) => "S",
                Some((.., Stage::Postgres)) => "P",
                None if stage(step, fault).is_some() => "did not run",
                None => "–",
            };
            write!(text, " {cell} |").unwrap();
        }
        text.push('\n');
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_at_every_step_leaves_what_always_holds() {
    const LANES: usize = 3;
    let only = std::env::var("CALLVAULT_TEST_PAIRS").unwrap_or_default();
    let wanted = |(step, fault): &(Step, Fault)| format!("{fault:?}@{step:?}").contains(&only);
    let of_postgres: Vec<_> = pairs(Stage::Postgres).into_iter().filter(wanted).collect();
    let of_sqlite: Vec<_> = pairs(Stage::Sqlite).into_iter().filter(wanted).collect();
    let lane = |at: usize| of_postgres.iter().skip(at).step_by(LANES).copied().collect();
    let mut lanes: Vec<_> = (0..LANES).map(|at| run_lane(Stage::Postgres, lane(at))).collect();
    lanes.push(run_lane(Stage::Sqlite, of_sqlite));
    // Written whatever happens: it tells how far the run came.
    let _table = Table;
    let clock = async {
        if "ClockOff".contains(&only) {
            run_clock().await;
        }
    };
    tokio::join!(join_all(lanes), clock);
}

struct Table;

impl Drop for Table {
    fn drop(&mut self) {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fault-matrix.md");
        let _ = std::fs::write(file, table());
    }
}
