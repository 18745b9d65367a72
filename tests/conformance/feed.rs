//! The feed, and what wakes those who follow it.

use std::collections::BTreeSet;

use callvault::catalog::{Cursor, Event, EventFilter};
use futures::future::join_all;
use sqlx::Connection;

use super::support::eventually;
use super::*;

/// Reads page by page until nothing more comes.
async fn read_on(catalog: &Arc<dyn Catalog>, after: &mut Option<Cursor>, seen: &mut Vec<Event>) {
    loop {
        let (events, next) = catalog.events(*after, &EventFilter::default(), 7).await.unwrap();
        *after = Some(next);
        if events.is_empty() {
            return;
        }
        seen.extend(events);
    }
}

on_every_catalog! {
    async fn a_reader_who_stops_and_resumes_sees_every_event_once_and_in_order(database: Database) {
        let nodes = join_all((0..3).map(|_| database.node())).await;
        let writers = (0..6).map(|at| {
            let node = nodes[at % nodes.len()].clone();
            tokio::spawn(async move { accept(&node, (0..60).map(|number| 1 + at as u32 * 60 + number)).await })
        });
        let writing = tokio::spawn(join_all(writers));
        let readers = (0..3).map(|at| {
            let node = nodes[at].clone();
            async move {
                let (mut after, mut seen) = (None, Vec::new());
                eventually("the reader saw all", async || {
                    read_on(&node, &mut after, &mut seen).await;
                    (seen.len() >= 360).then_some(())
                })
                .await;
                seen
            }
        });
        let readings: Vec<Vec<Event>> = join_all(readers).await;
        writing.await.unwrap();
        for seen in &readings {
            assert_eq!(seen.len(), 360);
            assert!(seen.is_sorted_by(|a, b| a.cursor < b.cursor), "in order, none twice");
            let recordings: BTreeSet<_> = seen.iter().map(|event| event.recording.as_ref().unwrap().id).collect();
            assert_eq!(recordings.len(), 360);
            assert!(seen.iter().all(|event| event.kind == "recording.accepted"));
        }
        let cursors = |seen: &Vec<Event>| seen.iter().map(|event| event.cursor).collect::<Vec<_>>();
        assert!(readings.windows(2).all(|pair| cursors(&pair[0]) == cursors(&pair[1])), "the same for every reader");
    }

    async fn a_change_on_one_node_wakes_the_others(database: Database) {
        let nodes = join_all((0..2).map(|_| database.node())).await;
        // Of SQLite there is one node; its own changes wake it.
        let listening = if database.postgres_url().is_some() { &nodes[1] } else { &nodes[0] };
        let mut changes = listening.changes();
        eventually("the other node listens", async || {
            accept(&nodes[0], [1]).await;
            nodes[0].announce_change();
            tokio::time::timeout(Duration::from_millis(200), changes.changed()).await.ok()
        })
        .await
        .unwrap();
        changes.mark_unchanged();
        accept(&nodes[0], [2]).await;
        tokio::time::timeout(super::support::PATIENCE, changes.changed()).await.expect("it is woken").unwrap();
    }

    async fn the_feed_is_filtered(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=3).await;
        let lease = claim_one_of(&catalog, 2).await;
        let _ = catalog.store(&lease, &object(&lease.id, b"audio"), true).await.unwrap();
        let kinds = async |filter: EventFilter| {
            eventually("all events have their place", async || {
                let (events, _) = catalog.events(None, &EventFilter::default(), 100).await.unwrap();
                (events.len() == 4).then_some(())
            })
            .await;
            let (events, _) = catalog.events(None, &filter, 100).await.unwrap();
            events.into_iter().map(|event| event.kind).collect::<Vec<_>>()
        };
        let stored = EventFilter { kinds: vec!["recording.stored".to_owned()], ..EventFilter::default() };
        assert_eq!(kinds(stored).await, ["recording.stored"]);
        let of_call = EventFilter { call: Some(call_sid(2)), ..EventFilter::default() };
        assert_eq!(kinds(of_call).await, ["recording.accepted", "recording.stored"]);
        let of_account = EventFilter { accounts: Some(vec![account()]), ..EventFilter::default() };
        assert_eq!(kinds(of_account).await.len(), 4);
        let of_nobody = EventFilter { accounts: Some(vec![]), ..EventFilter::default() };
        assert_eq!(kinds(of_nobody).await.len(), 0);
    }

    async fn a_cursor_of_the_end_sees_only_what_is_new(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        eventually("the first event has its place", async || {
            let (events, _) = catalog.events(None, &EventFilter::default(), 10).await.unwrap();
            (events.len() == 1).then_some(())
        })
        .await;
        let latest = catalog.latest_event().await.unwrap();
        let (events, next) = catalog.events(Some(latest), &EventFilter::default(), 10).await.unwrap();
        assert_eq!((events.len(), next), (0, latest));
        accept(&catalog, [2]).await;
        let event = eventually("the second event has its place", async || {
            let (mut events, _) = catalog.events(Some(latest), &EventFilter::default(), 10).await.unwrap();
            events.pop()
        })
        .await;
        assert_eq!(event.recording.unwrap().id, recording_id(2));
        assert!(event.cursor > latest);
    }

    async fn a_cursor_of_another_catalog_reads_the_whole_feed(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1, 2]).await;
        for foreign in ["0000000000001-000000000000999", "9999999999999-000000000000999"] {
            let foreign: Cursor = foreign.parse().unwrap();
            eventually("both events are read", async || {
                let (events, _) = catalog.events(Some(foreign), &EventFilter::default(), 10).await.unwrap();
                (events.len() == 2).then_some(())
            })
            .await;
        }
    }

    async fn an_event_shows_the_recording_as_it_is_now(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let lease = claim_one(&catalog, LONG).await.lease;
        let _ = catalog.store(&lease, &object(&lease.id, b"audio"), true).await.unwrap();
        let events = eventually("both events have their place", async || {
            let (events, _) = catalog.events(None, &EventFilter::default(), 10).await.unwrap();
            (events.len() == 2).then_some(events)
        })
        .await;
        let states: Vec<_> = events.iter().map(|event| event.recording.as_ref().unwrap().state.as_str()).collect();
        assert_eq!(states, ["stored", "stored"]);
    }
}

