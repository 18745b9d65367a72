//! `/v1/recordings`: one recording, and lists of them.

use axum::extract::State as Shared;
use axum::response::Response;
use http::StatusCode;

use super::State;
use super::auth::{Admin, Caller, Reader};
use super::problem::Problem;
use super::request::{Named, Query};
use super::view::{self, Page, RecordingView};
use crate::catalog::{ListFilter, PageCursor};
use crate::domain::recording::{Recording, State as RecordingState};
use crate::domain::sid::{AccountSid, RecordingSid};
use crate::vault::deliver::Wanted;

/// Calls that one list may be asked for.
const CALLS_MAX: usize = 100;

/// `GET /v1/recordings/{RE}`. Never asks Twilio.
pub async fn recording(
    Shared(state): Shared<State>,
    Reader(caller): Reader,
    Named(sid): Named<RecordingSid>,
) -> Result<Response, Problem> {
    let recording = find(&state, &caller, sid).await?;
    let history = state.vault.history(&recording.id).await?;
    let view = RecordingView::new(&state.vault, recording).with_history(history);
    Ok(view::json(StatusCode::OK, &view))
}

/// `POST /v1/recordings/{RE}/fetch`: try again what was given up.
pub async fn fetch_again(
    Shared(state): Shared<State>,
    Admin(caller): Admin,
    Named(sid): Named<RecordingSid>,
) -> Result<Response, Problem> {
    let known = find(&state, &caller, sid).await?;
    let recording = state.vault.catalog.fetch_again(&known.id).await?.ok_or(Problem::NotFound)?;
    let status = match recording.state {
        RecordingState::Stored => StatusCode::OK,
        RecordingState::Erased => return Err(Problem::Erased),
        _ => StatusCode::ACCEPTED,
    };
    Ok(view::json(status, &RecordingView::new(&state.vault, recording)))
}

/// `GET /v1/recordings`: a page, newest first.
pub async fn list(Shared(state): Shared<State>, Reader(caller): Reader, query: Query) -> Result<Response, Problem> {
    let filter = ListFilter {
        accounts: accounts(&caller, query.one("account_sid", "AC and 32 hex digits")?),
        calls: query.all("call_sid", "CA and 32 hex digits")?,
        conference: query.one("conference_sid", "CF and 32 hex digits")?,
        state: query.one("state", &states())?,
        since: query.time("since")?,
        until: query.time("until")?,
    };
    if filter.calls.len() > CALLS_MAX {
        return Err(Problem::InvalidRequest(format!("call_sid is given more than {CALLS_MAX} times.")));
    }
    let limit = query.limit()?;
    let after: Option<PageCursor> = query.one("after", "the `next` of an earlier page")?;
    let (recordings, next) = state.vault.list(&filter, after, limit).await?;
    let recordings = recordings.into_iter().map(|recording| RecordingView::new(&state.vault, recording)).collect();
    Ok(view::json(StatusCode::OK, &Page { recordings, next: next.map(|next| next.to_string()) }))
}

fn states() -> String {
    let words: Vec<&str> = RecordingState::ALL.iter().map(|state| state.as_str()).collect();
    format!("one of {}", words.join(", "))
}

/// The accounts that a list may show: those of the key, and of these the one that is asked for.
pub(super) fn accounts(caller: &Caller, asked: Option<AccountSid>) -> Option<Vec<AccountSid>> {
    match (caller.visible(), asked) {
        (None, None) => None,
        (None, Some(account)) => Some(vec![account]),
        (Some(visible), None) => Some(visible.to_vec()),
        (Some(visible), Some(account)) => Some(visible.iter().copied().filter(|known| *known == account).collect()),
    }
}

/// The recording of that name that the caller may see.
pub(super) async fn find(state: &State, caller: &Caller, sid: RecordingSid) -> Result<Recording, Problem> {
    let recording = state.vault.find(Wanted::Recording(sid), caller.visible()).await?;
    recording.ok_or(Problem::NotFound)
}
