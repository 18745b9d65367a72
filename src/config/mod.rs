//! Every setting, read and validated before anything is started.
//!
//! Environment first, then the TOML file at `CALLVAULT_CONFIG`, then defaults.
//! A [`Config`] is right as a whole: what contradicts something else is refused
//! here. Nothing outside this folder reads an environment variable.

mod client;
pub mod parse;
mod settings;
mod source;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::domain::media::Variant;
use crate::domain::retry;
use crate::domain::sid::AccountSid;

pub use client::ClientConfig;
pub use settings::{ACCOUNT_KEYS, Kind, SETTINGS, Setting, WEBHOOK_KEYS};
pub use source::Problem;
use source::{Reader, TableReader};

/// One large fetch at a time must fit into the memory budget.
const MEMORY_BUDGET_MIN_BYTES: u64 = 32 << 20;
/// What one CopyObject can copy (S3's limit).
const COPY_MAX_BYTES: u64 = 5_000_000_000;
/// The longest life of a presigned URL (S3's limit).
const LINK_MAX: Duration = Duration::from_secs(7 * 86_400);
/// A shorter lease would be lost to a pause of the garbage that any machine has.
const LEASE_MIN: Duration = Duration::from_secs(1);

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
    /// How often Twilio's list is walked.
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
    /// PEM keys of encrypted recordings by public key SID; the empty one is for any.
    pub private_keys: BTreeMap<String, PrivateKey>,
}

