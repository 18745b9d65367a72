//! Learning of recordings.

use callvault::catalog::{Backlog, Settled};
use callvault::domain::recording::State;
use futures::future::join_all;

use super::*;

on_every_catalog! {
    async fn what_was_accepted_is_there_for_a_catalog_opened_later(database: Database) {
        let catalog = database.node().await;
        let accepted = catalog.accept(&callback(1, "completed")).await.unwrap();
        assert!(accepted.created);
        assert_eq!(accepted.recording.state, State::Pending);
        drop(catalog);
        let later = database.node().await;
        assert_eq!(later.recording(&recording_id(1)).await.unwrap(), Some(accepted.recording));
    }

    async fn many_nodes_accept_the_same_news_once(database: Database) {
        let nodes = join_all((0..4).map(|_| database.node())).await;
        let accepts = (0..80).map(|at| {
            let node = nodes[at % nodes.len()].clone();
            // Two recordings, so that both new and known rows are raced for.
            tokio::spawn(async move { node.accept(&callback(1 + at as u32 % 2, "completed")).await.unwrap().created })
        });
        let created = join_all(accepts).await.into_iter().filter(|created| *created.as_ref().unwrap()).count();
        assert_eq!(created, 2);
        for number in [1, 2] {
            let history = nodes[0].history(&recording_id(number)).await.unwrap();
            let kinds: Vec<&str> = history.iter().map(|entry| entry.kind.as_str()).collect();
            assert_eq!(kinds, ["recording.accepted", "callback"]);
        }
    }

    async fn a_status_is_noted_once_and_each_other_one_too(database: Database) {
        let catalog = database.node().await;
        for status in ["in-progress", "in-progress", "completed", "in-progress", "completed", "strange"] {
            catalog.accept(&callback(1, status)).await.unwrap();
        }
        let history = catalog.history(&recording_id(1)).await.unwrap();
        let told: Vec<_> = history.iter().filter_map(|entry| entry.detail["status"].as_str()).collect();
        assert_eq!(told, ["in-progress", "completed", "strange"]);
    }

    async fn what_has_waited_longest_is_known_until_it_is_stored(database: Database) {
        let catalog = database.node().await;
        let waited = async || catalog.backlog(&accounts()).await.unwrap().oldest;
        assert_eq!(waited().await, None);
        accept(&catalog, [1, 2]).await;
        let claim = claim_some(&catalog, LONG, 1).await.remove(0);
        assert!(waited().await.unwrap() < Duration::from_secs(600));
        assert_eq!(catalog.backlog(&[]).await.unwrap(), Backlog::default());
        for claim in [claim, claim_one(&catalog, LONG).await] {
            // What is being fetched waits as well.
            assert!(waited().await.is_some());
            let stored = catalog.store(&claim.lease, &object(&claim.lease.id, b"audio"), true).await.unwrap();
            assert_eq!(stored, Settled::Done);
        }
        assert_eq!(waited().await, None);
    }

    async fn that_many_wait_is_more_than_that_ten_do(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=10).await;
        let of_many = async || catalog.backlog(&accounts()).await.unwrap().oldest_of_many;
        assert_eq!(of_many().await, None);
        // Of another account they do not count.
        let other: AccountSid = format!("AC{}", "b".repeat(32)).parse().unwrap();
        let mut of_other = callback(11, "completed");
        of_other.id.account = other;
        catalog.accept(&of_other).await.unwrap();
        let both = [&accounts()[..], &[other]].concat();
        assert_eq!(catalog.backlog(&both).await.unwrap().oldest_of_many, None);
        accept(&catalog, [12]).await;
        assert!(of_many().await.unwrap() < Duration::from_secs(600));
        let claim = claim_some(&catalog, LONG, 1).await.remove(0);
        assert!(of_many().await.is_some());
        assert_eq!(catalog.store(&claim.lease, &object(&claim.lease.id, b"audio"), true).await.unwrap(), Settled::Done);
        assert_eq!(of_many().await, None);
    }

    async fn twilios_word_on_the_call_replaces_what_was_put(database: Database) {
        let catalog = database.node().await;
        let named = catalog.accept(&put(1, 50)).await.unwrap().recording;
        assert!(!named.details_confirmed);
        assert_eq!(named.details.call_sid, Some(call_sid(50)));
        let told = catalog.accept(&callback(1, "completed")).await.unwrap().recording;
        assert!(told.details_confirmed);
        assert_eq!(told.details.call_sid, Some(call_sid(1)));
        for call in [call_sid(1), call_sid(50)] {
            let views = catalog.call(call, None).await.unwrap();
            assert_eq!(views.len(), 1, "{call}");
            assert_eq!(views[0].answer().map(|answer| answer.id), Some(recording_id(1)));
        }
    }

    async fn details_are_filled_in_and_never_lost(database: Database) {
        let catalog = database.node().await;
        let mut first = callback(1, "in-progress");
        first.details.channels = Some(2);
        catalog.accept(&first).await.unwrap();
        let mut second = callback(1, "completed");
        second.details.duration_seconds = Some(6);
        second.details.recorded_at = Some("2026-11-23T09:30:00Z".parse().unwrap());
        let known = catalog.accept(&second).await.unwrap().recording;
        assert_eq!((known.details.channels, known.details.duration_seconds), (Some(2), Some(6)));
        assert_eq!(known.ordered_at(), "2026-11-23T09:30:00Z".parse().unwrap());
    }

    async fn news_moves_what_it_may_and_nothing_else(database: Database) {
        let catalog = database.node().await;
        for (number, statuses, expected) in [
            (1, vec!["in-progress", "absent"], State::Absent),
            (2, vec!["in-progress", "failed"], State::Failed),
            (3, vec!["absent", "completed"], State::Pending),
            (4, vec!["completed", "absent"], State::Pending),
            (5, vec!["completed", "failed"], State::Pending),
            (6, vec!["absent", "in-progress"], State::Absent),
        ] {
            for status in &statuses {
                catalog.accept(&callback(number, status)).await.unwrap();
            }
            let state = catalog.recording(&recording_id(number)).await.unwrap().unwrap().state;
            assert_eq!(state, expected, "{statuses:?}");
        }
        // A PUT makes a row, moves an announced one, and no other.
        for (number, status, expected) in [(10, "in-progress", State::Pending), (11, "absent", State::Absent), (12, "failed", State::Failed)] {
            catalog.accept(&callback(number, status)).await.unwrap();
            assert_eq!(catalog.accept(&put(number, number)).await.unwrap().recording.state, expected, "{status}");
        }
    }
}
