//! Shares: `POST …/share` makes a URL, `/s/{token}` plays it without a key.
//!
//! The token is never logged: routes are, by their pattern. Nobody is told where
//! a player came from, and nobody keeps what it got.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State as Shared};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::State;
use super::audio::{self, Asked};
use super::auth::Reader;
use super::problem::Problem;
use super::request::{self, Named, Query};
use super::view;
use crate::config::parse;
use crate::domain::share::Token;
use crate::domain::sid::RecordingSid;
use crate::vault::deliver::Wanted;
use crate::vault::share::Terms;

/// A number and its name.
const BODY_MAX_BYTES: usize = 4 << 10;

/// What may be said of a share.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = share_request)]
pub struct Wishes {
    /// How long it lives: a day where this is not said.
    expires_in: Option<Life>,
}

/// Whole seconds, or a duration such as `90m`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Life {
    /// Whole seconds.
    Seconds(u64),
    /// The same as text, or with a unit.
    Text(String),
}

impl Life {
    fn duration(&self) -> Result<Duration, Problem> {
        match self {
            Self::Seconds(seconds) => Ok(Duration::from_secs(*seconds)),
            Self::Text(text) => match text.parse() {
                Ok(seconds) => Ok(Duration::from_secs(seconds)),
                Err(_) => parse::duration(text)
                    .map_err(|expected| request::wrong("expires_in", text, &format!("whole seconds, or {expected}"))),
            },
        }
    }
}

/// A share as it is given.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = share)]
pub struct ShareAnswer {
    /// Plays without a key, until it ends or its key is revoked.
    pub(super) url: String,
    /// When it ends.
    pub(super) expires_at: Timestamp,
    /// The recording that it plays, for ever the same.
    pub(super) recording_sid: RecordingSid,
}

/// `POST …/share`: a URL that plays the recording without a key.
pub async fn share(Shared(state): Shared<State>, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let Reader(caller) = Reader::from_request_parts(&mut parts, &state).await?;
    let wanted = request::wanted(&mut parts).await?;
    let wishes = wishes(&parts.headers, body).await?;
    let terms = Terms {
        key: caller.key_id(),
        visible: caller.visible(),
        expires_in: wishes.expires_in.map(|life| life.duration()).transpose()?,
        patience: Query::of(&parts).wait()?,
    };
    let shared = state.vault.share(wanted, &terms).await?;
    let answer = ShareAnswer {
        url: format!("{}/s/{}", state.share_url, shared.token),
        expires_at: shared.ends_at,
        recording_sid: shared.recording.recording,
    };
    Ok(view::json(StatusCode::CREATED, &answer))
}

/// Nothing at all wishes for nothing.
async fn wishes(headers: &HeaderMap, body: Body) -> Result<Wishes, Problem> {
    let body = request::body(body, BODY_MAX_BYTES).await?;
    if body.is_empty() {
        return Ok(Wishes::default());
    }
    request::expect_json(headers)?;
    serde_json::from_slice(&body).map_err(|_| {
        Problem::InvalidRequest("The body is not {\"expires_in\": 3600} or {\"expires_in\": \"90m\"}.".to_owned())
    })
}

/// `GET` or `HEAD /s/{token}`: a redirect to a link, as `/audio` gives it.
pub async fn play(Shared(state): Shared<State>, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    let mut response = open(&state, &mut parts).await.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn open(state: &State, parts: &mut Parts) -> Result<Response, Problem> {
    let Named(token) = Named::<Token>::of(parts, "token").await?;
    let recording = state.vault.open_share(&token).await?;
    let asked = Asked::of(parts, Wanted::Exact(recording), None)?;
    let answer = audio::redirect(state, &asked, false).await;
    // It may have ended while its recording was waited for.
    state.vault.open_share(&token).await?;
    answer
}
