//! The audio itself over HTTP: `/content`, and the older application's path.
//!
//! What is stored has a strong validator, its digest, and is given whole or in
//! parts. What is still being fetched flows as it comes, in chunks, without a
//! validator and without ranges: its end is not known yet. A body that does not
//! come to its right end breaks its connection.

use axum::body::Body;
use axum::extract::{FromRequestParts, State as Shared};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use super::State;
use super::audio::{self, Asked};
use super::auth::Reader;
use super::conditions::{self, Facts, Verdict};
use super::problem::Problem;
use super::request;
use crate::domain::digest::Digest;
use crate::domain::key::KeyId;
use crate::domain::media::Format;
use crate::vault::content::{Content, Request, Stored};

/// RFC 9530, 3.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
/// What was once given is asked for again before it is used: it may have been erased.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("private, no-cache");

/// What is asked for, and with which key.
pub struct AskedBy(Asked, KeyId);

impl FromRequestParts<State> for AskedBy {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let Reader(caller) = Reader::from_request_parts(parts, state).await?;
        let wanted = request::wanted(parts).await?;
        Ok(Self(Asked::of(parts, wanted, caller.visible())?, caller.key_id()))
    }
}

/// `GET` or `HEAD …/content`: the bytes.
pub async fn content(
    Shared(state): Shared<State>,
    AskedBy(asked, key): AskedBy,
    method: Method,
    version: Version,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let request = Request {
        visible: asked.visible.as_deref(),
        key,
        patience: asked.patience,
        // Without chunks (HTTP/1.0) the end of a body looks like one that broke off.
        may_listen: version >= Version::HTTP_11,
    };
    let delivered = audio::counted(state.vault.content(asked.wanted, &request).await, "stream")?;
    let stored = match audio::there(delivered)? {
        Content::Stored(stored) => stored,
        Content::Live(live) => {
            let mut response = Body::from_stream(live.flow).into_response();
            describe(response.headers_mut(), live.format, asked.attachment, &live.name);
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            return Ok(response);
        }
    };
    let facts = Facts {
        etag: format!("\"{}\"", stored.object.digest),
        modified_at: stored.recording.stored_at.and_then(|at| jiff::Timestamp::from_second(at.as_second()).ok()),
        size_bytes: stored.size_bytes(),
        is_lasting: asked.is_lasting(),
    };
    let is_get = method == Method::GET;
    let mut response = match conditions::judge(&headers, is_get, &facts) {
        Verdict::NotModified => StatusCode::NOT_MODIFIED.into_response(),
        Verdict::Failed => return Err(Problem::PreconditionFailed),
        Verdict::NotSatisfiable => {
            return Err(Problem::RangeNotSatisfiable { size_bytes: stored.object.size_bytes });
        }
        Verdict::Whole if is_get => whole(&state, &stored, asked.attachment).await?,
        Verdict::Whole => {
            state.vault.confirm(&stored).await?;
            described(Body::empty(), &stored, asked.attachment, stored.size_bytes())
        }
        Verdict::Part(part) => {
            let len = part.end - part.start;
            let range = format!("bytes {}-{}/{}", part.start, part.end - 1, stored.size_bytes());
            let flow = state.vault.read(&stored, Some(part)).await?;
            let mut response = described(Body::from_stream(flow), &stored, asked.attachment, len);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(response.headers_mut(), header::CONTENT_RANGE, &range);
            response
        }
    };
    validate(response.headers_mut(), &facts);
    Ok(response)
}

async fn whole(state: &State, stored: &Stored, attachment: bool) -> Result<Response, Problem> {
    let flow = state.vault.read(stored, None).await?;
    Ok(described(Body::from_stream(flow), stored, attachment, stored.size_bytes()))
}

/// So many bytes of a stored recording.
fn described(body: Body, stored: &Stored, attachment: bool, len_bytes: u64) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    describe(headers, stored.object.format, attachment, &stored.name());
    headers.insert(header::CONTENT_LENGTH, len_bytes.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set(headers, REPR_DIGEST, &repr_digest(&stored.object.digest));
    response
}

/// What the audio is, and what a browser is to do with it.
fn describe(headers: &mut HeaderMap, format: Format, attachment: bool, name: &str) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let kind = if attachment { "attachment" } else { "inline" };
    set(headers, header::CONTENT_DISPOSITION, &format!("{kind}; filename=\"{name}\""));
}

fn validate(headers: &mut HeaderMap, facts: &Facts) {
    set(headers, header::ETAG, &facts.etag);
    headers.insert(header::CACHE_CONTROL, ASK_AGAIN);
    if let Some(date) = facts.modified_at.and_then(conditions::http_date) {
        set(headers, header::LAST_MODIFIED, &date);
    }
}

fn repr_digest(digest: &Digest) -> String {
    format!("sha-256=:{}:", BASE64.encode(digest.as_bytes()))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    headers.insert(name, HeaderValue::from_str(value).expect("digits, SIDs and dates are a header's value"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_written_as_rfc_9530_wants_it() {
        let digest = repr_digest(&Digest::of(b""));
        assert_eq!(digest, "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:");
    }
}
