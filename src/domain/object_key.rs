//! The layout of the bucket: keys, metadata, and how objects may be cached.
//!
//! A key is the call, the recording and the content, so no write can ever put
//! other bytes at a key that is in use. Owns every path and every metadata name
//! that this service writes; nothing else builds one.

use jiff::Timestamp;

use super::digest::Digest;
use super::media::Format;
use super::recording::{Details, RecordingId};

/// What browsers and caches are told of every object: its content never changes.
pub const CACHE_CONTROL: &str = "private, max-age=31536000, immutable";

/// What an empty object beside the audio says of a recording, so that the bucket
/// alone is enough to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// It was erased, and never comes back.
    Erased,
    /// A hold forbids its removal.
    Held,
}

impl Marker {
    /// What it says, in a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Erased => "erased",
            Self::Held => "held",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Erased => ".erased/",
            Self::Held => ".held/",
        }
    }
}

/// The bucket's layout below one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Empty, or ends with a slash.
    prefix: String,
}

impl Layout {
    /// The layout below `prefix`, which may have slashes around it or be empty.
    pub fn below(prefix: &str) -> Self {
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { prefix }
    }

    /// What every key begins with: empty, or ending with a slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where every object of a recording lies: `<prefix>/<CallSid>/<RecordingSid>/`,
    /// or the ConferenceSid where there is no call. None while neither is known.
    pub fn recording_folder(&self, id: &RecordingId, details: &Details) -> Option<String> {
        let folder = match (&details.call_sid, &details.conference_sid) {
            (Some(call), _) => call.as_str(),
            (None, Some(conference)) => conference.as_str(),
            (None, None) => return None,
        };
        Some(format!("{}{folder}/{}/", self.prefix, id.recording))
    }

    /// The key of a recording's audio. None while neither call nor conference is known.
    pub fn audio(&self, id: &RecordingId, details: &Details, digest: &Digest, format: Format) -> Option<String> {
        let folder = self.recording_folder(id, details)?;
        Some(format!("{folder}{digest}.{}", format.as_str()))
    }

    /// What the name of an object says it is; None where this service did not give it.
    pub fn content_of(key: &str) -> Option<(Digest, Format)> {
        let name = key.rsplit('/').next()?;
        let (digest, format) = name.split_once('.')?;
        Some((digest.parse().ok()?, format.parse().ok()?))
    }

    /// What the keys of all that is kept begin with, recordings and markers.
    pub fn kept(&self) -> impl Iterator<Item = String> {
        let calls = ["CA", "CF"].into_iter();
        calls.chain([Marker::Erased, Marker::Held].map(Marker::folder)).map(|begin| format!("{}{begin}", self.prefix))
    }

    /// Where attempts are staged.
    pub fn staging_folder(&self) -> String {
        format!("{}.staging/", self.prefix)
    }

    /// Where the attempt of one epoch is staged.
    pub fn staging(&self, id: &RecordingId, epoch: i64) -> String {
        format!("{}{epoch}", self.staging_of(id))
    }

    /// Where all markers of a kind lie.
    pub fn marker_folder(&self, marker: Marker) -> String {
        format!("{}{}", self.prefix, marker.folder())
    }

    /// The key of a recording's marker.
    pub fn marker(&self, marker: Marker, id: &RecordingId) -> String {
        format!("{}{}/{}", self.marker_folder(marker), id.account, id.recording)
    }

    /// What the staging keys of all attempts at a recording begin with.
    pub fn staging_of(&self, id: &RecordingId) -> String {
        format!("{}{}/{}.", self.staging_folder(), id.account, id.recording)
    }

    /// The recording that a marker's key names; None where it is no such key.
    pub fn marked(&self, marker: Marker, key: &str) -> Option<RecordingId> {
        let (account, recording) = key.strip_prefix(&self.marker_folder(marker))?.split_once('/')?;
        Some(RecordingId { account: account.parse().ok()?, recording: recording.parse().ok()? })
    }
}

/// What the marker of an erased recording says while its copy at Twilio is still to go.
pub const AT_TWILIO: (&str, &str) = ("at-twilio", "owed");

