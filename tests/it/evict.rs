//! Cache mode: what nobody asks for leaves the bucket, and comes back when it is
//! asked for. What Twilio has not any more never leaves.

use std::time::Duration;

use callvault::domain::digest::Digest;
use callvault::twilio::simulator::{Audio, Fault, RestFault, SimulatedRecording, speech_mp3};
use reqwest::StatusCode;

use crate::erase::{code, path};
use crate::recheck::{count, history, metric, none_but_rechecks, nothing_is_owed, stored};
use crate::support::audit;
use crate::support::cluster;
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::world::{Parts, Service, World, account, call_sid, started_at};

/// Whoever does not wait is answered before it is there again.
const SLOWLY: Fault = Fault::Slow { piece_bytes: 5000, wait: Duration::from_millis(300) };

pub fn evict_soon(world: &mut World) {
    for (name, value) in [("LINK_TTL", "1s"), ("LINK_WINDOW", "1s"), ("EVICT_AFTER", "3s")] {
        world.set(&format!("CALLVAULT_{name}"), value);
    }
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
}

pub async fn evictions(service: &Service, outcome: &str) -> u64 {
    metric(service, &format!("callvault_evictions_total{{outcome=\"{outcome}\"}}")).await
}

on_all_parts! {
    async fn what_nobody_asks_for_goes_and_comes_back(world: World) {
        evict_soon(&mut world);
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        service.recording_in(id.recording, "evicted").await;
        eventually("the bucket is empty", async || world.store(&service).keys().await.is_empty().then_some(())).await;

        // Whoever does not wait is told to; whoever waits gets it.
        let audio = format!("/v1/calls/{}/audio", call_sid(1));
        world.simulator.script(id.recording, [SLOWLY]);
        let answer = service.get(&format!("{audio}?wait=0")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        let (bytes, _) = service.play(&format!("{audio}?wait=30")).await;
        assert_eq!(bytes, speech_mp3());
        assert_eq!(world.simulator.counts(id.recording).fetches, 2);
        let told = history(&service, &id).await;
        let told: Vec<&str> = told.iter().map(String::as_str).filter(|kind| kind.starts_with("recording.")).collect();
        assert_eq!(told, ["recording.accepted", "recording.stored", "recording.evicted", "recording.stored"]);
        let (_, shown) = service.json(&path(&id)).await;
        assert_eq!(shown["history"].as_array().unwrap().last().unwrap()["detail"]["previous_sha256"], serde_json::Value::Null);
        assert!(evictions(&service, "evicted").await >= 1);
    }

    async fn whoever_asks_for_the_content_brings_it_back(world: World) {
        evict_soon(&mut world);
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        service.recording_in(id.recording, "evicted").await;
        let blob = format!("/v1/blobs/sha256:{}", Digest::of(&speech_mp3()));
        world.simulator.script(id.recording, [SLOWLY]);
        assert_eq!(code(service.get(&format!("{blob}?wait=0")).await).await, (404, "not_ready".into()));
        let (bytes, _) = service.play(&format!("{blob}?wait=30")).await;
        assert_eq!(bytes, speech_mp3());
    }

    async fn other_bytes_than_before_are_told(world: World) {
        evict_soon(&mut world);
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        service.recording_in(id.recording, "evicted").await;
        let mut other = SimulatedRecording::speech(id, call_sid(1), started_at());
        other.audio = Audio::made_up_wav(100 << 10, 3);
        world.simulator.add(other);
        service.play(&format!("{}/audio?wait=30", path(&id))).await;
        let (_, shown) = service.json(&path(&id)).await;
        let history = shown["history"].as_array().unwrap();
        let stored = history.iter().rfind(|entry| entry["type"] == "recording.stored").unwrap();
        assert_eq!(stored["detail"]["previous_sha256"], Digest::of(&speech_mp3()).to_string());
    }

    async fn that_it_was_asked_for_is_noted_before_the_answer(world: World) {
        evict_soon(&mut world);
        let service = world.start().await;
        let (id, _) = stored(&world, &service, 1).await;
        let before = count(&world, &id, "last_asked_at IS NOT NULL").await;
        let answer = service.get(&format!("{}/link?wait=30", path(&id))).await;
        assert_eq!((answer.status(), before), (StatusCode::OK, 0));
        assert_eq!(count(&world, &id, "last_asked_at IS NOT NULL").await, 1);
    }

    async fn what_is_asked_for_stays(world: World) {
        evict_soon(&mut world);
        let service = world.start().await;
        let (asked, _) = stored(&world, &service, 1).await;
        let (idle, _) = stored(&world, &service, 2).await;
        eventually("the other one goes", async || {
            service.play(&format!("{}/audio", path(&asked))).await;
            // Its row alone does not count.
            let (_, shown) = service.json(&path(&idle)).await;
            (shown["state"] == "evicted").then_some(())
        })
        .await;
        assert_eq!(world.simulator.counts(asked.recording).fetches, 1);
        service.recording_in(asked.recording, "stored").await;
    }

    async fn what_twilio_does_not_know_never_leaves(world: World) {
        evict_soon(&mut world);
        let service = world.start().await;
        world.simulator.rest_fault(account(), Some(RestFault::Status(404)));
        let (id, key) = stored(&world, &service, 1).await;
        eventually("it is kept", async || (evictions(&service, "kept").await >= 2).then_some(())).await;
        assert_eq!(world.store(&service).keys().await, [key]);
        assert_eq!(history(&service, &id).await.last().map(String::as_str), Some("recording.stored"));
        service.play(&format!("{}/audio", path(&id))).await;
        world.simulator.rest_fault(account(), None);
        service.recording_in(id.recording, "evicted").await;
    }

    async fn while_twilio_refuses_the_credentials_nothing_leaves(world: World) {
        evict_soon(&mut world);
        let service = world.start().await;
        let (id, key) = stored(&world, &service, 1).await;
        world.simulator.refuse_credentials(account(), true);
        eventually("the account is paused", async || service.trouble("accounts_paused").await).await;
        // While it is, Twilio is not even asked, nor is a lease granted for it: others have
        // come and gone meanwhile.
        none_but_rechecks(&world, &id).await;
        let asked = world.simulator.seen().iter().filter(|seen| seen.target.contains(id.recording.as_str()) && seen.status == 401).count();
        assert_eq!(asked, 1);
        assert_eq!((evictions(&service, "evicted").await, world.store(&service).keys().await), (0, vec![key]));
        world.simulator.refuse_credentials(account(), false);
        service.recording_in(id.recording, "evicted").await;
        let (_, page) = service.json("/v1/events?type=account.paused&type=account.resumed").await;
        let told: Vec<&str> = page["events"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(told, ["account.paused", "account.resumed"]);
    }

    async fn what_twilio_has_not_never_leaves(world: World) {
        evict_soon(&mut world);
        let service = world.start().await;
        let (gone, key) = stored(&world, &service, 1).await;
        let mut deleted = SimulatedRecording::speech(gone, call_sid(1), started_at());
        deleted.status = "deleted".to_owned();
        world.simulator.add(deleted);
        eventually("it is kept", async || (evictions(&service, "kept").await >= 1).then_some(())).await;
        // Where Twilio does not say, it is kept as well.
        world.simulator.rest_fault(account(), Some(RestFault::Status(500)));
        let (unknown, other) = stored(&world, &service, 2).await;
        eventually("Twilio was asked in vain", async || (evictions(&service, "failed").await >= 1).then_some(())).await;
        let mut keys = vec![key, other];
        keys.sort();
        assert_eq!(world.store(&service).keys().await, keys);
        world.simulator.rest_fault(account(), None);
        service.recording_in(unknown.recording, "evicted").await;
        service.recording_in(gone.recording, "stored").await;
        service.play(&format!("{}/audio", path(&gone))).await;
    }
}

/// An answer of Twilio's that came before the node was frozen is none any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_twilio_said_before_a_node_was_frozen_evicts_nothing() {
    let mut world = World::new(Parts::Servers).await;
    evict_soon(&mut world);
    let node = cluster::Node::start(&world).await;
    let (id, key) = stored(&world, &node, 1).await;
    node.twilio.rule(Rule::on(".json", Act::HoldAnswer));
    node.twilio.acts().await;
    node.freeze().await;
    let mut deleted = SimulatedRecording::speech(id, call_sid(1), started_at());
    deleted.status = "deleted".to_owned();
    world.simulator.add(deleted);
    // As if it had been frozen for longer than its lease lasts; nobody else was there to go on.
    crate::recheck::sql(&world, "UPDATE recordings SET duty_until = 1".to_owned()).await;
    node.twilio.release();
    node.thaw();
    eventually("it is not relied on", async || {
        (evictions(&node, "lost").await + evictions(&node, "kept").await >= 1).then_some(())
    })
    .await;
    eventually("Twilio is asked again", async || (evictions(&node, "kept").await >= 1).then_some(())).await;
    assert_eq!(evictions(&node, "evicted").await, 0);
    assert_eq!(world.real_store().keys().await, [key]);
    node.play(&format!("{}/audio", path(&id))).await;
}

/// Somebody plays it while it is being evicted: it stays, or it comes back whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_plays_what_is_being_evicted_gets_it_whole() {
    let mut world = World::new(Parts::Servers).await;
    evict_soon(&mut world);
    let node = cluster::Node::start(&world).await;
    let (id, key) = stored(&world, &node, 1).await;
    let audio = format!("{}/audio?wait=30", path(&id));

    node.twilio.rule(Rule::on(".json", Act::HoldAnswer));
    node.twilio.acts().await;
    let (bytes, _) = node.play(&audio).await;
    assert_eq!(bytes, speech_mp3());
    node.twilio.release();
    eventually("it stays", async || (evictions(&node, "kept").await == 1).then_some(())).await;
    assert_eq!(world.real_store().keys().await, std::slice::from_ref(&key));

    node.store.rule(Rule::on("DELETE /", Act::Hold));
    node.store.acts().await;
    let playing = node.play(&audio);
    let content = format!("{}/content?wait=30", path(&id));
    let content = node.get(&content);
    let letting_go = async {
        eventually("it is on its way back", async || {
            (count(&world, &id, "state = 'pending'").await == 1).then_some(())
        })
        .await;
        // Its object is still there and about to go: nothing is fetched before that is over.
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
        node.store.release();
    };
    let ((bytes, _), heard, ()) = tokio::join!(playing, content, letting_go);
    assert_eq!(bytes, speech_mp3());
    assert_eq!(heard.bytes().await.unwrap(), speech_mp3());
    assert_eq!(world.simulator.counts(id.recording).fetches, 2);
    let told = history(&node, &id).await;
    assert_eq!(told.iter().filter(|kind| *kind == "recording.evicted").count(), 1, "{told:?}");
}

/// The node dies when the row is marked and the object is still there: nobody is
/// given a link to it, and it goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_between_mark_and_delete_leaves_nothing_behind() {
    let mut world = World::new(Parts::Servers).await;
    let nodes = cluster::start(&world, 1).await;
    let (id, _) = stored(&world, &nodes[0], 1).await;
    nodes[0].kill();
    evict_soon(&mut world);
    let dying = cluster::Node::start(&world).await;
    dying.store.rule(Rule::on("DELETE /", Act::Hold));
    dying.store.acts().await;
    dying.kill();
    let service = world.start().await;
    service.recording_in(id.recording, "evicted").await;
    // Nobody has to wait for two minutes here.
    crate::recheck::sql(&world, "UPDATE recordings SET duty_until = 1".to_owned()).await;
    eventually("its object goes", async || world.real_store().keys().await.is_empty().then_some(())).await;
    nothing_is_owed(&world, &id).await;
    audit::content_in_the_end(&world).await;
}
