//! What is new in the feed, and those who follow it on a node.

use callvault::catalog::News;
use callvault::vault::follow::{FellBehind, Follower};
use futures::future::join_all;
use tokio_util::task::AbortOnDropHandle;

use super::support::{PATIENCE, eventually};
use super::*;

/// A follower whose poll nobody lives to see, at the end of the feed.
async fn follower(catalog: &Arc<dyn Catalog>) -> (Arc<Follower>, AbortOnDropHandle<()>) {
    let follower = Arc::new(Follower::new(catalog.clone(), LONG));
    let running = follower.clone();
    let running = AbortOnDropHandle::new(tokio::spawn(async move { running.run().await }));
    eventually("the follower has found the end of the feed", async || follower.reached()).await;
    (follower, running)
}

on_every_catalog! {
    async fn a_follower_with_a_poll_of_an_hour_is_woken_by_a_commit_on_another_node(database: Database) {
        let writer = database.node().await;
        // Of SQLite there is one node; its own commits wake it.
        let reader = if database.postgres_url().is_some() { database.node().await } else { writer.clone() };
        let (follower, _running) = follower(&reader).await;
        eventually("the reader's node listens", async || {
            let mut changes = reader.changes();
            changes.mark_unchanged();
            writer.announce_change();
            tokio::time::timeout(Duration::from_millis(500), changes.changed()).await.ok()
        })
        .await
        .unwrap();
        let mut subscriber = follower.subscribe();
        accept(&writer, [1]).await;
        let news = tokio::time::timeout(PATIENCE, subscriber.next()).await.expect("it is woken").unwrap();
        assert_eq!(news.len(), 1);
        assert_eq!((news[0].kind.as_str(), news[0].id()), ("recording.accepted", Some(recording_id(1))));
        assert_eq!(news[0].calls, [call_sid(1)]);
        assert_eq!(follower.reached(), Some(news[0].cursor));
        assert!(follower.is_up_to_date_within(LONG));
    }

    async fn each_subscriber_learns_of_every_event_in_order(database: Database) {
        // Of SQLite there is one node; only its own commits wake it.
        let count = if database.postgres_url().is_some() { 3 } else { 1 };
        let nodes = join_all((0..count).map(|_| database.node())).await;
        let (follower, _running) = follower(&nodes[0]).await;
        let subscribers = (0..3).map(|_| {
            let mut subscriber = follower.subscribe();
            async move {
                let mut seen: Vec<Arc<News>> = Vec::new();
                while seen.len() < 120 {
                    let next = tokio::time::timeout(PATIENCE, subscriber.next()).await.expect("there is more");
                    seen.extend(next.expect("nothing was missed"));
                }
                seen
            }
        });
        let writers = (0..3u32).map(|at| {
            let node = nodes[at as usize % nodes.len()].clone();
            async move { accept(&node, at * 40 + 1..=at * 40 + 40).await }
        });
        let (seen, _) = tokio::join!(join_all(subscribers), join_all(writers));
        for seen in seen {
            assert_eq!(seen.len(), 120);
            assert!(seen.is_sorted_by(|a, b| a.cursor < b.cursor), "in order, none twice");
        }
    }

    async fn news_name_every_call_that_a_recording_is_asked_for_by(database: Database) {
        let catalog = database.node().await;
        let (follower, _running) = follower(&catalog).await;
        let before = follower.reached().unwrap();
        accept(&catalog, [1]).await;
        // The child leg of call 1, which an application asks for it by.
        catalog.accept(&put(1, 7)).await.unwrap();
        let lease = claim_one(&catalog, LONG).await.lease;
        let _ = catalog.store(&lease, &object(&lease.id, b"audio"), true).await.unwrap();
        let news = eventually("both events are known", async || {
            let news = follower.since(before).unwrap();
            (news.len() == 2).then_some(news)
        })
        .await;
        assert_eq!(news[1].kind, "recording.stored");
        let mut calls = news[1].calls.clone();
        calls.sort();
        assert_eq!(calls, [call_sid(1), call_sid(7)]);
    }

    async fn what_is_older_than_the_follower_is_not_known_to_it(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let (first, _) = eventually("the event has its place", async || {
            let (events, next) = catalog.events(None, &Default::default(), 10).await.unwrap();
            (events.len() == 1).then_some((events, next))
        })
        .await;
        let beginning = "0000000000001-000000000000000".parse().unwrap();
        let (follower, _running) = follower(&catalog).await;
        assert_eq!(follower.since(beginning), Err(FellBehind));
        assert_eq!(follower.since(first[0].cursor).map(|news| news.len()), Ok(0));
    }
}
