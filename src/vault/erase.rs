//! Erasing, step by step.
//!
//! 1. One transaction in the catalog, refused if held (`catalog/erase.rs`).
//! 2. The marker in the bucket, which also says whether Twilio's copy is to go; nothing
//!    is acknowledged before it is there.
//! 3. Every object of the recording, with all versions, its open upload, and what
//!    is staged.
//! 4. Twilio's copy, if it was asked for, and that the marker does not say so any more.
//! 5. Done; a recheck follows.
//!
//! Whoever asks waits for as much of it as a request may take. What is owed then
//! is gone on with by any node, from step 2 on, until it is done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::duty::{Cleared, Held, Worked, log_end, span_of};
use super::{Vault, source_of};
use crate::bucket::BucketError;
use crate::catalog::{CatalogError, Duty, Erase, Erased, Erasure, Progress, Settled, Urgency};
use crate::config::Account;
use crate::domain::key::KeyId;
use crate::domain::object_key::Marker;
use crate::domain::recording::{ErrorCode, RecordingId};
use crate::domain::sid::AccountSid;
use crate::telemetry;
use crate::twilio::media::MediaError;

/// How long a request waits for its erasing to be done: most take a second.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Recordings of a call that are erased side by side.
const AT_ONCE: usize = 8;
/// How often whoever waits looks again at what other nodes do.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Recordings of an account that one transaction erases by their age.
const OLD_AT_ONCE: usize = 50;
/// After each so many failures an erasing waits for one longest pause more between two
/// tries, up to so many: with the default, an hour.
const FAILURES_A_CAP: u32 = 32;
const CAPS_MAX: u32 = 12;
/// Erasing that failed so often in a row is a trouble.
const FAILURES_MAX: u32 = 5;

/// What a request to erase came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erasing {
    /// Nothing is known of it.
    Unknown,
    /// Something of it is held: nothing was erased.
    Held,
    /// It is erased, but not every marker is in the bucket.
    Unmarked,
    /// It is erased; the bucket's or Twilio's part is still owed.
    Owed,
    /// Nothing is left of it.
    Done,
}

#[derive(Debug, thiserror::Error)]
enum EraseError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Twilio(#[from] MediaError),
    #[error("there is more of it in the bucket than was looked at")]
    More,
    #[error(
        "{0} is still in the bucket: it has no `account-sid`, nor are its bytes what its key says, and what this \
         service did not write it does not remove; remove it by hand"
    )]
    Unclaimed(String),
    #[error("the bucket is another one than the catalog's")]
    OtherBucket,
    #[error("its call is not known, and where it lies is not before the bucket is indexed")]
    Unindexed,
    #[error("the account is left alone at the moment")]
    LeftAlone,
    #[error("the lease was lost")]
    Lost,
}

impl EraseError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Twilio(error) => error.code(),
            Self::LeftAlone => ErrorCode::RateLimited,
            Self::Bucket(_) | Self::More | Self::Unclaimed(_) | Self::OtherBucket | Self::Unindexed => {
                ErrorCode::StoreError
            }
            Self::Catalog(_) | Self::Lost => ErrorCode::Interrupted,
        }
    }
}

impl Vault {
    /// Erases a recording, or all of a call, as the holder of that key asks for;
    /// `at_twilio` at Twilio, too. Goes on when it is dropped. Fails for a call while
    /// some of it may lie in the bucket unknown.
    pub async fn erase(
        self: &Arc<Self>,
        what: Erase,
        at_twilio: bool,
        asked_by: KeyId,
    ) -> Result<Erasing, CatalogError> {
        if matches!(what, Erase::Call(..)) {
            self.must_be_indexed().await?;
        }
        let ids = match self.catalog.erase(what, at_twilio, asked_by).await? {
            Erased::Unknown => return Ok(Erasing::Unknown),
            Erased::Held => return Ok(Erasing::Held),
            Erased::Done(ids) => ids,
        };
        for id in &ids {
            self.hits.forget_recording(id);
        }
        let until = Instant::now() + WAIT_MAX;
        let (vault, all) = (self.clone(), ids.clone());
        // Nobody's going away ends it.
        let mut working = tokio::spawn(async move {
            stream::iter(all).for_each_concurrent(AT_ONCE, |id| vault.clone().erase_now(id, at_twilio)).await;
        });
        loop {
            let has_worked = tokio::time::timeout(LOOK_AGAIN_AFTER, &mut working).await.is_ok();
            let erasing = erasing(&self.catalog.erasures(&ids).await?);
            if erasing == Erasing::Done || Instant::now() >= until {
                return Ok(erasing);
            }
            if has_worked {
                return self.await_others(&ids, until).await;
            }
        }
    }

