//! Erasing while others work on the same recording: whichever step they are at,
//! nothing comes back.

use std::process::Stdio;

use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::SimulatedRecording;
use jiff::{Timestamp, ToSpan};
use reqwest::StatusCode;

use crate::erase::{delete, marker, path};
use crate::holds::hold;
use crate::recheck::{nothing_is_owed, sql, stored};
use crate::support::bucket::{command, plant};
use crate::support::cluster::{self, Node};
use crate::support::relay::{Act, Rule};
use crate::support::world::{Parts, Service, World, account, call_sid, recording_id};
use crate::support::{audit, eventually};

/// Who works on a recording beside the one that erases it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Callback,
    Reconcile,
    Backfill,
    Reindex,
}

/// Whether somebody waits for a row that another one has locked.
pub async fn somebody_waits(world: &World) -> Option<()> {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    (sql(world, waiting.to_owned()).await > 0).then_some(())
}

fn relays_let_go(node: &Node) {
    [&node.catalog, &node.store, &node.twilio].iter().for_each(|relay| relay.release());
}

/// Erases through that service, and lets go of the node that is held up once the row
/// that it has locked is waited for, or else once it is erased.
async fn erase_beside(world: &World, eraser: &Service, held_up: &Node, id: &RecordingId, is_locked: bool) {
    let erasing = eventually("it is erased", async || {
        let status = delete(eraser, &path(id)).await.status();
        (status != StatusCode::SERVICE_UNAVAILABLE).then_some(status)
    });
    let letting_go = async {
        if is_locked {
            eventually("the erasing waits", async || somebody_waits(world).await).await;
            relays_let_go(held_up);
        }
    };
    let (status, ()) = tokio::join!(erasing, letting_go);
    assert_eq!(status, StatusCode::NO_CONTENT);
    relays_let_go(held_up);
}

