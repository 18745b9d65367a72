//! Twilio's recordingStatusCallback, read from the raw request
//! (<https://www.twilio.com/docs/voice/api/recording#recordingstatuscallback>).
//!
//! Nothing of a request is believed before its signature was checked with the
//! tokens of the account that it names, and of that account alone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::fmt::rfc2822;

use super::client::Twilio;
use super::signature::{self, Signed};
use super::source::{Source, SourceHost};
use crate::domain::recording::{Details, RecordingId};
use crate::domain::sid::{AccountSid, RecordingSid};

/// The longest text of a field that is kept as text. Twilio's words are shorter.
const TEXT_MAX_CHARS: usize = 64;

/// A request as it came.
#[derive(Debug, Clone, Copy)]
pub struct RawCallback<'a> {
    /// Whether the fields are in the query (GET) or in the body (POST).
    pub is_get: bool,
    /// What Twilio was told to call: scheme, host, path and query, as raw text.
    pub url: &'a str,
    /// The header `Content-Type`.
    pub content_type: Option<&'a str>,
    /// The header `X-Twilio-Signature`.
    pub signature: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

/// What Twilio says of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callback {
    /// Where its media is.
    pub source: Source,
    /// What became of it.
    pub status: Status,
    /// What is known of it.
    pub details: Details,
    /// Twilio's error code, such as 16101 (too short).
    pub error_code: Option<String>,
}

/// `RecordingStatus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Twilio is recording.
    InProgress,
    /// The recording is there, or about to be.
    Completed,
    /// There is no audio.
    Absent,
    /// Twilio failed to make it.
    Failed,
    /// A word that Twilio did not use when this was written.
    Other(String),
}

impl Status {
    /// Twilio's word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::InProgress => "in-progress",
            Self::Completed => "completed",
            Self::Absent => "absent",
            Self::Failed => "failed",
            Self::Other(word) => word,
        }
    }

    fn read(word: &str) -> Self {
        match word {
            "in-progress" => Self::InProgress,
            "completed" => Self::Completed,
            "absent" => Self::Absent,
            "failed" => Self::Failed,
            other => Self::Other(shortened(other)),
        }
    }
}

/// Why a callback is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedCallback {
    /// Neither a form nor JSON.
    #[error("a callback is a form (application/x-www-form-urlencoded) or JSON (application/json)")]
    UnsupportedMediaType,
    /// Not signed, or not by the account that it names.
    /// Holds the account that may miss a recording for it: None where it is not
    /// configured, or no recording is named, and nothing is lost.
    #[error("X-Twilio-Signature does not fit the URL, the fields and the account's auth token")]
    BadSignature(Option<AccountSid>),
    /// Not what Twilio sends.
    #[error("{0}")]
    Malformed(String),
}

fn malformed(what: impl Into<String>) -> RefusedCallback {
    RefusedCallback::Malformed(what.into())
}

impl Twilio {
    /// Checks and reads a callback.
    pub fn read_callback(&self, raw: &RawCallback<'_>) -> Result<Callback, RefusedCallback> {
        let encoding = Encoding::of(raw)?;
        let form = match encoding {
            Encoding::Query => signature::decode_form(query_of(raw.url).as_bytes()),
            Encoding::Form => signature::decode_form(raw.body),
            Encoding::Json => Vec::new(),
        };
        let fields = match encoding {
            Encoding::Json => Fields::of_json(raw.body)?,
            Encoding::Query | Encoding::Form => Fields::of_form(&form)?,
        };
        let account: AccountSid = fields.sid("AccountSid")?.ok_or_else(|| malformed("AccountSid is missing"))?;
        let signed = match encoding {
            Encoding::Query => Signed::UrlAlone,
            Encoding::Form => Signed::Form(&form),
            Encoding::Json => Signed::Body(raw.body),
        };
        let tokens = self.callback_tokens(&account);
        let header = raw.signature.unwrap_or_default();
        if !signature::is_valid(header, tokens, raw.url, signed) {
            let names_recording = fields.sid::<RecordingSid>("RecordingSid").is_ok_and(|sid| sid.is_some());
            let is_ours = names_recording && self.home(&account).is_some();
            return Err(RefusedCallback::BadSignature(is_ours.then_some(account)));
        }
        self.read_fields(account, &fields)
    }

