//! Where a recording's media is: a URL that Twilio gave, read once, checked, and
//! from then on rebuilt from its parts.
//!
//! A [`Source`] holds an allow-listed host and two SIDs, nothing else of what
//! came in, so no request made from it can go to another host, another port or
//! over plain HTTP. The one exception is a configured origin that is http on
//! loopback, a simulator, which then stands for every host.

use url::Url;

use crate::config::Region;
use crate::domain::media::Variant;
use crate::domain::recording::RecordingId;

/// Twilio's API, and its regions
/// (<https://www.twilio.com/docs/global-infrastructure/using-the-twilio-rest-api-in-a-non-us-region>).
const HOSTS: [&str; 5] = [
    DEFAULT_HOST,
    "api.us1.twilio.com",
    "api.dublin.ie1.twilio.com",
    "api.sydney.au1.twilio.com",
    "api.tokyo.jp1.twilio.com",
];

const DEFAULT_HOST: &str = "api.twilio.com";

/// Hosts that were retired in April 2026. They always worked in US1, and still
/// stand in URLs that applications kept.
const RETIRED_HOSTS: [&str; 7] = [
    "api.ie1.twilio.com",
    "api.au1.twilio.com",
    "api.br1.twilio.com",
    "api.de1.twilio.com",
    "api.jp1.twilio.com",
    "api.sg1.twilio.com",
    "api.us2.twilio.com",
];

/// A recording URL that is not fetched from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedSource {
    /// Not a URL, nor a path from `/2010-04-01/` on.
    #[error("not a recording URL: https://api.twilio.com/2010-04-01/Accounts/AC…/Recordings/RE… is expected")]
    NotAUrl,
    /// Another scheme, host or port, or credentials in it.
    #[error("only https to Twilio's API hosts, without credentials or another port, is fetched from")]
    NotTwilio,
    /// Twilio's, but not a recording's.
    #[error("the path is not /2010-04-01/Accounts/AC…/Recordings/RE…")]
    NotARecording,
}

/// Which host a source names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceHost {
    /// The configured origin.
    Origin,
    /// One of Twilio's, in https.
    Listed(&'static str),
}

impl SourceHost {
    /// The host as the catalog keeps it: None is the origin.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Origin => None,
            Self::Listed(host) => Some(host),
        }
    }

    /// The host of that name, if it is (still) listed; otherwise the origin.
    pub fn named(name: Option<&str>) -> Self {
        let listed = name.and_then(|name| HOSTS.into_iter().find(|host| *host == name));
        listed.map_or(Self::Origin, Self::Listed)
    }

    /// The API host of a region.
    pub fn of_region(region: Region) -> Self {
        match region {
            Region::Us1 => Self::Origin,
            Region::Ie1 => Self::Listed("api.dublin.ie1.twilio.com"),
            Region::Au1 => Self::Listed("api.sydney.au1.twilio.com"),
            Region::Jp1 => Self::Listed("api.tokyo.jp1.twilio.com"),
        }
    }
}

/// A recording and the host that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The host.
    pub host: SourceHost,
    /// Account and recording.
    pub id: RecordingId,
}

/// The hosts that sources may name: Twilio's, and the configured origin.
#[derive(Debug, Clone)]
pub struct Hosts {
    origin: Url,
}

impl Hosts {
    /// Twilio's hosts and this origin, which the settings have validated.
    pub fn new(origin: Url) -> Self {
        Self { origin }
    }

    /// Whether the origin is a simulator: http on loopback, which stands for all.
    pub fn origin_is_simulator(&self) -> bool {
        self.origin.scheme() == "http"
    }

    /// Reads a recording URL as Twilio gives it or applications keep it: with
    /// or without `.mp3`, `.wav`, `.json` or a query. A bare path from
    /// `/2010-04-01/` on is the account's own host's: None is then the host.
    pub fn read(&self, text: &str) -> Result<(Option<SourceHost>, RecordingId), RefusedSource> {
        if text.starts_with("/2010-04-01/") {
            let path = text.split(['?', '#']).next().unwrap_or_default();
            return Ok((None, recording_of_path(path)?));
        }
        let url = Url::parse(text).map_err(|_| RefusedSource::NotAUrl)?;
        let host = self.host_of(&url).ok_or(RefusedSource::NotTwilio)?;
        Ok((Some(host), recording_of_path(url.path())?))
    }

    fn host_of(&self, url: &Url) -> Option<SourceHost> {
        if !url.username().is_empty() || url.password().is_some() {
            return None;
        }
        if url.origin() == self.origin.origin() {
            return Some(SourceHost::Origin);
        }
        if url.scheme() != "https" || url.port().is_some() {
            return None;
        }
        let host = url.host_str()?;
        let host = if RETIRED_HOSTS.contains(&host) { DEFAULT_HOST } else { host };
        if Some(host) == self.origin.host_str() && self.origin.port().is_none() && !self.origin_is_simulator() {
            return Some(SourceHost::Origin);
        }
        HOSTS.into_iter().find(|listed| *listed == host).map(SourceHost::Listed)
    }

    /// What a source's host is called: scheme and host, without a slash at the end.
    fn name_of(&self, host: SourceHost) -> String {
        match host {
            SourceHost::Origin => self.origin.as_str().trim_end_matches('/').to_owned(),
            SourceHost::Listed(host) => format!("https://{host}"),
        }
    }

    /// Where requests to a host really go.
    pub(super) fn base(&self, host: SourceHost) -> String {
        self.name_of(if self.origin_is_simulator() { SourceHost::Origin } else { host })
    }

    /// The URL of a recording as Twilio wrote it, without extension or credentials.
    pub fn source_url(&self, source: &Source) -> String {
        format!("{}{}", self.name_of(source.host), path_of(&source.id))
    }

