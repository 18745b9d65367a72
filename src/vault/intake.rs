//! What comes from Twilio, on its way through the hash.
//!
//! Bytes that came and were not passed on yet are held on the tape; what is held
//! is bounded by whoever passes it on.

use std::sync::Arc;

use bytes::Bytes;

use super::fetch::AttemptError;
use super::tape::Tape;
use crate::domain::digest::Hasher;
use crate::domain::media::{Format, SNIFF_LEN, settled_by, sniff};
use crate::twilio::decrypt::Decryptor;
use crate::twilio::media::Media;

/// So many bytes of an encrypted body are not all readable text by chance.
const TOLD_BY: usize = 64;

/// Bytes that come, hashed and counted.
pub(super) struct Intake {
    /// Where they go.
    pub(super) tape: Arc<Tape>,
    /// What came in all.
    pub(super) size_bytes: i64,
    /// Of all that came.
    pub(super) hasher: Hasher,
    sealed: Option<Sealed>,
}

/// Of an encrypted body: what opens it, and how it begins as it comes.
struct Sealed {
    decryptor: Decryptor,
    first: Vec<u8>,
}

impl Intake {
    /// What is to come; with a decryptor, what it makes of that.
    pub(super) fn of(media: &Media, decryptor: Option<Decryptor>) -> Self {
        let announced_bytes = match decryptor {
            Some(_) => media.announced_bytes.map(Decryptor::plain_bytes),
            None => media.announced_bytes,
        };
        let tape = Arc::new(Tape::new(announced_bytes));
        let sealed = decryptor.map(|decryptor| Sealed { decryptor, first: Vec::new() });
        Self { tape, size_bytes: 0, hasher: Hasher::default(), sealed }
    }

    /// Reads until the format can be told.
    pub(super) async fn begin(&mut self, media: &mut Media) -> Result<Format, AttemptError> {
        while self.tape.waiting_bytes() < SNIFF_LEN as u64 && self.read(media).await? {
            // Whoever listens hears it as soon as it is known to be audio.
            if let Some(format) = settled_by(&self.tape.first(SNIFF_LEN)) {
                return Ok(format);
            }
        }
        let first = self.tape.first(SNIFF_LEN);
        if let Some(format) = sniff(&first) {
            return Ok(format);
        }
        // Whether what was decrypted is wrong, or right and no audio, its end tells.
        while self.sealed.is_some() && self.read(media).await? {
            drop(self.tape.pass_on_and_let_go());
        }
        Err(not_audio(&first))
    }

    /// Takes the next bytes; false at the end, when an encrypted body was found to be right.
    pub(super) async fn read(&mut self, media: &mut Media) -> Result<bool, AttemptError> {
        let Some(chunk) = media.chunk().await? else {
            self.sealed.take().map_or(Ok(()), Sealed::finish)?;
            self.tape.all_came();
            return Ok(false);
        };
        let chunk = match &mut self.sealed {
            Some(sealed) => {
                let opened = sealed.open(&chunk);
                // It takes the processor: the lease is renewed in between.
                tokio::task::yield_now().await;
                opened
            }
            None => chunk,
        };
        self.hasher.update(&chunk);
        self.size_bytes += i64::try_from(chunk.len()).unwrap_or(i64::MAX);
        self.tape.push(chunk);
        Ok(true)
    }
}

impl Sealed {
    fn open(&mut self, chunk: &[u8]) -> Bytes {
        let missing = TOLD_BY.saturating_sub(self.first.len()).min(chunk.len());
        self.first.extend_from_slice(&chunk[..missing]);
        self.decryptor.update(chunk)
    }

    /// An error page is not what was encrypted: that may pass by itself.
    fn finish(self) -> Result<(), AttemptError> {
        let is_text = self.first.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        self.decryptor.finish().map_err(|error| if is_text { not_audio(&self.first) } else { error.into() })
    }
}

fn not_audio(first: &[u8]) -> AttemptError {
    AttemptError::NotAudio(first[..first.len().min(16)].escape_ascii().to_string())
}
