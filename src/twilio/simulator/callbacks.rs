//! The callbacks that the simulator sends.

use jiff::fmt::rfc2822;
use secrecy::SecretString;

use super::Simulator;
use crate::domain::sid::RecordingSid;
use crate::twilio::signature::{self, Signed};

/// A callback before it is sent, to be altered by tests that must.
#[derive(Debug, Clone)]
pub struct OutgoingCallback {
    /// Names and values, in the order in which they are sent.
    pub fields: Vec<(String, String)>,
    /// What it is signed with.
    pub auth_token: String,
}

impl OutgoingCallback {
    /// The same with another value of a field, added where it was not there.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same without a field.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(known, _)| known != name);
        self
    }

    /// The body of a POST.
    pub fn form(&self) -> String {
        signature::encode_form(self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    /// `X-Twilio-Signature` for a POST to that URL.
    pub fn signature(&self, url: &str) -> String {
        let token: SecretString = self.auth_token.as_str().into();
        signature::sign(&token, url, Signed::Form(&signature::decode_form(self.form().as_bytes())))
    }

    /// Posts it to `url`, signed for it.
    pub async fn send(&self, client: &reqwest::Client, url: &str) -> reqwest::Result<reqwest::Response> {
        self.send_signed_for(client, url, url).await
    }

    /// Posts it to `url`, signed for the name by which the world knows that place.
    pub async fn send_signed_for(
        &self,
        client: &reqwest::Client,
        signed_for: &str,
        url: &str,
    ) -> reqwest::Result<reqwest::Response> {
        let request = client
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("x-twilio-signature", self.signature(signed_for))
            .body(self.form());
        request.send().await
    }
}

impl Simulator {
    /// What Twilio says when a recording reaches that status; None where it is not known.
    pub fn callback(&self, recording: RecordingSid, status: &str) -> Option<OutgoingCallback> {
        let state = self.shared.state();
        let recording = state.recordings.get(&recording)?;
        let account = state.accounts.get(&recording.id.account)?;
        let id = recording.id;
        let url = format!("https://api.twilio.com/2010-04-01/Accounts/{}/Recordings/{}", id.account, id.recording);
        let started_at = rfc2822::to_string(&recording.started_at.to_zoned(jiff::tz::TimeZone::UTC)).ok()?;
        let fields = [
            ("AccountSid", Some(id.account.to_string())),
            ("CallSid", recording.call_sid.map(|sid| sid.to_string())),
            ("ConferenceSid", recording.conference_sid.map(|sid| sid.to_string())),
            ("RecordingSid", Some(id.recording.to_string())),
            ("RecordingUrl", Some(url)),
            ("RecordingStatus", Some(status.to_owned())),
            ("RecordingDuration", Some(recording.duration.clone())),
            ("RecordingChannels", Some(recording.channels.to_string())),
            ("RecordingStartTime", Some(started_at)),
            ("RecordingSource", Some("DialVerb".to_owned())),
            ("RecordingTrack", Some("both".to_owned())),
        ];
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Some(OutgoingCallback { fields: fields.collect(), auth_token: account.auth_token.clone() })
    }
}
