//! Holds: written in the bucket before they are acknowledged, and stronger than
//! all that removes.

use callvault::domain::recording::RecordingId;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::erase::{code, delete, marker, path};
use crate::recheck::{count, history, metric, stored};
use crate::support::audit;
use crate::support::cluster::{self, Node};
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::world::{ACCOUNT, Parts, Service, World, recording_id};

const STORE_503: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Sets a hold, or releases it; gives the answer's status, and what it shows.
pub async fn hold(service: &Service, id: &RecordingId, hold: bool) -> (u16, Value) {
    let method = if hold { Method::PUT } else { Method::DELETE };
    let answer = service.request(method, &format!("{}/hold", path(id))).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

pub fn held_marker(id: &RecordingId) -> String {
    format!(".held/{ACCOUNT}/{}", id.recording)
}

on_all_parts! {
    async fn a_hold_is_shown_marked_and_released(world: World) {
        let service = world.start().await;
        let (id, key) = stored(&world, &service, 1).await;
        let store = world.store(&service);
        for _ in 0..2 {
            let (status, shown) = hold(&service, &id, true).await;
            assert_eq!((status, &shown["hold"], &shown["state"]), (200, &true.into(), &"stored".into()));
            assert_eq!(store.keys().await, [held_marker(&id), key.clone()]);
        }
        assert_eq!(code(delete(&service, &path(&id)).await).await, (409, "held".into()));
        assert_eq!(store.keys().await, [held_marker(&id), key.clone()]);
        for _ in 0..2 {
            let (status, shown) = hold(&service, &id, false).await;
            assert_eq!((status, &shown["hold"]), (200, &false.into()));
            assert_eq!(store.keys().await, std::slice::from_ref(&key));
        }
        let told = history(&service, &id).await;
        assert_eq!(told[told.len() - 2..], ["recording.held", "recording.released"], "each is told once");
        assert_eq!(delete(&service, &path(&id)).await.status(), StatusCode::NO_CONTENT);
        let (status, problem) = hold(&service, &id, true).await;
        assert_eq!((status, &problem["code"]), (410, &"erased".into()));
        assert_eq!(hold(&service, &recording_id(9), true).await.0, 404);
        assert_eq!(store.keys().await, [marker(&id)]);
    }
}

/// Nothing is acknowledged before the bucket says it, and a node sees to it that it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_marker_no_hold_is_acknowledged() {
    let world = World::new(Parts::Servers).await;
    let node = Node::start(&world).await;
    let (id, key) = stored(&world, &node, 1).await;
    node.store.rule(Rule::on("/.held/", Act::Answer(STORE_503)).times(1000));
    let (status, problem) = hold(&node, &id, true).await;
    assert_eq!((status, &problem["code"]), (503, &"unavailable".into()));
    assert_eq!(code(delete(&node, &path(&id)).await).await, (409, "held".into()), "but it is held");
    node.store.release();
    let marked = [held_marker(&id), key.clone()];
    eventually("it is gone on with", async || (world.real_store().keys().await == marked).then_some(())).await;
    assert_eq!(hold(&node, &id, true).await.0, 200);

    node.store
        .rule(Rule::on("DELETE /", Act::Answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")).times(1000));
    assert_eq!(hold(&node, &id, false).await.0, 503);
    assert_eq!(world.real_store().keys().await, marked, "it is not released before its marker is gone");
    node.store.release();
    eventually("the marker goes", async || (world.real_store().keys().await == [key.clone()]).then_some(())).await;
    assert_eq!(hold(&node, &id, false).await.0, 200);
    audit::content(&world).await;
}

/// Holds and erasing, of many recordings at once on two nodes: each has one outcome,
/// and what was held in time is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_race_a_hold_that_is_first_wins() {
    let world = World::new(Parts::Servers).await;
    let nodes = cluster::start(&world, 2).await;
    for number in 1..=10 {
        stored(&world, &nodes[0], number).await;
    }
    let race = (1..=10).map(|number| {
        let (holder, eraser) = (&nodes[0], &nodes[1]);
        async move {
            let id = recording_id(number);
            let (held, erased) =
                tokio::join!(hold(holder, &id, true), async { delete(eraser, &path(&id)).await.status().as_u16() });
            (id, held.0, erased)
        }
    });
    for (id, held, erased) in futures::future::join_all(race).await {
        assert!(matches!((held, erased), (200, 409) | (410, 204)), "{id}: {held} {erased}");
        match held {
            200 => drop(nodes[0].play(&format!("{}/audio", path(&id))).await),
            _ => assert_eq!(count(&world, &id, "state = 'erased' AND hold = 0").await, 1),
        }
    }
    audit::content_in_the_end(&world).await;
}

/// A hold that comes while an eviction is under way: the object stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_stops_an_eviction_that_has_begun() {
    let mut world = World::new(Parts::Servers).await;
    for (name, value) in [("LINK_TTL", "1s"), ("LINK_WINDOW", "1s"), ("EVICT_AFTER", "3s")] {
        world.set(&format!("CALLVAULT_{name}"), value);
    }
    let node = Node::start(&world).await;
    // Its fetch is over before it is asked for the recording itself.
    let (id, key) = stored(&world, &node, 1).await;
    node.twilio.rule(Rule::on(".json", Act::Hold));
    node.twilio.acts().await;
    assert_eq!(hold(&node, &id, true).await.0, 200);
    node.twilio.release();
    eventually("the eviction is given up", async || {
        (metric(&node, "callvault_evictions_total{outcome=\"kept\"}").await
            + metric(&node, "callvault_evictions_total{outcome=\"lost\"}").await
            == 1)
            .then_some(())
    })
    .await;
    assert_eq!(world.real_store().keys().await, [held_marker(&id), key]);
    node.recording_in(id.recording, "stored").await;
}
