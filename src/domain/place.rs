//! What lies at a key, and what an object's metadata tells: the layout, read back.
//!
//! Owns the way from the bucket to recordings; [`super::object_key`] owns the way
//! there. Anything that this service would not have written is [`Place::Foreign`].

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::digest::Digest;
use super::media::Format;
use super::object_key::{Layout, Marker};
use super::recording::{Details, RecordingId, StoredObject};
use super::sid::{CallSid, ConferenceSid, RecordingSid};

/// What a key says of what lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A recording's audio.
    Audio(AudioPlace),
    /// What an attempt staged.
    Staged {
        /// The recording.
        id: RecordingId,
        /// The attempt's epoch.
        epoch: i64,
    },
    /// A marker.
    Marker(Marker, RecordingId),
    /// What this service did not write.
    Foreign,
}

/// Where a recording's audio lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AudioPlace {
    /// The call whose folder it is.
    pub call_sid: Option<CallSid>,
    /// The conference whose folder it is, where it is no call's.
    pub conference_sid: Option<ConferenceSid>,
    /// The recording.
    pub recording: RecordingSid,
    /// What the bytes hash to.
    pub digest: Digest,
    /// What they are.
    pub format: Format,
}

/// What an object says of itself, in agreement with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Whose it is.
    pub id: RecordingId,
    /// What is known of the recording.
    pub details: Details,
    /// When it was stored.
    pub stored_at: Timestamp,
}

impl Layout {
    /// What lies at a key.
    pub fn place(&self, key: &str) -> Place {
        self.staged(key).or_else(|| self.marker_at(key)).or_else(|| self.audio_at(key)).unwrap_or(Place::Foreign)
    }

    fn staged(&self, key: &str) -> Option<Place> {
        let (account, rest) = key.strip_prefix(&self.staging_folder())?.split_once('/')?;
        let (recording, epoch) = rest.split_once('.')?;
        let id = RecordingId { account: account.parse().ok()?, recording: recording.parse().ok()? };
        let epoch = epoch.parse().ok()?;
        (self.staging(&id, epoch) == key).then_some(Place::Staged { id, epoch })
    }

    fn marker_at(&self, key: &str) -> Option<Place> {
        let marked = |marker| Some(Place::Marker(marker, self.marked(marker, key)?));
        marked(Marker::Erased).or_else(|| marked(Marker::Held))
    }

    fn audio_at(&self, key: &str) -> Option<Place> {
        let mut parts = key.strip_prefix(self.prefix())?.split('/');
        let (home, recording, _) = (parts.next()?, parts.next()?, parts.next()?);
        let (call_sid, conference_sid) = (home.parse().ok(), home.parse().ok());
        let (digest, format) = Self::content_of(key)?;
        let is_home = call_sid.is_some() || conference_sid.is_some();
        let recording = recording.parse().ok().filter(|_| is_home && parts.next().is_none())?;
        Some(Place::Audio(AudioPlace { call_sid, conference_sid, recording, digest, format }))
    }

    /// What the metadata of the object at `key` tells; None where it does not agree
    /// with the key, or is not this service's.
    pub fn described(&self, key: &str, metadata: &BTreeMap<String, String>) -> Option<Described> {
        let Place::Audio(place) = self.place(key) else { return None };
        let said = |name: &str| metadata.get(name).map(String::as_str);
        let id = RecordingId { account: said("account-sid")?.parse().ok()?, recording: place.recording };
        let details = said_of_recording(metadata);
        let agrees = said("recording-sid") == Some(place.recording.as_str())
            && said("sha256") == Some(place.digest.to_string().as_str())
            && self.audio(&id, &details, &place.digest, place.format).as_deref() == Some(key);
        let stored_at = said("stored-at")?.parse().ok()?;
        agrees.then_some(Described { id, details, stored_at })
    }
}

