//! Every setting, read and validated before anything is started.
//!
//! Environment first, then the TOML file at `CALLVAULT_CONFIG`, then defaults.
//! A [`Config`] is right as a whole: what contradicts something else is refused
//! here. Nothing outside this folder reads an environment variable.

mod client;
mod contradictions;
pub mod parse;
mod private_key;
mod read;
mod settings;
mod source;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::domain::media::Variant;
use crate::domain::retry;
use crate::domain::sid::AccountSid;

pub use client::ClientConfig;
pub use private_key::PrivateKey;
pub use settings::{ACCOUNT_KEYS, Kind, SETTINGS, Setting, WEBHOOK_KEYS};
pub use source::Problem;
use source::Reader;

/// All settings of a service.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the service listens.
    pub listen: SocketAddr,
    /// Where metrics are served without a key.
    pub metrics_listen: Option<SocketAddr>,
    /// What the world calls this service; None until the port is known.
    pub public_url: Option<String>,
    /// The catalog.
    pub database: Database,
    /// Connections to the catalog.
    pub database_max_connections: u32,
    /// The bucket.
    pub bucket: BucketConfig,
    /// How links are signed.
    pub links: LinkConfig,
    /// Twilio.
    pub twilio: TwilioConfig,
    /// The accounts whose recordings this service takes.
    pub accounts: Vec<Account>,
    /// A certificate authority beside the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// An API key with all rights.
    pub admin_key: Option<SecretString>,
    /// Origins whose pages may call the API.
    pub cors_origins: Vec<String>,
    /// The longest life of a share.
    pub share_max: Duration,
    /// What shares begin with, where it is not the public URL.
    pub share_url: Option<String>,
    /// Fetches at once on this node.
    pub fetch_concurrency: usize,
    /// Bytes of recordings in memory at once on this node.
    pub memory_budget_bytes: u64,
    /// The largest recording that is taken.
    pub max_recording_bytes: u64,
    /// How long a node may work without renewing its lease.
    pub lease: Duration,
    /// When failed attempts are repeated.
    pub retry: retry::Policy,
    /// When what may be left behind is looked at.
    pub recheck_after: Duration,
    /// How often Twilio's list is walked; None: never.
    pub reconcile_every: Option<Duration>,
    /// How far back.
    pub reconcile_window: Duration,
    /// The time for one pass over the bucket.
    pub scrub_every: Option<Duration>,
    /// Receivers of events.
    pub webhooks: Vec<Webhook>,
    /// Cache mode.
    pub evict_after: Option<Duration>,
    /// Erasing by age.
    pub retention: Option<Duration>,
    /// Deletion at Twilio.
    pub delete_at_twilio_after: Option<Duration>,
    /// Unready but serving.
    pub drain: Duration,
    /// From SIGTERM to the end.
    pub shutdown_timeout: Duration,
    /// Logs and traces.
    pub log: LogConfig,
}

/// The catalog's database.
#[derive(Debug, Clone)]
pub enum Database {
    /// A file, for one node.
    Sqlite(PathBuf),
    /// A server, for many; the URL has a password in it.
    Postgres(SecretString),
}

/// Where objects go.
#[derive(Debug, Clone)]
pub enum BucketConfig {
    /// The embedded S3, in this folder.
    Embedded(PathBuf),
    /// S3 or one that speaks its language.
    S3(S3Config),
}

/// A bucket at S3 or MinIO.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// The bucket's name.
    pub bucket: String,
    /// What every key begins with; may be empty.
    pub prefix: String,
    /// Where the service reaches it; None is AWS.
    pub endpoint: Option<String>,
    /// Where browsers reach it; None is the same.
    pub public_endpoint: Option<String>,
    /// Bucket name in the path rather than in the host.
    pub path_style: bool,
    /// The region that signatures name; None asks the usual AWS chain.
    pub region: Option<String>,
    /// Keys that were given; None is the usual AWS chain.
    pub credentials: Option<AwsKeys>,
}

/// A pair of keys.
#[derive(Debug, Clone)]
pub struct AwsKeys {
    /// The public half.
    pub access_key_id: SecretString,
    /// The secret half.
    pub secret_access_key: SecretString,
    /// Present with temporary credentials.
    pub session_token: Option<SecretString>,
}

/// How links are signed.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// What is left of a link's life at least when it is given.
    pub ttl: Duration,
    /// All links of a window are the same.
    pub window: Duration,
    /// A read-only pair for links alone.
    pub keys: Option<AwsKeys>,
}

