//! `X-Twilio-Signature`: whether a request is Twilio's
//! (<https://www.twilio.com/docs/usage/security#validating-requests>).
//!
//! Works on raw text only. A URL type would rewrite the URL (WHATWG parsers
//! turn `'` into `%27`) and break the signature. Compares in constant time.

use std::borrow::Cow;
use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::{ExposeSecret, SecretString};

use crate::domain::digest::Digest;

/// Names and values of a form, decoded but otherwise as they came.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// What stands behind the URL in what is signed.
#[derive(Debug, Clone, Copy)]
pub enum Signed<'a> {
    /// The URL alone: GET.
    UrlAlone,
    /// The fields of a form, sorted.
    Form(&'a [(Vec<u8>, Vec<u8>)]),
    /// Nothing, but the query holds `bodySHA256`, the digest of this body.
    Body(&'a [u8]),
}

/// Whether `signature` (the header) was made with one of `tokens` over `url`,
/// which is what Twilio was told to call, fragment apart, and what it sent.
pub fn is_valid<'t>(
    signature: &str,
    tokens: impl IntoIterator<Item = &'t SecretString>,
    url: &str,
    signed: Signed<'_>,
) -> bool {
    let Ok(signature) = BASE64.decode(signature) else { return false };
    if let Signed::Body(body) = signed
        && !body_matches(url, body)
    {
        return false;
    }
    let spellings = url_spellings(url);
    // Every token and spelling is tried, so that the time tells nothing of which one fits.
    tokens.into_iter().fold(false, |valid, token| {
        let key = hmac_key(token);
        let signed = |url: &Cow<'_, str>| hmac::verify(&key, &to_sign(url, signed), &signature).is_ok();
        valid | spellings.iter().fold(false, |valid, url| valid | signed(url))
    })
}

/// The header that Twilio sends, made with that token.
pub fn sign(token: &SecretString, url: &str, signed: Signed<'_>) -> String {
    BASE64.encode(hmac::sign(&hmac_key(token), &to_sign(url, signed)))
}

fn hmac_key(token: &SecretString) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.expose_secret().as_bytes())
}

/// The URL, then every name and value, sorted by name, without separators. Of
/// a name that occurs more than once: its distinct values, sorted.
fn to_sign(url: &str, signed: Signed<'_>) -> Vec<u8> {
    let mut text = url.as_bytes().to_vec();
    if let Signed::Form(fields) = signed {
        let sorted: BTreeMap<(&[u8], &[u8]), ()> =
            fields.iter().map(|(name, value)| ((name.as_slice(), value.as_slice()), ())).collect();
        for (name, value) in sorted.into_keys() {
            text.extend_from_slice(name);
            text.extend_from_slice(value);
        }
    }
    text
}

/// The URL as it is, and with its standard port added or taken away: Twilio
/// is not consistent about that.
fn url_spellings(url: &str) -> Vec<Cow<'_, str>> {
    let mut spellings = vec![Cow::Borrowed(url)];
    let standard = if url.starts_with("https://") { ":443" } else { ":80" };
    let Some(host_at) = url.find("://").map(|at| at + 3) else { return spellings };
    let host_end = url[host_at..].find(['/', '?']).map_or(url.len(), |at| host_at + at);
    let (before, after) = url.split_at(host_end);
    let host = before[host_at..].rsplit('@').next().unwrap_or_default();
    let has_port = host.rfind(':').is_some_and(|at| host[at + 1..].bytes().all(|byte| byte.is_ascii_digit()));
    if let Some(bare) = before.strip_suffix(standard) {
        spellings.push(format!("{bare}{after}").into());
    } else if !has_port {
        spellings.push(format!("{before}{standard}{after}").into());
    }
    spellings
}

/// Whether the query's one `bodySHA256` is the digest of `body`.
fn body_matches(url: &str, body: &[u8]) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let mut announced = query.split('&').filter_map(|pair| pair.strip_prefix("bodySHA256="));
    match (announced.next(), announced.next()) {
        (Some(digest), None) => digest.parse() == Ok(Digest::of(body)),
        _ => false,
    }
}

