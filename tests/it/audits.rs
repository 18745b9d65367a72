//! The auditor itself: what is wrong is found, and said.

use callvault::domain::recording::RecordingId;
use callvault::vault::audit::Scope;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStoreExt as _, PutOptions};
use sqlx::Connection;

use crate::support::audit::{self, content};
use crate::support::world::{Parts, Store, World, call_sid};

const THOROUGH: Scope = Scope { read_back: true, strict: true };

/// A world with three stored recordings, each with its key.
async fn stored() -> (World, Store, Vec<(RecordingId, Path)>) {
    let world = World::new(Parts::Servers).await;
    let service = world.start().await;
    let mut keys = Vec::new();
    for number in 1..=3 {
        let id = world.record(number);
        service.deliver(&world.callback(id.recording)).await;
        let shown = service.recording_in(id.recording, "stored").await;
        keys.push((id, Path::from(shown["key"].as_str().unwrap())));
    }
    let store = world.real_store();
    (world, store, keys)
}

/// The one finding there is names what is wrong, and has these words.
async fn finds(world: &World, scope: Scope, about: &str, words: &str) {
    let report = audit::vault(world).await.audit(scope).await.unwrap();
    let [finding] = &report.findings[..] else { panic!("one finding was expected: {:#?}", report.findings) };
    assert!(finding.contains(about) && finding.contains(words), "{finding}");
}

async fn put(store: &Store, key: &Path, bytes: Vec<u8>, attributes: Attributes) {
    let options = PutOptions { attributes, ..PutOptions::default() };
    object_store::ObjectStore::put_opts(&store.s3, key, bytes.into(), options).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_in_the_bucket_is_found() {
    let (world, store, keys) = stored().await;
    content(&world).await;
    let [(id, key), ..] = &keys[..] else { unreachable!("three were stored") };
    let about = id.recording.to_string();
    let (bytes, right) = store.object(key.as_ref()).await;

    store.s3.delete(key).await.unwrap();
    finds(&world, THOROUGH, &about, "nothing lies at").await;

    let mut rotten = bytes.to_vec();
    rotten[100] ^= 1;
    put(&store, key, rotten, right.clone()).await;
    finds(&world, THOROUGH, &about, "reads back as").await;
    let report = audit::vault(&world).await.audit(Scope::default()).await.unwrap();
    assert!(report.is_content(), "its facts are right: {:?}", report.findings);
    assert_eq!((report.recordings, report.stored), (3, 3));

    put(&store, key, bytes[1..].to_vec(), right.clone()).await;
    finds(&world, Scope::default(), &about, "has size").await;

    for (attribute, words) in [
        (Attribute::ContentType, "Content-Type"),
        (Attribute::CacheControl, "Cache-Control"),
        (Attribute::Metadata("sha256".into()), "sha256"),
        (Attribute::Metadata("account-sid".into()), "account-sid"),
        (Attribute::Metadata("call-sid".into()), "call-sid"),
        (Attribute::Metadata("recording-sid".into()), "recording-sid"),
        (Attribute::Metadata("stored-at".into()), "stored-at"),
    ] {
        let mut wrong = right.clone();
        wrong.insert(attribute, "something-else".into());
        put(&store, key, bytes.to_vec(), wrong).await;
        finds(&world, Scope::default(), &about, words).await;
    }
    put(&store, key, bytes.to_vec(), right.clone()).await;

    let stray = Path::from(format!("{}/{}/{}.mp3", call_sid(1), id.recording, "0".repeat(64)));
    let staged = Path::from(format!(".staging/{}/{}.1", id.account, id.recording));
    let foreign = Path::from("somebody/elses/file.txt");
    for key in [&stray, &staged, &foreign] {
        put(&store, key, bytes.to_vec(), right.clone()).await;
    }
    let vault = audit::vault(&world).await;
    let report = vault.audit(THOROUGH).await.unwrap();
    assert_eq!(report.findings.len(), 2, "{:#?}", report.findings);
    assert!(report.findings.iter().any(|finding| finding.contains(stray.as_ref()) && finding.contains("no row")));
    assert!(report.findings.iter().any(|finding| finding.contains(staged.as_ref()) && finding.contains("staged")));
    assert!(vault.audit(Scope { strict: false, ..THOROUGH }).await.unwrap().is_content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_in_the_feed_is_found() {
    let (world, _, keys) = stored().await;
    content(&world).await;
    let mut database = sqlx::PgConnection::connect(&world.settings["CALLVAULT_DATABASE_URL"]).await.unwrap();
    let about = keys[1].0.recording.to_string();
    let mut run = async |statement: &str| {
        let done = sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut database).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{statement}");
    };
    let of = format!("recording_sid = '{about}' AND type = 'recording.stored'");
    // Six events were told: the seventh repeats one of them.
    run(&format!(
        "INSERT INTO events (seq, in_feed, account_sid, recording_sid, at, type) \
         SELECT 7, 1, account_sid, recording_sid, at, type FROM events WHERE {of}"
    ))
    .await;
    finds(&world, THOROUGH, &about, "stored again").await;
    run(&format!("DELETE FROM events WHERE seq = 7 AND {of}")).await;
    content(&world).await;

    run(&format!("UPDATE events SET seq = 8 WHERE {of}")).await;
    finds(&world, THOROUGH, "the feed", "numbered from 1 to 8").await;
    run(&format!("UPDATE events SET in_feed = 0, seq = NULL WHERE {of}")).await;
    let report = audit::vault(&world).await.audit(THOROUGH).await.unwrap();
    assert!(report.findings.iter().any(|finding| finding.contains(&about) && finding.contains("not told as stored")));
    assert!(report.findings.iter().any(|finding| finding.contains("the feed has 5 events")), "{report:?}");
}
