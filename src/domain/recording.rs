//! A recording, its states, and what news may do to it.
//!
//! Owns the table of legal moves and every decision that depends on a state
//! alone. Nothing is ever moved here: the catalog does that, in transactions.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::digest::Digest;
use super::media::Format;
use super::sid::{AccountSid, CallSid, ConferenceSid, RecordingSid};

/// A closed set of words: an enum with one lower-case name a variant, which is
/// how the catalog and the API write it.
macro_rules! words {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word that the catalog and the API use.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text { $($word => Ok(Self::$variant),)+ _ => Err(UnknownWord(stringify!($name))) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

/// A word that is not of its set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a known {0}")]
pub struct UnknownWord(&'static str);

words! {
    /// Where a recording stands.
    pub enum State {
        /// Twilio still records.
        Announced = "announced",
        /// To be fetched as soon as it is due.
        Pending = "pending",
        /// A node holds the lease and works on it.
        Fetching = "fetching",
        /// Its object is in the bucket.
        Stored = "stored",
        /// Its object was dropped, and will be fetched again when asked for.
        Evicted = "evicted",
        /// Twilio says that there is no audio (too short, or silent).
        Absent = "absent",
        /// Given up; the last error tells why.
        Failed = "failed",
        /// Removed, and never to come back.
        Erased = "erased",
    }
}

impl State {
    /// Whether a recording may go from here to `next` (the table of the
    /// catalog in ARCHITECTURE.md). A hold is not looked at here.
    pub fn may_become(self, next: Self) -> bool {
        use State::*;
        match self {
            Announced => matches!(next, Pending | Absent | Failed | Erased),
            Pending => matches!(next, Fetching | Stored | Erased),
            Fetching => matches!(next, Stored | Pending | Failed | Erased),
            Stored => matches!(next, Pending | Evicted | Erased),
            Evicted => matches!(next, Pending | Erased),
            Absent | Failed => matches!(next, Pending | Stored | Erased),
            Erased => false,
        }
    }

    /// Whether whoever asks for the audio may hope for it soon.
    pub fn is_on_its_way(self) -> bool {
        matches!(self, Self::Announced | Self::Pending | Self::Fetching | Self::Evicted)
    }

    /// Whether a call prefers such a recording to one that is over or not begun.
    fn answers_first(self) -> bool {
        matches!(self, Self::Pending | Self::Fetching | Self::Stored | Self::Evicted)
    }
}

words! {
    /// Why an attempt to fetch a recording, or the recording itself, failed.
    pub enum ErrorCode {
        /// Twilio answers 404 for every format: the media is not there yet.
        NotReady = "not_ready",
        /// Twilio answers 429.
        RateLimited = "rate_limited",
        /// Twilio cannot be reached, or answers in a way that is not its word on the recording.
        UpstreamError = "upstream_error",
        /// Twilio refuses the credentials.
        Unauthorized = "unauthorized",
        /// The body under 200 is not audio.
        NotAudio = "not_audio",
        /// The body ended before its announced length, or announced none.
        Truncated = "truncated",
        /// The body has no bytes.
        Empty = "empty",
        /// The body is larger than `CALLVAULT_MAX_RECORDING_SIZE`.
        TooLarge = "too_large",
        /// Twilio redirects to where this service does not go.
        RefusedRedirect = "refused_redirect",
        /// The bucket did not take the object.
        StoreError = "store_error",
        /// The node that fetched it stopped, or lost its lease.
        Interrupted = "interrupted",
        /// The recording is encrypted, and no key opens it.
        DecryptionFailed = "decryption_failed",
        /// The object was found missing or wrong.
        ObjectLost = "object_lost",
        /// Twilio itself says that the recording failed or is gone.
        TwilioFailed = "twilio_failed",
    }
}

/// What identifies a recording. A RecordingSid alone does not: it is only
/// what a callback or an application says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordingId {
    /// The account that owns it.
    pub account: AccountSid,
    /// The recording within the account.
    pub recording: RecordingSid,
}

impl fmt::Display for RecordingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.account, self.recording)
    }
}

