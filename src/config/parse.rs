//! How the texts of settings are read: durations, sizes, lists and URLs.
//!
//! Each function gives the value, or says in one phrase what would be right.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use url::{Host, Url};

use super::EVENT_TYPES;
use crate::domain::media::Variant;
use crate::domain::sid::AccountSid;

/// One large fetch at a time must fit into the memory budget.
const MEMORY_BUDGET_MIN_BYTES: u64 = 32 << 20;
/// What one CopyObject can copy (S3's limit).
const COPY_MAX_BYTES: u64 = 5_000_000_000;
/// A shorter lease would be lost to a pause that any busy machine has.
const LEASE_MIN: Duration = Duration::from_secs(1);

/// What would have been right, to be read after "expected".
pub type Expected = String;

/// `30s`, `15m`, `1h30m`, `500ms`, `30d`.
pub fn duration(text: &str) -> Result<Duration, Expected> {
    let expected = || "a duration such as 500ms, 30s, 15m, 24h or 30d".to_owned();
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0).ok_or_else(expected)?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit_millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(expected()),
        };
        let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_millis));
        total = millis.and_then(|millis| total.checked_add(Duration::from_millis(millis))).ok_or_else(expected)?;
        rest = tail;
    }
    // The catalog keeps times as milliseconds in 64 bits; a century is for ever here.
    const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);
    if text.is_empty() || total > CENTURY { Err(expected()) } else { Ok(total) }
}

/// As [`duration`], but not nothing.
pub fn some_time(text: &str) -> Result<Duration, Expected> {
    match duration(text)? {
        Duration::ZERO => Err("a duration above zero".to_owned()),
        duration => Ok(duration),
    }
}

/// A duration, or `off`.
pub fn duration_or_off(text: &str) -> Result<Option<Duration>, Expected> {
    if text == "off" {
        return Ok(None);
    }
    some_time(text).map(Some).map_err(|expected| format!("{expected}, or off"))
}

/// A time, or a day: its beginning in UTC.
pub fn time(text: &str) -> Result<Timestamp, Expected> {
    let day = || text.parse::<Date>().ok().and_then(|day| day.to_zoned(TimeZone::UTC).ok());
    let time = text.parse::<Timestamp>().ok().or_else(|| day().map(|day| day.timestamp()));
    time.ok_or_else(|| "a time such as 2026-11-23T14:00:00Z, or a day such as 2026-11-23".to_owned())
}

/// `256MiB`, `4GiB`, `5GB`, or bytes.
pub fn size_bytes(text: &str) -> Result<u64, Expected> {
    let expected = || "a size such as 1048576, 512KiB, 256MiB, 4GiB or 5GB".to_owned();
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_bytes: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(expected()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_bytes)).ok_or_else(expected)
}

/// An address to listen on.
pub fn listen(text: &str) -> Result<SocketAddr, Expected> {
    text.parse().map_err(|_| "an IP address and a port such as 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080".to_owned())
}

/// `true` or `false`.
pub fn boolean(text: &str) -> Result<bool, Expected> {
    text.parse().map_err(|_| "true or false".to_owned())
}

/// A comma-separated list, each entry read by `entry`; not empty, nothing twice.
pub fn list<T: PartialEq>(text: &str, entry: impl Fn(&str) -> Result<T, Expected>) -> Result<Vec<T>, Expected> {
    let entries = text.split(',').map(|text| entry(text.trim())).collect::<Result<Vec<T>, Expected>>()?;
    let twice = entries.iter().enumerate().any(|(at, entry)| entries[..at].contains(entry));
    if twice { Err("a list in which nothing stands twice".to_owned()) } else { Ok(entries) }
}

/// An http or https URL with a host, without credentials, query or fragment.
/// A trailing slash is dropped. The text is kept as it is otherwise: Twilio's
/// signatures are over raw text, and a URL type would rewrite it.
pub fn base_url(text: &str) -> Result<String, Expected> {
    let expected = || "a URL such as https://recordings.example.com, without query or credentials".to_owned();
    let url = Url::parse(text).map_err(|_| expected())?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    let ascii = text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain && ascii { Ok(text.trim_end_matches('/').to_owned()) } else { Err(expected()) }
}

/// A base that Twilio calls something below, and not that itself.
pub fn public_url(text: &str) -> Result<String, Expected> {
    const WEBHOOK: &str = "/webhooks/twilio/recording";
    let base = base_url(text)?;
    if base.ends_with(WEBHOOK) { Err(format!("what stands before {WEBHOOK}")) } else { Ok(base) }
}

