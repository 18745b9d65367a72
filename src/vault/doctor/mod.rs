//! What is wrong with a service's surroundings, and what would mend it.
//!
//! Looks at the parts as the service uses them. Leaves nothing behind: what it
//! writes to the bucket it removes, the catalog is not written at all, and its
//! callback can never become a recording. No finding holds a secret or a link.

mod bucket;
mod public_url;

use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Serialize;

use super::Vault;
use crate::catalog::CatalogError;
use crate::config::{Config, Database};
use crate::domain::sid::AccountSid;
use crate::telemetry::innermost;

/// A part that does not answer for so long is away.
const PATIENCE: Duration = Duration::from_secs(15);
/// A clock that is so far off is no accident, though nothing fails yet.
const CLOCK_OFF_WARN: Duration = Duration::from_secs(10);
/// An API key of so many random characters cannot be guessed.
const ADMIN_KEY_GOOD_LEN: usize = 20;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All is well.
    Ok,
    /// It works, but should be otherwise.
    Warning,
    /// It does not work.
    Wrong,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, as `bucket.delete`.
    pub check: &'static str,
    /// Of which account, where it is about one.
    pub account_sid: Option<AccountSid>,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What would mend it; null where nothing is to be mended.
    pub cure: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, account_sid: None, status: Status::Ok, detail: detail.into(), cure: None }
    }

    fn warning(check: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { status: Status::Warning, cure: Some(cure.into()), ..Self::ok(check, detail) }
    }

    fn wrong(check: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { status: Status::Wrong, cure: Some(cure.into()), ..Self::ok(check, detail) }
    }

    fn of(self, account: AccountSid) -> Self {
        Self { account_sid: Some(account), ..self }
    }
}

/// Looks at everything, and says a finding for each. `own_time` is this
/// machine's: it stands in where the catalog cannot be asked for the time.
pub async fn examine(vault: &Vault, config: &Config, own_time: Timestamp) -> Vec<Finding> {
    let mut findings = settings(config);
    findings.extend(catalog(vault, config).await);
    let now = vault.now().unwrap_or(own_time);
    findings.extend(bucket::examine(vault, config, now).await);
    for account in vault.accounts() {
        findings.push(credentials(vault, *account).await);
    }
    findings.extend(public_url::examine(vault, config).await);
    findings
}

/// Settings that can be used are read already; these are worth a word.
fn settings(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut warn = |detail: &str, cure: &str| findings.push(Finding::warning("settings", detail, cure));
    if config.accounts.is_empty() {
        warn(
            "no Twilio account is configured: callbacks are refused, and nothing is fetched",
            "set CALLVAULT_TWILIO_ACCOUNT_SID and CALLVAULT_TWILIO_AUTH_TOKEN",
        );
    }
    if config.admin_key.as_ref().is_some_and(|key| key.expose_secret().len() < ADMIN_KEY_GOOD_LEN) {
        warn("CALLVAULT_ADMIN_KEY is short enough to be guessed", "use 20 random characters or more");
    }
    if findings.is_empty() {
        findings.push(Finding::ok("settings", "they can be used"));
    }
    findings
}

async fn catalog(vault: &Vault, config: &Config) -> Vec<Finding> {
    const CHECK: &str = "catalog";
    let unreachable = |why: String| {
        Finding::wrong(
            CHECK,
            why,
            "let CALLVAULT_DATABASE_URL lead to a database that runs and lets this user in; \
             the user must own its tables",
        )
    };
    if let Database::Sqlite(path) = &config.database
        && !path.exists()
    {
        let detail = format!("{} is not there yet", path.display());
        return vec![Finding::warning(CHECK, detail, "`callvault serve` makes it; is this the folder it runs in?")];
    }
    let found = tokio::time::timeout(PATIENCE, async {
        match vault.catalog.missing_steps().await? {
            // Nothing is left to migrate: this only opens it.
            0 => vault.catalog.prepare().await.map(|()| 0),
            missing => Ok(missing),
        }
    });
    match found.await {
        Err(_) => vec![unreachable("the catalog does not answer".to_owned())],
        Ok(Err(error)) => vec![unreachable(error.to_string())],
        Ok(Ok(0)) => match vault.catalog.check().await {
            Ok(()) => vec![Finding::ok(CHECK, "it answers, is migrated and can be written"), clock(vault)],
            Err(error) => vec![not_writable(CHECK, &error)],
        },
        Ok(Ok(missing)) => vec![Finding::warning(
            CHECK,
            format!("it answers; {missing} steps of its schema are still to be taken"),
            "start `callvault serve`: the first node of a version takes them",
        )],
    }
}

fn not_writable(check: &'static str, error: &CatalogError) -> Finding {
    Finding::wrong(check, error.to_string(), "let the user write its tables, on the primary")
}

fn clock(vault: &Vault) -> Finding {
    const CURE: &str = "set this machine's clock, and keep it (chrony, systemd-timesyncd)";
    let off_by = vault.catalog.clock().off_by();
    let detail = format!("this machine's clock is {} s off the catalog's", off_by.as_secs());
    match vault.check_clock() {
        Err(off) => Finding::wrong("clock", off.to_string(), CURE),
        Ok(()) if off_by > CLOCK_OFF_WARN => Finding::warning("clock", detail, CURE),
        Ok(()) => Finding::ok("clock", detail),
    }
}

async fn credentials(vault: &Vault, account: AccountSid) -> Finding {
    const CHECK: &str = "twilio.credentials";
    let asked = tokio::time::timeout(PATIENCE, vault.twilio.probe(&account)).await;
    let finding = match asked {
        Ok(Ok(())) => Finding::ok(CHECK, "Twilio accepts them"),
        Ok(Err(error @ crate::twilio::media::MediaError::Unauthorized(_))) => Finding::wrong(
            CHECK,
            error.to_string(),
            "take the auth token or an API key with its secret from Twilio's console; an API key belongs to one \
             account and one region",
        ),
        Ok(Err(error)) => Finding::wrong(
            CHECK,
            innermost(&error).to_string(),
            "let this machine reach CALLVAULT_TWILIO_ORIGIN, over CALLVAULT_TWILIO_PROXY where there is one",
        ),
        Err(_) => Finding::wrong(CHECK, "Twilio does not answer", "let this machine reach CALLVAULT_TWILIO_ORIGIN"),
    };
    finding.of(account)
}
