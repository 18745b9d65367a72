//! Links: presigned URLs that browsers follow without credentials.
//!
//! All links of a window are the same, on every node with the same credentials,
//! because they are signed as of the beginning of the window (Signature Version
//! 4 in the query: <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>).
//! They are signed for the endpoint that browsers reach, not for the one that the
//! service uses. Signing asks nobody.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use rusty_s3::UrlStyle;
use url::Url;

use super::credentials::{Credentials, Signer};
use super::presign::{Address, Window};
use super::{Bucket, BucketError, Result};
use crate::config::{LinkConfig, S3Config};

/// What a link is made for: S3 refuses a HEAD on one that was signed for GET.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkMethod {
    /// GET.
    Get,
    /// HEAD.
    Head,
}

/// What a browser is told to do with the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// To play them.
    Inline,
    /// To save them under that name, which is plain ASCII without quotes.
    Attachment(String),
}

/// What a link begins with, where the store has no endpoint of its own: the
/// embedded store answers under the name by which the service was called.
#[derive(Debug, Clone, Copy)]
pub struct LinkBase<'a> {
    /// The authority of the request, such as `127.0.0.1:8080`.
    pub request_host: Option<&'a str>,
}

/// A link and its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The URL.
    pub url: String,
    /// When it ceases to work.
    pub expires_at: Timestamp,
}

/// Signs links.
pub(super) struct Linker {
    bucket: String,
    region: String,
    place: Place,
    ttl: Duration,
    window: Duration,
    /// What the links have in common that were signed last.
    common: Mutex<Option<Arc<Window>>>,
    /// Keys for links alone.
    keys: Option<Signer>,
    credentials: Arc<Credentials>,
}

/// Where browsers find the bucket.
enum Place {
    /// At that endpoint.
    Endpoint(Address),
    /// On the service's own port, below this URL.
    OwnPort { public_url: Url, address: Address },
    /// The same, below the request's host.
    RequestHost,
}

impl Linker {
    pub(super) fn new(
        s3: &S3Config,
        region: &str,
        links: &LinkConfig,
        credentials: Arc<Credentials>,
        public_url: Option<&str>,
    ) -> Result<Self> {
        let own_port = s3.endpoint.as_deref() == Some(super::embedded::ENDPOINT);
        let address = |endpoint: &str, path_style, prefix: &str| -> Result<Address> {
            let bucket = rusty_bucket(endpoint, path_style, &s3.bucket, region)?;
            Ok(Address::of(&bucket.object_url(""), prefix))
        };
        let place = match public_url {
            Some(public_url) if own_port => {
                let public_url = Url::parse(public_url).map_err(|error| BucketError::Setup(error.to_string()))?;
                let mut origin = public_url.clone();
                origin.set_path("");
                // Signed for the path that arrives here, given out with what a proxy takes away.
                let address = address(origin.as_str(), true, public_url.path().trim_end_matches('/'))?;
                Place::OwnPort { public_url, address }
            }
            None if own_port => Place::RequestHost,
            _ => {
                let public = s3.public_endpoint.as_ref().or(s3.endpoint.as_ref()).cloned();
                let endpoint = public.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
                Place::Endpoint(address(&endpoint, s3.path_style, "")?)
            }
        };
        Ok(Self {
            bucket: s3.bucket.clone(),
            region: region.to_owned(),
            place,
            ttl: links.ttl,
            window: links.window,
            common: Mutex::default(),
            keys: links.keys.as_ref().map(Signer::of_keys),
            credentials,
        })
    }

    async fn signer(&self) -> Result<Signer> {
        match &self.keys {
            Some(signer) => Ok(signer.clone()),
            None => Ok(self.credentials.current().await?),
        }
    }

    /// When a link is signed and how long it lives from then on, at the catalog's `now`.
    fn life(&self, now: Timestamp, signer: &Signer) -> (Timestamp, Duration) {
        let window_seconds = i64::try_from(self.window.as_secs()).unwrap_or(i64::MAX).max(1);
        let now_seconds = now.as_second();
        let window_start = now_seconds - now_seconds.rem_euclid(window_seconds);
        // What a session signs, it signs after it began.
        let issued = signer.issued_at.map_or(i64::MIN, |at| at.as_second());
        let signed_at = window_start.max(issued.min(now_seconds));
        let end = window_start.saturating_add_unsigned((self.window + self.ttl).as_secs());
        let end = signer.expires_at.map_or(end, |session_end| end.min(session_end.as_second()));
        let life = Duration::from_secs(u64::try_from(end - signed_at).unwrap_or_default().max(1));
        (Timestamp::from_second(signed_at).unwrap_or(now), life)
    }