/// An http or https URL that may have a query.
pub fn http_url(text: &str) -> Result<Url, Expected> {
    let expected = || "an http or https URL".to_owned();
    let url = Url::parse(text).map_err(|_| expected())?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(url) } else { Err(expected()) }
}

/// Where events are posted. Anywhere but to link-local addresses, where clouds
/// give out credentials; names are checked on the address that is connected to.
pub fn receiver_url(text: &str) -> Result<Url, Expected> {
    let url = http_url(text)?;
    let address = match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        _ => None,
    };
    if address.is_some_and(is_link_local) {
        return Err("an http or https URL whose address is not link-local".to_owned());
    }
    Ok(url)
}

/// Whether an address is good on one link only, also where an IPv6 form carries an IPv4 one.
pub fn is_link_local(address: IpAddr) -> bool {
    let IpAddr::V6(v6) = address else { return is_link_local_v4(address) };
    let embedded = match v6.segments() {
        // IPv4-mapped, RFC 4291, and NAT64's well-known prefix, RFC 6052.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            let [.., a, b, c, d] = v6.octets();
            Some(IpAddr::from([a, b, c, d]))
        }
        _ => None,
    };
    v6.is_unicast_link_local() || embedded.is_some_and(is_link_local_v4)
}

fn is_link_local_v4(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_link_local())
}

/// What a browser sends as `Origin`: scheme, host and perhaps a port.
pub fn origin(text: &str) -> Result<String, Expected> {
    let url = Url::parse(text).map_err(|_| ());
    match url.map(|url| url.origin().ascii_serialization()) {
        Ok(origin) if origin == text => Ok(origin),
        _ => Err("an exact origin such as https://app.example.com, without path".to_owned()),
    }
}

/// A Standard Webhooks secret: `whsec_` and base64 of 24 to 64 bytes.
pub fn webhook_secret(text: &str) -> Result<String, Expected> {
    let decoded =
        text.strip_prefix("whsec_").and_then(|base64| base64::engine::general_purpose::STANDARD.decode(base64).ok());
    match decoded.map(|bytes| bytes.len()) {
        Some(24..=64) => Ok(text.to_owned()),
        _ => Err("whsec_ and the base64 of 24 to 64 random bytes".to_owned()),
    }
}

/// A key that can be sent in a header: visible ASCII, no blanks.
pub fn token(text: &str) -> Result<String, Expected> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("printable ASCII without blanks".to_owned())
    }
}

/// A whole number within these bounds.
pub fn number<N: FromStr + PartialOrd + Copy + fmt::Display>(min: N, max: N) -> impl Fn(&str) -> Result<N, Expected> {
    move |text| match text.parse() {
        Ok(number) if number >= min && number <= max => Ok(number),
        _ => Err(format!("a whole number from {min} to {max}")),
    }
}

/// What is asked of Twilio, in this order: `mp3,wav,base`.
pub fn formats(text: &str) -> Result<Vec<Variant>, Expected> {
    list(text, |entry| entry.parse::<Variant>().map_err(|expected| expected.to_string()))
}

/// Origins of pages, comma-separated.
pub fn origins(text: &str) -> Result<Vec<String>, Expected> {
    list(text, origin)
}

/// Types of events, comma-separated.
pub fn event_types(text: &str) -> Result<Vec<String>, Expected> {
    list(text, |entry| match EVENT_TYPES.contains(&entry) {
        true => Ok(entry.to_owned()),
        false => Err(format!("some of {}", EVENT_TYPES.join(", "))),
    })
}

/// `AC…`.
pub fn account_sid(text: &str) -> Result<AccountSid, Expected> {
    text.parse().map_err(|_| "AC and 32 hex digits".to_owned())
}

/// A link's times are told to S3 in whole seconds.
pub fn whole_seconds(text: &str) -> Result<Duration, Expected> {
    match some_time(text)? {
        duration if duration.subsec_millis() == 0 => Ok(duration),
        _ => Err("a duration of whole seconds such as 90s, 15m or 1h".to_owned()),
    }
}

/// The life of a lease.
pub fn lease(text: &str) -> Result<Duration, Expected> {
    match duration(text)? {
        lease if lease >= LEASE_MIN => Ok(lease),
        _ => Err("a duration of at least 1s".to_owned()),
    }
}

/// Bytes of recordings in memory.
pub fn memory_budget(text: &str) -> Result<u64, Expected> {
    match size_bytes(text)? {
        bytes if bytes >= MEMORY_BUDGET_MIN_BYTES => Ok(bytes),
        _ => Err("a size of at least 32MiB, what one large recording takes in flight".to_owned()),
    }
}

