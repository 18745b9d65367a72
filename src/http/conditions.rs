//! Conditional requests and ranges (RFC 9110, 13 and 14), as far as audio needs them.
//!
//! Pure: from the request's headers and what is known of the audio to what is to
//! be answered. What is malformed is ignored, as the RFC wants it. One range is
//! answered; several in one header are answered with the whole.

use std::ops::Range;

use http::header::{
    HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};
use jiff::Timestamp;
use jiff::fmt::rfc2822::{DateTimeParser, DateTimePrinter};

/// What is known of the audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its strong validator, with its quotes.
    pub etag: String,
    /// When it was stored, to the second.
    pub modified_at: Option<Timestamp>,
    /// Its length.
    pub size_bytes: u64,
    /// Whether the same recording is meant for ever. Where it is not, a later
    /// answer may have been stored earlier: then only the very same time tells
    /// that nothing changed, and no time is good enough to continue with a part.
    pub is_lasting: bool,
}

/// What is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// 200 with all of it.
    Whole,
    /// 206 with these bytes.
    Part(Range<u64>),
    /// 304.
    NotModified,
    /// 412.
    Failed,
    /// 416.
    NotSatisfiable,
}

/// What to answer to a GET, or to a HEAD, for which ranges mean nothing.
pub fn judge(headers: &HeaderMap, is_get: bool, facts: &Facts) -> Verdict {
    // In the order of RFC 9110, 13.2.2.
    if let Some(tags) = list(headers, &IF_MATCH) {
        if !matches_any(&tags, &facts.etag, |tag| tag == facts.etag) {
            return Verdict::Failed;
        }
    } else if let (Some(since), Some(modified_at)) = (date(headers, &IF_UNMODIFIED_SINCE), facts.modified_at)
        && !facts.is_as_of(since, modified_at)
    {
        return Verdict::Failed;
    }
    if let Some(tags) = list(headers, &IF_NONE_MATCH) {
        if matches_any(&tags, &facts.etag, |tag| tag.strip_prefix("W/").unwrap_or(tag) == facts.etag) {
            return Verdict::NotModified;
        }
    } else if let (Some(since), Some(modified_at)) = (date(headers, &IF_MODIFIED_SINCE), facts.modified_at)
        && facts.is_as_of(since, modified_at)
    {
        return Verdict::NotModified;
    }
    if is_get && may_be_a_part(headers, facts) { range(headers, facts.size_bytes) } else { Verdict::Whole }
}

impl Facts {
    /// Whether what someone had at `since` is what is there now.
    fn is_as_of(&self, since: Timestamp, modified_at: Timestamp) -> bool {
        if self.is_lasting { modified_at <= since } else { modified_at == since }
    }
}

/// A time as HTTP writes it.
pub fn http_date(at: Timestamp) -> Option<String> {
    DateTimePrinter::new().timestamp_to_rfc9110_string(&at).ok()
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(text(headers, name)?).ok()
}

/// The values of a header that is a list, and may come in several lines.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Vec<&'h str>> {
    headers.contains_key(name).then(|| {
        let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        // Tags of this service have no commas inside.
        lines.flat_map(|line| line.split(',')).map(str::trim).collect()
    })
}

fn matches_any(tags: &[&str], etag: &str, is_same: impl Fn(&str) -> bool) -> bool {
    debug_assert!(etag.starts_with('"'), "a strong validator");
    tags.iter().any(|tag| *tag == "*" || is_same(tag))
}

/// If-Range (RFC 9110, 13.1.5): a part only of what the client has the rest of.
fn may_be_a_part(headers: &HeaderMap, facts: &Facts) -> bool {
    match text(headers, &IF_RANGE) {
        None => !headers.contains_key(IF_RANGE),
        Some(tag) if tag.starts_with('"') => tag == facts.etag,
        Some(_) => {
            facts.is_lasting && date(headers, &IF_RANGE).is_some() && date(headers, &IF_RANGE) == facts.modified_at
        }
    }
}

fn range(headers: &HeaderMap, size_bytes: u64) -> Verdict {
    let mut lines = headers.get_all(RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Verdict::Whole };
    let set = line.to_str().ok().and_then(|line| {
        let (unit, set) = line.split_once('=')?;
        unit.trim().eq_ignore_ascii_case("bytes").then_some(set.trim())
    });
    let Some((first, last)) = set.filter(|set| !set.contains(',')).and_then(|set| set.split_once('-')) else {
        return Verdict::Whole;
    };
    let part = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size_bytes),
        (Some(first), None) if last.trim().is_empty() => first..size_bytes,
        (None, Some(suffix)) if first.trim().is_empty() => size_bytes.saturating_sub(suffix)..size_bytes,
        _ => return Verdict::Whole,
    };
    if part.is_empty() { Verdict::NotSatisfiable } else { Verdict::Part(part) }
}

