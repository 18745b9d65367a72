//! Audio formats: what may be asked of Twilio, and what bytes really are.
//!
//! A name, an extension or a Content-Type is never trusted: the best-known bug
//! of this field is the XML body of a 404 that was stored as audio.
//! [`sniff`] decides by the first bytes, and no text (HTML, XML or JSON in any
//! encoding) ever passes it.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// As many of the first bytes as [`sniff`] can make use of. Two MPEG frames
/// at the highest bit rate fit.
pub const SNIFF_LEN: usize = 4096;

/// What a stored recording is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// MPEG audio layer III.
    Mp3,
    /// RIFF WAVE.
    Wav,
}

impl Format {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Mp3, Self::Wav];

    /// `mp3` or `wav`: the extension of a key, and the `format` of a recording.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mp3 => "mp3",
            Self::Wav => "wav",
        }
    }

    /// The media type (RFC 3003 for MP3; `audio/wav` as browsers and WHATWG know it).
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Mp3 => "audio/mpeg",
            Self::Wav => "audio/wav",
        }
    }
}

impl FromStr for Format {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "mp3" => Ok(Self::Mp3),
            "wav" => Ok(Self::Wav),
            _ => Err(()),
        }
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The format of a body that begins with `first`, or None where it is not audio.
///
/// `first` should hold [`SNIFF_LEN`] bytes, or the whole body if it is shorter.
pub fn sniff(first: &[u8]) -> Option<Format> {
    if first.len() >= 12 && &first[..4] == b"RIFF" && &first[8..12] == b"WAVE" {
        return Some(Format::Wav);
    }
    (is_id3(first) || is_mpeg_layer_3(first)).then_some(Format::Mp3)
}

/// The format that these first bytes settle, whatever follows them; None is not yet
/// known, or not audio: [`sniff`] tells once there are enough.
pub fn settled_by(first: &[u8]) -> Option<Format> {
    let next = FrameHeader::read(first).and_then(|frame| first.get(frame.len_bytes..));
    let has_next = next.is_some_and(|next| next.len() >= 4);
    sniff(first).filter(|format| *format == Format::Wav || is_id3(first) || has_next)
}

/// An ID3v2 header (id3.org, ID3v2.4 structure, 3.1): version, revision and
/// flags, then a size whose four bytes have their highest bit clear.
fn is_id3(first: &[u8]) -> bool {
    let Some(header) = first.first_chunk::<10>() else { return false };
    &header[..3] == b"ID3"
        && (2..=4).contains(&header[3])
        && header[4] != 0xff
        && header[5] & 0x0f == 0
        && header[6..].iter().all(|byte| byte & 0x80 == 0)
}

/// A whole MPEG audio frame of layer III, followed by another one of the same
/// kind unless the body ends there.
fn is_mpeg_layer_3(first: &[u8]) -> bool {
    let Some(frame) = FrameHeader::read(first) else { return false };
    match first.get(frame.len_bytes..) {
        Some(next) if next.len() >= 4 => FrameHeader::read(next).is_some_and(|next| next.kind == frame.kind),
        Some(_) => first.len() < SNIFF_LEN,
        None => false,
    }
}

/// What an MPEG frame header says (ISO/IEC 11172-3, 2.4.2.3; 13818-3 for the
/// half rates, and the customary MPEG 2.5 extension).
#[derive(Debug, PartialEq, Eq)]
struct FrameHeader {
    /// Version and sample rate: the same in every frame of a file.
    kind: (u8, u8),
    len_bytes: usize,
}

impl FrameHeader {
    fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<4>()?;
        let synchronised = header[0] == 0xff && header[1] & 0xe0 == 0xe0;
        let version = header[1] >> 3 & 0b11;
        let layer = header[1] >> 1 & 0b11;
        let bit_rate = header[2] >> 4;
        let sample_rate = header[2] >> 2 & 0b11;
        let emphasis = header[3] & 0b11;
        const RESERVED_VERSION: u8 = 0b01;
        const LAYER_3: u8 = 0b01;
        if !synchronised || version == RESERVED_VERSION || layer != LAYER_3 || sample_rate == 3 || emphasis == 2 {
            return None;
        }
        const MPEG_1: u8 = 0b11;
        const MPEG_1_KBIT: [usize; 16] = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0];
        const MPEG_2_KBIT: [usize; 16] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0];
        const MPEG_1_HZ: [usize; 3] = [44_100, 48_000, 32_000];
        let (kbit, samples) = if version == MPEG_1 { (MPEG_1_KBIT, 144) } else { (MPEG_2_KBIT, 72) };
        // Index 0 is "free" (a rate that the header does not tell), 15 is forbidden.
        let bits_per_second = kbit[usize::from(bit_rate)] * 1000;
        if bits_per_second == 0 {
            return None;
        }
        let rate_divisor = match version {
            MPEG_1 => 1,
            0b10 => 2,
            _ => 4,
        };
        let hz = MPEG_1_HZ[usize::from(sample_rate)] / rate_divisor;
        let padding = usize::from(header[2] >> 1 & 1);
        Some(Self { kind: (version, sample_rate), len_bytes: samples * bits_per_second / hz + padding })
    }
}

