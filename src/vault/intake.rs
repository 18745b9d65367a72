//! What comes from Twilio, on its way through the hash.
//!
//! Bytes that came and were not passed on yet are held on the tape; what is held
//! is bounded by whoever passes it on.

use std::sync::Arc;

use super::fetch::AttemptError;
use super::tape::Tape;
use crate::domain::digest::Hasher;
use crate::domain::media::{Format, SNIFF_LEN, sniff};
use crate::twilio::media::Media;

/// Bytes that come, hashed and counted.
pub(super) struct Intake {
    /// Where they go.
    pub(super) tape: Arc<Tape>,
    /// What came in all.
    pub(super) size_bytes: i64,
    /// Of all that came.
    pub(super) hasher: Hasher,
}

impl Intake {
    pub(super) fn of(media: &Media) -> Self {
        Self { tape: Arc::new(Tape::new(media.announced_bytes)), size_bytes: 0, hasher: Hasher::default() }
    }

    /// Reads until the format can be told.
    pub(super) async fn begin(&mut self, media: &mut Media) -> Result<Format, AttemptError> {
        while self.tape.waiting_bytes() < SNIFF_LEN as u64 && self.read(media).await? {}
        let first = self.tape.first(SNIFF_LEN);
        sniff(&first).ok_or_else(|| AttemptError::NotAudio(first[..first.len().min(16)].escape_ascii().to_string()))
    }

    /// Takes the next bytes; false at the end.
    pub(super) async fn read(&mut self, media: &mut Media) -> Result<bool, AttemptError> {
        let Some(chunk) = media.chunk().await? else { return Ok(false) };
        self.hasher.update(&chunk);
        self.size_bytes += i64::try_from(chunk.len()).unwrap_or(i64::MAX);
        self.tape.push(chunk);
        Ok(true)
    }
}