/// Digits alone; more than fit count as the most that fit.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ETAG: &str = "\"abc\"";
    const STORED: &str = "Mon, 23 Nov 2026 09:30:00 GMT";
    const BEFORE: &str = "Mon, 23 Nov 2026 09:29:59 GMT";
    const AFTER: &str = "Mon, 23 Nov 2026 09:30:01 GMT";

    fn facts() -> Facts {
        let modified_at = "2026-11-23T09:30:00Z".parse().ok();
        Facts { etag: ETAG.to_owned(), modified_at, size_bytes: 1000, is_lasting: true }
    }

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn get(given: &[(&'static str, &str)]) -> Verdict {
        judge(&headers(given), true, &facts())
    }

    #[test]
    fn a_time_is_written_as_it_is_read() {
        assert_eq!(http_date(facts().modified_at.unwrap()).as_deref(), Some(STORED));
        assert_eq!(date(&headers(&[("if-range", STORED)]), &IF_RANGE), facts().modified_at);
    }

    #[test]
    fn one_range_is_answered() {
        for (range, verdict) in [
            ("bytes=0-0", Verdict::Part(0..1)),
            ("bytes=100-199", Verdict::Part(100..200)),
            ("bytes=990-2000", Verdict::Part(990..1000)),
            ("bytes=0-99999999999999999999999", Verdict::Part(0..1000)),
            ("bytes=999-", Verdict::Part(999..1000)),
            ("Bytes = 1-2", Verdict::Part(1..3)),
            ("bytes=-1", Verdict::Part(999..1000)),
            ("bytes=-5000", Verdict::Part(0..1000)),
            ("bytes=1000-", Verdict::NotSatisfiable),
            ("bytes=1000-1001", Verdict::NotSatisfiable),
            ("bytes=99999999999999999999999-", Verdict::NotSatisfiable),
            ("bytes=-0", Verdict::NotSatisfiable),
            // Not a range, or not one: the whole.
            ("bytes=2-1", Verdict::Whole),
            ("bytes=a-b", Verdict::Whole),
            ("bytes=-", Verdict::Whole),
            ("bytes=+1-2", Verdict::Whole),
            ("bytes", Verdict::Whole),
            ("seconds=1-2", Verdict::Whole),
            ("bytes=0-1,5-6", Verdict::Whole),
        ] {
            assert_eq!(get(&[("range", range)]), verdict, "{range}");
        }
        assert_eq!(judge(&headers(&[("range", "bytes=0-0")]), false, &facts()), Verdict::Whole, "HEAD");
    }

    #[test]
    fn conditions_are_judged_in_their_order() {
        let cases: &[(&[(&'static str, &str)], Verdict)] = &[
            (&[("if-none-match", ETAG)], Verdict::NotModified),
            (&[("if-none-match", "\"x\", W/\"abc\"")], Verdict::NotModified),
            (&[("if-none-match", "*")], Verdict::NotModified),
            (&[("if-none-match", "\"x\"")], Verdict::Whole),
            // The tag decides where both are given.
            (&[("if-none-match", "\"x\""), ("if-modified-since", AFTER)], Verdict::Whole),
            (&[("if-modified-since", STORED)], Verdict::NotModified),
            (&[("if-modified-since", AFTER)], Verdict::NotModified),
            (&[("if-modified-since", BEFORE)], Verdict::Whole),
            (&[("if-modified-since", "yesterday")], Verdict::Whole),
            (&[("if-match", ETAG)], Verdict::Whole),
            (&[("if-match", "*")], Verdict::Whole),
            (&[("if-match", "W/\"abc\"")], Verdict::Failed),
            (&[("if-match", "\"x\""), ("if-none-match", ETAG)], Verdict::Failed),
            (&[("if-unmodified-since", BEFORE)], Verdict::Failed),
            (&[("if-unmodified-since", STORED)], Verdict::Whole),
            (&[("if-match", ETAG), ("if-unmodified-since", BEFORE)], Verdict::Whole),
            (&[("range", "bytes=0-0"), ("if-none-match", ETAG)], Verdict::NotModified),
            (&[("range", "bytes=0-0"), ("if-range", ETAG)], Verdict::Part(0..1)),
            (&[("range", "bytes=0-0"), ("if-range", STORED)], Verdict::Part(0..1)),
            (&[("range", "bytes=0-0"), ("if-range", "\"x\"")], Verdict::Whole),
            (&[("range", "bytes=0-0"), ("if-range", "W/\"abc\"")], Verdict::Whole),
            (&[("range", "bytes=0-0"), ("if-range", AFTER)], Verdict::Whole),
            (&[("range", "bytes=5000-"), ("if-range", "\"x\"")], Verdict::Whole),
        ];
        for (given, verdict) in cases {
            assert_eq!(get(given), *verdict, "{given:?}");
        }
    }

    #[test]
    fn where_the_recording_may_change_only_its_tag_or_the_very_same_time_counts() {
        let facts = Facts { is_lasting: false, ..facts() };
        let get = |given: &[(&'static str, &str)]| judge(&headers(given), true, &facts);
        assert_eq!(get(&[("if-modified-since", AFTER)]), Verdict::Whole);
        assert_eq!(get(&[("if-modified-since", STORED)]), Verdict::NotModified);
        assert_eq!(get(&[("range", "bytes=0-0"), ("if-range", STORED)]), Verdict::Whole);
        assert_eq!(get(&[("range", "bytes=0-0"), ("if-range", ETAG)]), Verdict::Part(0..1));
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_and_never_beyond_the_end(text in "bytes=[0-9]{0,6}-[0-9]{0,6}") {
            if let Verdict::Part(part) = get(&[("range", &text)]) {
                prop_assert!(part.start < part.end && part.end <= 1000, "{}: {:?}", text, part);
            }
        }
    }
}
