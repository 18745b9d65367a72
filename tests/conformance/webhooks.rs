//! Receivers of events: who may post, what, and what came of it.

use callvault::catalog::{Cursor, DeliveryState, Due, EventFilter, Posted, ReceiverLease, Retried, Settled};
use callvault::vault::webhooks::TRIED_FOR;

use super::support::eventually;
use super::*;

const RECEIVER: &str = "wh_1";

async fn enroll(catalog: &Arc<dyn Catalog>, receiver: &str) {
    catalog.enroll_receivers(&[receiver.to_owned()]).await.unwrap();
}

async fn grant(catalog: &Arc<dyn Catalog>, receiver: &str) -> ReceiverLease {
    catalog.grant_receiver(receiver, "node", LONG).await.unwrap().expect("nobody else has it")
}

/// Waits until so many events have their place in the feed.
async fn numbered(catalog: &Arc<dyn Catalog>, count: usize) -> Vec<Cursor> {
    eventually("the events have their places", async || {
        let (events, _) = catalog.events(None, &EventFilter::default(), 1000).await.unwrap();
        (events.len() == count).then(|| events.iter().map(|event| event.cursor).collect())
    })
    .await
}

/// A receiver, its holder, and events of these recordings that it is to get.
async fn holder(
    catalog: &Arc<dyn Catalog>,
    numbers: impl ExactSizeIterator<Item = u32>,
) -> (ReceiverLease, Vec<Cursor>) {
    enroll(catalog, RECEIVER).await;
    let count = numbers.len();
    accept(catalog, numbers).await;
    let all = numbered(catalog, count).await;
    (grant(catalog, RECEIVER).await, all)
}

/// Turns all that is new into deliveries, and gives what is due.
async fn due(catalog: &Arc<dyn Catalog>, lease: &ReceiverLease) -> Vec<Due> {
    while !catalog.make_deliveries(lease, &[], TRIED_FOR).await.unwrap().expect("the lease is good").1 {}
    catalog.due_deliveries(lease, &[], 100).await.unwrap()
}

fn cursors(due: &[Due]) -> Vec<Cursor> {
    due.iter().map(|due| due.event.cursor).collect()
}

fn again(after: Duration, rest: Option<Duration>) -> Posted {
    let status = if rest.is_some() { None } else { Some(500) };
    Posted::Again { after, status, error: "it answered 500".to_owned(), rest }
}

async fn states(catalog: &Arc<dyn Catalog>, receiver: &str) -> Vec<DeliveryState> {
    let (deliveries, _) = catalog.deliveries(receiver, None, None, 100).await.unwrap();
    deliveries.into_iter().map(|delivery| delivery.state).collect()
}

