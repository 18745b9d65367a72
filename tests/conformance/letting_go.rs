//! Letting go: what is erased stays erased, what is held stays, and what goes by
//! itself goes once, by one holder.

use std::time::Instant;

use callvault::catalog::{Duty, Erase, Erased, EventFilter, FoundBy, Lease, ListFilter, Owed, Progress, Settled};
use callvault::domain::object_key::Marker;
use callvault::domain::recording::{ErrorCode, Recording, State};
use futures::future::join_all;
use jiff::Timestamp;

use super::support::eventually;
use super::*;

const ZERO: Duration = Duration::ZERO;
/// Short enough to be waited for.
const SHORT: Duration = Duration::from_millis(300);

fn one(number: u32) -> Erase {
    Erase::Recording(recording_id(number))
}

async fn recording(catalog: &Arc<dyn Catalog>, number: u32) -> Recording {
    catalog.recording(&recording_id(number)).await.unwrap().unwrap()
}

/// The recording of that number, stored.
async fn stored(catalog: &Arc<dyn Catalog>, number: u32) -> Lease {
    accept(catalog, [number]).await;
    store_again(catalog, b"audio").await
}

async fn store_again(catalog: &Arc<dyn Catalog>, bytes: &[u8]) -> Lease {
    let lease = claim_one(catalog, LONG).await.lease;
    assert_eq!(catalog.store(&lease, &object(&lease.id, bytes), true).await.unwrap(), Settled::Done);
    lease
}

async fn kinds(catalog: &Arc<dyn Catalog>, number: u32) -> Vec<String> {
    let history = catalog.history(&recording_id(number)).await.unwrap();
    history.into_iter().map(|entry| entry.kind).collect()
}

async fn erasing(catalog: &Arc<dyn Catalog>) -> Vec<Duty> {
    catalog.grant_erasures(&accounts(), 10, LONG).await.unwrap()
}

async fn evicting(catalog: &Arc<dyn Catalog>, idle_for: Duration, lease: Duration) -> Vec<Duty> {
    catalog.grant_evictions(&accounts(), idle_for, 10, lease).await.unwrap()
}

async fn deleting(catalog: &Arc<dyn Catalog>, discovered: bool) -> Vec<Duty> {
    let mut duties = catalog.grant_twilio_deletions(&accounts(), false, ZERO, 10, LONG).await.unwrap();
    if discovered {
        duties.extend(catalog.grant_twilio_deletions(&accounts(), true, ZERO, 10, LONG).await.unwrap());
    }
    duties
}

fn found(number: u32) -> Announcement {
    let by = AnnouncedBy::Found { by: FoundBy::Reconcile, status: "completed".to_owned(), error_code: None };
    Announcement { by, ..callback(number, "") }
}

