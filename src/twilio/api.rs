//! Twilio's REST API, as far as it tells of recordings
//! (<https://www.twilio.com/docs/voice/api/recording>).

use std::time::Duration;

use http::StatusCode;
use reqwest::Response;
use serde::Deserialize;

use super::callback::{read_channels, read_duration, read_time};
use super::client::Twilio;
use super::media::{MediaError, unreachable};
use super::source::Source;
use crate::domain::recording::Details;

/// A recording's resource is under 2 KB.
const BODY_MAX_BYTES: usize = 256 << 10;
/// From the request to the end of the body.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A recording as Twilio's API describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// What is known of it.
    pub details: Details,
    /// `in-progress`, `completed`, `absent`, `deleted` and others.
    pub status: String,
}

/// `Recordings/{RE}.json`. Every field may be missing or null.
#[derive(Debug, Deserialize)]
struct RecordingResource {
    call_sid: Option<String>,
    conference_sid: Option<String>,
    duration: Option<String>,
    channels: Option<serde_json::Value>,
    track: Option<String>,
    source: Option<String>,
    start_time: Option<String>,
    status: Option<String>,
}

impl Twilio {
    /// Asks what a recording is. None: Twilio does not know it (yet).
    pub async fn describe(&self, source: &Source) -> Result<Option<Described>, MediaError> {
        let path = format!("/2010-04-01/Accounts/{}/Recordings/{}.json", source.id.account, source.id.recording);
        let url = self.hosts().url(source.host, &path);
        let request = self.authorized(&source.id.account, url).ok_or(MediaError::NotConfigured)?;
        let response = request.timeout(TIMEOUT).send().await.map_err(unreachable)?;
        match response.status() {
            StatusCode::OK => read(response).await.map(|resource| Some(described(resource))),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(super::media::refusal(&response, source, self)),
        }
    }
}

fn described(resource: RecordingResource) -> Described {
    let parsed = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    let channels = resource.channels.map(|channels| channels.to_string());
    Described {
        details: Details {
            call_sid: resource.call_sid.and_then(|sid| sid.parse().ok()),
            conference_sid: resource.conference_sid.and_then(|sid| sid.parse().ok()),
            duration_seconds: resource.duration.as_deref().and_then(read_duration),
            channels: channels.as_deref().map(|text| text.trim_matches('"')).and_then(read_channels),
            track: parsed(&resource.track),
            recording_source: parsed(&resource.source),
            recorded_at: resource.start_time.as_deref().and_then(read_time),
        },
        status: resource.status.unwrap_or_default(),
    }
}

/// Reads a JSON body of bounded length.
async fn read<T: for<'de> Deserialize<'de>>(mut response: Response) -> Result<T, MediaError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > BODY_MAX_BYTES {
            return Err(MediaError::Unreadable(format!("it has more than {BODY_MAX_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|error| MediaError::Unreadable(error.to_string()))
}
