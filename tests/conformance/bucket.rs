//! What a catalog takes from the bucket: when it is new, markers, objects, and
//! walks that any node goes on with.

use callvault::catalog::{
    BucketWalk, BucketWalkKind, CatalogError, Erase, EventFilter, FoundObject, Marked, Position, Progress, Settled,
    Walker,
};
use callvault::domain::object_key::Marker;
use callvault::domain::recording::{ErrorCode, State};

use super::support::eventually;
use super::*;

const SHORT: Duration = Duration::from_millis(300);

pub async fn walk(catalog: &Arc<dyn Catalog>, kind: BucketWalkKind) -> BucketWalk {
    catalog.grant_bucket_walk(kind, "node", LONG).await.unwrap().expect("the walk is due")
}

pub fn at(stage: i64, after: &str) -> Position {
    Position { stage, after: Some(after.to_owned()), done: 0 }
}

/// What a marker names that says no more.
pub fn marked(number: u32) -> Marked {
    Marked {
        id: recording_id(number),
        call_sid: None,
        conference_sid: None,
        owes_twilio: false,
        hold_marker_epoch: Some(0),
    }
}

/// All markers of one kind, read in one go.
pub async fn read(catalog: &Arc<dyn Catalog>, marker: Marker, numbers: &[u32]) {
    let walk = walk(catalog, BucketWalkKind::Markers).await;
    let marked: Vec<Marked> = numbers.iter().map(|number| marked(*number)).collect();
    assert_eq!(catalog.take_markers(&walk, marker, &marked, None, LONG).await.unwrap(), Settled::Done);
}

/// An object of a recording, stored so many seconds after the first one.
pub fn found(number: u32, bytes: &[u8], seconds: i64) -> FoundObject {
    let id = recording_id(number);
    FoundObject {
        id,
        details: Details { call_sid: Some(call_sid(number)), duration_seconds: Some(6), ..Details::default() },
        object: object(&id, bytes),
        stored_at: jiff::Timestamp::from_second(1_700_000_000 + seconds).unwrap(),
        source_host: None,
    }
}

pub async fn index_all(catalog: &Arc<dyn Catalog>, objects: &[FoundObject]) {
    let walk = walk(catalog, BucketWalkKind::Objects).await;
    assert_eq!(catalog.gather(&walk, objects, &at(1, "")).await.unwrap(), Settled::Done);
    while catalog.index(&walk, &at(1, ""), 2, Duration::ZERO).await.unwrap().expect("the lease is held") > 0 {}
    assert_eq!(catalog.finish_index(&walk).await.unwrap(), Settled::Done);
}

async fn told(catalog: &Arc<dyn Catalog>, kind: &str) -> Vec<RecordingId> {
    let filter = EventFilter { kinds: vec![kind.to_owned()], ..EventFilter::default() };
    let count = async || {
        let latest = catalog.feed_extent().await.unwrap();
        (latest.numbered > 0).then_some(())
    };
    eventually("events are numbered", count).await;
    let mut last = Vec::new();
    eventually("no more events come", async || {
        let (events, _) = catalog.events(None, &filter, 100).await.unwrap();
        let now: Vec<RecordingId> = events.into_iter().filter_map(|event| event.recording).map(|row| row.id).collect();
        let settled = now == last && !now.is_empty();
        last = now;
        tokio::time::sleep(Duration::from_millis(50)).await;
        settled.then_some(())
    })
    .await;
    last
}

async fn row(catalog: &Arc<dyn Catalog>, number: u32) -> callvault::domain::recording::Recording {
    catalog.recording(&recording_id(number)).await.unwrap().expect("a row")
}

