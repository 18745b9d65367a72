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
use crate::bucket::Embedded;
use crate::catalog::CatalogError;
use crate::config::{BucketConfig, Config, Database};
use crate::domain::sid::AccountSid;
use crate::telemetry::innermost;
use crate::twilio::AuthToken;
use crate::twilio::media::MediaError;

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

    fn at_most_a_warning(self) -> Self {
        let status = if self.status == Status::Wrong { Status::Warning } else { self.status };
        Self { status, ..self }
    }

    fn of(self, account: AccountSid) -> Self {
        Self { account_sid: Some(account), ..self }
    }
}

/// What is found where the parts lie in a folder that has none, which a vault over
/// them would make there. None: there are parts to look at.
pub fn no_parts(config: &Config) -> Option<Vec<Finding>> {
    let BucketConfig::Embedded(folder) = &config.bucket else { return None };
    if Embedded::is_in(folder) {
        return None;
    }
    const CURE: &str = "run it in the folder that the node runs in; `callvault serve` makes what a new node needs";
    let mut findings = settings(config);
    if let Database::Sqlite(path) = &config.database
        && !path.exists()
    {
        findings.push(Finding::wrong("catalog", format!("{} is not there", path.display()), CURE));
    }
    let detail = format!("there is no embedded store in {}, so nothing more is looked at", folder.display());
    findings.push(Finding::wrong("bucket", detail, CURE));
    Some(findings)
}

/// Looks at everything, and says a finding for each. `own_time` is this
/// machine's: it stands in where the catalog cannot be asked for the time.
pub async fn examine(vault: &Vault, config: &Config, own_time: Timestamp) -> Vec<Finding> {
    let mut findings = settings(config);
    findings.extend(catalog(vault, config).await);
    let now = vault.now().unwrap_or(own_time);
    findings.extend(bucket::examine(vault, config, now).await);
    for account in vault.accounts() {
        findings.extend(credentials(vault, *account).await.into_iter().map(|finding| finding.of(*account)));
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
            Ok(()) => {
                let answers = Finding::ok(CHECK, "it answers, is migrated and can be written");
                vec![answers, knows_bucket(vault).await, clock(vault)]
            }
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

/// Whether the catalog knows what the bucket has. A new one over a full bucket does not.
async fn knows_bucket(vault: &Vault) -> Finding {
    const CHECK: &str = "catalog.bucket";
    const CURE: &str = "see that CALLVAULT_DATABASE_URL names the right database; if the old one is lost, run \
                        `callvault reindex`, which makes the catalog anew from the bucket";
    let known = async { Ok::<_, CatalogError>((vault.catalog.is_read().await?, vault.catalog.is_indexed().await?)) };
    match known.await {
        Ok((true, true)) => Finding::ok(CHECK, "it knows what the bucket has"),
        Ok((true, false)) => Finding::wrong(
            CHECK,
            "it is unindexed: it does not know the bucket's recordings, nothing is reconciled or let go, and what \
             neither it nor Twilio knows is answered with 503",
            CURE,
        ),
        Ok((false, _)) => Finding::wrong(
            CHECK,
            "it is unread: no node has read yet what of the bucket was erased or is held, and until then none takes \
             or fetches anything",
            CURE,
        ),
        Err(error) => Finding::wrong(CHECK, error.to_string(), "see catalog"),
    }
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

/// Twilio's word on the credentials of requests, and on the tokens of callbacks: with an
/// API key the one says nothing of the other.
async fn credentials(vault: &Vault, account: AccountSid) -> Vec<Finding> {
    const TOKEN: &str = "twilio.auth_token";
    let twilio = &vault.twilio;
    let asked = within(twilio.probe(&account)).await;
    let has_answered = matches!(asked, Some(Ok(()) | Err(MediaError::Unauthorized(_))));
    let cure = "take the auth token or an API key with its secret from Twilio's console; an API key belongs to one \
                account and one region";
    let mut findings = vec![accepted("twilio.credentials", asked, cure)];
    if !has_answered {
        return findings;
    }
    if twilio.has_api_key(&account) && twilio.has_auth_token(&account, AuthToken::Primary) {
        let asked = within(twilio.probe_token(&account, AuthToken::Primary)).await;
        let cure = "take the primary auth token from Twilio's console: whatever API key there is, Twilio signs \
                    callbacks with that token, and the nodes refuse what is signed otherwise";
        findings.push(accepted(TOKEN, asked, cure));
    } else if !twilio.can_check_callbacks(&account) {
        let detail = "there is none: no callback of the account can be checked, and all are refused";
        findings.push(Finding::warning(TOKEN, detail, "give the account its auth token, beside its API key"));
    }
    if twilio.has_auth_token(&account, AuthToken::Secondary) {
        let asked = within(twilio.probe_token(&account, AuthToken::Secondary)).await;
        let cure = "take it out of the settings if it was replaced; else take it from Twilio's console anew";
        // Callbacks are taken all the same, for as long as Twilio signs with the other one.
        findings.push(accepted("twilio.secondary_auth_token", asked, cure).at_most_a_warning());
    }
    findings
}

/// What is answered in time; None: nothing.
async fn within<T>(asked: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(PATIENCE, asked).await.ok()
}

/// What Twilio says of credentials; None: nothing.
fn accepted(check: &'static str, asked: Option<Result<(), MediaError>>, cure: &'static str) -> Finding {
    match asked {
        Some(Ok(())) => Finding::ok(check, "Twilio accepts it"),
        Some(Err(error @ MediaError::Unauthorized(_))) => Finding::wrong(check, error.to_string(), cure),
        Some(Err(error)) => Finding::wrong(
            check,
            innermost(&error).to_string(),
            "let this machine reach CALLVAULT_TWILIO_ORIGIN, over CALLVAULT_TWILIO_PROXY where there is one",
        ),
        None => Finding::wrong(check, "Twilio does not answer", "let this machine reach CALLVAULT_TWILIO_ORIGIN"),
    }
}
