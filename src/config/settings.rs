//! Every setting there is: its variable, whether it is a secret, its default.
//!
//! The key in the file is the variable without `CALLVAULT_`, in lower case.
//! `AWS_…` and `OTEL_…` are other people's names and stand in the environment
//! only.

/// Whether a value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It may.
    Plain,
    /// It may not, and may be given as a file that holds it.
    Secret,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable.
    pub env: &'static str,
    /// Whether it is a secret.
    pub kind: Kind,
    /// The value it has when it is not set; empty where it has none.
    pub default: &'static str,
}

impl Setting {
    /// The setting of that variable.
    ///
    /// # Panics
    /// Where there is none: a mistake of the code that asks, found by any test that loads settings.
    pub fn named(env: &str) -> &'static Self {
        let found = SETTINGS.iter().find(|setting| setting.env == env);
        found.unwrap_or_else(|| panic!("{env} is not in the table of settings"))
    }

    /// The key in the file.
    pub fn key(&self) -> Option<String> {
        self.env.strip_prefix("CALLVAULT_").map(str::to_lowercase)
    }

    /// Whether its value may never be shown.
    pub fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }
}

const fn plain(env: &'static str, default: &'static str) -> Setting {
    Setting { env, kind: Kind::Plain, default }
}

const fn secret(env: &'static str) -> Setting {
    Setting { env, kind: Kind::Secret, default: "" }
}

/// All settings, as they are documented.
pub const SETTINGS: &[Setting] = &[
    plain("CALLVAULT_LISTEN", "127.0.0.1:8080"),
    plain("CALLVAULT_METRICS_LISTEN", ""),
    plain("CALLVAULT_PUBLIC_URL", ""),
    secret("CALLVAULT_DATABASE_URL"),
    plain("CALLVAULT_DATABASE_MAX_CONNECTIONS", "10"),
    plain("CALLVAULT_BUCKET_URL", ""),
    plain("CALLVAULT_S3_ENDPOINT", ""),
    plain("CALLVAULT_S3_PUBLIC_ENDPOINT", ""),
    plain("CALLVAULT_S3_ADDRESSING", "auto"),
    secret("AWS_ACCESS_KEY_ID"),
    secret("AWS_SECRET_ACCESS_KEY"),
    secret("AWS_SESSION_TOKEN"),
    plain("AWS_REGION", ""),
    secret("CALLVAULT_LINK_ACCESS_KEY_ID"),
    secret("CALLVAULT_LINK_SECRET_ACCESS_KEY"),
    plain("CALLVAULT_TWILIO_ACCOUNT_SID", ""),
    secret("CALLVAULT_TWILIO_AUTH_TOKEN"),
    secret("CALLVAULT_TWILIO_API_KEY"),
    secret("CALLVAULT_TWILIO_API_SECRET"),
    plain("CALLVAULT_TWILIO_ORIGIN", "https://api.twilio.com"),
    secret("CALLVAULT_TWILIO_PROXY"),
    plain("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", ""),
    plain("CALLVAULT_CA_FILE", ""),
    secret("CALLVAULT_ADMIN_KEY"),
    plain("CALLVAULT_CORS_ORIGINS", ""),
    plain("CALLVAULT_FORMATS", "mp3,wav,base"),
    plain("CALLVAULT_LINK_TTL", "1h"),
    plain("CALLVAULT_LINK_WINDOW", "15m"),
    plain("CALLVAULT_SHARE_MAX", "30d"),
    plain("CALLVAULT_SHARE_URL", ""),
    plain("CALLVAULT_FETCH_CONCURRENCY", "16"),
    plain("CALLVAULT_MEMORY_BUDGET", "256MiB"),
    plain("CALLVAULT_LEASE", "30s"),
    plain("CALLVAULT_RETRY_BASE", "2s"),
    plain("CALLVAULT_RETRY_CAP", "5m"),
    plain("CALLVAULT_NOT_READY_FOR", "24h"),
    plain("CALLVAULT_RECHECK_AFTER", "10m"),
    plain("CALLVAULT_RECONCILE_EVERY", "15m"),
    plain("CALLVAULT_RECONCILE_WINDOW", "48h"),
    plain("CALLVAULT_SCRUB_EVERY", "30d"),
    plain("CALLVAULT_MAX_RECORDING_SIZE", "4GiB"),
    plain("CALLVAULT_EVENTS_URL", ""),
    secret("CALLVAULT_EVENTS_SECRET"),
    plain("CALLVAULT_EVENTS_TYPES", ""),
    plain("CALLVAULT_EVICT_AFTER", ""),
    plain("CALLVAULT_RETENTION", ""),
    plain("CALLVAULT_DELETE_AT_TWILIO_AFTER", ""),
    plain("CALLVAULT_DRAIN", "5s"),
    plain("CALLVAULT_SHUTDOWN_TIMEOUT", "25s"),
    plain("CALLVAULT_LOG", "info"),
    plain("CALLVAULT_LOG_FORMAT", ""),
    plain("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
];

/// The keys of a table of `[[accounts]]`.
pub const ACCOUNT_KEYS: &[(&str, Kind)] = &[
    ("sid", Kind::Plain),
    ("auth_token", Kind::Secret),
    ("secondary_auth_token", Kind::Secret),
    ("api_key", Kind::Secret),
    ("api_secret", Kind::Secret),
    ("region", Kind::Plain),
    ("formats", Kind::Plain),
    ("retention", Kind::Plain),
    ("erase_at_twilio", Kind::Plain),
    ("delete_discovered", Kind::Plain),
    ("private_keys", Kind::Plain),
];

/// The keys of a table of `[[webhooks]]`.
pub const WEBHOOK_KEYS: &[(&str, Kind)] = &[("url", Kind::Plain), ("secret", Kind::Secret), ("types", Kind::Plain)];
