//! A service as its users have it: the real binary, on real parts, before a
//! scripted Twilio.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use callvault::domain::recording::RecordingId;
use callvault::domain::sid::{AccountSid, CallSid, RecordingSid};
use callvault::twilio::simulator::{OutgoingCallback, SimulatedAccount, SimulatedRecording, Simulator};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{Attributes, ObjectStore as _, ObjectStoreExt as _};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use super::eventually;
use super::secrets::{Forbidden, PEOPLE};
use super::servers::{ObjectStore, Postgres, free_port};
pub use super::service::Service;

/// The key of every service under test.
pub const ADMIN_KEY: &str = "admin-key-of-the-tests-0123456789";
/// The first account of every world.
pub const ACCOUNT: &str = "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Its auth token.
pub const AUTH_TOKEN: &str = "auth-token-of-the-tests";

/// What a service stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// SQLite and the embedded S3.
    Embedded,
    /// PostgreSQL and MinIO.
    Servers,
}

/// A Twilio, a bucket, a database, and the settings of services on them.
pub struct World {
    /// What it stands on.
    pub parts: Parts,
    /// The scripted Twilio.
    pub simulator: Simulator,
    /// Settings of every service; more can be added before one is started.
    pub settings: BTreeMap<String, String>,
    /// Follows no redirects.
    pub http: Client,
    folder: TempDir,
    bucket: String,
}

