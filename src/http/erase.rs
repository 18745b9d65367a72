//! Holding and erasing, over HTTP: `/hold`, and DELETE of a recording or a call.

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::State;
use super::auth::{Admin, Caller};
use super::calls::call_view;
use super::problem::Problem;
use super::recordings::find;
use super::request::{Named, Query};
use super::view::{self, RecordingView};
use crate::catalog::Erase;
use crate::domain::sid::{CallSid, RecordingSid};
use crate::vault::erase::Erasing;
use crate::vault::hold::Holding;

/// `PUT /v1/recordings/{RE}/hold`: nothing of it is removed from now on.
pub async fn hold(
    Shared(state): Shared<State>,
    Admin(caller): Admin,
    Named(sid): Named<RecordingSid>,
) -> Result<Response, Problem> {
    set_hold(&state, &caller, sid, true).await
}

/// `DELETE /v1/recordings/{RE}/hold`: the hold is over.
pub async fn release(
    Shared(state): Shared<State>,
    Admin(caller): Admin,
    Named(sid): Named<RecordingSid>,
) -> Result<Response, Problem> {
    set_hold(&state, &caller, sid, false).await
}

async fn set_hold(state: &State, caller: &Caller, sid: RecordingSid, hold: bool) -> Result<Response, Problem> {
    let known = find(state, caller, sid).await?;
    match state.vault.hold(&known.id, hold, caller.key_id()).await? {
        Holding::Done(recording) => Ok(view::json(StatusCode::OK, &RecordingView::new(&state.vault, *recording))),
        Holding::Unknown => Err(Problem::NotFound),
        Holding::Erased => Err(Problem::Erased),
        Holding::Unmarked => Err(Problem::Unavailable("The hold's marker in the bucket is not as it should be yet.")),
    }
}

/// `DELETE /v1/recordings/{RE}`: erases it, for good.
pub async fn recording(
    Shared(state): Shared<State>,
    Admin(caller): Admin,
    Named(sid): Named<RecordingSid>,
    query: Query,
) -> Result<Response, Problem> {
    let at_twilio = query.flag("twilio")?;
    let known = find(&state, &caller, sid).await?;
    match erase(&state, &caller, Erase::Recording(known.id), at_twilio).await? {
        Over::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        Over::Owed => {
            let recording = find(&state, &caller, sid).await?;
            Ok(view::json(StatusCode::ACCEPTED, &RecordingView::new(&state.vault, recording)))
        }
    }
}

/// `DELETE /v1/calls/{CA}`: erases all recordings of the call, or none where one is held.
pub async fn call(
    Shared(state): Shared<State>,
    Admin(caller): Admin,
    Named(call_sid): Named<CallSid>,
    query: Query,
) -> Result<Response, Problem> {
    let at_twilio = query.flag("twilio")?;
    let known = state.vault.call(call_sid, caller.visible()).await?.ok_or(Problem::NotFound)?;
    match erase(&state, &caller, Erase::Call(known.account, call_sid), at_twilio).await? {
        Over::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        Over::Owed => call_view(&state, &caller, call_sid, StatusCode::ACCEPTED).await,
    }
}

/// How far an erasing that was taken came.
enum Over {
    Done,
    Owed,
}

async fn erase(state: &State, caller: &Caller, what: Erase, at_twilio: bool) -> Result<Over, Problem> {
    match state.vault.erase(what, at_twilio, caller.key_id()).await? {
        Erasing::Done => Ok(Over::Done),
        Erasing::Owed => Ok(Over::Owed),
        Erasing::Unmarked => Err(Problem::Unavailable("It is erased here, but not marked so in the bucket yet.")),
        Erasing::Held => Err(Problem::Held),
        Erasing::Unknown => Err(Problem::NotFound),
    }
}
