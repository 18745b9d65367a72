//! Claims, leases, epochs, and how attempts end.

use std::collections::HashSet;

use callvault::catalog::Settled;
use callvault::domain::recording::{ErrorCode, State};
use futures::future::join_all;

use super::support::eventually;
use super::*;

/// Long enough to be renewed in, short enough to be waited for.
const SHORT: Duration = Duration::from_millis(300);

async fn claim_when_due(catalog: &Arc<dyn Catalog>) -> Claim {
    eventually("something can be claimed", async || claim_some(catalog, LONG, 1).await.pop()).await
}

on_every_catalog! {
    async fn each_recording_is_claimed_once_however_many_claim(database: Database) {
        let nodes = join_all((0..4).map(|_| database.node())).await;
        accept(&nodes[0], 1..=120).await;
        let claimers = (0..8).map(|at| {
            let node = nodes[at % nodes.len()].clone();
            tokio::spawn(async move {
                let mut mine = Vec::new();
                while !matches!(next_due(&node, &accounts()).await, Some(wait) if wait > Duration::ZERO) {
                    let claims = claim_some(&node, LONG, 7).await;
                    mine.extend(claims.into_iter().map(|claim| (claim.lease.id, claim.lease.epoch)));
                }
                mine
            })
        });
        let claims: Vec<_> = join_all(claimers).await.into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(claims.len(), 120);
        assert_eq!(claims.iter().collect::<HashSet<_>>().len(), 120);
        assert!(claims.iter().all(|(_, epoch)| *epoch == 1));
    }

    async fn only_due_recordings_of_ones_own_accounts_are_claimed(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let stranger: AccountSid = format!("AC{}", "9".repeat(32)).parse().unwrap();
        let wish = Wish { account: stranger, at_most: 10, of_backfill: 10 };
        assert_eq!(catalog.claim(&claimant(LONG), &[wish]).await.unwrap(), []);
        assert_eq!(catalog.claim(&claimant(LONG), &[]).await.unwrap(), []);
        assert_eq!(next_due(&catalog, &[stranger]).await, None);
        assert_eq!(next_due(&catalog, &accounts()).await, Some(Duration::ZERO));
        let claim = claim_one(&catalog, LONG).await;
        assert_eq!(claim.recording.state, State::Fetching);
        assert_eq!((claim.lease.epoch, claim.recording.attempts, claim.failed_before), (1, 1, 0));
        let next = next_due(&catalog, &accounts()).await.unwrap();
        assert!(next > LONG / 2, "{next:?}");
    }

    async fn a_lease_that_ran_out_is_taken_over_with_a_higher_epoch(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lost = claim_one(&catalog, SHORT).await;
        let taken = claim_when_due(&catalog).await;
        assert_eq!(taken.lease.epoch, lost.lease.epoch + 1);
        assert_eq!((taken.failed_before, taken.recording.attempts), (1, 2));
        let history = catalog.history(&recording_id(1)).await.unwrap();
        assert_eq!((history[2].kind.as_str(), &history[2].detail["code"]), ("attempt", &"interrupted".into()));
        assert_eq!(taken.recording.last_error.unwrap().code, ErrorCode::Interrupted);
    }

    async fn a_recording_that_ends_every_node_is_given_up_in_the_end(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let wish = Wish { account: account(), at_most: 1, of_backfill: 1 };
        let mut impatient = claimant(SHORT);
        impatient.retry.not_ready_for = Duration::from_millis(1);
        assert_eq!(catalog.claim(&impatient, &[wish]).await.unwrap().len(), 1);
        let failed = eventually("it is given up", async || {
            assert_eq!(catalog.claim(&impatient, &[wish]).await.unwrap(), []);
            let known = catalog.recording(&recording_id(1)).await.unwrap().unwrap();
            (known.state == State::Failed).then_some(known)
        })
        .await;
        assert_eq!(failed.last_error.unwrap().code, ErrorCode::Interrupted);
    }

    async fn whoever_lost_the_lease_changes_nothing(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let stale = claim_one(&catalog, SHORT).await.lease;
        let held = claim_when_due(&catalog).await.lease;
        let before = catalog.recording(&held.id).await.unwrap();
        let history = catalog.history(&held.id).await.unwrap();
        let details = Details { call_sid: Some(call_sid(9)), ..Details::default() };
        let zero = Duration::ZERO;
        for settled in [
            catalog.renew(&stale, LONG).await,
            catalog.note_upload(&stale, "upload").await,
            catalog.forget_upload(&stale).await,
            catalog.confirm(&stale, &details).await,
            catalog.store(&stale, &object(&stale.id, b"late"), true).await,
            catalog.fail(&stale, ErrorCode::NotReady, "late", again(zero, zero)).await,
            catalog.fail(&stale, ErrorCode::NotReady, "late", Decision::GiveUp).await,
            catalog.hand_back(&stale).await,
        ] {
            assert_eq!(settled.unwrap(), Settled::Stale);
        }
        assert_eq!(catalog.recording(&held.id).await.unwrap(), before);
        assert_eq!(catalog.history(&held.id).await.unwrap(), history);
        assert_eq!(catalog.store(&held, &object(&held.id, b"right"), true).await.unwrap(), Settled::Done);
        // Nor does the one who has let go of it.
        assert_eq!(catalog.store(&held, &object(&held.id, b"other"), true).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.renew(&held, LONG).await.unwrap(), Settled::Stale);
    }

    async fn of_many_commits_of_one_epoch_one_counts(database: Database) {
        let nodes = join_all((0..4).map(|_| database.node())).await;
        accept(&nodes[0], [1]).await;
        let lease = claim_one(&nodes[0], LONG).await.lease;
        let commits = nodes.iter().cycle().take(16).map(|node| {
            let node = node.clone();
            tokio::spawn(async move { node.store(&lease, &object(&lease.id, b"audio"), true).await.unwrap() })
        });
        let done = join_all(commits).await.into_iter().filter(|settled| *settled.as_ref().unwrap() == Settled::Done);
        assert_eq!(done.count(), 1);
        let history = nodes[0].history(&lease.id).await.unwrap();
        assert_eq!(history.iter().filter(|entry| entry.kind == "recording.stored").count(), 1);
    }

    async fn a_renewed_lease_lasts(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let claim = claim_one(&catalog, SHORT).await;
        assert_eq!(catalog.renew(&claim.lease, LONG).await.unwrap(), Settled::Done);
        assert!(next_due(&catalog, &accounts()).await.unwrap() > LONG / 2);
        assert_eq!(claim_some(&catalog, LONG, 1).await, []);
    }

    async fn a_stored_recording_has_its_object_and_no_error(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let first = claim_one(&catalog, LONG).await.lease;
        let zero = Duration::ZERO;
        assert_eq!(catalog.fail(&first, ErrorCode::NotReady, "404", again(zero, zero)).await.unwrap(), Settled::Done);
        let second = claim_when_due(&catalog).await;
        assert_eq!((second.lease.epoch, second.failed_before), (2, 1));
        let object = object(&first.id, b"audio");
        assert_eq!(catalog.store(&second.lease, &object, true).await.unwrap(), Settled::Done);
        let stored = catalog.recording(&first.id).await.unwrap().unwrap();
        assert_eq!((stored.state, stored.object, stored.last_error), (State::Stored, Some(object), None));
        assert_eq!((stored.attempts, stored.next_attempt_at), (2, None));
        assert!(stored.stored_at.is_some());
        assert_eq!(next_due(&catalog, &accounts()).await, None);
    }

    async fn an_attempt_is_repeated_when_it_is_due(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one(&catalog, LONG).await.lease;
        let settled = catalog.fail(&lease, ErrorCode::UpstreamError, "503", again(LONG, Duration::ZERO)).await.unwrap();
        assert_eq!(settled, Settled::Done);
        let waiting = catalog.recording(&lease.id).await.unwrap().unwrap();
        assert_eq!(waiting.state, State::Pending);
        assert_eq!(waiting.last_error.unwrap().code, ErrorCode::UpstreamError);
        assert!(next_due(&catalog, &accounts()).await.unwrap() > LONG / 2);
        assert_eq!(claim_some(&catalog, LONG, 1).await, []);
    }

    async fn someone_who_waits_brings_the_next_attempt_forward(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one(&catalog, LONG).await.lease;
        let _ = catalog.fail(&lease, ErrorCode::NotReady, "404", again(LONG, Duration::ZERO)).await.unwrap();
        catalog.hurry(&lease.id, LONG / 2).await.unwrap();
        let next = next_due(&catalog, &accounts()).await.unwrap();
        assert!(next <= LONG / 2 && next > LONG / 4, "{next:?}");
        // Never later than it was, and never at once.
        catalog.hurry(&lease.id, LONG).await.unwrap();
        assert!(next_due(&catalog, &accounts()).await.unwrap() <= LONG / 2);
        catalog.hurry(&lease.id, Duration::ZERO).await.unwrap();
        assert_eq!(next_due(&catalog, &accounts()).await, Some(Duration::ZERO));
    }

    async fn nobody_is_hurried_past_a_retry_after(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one(&catalog, LONG).await.lease;
        let _ = catalog.fail(&lease, ErrorCode::RateLimited, "429", again(LONG, LONG / 2)).await.unwrap();
        catalog.hurry(&lease.id, Duration::from_millis(1)).await.unwrap();
        let next = next_due(&catalog, &accounts()).await.unwrap();
        assert!(next > LONG / 4 && next <= LONG / 2, "{next:?}");
    }

    async fn what_was_given_up_is_tried_again_by_hand_only(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one(&catalog, LONG).await.lease;
        assert_eq!(catalog.fail(&lease, ErrorCode::TooLarge, "5 GB", Decision::GiveUp).await.unwrap(), Settled::Done);
        let failed = catalog.accept(&callback(1, "completed")).await.unwrap().recording;
        assert_eq!((failed.state, failed.last_error.unwrap().code), (State::Failed, ErrorCode::TooLarge));
        let again = catalog.fetch_again(&lease.id).await.unwrap().unwrap();
        assert_eq!(again.state, State::Pending);
        let claim = claim_one(&catalog, LONG).await;
        assert_eq!((claim.lease.epoch, claim.failed_before), (2, 0));
        assert!(claim.pending_for < LONG / 2);
        assert_eq!(catalog.fetch_again(&recording_id(99)).await.unwrap(), None);
    }

    async fn what_is_handed_back_can_be_claimed_at_once(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one(&catalog, LONG).await.lease;
        assert_eq!(catalog.hand_back(&lease).await.unwrap(), Settled::Done);
        let claim = claim_one(&catalog, LONG).await;
        assert_eq!((claim.lease.epoch, claim.failed_before), (2, 0));
    }

    async fn an_upload_is_known_to_the_next_claimer_until_it_is_cleared(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let first = claim_one(&catalog, SHORT).await;
        assert_eq!(first.leftover, None);
        assert_eq!(catalog.note_upload(&first.lease, "upload-1").await.unwrap(), Settled::Done);
        let second = claim_when_due(&catalog).await;
        let leftover = second.leftover.unwrap();
        assert_eq!((leftover.epoch, leftover.upload_id.as_str()), (1, "upload-1"));
        assert_eq!(catalog.forget_upload(&second.lease).await.unwrap(), Settled::Done);
        assert_eq!(catalog.hand_back(&second.lease).await.unwrap(), Settled::Done);
        assert_eq!(claim_one(&catalog, LONG).await.leftover, None);
    }

    async fn the_call_is_confirmed_under_the_lease(database: Database) {
        let catalog = database.node().await;
        catalog.accept(&put(1, 50)).await.unwrap();
        catalog.accept(&put(1, 51)).await.unwrap();
        let lease = claim_one(&catalog, LONG).await.lease;
        let details = Details { call_sid: Some(call_sid(1)), duration_seconds: Some(6), ..Details::default() };
        assert_eq!(catalog.confirm(&lease, &details).await.unwrap(), Settled::Done);
        let known = catalog.recording(&lease.id).await.unwrap().unwrap();
        assert_eq!((known.details_confirmed, known.details), (true, details));
        for call in [1, 50, 51] {
            let views = catalog.call(call_sid(call), None).await.unwrap();
            assert_eq!(views[0].answer().map(|answer| answer.id), Some(lease.id), "{call}");
        }
    }

    async fn failures_alike_are_counted_and_the_history_stays_short(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let zero = Duration::ZERO;
        for number in 0..30 {
            let lease = claim_when_due(&catalog).await.lease;
            let detail = if number < 20 { "404".to_owned() } else { format!("503 of {number}") };
            let _ = catalog.fail(&lease, ErrorCode::NotReady, &detail, again(zero, zero)).await.unwrap();
        }
        let history = catalog.history(&recording_id(1)).await.unwrap();
        let attempts: Vec<_> = history.iter().filter(|entry| entry.kind == "attempt").collect();
        assert_eq!(attempts.len(), 11);
        assert_eq!((&attempts[0].detail["times"], &attempts[0].detail["detail"]), (&20.into(), &"404".into()));
        for number in 0..120 {
            let lease = claim_when_due(&catalog).await.lease;
            let _ = catalog.fail(&lease, ErrorCode::NotReady, &format!("{number}"), again(zero, zero)).await.unwrap();
        }
        let history = catalog.history(&recording_id(1)).await.unwrap();
        assert_eq!(history.len(), 102, "100 attempts, and what was told once");
        assert_eq!(history[0].kind, "recording.accepted");
    }
}
