//! Audio through the service: from the bucket, or from a fetch while it goes on.
//!
//! A whole body ends cleanly only if all its bytes came and matched their digest,
//! a part only with all its bytes: the last chunk is held back until that is
//! known. Who listens to a fetch and falls behind goes on from the bucket once
//! that fetch is the one that was committed; if it is not, their stream breaks.
//! An object that is missing, or not what its row says, has the row looked at.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::Instant;

use super::Vault;
use super::deliver::{Arrival, Delivery, DeliveryError, SaidBy, Wanted, download_name};
use super::live::Listener;
use super::streams::OpenStream;
use super::tape::Heard;
use crate::bucket::{self, BucketError};
use crate::catalog::{Cursor, Lease};
use crate::domain::digest::Hasher;
use crate::domain::key::KeyId;
use crate::domain::media::Format;
use crate::domain::recording::{Recording, RecordingId, StoredObject};
use crate::domain::sid::AccountSid;
use crate::telemetry;

/// Bytes that flow to someone. An error breaks the connection off.
pub type Flow = BoxStream<'static, Result<Bytes, BrokenOff>>;

/// A row is not looked at again for the same object more often than this, however many ask for it.
const DOUBTED_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Rows that are remembered as in doubt; more are forgotten.
const DOUBTED_MAX: usize = 10_000;

/// How someone wants to be given the bytes.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The accounts that may be seen; None is all.
    pub visible: Option<&'a [AccountSid]>,
    /// Who asks.
    pub key: KeyId,
    /// How long to wait for what is on its way.
    pub patience: Duration,
    /// Whether the bytes may come while they are being fetched: to whoever can
    /// tell a body that ended from one that broke off.
    pub may_listen: bool,
}

/// Audio that can be had.
pub enum Content {
    /// It is in the bucket.
    Stored(Box<Stored>),
    /// It is being fetched, and flows.
    Live(Live),
}

/// A stored recording, not opened yet.
#[derive(Debug)]
pub struct Stored {
    /// The recording.
    pub recording: Recording,
    /// Its object.
    pub object: StoredObject,
    /// Who asked for it.
    key: KeyId,
    /// How far the feed was followed when it was looked up.
    seen: Option<Cursor>,
}

/// A recording that flows while it is being fetched.
pub struct Live {
    /// What it is.
    pub format: Format,
    /// The name under which it is saved.
    pub name: String,
    /// The bytes.
    pub flow: Flow,
}

/// Why a stream did not go on to its end.
#[derive(Debug, thiserror::Error)]
pub enum BrokenOff {
    /// The bytes in the bucket are not those that the row names.
    #[error("the object is not what its row says")]
    Wrong,
    /// The bucket did not give them.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The attempt that was listened to failed.
    #[error("the fetch that was listened to failed")]
    Attempt,
    /// The recording was erased meanwhile.
    #[error("the recording was erased")]
    Erased,
}

/// Recordings of which the object was found wrong lately, and when.
#[derive(Default)]
pub(super) struct Doubts(Mutex<HashMap<RecordingId, Instant>>);

impl Doubts {
    /// Whether to say so: once in a while.
    fn is_new(&self, id: RecordingId) -> bool {
        let mut doubts = self.0.lock().expect("nothing panics while it holds the doubts");
        if doubts.get(&id).is_some_and(|at| at.elapsed() < DOUBTED_AGAIN_AFTER) {
            return false;
        }
        if doubts.len() >= DOUBTED_MAX {
            doubts.clear();
        }
        doubts.insert(id, Instant::now());
        true
    }
}

impl Stored {
    /// The name under which it is saved.
    pub fn name(&self) -> String {
        download_name(&self.recording, self.object.format)
    }

    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.object.size_bytes.unsigned_abs()
    }
}

impl Vault {
    /// Audio, as soon as it can be had: stored, or from the fetch of it on this
    /// node. What that fetch has held back is given once it is committed.
    pub async fn content(
        self: &Arc<Self>,
        wanted: Wanted,
        request: &Request<'_>,
    ) -> Result<Delivery<Content>, DeliveryError> {
        let hear = |id| async move {
            if request.may_listen { self.lives.listen(id).await } else { std::future::pending().await }
        };
        let seen = self.follower.reached();
        let arrived = self.arrival(wanted, request.visible, request.patience, hear).await?;
        match arrived.ready() {
            Ok(Arrival::Stored { recording, object, said_by, now }) => {
                if said_by == SaidBy::Catalog {
                    self.remember(wanted, request.visible, &recording, now + self.link_ttl, seen);
                }
                Ok(Delivery::Ready(Content::Stored(Box::new(Stored { recording, object, key: request.key, seen }))))
            }
            Ok(Arrival::Live(recording, listener)) => {
                let open = self.open_stream(recording.id, request.key, seen)?;
                let (format, name) = (listener.format, download_name(&recording, listener.format));
                let flow = self.flow(recording, Source::Live(listener), Check::of_whole(), open);
                Ok(Delivery::Ready(Content::Live(Live { format, name, flow })))
            }
            Err(other) => Ok(other),
        }
    }

