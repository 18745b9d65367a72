//! Behaving towards Twilio: storms, refusals, accounts beside each other, and a
//! node whose clock is wrong.

use std::time::Duration;

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{Fault, SimulatedRecording};
use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::Value;

use crate::support::eventually;
use crate::support::world::{Parts, Service, World, account, call_sid, recording_id, started_at};

/// Another account, whose recordings have numbers of their own.
fn other() -> AccountSid {
    format!("AC{}", "b".repeat(32)).parse().unwrap()
}

fn record_for_other(world: &World, number: u32) -> RecordingId {
    let id = RecordingId { account: other(), recording: recording_id(number).recording };
    world.simulator.add(SimulatedRecording::speech(id, call_sid(number), started_at()));
    id
}

/// Sends the callbacks of these recordings, spread over the nodes.
async fn announce(world: &World, nodes: &[Service], ids: impl IntoIterator<Item = RecordingId>) {
    let sent = ids.into_iter().enumerate().map(|(at, id)| {
        let callback = world.callback(id.recording);
        async move {
            let node = &nodes[at % nodes.len()];
            // A machine that is busy with other tests may take too long for some.
            eventually("the callback is taken", async || {
                (node.send(&callback).await.status() == StatusCode::NO_CONTENT).then_some(())
            })
            .await
        }
    });
    futures::stream::iter(sent).buffer_unordered(16).collect::<Vec<()>>().await;
}