/// Decodes `application/x-www-form-urlencoded`, keeping bytes that are not UTF-8.
pub fn decode_form(raw: &[u8]) -> Fields {
    let pairs = raw.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let equals = pair.iter().position(|byte| *byte == b'=');
            let (name, value) = equals.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(raw: &[u8]) -> Vec<u8> {
    let hex = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        decoded.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    decoded
}

/// Encodes a form as Twilio sends it.
pub fn encode_form<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const URL: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";
    const FORM: &str =
        "CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212";

    fn token() -> SecretString {
        "12345".into()
    }

    fn valid(signature: &str, url: &str, form: &str) -> bool {
        is_valid(signature, [&token()], url, Signed::Form(&decode_form(form.as_bytes())))
    }

    /// The vectors of Twilio's own helper libraries.
    #[test]
    fn known_signatures_are_valid() {
        let vectors = [
            ("RSOYDt4T1cUTdK1PDd93/VVr8B8=", URL.to_owned(), FORM),
            ("kvajT1Ptam85bY51eRf/AJRuM3w=", URL.to_owned(), FORM),
            ("kvajT1Ptam85bY51eRf/AJRuM3w=", URL.replace(".com/", ".com:443/"), FORM),
            ("RSOYDt4T1cUTdK1PDd93/VVr8B8=", URL.replace(".com/", ".com:443/"), FORM),
            ("0ZXoZLH/DfblKGATFgpif+LLRf4=", URL.replace("https", "http"), FORM),
            ("0ZXoZLH/DfblKGATFgpif+LLRf4=", URL.replace("https", "http").replace(".com/", ".com:80/"), FORM),
            ("Zmvh+3yNM1Phv2jhDCwEM3q5ebU=", URL.replace("https", "http").replace(".com/", ".com:1234/"), FORM),
            ("CukzLTc1tT5dXEDIHm/tKBanW10=", URL.replace("mycompany", "user:pass@mycompany"), FORM),
            ("dsq4Ehbj6cs+KdTkpF5sSSplOWw=", format!("{URL}&Body=It's+amazing"), FORM),
            ("IK+Dwps556ElfBT0I3Rgjkr1wJU=", URL.to_owned(), "Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234"),
        ];
        for (signature, url, form) in vectors {
            assert!(valid(signature, &url, form), "{signature} {url}");
        }
    }

    #[test]
    fn a_json_body_is_signed_by_its_digest() {
        let body = br#"{"property": "value", "boolean": true}"#;
        let url = format!("{URL}&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620");
        let signature = "a9nBmqA0ju/hNViExpshrM61xv4=";
        assert!(is_valid(signature, [&token()], &url, Signed::Body(body)));
        assert!(!is_valid(signature, [&token()], &url, Signed::Body(b"{}")), "another body");
        let unsigned = sign(&token(), URL, Signed::UrlAlone);
        assert!(!is_valid(&unsigned, [&token()], URL, Signed::Body(body)), "no bodySHA256");
        let twice = format!("{url}&bodySHA256=0");
        let signature = sign(&token(), &twice, Signed::UrlAlone);
        assert!(!is_valid(&signature, [&token()], &twice, Signed::Body(body)), "two of them");
    }

    #[test]
    fn anything_else_is_refused() {
        let right = "RSOYDt4T1cUTdK1PDd93/VVr8B8=";
        assert!(!valid(right, "https://mycompany.com/myapp.php?bar=2&foo=1", FORM), "another order");
        assert!(!valid(right, "https://mycompany.com/other.php?foo=1&bar=2", FORM), "another path");
        assert!(!valid(right, "http://mycompany.com/myapp.php?foo=1&bar=2", FORM), "another scheme");
        assert!(!valid(right, URL, &FORM.replace("1234", "1235")), "another field");
        assert!(!valid(right, URL, &format!("{FORM}&Extra=1")), "a field more");
        assert!(!valid("", URL, FORM), "empty");
        assert!(!valid("not base64", URL, FORM), "not base64");
        assert!(!is_valid(right, [], URL, Signed::Form(&decode_form(FORM.as_bytes()))), "no token");
    }

    #[test]
    fn either_token_will_do_while_they_are_rotated() {
        let (old, new): (SecretString, SecretString) = ("old".into(), "new".into());
        for signing in [&old, &new] {
            let signature = sign(signing, URL, Signed::UrlAlone);
            assert!(is_valid(&signature, [&old, &new], URL, Signed::UrlAlone));
        }
    }

    proptest! {
        #[test]
        fn forms_survive_encoding(fields in proptest::collection::vec(("\\PC{1,8}", "\\PC{0,8}"), 0..6)) {
            let encoded = encode_form(fields.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            let bytes: Fields = fields.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect();
            prop_assert_eq!(decode_form(encoded.as_bytes()), bytes);
        }

        #[test]
        fn any_bytes_can_be_decoded(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            decode_form(&raw);
        }
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(decode(b"100%&"), b"100%&");
        assert_eq!(decode(b"%zz%4"), b"%zz%4");
        assert_eq!(decode(b"a%ffb"), b"a\xffb");
    }
}
