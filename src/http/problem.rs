//! Everything that can go wrong with a request, as a problem document (RFC 9457).
//!
//! The one place that knows statuses. Codes are stable; details are for people,
//! and say what happened and what to do. What belongs to another account is
//! the same `not_found`, byte for byte, as what does not exist.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::schemas::ProblemCode;
use super::view;
use crate::catalog::CatalogError;
use crate::domain::recording::{Recording, State};
use crate::vault::accept::RefusedPut;
use crate::vault::deliver::DeliveryError;
use crate::vault::places::NoPlace;
use crate::vault::share::{NotOpened, NotShared};

/// When something of a key that has too much at once may have ended.
const PLACE_AGAIN_AFTER: Duration = Duration::from_secs(4);

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The request makes no sense.
    InvalidRequest(String),
    /// There is no key, or it is not known.
    Unauthorized,
    /// The key may not do that.
    Forbidden(&'static str),
    /// A callback that Twilio did not sign.
    BadSignature(String),
    /// There is no such thing, or not for this key.
    NotFound,
    /// It is on its way.
    NotReady {
        /// Where it stands.
        state: State,
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// It is not known, and Twilio has not answered yet whether it is there.
    Asking {
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// Twilio recorded nothing.
    RecordingAbsent,
    /// The path is right, the method is not.
    MethodNotAllowed,
    /// Another request stands against it; says which.
    Conflict(String),
    /// A hold forbids it.
    Held,
    /// It was erased.
    Erased,
    /// A share whose time is over, or whose key was revoked.
    Expired,
    /// The body is too long.
    PayloadTooLarge {
        /// The most that is read.
        max_bytes: usize,
    },
    /// The body is not what it should be.
    UnsupportedMediaType(&'static str),
    /// The range lies behind the end.
    RangeNotSatisfiable {
        /// The length of the whole.
        size_bytes: i64,
    },
    /// The client's own condition (RFC 9110, 13) does not hold.
    PreconditionFailed,
    /// The recording was given up.
    RecordingFailed(String),
    /// The key asks too often, or has too much going on here at once.
    TooManyRequests {
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// The object of a stored recording is not there, or not what it should be.
    ObjectMissing,
    /// A part of the service is away.
    Unavailable(&'static str),
}

impl Problem {
    /// Status, code and title: one line a problem.
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::InvalidRequest(_) => (StatusCode::BAD_REQUEST, "invalid_request", "The request is not right"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "An API key is needed"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "The API key may not do that"),
            Self::BadSignature(_) => (StatusCode::FORBIDDEN, "bad_signature", "Twilio did not sign this"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "There is no such thing"),
            Self::NotReady { .. } | Self::Asking { .. } => {
                (StatusCode::NOT_FOUND, "not_ready", "The recording is not here yet")
            }
            Self::RecordingAbsent => (StatusCode::NOT_FOUND, "recording_absent", "Twilio recorded nothing"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Not with that method"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict", "Something stands against it"),
            Self::Held => (StatusCode::CONFLICT, "held", "A hold forbids it"),
            Self::Expired => (StatusCode::GONE, "expired", "The share is over"),
            Self::Erased => (StatusCode::GONE, "erased", "The recording was erased"),
            Self::PayloadTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", "The body is too long")
            }
            Self::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body is of another kind")
            }
            Self::RangeNotSatisfiable { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", "There are no such bytes")
            }
            Self::TooManyRequests { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "The API key asks too often")
            }
            Self::RecordingFailed(_) => {
                (StatusCode::FAILED_DEPENDENCY, "recording_failed", "The recording could not be fetched")
            }
            Self::PreconditionFailed => {
                (StatusCode::PRECONDITION_FAILED, "precondition_failed", "The condition does not hold")
            }
            Self::ObjectMissing | Self::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not possible at the moment")
            }
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::InvalidRequest(detail)
            | Self::BadSignature(detail)
            | Self::Conflict(detail)
            | Self::RecordingFailed(detail) => detail.clone(),
            Self::Unauthorized => "Send a known API key as \"Authorization: Bearer <key>\".".to_owned(),
            Self::Forbidden(scope) => format!("The key needs the scope {scope}."),
            Self::NotFound => "Nothing that this key may see has that name.".to_owned(),
            Self::NotReady { state, retry_after_seconds } => {
                format!(
                    "It is {state}. Ask again in {retry_after_seconds} s, or with ?wait= to be answered when it is here."
                )
            }
            Self::Asking { retry_after_seconds } => {
                format!("Twilio is being asked for it. Ask again in {retry_after_seconds} s, or with a longer ?wait=.")
            }
            Self::RecordingAbsent => "The call was too short, or silent.".to_owned(),
            Self::MethodNotAllowed => "The header Allow names the methods of this path.".to_owned(),
            Self::Erased => "It was removed on request, and will not come back.".to_owned(),
            Self::Held => "A legal hold is on it. Release it first: DELETE /v1/recordings/{RE}/hold.".to_owned(),
            Self::Expired => "Ask whoever gave you this URL for a new one.".to_owned(),
            Self::RangeNotSatisfiable { size_bytes } => format!("It has {size_bytes} bytes."),
            Self::TooManyRequests { retry_after_seconds } => format!("Ask again in {retry_after_seconds} s."),
            Self::PayloadTooLarge { max_bytes } => format!("At most {max_bytes} bytes are read."),
            Self::UnsupportedMediaType(expected) => format!("{expected} is expected."),
            Self::PreconditionFailed => {
                "The audio is not, or no more, what If-Match or If-Unmodified-Since names.".to_owned()
            }
            Self::ObjectMissing => {
                "Its object in the bucket is not there, or not what it should be. It is being looked at; try again."
                    .to_owned()
            }
            Self::Unavailable(what) => format!("{what} Nothing was lost; try again."),
        }
    }

    pub(super) fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::NotReady { retry_after_seconds, .. }
            | Self::Asking { retry_after_seconds }
            | Self::TooManyRequests { retry_after_seconds } => Some(*retry_after_seconds),
            Self::ObjectMissing | Self::Unavailable(_) => Some(1),
            _ => None,
        }
    }

    /// What is said to a key that may ask again after that time.
    pub fn too_many_requests(again_after: Duration) -> Self {
        Self::TooManyRequests { retry_after_seconds: again_after.as_secs() + 1 }
    }

    /// What is said of a recording that has no audio and will get none by waiting.
    pub fn of_gone(recording: &Recording) -> Self {
        match recording.state {
            State::Absent => Self::RecordingAbsent,
            State::Erased => Self::Erased,
            _ => Self::RecordingFailed(match &recording.last_error {
                Some(error) => format!("{} ({})", error.detail, error.code),
                None => "It was given up.".to_owned(),
            }),
        }
    }
}