/// What Twilio tells about a recording besides its media. None is "not known".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// The call it was made of: Twilio's own, the parent leg.
    pub call_sid: Option<CallSid>,
    /// The conference it was made of.
    pub conference_sid: Option<ConferenceSid>,
    /// Whole seconds.
    pub duration_seconds: Option<i64>,
    /// 1 or 2.
    pub channels: Option<i64>,
    /// `inbound`, `outbound` or `both`.
    pub track: Option<String>,
    /// What made it, such as `DialVerb` (Twilio's RecordingSource).
    pub recording_source: Option<String>,
    /// When Twilio began to record.
    pub recorded_at: Option<Timestamp>,
}

impl Details {
    /// These details, with `newer` where it knows better.
    pub fn updated_by(self, newer: Self) -> Self {
        Self {
            call_sid: newer.call_sid.or(self.call_sid),
            conference_sid: newer.conference_sid.or(self.conference_sid),
            duration_seconds: newer.duration_seconds.or(self.duration_seconds),
            channels: newer.channels.or(self.channels),
            track: newer.track.or(self.track),
            recording_source: newer.recording_source.or(self.recording_source),
            recorded_at: newer.recorded_at.or(self.recorded_at),
        }
    }
}

/// The object of a stored recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: i64,
    /// What its first bytes are.
    pub format: Format,
    /// Where it is, the bucket's prefix included.
    pub key: String,
}

/// The last thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// Which kind of thing.
    pub code: ErrorCode,
    /// What happened, in words, without any secret.
    pub detail: String,
    /// When.
    pub at: Timestamp,
}

/// A recording as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// Account and recording.
    pub id: RecordingId,
    /// Where it stands.
    pub state: State,
    /// Raised by every grant of a lease; only the newest may commit.
    pub epoch: i64,
    /// What Twilio told about it.
    pub details: Details,
    /// Whether `details.call_sid` is Twilio's own word. Until then it is what
    /// the application said, and no key may be made of it.
    pub details_confirmed: bool,
    /// The allow-listed host that its URL named; None is the configured origin.
    pub source_host: Option<String>,
    /// Its object, where it has one.
    pub object: Option<StoredObject>,
    /// When this service first heard of it.
    pub accepted_at: Timestamp,
    /// When it last became stored.
    pub stored_at: Option<Timestamp>,
    /// When someone last asked this service for its audio (to the hour).
    pub last_asked_at: Option<Timestamp>,
    /// How often a fetch was begun.
    pub attempts: i64,
    /// When the next one is due; the epoch: at once, and before what nobody waits for.
    pub next_attempt_at: Option<Timestamp>,
    /// What went wrong last.
    pub last_error: Option<LastError>,
    /// Whether a hold forbids every removal.
    pub hold: bool,
}

impl Recording {
    /// The time by which recordings are ordered: when Twilio recorded it, else
    /// when this service heard of it.
    pub fn ordered_at(&self) -> Timestamp {
        self.details.recorded_at.unwrap_or(self.accepted_at)
    }
}

/// What somebody says of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A callback: Twilio is recording, or a word that is not known here.
    InProgress,
    /// A callback: the recording is complete. The first of them, or a repeat.
    Completed {
        /// Whether the same was said before.
        repeated: bool,
    },
    /// A callback: there is no audio.
    Absent,
    /// A callback: Twilio failed to make it.
    Failed,
    /// The application, or Twilio's list, names it.
    Named,
}

/// The state that `news` leads to, where it changes anything. `current` is the
/// state and the last error of a recording that is known.
pub fn react(current: Option<(State, Option<ErrorCode>)>, news: News) -> Option<State> {
    use State::*;
    match (current, news) {
        (None, News::InProgress) => Some(Announced),
        (None | Some((Announced, _)), News::Completed { .. } | News::Named) => Some(Pending),
        (None | Some((Announced, _)), News::Absent) => Some(Absent),
        (None | Some((Announced, _)), News::Failed) => Some(Failed),
        (Some((Absent | Failed, error)), News::Completed { repeated: false }) => {
            let stays = matches!(error, Some(ErrorCode::TooLarge | ErrorCode::DecryptionFailed));
            (!stays).then_some(Pending)
        }
        (Some(_), _) => None,
    }
}