    /// The bytes of a stored recording, or a part of them.
    pub async fn read(self: &Arc<Self>, stored: &Stored, part: Option<Range<u64>>) -> Result<Flow, DeliveryError> {
        let (recording, object) = (&stored.recording, &stored.object);
        let open = self.open_stream(recording.id, stored.key, stored.seen)?;
        // As browsers ask for all of it: from the first byte on.
        let part = part.filter(|part| *part != (0..stored.size_bytes()));
        let check = part.as_ref().map_or_else(Check::of_whole, |part| Check::Part { left: part.end - part.start });
        let chunks = self.open_object(recording, object, part).await?;
        let source = Source::Bucket { chunks, object: object.clone(), held_back: None };
        let mut flow = self.flow(recording.clone(), source, check, open);
        // What is short is known to be right, or wrong, before anything is answered.
        let first = flow.next().await.transpose().map_err(|broken_off| match broken_off {
            BrokenOff::Bucket(error) => DeliveryError::Read(error),
            BrokenOff::Wrong | BrokenOff::Attempt | BrokenOff::Erased => DeliveryError::Missing,
        })?;
        Ok(stream::iter(first.map(Ok)).chain(flow).boxed())
    }

    /// Makes sure that the object of a stored recording is there.
    pub async fn confirm(&self, stored: &Stored) -> Result<(), DeliveryError> {
        self.confirm_object(&stored.recording, &stored.object).await
    }

    async fn confirm_object(&self, recording: &Recording, object: &StoredObject) -> Result<(), DeliveryError> {
        let facts = self.bucket.facts(&object.key).await.map_err(DeliveryError::Read)?;
        if facts.is_some_and(|facts| i64::try_from(facts.size_bytes) == Ok(object.size_bytes)) {
            return Ok(());
        }
        self.doubt(recording).await;
        Err(DeliveryError::Missing)
    }

    async fn open_object(
        &self,
        recording: &Recording,
        object: &StoredObject,
        part: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, bucket::Result<Bytes>>, DeliveryError> {
        match self.bucket.read(&object.key, part.clone()).await {
            Ok(Some(reading)) if i64::try_from(reading.size_bytes) == Ok(object.size_bytes) => Ok(reading.chunks),
            Ok(_) => {
                self.doubt(recording).await;
                Err(DeliveryError::Missing)
            }
            Err(error) if part.is_some() && error.is_refusal() => {
                // The part may lie behind the end of an object that is too short.
                self.confirm_object(recording, object).await?;
                Err(DeliveryError::Read(error))
            }
            Err(error) => Err(DeliveryError::Read(error)),
        }
    }

    /// Has a row looked at whose object is not what it says.
    async fn doubt(&self, recording: &Recording) {
        if !self.doubts.is_new(recording.id) {
            return;
        }
        let call = recording.details.call_sid.map(tracing::field::display);
        tracing::error!(recording = %recording.id, call, "the object of a stored recording is missing or wrong; it will be looked at");
        let lease = Lease { id: recording.id, epoch: recording.epoch };
        if let Err(error) = self.catalog.doubt(&lease).await {
            tracing::warn!(recording = %recording.id, call, %error, "that it is to be looked at is not noted");
        }
    }

    fn flow(self: &Arc<Self>, recording: Recording, source: Source, check: Check, open: OpenStream) -> Flow {
        let flowing = Flowing { vault: self.clone(), recording, source, check, open };
        stream::try_unfold(Some(flowing), async |flowing| {
            let Some(mut flowing) = flowing else { return Ok(None) };
            Ok(match flowing.next().await? {
                Next::Bytes(bytes) => Some((bytes, Some(flowing))),
                Next::Last(bytes) => {
                    flowing.open.note_end("complete");
                    Some((bytes, None))
                }
            })
        })
        .boxed()
    }
}

/// What a stream is made of.
enum Source {
    Live(Listener),
    Bucket { chunks: BoxStream<'static, bucket::Result<Bytes>>, object: StoredObject, held_back: Option<Bytes> },
}

/// What has flowed so far, against what should have in the end.
enum Check {
    Whole { hasher: Hasher, passed_bytes: u64 },
    Part { left: u64 },
}

impl Check {
    fn of_whole() -> Self {
        Self::Whole { hasher: Hasher::default(), passed_bytes: 0 }
    }

    fn take(&mut self, bytes: &Bytes) -> Result<(), BrokenOff> {
        let len = bytes.len() as u64;
        match self {
            Self::Whole { hasher, passed_bytes } => {
                hasher.update(bytes);
                *passed_bytes += len;
            }
            Self::Part { left } => *left = left.checked_sub(len).ok_or(BrokenOff::Wrong)?,
        }
        Ok(())
    }

