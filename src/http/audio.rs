//! "Play this" over HTTP: `/audio` and `/link`, of a call or of a recording.
//!
//! A route that serves audio never gives a 2xx without audio: old clients would
//! store the JSON and send it to their transcription.

use std::time::Duration;

use axum::extract::{FromRequestParts, State as Shared};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, StatusCode, header};

use super::State;
use super::auth::Reader;
use super::problem::Problem;
use super::request::{self, Query};
use super::view::{self, LinkAnswer, PendingAnswer};
use crate::bucket::{LinkBase, LinkMethod};
use crate::domain::sid::AccountSid;
use crate::telemetry;
use crate::vault::deliver::{Delivery, Manner, Playable, Wanted};

/// Who asks for what, and how: of a call or of a recording, as the path says.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub wanted: Wanted,
    /// The accounts that may be seen; None is all.
    pub visible: Option<Vec<AccountSid>>,
    /// How long to wait for what is on its way.
    pub patience: Duration,
    /// Whether it is to be saved rather than played.
    pub attachment: bool,
    method: LinkMethod,
    host: Option<Authority>,
}

impl FromRequestParts<State> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let Reader(caller) = Reader::from_request_parts(parts, state).await?;
        let wanted = request::wanted(parts).await?;
        Self::of(parts, wanted, caller.visible())
    }
}

impl Asked {
    /// Whether the same recording is meant for ever: which one a call answers for may change.
    pub fn is_lasting(&self) -> bool {
        !matches!(self.wanted, Wanted::Call(_))
    }

    /// The request for that, by someone who may see these accounts (None is all).
    pub fn of(parts: &Parts, wanted: Wanted, visible: Option<&[AccountSid]>) -> Result<Self, Problem> {
        let query = Query::of(parts);
        Ok(Self {
            wanted,
            visible: visible.map(<[AccountSid]>::to_vec),
            patience: query.wait()?,
            attachment: query.attachment()?,
            method: if parts.method == Method::HEAD { LinkMethod::Head } else { LinkMethod::Get },
            host: request::host(parts)?,
        })
    }
}

/// `GET` or `HEAD …/audio`: a redirect to a link.
pub async fn audio(Shared(state): Shared<State>, asked: Asked) -> Result<Response, Problem> {
    redirect(&state, &asked, asked.is_lasting()).await
}

/// The redirect to a link, which a browser may keep where it is lasting.
pub async fn redirect(state: &State, asked: &Asked, is_lasting: bool) -> Result<Response, Problem> {
    let playable = there(deliver(state, asked).await?)?;
    let seconds = view::seconds_left(&playable);
    let cache = if is_lasting { format!("private, max-age={seconds}") } else { "no-store".to_owned() };
    let headers = [(header::LOCATION, playable.link.url), (header::CACHE_CONTROL, cache)];
    Ok((StatusCode::TEMPORARY_REDIRECT, headers).into_response())
}

/// What is there, or what is said where it is not.
pub fn there<T>(delivery: Delivery<T>) -> Result<T, Problem> {
    Err(match delivery {
        Delivery::Ready(ready) => return Ok(ready),
        Delivery::NotReady { recording, retry_after_seconds } => {
            Problem::NotReady { state: recording.state, retry_after_seconds }
        }
        Delivery::Asking { retry_after_seconds } => Problem::Asking { retry_after_seconds },
        Delivery::Gone(recording) => Problem::of_gone(&recording),
        Delivery::Unknown => Problem::NotFound,
    })
}

/// `GET …/link`: the link itself, or 202 while a recording is known to be on its way.
pub async fn link(Shared(state): Shared<State>, asked: Asked) -> Result<Response, Problem> {
    // A HEAD here asks about the answer, not for a link to HEAD with.
    let asked = Asked { method: LinkMethod::Get, ..asked };
    match deliver(&state, &asked).await? {
        Delivery::NotReady { recording, retry_after_seconds } => {
            let pending =
                PendingAnswer { state: recording.state, recording_sid: recording.id.recording, retry_after_seconds };
            let mut response = view::json(StatusCode::ACCEPTED, &pending);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds));
            Ok(response)
        }
        other => Ok(view::json(StatusCode::OK, &LinkAnswer::new(&state.vault, there(other)?))),
    }
}

async fn deliver(state: &State, asked: &Asked) -> Result<Delivery<Playable>, Problem> {
    let manner = Manner {
        visible: asked.visible.as_deref(),
        patience: asked.patience,
        method: asked.method,
        attachment: asked.attachment,
        base: LinkBase { request_host: asked.host.as_ref().map(Authority::as_str) },
    };
    Ok(counted(state.vault.deliver(asked.wanted, &manner).await, "redirect")?)
}

/// The same answer, counted as `ready` where there is something.
pub fn counted<T, E>(delivered: Result<Delivery<T>, E>, ready: &'static str) -> Result<Delivery<T>, E> {
    telemetry::delivery(match &delivered {
        Ok(Delivery::Ready(_)) => ready,
        Ok(Delivery::NotReady { .. } | Delivery::Asking { .. }) => "not_ready",
        Ok(Delivery::Gone(_)) => "gone",
        Ok(Delivery::Unknown) => "unknown",
        Err(_) => "unavailable",
    });
    delivered
}
