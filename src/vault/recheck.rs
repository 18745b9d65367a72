//! Looking again at what lies in the bucket for one recording.
//!
//! Works under a lease of its own, while the recording is at rest, and is the
//! only one to remove what a row does not name: what attempts staged, uploads
//! that nobody goes on with, and objects in the recording's folder. It notices an
//! object that is not there any more, and one that is whole though its recording
//! was given up.
//!
//! Only an object whose `account-sid` is the row's is removed or adopted; a
//! staging key names the account itself. The folder of a recording that is still
//! on its way is left alone, and looked at later: what lies there may be the only
//! copy, should the recording be given up in the end. No delete outlives the
//! lease by which it was made.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Vault;
use super::adopt::OBJECTS_AT_ONCE;
use crate::bucket::BucketError;
use crate::catalog::{CatalogError, Duty, Finding, Lease, Settled};
use crate::domain::recording::{State, StoredObject};
use crate::telemetry;

/// How long a recheck may go without renewing its lease: a minute longer than the
/// store takes a delete that was made under it. By so much its clock may be
/// behind the catalog's.
pub(super) const DUTY_LEASE: Duration = Duration::from_secs(120);
/// A renewed lease is a fresh grant: so early that a delete always has half of
/// its time left when it is made.
const RENEW_EVERY: Duration = Duration::from_secs(30);
/// Epochs that are swept at once.
const EPOCHS_AT_ONCE: usize = 4;

/// A recheck that was begun: its lease, and as of when that was last granted.
pub(super) struct Held<'a> {
    pub(super) duty: &'a Duty,
    granted_at: Mutex<Timestamp>,
    /// A delete was sent and not answered: it may still arrive.
    delete_in_doubt: AtomicBool,
}

impl Held<'_> {
    fn granted_at(&self) -> Timestamp {
        *self.granted_at.lock().expect("nothing panics while it holds the time")
    }
}

impl Vault {
    /// Notes that an attempt may have left something behind.
    pub(super) async fn owe_recheck(&self, lease: &Lease) -> Result<(), CatalogError> {
        self.catalog.owe_recheck(lease, self.recheck_after).await
    }

    /// Grants at most so many rechecks that are due to this node.
    pub async fn begin_rechecks(&self, at_most: usize) -> Result<Vec<Duty>, CatalogError> {
        self.catalog.grant_rechecks(&self.accounts, at_most, DUTY_LEASE).await
    }

