//! Looking at what is there: folders, metadata, whole objects read back.
//!
//! Nothing here writes. What is read back is hashed as it comes and never held.

use std::collections::BTreeMap;

use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{Attribute, GetOptions, ObjectStore};

use super::{Bucket, BucketError, Result, Throttle, path};
use crate::domain::digest::{Digest, Hasher};
use crate::domain::object_key;

/// What the store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFacts {
    /// Its length.
    pub size_bytes: u64,
    /// Its Content-Type.
    pub content_type: Option<String>,
    /// Its Cache-Control.
    pub cache_control: Option<String>,
    /// Its user metadata, by name in lower case.
    pub metadata: BTreeMap<String, String>,
}

impl ObjectFacts {
    /// The account it was written for; None where callvault did not write it.
    pub fn account_sid(&self) -> Option<&str> {
        self.metadata.get("account-sid").map(String::as_str)
    }

    /// Whether it is the marker of a recording whose copy at Twilio was still to go.
    pub fn owes_twilio(&self) -> bool {
        let (name, owed) = object_key::AT_TWILIO;
        self.metadata.get(name).is_some_and(|said| said == owed)
    }

    /// When it was written.
    pub fn stored_at(&self) -> Option<Timestamp> {
        self.metadata.get("stored-at")?.parse().ok()
    }
}

impl Bucket {
    /// At most `at_most` keys below a folder, whose name ends with a slash.
    /// Fails where the bucket itself is not there.
    pub async fn list_folder(&self, folder: &str, at_most: usize) -> Result<Vec<String>> {
        let listed = self.inner.reads.list(Some(&Path::from(folder)));
        let keys = listed.map_ok(|object| object.location.to_string());
        // Not every store keeps to the prefix.
        let inside = keys.try_filter(|key| std::future::ready(key.starts_with(folder)));
        Ok(inside.take(at_most).try_collect().await?)
    }

    /// Every key below the bucket's prefix, a page of the store at a time.
    pub fn keys(&self) -> BoxStream<'static, Result<String>> {
        let prefix = self.inner.layout.prefix();
        let below = (!prefix.is_empty()).then(|| Path::from(prefix));
        let listed = self.inner.reads.list(below.as_ref());
        listed.map(|entry| entry.map(|object| object.location.into()).map_err(BucketError::from)).boxed()
    }

    /// What the store says of an object; None where there is none.
    pub async fn facts(&self, key: &str) -> Result<Option<ObjectFacts>> {
        self.facts_of_version(key, None).await
    }

    /// The same of one version of it; None is the newest.
    pub(super) async fn facts_of_version(&self, key: &str, version: Option<String>) -> Result<Option<ObjectFacts>> {
        let options = GetOptions { head: true, version, ..GetOptions::default() };
        let Some(head) = found(self.inner.reads.get_opts(&path(key)?, options).await)? else { return Ok(None) };
        let mut facts = ObjectFacts {
            size_bytes: head.meta.size,
            content_type: None,
            cache_control: None,
            metadata: BTreeMap::new(),
        };
        for (attribute, value) in &head.attributes {
            let value = value.as_ref().to_owned();
            match attribute {
                Attribute::ContentType => facts.content_type = Some(value),
                Attribute::CacheControl => facts.cache_control = Some(value),
                Attribute::Metadata(name) => {
                    facts.metadata.insert(name.to_lowercase(), value);
                }
                _ => {}
            }
        }
        Ok(Some(facts))
    }

    /// Reads an object through the hash: its digest and its length. None where
    /// there is none.
    pub async fn read_back(&self, key: &str) -> Result<Option<(Digest, i64)>> {
        self.read_back_within(key, &Throttle::default()).await
    }

    /// The same, no faster than that.
    pub async fn read_back_within(&self, key: &str, throttle: &Throttle) -> Result<Option<(Digest, i64)>> {
        self.read_back_of_version(key, None, throttle).await
    }

    /// The same of one version of it; None is the newest.
    pub(super) async fn read_back_of_version(
        &self,
        key: &str,
        version: Option<String>,
        throttle: &Throttle,
    ) -> Result<Option<(Digest, i64)>> {
        let options = GetOptions { version, ..GetOptions::default() };
        let Some(object) = found(self.inner.reads.get_opts(&path(key)?, options).await)? else { return Ok(None) };
        let mut hasher = Hasher::default();
        let mut size_bytes = 0;
        let mut chunks = object.into_stream();
        while let Some(chunk) = chunks.try_next().await? {
            hasher.update(&chunk);
            throttle.took(chunk.len()).await;
            size_bytes += i64::try_from(chunk.len()).unwrap_or(i64::MAX);
        }
        Ok(Some((hasher.finish(), size_bytes)))
    }
}

pub(super) fn found<T>(answer: object_store::Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(BucketError::from(error)),
    }
}
