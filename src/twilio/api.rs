//! Twilio's REST API, as far as it tells of recordings
//! (<https://www.twilio.com/docs/voice/api/recording>).

use std::time::Duration;

use http::{Method, StatusCode};
use jiff::Timestamp;
use jiff::civil::Date;
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use super::callback::{read_channels, read_duration, read_time};
use super::client::{AuthToken, Twilio};
use super::decrypt::Encryption;
use super::media::{MediaError, refusal, unreachable};
use super::source::{Source, SourceHost};
use crate::domain::recording::{Details, RecordingId};
use crate::domain::sid::{AccountSid, CallSid};

/// A recording's resource is under 2 KB, and a page has at most a thousand.
const BODY_MAX_BYTES: usize = 8 << 20;
/// The most that Twilio puts on a page.
const PAGE_SIZE: &str = "1000";
/// From the request to the end of the body.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A recording as Twilio's API describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// What is known of it.
    pub details: Details,
    /// `in-progress`, `completed`, `absent`, `deleted` and others.
    pub status: String,
    /// Twilio's error code, where it gives one.
    pub error_code: Option<String>,
    /// How its media is encrypted; None: it is not.
    pub encryption: Option<Encryption>,
}

impl Described {
    /// Whether Twilio is done with it, one way or another.
    pub fn is_final(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "absent" | "deleted" | "failed")
    }
}

/// What of an account's recordings is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// Those of one call.
    OfCall(CallSid),
    /// Those made on these days in UTC, both included.
    OfDays {
        /// The first day.
        first: Date,
        /// The last.
        last: Date,
    },
    /// Any one of those made on these days, with a day more at either end: whether there are any.
    AnyOfDays {
        /// The first day.
        first: Date,
        /// The last.
        last: Date,
    },
}

/// A recording in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Which recording: always of the account that was asked for.
    pub id: RecordingId,
    /// When Twilio made it: what lists are filtered by.
    pub created_at: Option<Timestamp>,
    /// What Twilio says of it.
    pub described: Described,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// Its recordings, newest first. What cannot be read of it is left out.
    pub recordings: Vec<Listed>,
    /// How many entries of it cannot be read.
    pub unreadable: usize,
    /// What gives the next page; None: this was the last one.
    pub next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ListResource {
    recordings: Vec<RecordingResource>,
    next_page_uri: Option<String>,
}

/// `Calls/{CA}.json`.
#[derive(Debug, Deserialize)]
struct CallResource {
    parent_call_sid: Option<String>,
}

/// `Recordings/{RE}.json`. Every field may be missing or null.
#[derive(Debug, Deserialize)]
struct RecordingResource {
    sid: Option<String>,
    account_sid: Option<String>,
    error_code: Option<serde_json::Value>,
    call_sid: Option<String>,
    conference_sid: Option<String>,
    duration: Option<String>,
    channels: Option<serde_json::Value>,
    track: Option<String>,
    source: Option<String>,
    start_time: Option<String>,
    date_created: Option<String>,
    status: Option<String>,
    encryption_details: Option<serde_json::Value>,
}

impl Twilio {
    /// Asks what a recording is. None: Twilio does not know it (yet).
    pub async fn describe(&self, source: &Source) -> Result<Option<Described>, MediaError> {
        let url = self.resource_url(source);
        Ok(self.get::<RecordingResource>(&source.id.account, source.host, url).await?.map(described))
    }

    /// Deletes a recording, its audio at once; one that is not there is fine. Where it is
    /// not known at the host of its URL, the account's own is asked as well: of what only a
    /// marker knew there was no URL.
    pub async fn delete(&self, source: &Source) -> Result<(), MediaError> {
        if self.delete_there(source).await? {
            return Ok(());
        }
        match self.home(&source.id.account).filter(|home| *home != source.host) {
            Some(host) => self.delete_there(&Source { host, ..*source }).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// False where that host does not know it.
    async fn delete_there(&self, source: &Source) -> Result<bool, MediaError> {
        let url = self.resource_url(source);
        let request = self.authorized_to(Method::DELETE, &source.id.account, url).ok_or(MediaError::NotConfigured)?;
        let response = request.timeout(TIMEOUT).send().await.map_err(unreachable)?;
        match response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refusal(&response, source.host, self)),
        }
    }

    fn resource_url(&self, source: &Source) -> Url {
        let path = format!("/2010-04-01/Accounts/{}/Recordings/{}.json", source.id.account, source.id.recording);
        self.hosts().url(source.host, &path)
    }

    /// A page of an account's recordings: the first one, or the one that an
    /// earlier page calls `next`. None: Twilio does not know the call.
    ///
    /// Twilio ignores filters that it does not know: compare the times of what comes.
    pub async fn list(
        &self,
        account: &AccountSid,
        listing: Listing,
        next: Option<&str>,
    ) -> Result<Option<ListPage>, MediaError> {
        let host = self.home(account).ok_or(MediaError::NotConfigured)?;
        let url = self.list_url(account, host, listing, next);
        let page = self.get::<ListResource>(account, host, url).await?;
        Ok(page.map(|page| {
            let entries = page.recordings.len();
            let recordings: Vec<Listed> =
                page.recordings.into_iter().filter_map(|resource| listed(account, resource)).collect();
            let unreadable = entries - recordings.len();
            ListPage { recordings, unreadable, next: page.next_page_uri.as_deref().and_then(query_of) }
        }))
    }

