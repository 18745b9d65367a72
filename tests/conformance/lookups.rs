//! Finding recordings.

use std::collections::BTreeSet;

use callvault::catalog::{ListFilter, PageCursor, Settled};
use callvault::domain::recording::State;
use callvault::domain::sid::RecordingSid;
use futures::future::join_all;

use super::*;

fn other_account() -> AccountSid {
    format!("AC{}", "b".repeat(32)).parse().unwrap()
}

fn of_other_account(said: Announcement) -> Announcement {
    let id = RecordingId { account: other_account(), ..said.id };
    Announcement { id, ..said }
}

on_every_catalog! {
    async fn pages_show_everything_once_while_more_arrives(database: Database) {
        let catalog = database.node().await;
        let at = |seconds: u32| jiff::Timestamp::from_second(1_700_000_000 + i64::from(seconds)).unwrap();
        let recorded = |number: u32, at| {
            let mut said = callback(number, "completed");
            said.details.recorded_at = Some(at);
            said
        };
        // Many of the same second: the cursor must tell them apart.
        for number in 1..=100 {
            catalog.accept(&recorded(number, at(number / 10))).await.unwrap();
        }
        let writer = catalog.clone();
        let writing = tokio::spawn(async move {
            for number in 1000..1100 {
                writer.accept(&recorded(number, at(100_000 + number))).await.unwrap();
            }
        });
        let (mut after, mut seen): (Option<PageCursor>, Vec<(jiff::Timestamp, RecordingSid)>) = (None, Vec::new());
        loop {
            let (page, next) = catalog.list(&ListFilter::default(), after, 7).await.unwrap();
            seen.extend(page.iter().map(|recording| (recording.ordered_at(), recording.id.recording)));
            // As it travels through a client.
            let Some(next) = next else { break };
            after = Some(next.to_string().parse().unwrap());
        }
        writing.await.unwrap();
        assert!(seen.is_sorted_by(|newer, older| newer > older), "newest first, none twice");
        let seen: BTreeSet<_> = seen.into_iter().map(|(_, recording)| recording).collect();
        assert!((1..=100).all(|number| seen.contains(&recording_id(number).recording)), "none missing");
    }

    async fn lists_show_what_is_asked_for(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=3).await;
        catalog.accept(&callback(4, "absent")).await.unwrap();
        catalog.accept(&of_other_account(callback(5, "completed"))).await.unwrap();
        let mut conference = callback(6, "completed");
        conference.details = Details { conference_sid: format!("CF{}", "0".repeat(32)).parse().ok(), ..Details::default() };
        catalog.accept(&conference).await.unwrap();
        let count = async |filter: ListFilter| catalog.list(&filter, None, 100).await.unwrap().0.len();
        let all = ListFilter::default;
        assert_eq!(count(all()).await, 6);
        assert_eq!(count(ListFilter { accounts: Some(vec![account()]), ..all() }).await, 5);
        assert_eq!(count(ListFilter { accounts: Some(vec![]), ..all() }).await, 0);
        assert_eq!(count(ListFilter { state: Some(State::Absent), ..all() }).await, 1);
        assert_eq!(count(ListFilter { calls: vec![call_sid(1), call_sid(2), call_sid(99)], ..all() }).await, 2);
        assert_eq!(count(ListFilter { conference: conference.details.conference_sid, ..all() }).await, 1);
        let first = catalog.recording(&recording_id(1)).await.unwrap().unwrap().accepted_at;
        assert_eq!(count(ListFilter { since: Some(first), ..all() }).await, 6);
        assert_eq!(count(ListFilter { until: Some(first), ..all() }).await, 0);
    }

    async fn a_stored_recording_is_found_by_its_bytes(database: Database) {
        let catalog = database.node().await;
        catalog.accept(&callback(2, "completed")).await.unwrap();
        catalog.accept(&callback(1, "completed")).await.unwrap();
        catalog.accept(&of_other_account(callback(3, "completed"))).await.unwrap();
        let with = async |accounts: Option<&[AccountSid]>| {
            let found = catalog.recording_with(Digest::of(b"audio"), accounts).await.unwrap();
            found.map(|recording| recording.id)
        };
        assert_eq!(with(None).await, None, "nothing is stored yet");
        let wishes = [account(), other_account()].map(|account| Wish { account, at_most: 3, of_backfill: 3 });
        for claim in catalog.claim(&claimant(LONG), &wishes).await.unwrap() {
            let stored = catalog.store(&claim.lease, &object(&claim.lease.id, b"audio"), true).await.unwrap();
            assert_eq!(stored, Settled::Done);
        }
        let other = RecordingId { account: other_account(), ..recording_id(3) };
        assert_eq!(with(None).await, Some(recording_id(1)), "the same one for everyone");
        assert_eq!(with(Some(&[account()])).await, Some(recording_id(1)));
        assert_eq!(with(Some(&[other_account()])).await, Some(other));
        assert_eq!(with(Some(&[])).await, None);
    }

    async fn a_call_is_shown_by_account(database: Database) {
        let catalog = database.node().await;
        catalog.accept(&callback(1, "completed")).await.unwrap();
        // Another account's application names a recording of its own for the same call.
        catalog.accept(&of_other_account(put(2, 1))).await.unwrap();
        let views = catalog.call(call_sid(1), None).await.unwrap();
        assert_eq!(views.iter().map(|view| view.account).collect::<Vec<_>>(), [account(), other_account()]);
        assert_eq!(views[0].answer().unwrap().id.recording, recording_id(1).recording);
        let bound = catalog.call(call_sid(1), Some(&[other_account()])).await.unwrap();
        assert_eq!(bound.len(), 1);
        assert_eq!(bound[0].answer().unwrap().id.recording, recording_id(2).recording);
        assert_eq!(catalog.call(call_sid(99), None).await.unwrap(), []);
    }

    async fn what_is_put_under_another_name_is_the_answer_under_both(database: Database) {
        let catalog = database.node().await;
        for number in [1, 2] {
            let mut said = callback(number, "completed");
            said.details.call_sid = Some(call_sid(1));
            catalog.accept(&said).await.unwrap();
        }
        let answer = async |call: u32| {
            let views = catalog.call(call_sid(call), None).await.unwrap();
            views.first().and_then(|view| view.answer()).map(|answer| answer.id)
        };
        assert_eq!(answer(1).await, Some(recording_id(2)));
        catalog.accept(&put(1, 77)).await.unwrap();
        assert_eq!((answer(1).await, answer(77).await), (Some(recording_id(1)), Some(recording_id(1))));
        catalog.accept(&put(2, 1)).await.unwrap();
        assert_eq!((answer(1).await, answer(77).await), (Some(recording_id(2)), Some(recording_id(2))));
        // And a list of the other name's shows what a question for it does.
        let listed = async |calls: &[u32]| {
            let calls = calls.iter().copied().map(call_sid).collect();
            let (found, _) = catalog.list(&ListFilter { calls, ..ListFilter::default() }, None, 100).await.unwrap();
            found.iter().map(|recording| recording.id).collect::<Vec<_>>()
        };
        assert_eq!(listed(&[77]).await, listed(&[1]).await);
        assert_eq!(listed(&[1, 77]).await.len(), 2, "each of them once");
    }

    async fn a_recording_that_twilio_confirmed_stands_before_one_that_only_claims_its_name(database: Database) {
        let catalog = database.node().await;
        catalog.accept(&of_other_account(put(1, 1))).await.unwrap();
        catalog.accept(&callback(1, "completed")).await.unwrap();
        let found = async |accounts: Option<&[AccountSid]>| {
            let found = catalog.recording_named(recording_id(1).recording, accounts).await.unwrap();
            found.map(|recording| recording.id.account)
        };
        assert_eq!(found(None).await, Some(account()));
        assert_eq!(found(Some(&[other_account()])).await, Some(other_account()));
    }

    async fn many_readers_and_writers_get_along(database: Database) {
        let nodes = join_all((0..2).map(|_| database.node())).await;
        let tasks = (0..40u32).map(|at| {
            let node = nodes[at as usize % 2].clone();
            tokio::spawn(async move {
                for number in 0..10 {
                    let number = at * 10 + number;
                    node.accept(&callback(number, "completed")).await.unwrap();
                    assert!(node.recording_named(recording_id(number).recording, None).await.unwrap().is_some());
                    assert_eq!(node.call(call_sid(number), None).await.unwrap().len(), 1);
                }
            })
        });
        join_all(tasks).await.into_iter().for_each(|done| done.unwrap());
        let (all, _) = nodes[0].list(&ListFilter::default(), None, 1000).await.unwrap();
        assert_eq!(all.len(), 400);
    }

    async fn the_clock_is_the_catalogs(database: Database) {
        let catalog = database.node().await;
        let accepted = catalog.accept(&callback(1, "completed")).await.unwrap().recording.accepted_at;
        let now = catalog.clock().now().unwrap();
        assert!(now.duration_since(accepted).abs() < jiff::SignedDuration::from_secs(5), "{now} {accepted}");
    }
}

