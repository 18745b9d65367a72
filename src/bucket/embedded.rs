//! The embedded S3, for trial and for one node, in a folder.
//!
//! It speaks real S3 (Signature Version 4, presigned links, multipart) with
//! keys of its own that lie in its folder, and answers on the service's own
//! port below [`BUCKET`]. The service itself reaches it without a socket. The
//! folder is locked for as long as a process serves it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{BucketError, Result};
use crate::config::{AwsKeys, S3Config};

/// Its one bucket, and the first segment of every path that it answers.
pub const BUCKET: &str = "callvault";
/// The name under which the service itself calls it. It is never resolved.
pub(super) const ENDPOINT: &str = "http://embedded.callvault.invalid";

const LOCK_FILE: &str = "lock";
const KEYS_FILE: &str = "keys.json";
const OBJECTS_FOLDER: &str = "objects";

/// The embedded store, open. Cloning is cheap.
#[derive(Clone)]
pub struct Embedded {
    service: S3Service,
    keys: Keys,
    _lock: Arc<File>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Keys {
    access_key_id: String,
    secret_access_key: String,
}

impl Embedded {
    /// Opens the store in that folder, which is made where there is none.
    pub fn open(folder: &Path) -> Result<Self> {
        let failed = |why: String| BucketError::Folder { folder: folder.display().to_string(), why };
        let io = |error: std::io::Error| failed(error.to_string());
        let objects = folder.join(OBJECTS_FOLDER);
        std::fs::create_dir_all(objects.join(BUCKET)).map_err(io)?;
        let lock = File::create(folder.join(LOCK_FILE)).map_err(io)?;
        lock.try_lock().map_err(|_| failed("another process serves it".to_owned()))?;
        let keys = read_or_make_keys(&folder.join(KEYS_FILE)).map_err(io)?;
        let files = s3s_fs::FileSystem::new(&objects).map_err(|error| failed(format!("{error:?}")))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(keys.access_key_id.clone(), keys.secret_access_key.clone()));
        Ok(Self { service: builder.build(), keys, _lock: Arc::new(lock) })
    }

    /// How the service reaches it.
    pub(super) fn s3_config(&self) -> S3Config {
        S3Config {
            bucket: BUCKET.to_owned(),
            prefix: String::new(),
            endpoint: Some(ENDPOINT.to_owned()),
            public_endpoint: None,
            path_style: true,
            region: None,
            credentials: Some(AwsKeys {
                access_key_id: SecretString::from(self.keys.access_key_id.clone()),
                secret_access_key: SecretString::from(self.keys.secret_access_key.clone()),
                session_token: None,
            }),
        }
    }

    pub(super) fn connector(&self) -> Arc<dyn HttpConnector> {
        Arc::new(InProcess(self.service.clone()))
    }

    /// Answers a request that came over HTTP. `host` is what the client called
    /// the service, which a proxy may have rewritten in the request.
    pub async fn answer<B>(&self, mut request: Request<B>, host: Option<HeaderValue>) -> Response<s3s::Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host);
        }
        let request = request.map(|body| s3s::Body::http_body_unsync(body.map_err(BodyError::new)));
        self.service.call(request).await.unwrap_or_else(|_| {
            let mut response = Response::new(s3s::Body::empty());
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    }
}

/// A request's body broke.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BodyError(String);

impl BodyError {
    fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into().to_string())
    }
}

fn read_or_make_keys(path: &PathBuf) -> std::io::Result<Keys> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let keys = Keys { access_key_id: random_hex(10), secret_access_key: random_hex(20) };
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(&serde_json::to_vec_pretty(&keys)?)?;
            Ok(keys)
        }
        Err(error) => Err(error),
    }
}

#[expect(clippy::disallowed_methods, reason = "keys are to be secret, nothing else")]
fn random_hex(len_bytes: usize) -> String {
    (0..len_bytes).map(|_| format!("{:02x}", rand::random::<u8>())).collect()
}

/// Hands the service's own requests over without a socket.
#[derive(Debug)]
struct InProcess(S3Service);

impl HttpConnector for InProcess {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Self(self.0.clone())))
    }
}

#[async_trait]
impl HttpService for InProcess {
    async fn call(&self, mut request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
        let host = authority.and_then(|authority| HeaderValue::from_str(&authority).ok());
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host);
        }
        // What a connection would add.
        let len = request.body().content_length();
        request.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| len.into());
        let request = request.map(|body| s3s::Body::http_body(body.map_err(|error| BodyError(error.to_string()))));
        let failed = |error: String| HttpError::new(HttpErrorKind::Request, BodyError(error));
        let response = self.0.call(request).await.map_err(|error| failed(format!("{error:?}")))?;
        Ok(response.map(|body| {
            HttpResponseBody::new(
                body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, BodyError(error.to_string()))),
            )
        }))
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}
