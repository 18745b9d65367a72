//! What Twilio's answers mean for an account, beyond the one recording.
//!
//! An account that is asked for less, or refused, is slowed down or paused for
//! all nodes; others never notice. A paused account is probed until Twilio
//! accepts its credentials again.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::Vault;
use super::tape::Tape;
use crate::catalog::{Catalog, CatalogError, Claim, SlowDown};
use crate::domain::retry;
use crate::domain::sid::AccountSid;
use crate::telemetry;
use crate::twilio::Twilio;
use crate::twilio::media::MediaError;

/// How soon a body that comes is looked at again, where a step of the pace is shorter.
const LOOK_EVERY_MIN: Duration = Duration::from_secs(1);

/// How Twilio's API is asked by whoever does: each account at its pace.
pub(super) struct Manners {
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) twilio: Twilio,
    pub(super) retry: retry::Policy,
    /// The accounts of which Twilio is being asked whether it refuses them.
    confirming: Mutex<HashSet<AccountSid>>,
}

impl Manners {
    pub(super) fn new(catalog: Arc<dyn Catalog>, twilio: Twilio, retry: retry::Policy) -> Self {
        Self { catalog, twilio, retry, confirming: Mutex::default() }
    }

    /// Draws the consequences of what Twilio answered to something of this
    /// account that `began` then. What the catalog does not take is lost: the
    /// next answer says it again.
    pub(super) async fn heed(&self, account: AccountSid, error: &MediaError, began: Instant) {
        if matches!(error, MediaError::RateLimited { .. }) {
            telemetry::rate_limited(&account);
        }
        let heeded = match error {
            MediaError::RateLimited { .. } => self.slow_down(account, error, true, began).await,
            MediaError::Upstream { status, redirected: false, .. } if status.is_server_error() => {
                self.slow_down(account, error, false, began).await
            }
            MediaError::Unauthorized(_) => self.pause_if_refused(account).await,
            _ => Ok(()),
        };
        if let Err(error) = heeded {
            tracing::warn!(%account, %error, "the catalog was not told how the account fares");
        }
    }

    async fn slow_down(
        &self,
        account: AccountSid,
        error: &MediaError,
        too_many: bool,
        began: Instant,
    ) -> Result<(), CatalogError> {
        // A header that asks for a day is honoured by its own recording, not by all of the account.
        let quiet_for = error.retry_after().unwrap_or_default().min(self.retry.cap);
        let asked = SlowDown { too_many, quiet_for, began_ago: began.elapsed() };
        if let Some(pace) = self.catalog.slow_down(account, asked).await? {
            telemetry::account_slowed();
            tracing::info!(%account, limit = pace.limit, %error, "the account is slowed down");
        }
        Ok(())
    }

    /// A refusal may be one recording's: the account is paused when a question
    /// that every key may ask is refused too.
    async fn pause_if_refused(&self, account: AccountSid) -> Result<(), CatalogError> {
        let Some(_one_at_a_time) = Confirming::begin(&self.confirming, account) else { return Ok(()) };
        if !self.catalog.paused(&[account]).await?.is_empty() {
            return Ok(());
        }
        let Err(refusal @ MediaError::Unauthorized(_)) = self.twilio.probe(&account).await else { return Ok(()) };
        if self.catalog.pause(account, &refusal.to_string(), self.retry.base).await? {
            tracing::warn!(%account, %refusal, "the account is paused; check its auth token or API key");
        }
        Ok(())
    }
}

impl Vault {
    /// Draws the consequences of what Twilio answered; see [`Manners::heed`].
    pub(super) async fn heed(&self, account: AccountSid, error: &MediaError, began: Instant) {
        self.manners.heed(account, error, began).await;
    }

    /// Twilio answered a fetch calmly: a limited account may have one more at once.
    pub(super) async fn note_success(&self, claim: &Claim) {
        if claim.is_limited {
            speed_up(&*self.catalog, claim.lease.id.account, self.retry.base).await;
        }
    }

    /// While bytes of a body come, Twilio is calm, however long they take: step by step the
    /// account may have one more at once, so that what is slow does not keep all else waiting.
    /// Where none come, it is not; and a whole body is one calm answer, however long the bucket
    /// takes with it.
    pub(super) async fn speed_up_beside(&self, account: AccountSid, body: &Tape) -> Infallible {
        let look_every = self.retry.base.max(LOOK_EVERY_MIN);
        follow(body, look_every, || speed_up(&*self.catalog, account, self.retry.base).boxed()).await
    }

