//! A catalog that is lost while its nodes run on: they outlive it, and find another one
//! in its place, which is new.

use callvault::twilio::simulator::{SimulatedRecording, speech_mp3};
use jiff::Timestamp;
use reqwest::{Method, StatusCode};
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::recheck::{metric, sql, stored};
use crate::support::bucket::{command, run};
use crate::support::eventually;
use crate::support::servers::Postgres;
use crate::support::world::{Parts, Service, World, call_sid, recording_id};

/// A new catalog whose markers another node is about to read, until that is let go on.
async fn new_catalog(world: &World) -> String {
    let url = Postgres::shared().new_database().await;
    let mut prepare = command(world, &["keys", "list"]);
    prepare.env("CALLVAULT_DATABASE_URL", &url);
    let ran = tokio::task::spawn_blocking(move || prepare.output()).await.unwrap().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    let hold = "UPDATE bucket_walks SET lease_node = 'another', due_at = 9000000000000 WHERE name = 'markers'";
    connection.execute(hold).await.unwrap();
    connection.close().await.unwrap();
    url
}

/// Puts a catalog in the place of the one that the nodes are on.
async fn replace_catalog(world: &World, new: &str) {
    let url = &world.settings["CALLVAULT_DATABASE_URL"];
    let (server, lost) = url.rsplit_once('/').unwrap();
    let (_, new) = new.rsplit_once('/').unwrap();
    let mut administrator = sqlx::PgConnection::connect(&format!("{server}/postgres")).await.unwrap();
    for statement in [format!("DROP DATABASE {lost} WITH (FORCE)"), format!("ALTER DATABASE {new} RENAME TO {lost}")] {
        administrator.execute(AssertSqlSafe(statement)).await.unwrap();
    }
}

async fn status(service: &Service, method: Method, path: &str) -> StatusCode {
    service.request(method, path).send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_back_of_what_was_erased_before_a_catalog_was_lost_under_a_node() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LEASE", "1m");
    world.set("CALLVAULT_RECONCILE_EVERY", "1s");
    let service = world.start().await;
    let (erased, _) = stored(&world, &service, 1).await;
    let (whole, _) = stored(&world, &service, 2).await;
    let fetches = || [1, 2].map(|number| world.simulator.counts(recording_id(number).recording).fetches);
    let path = format!("/v1/recordings/{}", erased.recording);
    assert_eq!(status(&service, Method::DELETE, &path).await, StatusCode::NO_CONTENT);
    let walks = async || metric(&service, "callvault_reconcile_walks_total{outcome=\"completed\"}").await;
    eventually("Twilio's list was walked over", async || (walks().await > 0).then_some(())).await;

    let new = new_catalog(&world).await;
    replace_catalog(&world, &new).await;
    eventually("it says that the catalog is new", async || {
        // Whether it has noticed or not, and whoever asks.
        for id in [erased, whole] {
            assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        service.trouble("unread").await
    })
    .await;
    let unknown = format!("/v1/recordings/{}", recording_id(404).recording);
    for asked in [format!("/v1/calls/{}/content", call_sid(1)), format!("{path}/audio"), unknown.clone()] {
        assert_eq!(status(&service, Method::GET, &asked).await, StatusCode::SERVICE_UNAVAILABLE, "{asked}");
    }
    assert_eq!(status(&service, Method::DELETE, &unknown).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(sql(&world, "SELECT count(*) FROM recordings".to_owned()).await, 0);

    sql(&world, "UPDATE bucket_walks SET lease_node = NULL, due_at = 0 WHERE name = 'markers'".to_owned()).await;
    eventually("it says that the catalog is not indexed", async || service.trouble("unindexed").await).await;
    let made_now = SimulatedRecording::speech(recording_id(3), call_sid(3), Timestamp::now());
    world.simulator.add(made_now);
    assert_eq!(service.send(&world.callback(erased.recording)).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(status(&service, Method::GET, &format!("{path}/audio")).await, StatusCode::GONE);
    assert_eq!(status(&service, Method::GET, &unknown).await, StatusCode::SERVICE_UNAVAILABLE);
    // It lies in the bucket, and is not fetched again.
    assert_eq!(service.send(&world.callback(whole.recording)).await.status(), StatusCode::NO_CONTENT);
    service.recording_in(whole.recording, "stored").await;

    let reindexed = run(&world, &["reindex"]).await;
    assert!(reindexed.status.success(), "{}", String::from_utf8_lossy(&reindexed.stderr));
    eventually("all is well", async || service.trouble("unindexed").await.is_none().then_some(())).await;
    assert_eq!(status(&service, Method::GET, &unknown).await, StatusCode::NOT_FOUND);
    service.recording_in(erased.recording, "erased").await;
    let (audio, _) = service.play(&format!("/v1/calls/{}/audio", call_sid(2))).await;
    assert_eq!(audio, speech_mp3());
    assert_eq!(fetches(), [1, 1]);
    // What no callback told is found as before.
    service.recording_in(recording_id(3).recording, "stored").await;
}