    /// Whether all has come that should have.
    fn finish(&mut self, object: &StoredObject) -> Result<(), BrokenOff> {
        let is_right = match self {
            Self::Whole { hasher, passed_bytes } => {
                i64::try_from(*passed_bytes) == Ok(object.size_bytes)
                    && std::mem::take(hasher).finish() == object.digest
            }
            Self::Part { left } => *left == 0,
        };
        if is_right { Ok(()) } else { Err(BrokenOff::Wrong) }
    }

    fn passed_bytes(&self) -> u64 {
        match self {
            Self::Whole { passed_bytes, .. } => *passed_bytes,
            Self::Part { .. } => 0,
        }
    }
}

enum Next {
    Bytes(Bytes),
    Last(Bytes),
}

struct Flowing {
    vault: Arc<Vault>,
    recording: Recording,
    source: Source,
    check: Check,
    open: OpenStream,
}

impl Flowing {
    async fn next(&mut self) -> Result<Next, BrokenOff> {
        let ended = self.open.ended();
        let next = tokio::select! {
            biased;
            () = ended.cancelled() => Err(BrokenOff::Erased),
            next = self.next_bytes() => next,
        };
        match &next {
            Ok(Next::Bytes(bytes) | Next::Last(bytes)) => telemetry::streamed_bytes(bytes.len()),
            Err(error) => {
                self.open.note_end("broken_off");
                let call = self.recording.details.call_sid.map(tracing::field::display);
                tracing::warn!(recording = %self.recording.id, call, %error, "a stream of audio was broken off");
                if matches!(error, BrokenOff::Wrong) {
                    self.vault.doubt(&self.recording).await;
                }
            }
        }
        next
    }

    async fn next_bytes(&mut self) -> Result<Next, BrokenOff> {
        loop {
            match &mut self.source {
                Source::Live(listener) => match listener.hear(self.check.passed_bytes()).await {
                    Heard::Bytes(bytes) => {
                        self.check.take(&bytes)?;
                        return Ok(Next::Bytes(bytes));
                    }
                    Heard::Last(bytes, object) => {
                        self.check.take(&bytes)?;
                        self.check.finish(&object)?;
                        return Ok(Next::Last(bytes));
                    }
                    Heard::Behind(object) => self.go_on_from_the_bucket(object).await?,
                    Heard::Silence | Heard::Failed => return Err(BrokenOff::Attempt),
                },
                Source::Bucket { chunks, object, held_back } => match chunks.next().await.transpose()? {
                    Some(chunk) if chunk.is_empty() => {}
                    Some(chunk) => {
                        self.check.take(&chunk)?;
                        if let Some(bytes) = held_back.replace(chunk) {
                            return Ok(Next::Bytes(bytes));
                        }
                    }
                    None => {
                        self.check.finish(object)?;
                        return Ok(Next::Last(held_back.take().unwrap_or_default()));
                    }
                },
            }
        }
    }

    async fn go_on_from_the_bucket(&mut self, object: StoredObject) -> Result<(), BrokenOff> {
        let rest = self.check.passed_bytes()..object.size_bytes.unsigned_abs();
        let opened = self.vault.open_object(&self.recording, &object, Some(rest)).await;
        let chunks = opened.map_err(|error| match error {
            DeliveryError::Read(error) => BrokenOff::Bucket(error),
            _ => BrokenOff::Wrong,
        })?;
        self.source = Source::Bucket { chunks, object, held_back: None };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::digest::Digest;

    fn object(bytes: &[u8]) -> StoredObject {
        StoredObject {
            digest: Digest::of(bytes),
            size_bytes: bytes.len() as i64,
            format: Format::Mp3,
            key: "key".to_owned(),
        }
    }

    #[test]
    fn a_whole_is_right_only_with_its_digest_and_a_part_only_with_its_length() {
        let whole = |chunks: &[&'static [u8]]| {
            let mut check = Check::of_whole();
            let taken = chunks.iter().try_for_each(|chunk| check.take(&Bytes::from_static(chunk)));
            taken.and_then(|()| check.finish(&object(b"some audio"))).is_ok()
        };
        assert!(whole(&[b"some ", b"audio"]));
        let wrong: [&[&'static [u8]]; 4] = [&[b"some audi"], &[b"some audiO"], &[b"some audio", b"x"], &[]];
        assert!(wrong.iter().all(|chunks| !whole(chunks)));
        let part = |chunk: &'static [u8]| {
            let mut check = Check::Part { left: 4 };
            check.take(&Bytes::from_static(chunk)).and_then(|()| check.finish(&object(b"some audio"))).is_ok()
        };
        assert!(part(b"some") && !part(b"som") && !part(b"some "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubt_is_told_once_in_a_while() {
        let doubts = Doubts::default();
        let id = crate::domain::recording::tests::recording(1, crate::domain::recording::State::Stored, 1).id;
        assert!(doubts.is_new(id) && !doubts.is_new(id));
        tokio::time::advance(DOUBTED_AGAIN_AFTER).await;
        assert!(doubts.is_new(id));
    }
}