/// The largest recording in bytes.
pub fn max_recording(text: &str) -> Result<u64, Expected> {
    match size_bytes(text)? {
        bytes @ 1..=COPY_MAX_BYTES => Ok(bytes),
        _ => Err("a size of at most 5GB, the limit of a copy in S3".to_owned()),
    }
}

/// `s3://bucket/prefix`.
pub fn bucket_url(text: &str) -> Result<(String, String), Expected> {
    let expected = || "s3://bucket or s3://bucket/prefix".to_owned();
    let rest = text.strip_prefix("s3://").ok_or_else(expected)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    let name_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let bucket_right = (3..=63).contains(&bucket.len()) && bucket.bytes().all(name_byte);
    let segment_right = |segment: &str| {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=');
        !matches!(segment, "" | "." | "..") && segment.bytes().all(safe)
    };
    let prefix_right = prefix.is_empty() || prefix.split('/').all(segment_right);
    match bucket_right && prefix_right {
        true => Ok((bucket.to_owned(), prefix.to_owned())),
        false => Err(format!("{}, letters, digits and -_.= in the prefix", expected())),
    }
}

/// https anywhere, or http on a literal loopback address (a simulator).
pub fn twilio_origin(text: &str) -> Result<Url, Expected> {
    let expected = || {
        "https://api.twilio.com, another https origin, or http on a loopback address such as http://127.0.0.1:4010"
            .to_owned()
    };
    let url = Url::parse(&base_url(text).map_err(|_| expected())?).map_err(|_| expected())?;
    let loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(url::Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        _ => false,
    };
    let allowed = url.scheme() == "https" || loopback;
    if allowed && url.path() == "/" { Ok(url) } else { Err(expected()) }
}

/// The text of a PEM file with certificates.
pub fn certificates(path: &str) -> Result<Vec<u8>, Expected> {
    let pem = std::fs::read(path).map_err(|error| format!("a readable PEM file ({error})"))?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(pem),
        _ => Err("a PEM file with certificates".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        let seconds = |seconds| Ok(Duration::from_secs(seconds));
        assert_eq!(duration("30s"), seconds(30));
        assert_eq!(duration("15m"), seconds(900));
        assert_eq!(duration("1h30m"), seconds(5400));
        assert_eq!(duration("30d"), seconds(30 * 86_400));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "30", "s", "30 s", "-1s", "1.5h", "1w", "30sec", "99999999999999999999s", "off", "1000000d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(some_time("0s").is_err());
        assert_eq!(duration_or_off("off"), Ok(None));
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(size_bytes("256MiB"), Ok(256 << 20));
        assert_eq!(size_bytes("4GiB"), Ok(4 << 30));
        assert_eq!(size_bytes("5GB"), Ok(5_000_000_000));
        assert_eq!(size_bytes("1024"), Ok(1024));
        for wrong in ["", "MiB", "1.5GiB", "4G", "-1", "99999999999GiB"] {
            assert!(size_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_base_url_keeps_its_text() {
        assert_eq!(base_url("https://x.example/a'b/"), Ok("https://x.example/a'b".to_owned()));
        for wrong in ["x.example", "ftp://x", "https://", "https://u:p@x", "https://x?a", "https://x#a", "https://x/ä"]
        {
            assert!(base_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn origins_are_exact() {
        assert!(origin("https://app.example.com").is_ok());
        assert!(origin("http://127.0.0.1:3000").is_ok());
        for wrong in ["*", "https://app.example.com/", "app.example.com", "https://app.example.com:443"] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn events_go_to_private_addresses_but_never_to_link_local_ones() {
        for url in
            ["https://app.example.com/hook?tenant=1", "http://10.0.0.1/", "http://127.0.0.1:8000/x", "http://[::1]/"]
        {
            assert!(receiver_url(url).is_ok(), "{url}");
        }
        for host in ["169.254.169.254", "0xa9fea9fe", "[fe80::1]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]"] {
            assert!(receiver_url(&format!("http://{host}/x")).is_err(), "{host}");
        }
        assert!(receiver_url("ftp://10.0.0.1/").is_err());
    }

    #[test]
    fn webhook_secrets_have_their_form() {
        assert!(webhook_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").is_ok());
        assert!(webhook_secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").is_err());
        assert!(webhook_secret("whsec_c2hvcnQ=").is_err());
    }
}