/// A PEM text that is not shown.
#[derive(Clone)]
pub struct PrivateKey(pub SecretString);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
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
        let config = read(&mut reader);
        problems.extend(reader.into_problems());
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError(problems)),
        }
    }

    /// The settings that are given but have no effect in this version.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let account = |given: fn(&Account) -> bool| self.accounts.iter().any(given);
        let given = [
            ("CALLVAULT_CORS_ORIGINS", !self.cors_origins.is_empty()),
            ("CALLVAULT_EVENTS_URL", !self.webhooks.is_empty()),
            ("CALLVAULT_EVICT_AFTER", self.evict_after.is_some()),
            ("CALLVAULT_RETENTION", self.retention.is_some() || account(|account| account.retention.is_some())),
            ("CALLVAULT_DELETE_AT_TWILIO_AFTER", self.delete_at_twilio_after.is_some()),
            ("CALLVAULT_SHARE_URL", self.share_url.is_some()),
            ("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", account(|account| !account.private_keys.is_empty())),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.log.otlp_endpoint.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
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

/// None only where something needed could not be read; the problem is noted then.
fn read(reader: &mut Reader) -> Option<Config> {
    let bucket = read_bucket(reader);
    let database = read_database(reader);
    let links = read_links(reader);
    let formats = reader.get_or_default("CALLVAULT_FORMATS", formats);
    let retention = reader.get("CALLVAULT_RETENTION", parse::duration_or_off).flatten();
    let accounts = read_accounts(reader, &formats, retention);
    let config = Config {
        listen: reader.get_or_default("CALLVAULT_LISTEN", parse::listen),
        metrics_listen: reader.get("CALLVAULT_METRICS_LISTEN", parse::listen),
        public_url: reader.get("CALLVAULT_PUBLIC_URL", parse::base_url),
        database,
        database_max_connections: reader.get_or_default("CALLVAULT_DATABASE_MAX_CONNECTIONS", number(2, 1000)),
        bucket,
        links,
        twilio: read_twilio(reader),
        accounts,
        ca_pem: reader.get("CALLVAULT_CA_FILE", certificates),
        admin_key: reader.get("CALLVAULT_ADMIN_KEY", parse::token).map(SecretString::from),
        cors_origins: reader.get("CALLVAULT_CORS_ORIGINS", origins).unwrap_or_default(),
        share_max: reader.get_or_default("CALLVAULT_SHARE_MAX", parse::some_time),
        share_url: reader.get("CALLVAULT_SHARE_URL", parse::base_url),
        fetch_concurrency: reader.get_or_default("CALLVAULT_FETCH_CONCURRENCY", number(1, 1024)),
        memory_budget_bytes: reader.get_or_default("CALLVAULT_MEMORY_BUDGET", memory_budget),
        max_recording_bytes: reader.get_or_default("CALLVAULT_MAX_RECORDING_SIZE", max_recording),
        lease: reader.get_or_default("CALLVAULT_LEASE", lease),
        retry: read_retry(reader),
        recheck_after: reader.get_or_default("CALLVAULT_RECHECK_AFTER", parse::some_time),
        reconcile_every: reader.get_or_default("CALLVAULT_RECONCILE_EVERY", parse::duration_or_off),
        reconcile_window: reader.get_or_default("CALLVAULT_RECONCILE_WINDOW", parse::some_time),
        scrub_every: reader.get_or_default("CALLVAULT_SCRUB_EVERY", parse::duration_or_off),
        webhooks: read_webhooks(reader),
        evict_after: reader.get("CALLVAULT_EVICT_AFTER", parse::duration_or_off).flatten(),
        retention,
        delete_at_twilio_after: reader.get("CALLVAULT_DELETE_AT_TWILIO_AFTER", parse::duration_or_off).flatten(),
        drain: reader.get_or_default("CALLVAULT_DRAIN", parse::duration),
        shutdown_timeout: reader.get_or_default("CALLVAULT_SHUTDOWN_TIMEOUT", parse::some_time),
        log: read_log(reader),
    };
    refuse_contradictions(reader, &config);
    Some(config)
}

fn refuse_contradictions(reader: &mut Reader, config: &Config) {
    let embedded = matches!(config.bucket, BucketConfig::Embedded(_));
    if embedded && matches!(config.database, Database::Postgres(_)) {
        reader.problem(
            "CALLVAULT_BUCKET_URL",
            "is not set, but CALLVAULT_DATABASE_URL is PostgreSQL: many nodes cannot share the embedded store; \
             expected s3://bucket or s3://bucket/prefix",
        );
    }
    if embedded && config.delete_at_twilio_after.is_some() {
        reader.problem(
            "CALLVAULT_DELETE_AT_TWILIO_AFTER",
            "is refused with the embedded store, whose copy would be the only one; expected it unset, or \
             CALLVAULT_BUCKET_URL set",
        );
    }
    let link_life = config.links.window + config.links.ttl;
    if link_life > LINK_MAX {
        reader.problem("CALLVAULT_LINK_TTL", "and CALLVAULT_LINK_WINDOW are together more than 7d, the limit of S3");
    }
    if let Some(evict_after) = config.evict_after {
        if config.delete_at_twilio_after.is_some() {
            reader.problem(
                "CALLVAULT_EVICT_AFTER",
                "and CALLVAULT_DELETE_AT_TWILIO_AFTER are both set: what is dropped here could not be fetched again; \
                 expected one of them unset",
            );
        }
        if evict_after <= link_life {
            reader.problem(
                "CALLVAULT_EVICT_AFTER",
                "is not longer than a link lives (CALLVAULT_LINK_TTL and CALLVAULT_LINK_WINDOW together): links \
                 would break",
            );
        }
    }
    if config.drain >= config.shutdown_timeout {
        reader.problem("CALLVAULT_DRAIN", "is not shorter than CALLVAULT_SHUTDOWN_TIMEOUT, of which it is a part");
    }
}

fn read_database(reader: &mut Reader) -> Database {
    let parse = |text: &str| {
        let expected = || "sqlite://FILE or postgres://user:password@host/database".to_owned();
        if let Some(path) = text.strip_prefix("sqlite://") {
            let plain = !path.is_empty() && !path.contains('?') && path != ":memory:";
            return if plain { Ok(Database::Sqlite(path.into())) } else { Err(expected()) };
        }
        let postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
        let read = sqlx::postgres::PgConnectOptions::from_str(text);
        if postgres && read.is_ok() { Ok(Database::Postgres(text.into())) } else { Err(expected()) }
    };
    let database = reader.get("CALLVAULT_DATABASE_URL", parse);
    database.unwrap_or_else(|| Database::Sqlite("callvault.db".into()))
}

fn read_bucket(reader: &mut Reader) -> BucketConfig {
    const S3_ONLY: [&str; 3] =
        ["CALLVAULT_S3_ENDPOINT", "CALLVAULT_S3_PUBLIC_ENDPOINT", "CALLVAULT_LINK_ACCESS_KEY_ID"];
    let addressing = reader.get_or_default("CALLVAULT_S3_ADDRESSING", |text| match text {
        "auto" => Ok(None),
        "path" => Ok(Some(true)),
        "virtual" | "virtual-host" => Ok(Some(false)),
        _ => Err("auto, path or virtual".to_owned()),
    });
    if !reader.is_set("CALLVAULT_BUCKET_URL") {
        for name in S3_ONLY.into_iter().filter(|name| reader.is_set(name)).collect::<Vec<_>>() {
            reader.problem(
                name,
                "is set, but CALLVAULT_BUCKET_URL is not; expected s3://bucket or s3://bucket/prefix there",
            );
        }
        return BucketConfig::Embedded("callvault-data".into());
    }
    let (bucket, prefix) = reader.get("CALLVAULT_BUCKET_URL", bucket_url).unwrap_or_default();
    let endpoint = reader.get("CALLVAULT_S3_ENDPOINT", parse::base_url);
    let public_endpoint = reader.get("CALLVAULT_S3_PUBLIC_ENDPOINT", parse::base_url);
    BucketConfig::S3(S3Config {
        bucket,
        prefix,
        path_style: addressing.unwrap_or(endpoint.is_some()),
        endpoint,
        public_endpoint,
        region: reader.get("AWS_REGION", parse::token),
        credentials: read_keys(reader, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", Some("AWS_SESSION_TOKEN")),
    })
}

/// A pair of keys that is given whole, or not at all.
fn read_keys(
    reader: &mut Reader,
    id: &'static str,
    secret: &'static str,
    session_token: Option<&'static str>,
) -> Option<AwsKeys> {
    let session_token = session_token.and_then(|name| reader.secret(name));
    match (reader.secret(id), reader.secret(secret)) {
        (Some(access_key_id), Some(secret_access_key)) => {
            Some(AwsKeys { access_key_id, secret_access_key, session_token })
        }
        (Some(_), None) => {
            reader.problem(secret, format!("is not set, but {id} is; expected both or neither"));
            None
        }
        (None, Some(_)) => {
            reader.problem(id, format!("is not set, but {secret} is; expected both or neither"));
            None
        }
        (None, None) => None,
    }
}

fn read_links(reader: &mut Reader) -> LinkConfig {
    LinkConfig {
        ttl: reader.get_or_default("CALLVAULT_LINK_TTL", whole_seconds),
        window: reader.get_or_default("CALLVAULT_LINK_WINDOW", whole_seconds),
        keys: read_keys(reader, "CALLVAULT_LINK_ACCESS_KEY_ID", "CALLVAULT_LINK_SECRET_ACCESS_KEY", None),
    }
}

fn read_twilio(reader: &mut Reader) -> TwilioConfig {
    TwilioConfig {
        origin: reader.get_or_default("CALLVAULT_TWILIO_ORIGIN", twilio_origin),
        proxy: reader
            .get("CALLVAULT_TWILIO_PROXY", |text| parse::http_url(text).map(|_| text.to_owned()))
            .map(SecretString::from),
    }
}

fn read_retry(reader: &mut Reader) -> retry::Policy {
    let policy = retry::Policy {
        base: reader.get_or_default("CALLVAULT_RETRY_BASE", parse::some_time),
        cap: reader.get_or_default("CALLVAULT_RETRY_CAP", parse::some_time),
        not_ready_for: reader.get_or_default("CALLVAULT_NOT_READY_FOR", parse::some_time),
    };
    if policy.cap < policy.base {
        reader.problem("CALLVAULT_RETRY_CAP", "is shorter than CALLVAULT_RETRY_BASE");
    }
    policy
}

fn read_log(reader: &mut Reader) -> LogConfig {
    LogConfig {
        filter: reader.get_or_default("CALLVAULT_LOG", |text| {
            let parsed = tracing_subscriber::EnvFilter::try_new(text);
            let expected = "trace, debug, info, warn, error, or a filter such as info,callvault=debug";
            parsed.map(|_| text.to_owned()).map_err(|_| expected.to_owned())
        }),
        format: reader.get("CALLVAULT_LOG_FORMAT", |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("text or json".to_owned()),
        }),
        otlp_endpoint: reader.get("OTEL_EXPORTER_OTLP_ENDPOINT", parse::http_url),
    }
}

fn read_accounts(reader: &mut Reader, formats: &[Variant], retention: Option<Duration>) -> Vec<Account> {
    let from_env = read_account_of_environment(reader, formats, retention);
    let tables = reader.tables("accounts", ACCOUNT_KEYS);
    let mut accounts: Vec<Account> = from_env.into_iter().collect();
    for table in &tables {
        let Some(account) = read_account(reader, table, formats, retention) else { continue };
        if accounts.iter().any(|known| known.sid == account.sid) {
            reader.problem(table.name("sid"), format!("{} is configured twice", account.sid));
        }
        accounts.push(account);
    }
    accounts
}

fn read_account_of_environment(
    reader: &mut Reader,
    formats: &[Variant],
    retention: Option<Duration>,
) -> Option<Account> {
    const NEEDS_SID: [&str; 4] = [
        "CALLVAULT_TWILIO_AUTH_TOKEN",
        "CALLVAULT_TWILIO_API_KEY",
        "CALLVAULT_TWILIO_API_SECRET",
        "CALLVAULT_TWILIO_PRIVATE_KEY_FILE",
    ];
    if !reader.is_set("CALLVAULT_TWILIO_ACCOUNT_SID") {
        if let Some(name) = NEEDS_SID.into_iter().find(|name| reader.is_set(name)) {
            reader.problem(
                "CALLVAULT_TWILIO_ACCOUNT_SID",
                format!("is not set, but {name} is; expected AC and 32 hex digits"),
            );
        }
        return None;
    }
    let sid = reader.get("CALLVAULT_TWILIO_ACCOUNT_SID", account_sid);
    let auth_token = reader.secret("CALLVAULT_TWILIO_AUTH_TOKEN");
    let api_key = (reader.secret("CALLVAULT_TWILIO_API_KEY"), reader.secret("CALLVAULT_TWILIO_API_SECRET"));
    let api_key = api_key_pair(reader, api_key, "CALLVAULT_TWILIO_API_KEY", "CALLVAULT_TWILIO_API_SECRET");
    if auth_token.is_none() && api_key.is_none() {
        reader.problem(
            "CALLVAULT_TWILIO_AUTH_TOKEN",
            "is not set, and no API key is either; expected the account's auth token (it also checks callbacks)",
        );
    }
    let private_key = reader.get("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", private_key);
    Some(Account {
        sid: sid?,
        auth_token,
        secondary_auth_token: None,
        api_key,
        region: Region::Us1,
        formats: formats.to_vec(),
        retention,
        erase_at_twilio: false,
        delete_discovered: false,
        private_keys: private_key.into_iter().map(|key| (String::new(), key)).collect(),
    })
}

fn read_account(
    reader: &mut Reader,
    table: &TableReader,
    default_formats: &[Variant],
    default_retention: Option<Duration>,
) -> Option<Account> {
    let sid = table.get(reader, "sid", account_sid);
    if table.raw("sid").is_none() {
        reader.problem(table.name("sid"), "is not set; expected AC and 32 hex digits");
    }
    let text = |text: &str| Ok(SecretString::from(text));
    let auth_token = table.secret(reader, "auth_token", text);
    let api_key = (table.secret(reader, "api_key", text), table.secret(reader, "api_secret", text));
    let api_key = api_key_pair(reader, api_key, &table.name("api_key"), &table.name("api_secret"));
    if auth_token.is_none() && api_key.is_none() {
        reader.problem(
            table.name("auth_token"),
            "is not set, and no API key is either; expected the account's auth token (it also checks callbacks)",
        );
    }
    let region = table.get(reader, "region", Region::from_str).unwrap_or(Region::Us1);
    let account_formats = table.get(reader, "formats", formats).unwrap_or_else(|| default_formats.to_vec());
    let retention = table.get(reader, "retention", parse::duration_or_off).unwrap_or(default_retention);
    let erase_at_twilio = table.get(reader, "erase_at_twilio", parse::boolean).unwrap_or(false);
    let delete_discovered = table.get(reader, "delete_discovered", parse::boolean).unwrap_or(false);
    Some(Account {
        sid: sid?,
        auth_token,
        secondary_auth_token: table.secret(reader, "secondary_auth_token", text),
        api_key,
        region,
        formats: account_formats,
        retention,
        erase_at_twilio,
        delete_discovered,
        private_keys: read_private_keys(reader, table),
    })
}

fn api_key_pair(
    reader: &mut Reader,
    pair: (Option<SecretString>, Option<SecretString>),
    key_name: &str,
    secret_name: &str,
) -> Option<ApiKey> {
    match pair {
        (Some(sid), Some(secret)) => Some(ApiKey { sid, secret }),
        (None, None) => None,
        _ => {
            reader.problem(key_name, format!("and {secret_name} belong together; expected both or neither"));
            None
        }
    }
}

/// `private_keys = { CR… = "/path/to/key.pem" }`.
fn read_private_keys(reader: &mut Reader, table: &TableReader) -> BTreeMap<String, PrivateKey> {
    let name = table.name("private_keys");
    let mut keys = BTreeMap::new();
    let Some(value) = table.raw("private_keys") else { return keys };
    let Some(files) = value.as_table() else {
        reader.problem(name, "is wrong; expected a table of public key SIDs and the PEM files of their private keys");
        return keys;
    };
    for (public_key_sid, path) in files {
        let name = format!("{name}.{public_key_sid}");
        match path.as_str().map(private_key) {
            Some(Ok(key)) => {
                keys.insert(public_key_sid.clone(), key);
            }
            Some(Err(expected)) => reader.problem(name, format!("is wrong; expected {expected}")),
            None => reader.problem(name, "is wrong; expected the path of a PEM file"),
        }
    }
    keys
}

fn read_webhooks(reader: &mut Reader) -> Vec<Webhook> {
    let mut webhooks = Vec::new();
    let url = reader.get("CALLVAULT_EVENTS_URL", parse::http_url);
    let secret = reader.get("CALLVAULT_EVENTS_SECRET", parse::webhook_secret);
    let types = reader.get("CALLVAULT_EVENTS_TYPES", event_types).unwrap_or_default();
    let set = ["CALLVAULT_EVENTS_URL", "CALLVAULT_EVENTS_SECRET"].map(|name| reader.is_set(name));
    match set {
        [true, false] => {
            reader.problem("CALLVAULT_EVENTS_SECRET", "is not set, but CALLVAULT_EVENTS_URL is; expected whsec_…")
        }
        [false, true] => {
            reader.problem("CALLVAULT_EVENTS_URL", "is not set, but CALLVAULT_EVENTS_SECRET is; expected a URL")
        }
        _ => {}
    }
    webhooks.extend(url.zip(secret).map(|(url, secret)| Webhook { url, secret: secret.into(), types }));
    for table in reader.tables("webhooks", WEBHOOK_KEYS) {
        let url = table.get(reader, "url", parse::http_url);
        let secret = table.secret(reader, "secret", parse::webhook_secret);
        let types = table.get(reader, "types", event_types).unwrap_or_default();
        if table.raw("url").is_none() {
            reader.problem(table.name("url"), "is not set; expected a URL");
        }
        let has_secret = ["secret", "secret_file", "secret_env"].iter().any(|key| table.raw(key).is_some());
        if !has_secret {
            reader.problem(table.name("secret"), "is not set; expected whsec_…");
        }
        webhooks.extend(url.zip(secret).map(|(url, secret)| Webhook { url, secret: secret.into(), types }));
    }
    webhooks
}

fn number<N: FromStr + PartialOrd + Copy + fmt::Display>(min: N, max: N) -> impl Fn(&str) -> Result<N, String> {
    move |text| match text.parse() {
        Ok(number) if number >= min && number <= max => Ok(number),
        _ => Err(format!("a whole number from {min} to {max}")),
    }
}

fn formats(text: &str) -> Result<Vec<Variant>, String> {
    parse::list(text, |entry| entry.parse::<Variant>().map_err(|expected| expected.to_string()))
}

fn origins(text: &str) -> Result<Vec<String>, String> {
    parse::list(text, parse::origin)
}

fn event_types(text: &str) -> Result<Vec<String>, String> {
    parse::list(text, |entry| match EVENT_TYPES.contains(&entry) {
        true => Ok(entry.to_owned()),
        false => Err(format!("some of {}", EVENT_TYPES.join(", "))),
    })
}

fn account_sid(text: &str) -> Result<AccountSid, String> {
    text.parse().map_err(|_| "AC and 32 hex digits".to_owned())
}

/// A link's times are told to S3 in whole seconds.
fn whole_seconds(text: &str) -> Result<Duration, String> {
    match parse::some_time(text)? {
        duration if duration.subsec_millis() == 0 => Ok(duration),
        _ => Err("a duration of whole seconds such as 90s, 15m or 1h".to_owned()),
    }
}

fn lease(text: &str) -> Result<Duration, String> {
    match parse::duration(text)? {
        lease if lease >= LEASE_MIN => Ok(lease),
        _ => Err("a duration of at least 1s".to_owned()),
    }
}

fn memory_budget(text: &str) -> Result<u64, String> {
    match parse::size_bytes(text)? {
        bytes if bytes >= MEMORY_BUDGET_MIN_BYTES => Ok(bytes),
        _ => Err("a size of at least 32MiB, what one large recording takes in flight".to_owned()),
    }
}

fn max_recording(text: &str) -> Result<u64, String> {
    match parse::size_bytes(text)? {
        bytes @ 1..=COPY_MAX_BYTES => Ok(bytes),
        _ => Err("a size of at most 5GB, the limit of a copy in S3".to_owned()),
    }
}

/// `s3://bucket/prefix`.
fn bucket_url(text: &str) -> Result<(String, String), String> {
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
fn twilio_origin(text: &str) -> Result<Url, String> {
    let expected = || {
        "https://api.twilio.com, another https origin, or http on a loopback address such as http://127.0.0.1:4010"
            .to_owned()
    };
    let url = Url::parse(&parse::base_url(text).map_err(|_| expected())?).map_err(|_| expected())?;
    let loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(url::Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        _ => false,
    };
    let allowed = url.scheme() == "https" || loopback;
    if allowed && url.path() == "/" { Ok(url) } else { Err(expected()) }
}

/// The text of a PEM file with certificates.
fn certificates(path: &str) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("a readable PEM file ({error})"))?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(pem),
        _ => Err("a PEM file with certificates".to_owned()),
    }
}

fn private_key(path: &str) -> Result<PrivateKey, String> {
    let pem = std::fs::read_to_string(path).map_err(|error| format!("a readable PEM file ({error})"))?;
    let is_key = pem.contains("-----BEGIN") && pem.contains("PRIVATE KEY-----");
    if is_key { Ok(PrivateKey(pem.into())) } else { Err("a PEM file with a private key".to_owned()) }
}

impl AwsKeys {
    /// The public half in clear: it stands in every signed URL.
    pub fn id(&self) -> &str {
        self.access_key_id.expose_secret()
    }
}

#[cfg(test)]
mod tests;
