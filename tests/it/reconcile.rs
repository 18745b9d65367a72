//! What callbacks did not tell, Twilio is asked for.

use std::time::Duration;

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::AccountSid;
use callvault::twilio::simulator::{Audio, Body, Fault, SimulatedAccount, SimulatedRecording, Simulator, speech_mp3};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use sqlx::Connection;

use crate::support::eventually;
use crate::support::world::{AUTH_TOKEN, Parts, Service, World, account, call_sid, debug_binary, recording_id};

/// A short recording that was made so long ago.
fn made_before(world: &World, number: u32, ago: Duration) -> RecordingId {
    let id = recording_id(number);
    let at = Timestamp::now() - SignedDuration::try_from(ago).unwrap();
    let mut recording = SimulatedRecording::speech(id, call_sid(number), at);
    recording.audio = Audio { mp3: Some(Body::Bytes(speech_mp3().slice(..2048))), ..Audio::default() };
    world.simulator.add(recording);
    id
}

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

/// The value of a metric, as the service shows it.
async fn metric(service: &Service, name: &str) -> f64 {
    let text = service.get("/metrics").await.text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

/// One recording was given up for that.
async fn counted_as_failed(service: &Service, code: &str) {
    let series = format!("callvault_recordings_failed_total{{code=\"{code}\"}}");
    eventually("it is counted", async || (metric(service, &series).await == 1.0).then_some(())).await;
}

async fn walks_completed(service: &Service) -> f64 {
    metric(service, r#"callvault_reconcile_walks_total{outcome="completed"}"#).await
}

async fn stored(service: &Service, count: usize) {
    eventually(&format!("{count} recordings are stored"), async || {
        let (_, page) = service.json("/v1/recordings?state=stored&limit=1000").await;
        (page["recordings"].as_array().unwrap().len() == count).then_some(())
    })
    .await;
}

async fn is_known(service: &Service, id: RecordingId) -> bool {
    service.get(&format!("/v1/recordings/{}", id.recording)).await.status() == StatusCode::OK
}

on_all_parts! {
    async fn all_recordings_are_stored_though_callbacks_were_dropped(world: World) {
        // Each is fetched once, as long as no lease runs out on a busy machine.
        world.set("CALLVAULT_LEASE", "1m");
        world.simulator.page_size_max(150);
        for number in 1..=1000 {
            made_before(&world, number, Duration::from_secs(600 + u64::from(number)));
        }
        let nodes = world.start_nodes(3).await;
        futures::stream::iter(1..=1000u32)
            .map(|number| {
                let status = match number % 10 {
                    // Nothing came.
                    0 => None,
                    // Only that Twilio records.
                    5 => Some("in-progress"),
                    _ => Some("completed"),
                };
                let callback = status.and_then(|status| world.simulator.callback(recording_id(number).recording, status));
                let service = &nodes[number as usize % nodes.len()];
                async move {
                    let Some(callback) = callback else { return };
                    // On a busy machine the catalog may be too slow for one, and Twilio may repeat it.
                    eventually("a callback is taken", async || {
                        (service.send(&callback).await.status() == StatusCode::NO_CONTENT).then_some(())
                    })
                    .await;
                }
            })
            .buffer_unordered(8)
            .collect::<()>()
            .await;
        stored(&nodes[0], 800).await;
        assert_eq!(world.simulator.lists(account()), 0, "walks are switched off");
        for node in &nodes {
            node.signal("TERM");
            assert_eq!(node.end().await.code(), Some(0));
        }

        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        let nodes = world.start_nodes(3).await;
        stored(&nodes[0], 1000).await;
        for number in 1..=1000 {
            assert_eq!(world.simulator.counts(recording_id(number).recording).fetches, 1, "{number}");
        }
        let over_all = async |name: &str| {
            let mut sum = 0.0;
            for node in &nodes {
                sum += metric(node, name).await;
            }
            sum
        };
        eventually("one walk is over", async || {
            (over_all(r#"callvault_reconcile_walks_total{outcome="completed"}"#).await == 1.0).then_some(())
        })
        .await;
        assert_eq!(world.simulator.lists(account()), 7);
        assert_eq!(over_all(r#"callvault_reconcile_found_total{what="new"}"#).await, 100.0);
        assert_eq!(over_all(r#"callvault_reconcile_found_total{what="announced"}"#).await, 100.0);
        eventually("the lag is told", async || {
            (metric(&nodes[0], "callvault_reconcile_lag_seconds").await > 0.0).then_some(())
        })
        .await;
        let (_, found) = nodes[0].json(&format!("/v1/recordings/{}", recording_id(10).recording)).await;
        assert_eq!(found["history"][0]["detail"]["by"], "reconcile");
    }

    async fn a_kill_in_the_middle_of_a_walk_loses_none_of_it(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        world.set("CALLVAULT_LEASE", "8s");
        world.simulator.page_size_max(10);
        for number in 1..=100 {
            made_before(&world, number, Duration::from_secs(u64::from(number)));
        }
        world.simulator.script_lists(account(), [None, None, None, Some(Fault::Silent)]);
        let service = world.start().await;
        eventually("the fourth page is asked for", async || (world.simulator.lists(account()) == 4).then_some(())).await;
        service.kill();
        let service = world.start_on(service.port, debug_binary()).await;
        stored(&service, 100).await;
        eventually("the walk is over", async || (walks_completed(&service).await >= 1.0).then_some(())).await;
        // Three pages, the one that was cut short, and the seven that were left.
        assert_eq!(world.simulator.lists(account()), 11);
    }

    async fn a_stop_in_the_middle_of_a_walk_hands_it_back(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        world.set("CALLVAULT_LEASE", "10m");
        world.simulator.page_size_max(10);
        for number in 1..=30 {
            made_before(&world, number, Duration::from_secs(u64::from(number)));
        }
        world.simulator.script_lists(account(), [None, Some(Fault::Silent)]);
        let service = world.start().await;
        eventually("the second page is asked for", async || (world.simulator.lists(account()) == 2).then_some(())).await;
        service.signal("TERM");
        assert_eq!(service.end().await.code(), Some(0));
        let service = world.start_on(service.port, debug_binary()).await;
        // A lease that was kept would hold the walk for ten minutes.
        stored(&service, 30).await;
        eventually("the walk is over", async || (walks_completed(&service).await >= 1.0).then_some(())).await;
        assert_eq!(world.simulator.lists(account()), 4);
    }

    async fn a_walk_goes_on_after_twilio_refused_a_page(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        world.set("CALLVAULT_LEASE", "1m");
        world.simulator.page_size_max(10);
        for number in 1..=30 {
            made_before(&world, number, Duration::from_secs(u64::from(number)));
        }
        let limited = Fault::RateLimited { retry_after: Some("1".to_owned()) };
        // 400: the page's query is of no use any more, and the walk begins again.
        let script = [None, Some(limited), Some(Fault::Status(503)), None, Some(Fault::Status(400))];
        world.simulator.script_lists(account(), script);
        let service = world.start().await;
        stored(&service, 30).await;
        eventually("the walk is over", async || (walks_completed(&service).await >= 1.0).then_some(())).await;
        assert_eq!(world.simulator.lists(account()), 5 + 3);
        assert_eq!(metric(&service, r#"callvault_reconcile_walks_total{outcome="failed"}"#).await, 3.0);
        for number in 1..=30 {
            assert_eq!(world.simulator.counts(recording_id(number).recording).fetches, 1, "{number}");
        }
    }

    async fn what_is_older_than_the_window_is_not_taken(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        world.set("CALLVAULT_RECONCILE_WINDOW", "30h");
        let inside = [made_before(&world, 1, Duration::ZERO), made_before(&world, 2, hours(29))];
        let outside = [made_before(&world, 3, hours(31)), made_before(&world, 4, hours(100))];
        let gone = made_before(&world, 5, hours(1));
        let mut silent = SimulatedRecording::speech(recording_id(6), call_sid(6), Timestamp::now());
        silent.status = "absent".to_owned();
        world.simulator.add(silent);
        let deleted = reqwest::Client::new().delete(format!(
            "{}/2010-04-01/Accounts/{}/Recordings/{}.json", world.simulator.origin(), account(), gone.recording));
        let deleted = deleted.basic_auth(account(), Some(AUTH_TOKEN)).send().await.unwrap();
        assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
        let service = world.start().await;
        stored(&service, 2).await;
        eventually("the walk is over", async || (walks_completed(&service).await >= 1.0).then_some(())).await;
        for id in inside {
            assert!(is_known(&service, id).await);
        }
        for id in outside.into_iter().chain([gone]) {
            assert!(!is_known(&service, id).await, "{id}");
        }
        service.recording_in(recording_id(6).recording, "absent").await;
    }

    async fn a_walk_ends_though_twilio_ignores_what_it_was_asked(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        world.set("CALLVAULT_LEASE", "1m");
        world.simulator.page_size_max(5);
        world.simulator.ignore_days();
        for number in 1..=5 {
            made_before(&world, number, hours(1));
        }
        for number in 6..=500 {
            made_before(&world, number, hours(200 + u64::from(number)));
        }
        let service = world.start().await;
        eventually("the walk is over", async || (walks_completed(&service).await >= 1.0).then_some(())).await;
        assert_eq!(world.simulator.lists(account()), 2);
        assert!(service.log().contains("does not end as it should"));
        stored(&service, 5).await;
        assert!(!is_known(&service, recording_id(6)).await);
    }

    async fn an_outage_longer_than_the_window_hides_nothing(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1s");
        world.set("CALLVAULT_RECONCILE_WINDOW", "2s");
        let service = world.start().await;
        eventually("a walk is over", async || (walks_completed(&service).await >= 1.0).then_some(())).await;
        service.signal("TERM");
        assert_eq!(service.end().await.code(), Some(0));
        let id = made_before(&world, 1, Duration::ZERO);
        let made = tokio::time::Instant::now();
        eventually("it is older than the window", async || (made.elapsed() > Duration::from_secs(4)).then_some(())).await;
        let service = world.start_on(service.port, debug_binary()).await;
        service.recording_in(id.recording, "stored").await;
    }

    async fn entries_that_cannot_be_read_hide_nothing_behind_them(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        world.simulator.page_size_max(2);
        for number in 1..=4 {
            let id = made_before(&world, number, Duration::from_secs(60 * u64::from(number)));
            if number <= 2 {
                world.simulator.garble(id.recording);
            }
        }
        let service = world.start().await;
        stored(&service, 2).await;
        eventually("the walk is over", async || (walks_completed(&service).await >= 1.0).then_some(())).await;
        assert_eq!(world.simulator.lists(account()), 2);
        assert_eq!(metric(&service, r#"callvault_reconcile_found_total{what="unreadable"}"#).await, 2.0);
        assert!(service.log().contains("entries that cannot be read"));
    }

    async fn an_announced_recording_is_asked_for(world: World) {
        // Too old for any walk: only asking for each finds out.
        world.set("CALLVAULT_RECONCILE_EVERY", "1s");
        let [completed, absent, failed, unknown] = [1, 2, 3, 4].map(recording_id);
        at_twilio(&world, completed, "processing");
        at_twilio(&world, absent, "absent");
        at_twilio(&world, failed, "failed");
        at_twilio(&world, unknown, "in-progress");
        let service = world.start().await;
        for id in [completed, absent, failed, unknown] {
            let callback = world.simulator.callback(id.recording, "in-progress").unwrap();
            assert_eq!(service.send(&callback).await.status(), StatusCode::NO_CONTENT);
        }
        service.recording_in(absent.recording, "absent").await;
        let failed = service.recording_in(failed.recording, "failed").await;
        assert_eq!(failed["last_error"]["code"], "twilio_failed");
        counted_as_failed(&service, "twilio_failed").await;
        eventually("it is asked about more than once", async || {
            (world.simulator.counts(completed.recording).descriptions >= 2).then_some(())
        })
        .await;
        service.recording_in(completed.recording, "announced").await;
        at_twilio(&world, completed, "completed");
        service.recording_in(completed.recording, "stored").await;
        assert_eq!(world.simulator.counts(completed.recording).fetches, 1);
        service.recording_in(unknown.recording, "announced").await;
    }

    async fn an_announced_recording_that_never_ends_is_given_up_after_the_window(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "500ms");
        world.set("CALLVAULT_RECONCILE_WINDOW", "4s");
        let id = recording_id(1);
        at_twilio(&world, id, "in-progress");
        let service = world.start().await;
        service.deliver(&world.simulator.callback(id.recording, "in-progress").unwrap()).await;
        let shown = service.recording_in(id.recording, "failed").await;
        assert_eq!(shown["last_error"]["code"], "not_ready");
        counted_as_failed(&service, "not_ready").await;
        let (accepted, failed): (Timestamp, Timestamp) = (
            shown["accepted_at"].as_str().unwrap().parse().unwrap(),
            shown["last_error"]["at"].as_str().unwrap().parse().unwrap(),
        );
        assert!(failed.duration_since(accepted) >= SignedDuration::from_secs(4), "{shown}");
        let kinds: Vec<&str> = shown["history"].as_array().unwrap().iter().filter_map(|entry| entry["type"].as_str()).collect();
        assert_eq!(kinds, ["recording.accepted", "callback", "recording.failed"]);
        // Its callback comes after all.
        at_twilio(&world, id, "completed");
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
    }

    async fn twilio_is_asked_at_once_when_the_catalog_is_back(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        let service = world.start().await;
        eventually("the first walk is over", async || (walks_completed(&service).await >= 1.0).then_some(())).await;
        let id = made_before(&world, 1, Duration::from_secs(60));
        let walked = world.simulator.lists(account());
        let outage = Outage::begin(&world).await;
        assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        outage.end().await;
        // Twilio does not repeat the callback, and the next walk would come in an hour.
        service.recording_in(id.recording, "stored").await;
        assert_eq!(world.simulator.lists(account()), walked + 1);
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
    }

    async fn a_walk_begins_once_twilio_accepts_the_credentials(world: World) {
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        world.simulator.refuse_credentials(account(), true);
        let id = made_before(&world, 1, Duration::from_secs(60));
        let service = world.start().await;
        eventually("the account is paused", async || {
            (metric(&service, "callvault_accounts_paused").await == 1.0).then_some(())
        })
        .await;
        world.simulator.refuse_credentials(account(), false);
        service.recording_in(id.recording, "stored").await;
    }

    async fn accounts_of_which_twilio_says_nothing_delay_no_other(world: World) {
        let others: Vec<AccountSid> = (0..3).map(|number| format!("AC{number:032x}").parse().unwrap()).collect();
        let all = others.iter().copied().chain([account()]);
        let simulated = all.clone().map(|sid| SimulatedAccount { sid, auth_token: AUTH_TOKEN.to_owned(), api_key: None });
        world.simulator = Simulator::start(simulated).await.unwrap();
        let file = all.map(|sid| format!("[[accounts]]\nsid = \"{sid}\"\nauth_token = \"{AUTH_TOKEN}\"\n"));
        std::fs::write(world.folder().join("callvault.toml"), file.collect::<String>()).unwrap();
        world.settings.remove("CALLVAULT_TWILIO_ACCOUNT_SID");
        world.settings.remove("CALLVAULT_TWILIO_AUTH_TOKEN");
        world.set("CALLVAULT_CONFIG", "callvault.toml");
        world.set("CALLVAULT_TWILIO_ORIGIN", world.simulator.origin());
        world.set("CALLVAULT_RECONCILE_EVERY", "1h");
        for other in &others {
            world.simulator.script_lists(*other, [Some(Fault::Silent)]);
        }
        made_before(&world, 1, Duration::from_secs(60));
        let service = world.start().await;
        stored(&service, 1).await;
        // Their walks were begun first, and are given up after 20 s.
        assert!(others.iter().all(|other| world.simulator.lists(*other) == 1));
        assert_eq!(metric(&service, r#"callvault_reconcile_walks_total{outcome="failed"}"#).await, 0.0);
    }
}

/// A recording that is too old for any walk, and what Twilio says of it from now on.
fn at_twilio(world: &World, id: RecordingId, status: &str) {
    let at = Timestamp::now() - SignedDuration::from_hours(500);
    let mut recording = SimulatedRecording::speech(id, call_sid(1), at);
    recording.status = status.to_owned();
    world.simulator.add(recording);
}

/// While it lasts, the catalog takes nothing.
enum Outage {
    Sqlite(sqlx::SqliteConnection),
    Postgres(sqlx::PgConnection),
}

impl Outage {
    /// Another process holds what every write needs.
    async fn begin(world: &World) -> Self {
        match world.parts {
            Parts::Embedded => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(world.folder().join("callvault.db"));
                let mut holder = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
                sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
                Self::Sqlite(holder)
            }
            Parts::Servers => {
                let mut holder = sqlx::PgConnection::connect(&world.settings["CALLVAULT_DATABASE_URL"]).await.unwrap();
                sqlx::query("BEGIN").execute(&mut holder).await.unwrap();
                sqlx::query("LOCK TABLE recordings, catalog, reconciles IN ACCESS EXCLUSIVE MODE")
                    .execute(&mut holder)
                    .await
                    .unwrap();
                Self::Postgres(holder)
            }
        }
    }

    async fn end(self) {
        match self {
            Self::Sqlite(holder) => holder.close().await.unwrap(),
            Self::Postgres(holder) => holder.close().await.unwrap(),
        }
    }
}