    /// Those of the accounts whose credentials Twilio takes: for the others nothing is begun
    /// that needs it, and no lease granted again and again.
    pub(super) async fn not_paused(&self, accounts: &[AccountSid]) -> Result<Vec<AccountSid>, CatalogError> {
        let paused = self.catalog.paused(accounts).await?;
        let is_paused = |account: &&AccountSid| paused.iter().any(|paused| paused.account == **account);
        Ok(accounts.iter().filter(|account| !is_paused(account)).copied().collect())
    }

    /// The paused accounts whose next probe is due; the rest is noted for people.
    pub async fn accounts_to_probe(&self) -> Result<Vec<AccountSid>, CatalogError> {
        let paused = self.catalog.paused(&self.accounts).await?;
        telemetry::accounts_paused(paused.len());
        self.health.note(
            "accounts_paused",
            match paused.len() {
                0 => Ok(()),
                count => Err(format!(
                    "Twilio refuses the credentials of {count} account(s); check their auth tokens or API keys"
                )),
            },
        );
        let mut mine = Vec::new();
        for account in paused.into_iter().filter(|paused| paused.probe_is_due) {
            if self.catalog.take_probe(account.account, self.retry.wait(account.probes + 1)).await? {
                mine.push(account.account);
            }
        }
        Ok(mine)
    }

    /// Asks Twilio whether it accepts a paused account's credentials again.
    pub async fn probe(&self, account: AccountSid) {
        match self.twilio.probe(&account).await {
            Ok(()) => match self.catalog.resume(account).await {
                Ok(true) => tracing::info!(%account, "Twilio accepts the account's credentials again"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%account, %error, "the account stays paused until its next probe"),
            },
            Err(error) => tracing::debug!(%account, %error, "the account stays paused"),
        }
    }
}

/// Tries to raise whenever a look at the body finds more bytes than the one before; once it is
/// whole, until it was raised.
async fn follow<'a>(body: &Tape, look_every: Duration, mut raise: impl FnMut() -> BoxFuture<'a, bool>) -> Infallible {
    let mut heard = body.came();
    loop {
        tokio::time::sleep(look_every).await;
        let came = body.came();
        if came.bytes > heard.bytes || came.is_whole {
            let is_raised = raise().await;
            if came.is_whole && is_raised {
                return std::future::pending().await;
            }
        }
        heard = came;
    }
}

/// One more at once, if it is time for it; says whether it was. What the catalog does not take
/// is lost: the next calm answer says it again.
pub(super) async fn speed_up(catalog: &dyn Catalog, account: AccountSid, base: Duration) -> bool {
    catalog.speed_up(account, base).await.unwrap_or_else(|error| {
        tracing::debug!(%account, %error, "the account's pace is not raised");
        false
    })
}

/// That an account's refusal is being confirmed, while this lives.
struct Confirming<'a> {
    all: &'a Mutex<HashSet<AccountSid>>,
    account: AccountSid,
}

impl<'a> Confirming<'a> {
    /// None where somebody is at it.
    fn begin(all: &'a Mutex<HashSet<AccountSid>>, account: AccountSid) -> Option<Self> {
        let is_new = all.lock().expect("nothing panics while it holds this").insert(account);
        is_new.then_some(Self { all, account })
    }
}

impl Drop for Confirming<'_> {
    fn drop(&mut self) {
        self.all.lock().expect("nothing panics while it holds this").remove(&self.account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const LOOK_EVERY: Duration = Duration::from_secs(2);

    /// How often it is tried to raise during so many looks.
    async fn tries(body: &Tape, looks: u32, is_raised: bool) -> u32 {
        let mut tries = 0;
        let following = follow(body, LOOK_EVERY, || {
            tries += 1;
            std::future::ready(is_raised).boxed()
        });
        tokio::time::timeout(looks * LOOK_EVERY + LOOK_EVERY / 2, following).await.unwrap_err();
        tries
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_which_nothing_comes_is_not_calm() {
        let body = Tape::new(None);
        body.push(Bytes::from_static(b"it begins"));
        let (tries, ()) = tokio::join!(tries(&body, 100, false), async {
            // Between two looks.
            tokio::time::sleep(LOOK_EVERY / 2).await;
            for _ in 0..3 {
                body.push(Bytes::from_static(b"and stalls"));
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        assert_eq!(tries, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_body_is_one_calm_answer() {
        let body = Tape::new(None);
        body.push(Bytes::from_static(b"all of it"));
        body.all_came();
        assert_eq!(tries(&body, 100, true).await, 1);
        assert_eq!(tries(&body, 100, false).await, 100, "until its time has come");
    }
}
