//! "Play this" over HTTP: `/audio` and `/link`, of a call or of a recording.
//!
//! A route that serves audio never gives a 2xx without audio: old clients would
//! store the JSON and send it to their transcription.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::State;
use super::auth::Caller;
use super::problem::Problem;
use super::request::Query;
use super::view::{self, LinkAnswer, PendingAnswer};
use crate::bucket::{LinkBase, LinkMethod};
use crate::telemetry;
use crate::vault::deliver::{Delivery, Manner, Wanted};

/// Who asks for what, and how.
pub struct Asked<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// For what.
    pub wanted: Wanted,
    /// The query.
    pub query: &'a Query,
    /// GET or HEAD.
    pub method: &'a Method,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// `GET` or `HEAD …/audio`: a redirect to a link.
pub async fn audio(state: &State, asked: &Asked<'_>) -> Result<Response, Problem> {
    match deliver(state, asked).await? {
        Delivery::Redirect(playable) => {
            let seconds = view::seconds_left(&playable);
            let cache = match asked.wanted {
                // What a call answers for may change; a recording's link does not.
                Wanted::Call(_) => "no-store".to_owned(),
                Wanted::Recording(_) => format!("private, max-age={seconds}"),
            };
            let headers = [(header::LOCATION, String::from(playable.link.url)), (header::CACHE_CONTROL, cache)];
            Ok((StatusCode::TEMPORARY_REDIRECT, headers).into_response())
        }
        Delivery::NotReady { recording, retry_after_seconds } => {
            Err(Problem::NotReady { state: recording.state, retry_after_seconds })
        }
        Delivery::Gone(recording) => Err(Problem::of_gone(&recording)),
        Delivery::Unknown => Err(Problem::NotFound),
    }
}

/// `GET …/link`: the link itself, or 202 while it is on its way.
pub async fn link(state: &State, asked: &Asked<'_>) -> Result<Response, Problem> {
    match deliver(state, asked).await? {
        Delivery::Redirect(playable) => Ok(view::json(StatusCode::OK, &LinkAnswer::new(&state.vault, *playable))),
        Delivery::NotReady { recording, retry_after_seconds } => {
            let pending =
                PendingAnswer { state: recording.state, recording_sid: recording.id.recording, retry_after_seconds };
            let mut response = view::json(StatusCode::ACCEPTED, &pending);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds));
            Ok(response)
        }
        Delivery::Gone(recording) => Err(Problem::of_gone(&recording)),
        Delivery::Unknown => Err(Problem::NotFound),
    }
}

async fn deliver(state: &State, asked: &Asked<'_>) -> Result<Delivery, Problem> {
    let host = asked.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let manner = Manner {
        visible: asked.caller.visible(),
        patience: asked.query.wait()?,
        method: if asked.method == Method::HEAD { LinkMethod::Head } else { LinkMethod::Get },
        attachment: asked.query.attachment()?,
        base: LinkBase { request_host: host },
    };
    let delivered = state.vault.deliver(asked.wanted, &manner).await;
    telemetry::delivery(match &delivered {
        Ok(Delivery::Redirect(_)) => "redirect",
        Ok(Delivery::NotReady { .. }) => "not_ready",
        Ok(Delivery::Gone(_)) => "gone",
        Ok(Delivery::Unknown) => "unknown",
        Err(_) => "unavailable",
    });
    Ok(delivered?)
}
