//! The shapes of answers. A field that is not known is null, never left out.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::schemas::{AudioType, EventType};
use crate::catalog::{Event, HistoryEntry};
use crate::domain::digest::Digest;
use crate::domain::media::Format;
use crate::domain::recording::{LastError, Recording, State};
use crate::domain::sid::{AccountSid, CallSid, ConferenceSid, RecordingSid};
use crate::vault::Vault;
use crate::vault::deliver::Playable;

/// A recording.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = recording)]
pub struct RecordingView {
    /// What it is called, within its account.
    pub(super) recording_sid: RecordingSid,
    /// Twilio's own call of it.
    pub(super) call_sid: Option<CallSid>,
    /// Its conference.
    pub(super) conference_sid: Option<ConferenceSid>,
    /// Who owns it.
    pub(super) account_sid: AccountSid,
    /// Where it stands.
    pub(super) state: State,
    /// Where Twilio has it, without credentials.
    pub(super) source_url: Option<String>,
    /// SHA-256 of the stored bytes.
    pub(super) sha256: Option<Digest>,
    /// How many they are.
    pub(super) size_bytes: Option<i64>,
    /// What they are.
    #[schema(value_type = Option<AudioType>)]
    pub(super) content_type: Option<&'static str>,
    /// The same in a word.
    pub(super) format: Option<Format>,
    /// The bucket that holds them.
    pub(super) bucket: Option<String>,
    /// Their key in it, with the bucket's prefix.
    pub(super) key: Option<String>,
    /// How long it plays.
    pub(super) duration_seconds: Option<i64>,
    /// How many channels it has.
    pub(super) channels: Option<i64>,
    /// Which side of the call, as Twilio says it.
    pub(super) track: Option<String>,
    /// What made it, as Twilio says it.
    pub(super) recording_source: Option<String>,
    /// When it was recorded.
    pub(super) recorded_at: Option<Timestamp>,
    /// When this service first heard of it.
    pub(super) accepted_at: Timestamp,
    /// When it was stored.
    pub(super) stored_at: Option<Timestamp>,
    /// When someone last asked for its audio.
    pub(super) last_asked_at: Option<Timestamp>,
    /// How often fetching it was begun.
    pub(super) attempts: i64,
    /// When it will be tried next.
    pub(super) next_attempt_at: Option<Timestamp>,
    /// What went wrong last.
    pub(super) last_error: Option<LastError>,
    /// Whether a legal hold is on it.
    pub(super) hold: bool,
    /// What happened to it: with one recording only, not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) history: Option<Vec<HistoryView>>,
}

/// Something that happened to a recording.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = history)]
pub struct HistoryView {
    /// When.
    pub(super) at: Timestamp,
    /// What: a type of event, or other news.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// The particulars.
    #[schema(value_type = Option<Object>)]
    pub(super) detail: serde_json::Value,
}

impl RecordingView {
    /// A recording as lists show it.
    pub fn new(vault: &Vault, recording: Recording) -> Self {
        let source_url = (recording.state != State::Erased).then(|| vault.source_url(&recording));
        let object = recording.object.as_ref();
        Self {
            recording_sid: recording.id.recording,
            call_sid: recording.details.call_sid,
            conference_sid: recording.details.conference_sid,
            account_sid: recording.id.account,
            state: recording.state,
            source_url,
            sha256: object.map(|object| object.digest),
            size_bytes: object.map(|object| object.size_bytes),
            content_type: object.map(|object| object.format.content_type()),
            format: object.map(|object| object.format),
            bucket: object.map(|_| vault.bucket.name().to_owned()),
            key: object.map(|object| object.key.clone()),
            duration_seconds: recording.details.duration_seconds,
            channels: recording.details.channels,
            track: recording.details.track,
            recording_source: recording.details.recording_source,
            recorded_at: recording.details.recorded_at,
            accepted_at: recording.accepted_at,
            stored_at: recording.stored_at,
            last_asked_at: recording.last_asked_at,
            attempts: recording.attempts,
            // At once has been since the service heard of it.
            next_attempt_at: recording.next_attempt_at.map(|next| next.max(recording.accepted_at)),
            last_error: recording.last_error,
            hold: recording.hold,
            history: None,
        }
    }

