//! Behaving towards Twilio: storms, refusals, accounts beside each other.

use std::time::Duration;

use callvault::domain::media::SNIFF_LEN;
use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{Fault, RestFault, SimulatedRecording};
use futures::StreamExt;
use reqwest::StatusCode;

use callvault::catalog::{SlowDown, Turn, Urgency};
use sqlx::Connection;

use crate::support::cluster::Node;
use crate::support::world::{
    ACCOUNT, Parts, Service, World, account, call_sid, debug_binary, recording_id, started_at,
};
use crate::support::{audit, eventually};

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

/// Runs a statement past every node; gives how many rows it changed.
async fn execute(world: &World, statement: &'static str) -> u64 {
    match world.parts {
        Parts::Embedded => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(world.folder().join("callvault.db"));
            let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            sqlx::query(statement).execute(&mut connection).await.unwrap().rows_affected()
        }
        Parts::Servers => {
            let url = &world.settings["CALLVAULT_DATABASE_URL"];
            let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
            sqlx::query(statement).execute(&mut connection).await.unwrap().rows_affected()
        }
    }
}

/// Brings in what Twilio has, and does not wait for it.
async fn backfill(world: &World) {
    let mut command = tokio::process::Command::new(debug_binary());
    command.args(["backfill", "--account", ACCOUNT, "--since", "2026-11-22", "--until", "2026-11-24", "--no-wait"]);
    let done = command.current_dir(world.folder()).env_clear().envs(&world.settings).output().await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn media_requests(world: &World, ids: &[RecordingId]) -> u64 {
    ids.iter().map(|id| world.simulator.counts(id.recording).media_requests).sum()
}

/// Lets each of the accounts have one at once, from now on; where two were too many it rises
/// far more slowly.
async fn one_at_once(world: &World, accounts: &[AccountSid], too_many: bool) {
    let asked = SlowDown { too_many, quiet_for: Duration::ZERO, began_ago: Duration::ZERO };
    let vault = audit::vault(world).await;
    for account in accounts {
        assert_eq!(vault.catalog.slow_down(*account, asked).await.unwrap().unwrap().limit, Some(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_slow_keeps_nothing_of_an_account_from_being_fetched() {
    let mut world = World::new(Parts::Servers).await;
    // Its bytes come before the pace may rise.
    world.set("CALLVAULT_RETRY_BASE", "200ms");
    let node = Node::start(&world).await;
    one_at_once(&world, &[account()], true).await;
    let ids = [world.record(1), world.record(2)];
    node.store.swallow();
    for id in &ids {
        node.deliver(&world.callback(id.recording)).await;
    }
    eventually("both were fetched", async || (world.simulator.fetches() == 2).then_some(())).await;
    for id in &ids {
        assert_eq!(node.recording_in(id.recording, "fetching").await["attempts"], 1, "its put hangs");
    }
    // What failed over resets the connections that it does not know.
    node.store.refuse();
    node.store.heal();
    for id in &ids {
        node.recording_in(id.recording, "stored").await;
    }
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

    async fn one_that_is_slow_does_not_keep_its_account_waiting_after_a_bad_moment(world: World) {
        world.set("CALLVAULT_LEASE", "1m");
        let service = world.start().await;
        let (slow, others) = (world.record(1), [2, 3, 4].map(|number| world.record(number)));
        world.simulator.always_of(account(), Some(Fault::Status(503)));
        service.deliver(&world.callback(slow.recording)).await;
        eventually("the account may have one at once", async || {
            (metric(&world, &service, "callvault_account_slowdowns_total").await >= 1.0).then_some(())
        })
        .await;
        world.simulator.script(slow.recording, [Fault::Slow { piece_bytes: 20, wait: Duration::from_millis(50) }]);
        world.simulator.always_of(account(), None);
        eventually("its body has begun", async || (world.simulator.fetches() == 1).then_some(())).await;
        for id in &others {
            service.deliver(&world.callback(id.recording)).await;
        }
        for id in &others {
            service.recording_in(id.recording, "stored").await;
        }
        service.recording_in(slow.recording, "fetching").await;
        assert_eq!(world.simulator.counts(slow.recording).fetches, 1);
    }

    async fn one_that_stalls_keeps_its_account_at_its_pace(world: World) {
        world.set("CALLVAULT_LEASE", "1m");
        world.add_account(other());
        let service = world.start().await;
        one_at_once(&world, &[account(), other()], false).await;
        let (stalled, next) = (world.record(1), world.record(2));
        let (slow, others) = (record_for_other(&world, 11), [12, 13, 14].map(|number| record_for_other(&world, number)));
        world.simulator.script(stalled.recording, [Fault::Held(SNIFF_LEN as u64)]);
        world.simulator.script(slow.recording, [Fault::Slow { piece_bytes: 20, wait: Duration::from_millis(50) }]);
        let nodes = [service];
        announce(&world, &nodes, [stalled, slow]).await;
        eventually("their bodies have begun", async || (world.simulator.fetches() == 2).then_some(())).await;
        announce(&world, &nodes, others.into_iter().chain([next])).await;
        for id in &others {
            nodes[0].recording_in(id.recording, "stored").await;
        }
        assert_eq!(media_requests(&world, &[stalled, next]), 1, "one at once");
        world.simulator.release(stalled.recording);
        for id in [stalled, next] {
            nodes[0].recording_in(id.recording, "stored").await;
        }
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

    async fn one_who_is_refused_for_one_recording_is_not_paused_and_403_is_a_refusal_too(world: World) {
        let service = world.start().await;
        let ids = [world.record(1), world.record(2)];
        for (id, status) in ids.iter().zip([401, 403]) {
            world.simulator.always(id.recording, Some(Fault::Status(status)));
            service.deliver(&world.callback(id.recording)).await;
        }
        for id in &ids {
            let shown = eventually("two attempts were refused", async || {
                let shown = service.recording_in(id.recording, "pending").await;
                (shown["attempts"].as_i64() >= Some(2) && shown["last_error"].is_object()).then_some(shown)
            });
            assert_eq!(shown.await["last_error"]["code"], "unauthorized");
        }
        let probed = |seen: &callvault::twilio::simulator::Seen| seen.target.ends_with("/Recordings.json?PageSize=1");
        assert!(world.simulator.seen().iter().any(probed), "it was to be confirmed");
        assert_eq!(service.trouble("accounts_paused").await, None);

        world.simulator.rest_fault(account(), Some(RestFault::Status(403)));
        eventually("the account is paused", async || service.trouble("accounts_paused").await).await;
        world.simulator.rest_fault(account(), None);
        for id in &ids {
            world.simulator.always(id.recording, None);
            service.recording_in(id.recording, "stored").await;
        }
    }

    async fn an_account_of_which_only_calls_are_asked_comes_to_its_pace_again(world: World) {
        let service = world.start().await;
        let slowed = async || metric(&world, &service, "callvault_account_slowdowns_total").await;
        let ask = async |call: u32| service.get(&format!("/v1/calls/{}/audio?wait=5", call_sid(call))).await.status();
        world.simulator.rest_fault(account(), Some(RestFault::Status(503)));
        assert_eq!(ask(1000).await, StatusCode::SERVICE_UNAVAILABLE);
        eventually("it is slowed down", async || (slowed().await == 1.0).then_some(())).await;
        world.simulator.rest_fault(account(), None);
        let vault = audit::vault(&world).await;
        let mut call = 1000;
        eventually("two may be asked at once", async || {
            call += 1;
            ask(call).await;
            let mut granted = 0;
            for _ in 0..2 {
                let wait = Duration::from_secs(5);
                match vault.catalog.take_turn(account(), Urgency::Idle, None, wait, wait).await.unwrap() {
                    Turn::Granted(_) => granted += 1,
                    other => assert!(matches!(other, Turn::Waiting(_)), "it is limited: {other:?}"),
                }
            }
            execute(&world, "DELETE FROM turns").await;
            (granted == 2).then_some(())
        })
        .await;

        // What fails of media slows it down as well; what is not there yet does not.
        let (failing, missing) = (world.record(1), world.record(2));
        world.simulator.always(missing.recording, Some(Fault::NotReady));
        service.deliver(&world.callback(missing.recording)).await;
        eventually("it is not there", async || {
            let shown = service.recording_in(missing.recording, "pending").await;
            (shown["attempts"].as_i64() >= Some(2)).then_some(())
        })
        .await;
        assert_eq!(slowed().await, 1.0);
        world.simulator.always(failing.recording, Some(Fault::Status(500)));
        service.deliver(&world.callback(failing.recording)).await;
        eventually("it is slowed down", async || (slowed().await > 1.0).then_some(())).await;
    }

    async fn the_only_place_goes_round_and_a_backfill_comes_to_it(world: World) {
        // Memory for one fetch, where settings would have sixteen.
        world.set("CALLVAULT_MEMORY_BUDGET", "32MiB");
        world.add_account(other());
        let service = world.start().await;
        let stuck = world.record(1);
        world.simulator.always(stuck.recording, Some(Fault::NotReady));
        service.deliver(&world.callback(stuck.recording)).await;
        // It is due, and cannot be claimed: something else is done for it.
        eventually("it is under a duty", async || {
            let hold = "UPDATE recordings SET duty_until = 9000000000000000, due_at = 1 WHERE state = 'pending'";
            (execute(&world, hold).await == 1).then_some(())
        })
        .await;
        let well = record_for_other(&world, 100);
        service.deliver(&world.callback(well.recording)).await;
        service.recording_in(well.recording, "stored").await;

        for number in 2..=4 {
            world.record(number);
        }
        backfill(&world).await;
        world.simulator.always(stuck.recording, None);
        execute(&world, "UPDATE recordings SET duty_until = NULL").await;
        for number in 1..=4 {
            service.recording_in(recording_id(number).recording, "stored").await;
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
