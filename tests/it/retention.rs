//! What goes by itself: by age, and at Twilio.

use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{RestFault, SimulatedRecording, speech_mp3};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use reqwest::Method;

use crate::erase::{marker, path};
use crate::holds::hold;
use crate::recheck::{count, history, metric, plant, stored};
use crate::support::cluster::Node;
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::world::{ACCOUNT, AUTH_TOKEN, Parts, Service, World, account, call_sid, recording_id};

/// Puts the account into a file, with these settings of its own.
pub fn account_with(world: &mut World, settings: &str) {
    let file = world.folder().join("account.toml");
    let account = format!("[[accounts]]\nsid = \"{ACCOUNT}\"\nauth_token = \"{AUTH_TOKEN}\"\n{settings}\n");
    std::fs::write(&file, account).unwrap();
    world.settings.remove("CALLVAULT_TWILIO_ACCOUNT_SID");
    world.settings.remove("CALLVAULT_TWILIO_AUTH_TOKEN");
    world.set("CALLVAULT_CONFIG", file.to_str().unwrap());
}

/// A recording that was made just now, stored.
pub async fn stored_young(world: &World, service: &Service, number: u32) -> RecordingId {
    let id = recording_id(number);
    world.simulator.add(SimulatedRecording::speech(id, call_sid(number), jiff::Timestamp::now()));
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;
    id
}

pub fn deleted_at_twilio(world: &World, id: &RecordingId) -> bool {
    let sid = id.recording.to_string();
    let seen = world.simulator.seen();
    seen.iter().any(|seen| seen.method == "DELETE" && seen.status == 204 && seen.target.contains(&sid))
}

pub async fn deletions(service: &Service, outcome: &str) -> u64 {
    metric(service, &format!("callvault_twilio_deletions_total{{outcome=\"{outcome}\"}}")).await
}