on_every_catalog! {
    async fn of_what_is_erased_only_sids_and_times_stay(database: Database) {
        let catalog = database.node().await;
        let mut said = callback(1, "completed");
        said.details.duration_seconds = Some(6);
        said.details.channels = Some(2);
        said.details.track = Some("both".to_owned());
        said.details.recording_source = Some("DialVerb".to_owned());
        said.details.recorded_at = Some(Timestamp::UNIX_EPOCH);
        catalog.accept(&said).await.unwrap();
        let failed = claim_one(&catalog, LONG).await.lease;
        let _ = catalog.fail(&failed, ErrorCode::NotAudio, "it begins with \"secret\"", again(ZERO, ZERO)).await.unwrap();
        let lease = store_again(&catalog, b"audio").await;
        assert_eq!(catalog.erase(one(1), false, asker()).await.unwrap(), Erased::Done(vec![lease.id]));

        let row = recording(&catalog, 1).await;
        assert_eq!((row.state, row.epoch, row.hold), (State::Erased, lease.epoch + 1, false));
        let details = Details { call_sid: Some(call_sid(1)), recorded_at: Some(Timestamp::UNIX_EPOCH), ..Details::default() };
        assert_eq!((row.details, row.object, row.last_error, row.attempts), (details, None, None, 0));
        assert!(row.stored_at.is_some());
        let told = catalog.history(&lease.id).await.unwrap();
        assert_eq!(told.last().unwrap().kind, "recording.erased");
        assert!(!format!("{:?}", &told[..told.len() - 1]).contains("secret"), "{told:?}");
        let (events, _) = eventually("the event has its place", async || {
            let page = catalog.events(None, &EventFilter::default(), 10).await.unwrap();
            (page.0.len() == 3).then_some(page)
        }).await;
        assert!(events.iter().all(|event| event.recording.as_ref().unwrap().object.is_none()));
        assert_eq!(catalog.list(&ListFilter::default(), None, 10).await.unwrap().0, []);
        let asked_for = ListFilter { state: Some(State::Erased), ..ListFilter::default() };
        assert_eq!(catalog.list(&asked_for, None, 10).await.unwrap().0.len(), 1);
    }

    async fn nothing_brings_back_what_is_erased(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let running = claim_one(&catalog, LONG).await.lease;
        let _ = catalog.note_upload(&running, "upload").await.unwrap();
        assert!(matches!(catalog.erase(one(1), false, asker()).await.unwrap(), Erased::Done(_)));
        let row = recording(&catalog, 1).await;
        let before = kinds(&catalog, 1).await;

        // Whoever worked on it changes nothing more.
        let object = object(&running.id, b"late");
        assert_eq!(catalog.store(&running, &object, true).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.renew(&running, LONG).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.note_upload(&running, "late").await.unwrap(), Settled::Stale);
        assert_eq!(catalog.confirm(&running, &Details::default()).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.hand_back(&running).await.unwrap(), Settled::Stale);
        let failed = catalog.fail(&running, ErrorCode::NotAudio, "late", again(ZERO, ZERO)).await.unwrap();
        assert_eq!(failed, Settled::Stale);
        // Nor does any news, nor anybody who asks.
        for status in ["completed", "absent", "failed", "in-progress"] {
            assert_eq!(catalog.accept(&callback(1, status)).await.unwrap().recording.state, State::Erased);
        }
        assert_eq!(catalog.accept(&put(1, 7)).await.unwrap().recording.state, State::Erased);
        assert_eq!(catalog.accept(&found(1)).await.unwrap().recording.state, State::Erased);
        assert_eq!(catalog.fetch_again(&running.id).await.unwrap().unwrap().state, State::Erased);
        catalog.hurry(&running.id, ZERO).await.unwrap();
        catalog.bring_back(&running.id).await.unwrap();
        assert_eq!(claim_some(&catalog, LONG, 10).await, []);
        assert_eq!((recording(&catalog, 1).await, kinds(&catalog, 1).await), (row, before));
        // The upload is known until it is ended.
        let duty = erasing(&catalog).await.remove(0);
        assert_eq!(duty.leftover.unwrap().upload_id, "upload");
    }

    async fn a_call_is_erased_as_a_whole_or_not_at_all(database: Database) {
        let catalog = database.node().await;
        for number in 1..=3 {
            let said = callback(number, "completed");
            let details = Details { call_sid: Some(call_sid(1)), ..said.details };
            catalog.accept(&Announcement { details, ..said }).await.unwrap();
        }
        // Known under another name too.
        catalog.accept(&put(2, 9)).await.unwrap();
        accept(&catalog, [4]).await;
        catalog.set_hold(&recording_id(3), true, asker()).await.unwrap();
        let call = Erase::Call(account(), call_sid(1));
        assert_eq!(catalog.erase(call, false, asker()).await.unwrap(), Erased::Held);
        for number in 1..=3 {
            assert_eq!(recording(&catalog, number).await.state, State::Pending);
        }
        catalog.set_hold(&recording_id(3), false, asker()).await.unwrap();
        let under_its_alias = Erase::Call(account(), call_sid(9));
        let all: Vec<RecordingId> = (1..=3).map(recording_id).collect();
        assert_eq!(catalog.erase(under_its_alias, false, asker()).await.unwrap(), Erased::Done(all.clone()));
        assert_eq!(catalog.erase(call, false, asker()).await.unwrap(), Erased::Done(all), "again");
        assert_eq!(recording(&catalog, 4).await.state, State::Pending, "another call's");
        let unknown = Erase::Call(account(), call_sid(77));
        assert_eq!(catalog.erase(unknown, false, asker()).await.unwrap(), Erased::Unknown);
        assert_eq!(catalog.erase(one(77), false, asker()).await.unwrap(), Erased::Unknown);
    }

    async fn of_a_hold_and_an_erase_at_once_one_wins(database: Database) {
        let nodes = join_all((0..2).map(|_| database.node())).await;
        accept(&nodes[0], 1..=20).await;
        let race = (1..=20).map(|number| {
            let (holder, eraser) = (nodes[0].clone(), nodes[1].clone());
            tokio::spawn(async move {
                let id = recording_id(number);
                tokio::join!(holder.set_hold(&id, true, asker()), eraser.erase(one(number), false, asker()))
            })
        });
        for (number, raced) in (1..).zip(join_all(race).await) {
            let (held, erased) = raced.unwrap();
            let held = held.unwrap().unwrap();
            match erased.unwrap() {
                Erased::Held => assert!(held.hold && recording(&nodes[0], number).await.hold),
                _ => assert_eq!((held.state, held.hold), (State::Erased, false)),
            }
        }
    }

    async fn a_hold_forbids_all_that_removes(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        assert!(catalog.set_hold(&lease.id, true, asker()).await.unwrap().unwrap().hold);
        catalog.set_hold(&lease.id, true, asker()).await.unwrap();
        assert_eq!(catalog.erase(one(1), true, asker()).await.unwrap(), Erased::Held);
        assert_eq!(catalog.erase_old(account(), ZERO, true, 10).await.unwrap(), 0);
        assert_eq!(evicting(&catalog, ZERO, LONG).await, []);
        assert_eq!(deleting(&catalog, true).await, []);
        assert_eq!(recording(&catalog, 1).await.state, State::Stored);
        assert!(!catalog.set_hold(&lease.id, false, asker()).await.unwrap().unwrap().hold);
        catalog.set_hold(&lease.id, false, asker()).await.unwrap();
        let told = kinds(&catalog, 1).await;
        assert_eq!(told[told.len() - 2..], ["recording.held", "recording.released"], "each is told once");
        assert_eq!(deleting(&catalog, true).await.len(), 1);
        // What is erased has nothing to hold.
        catalog.erase(one(1), false, asker()).await.unwrap();
        assert!(!catalog.set_hold(&lease.id, true, asker()).await.unwrap().unwrap().hold);
        assert_eq!(catalog.set_hold(&recording_id(9), true, asker()).await.unwrap(), None);
    }

    async fn a_hold_stops_what_is_under_way(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        let eviction = evicting(&catalog, ZERO, LONG).await.remove(0);
        catalog.set_hold(&lease.id, true, asker()).await.unwrap();
        assert_eq!(catalog.evict(&eviction, ZERO, LONG).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.renew_duty(&eviction, LONG).await.unwrap(), None);
        assert_eq!(recording(&catalog, 1).await.state, State::Stored);

        let lease = stored(&catalog, 2).await;
        let deletion = deleting(&catalog, false).await.remove(0);
        assert_eq!(catalog.mark_for_twilio(&deletion).await.unwrap(), Settled::Done);
        catalog.set_hold(&lease.id, true, asker()).await.unwrap();
        assert_eq!(catalog.mark_for_twilio(&deletion).await.unwrap(), Settled::Stale);
        // But a fetch goes on.
        accept(&catalog, [3]).await;
        let fetch = claim_one(&catalog, LONG).await.lease;
        catalog.set_hold(&fetch.id, true, asker()).await.unwrap();
        assert_eq!(catalog.store(&fetch, &object(&fetch.id, b"audio"), true).await.unwrap(), Settled::Done);
        assert!(recording(&catalog, 3).await.hold);
    }

    async fn any_node_goes_on_with_what_is_owed_of_erasing(database: Database) {
        let nodes = join_all((0..2).map(|_| database.node())).await;
        let lease = stored(&nodes[0], 1).await;
        nodes[0].erase(one(1), true, asker()).await.unwrap();
        let lost = nodes[0].grant_erasure(&lease.id, SHORT).await.unwrap().unwrap();
        assert_eq!(nodes[1].grant_erasure(&lease.id, LONG).await.unwrap(), None, "one node is at it");
        assert_eq!(nodes[0].note_marked(&lost, true).await.unwrap(), Settled::Done);
        let duty = eventually("another node goes on", async || erasing(&nodes[1]).await.pop()).await;
        assert_eq!(nodes[0].note_marked(&lost, true).await.unwrap(), Settled::Stale);
        let all = Progress { cleared: true, gone_at_twilio: true };
        assert_eq!(nodes[0].settle_erasure(&lost, all, ZERO, ZERO).await.unwrap(), Settled::Stale);
        let erasure = nodes[1].erasures(&[lease.id]).await.unwrap()[0];
        assert!(erasure.is_marked && !erasure.is_cleared && erasure.owes_twilio);

        let cleared = Progress { cleared: true, gone_at_twilio: false };
        assert_eq!(nodes[1].settle_erasure(&duty, cleared, ZERO, ZERO).await.unwrap(), Settled::Done);
        let (owed, failing) = nodes[1].erasures_owed(1).await.unwrap();
        assert_eq!((owed.count, failing), (1, 1));
        let duty = erasing(&nodes[1]).await.remove(0);
        assert_eq!(nodes[1].settle_erasure(&duty, all, ZERO, ZERO).await.unwrap(), Settled::Done);
        assert!(nodes[1].erasures(&[lease.id]).await.unwrap()[0].is_done());
        assert_eq!((erasing(&nodes[0]).await, nodes[0].erasures_owed(1).await.unwrap()), (vec![], (Owed::default(), 0)));
        // A recheck always follows.
        assert_eq!(nodes[0].grant_rechecks(10, LONG).await.unwrap().len(), 1);
    }

    async fn a_marker_that_is_gone_is_owed_again_where_its_row_still_asks_for_it(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        let id = lease.id;
        let owes = async || catalog.owes_hold_marker(&id).await.unwrap();
        let written = async || catalog.in_hand([id.recording]).await.unwrap()[&id.recording][0].is_erase_marked;
        for hold in [true, false] {
            catalog.set_hold(&id, hold, asker()).await.unwrap();
            let marker = catalog.grant_hold_marker(&id, LONG).await.unwrap().unwrap();
            assert_eq!(catalog.settle_hold_marker(&marker, true, LONG).await.unwrap(), Settled::Done);
            catalog.owe_marker(&id, Marker::Held).await.unwrap();
            assert_eq!((owes().await, recording(&catalog, 1).await.hold), (hold, hold));
        }
        catalog.owe_marker(&id, Marker::Erased).await.unwrap();
        assert_eq!(recording(&catalog, 1).await.state, State::Stored);
        assert!(!written().await);

        // An erasing under way is left to end.
        catalog.erase(one(1), false, asker()).await.unwrap();
        let duty = erasing(&catalog).await.remove(0);
        catalog.owe_marker(&id, Marker::Erased).await.unwrap();
        assert_eq!(catalog.note_marked(&duty, false).await.unwrap(), Settled::Done);
        assert!(written().await);
        // One that was marked begins anew: whoever is at it does not say that it is there.
        catalog.owe_marker(&id, Marker::Erased).await.unwrap();
        let all = Progress { cleared: true, gone_at_twilio: false };
        assert_eq!(catalog.settle_erasure(&duty, all, ZERO, LONG).await.unwrap(), Settled::Stale);
        assert!(!written().await);
        let duty = erasing(&catalog).await.remove(0);
        assert_eq!(catalog.note_marked(&duty, false).await.unwrap(), Settled::Done);
        assert_eq!(catalog.settle_erasure(&duty, all, ZERO, LONG).await.unwrap(), Settled::Done);
        assert!(catalog.erasures(&[id]).await.unwrap()[0].is_done() && written().await);
        let told = kinds(&catalog, 1).await;
        assert_eq!(told.iter().filter(|kind| *kind == "recording.erased").count(), 1, "{told:?}");
    }

    async fn what_is_owed_grows_old_however_often_it_is_tried(database: Database) {
        let catalog = database.node().await;
        let (erased, held) = (stored(&catalog, 1).await, stored(&catalog, 2).await);
        let owed = async || [catalog.erasures_owed(1).await.unwrap().0, catalog.hold_markers_owed().await.unwrap()];
        assert_eq!(owed().await, [Owed::default(); 2]);
        catalog.erase(one(1), false, asker()).await.unwrap();
        catalog.set_hold(&held.id, true, asker()).await.unwrap();
        // Due long from now, and owed all the same.
        for again in [ZERO, LONG] {
            let duty = erasing(&catalog).await.remove(0);
            assert_eq!(catalog.settle_erasure(&duty, Progress::default(), again, ZERO).await.unwrap(), Settled::Done);
            let marker = catalog.grant_hold_marker(&held.id, LONG).await.unwrap().unwrap();
            assert_eq!(catalog.settle_hold_marker(&marker, false, again).await.unwrap(), Settled::Done);
            let before = owed().await;
            assert_eq!(before.map(|owed| owed.count), [1, 1]);
            eventually("both are older", async || {
                let now = owed().await;
                (0..2).all(|of| now[of].oldest > before[of].oldest + Duration::from_millis(20)).then_some(())
            })
            .await;
        }
        // Once it is done the next one is as young as it is.
        catalog.erase(one(1), false, asker()).await.unwrap();
        let duty = catalog.grant_erasure(&erased.id, LONG).await.unwrap().unwrap();
        let all = Progress { cleared: true, gone_at_twilio: false };
        assert_eq!(catalog.settle_erasure(&duty, all, ZERO, ZERO).await.unwrap(), Settled::Done);
        let marker = catalog.grant_hold_marker(&held.id, LONG).await.unwrap().unwrap();
        assert_eq!(catalog.settle_hold_marker(&marker, true, ZERO).await.unwrap(), Settled::Done);
        assert_eq!(owed().await, [Owed::default(); 2]);
        let anew = Instant::now();
        catalog.erase(one(1), true, asker()).await.unwrap();
        catalog.set_hold(&held.id, false, asker()).await.unwrap();
        let young = owed().await;
        // The catalog counts whole milliseconds.
        let at_most = anew.elapsed() + Duration::from_millis(1);
        assert!(young.iter().all(|owed| owed.count == 1 && owed.oldest <= at_most), "{young:?}");
    }

    async fn twilios_part_can_be_asked_for_at_any_time(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        catalog.erase(one(1), false, asker()).await.unwrap();
        let duty = erasing(&catalog).await.remove(0);
        let is_marked = async || catalog.erasures(&[lease.id]).await.unwrap()[0].is_marked;
        let _ = catalog.note_marked(&duty, false).await.unwrap();
        assert!(is_marked().await);
        catalog.erase(one(1), true, asker()).await.unwrap();
        assert!(!is_marked().await, "its marker does not say so");
        let _ = catalog.note_marked(&duty, false).await.unwrap();
        assert!(!is_marked().await, "it was written before that");
        let cleared = Progress { cleared: true, gone_at_twilio: false };
        assert_eq!(catalog.settle_erasure(&duty, cleared, ZERO, LONG).await.unwrap(), Settled::Done);
        assert!(catalog.erasures(&[lease.id]).await.unwrap()[0].owes_twilio);
        let duty = erasing(&catalog).await.remove(0);
        let _ = catalog.note_marked(&duty, true).await.unwrap();
        assert!(is_marked().await);
        let all = Progress { cleared: true, gone_at_twilio: true };
        assert_eq!(catalog.settle_erasure(&duty, all, ZERO, LONG).await.unwrap(), Settled::Done);
        catalog.erase(one(1), true, asker()).await.unwrap();
        assert_eq!(erasing(&catalog).await, [], "it is gone there");
        assert!(catalog.erasures(&[lease.id]).await.unwrap()[0].is_done());
    }

    async fn without_credentials_the_buckets_part_is_done_and_twilios_waits(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        catalog.erase(one(1), true, asker()).await.unwrap();
        let stranger: AccountSid = format!("AC{}", "9".repeat(32)).parse().unwrap();
        let duty = catalog.grant_erasures(&[stranger], 10, LONG).await.unwrap().remove(0);
        let cleared = Progress { cleared: true, gone_at_twilio: false };
        assert_eq!(catalog.settle_erasure(&duty, cleared, ZERO, LONG).await.unwrap(), Settled::Done);
        // Its marker is not there.
        let duty = catalog.grant_erasures(&[stranger], 10, LONG).await.unwrap().remove(0);
        let _ = catalog.note_marked(&duty, true).await.unwrap();
        assert_eq!(catalog.settle_erasure(&duty, cleared, ZERO, LONG).await.unwrap(), Settled::Done);
        assert_eq!(catalog.grant_erasures(&[stranger], 10, LONG).await.unwrap(), []);
        assert_eq!(erasing(&catalog).await[0].lease.id, lease.id);
    }

    async fn age_erases_in_every_state_and_nothing_held_or_young(database: Database) {
        let catalog = database.node().await;
        let old = |number| {
            let mut said = callback(number, "completed");
            said.details.recorded_at = Some(Timestamp::UNIX_EPOCH);
            said
        };
        catalog.accept(&old(1)).await.unwrap();
        store_again(&catalog, b"audio").await;
        for (number, status) in [(2, "absent"), (3, "failed"), (4, "in-progress"), (5, "completed"), (6, "completed")] {
            let by = callback(number, status).by;
            catalog.accept(&Announcement { by, ..old(number) }).await.unwrap();
        }
        catalog.set_hold(&recording_id(6), true, asker()).await.unwrap();
        accept(&catalog, [7]).await;
        let stranger: AccountSid = format!("AC{}", "9".repeat(32)).parse().unwrap();
        let with_old = async |age| catalog.accounts_with_old(&[(stranger, ZERO), (account(), age)]).await.unwrap();
        assert_eq!(with_old(LONG).await, accounts());
        assert_eq!(catalog.erase_old(account(), LONG, false, 3).await.unwrap(), 3, "so many at once");
        assert_eq!(catalog.erase_old(account(), LONG, true, 10).await.unwrap(), 2);
        assert_eq!(catalog.erase_old(account(), LONG, true, 10).await.unwrap(), 0);
        assert_eq!((with_old(LONG).await, with_old(ZERO).await), (vec![], accounts().to_vec()));
        for number in 1..=5 {
            assert_eq!(recording(&catalog, number).await.state, State::Erased);
        }
        assert_eq!([recording(&catalog, 6).await.state, recording(&catalog, 7).await.state], [State::Pending; 2]);
        let history = catalog.history(&recording_id(1)).await.unwrap();
        assert_eq!(history.last().unwrap().detail["by"], "retention");
        let erasures = catalog.erasures(&(1..=5).map(recording_id).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(erasures.iter().filter(|erasure| erasure.owes_twilio).count(), 2);
    }

    async fn what_is_asked_for_stays_and_what_is_evicted_comes_back(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        assert_eq!(evicting(&catalog, LONG, LONG).await, []);
        let duty = eventually("it was idle", async || evicting(&catalog, SHORT, LONG).await.pop()).await;
        // Someone asks between the grant and the mark.
        catalog.asked(&lease.id).await.unwrap();
        assert_eq!(catalog.evict(&duty, SHORT, LONG).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.give_back_duty(&duty).await.unwrap(), Settled::Done);
        let duty = eventually("it was idle again", async || evicting(&catalog, SHORT, LONG).await.pop()).await;
        assert_eq!(catalog.evict(&duty, SHORT, ZERO).await.unwrap(), Settled::Done);
        assert_eq!(catalog.asked(&lease.id).await.unwrap(), Some(State::Evicted), "whoever asks now gets no link");

        // Asked for while its object is still being removed: nothing is claimed before.
        catalog.bring_back(&lease.id).await.unwrap();
        assert_eq!(recording(&catalog, 1).await.state, State::Pending);
        assert_eq!(claim_some(&catalog, LONG, 1).await, []);
        assert_eq!(catalog.give_back_duty(&duty).await.unwrap(), Settled::Done);
        store_again(&catalog, b"other").await;
        let history = catalog.history(&lease.id).await.unwrap();
        let told: Vec<&str> = history.iter().map(|entry| entry.kind.as_str()).collect();
        assert_eq!(told[told.len() - 2..], ["recording.evicted", "recording.stored"]);
        let before = Digest::of(b"audio").to_string();
        assert_eq!(history.last().unwrap().detail["previous_sha256"], before);
        assert_eq!(catalog.grant_rechecks(10, LONG).await.unwrap().len(), 1, "what was left is looked for");
    }

    async fn what_could_not_be_evicted_is_left_alone_for_a_while(database: Database) {
        let catalog = database.node().await;
        stored(&catalog, 1).await;
        let duty = eventually("it was idle", async || evicting(&catalog, SHORT, LONG).await.pop()).await;
        assert_eq!(catalog.keep_recording(&duty, SHORT, SHORT).await.unwrap(), Settled::Done);
        assert_eq!(evicting(&catalog, SHORT, LONG).await, []);
        let duty = eventually("that was all", async || evicting(&catalog, SHORT, LONG).await.pop()).await;
        assert_eq!(catalog.keep_recording(&duty, SHORT, LONG).await.unwrap(), Settled::Done);
        tokio::time::sleep(SHORT * 2).await;
        assert_eq!(evicting(&catalog, SHORT, LONG).await, [], "longer than it is idle for");
    }

    async fn at_twilio_goes_what_was_announced_and_owes_nothing(database: Database) {
        let catalog = database.node().await;
        catalog.accept(&found(1)).await.unwrap();
        store_again(&catalog, b"audio").await;
        let announced = stored(&catalog, 2).await;
        let owing = stored(&catalog, 3).await;
        catalog.owe_recheck(&owing, LONG).await.unwrap();
        let duties = deleting(&catalog, false).await;
        assert_eq!(duties.iter().map(|duty| duty.lease.id).collect::<Vec<_>>(), [announced.id]);
        // A recheck that came to be owed in between stops it, too.
        assert_eq!(catalog.mark_for_twilio(&duties[0]).await.unwrap(), Settled::Done);
        catalog.owe_recheck(&duties[0].lease, LONG).await.unwrap();
        assert_eq!(catalog.mark_for_twilio(&duties[0]).await.unwrap(), Settled::Stale);
        // What was found counts as announced once it was.
        accept(&catalog, [1]).await;
        let duty = deleting(&catalog, false).await.remove(0);
        assert_eq!(duty.lease.id, recording_id(1));
        assert_eq!(catalog.mark_for_twilio(&duty).await.unwrap(), Settled::Done);
        // Once marked it is not evicted, whoever works on it.
        assert_eq!(catalog.give_back_duty(&duty).await.unwrap(), Settled::Done);
        assert!(evicting(&catalog, ZERO, LONG).await.iter().all(|duty| duty.lease.id != recording_id(1)));
        let duty = deleting(&catalog, true).await.remove(0);
        assert_eq!(catalog.deleted_at_twilio(&duty).await.unwrap(), Settled::Done);
        assert_eq!(deleting(&catalog, true).await, []);
        assert_eq!(kinds(&catalog, 1).await.last().map(String::as_str), Some("deleted_at_twilio"));
    }

    async fn what_was_seen_under_a_lease_that_ran_out_lets_go_of_nothing(database: Database) {
        let catalog = database.node().await;
        stored(&catalog, 1).await;
        for is_eviction in [true, false] {
            let due = if is_eviction { evicting(&catalog, ZERO, LONG).await } else { deleting(&catalog, false).await };
            let [duty] = &due[..] else { panic!("one is due: {due:?}") };
            // Nobody has taken it since.
            database.execute("UPDATE recordings SET duty_until = 1").await;
            assert_eq!(catalog.renew_duty(duty, LONG).await.unwrap(), None);
            let settled = match is_eviction {
                true => catalog.evict(duty, ZERO, LONG).await.unwrap(),
                false => catalog.mark_for_twilio(duty).await.unwrap(),
            };
            assert_eq!(settled, Settled::Stale);
        }
        assert_eq!(recording(&catalog, 1).await.state, State::Stored);
    }

    async fn by_a_clock_that_is_not_the_nodes_nothing_is_let_go_of(database: Database) {
        const YEAR: Duration = Duration::from_secs(365 * 86_400);
        let catalog = database.node().await;
        stored(&catalog, 1).await;
        let old = async || catalog.erase_old(account(), YEAR, false, 10).await.unwrap();
        let idle = async || evicting(&catalog, YEAR, LONG).await.len();
        let copied = async || catalog.grant_twilio_deletions(&accounts(), false, YEAR, 10, LONG).await.unwrap().len();
        assert_eq!((old().await, idle().await, copied().await), (0, 0, 0), "it is young");
        // The database is ten years ahead.
        let shown = if database.postgres_url().is_some() {
            "DROP VIEW clock CASCADE; CREATE VIEW clock AS \
             SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 315360000000 AS now_ms"
        } else {
            "DROP VIEW clock; CREATE VIEW clock AS SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) + 315360000000 AS now_ms"
        };
        database.execute(shown).await;
        assert_eq!((old().await, idle().await, copied().await), (0, 0, 0));
        assert_eq!(recording(&catalog, 1).await.state, State::Stored);
        // Its clock is right, and its recording old.
        database.execute("UPDATE recordings SET ordered_at = 1, stored_at = 1").await;
        assert_eq!(old().await, 0, "whatever it says of the age");
    }

    async fn that_a_copy_is_gone_at_twilio_is_told_whoever_has_the_lease_by_then(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        let duty = deleting(&catalog, false).await.remove(0);
        assert_eq!(catalog.mark_for_twilio(&duty).await.unwrap(), Settled::Done);
        catalog.set_hold(&lease.id, true, asker()).await.unwrap();
        for _ in 0..2 {
            assert_eq!(catalog.deleted_at_twilio(&duty).await.unwrap(), Settled::Stale);
        }
        let told = kinds(&catalog, 1).await;
        assert_eq!(told.iter().filter(|kind| *kind == "deleted_at_twilio").count(), 1, "{told:?}");
        // There is nothing to be deleted any more.
        catalog.set_hold(&lease.id, false, asker()).await.unwrap();
        database.execute("UPDATE recordings SET duty_until = NULL").await;
        assert_eq!(deleting(&catalog, true).await, []);
    }

    async fn what_is_held_after_it_was_evicted_comes_back(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        let duty = evicting(&catalog, ZERO, LONG).await.remove(0);
        assert_eq!(catalog.evict(&duty, ZERO, LONG).await.unwrap(), Settled::Done);
        let held = catalog.set_hold(&lease.id, true, asker()).await.unwrap().unwrap();
        assert_eq!((held.state, held.hold), (State::Pending, true));
        // Not while whoever evicts it may still remove something.
        assert_eq!(claim_some(&catalog, LONG, 1).await, []);
        assert_eq!(catalog.renew_duty(&duty, LONG).await.unwrap(), None);
        database.execute("UPDATE recordings SET duty_until = 1").await;
        let claim = claim_one(&catalog, LONG).await;
        assert!(claim.look_first, "what is left of its object is looked at");
    }

    async fn a_copy_that_does_not_match_is_looked_at_and_kept_at_twilio(database: Database) {
        let catalog = database.node().await;
        stored(&catalog, 1).await;
        let duty = deleting(&catalog, false).await.remove(0);
        let _ = catalog.mark_for_twilio(&duty).await.unwrap();
        assert_eq!(catalog.copy_is_needed(&duty).await.unwrap(), Settled::Done);
        assert_eq!(deleting(&catalog, true).await, []);
        let recheck = catalog.grant_rechecks(10, LONG).await.unwrap().remove(0);
        assert!(recheck.is_doubted, "it is read back");
    }

    async fn the_marker_of_a_hold_follows_its_row(database: Database) {
        let catalog = database.node().await;
        let lease = stored(&catalog, 1).await;
        catalog.set_hold(&lease.id, true, asker()).await.unwrap();
        let lost = catalog.grant_hold_marker(&lease.id, SHORT).await.unwrap().unwrap();
        assert!(lost.recording.hold);
        assert_eq!(catalog.grant_hold_marker(&lease.id, LONG).await.unwrap(), None, "one node is at it");
        let marker = eventually("another node goes on", async || {
            catalog.grant_hold_marker(&lease.id, LONG).await.unwrap()
        }).await;
        assert_eq!(catalog.settle_hold_marker(&lost, true, ZERO).await.unwrap(), Settled::Stale);
        // Released while its marker is being written: that is not the end of it.
        catalog.set_hold(&lease.id, false, asker()).await.unwrap();
        assert_eq!(catalog.settle_hold_marker(&marker, true, ZERO).await.unwrap(), Settled::Done);
        assert_eq!(catalog.hold_markers_due(10).await.unwrap(), [lease.id]);
        let marker = catalog.grant_hold_marker(&lease.id, LONG).await.unwrap().unwrap();
        assert!(!marker.recording.hold);
        assert_eq!(catalog.settle_hold_marker(&marker, false, ZERO).await.unwrap(), Settled::Done);
        assert!(catalog.owes_hold_marker(&lease.id).await.unwrap(), "it failed");
        let marker = catalog.grant_hold_marker(&lease.id, LONG).await.unwrap().unwrap();
        assert_eq!(catalog.settle_hold_marker(&marker, true, ZERO).await.unwrap(), Settled::Done);
        assert!(!catalog.owes_hold_marker(&lease.id).await.unwrap());
        assert_eq!((catalog.hold_markers_due(10).await.unwrap(), catalog.hold_markers_owed().await.unwrap()), (vec![], Owed::default()));
    }
}
