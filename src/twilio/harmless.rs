//! A callback that is signed as Twilio signs, and names no recording: it shows
//! that it arrives and is checked, and can never become anything.

use super::client::Twilio;
use super::signature::{self, Signed};
use crate::domain::sid::AccountSid;

/// A form, and the header that goes with it.
#[derive(Debug)]
pub struct HarmlessCallback {
    /// The form.
    pub body: String,
    /// `X-Twilio-Signature`; empty where the account has no token.
    pub signature: String,
}

impl Twilio {
    /// Whether callbacks of that account can be told from others'.
    pub fn can_check_callbacks(&self, account: &AccountSid) -> bool {
        self.callback_tokens(account).next().is_some()
    }

    /// A callback of that account for that URL, which names no recording.
    pub fn harmless_callback(&self, account: &AccountSid, url: &str) -> HarmlessCallback {
        let body = signature::encode_form([("AccountSid", account.as_str()), ("ApiVersion", "2010-04-01")]);
        let fields = signature::decode_form(body.as_bytes());
        let token = self.callback_tokens(account).next();
        let signature = token.map(|token| signature::sign(token, url, Signed::Form(&fields))).unwrap_or_default();
        HarmlessCallback { body, signature }
    }
}

#[cfg(test)]
mod tests {
    use crate::twilio::callback::{RawCallback, RefusedCallback};
    use crate::twilio::client::tests::{ACCOUNT, twilio};

    #[test]
    fn it_is_signed_well_and_is_no_callback() {
        let url = "https://recordings.example.com/webhooks/twilio/recording";
        let account = ACCOUNT.parse().unwrap();
        let harmless = twilio().harmless_callback(&account, url);
        let read = |url, signature| {
            twilio().read_callback(&RawCallback {
                is_get: false,
                url,
                content_type: Some("application/x-www-form-urlencoded"),
                signature: Some(signature),
                body: harmless.body.as_bytes(),
            })
        };
        assert!(matches!(read(url, &harmless.signature), Err(RefusedCallback::Malformed(_))));
        assert!(matches!(read("https://example.com/", &harmless.signature), Err(RefusedCallback::BadSignature(None))));
    }
}
