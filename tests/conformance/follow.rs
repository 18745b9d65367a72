//! What is new in the feed, and those who follow it on a node.

use callvault::catalog::{EventFilter, News, OTHER_ANSWER};
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

    async fn that_a_call_may_answer_otherwise_is_told_to_memories_and_shown_to_no_reader(database: Database) {
        let catalog = database.node().await;
        let begin = catalog.latest_event().await.unwrap();
        // What was told up to an event that comes last.
        let told = async |last: u32| {
            accept(&catalog, [last]).await;
            eventually("the last event has its number", async || {
                let news = catalog.news(Some(begin), 1000).await.unwrap().news;
                let told = |news: &&News| news.kind == OTHER_ANSWER;
                let is_there = news.iter().any(|news| news.id() == Some(recording_id(last)));
                is_there.then(|| news.iter().filter(told).cloned().collect::<Vec<News>>())
            })
            .await
        };
        accept(&catalog, [1, 2]).await;
        assert_eq!(told(101).await, [], "what is new tells it itself");
        catalog.accept(&put(2, 1)).await.unwrap();
        let news = told(102).await;
        assert!(news.iter().all(|news| news.id() == Some(recording_id(2))), "{news:?}");
        assert!([1, 2].iter().all(|call| news[0].calls.contains(&call_sid(*call))), "{news:?}");
        catalog.accept(&put(2, 1)).await.unwrap();
        assert_eq!(told(103).await.len(), news.len(), "the same again changes nothing");
        catalog.accept(&put(1, 1)).await.unwrap();
        assert_eq!(told(104).await.len(), news.len() + 1);
        catalog.accept(&callback(3, "in-progress")).await.unwrap();
        assert_eq!(told(105).await.len(), news.len() + 1);
        catalog.accept(&callback(3, "completed")).await.unwrap();
        assert_eq!(told(106).await.len(), news.len() + 2, "it counts from now on");

        let (events, _) = catalog.events(Some(begin), &EventFilter::default(), 1000).await.unwrap();
        assert!(events.iter().all(|event| event.kind == "recording.accepted"), "{events:?}");
        assert_eq!(events.len(), 9);
        let history = catalog.history(&recording_id(2)).await.unwrap();
        assert!(history.iter().all(|entry| entry.kind != OTHER_ANSWER), "{history:?}");
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
            let mut news = follower.since(before).unwrap();
            news.retain(|news| news.kind != OTHER_ANSWER);
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
