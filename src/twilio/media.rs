//! The media of a recording: asked for in formats, followed through redirects,
//! streamed.
//!
//! Classifies every answer; what an error means for the recording is decided
//! by its [`ErrorCode`]. Only a 200 is media. Whether the bytes are audio is
//! found out by whoever reads them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{StatusCode, Version, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::Response;
use url::Url;

use super::client::Twilio;
use super::egress::{self, Refused};
use super::source::{Source, SourceHost};
use crate::domain::media::Variant;
use crate::domain::recording::ErrorCode;
use crate::telemetry::innermost;

/// A body that comes more slowly than this, after a grace, is given up: it would
/// hold its place for ever. Twilio sends a thousand times as fast.
const RATE_MIN_BYTES_PER_SECOND: u64 = 4096;
const RATE_GRACE: Duration = Duration::from_secs(120);

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;

/// Why there is no media, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// None of the formats is there (yet). Holds what was answered.
    #[error("Twilio has no media yet: it answered {0}")]
    NotReady(String),
    /// 429.
    #[error("Twilio answered 429: too many requests")]
    RateLimited {
        /// What Twilio asks for.
        retry_after: Option<Duration>,
    },
    /// 401 or 403 from Twilio itself.
    #[error("Twilio answered {0}: the account's credentials are refused")]
    Unauthorized(StatusCode),
    /// Any other answer.
    #[error("Twilio answered {status}{}", if *.redirected { ", after a redirect" } else { "" })]
    Upstream {
        /// Its status.
        status: StatusCode,
        /// Whether it is another host's.
        redirected: bool,
        /// What it asks for.
        retry_after: Option<Duration>,
    },
    /// No answer.
    #[error("Twilio cannot be reached: {0}")]
    Unreachable(String),
    /// An answer of the API that is not what it should be.
    #[error("Twilio's answer cannot be read: {0}")]
    Unreadable(String),
    /// A redirect to where this service does not go.
    #[error("Twilio's redirect is refused: {0}")]
    RefusedRedirect(Refused),
    /// The account is not configured here.
    #[error("no credentials are configured for the account")]
    NotConfigured,
    /// Nothing.
    #[error("Twilio sent an empty body")]
    Empty,
    /// More than is taken.
    #[error("the recording has more than {max_bytes} bytes, the most that CALLVAULT_MAX_RECORDING_SIZE allows")]
    TooLarge {
        /// The most.
        max_bytes: u64,
    },
    /// The end came too soon.
    #[error("Twilio's body ended after {read_bytes} bytes of {}: {why}", announced(.announced_bytes))]
    Truncated {
        /// What came.
        read_bytes: u64,
        /// What was announced.
        announced_bytes: Option<u64>,
        /// What the connection says.
        why: String,
    },
    /// Neither Content-Length nor chunks: nobody could tell a whole body from a part.
    #[error("Twilio's body has no length: whether it is whole could not be told")]
    Unframed,
}

fn announced(bytes: &Option<u64>) -> String {
    bytes.map_or_else(|| "an unknown number".to_owned(), |bytes| bytes.to_string())
}

impl MediaError {
    /// What it is to the recording.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotReady(_) => ErrorCode::NotReady,
            Self::RateLimited { .. } => ErrorCode::RateLimited,
            Self::Unauthorized(_) | Self::NotConfigured => ErrorCode::Unauthorized,
            Self::Upstream { .. } | Self::Unreachable(_) | Self::Unreadable(_) => ErrorCode::UpstreamError,
            Self::RefusedRedirect(_) => ErrorCode::RefusedRedirect,
            Self::Empty => ErrorCode::Empty,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::Truncated { .. } | Self::Unframed => ErrorCode::Truncated,
        }
    }

    /// Whether Twilio answered, and has no reason to be asked less: there is only
    /// nothing (yet) of that recording.
    pub fn is_calm(&self) -> bool {
        matches!(self, Self::NotReady(_) | Self::Empty | Self::TooLarge { .. } | Self::RefusedRedirect(_))
    }

    /// How long Twilio asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Upstream { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// A body that is coming.
#[derive(Debug)]
pub struct Media {
    response: Response,
    began: Instant,
    /// Its length, where Twilio announced one.
    pub announced_bytes: Option<u64>,
    read_bytes: u64,
    max_bytes: u64,
}

impl Twilio {
    /// Asks for a recording in each of `variants` until one is there.
    ///
    /// Only a 404, and a 400 for a number of channels that the recording does
    /// not have, move on to the next. Dropping the media closes its connection.
    pub async fn media(&self, source: &Source, variants: &[Variant], max_bytes: u64) -> Result<Media, MediaError> {
        let mut answers = Vec::new();
        for variant in variants {
            let response = self.ask(source, variant).await?;
            match response.status() {
                StatusCode::OK => return Media::begin(response, max_bytes),
                StatusCode::NOT_FOUND => answers.push(format!("404 for {variant}")),
                StatusCode::BAD_REQUEST if variant.channels.is_some() => answers.push(format!("400 for {variant}")),
                _ => return Err(refusal(&response, source.host, self)),
            }
        }
        Err(MediaError::NotReady(answers.join(", ")))
    }

