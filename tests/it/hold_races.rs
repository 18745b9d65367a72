//! A hold against all that goes by itself, at each of its steps: what was held in time
//! stays, and what was let go of before comes back.

use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::speech_mp3;

use crate::erase::{marker, path};
use crate::erase_races::somebody_waits;
use crate::evict::{evict_soon, evictions};
use crate::holds::{held_marker, hold};
use crate::recheck::{count, folder, history, nothing_is_owed, sql, stored};
use crate::retention::{account_with, deleted_at_twilio, deletions};
use crate::support::cluster::Node;
use crate::support::relay::{Act, Rule};
use crate::support::world::{Parts, Service, World, recording_id};
use crate::support::{audit, eventually};

/// A world with so many recordings that are stored, none of which is old.
async fn stocked(recordings: u32) -> World {
    let world = World::new(Parts::Servers).await;
    let service = world.start().await;
    for number in 1..=recordings {
        stored(&world, &service, number).await;
    }
    sql(&world, "UPDATE recordings SET ordered_at = 99999999999999, last_asked_at = 99999999999999".to_owned()).await;
    world
}

/// Makes it old, and idle for as long.
async fn is_due(world: &World, id: &RecordingId) {
    let sid = id.recording;
    sql(world, format!("UPDATE recordings SET ordered_at = 1, last_asked_at = 1 WHERE recording_sid = '{sid}'")).await;
}

fn let_go(node: &Node) {
    [&node.catalog, &node.store, &node.twilio].iter().for_each(|link| link.release());
}

async fn is_at_the_step(node: &Node) {
    let links = [&node.catalog, &node.store, &node.twilio];
    eventually("the node is at the step", async || links.iter().any(|link| link.has_acted()).then_some(())).await;
}

