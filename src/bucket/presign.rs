//! The signature of links: Signature Version 4 in the query
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>).
//!
//! All links of a window are signed by the same keys as of the same time: what
//! they have in common, the key of that day above all, is made once for all. It
//! signs as rusty-s3 does, which makes it anew each time.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use jiff::Timestamp;
use object_store::aws::AwsCredential;
use url::Url;

use super::link::LinkMethod;

/// What the links of a window have in common.
pub(super) struct Window {
    signed_at: Timestamp,
    life: Duration,
    keys: Arc<AwsCredential>,
    /// Signs for this day, region and service.
    day_key: hmac::Key,
    /// The parameters, in their order, up to the last that is the same for all.
    query: String,
    /// The text that is signed, up to the hash of the request.
    head: String,
}

impl Window {
    /// Links by these keys, signed as of that time, that live for so long.
    pub(super) fn new(region: &str, keys: Arc<AwsCredential>, signed_at: Timestamp, life: Duration) -> Self {
        let day = signed_at.strftime("%Y%m%d").to_string();
        let time = signed_at.strftime("%Y%m%dT%H%M%SZ").to_string();
        let scope = format!("{day}/{region}/s3/aws4_request");
        let mut query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=".to_owned();
        encode(&mut query, &format!("{}/{scope}", keys.key_id), false);
        let _ = write!(query, "&X-Amz-Date={time}&X-Amz-Expires={}", life.as_secs());
        if let Some(token) = keys.token.as_deref().filter(|token| !token.is_empty()) {
            query.push_str("&X-Amz-Security-Token=");
            encode(&mut query, token, false);
        }
        query.push_str("&X-Amz-SignedHeaders=host");
        let mut day_key = hmac::Key::new(HMAC_SHA256, format!("AWS4{}", keys.secret_key).as_bytes());
        for part in [&day, region, "s3", "aws4_request"] {
            day_key = hmac::Key::new(HMAC_SHA256, hmac::sign(&day_key, part.as_bytes()).as_ref());
        }
        let head = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n");
        Self { signed_at, life, keys, day_key, query, head }
    }

    /// Whether it is the window of such links.
    pub(super) fn is_of(&self, keys: &Arc<AwsCredential>, signed_at: Timestamp, life: Duration) -> bool {
        self.signed_at == signed_at && self.life == life && Arc::ptr_eq(&self.keys, keys)
    }

    /// A link to the object of that key.
    pub(super) fn link(&self, place: &Address, key: &str, method: LinkMethod, disposition: Option<&str>) -> String {
        let mut query = self.query.clone();
        if let Some(disposition) = disposition {
            // In the order of bytes small letters come after capitals.
            query.push_str("&response-content-disposition=");
            encode(&mut query, disposition, false);
        }
        let mut path = place.path.clone();
        encode(&mut path, key, true);
        let method = match method {
            LinkMethod::Get => "GET",
            LinkMethod::Head => "HEAD",
        };
        let request = format!("{method}\n{path}\n{query}\nhost:{}\n\nhost\nUNSIGNED-PAYLOAD", place.host);
        let mut signed = self.head.clone();
        push_hex(&mut signed, digest(&SHA256, request.as_bytes()).as_ref());
        let signature = hmac::sign(&self.day_key, signed.as_bytes());
        const SIGNATURE: &str = "&X-Amz-Signature=";
        let (origin, prefix) = (&place.origin, &place.prefix);
        let mut link = String::with_capacity(
            origin.len() + prefix.len() + path.len() + 1 + query.len() + SIGNATURE.len() + 2 * SHA256.output_len(),
        );
        for part in [origin.as_str(), prefix, &path, "?", &query, SIGNATURE] {
            link.push_str(part);
        }
        push_hex(&mut link, signature.as_ref());
        link
    }
}

/// Where browsers find a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Scheme, host and port.
    pub(super) origin: String,
    /// The host as it is signed.
    host: String,
    /// What comes before keys.
    path: String,
    /// What is given out before the path, and was taken away again by a proxy when
    /// the store sees it.
    prefix: String,
}

impl Address {
    /// The address of a bucket of which this is the URL, behind a proxy that takes
    /// that path away.
    pub(super) fn of(bucket: &Url, prefix: &str) -> Self {
        let host = bucket.host_str().unwrap_or_default();
        let port = bucket.port().map_or_else(String::new, |port| format!(":{port}"));
        Self {
            origin: bucket.origin().ascii_serialization(),
            host: format!("{host}{port}"),
            path: bucket.path().to_owned(),
            prefix: prefix.to_owned(),
        }
    }
}

/// As URIs are encoded for signing: all but letters, digits and `-._~`, and in paths `/`.
fn encode(to: &mut String, text: &str, is_path: bool) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => to.push(char::from(byte)),
            b'/' if is_path => to.push('/'),
            _ => {
                let _ = write!(to, "%{byte:02X}");
            }
        }
    }
}

fn push_hex(to: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        to.push(char::from(DIGITS[usize::from(byte >> 4)]));
        to.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests {
    use rusty_s3::{Method, signing};

    use super::*;
    use crate::bucket::link::rusty_bucket;

    #[test]
    fn links_are_those_of_rusty_s3() {
        let keys = |token: Option<&str>| {
            let token = token.map(str::to_owned);
            Arc::new(AwsCredential { key_id: "AKIA+/=1".to_owned(), secret_key: "sec/ret+".to_owned(), token })
        };
        let signed_at = "2026-11-23T14:05:09Z".parse().unwrap();
        let life = Duration::from_secs(4500);
        let endpoints = [
            ("https://s3.eu-west-1.amazonaws.com", false),
            ("http://127.0.0.1:9000", true),
            ("https://x.example:443/base", true),
        ];
        let object_keys = ["CA1/RE1/0a.mp3", "pre fix/ü+&=?%/a~b_c-d.wav", "/leading"];
        for ((endpoint, path_style), token) in endpoints.into_iter().flat_map(|one| [(one, None), (one, Some("t/+="))])
        {
            let keys = keys(token);
            let bucket = rusty_bucket(endpoint, path_style, "calls", "eu-west-1").unwrap();
            let address = Address::of(&bucket.object_url(""), "");
            let window = Window::new("eu-west-1", keys.clone(), signed_at, life);
            for key in object_keys {
                for (method, rusty) in [(LinkMethod::Get, Method::Get), (LinkMethod::Head, Method::Head)] {
                    for disposition in [None, Some("attachment; filename=\"2026-11-23 09.30 CA1.mp3\"")] {
                        let query = disposition.map(|value| ("response-content-disposition", value));
                        let expected = signing::sign(
                            &signed_at,
                            rusty,
                            bucket.object_url(key),
                            &keys.key_id,
                            &keys.secret_key,
                            token,
                            "eu-west-1",
                            life.as_secs(),
                            query.into_iter(),
                            std::iter::empty(),
                        );
                        assert_eq!(window.link(&address, key, method, disposition), expected.as_str());
                    }
                }
            }
        }
    }
}
