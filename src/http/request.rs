//! Reading requests: bodies with a limit, queries with a meaning.

use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::uri::Authority;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;

use super::State;
use super::problem::Problem;
use crate::config::parse;
use crate::vault::deliver::Wanted;

/// The longest wait that may be asked for: proxies give up on longer ones.
const WAIT_MAX_SECONDS: u64 = 30;
const WAIT_DEFAULT: Duration = Duration::from_secs(10);

const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 1000;

/// A body of some kilobytes takes milliseconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a body of at most so many bytes, which may not take its time.
pub async fn body(body: Body, max_bytes: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, max_bytes).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::PayloadTooLarge { max_bytes }),
        Ok(Err(_)) => Err(Problem::InvalidRequest("The body broke off.".to_owned())),
        Err(_) => Err(Problem::InvalidRequest("The body did not come in time.".to_owned())),
    }
}

/// Refuses a body that does not say that it is JSON.
pub fn expect_json(headers: &HeaderMap) -> Result<(), Problem> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Problem::UnsupportedMediaType("application/json"))
    }
}

/// What the client calls the service, if it says so: the target's authority, or
/// the header Host (RFC 9112, 3.2).
pub fn host(parts: &Parts) -> Result<Option<Authority>, Problem> {
    if let Some(authority) = parts.uri.authority() {
        return Ok(Some(authority.clone()));
    }
    let Some(host) = parts.headers.get(HOST) else { return Ok(None) };
    let authority = Authority::try_from(host.as_bytes()).ok().filter(|authority| !authority.as_str().contains('@'));
    authority.map(Some).ok_or_else(|| Problem::InvalidRequest("The header Host is not a host.".to_owned()))
}

/// The one name in a path, parsed. What does not have the form of a name is not
/// the name of anything.
#[derive(Debug)]
pub struct Named<T>(pub T);

impl<T: FromStr> Named<T> {
    /// The part of the path that the route calls so.
    pub async fn of(parts: &mut Parts, name: &str) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, &()).await.map_err(|_| Problem::NotFound)?;
        let found = params.iter().find(|(key, _)| *key == name).and_then(|(_, text)| text.parse().ok());
        found.map(Self).ok_or(Problem::NotFound)
    }
}

impl<T: FromStr> FromRequestParts<State> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, &()).await.map_err(|_| Problem::NotFound)?;
        let found = params.iter().next().and_then(|(_, text)| text.parse().ok());
        found.map(Self).ok_or(Problem::NotFound)
    }
}

/// What a path names: a call, or a recording.
pub async fn wanted(parts: &mut Parts) -> Result<Wanted, Problem> {
    match Named::of(parts, "call_sid").await {
        Ok(Named(call)) => Ok(Wanted::Call(call)),
        Err(_) => Ok(Wanted::Recording(Named::of(parts, "recording_sid").await?.0)),
    }
}

/// A query, decoded.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl FromRequestParts<State> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
        Ok(Self::of(parts))
    }
}

impl Query {
    /// The query of a request.
    pub fn of(parts: &Parts) -> Self {
        let raw = parts.uri.query().unwrap_or_default();
        Self(url::form_urlencoded::parse(raw.as_bytes()).into_owned().collect())
    }

    /// All values of a parameter, as they came.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter, parsed.
    pub fn all<T: FromStr>(&self, name: &str, expected: &str) -> Result<Vec<T>, Problem> {
        let parsed = self.texts(name).map(|text| text.parse().map_err(|_| wrong(name, text, expected)));
        parsed.collect()
    }

    /// The value of a parameter that may stand once.
    pub fn one<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        let mut values = self.all(name, expected)?;
        match values.len() {
            0 => Ok(None),
            1 => Ok(values.pop()),
            _ => Err(Problem::InvalidRequest(format!("{name} is given more than once."))),
        }
    }

    /// `wait`: how long to wait for what is on its way.
    pub fn wait(&self) -> Result<Duration, Problem> {
        let expected = "whole seconds from 0 to 30";
        match self.one::<u64>("wait", expected)? {
            None => Ok(WAIT_DEFAULT),
            Some(seconds) if seconds <= WAIT_MAX_SECONDS => Ok(Duration::from_secs(seconds)),
            Some(seconds) => Err(wrong("wait", &seconds.to_string(), expected)),
        }
    }

    /// Something that is or is not wanted: `true` or `false`, or not said.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.one(name, "true or false")?.unwrap_or(false))
    }

    /// `limit`: how many at once.
    pub fn limit(&self) -> Result<usize, Problem> {
        let expected = "a whole number from 1 to 1000";
        match self.one::<usize>("limit", expected)? {
            None => Ok(LIMIT_DEFAULT),
            Some(limit @ 1..=LIMIT_MAX) => Ok(limit),
            Some(limit) => Err(wrong("limit", &limit.to_string(), expected)),
        }
    }

    /// `disposition`: whether the recording is to be saved rather than played.
    pub fn attachment(&self) -> Result<bool, Problem> {
        match self.one::<String>("disposition", "inline or attachment")?.as_deref() {
            None | Some("inline") => Ok(false),
            Some("attachment") => Ok(true),
            Some(other) => Err(wrong("disposition", other, "inline or attachment")),
        }
    }

    /// A time: RFC 3339, or a day, which begins at midnight UTC.
    pub fn time(&self, name: &str) -> Result<Option<Timestamp>, Problem> {
        let Some(text) = self.one::<String>(name, "a time")? else { return Ok(None) };
        parse::time(&text).map(Some).map_err(|expected| wrong(name, &text, &expected))
    }
}

/// What is said of a value that makes no sense.
pub fn wrong(name: &str, value: &str, expected: &str) -> Problem {
    let value: String = value.chars().take(100).collect();
    Problem::InvalidRequest(format!("{name}: {value:?} is wrong; expected {expected}."))
}