/// Holds a recording, and lets go of the node once the row that it has locked is waited
/// for, or else once it is held. Gives the status.
async fn hold_beside(world: &World, holder: &Service, node: &Node, id: &RecordingId, is_locked: bool) -> u16 {
    let letting_go = async {
        if is_locked {
            eventually("the hold waits", async || somebody_waits(world).await).await;
            let_go(node);
        }
    };
    let ((status, _), ()) = tokio::join!(hold(holder, id, true), letting_go);
    let_go(node);
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hold_and_retention_the_one_that_commits_first_wins() {
    let mut world = stocked(7).await;
    let holder = Node::start(&world).await;
    account_with(&mut world, "retention = \"1h\"");
    let mut node = Node::start(&world).await;
    const ERASED: &str = "recording.erased";
    // At which step of retention the hold comes, whether its row is locked, and what becomes of the hold.
    let steps = [
        (Rule::on("ORDER BY ordered_at LIMIT", Act::Hold), false, 200),
        (Rule::on("SET state = 'erased'", Act::Hold), true, 410),
        (Rule::on("COMMIT", Act::Hold).after(ERASED).then(1), true, 410),
        (Rule::on("COMMIT", Act::HoldAnswer).after(ERASED).then(1), false, 410),
    ];
    for (number, (rule, is_locked, expected)) in (1..).zip(steps) {
        let id = recording_id(number);
        node.catalog.rule(rule);
        is_due(&world, &id).await;
        is_at_the_step(&node).await;
        assert_eq!(hold_beside(&world, &holder, &node, &id, is_locked).await, expected, "step {number}");
        if expected == 410 {
            eventually("it is erased", async || {
                let done = "state = 'erased' AND hold = 0 AND erase_due_at IS NULL";
                (count(&world, &id, done).await == 1).then_some(())
            })
            .await;
            assert!(world.real_store().keys().await.contains(&marker(&id)), "step {number}");
        }
    }
    // Two are old when retention begins, and the hold of one is about to be committed.
    node.kill();
    let held = recording_id(5);
    for number in [5, 6] {
        is_due(&world, &recording_id(number)).await;
    }
    holder.catalog.rule(Rule::on("COMMIT", Act::Hold).after("recording.held").then(1));
    let goes = async |number| {
        let id = recording_id(number);
        eventually("it is erased", async || (count(&world, &id, "state = 'erased'").await == 1).then_some(())).await;
    };
    let retention = async {
        holder.catalog.acts().await;
        node.start_again(&world).await;
        goes(6).await;
        let_go(&holder);
    };
    let ((status, _), ()) = tokio::join!(hold(&holder, &held, true), retention);
    if status == 503 {
        // Starting a node may take longer than a statement is waited for: it is said again.
        assert_eq!(hold(&holder, &held, true).await.0, 200);
    }
    is_due(&world, &recording_id(7)).await;
    goes(7).await;
    for id in [recording_id(1), held] {
        assert_eq!(count(&world, &id, "state = 'stored' AND hold = 1").await, 1);
        holder.play(&format!("{}/audio", path(&id))).await;
    }
    audit::content_in_the_end(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_while_it_is_evicted_stays_or_comes_back_whichever_step_that_is_at() {
    let mut world = stocked(7).await;
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    let holder = world.start().await;
    evict_soon(&mut world);
    let node = Node::start(&world).await;
    const EVICT: &str = "SET state = 'evicted'";
    let granted = Rule::on("COMMIT", Act::HoldAnswer).after("SET epoch = epoch + 1, duty_until =").then(1);
    type Step = (fn(&Node) -> &crate::support::relay::Relay, Rule, bool, bool);
    // Where the node is when the hold comes, whether the row is locked, and whether it was evicted by then.
    let steps: [Step; 7] = [
        (|node| &node.catalog, granted, false, false),
        (|node| &node.twilio, Rule::on(".json", Act::HoldAnswer), false, false),
        (|node| &node.catalog, Rule::on(EVICT, Act::Hold), true, true),
        (|node| &node.catalog, Rule::on("COMMIT", Act::Hold).after(EVICT).then(1), true, true),
        (|node| &node.catalog, Rule::on("COMMIT", Act::HoldAnswer).after(EVICT).then(1), false, true),
        (|node| &node.store, Rule::on("DELETE /", Act::Hold), false, true),
        (|node| &node.store, Rule::on("DELETE /", Act::HoldAnswer), false, true),
    ];
    for (number, (link, rule, is_locked, is_evicted)) in (1..).zip(steps) {
        let id = recording_id(number);
        link(&node).rule(rule);
        is_due(&world, &id).await;
        is_at_the_step(&node).await;
        assert_eq!(hold_beside(&world, &holder, &node, &id, is_locked).await, 200, "step {number}");
        eventually("the node is done with it", async || {
            let mut ended = 0;
            for outcome in ["evicted", "kept", "lost", "failed", "handed_back"] {
                ended += evictions(&node, outcome).await;
            }
            (ended == u64::from(number)).then_some(())
        })
        .await;
        // Nobody has to wait here for the two minutes of its lease.
        sql(&world, "UPDATE recordings SET duty_until = NULL".to_owned()).await;
        holder.recording_in(id.recording, "stored").await;
        nothing_is_owed(&world, &id).await;
        let told = history(&holder, &id).await;
        let times = |kind: &str| told.iter().filter(|told| *told == kind).count();
        let expected = [usize::from(is_evicted), 1 + usize::from(is_evicted)];
        assert_eq!(["recording.evicted", "recording.stored"].map(times), expected, "step {number}: {told:?}");
        let (bytes, _) = holder.play(&format!("{}/audio", path(&id))).await;
        assert_eq!(bytes, speech_mp3());
        assert!(world.real_store().keys().await.contains(&held_marker(&id)), "step {number}");
        // However long nobody asks for it.
        is_due(&world, &id).await;
    }
    for number in 1..=7 {
        assert_eq!(count(&world, &recording_id(number), "state = 'stored' AND hold = 1").await, 1, "{number}");
    }
    audit::content_in_the_end(&world).await;
}

/// The node that evicts it is gone before it removed anything: nobody else does, and
/// Twilio is not asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_object_of_what_was_evicted_is_kept_where_a_hold_finds_it_still_there() {
    let mut world = stocked(1).await;
    let id = recording_id(1);
    evict_soon(&mut world);
    let node = Node::start(&world).await;
    node.store.rule(Rule::on("DELETE /", Act::Hold));
    is_due(&world, &id).await;
    is_at_the_step(&node).await;
    node.kill();
    let holder = world.start().await;
    let (status, shown) = hold(&holder, &id, true).await;
    assert_eq!((status, &shown["hold"], &shown["state"]), (200, &true.into(), &"pending".into()));
    sql(&world, "UPDATE recordings SET duty_until = NULL".to_owned()).await;
    holder.recording_in(id.recording, "stored").await;
    nothing_is_owed(&world, &id).await;
    assert_eq!(holder.play(&format!("{}/audio", path(&id))).await.0, speech_mp3());
    assert_eq!(world.simulator.counts(id.recording).fetches, 1, "by whom it was stored first");
    let keys = world.real_store().keys().await;
    assert!(keys.iter().any(|key| key.starts_with(&folder(1))) && keys.contains(&held_marker(&id)), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_stops_a_deletion_at_twilio_until_it_is_on_its_way_and_then_it_is_told() {
    let mut world = stocked(4).await;
    sql(&world, "UPDATE recordings SET stored_at = 99999999999999".to_owned()).await;
    let holder = world.start().await;
    world.set("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1s");
    let node = Node::start(&world).await;
    const MARK: &str = "SET twilio_marked_at = coalesce";
    let read_back = Rule::on(&format!("GET /{}/{}", world.bucket(), folder(3)), Act::Hold);
    type Step = (fn(&Node) -> &crate::support::relay::Relay, Rule, bool);
    let steps: [Step; 4] = [
        (|node| &node.catalog, Rule::on(MARK, Act::Hold), false),
        (|node| &node.catalog, Rule::on("COMMIT", Act::HoldAnswer).after(MARK).then(1), false),
        (|node| &node.store, read_back, false),
        (|node| &node.twilio, Rule::on("DELETE /", Act::Hold), true),
    ];
    for (number, (link, rule, is_deleted)) in (1..).zip(steps) {
        let id = recording_id(number);
        link(&node).rule(rule);
        sql(&world, format!("UPDATE recordings SET stored_at = 1 WHERE recording_sid = '{}'", id.recording)).await;
        is_at_the_step(&node).await;
        assert_eq!(hold_beside(&world, &holder, &node, &id, false).await, 200, "step {number}");
        eventually("the node is done with it", async || {
            let mut ended = 0;
            for outcome in ["deleted", "kept", "lost", "failed", "differs"] {
                ended += deletions(&node, outcome).await;
            }
            (ended == u64::from(number)).then_some(())
        })
        .await;
        assert_eq!(deleted_at_twilio(&world, &id), is_deleted, "step {number}");
        let told = history(&holder, &id).await;
        assert_eq!(told.contains(&"deleted_at_twilio".to_owned()), is_deleted, "step {number}: {told:?}");
        assert_eq!(count(&world, &id, "state = 'stored' AND hold = 1").await, 1, "step {number}");
        assert_eq!(holder.play(&format!("{}/audio", path(&id))).await.0, speech_mp3());
    }
    audit::content_in_the_end(&world).await;
}
