//! What the examples in the document are: values of the very types that handlers
//! answer with, all of one recording.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::digest::Digest;
use crate::domain::media::Format;
use crate::domain::recording::State;
use crate::http::ops::{Fitness, Readiness};
use crate::http::shares::ShareAnswer;
use crate::http::view::{CallAnswer, EventView, FeedPage, HistoryView, LinkAnswer, Page, PendingAnswer, RecordingView};
use crate::http::webhooks::{DeliveriesAnswer, DeliveryView, ReceiverState, ReceiverView, ReceiversAnswer};

pub const ACCOUNT: &str = "AC00000000000000000000000000000001";
pub const CALL: &str = "CA00000000000000000000000000000001";
pub const RECORDING: &str = "RE00000000000000000000000000000001";
pub const EVENT: &str = "1795429807000-000000000000002";
pub const RECEIVER: &str = "wh_0123456789abcdef";
pub const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const BUCKET: &str = "recordings";
const SIZE_BYTES: i64 = 48_000;

/// Reads a text that stands in this file.
fn known<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| unreachable!("{text} is what it should be: the tests make every example"))
}

fn at(time: &str) -> Timestamp {
    known(&format!("2026-11-23T{time}Z"))
}

fn digest() -> Digest {
    known(SHA256)
}

fn key() -> String {
    format!("{CALL}/{RECORDING}/{SHA256}.mp3")
}

fn value(example: impl Serialize) -> Value {
    serde_json::to_value(example).expect("these shapes have text keys only")
}

/// As Twilio calls back; its own signature is of its own token.
pub fn callback() -> Value {
    json!({
        "AccountSid": ACCOUNT,
        "CallSid": CALL,
        "RecordingSid": RECORDING,
        "RecordingUrl": format!("https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Recordings/{RECORDING}"),
        "RecordingStatus": "completed",
        "RecordingDuration": "6",
        "RecordingChannels": "1",
        "RecordingSource": "DialVerb",
    })
}

fn a_recording() -> RecordingView {
    RecordingView {
        recording_sid: known(RECORDING),
        call_sid: Some(known(CALL)),
        conference_sid: None,
        account_sid: known(ACCOUNT),
        state: State::Stored,
        source_url: Some(format!("https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Recordings/{RECORDING}")),
        sha256: Some(digest()),
        size_bytes: Some(SIZE_BYTES),
        content_type: Some(Format::Mp3.content_type()),
        format: Some(Format::Mp3),
        bucket: Some(BUCKET.to_owned()),
        key: Some(key()),
        duration_seconds: Some(6),
        channels: Some(1),
        track: Some("both".to_owned()),
        recording_source: Some("DialVerb".to_owned()),
        recorded_at: Some(at("09:30:00")),
        accepted_at: at("09:30:07"),
        stored_at: Some(at("09:30:08")),
        last_asked_at: None,
        attempts: 1,
        next_attempt_at: None,
        last_error: None,
        hold: false,
        history: None,
    }
}

/// A recording with what happened to it.
pub fn recording() -> Value {
    let entry = |time, kind: &str| HistoryView { at: at(time), kind: kind.to_owned(), detail: json!({}) };
    let history = vec![entry("09:30:07", "recording.accepted"), entry("09:30:08", "recording.stored")];
    value(RecordingView { history: Some(history), ..a_recording() })
}

/// The same as an answer to what changed it.
pub fn recording_alone() -> Value {
    value(a_recording())
}

/// One that is on its way.
pub fn recording_pending() -> Value {
    value(RecordingView {
        state: State::Pending,
        sha256: None,
        size_bytes: None,
        content_type: None,
        format: None,
        bucket: None,
        key: None,
        stored_at: None,
        attempts: 0,
        next_attempt_at: Some(at("09:30:07")),
        ..a_recording()
    })
}

/// What an application names.
pub fn put() -> Value {
    json!({"recording_url": format!("https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Recordings/{RECORDING}")})
}

pub fn call() -> Value {
    value(CallAnswer { call_sid: known(CALL), recording_sid: Some(known(RECORDING)), recordings: vec![a_recording()] })
}

pub fn page() -> Value {
    value(Page { recordings: vec![a_recording()], next: None })
}

pub fn link() -> Value {
    value(LinkAnswer {
        url: format!("https://{BUCKET}.s3.amazonaws.com/{}?X-Amz-Signature=…", key()),
        expires_at: at("10:45:00"),
        expires_in_seconds: 4500,
        recording_sid: known(RECORDING),
        call_sid: Some(known(CALL)),
        sha256: digest(),
        size_bytes: SIZE_BYTES,
        content_type: Format::Mp3.content_type(),
        bucket: BUCKET.to_owned(),
        key: key(),
    })
}

pub fn pending() -> Value {
    value(PendingAnswer { state: State::Fetching, recording_sid: known(RECORDING), retry_after_seconds: 2 })
}

pub fn share() -> Value {
    value(ShareAnswer {
        url: "https://calls.example.com/s/AQEAAA…".to_owned(),
        expires_at: at("10:30:00"),
        recording_sid: known(RECORDING),
    })
}

pub fn feed() -> Value {
    let event = EventView {
        id: EVENT.to_owned(),
        kind: "recording.stored".to_owned(),
        at: at("09:30:08"),
        account_sid: known(ACCOUNT),
        recording: Some(a_recording()),
        detail: json!({}),
    };
    value(FeedPage { events: vec![event], next: EVENT.to_owned() })
}

fn a_receiver() -> ReceiverView {
    ReceiverView {
        id: RECEIVER.to_owned(),
        url: "https://crm.example.com/…".to_owned(),
        types: vec!["recording.stored".to_owned()],
        state: ReceiverState::Active,
        pending: 0,
        failed: 0,
        lag_seconds: 0,
        last_delivered_at: Some(at("09:30:09")),
        resting_until: None,
        disabled_at: None,
    }
}

pub fn receiver() -> Value {
    value(a_receiver())
}

pub fn receivers() -> Value {
    value(ReceiversAnswer { webhooks: vec![a_receiver()] })
}

fn a_delivery() -> DeliveryView {
    DeliveryView {
        event_id: EVENT.to_owned(),
        kind: "recording.stored".to_owned(),
        state: "delivered",
        attempts: 1,
        next_attempt_at: None,
        last_attempt_at: Some(at("09:30:09")),
        last_status: Some(204),
        last_error: None,
        ended_at: Some(at("09:30:09")),
    }
}

pub fn delivery() -> Value {
    value(DeliveryView { state: "pending", next_attempt_at: Some(at("09:40:00")), ended_at: None, ..a_delivery() })
}

pub fn deliveries() -> Value {
    value(DeliveriesAnswer { deliveries: vec![a_delivery()], next: None })
}

pub fn readiness() -> Value {
    value(Readiness { status: Fitness::Ok, problems: vec![] })
}

pub fn unready() -> Value {
    value(Readiness { status: Fitness::Unready, problems: vec![] })
}
