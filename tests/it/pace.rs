//! Behaving towards Twilio: storms, refusals, accounts beside each other.

use std::time::Duration;

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{Fault, RestFault, SimulatedRecording};
use futures::StreamExt;
use reqwest::StatusCode;

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
        // Questions and lists take their time, so that any beside the fetches would be seen.
        world.simulator.rest_fault(account(), Some(RestFault::Slow(Duration::from_millis(300))));
        world.simulator.forget_in_flight_max();
        let calm = tokio::time::Instant::now();
        let mut unknown = 1000;
        for id in &ids {
            // Nobody knows these calls: Twilio is asked by each node.
            for node in &nodes {
                unknown += 1;
                let _ = node.get(&format!("/v1/calls/{}/audio?wait=0", call_sid(unknown))).await;
            }
            nodes[0].recording_in(id.recording, "stored").await;
        }
        let steps = calm.elapsed().as_secs() / step.as_secs();
        // One, one more a step, and what was asked just before the calm.
        let allowed = 2 + usize::try_from(steps).unwrap();
        let seen = world.simulator.in_flight_max(account());
        assert!(seen <= allowed, "{seen} at once after {steps} steps");
        assert_eq!(world.simulator.fetches(), 40);
        let seen = world.simulator.seen();
        assert!(seen.iter().any(|seen| seen.target.contains("/Calls/")), "calls were asked for");
    }

    async fn someone_who_waits_goes_before_the_backlog_of_all_nodes(world: World) {
        world.set("CALLVAULT_FETCH_CONCURRENCY", "1");
        world.set("CALLVAULT_LEASE", "1m");
        let nodes = world.start_nodes(3).await;
        // Each node has its only place taken.
        let held: Vec<_> = (1..=nodes.len()).map(|number| world.record(u32::try_from(number).unwrap())).collect();
        for id in &held {
            world.simulator.script(id.recording, [Fault::Held(1)]);
        }
        announce(&world, &nodes, held.iter().copied()).await;
        for id in &held {
            nodes[0].recording_in(id.recording, "fetching").await;
        }
        let ids: Vec<_> = (11..=50).map(|number| world.record(number)).collect();
        announce(&world, &nodes, ids.iter().copied()).await;
        let wanted = ids.last().unwrap().recording;
        let answer = nodes.last().unwrap().get(&format!("/v1/recordings/{wanted}/audio?wait=0")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        held.iter().for_each(|id| world.simulator.release(id.recording));
        for id in held.iter().chain(&ids) {
            nodes[0].recording_in(id.recording, "stored").await;
        }
        let media = |target: &str| ids.iter().any(|id| target.contains(&format!("/{}.", id.recording)));
        let asked: Vec<_> = world.simulator.seen().into_iter().map(|seen| seen.target).filter(|target| media(target)).collect();
        let place = asked.iter().position(|target| target.contains(wanted.as_str())).unwrap();
        assert!(place < nodes.len(), "{place} others went first");
    }

    async fn refused_credentials_pause_their_account_until_they_are_taken_again(world: World) {
        world.add_account(other());
        world.simulator.refuse_credentials(account(), true);
        let nodes = world.start_nodes(2).await;
        let ids: Vec<_> = (1..=5).map(|number| world.record(number)).collect();
        announce(&world, &nodes, ids.iter().copied()).await;
        for node in &nodes {
            eventually("the account is paused", async || node.trouble("accounts_paused").await).await;
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
            eventually("all is well again", async || match node.trouble("accounts_paused").await {
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