/// The user metadata of a marker: the SIDs that its key does not name, by which
/// calls that it belongs to are answered, and whether Twilio's copy is still to go.
pub fn marker_metadata(id: &RecordingId, details: &Details, owes_twilio: bool) -> Vec<(&'static str, String)> {
    let known = [
        ("account-sid", Some(id.account.to_string())),
        ("call-sid", details.call_sid.map(|sid| sid.to_string())),
        ("recording-sid", Some(id.recording.to_string())),
        ("conference-sid", details.conference_sid.map(|sid| sid.to_string())),
        (AT_TWILIO.0, owes_twilio.then(|| AT_TWILIO.1.to_owned())),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// The user metadata of one object, as names and values.
pub fn metadata(
    id: &RecordingId,
    details: &Details,
    digest: &Digest,
    stored_at: Timestamp,
) -> Vec<(&'static str, String)> {
    let known = [
        ("sha256", Some(digest.to_string())),
        ("account-sid", Some(id.account.to_string())),
        ("call-sid", details.call_sid.map(|sid| sid.to_string())),
        ("recording-sid", Some(id.recording.to_string())),
        ("conference-sid", details.conference_sid.map(|sid| sid.to_string())),
        ("duration-seconds", details.duration_seconds.map(|seconds| seconds.to_string())),
        ("channels", details.channels.map(|channels| channels.to_string())),
        ("recorded-at", details.recorded_at.map(|at| at.to_string())),
        ("stored-at", Some(stored_at.to_string())),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> RecordingId {
        RecordingId {
            account: format!("AC{}", "a".repeat(32)).parse().unwrap(),
            recording: format!("RE{}", "b".repeat(32)).parse().unwrap(),
        }
    }

    fn details() -> Details {
        Details {
            call_sid: Some(format!("CA{}", "c".repeat(32)).parse().unwrap()),
            conference_sid: Some(format!("CF{}", "d".repeat(32)).parse().unwrap()),
            ..Details::default()
        }
    }

    #[test]
    fn the_key_names_call_recording_and_content() {
        let digest = Digest::of(b"abc");
        let key = Layout::below("").audio(&id(), &details(), &digest, Format::Mp3);
        let expected = format!("CA{}/RE{}/{digest}.mp3", "c".repeat(32), "b".repeat(32));
        assert_eq!(key, Some(expected));
    }

    #[test]
    fn a_marker_names_its_recording_and_nothing_else_does() {
        let layout = Layout::below("calls");
        let key = layout.marker(Marker::Erased, &id());
        assert_eq!(key, format!("calls/.erased/AC{}/RE{}", "a".repeat(32), "b".repeat(32)));
        assert_eq!(layout.marked(Marker::Erased, &key), Some(id()));
        assert_eq!(layout.marked(Marker::Held, &key), None);
        for wrong in [format!("{key}/x"), format!("x{key}"), "calls/.erased/".to_owned(), key.to_lowercase()] {
            assert_eq!(layout.marked(Marker::Erased, &wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_conference_without_a_call_has_its_own_folder() {
        let digest = Digest::of(b"abc");
        let details = Details { call_sid: None, ..details() };
        let key = Layout::below("/deep/prefix/").audio(&id(), &details, &digest, Format::Wav);
        let expected = format!("deep/prefix/CF{}/RE{}/{digest}.wav", "d".repeat(32), "b".repeat(32));
        assert_eq!(key, Some(expected));
    }

    #[test]
    fn no_key_is_made_before_the_call_is_known() {
        assert_eq!(Layout::below("").audio(&id(), &Details::default(), &Digest::of(b""), Format::Wav), None);
    }

    #[test]
    fn a_key_tells_its_content() {
        let digest = Digest::of(b"abc");
        let key = Layout::below("p").audio(&id(), &details(), &digest, Format::Wav).unwrap();
        assert_eq!(Layout::content_of(&key), Some((digest, Format::Wav)));
        for other in ["", "CA/RE/notes.txt", "CA/RE/abc.mp3", &format!("CA/RE/{digest}"), &format!("{digest}.mp3.bak")]
        {
            assert_eq!(Layout::content_of(other), None, "{other}");
        }
    }

    #[test]
    fn staging_is_apart_for_every_epoch() {
        let staging = Layout::below("p").staging(&id(), 7);
        assert_eq!(staging, format!("p/.staging/AC{}/RE{}.7", "a".repeat(32), "b".repeat(32)));
    }

    #[test]
    fn metadata_says_what_is_known_and_nothing_else() {
        let digest = Digest::of(b"abc");
        let stored_at = "2026-11-23T14:00:00Z".parse().unwrap();
        let recorded_at = Some("2026-11-23T13:00:00Z".parse().unwrap());
        let details = Details { recorded_at, duration_seconds: Some(6), conference_sid: None, ..details() };
        let expected = [
            ("sha256", digest.to_string()),
            ("account-sid", format!("AC{}", "a".repeat(32))),
            ("call-sid", format!("CA{}", "c".repeat(32))),
            ("recording-sid", format!("RE{}", "b".repeat(32))),
            ("duration-seconds", "6".to_owned()),
            ("recorded-at", "2026-11-23T13:00:00Z".to_owned()),
            ("stored-at", "2026-11-23T14:00:00Z".to_owned()),
        ];
        assert_eq!(metadata(&id(), &details, &digest, stored_at), expected);
    }
}
