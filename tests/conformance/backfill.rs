//! Backfills: who walks over which day, what is found once, and what is fetched last.

use callvault::catalog::{BackfillRun, Backlog, DayCount, DayGrant, DayWalk, Find, FoundBy, Settled, Span};
use callvault::domain::recording::State;
use jiff::Timestamp;
use jiff::civil::{Date, date};

use super::support::eventually;
use super::*;

const SHORT: Duration = Duration::from_millis(300);
const DAY: Date = date(2026, 11, 20);
const ALL: Span = Span { since: None, until: None };
const OTHER_DAYS: Span = Span { since: Some(DAY), until: None };

async fn begin(catalog: &Arc<dyn Catalog>, span: Span) -> Option<BackfillRun> {
    catalog.begin_backfill(account(), span, LONG).await.unwrap()
}

async fn grant(catalog: &Arc<dyn Catalog>, run: &BackfillRun, lease: Duration) -> DayGrant {
    catalog.grant_day(run, DAY, Timestamp::MIN, lease).await.unwrap()
}

async fn granted(catalog: &Arc<dyn Catalog>, run: &BackfillRun, lease: Duration) -> DayWalk {
    eventually("the day is granted", async || match grant(catalog, run, lease).await {
        DayGrant::Granted(walk) => Some(walk),
        _ => None,
    })
    .await
}

fn found(number: u32) -> Announcement {
    let by = AnnouncedBy::Found { by: FoundBy::Backfill, status: "completed".to_owned(), error_code: None };
    Announcement { by, ..callback(number, "") }
}

fn find(number: u32) -> Find {
    Find { said: found(number), is_deleted: false, is_final: true, counts_as_news: true }
}

