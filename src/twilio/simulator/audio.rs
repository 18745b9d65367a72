//! The media that the simulator serves: real speech, or any length of sound
//! made up as it is sent.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use crate::domain::digest::{Digest, Hasher};
use crate::domain::media::Format;

/// Six seconds of two people: MP3 at 32 kbit/s.
pub fn speech_mp3() -> Bytes {
    Bytes::from_static(include_bytes!("../../../tests/fixtures/speech-mono.mp3"))
}

/// The same as 8 kHz 16-bit WAV.
pub fn speech_wav() -> Bytes {
    Bytes::from_static(include_bytes!("../../../tests/fixtures/speech-mono.wav"))
}

/// The same with each of them on a channel.
pub fn speech_dual_wav() -> Bytes {
    Bytes::from_static(include_bytes!("../../../tests/fixtures/speech-dual.wav"))
}

/// The media of one recording, by what is asked for. None is answered with 404.
#[derive(Debug, Clone, Default)]
pub struct Audio {
    /// `.mp3`.
    pub mp3: Option<Body>,
    /// `.wav`, no extension, and `RequestedChannels=1`.
    pub wav: Option<Body>,
    /// `RequestedChannels=2`.
    pub dual_wav: Option<Body>,
}

impl Audio {
    /// Real speech in all formats.
    pub fn speech() -> Self {
        Self {
            mp3: Some(Body::Bytes(speech_mp3())),
            wav: Some(Body::Bytes(speech_wav())),
            dual_wav: Some(Body::Bytes(speech_dual_wav())),
        }
    }

    /// A WAV of so many bytes, and nothing else.
    pub fn made_up_wav(len_bytes: u64, seed: u64) -> Self {
        Self { wav: Some(Body::MadeUp { len_bytes, seed }), ..Self::default() }
    }

    pub(super) fn body(&self, extension: Option<Format>, channels: Option<u8>) -> Option<&Body> {
        match (extension, channels) {
            (Some(Format::Mp3), _) => self.mp3.as_ref(),
            (_, Some(2)) => self.dual_wav.as_ref(),
            _ => self.wav.as_ref(),
        }
    }
}

/// The bytes of one format.
#[derive(Debug, Clone)]
pub enum Body {
    /// These.
    Bytes(Bytes),
    /// An 8 kHz 16-bit mono WAV of noise, the same for the same seed, made as
    /// it is read, so that it may be larger than memory.
    MadeUp {
        /// Its length, header included; at least 44.
        len_bytes: u64,
        /// What the noise is made of.
        seed: u64,
    },
}

/// Noise is made in blocks of this size.
const BLOCK_BYTES: usize = 64 << 10;
const WAV_HEADER_BYTES: u64 = 44;

impl Body {
    /// How many bytes it has.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::MadeUp { len_bytes, .. } => *len_bytes,
        }
    }

    /// Its SHA-256. Takes as long as making the bytes does.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        self.blocks().for_each(|block| hasher.update(&block));
        hasher.finish()
    }

    pub(super) fn stream(&self) -> BoxStream<'static, Bytes> {
        stream::iter(self.blocks()).boxed()
    }

    fn blocks(&self) -> Box<dyn Iterator<Item = Bytes> + Send> {
        match self {
            Self::Bytes(bytes) => Box::new(std::iter::once(bytes.clone())),
            Self::MadeUp { len_bytes, seed } => Box::new(made_up(*len_bytes, *seed)),
        }
    }
}

fn made_up(len_bytes: u64, seed: u64) -> impl Iterator<Item = Bytes> + Send {
    let data_bytes = len_bytes.saturating_sub(WAV_HEADER_BYTES);
    let mut state = seed | 1;
    let blocks = (0..data_bytes).step_by(BLOCK_BYTES).map(move |at| {
        let block_bytes = usize::try_from(data_bytes - at).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let mut block = Vec::with_capacity(block_bytes + 8);
        while block.len() < block_bytes {
            // Marsaglia's xorshift64: fast, and no two blocks are alike.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        block.truncate(block_bytes);
        Bytes::from(block)
    });
    std::iter::once(wav_header(data_bytes)).chain(blocks)
}

/// A canonical WAVE header (Multimedia Programming Interface 1.0) for 8 kHz 16-bit mono PCM.
fn wav_header(data_bytes: u64) -> Bytes {
    let data_bytes = u32::try_from(data_bytes).unwrap_or(u32::MAX);
    let mut header = Vec::with_capacity(44);
    header.extend_from_slice(b"RIFF");
    header.extend_from_slice(&data_bytes.saturating_add(36).to_le_bytes());
    header.extend_from_slice(b"WAVEfmt ");
    header.extend_from_slice(&16u32.to_le_bytes());
    header.extend_from_slice(&1u16.to_le_bytes());
    header.extend_from_slice(&1u16.to_le_bytes());
    header.extend_from_slice(&8000u32.to_le_bytes());
    header.extend_from_slice(&16_000u32.to_le_bytes());
    header.extend_from_slice(&2u16.to_le_bytes());
    header.extend_from_slice(&16u16.to_le_bytes());
    header.extend_from_slice(b"data");
    header.extend_from_slice(&data_bytes.to_le_bytes());
    Bytes::from(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::media::sniff;

    #[test]
    fn made_up_sound_has_its_length_and_is_wav() {
        for len_bytes in [44, 45, 1000, 200_001] {
            let body = Body::MadeUp { len_bytes, seed: 7 };
            let bytes: Vec<u8> = body.blocks().flatten().collect();
            assert_eq!(bytes.len() as u64, len_bytes);
            assert_eq!(sniff(&bytes), Some(Format::Wav));
            assert_eq!(body.digest(), Digest::of(&bytes));
        }
    }

    #[test]
    fn another_seed_is_another_sound() {
        let digest = |seed| Body::MadeUp { len_bytes: 1000, seed }.digest();
        assert_eq!(digest(2), digest(2));
        assert_ne!(digest(2), digest(4));
    }
}
