//! `/v1/calls/{CA}`: a call's recordings, and naming one of them.

use axum::body::Body;
use axum::extract::State as Shared;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::State;
use super::auth::{Caller, Ingester, Reader};
use super::problem::Problem;
use super::request::{self, Named};
use super::view::{self, CallAnswer, RecordingView};
use crate::domain::sid::CallSid;
use crate::vault::accept::Put;

/// A URL and its quotes.
const BODY_MAX_BYTES: usize = 16 << 10;

/// `GET /v1/calls/{CA}`. Never asks Twilio.
pub async fn call(
    Shared(state): Shared<State>,
    Reader(caller): Reader,
    Named(call_sid): Named<CallSid>,
) -> Result<Response, Problem> {
    call_view(&state, &caller, call_sid, StatusCode::OK).await
}

/// A call's recordings as they are now.
pub(super) async fn call_view(
    state: &State,
    caller: &Caller,
    call_sid: CallSid,
    status: StatusCode,
) -> Result<Response, Problem> {
    let view = state.vault.call(call_sid, caller.visible()).await?.ok_or(Problem::NotFound)?;
    let answer = CallAnswer {
        call_sid,
        recording_sid: view.answer().map(|recording| recording.id.recording),
        recordings: view.recordings.into_iter().map(|recording| RecordingView::new(&state.vault, recording)).collect(),
    };
    Ok(view::json(status, &answer))
}

/// Which recording an application names.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = put)]
pub struct PutBody {
    /// As applications hold it: with or without `.mp3`, `.wav`, `.json` or a query,
    /// or from `/2010-04-01/` on.
    recording_url: String,
}

/// `PUT /v1/calls/{CA}/recording`: the application names a recording of the call.
pub async fn put_recording(
    Shared(state): Shared<State>,
    Ingester(caller): Ingester,
    Named(call): Named<CallSid>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    request::expect_json(&headers)?;
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