/// What is asked every second, and for every request, reads an index and not the table.
#[tokio::test]
async fn look_ups_are_by_index_on_sqlite() {
    use sqlx::Row;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("catalog.db");
    let catalog: Arc<dyn Catalog> = SqliteCatalog::open(&file, 4).unwrap();
    catalog.prepare().await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options).await.unwrap();
    for (statement, index) in [
        (
            "SELECT min((SELECT r.due_at FROM recordings r WHERE r.account_sid = a.column1 \
             AND r.state IN ('pending', 'fetching') ORDER BY r.due_at LIMIT 1)) FROM (VALUES ('AC1'), ('AC2')) AS a",
            "recordings_by_due (account_sid=?)",
        ),
        (
            "SELECT * FROM recordings WHERE account_sid = 'AC1' AND state IN ('pending', 'fetching') \
             AND due_at <= 1 AND (duty_until IS NULL OR duty_until <= 1) ORDER BY due_at LIMIT 16",
            "recordings_by_due (account_sid=? AND due_at<?)",
        ),
        (
            "SELECT account_sid FROM reconciles c WHERE c.asking_from <= 1 AND EXISTS (SELECT 1 FROM recordings r \
             WHERE r.account_sid = c.account_sid AND r.state = 'announced' AND r.asked_about_at <= 1) \
             AND c.account_sid IN ('AC1', 'AC2') ORDER BY c.asking_from LIMIT 1",
            "recordings_by_asked_about (account_sid=? AND asked_about_at<?)",
        ),
        (
            "SELECT min((SELECT r.asked_about_at FROM recordings r WHERE r.account_sid = c.account_sid \
             AND r.state = 'announced' ORDER BY r.asked_about_at LIMIT 1)) FROM reconciles c WHERE account_sid IN ('AC1')",
            "recordings_by_asked_about (account_sid=?)",
        ),
        (
            "SELECT recording_sid, state FROM recordings WHERE account_sid = 'AC1' AND recording_sid IN ('RE1', 'RE2')",
            "(account_sid=? AND recording_sid=?)",
        ),
        (
            "SELECT (SELECT r.pending_since FROM recordings r WHERE r.account_sid = a.column1 AND r.is_backfill = 0 \
             AND r.state IN ('pending', 'fetching') AND r.pending_since IS NOT NULL ORDER BY r.pending_since LIMIT 1) \
             FROM (VALUES ('AC1'), ('AC2')) AS a",
            "recordings_by_waiting (account_sid=? AND is_backfill=?",
        ),
        (
            "SELECT a.column1, (SELECT recheck_due_at FROM recordings WHERE account_sid = a.column1 \
             AND recheck_due_at <= 1 AND state <> 'fetching' AND (duty_until IS NULL OR duty_until <= 1) \
             ORDER BY recheck_due_at LIMIT 1) AS due_at FROM (VALUES ('AC1'), ('AC2')) AS a ORDER BY due_at",
            "recordings_by_recheck (account_sid=? AND recheck_due_at<?)",
        ),
        (
            "SELECT * FROM recordings WHERE recording_sid = 'RE1' AND account_sid IN ('AC1')",
            "account_sid=? AND recording_sid=?",
        ),
        ("SELECT * FROM recordings WHERE recording_sid = 'RE1'", "recordings_by_recording (recording_sid=?)"),
        (
            "SELECT r.* FROM (SELECT account_sid, recording_sid FROM recordings WHERE call_sid IN ('CA1', 'CA2') \
             UNION SELECT account_sid, recording_sid FROM choices WHERE call_sid IN ('CA1', 'CA2')) AS found \
             CROSS JOIN recordings r WHERE r.account_sid = found.account_sid AND r.recording_sid = found.recording_sid \
             AND r.account_sid IN ('AC1') AND r.state <> 'erased' \
             ORDER BY r.ordered_at DESC, r.recording_sid DESC, r.account_sid DESC LIMIT 51",
            "recordings_by_call (call_sid=?",
        ),
        (
            "SELECT * FROM recordings WHERE account_sid IN ('AC1') AND state IN ('failed') \
             ORDER BY ordered_at DESC, recording_sid DESC, account_sid DESC LIMIT 51",
            "recordings_by_account_state (account_sid=? AND state=?)",
        ),
        (
            "SELECT * FROM recordings WHERE state <> 'erased' \
             ORDER BY ordered_at DESC, recording_sid DESC, account_sid DESC LIMIT 51",
            "recordings_by_order",
        ),
        (
            "SELECT account_sid, is_open FROM questions WHERE call_sid = 'CA1' AND until_at > 1 \
             AND account_sid IN ('AC1', 'AC2')",
            "call_sid=? AND account_sid=?",
        ),
        (
            "DELETE FROM questions WHERE (account_sid, call_sid) IN (SELECT account_sid, call_sid FROM questions \
             WHERE (account_sid = 'AC1' AND call_sid = 'CA1') OR (account_sid = 'AC1' AND parent_sid = 'CA1'))",
            "questions_by_parent (parent_sid=? AND account_sid=?)",
        ),
        (
            "DELETE FROM questions WHERE (account_sid, call_sid) IN \
             (SELECT account_sid, call_sid FROM questions WHERE until_at < 1 ORDER BY until_at LIMIT 10)",
            "questions_by_end (until_at<?)",
        ),
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let rows = sqlx::query(explain).fetch_all(&mut connection).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        assert!(plan.iter().any(|step| step.contains(index)), "{statement}\n{plan:#?}");
    }
}