/// One way of asking Twilio for a recording's media: `mp3`, `wav` or `base`
/// (no extension), each perhaps with a number of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The extension that is asked for; none asks for the bare URL.
    pub extension: Option<Format>,
    /// `RequestedChannels`: 1 or 2.
    pub channels: Option<u8>,
}

/// MP3 comes at 32 kbit/s, whatever the channels.
const MP3_BYTES_PER_SECOND: u64 = 4000;
/// 8 kHz, 16 bits.
const WAV_BYTES_PER_SECOND_AND_CHANNEL: u64 = 16_000;

impl Variant {
    /// About how many bytes a recording of that length has, which was made on so many channels.
    pub fn estimated_bytes(&self, seconds: i64, channels: Option<i64>) -> u64 {
        let seconds = u64::try_from(seconds).unwrap_or_default();
        let recorded = channels.and_then(|channels| u64::try_from(channels).ok()).unwrap_or(1);
        let channels = self.channels.map_or(recorded, |requested| recorded.min(requested.into()));
        let bytes_per_second = match self.extension {
            Some(Format::Mp3) => MP3_BYTES_PER_SECOND,
            Some(Format::Wav) | None => channels * WAV_BYTES_PER_SECOND_AND_CHANNEL,
        };
        seconds.saturating_mul(bytes_per_second)
    }

    /// What follows the recording's SID in the URL: `.mp3`, `.wav?RequestedChannels=2`, or nothing.
    pub fn suffix(&self) -> String {
        let extension = self.extension.map(|format| format!(".{}", format.as_str()));
        let channels = self.channels.map(|channels| format!("?RequestedChannels={channels}"));
        extension.into_iter().chain(channels).collect()
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension.map_or("base", Format::as_str))?;
        match self.channels {
            Some(channels) => write!(f, "?RequestedChannels={channels}"),
            None => Ok(()),
        }
    }
}

/// A format list that names something Twilio does not give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`mp3`, `wav` or `base`, each perhaps with `?RequestedChannels=1` or `=2`")]
pub struct InvalidVariant;

