//! The past is brought in, whatever happens on the way.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{Audio, Body, Fault, SimulatedRecording, speech_mp3};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::support::eventually;
use crate::support::world::{Parts, World, account, call_sid, debug_binary, recording_id};

const FIRST_DAY: &str = "2026-10-01T00:00:00Z";

/// A new catalog takes nothing before a node has read the bucket's markers.
async fn begun(world: &World) {
    let service = world.start().await;
    eventually("the catalog is read", async || {
        let (_, ready) = service.json("/readyz").await;
        (ready["status"] == "ok").then_some(())
    })
    .await;
}

/// A short recording, so many minutes after the first day began.
fn add(world: &World, number: u32, minutes: i64) -> RecordingId {
    let id = recording_id(number);
    let at = FIRST_DAY.parse::<Timestamp>().unwrap() + SignedDuration::from_mins(minutes);
    let mut recording = SimulatedRecording::speech(id, call_sid(number), at);
    recording.audio = Audio { mp3: Some(Body::Bytes(speech_mp3().slice(..2048))), ..Audio::default() };
    world.simulator.add(recording);
    id
}

fn command(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new(debug_binary());
    command.arg("backfill").args(args).current_dir(world.folder()).env_clear().envs(&world.settings);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn ended(child: Child) -> Output {
    tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap()
}

async fn backfill(world: &World, args: &[&str]) -> (Option<i32>, Value) {
    let output = ended(command(world, &[args, &["--json"]].concat()).spawn().unwrap()).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    world.forbidden().is_not_in(&told);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    (output.status.code(), json)
}

/// How often an event of that type is in the feed, and of how many recordings.
async fn accepted(world: &World) -> (usize, usize) {
    let service = world.start().await;
    let (mut after, mut times, mut of) = ("0".to_owned(), 0, std::collections::HashSet::new());
    loop {
        let query = if after == "0" { String::new() } else { format!("&after={after}") };
        let (_, page) = service.json(&format!("/v1/events?limit=1000&type=recording.accepted{query}")).await;
        let events = page["events"].as_array().unwrap();
        if events.is_empty() {
            return (times, of.len());
        }
        times += events.len();
        of.extend(events.iter().map(|event| event["recording"]["recording_sid"].as_str().unwrap().to_owned()));
        after = page["next"].as_str().unwrap().to_owned();
    }
}

/// 25,000 recordings on one day, of which pages shift.
fn years_of_calls(world: &World) -> u32 {
    const RECORDINGS: u32 = 25_000;
    world.simulator.shift_pages();
    for number in 1..=RECORDINGS {
        add(world, number, i64::from(number % 1430));
    }
    RECORDINGS
}

on_all_parts! {
    async fn each_of_25000_recordings_comes_once_though_pages_shift_and_it_is_killed_ten_times(world: World) {
        world.set("CALLVAULT_LEASE", "4s");
        begun(&world).await;
        let count = years_of_calls(&world);
        let args = ["--since", "2026-09-29", "--until", "2026-10-03", "--no-wait"];
        for killed in 0..10u32 {
            let lists = world.simulator.lists(account());
            let mut child = command(&world, &args).spawn().unwrap();
            eventually("it has walked on", async || {
                assert!(child.try_wait().unwrap().is_none(), "it is over before it could be killed {killed} times");
                (world.simulator.lists(account()) >= lists + 2).then_some(())
            })
            .await;
            // Newer ones arrive in front of all pages.
            for more in 0..5 {
                add(&world, count + killed * 5 + more + 1, 1430 + i64::from(killed % 9));
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let (code, told) = backfill(&world, &args).await;
        let all = u64::from(count) + 50;
        assert_eq!((code, &told["adds_up"], &told["found"], &told["new"]), (Some(0), &true.into(), &all.into(), &all.into()), "{told}");
        // A node that may not ask Twilio has time to tell the feed.
        world.simulator.refuse_credentials(account(), true);
        assert_eq!(accepted(&world).await, (all as usize, all as usize));
    }

    async fn what_is_brought_in_is_stored_once_and_counted(world: World) {
        world.simulator.page_size_max(20);
        for number in 1..=100 {
            add(&world, number, i64::from(number) * 100);
        }
        let absent = SimulatedRecording {
            status: "absent".to_owned(),
            ..SimulatedRecording::speech(recording_id(101), call_sid(101), FIRST_DAY.parse().unwrap())
        };
        world.simulator.add(absent);
        let service = world.start().await;
        // Three are known, in front of everything.
        for number in 1..=3 {
            service.send(&world.callback(recording_id(number).recording)).await;
            service.recording_in(recording_id(number).recording, "stored").await;
        }
        let (code, told) = backfill(&world, &["--dry-run"]).await;
        assert_eq!((code, &told["found"], &told["new"], &told["known"]), (Some(0), &101.into(), &98.into(), &3.into()), "{told}");
        assert_eq!(told["new_bytes"], 97 * 6 * 4000, "six seconds of MP3 each");
        assert_eq!(service.get(&format!("/v1/recordings/{}", recording_id(50).recording)).await.status(), 404);

        let (code, told) = backfill(&world, &[]).await;
        assert_eq!((code, &told["adds_up"]), (Some(0), &true.into()), "{told}");
        let numbers = ["found", "new", "known", "stored", "absent", "failed", "on_the_way"].map(|name| told[name].as_u64());
        assert_eq!(numbers, [101, 98, 3, 100, 1, 0, 0].map(Some), "{told}");
        for number in 1..=100 {
            assert_eq!(world.simulator.counts(recording_id(number).recording).fetches, 1, "{number}");
        }
        let (_, shown) = service.json(&format!("/v1/recordings/{}", recording_id(50).recording)).await;
        assert_eq!(shown["history"][0]["detail"]["by"], "backfill");

        let (code, told) = backfill(&world, &["--since", "2026-10-02", "--until", "2026-10-02"]).await;
        assert_eq!((code, &told["found"], &told["new"]), (Some(0), &14.into(), &0.into()), "{told}");
    }

    async fn it_stops_when_told_and_goes_on_at_once(world: World) {
        world.set("CALLVAULT_LEASE", "10m");
        for number in 1..=30 {
            add(&world, number, 60);
        }
        world.simulator.page_size_max(10);
        begun(&world).await;
        world.simulator.script_lists(account(), [None, Some(Fault::Silent)]);
        let args = ["--since", "2026-10-01", "--until", "2026-10-01", "--no-wait"];
        let child = command(&world, &args).spawn().unwrap();
        eventually("the second page is asked for", async || (world.simulator.lists(account()) == 2).then_some(())).await;
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        let stopped = ended(child).await;
        assert_eq!(stopped.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&stopped.stderr).contains("goes on from here"));
        // A lease that was kept would hold the day for ten minutes.
        let (code, told) = backfill(&world, &args).await;
        assert_eq!((code, &told["new"]), (Some(0), &30.into()), "{told}");
        // Page 1, the one that was cut short, pages 2 and 3, and a whole pass that found nothing more.
        assert_eq!(world.simulator.lists(account()), 7);
    }

    async fn numbers_that_cannot_be_right_are_refused(world: World) {
        for number in 1..=5 {
            add(&world, number, 60);
        }
        world.simulator.ignore_days();
        let (code, told) = backfill(&world, &["--since", "2026-10-02", "--until", "2026-10-03"]).await;
        assert_eq!((code, &told["adds_up"], &told["new"]), (Some(1), &false.into(), &0.into()), "{told}");
        assert!(told["accounts"][0]["error"].as_str().unwrap().contains("ignores the filter"), "{told}");
    }

    async fn one_accounts_trouble_is_its_own(world: World) {
        let refused: AccountSid = "ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb".parse().unwrap();
        world.add_account(refused);
        world.simulator.refuse_credentials(refused, true);
        world.simulator.script_lists(account(), [Some(Fault::RateLimited { retry_after: Some("1".to_owned()) }), Some(Fault::Status(500))]);
        add(&world, 1, 60);
        let service = world.start().await;
        let (code, told) = backfill(&world, &["--since", "2026-10-01", "--until", "2026-10-01"]).await;
        assert_eq!(code, Some(1));
        let of = |sid: AccountSid| {
            let accounts = told["accounts"].as_array().unwrap();
            accounts.iter().find(|account| account["account_sid"] == sid.as_str()).unwrap().clone()
        };
        assert_eq!((&of(account())["stored"], &of(account())["error"]), (&1.into(), &Value::Null), "{told}");
        assert!(of(refused)["error"].as_str().unwrap().contains("paused"), "{told}");
        drop(service);
    }

    async fn a_live_call_does_not_wait_for_the_past(world: World) {
        world.set("CALLVAULT_FETCH_CONCURRENCY", "4");
        world.set("CALLVAULT_LEASE", "1m");
        for number in 1..=20 {
            let id = add(&world, number, 60);
            world.simulator.always(id.recording, Some(Fault::Held(100)));
        }
        let service = world.start().await;
        let args = ["--since", "2026-10-01", "--until", "2026-10-01", "--no-wait"];
        let (code, _) = backfill(&world, &args).await;
        assert_eq!(code, Some(0));
        let fetches = || (1..=20).map(|number| world.simulator.counts(recording_id(number).recording).fetches).sum::<u64>();
        eventually("all places that the past may have are taken", async || (fetches() == 3).then_some(())).await;
        let live = add(&world, 21, 90);
        service.send(&world.callback(live.recording)).await;
        tokio::time::timeout(Duration::from_secs(30), service.recording_in(live.recording, "stored")).await.unwrap();
        assert_eq!(fetches(), 3);
        for number in 1..=20 {
            let id = recording_id(number);
            world.simulator.always(id.recording, None);
            world.simulator.release(id.recording);
        }
        service.recording_in(recording_id(20).recording, "stored").await;
    }
}

#[tokio::test]
async fn wrong_usage_is_refused() {
    let world = World::new(Parts::Embedded).await;
    for args in [
        &["--account", "ACcccccccccccccccccccccccccccccccc"][..],
        &["--since", "2026-10-02", "--until", "2026-10-01"],
        &["--since", "yesterday"],
        &["--dry-run", "--no-wait"],
    ] {
        let output = ended(command(&world, args).spawn().unwrap()).await;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
