//! Looking at what lies in the bucket, without changing it.

use std::collections::BTreeMap;

use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Attribute, GetOptions, ObjectStore, ObjectStoreExt};

use super::{Bucket, BucketError, Result, path};
use crate::domain::digest::{Digest, Hasher};

/// What the store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFacts {
    /// Its length.
    pub size_bytes: u64,
    /// Its Content-Type.
    pub content_type: Option<String>,
    /// Its Cache-Control.
    pub cache_control: Option<String>,
    /// Its user metadata.
    pub metadata: BTreeMap<String, String>,
}

impl Bucket {
    /// What the store says of an object; None where there is none.
    pub async fn facts(&self, key: &str) -> Result<Option<ObjectFacts>> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let got = match self.inner.reads.get_opts(&path(key)?, options).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut facts = ObjectFacts {
            size_bytes: got.meta.size,
            content_type: None,
            cache_control: None,
            metadata: BTreeMap::new(),
        };
        for (attribute, value) in &got.attributes {
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

    /// Reads an object back; None where there is none. Keeps a piece of it at a time.
    pub async fn read_back(&self, key: &str) -> Result<Option<Digest>> {
        let got = match self.inner.reads.get(&path(key)?).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut hasher = Hasher::default();
        let mut pieces = got.into_stream();
        while let Some(piece) = pieces.try_next().await? {
            hasher.update(&piece);
        }
        Ok(Some(hasher.finish()))
    }

    /// Every key below the bucket's prefix, a page of the store at a time.
    pub fn keys(&self) -> BoxStream<'static, Result<String>> {
        let prefix = self.inner.layout.prefix();
        let below = (!prefix.is_empty()).then(|| Path::from(prefix));
        let listed = self.inner.reads.list(below.as_ref());
        listed.map(|entry| entry.map(|object| object.location.into()).map_err(BucketError::from)).boxed()
    }
}
