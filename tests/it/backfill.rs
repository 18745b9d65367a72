//! The past is brought in, whatever happens on the way.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{Audio, Body, Fault, SimulatedRecording, speech_mp3};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use sqlx::Connection;

use crate::recheck::sql;
use crate::support::cluster::Node;
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
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

/// All days of the list are walked over: what is left is to wait.
async fn is_walked(world: &World, days: i64) {
    eventually("all days are walked over", async || {
        let walked = sql(world, "SELECT count(*) FROM backfill_days WHERE walked_at IS NOT NULL".to_owned()).await;
        (walked == days).then_some(())
    })
    .await;
}

/// What a backfill that was to wait told, once it has ended.
async fn told(child: Child) -> (Option<i32>, Value) {
    let id = child.id().to_string();
    let output = tokio::time::timeout(Duration::from_secs(180), ended(child)).await.unwrap_or_else(|_| {
        let _ = Command::new("kill").args(["-KILL", &id]).status();
        panic!("it does not end");
    });
    let json = serde_json::from_slice(&output.stdout);
    (output.status.code(), json.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))))
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
            service.deliver(&world.callback(recording_id(number).recording)).await;
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
        begun(&world).await;
        for number in 1..=5 {
            add(&world, number, 60);
        }
        world.simulator.ignore_days();
        let (code, told) = backfill(&world, &["--since", "2026-10-02", "--until", "2026-10-03"]).await;
        assert_eq!((code, &told["adds_up"], &told["new"]), (Some(1), &false.into(), &0.into()), "{told}");
        assert!(told["accounts"][0]["error"].as_str().unwrap().contains("ignores the filter"), "{told}");
    }

    async fn one_that_waits_is_joined_and_none_of_other_days_takes_its_place(world: World) {
        begun(&world).await;
        for number in 1..=3 {
            add(&world, number, 60);
        }
        let days = ["--since", "2026-10-01", "--until", "2026-10-01"];
        let waiting = command(&world, &[&days[..], &["--json"]].concat()).spawn().unwrap();
        is_walked(&world, 1).await;
        let other_days = ["--since", "2026-09-30", "--until", "2026-10-01", "--no-wait"];
        let (code, refused) = backfill(&world, &other_days).await;
        assert_eq!(code, Some(1), "{refused}");
        assert!(refused["accounts"][0]["error"].as_str().unwrap().contains("other days is under way"), "{refused}");
        // Twice: the first of them ends it for itself alone.
        for _ in 0..2 {
            let (code, joined) = backfill(&world, &[&days[..], &["--no-wait"]].concat()).await;
            assert_eq!((code, &joined["new"], &joined["on_the_way"]), (Some(0), &3.into(), &3.into()), "{joined}");
        }
        let _service = world.start().await;
        let (code, told) = told(waiting).await;
        assert_eq!((code, &told["adds_up"], &told["new"], &told["stored"]), (Some(0), &true.into(), &3.into(), &3.into()), "{told}");
        assert_eq!(backfill(&world, &other_days).await.0, Some(0), "nobody is at work any more");
    }

    async fn one_that_was_cut_off_for_long_ends_when_another_took_its_place(world: World) {
        begun(&world).await;
        add(&world, 1, 60);
        let days = ["--since", "2026-10-01", "--until", "2026-10-01", "--json"];
        let frozen = command(&world, &days).spawn().unwrap();
        is_walked(&world, 1).await;
        let signal = |name: &str| {
            let sent = Command::new("kill").args([name, &frozen.id().to_string()]).status();
            assert!(sent.unwrap().success());
        };
        signal("-STOP");
        eventually("its place is free", async || {
            let (code, _) = backfill(&world, &["--since", "2026-09-30", "--until", "2026-10-01", "--no-wait"]).await;
            (code == Some(0)).then_some(())
        })
        .await;
        signal("-CONT");
        let (code, told) = told(frozen).await;
        assert_eq!(code, Some(1), "{told}");
        assert!(told["accounts"][0]["error"].as_str().unwrap().contains("another backfill"), "{told}");
    }

    async fn nobody_waits_for_an_account_that_is_paused(world: World) {
        begun(&world).await;
        add(&world, 1, 60);
        let days = ["--since", "2026-10-01", "--until", "2026-10-01", "--json"];
        let waiting = command(&world, &days).spawn().unwrap();
        is_walked(&world, 1).await;
        world.simulator.refuse_credentials(account(), true);
        let _service = world.start().await;
        let (code, paused) = told(waiting).await;
        assert_eq!((code, &paused["on_the_way"]), (Some(1), &1.into()), "{paused}");
        assert!(paused["accounts"][0]["error"].as_str().unwrap().contains("paused"), "{paused}");
        world.simulator.refuse_credentials(account(), false);
        let paused = async || sql(&world, "SELECT count(*) FROM accounts WHERE paused_at IS NOT NULL".to_owned()).await;
        eventually("the account is resumed", async || (paused().await == 0).then_some(())).await;
        let (code, again) = backfill(&world, &days[..4]).await;
        assert_eq!((code, &again["new"], &again["stored"]), (Some(0), &1.into(), &1.into()), "it goes on: {again}");
    }

    async fn a_list_that_did_not_settle_is_gone_over_anew(world: World) {
        begun(&world).await;
        world.simulator.page_size_max(10);
        for number in 1..=20 {
            add(&world, number, i64::from(number));
        }
        let late = |number: u32| {
            let at = FIRST_DAY.parse::<Timestamp>().unwrap() + SignedDuration::from_mins(i64::from(number));
            SimulatedRecording::speech(recording_id(number), call_sid(number), at)
        };
        world.simulator.add_before_each_list((21..=27).map(late));
        let args = ["--since", "2026-10-01", "--until", "2026-10-01", "--no-wait"];
        let (code, told) = backfill(&world, &args).await;
        assert_eq!(code, Some(1), "{told}");
        assert!(told["accounts"][0]["error"].as_str().unwrap().contains("on each of 6 passes"), "{told}");
        let lists = world.simulator.lists(account());
        let (code, told) = backfill(&world, &args).await;
        assert_eq!((code, &told["adds_up"], &told["found"]), (Some(0), &true.into(), &27.into()), "{told}");
        assert_eq!(world.simulator.lists(account()), lists + 6, "a pass that finds one more, and one that finds nothing");
    }

    async fn a_dry_run_says_what_would_be_erased_at_once(world: World) {
        begun(&world).await;
        let strict: AccountSid = "ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb".parse().unwrap();
        world.add_account(strict);
        let file = world.folder().join("accounts.toml");
        let accounts = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{accounts}retention = \"7d\"\nerase_at_twilio = true\n")).unwrap();
        let now = Timestamp::now();
        for (number, hours) in [(1, 1), (2, 24 * 8), (3, 24 * 9)] {
            let id = RecordingId { account: strict, ..recording_id(number) };
            let at = now - SignedDuration::from_hours(hours);
            world.simulator.add(SimulatedRecording::speech(id, call_sid(number), at));
        }
        let output = ended(command(&world, &["--dry-run", "--json"]).spawn().unwrap()).await;
        let (json, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let json: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {told}"));
        assert_eq!((&json["new"], &json["past_retention"]), (&3.into(), &2.into()), "{json}");
        assert_eq!(json["new_bytes"], 6 * 4000, "what is erased at once takes no place");
        let line = told.lines().find(|line| line.contains(strict.as_str())).expect("it is told");
        assert!(line.contains("2 of the new ones") && line.contains("at Twilio too"), "{line}");
        assert!(!told.contains(account().as_str()), "the other one keeps all: {told}");
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
        service.deliver(&world.callback(live.recording)).await;
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

/// However much an earlier one found, and whether or not it can be forgotten now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_one_found_keeps_no_other_from_beginning() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "1m");
    begun(&world).await;
    let node = Node::start(&world).await;
    node.kill();
    for number in 1..=1200 {
        add(&world, number, 60);
    }
    add(&world, 1201, 24 * 60);
    let finds = async || sql(&world, "SELECT count(*) FROM backfill_finds".to_owned()).await;
    let (code, first) = backfill(&world, &["--since", "2026-10-01", "--until", "2026-10-01", "--no-wait"]).await;
    assert_eq!((code, finds().await), (Some(0), 1200), "{first}");
    node.catalog.rule(Rule::on("FROM backfill_finds WHERE", Act::Reset));
    let second = ["--since", "2026-10-02", "--until", "2026-10-02", "--no-wait", "--json"];
    let (code, told) = told(command(&world, &second).envs(node.settings()).spawn().unwrap()).await;
    assert!(node.catalog.has_acted());
    assert_eq!((code, &told["found"], finds().await), (Some(0), &1.into(), 1201), "{told}");
    let (code, _) = backfill(&world, &["--since", "2026-10-03", "--until", "2026-10-03", "--no-wait"]).await;
    assert_eq!((code, finds().await), (Some(0), 0), "the next one forgets what both found");
}

