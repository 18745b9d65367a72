//! Twilio's callbacks.
//!
//! The URL is taken from the settings and the raw request, never from what a
//! proxy says of itself. 204 is answered once the catalog has committed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{OriginalUri, State as Shared};
use axum::response::IntoResponse;
use http::{HeaderMap, Method, StatusCode, header};
use tracing::Instrument;
use tracing::field::Empty;

use super::problem::Problem;
use super::{State, request};
use crate::domain::sid::AccountSid;
use crate::telemetry;
use crate::twilio::callback::{Callback, RawCallback, RefusedCallback};

/// A callback has under 2 KB.
const BODY_MAX_BYTES: usize = 64 << 10;
/// Twilio is answered within 5 s of its request, whatever the catalog does.
const TIMEOUT: Duration = Duration::from_millis(4500);

/// How often at most it is told that an account's signatures do not fit.
const TOLD_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Why a callback was not taken.
enum NotTaken {
    Refused(RefusedCallback),
    Failed(Problem),
}

impl From<Problem> for NotTaken {
    fn from(problem: Problem) -> Self {
        Self::Failed(problem)
    }
}

/// `POST` or `GET /webhooks/twilio/recording`.
pub async fn receive(
    Shared(state): Shared<State>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Problem> {
    let span = tracing::info_span!("callback", recording_sid = Empty, call_sid = Empty, outcome = Empty);
    let answer = async {
        let body = request::body(body, BODY_MAX_BYTES).await?;
        let callback = read(&state, &method, &uri, &headers, &body).map_err(NotTaken::Refused)?;
        telemetry::callback_signed(&callback.source.id.account, true);
        let taken = tokio::time::timeout(TIMEOUT, take(&state, callback)).await;
        Ok(taken.unwrap_or(Err(Problem::Unavailable("The catalog does not answer.")))?)
    }
    .instrument(span.clone())
    .await;
    if matches!(answer, Err(NotTaken::Failed(Problem::Unavailable(_)))) {
        state.vault.health.callbacks_may_be_lost();
    }
    if let Err(NotTaken::Refused(RefusedCallback::BadSignature(account))) = &answer {
        account.iter().for_each(|account| telemetry::callback_signed(account, false));
        tell_of_signature(&state.public_url, *account);
    }
    let outcome = outcome(&answer);
    span.record("outcome", outcome);
    telemetry::callback(outcome);
    match answer {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(NotTaken::Refused(refused)) => Err(refused.into()),
        Err(NotTaken::Failed(problem)) => Err(problem),
    }
}

fn outcome(answer: &Result<bool, NotTaken>) -> &'static str {
    match answer {
        Ok(true) => "accepted",
        Ok(false) => "known",
        Err(NotTaken::Refused(RefusedCallback::BadSignature(Some(_)))) => "bad_signature",
        Err(NotTaken::Refused(RefusedCallback::BadSignature(None))) => "foreign",
        Err(NotTaken::Refused(RefusedCallback::UnsupportedMediaType)) => "unsupported_media_type",
        Err(NotTaken::Failed(Problem::Unavailable(_))) => "unavailable",
        Err(_) => "malformed",
    }
}

/// A setting that is wrong refuses every callback of its account, and so does whoever
/// forges them: of each account it is told now and then.
fn tell_of_signature(public_url: &str, account: Option<AccountSid>) {
    static TOLD_AT: Mutex<BTreeMap<Option<AccountSid>, Instant>> = Mutex::new(BTreeMap::new());
    let mut told_at = TOLD_AT.lock().expect("nothing panics while it holds the times");
    if told_at.get(&account).is_some_and(|at| at.elapsed() < TOLD_AGAIN_AFTER) {
        return;
    }
    told_at.insert(account, Instant::now());
    match account {
        Some(account) => tracing::warn!(
            %account,
            public_url,
            "a callback was refused: its signature fits neither CALLVAULT_PUBLIC_URL nor the account's auth tokens"
        ),
        None => tracing::info!("a callback was refused that names no recording of an account of these settings"),
    }
}

fn read(
    state: &State,
    method: &Method,
    uri: &http::Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Callback, RefusedCallback> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let url = format!("{}{target}", state.public_url);
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let raw = RawCallback {
        is_get: method != Method::POST,
        url: &url,
        content_type: header(header::CONTENT_TYPE),
        signature: headers.get("x-twilio-signature").and_then(|value| value.to_str().ok()),
        body,
    };
    state.vault.twilio.read_callback(&raw)
}

async fn take(state: &State, callback: Callback) -> Result<bool, Problem> {
    let id = callback.source.id;
    let span = tracing::Span::current();
    span.record("recording_sid", tracing::field::display(id.recording));
    span.record("call_sid", callback.details.call_sid.map(tracing::field::display));
    let status = callback.status.as_str().to_owned();
    let accepted = state.vault.take_callback(callback).await?;
    tracing::debug!(recording = %id, %status, created = accepted.created, "a callback was taken");
    Ok(accepted.created)
}

impl From<RefusedCallback> for Problem {
    fn from(refused: RefusedCallback) -> Self {
        match refused {
            RefusedCallback::UnsupportedMediaType => {
                Self::UnsupportedMediaType("application/x-www-form-urlencoded or application/json")
            }
            RefusedCallback::BadSignature(_) => Self::BadSignature(format!(
                "{refused}. CALLVAULT_PUBLIC_URL must be exactly what Twilio was told to call."
            )),
            RefusedCallback::Malformed(what) => Self::InvalidRequest(format!("{what}.")),
        }
    }
}