    /// The same with what happened to it.
    pub fn with_history(self, entries: Vec<HistoryEntry>) -> Self {
        let view = |entry: HistoryEntry| HistoryView { at: entry.at, kind: entry.kind, detail: entry.detail };
        Self { history: Some(entries.into_iter().map(view).collect()), ..self }
    }
}

/// A call and its recordings.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = call)]
pub struct CallAnswer {
    /// The SID that was asked for.
    pub call_sid: CallSid,
    /// The one that the call answers for.
    pub recording_sid: Option<RecordingSid>,
    /// All of them, newest first.
    pub recordings: Vec<RecordingView>,
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = page)]
pub struct Page {
    /// The recordings.
    pub recordings: Vec<RecordingView>,
    /// What the next page is asked for with.
    pub next: Option<String>,
}

/// Something that happened, beside its recording as it is now.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = event)]
pub struct EventView {
    /// Sorts in order, and is what a reader goes on from.
    pub(super) id: String,
    /// What happened.
    #[serde(rename = "type")]
    #[schema(value_type = EventType)]
    pub(super) kind: String,
    /// When.
    pub(super) at: Timestamp,
    /// Whose.
    pub(super) account_sid: AccountSid,
    /// As it is now; null where the event is of an account.
    pub(super) recording: Option<RecordingView>,
    /// The particulars.
    #[schema(value_type = Option<Object>)]
    pub(super) detail: serde_json::Value,
}

impl EventView {
    /// An event as the feed and webhooks tell it.
    pub fn new(vault: &Vault, event: Event) -> Self {
        Self {
            id: event.cursor.to_string(),
            kind: event.kind,
            at: event.at,
            account_sid: event.account,
            recording: event.recording.map(|recording| RecordingView::new(vault, recording)),
            detail: event.detail,
        }
    }
}

/// The JSON of an event.
pub fn event_json(vault: &Vault, event: Event) -> String {
    serde_json::to_string(&EventView::new(vault, event)).expect("these shapes have text keys only")
}

/// A page of the feed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = feed)]
pub struct FeedPage {
    /// What happened, in order.
    pub events: Vec<EventView>,
    /// What the next page is asked for with; always there.
    pub next: String,
}

/// A link.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = link)]
pub struct LinkAnswer {
    /// Plays without a key, until it ends.
    pub(super) url: String,
    /// When it ends.
    pub(super) expires_at: Timestamp,
    /// The same as a span.
    pub(super) expires_in_seconds: i64,
    /// Which recording it is.
    pub(super) recording_sid: RecordingSid,
    /// Twilio's own call of it.
    pub(super) call_sid: Option<CallSid>,
    /// SHA-256 of the bytes.
    pub(super) sha256: Digest,
    /// How many they are.
    pub(super) size_bytes: i64,
    /// What they are.
    #[schema(value_type = AudioType)]
    pub(super) content_type: &'static str,
    /// The bucket that holds them.
    pub(super) bucket: String,
    /// Their key in it, with the bucket's prefix.
    pub(super) key: String,
}

impl LinkAnswer {
    /// The link of something playable.
    pub fn new(vault: &Vault, playable: Playable) -> Self {
        Self {
            expires_in_seconds: seconds_left(&playable),
            url: playable.link.url,
            expires_at: playable.link.expires_at,
            recording_sid: playable.recording.id.recording,
            call_sid: playable.recording.details.call_sid,
            sha256: playable.object.digest,
            size_bytes: playable.object.size_bytes,
            content_type: playable.object.format.content_type(),
            bucket: vault.bucket.name().to_owned(),
            key: playable.object.key,
        }
    }
}

/// What is left of a link's life, in whole seconds.
pub fn seconds_left(playable: &Playable) -> i64 {
    playable.link.expires_at.duration_since(playable.now).as_secs().max(0)
}

/// The body of a 202: it is on its way.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = pending)]
pub struct PendingAnswer {
    /// Where it stands.
    pub state: State,
    /// Which recording.
    pub recording_sid: RecordingSid,
    /// When to ask again.
    pub retry_after_seconds: u64,
}

/// A body of JSON that nobody is to keep.
pub fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    let text = serde_json::to_string(body).expect("these shapes have text keys only");
    let mut response = (status, text).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
