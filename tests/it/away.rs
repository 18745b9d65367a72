//! Many who wait for one recording, and what is answered while the catalog is away.

use std::time::Duration;

use callvault::twilio::simulator::Fault;
use reqwest::StatusCode;

use crate::support::eventually;
use crate::support::servers::Postgres;
use crate::support::world::{Parts, World, call_sid};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_played_before_is_played_on_until_its_link_ends() {
    let postgres = Postgres::start();
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DATABASE_URL", postgres.new_database().await);
    // A link is good for at most 13 s after it was given.
    world.set("CALLVAULT_LINK_TTL", "12s");
    world.set("CALLVAULT_LINK_WINDOW", "1s");
    let service = world.start().await;
    for number in [1, 2] {
        let id = world.record(number);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
    }
    let played = format!("/v1/calls/{}/audio", call_sid(1));
    let (before, _) = service.play(&played).await;
    postgres.stop();

    let (after, _) = service.play(&played).await;
    assert_eq!(before, after);
    let link = service.json(&format!("/v1/calls/{}/link", call_sid(1))).await;
    assert_eq!(link.0, StatusCode::OK);
    for unknown in [format!("/v1/calls/{}/audio", call_sid(2)), format!("/v1/calls/{}", call_sid(1))] {
        assert_eq!(service.get(&unknown).await.status(), StatusCode::SERVICE_UNAVAILABLE, "{unknown}");
    }
    eventually("the link that was given has ended", async || {
        let answer = service.get(&played).await.status();
        assert!([StatusCode::TEMPORARY_REDIRECT, StatusCode::SERVICE_UNAVAILABLE].contains(&answer));
        (answer == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
}

on_all_parts! {
    async fn failing_attempts_are_not_repeated_by_each_who_waits_and_their_end_answers_all(world: World) {
        let base = Duration::from_millis(500);
        world.set("CALLVAULT_RETRY_BASE", "500ms");
        world.set("CALLVAULT_RETRY_CAP", "500ms");
        world.set("CALLVAULT_NOT_READY_FOR", "2s");
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::NotReady));
        let began = std::time::Instant::now();
        service.deliver(&world.callback(id.recording)).await;
        let path = format!("/v1/recordings/{}/audio?wait=30", id.recording);
        let answers = futures::future::join_all((0..50).map(|_| service.get(&path))).await;
        assert!(answers.iter().all(|answer| answer.status() == StatusCode::FAILED_DEPENDENCY));
        let shown = service.recording_in(id.recording, "failed").await;
        let attempts = shown["attempts"].as_u64().unwrap();
        let schedule = began.elapsed().as_millis() / base.as_millis() + 2;
        assert!(u128::from(attempts) <= schedule, "{attempts} attempts, where {schedule} were planned at most");
    }

    async fn three_hundred_who_wait_share_one_fetch(world: World) {
        world.set("CALLVAULT_LEASE", "30s");
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.script(id.recording, [Fault::Held(1000)]);
        service.deliver(&world.callback(id.recording)).await;
        let path = format!("/v1/calls/{}/audio?wait=30", call_sid(1));
        let asked = futures::future::join_all((0..300).map(|_| service.get(&path)));
        let released = async {
            eventually("it is being fetched", async || {
                (world.simulator.counts(id.recording).media_requests >= 1).then_some(())
            })
            .await;
            world.simulator.release(id.recording);
        };
        let (answers, ()) = tokio::join!(asked, released);
        let mut links: Vec<_> = answers.iter().map(|answer| answer.headers().get("location").cloned()).collect();
        links.dedup();
        assert!(links.iter().all(Option::is_some), "{:?}", answers.iter().map(|answer| answer.status()).collect::<Vec<_>>());
        assert_eq!(world.simulator.fetches(), 1);
        let (bytes, _) = service.play(&path).await;
        assert_eq!(bytes.len(), 25_809);
    }
}