/// Lets somebody do its part on the node, or as a command by way of its links, until it
/// is at the step; then the recording is erased.
async fn race(world: &World, eraser: &Service, node: &Node, id: &RecordingId, who: Who, is_locked: bool) {
    let days = [Timestamp::now() - 24.hours(), Timestamp::now()].map(|day| day.strftime("%F").to_string());
    let args: &[&str] = match who {
        Who::Backfill => &["backfill", "--since", &days[0], "--until", &days[1], "--no-wait"],
        Who::Reindex => &["reindex"],
        Who::Callback | Who::Reconcile => &[],
    };
    let mut command = (!args.is_empty()).then(|| {
        let mut command = command(world, args);
        command.envs(node.settings()).stdout(Stdio::null()).spawn().unwrap()
    });
    let told = (who == Who::Callback).then(|| {
        let (callback, http) = (world.callback(id.recording), world.http.clone());
        let url = format!("{}/webhooks/twilio/recording", node.url);
        tokio::spawn(async move { callback.send(&http, &url).await.unwrap().status() })
    });
    eventually("it is at the step", async || {
        let relays = [&node.catalog, &node.store, &node.twilio];
        relays.iter().any(|relay| relay.has_acted()).then_some(())
    })
    .await;
    let walks = world.simulator.lists(account());
    erase_beside(world, eraser, node, id, is_locked).await;
    if let Some(told) = told {
        assert_eq!(told.await.unwrap(), StatusCode::NO_CONTENT);
    }
    if let Some(command) = &mut command {
        eventually("the command ends", async || command.try_wait().unwrap()).await;
    }
    if who == Who::Reconcile {
        let goes_on = async || (world.simulator.lists(account()) > walks + 1).then_some(());
        eventually("the list is walked again", goes_on).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_step_others_are_at_nothing_that_is_erased_comes_back() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    let eraser = world.start().await;
    let mut node = Node::start(&world).await;

    // Before that nothing is to move what is announced.
    const RECONCILES: &str = "1s";
    // What was said of a recording is taken.
    const LEARNT: &str = "UPDATE recordings SET call_sid = $3";
    type Break = fn(&Node, RecordingId);
    let listed: Break = |node, _| node.twilio.rule(Rule::on("/Recordings.json", Act::HoldAnswer));
    let to_take: Break = |node, _| node.catalog.rule(Rule::on("recording_sid = $2 FOR UPDATE", Act::Hold));
    let to_commit: Break = |node, _| node.catalog.rule(Rule::on("COMMIT", Act::Hold).after(LEARNT).then(1));
    let committed: Break = |node, _| node.catalog.rule(Rule::on("COMMIT", Act::HoldAnswer).after(LEARNT).then(1));
    let looked_at: Break = |node, id| node.store.rule(Rule::on(&format!("/{}/", id.recording), Act::HoldAnswer));
    let to_gather: Break =
        |node, _| node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("INSERT INTO found_objects").then(1));
    let to_index: Break =
        |node, _| node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("DELETE FROM found_objects").then(1));
    // Who, at which step, of a recording in which state, and whether its row is locked.
    let steps = [
        (Who::Callback, to_take, "announced", false),
        (Who::Callback, to_commit, "announced", true),
        (Who::Callback, committed, "announced", false),
        (Who::Reconcile, listed, "stored", false),
        (Who::Reconcile, to_take, "announced", false),
        (Who::Reconcile, to_commit, "announced", true),
        (Who::Backfill, listed, "stored", false),
        (Who::Backfill, to_take, "announced", false),
        (Who::Backfill, to_commit, "announced", true),
        (Who::Reindex, looked_at, "stored", false),
        (Who::Reindex, to_gather, "stored", false),
        (Who::Reindex, to_index, "stored", true),
    ];
    for (number, (who, break_at, state, is_locked)) in (1..).zip(steps) {
        if matches!(who, Who::Backfill | Who::Reindex) && node.exited().is_none() {
            node.kill();
        }
        if who == Who::Reconcile && world.settings["CALLVAULT_RECONCILE_EVERY"] != RECONCILES {
            node.kill();
            world.set("CALLVAULT_RECONCILE_EVERY", RECONCILES);
            node.start_again(&world).await;
        }
        let id = recording_id(number);
        world.simulator.add(SimulatedRecording::speech(id, call_sid(number), Timestamp::now()));
        let status = if state == "stored" { "completed" } else { "in-progress" };
        if who == Who::Reconcile && state == "announced" {
            // It may be asked for at once.
            break_at(&node, id);
        }
        eraser.deliver(&world.simulator.callback(id.recording, status).unwrap()).await;
        eraser.recording_in(id.recording, state).await;
        if who == Who::Reindex {
            // What its row names is passed over.
            plant(&world.real_store(), number, b"another take", 1).await;
        }
        if who != Who::Reconcile || state == "stored" {
            break_at(&node, id);
        }
        race(&world, &eraser, &node, &id, who, is_locked).await;
        eraser.recording_in(id.recording, "erased").await;
        assert!(world.simulator.counts(id.recording).fetches <= 1, "step {number}, {who:?}");
        // No recheck is to be held up at the next step in another's place.
        nothing_is_owed(&world, &id).await;
    }
    audit::content_in_the_end(&world).await;
    let mut markers: Vec<String> = (1..=12).map(|number| marker(&recording_id(number))).collect();
    markers.sort();
    eventually("only markers are left", async || (world.real_store().keys().await == markers).then_some(())).await;
}

/// A hold and an erasing, of which the one is about to be committed when the other comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hold_and_an_erasing_the_one_that_commits_first_wins() {
    let world = World::new(Parts::Servers).await;
    let nodes = cluster::start(&world, 2).await;
    for (number, event, expected) in [(1, "recording.held", (200, 409)), (2, "recording.erased", (410, 204))] {
        let (id, _) = stored(&world, &nodes[0], number).await;
        let (first, [holder, eraser]) = match event {
            "recording.held" => (&nodes[0], [&nodes[0], &nodes[1]]),
            _ => (&nodes[0], [&nodes[1], &nodes[0]]),
        };
        first.catalog.rule(Rule::on("COMMIT", Act::Hold).after(event).then(1));
        let holding = async {
            if eraser.port == first.port {
                first.catalog.acts().await;
            }
            hold(holder, &id, true).await.0
        };
        let erasing = async {
            if holder.port == first.port {
                first.catalog.acts().await;
            }
            delete(eraser, &path(&id)).await.status().as_u16()
        };
        let letting_go = async {
            first.catalog.acts().await;
            eventually("the other one waits", async || somebody_waits(&world).await).await;
            first.catalog.release();
        };
        let (held, erased, ()) = tokio::join!(holding, erasing, letting_go);
        assert_eq!((held, erased), expected, "{event}");
    }
    audit::content_in_the_end(&world).await;
}