async fn metric(world: &World, service: &Service, name: &str) -> f64 {
    let request = world.http.get(format!("{}/metrics", service.url)).bearer_auth(crate::support::world::ADMIN_KEY);
    let text = request.send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn trouble(world: &World, service: &Service, code: &str) -> Option<()> {
    let answer = world.http.get(format!("{}/readyz", service.url)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body: Value = answer.json().await.unwrap();
    body["problems"].as_array()?.iter().any(|problem| problem["code"] == code).then_some(())
}

fn media_requests(world: &World, ids: &[RecordingId]) -> u64 {
    ids.iter().map(|id| world.simulator.counts(id.recording).media_requests).sum()
}

on_all_parts! {
    async fn a_storm_of_429_slows_all_nodes_together_and_passes(world: World) {
        // One more at once every two seconds, once it is calm.
        let step = Duration::from_secs(2);
        world.set("CALLVAULT_RETRY_BASE", "2s");
        world.set("CALLVAULT_RETRY_CAP", "2s");
        world.simulator.always_of(account(), Some(Fault::RateLimited { retry_after: None }));
        let nodes = world.start_nodes(3).await;
        let ids: Vec<_> = (1..=40).map(|number| world.record(number)).collect();
        announce(&world, &nodes, ids.iter().copied()).await;
        eventually("the pace has fallen as far as it falls", async || {
            let mut slowdowns = 0.0;
            for node in &nodes {
                slowdowns += metric(&world, node, "callvault_account_slowdowns_total").await;
            }
            (slowdowns >= 8.0).then_some(())
        })
        .await;
        assert_eq!(world.simulator.fetches(), 0);

        world.simulator.always_of(account(), None);
        world.simulator.forget_in_flight_max();
        let calm = tokio::time::Instant::now();
        for id in &ids {
            nodes[0].recording_in(id.recording, "stored").await;
        }
        let steps = calm.elapsed().as_secs() / step.as_secs();
        // One, one more a step, and what was asked just before the calm.
        let allowed = 2 + usize::try_from(steps).unwrap();
        let seen = world.simulator.in_flight_max(account());
        assert!(seen <= allowed, "{seen} at once after {steps} steps");
        assert_eq!(world.simulator.fetches(), 40);
    }

    async fn refused_credentials_pause_their_account_until_they_are_taken_again(world: World) {
        world.add_account(other());
        world.simulator.refuse_credentials(account(), true);
        let nodes = world.start_nodes(2).await;
        let ids: Vec<_> = (1..=5).map(|number| world.record(number)).collect();
        announce(&world, &nodes, ids.iter().copied()).await;
        for node in &nodes {
            eventually("the account is paused", async || trouble(&world, node, "accounts_paused").await).await;
        }
        let probes = || {
            let seen = world.simulator.seen();
            seen.iter().filter(|seen| seen.target.ends_with("/Recordings.json?PageSize=1")).count()
        };
        eventually("what was under way has ended", async || {
            let mut waiting = true;
            for id in &ids {
                let (_, shown) = nodes[0].json(&format!("/v1/recordings/{}", id.recording)).await;
                waiting &= shown["state"] == "pending";
            }
            waiting.then_some(())
        })
        .await;
        let (asked, probed) = (media_requests(&world, &ids), probes());

        // Meanwhile the other account goes on as if nothing were.
        let well = record_for_other(&world, 100);
        announce(&world, &nodes, [well]).await;
        nodes[0].recording_in(well.recording, "stored").await;
        eventually("it was probed again", async || (probes() >= probed + 3).then_some(())).await;
        assert_eq!(media_requests(&world, &ids), asked, "a paused account is asked for no media");

        world.simulator.refuse_credentials(account(), false);
        for id in &ids {
            nodes[0].recording_in(id.recording, "stored").await;
        }
        for node in &nodes {
            eventually("all is well again", async || match trouble(&world, node, "accounts_paused").await {
                None => Some(()),
                Some(()) => None,
            })
            .await;
        }
    }

    async fn an_account_of_10_000_that_hang_does_not_delay_one_of_10(world: World) {
        world.add_account(other());
        world.simulator.always_of(account(), Some(Fault::Silent));
        let nodes = world.start_nodes(3).await;
        let stuck = (1..=10_000).map(|number| world.record(number));
        announce(&world, &nodes, stuck).await;
        // As many as one account may have on a node, where the memory is enough for ten.
        eventually("many hang", async || (world.simulator.in_flight_max(account()) >= 7).then_some(())).await;
        let ids: Vec<_> = (20_001..=20_010).map(|number| record_for_other(&world, number)).collect();
        announce(&world, &nodes, ids.iter().copied()).await;
        for id in &ids {
            nodes[0].recording_in(id.recording, "stored").await;
        }
        assert_eq!(world.simulator.fetches(), 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_is_off_takes_callbacks_and_fetches_nothing() {
    let mut world = World::new(Parts::Servers).await;
    let library = glob("/usr/lib", "libfaketime.so.1").expect("tests/install-tools.sh installs faketime");
    world.set("LD_PRELOAD", library.to_str().unwrap());
    world.set("FAKETIME", "+20m");
    world.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let wrong = world.start().await;
    let ids: Vec<_> = (1..=3).map(|number| world.record(number)).collect();
    announce(&world, std::slice::from_ref(&wrong), ids.iter().copied()).await;
    eventually("it says so", async || trouble(&world, &wrong, "clock_off").await).await;
    for id in &ids {
        let (_, shown) = wrong.json(&format!("/v1/calls/{}", call_sid(1))).await;
        assert_eq!(shown["recordings"][0]["state"], "pending", "{id}");
    }
    assert_eq!(media_requests(&world, &ids), 0);

    for name in ["LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"] {
        world.settings.remove(name);
    }
    let right = world.start().await;
    for id in &ids {
        right.recording_in(id.recording, "stored").await;
    }
    assert!(trouble(&world, &right, "clock_off").await.is_none());
    // What another one fetched, it serves as any other does.
    let (bytes, _) = wrong.play(&format!("/v1/calls/{}/audio", call_sid(1))).await;
    assert!(!bytes.is_empty());
}

/// The first file of that name below a folder.
fn glob(folder: &str, name: &str) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let here = paths.iter().find(|path| path.is_file() && path.ends_with(name)).cloned();
    here.or_else(|| {
        let folders = paths.iter().filter(|path| path.is_dir() && !path.is_symlink());
        folders.filter_map(|path| glob(path.to_str()?, name)).next()
    })
}