on_every_catalog! {
    /// Its nodes made it known to the catalog that was lost under them.
    async fn a_receiver_that_a_new_catalog_does_not_know_is_told_of_all(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1, 2]).await;
        let all = numbered(&catalog, 2).await;
        let lease = grant(&catalog, RECEIVER).await;
        assert_eq!(catalog.grant_receiver(RECEIVER, "other", LONG).await.unwrap(), None, "one node has it");
        assert_eq!(cursors(&due(&catalog, &lease).await), all);
    }

    async fn a_new_receiver_begins_where_the_feed_ends_and_gets_each_event_once(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=2).await;
        numbered(&catalog, 2).await;
        enroll(&catalog, RECEIVER).await;
        accept(&catalog, 3..=5).await;
        let all = numbered(&catalog, 5).await;
        // A node that starts later changes nothing about where it began.
        enroll(&catalog, RECEIVER).await;
        let lease = grant(&catalog, RECEIVER).await;
        let new = due(&catalog, &lease).await;
        assert_eq!(cursors(&new), all[2..]);
        assert_eq!(new[0].event.recording.as_ref().unwrap().id, recording_id(3));
        assert_eq!(cursors(&due(&catalog, &lease).await), all[2..], "made once, due until it is settled");
        assert_eq!(cursors(&catalog.due_deliveries(&lease, &all[2..4], 100).await.unwrap()), all[4..]);
        for one in &new {
            let taken = Posted::Taken { status: 204 };
            assert_eq!(catalog.settle_delivery(&lease, one.event.cursor, &taken).await.unwrap(), Settled::Done);
        }
        assert_eq!(cursors(&due(&catalog, &lease).await), []);
        assert_eq!(states(&catalog, RECEIVER).await, [DeliveryState::Delivered; 3]);
    }

    async fn a_receiver_is_posted_what_it_chose(database: Database) {
        let catalog = database.node().await;
        enroll(&catalog, RECEIVER).await;
        accept(&catalog, [1]).await;
        let claimed = claim_one(&catalog, LONG).await.lease;
        let _ = catalog.store(&claimed, &object(&claimed.id, b"audio"), true).await.unwrap();
        let all = numbered(&catalog, 2).await;
        let lease = grant(&catalog, RECEIVER).await;
        let kinds = ["recording.stored".to_owned()];
        let made = catalog.make_deliveries(&lease, &kinds, TRIED_FOR).await.unwrap();
        assert_eq!(made, Some((all[1], true)));
        assert_eq!(cursors(&catalog.due_deliveries(&lease, &[], 10).await.unwrap()), all[1..]);
    }

    async fn one_node_has_the_right_and_whoever_lost_it_changes_nothing(database: Database) {
        let (catalog, other) = (database.node().await, database.node().await);
        enroll(&catalog, RECEIVER).await;
        enroll(&catalog, "wh_2").await;
        accept(&catalog, [1]).await;
        let all = numbered(&catalog, 1).await;
        let lease = catalog.grant_receiver(RECEIVER, "a", Duration::from_millis(200)).await.unwrap().unwrap();
        assert_eq!(other.grant_receiver(RECEIVER, "b", LONG).await.unwrap(), None, "it has the right");
        assert!(other.grant_receiver("wh_2", "b", LONG).await.unwrap().is_some(), "each by itself");
        assert_eq!(cursors(&due(&catalog, &lease).await), all);
        let taken_over = eventually("the lease ends", async || {
            other.grant_receiver(RECEIVER, "b", LONG).await.unwrap()
        })
        .await;
        let settled = catalog.settle_delivery(&lease, all[0], &Posted::Taken { status: 200 }).await.unwrap();
        assert_eq!(settled, Settled::Stale);
        assert_eq!(catalog.renew_receiver(&lease, LONG).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.release_receiver(&lease).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.make_deliveries(&lease, &[], TRIED_FOR).await.unwrap(), None);
        assert_eq!(catalog.due_deliveries(&lease, &[], 10).await.unwrap(), []);
        assert_eq!(cursors(&due(&other, &taken_over).await), all, "what it posted may be posted again");
        assert_eq!(other.release_receiver(&taken_over).await.unwrap(), Settled::Done);
        grant(&catalog, RECEIVER).await;
    }

    async fn what_failed_waits_for_its_time_and_others_do_not_wait_for_it(database: Database) {
        let catalog = database.node().await;
        let (lease, all) = holder(&catalog, 1..3).await;
        due(&catalog, &lease).await;
        let _ = catalog.settle_delivery(&lease, all[0], &again(Duration::from_millis(300), None)).await.unwrap();
        assert_eq!(cursors(&due(&catalog, &lease).await), all[1..]);
        let repeated = eventually("its time has come", async || {
            let due = due(&catalog, &lease).await;
            due.into_iter().find(|due| due.event.cursor == all[0])
        })
        .await;
        assert_eq!((repeated.failed_before, repeated.unanswered), (1, 0));
        assert!(repeated.tried_for >= Duration::from_millis(300));
        let given_up = Posted::GivenUp { status: Some(500), error: "it answered 500".to_owned() };
        let _ = catalog.settle_delivery(&lease, all[0], &given_up).await.unwrap();
        let (failed, _) = catalog.deliveries(RECEIVER, Some(DeliveryState::Failed), None, 10).await.unwrap();
        assert_eq!((failed.len(), failed[0].event, failed[0].attempts), (1, all[0], 2));
        assert_eq!((failed[0].last_status, failed[0].last_error.as_deref()), (Some(500), Some("it answered 500")));
        assert_eq!(cursors(&due(&catalog, &lease).await), all[1..]);
    }

    async fn where_nobody_answers_the_receiver_rests_and_one_by_hand_wakes_it(database: Database) {
        let catalog = database.node().await;
        let (lease, all) = holder(&catalog, 1..4).await;
        due(&catalog, &lease).await;
        for event in &all[..2] {
            // Both were under way at once: they count as one.
            let _ = catalog.settle_delivery(&lease, *event, &again(Duration::ZERO, Some(LONG))).await.unwrap();
        }
        assert_eq!(due(&catalog, &lease).await, []);
        let standing = catalog.receivers(&[RECEIVER.to_owned()]).await.unwrap().remove(0);
        assert_eq!((standing.unanswered, standing.pending, standing.failed), (1, 3, 0));
        assert!(standing.resting_until.is_some());
        assert!(matches!(catalog.retry_delivery(RECEIVER, all[0]).await.unwrap(), Retried::Due(_)));
        let woken = due(&catalog, &lease).await;
        assert_eq!((woken.len(), woken[0].unanswered), (3, 1));
        let _ = catalog.settle_delivery(&lease, all[0], &Posted::Taken { status: 200 }).await.unwrap();
        let standing = catalog.receivers(&[RECEIVER.to_owned()]).await.unwrap().remove(0);
        assert_eq!((standing.unanswered, standing.pending, standing.resting_until), (0, 2, None));
        assert!(standing.last_delivered_at.is_some());
    }

    async fn whoever_wants_no_more_gets_nothing_until_it_is_enabled_and_then_from_there_on(database: Database) {
        let catalog = database.node().await;
        let (lease, all) = holder(&catalog, 1..3).await;
        due(&catalog, &lease).await;
        let _ = catalog.settle_delivery(&lease, all[0], &Posted::Unwanted { status: 410 }).await.unwrap();
        assert_eq!(states(&catalog, RECEIVER).await, [DeliveryState::Failed; 2]);
        assert_eq!(catalog.grant_receiver(RECEIVER, "node", LONG).await.unwrap(), None);
        assert_eq!(catalog.retry_delivery(RECEIVER, all[0]).await.unwrap(), Retried::Unwanted);
        assert!(catalog.receivers(&[RECEIVER.to_owned()]).await.unwrap()[0].disabled_at.is_some());
        accept(&catalog, [3]).await;
        numbered(&catalog, 3).await;
        catalog.enable_receiver(RECEIVER).await.unwrap();
        accept(&catalog, [4]).await;
        let all = numbered(&catalog, 4).await;
        let lease = grant(&catalog, RECEIVER).await;
        assert_eq!(cursors(&due(&catalog, &lease).await), all[3..]);
    }

    async fn deliveries_are_listed_newest_first_and_repeated_by_hand(database: Database) {
        let catalog = database.node().await;
        let (lease, all) = holder(&catalog, 1..6).await;
        for one in due(&catalog, &lease).await {
            let _ = catalog.settle_delivery(&lease, one.event.cursor, &Posted::Taken { status: 200 }).await.unwrap();
        }
        let (first, next) = catalog.deliveries(RECEIVER, None, None, 3).await.unwrap();
        let (rest, end) = catalog.deliveries(RECEIVER, None, next, 3).await.unwrap();
        let listed: Vec<Cursor> = first.iter().chain(&rest).rev().map(|delivery| delivery.event).collect();
        assert_eq!((listed, end), (all.clone(), None));
        let Retried::Due(delivery) = catalog.retry_delivery(RECEIVER, all[1]).await.unwrap() else {
            panic!("there is such a delivery")
        };
        assert_eq!((delivery.state, delivery.attempts), (DeliveryState::Pending, 1));
        assert_eq!(cursors(&due(&catalog, &lease).await), [all[1]]);
        let unknown: Cursor = "0000000000001-000000000000001".parse().unwrap();
        assert_eq!(catalog.retry_delivery(RECEIVER, unknown).await.unwrap(), Retried::Unknown);
        assert_eq!(catalog.retry_delivery("wh_2", all[1]).await.unwrap(), Retried::Unknown);
    }

    async fn what_is_old_is_not_begun_with_and_deliveries_are_forgotten_in_time(database: Database) {
        let catalog = database.node().await;
        let (lease, _) = holder(&catalog, 1..2).await;
        let made = catalog.make_deliveries(&lease, &[], Duration::ZERO).await.unwrap();
        assert!(made.is_some_and(|(_, is_end)| is_end));
        assert_eq!(states(&catalog, RECEIVER).await, [], "it is too old");
        accept(&catalog, [2]).await;
        numbered(&catalog, 2).await;
        assert_eq!(due(&catalog, &lease).await.len(), 1);
        assert!(!catalog.forget_deliveries(LONG).await.unwrap());
        assert_eq!(states(&catalog, RECEIVER).await.len(), 1);
        eventually("the delivery is old", async || {
            catalog.forget_deliveries(Duration::ZERO).await.unwrap();
            states(&catalog, RECEIVER).await.is_empty().then_some(())
        })
        .await;
    }
}