    /// What the links have in common that are signed at the catalog's `now`.
    fn common(&self, now: Timestamp, signer: &Signer) -> (Arc<Window>, Timestamp) {
        let (signed_at, life) = self.life(now, signer);
        let mut last = self.common.lock().expect("nothing panics while it holds this");
        let is_same = last.as_ref().is_some_and(|last| last.is_of(&signer.keys, signed_at, life));
        if !is_same {
            *last = Some(Arc::new(Window::new(&self.region, signer.keys.clone(), signed_at, life)));
        }
        let window = last.as_ref().expect("it was set where there was none").clone();
        (window, signed_at.checked_add(life).unwrap_or(Timestamp::MAX))
    }

    fn sign(
        &self,
        address: &Address,
        key: &str,
        method: LinkMethod,
        disposition: &Disposition,
        now: Timestamp,
        signer: &Signer,
    ) -> Link {
        let (window, expires_at) = self.common(now, signer);
        let disposition = match disposition {
            Disposition::Inline => None,
            Disposition::Attachment(name) => Some(format!("attachment; filename=\"{name}\"")),
        };
        Link { url: window.link(address, key, method, disposition.as_deref()), expires_at }
    }

    fn address(&self, base: LinkBase<'_>) -> Result<Cow<'_, Address>> {
        match &self.place {
            Place::Endpoint(address) | Place::OwnPort { address, .. } => Ok(Cow::Borrowed(address)),
            Place::RequestHost => {
                let host =
                    base.request_host.ok_or_else(|| BucketError::Setup("the request names no host".to_owned()))?;
                let bucket = rusty_bucket(&format!("http://{host}"), true, &self.bucket, &self.region)?;
                Ok(Cow::Owned(Address::of(&bucket.object_url(""), "")))
            }
        }
    }
}

impl Bucket {
    /// A link to the object at `key`, for the window in which `now` lies.
    pub async fn link(
        &self,
        key: &str,
        method: LinkMethod,
        disposition: &Disposition,
        now: Timestamp,
        base: LinkBase<'_>,
    ) -> Result<Link> {
        let linker = &self.inner.linker;
        let signer = linker.signer().await?;
        let address = linker.address(base)?;
        Ok(linker.sign(&address, key, method, disposition, now, &signer))
    }
}

impl Bucket {
    /// The host that links of the embedded store are signed for, where that is
    /// not simply the one that the client called.
    pub fn signed_host(&self) -> Option<String> {
        match &self.inner.linker.place {
            Place::OwnPort { public_url, .. } => {
                let host = public_url.host_str()?;
                Some(public_url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
            }
            Place::Endpoint(_) | Place::RequestHost => None,
        }
    }

    /// The origin that links lead to; None is the one that the client called.
    pub fn link_origin(&self) -> Option<String> {
        match &self.inner.linker.place {
            Place::Endpoint(address) | Place::OwnPort { address, .. } => Some(address.origin.clone()),
            Place::RequestHost => None,
        }
    }
}

pub(super) fn rusty_bucket(endpoint: &str, path_style: bool, name: &str, region: &str) -> Result<rusty_s3::Bucket> {
    let setup = |why: String| BucketError::Setup(why);
    let endpoint = Url::parse(endpoint).map_err(|error| setup(format!("{endpoint}: {error}")))?;
    let style = if path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
    rusty_s3::Bucket::new(endpoint, style, name.to_owned(), region.to_owned()).map_err(|error| setup(error.to_string()))
}

/// What object_store wants as endpoint: with virtual hosts, the bucket's own host.
pub(super) fn endpoint_of_bucket(endpoint: &str, s3: &S3Config) -> String {
    match endpoint.split_once("://") {
        Some((scheme, rest)) if !s3.path_style => format!("{scheme}://{}.{rest}", s3.bucket),
        _ => endpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linker(public: &str, path_style: bool, ttl: u64, window: u64) -> Linker {
        let s3 = S3Config {
            bucket: "calls".to_owned(),
            prefix: String::new(),
            endpoint: Some("http://minio.internal:9000".to_owned()),
            public_endpoint: Some(public.to_owned()),
            path_style,
            region: None,
            credentials: Some(crate::config::AwsKeys {
                access_key_id: "AKIA".into(),
                secret_access_key: "secret".into(),
                session_token: None,
            }),
        };
        let links = LinkConfig {
            ttl: Duration::from_secs(ttl),
            window: Duration::from_secs(window),
            keys: s3.credentials.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let credentials = Arc::new(runtime.block_on(Credentials::new(&s3)).unwrap().0);
        Linker::new(&s3, "us-east-1", &links, credentials, None).unwrap()
    }

    fn signer(linker: &Linker) -> Signer {
        linker.keys.clone().unwrap()
    }

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    fn url(linker: &Linker, now: &str) -> String {
        let address = linker.address(LinkBase { request_host: None }).unwrap();
        linker.sign(&address, "CA1/RE1/x.mp3", LinkMethod::Get, &Disposition::Inline, at(now), &signer(linker)).url
    }

    #[test]
    fn all_links_of_a_window_are_the_same() {
        let linker = linker("https://media.example.com", true, 3600, 900);
        let first = url(&linker, "2026-11-23T14:00:00Z");
        assert_eq!(url(&linker, "2026-11-23T14:14:59.999Z"), first);
        assert_ne!(url(&linker, "2026-11-23T14:15:00Z"), first);
        assert!(first.contains("X-Amz-Date=20261123T140000Z") && first.contains("X-Amz-Expires=4500"), "{first}");
    }

    #[test]
    fn a_link_lives_for_its_ttl_at_least() {
        let linker = linker("https://media.example.com", true, 3600, 900);
        for now in ["2026-11-23T14:00:00Z", "2026-11-23T14:14:59Z"] {
            let (signed_at, life) = linker.life(at(now), &signer(&linker));
            let end = signed_at + life;
            assert!(end.duration_since(at(now)).as_secs() >= 3600, "{now}");
        }
    }

    #[test]
    fn a_link_ends_with_the_session_that_signed_it_and_is_not_older() {
        let linker = linker("https://media.example.com", true, 3600, 900);
        let session = Signer {
            issued_at: Some(at("2026-11-23T14:05:00Z")),
            expires_at: Some(at("2026-11-23T14:35:00Z")),
            ..signer(&linker)
        };
        let (signed_at, life) = linker.life(at("2026-11-23T14:10:00Z"), &session);
        assert_eq!((signed_at, life), (at("2026-11-23T14:05:00Z"), Duration::from_secs(30 * 60)));
    }

    #[test]
    fn links_are_for_the_endpoint_that_browsers_reach() {
        let path = url(&linker("https://media.example.com:8443", true, 60, 60), "2026-11-23T14:00:00Z");
        assert!(path.starts_with("https://media.example.com:8443/calls/CA1/RE1/x.mp3?"), "{path}");
        let host = url(&linker("https://media.example.com", false, 60, 60), "2026-11-23T14:00:00Z");
        assert!(host.starts_with("https://calls.media.example.com/CA1/RE1/x.mp3?"), "{host}");
    }

    #[test]
    fn a_download_has_a_name_and_a_head_its_own_signature() {
        let linker = linker("https://media.example.com", true, 60, 60);
        let sign = |method, disposition| {
            let address = linker.address(LinkBase { request_host: None }).unwrap();
            let now = at("2026-11-23T14:00:00Z");
            linker.sign(&address, "CA1/RE1/x.mp3", method, &disposition, now, &signer(&linker)).url
        };
        let named = sign(LinkMethod::Get, Disposition::Attachment("a call.mp3".to_owned()));
        assert!(
            named.contains("response-content-disposition=attachment%3B%20filename%3D%22a%20call.mp3%22"),
            "{named}"
        );
        assert_ne!(sign(LinkMethod::Get, Disposition::Inline), sign(LinkMethod::Head, Disposition::Inline));
    }
}