    /// A call's parent, if it is the leg of another call. None: Twilio does not know the call.
    pub async fn parent(&self, account: &AccountSid, call: CallSid) -> Result<Option<Option<CallSid>>, MediaError> {
        let host = self.home(account).ok_or(MediaError::NotConfigured)?;
        let url = self.hosts().url(host, &format!("/2010-04-01/Accounts/{account}/Calls/{call}.json"));
        let resource = self.get::<CallResource>(account, host, url).await?;
        Ok(resource.map(|call| call.parent_call_sid.and_then(|sid| sid.parse().ok())))
    }

    /// Whether Twilio accepts the account's credentials. Standard API keys may
    /// not read the account itself, but every key that serves here reads this.
    pub async fn probe(&self, account: &AccountSid) -> Result<(), MediaError> {
        let host = self.home(account).ok_or(MediaError::NotConfigured)?;
        self.get::<ListResource>(account, host, self.probe_url(account, host)).await.map(|_| ())
    }

    /// Whether Twilio accepts one of the account's tokens: callbacks are signed with a
    /// token, whatever key requests are made with.
    pub async fn probe_token(&self, account: &AccountSid, which: AuthToken) -> Result<(), MediaError> {
        let host = self.home(account).ok_or(MediaError::NotConfigured)?;
        let request = self.authorized_by(which, account, self.probe_url(account, host));
        let request = request.ok_or(MediaError::NotConfigured)?;
        self.resource::<ListResource>(request, host).await.map(|_| ())
    }

    fn probe_url(&self, account: &AccountSid, host: SourceHost) -> Url {
        let mut url = self.hosts().url(host, &format!("/2010-04-01/Accounts/{account}/Recordings.json"));
        url.set_query(Some("PageSize=1"));
        url
    }

    /// Of a `next`, only the query is Twilio's: host and path are always made here.
    fn list_url(&self, account: &AccountSid, host: SourceHost, listing: Listing, next: Option<&str>) -> Url {
        let path = match listing {
            Listing::OfCall(call) => format!("/2010-04-01/Accounts/{account}/Calls/{call}/Recordings.json"),
            Listing::OfDays { .. } | Listing::AnyOfDays { .. } => {
                format!("/2010-04-01/Accounts/{account}/Recordings.json")
            }
        };
        let mut url = self.hosts().url(host, &path);
        let first_page = || {
            let mut query = Serializer::new(String::new());
            let mut between = |first: Date, last: Date| {
                query.append_pair("DateCreated>", &first.to_string()).append_pair("DateCreated<", &last.to_string());
            };
            let page_size = match listing {
                Listing::OfDays { first, last } if first == last => {
                    query.append_pair("DateCreated", &first.to_string());
                    PAGE_SIZE
                }
                Listing::OfDays { first, last } => {
                    between(first, last);
                    PAGE_SIZE
                }
                Listing::AnyOfDays { first, last } => {
                    between(first.yesterday().unwrap_or(first), last.tomorrow().unwrap_or(last));
                    "1"
                }
                Listing::OfCall(_) => PAGE_SIZE,
            };
            query.append_pair("PageSize", page_size).finish()
        };
        url.set_query(Some(&next.map_or_else(first_page, str::to_owned)));
        url
    }

    /// Reads a resource; None where there is none.
    async fn get<T: for<'de> Deserialize<'de>>(
        &self,
        account: &AccountSid,
        host: SourceHost,
        url: Url,
    ) -> Result<Option<T>, MediaError> {
        let request = self.authorized(account, url).ok_or(MediaError::NotConfigured)?;
        self.resource(request, host).await
    }

    /// The same by a request that is made already.
    async fn resource<T: for<'de> Deserialize<'de>>(
        &self,
        request: RequestBuilder,
        host: SourceHost,
    ) -> Result<Option<T>, MediaError> {
        let response = request.timeout(TIMEOUT).send().await.map_err(unreachable)?;
        match response.status() {
            StatusCode::OK => read(response).await.map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(refusal(&response, host, self)),
        }
    }
}

fn query_of(uri: &str) -> Option<String> {
    uri.split_once('?').map(|(_, query)| query.to_owned())
}

/// An entry of a list; None where it is not that account's, or unreadable.
fn listed(account: &AccountSid, resource: RecordingResource) -> Option<Listed> {
    let recording = resource.sid.as_deref()?.parse().ok()?;
    let owner: AccountSid = resource.account_sid.as_deref()?.parse().ok()?;
    let created_at = resource.date_created.as_deref().and_then(read_time);
    let id = RecordingId { account: owner, recording };
    (owner == *account).then(|| Listed { id, created_at, described: described(resource) })
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
        error_code: resource.error_code.filter(|code| !code.is_null()).map(|code| code.to_string()),
        encryption: resource
            .encryption_details
            .filter(|details| !details.is_null())
            .map(|details| encryption(&details)),
    }
}

/// What cannot be read of it stays empty: the recording is encrypted all the same.
fn encryption(details: &serde_json::Value) -> Encryption {
    let text = |name| details.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    Encryption { public_key_sid: text("public_key_sid"), encrypted_cek: text("encrypted_cek"), iv: text("iv") }
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