/// A problem as it is sent (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = problem)]
pub struct Document {
    /// The code as a URN.
    #[serde(rename = "type")]
    kind: String,
    /// What the code means.
    pub(super) title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What happened and what to do, for people.
    detail: String,
    /// Which problem it is, for programs.
    #[schema(value_type = ProblemCode)]
    pub(super) code: &'static str,
}

impl Problem {
    /// As it is sent.
    pub(super) fn document(&self) -> Document {
        let (status, code, title) = self.kind();
        let kind = format!("urn:callvault:problem:{code}");
        Document { kind, title, status: status.as_u16(), detail: self.detail(), code }
    }

    /// Its status.
    pub(super) fn status(&self) -> StatusCode {
        self.kind().0
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = view::json(self.status(), &self.document());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Self::RangeNotSatisfiable { size_bytes } = self {
            let unsatisfied = HeaderValue::try_from(format!("bytes */{size_bytes}"));
            headers.insert(header::CONTENT_RANGE, unsatisfied.expect("digits are a header's value"));
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        if self == Self::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        match &error {
            CatalogError::Unindexed => {
                tracing::debug!(%error, "a request failed");
                return Self::Unavailable("It is not known here, and the bucket has not been indexed yet.");
            }
            CatalogError::Unread => {
                tracing::warn!(%error, "a request failed");
                return Self::Unavailable("The catalog is new, and the bucket has not been read yet.");
            }
            CatalogError::Unavailable(_) => tracing::warn!(%error, "a request failed"),
            _ => tracing::error!(error = &error as &dyn std::error::Error, "a request failed"),
        }
        Self::Unavailable("The catalog cannot be asked.")
    }
}

impl From<DeliveryError> for Problem {
    fn from(error: DeliveryError) -> Self {
        match error {
            DeliveryError::Catalog(error) => error.into(),
            DeliveryError::Bucket(error) => {
                tracing::error!(%error, "no link could be made");
                Self::Unavailable("The bucket's links cannot be signed.")
            }
            DeliveryError::Read(error) => {
                tracing::warn!(%error, "an object could not be read");
                Self::Unavailable("The bucket cannot be read.")
            }
            DeliveryError::Missing => Self::ObjectMissing,
            DeliveryError::NoPlace(no_place) => no_place.into(),
            DeliveryError::Twilio => Self::Unavailable("The call is not known here, and Twilio cannot be asked."),
        }
    }
}

impl From<NoPlace> for Problem {
    fn from(no_place: NoPlace) -> Self {
        match no_place {
            NoPlace::ForThisKey => Self::too_many_requests(PLACE_AGAIN_AFTER),
            NoPlace::ForAnyone => Self::Unavailable("As much goes on here at once as there is room for."),
        }
    }
}

impl From<NotShared> for Problem {
    fn from(not_shared: NotShared) -> Self {
        match not_shared {
            NotShared::Life { .. } => Self::InvalidRequest(format!("expires_in: {not_shared}.")),
            NotShared::Asking { retry_after_seconds } => Self::Asking { retry_after_seconds },
            NotShared::Gone(recording) => Self::of_gone(&recording),
            NotShared::Unknown => Self::NotFound,
            NotShared::Failed(error) => error.into(),
        }
    }
}

impl From<NotOpened> for Problem {
    fn from(not_opened: NotOpened) -> Self {
        match not_opened {
            NotOpened::Forged => Self::NotFound,
            NotOpened::Over => Self::Expired,
            NotOpened::Catalog(error) => error.into(),
        }
    }
}

impl From<RefusedPut> for Problem {
    fn from(refused: RefusedPut) -> Self {
        match refused {
            RefusedPut::Url(_) | RefusedPut::NotConfigured(_) => Self::InvalidRequest(refused.to_string()),
            RefusedPut::NotVisible => Self::NotFound,
            RefusedPut::Erased => Self::Erased,
            RefusedPut::Catalog(error) => error.into(),
        }
    }
}
