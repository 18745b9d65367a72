//! Looking at what is there: folders, metadata, whole objects read back.
//!
//! Nothing here writes. What is read back is hashed as it comes and never held.

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{Attribute, GetOptions, ObjectStore, ObjectStoreExt};

use super::{Bucket, BucketError, Result, path};
use crate::domain::digest::{Digest, Hasher};

/// What the store tells of an object besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its `account-sid`; None where callvault did not write it.
    pub account_sid: Option<String>,
    /// Its `stored-at`.
    pub stored_at: Option<Timestamp>,
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

    /// What an object says of itself; None where there is none.
    pub async fn describe(&self, key: &str) -> Result<Option<Described>> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let Some(head) = found(self.inner.reads.get_opts(&path(key)?, options).await)? else { return Ok(None) };
        let metadata = |name: &'static str| {
            let value = head.attributes.get(&Attribute::Metadata(name.into()));
            value.map(|value| value.to_string())
        };
        let stored_at = metadata("stored-at").and_then(|at| at.parse().ok());
        Ok(Some(Described { account_sid: metadata("account-sid"), stored_at }))
    }

    /// Reads an object through the hash: its digest and its length. None where
    /// there is none.
    pub async fn read_back(&self, key: &str) -> Result<Option<(Digest, i64)>> {
        let Some(object) = found(self.inner.reads.get(&path(key)?).await)? else { return Ok(None) };
        let mut hasher = Hasher::default();
        let mut size_bytes = 0;
        let mut chunks = object.into_stream();
        while let Some(chunk) = chunks.try_next().await? {
            hasher.update(&chunk);
            size_bytes += i64::try_from(chunk.len()).unwrap_or(i64::MAX);
        }
        Ok(Some((hasher.finish(), size_bytes)))
    }
}

fn found<T>(answer: object_store::Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(BucketError::from(error)),
    }
}
