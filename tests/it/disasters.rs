//! Disaster recovery, walked through as deploy/OPERATING.md says it, with the commands of
//! that page: a catalog that is lost or older than the bucket, a bucket that is lost, all
//! nodes lost, everything lost.

pub mod scene;

use callvault::twilio::simulator::Fault;
use reqwest::StatusCode;
use serde_json::Value;

use crate::crashes::has_parts;
use crate::support::pages::commands;
use crate::support::servers::free_port;
use crate::support::world::{ACCOUNT, AUTH_TOKEN, Parts, Service, World, debug_binary, recording_id};
use crate::support::{audit, cluster, eventually};
use scene::{Scene, cursor, erase, hold, plays, sids, stays_erased, stays_held, told};

const GUIDE: &str = "deploy/OPERATING.md";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_catalog_is_made_anew_as_the_guide_says() {
    let mut scene = Scene::new(Parts::Servers).await;
    let service = scene.start().await;
    scene.store(&service, 1..=6).await;
    erase(&service, 2).await;
    hold(&service, 3).await;
    let read_until = cursor(&service).await;
    service.kill();
    scene.lose_the_catalog().await;

    let [database, reindex, keys] = commands(GUIDE, "The catalog is lost");
    scene.terminal.does(&database).await;
    // A node may be first.
    let service = scene.start().await;
    eventually("it says that it is not indexed", async || service.trouble("unindexed").await).await;
    stays_erased(&scene, &service, 2).await;
    plays(&service, [4]).await;
    let unknown = service.get(&format!("/v1/recordings/{}", recording_id(404).recording)).await;
    assert_eq!(unknown.status(), StatusCode::SERVICE_UNAVAILABLE);

    scene.terminal.does(&reindex).await;
    plays(&service, [1, 3, 4, 5, 6]).await;
    stays_erased(&scene, &service, 2).await;
    stays_held(&service, 3).await;
    assert_eq!(scene.fetches(1..=6), [1; 6], "once, before all that");
    let mut again = eventually("a reader is told of all", async || {
        let again = told(&service, &read_until).await;
        (again.len() >= 5).then_some(again)
    })
    .await;
    again.sort();
    assert_eq!(again, sids([1, 3, 4, 5, 6]));
    let key = scene.terminal.does(&keys).await;
    let listed = scene.world.http.get(format!("{}/v1/recordings", service.url)).bearer_auth(key.trim());
    assert_eq!(listed.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_from_a_backup_is_brought_up_to_date_as_the_guide_says() {
    let mut scene = Scene::new(Parts::Servers).await;
    let service = scene.start().await;
    scene.store(&service, 1..=4).await;
    // On its way when the backup is made, and stored by the time of the disaster.
    let late = scene.world.record(5);
    scene.world.simulator.always(late.recording, Some(Fault::NotReady));
    scene.announce(&service, late).await;
    service.recording_in(late.recording, "pending").await;
    let [backup, _] = commands(GUIDE, "Backups");
    scene.terminal.does(&backup).await;

    scene.world.simulator.always(late.recording, None);
    service.recording_in(late.recording, "stored").await;
    scene.store(&service, 6..=8).await;
    erase(&service, 2).await;
    hold(&service, 3).await;
    let read_until = cursor(&service).await;
    service.kill();
    scene.lose_the_catalog().await;

    let [restore, _, look] = commands(GUIDE, "The catalog is restored from a backup");
    scene.terminal.does(&restore).await;
    let service = scene.start().await;
    plays(&service, [1, 3, 4, 5, 6, 7, 8]).await;
    stays_erased(&scene, &service, 2).await;
    stays_held(&service, 3).await;
    // The feed has what came after the backup anew, and whoever had read all of the old one reads it.
    eventually("a reader misses nothing", async || {
        let again = told(&service, &read_until).await;
        sids([1, 4, 5, 6, 7, 8]).iter().all(|sid| again.contains(sid)).then_some(())
    })
    .await;
    scene.terminal.does(&look).await;
    assert_eq!(scene.fetches([1, 2, 3, 4, 6, 7, 8]), [1; 7]);
}

/// The machine is gone, and with it all but the backup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_sqlite_comes_back_from_its_backup_as_the_guide_says() {
    let mut scene = Scene::new(Parts::Embedded).await;
    let folder = scene.world.folder();
    let service = scene.start().await;
    scene.store(&service, 1..=3).await;
    let [_, backup] = commands(GUIDE, "Backups");
    // Between its two halves, something is stored: the catalog is the older one.
    let (catalog, store) = backup.split_once('\n').expect("two commands");
    scene.terminal.does(catalog).await;
    scene.store(&service, 4..=5).await;
    erase(&service, 2).await;
    hold(&service, 3).await;
    scene.terminal.does(store).await;
    let read_until = cursor(&service).await;
    service.kill();
    std::fs::remove_dir_all(folder.join("callvault-data")).unwrap();
    std::fs::rename(folder.join("callvault-data-backup"), folder.join("callvault-data")).unwrap();

    let [_, restore, _] = commands(GUIDE, "The catalog is restored from a backup");
    scene.terminal.does(&restore).await;
    let service = scene.start().await;
    plays(&service, [1, 3, 4, 5]).await;
    stays_erased(&scene, &service, 2).await;
    stays_held(&service, 3).await;
    let again = told(&service, &read_until).await;
    assert!(sids([1, 3, 4, 5]).iter().all(|sid| again.contains(sid)), "{again:?}");
    assert_eq!(scene.fetches(1..=5), [1; 5]);

    // Without any backup of it, the bucket alone is enough here, too.
    service.kill();
    scene.lose_the_catalog().await;
    let [_, reindex, _] = commands::<3>(GUIDE, "The catalog is lost");
    scene.terminal.does(&reindex).await;
    let service = scene.start().await;
    plays(&service, [1, 3, 4, 5]).await;
    stays_erased(&scene, &service, 2).await;
    stays_held(&service, 3).await;
    assert_eq!(scene.fetches(1..=5), [1; 5]);
}

/// Twilio's customer deletes one there.
async fn twilio_loses(world: &World, number: u32) {
    let sid = recording_id(number).recording;
    let url = format!("{}/2010-04-01/Accounts/{ACCOUNT}/Recordings/{sid}.json", world.simulator.origin());
    let answer = world.http.delete(url).basic_auth(ACCOUNT, Some(AUTH_TOKEN)).send().await.expect("it answers");
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

/// Four recordings, of which the second was erased, the third is held, and Twilio has not
/// the fourth any more; then the bucket is emptied.
async fn before_the_bucket_is_lost(scene: &Scene) -> Service {
    let service = scene.start().await;
    scene.store(&service, 1..=4).await;
    erase(&service, 2).await;
    hold(&service, 3).await;
    twilio_loses(&scene.world, 4).await;
    service
}

async fn repaired_as_far_as_it_goes(scene: &mut Scene, service: &Service) {
    let [repair, look] = commands(GUIDE, "The bucket is lost");
    let ran = scene.terminal.run(&repair).await;
    let (found, error) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.status.code(), Some(1), "{found}{error}");
    let lost = recording_id(4).recording;
    let line = found.lines().find(|line| line.contains(lost.as_str())).expect("it is named");
    assert!(line.contains("neither the bucket nor Twilio has it"), "{line}");
    assert!(error.contains("1 recordings are lost"), "{error}");
    plays(service, [1, 3]).await;
    stays_erased(scene, service, 2).await;
    assert_eq!(scene.fetches(1..=4), [2, 1, 2, 1]);
    let shown: Value = serde_json::from_str(&scene.terminal.does(&look).await).expect("JSON");
    let failed = shown["recordings"].as_array().unwrap();
    assert_eq!((failed.len(), &failed[0]["recording_sid"]), (1, &lost.as_str().into()), "{shown}");
    assert_eq!(failed[0]["last_error"]["code"], "object_lost");
    let (_, told) = service.json("/v1/events?type=recording.lost").await;
    let told: Vec<&Value> =
        told["events"].as_array().unwrap().iter().map(|event| &event["recording"]["recording_sid"]).collect();
    assert!(told.contains(&&lost.as_str().into()), "{told:?}");
}

/// The markers are written again: the catalog may be lost after that, too.
async fn survives_the_loss_of_the_catalog(scene: &mut Scene, service: Service) {
    let keys = scene.world.store(&service).keys().await;
    let marked = |kind: &str, number| keys.contains(&format!(".{kind}/{ACCOUNT}/{}", recording_id(number).recording));
    assert!(marked("erased", 2) && marked("held", 3), "{keys:?}");
    service.kill();
    scene.lose_the_catalog().await;
    let [database, reindex, _] = commands::<3>(GUIDE, "The catalog is lost");
    if scene.server.is_some() {
        scene.terminal.does(&database).await;
    }
    scene.terminal.does(&reindex).await;
    let service = scene.start().await;
    plays(&service, [1, 3]).await;
    stays_erased(scene, &service, 2).await;
    stays_held(&service, 3).await;
    assert_eq!(scene.fetches(1..=3), [2, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_bucket_is_filled_again_as_the_guide_says() {
    let mut scene = Scene::new(Parts::Servers).await;
    let service = before_the_bucket_is_lost(&scene).await;
    let store = scene.world.store(&service);
    for key in store.keys().await {
        crate::support::bucket::remove(&store, &key).await;
    }
    repaired_as_far_as_it_goes(&mut scene, &service).await;
    survives_the_loss_of_the_catalog(&mut scene, service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_embedded_store_is_filled_again_as_the_guide_says() {
    let mut scene = Scene::new(Parts::Embedded).await;
    before_the_bucket_is_lost(&scene).await.kill();
    std::fs::remove_dir_all(scene.world.folder().join("callvault-data")).unwrap();
    let service = scene.start().await;
    repaired_as_far_as_it_goes(&mut scene, &service).await;
    survives_the_loss_of_the_catalog(&mut scene, service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_nodes_go_on_where_all_others_were_lost() {
    let mut scene = Scene::new(Parts::Servers).await;
    let nodes = scene.world.start_nodes(3).await;
    scene.store(&nodes[0], [1]).await;
    let waiting = scene.world.record(2);
    scene.world.simulator.always(waiting.recording, Some(Fault::NotReady));
    scene.announce(&nodes[1], waiting).await;
    let (half, digest) = cluster::add_large(&scene.world, 3);
    scene.world.simulator.script(half.recording, [Fault::Held(18 << 20)]);
    scene.announce(&nodes[2], half).await;
    eventually("parts are sent", async || has_parts(&scene.world, &nodes[0]).await.then_some(())).await;
    nodes.iter().for_each(Service::kill);
    drop(nodes);
    scene.world.simulator.always(waiting.recording, None);
    scene.world.simulator.release(half.recording);

    let [serve, look] = commands(GUIDE, "All nodes are lost");
    scene.terminal.serves(&serve).await;
    let url = scene.terminal.var("CALLVAULT_URL").to_owned();
    let ready = format!("{url}/readyz");
    eventually("the new node is ready", async || {
        let answer = scene.world.http.get(&ready).send().await.ok()?;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    scene.terminal.does(&look).await;
    let another = scene.world.start_on(free_port(), debug_binary()).await;
    plays(&another, [1, 2]).await;
    let shown = another.recording_in(half.recording, "stored").await;
    assert_eq!(shown["sha256"], digest.to_string());
    assert_eq!(scene.fetches([1, 2, 3]), [1, 1, 2], "what was cut off is fetched again, and nothing else");
    audit::content(&scene.world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_twilio_still_has_is_brought_in_anew() {
    let mut scene = Scene::new(Parts::Servers).await;
    for number in 1..=3 {
        scene.world.record(number);
    }
    let service = scene.start().await;
    let [bring_in] = commands(GUIDE, "Everything is lost");
    scene.terminal.does(&bring_in).await;
    // A list asks Twilio for nothing: they are here before anybody asked for them.
    let (_, listed) = service.json("/v1/recordings?state=stored").await;
    assert_eq!(listed["recordings"].as_array().unwrap().len(), 3, "{listed}");
    plays(&service, 1..=3).await;
    assert_eq!(scene.fetches(1..=3), [1; 3]);
}
