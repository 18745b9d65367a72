//! From texts to a [`Config`]: which setting each field comes from.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use tracing_subscriber::filter::LevelFilter;

use super::contradictions;
use super::source::{Reader, TableReader};
use super::{
    ACCOUNT_KEYS, Account, ApiKey, AwsKeys, BucketConfig, Config, Database, LinkConfig, LogConfig, LogFormat,
    PrivateKey, Region, S3Config, TwilioConfig, WEBHOOK_KEYS, Webhook, parse,
};
use crate::domain::media::Variant;
use crate::domain::retry;

/// None only where something needed could not be read; the problem is noted then.
pub(super) fn read(reader: &mut Reader) -> Option<Config> {
    let bucket = read_bucket(reader);
    let database = read_database(reader);
    let links = read_links(reader);
    let formats = reader.get_or_default("CALLVAULT_FORMATS", parse::formats);
    let retention = reader.get("CALLVAULT_RETENTION", parse::duration_or_off).flatten();
    let accounts = read_accounts(reader, &formats, retention);
    let config = Config {
        listen: reader.get_or_default("CALLVAULT_LISTEN", parse::listen),
        metrics_listen: reader.get("CALLVAULT_METRICS_LISTEN", parse::listen),
        public_url: reader.get("CALLVAULT_PUBLIC_URL", parse::public_url),
        database,
        database_max_connections: reader.get_or_default("CALLVAULT_DATABASE_MAX_CONNECTIONS", parse::number(2, 1000)),
        bucket,
        links,
        twilio: read_twilio(reader),
        accounts,
        ca_pem: reader.get("CALLVAULT_CA_FILE", parse::certificates),
        admin_key: reader.get("CALLVAULT_ADMIN_KEY", parse::token).map(SecretString::from),
        cors_origins: reader.get("CALLVAULT_CORS_ORIGINS", parse::origins).unwrap_or_default(),
        share_max: reader.get_or_default("CALLVAULT_SHARE_MAX", parse::some_time),
        share_url: reader.get("CALLVAULT_SHARE_URL", parse::base_url),
        fetch_concurrency: reader.get_or_default("CALLVAULT_FETCH_CONCURRENCY", parse::number(1, 1024)),
        memory_budget_bytes: reader.get_or_default("CALLVAULT_MEMORY_BUDGET", parse::memory_budget),
        max_recording_bytes: reader.get_or_default("CALLVAULT_MAX_RECORDING_SIZE", parse::max_recording),
        lease: reader.get_or_default("CALLVAULT_LEASE", parse::lease),
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
    contradictions::refuse(reader, &config);
    Some(config)
}

fn read_database(reader: &mut Reader) -> Database {
    let parse = |text: &str| {
        let expected = || "sqlite://FILE or postgres://user:password@host/database".to_owned();
        if let Some(path) = text.strip_prefix("sqlite://") {
            let plain = !path.is_empty() && !path.contains('?') && path != ":memory:";
            if !plain {
                return Err(expected());
            }
            let folder = Path::new(path).parent().filter(|folder| !folder.as_os_str().is_empty());
            return match folder {
                Some(folder) if !folder.is_dir() => {
                    Err(format!("a file in a folder that is there, which {folder:?} is not"))
                }
                _ => Ok(Database::Sqlite(path.into())),
            };
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
    let (bucket, prefix) = reader.get("CALLVAULT_BUCKET_URL", parse::bucket_url).unwrap_or_default();
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
        ttl: reader.get_or_default("CALLVAULT_LINK_TTL", parse::whole_seconds),
        window: reader.get_or_default("CALLVAULT_LINK_WINDOW", parse::whole_seconds),
        keys: read_keys(reader, "CALLVAULT_LINK_ACCESS_KEY_ID", "CALLVAULT_LINK_SECRET_ACCESS_KEY", None),
    }
}

fn read_twilio(reader: &mut Reader) -> TwilioConfig {
    TwilioConfig {
        origin: reader.get_or_default("CALLVAULT_TWILIO_ORIGIN", parse::twilio_origin),
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
            let expected = "trace, debug, info, warn, error, or a filter such as info,callvault=debug";
            // A word alone would be taken for a module, and everything else be silent.
            let is_level = |word: &str| LevelFilter::from_str(word).is_ok();
            let words = text.split(',').map(str::trim);
            let parsed = tracing_subscriber::EnvFilter::try_new(text);
            let is_filter = parsed.is_ok() && words.into_iter().all(|word| word.contains('=') || is_level(word));
            if is_filter { Ok(text.to_owned()) } else { Err(expected.to_owned()) }
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
    let sid = reader.get("CALLVAULT_TWILIO_ACCOUNT_SID", parse::account_sid);
    let auth_token = reader.secret("CALLVAULT_TWILIO_AUTH_TOKEN");
    let api_key = (reader.secret("CALLVAULT_TWILIO_API_KEY"), reader.secret("CALLVAULT_TWILIO_API_SECRET"));
    let api_key = api_key_pair(reader, api_key, "CALLVAULT_TWILIO_API_KEY", "CALLVAULT_TWILIO_API_SECRET");
    if auth_token.is_none() && api_key.is_none() {
        reader.problem(
            "CALLVAULT_TWILIO_AUTH_TOKEN",
            "is not set, and no API key is either; expected the account's auth token (it also checks callbacks)",
        );
    }
    let private_key = reader.get("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", PrivateKey::read);
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
    let sid = table.get(reader, "sid", parse::account_sid);
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
    let account_formats = table.get(reader, "formats", parse::formats).unwrap_or_else(|| default_formats.to_vec());
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
        match path.as_str().map(PrivateKey::read) {
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
    let url = reader.get("CALLVAULT_EVENTS_URL", parse::receiver_url);
    let secret = reader.get("CALLVAULT_EVENTS_SECRET", parse::webhook_secret);
    let types = reader.get("CALLVAULT_EVENTS_TYPES", parse::event_types).unwrap_or_default();
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
        let url = table.get(reader, "url", parse::receiver_url);
        let secret = table.secret(reader, "secret", parse::webhook_secret);
        let types = table.get(reader, "types", parse::event_types).unwrap_or_default();
        if table.raw("url").is_none() {
            reader.problem(table.name("url"), "is not set; expected a URL");
        }
        let has_secret = ["secret", "secret_file", "secret_env"].iter().any(|key| table.raw(key).is_some());
        if !has_secret {
            reader.problem(table.name("secret"), "is not set; expected whsec_…");
        }
        // A receiver is known by its URL: its place in the feed, and what it is still to get.
        if webhooks.iter().any(|known: &Webhook| Some(&known.url) == url.as_ref()) {
            reader.problem(table.name("url"), "is the URL of another receiver; expected each once, with all its types");
        }
        webhooks.extend(url.zip(secret).map(|(url, secret)| Webhook { url, secret: secret.into(), types }));
    }
    webhooks
}
