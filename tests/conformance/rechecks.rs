//! Rechecks: owed, granted to one holder on a row at rest, and settled once.

use callvault::catalog::{Duty, Finding, Lease, Settled};
use callvault::domain::recording::{ErrorCode, State};
use futures::future::join_all;

use super::support::eventually;
use super::*;

const ZERO: Duration = Duration::ZERO;
/// Long enough to be renewed in, short enough to be waited for.
const SHORT: Duration = Duration::from_millis(300);

async fn grant(catalog: &Arc<dyn Catalog>, duration: Duration) -> Vec<Duty> {
    catalog.grant_rechecks(10, duration).await.unwrap()
}

async fn grant_one(catalog: &Arc<dyn Catalog>, duration: Duration) -> Duty {
    let mut duties = grant(catalog, duration).await;
    assert_eq!(duties.len(), 1, "{duties:?}");
    duties.remove(0)
}

/// The first recording, stored, and the object that the row names.
async fn stored(catalog: &Arc<dyn Catalog>) -> Claim {
    accept(catalog, [1]).await;
    let claim = claim_one(catalog, LONG).await;
    let object = object(&claim.lease.id, b"audio");
    assert_eq!(catalog.store(&claim.lease, &object, true).await.unwrap(), Settled::Done);
    claim
}

/// The first recording, given up.
async fn failed(catalog: &Arc<dyn Catalog>) -> Claim {
    accept(catalog, [1]).await;
    let claim = claim_one(catalog, LONG).await;
    let settled = catalog.fail(&claim.lease, ErrorCode::TooLarge, "4 GiB", Decision::GiveUp).await.unwrap();
    assert_eq!(settled, Settled::Done);
    claim
}

async fn state(catalog: &Arc<dyn Catalog>) -> State {
    catalog.recording(&recording_id(1)).await.unwrap().unwrap().state
}

async fn kinds(catalog: &Arc<dyn Catalog>) -> Vec<String> {
    let history = catalog.history(&recording_id(1)).await.unwrap();
    history.into_iter().map(|entry| entry.kind).collect()
}

