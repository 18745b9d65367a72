//! The object store: AWS S3, MinIO and the like, or the embedded one.
//!
//! Owns how objects are written, read, linked to and removed. Writes are plain
//! overwriting puts and copies, never conditional: a key names its content, and
//! the bucket is no lock. What a write means for a recording is not known here.

mod clear;
mod credentials;
pub mod embedded;
mod inspect;
pub mod link;
mod list;
mod markers;
mod presign;
mod read;
mod rewrite;
mod rules;
mod throttle;
mod upload;
mod versions;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::TryStreamExt;
use http::{HeaderMap, Method};
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};

pub use clear::{DELETE_WITHIN, OpenUpload};
pub use credentials::CredentialError;
pub use embedded::Embedded;
pub use inspect::ObjectFacts;
pub use link::{Disposition, Link, LinkBase, LinkMethod};
pub use list::{ListedObject, ListedPage, PAGE_MAX};
pub use read::Reading;
pub use rules::{Lifecycle, Versions};
pub use throttle::Throttle;
pub use upload::{NewObject, SINGLE_PUT_MAX_BYTES, Staging, UPLOAD_RESERVE_BYTES};
pub use versions::Version;

use crate::config::{BucketConfig, Config, S3Config};
use crate::domain::object_key::Layout;
use crate::telemetry::{self, innermost};
use clear::Direct;
use credentials::Credentials;
use link::Linker;

/// A part or a small object takes seconds; this is for links that crawl. A completion
/// may take it all.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);
/// What a store may take for a body however small: twice the longest silence elsewhere.
const UPLOAD_TIMEOUT_LEAST: Duration = Duration::from_secs(60);
const TOO_SLOW: &str = "what was sent was not taken in time";
/// A request without a body that the store does not answer soon, it will not answer.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(20);
/// S3 copies about a gigabyte a minute where it has to move bytes.
const COPY_TIMEOUT: Duration = Duration::from_secs(900);
/// The longest silence within a download.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A store that is away is tried again by the recording's own schedule.
const RETRIES: usize = 3;
const RETRY_FOR: Duration = Duration::from_secs(20);

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// It could not be reached, or refused.
    #[error("the bucket's store failed: {}", concise(.0))]
    Store(#[from] object_store::Error),
    /// It gave no answer to a request of this crate's own making.
    #[error("the bucket's store gave no answer: {}", innermost(.0))]
    Unanswered(#[source] HttpError),
    /// It answered such a request with another status than it should have.
    #[error("the bucket's store answers {status} to {what}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// What it said.
        status: http::StatusCode,
    },
    /// It answered such a request with what cannot be read.
    #[error("the bucket's store answers what cannot be read: {0}")]
    Unreadable(String),
    /// The lease under which something was to be deleted was granted too long ago.
    #[error("a delete comes too late for its lease")]
    TooLate,
    /// There are no credentials for it.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The settings do not name a bucket that can be used.
    #[error("the bucket cannot be set up: {0}")]
    Setup(String),
    /// The embedded store's folder cannot be used.
    #[error("the embedded store's folder {folder} cannot be used: {why}")]
    Folder {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        why: String,
    },
}

impl BucketError {
    /// Whether it is certain that the store did not do what it was asked, and
    /// never will: it said no, or was never reached.
    pub fn is_refusal(&self) -> bool {
        use object_store::Error as Store;
        match self {
            Self::Store(Store::Generic { source, .. }) => is_refusal(source.as_ref()),
            Self::Store(Store::JoinError { .. }) => false,
            Self::Store(_) | Self::Credentials(_) | Self::TooLate => true,
            Self::Unanswered(error) => error.kind() == HttpErrorKind::Connect,
            Self::Refused { status, .. } => status.is_client_error(),
            Self::Unreadable(_) | Self::Setup(_) | Self::Folder { .. } => false,
        }
    }

    /// Whether the store answered, and refused only for what this node takes for the time.
    pub fn is_about_the_time(&self) -> bool {
        matches!(self, Self::Store(error) if innermost(error).to_string().contains("<Code>RequestTimeTooSkewed<"))
    }
}

fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    // What an earlier try did is not known: object_store tells of the last one only.
    if causes.clone().any(|cause| cause.to_string().contains(" retries, max_retries: ")) {
        return false;
    }
    if let Some(unanswered) = causes.find_map(|cause| cause.downcast_ref::<HttpError>()) {
        return unanswered.kind() == HttpErrorKind::Connect;
    }
    // object_store keeps the status to itself, but begins what it says with it.
    innermost(error).to_string().starts_with("Server returned non-2xx status code: 4")
}

/// The result of an operation on the bucket.
pub type Result<T> = std::result::Result<T, BucketError>;

/// What failed, without the store's own words: an error document may repeat
/// headers of the request, a session token among them. Of it only the code is kept
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>).
fn concise(error: &object_store::Error) -> String {
    let text = innermost(error).to_string();
    let Some((before, document)) = text.split_once('<') else { return text };
    let before = before.trim_end_matches([' ', ':']);
    let code = document.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    match code.filter(|code| code.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        Some(code) => format!("{before} ({code})"),
        None => before.to_owned(),
    }
}

/// The bucket. Cloning is cheap.
#[derive(Clone)]
pub struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    layout: Layout,
    credentials: Arc<Credentials>,
    /// Puts and parts, and the completion of uploads.
    uploads: AmazonS3,
    /// What is short: aborting uploads, deletes.
    control: AmazonS3,
    /// Creating uploads: each time that is sent, it leaves something behind.
    once: AmazonS3,
    /// What is short, and not in object_store.
    direct: Direct,
    /// Lists, heads and bodies.
    reads: AmazonS3,
    /// A store is built for each copy, over this one client.
    copies: (AmazonS3Builder, HttpClient),
    linker: Linker,
    embedded: Option<Embedded>,
}

impl Bucket {
    /// The bucket of these settings. Does not reach for it; see [`Self::check`].
    pub async fn open(config: &Config) -> Result<Self> {
        match &config.bucket {
            BucketConfig::Embedded(folder) => {
                let embedded = Embedded::open(folder)?;
                let connector = embedded.connector();
                let s3 = embedded.s3_config();
                Self::build(config, &s3, connector, Some(embedded)).await
            }
            BucketConfig::S3(s3) => Self::build(config, s3, Arc::new(ReqwestConnector::default()), None).await,
        }
    }

