//! What comes from Twilio, on its way through the hash.
//!
//! Bytes that came and were not passed on yet are held here; what is held is
//! bounded by whoever takes it away.

use bytes::{Bytes, BytesMut};

use super::fetch::AttemptError;
use crate::domain::digest::Hasher;
use crate::domain::media::{Format, SNIFF_LEN, sniff};
use crate::twilio::media::Media;

/// Chunks below this are copied together: each that is kept costs some 100 bytes
/// beside its own.
const SMALL_CHUNK_BYTES: usize = 4 << 10;
/// What small chunks are copied together into.
const GATHERED_BYTES: usize = 64 << 10;

/// Bytes that came and were not passed on yet, hashed and counted.
#[derive(Default)]
pub(super) struct Intake {
    chunks: Vec<Bytes>,
    /// Small chunks, copied together.
    gathered: BytesMut,
    /// What was not passed on yet.
    pub(super) held_bytes: usize,
    /// What came in all.
    pub(super) size_bytes: i64,
    /// Of all that came.
    pub(super) hasher: Hasher,
}

impl Intake {
    /// Reads until the format can be told.
    pub(super) async fn begin(&mut self, media: &mut Media) -> Result<Format, AttemptError> {
        while self.held_bytes < SNIFF_LEN && self.read(media).await? {}
        let held = self.chunks.iter().flatten().chain(&self.gathered);
        let first: Vec<u8> = held.take(SNIFF_LEN).copied().collect();
        sniff(&first).ok_or_else(|| AttemptError::NotAudio(first[..first.len().min(16)].escape_ascii().to_string()))
    }

    /// Takes the next bytes; false at the end.
    pub(super) async fn read(&mut self, media: &mut Media) -> Result<bool, AttemptError> {
        let Some(chunk) = media.chunk().await? else { return Ok(false) };
        self.hasher.update(&chunk);
        self.size_bytes += i64::try_from(chunk.len()).unwrap_or(i64::MAX);
        self.held_bytes += chunk.len();
        if chunk.len() < SMALL_CHUNK_BYTES {
            self.gathered.extend_from_slice(&chunk);
            if self.gathered.len() >= GATHERED_BYTES {
                self.chunks.push(self.gathered.split().freeze());
            }
        } else {
            self.keep_gathered();
            self.chunks.push(chunk);
        }
        Ok(true)
    }

    /// What is held, in order.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.keep_gathered();
        self.held_bytes = 0;
        std::mem::take(&mut self.chunks)
    }

    fn keep_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.chunks.push(self.gathered.split().freeze());
        }
    }
}