    /// The URL of its media in one variant.
    pub(super) fn media_url(&self, source: &Source, variant: &Variant) -> Url {
        self.url(source.host, &format!("{}{}", path_of(&source.id), variant.suffix()))
    }

    /// A URL of the REST API, from a path that is made of checked parts.
    pub(super) fn url(&self, host: SourceHost, path: &str) -> Url {
        let text = format!("{}{path}", self.base(host));
        Url::parse(&text).expect("a checked origin and a path of SIDs are a URL")
    }
}

fn path_of(id: &RecordingId) -> String {
    format!("/2010-04-01/Accounts/{}/Recordings/{}", id.account, id.recording)
}

fn recording_of_path(path: &str) -> Result<RecordingId, RefusedSource> {
    let bare = [".mp3", ".wav", ".json"].iter().find_map(|extension| path.strip_suffix(extension)).unwrap_or(path);
    let parts: Vec<&str> = bare.split('/').collect();
    match parts[..] {
        ["", "2010-04-01", "Accounts", account, "Recordings", recording] => {
            let account = account.parse().map_err(|_| RefusedSource::NotARecording)?;
            let recording = recording.parse().map_err(|_| RefusedSource::NotARecording)?;
            Ok(RecordingId { account, recording })
        }
        _ => Err(RefusedSource::NotARecording),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str =
        "/2010-04-01/Accounts/AC0123456789abcdef0123456789abcdef/Recordings/REfedcba9876543210fedcba9876543210";

    fn hosts(origin: &str) -> Hosts {
        Hosts::new(Url::parse(origin).unwrap())
    }

    fn twilio() -> Hosts {
        hosts("https://api.twilio.com")
    }

    #[test]
    fn every_spelling_that_applications_hold_is_read() {
        let hosts = twilio();
        let plain = format!("https://api.twilio.com{PATH}");
        for text in [
            plain.clone(),
            format!("{plain}.mp3"),
            format!("{plain}.wav"),
            format!("{plain}.json"),
            format!("{plain}.wav?RequestedChannels=2"),
            format!("{plain}?Download=true"),
            format!("https://API.TWILIO.COM:443{PATH}"),
        ] {
            let (host, id) = hosts.read(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let source = Source { host: host.unwrap(), id };
            assert_eq!(hosts.source_url(&source), plain, "{text}");
        }
        assert_eq!(hosts.read(&format!("{PATH}.mp3?x=1")).unwrap().0, None);
    }

    #[test]
    fn regions_keep_their_host_and_retired_ones_are_rewritten() {
        let hosts = twilio();
        let read = |host: &str| hosts.read(&format!("https://{host}{PATH}")).unwrap().0.unwrap();
        assert_eq!(read("api.dublin.ie1.twilio.com"), SourceHost::Listed("api.dublin.ie1.twilio.com"));
        for retired in RETIRED_HOSTS {
            assert_eq!(read(retired), SourceHost::Origin, "{retired}");
        }
    }

    #[test]
    fn nothing_but_twilio_is_fetched_from() {
        for (text, expected) in [
            (format!("http://api.twilio.com{PATH}"), RefusedSource::NotTwilio),
            (format!("https://api.twilio.com:8443{PATH}"), RefusedSource::NotTwilio),
            (format!("https://api.twilio.com.evil.example{PATH}"), RefusedSource::NotTwilio),
            (format!("https://api.twilio.com@evil.example{PATH}"), RefusedSource::NotTwilio),
            (format!("https://AC:token@api.twilio.com{PATH}"), RefusedSource::NotTwilio),
            (format!("https://evil.example{PATH}"), RefusedSource::NotTwilio),
            (format!("https://169.254.169.254{PATH}"), RefusedSource::NotTwilio),
            (format!("ftp://api.twilio.com{PATH}"), RefusedSource::NotTwilio),
            (format!("file://{PATH}"), RefusedSource::NotTwilio),
            (format!("http://127.0.0.1:4010{PATH}"), RefusedSource::NotTwilio),
            ("https://api.twilio.com/2010-04-01/Accounts.json".to_owned(), RefusedSource::NotARecording),
            (format!("https://api.twilio.com/x/..{PATH}/more"), RefusedSource::NotARecording),
            (format!("https://api.twilio.com{}", PATH.replace("/RE", "/%52E")), RefusedSource::NotARecording),
            ("recording.mp3".to_owned(), RefusedSource::NotAUrl),
            (String::new(), RefusedSource::NotAUrl),
        ] {
            assert_eq!(twilio().read(&text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_simulator_stands_for_every_host_and_may_be_named() {
        let hosts = hosts("http://127.0.0.1:4010");
        let (named, id) = hosts.read(&format!("http://127.0.0.1:4010{PATH}")).unwrap();
        assert_eq!(named, Some(SourceHost::Origin));
        let (real, _) = hosts.read(&format!("https://api.twilio.com{PATH}")).unwrap();
        let source = Source { host: real.unwrap(), id };
        assert_eq!(hosts.source_url(&source), format!("https://api.twilio.com{PATH}"));
        let variant = "wav?RequestedChannels=2".parse().unwrap();
        let url = hosts.media_url(&source, &variant);
        assert_eq!(url.as_str(), format!("http://127.0.0.1:4010{PATH}.wav?RequestedChannels=2"));
        assert!(hosts.read(&format!("http://127.0.0.1:4011{PATH}")).is_err());
    }

    #[test]
    fn hosts_come_back_from_the_catalog() {
        for host in [SourceHost::Origin, SourceHost::of_region(Region::Ie1), SourceHost::of_region(Region::Jp1)] {
            assert_eq!(SourceHost::named(host.name()), host);
        }
        assert_eq!(SourceHost::named(Some("evil.example")), SourceHost::Origin);
    }
}
