//! Pages of other origins: those that the settings name may call `/v1` and `/s`.
//!
//! Origins are compared exactly. A key stands in a header that a page has to
//! set, so no page ever acts with what a browser keeps, and none is told that
//! it may.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

/// What a page may do.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE");
/// What a page may send.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, Last-Event-ID, Cache-Control, Range, If-Range, If-Match, If-None-Match, \
     If-Modified-Since, If-Unmodified-Since",
);
/// What a page may read, beside what every page may: what a player, a reader of
/// the feed and whoever is to come again needs.
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Repr-Digest, Retry-After, \
     WWW-Authenticate",
);
/// How long a browser remembers what a page may: seconds. Some keep it no longer
/// than two hours; what is not allowed any more fails all the same.
const REMEMBERED_FOR: HeaderValue = HeaderValue::from_static("3600");

/// The origins that the settings name.
#[derive(Debug)]
pub struct Origins(Vec<String>);

impl Origins {
    /// These origins.
    pub fn new(origins: &[String]) -> Self {
        Self(origins.to_vec())
    }

    fn allowed(&self, request: &Request) -> Option<HeaderValue> {
        let origin = request.headers().get(header::ORIGIN)?;
        self.0.iter().any(|known| known.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }
}

/// Answers what browsers ask beforehand, and says which pages may read an answer.
pub async fn cors(origins: &Origins, request: Request, next: Next) -> Response {
    if origins.0.is_empty() || !is_for_pages(request.uri().path()) {
        return next.run(request).await;
    }
    let origin = origins.allowed(&request);
    let is_asked_beforehand =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match is_asked_beforehand && origin.is_some() {
        true => (StatusCode::NO_CONTENT, permissions()).into_response(),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    // Whoever keeps an answer must not give one page what was said to another.
    headers.append(header::VARY, HeaderValue::from_name(header::ORIGIN));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
    }
    response
}

fn is_for_pages(path: &str) -> bool {
    path.starts_with("/v1/") || path.starts_with("/s/")
}

fn permissions() -> HeaderMap {
    let permissions: [(HeaderName, HeaderValue); 3] = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, REMEMBERED_FOR),
    ];
    permissions.into_iter().collect()
}
