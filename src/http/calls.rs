//! `/v1/calls/{CA}`: a call's recordings, and what is done under a call's SID.

use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;

use super::State;
use super::audio::{self, Asked};
use super::auth::{Ingester, Reader};
use super::problem::Problem;
use super::request::{self, Query, named};
use super::view::{self, CallAnswer, RecordingView};
use crate::domain::sid::CallSid;
use crate::vault::accept::Put;
use crate::vault::deliver::Wanted;

/// A URL and its quotes.
const BODY_MAX_BYTES: usize = 16 << 10;

/// `GET /v1/calls/{CA}`. Never asks Twilio.
pub async fn call(
    Shared(state): Shared<State>,
    Reader(caller): Reader,
    Path(sid): Path<String>,
) -> Result<Response, Problem> {
    let call_sid: CallSid = named(&sid)?;
    let view = state.vault.call(call_sid, caller.visible()).await?.ok_or(Problem::NotFound)?;
    let answer = CallAnswer {
        call_sid,
        recording_sid: view.answer().map(|recording| recording.id.recording),
        recordings: view.recordings.into_iter().map(|recording| RecordingView::new(&state.vault, recording)).collect(),
    };
    Ok(view::json(StatusCode::OK, &answer))
}

/// `GET` or `HEAD /v1/calls/{CA}/audio`.
pub async fn call_audio(
    Shared(state): Shared<State>,
    Reader(caller): Reader,
    Path(sid): Path<String>,
    query: Query,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wanted = Wanted::Call(named(&sid)?);
    audio::audio(&state, &Asked { caller: &caller, wanted, query: &query, method: &method, headers: &headers }).await
}

/// `GET /v1/calls/{CA}/link`.
pub async fn call_link(
    Shared(state): Shared<State>,
    Reader(caller): Reader,
    Path(sid): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wanted = Wanted::Call(named(&sid)?);
    audio::link(&state, &Asked { caller: &caller, wanted, query: &query, method: &Method::GET, headers: &headers })
        .await
}

#[derive(Debug, Deserialize)]
struct PutBody {
    recording_url: String,
}

/// `PUT /v1/calls/{CA}/recording`: the application names a recording of the call.
pub async fn put_recording(
    Shared(state): Shared<State>,
    Ingester(caller): Ingester,
    Path(sid): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let call: CallSid = sid.parse().map_err(|_| request::wrong("call_sid", &sid, "CA and 32 hex digits"))?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Problem::UnsupportedMediaType("application/json"));
    }
    let body = request::body(body, BODY_MAX_BYTES).await?;
    let put: PutBody = serde_json::from_slice(&body).map_err(|_| {
        Problem::InvalidRequest("The body is not {\"recording_url\": \"https://api.twilio.com/…\"}.".to_owned())
    })?;
    let (status, recording) = match state.vault.put(call, &put.recording_url, caller.visible()).await? {
        Put::Accepted(recording) => (StatusCode::ACCEPTED, recording),
        Put::Known(recording) => (StatusCode::OK, recording),
    };
    Ok(view::json(status, &RecordingView::new(&state.vault, recording)))
}