/// Where it looks up what is known, and where it is over but for saying so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hiccup_of_the_catalog_ends_no_dry_run_and_no_backfill() {
    let world = World::new(Parts::Servers).await;
    begun(&world).await;
    add(&world, 1, 60);
    let node = Node::start(&world).await;
    node.kill();
    let days = ["--since", "2026-10-01", "--until", "2026-10-01", "--json"];
    for (statement, how) in
        [("SELECT recording_sid, state FROM", "--dry-run"), ("SET completed_at = (SELECT", "--no-wait")]
    {
        node.catalog.rule(Rule::on(statement, Act::Reset));
        let child = command(&world, &[&days[..], &[how]].concat()).envs(node.settings()).spawn().unwrap();
        let (code, told) = told(child).await;
        assert!(node.catalog.has_acted(), "{how}");
        assert_eq!((code, &told["adds_up"], &told["new"]), (Some(0), &true.into(), &1.into()), "{how}: {told}");
        node.catalog.release();
    }
    let open = sql(&world, "SELECT count(*) FROM backfills WHERE completed_at IS NULL".to_owned()).await;
    assert_eq!(open, 0, "it is over");
}

/// What takes a page holds the row of its day, so that nothing can renew the lease meanwhile,
/// and prolongs it itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_takes_longer_than_the_lease_is_taken_once() {
    let world = World::new(Parts::Servers).await;
    begun(&world).await;
    for number in 1..=20 {
        add(&world, number, 60);
    }
    let [mut first, mut second] = [row_in_the_way(&world, 5).await, row_in_the_way(&world, 15).await];
    let args = ["--since", "2026-10-01", "--until", "2026-10-01", "--no-wait", "--json"];
    let child = command(&world, &args).spawn().unwrap();
    let waits = async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' \
                       AND database IS NULL AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
        sql(&world, waiting.to_owned()).await > 0
    };
    // No statement waits as long as it may, and both together wait longer than the lease lasts.
    let left = async || sql(&world, "SELECT leased_until - now_ms FROM backfill_days, clock".to_owned()).await;
    eventually("half of the lease is over", async || (waits().await && left().await < 1000).then_some(())).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut first).await.unwrap();
    eventually("all of it is", async || (waits().await && left().await < 0).then_some(())).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut second).await.unwrap();
    let (code, told) = told(child).await;
    assert_eq!((code, &told["adds_up"], &told["new"]), (Some(0), &true.into(), &20.into()), "{told}");
    assert_eq!(world.simulator.lists(account()), 1, "it was not begun anew");
}

/// Somebody is about to make a row of that recording: whoever makes one, too, waits for that.
async fn row_in_the_way(world: &World, number: u32) -> sqlx::PgConnection {
    let mut connection = sqlx::PgConnection::connect(&world.settings["CALLVAULT_DATABASE_URL"]).await.unwrap();
    let id = recording_id(number);
    let insert = format!(
        "BEGIN; INSERT INTO recordings (account_sid, recording_sid, state, announced_by, details_confirmed, accepted_at, \
         ordered_at) VALUES ('{}', '{}', 'pending', 'put', 1, 0, 0)",
        id.account, id.recording
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&mut connection).await.unwrap();
    connection
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