on_every_catalog! {
    async fn a_new_catalog_takes_nothing_before_the_markers_are_read(database: Database) {
        let catalog = database.newborn().await;
        assert!(!catalog.is_read().await.unwrap() && !catalog.is_indexed().await.unwrap());
        let refused = catalog.accept(&callback(1, "completed")).await;
        assert!(matches!(refused, Err(CatalogError::Unread)), "{refused:?}");
        let wishes = accounts().map(|account| Wish { account, at_most: 1, of_backfill: 1 });
        let refused = catalog.claim(&claimant(LONG), &wishes).await;
        assert!(matches!(refused, Err(CatalogError::Unread)), "{refused:?}");

        // Halfway through, another one sees it unread still.
        let begun = walk(&catalog, BucketWalkKind::Markers).await;
        let half = catalog.take_markers(&begun, Marker::Erased, &[marked(1)], Some(&at(0, "x")), LONG).await;
        assert_eq!(half.unwrap(), Settled::Done);
        let other = database.newborn().await;
        assert!(!other.is_read().await.unwrap());
        assert_eq!(catalog.take_markers(&begun, Marker::Held, &[marked(2)], None, LONG).await.unwrap(), Settled::Done);
        assert!(other.is_read().await.unwrap() && !other.is_indexed().await.unwrap());

        let erased = catalog.accept(&callback(1, "completed")).await.unwrap();
        assert_eq!((erased.recording.state, erased.created), (State::Erased, false));
        let held = catalog.accept(&callback(2, "completed")).await.unwrap().recording;
        assert!(held.hold && held.state == State::Pending);
        assert!(!catalog.accept(&callback(3, "completed")).await.unwrap().recording.hold);
    }

    /// Its nodes saw it read and indexed, and go on; then another one is in its place, as
    /// after a disaster. Here it has rows already: what would be begun of them is not.
    async fn a_catalog_that_is_made_anew_under_its_nodes_is_new_to_them(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one_of(&catalog, 1).await.lease;
        assert_eq!(catalog.store(&lease, &object(&lease.id, b"audio"), true).await.unwrap(), Settled::Done);
        accept(&catalog, [2]).await;
        catalog.enroll(&accounts()).await.unwrap();
        assert!(catalog.is_read().await.unwrap() && catalog.is_indexed().await.unwrap());
        let walker = Walker { node: "node".to_owned(), lease: LONG, accounts: accounts().into(), window: LONG, reach: LONG };
        let wishes = accounts().map(|account| Wish { account, at_most: 9, of_backfill: 9 });
        let goes_by_itself = async || {
            let evicted = catalog.grant_evictions(&accounts(), Duration::ZERO, 9, LONG).await.unwrap();
            let deleted = catalog.grant_twilio_deletions(&accounts(), false, Duration::ZERO, 9, LONG).await.unwrap();
            let ages = accounts().map(|account| (account, Duration::ZERO));
            let old = catalog.accounts_with_old(&ages).await.unwrap();
            let erased = catalog.erase_old(account(), Duration::ZERO, false, 9).await.unwrap();
            (evicted.len() + deleted.len(), old.len(), erased)
        };

        database.execute("UPDATE catalog SET unread = 1, unindexed = 1").await;
        assert!(matches!(catalog.accept(&callback(3, "completed")).await, Err(CatalogError::Unread)));
        assert_eq!(catalog.recording(&recording_id(3)).await.unwrap(), None);
        assert!(matches!(catalog.claim(&claimant(LONG), &wishes).await, Err(CatalogError::Unread)));
        let named = catalog.claim_named(&claimant(LONG), &recording_id(2)).await;
        assert!(matches!(named, Err(CatalogError::Unread)), "{named:?}");
        assert!(!catalog.is_read().await.unwrap() && !catalog.is_indexed().await.unwrap());
        assert_eq!(goes_by_itself().await, (0, 0, 0));

        database.execute("UPDATE catalog SET unread = 0").await;
        assert!(catalog.accept(&callback(3, "completed")).await.unwrap().created);
        let claims = catalog.claim(&claimant(LONG), &wishes).await.unwrap();
        assert!(claims.len() == 2 && claims.iter().all(|claim| claim.look_first), "{claims:?}");
        assert!(catalog.is_read().await.unwrap() && !catalog.is_indexed().await.unwrap());
        assert_eq!(catalog.grant_walk(&walker).await.unwrap(), None);
        assert_eq!(goes_by_itself().await, (0, 0, 0));

        database.execute("UPDATE catalog SET unindexed = 0").await;
        assert!(catalog.is_indexed().await.unwrap());
        assert!(catalog.grant_walk(&walker).await.unwrap().is_some());
        let (granted, old, erased) = goes_by_itself().await;
        assert!(granted > 0 && (old, erased) == (1, 3), "{granted}, {old}, {erased}");
    }

    async fn over_an_empty_bucket_a_new_catalog_is_read_and_indexed(database: Database) {
        let catalog = database.newborn().await;
        catalog.nothing_is_there().await.unwrap();
        let other = database.newborn().await;
        assert!(other.is_read().await.unwrap() && other.is_indexed().await.unwrap());
        catalog.accept(&callback(1, "completed")).await.unwrap();
    }

    async fn markers_apply_to_rows_that_exist_and_erased_wins(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1, 2, 3]).await;
        let lease = claim_one_of(&catalog, 1).await.lease;
        read(&catalog, Marker::Held, &[1, 2]).await;
        assert!(row(&catalog, 1).await.hold && row(&catalog, 2).await.hold && !row(&catalog, 3).await.hold);
        for _ in 0..2 {
            read(&catalog, Marker::Erased, &[1]).await;
            read(&catalog, Marker::Held, &[1]).await;
        }
        let erased = row(&catalog, 1).await;
        assert_eq!((erased.state, erased.hold, erased.object), (State::Erased, false, None));
        assert_eq!(catalog.store(&lease, &object(&lease.id, b"late"), true).await.unwrap(), Settled::Stale);
        assert_eq!(told(&catalog, "recording.erased").await, [recording_id(1)]);
        assert_eq!(told(&catalog, "recording.held").await.len(), 2);
    }

    async fn the_marker_of_a_hold_that_was_released_since_it_was_seen_says_nothing(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let id = recording_id(1);
        let heed = async |seen_as: Option<i64>| {
            let seen = Marked { hold_marker_epoch: seen_as, ..marked(1) };
            catalog.take_marker(Marker::Held, &seen, LONG).await.unwrap();
            row(&catalog, 1).await.hold
        };
        for hold in [true, false] {
            catalog.set_hold(&id, hold, asker()).await.unwrap();
            let marker = catalog.grant_hold_marker(&id, LONG).await.unwrap().unwrap();
            assert_eq!(catalog.settle_hold_marker(&marker, true, LONG).await.unwrap(), Settled::Done);
        }
        let now = catalog.in_hand([id.recording]).await.unwrap()[&id.recording][0].hold_marker_epoch;
        assert!(!heed(Some(now - 1)).await, "released since");
        assert!(!heed(None).await, "it was being released");
        assert!(heed(Some(now)).await, "nobody has touched it: another catalog knew of the hold");
    }

    async fn what_a_marker_says_to_be_owed_at_twilio_is_owed_until_it_is_done(database: Database) {
        let catalog = database.node().await;
        let owing = |number| Marked { owes_twilio: true, call_sid: Some(call_sid(number)), ..marked(number) };
        let owes = async |number| {
            let erasures = catalog.erasures(&[recording_id(number)]).await.unwrap();
            erasures[0].owes_twilio
        };
        let begun = walk(&catalog, BucketWalkKind::Markers).await;
        let seen = [owing(1), marked(2)];
        assert_eq!(catalog.take_markers(&begun, Marker::Erased, &seen, None, LONG).await.unwrap(), Settled::Done);
        assert_eq!([owes(1).await, owes(2).await], [true, false]);
        index_all(&catalog, &[]).await;
        accept(&catalog, [3]).await;
        // A row that is there, one that was erased before, and one that says so already.
        for number in [3, 2, 1] {
            catalog.take_marker(Marker::Erased, &owing(number), LONG).await.unwrap();
            assert!(owes(number).await, "{number}");
        }
        let all = Progress { cleared: true, gone_at_twilio: true };
        for number in 1..=3 {
            let duty = catalog.grant_erasure(&recording_id(number), LONG).await.unwrap().unwrap();
            assert_eq!(catalog.settle_erasure(&duty, all, Duration::ZERO, LONG).await.unwrap(), Settled::Done);
            // Whoever read the marker before that says nothing new.
            catalog.take_marker(Marker::Erased, &owing(number), LONG).await.unwrap();
            assert!(catalog.erasures(&[recording_id(number)]).await.unwrap()[0].is_done(), "{number}");
        }
    }

    async fn an_erased_row_that_a_marker_made_learns_its_call(database: Database) {
        let catalog = database.newborn().await;
        read(&catalog, Marker::Erased, &[1]).await;
        assert!(catalog.call(call_sid(1), None).await.unwrap().is_empty());
        catalog.accept(&callback(1, "completed")).await.unwrap();
        let view = catalog.call(call_sid(1), None).await.unwrap().remove(0);
        assert_eq!(view.answer().unwrap().state, State::Erased);
    }

    async fn objects_become_rows_in_the_order_in_which_they_were_stored(database: Database) {
        let catalog = database.newborn().await;
        read(&catalog, Marker::Held, &[3]).await;
        let objects = [
            found(1, b"new", 50),
            found(2, b"first", 10),
            found(1, b"old", 5),
            found(3, b"third", 30),
            found(1, b"older still", 1),
        ];
        index_all(&catalog, &objects).await;
        assert!(catalog.is_indexed().await.unwrap());
        assert_eq!(told(&catalog, "recording.stored").await, [2, 3, 1].map(recording_id));
        assert_eq!(told(&catalog, "recording.accepted").await, [2, 3, 1].map(recording_id));
        let first = row(&catalog, 1).await;
        assert_eq!((first.state, first.object), (State::Stored, Some(objects[0].object.clone())));
        assert_eq!((first.stored_at, first.details_confirmed), (Some(objects[0].stored_at), true));
        assert!(row(&catalog, 3).await.hold);
        // The others of a recording are looked at, and nothing else is.
        let duties = catalog.grant_rechecks(10, LONG).await.unwrap();
        assert_eq!(duties.iter().map(|duty| duty.lease.id).collect::<Vec<_>>(), [recording_id(1)]);
    }

    async fn a_row_that_exists_is_left_as_it_is(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1, 2]).await;
        let lease = claim_one_of(&catalog, 1).await.lease;
        assert_eq!(catalog.store(&lease, &object(&lease.id, b"audio"), true).await.unwrap(), Settled::Done);
        read(&catalog, Marker::Erased, &[3]).await;
        index_all(&catalog, &[found(1, b"audio", 1), found(2, b"other", 2), found(3, b"gone", 3)]).await;
        assert_eq!(row(&catalog, 1).await.object, Some(object(&lease.id, b"audio")));
        assert_eq!(row(&catalog, 2).await.state, State::Pending);
        assert_eq!(row(&catalog, 3).await.state, State::Erased);
        let duties = catalog.grant_rechecks(10, LONG).await.unwrap();
        let mut owed: Vec<RecordingId> = duties.iter().map(|duty| duty.lease.id).collect();
        owed.sort();
        assert_eq!(owed, [2, 3].map(recording_id), "what rows do not name is looked at");
        assert_eq!(row(&catalog, 3).await.details.call_sid, Some(call_sid(3)), "there it is looked at");
        assert_eq!(told(&catalog, "recording.stored").await, [recording_id(1)]);
    }

    async fn what_waits_for_twilio_is_looked_for_where_its_object_was_found(database: Database) {
        let catalog = database.newborn().await;
        read(&catalog, Marker::Erased, &[]).await;
        catalog.accept(&put(1, 9)).await.unwrap();
        accept(&catalog, [2, 3]).await;
        let claims = claim_some(&catalog, LONG, 10).await;
        assert!(claims.len() == 3 && claims.iter().all(|claim| claim.look_first), "not indexed yet: {claims:?}");
        for claim in &claims {
            let settled = catalog.fail(&claim.lease, ErrorCode::NotReady, "404", again(LONG, Duration::ZERO)).await;
            assert_eq!(settled.unwrap(), Settled::Done);
        }
        index_all(&catalog, &[found(1, b"audio", 1), found(2, b"other", 2)]).await;

        let put = row(&catalog, 1).await;
        assert_eq!((put.details_confirmed, put.details.call_sid), (true, Some(call_sid(1))), "told by the object");
        assert_eq!(put.details.duration_seconds, Some(6));
        let view = catalog.call(call_sid(9), None).await.unwrap().remove(0);
        assert_eq!(view.answer().unwrap().id, recording_id(1), "it goes by the other name, too");
        let mut claims = claim_some(&catalog, LONG, 10).await;
        claims.sort_by_key(|claim| claim.lease.id);
        let ids: Vec<RecordingId> = claims.iter().map(|claim| claim.lease.id).collect();
        assert_eq!(ids, [1, 2].map(recording_id), "at once, and nothing else");
        assert!(claims.iter().all(|claim| claim.look_first));

        // Once it is stored, it is fetched like any other.
        let lease = claims[1].lease;
        assert_eq!(catalog.store(&lease, &object(&lease.id, b"other"), true).await.unwrap(), Settled::Done);
        let duty = catalog.begin_duty(&lease.id, LONG).await.unwrap().expect("it is at rest");
        let lost = callvault::catalog::Finding::Lost;
        assert_eq!(catalog.settle_recheck(&duty, &lost, LONG).await.unwrap(), Settled::Done);
        assert!(!claim_one_of(&catalog, 2).await.look_first);
    }

    async fn what_was_erased_before_its_call_was_known_is_cleared_where_it_lies(database: Database) {
        let catalog = database.newborn().await;
        read(&catalog, Marker::Erased, &[]).await;
        catalog.accept(&put(1, 9)).await.unwrap();
        catalog.erase(Erase::Recording(recording_id(1)), false, asker()).await.unwrap();
        let duty = catalog.grant_erasure(&recording_id(1), LONG).await.unwrap().expect("it is owed");
        let cleared = Progress { cleared: true, gone_at_twilio: false };
        assert_eq!(catalog.settle_erasure(&duty, cleared, LONG, LONG).await.unwrap(), Settled::Done);
        index_all(&catalog, &[found(1, b"audio", 1)]).await;

        let told = row(&catalog, 1).await;
        assert_eq!((told.state, told.details_confirmed), (State::Erased, true));
        assert_eq!(told.details.call_sid, Some(call_sid(1)), "there it lies");
        assert!(!catalog.erasures(&[recording_id(1)]).await.unwrap()[0].is_cleared);
        let duties = catalog.grant_erasures(&accounts(), 10, LONG).await.unwrap();
        assert_eq!(duties.len(), 1, "it is gone on with at once");
        let view = catalog.call(call_sid(9), None).await.unwrap().remove(0);
        assert_eq!(view.answer().unwrap().state, State::Erased);
    }

    async fn what_is_erased_and_marked_waits_for_the_index_where_its_call_is_not_known(database: Database) {
        let catalog = database.newborn().await;
        read(&catalog, Marker::Erased, &[]).await;
        catalog.accept(&put(1, 9)).await.unwrap();
        catalog.erase(Erase::Recording(recording_id(1)), false, asker()).await.unwrap();
        let erasing = async || catalog.grant_erasures(&accounts(), 10, LONG).await.unwrap();
        let duty = erasing().await.remove(0);
        assert_eq!(catalog.note_marked(&duty, false).await.unwrap(), Settled::Done);
        let settled = catalog.settle_erasure(&duty, Progress::default(), Duration::ZERO, LONG).await;
        assert_eq!(settled.unwrap(), Settled::Done);
        assert_eq!(erasing().await, [], "nothing more is to be done now");
        index_all(&catalog, &[]).await;
        assert_eq!(erasing().await.len(), 1);
    }

    async fn a_walk_that_is_handed_back_goes_on_at_once_where_it_was_saved(database: Database) {
        let catalog = database.newborn().await;
        let begun = walk(&catalog, BucketWalkKind::Objects).await;
        assert_eq!(catalog.gather(&begun, &[], &at(0, "x")).await.unwrap(), Settled::Done);
        assert_eq!(catalog.hand_back_bucket_walk(&begun).await.unwrap(), Settled::Done);
        assert_eq!(walk(&catalog, BucketWalkKind::Objects).await.position, at(0, "x"));
        assert_eq!(catalog.hand_back_bucket_walk(&begun).await.unwrap(), Settled::Stale);
    }

    async fn a_walk_that_was_left_for_long_begins_anew(database: Database) {
        let catalog = database.node().await;
        for kind in [BucketWalkKind::Markers, BucketWalkKind::Objects] {
            let begun = walk(&catalog, kind).await;
            catalog.begin_walk_anew(kind, Duration::ZERO).await.unwrap();
            assert_eq!(catalog.leave_bucket_walk(&begun, &at(1, "x"), Duration::ZERO).await.unwrap(), Settled::Done);
            catalog.begin_walk_anew(kind, LONG).await.unwrap();
            let gone_on = walk(&catalog, kind).await;
            assert_eq!(gone_on.position, at(1, "x"), "it was not left for long");
            catalog.begin_walk_anew(kind, Duration::ZERO).await.unwrap();
            assert_eq!(catalog.hand_back_bucket_walk(&gone_on).await.unwrap(), Settled::Done);
            catalog.begin_walk_anew(kind, Duration::ZERO).await.unwrap();
            assert_eq!(walk(&catalog, kind).await.position, Position::default());
        }
    }

    async fn a_walk_has_one_holder_and_goes_on_where_it_was_saved(database: Database) {
        let catalog = database.node().await;
        let other = database.node().await;
        let kind = BucketWalkKind::Scrub;
        let lost = catalog.grant_bucket_walk(kind, "first", SHORT).await.unwrap().unwrap();
        assert_eq!(other.grant_bucket_walk(kind, "second", LONG).await.unwrap(), None);
        let taken = eventually("its lease runs out", async || {
            other.grant_bucket_walk(kind, "second", LONG).await.unwrap()
        })
        .await;
        assert_eq!(catalog.renew_bucket_walk(&lost, LONG).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.leave_bucket_walk(&lost, &at(1, "x"), Duration::ZERO).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.finish_bucket_walk(&lost, LONG).await.unwrap(), Settled::Stale);
        assert_eq!(other.leave_bucket_walk(&taken, &at(1, "y"), Duration::ZERO).await.unwrap(), Settled::Done);
        let next = walk(&catalog, kind).await;
        assert_eq!(next.position, at(1, "y"));
        assert_eq!(catalog.finish_bucket_walk(&next, LONG).await.unwrap(), Settled::Done);
        assert_eq!(catalog.grant_bucket_walk(kind, "third", LONG).await.unwrap(), None, "the next one is not due");
        let ahead = catalog.bucket_walk_ahead(kind).await.unwrap();
        assert!(ahead.due_in > LONG / 2 && ahead.was_covered);
    }

    async fn whoever_looks_at_a_walk_sees_how_far_it_is_and_since_when_none_was_whole(database: Database) {
        let (catalog, other) = (database.node().await, database.node().await);
        let kind = BucketWalkKind::Scrub;
        let looked = async || other.bucket_walk_ahead(kind).await.unwrap();
        let grows = async |than: Duration| {
            eventually("it is waited for", async || Some(looked().await).filter(|ahead| ahead.uncovered_for > than)).await
        };
        let ahead = grows(Duration::ZERO).await;
        assert_eq!((ahead.was_covered, ahead.under_way, ahead.expected), (false, None, None));
        let first = walk(&catalog, kind).await;
        assert_eq!(catalog.expect_of_bucket_walk(&first, 7).await.unwrap(), Settled::Done);
        assert_eq!(catalog.leave_bucket_walk(&first, &at(1, "x"), Duration::ZERO).await.unwrap(), Settled::Done);
        // Also of one that never ends.
        let ahead = grows(Duration::from_millis(20)).await;
        assert_eq!((ahead.was_covered, ahead.under_way, ahead.expected), (false, Some(at(1, "x")), Some(7)));
        let again = walk(&catalog, kind).await;
        assert_eq!(catalog.finish_bucket_walk(&again, Duration::ZERO).await.unwrap(), Settled::Done);
        // It covers what was there when it began.
        let ahead = looked().await;
        assert!(ahead.uncovered_for >= Duration::from_millis(20), "{ahead:?}");
        assert_eq!((ahead.was_covered, ahead.under_way), (true, None));
    }

    async fn what_was_counted_for_a_walk_is_kept_from_pass_to_pass(database: Database) {
        let catalog = database.node().await;
        let kind = BucketWalkKind::Scrub;
        let first = walk(&catalog, kind).await;
        assert_eq!(first.expected, None);
        assert_eq!(catalog.expect_of_bucket_walk(&first, 7).await.unwrap(), Settled::Done);
        assert_eq!(catalog.finish_bucket_walk(&first, Duration::ZERO).await.unwrap(), Settled::Done);
        assert_eq!(catalog.expect_of_bucket_walk(&first, 8).await.unwrap(), Settled::Stale);
        assert_eq!(walk(&catalog, kind).await.expected, Some(7));
    }

    async fn a_duty_that_nobody_ended_is_no_look_again(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let id = recording_id(1);
        let is_owed = async || catalog.in_hand([id.recording]).await.unwrap()[&id.recording][0].is_owed;
        assert!(!is_owed().await);
        catalog.begin_duty(&id, SHORT).await.unwrap().expect("it is at rest");
        assert!(is_owed().await, "whoever is at it looks");
        eventually("its lease is over", async || (!is_owed().await).then_some(())).await;
        assert_eq!(catalog.grant_rechecks(9, LONG).await.unwrap(), [], "and nobody else looks by himself");
    }

    async fn one_recording_is_mended_by_one_and_only_at_rest(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let claim = catalog.claim_named(&claimant(LONG), &recording_id(1)).await.unwrap().expect("it is due");
        assert_eq!(catalog.claim_named(&claimant(LONG), &recording_id(1)).await.unwrap(), None);
        assert_eq!(catalog.begin_duty(&recording_id(1), LONG).await.unwrap(), None, "it is not at rest");
        assert_eq!(catalog.store(&claim.lease, &object(&claim.lease.id, b"a"), true).await.unwrap(), Settled::Done);
        let duty = catalog.begin_duty(&recording_id(1), LONG).await.unwrap().expect("it is at rest");
        assert_eq!(catalog.begin_duty(&recording_id(1), LONG).await.unwrap(), None);
        let damaged = callvault::catalog::Finding::Damaged("reads back wrongly".to_owned());
        assert_eq!(catalog.settle_recheck(&duty, &damaged, LONG).await.unwrap(), Settled::Done);
        let row = row(&catalog, 1).await;
        assert_eq!(row.state, State::Pending);
        assert_eq!(row.last_error.unwrap().detail, "the object reads back wrongly");
        assert_eq!(told(&catalog, "recording.lost").await, [recording_id(1)]);
    }

    async fn what_is_lost_for_good_is_given_up_at_once(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one_of(&catalog, 1).await.lease;
        assert_eq!(catalog.store(&lease, &object(&lease.id, b"a"), true).await.unwrap(), Settled::Done);
        let duty = catalog.begin_duty(&recording_id(1), LONG).await.unwrap().expect("it is at rest");
        let gone = callvault::catalog::Finding::Gone("is not there".to_owned());
        assert_eq!(catalog.settle_recheck(&duty, &gone, LONG).await.unwrap(), Settled::Done);
        assert_eq!(catalog.claim_named(&claimant(LONG), &recording_id(1)).await.unwrap(), None, "nobody waits for it");
        let row = row(&catalog, 1).await;
        assert_eq!((row.state, row.last_error.unwrap().code), (State::Failed, ErrorCode::ObjectLost));
        assert_eq!(told(&catalog, "recording.lost").await, [recording_id(1)]);
        assert_eq!(told(&catalog, "recording.failed").await, [recording_id(1)]);
    }
}

/// That recording, claimed.
async fn claim_one_of(catalog: &Arc<dyn Catalog>, number: u32) -> Claim {
    catalog.claim_named(&claimant(LONG), &recording_id(number)).await.unwrap().expect("it is due")
}
