//! Writing objects: small ones in one put, large ones staged.
//!
//! Up to [`SINGLE_PUT_MAX_BYTES`] an object is one put with its metadata. A
//! larger one is streamed as a multipart upload to a staging key, and copied to
//! its own key, with its metadata, once its digest is known: S3 takes metadata
//! only before the first byte. Every request carries a SHA-256 that the store
//! checks. Nothing here writes to a key that does not name its content.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Attribute, Attributes, MultipartId, ObjectStore, ObjectStoreExt, PutOptions, PutPayload};
use tokio_util::task::AbortOnDropHandle;

use super::{Bucket, BucketError, Result, path};
use crate::domain::media::Format;
use crate::domain::object_key::CACHE_CONTROL;

/// The largest object that is written in one put.
pub const SINGLE_PUT_MAX_BYTES: usize = 16 << 20;
/// Parts are all of this size but the last one, as some stores demand. S3's
/// limit of 10,000 parts makes 80 GiB of it.
const PART_BYTES: usize = 8 << 20;
/// Parts under way at once: one is sent while the next one fills.
const PARTS_IN_FLIGHT: usize = 1;
/// The most memory that one large upload takes: what was gathered before it
/// was known to be large.
pub const UPLOAD_RESERVE_BYTES: u64 = SINGLE_PUT_MAX_BYTES as u64 + PART_BYTES as u64;

/// An object that is to be.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Its key.
    pub key: String,
    /// What it is.
    pub format: Format,
    /// Its user metadata.
    pub metadata: Vec<(&'static str, String)>,
}

impl Bucket {
    /// Writes a small object whole.
    pub async fn put(&self, object: &NewObject, chunks: Vec<Bytes>) -> Result<()> {
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::ContentType, object.format.content_type().into());
        attributes.insert(Attribute::CacheControl, CACHE_CONTROL.into());
        for (name, value) in &object.metadata {
            attributes.insert(Attribute::Metadata((*name).into()), value.clone().into());
        }
        let options = PutOptions { attributes, ..PutOptions::default() };
        let payload = PutPayload::from_iter(chunks);
        self.inner.uploads.put_opts(&path(&object.key)?, payload, options).await?;
        self.sync(&object.key).await
    }

    /// Begins to stage a large object at that key. It is asked for once: where the answer
    /// is lost, an upload may be open that nobody can name.
    pub async fn stage(&self, key: &str) -> Result<Staging> {
        let key = path(key)?;
        let upload_id = self.inner.once.create_multipart(&key).await?;
        Ok(Staging {
            bucket: self.clone(),
            key,
            upload_id,
            buffer: Vec::new(),
            buffered_bytes: 0,
            parts: Vec::new(),
            in_flight: VecDeque::new(),
        })
    }

    /// Makes an object survive a power cut. Real stores do that before they answer.
    pub(super) async fn sync(&self, key: &str) -> Result<()> {
        match self.embedded() {
            Some(embedded) => embedded.sync(key).await,
            None => Ok(()),
        }
    }

    /// Copies what was staged to its own key, with its metadata.
    pub(super) async fn copy(&self, from: &Path, object: &NewObject) -> Result<()> {
        let mut headers = HeaderMap::new();
        let mut set = |name: String, value: &str| -> Result<()> {
            let invalid = || BucketError::Setup(format!("{name} cannot be sent as metadata"));
            let value = HeaderValue::from_str(value).map_err(|_| invalid())?;
            headers.insert(HeaderName::try_from(&name).map_err(|_| invalid())?, value);
            Ok(())
        };
        // REPLACE drops whatever is not said again.
        set("x-amz-metadata-directive".to_owned(), "REPLACE")?;
        set("content-type".to_owned(), object.format.content_type())?;
        set("cache-control".to_owned(), CACHE_CONTROL)?;
        for (name, value) in &object.metadata {
            set(format!("x-amz-meta-{name}"), value)?;
        }
        self.inner.copier(headers)?.copy(from, &path(&object.key)?).await?;
        Ok(())
    }
}

/// A large object on its way to its staging key.
///
/// Dropping it stops what is being sent, but leaves the upload open: end it by
/// [`Self::publish`] or [`Bucket::clear_staging`].
pub struct Staging {
    bucket: Bucket,
    key: Path,
    upload_id: MultipartId,
    buffer: Vec<Bytes>,
    buffered_bytes: usize,
    parts: Vec<PartId>,
    in_flight: VecDeque<AbortOnDropHandle<object_store::Result<PartId>>>,
}

impl Staging {
    /// The upload that must be remembered before the first part is sent.
    pub fn upload_id(&self) -> &str {
        &self.upload_id
    }

    /// Takes the next bytes. Waits while enough is under way.
    pub async fn write(&mut self, mut chunk: Bytes) -> Result<()> {
        while self.buffered_bytes + chunk.len() >= PART_BYTES {
            let head = chunk.split_to(PART_BYTES - self.buffered_bytes);
            self.buffer.push(head);
            self.send_part().await?;
        }
        if !chunk.is_empty() {
            self.buffered_bytes += chunk.len();
            self.buffer.push(chunk);
        }
        Ok(())
    }

    async fn send_part(&mut self) -> Result<()> {
        while self.in_flight.len() >= PARTS_IN_FLIGHT {
            self.await_part().await?;
        }
        let payload = PutPayload::from_iter(std::mem::take(&mut self.buffer));
        self.buffered_bytes = 0;
        let number = self.parts.len() + self.in_flight.len();
        let (bucket, key, upload_id) = (self.bucket.clone(), self.key.clone(), self.upload_id.clone());
        let part = async move { bucket.inner.uploads.put_part(&key, &upload_id, number, payload).await };
        self.in_flight.push_back(AbortOnDropHandle::new(tokio::spawn(part)));
        Ok(())
    }

    async fn await_part(&mut self) -> Result<()> {
        let Some(part) = self.in_flight.pop_front() else { return Ok(()) };
        let part = part.await.map_err(|error| BucketError::Setup(format!("a part's task ended: {error}")))?;
        self.parts.push(part?);
        Ok(())
    }

    /// Completes the upload and copies it to its own key; says whether what
    /// was staged could be removed. An error leaves open how far it came:
    /// [`Bucket::clear_staging`] is to follow.
    pub async fn publish(&mut self, object: &NewObject) -> Result<bool> {
        if !self.buffer.is_empty() {
            self.send_part().await?;
        }
        while !self.in_flight.is_empty() {
            self.await_part().await?;
        }
        let parts = std::mem::take(&mut self.parts);
        self.bucket.inner.uploads.complete_multipart(&self.key, &self.upload_id, parts).await?;
        self.bucket.copy(&self.key, object).await?;
        self.bucket.sync(&object.key).await?;
        Ok(self.bucket.delete(self.key.as_ref()).await.is_ok())
    }
}