    fn read_fields(&self, account: AccountSid, fields: &Fields) -> Result<Callback, RefusedCallback> {
        let recording = fields.sid("RecordingSid")?.ok_or_else(|| malformed("RecordingSid is missing"))?;
        let id = RecordingId { account, recording };
        let host = match fields.get("RecordingUrl") {
            None => None,
            Some(url) => {
                let (host, named) =
                    self.hosts().read(url).map_err(|refused| malformed(format!("RecordingUrl: {refused}")))?;
                if named != id {
                    return Err(malformed(
                        "RecordingUrl names another account or recording than AccountSid and RecordingSid",
                    ));
                }
                host
            }
        };
        let host = host.unwrap_or_else(|| self.home(&account).unwrap_or(SourceHost::Origin));
        Ok(Callback {
            source: Source { host, id },
            // Twilio sends `completed` by default, and did not always say so.
            status: fields.get("RecordingStatus").map_or(Status::Completed, Status::read),
            details: fields.details()?,
            error_code: fields.get("ErrorCode").filter(|code| *code != "0").map(shortened),
        })
    }
}

/// How the fields of a callback are written.
#[derive(Debug, Clone, Copy)]
enum Encoding {
    Query,
    Form,
    Json,
}

impl Encoding {
    fn of(raw: &RawCallback<'_>) -> Result<Self, RefusedCallback> {
        if raw.is_get {
            return Ok(Self::Query);
        }
        let media_type = raw.content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        match media_type.to_ascii_lowercase().as_str() {
            "application/x-www-form-urlencoded" => Ok(Self::Form),
            "application/json" => Ok(Self::Json),
            _ => Err(RefusedCallback::UnsupportedMediaType),
        }
    }
}

fn query_of(url: &str) -> &str {
    url.split_once('?').map_or("", |(_, query)| query)
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).collect()
}

/// The fields that are read, each there at most once.
struct Fields(BTreeMap<String, String>);

impl Fields {
    const READ: [&str; 12] = [
        "AccountSid",
        "CallSid",
        "ConferenceSid",
        "RecordingSid",
        "RecordingUrl",
        "RecordingStatus",
        "RecordingDuration",
        "RecordingChannels",
        "RecordingStartTime",
        "RecordingSource",
        "RecordingTrack",
        "ErrorCode",
    ];

    fn of_form(form: &signature::Fields) -> Result<Self, RefusedCallback> {
        let mut fields = BTreeMap::new();
        for name in Self::READ {
            let mut values = form.iter().filter(|(key, _)| key == name.as_bytes()).map(|(_, value)| value);
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(malformed(format!("{name} is given more than once")));
            }
            let value = std::str::from_utf8(value).map_err(|_| malformed(format!("{name} is not UTF-8")))?;
            fields.insert(name.to_owned(), value.to_owned());
        }
        Ok(Self(fields))
    }

    fn of_json(body: &[u8]) -> Result<Self, RefusedCallback> {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(body).map_err(|_| malformed("the body is not a JSON object"))?;
        let mut fields = BTreeMap::new();
        for (name, value) in object.into_iter().filter(|(name, _)| Self::READ.contains(&name.as_str())) {
            match value {
                serde_json::Value::String(text) => fields.insert(name, text),
                serde_json::Value::Number(number) => fields.insert(name, number.to_string()),
                serde_json::Value::Null => None,
                _ => return Err(malformed(format!("{name} is not a text"))),
            };
        }
        Ok(Self(fields))
    }

    /// A field that says something: an empty one is as good as none.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn sid<S: std::str::FromStr>(&self, name: &str) -> Result<Option<S>, RefusedCallback>
    where
        S::Err: std::fmt::Display,
    {
        let sid = self.get(name).map(str::parse).transpose();
        sid.map_err(|invalid: S::Err| malformed(format!("{name} is {invalid}")))
    }

    fn details(&self) -> Result<Details, RefusedCallback> {
        Ok(Details {
            call_sid: self.sid("CallSid")?,
            conference_sid: self.sid("ConferenceSid")?,
            duration_seconds: self.get("RecordingDuration").and_then(read_duration),
            channels: self.get("RecordingChannels").and_then(read_channels),
            track: self.get("RecordingTrack").map(shortened),
            recording_source: self.get("RecordingSource").map(shortened),
            recorded_at: self.get("RecordingStartTime").and_then(read_time),
        })
    }
}

/// Seconds as Twilio writes them: `"-1"`, empty or missing while it does not know.
pub(super) fn read_duration(text: &str) -> Option<i64> {
    text.parse().ok().filter(|seconds| *seconds >= 0)
}

/// 1 or 2.
pub(super) fn read_channels(text: &str) -> Option<i64> {
    text.parse().ok().filter(|channels| (1..=2).contains(channels))
}

