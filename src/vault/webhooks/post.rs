//! Posting an event to a receiver, as Standard Webhooks says.
//!
//! Signed over id, time and body. Redirects are not followed, a link-local
//! address is never connected to, and of an answer only its status counts. What
//! is told of a failure never has the URL in it: that may hold secrets.

use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::config::Config;
use crate::config::parse::is_link_local;
use crate::telemetry::innermost;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A receiver that has more to do than to note the event does it afterwards.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Read of an answer, so that its connection can be used again; a longer one is cut off.
const BODY_MAX_BYTES: usize = 16 << 10;

/// What events are signed with.
#[derive(Debug, Clone)]
pub struct SigningKey(hmac::Key);

impl SigningKey {
    /// The key of a secret that the settings have checked: `whsec_` and base64.
    pub fn of(secret: &SecretString) -> Self {
        let base64 = secret.expose_secret().strip_prefix("whsec_").unwrap_or_default();
        let bytes = BASE64.decode(base64).expect("the settings were checked: it is base64");
        Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }

    /// The value of `webhook-signature`.
    fn sign(&self, id: &str, seconds: i64, body: &str) -> String {
        let tag = hmac::sign(&self.0, format!("{id}.{seconds}.{body}").as_bytes());
        format!("v1,{}", BASE64.encode(tag))
    }
}

/// What a receiver answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It did.
    Status {
        /// The status.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Nobody is there.
    Nobody(String),
    /// Somebody is, and did not answer.
    Silence(String),
}

/// A name of which every address is link-local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its name has no address that is not link-local")]
struct LinkLocalOnly;

/// Resolves names as the system does, without link-local addresses: what is
/// checked is what is connected to.
#[derive(Debug, Clone, Copy)]
struct NotLinkLocal;

impl Resolve for NotLinkLocal {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let resolved = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = resolved.filter(|address| !is_link_local(address.ip())).collect();
            if allowed.is_empty() {
                return Err(LinkLocalOnly.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// What posts.
#[derive(Debug, Clone)]
pub struct Poster(reqwest::Client);

impl Poster {
    /// One for these settings. Fails only where TLS cannot be set up.
    pub fn new(config: &Config) -> reqwest::Result<Self> {
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("callvault/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(NotLinkLocal)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT);
        if let Some(pem) = &config.ca_pem {
            client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        Ok(Self(client.build()?))
    }

    /// Posts an event, signed as of `now`.
    pub async fn post(&self, url: &Url, key: &SigningKey, id: &str, body: String, now: Timestamp) -> Answer {
        let seconds = now.as_second();
        let request = self
            .0
            .post(url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", key.sign(id, seconds, &body))
            .body(body);
        match request.send().await {
            Ok(response) => read(response).await,
            Err(error) if error.is_timeout() && !error.is_connect() => {
                Answer::Silence(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))
            }
            Err(error) => {
                let is_connect = error.is_connect();
                let error = error.without_url();
                let what = innermost(&error).to_string();
                if is_connect { Answer::Nobody(what) } else { Answer::Silence(what) }
            }
        }
    }
}

async fn read(mut response: reqwest::Response) -> Answer {
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
    let status = response.status().as_u16();
    let mut left = BODY_MAX_BYTES;
    // It has answered, whatever becomes of the rest.
    while let Ok(Some(chunk)) = response.chunk().await {
        if chunk.len() > left {
            break;
        }
        left -= chunk.len();
    }
    Answer::Status { status, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_standard_webhooks_is_signed_as_it_says() {
        let key = SigningKey::of(&"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into());
        let signature = key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[tokio::test]
    async fn a_name_with_a_loopback_address_is_resolved() {
        let resolved = NotLinkLocal.resolve("localhost".parse().unwrap()).await;
        assert!(resolved.is_ok_and(|mut addresses| addresses.all(|address| address.ip().is_loopback())));
    }
}