    /// One request and its redirects. Credentials go to the first URL's scheme,
    /// host and port only, and never again once one of them has changed.
    async fn ask(&self, source: &Source, variant: &Variant) -> Result<Response, MediaError> {
        let first = self.hosts().media_url(source, variant);
        let mut url = first.clone();
        let mut trusted = true;
        for _ in 0..=REDIRECTS_MAX {
            trusted &= url.origin() == first.origin();
            let request = match trusted {
                true => self.authorized(&source.id.account, url.clone()).ok_or(MediaError::NotConfigured)?,
                false => self.stranger.get(url.clone()),
            };
            // Bytes are stored as they come: nothing may be compressed on the way.
            let sent = request.header(header::ACCEPT_ENCODING, "identity").send().await;
            let response = sent.map_err(unreachable)?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            url = location(&response).ok_or(MediaError::RefusedRedirect(Refused::Location))?;
            egress::check(&url, self.egress).map_err(MediaError::RefusedRedirect)?;
        }
        Err(MediaError::RefusedRedirect(Refused::TooMany(REDIRECTS_MAX)))
    }
}

impl Media {
    fn begin(response: Response, max_bytes: u64) -> Result<Self, MediaError> {
        let announced_bytes = content_length(&response);
        match announced_bytes {
            Some(0) => return Err(MediaError::Empty),
            Some(bytes) if bytes > max_bytes => return Err(MediaError::TooLarge { max_bytes }),
            Some(_) => {}
            None if is_framed(&response) => {}
            None => return Err(MediaError::Unframed),
        }
        Ok(Self { response, began: Instant::now(), announced_bytes, read_bytes: 0, max_bytes })
    }

    /// The next bytes, or None at the end, when as many came as were announced,
    /// and at least one. Cancelling loses no bytes but may break the body: drop it then.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, MediaError> {
        let read = self.response.chunk().await;
        let chunk = read.map_err(|error| self.truncated(concise(error)))?;
        match &chunk {
            Some(chunk) => {
                self.read_bytes += chunk.len() as u64;
                if self.read_bytes > self.max_bytes {
                    return Err(MediaError::TooLarge { max_bytes: self.max_bytes });
                }
                let time_enough = RATE_GRACE + Duration::from_secs(self.read_bytes / RATE_MIN_BYTES_PER_SECOND);
                if self.began.elapsed() > time_enough {
                    return Err(self.truncated("it came too slowly".to_owned()));
                }
            }
            None if self.read_bytes == 0 => return Err(MediaError::Empty),
            None if self.announced_bytes.is_some_and(|announced| announced != self.read_bytes) => {
                return Err(self.truncated("another length was announced".to_owned()));
            }
            None => {}
        }
        Ok(chunk)
    }

    fn truncated(&self, why: String) -> MediaError {
        MediaError::Truncated { read_bytes: self.read_bytes, announced_bytes: self.announced_bytes, why }
    }
}

fn content_length(response: &Response) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether the end of a body without a length can be told from a broken
/// connection: chunks (RFC 9112, 7.1), or HTTP/2's own frames.
fn is_framed(response: &Response) -> bool {
    let encoding = response.headers().get(header::TRANSFER_ENCODING).and_then(|value| value.to_str().ok());
    response.version() >= Version::HTTP_2
        || encoding.is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked"))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn location(response: &Response) -> Option<Url> {
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    response.url().join(location).ok()
}

/// What a status other than 200 means. A stranger's 401 is not Twilio's word on the credentials.
pub(super) fn refusal(response: &Response, host: SourceHost, twilio: &Twilio) -> MediaError {
    let status = response.status();
    let retry_after = retry_after(response);
    let redirected = response.url().origin() != twilio.hosts().url(host, "/").origin();
    match status {
        StatusCode::TOO_MANY_REQUESTS => MediaError::RateLimited { retry_after },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !redirected => MediaError::Unauthorized(status),
        _ => MediaError::Upstream { status, redirected, retry_after },
    }
}

/// Retry-After (RFC 9110, 10.2.3): seconds, or a date, which is measured from
/// the answer's own Date.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let value = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text| -> Option<Timestamp> { rfc2822::DateTimeParser::new().parse_timestamp(text).ok() };
    Duration::try_from(date(value)? - date(text(header::DATE)?)?).ok()
}

/// An error before there was an answer, without the URL: a redirect's query holds secrets.
pub(super) fn unreachable(error: reqwest::Error) -> MediaError {
    if let Some(refused) = innermost(&error).downcast_ref::<Refused>() {
        return MediaError::RefusedRedirect(refused.clone());
    }
    MediaError::Unreachable(concise(error))
}

/// The first cause of an error. It has no URL in it.
fn concise(error: reqwest::Error) -> String {
    innermost(&error.without_url()).to_string()
}