/// What an object's metadata tells of its recording, as far as it can be read. Whether it
/// agrees with the key is another question.
pub fn said_of_recording(metadata: &BTreeMap<String, String>) -> Details {
    let said = |name: &str| metadata.get(name).map(String::as_str);
    Details {
        call_sid: said("call-sid").and_then(|sid| sid.parse().ok()),
        conference_sid: said("conference-sid").and_then(|sid| sid.parse().ok()),
        duration_seconds: said("duration-seconds").and_then(|seconds| seconds.parse().ok()),
        channels: said("channels").and_then(|channels| channels.parse().ok()),
        recorded_at: said("recorded-at").and_then(|at| at.parse().ok()),
        ..Details::default()
    }
}

impl AudioPlace {
    /// The object, once its length is known.
    pub fn object(&self, key: &str, size_bytes: i64) -> StoredObject {
        StoredObject { digest: self.digest, size_bytes, format: self.format, key: key.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::object_key;

    fn id() -> RecordingId {
        RecordingId {
            account: format!("AC{}", "a".repeat(32)).parse().unwrap(),
            recording: format!("RE{}", "b".repeat(32)).parse().unwrap(),
        }
    }

    fn details() -> Details {
        Details {
            call_sid: Some(format!("CA{}", "c".repeat(32)).parse().unwrap()),
            duration_seconds: Some(6),
            channels: Some(2),
            recorded_at: Some("2026-11-23T13:00:00Z".parse().unwrap()),
            ..Details::default()
        }
    }

    #[test]
    fn what_this_service_writes_is_known_by_its_key_and_nothing_else() {
        for prefix in ["", "deep/prefix"] {
            let layout = Layout::below(prefix);
            let digest = Digest::of(b"abc");
            let audio = layout.audio(&id(), &details(), &digest, Format::Mp3).unwrap();
            let Place::Audio(place) = layout.place(&audio) else { panic!("{audio}") };
            assert_eq!((place.call_sid, place.recording), (details().call_sid, id().recording));
            assert_eq!((place.digest, place.format), (digest, Format::Mp3));
            let conference = Details {
                call_sid: None,
                conference_sid: Some(format!("CF{}", "d".repeat(32)).parse().unwrap()),
                ..details()
            };
            let key = layout.audio(&id(), &conference, &digest, Format::Wav).unwrap();
            assert!(matches!(layout.place(&key), Place::Audio(place) if place.conference_sid.is_some()));
            assert_eq!(layout.place(&layout.staging(&id(), 7)), Place::Staged { id: id(), epoch: 7 });
            for marker in [Marker::Erased, Marker::Held] {
                assert_eq!(layout.place(&layout.marker(marker, &id())), Place::Marker(marker, id()));
            }
            let staged = layout.staging(&id(), 7);
            for foreign in [
                format!("x{audio}"),
                format!("{audio}/x"),
                audio.replace("CA", "XX"),
                audio.replace(".mp3", ".ogg"),
                format!("{staged}x"),
                staged.replace(".7", ".07"),
                layout.staging_folder(),
                "notes.txt".to_owned(),
                String::new(),
                "a//b".to_owned(),
            ] {
                assert_eq!(layout.place(&foreign), Place::Foreign, "{foreign}");
            }
        }
    }

    #[test]
    fn metadata_is_believed_where_it_agrees_with_the_key() {
        let layout = Layout::below("p");
        let digest = Digest::of(b"abc");
        let key = layout.audio(&id(), &details(), &digest, Format::Mp3).unwrap();
        let stored_at = "2026-11-23T14:00:00Z".parse().unwrap();
        let right: BTreeMap<String, String> = object_key::metadata(&id(), &details(), &digest, stored_at)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        assert_eq!(layout.described(&key, &right), Some(Described { id: id(), details: details(), stored_at }));
        for name in ["sha256", "account-sid", "call-sid", "recording-sid", "stored-at"] {
            let mut wrong = right.clone();
            wrong.insert(name.to_owned(), "something-else".to_owned());
            assert_eq!(layout.described(&key, &wrong), None, "{name}");
            wrong.remove(name);
            assert_eq!(layout.described(&key, &wrong), None, "no {name}");
        }
    }
}
