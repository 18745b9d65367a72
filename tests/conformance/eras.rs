//! Eras of the feed: a catalog that is older than its bucket begins one, once a run, and
//! no other does.

use callvault::catalog::{BucketWalkKind, Cursor, Erase, EventFilter, FoundObject, Marked, Settled};
use callvault::domain::object_key::Marker;
use callvault::domain::recording::{ErrorCode, State};
use callvault::vault::follow::{FellBehind, Follower};
use tokio_util::task::AbortOnDropHandle;

use super::bucket::{at, found, index_all, marked, read, walk};
use super::support::eventually;
use super::*;

/// What the bucket tells, in words, as markers of what was erased and is held, and as objects.
type Told = (&'static str, &'static [u32], &'static [u32], Vec<FoundObject>);

/// Later than all that a row was stored at.
const LATER: i64 = 4_000_000_000;

async fn end(catalog: &Arc<dyn Catalog>) -> Cursor {
    catalog.latest_event().await.unwrap()
}

/// Whether a new era began since.
async fn began_since(catalog: &Arc<dyn Catalog>, before: Cursor) -> bool {
    end(catalog).await.is_of_another_era(before)
}

/// A run over a bucket that has these markers, and objects.
async fn run(catalog: &Arc<dyn Catalog>, erased: &[u32], held: &[u32], objects: &[FoundObject]) {
    let markers = walk(catalog, BucketWalkKind::Markers).await;
    let all = |numbers: &[u32]| numbers.iter().map(|number| marked(*number)).collect::<Vec<Marked>>();
    let taken = catalog.take_markers(&markers, Marker::Erased, &all(erased), Some(&at(1, "x")), LONG).await;
    assert_eq!(taken.unwrap(), Settled::Done);
    let taken = catalog.take_markers(&markers, Marker::Held, &all(held), None, LONG).await;
    assert_eq!(taken.unwrap(), Settled::Done);
    index_all(catalog, objects).await;
}

async fn stored(catalog: &Arc<dyn Catalog>, number: u32, bytes: &[u8]) {
    accept(catalog, [number]).await;
    let claim = catalog.claim_named(&claimant(LONG), &recording_id(number)).await.unwrap().expect("it is due");
    let lease = claim.lease;
    assert_eq!(catalog.store(&lease, &object(&lease.id, bytes), true).await.unwrap(), Settled::Done);
}

/// A cursor of a catalog that was lost long ago.
fn beginning() -> Cursor {
    "0000000000001-000000000000000".parse().unwrap()
}

async fn reads(catalog: &Arc<dyn Catalog>, after: Cursor, count: usize) {
    eventually("so many events are read", async || {
        let (events, _) = catalog.events(Some(after), &EventFilter::default(), 100).await.unwrap();
        (events.len() == count).then_some(())
    })
    .await;
}

on_every_catalog! {
    async fn a_catalog_that_knows_less_than_its_bucket_begins_an_era_and_no_other_in_the_next_run(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=3).await;
        stored(&catalog, 6, b"older").await;
        let newer = |number, bytes: &[u8]| found(number, bytes, LATER);
        let tells: [Told; 7] = [
            ("an erased one without a row", &[10], &[], vec![]),
            ("an erased one whose row is not", &[1], &[], vec![]),
            ("a held one whose row is not", &[], &[2], vec![]),
            ("a held one without a row", &[], &[11], vec![]),
            ("an object without a row", &[], &[], vec![found(12, b"audio", 1)]),
            ("audio of what was on its way", &[], &[], vec![found(3, b"audio", 1)]),
            ("a newer object than the row names", &[], &[], vec![newer(6, b"newer")]),
        ];
        for (what, erased, held, objects) in tells {
            let before = end(&catalog).await;
            run(&catalog, erased, held, &objects).await;
            let after = end(&catalog).await;
            assert!(after.is_of_another_era(before) && after > before, "{what}: {before} {after}");
            run(&catalog, erased, held, &objects).await;
            assert!(!began_since(&catalog, after).await, "{what}, seen again");
        }
    }

    async fn whoever_read_further_than_the_backup_reads_all_of_it_once(database: Database) {
        let catalog = database.node().await;
        stored(&catalog, 1, b"audio").await;
        reads(&catalog, beginning(), 2).await;
        // As far as numbers go it is not at the end.
        let (_, read_until) = catalog.events(None, &EventFilter::default(), 1).await.unwrap();
        reads(&catalog, read_until, 1).await;
        run(&catalog, &[], &[], &[found(2, b"audio", 1)]).await;
        reads(&catalog, read_until, 4).await;
        let (_, next) = catalog.events(Some(read_until), &EventFilter::default(), 100).await.unwrap();
        run(&catalog, &[], &[], &[found(2, b"audio", 1)]).await;
        reads(&catalog, next, 0).await;
    }

    async fn a_run_begins_one_era_however_many_parts_and_holders_it_has(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=4).await;
        let before = end(&catalog).await;
        let first = walk(&catalog, BucketWalkKind::Markers).await;
        let taken = catalog.take_markers(&first, Marker::Erased, &[marked(1)], Some(&at(0, "x")), LONG).await;
        assert_eq!(taken.unwrap(), Settled::Done);
        let begun = end(&catalog).await;
        assert!(begun.is_of_another_era(before));
        // It is cut off, and another one goes on.
        assert_eq!(catalog.hand_back_bucket_walk(&first).await.unwrap(), Settled::Done);
        let second = walk(&catalog, BucketWalkKind::Markers).await;
        let taken = catalog.take_markers(&first, Marker::Erased, &[marked(2)], Some(&at(0, "y")), LONG).await;
        assert_eq!(taken.unwrap(), Settled::Stale);
        let taken = catalog.take_markers(&second, Marker::Erased, &[marked(2)], Some(&at(0, "y")), LONG).await;
        assert_eq!(taken.unwrap(), Settled::Done);
        let taken = catalog.take_markers(&second, Marker::Held, &[marked(3)], None, LONG).await;
        assert_eq!(taken.unwrap(), Settled::Done);
        index_all(&catalog, &[found(4, b"a", 1), found(5, b"b", 2), found(6, b"c", 3), found(7, b"d", 4)]).await;
        assert!(!began_since(&catalog, begun).await);
        // What the next run finds begins another.
        run(&catalog, &[], &[], &[found(8, b"e", 5)]).await;
        assert!(began_since(&catalog, begun).await);
    }

    async fn whoever_lost_the_walk_begins_no_era(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let before = end(&catalog).await;
        for kind in [BucketWalkKind::Markers, BucketWalkKind::Objects] {
            let lost = walk(&catalog, kind).await;
            assert_eq!(catalog.gather(&lost, &[found(2, b"a", 1)], &at(1, "")).await.unwrap(), Settled::Done);
            assert_eq!(catalog.hand_back_bucket_walk(&lost).await.unwrap(), Settled::Done);
            let _held = walk(&catalog, kind).await;
            let settled = match kind {
                BucketWalkKind::Markers => catalog.take_markers(&lost, Marker::Erased, &[marked(1)], None, LONG).await,
                _ => catalog.index(&lost, &at(1, ""), 10, LONG).await.map(|indexed| match indexed {
                    None => Settled::Stale,
                    Some(_) => Settled::Done,
                }),
            };
            assert_eq!(settled.unwrap(), Settled::Stale, "{kind:?}");
        }
        assert!(!began_since(&catalog, before).await);
    }

    async fn a_catalog_that_agrees_with_its_bucket_keeps_its_era(database: Database) {
        let catalog = database.node().await;
        for number in 1..=5 {
            stored(&catalog, number, b"audio").await;
        }
        catalog.set_hold(&recording_id(1), true, asker()).await.unwrap();
        catalog.erase(Erase::Recording(recording_id(2)), false, asker()).await.unwrap();
        // Found to be damaged: its object lies there, and it is fetched again.
        let duty = catalog.begin_duty(&recording_id(3), LONG).await.unwrap().expect("it is at rest");
        let damaged = callvault::catalog::Finding::Damaged("reads back wrongly".to_owned());
        assert_eq!(catalog.settle_recheck(&duty, &damaged, LONG).await.unwrap(), Settled::Done);
        // Being fetched, with its object written already.
        accept(&catalog, [6, 7]).await;
        let fetching = catalog.claim_named(&claimant(LONG), &recording_id(6)).await.unwrap().expect("it is due");
        // Written and not committed: it owes a recheck.
        let cut_off = catalog.claim_named(&claimant(LONG), &recording_id(7)).await.unwrap().expect("it is due").lease;
        catalog.owe_recheck(&cut_off, LONG).await.unwrap();
        let failed = catalog.fail(&cut_off, ErrorCode::StoreError, "503", again(LONG, Duration::ZERO)).await;
        assert_eq!(failed.unwrap(), Settled::Done);

        let before = end(&catalog).await;
        let all = [
            found(1, b"audio", LATER),
            found(2, b"audio", LATER),
            found(3, b"audio", LATER),
            // Another object of what is stored, and older.
            found(4, b"left over", 1),
            found(6, b"audio", LATER),
            found(7, b"audio", LATER),
        ];
        run(&catalog, &[2], &[1], &all).await;
        assert!(!began_since(&catalog, before).await);
        assert_eq!(catalog.renew(&fetching.lease, LONG).await.unwrap(), Settled::Done, "it goes on");
    }

    async fn a_new_catalog_that_is_indexed_keeps_its_era(database: Database) {
        let catalog = database.newborn().await;
        let before = end(&catalog).await;
        read(&catalog, Marker::Erased, &[1]).await;
        accept(&catalog, [2]).await;
        index_all(&catalog, &[found(2, b"audio", 1), found(3, b"audio", 2)]).await;
        assert!(catalog.is_indexed().await.unwrap());
        assert!(!began_since(&catalog, before).await);
    }

    async fn what_a_scrub_takes_one_by_one_begins_no_era(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=2).await;
        let before = end(&catalog).await;
        catalog.take_marker(Marker::Erased, &marked(1), LONG).await.unwrap();
        catalog.take_marker(Marker::Held, &marked(2), LONG).await.unwrap();
        assert!(catalog.register(&found(3, b"audio", 1), LONG).await.unwrap());
        assert_eq!(catalog.recording(&recording_id(1)).await.unwrap().unwrap().state, State::Erased);
        assert!(!began_since(&catalog, before).await);
    }

    async fn an_era_that_somebody_asks_for_begins_in_any_case_and_counts_for_its_run(database: Database) {
        let catalog = database.newborn().await;
        for _ in 0..2 {
            let before = end(&catalog).await;
            catalog.begin_era().await.unwrap();
            let after = end(&catalog).await;
            assert!(after.is_of_another_era(before) && after > before);
        }
        let catalog = database.node().await;
        let markers = walk(&catalog, BucketWalkKind::Markers).await;
        catalog.begin_era().await.unwrap();
        let begun = end(&catalog).await;
        let taken = catalog.take_markers(&markers, Marker::Erased, &[marked(1)], None, LONG).await;
        assert_eq!(taken.unwrap(), Settled::Done);
        index_all(&catalog, &[found(2, b"audio", 1)]).await;
        assert!(!began_since(&catalog, begun).await);
    }

    async fn a_node_that_follows_begins_at_the_end_of_a_new_era_and_knows_that_it_missed_some(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=20).await;
        let follower = Arc::new(Follower::new(catalog.clone(), Duration::from_millis(50)));
        let running = follower.clone();
        let _running = AbortOnDropHandle::new(tokio::spawn(async move { running.run().await }));
        reads(&catalog, beginning(), 20).await;
        let last = end(&catalog).await;
        eventually("it has read all", async || (follower.reached() == Some(last)).then_some(())).await;
        let mut subscriber = follower.subscribe();
        run(&catalog, &[1], &[], &[found(30, b"audio", 1)]).await;
        assert_eq!(subscriber.next().await, Err(FellBehind), "what it remembers is forgotten");
        assert_eq!(follower.since(last), Err(FellBehind));
        let reached = follower.reached().expect("it follows");
        assert!(reached.is_of_another_era(last) && reached > last);

        reads(&catalog, beginning(), 23).await;
        eventually("it has come to the end of that one", async || (follower.reached() == Some(end(&catalog).await)).then_some(())).await;
        let mut subscriber = follower.subscribe();
        accept(&catalog, [31]).await;
        let news = subscriber.next().await.expect("nothing is missed from there on");
        assert_eq!(news.iter().filter_map(|news| news.id()).collect::<Vec<_>>(), [recording_id(31)], "and nothing is told again");
    }
}