    async fn build(
        config: &Config,
        s3: &S3Config,
        connector: Arc<dyn HttpConnector>,
        embedded: Option<Embedded>,
    ) -> Result<Self> {
        let (credentials, region) = Credentials::new(s3).await?;
        let credentials = Arc::new(credentials);
        let options = client_options(config, s3)?;
        let build = |options: ClientOptions| {
            let client = HttpClient::new(Counted(connector.connect(&options)?));
            let builder = builder(s3, &region, credentials.clone()).with_client_options(options);
            Ok::<_, object_store::Error>((
                builder.clone().with_http_connector(Shared(client.clone())).build()?,
                (builder, client),
            ))
        };
        let (uploads, _) = build(options.clone().with_timeout(UPLOAD_TIMEOUT))?;
        let (control, (once, http)) = build(options.clone().with_timeout(CONTROL_TIMEOUT))?;
        let once = once.with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
        let once = once.with_http_connector(Shared(http.clone())).build()?;
        let endpoint = s3.endpoint.clone().unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let direct = Direct { http, bucket: link::rusty_bucket(&endpoint, s3.path_style, &s3.bucket, &region)? };
        let (_, copies) = build(options.clone().with_timeout(COPY_TIMEOUT))?;
        let (reads, _) = build(options.with_timeout_disabled().with_read_timeout(READ_TIMEOUT))?;
        let linker = Linker::new(s3, &region, &config.links, credentials.clone(), config.public_url.as_deref())?;
        let layout = Layout::below(&s3.prefix);
        let name = s3.bucket.clone();
        Ok(Self {
            inner: Arc::new(Inner {
                name,
                layout,
                credentials,
                uploads,
                control,
                once,
                direct,
                reads,
                copies,
                linker,
                embedded,
            }),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where things lie in it.
    pub fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// The embedded store, if that is what this is.
    pub fn embedded(&self) -> Option<&Embedded> {
        self.inner.embedded.as_ref()
    }

    /// Asks for one entry of the bucket: fails where it is away, unknown or closed.
    pub async fn check(&self) -> Result<()> {
        self.inner.credentials.current().await?;
        // Nothing lies there: the answer is an empty page, and short.
        let nowhere = Path::from(self.inner.layout.staging_folder());
        self.inner.reads.list(Some(&nowhere)).try_next().await?;
        Ok(())
    }

    /// Removes an object; one that is not there is fine.
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self.inner.control.delete(&path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => self.forget(key).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what a store keeps of an object that is gone. Only the embedded one does.
    async fn forget(&self, key: &str) -> Result<()> {
        match self.embedded() {
            Some(embedded) => embedded.forget(key).await,
            None => Ok(()),
        }
    }
}

/// A key as object_store takes it.
fn path(key: &str) -> Result<Path> {
    Path::parse(key).map_err(|error| BucketError::Setup(error.to_string()))
}

fn client_options(config: &Config, s3: &S3Config) -> Result<ClientOptions> {
    let mut options = ClientOptions::new()
        .with_allow_http(s3.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://")))
        .with_connect_timeout(Duration::from_secs(5));
    if let Some(pem) = &config.ca_pem {
        for certificate in Certificate::from_pem_bundle(pem)? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

fn builder(s3: &S3Config, region: &str, credentials: Arc<Credentials>) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&s3.bucket)
        .with_region(region)
        .with_credentials(credentials)
        .with_virtual_hosted_style_request(!s3.path_style)
        .with_checksum_algorithm(Checksum::SHA256)
        // One object, one request: the bulk call is not spoken everywhere.
        .with_disable_bulk_delete(true)
        .with_retry(RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_FOR, ..RetryConfig::default() });
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(link::endpoint_of_bucket(endpoint, s3));
    }
    builder
}

/// Gives out one client, so that a store that is built for a single request
/// shares its connections.
#[derive(Debug)]
struct Shared(HttpClient);

impl HttpConnector for Shared {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// Counts what the store is asked.
#[derive(Debug)]
struct Counted(HttpClient);

#[async_trait]
impl HttpService for Counted {
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let method = telemetry::method_label(request.method());
        let began = Instant::now();
        let body_bytes = request.body().content_length();
        let is_put = request.method() == Method::PUT;
        let executing = self.0.execute(request);
        // All else, copies among it, has the time that its client gives it.
        let answered = if is_put && body_bytes > 0 {
            let in_time = tokio::time::timeout(put_timeout(body_bytes), executing).await;
            in_time.unwrap_or_else(|_| Err(HttpError::new(HttpErrorKind::Timeout, io::Error::other(TOO_SLOW))))
        } else {
            executing.await
        };
        let has_failed = answered.as_ref().map_or(true, |answer| answer.status().is_server_error());
        telemetry::store_answered(method, has_failed, began.elapsed());
        answered
    }
}

/// How long a body of that length may be under way: the largest as long as any upload, a
/// shorter one by so much less. A store that takes no bytes any more, and closes nothing,
/// is not waited for longer than the bytes can need.
fn put_timeout(bytes: usize) -> Duration {
    let share = bytes as f64 / SINGLE_PUT_MAX_BYTES as f64;
    UPLOAD_TIMEOUT.min(UPLOAD_TIMEOUT_LEAST + (UPLOAD_TIMEOUT - UPLOAD_TIMEOUT_LEAST).mul_f64(share))
}

impl Inner {
    /// A store whose every request carries these headers, signed.
    fn copier(&self, headers: HeaderMap) -> Result<AmazonS3> {
        let (builder, client) = &self.copies;
        let options = ClientOptions::new().with_allow_http(true).with_default_headers(headers);
        let builder = builder.clone().with_client_options(options);
        Ok(builder.with_http_connector(Shared(client.clone())).build()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every request alike: with that status, or not at all.
    #[derive(Debug, Clone, Copy)]
    struct Always(std::result::Result<u16, HttpErrorKind>);

    #[async_trait]
    impl HttpService for Always {
        async fn call(&self, _: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
            let status = self.0.map_err(|kind| HttpError::new(kind, std::io::Error::other("scripted")))?;
            let mut answer = HttpResponse::new("<Error><Code>Scripted</Code></Error>".to_owned().into());
            *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
            Ok(answer)
        }
    }

    #[tokio::test]
    async fn only_a_clear_no_is_a_refusal() {
        use HttpErrorKind::{Connect, Interrupted, Request, Timeout};
        let clear = [Ok(400), Ok(403), Ok(404), Ok(409), Ok(411), Ok(429), Err(Connect)];
        let unclear = [Ok(500), Ok(502), Ok(503), Err(Timeout), Err(Interrupted), Err(Request)];
        let answers = clear.map(|answer| (answer, true)).into_iter().chain(unclear.map(|answer| (answer, false)));
        let tried_again = [(Err(Connect), false), (Ok(403), true)].map(|(answer, expected)| (answer, expected, 1));
        let answers = answers.map(|(answer, expected)| (answer, expected, 0)).chain(tried_again);
        for (answer, expected, max_retries) in answers {
            let store = AmazonS3Builder::new()
                .with_bucket_name("calls")
                .with_access_key_id("id")
                .with_secret_access_key("secret")
                .with_retry(RetryConfig { max_retries, ..RetryConfig::default() })
                .with_http_connector(Shared(HttpClient::new(Always(answer))))
                .build()
                .unwrap();
            let error = store.put(&Path::from("key"), "audio".into()).await.unwrap_err();
            assert_eq!(BucketError::from(error).is_refusal(), expected, "{answer:?}");
        }
    }

    /// Takes what it is sent, and never answers.
    #[derive(Debug)]
    struct Silent;

    #[async_trait]
    impl HttpService for Silent {
        async fn call(&self, _: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_that_a_store_swallows_ends_once_its_bytes_had_time() {
        let store = Counted(HttpClient::new(Silent));
        let ends_after = async |method: Method, bytes: usize| {
            let request = http::Request::builder().method(method).uri("http://store/key");
            let request = request.body(vec![0; bytes].into()).unwrap();
            let began = tokio::time::Instant::now();
            let ended = tokio::time::timeout(COPY_TIMEOUT, store.call(request)).await.ok()?;
            assert_eq!(ended.unwrap_err().kind(), HttpErrorKind::Timeout);
            Some(began.elapsed().as_secs())
        };
        assert_eq!(ends_after(Method::PUT, 240 << 10).await, Some(63), "a minute of speech");
        assert_eq!(ends_after(Method::PUT, 8 << 20).await, Some(180));
        assert_eq!(ends_after(Method::PUT, SINGLE_PUT_MAX_BYTES).await, Some(UPLOAD_TIMEOUT.as_secs()));
        assert_eq!(ends_after(Method::PUT, 0).await, None, "a copy moves bytes that are the store's");
        assert_eq!(ends_after(Method::POST, 1000).await, None, "the completion of an upload, too");
    }

    #[test]
    fn what_a_store_says_is_not_repeated() {
        let said = "Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?><Error>\
                    <Code>SignatureDoesNotMatch</Code><CanonicalRequest>x-amz-security-token:TOKEN</CanonicalRequest>";
        let error = object_store::Error::Generic { store: "S3", source: said.into() };
        let told = BucketError::from(error).to_string();
        assert_eq!(
            told,
            "the bucket's store failed: Server returned non-2xx status code: 403 Forbidden (SignatureDoesNotMatch)"
        );
    }
}