    /// Works on a recheck that was granted after `granted` until it is settled,
    /// its lease is lost, or `stopping` gives it back for another node.
    pub async fn recheck(&self, duty: &Duty, granted: Instant, stopping: &CancellationToken) {
        self.under_duty(duty, granted, stopping, async |held: &Held<'_>| Ok((self.look_again(held).await?, ()))).await;
    }

    /// Works under the lease of a recheck, and settles it as the work says. Gives
    /// what came of the work; None where it is not settled.
    pub(super) async fn under_duty<T>(
        &self,
        duty: &Duty,
        granted: Instant,
        stopping: &CancellationToken,
        work: impl AsyncFnOnce(&Held<'_>) -> Result<(Finding, T), BucketError>,
    ) -> Option<T> {
        let granted_at = Mutex::new(duty.granted_at);
        let held = Held { duty, granted_at, delete_in_doubt: AtomicBool::new(false) };
        let recording = duty.lease.id;
        let (finding, came_of_it, again) = tokio::select! {
            worked = work(&held) => match worked {
                Ok((finding, came_of_it)) => (finding, Some(came_of_it), self.recheck_after),
                Err(error) => {
                    tracing::warn!(%recording, %error, "a recheck is not finished");
                    (Finding::Unfinished, None, self.recheck_after)
                }
            },
            () = self.keep_duty(&held, granted) => {
                tracing::warn!(%recording, "the lease of a recheck was lost");
                telemetry::recheck_ended("stale");
                return None;
            }
            () = stopping.cancelled() => (Finding::Unfinished, None, Duration::ZERO),
        };
        if held.delete_in_doubt.load(Ordering::Acquire) {
            // No claim before it has arrived, or the store refuses it: the lease lasts longer.
            tracing::warn!(%recording, "a delete is not answered; the lease of its recheck is left to run out");
            telemetry::recheck_ended("unfinished");
            return None;
        }
        match self.catalog.settle_recheck(duty, &finding, again).await {
            Ok(Settled::Done) => {
                tracing::info!(%recording, ?finding, "a recheck ended");
                telemetry::recheck_ended(outcome_label(&finding));
                came_of_it
            }
            Ok(Settled::Stale) => {
                telemetry::recheck_ended("stale");
                None
            }
            Err(error) => {
                tracing::warn!(%recording, %error, "the end of a recheck is not told; its lease will run out");
                telemetry::recheck_ended("stale");
                None
            }
        }
    }

    /// Renews the lease for as long as that works; returns when it is lost, or may be.
    async fn keep_duty(&self, held: &Held<'_>, granted: Instant) {
        let mut renewed = granted;
        loop {
            tokio::time::sleep_until(renewed + RENEW_EVERY).await;
            let asked = Instant::now();
            match tokio::time::timeout_at(renewed + DUTY_LEASE, self.catalog.renew_recheck(held.duty, DUTY_LEASE)).await
            {
                Ok(Ok(Some(granted_at))) => {
                    *held.granted_at.lock().expect("nothing panics while it holds the time") = granted_at;
                    renewed = asked;
                }
                // Looked at again by the next recheck, rather than prolonged in doubt.
                Ok(Ok(None) | Err(_)) | Err(_) => return,
            }
        }
    }

    pub(super) async fn look_again(&self, held: &Held<'_>) -> Result<Finding, BucketError> {
        self.sweep_staging(held).await?;
        let recording = &held.duty.recording;
        let folder = self.bucket.layout().recording_folder(&recording.id, &recording.details);
        // No key is made of a call that Twilio has not named.
        let Some(folder) = folder.filter(|_| recording.details_confirmed) else { return Ok(Finding::InOrder) };
        match (recording.state, &recording.object) {
            (State::Announced | State::Pending | State::Fetching, _) | (State::Stored, None) => Ok(Finding::InOrder),
            (State::Stored, Some(object)) => self.look_at_stored(held, &folder, object).await,
            (State::Failed | State::Absent, named) => self.look_for_whole(held, &folder, named.as_ref()).await,
            (State::Evicted | State::Erased, _) => {
                let keys = self.bucket.list_folder(&folder, OBJECTS_AT_ONCE).await?;
                self.remove_ours(held, &keys, None).await
            }
        }
    }

    /// Clears away what was staged by attempts that are over.
    pub(super) async fn sweep_staging(&self, held: &Held<'_>) -> Result<(), BucketError> {
        let duty = held.duty;
        let staging = |epoch| self.bucket.layout().staging(&duty.lease.id, epoch);
        if let Some(leftover) = &duty.leftover {
            // By its id: not every store can tell which uploads are open.
            self.bucket.abort_upload(&staging(leftover.epoch), &leftover.upload_id).await?;
        }
        let epochs = stream::iter(duty.swept_epoch.max(1)..duty.lease.epoch).map(staging);
        let swept = epochs.map(|key| self.sweep_key(held, key)).buffer_unordered(EPOCHS_AT_ONCE);
        swept.try_for_each(|()| std::future::ready(Ok(()))).await
    }

    async fn sweep_key(&self, held: &Held<'_>, key: String) -> Result<(), BucketError> {
        for upload_id in self.bucket.open_uploads(&key, held.granted_at()).await? {
            self.bucket.abort_upload(&key, &upload_id).await?;
            telemetry::recheck_removed("upload");
        }
        if self.bucket.facts(&key).await?.is_some() {
            self.delete(held, &key).await?;
            telemetry::recheck_removed("staged");
        }
        Ok(())
    }

    async fn look_at_stored(
        &self,
        held: &Held<'_>,
        folder: &str,
        object: &StoredObject,
    ) -> Result<Finding, BucketError> {
        // First of all: where the bucket itself is gone, this fails, and nothing counts as lost.
        let keys = self.bucket.list_folder(folder, OBJECTS_AT_ONCE).await?;
        if self.bucket.facts(&object.key).await?.is_none() {
            return Ok(Finding::Lost);
        }
        self.remove_ours(held, &keys, Some(&object.key)).await
    }

    /// Of a recording that was given up: what is whole. What is damaged and named by
    /// the row stays: there may be no other copy.
    async fn look_for_whole(
        &self,
        held: &Held<'_>,
        folder: &str,
        named: Option<&StoredObject>,
    ) -> Result<Finding, BucketError> {
        let keys = self.bucket.list_folder(folder, OBJECTS_AT_ONCE).await?;
        if let Some(object) = self.newest_whole(held.duty.lease.id.account, &keys).await? {
            return Ok(Finding::Adopted(object));
        }
        self.remove_ours(held, &keys, named.map(|object| object.key.as_str())).await
    }

    /// Removes what this service wrote for the row's account, but for what the row names.
    pub(super) async fn remove_ours(
        &self,
        held: &Held<'_>,
        keys: &[String],
        named: Option<&str>,
    ) -> Result<Finding, BucketError> {
        for key in keys.iter().filter(|key| Some(key.as_str()) != named) {
            if self.describe_own(held.duty.lease.id.account, key).await?.is_some() {
                self.delete(held, key).await?;
                tracing::info!(recording = %held.duty.lease.id, key, "an object that no row names was removed");
                telemetry::recheck_removed("object");
            }
        }
        Ok(if keys.len() < OBJECTS_AT_ONCE { Finding::InOrder } else { Finding::Unfinished })
    }

    /// Cancelled or not answered, it stays in doubt.
    async fn delete(&self, held: &Held<'_>, key: &str) -> Result<(), BucketError> {
        held.delete_in_doubt.store(true, Ordering::Release);
        let deleted = self.bucket.delete_under_lease(key, held.granted_at()).await;
        let is_clear = deleted.as_ref().map_or_else(BucketError::is_refusal, |()| true);
        // One that was in doubt before would have ended the recheck.
        held.delete_in_doubt.store(!is_clear, Ordering::Release);
        deleted
    }
}

fn outcome_label(finding: &Finding) -> &'static str {
    match finding {
        Finding::InOrder => "in_order",
        Finding::Lost | Finding::Damaged(_) => "lost",
        Finding::Adopted(_) => "adopted",
        Finding::Unfinished => "unfinished",
    }
}
