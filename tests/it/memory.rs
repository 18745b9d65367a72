//! Hits are answered from a node's memory, which never says what is over: not what
//! was erased, nor what another was PUT for, on whichever node.

use std::time::Instant;

use callvault::domain::recording::RecordingId;
use reqwest::StatusCode;
use serde_json::Value;

use crate::erase::{delete, path};
use crate::keys::HOLDS_WITHIN;
use crate::recheck::{metric, stored};
use crate::support::cluster::Node;
use crate::support::eventually;
use crate::support::world::{ACCOUNT, Parts, Service, World, call_sid};

async fn hits(service: &Service) -> u64 {
    metric(service, "callvault_memory_hits_total").await
}

/// Statements that the catalog was sent so far.
async fn statements(service: &Service) -> u64 {
    metric(service, "callvault_catalog_statement_seconds_count{outcome=\"done\"}").await
}

/// Asks until the answer comes from memory; gives it.
async fn from_memory(service: &Service, path: &str) -> Value {
    eventually("it is answered from memory", async || {
        let before = hits(service).await;
        let (status, link) = service.json(path).await;
        assert_eq!(status, StatusCode::OK, "{link}");
        (hits(service).await > before).then_some(link)
    })
    .await
}

fn link_of_call(number: u32) -> String {
    format!("/v1/calls/{}/link", call_sid(number))
}

fn link_of(id: &RecordingId) -> String {
    format!("{}/link", path(id))
}

/// Every node says so within the time that is promised, and ever after.
async fn everywhere(nodes: &[Service], path: &str, since: Instant, is_so: impl Fn(StatusCode, &Value) -> bool) {
    for node in nodes {
        eventually("the node has heard of it", async || {
            let asked_after = since.elapsed();
            let (status, body) = node.json(path).await;
            let is_so = is_so(status, &body);
            assert!(is_so || asked_after < HOLDS_WITHIN, "{asked_after:?}: {status} {body}");
            is_so.then_some(())
        })
        .await;
        for _ in 0..20 {
            let (status, body) = node.json(path).await;
            assert!(is_so(status, &body), "{status} {body}");
        }
    }
}

on_all_parts! {
    async fn a_hit_is_answered_without_asking_the_catalog(world: World) {
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        let paths = [link_of_call(1), link_of(&id), format!("/v1/calls/{}/audio", call_sid(1))];
        for path in &paths[..2] {
            from_memory(&service, path).await;
        }
        let (statements_before, hits_before) = (statements(&service).await, hits(&service).await);
        for _ in 0..10 {
            let asked = (0..90).map(|at| service.get(&paths[at % 3]));
            for answer in futures::future::join_all(asked).await {
                assert!([StatusCode::OK, StatusCode::TEMPORARY_REDIRECT].contains(&answer.status()));
            }
        }
        let (statements, hits) = (statements(&service).await - statements_before, hits(&service).await - hits_before);
        // A look-up takes two statements. What else a node asks of its catalog goes by time.
        assert!(hits >= 800 && statements < 450, "{hits} hits, {statements} statements");
    }

    async fn what_is_erased_is_forgotten_on_every_node_within_two_seconds(world: World) {
        let nodes = world.start_nodes(3).await;
        let (id, _) = stored(&world, &nodes[0], 1).await;
        let paths = [link_of_call(1), link_of(&id)];
        for node in &nodes {
            for path in &paths {
                from_memory(node, path).await;
            }
        }
        assert!(delete(&nodes[0], &path(&id)).await.status().is_success());
        let since = Instant::now();
        // Whoever erased it has no time to wait.
        assert_eq!(nodes[0].get(&paths[1]).await.status(), StatusCode::GONE);
        for path in &paths {
            everywhere(&nodes, path, since, |status, _| status == StatusCode::GONE).await;
        }
    }

    async fn what_was_put_last_is_the_answer_on_every_node_within_two_seconds(world: World) {
        let nodes = world.start_nodes(3).await;
        let (first, _) = stored(&world, &nodes[0], 1).await;
        let (second, _) = stored(&world, &nodes[0], 2).await;
        let is_answer = |id: &RecordingId| {
            let sid = id.recording.to_string();
            move |_: StatusCode, body: &Value| body["recording_sid"] == *sid
        };
        for id in [second, first, second] {
            for node in &nodes {
                from_memory(node, &link_of_call(1)).await;
            }
            let url = format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", id.recording);
            assert_eq!(nodes[0].put(call_sid(1), &url).await.status(), StatusCode::OK);
            let since = Instant::now();
            let (_, link) = nodes[0].json(&link_of_call(1)).await;
            assert_eq!(link["recording_sid"], id.recording.to_string(), "whoever PUT it sees it at once");
            everywhere(&nodes, &link_of_call(1), since, is_answer(&id)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_frozen_gives_nothing_that_is_over_from_its_first_answer() {
    let world = World::new(Parts::Servers).await;
    let (other, frozen) = tokio::join!(Node::start(&world), Node::start(&world));
    for number in 1..=3 {
        let (id, _) = stored(&world, &other, number).await;
        from_memory(&frozen, &link_of(&id)).await;
        frozen.freeze().await;
        assert!(delete(&other, &path(&id)).await.status().is_success());
        // The claim is about what holds after this time: there is no condition to wait for.
        tokio::time::sleep(HOLDS_WITHIN).await;
        frozen.thaw();
        assert_eq!(frozen.get(&link_of(&id)).await.status(), StatusCode::GONE);
    }
}