/// The recording that a call answers for: the one that was last PUT for it,
/// else the newest that has, had or will have audio, else the newest at all.
/// The same for every reader of the account.
pub fn answer_for_call(recordings: &[Recording], last_put: Option<RecordingSid>) -> Option<&Recording> {
    let chosen = recordings.iter().find(|recording| Some(recording.id.recording) == last_put);
    chosen.or_else(|| {
        recordings
            .iter()
            .max_by_key(|recording| (recording.state.answers_first(), recording.ordered_at(), recording.id.recording))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn recording(digit: u8, state: State, ordered_at_seconds: i64) -> Recording {
        Recording {
            id: RecordingId {
                account: format!("AC{}", "0".repeat(32)).parse().unwrap(),
                recording: format!("RE{}{digit}", "0".repeat(31)).parse().unwrap(),
            },
            state,
            epoch: 0,
            details: Details::default(),
            details_confirmed: true,
            source_host: None,
            object: None,
            accepted_at: Timestamp::from_second(ordered_at_seconds).unwrap(),
            stored_at: None,
            last_asked_at: None,
            attempts: 0,
            next_attempt_at: None,
            last_error: None,
            hold: false,
        }
    }

    #[test]
    fn legal_moves_are_those_of_the_table() {
        use State::*;
        let legal = [
            (Announced, [Pending, Absent, Failed, Erased].as_slice()),
            (Pending, &[Fetching, Stored, Erased]),
            (Fetching, &[Stored, Pending, Failed, Erased]),
            (Stored, &[Pending, Evicted, Erased]),
            (Evicted, &[Pending, Erased]),
            (Absent, &[Pending, Stored, Erased]),
            (Failed, &[Pending, Stored, Erased]),
            (Erased, &[]),
        ];
        assert_eq!(legal.len(), State::ALL.len());
        for (from, to) in legal {
            for next in State::ALL {
                assert_eq!(from.may_become(*next), to.contains(next), "{from} to {next}");
            }
        }
    }

    #[test]
    fn whatever_news_does_is_a_legal_move() {
        let news = [
            News::InProgress,
            News::Completed { repeated: false },
            News::Completed { repeated: true },
            News::Absent,
            News::Failed,
            News::Named,
        ];
        let errors = ErrorCode::ALL.iter().copied().map(Some).chain([None]);
        for error in errors {
            for state in State::ALL {
                for news in news {
                    if let Some(next) = react(Some((*state, error)), news) {
                        assert!(state.may_become(next), "{state} to {next} by {news:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_late_word_never_moves_what_is_on_its_way_or_done() {
        for state in [State::Pending, State::Fetching, State::Stored, State::Evicted, State::Erased] {
            for news in [News::InProgress, News::Completed { repeated: false }, News::Absent, News::Failed, News::Named]
            {
                assert_eq!(react(Some((state, None)), news), None, "{state} by {news:?}");
            }
        }
    }

    #[test]
    fn only_a_first_completed_callback_revives() {
        let first = News::Completed { repeated: false };
        let failed = |code| Some((State::Failed, Some(code)));
        assert_eq!(react(failed(ErrorCode::NotReady), first), Some(State::Pending));
        assert_eq!(react(Some((State::Absent, None)), first), Some(State::Pending));
        assert_eq!(react(failed(ErrorCode::NotReady), News::Completed { repeated: true }), None);
        assert_eq!(react(failed(ErrorCode::TooLarge), first), None);
        assert_eq!(react(failed(ErrorCode::DecryptionFailed), first), None);
        assert_eq!(react(failed(ErrorCode::NotReady), News::Named), None);
    }

    #[test]
    fn a_call_answers_for_the_one_last_put() {
        let recordings = [recording(1, State::Failed, 1), recording(2, State::Stored, 2)];
        let put = Some(recordings[0].id.recording);
        assert_eq!(answer_for_call(&recordings, put), Some(&recordings[0]));
    }

    #[test]
    fn a_call_answers_for_the_newest_with_audio_else_the_newest() {
        let older = recording(1, State::Stored, 1);
        let newer = recording(2, State::Pending, 2);
        let newest = recording(3, State::Failed, 3);
        let all = [older.clone(), newest.clone(), newer.clone()];
        assert_eq!(answer_for_call(&all, None), Some(&newer));
        let over = [newest.clone(), recording(4, State::Absent, 2)];
        assert_eq!(answer_for_call(&over, None), Some(&newest));
        assert_eq!(answer_for_call(&[], None), None);
    }

    #[test]
    fn a_call_answers_alike_whatever_the_order_of_its_rows() {
        let twins = [recording(1, State::Stored, 1), recording(2, State::Stored, 1)];
        let turned = [twins[1].clone(), twins[0].clone()];
        assert_eq!(answer_for_call(&twins, None), answer_for_call(&turned, None));
    }
}
