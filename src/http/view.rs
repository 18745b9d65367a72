//! The shapes of answers. A field that is not known is null, never left out.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;

use crate::catalog::{Event, HistoryEntry};
use crate::domain::digest::Digest;
use crate::domain::media::Format;
use crate::domain::recording::{LastError, Recording, State};
use crate::domain::sid::{AccountSid, CallSid, ConferenceSid, RecordingSid};
use crate::vault::Vault;
use crate::vault::deliver::Playable;

/// A recording.
#[derive(Debug, Serialize)]
pub struct RecordingView {
    recording_sid: RecordingSid,
    call_sid: Option<CallSid>,
    conference_sid: Option<ConferenceSid>,
    account_sid: AccountSid,
    state: State,
    source_url: Option<String>,
    sha256: Option<Digest>,
    size_bytes: Option<i64>,
    content_type: Option<&'static str>,
    format: Option<Format>,
    bucket: Option<String>,
    key: Option<String>,
    duration_seconds: Option<i64>,
    channels: Option<i64>,
    track: Option<String>,
    recording_source: Option<String>,
    recorded_at: Option<Timestamp>,
    accepted_at: Timestamp,
    stored_at: Option<Timestamp>,
    last_asked_at: Option<Timestamp>,
    attempts: i64,
    next_attempt_at: Option<Timestamp>,
    last_error: Option<LastError>,
    hold: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<HistoryView>>,
}

#[derive(Debug, Serialize)]
struct HistoryView {
    at: Timestamp,
    #[serde(rename = "type")]
    kind: String,
    detail: serde_json::Value,
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
#[derive(Debug, Serialize)]
pub struct CallAnswer {
    /// The SID that was asked for.
    pub call_sid: CallSid,
    /// The one that the call answers for.
    pub recording_sid: Option<RecordingSid>,
    /// All of them, newest first.
    pub recordings: Vec<RecordingView>,
}

/// A page of a list.
#[derive(Debug, Serialize)]
pub struct Page {
    /// The recordings.
    pub recordings: Vec<RecordingView>,
    /// What the next page is asked for with.
    pub next: Option<String>,
}

/// Something that happened, beside its recording as it is now.
#[derive(Debug, Serialize)]
pub struct EventView {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    at: Timestamp,
    account_sid: AccountSid,
    recording: Option<RecordingView>,
    detail: serde_json::Value,
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
#[derive(Debug, Serialize)]
pub struct FeedPage {
    /// What happened, in order.
    pub events: Vec<EventView>,
    /// What the next page is asked for with; always there.
    pub next: String,
}

/// A link.
#[derive(Debug, Serialize)]
pub struct LinkAnswer {
    url: String,
    expires_at: Timestamp,
    expires_in_seconds: i64,
    recording_sid: RecordingSid,
    call_sid: Option<CallSid>,
    sha256: Digest,
    size_bytes: i64,
    content_type: &'static str,
    bucket: String,
    key: String,
}

impl LinkAnswer {
    /// The link of something playable.
    pub fn new(vault: &Vault, playable: Playable) -> Self {
        Self {
            expires_in_seconds: seconds_left(&playable),
            url: playable.link.url.into(),
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
#[derive(Debug, Serialize)]
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
