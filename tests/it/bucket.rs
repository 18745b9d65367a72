//! The bucket's own promises, on the embedded store and on a real one.

use std::time::Duration;

use bytes::Bytes;
use callvault::bucket::{Bucket, BucketError, DELETE_WITHIN, NewObject};
use callvault::config::{BucketConfig, Config};
use callvault::domain::digest::Digest;
use callvault::domain::media::Format;
use jiff::Timestamp;
use reqwest::StatusCode;

use crate::support::world::{ACCOUNT, Parts, World, call_sid, recording_id};

/// The bucket of a world in which no service runs.
async fn open(world: &World) -> Bucket {
    let settings = world.settings.iter().map(|(name, value)| (name.into(), value.into()));
    let mut config = Config::load(settings).unwrap();
    if world.parts == Parts::Embedded {
        config.bucket = BucketConfig::Embedded(world.folder().join("callvault-data"));
    }
    Bucket::open(&config).await.unwrap()
}

fn object(key: &str, metadata: Vec<(&'static str, String)>) -> NewObject {
    NewObject { key: key.to_owned(), format: Format::Mp3, metadata }
}

on_all_parts! {
    async fn a_delete_that_comes_late_is_refused_by_the_store(world: World) {
        let bucket = open(&world).await;
        let key = format!("{}/{}/x.mp3", call_sid(1), recording_id(1).recording);
        bucket.put(&object(&key, vec![]), vec![Bytes::from_static(b"audio")]).await.unwrap();
        let now = Timestamp::now();
        let refused = bucket.delete_under_lease(&key, now - DELETE_WITHIN - Duration::from_secs(2)).await;
        let is_refused = |status: &StatusCode| matches!(*status, StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST);
        assert!(matches!(&refused, Err(BucketError::Refused { status, .. }) if is_refused(status)), "{refused:?}");
        assert!(bucket.facts(&key).await.unwrap().is_some(), "the object is still there");
        bucket.delete_under_lease(&key, now).await.unwrap();
        assert_eq!(bucket.facts(&key).await.unwrap(), None);
        bucket.delete_under_lease(&key, now).await.expect("what is not there need not be removed");
    }

    async fn open_uploads_are_found_by_their_exact_key(world: World) {
        let bucket = open(&world).await;
        let id = recording_id(1);
        let (key, longer) = (bucket.layout().staging(&id, 1), bucket.layout().staging(&id, 10));
        assert_eq!(bucket.open_uploads(&key, Timestamp::now()).await.unwrap(), Vec::<String>::new());
        let other = bucket.stage(&longer).await.unwrap();
        let mut uploads = Vec::new();
        for _ in 0..2 {
            let mut upload = bucket.stage(&key).await.unwrap();
            upload.write(vec![7; 9 << 20].into()).await.unwrap();
            uploads.push(upload.upload_id().to_owned());
        }
        let mut found = bucket.open_uploads(&key, Timestamp::now()).await.unwrap();
        found.sort();
        uploads.sort();
        assert_eq!(found, uploads);
        for upload in &uploads {
            bucket.abort_upload(&key, upload).await.unwrap();
            bucket.abort_upload(&key, upload).await.expect("what is not open need not be ended");
        }
        assert_eq!(bucket.open_uploads(&key, Timestamp::now()).await.unwrap(), Vec::<String>::new());
        assert_eq!(bucket.open_uploads(&longer, Timestamp::now()).await.unwrap(), [other.upload_id()]);
    }

    async fn an_object_tells_whose_it_is_and_is_read_back_whole(world: World) {
        let bucket = open(&world).await;
        let folder = format!("{}/{}/", call_sid(1), recording_id(1).recording);
        let (ours, foreign) = (format!("{folder}a.mp3"), format!("{folder}b.txt"));
        let metadata = vec![("account-sid", ACCOUNT.to_owned()), ("stored-at", "2026-11-23T14:00:00.5Z".to_owned())];
        let bytes = vec![3; 5 << 20];
        bucket.put(&object(&ours, metadata), vec![bytes.clone().into()]).await.unwrap();
        bucket.put(&object(&foreign, vec![]), vec![Bytes::new()]).await.unwrap();
        // Begins alike, and is another recording's.
        bucket.put(&object(&format!("{}0/c.mp3", folder.trim_end_matches('/')), vec![]), vec![]).await.unwrap();

        let mut keys = bucket.list_folder(&folder, 10).await.unwrap();
        keys.sort();
        assert_eq!(keys, [ours.clone(), foreign.clone()]);
        assert_eq!(bucket.list_folder(&folder, 1).await.unwrap().len(), 1);
        let described = bucket.facts(&ours).await.unwrap().unwrap();
        assert_eq!(described.account_sid(), Some(ACCOUNT));
        assert_eq!(described.stored_at(), Some("2026-11-23T14:00:00.5Z".parse().unwrap()));
        assert_eq!(bucket.facts(&foreign).await.unwrap().unwrap().account_sid(), None);
        assert_eq!(bucket.facts(&format!("{folder}none")).await.unwrap(), None);
        assert_eq!(bucket.read_back(&ours).await.unwrap(), Some((Digest::of(&bytes), 5 << 20)));
        assert_eq!(bucket.read_back(&foreign).await.unwrap(), Some((Digest::of(b""), 0)));
        assert_eq!(bucket.read_back(&format!("{folder}none")).await.unwrap(), None);
    }
}

/// A bucket that is gone must not look like one whose objects are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_gone_is_not_an_empty_folder() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_BUCKET_URL", "s3://no-such-bucket");
    let bucket = open(&world).await;
    let listed = bucket.list_folder("CA/RE/", 10).await;
    assert!(listed.is_err(), "{listed:?}");
}