on_all_parts! {
    async fn what_is_old_is_erased_and_nothing_else(world: World) {
        let service = world.start().await;
        let (old, _) = stored(&world, &service, 1).await;
        let (held, kept) = stored(&world, &service, 2).await;
        assert_eq!(hold(&service, &held, true).await.0, 200);
        let young = stored_young(&world, &service, 3).await;
        service.signal("TERM");
        service.end().await;
        world.set("CALLVAULT_RETENTION", "1h");
        let service = world.start().await;
        let shown = service.recording_in(old.recording, "erased").await;
        let told = shown["history"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&told["type"], &told["detail"]["by"]), (&"recording.erased".into(), &"retention".into()));
        eventually("its object goes", async || {
            let keys = world.store(&service).keys().await;
            (keys.contains(&marker(&old)) && keys.len() == 4 && keys.contains(&kept)).then_some(())
        })
        .await;
        assert_eq!(metric(&service, "callvault_erased_by_age_total").await, 1);
        service.recording_in(held.recording, "stored").await;
        service.recording_in(young.recording, "stored").await;
        assert!(!deleted_at_twilio(&world, &old));
        // What was held is old as soon as it is released.
        assert_eq!(hold(&service, &held, false).await.0, 200);
        service.recording_in(held.recording, "erased").await;
    }

    async fn an_accounts_own_retention_may_reach_to_twilio(world: World) {
        account_with(&mut world, "retention = \"1h\"\nerase_at_twilio = true");
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "erased").await;
        eventually("it is deleted at Twilio", async || deleted_at_twilio(&world, &id).then_some(())).await;
        eventually("only its marker is left", async || {
            (world.store(&service).keys().await == [marker(&id)]).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_and_matches_is_deleted_at_twilio() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1s");
    world.set("CALLVAULT_RECONCILE_EVERY", "1s");
    let service = world.start().await;
    let (announced, _) = stored(&world, &service, 1).await;
    // This one nobody announced.
    let found = recording_id(2);
    world.simulator.add(SimulatedRecording::speech(found, call_sid(2), jiff::Timestamp::now()));
    service.recording_in(found.recording, "stored").await;
    eventually("it is deleted at Twilio", async || deleted_at_twilio(&world, &announced).then_some(())).await;
    let answer = service.request(Method::GET, &format!("{}/audio", path(&announced))).send().await.unwrap();
    assert_eq!(answer.status(), 307, "it plays from here");
    eventually("it is told", async || {
        history(&service, &announced).await.contains(&"deleted_at_twilio".to_owned()).then_some(())
    })
    .await;
    assert!(!deleted_at_twilio(&world, &found));
    // Once it was announced, it goes as well.
    service.deliver(&world.callback(found.recording)).await;
    eventually("it is deleted at Twilio", async || deleted_at_twilio(&world, &found).then_some(())).await;
    assert_eq!(count(&world, &found, "twilio_marked_at IS NOT NULL AND state = 'stored'").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_is_deleted_at_twilio_where_the_account_says_so() {
    let mut world = World::new(Parts::Servers).await;
    account_with(&mut world, "delete_discovered = true");
    world.set("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1s");
    world.set("CALLVAULT_RECONCILE_EVERY", "1s");
    let service = world.start().await;
    let found = recording_id(1);
    world.simulator.add(SimulatedRecording::speech(found, call_sid(1), jiff::Timestamp::now()));
    service.recording_in(found.recording, "stored").await;
    eventually("it is deleted at Twilio", async || deleted_at_twilio(&world, &found).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_rotted_or_is_gone_keeps_twilios() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    let service = world.start().await;
    let (rotten, key) = stored(&world, &service, 1).await;
    let (gone, other) = stored(&world, &service, 2).await;
    service.kill();
    let store = world.real_store();
    plant(&store, &key, Some(ACCOUNT), b"something else".to_vec()).await;
    store.s3.delete(&Path::from(other)).await.unwrap();
    world.set("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1s");
    let service = world.start().await;
    eventually("both are seen", async || (deletions(&service, "differs").await >= 2).then_some(())).await;
    // What is gone or rotten is fetched again first.
    for id in [gone, rotten] {
        eventually("it is whole again", async || {
            let lost = history(&service, &id).await.contains(&"recording.lost".to_owned());
            (lost && deleted_at_twilio(&world, &id)).then_some(())
        })
        .await;
        assert_eq!(world.simulator.counts(id.recording).fetches, 2);
    }
    assert_eq!(store.object(&key).await.0, speech_mp3());
}

/// A tool wrote it again and left the metadata out: should the catalog be lost, nobody
/// would know any more what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_does_not_say_what_it_is_keeps_twilios_until_it_does() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_RECHECK_AFTER", "1s");
    let service = world.start().await;
    let (id, key) = stored(&world, &service, 1).await;
    service.kill();
    let store = world.real_store();
    let (bytes, described) = store.object(&key).await;
    plant(&store, &key, None, bytes.to_vec()).await;
    world.set("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1s");
    let service = world.start().await;
    eventually("it is seen", async || (deletions(&service, "differs").await >= 1).then_some(())).await;
    eventually("it is deleted at Twilio", async || deleted_at_twilio(&world, &id).then_some(())).await;
    let (_, mended) = store.object(&key).await;
    assert_eq!(mended.get(&object_store::Attribute::Metadata("account-sid".into())), Some(&ACCOUNT.into()));
    assert_eq!(mended.get(&object_store::Attribute::ContentType), described.get(&object_store::Attribute::ContentType));
    assert_eq!(world.simulator.counts(id.recording).fetches, 1, "its bytes were right");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_stays_at_twilio_even_if_its_deletion_has_begun() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1s");
    let node = Node::start(&world).await;
    let id = world.record(1);
    // While the stored copy is read back.
    node.store.rule(Rule::on(&format!("GET /{}/{}", world.bucket(), call_sid(1)), Act::Hold));
    node.deliver(&world.callback(id.recording)).await;
    node.recording_in(id.recording, "stored").await;
    node.store.acts().await;
    assert_eq!(hold(&node, &id, true).await.0, 200);
    node.store.release();
    eventually("it is given up", async || {
        (deletions(&node, "kept").await + deletions(&node, "lost").await >= 1).then_some(())
    })
    .await;
    assert!(!deleted_at_twilio(&world, &id));
    // Twilio's refusals do not make it go either; once it is released it does.
    world.simulator.rest_fault(account(), Some(RestFault::Status(500)));
    assert_eq!(hold(&node, &id, false).await.0, 200);
    crate::recheck::sql(&world, "UPDATE recordings SET duty_until = NULL".to_owned()).await;
    eventually("Twilio fails", async || (deletions(&node, "failed").await >= 1).then_some(())).await;
    assert!(!deleted_at_twilio(&world, &id));
    world.simulator.rest_fault(account(), None);
    eventually("it is deleted at Twilio", async || deleted_at_twilio(&world, &id).then_some(())).await;
}