impl World {
    /// A world with one account, and settings that make a service quick to try again.
    pub async fn new(parts: Parts) -> Self {
        let account = SimulatedAccount { sid: account(), auth_token: AUTH_TOKEN.to_owned(), api_key: None };
        let simulator = Simulator::start([account]).await.expect("a simulator");
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings: BTreeMap<String, String> = [
            ("CALLVAULT_ADMIN_KEY", ADMIN_KEY.to_owned()),
            ("CALLVAULT_TWILIO_ACCOUNT_SID", ACCOUNT.to_owned()),
            ("CALLVAULT_TWILIO_AUTH_TOKEN", AUTH_TOKEN.to_owned()),
            ("CALLVAULT_TWILIO_ORIGIN", simulator.origin()),
            ("CALLVAULT_RETRY_BASE", "100ms".to_owned()),
            ("CALLVAULT_RETRY_CAP", "1s".to_owned()),
            ("CALLVAULT_LEASE", "2s".to_owned()),
            ("CALLVAULT_DRAIN", "0s".to_owned()),
            // Otherwise every recording at Twilio would be found at once: tests that want it say so.
            ("CALLVAULT_RECONCILE_EVERY", "off".to_owned()),
            // Nor is what a test plants in the bucket to be found by the by.
            ("CALLVAULT_SCRUB_EVERY", "off".to_owned()),
            // All that can be said: nothing of it may be secret, see `secrets.rs`.
            ("CALLVAULT_LOG", "trace".to_owned()),
            ("CALLVAULT_LOG_FORMAT", "json".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let mut bucket = "callvault".to_owned();
        if parts == Parts::Servers {
            let store = ObjectStore::shared();
            bucket = store.new_bucket().await;
            let more = [
                ("CALLVAULT_DATABASE_URL", Postgres::shared().new_database().await),
                ("CALLVAULT_BUCKET_URL", format!("s3://{bucket}")),
                ("CALLVAULT_S3_ENDPOINT", store.endpoint.clone()),
                ("AWS_ACCESS_KEY_ID", store.access_key_id.clone()),
                ("AWS_SECRET_ACCESS_KEY", store.secret_access_key.clone()),
                ("AWS_REGION", store.region.to_owned()),
            ];
            settings.extend(more.map(|(name, value)| (name.to_owned(), value)));
        }
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().expect("a client");
        Self { parts, simulator, settings, http, folder, bucket }
    }

    /// Adds a setting.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// Adds an account that every service has credentials for.
    pub fn add_account(&mut self, sid: AccountSid) {
        let auth_token = format!("auth-token-of-{sid}");
        let path = self.folder.path().join("accounts.toml");
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        let more = format!("{known}[[accounts]]\nsid = \"{sid}\"\nauth_token = \"{auth_token}\"\n");
        std::fs::write(&path, more).expect("the folder can be written");
        self.set("CALLVAULT_CONFIG", path.to_str().expect("a path"));
        self.simulator.add_account(SimulatedAccount { sid, auth_token, api_key: None });
    }

    /// Starts so many services that share these parts: one where they cannot be shared.
    pub async fn start_nodes(&self, count: usize) -> Vec<Service> {
        let count = if self.parts == Parts::Embedded { 1 } else { count };
        futures::future::join_all((0..count).map(|_| self.start())).await
    }

    /// The folder in which services run.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// What nothing that runs on these settings may say.
    pub fn forbidden(&self) -> Forbidden {
        Forbidden::of(&self.settings, self.folder.path())
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Starts a service and waits until it is ready.
    pub async fn start(&self) -> Service {
        self.start_on(free_port(), debug_binary()).await
    }

    /// The same on that port, with that binary.
    pub async fn start_on(&self, port: u16, binary: PathBuf) -> Service {
        self.until_ready(self.start_unready(port, binary)).await
    }

    /// The same on that port, with settings of its own.
    pub async fn start_with(&self, port: u16, own: &BTreeMap<String, String>) -> Service {
        self.until_ready(self.start_unready_with(port, own)).await
    }

    async fn until_ready(&self, service: Service) -> Service {
        let ready = format!("{}/readyz", service.url);
        eventually("the service is ready", async || {
            if let Some(status) = service.exited() {
                panic!("the service ended with {status}:\n{}", service.log());
            }
            let answer = self.http.get(&ready).send().await.ok()?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
        service
    }

    /// The same with settings of its own, and without waiting for it.
    pub fn start_unready_with(&self, port: u16, own: &BTreeMap<String, String>) -> Service {
        let mut settings = self.settings.clone();
        settings.extend(own.clone());
        Service::spawn(debug_binary(), port, self.folder.path(), &settings, self.http.clone())
    }

    /// Starts a service and does not wait for it.
    pub fn start_unready(&self, port: u16, binary: PathBuf) -> Service {
        Service::spawn(binary, port, self.folder.path(), &self.settings, self.http.clone())
    }

    /// Another recording of six seconds of speech, of a call of its own, at Twilio.
    pub fn record(&self, number: u32) -> RecordingId {
        let id = recording_id(number);
        self.simulator.add(SimulatedRecording::speech(id, call_sid(number), started_at()));
        id
    }

    /// What Twilio says when that recording is complete; it names who spoke, as people have it told.
    pub fn callback(&self, recording: RecordingSid) -> OutgoingCallback {
        let told = self.simulator.callback(recording, "completed").expect("the simulator has the recording");
        PEOPLE.iter().fold(told, |told, (name, number)| told.with(name, number))
    }

    /// The bucket as others see it.
    pub fn store(&self, service: &Service) -> Store {
        let (endpoint, id, secret, region) = match self.parts {
            Parts::Servers => {
                let store = ObjectStore::shared();
                (store.endpoint.clone(), store.access_key_id.clone(), store.secret_access_key.clone(), store.region)
            }
            Parts::Embedded => {
                let keys =
                    std::fs::read(self.folder.path().join("callvault-data/keys.json")).expect("the store's keys");
                let keys: Value = serde_json::from_slice(&keys).expect("JSON");
                let text = |name: &str| keys[name].as_str().expect("a text").to_owned();
                (service.url.clone(), text("access_key_id"), text("secret_access_key"), "us-east-1")
            }
        };
        store_at(&self.bucket, endpoint, id, secret, region)
    }

    /// The bucket at MinIO, as others see it.
    pub fn real_store(&self) -> Store {
        self.real_store_of(&self.bucket)
    }

    /// Another bucket at MinIO.
    pub fn real_store_of(&self, bucket: &str) -> Store {
        let store = ObjectStore::shared();
        let (id, secret) = (store.access_key_id.clone(), store.secret_access_key.clone());
        store_at(bucket, store.endpoint.clone(), id, secret, store.region)
    }
}

fn store_at(bucket: &str, endpoint: String, id: String, secret: String, region: &'static str) -> Store {
    let s3 = AmazonS3Builder::new()
        .with_endpoint(&endpoint)
        .with_bucket_name(bucket)
        .with_region(region)
        .with_access_key_id(&id)
        .with_secret_access_key(&secret)
        .with_allow_http(true)
        .build()
        .expect("a store");
    Store { s3, endpoint, access_key_id: id, secret_access_key: secret, region, bucket: bucket.to_owned() }
}

/// The account of every world.
pub fn account() -> AccountSid {
    ACCOUNT.parse().expect("an account SID")
}

/// A recording of that account.
pub fn recording_id(number: u32) -> RecordingId {
    RecordingId { account: account(), recording: format!("RE{number:032x}").parse().expect("a recording SID") }
}

/// The call of that number.
pub fn call_sid(number: u32) -> CallSid {
    format!("CA{number:032x}").parse().expect("a call SID")
}

/// When every recording was begun.
pub fn started_at() -> jiff::Timestamp {
    "2026-11-23T09:30:00Z".parse().expect("a time")
}

/// The binary under test.
pub fn debug_binary() -> PathBuf {
    env!("CARGO_BIN_EXE_callvault").into()
}

/// The binary as users have it, built now if it is not up to date.
pub fn release_binary() -> PathBuf {
    static BUILT: std::sync::Once = std::sync::Once::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    BUILT.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        let built = cargo.args(["build", "--release", "--locked", "--quiet", "--bin", "callvault"]).current_dir(folder);
        assert!(built.status().expect("cargo runs").success(), "the release binary is not built");
    });
    folder.join("target/release/callvault")
}

/// The bucket, seen by someone with its keys.
pub struct Store {
    /// A client of it.
    pub s3: AmazonS3,
    /// Where it answers.
    pub endpoint: String,
    /// The public half of its keys.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: String,
    /// The region of signatures.
    pub region: &'static str,
    bucket: String,
}

impl Store {
    /// Every key in the bucket.
    pub async fn keys(&self) -> Vec<String> {
        use futures::TryStreamExt;
        let listed: Vec<_> = self.s3.list(None).try_collect().await.expect("a list");
        let mut keys: Vec<String> = listed.into_iter().map(|object| object.location.to_string()).collect();
        keys.sort();
        keys
    }

    /// An object's bytes and attributes.
    pub async fn object(&self, key: &str) -> (bytes::Bytes, Attributes) {
        let got = self.s3.get(&object_store::path::Path::from(key)).await.expect("an object");
        let attributes = got.attributes.clone();
        (got.bytes().await.expect("a whole body"), attributes)
    }

    /// The multipart uploads that are open. The embedded store cannot say.
    pub async fn open_uploads(&self, http: &Client) -> String {
        let url = reqwest::Url::parse(&format!("{}/{}/", self.endpoint, self.bucket)).expect("a URL");
        let now = jiff::Timestamp::now();
        let url = rusty_s3::signing::sign(
            &now,
            rusty_s3::Method::Get,
            url,
            &self.access_key_id,
            &self.secret_access_key,
            None,
            self.region,
            60,
            [("uploads", "")].into_iter(),
            std::iter::empty(),
        );
        let answer = http.get(url).send().await.expect("the store answers");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.text().await.expect("a list")
    }
}