/// A time as Twilio writes it: RFC 2822 in some places, ISO 8601 in others.
pub(super) fn read_time(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| rfc2822::DateTimeParser::new().parse_timestamp(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twilio::client::tests::{ACCOUNT, OTHER, twilio};
    use proptest::prelude::*;
    use secrecy::SecretString;

    const URL: &str = "https://calls.example.com/webhooks/twilio/recording";
    const RECORDING: &str = "REfedcba9876543210fedcba9876543210";
    const CALL: &str = "CA11111111111111111111111111111111";

    fn fields() -> Vec<(&'static str, String)> {
        vec![
            ("AccountSid", ACCOUNT.to_owned()),
            ("CallSid", CALL.to_owned()),
            ("RecordingSid", RECORDING.to_owned()),
            ("RecordingUrl", format!("https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Recordings/{RECORDING}")),
            ("RecordingStatus", "completed".to_owned()),
            ("RecordingDuration", "6".to_owned()),
            ("RecordingChannels", "2".to_owned()),
            ("RecordingStartTime", "Mon, 23 Nov 2026 14:00:00 +0000".to_owned()),
            ("RecordingSource", "DialVerb".to_owned()),
            ("RecordingTrack", "both".to_owned()),
            ("From", "+14158675309".to_owned()),
        ]
    }

    fn with(name: &'static str, value: &str) -> Vec<(&'static str, String)> {
        let mut fields = fields();
        fields.retain(|(known, _)| *known != name);
        fields.push((name, value.to_owned()));
        fields
    }

    fn encoded(fields: &[(&'static str, String)]) -> String {
        signature::encode_form(fields.iter().map(|(name, value)| (*name, value.as_str())))
    }

    fn post(fields: &[(&'static str, String)], token: &str) -> Result<Callback, RefusedCallback> {
        let body = encoded(fields);
        let token: SecretString = token.into();
        let signature = signature::sign(&token, URL, Signed::Form(&signature::decode_form(body.as_bytes())));
        twilio().read_callback(&RawCallback {
            is_get: false,
            url: URL,
            content_type: Some("application/x-www-form-urlencoded; charset=utf-8"),
            signature: Some(&signature),
            body: body.as_bytes(),
        })
    }

    fn expected() -> Callback {
        Callback {
            source: Source {
                host: SourceHost::Origin,
                id: RecordingId { account: ACCOUNT.parse().unwrap(), recording: RECORDING.parse().unwrap() },
            },
            status: Status::Completed,
            details: Details {
                call_sid: Some(CALL.parse().unwrap()),
                conference_sid: None,
                duration_seconds: Some(6),
                channels: Some(2),
                track: Some("both".to_owned()),
                recording_source: Some("DialVerb".to_owned()),
                recorded_at: Some("2026-11-23T14:00:00Z".parse().unwrap()),
            },
            error_code: None,
        }
    }

    #[test]
    fn a_form_is_read() {
        assert_eq!(post(&fields(), "token-a"), Ok(expected()));
    }

    #[test]
    fn a_get_is_read_from_its_query_alone() {
        let url = format!("{URL}?tenant=7&{}", encoded(&fields()));
        let signature = signature::sign(&"token-a".into(), &url, Signed::UrlAlone);
        let raw = RawCallback { is_get: true, url: &url, content_type: None, signature: Some(&signature), body: b"" };
        assert_eq!(twilio().read_callback(&raw), Ok(expected()));
    }

    #[test]
    fn json_is_read() {
        let object: serde_json::Map<String, serde_json::Value> =
            fields().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let body = serde_json::to_vec(&object).unwrap();
        let url = format!("{URL}?bodySHA256={}", crate::domain::digest::Digest::of(&body));
        let signature = signature::sign(&"token-a".into(), &url, Signed::UrlAlone);
        let raw = RawCallback {
            is_get: false,
            url: &url,
            content_type: Some("application/json"),
            signature: Some(&signature),
            body: &body,
        };
        assert_eq!(twilio().read_callback(&raw), Ok(expected()));
        let altered = RawCallback { body: b"{}", ..raw };
        assert_eq!(twilio().read_callback(&altered), Err(malformed("AccountSid is missing")));
    }

    #[test]
    fn the_fields_of_a_post_are_never_taken_from_the_query() {
        let url = format!("{URL}?RecordingSid=RE{}", "0".repeat(32));
        let body = encoded(&fields());
        let signed = signature::decode_form(body.as_bytes());
        let signature = signature::sign(&"token-a".into(), &url, Signed::Form(&signed));
        let raw = RawCallback {
            is_get: false,
            url: &url,
            content_type: Some("application/x-www-form-urlencoded"),
            signature: Some(&signature),
            body: body.as_bytes(),
        };
        assert_eq!(twilio().read_callback(&raw), Ok(expected()));
    }

    #[test]
    fn either_token_of_the_account_signs_and_no_other_accounts() {
        assert!(post(&fields(), "token-a").is_ok());
        assert!(post(&fields(), "token-a-2").is_ok());
        let refused_of = |account: &str| Err(RefusedCallback::BadSignature(Some(account.parse().unwrap())));
        assert_eq!(post(&fields(), "token-b"), refused_of(ACCOUNT));
        assert_eq!(post(&with("AccountSid", OTHER), "token-a"), refused_of(OTHER));
    }

    #[test]
    fn nobody_misses_what_names_no_recording_of_an_account_of_ours() {
        let nobodys = Err(RefusedCallback::BadSignature(None));
        let unknown = format!("AC{}", "9".repeat(32));
        assert_eq!(post(&with("AccountSid", &unknown), "token-a"), nobodys);
        for recording in ["", "RE1"] {
            assert_eq!(post(&with("RecordingSid", recording), "token-b"), nobodys, "{recording}");
        }
    }

    #[test]
    fn a_url_that_names_something_else_is_malformed() {
        for url in [
            format!("https://api.twilio.com/2010-04-01/Accounts/{OTHER}/Recordings/{RECORDING}"),
            format!("https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Recordings/RE{}", "0".repeat(32)),
            format!("https://evil.example/2010-04-01/Accounts/{ACCOUNT}/Recordings/{RECORDING}"),
        ] {
            let refused = post(&with("RecordingUrl", &url), "token-a");
            assert!(matches!(refused, Err(RefusedCallback::Malformed(_))), "{url}: {refused:?}");
        }
    }

    #[test]
    fn what_twilio_does_not_know_yet_is_not_known() {
        for duration in ["-1", "", "soon"] {
            let callback = post(&with("RecordingDuration", duration), "token-a").unwrap();
            assert_eq!(callback.details.duration_seconds, None, "{duration}");
        }
        let mut without = fields();
        without.retain(|(name, _)| !["RecordingDuration", "RecordingChannels", "RecordingTrack"].contains(name));
        assert_eq!(post(&without, "token-a").unwrap().details.duration_seconds, None);
    }

    #[test]
    fn both_spellings_of_a_time_are_read() {
        let iso = post(&with("RecordingStartTime", "2026-11-23T14:00:00Z"), "token-a").unwrap();
        assert_eq!(iso.details.recorded_at, expected().details.recorded_at);
        let nonsense = post(&with("RecordingStartTime", "yesterday"), "token-a").unwrap();
        assert_eq!(nonsense.details.recorded_at, None);
    }

    #[test]
    fn a_word_that_is_not_known_is_kept() {
        let callback = post(&with("RecordingStatus", "transmogrified"), "token-a").unwrap();
        assert_eq!(callback.status, Status::Other("transmogrified".to_owned()));
    }

    #[test]
    fn a_conference_may_come_without_a_call() {
        let conference = format!("CF{}", "2".repeat(32));
        let mut fields = with("ConferenceSid", &conference);
        fields.retain(|(name, _)| *name != "CallSid");
        let details = post(&fields, "token-a").unwrap().details;
        assert_eq!((details.call_sid, details.conference_sid), (None, conference.parse().ok()));
    }

    #[test]
    fn what_is_missing_or_doubled_is_said() {
        let said = |fields: &[(&'static str, String)]| post(fields, "token-a").unwrap_err().to_string();
        assert_eq!(said(&with("RecordingSid", "")), "RecordingSid is missing");
        assert!(said(&with("CallSid", "CA1")).starts_with("CallSid is not a call SID"));
        let doubled = [fields(), vec![("RecordingSid", RECORDING.to_owned())]].concat();
        assert_eq!(said(&doubled), "RecordingSid is given more than once");
    }

    #[test]
    fn other_media_types_are_not_read() {
        for content_type in [None, Some("text/xml"), Some("multipart/form-data; boundary=x")] {
            let raw = RawCallback { is_get: false, url: URL, content_type, signature: Some("x"), body: b"" };
            assert_eq!(twilio().read_callback(&raw), Err(RefusedCallback::UnsupportedMediaType));
        }
    }

    proptest! {
        #[test]
        fn an_unsigned_request_is_never_taken(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            json: bool,
            signature in "\\PC{0,40}",
        ) {
            let content_type = if json { "application/json" } else { "application/x-www-form-urlencoded" };
            let raw = RawCallback {
                is_get: false,
                url: URL,
                content_type: Some(content_type),
                signature: Some(&signature),
                body: &body,
            };
            prop_assert!(twilio().read_callback(&raw).is_err());
        }
    }
}
