//! Reading an object for someone: all of it, or a part.
//!
//! The bytes flow as they are asked for and are never gathered here. What they
//! should be is not known here either.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use object_store::{GetOptions, GetRange, ObjectStore};

use super::inspect::found;
use super::{Bucket, BucketError, Result, path};

/// An object that is being read.
pub struct Reading {
    /// Its length in the store, whatever part of it is read.
    pub size_bytes: u64,
    /// The bytes, as they come.
    pub chunks: BoxStream<'static, Result<Bytes>>,
}

impl Bucket {
    /// Begins to read an object, or those of its bytes; None where there is none.
    pub async fn read(&self, key: &str, part: Option<Range<u64>>) -> Result<Option<Reading>> {
        let options = GetOptions { range: part.map(GetRange::Bounded), ..GetOptions::default() };
        let Some(object) = found(self.inner.reads.get_opts(&path(key)?, options).await)? else { return Ok(None) };
        let size_bytes = object.meta.size;
        let chunks = object.into_stream().map(|chunk| chunk.map_err(BucketError::from)).boxed();
        Ok(Some(Reading { size_bytes, chunks }))
    }
}