on_every_catalog! {
    async fn what_is_gone_is_stored_as_what_else_lies_there(database: Database) {
        let catalog = database.node().await;
        let claim = stored(&catalog).await;
        catalog.doubt(&claim.lease).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        let other = object(&claim.lease.id, b"another take");
        let replaced = Finding::Replaced("is not there".to_owned(), other.clone(), Box::default());
        assert_eq!(catalog.settle_recheck(&duty, &replaced, LONG).await.unwrap(), Settled::Done);
        let known = catalog.recording(&recording_id(1)).await.unwrap().unwrap();
        assert_eq!((known.state, known.object, known.last_error), (State::Stored, Some(other), None));
        assert!(kinds(&catalog).await.ends_with(&["recording.lost".to_owned(), "recording.stored".to_owned()]));
        let history = catalog.history(&recording_id(1)).await.unwrap();
        assert_eq!(history.last().unwrap().detail["previous_sha256"], Digest::of(b"audio").to_string());
    }

    async fn some_of_what_is_stored_is_found_wherever_one_begins(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=6).await;
        let mut keys = Vec::new();
        for claim in claim_some(&catalog, LONG, 4).await {
            let object = object(&claim.lease.id, b"audio");
            assert_eq!(catalog.store(&claim.lease, &object, true).await.unwrap(), Settled::Done);
            keys.push((claim.lease.id.recording.to_string(), object.key));
        }
        keys.sort();
        let some = async |behind: &str, at_most| catalog.some_stored(behind, at_most).await.unwrap();
        let is = |numbers: &[usize]| numbers.iter().map(|number| keys[*number].1.clone()).collect::<Vec<_>>();
        assert_eq!(some("RE", 10).await, is(&[0, 1, 2, 3]), "what is pending is none of it");
        assert_eq!(some(&keys[1].0, 10).await, is(&[2, 3, 0, 1]));
        assert_eq!(some(&keys[1].0, 3).await, is(&[2, 3, 0]));
        assert_eq!(some(&keys[1].0, 1).await, is(&[2]));
        assert_eq!(some("RF", 10).await, is(&[0, 1, 2, 3]));
    }

    async fn nothing_is_owed_by_what_went_well(database: Database) {
        let catalog = database.node().await;
        stored(&catalog).await;
        assert_eq!(grant(&catalog, LONG).await, []);
    }

    async fn one_accounts_rechecks_do_not_keep_anothers_waiting(database: Database) {
        let catalog = database.node().await;
        let other: AccountSid = format!("AC{}", "9".repeat(32)).parse().unwrap();
        for number in 1..=20 {
            let id = RecordingId { account: other, ..recording_id(number) };
            catalog.accept(&Announcement { id, ..callback(number, "completed") }).await.unwrap();
            catalog.owe_recheck(&Lease { id, epoch: 0 }, ZERO).await.unwrap();
        }
        accept(&catalog, [30]).await;
        catalog.owe_recheck(&Lease { id: recording_id(30), epoch: 0 }, ZERO).await.unwrap();
        let duties = catalog.grant_rechecks(8, LONG).await.unwrap();
        assert_eq!(duties.iter().filter(|duty| duty.lease.id.account == account()).count(), 1);
        assert_eq!(duties.len(), 5, "an even share each, and the rest next time; no account is asked for");
    }

    async fn a_lease_that_ran_out_owes_a_recheck(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lost = claim_one(&catalog, SHORT).await;
        let _ = catalog.note_upload(&lost.lease, "upload").await.unwrap();
        let taken = eventually("it is taken over", async || claim_some(&catalog, LONG, 1).await.pop()).await;
        assert_eq!(grant(&catalog, LONG).await, [], "it is not at rest");
        assert_eq!(catalog.hand_back(&taken.lease).await.unwrap(), Settled::Done);
        let duty = grant_one(&catalog, LONG).await;
        assert_eq!((duty.lease.epoch, duty.swept_epoch), (taken.lease.epoch + 1, 0));
        assert_eq!(duty.recording.state, State::Pending);
        assert_eq!(duty.leftover.map(|leftover| leftover.upload_id).as_deref(), Some("upload"));
    }

    async fn the_recheck_of_a_lease_that_ran_out_waits_its_time(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let patient = Claimant { recheck_after: LONG, ..claimant(SHORT) };
        let wishes = accounts().map(|account| Wish { account, at_most: 1, of_backfill: 1 });
        assert_eq!(catalog.claim(&patient, &wishes).await.unwrap().len(), 1);
        eventually("the lease is found to have run out", async || {
            catalog.claim(&patient, &wishes).await.unwrap().pop().map(|_| ())
        })
        .await;
        assert_eq!(grant(&catalog, LONG).await, []);
    }

    async fn what_is_doubted_is_so_until_a_recheck_that_began_later_ends(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog).await.lease;
        catalog.doubt(&lease).await.unwrap();
        let first = grant_one(&catalog, LONG).await;
        assert!(first.is_doubted);
        catalog.doubt(&lease).await.unwrap();
        assert_eq!(catalog.settle_recheck(&first, &Finding::InOrder, ZERO).await.unwrap(), Settled::Done);
        let second = grant_one(&catalog, LONG).await;
        assert!(second.is_doubted, "it was seen again meanwhile");
        assert_eq!(catalog.settle_recheck(&second, &Finding::Unfinished, ZERO).await.unwrap(), Settled::Done);
        let third = grant_one(&catalog, LONG).await;
        assert!(third.is_doubted);
        assert_eq!(catalog.settle_recheck(&third, &Finding::InOrder, ZERO).await.unwrap(), Settled::Done);
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        assert!(!grant_one(&catalog, LONG).await.is_doubted);
    }

    async fn a_recheck_is_not_due_before_its_time(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog).await.lease;
        catalog.owe_recheck(&lease, LONG).await.unwrap();
        assert_eq!(grant(&catalog, LONG).await, []);
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        assert_eq!(grant(&catalog, LONG).await.len(), 1);
    }

    async fn what_is_being_fetched_is_not_rechecked(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one(&catalog, LONG).await.lease;
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        assert_eq!(grant(&catalog, LONG).await, []);
        assert_eq!(catalog.store(&lease, &object(&lease.id, b"audio"), true).await.unwrap(), Settled::Done);
        assert_eq!(grant_one(&catalog, LONG).await.recording.state, State::Stored);
    }

    async fn one_node_has_the_recheck_however_many_ask(database: Database) {
        let nodes = join_all((0..4).map(|_| database.node())).await;
        let lease = stored(&nodes[0]).await.lease;
        nodes[0].owe_recheck(&lease, ZERO).await.unwrap();
        let askers = nodes.iter().cycle().take(16).map(|node| {
            let node = node.clone();
            tokio::spawn(async move { grant(&node, LONG).await })
        });
        let granted: Vec<Duty> = join_all(askers).await.into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(granted.len(), 1);
        assert_eq!(granted[0].lease.epoch, lease.epoch + 1);
    }

    async fn claims_pass_over_what_is_being_rechecked(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=2).await;
        let first = callvault::catalog::Lease { id: recording_id(1), epoch: 0 };
        catalog.owe_recheck(&first, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        let claims = claim_some(&catalog, LONG, 10).await;
        assert_eq!(claims.iter().map(|claim| claim.lease.id).collect::<Vec<_>>(), [recording_id(2)]);
        assert_eq!(catalog.settle_recheck(&duty, &Finding::InOrder, LONG).await.unwrap(), Settled::Done);
        let claim = claim_one(&catalog, LONG).await;
        assert_eq!((claim.lease.id, claim.lease.epoch), (first.id, duty.lease.epoch + 1));
    }

    async fn a_recheck_that_was_given_up_does_not_keep_claims_away(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        catalog.owe_recheck(&callvault::catalog::Lease { id: recording_id(1), epoch: 0 }, ZERO).await.unwrap();
        let lost = grant_one(&catalog, SHORT).await;
        let claim = eventually("it can be claimed", async || claim_some(&catalog, LONG, 1).await.pop()).await;
        assert_eq!(claim.lease.epoch, lost.lease.epoch + 1);
        assert_eq!(catalog.renew_duty(&lost, LONG).await.unwrap(), None);
        assert_eq!(catalog.settle_recheck(&lost, &Finding::InOrder, ZERO).await.unwrap(), Settled::Stale);
        assert_eq!(state(&catalog).await, State::Fetching);
    }

    async fn a_holder_that_was_not_heard_of_is_replaced_and_settles_nothing(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog).await.lease;
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        let lost = grant_one(&catalog, SHORT).await;
        let held = eventually("the recheck can be granted again", async || grant(&catalog, LONG).await.pop()).await;
        assert_eq!(held.lease.epoch, lost.lease.epoch + 1);
        assert_eq!(catalog.renew_duty(&lost, LONG).await.unwrap(), None);
        let before = catalog.recording(&lease.id).await.unwrap();
        for finding in [Finding::InOrder, Finding::Lost, Finding::Unfinished] {
            assert_eq!(catalog.settle_recheck(&lost, &finding, ZERO).await.unwrap(), Settled::Stale);
        }
        assert_eq!(catalog.recording(&lease.id).await.unwrap(), before);
        assert_eq!(grant(&catalog, LONG).await, [], "it is still the other's");
        assert_eq!(catalog.settle_recheck(&held, &Finding::InOrder, ZERO).await.unwrap(), Settled::Done);
        assert_eq!(catalog.settle_recheck(&held, &Finding::Lost, ZERO).await.unwrap(), Settled::Stale);
        assert_eq!(state(&catalog).await, State::Stored);
    }

    async fn a_renewed_recheck_lasts_and_is_granted_anew(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog).await.lease;
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        let duty = grant_one(&catalog, SHORT).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let granted_at = catalog.renew_duty(&duty, LONG).await.unwrap().unwrap();
        assert!(granted_at > duty.granted_at, "{granted_at} {}", duty.granted_at);
        tokio::time::sleep(SHORT).await;
        assert_eq!(grant(&catalog, LONG).await, []);
    }

    async fn an_older_attempt_is_stale_once_a_recheck_began(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let attempt = claim_one(&catalog, LONG).await.lease;
        assert_eq!(catalog.hand_back(&attempt).await.unwrap(), Settled::Done);
        catalog.owe_recheck(&attempt, ZERO).await.unwrap();
        grant_one(&catalog, LONG).await;
        let late = catalog.store(&attempt, &object(&attempt.id, b"late"), true).await.unwrap();
        assert_eq!((late, state(&catalog).await), (Settled::Stale, State::Pending));
    }

    async fn a_recheck_that_found_all_in_order_ends_what_is_owed(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog).await.lease;
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        assert_eq!(catalog.settle_recheck(&duty, &Finding::InOrder, ZERO).await.unwrap(), Settled::Done);
        assert_eq!(grant(&catalog, LONG).await, []);
        // The next one has nothing of what was swept to sweep again.
        catalog.owe_recheck(&duty.lease, ZERO).await.unwrap();
        assert_eq!(grant_one(&catalog, LONG).await.swept_epoch, duty.lease.epoch);
    }

    async fn a_loser_that_wakes_late_has_its_epoch_swept_again(database: Database) {
        let catalog = database.node().await;
        let loser = stored(&catalog).await.lease;
        catalog.owe_recheck(&loser, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        // While the recheck is under way, and after it.
        catalog.owe_recheck(&loser, SHORT).await.unwrap();
        assert_eq!(catalog.settle_recheck(&duty, &Finding::InOrder, ZERO).await.unwrap(), Settled::Done);
        let again = eventually("it is looked at again", async || grant(&catalog, LONG).await.pop()).await;
        assert!(again.swept_epoch <= loser.epoch, "{}", again.swept_epoch);
        assert_eq!(catalog.settle_recheck(&again, &Finding::InOrder, ZERO).await.unwrap(), Settled::Done);
        catalog.owe_recheck(&loser, ZERO).await.unwrap();
        assert_eq!(grant_one(&catalog, LONG).await.swept_epoch, loser.epoch);
    }

    async fn what_is_not_finished_is_due_again(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog).await.lease;
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        assert_eq!(catalog.settle_recheck(&duty, &Finding::Unfinished, ZERO).await.unwrap(), Settled::Done);
        let again = grant_one(&catalog, LONG).await;
        assert_eq!(again.swept_epoch, 0, "it is not known how far the first one came");
        assert_eq!(catalog.settle_recheck(&again, &Finding::Unfinished, LONG).await.unwrap(), Settled::Done);
        assert_eq!(grant(&catalog, LONG).await, []);
    }

    async fn a_recording_on_its_way_is_looked_at_again_later(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one(&catalog, LONG).await.lease;
        let _ = catalog.note_upload(&lease, "upload").await.unwrap();
        let settled = catalog.fail(&lease, ErrorCode::StoreError, "away", again(LONG, ZERO)).await.unwrap();
        assert_eq!(settled, Settled::Done);
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        assert_eq!(catalog.settle_recheck(&duty, &Finding::InOrder, ZERO).await.unwrap(), Settled::Done);
        let later = grant_one(&catalog, LONG).await;
        assert_eq!((later.swept_epoch, later.leftover), (duty.lease.epoch, None));
    }

    async fn a_lost_object_is_fetched_again(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog).await.lease;
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        assert_eq!(catalog.settle_recheck(&duty, &Finding::Lost, ZERO).await.unwrap(), Settled::Done);
        let known = catalog.recording(&lease.id).await.unwrap().unwrap();
        assert_eq!(known.state, State::Pending);
        assert_eq!(known.last_error.unwrap().code, ErrorCode::ObjectLost);
        assert_eq!(kinds(&catalog).await.last().map(String::as_str), Some("recording.lost"));
        let claim = claim_one(&catalog, LONG).await;
        assert_eq!((claim.lease.epoch, claim.failed_before), (duty.lease.epoch + 1, 0));
        assert!(claim.pending_for < LONG / 2);
        let other = object(&lease.id, b"other");
        assert_eq!(catalog.store(&claim.lease, &other, true).await.unwrap(), Settled::Done);
        let history = catalog.history(&lease.id).await.unwrap();
        let told = &history.last().unwrap().detail["previous_sha256"];
        assert_eq!(told.as_str(), Some(Digest::of(b"audio").to_string().as_str()));
        assert_eq!(grant(&catalog, LONG).await.len(), 1, "the folder is looked at once it is stored");
    }

    async fn a_whole_object_of_what_was_given_up_is_adopted(database: Database) {
        let catalog = database.node().await;
        let lease = failed(&catalog).await.lease;
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        let found = object(&lease.id, b"found");
        let told = Details { call_sid: Some(call_sid(7)), channels: Some(2), ..Details::default() };
        let adopted = Finding::Adopted(found.clone(), Box::new(told));
        assert_eq!(catalog.settle_recheck(&duty, &adopted, LONG).await.unwrap(), Settled::Done);
        let known = catalog.recording(&lease.id).await.unwrap().unwrap();
        assert_eq!((known.state, known.object, known.last_error), (State::Stored, Some(found), None));
        let details = known.details;
        assert_eq!((details.call_sid, details.channels), (Some(call_sid(1)), Some(2)), "told what it did not know");
        assert!(known.stored_at.is_some() && known.next_attempt_at.is_none());
        assert_eq!(kinds(&catalog).await.last().map(String::as_str), Some("recording.stored"));
        assert_eq!(next_due(&catalog, &accounts()).await, None);
        // What else lies in its folder is seen to at once.
        assert_eq!(grant_one(&catalog, LONG).await.recording.state, State::Stored);
    }

    async fn only_what_the_table_allows_is_adopted_or_lost(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog).await.lease;
        catalog.owe_recheck(&lease, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        let adopted = Finding::Adopted(object(&lease.id, b"other"), Box::default());
        assert_eq!(catalog.settle_recheck(&duty, &adopted, ZERO).await.unwrap(), Settled::Stale);
        let known = catalog.recording(&lease.id).await.unwrap().unwrap();
        assert_eq!(known.object.unwrap().digest, Digest::of(b"audio"));

        let second = Announcement { id: recording_id(2), ..callback(2, "absent") };
        catalog.accept(&second).await.unwrap();
        catalog.owe_recheck(&callvault::catalog::Lease { id: second.id, epoch: 0 }, ZERO).await.unwrap();
        let duty = grant_one(&catalog, LONG).await;
        assert_eq!(catalog.settle_recheck(&duty, &Finding::Lost, ZERO).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.recording(&second.id).await.unwrap().unwrap().state, State::Absent);
    }
}