/// How Twilio is reached.
#[derive(Debug, Clone)]
pub struct TwilioConfig {
    /// Scheme, host and port of the API.
    pub origin: Url,
    /// A proxy on the way.
    pub proxy: Option<SecretString>,
}

/// One Twilio account.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its SID.
    pub sid: AccountSid,
    /// Signs callbacks, and opens the API where there is no API key.
    pub auth_token: Option<SecretString>,
    /// Also signs callbacks, while tokens are rotated.
    pub secondary_auth_token: Option<SecretString>,
    /// Opens the API.
    pub api_key: Option<ApiKey>,
    /// Where its API is.
    pub region: Region,
    /// What is asked for, in this order.
    pub formats: Vec<Variant>,
    /// Erasing by age.
    pub retention: Option<Duration>,
    /// Whether erasing by age erases at Twilio too.
    pub erase_at_twilio: bool,
    /// Whether what was found by asking Twilio is deleted there too.
    pub delete_discovered: bool,
    /// Keys of encrypted recordings by public key SID; the empty one is for any.
    pub private_keys: BTreeMap<String, PrivateKey>,
}

/// A Twilio API key.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// `SK…`.
    pub sid: SecretString,
    /// Its secret.
    pub secret: SecretString,
}

/// Where Twilio processes an account's data (<https://www.twilio.com/docs/global-infrastructure>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// The United States.
    Us1,
    /// Ireland.
    Ie1,
    /// Australia.
    Au1,
    /// Japan.
    Jp1,
}

impl FromStr for Region {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "us1" => Ok(Self::Us1),
            "ie1" => Ok(Self::Ie1),
            "au1" => Ok(Self::Au1),
            "jp1" => Ok(Self::Jp1),
            _ => Err("us1, ie1, au1 or jp1".to_owned()),
        }
    }
}

/// A receiver of events.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Where they are posted.
    pub url: Url,
    /// What they are signed with.
    pub secret: SecretString,
    /// Which of them; empty is all.
    pub types: Vec<String>,
}

/// Logs and traces.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A filter as `tracing` reads it.
    pub filter: String,
    /// How lines look; None is text on a terminal, else JSON.
    pub format: Option<LogFormat>,
    /// Where traces go.
    pub otlp_endpoint: Option<Url>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Settings that cannot be used, all of them at once.
#[derive(Debug)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// The types of event that a receiver may choose.
pub const EVENT_TYPES: [&str; 11] = [
    "recording.accepted",
    "recording.stored",
    "recording.absent",
    "recording.failed",
    "recording.lost",
    "recording.evicted",
    "recording.held",
    "recording.released",
    "recording.erased",
    "account.paused",
    "account.resumed",
];

impl Config {
    /// Reads the settings of this process.
    pub fn from_process() -> Result<Self, ConfigError> {
        Self::load(std::env::vars_os())
    }

    /// Reads settings from these variables and the file that they name.
    pub fn load(env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, ConfigError> {
        let (env, mut problems) = ours_as_text(env);
        let file = match env.get("CALLVAULT_CONFIG").filter(|path| !path.is_empty()) {
            Some(path) => read_file(path).unwrap_or_else(|problem| {
                problems.push(problem);
                toml::Table::new()
            }),
            None => toml::Table::new(),
        };
        let mut reader = Reader::new(env, file);
        let config = read::read(&mut reader);
        problems.extend(reader.into_problems());
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError(problems)),
        }
    }
}

/// The variables that this service reads, as text.
fn ours_as_text(env: impl IntoIterator<Item = (OsString, OsString)>) -> (BTreeMap<String, String>, Vec<Problem>) {
    let mut texts = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, value) in env {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => {
                texts.insert(name, value);
            }
            Err(_) if name.starts_with("CALLVAULT_") => {
                problems.push(Problem { setting: name, what: "is not UTF-8".to_owned() });
            }
            Err(_) => {}
        }
    }
    (texts, problems)
}

fn read_file(path: &str) -> Result<toml::Table, Problem> {
    let problem = |what: String| Problem { setting: "CALLVAULT_CONFIG".to_owned(), what };
    let text = std::fs::read_to_string(path)
        .map_err(|error| problem(format!("the file \"{path}\" cannot be read: {error}")))?;
    // Of an error only its place and kind: the line itself may hold a secret.
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        problem(format!("the file \"{path}\" is not TOML: line {line}: {}", error.message()))
    })
}

impl AwsKeys {
    /// The public half in clear: it stands in every signed URL.
    pub fn id(&self) -> &str {
        self.access_key_id.expose_secret()
    }
}

#[cfg(test)]
mod tests;