async fn claim_one_of(catalog: &Arc<dyn Catalog>, number: u32) -> callvault::catalog::Lease {
    let claims = claim_some(catalog, LONG, 10).await;
    claims.into_iter().map(|claim| claim.lease).find(|lease| lease.id == recording_id(number)).unwrap()
}

/// The case that a number given at insertion would get wrong: a transaction
/// that began earlier commits later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_committed_late_is_not_skipped_on_postgres() {
    let database = Database::postgres().await;
    let catalog = database.node().await;
    accept(&catalog, [1]).await;
    let mut late = sqlx::PgConnection::connect(database.postgres_url().unwrap()).await.unwrap();
    let mut transaction = late.begin().await.unwrap();
    let written = sqlx::query(
        "INSERT INTO events (in_feed, account_sid, recording_sid, at, type) VALUES (1, $1, $2, 0, 'recording.late')",
    );
    let id = recording_id(1);
    written.bind(id.account.as_str()).bind(id.recording.as_str()).execute(&mut *transaction).await.unwrap();
    accept(&catalog, [2]).await;

    let (mut after, mut seen) = (None, Vec::new());
    eventually("the events around it are read", async || {
        read_on(&catalog, &mut after, &mut seen).await;
        (seen.len() == 2).then_some(())
    })
    .await;
    assert!(seen.iter().all(|event| event.kind == "recording.accepted"));
    transaction.commit().await.unwrap();
    eventually("the late one is read too", async || {
        read_on(&catalog, &mut after, &mut seen).await;
        (seen.len() == 3).then_some(())
    })
    .await;
    assert_eq!(seen[2].kind, "recording.late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_node_that_died_is_numbered_by_another_on_postgres() {
    let database = Database::postgres().await;
    let catalog = database.node().await;
    accept(&catalog, [1]).await;
    // What a node leaves behind that dies between its commit and its numbering.
    let mut dead = sqlx::PgConnection::connect(database.postgres_url().unwrap()).await.unwrap();
    let written = sqlx::query(
        "INSERT INTO events (in_feed, account_sid, recording_sid, at, type) VALUES (1, $1, $2, 0, 'recording.orphan')",
    );
    let id = recording_id(1);
    written.bind(id.account.as_str()).bind(id.recording.as_str()).execute(&mut dead).await.unwrap();
    eventually("another node numbers it", async || {
        let (events, _) = catalog.events(None, &EventFilter::default(), 10).await.unwrap();
        events.iter().any(|event| event.kind == "recording.orphan").then_some(())
    })
    .await;
}