on_every_catalog! {
    async fn what_a_backfill_brought_waits_apart(database: Database) {
        let catalog = database.node().await;
        catalog.accept(&found(1)).await.unwrap();
        let waits = async || {
            let Backlog { oldest, oldest_of_backfill, .. } = catalog.backlog(&accounts()).await.unwrap();
            (oldest.is_some(), oldest_of_backfill.is_some())
        };
        assert_eq!(waits().await, (false, true));
        catalog.accept(&callback(2, "completed")).await.unwrap();
        assert_eq!(waits().await, (true, true));
        let live = claim_some(&catalog, LONG, 1).await.remove(0).lease;
        assert_eq!(catalog.store(&live, &object(&live.id, b"audio"), true).await.unwrap(), Settled::Done);
        assert_eq!((live.id, waits().await), (recording_id(2), (false, true)));
        // Somebody asks for what the backfill brought: it waits as any other.
        catalog.accept(&callback(1, "completed")).await.unwrap();
        assert_eq!(waits().await, (true, false));
    }

    async fn a_day_is_walked_by_one_at_a_time_and_goes_on_where_it_was_saved(database: Database) {
        let (first, second) = (database.node().await, database.node().await);
        let run = begin(&first, ALL).await.unwrap();
        assert!(!run.is_resumed);
        let resumed = begin(&second, ALL).await.unwrap();
        assert_eq!((resumed.run, resumed.begun_at, resumed.is_resumed), (run.run, run.begun_at, true));

        let walk = granted(&first, &run, SHORT).await;
        assert_eq!((walk.next_page.as_deref(), walk.pages, walk.news), (None, 0, 0));
        assert_eq!(first.take_finds(&walk.lease, &[find(1), find(2)], SHORT).await.unwrap(), Some(2));
        assert_eq!(first.save_day_page(&walk.lease, "PageToken=2", 0).await.unwrap(), Settled::Done);
        assert_eq!(first.renew_day(&walk.lease, LONG).await.unwrap(), Settled::Done);
        assert_eq!(grant(&second, &run, SHORT).await, DayGrant::Held);
        assert_eq!(first.renew_day(&walk.lease, SHORT).await.unwrap(), Settled::Done);

        let next = granted(&second, &run, LONG).await;
        assert_eq!((next.next_page.as_deref(), next.pages, next.news, next.lease.epoch), (Some("PageToken=2"), 1, 2, 2));
        // Whoever lost the lease changes nothing more.
        assert_eq!(first.take_finds(&walk.lease, &[find(3)], LONG).await.unwrap(), None);
        assert!(first.recording(&recording_id(3)).await.unwrap().is_none());
        for settled in [
            first.renew_day(&walk.lease, LONG).await,
            first.save_day_page(&walk.lease, "PageToken=9", 1).await,
            first.begin_day_pass(&walk.lease, 1).await,
            first.finish_day(&walk.lease, 1).await,
            first.hand_back_day(&walk.lease).await,
        ] {
            assert_eq!(settled.unwrap(), Settled::Stale);
        }
        assert_eq!(second.take_finds(&next.lease, &[find(2), find(3)], LONG).await.unwrap(), Some(1), "one was counted");
        assert_eq!(second.finish_day(&next.lease, 4).await.unwrap(), Settled::Done);
        assert_eq!(grant(&first, &run, LONG).await, DayGrant::Done);
        let count = first.count_day(&run, DAY).await.unwrap().unwrap();
        assert_eq!((count.is_walked, count.found, count.new, count.new_under_way, count.unreadable), (true, 3, 3, 3, 4));

        // A day that was not over when it was walked is looked at once more.
        let later = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let again = first.grant_day(&run, DAY, later, LONG).await.unwrap();
        assert!(matches!(again, DayGrant::Granted(DayWalk { next_page: None, pages: 0, .. })), "{again:?}");
    }

    async fn while_one_is_at_work_others_join_it_and_none_of_other_days_is_begun(database: Database) {
        let (first, second) = (database.node().await, database.node().await);
        let (run, at_once) = tokio::join!(begin(&first, ALL), begin(&second, ALL));
        let (run, at_once) = (run.unwrap(), at_once.unwrap());
        assert_eq!(run.run, at_once.run);
        assert_ne!(run.process, at_once.process);
        second.leave_backfill(&at_once).await.unwrap();
        // No day is leased: it waits for what it brought.
        assert_eq!(begin(&second, OTHER_DAYS).await, None);
        // It is over for one that joined it, and not for the one that waits.
        let joined = begin(&second, ALL).await.unwrap();
        assert_eq!((joined.run, joined.is_resumed), (run.run, true));
        second.complete_backfill(&joined).await.unwrap();
        second.leave_backfill(&joined).await.unwrap();
        assert_eq!(begin(&second, OTHER_DAYS).await, None);
        assert_eq!(first.count_day(&run, DAY).await.unwrap(), Some(DayCount::default()));
        let again = begin(&second, ALL).await.unwrap();
        assert_eq!((again.run, again.is_resumed), (run.run, true));
        second.leave_backfill(&again).await.unwrap();
        // Who joins and is cut off is gone on for.
        first.leave_backfill(&run).await.unwrap();
        let resumed = begin(&second, ALL).await.unwrap();
        assert_eq!((resumed.run, resumed.is_resumed), (run.run, true));

        assert_eq!(second.stay_at_backfill(&resumed, SHORT).await.unwrap(), Settled::Done);
        let other = eventually("it counts as cut off", async || begin(&first, OTHER_DAYS).await).await;
        assert_eq!((other.run, other.is_resumed), (run.run + 1, false));
        assert_eq!(second.stay_at_backfill(&resumed, LONG).await.unwrap(), Settled::Stale);
        assert_eq!(first.stay_at_backfill(&other, LONG).await.unwrap(), Settled::Done);
    }

    async fn a_pass_that_is_begun_anew_keeps_nothing_of_the_one_before(database: Database) {
        let catalog = database.node().await;
        let run = begin(&catalog, ALL).await.unwrap();
        let walk = granted(&catalog, &run, LONG).await;
        for passes in [3, 0] {
            catalog.take_finds(&walk.lease, &[find(1), find(2)], LONG).await.unwrap();
            assert_eq!(catalog.save_day_page(&walk.lease, "PageToken=2", 1).await.unwrap(), Settled::Done);
            assert_eq!(catalog.begin_day_pass(&walk.lease, passes).await.unwrap(), Settled::Done);
        }
        assert_eq!(catalog.hand_back_day(&walk.lease).await.unwrap(), Settled::Done);
        let next = granted(&catalog, &run, LONG).await;
        assert_eq!((next.next_page, next.pages, next.news, next.passes), (None, 0, 0, 0));
    }

    async fn another_backfill_counts_afresh_and_ends_the_one_before(database: Database) {
        let catalog = database.node().await;
        let first = begin(&catalog, ALL).await.unwrap();
        let walk = granted(&catalog, &first, LONG).await;
        catalog.take_finds(&walk.lease, &[find(1)], LONG).await.unwrap();
        assert_eq!(catalog.finish_day(&walk.lease, 0).await.unwrap(), Settled::Done);
        catalog.complete_backfill(&first).await.unwrap();
        catalog.leave_backfill(&first).await.unwrap();

        let second = begin(&catalog, ALL).await.unwrap();
        assert_eq!((second.run, second.is_resumed), (first.run + 1, false));
        let walk = granted(&catalog, &second, LONG).await;
        assert_eq!(catalog.take_finds(&walk.lease, &[find(1), find(2)], LONG).await.unwrap(), Some(2));
        catalog.forget_earlier_backfills(&second).await.unwrap();
        let count = catalog.count_day(&second, DAY).await.unwrap().unwrap();
        assert_eq!((count.found, count.new, count.on_the_way), (2, 1, 2));
        assert_eq!(catalog.count_day(&first, DAY).await.unwrap(), None);
        assert_eq!(grant(&catalog, &first, LONG).await, DayGrant::Superseded);
    }

    async fn a_backfill_makes_rows_and_moves_announced_ones_no_others(database: Database) {
        let catalog = database.node().await;
        catalog.accept(&callback(1, "in-progress")).await.unwrap();
        catalog.accept(&callback(2, "absent")).await.unwrap();
        catalog.accept(&callback(3, "failed")).await.unwrap();
        catalog.accept(&callback(4, "in-progress")).await.unwrap();
        let run = begin(&catalog, ALL).await.unwrap();
        let walk = granted(&catalog, &run, LONG).await;
        let unfinished = Find { is_final: false, ..find(4) };
        let gone = Find { is_deleted: true, ..find(6) };
        let finds = [find(1), find(2), find(3), unfinished, find(5), gone];
        catalog.take_finds(&walk.lease, &finds, LONG).await.unwrap();
        for (number, state) in
            [(1, State::Pending), (2, State::Absent), (3, State::Failed), (4, State::Announced), (5, State::Pending)]
        {
            assert_eq!(catalog.recording(&recording_id(number)).await.unwrap().unwrap().state, state, "{number}");
        }
        assert!(catalog.recording(&recording_id(6)).await.unwrap().is_none());
        let count = catalog.count_day(&run, DAY).await.unwrap().unwrap();
        assert_eq!((count.found, count.new, count.new_under_way, count.on_the_way), (6, 1, 1, 3));
        assert_eq!((count.absent, count.failed, count.new_failed, count.deleted_at_twilio), (1, 1, 0, 1));
        assert_eq!(count.missing, 0);
    }

    async fn live_calls_and_what_someone_waits_for_go_before_a_backfill(database: Database) {
        let catalog = database.node().await;
        for number in 1..=6 {
            catalog.accept(&found(number)).await.unwrap();
        }
        accept(&catalog, [7]).await;
        catalog.hurry(&recording_id(4), Duration::ZERO).await.unwrap();
        // Twilio tells of it at last.
        catalog.accept(&callback(5, "completed")).await.unwrap();
        let first: Vec<_> = claim_some(&catalog, LONG, 3).await.iter().map(|claim| claim.lease.id).collect();
        let [waited_for, told, live] = [4, 5, 7].map(recording_id);
        assert_eq!(first.len(), 3);
        assert!([waited_for, told, live].iter().all(|id| first.contains(id)), "{first:?}");
        assert_eq!(first[0], waited_for);

        // Of what is left, no more than a backfill may have.
        let wishes = accounts().map(|account| Wish { account, at_most: 4, of_backfill: 1 });
        assert_eq!(catalog.claim(&claimant(LONG), &wishes).await.unwrap().len(), 1);
        let wishes = accounts().map(|account| Wish { account, at_most: 4, of_backfill: 0 });
        assert_eq!(catalog.claim(&claimant(LONG), &wishes).await.unwrap().len(), 0);
        assert_eq!(claim_some(&catalog, LONG, 9).await.len(), 3);
    }
}
