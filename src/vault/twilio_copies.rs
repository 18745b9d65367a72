//! Deleting at Twilio what is stored here, once the stored copy was read back.
//!
//! The row is marked first, then the object is read back through the hash. Only
//! a copy that matches lets Twilio's go, and one that says what it is: from then on
//! the bucket alone has to be enough. The row is asked once more right before. A copy
//! that does not match owes a recheck at once, and stays at Twilio.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::duty::{DUTY_LEASE, Held, Worked, log_end};
use super::turns::Answer;
use super::{Vault, source_of};
use crate::bucket::{BucketError, Throttle};
use crate::catalog::{CatalogError, Duty, Settled, Urgency};
use crate::telemetry;
use crate::twilio::media::MediaError;

/// A failure counts as the latest of many: nobody waits for a deletion.
const FAILED_BEFORE: u32 = u32::MAX;

/// Why Twilio's copy stays.
#[derive(Debug, thiserror::Error)]
enum DeletionError {
    #[error(transparent)]
    Twilio(#[from] MediaError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("the account is left alone at the moment")]
    LeftAlone,
    #[error("what is stored is not what the catalog says: the recording {0}")]
    Differs(String),
    #[error("it was held or taken on meanwhile")]
    Overtaken,
}

impl<T> Answer for Result<T, DeletionError> {
    fn is_calm(&self) -> bool {
        // What never came to be asked says nothing of Twilio.
        self.as_ref().err().is_none_or(|error| matches!(error, DeletionError::Twilio(error) if error.is_calm()))
    }
}

impl Vault {
    /// Grants at most so many deletions at Twilio that are due to this node.
    pub async fn begin_twilio_deletions(&self, at_most: usize) -> Result<Vec<Duty>, CatalogError> {
        let terms = &self.letting_go;
        let Some(after) = terms.delete_at_twilio_after.filter(|_| self.may_let_go()) else { return Ok(Vec::new()) };
        let mut duties = Vec::new();
        for (accounts, discovered) in [(&self.accounts, false), (&terms.delete_discovered, true)] {
            let (accounts, room) = (self.not_paused(accounts).await?, at_most - duties.len());
            if room > 0 {
                duties
                    .extend(self.catalog.grant_twilio_deletions(&accounts, discovered, after, room, DUTY_LEASE).await?);
            }
        }
        Ok(duties)
    }

    /// Deletes a recording at Twilio under a lease that was granted after `granted`,
    /// if it may go.
    pub async fn delete_at_twilio(&self, duty: &Duty, granted: Instant, stopping: &CancellationToken) {
        let held = Held::new(duty, DUTY_LEASE);
        let recording = duty.lease.id;
        match self.work_under(&held, granted, stopping, self.delete_steps(&held)).await {
            Worked::Lost => telemetry::twilio_deletion_ended("lost"),
            Worked::Stopped => {
                self.give_back(&held).await;
                telemetry::twilio_deletion_ended("handed_back");
            }
            Worked::Done(Ok(())) => {
                log_end(&held, self.catalog.deleted_at_twilio(duty).await);
                tracing::info!(%recording, "deleted at Twilio");
                telemetry::twilio_deletion_ended("deleted");
            }
            Worked::Done(Err(error)) => self.after_failed_deletion(&held, &error, granted).await,
        }
    }

    async fn delete_steps(&self, held: &Held<'_>) -> Result<(), DeletionError> {
        let recording = &held.duty.recording;
        self.mark_for_twilio(held).await?;
        let object = recording.object.as_ref();
        let object = object.ok_or_else(|| DeletionError::Differs("is stored but names no object".to_owned()))?;
        if let Some(flaw) = self.flaws(recording, object, Some(&Throttle::default())).await?.first() {
            return Err(DeletionError::Differs(flaw.to_string()));
        }
        if self.catalog.is_left_alone(recording.id.account).await? {
            return Err(DeletionError::LeftAlone);
        }
        let source = source_of(&recording.id, recording.source_host.as_deref());
        // A hold may have come while it was read, or while others had their turn.
        let deleting = async {
            self.mark_for_twilio(held).await?;
            Ok(self.twilio.delete(&source).await?)
        };
        self.in_turn(recording.id.account, Urgency::Idle, deleting).await?
    }

    async fn mark_for_twilio(&self, held: &Held<'_>) -> Result<(), DeletionError> {
        match self.catalog.mark_for_twilio(held.duty).await? {
            Settled::Done => Ok(()),
            Settled::Stale => Err(DeletionError::Overtaken),
        }
    }

    async fn after_failed_deletion(&self, held: &Held<'_>, error: &DeletionError, began: Instant) {
        let recording = held.duty.lease.id;
        let again = match error {
            DeletionError::Differs(_) => {
                tracing::error!(%recording, %error, "it is not deleted at Twilio");
                log_end(held, self.catalog.copy_is_needed(held.duty).await);
                return telemetry::twilio_deletion_ended("differs");
            }
            DeletionError::Overtaken => {
                self.give_back(held).await;
                return telemetry::twilio_deletion_ended("kept");
            }
            DeletionError::Twilio(error) => {
                self.heed(recording.account, error, began).await;
                let (after, not_before) = self.pause_after(error.code(), FAILED_BEFORE, error.retry_after());
                after.max(not_before)
            }
            DeletionError::LeftAlone | DeletionError::Catalog(_) | DeletionError::Bucket(_) => self.retry.cap,
        };
        tracing::warn!(%recording, %error, "it is deleted at Twilio later");
        let after = self.letting_go.delete_at_twilio_after.unwrap_or(Duration::ZERO);
        log_end(held, self.catalog.keep_recording(held.duty, after, again).await);
        telemetry::twilio_deletion_ended("failed");
    }
}
