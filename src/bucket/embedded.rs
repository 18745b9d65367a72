//! The embedded S3, for trial and for one node, in a folder.
//!
//! It speaks real S3 (Signature Version 4, presigned links, multipart) with
//! keys of its own that lie in its folder, and answers on the service's own
//! port below [`BUCKET`]. The service itself reaches it without a socket. The
//! folder is locked for as long as a process serves it; whoever finds it locked by a
//! node goes through that node.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

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
    reach: Reach,
    keys: Keys,
    folder: PathBuf,
}

/// How its requests are answered.
#[derive(Clone)]
enum Reach {
    /// By this process, which holds the lock.
    Here(S3Service, Arc<File>),
    /// By the node that does, at this address.
    Through(SocketAddr),
}

#[derive(Clone, Serialize, Deserialize)]
struct Keys {
    access_key_id: String,
    secret_access_key: String,
}

impl Embedded {
    /// Whether there is a store in that folder: its keys are made with it.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(KEYS_FILE).exists()
    }

    /// Opens the store in that folder, which is made where there is none.
    pub fn open(folder: &Path) -> Result<Self> {
        let failed = |why: String| BucketError::Folder { folder: folder.display().to_string(), why };
        let io = |error: std::io::Error| failed(error.to_string());
        let objects = folder.join(OBJECTS_FOLDER);
        std::fs::create_dir_all(objects.join(BUCKET)).map_err(io)?;
        // Not emptied: it may tell where the node is that holds it.
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(folder.join(LOCK_FILE));
        let lock = lock.map_err(io)?;
        let is_ours = match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => return Err(io(error)),
        };
        let keys = read_or_make_keys(&folder.join(KEYS_FILE)).map_err(io)?;
        let reach = if is_ours {
            // What a node that died has told there is not so any more.
            lock.set_len(0).map_err(io)?;
            let files = s3s_fs::FileSystem::new(&objects).map_err(|error| failed(format!("{error:?}")))?;
            let mut builder = S3ServiceBuilder::new(files);
            builder.set_auth(SimpleAuth::from_single(keys.access_key_id.clone(), keys.secret_access_key.clone()));
            Reach::Here(builder.build(), Arc::new(lock))
        } else {
            let silent = "another process holds it and does not tell where it answers; try again when it is done";
            Reach::Through(holder(lock).ok_or_else(|| failed(silent.to_owned()))?)
        };
        Ok(Self { reach, keys, folder: folder.to_owned() })
    }

    /// Fails unless this process holds the lock: only one may serve the folder.
    pub fn must_be_here(&self) -> Result<()> {
        match &self.reach {
            Reach::Here(..) => Ok(()),
            Reach::Through(address) => Err(BucketError::Folder {
                folder: self.folder.display().to_string(),
                why: format!("another process serves it, at {address}"),
            }),
        }
    }

    /// Tells those who find the folder locked where this process answers.
    pub fn announce(&self, address: SocketAddr) -> Result<()> {
        let Reach::Here(_, lock) = &self.reach else { return Ok(()) };
        let told = lock.set_len(0).and_then(|()| {
            let mut file = &**lock;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", reachable(address))
        });
        let failed = |error: std::io::Error| BucketError::Folder {
            folder: self.folder.display().to_string(),
            why: error.to_string(),
        };
        told.map_err(failed)
    }

    /// Writes an object through to the disk: its bytes, what the store keeps
    /// beside it, and the folders that name them.
    pub(super) async fn sync(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.in_objects(move |objects| sync_files(&objects, &key)).await
    }

    /// Works on the folder of the objects, on a thread that may block.
    async fn in_objects<T: Send + 'static>(
        &self,
        work: impl FnOnce(PathBuf) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let objects = self.folder.join(OBJECTS_FOLDER);
        let done = tokio::task::spawn_blocking(move || work(objects)).await;
        let failed = |why: String| BucketError::Folder { folder: self.folder.display().to_string(), why };
        done.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    /// The multipart uploads that are open at that key. S3's own question is
    /// not answered here; the files that the store keeps tell.
    pub(super) async fn open_uploads(&self, key: &str) -> Result<Vec<String>> {
        let begin = format!("{}.upload-", sidecar_name(key));
        self.in_objects(move |objects| {
            let upload_id = |name: &str| Some(name.strip_prefix(&begin)?.strip_suffix(".metadata.json")?.to_owned());
            of_file_names(&objects, upload_id)
        })
        .await
    }

    /// Ends a multipart upload, or what is left of one whose completion was cut
    /// off: the store itself knows that one no more, but keeps its parts.
    pub(super) async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<()> {
        let metadata = format!("{}.upload-{upload_id}.metadata.json", sidecar_name(key));
        let (upload, part) = (format!(".upload-{upload_id}.json"), format!(".upload_id-{upload_id}.part-"));
        self.in_objects(move |objects| {
            let is_of_it = |name: &str| name == metadata || name == upload || name.starts_with(&part);
            let files = of_file_names(&objects, |name| is_of_it(name).then(|| objects.join(name)))?;
            files.into_iter().try_for_each(remove_file)
        })
        .await
    }

    /// Removes what the store leaves of an object that was deleted: what it knew
    /// of it beside the bytes.
    pub(super) async fn forget(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.in_objects(move |objects| {
            if objects.join(BUCKET).join(&key).exists() {
                return Ok(());
            }
            sidecars(&objects, &key).into_iter().try_for_each(remove_file)
        })
        .await
    }

    /// How the service reaches it.
    pub(super) fn s3_config(&self) -> S3Config {
        S3Config {
            bucket: BUCKET.to_owned(),
            prefix: String::new(),
            endpoint: Some(match &self.reach {
                Reach::Here(..) => ENDPOINT.to_owned(),
                Reach::Through(address) => format!("http://{address}"),
            }),
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
        match &self.reach {
            Reach::Here(service, _) => Arc::new(InProcess(service.clone())),
            Reach::Through(_) => Arc::new(ReqwestConnector::default()),
        }
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
        let answered = match &self.reach {
            Reach::Here(service, _) => service.call(request).await.ok(),
            // Only the one that holds the lock answers.
            Reach::Through(_) => None,
        };
        answered.unwrap_or_else(|| {
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

/// Where the node answers that holds the lock, if it has told.
fn holder(mut lock: File) -> Option<SocketAddr> {
    let mut told = String::new();
    lock.read_to_string(&mut told).ok()?;
    told.trim().parse().ok()
}

/// An address of this machine that leads to whoever listens there.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn sync_files(objects: &Path, key: &str) -> std::io::Result<()> {
    let object = objects.join(BUCKET).join(key);
    for file in sidecars(objects, key).iter().chain([&object]) {
        File::open(file)?.sync_all()?;
    }
    let named_by = object.ancestors().skip(1).take_while(|folder| folder.starts_with(objects));
    named_by.map(File::open).try_for_each(|folder| folder?.sync_all())
}

/// Where s3s-fs keeps an object's metadata and checksums.
fn sidecars(objects: &Path, key: &str) -> [PathBuf; 2] {
    ["metadata", "internal"].map(|kind| objects.join(format!("{}.{kind}.json", sidecar_name(key))))
}

/// What the names of all files begin with that s3s-fs keeps for a key.
fn sidecar_name(key: &str) -> String {
    format!(".bucket-{}.object-{}", URL_SAFE_NO_PAD.encode(BUCKET), URL_SAFE_NO_PAD.encode(key))
}

/// Removes a file; one that is not there is fine.
fn remove_file(file: PathBuf) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What `pick` makes of the names in a folder: there may be very many.
fn of_file_names<T>(folder: &Path, pick: impl Fn(&str) -> Option<T>) -> std::io::Result<Vec<T>> {
    let names = std::fs::read_dir(folder)?.map(|entry| Ok(pick(&entry?.file_name().to_string_lossy())));
    names.filter_map(std::io::Result::transpose).collect()
}

fn read_or_make_keys(path: &Path) -> std::io::Result<Keys> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let keys = Keys { access_key_id: random_hex(10), secret_access_key: random_hex(20) };
            // Whole or not at all: half a file would stop every later start.
            let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
            file.write_all(&serde_json::to_vec_pretty(&keys)?)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_files_that_are_synced_are_those_that_the_store_writes() {
        let folder = tempfile::tempdir().unwrap();
        let folder_name = folder.path().to_str().unwrap().to_owned();
        let mut config = crate::config::Config::load(Vec::new()).unwrap();
        config.bucket = crate::config::BucketConfig::Embedded(folder_name.into());
        let bucket = crate::bucket::Bucket::open(&config).await.unwrap();
        let object = crate::bucket::NewObject {
            key: "CA1/RE1/x.mp3".to_owned(),
            format: crate::domain::media::Format::Mp3,
            metadata: vec![("sha256", "x".to_owned())],
        };
        // Fails where a file that is to be synced is not there.
        bucket.put(&object, vec![Bytes::from_static(b"audio")]).await.unwrap();
        let metadata = &sidecars(&folder.path().join(OBJECTS_FOLDER), &object.key)[0];
        assert!(std::fs::read_to_string(metadata).unwrap().contains("sha256"));
        // And all of them go with it.
        bucket.delete(&object.key).await.unwrap();
        let objects = folder.path().join(OBJECTS_FOLDER);
        let left = of_file_names(&objects, |name| Some(name.to_owned())).unwrap();
        assert_eq!(left, [BUCKET]);
    }
}
