//! Evicting: what nobody asks for leaves the bucket, as long as Twilio has it.
//!
//! Twilio is asked at that moment, and only its `completed` lets an object go. The
//! row is marked before anything is removed, and every delete ends with its lease.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::duty::{DUTY_LEASE, Held, Worked, log_end};
use super::{Vault, source_of};
use crate::bucket::BucketError;
use crate::catalog::{CatalogError, Duty, Settled, Urgency};
use crate::telemetry;
use crate::twilio::decrypt::DecryptError;
use crate::twilio::media::MediaError;

/// A failure counts as the latest of many: nobody waits for an eviction.
const FAILED_BEFORE: u32 = u32::MAX;

/// Why a recording stays, or was not wholly removed.
#[derive(Debug, thiserror::Error)]
enum EvictError {
    #[error(transparent)]
    Twilio(#[from] MediaError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("a recheck removes what is left: {0}")]
    Bucket(#[from] BucketError),
    #[error("the account is left alone at the moment")]
    LeftAlone,
    #[error("Twilio does not say that it is completed, but {0:?}")]
    NotAtTwilio(String),
    #[error("what Twilio has of it could not be opened again, and stays here: {0}")]
    Sealed(#[from] DecryptError),
    #[error("it was asked for, held or taken on meanwhile")]
    Overtaken,
}

impl Vault {
    /// Grants at most so many evictions that are due to this node.
    pub async fn begin_evictions(&self, at_most: usize) -> Result<Vec<Duty>, CatalogError> {
        let Some(idle_for) = self.letting_go.idle_for().filter(|_| self.may_let_go()) else { return Ok(Vec::new()) };
        let accounts = self.not_paused(&self.accounts).await?;
        self.catalog.grant_evictions(&accounts, idle_for, at_most, DUTY_LEASE).await
    }

    /// Evicts a recording under a lease that was granted after `granted`, if it may go.
    pub async fn evict(&self, duty: &Duty, granted: Instant, stopping: &CancellationToken) {
        let Some(idle_for) = self.letting_go.idle_for() else { return };
        let held = Held::new(duty, DUTY_LEASE);
        let recording = duty.lease.id;
        let outcome = match self.work_under(&held, granted, stopping, self.evict_steps(&held, idle_for)).await {
            Worked::Lost => return telemetry::eviction_ended("lost"),
            Worked::Stopped => "handed_back",
            Worked::Done(Ok(())) => {
                tracing::info!(%recording, "evicted");
                "evicted"
            }
            Worked::Done(Err(error)) => {
                match &error {
                    EvictError::Sealed(_) => tracing::warn!(%recording, %error, "it is not evicted"),
                    _ => tracing::info!(%recording, %error, "an eviction did not come to its end"),
                }
                return self.after_failed_eviction(&held, idle_for, &error, granted).await;
            }
        };
        self.give_back(&held).await;
        telemetry::eviction_ended(outcome);
    }

    async fn evict_steps(&self, held: &Held<'_>, idle_for: Duration) -> Result<(), EvictError> {
        let recording = &held.duty.recording;
        if self.catalog.is_left_alone(recording.id.account).await? {
            return Err(EvictError::LeftAlone);
        }
        let source = source_of(&recording.id, recording.source_host.as_deref());
        let described = self.in_turn(recording.id.account, Urgency::Idle, self.twilio.describe(&source)).await??;
        let status = described.as_ref().map_or("nothing", |described| described.status.as_str());
        if status != "completed" {
            return Err(EvictError::NotAtTwilio(status.chars().take(40).collect()));
        }
        if let Some(encryption) = described.and_then(|described| described.encryption) {
            // With the keys of now: the one that it was fetched with may be retired.
            self.twilio.decryptor(&recording.id.account, &encryption)?;
        }
        if self.catalog.evict(held.duty, idle_for, self.recheck_after).await? == Settled::Stale {
            return Err(EvictError::Overtaken);
        }
        self.clear_bucket(held).await?;
        Ok(())
    }

    async fn after_failed_eviction(&self, held: &Held<'_>, idle_for: Duration, error: &EvictError, began: Instant) {
        let again = match error {
            // It is marked, and goes by a recheck at the latest.
            EvictError::Bucket(_) => {
                self.give_back(held).await;
                return telemetry::eviction_ended("evicted");
            }
            EvictError::Overtaken => {
                self.give_back(held).await;
                return telemetry::eviction_ended("kept");
            }
            // Looked at again when it has been idle for as long once more.
            EvictError::NotAtTwilio(_) | EvictError::Sealed(_) => idle_for,
            EvictError::LeftAlone | EvictError::Catalog(_) => self.retry.cap,
            EvictError::Twilio(error) => {
                self.heed(held.duty.lease.id.account, error, began).await;
                let (after, not_before) = self.pause_after(error.code(), FAILED_BEFORE, error.retry_after());
                after.max(not_before)
            }
        };
        log_end(held, self.catalog.keep_recording(held.duty, idle_for, again).await);
        let is_kept = matches!(error, EvictError::NotAtTwilio(_) | EvictError::Sealed(_));
        telemetry::eviction_ended(if is_kept { "kept" } else { "failed" });
    }
}