    /// This node has done what it could: another one may be at it.
    async fn await_others(&self, ids: &[RecordingId], until: Instant) -> Result<Erasing, CatalogError> {
        loop {
            let erasures = self.catalog.erasures(ids).await?;
            let is_tried = erasures.iter().all(|erasure| erasure.is_done() || erasure.failures > 0);
            if is_tried || Instant::now() >= until {
                return Ok(erasing(&erasures));
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    async fn erase_now(self: Arc<Self>, id: RecordingId, at_twilio: bool) {
        let granted = Instant::now();
        match self.catalog.grant_erasure(&id, self.lease).await {
            Ok(Some(duty)) => {
                let span = span_of("erase", &duty.recording);
                span.in_scope(|| tracing::info!(recording = %id, at_twilio, "erased on request"));
                self.go_on_erasing(&duty, granted, &CancellationToken::new()).instrument(span).await;
            }
            Ok(None) => tracing::info!(recording = %id, at_twilio, "it was erased before, or another node is at it"),
            Err(error) => tracing::warn!(recording = %id, %error, "its erasing goes on later"),
        }
    }

    /// Grants at most so many erasures that are owed and due to this node. None while
    /// the markers are read, which make very many of them: callbacks wait for that.
    pub async fn begin_erasing(&self, at_most: usize) -> Result<Vec<Duty>, CatalogError> {
        if !self.catalog.is_read().await? {
            return Ok(Vec::new());
        }
        let accounts = self.not_paused(&self.accounts).await?;
        self.catalog.grant_erasures(&accounts, at_most, self.lease).await
    }

    /// Goes on with an erasure from step 2, under a lease that was granted after `granted`.
    pub async fn go_on_erasing(&self, duty: &Duty, granted: Instant, stopping: &CancellationToken) {
        let held = Held::new(duty, self.lease);
        let recording = duty.lease.id;
        let mut progress = Progress::default();
        let worked = self.work_under(&held, granted, stopping, self.erase_steps(&held, &mut progress)).await;
        let (outcome, again) = match worked {
            Worked::Done(Ok(())) => ("done", Duration::ZERO),
            Worked::Done(Err(EraseError::Lost)) | Worked::Lost => return telemetry::erasure_ended("lost"),
            Worked::Done(Err(error)) => {
                let again = self.after_failed_erasing(&recording, &error, granted).await;
                ("owed", again)
            }
            // What comes late does no harm: nobody writes there any more.
            Worked::Stopped => {
                log_end(&held, self.catalog.give_back_duty(duty).await);
                return telemetry::erasure_ended("handed_back");
            }
        };
        let settled = self.catalog.settle_erasure(duty, progress, again, self.recheck_after).await;
        let is_settled = log_end(&held, settled);
        if is_settled && outcome == "done" {
            tracing::info!(%recording, at_twilio = progress.gone_at_twilio, "nothing is left of what was erased");
        }
        telemetry::erasure_ended(if is_settled { outcome } else { "lost" });
    }

    async fn erase_steps(&self, held: &Held<'_>, progress: &mut Progress) -> Result<(), EraseError> {
        let recording = &held.duty.recording;
        if !self.knows_its_bucket() {
            return Err(EraseError::OtherBucket);
        }
        let erasure = self.erasure(&recording.id).await?;
        // Its call may have become known since it was written.
        if !erasure.is_marked || !erasure.is_cleared {
            // Should the catalog be lost, the bucket alone knows what was asked for.
            self.bucket.put_marker(Marker::Erased, recording, erasure.owes_twilio).await?;
            if self.catalog.note_marked(held.duty, erasure.owes_twilio).await? == Settled::Stale {
                return Err(EraseError::Lost);
            }
        }
        // Twilio's part may be owed for long, and tried as often.
        if !erasure.is_cleared {
            self.clear_all(held).await?;
        }
        progress.cleared = true;
        // It may have been asked for meanwhile.
        if self.erasure(&recording.id).await?.owes_twilio {
            let account = recording.id.account;
            if self.catalog.is_left_alone(account).await? {
                return Err(EraseError::LeftAlone);
            }
            let source = source_of(&recording.id, recording.source_host.as_deref());
            self.in_turn(account, Urgency::Idle, self.twilio.delete(&source)).await??;
            self.bucket.put_marker(Marker::Erased, recording, false).await?;
            progress.gone_at_twilio = true;
        }
        Ok(())
    }

    async fn clear_all(&self, held: &Held<'_>) -> Result<(), EraseError> {
        match self.clear_bucket(held).await? {
            Cleared::All => Ok(()),
            Cleared::Unclaimed(key) => Err(EraseError::Unclaimed(key)),
            Cleared::NotAll => {
                let is_known = held.duty.recording.details_confirmed || self.catalog.is_indexed().await?;
                Err(if is_known { EraseError::More } else { EraseError::Unindexed })
            }
        }
    }

    /// How far it came; what is not erased is another's.
    async fn erasure(&self, id: &RecordingId) -> Result<Erasure, EraseError> {
        self.catalog.erasures(&[*id]).await?.pop().ok_or(EraseError::Lost)
    }

    /// When it is tried again.
    async fn after_failed_erasing(&self, id: &RecordingId, error: &EraseError, began: Instant) -> Duration {
        tracing::warn!(recording = %id, %error, "what is left of an erased recording is tried again");
        let retry_after = match error {
            EraseError::Twilio(error) => {
                self.heed(id.account, error, began).await;
                error.retry_after()
            }
            _ => None,
        };
        let erasure = self.catalog.erasures(&[*id]).await.ok().and_then(|mut erasures| erasures.pop());
        let failed_before = erasure.map_or(0, |erasure| erasure.failures);
        let (after, not_before) = self.pause_after(error.code(), failed_before, retry_after);
        after.max(not_before).max(rarer(self.retry.cap, failed_before))
    }

    /// Erases what has reached its account's age; says whether there may be more.
    pub async fn erase_old(&self) -> Result<bool, CatalogError> {
        let terms = &self.letting_go.retention;
        let ages: Vec<(AccountSid, Duration)> = terms.iter().map(|(account, terms)| (*account, terms.age)).collect();
        let mut more = false;
        for account in self.catalog.accounts_with_old(&ages).await? {
            let Some(Retention { age, erase_at_twilio }) = terms.get(&account).copied() else { continue };
            let erased = self.catalog.erase_old(account, age, erase_at_twilio, OLD_AT_ONCE).await?;
            tracing::info!(%account, erased, at_twilio = erase_at_twilio, "erased by age");
            telemetry::erased_by_age(erased);
            more |= erased == OLD_AT_ONCE;
        }
        Ok(more)
    }

    /// Tells people what is owed, and what fails again and again.
    pub async fn note_what_is_owed(&self) -> Result<(), CatalogError> {
        let (owed, failing) = self.catalog.erasures_owed(FAILURES_MAX).await?;
        telemetry::owed("erasure", owed.count, owed.oldest);
        let owed = self.catalog.hold_markers_owed().await?;
        telemetry::owed("hold_marker", owed.count, owed.oldest);
        self.health.note(
            "erasures_failing",
            match failing {
                0 => Ok(()),
                _ => Err(format!(
                    "{failing} erased recordings are not gone from the bucket or from Twilio yet; the log tells why"
                )),
            },
        );
        Ok(())
    }
}

/// What has failed for long is tried less and less often: each try looks for what every
/// lease before it may have staged.
fn rarer(cap: Duration, failed_before: u32) -> Duration {
    cap * failed_before.min(FAILURES_A_CAP * CAPS_MAX) / FAILURES_A_CAP
}

/// How far all of them came.
fn erasing(erasures: &[Erasure]) -> Erasing {
    if erasures.iter().all(Erasure::is_done) {
        Erasing::Done
    } else if erasures.iter().all(|erasure| erasure.is_marked) {
        Erasing::Owed
    } else {
        Erasing::Unmarked
    }
}

/// At which age recordings of an account are erased.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retention {
    pub(super) age: Duration,
    pub(super) erase_at_twilio: bool,
}

/// The accounts that keep nothing for ever.
pub(super) fn retention(accounts: &[Account]) -> BTreeMap<AccountSid, Retention> {
    let of = |account: &Account| {
        let retention = Retention { age: account.retention?, erase_at_twilio: account.erase_at_twilio };
        Some((account.sid, retention))
    };
    accounts.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_failed_for_long_is_tried_less_and_less_often_up_to_an_hour() {
        let cap = Duration::from_secs(300);
        assert_eq!(rarer(cap, 0), Duration::ZERO);
        assert!(rarer(cap, 5) < cap / 6);
        assert_eq!([32, 64, 384].map(|failed| rarer(cap, failed) / 60), [5, 10, 60].map(Duration::from_secs));
        assert_eq!(rarer(cap, u32::MAX), cap * CAPS_MAX);
    }
}