impl FromStr for Variant {
    type Err = InvalidVariant;
    fn from_str(text: &str) -> Result<Self, InvalidVariant> {
        let (name, query) = match text.split_once('?') {
            Some((name, query)) => (name, Some(query)),
            None => (text, None),
        };
        let extension = match name {
            "base" => None,
            name => Some(name.parse().map_err(|()| InvalidVariant)?),
        };
        let channels = match query {
            None => None,
            Some("RequestedChannels=1") => Some(1),
            Some("RequestedChannels=2") => Some(2),
            Some(_) => return Err(InvalidVariant),
        };
        Ok(Self { extension, channels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEECH_MP3: &[u8] = include_bytes!("../../tests/fixtures/speech-mono.mp3");
    const SPEECH_MONO: &[u8] = include_bytes!("../../tests/fixtures/speech-mono.wav");
    const SPEECH_DUAL: &[u8] = include_bytes!("../../tests/fixtures/speech-dual.wav");

    fn sniff_start(body: &[u8]) -> Option<Format> {
        sniff(&body[..body.len().min(SNIFF_LEN)])
    }

    #[test]
    fn real_speech_is_known() {
        assert_eq!(sniff_start(SPEECH_MP3), Some(Format::Mp3));
        assert_eq!(sniff_start(SPEECH_MONO), Some(Format::Wav));
        assert_eq!(sniff_start(SPEECH_DUAL), Some(Format::Wav));
    }

    #[test]
    fn mp3_is_known_with_and_without_id3() {
        let audio = match SPEECH_MP3.strip_prefix(b"ID3") {
            Some(tagged) => {
                let size = tagged[3..7].iter().fold(0, |size, byte| size << 7 | usize::from(*byte));
                &tagged[7 + size..]
            }
            None => SPEECH_MP3,
        };
        assert!(audio.starts_with(&[0xff]), "the fixture's audio begins with a frame");
        assert_eq!(sniff_start(audio), Some(Format::Mp3));
        let tagged = [b"ID3\x04\x00\x00\x00\x00\x00\x00".as_slice(), audio].concat();
        assert_eq!(sniff_start(&tagged), Some(Format::Mp3));
    }

    #[test]
    fn what_the_first_bytes_settle_is_what_more_of_them_say() {
        for body in [SPEECH_MP3, SPEECH_MONO, SPEECH_DUAL] {
            let settled = (0..SNIFF_LEN).find(|len| settled_by(&body[..*len]).is_some()).expect("it is audio");
            assert!(settled < 2000, "long before all of them came: {settled}");
            for len in 0..SNIFF_LEN {
                assert_eq!(settled_by(&body[..len]), sniff_start(body).filter(|_| len >= settled), "{len}");
            }
        }
        // One frame alone may be chance, as long as more may come.
        let frame = FrameHeader::read(SPEECH_MP3).expect("the fixture begins with a frame").len_bytes;
        assert_eq!(settled_by(&SPEECH_MP3[..frame + 3]), None);
        assert_eq!(settled_by(&SPEECH_MP3[..frame + 4]), Some(Format::Mp3));
    }

    #[test]
    fn what_twilio_says_instead_of_audio_is_refused() {
        let refused: [&[u8]; 12] = [
            b"",
            b"<!DOCTYPE html><html><body>Service unavailable</body></html>",
            b"<?xml version='1.0' encoding='UTF-8'?>\n<TwilioResponse><RestException><Code>20404</Code>",
            b"{\"code\":20404,\"message\":\"The requested resource was not found\"}",
            b"\xef\xbb\xbf{\"code\":20404}",
            b"\xff\xfe<\x00h\x00t\x00m\x00l\x00>\x00",
            b"\xfe\xff\x00<\x00?\x00x\x00m\x00l",
            b"RIFF\x00\x00\x00\x00AVI LIST",
            b"ID3 is a tag format, this is a text about it",
            b"\xff\xfb",
            b"OggS\x00\x02",
            b"\xff\xd8\xff\xe0\x00\x10JFIF",
        ];
        for body in refused {
            assert_eq!(sniff(body), None, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn a_lone_sync_word_before_something_else_is_refused() {
        let mut body = vec![0xff, 0xe3, 0x18, 0xc4];
        body.resize(SNIFF_LEN, b' ');
        assert_eq!(sniff(&body), None);
    }

    proptest! {
        #[test]
        fn no_text_is_ever_audio(text in "\\PC{0,200}", utf16 in any::<bool>()) {
            let bytes: Vec<u8> = if utf16 {
                std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
            } else {
                text.clone().into_bytes()
            };
            let is_riff = text.starts_with("RIFF") && text.get(8..12) == Some("WAVE");
            prop_assume!(!is_riff);
            prop_assert_eq!(sniff(&bytes), None);
        }

        #[test]
        fn sniffing_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = sniff(&bytes);
        }
    }

    #[test]
    fn sizes_are_estimated_by_length_and_channels() {
        let estimated = |text: &str, channels| text.parse::<Variant>().unwrap().estimated_bytes(60, channels);
        assert_eq!(estimated("mp3", Some(2)), 240_000);
        assert_eq!(estimated("wav", None), 960_000);
        assert_eq!(estimated("base", Some(2)), 1_920_000);
        assert_eq!(estimated("wav?RequestedChannels=1", Some(2)), 960_000);
        assert_eq!(estimated("wav?RequestedChannels=2", Some(1)), 960_000, "there is only one");
        assert_eq!("mp3".parse::<Variant>().unwrap().estimated_bytes(-1, None), 0);
    }

    #[test]
    fn variants_are_written_as_they_are_read() {
        for text in ["mp3", "wav", "base", "wav?RequestedChannels=2", "base?RequestedChannels=1"] {
            assert_eq!(text.parse::<Variant>().unwrap().to_string(), text);
        }
        for text in ["", "ogg", "mp3?", "wav?RequestedChannels=3", "wav?channels=2", "MP3", "mp3,wav"] {
            assert!(text.parse::<Variant>().is_err(), "{text}");
        }
        assert_eq!("base".parse::<Variant>().unwrap().suffix(), "");
        assert_eq!("wav?RequestedChannels=2".parse::<Variant>().unwrap().suffix(), ".wav?RequestedChannels=2");
    }
}
