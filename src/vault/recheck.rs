//! Looking again at what lies in the bucket for one recording.
//!
//! Works under a lease of its own, while the recording is at rest, and is the
//! only one to remove what a row does not name: what attempts staged, uploads
//! that nobody goes on with, and objects in the recording's folder. It notices an
//! object that is not there any more, and one that is whole though its recording
//! was given up; one that somebody doubted it reads back, and mends.
//!
//! In the folder of a recording that is still on its way nothing is removed, and it is
//! looked at later: what lies there may be the only copy, should the recording be given
//! up in the end. Of one that was erased or evicted nothing stays.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Vault;
use super::duty::{Cleared, DUTY_LEASE, Held, OBJECTS_AT_ONCE, Worked};
use crate::bucket::{BucketError, Throttle};
use crate::catalog::{CatalogError, Duty, Finding, Lease, Settled};
use crate::domain::recording::{State, StoredObject};
use crate::telemetry;

impl Vault {
    /// Notes that an attempt may have left something behind.
    pub(super) async fn owe_recheck(&self, lease: &Lease) -> Result<(), CatalogError> {
        self.catalog.owe_recheck(lease, self.recheck_after).await
    }

    /// Grants at most so many rechecks that are due to this node.
    pub async fn begin_rechecks(&self, at_most: usize) -> Result<Vec<Duty>, CatalogError> {
        self.catalog.grant_rechecks(at_most, DUTY_LEASE).await
    }

    /// Works on a recheck that was granted after `granted` until it is settled,
    /// its lease is lost, or `stopping` gives it back for another node.
    pub async fn recheck(&self, duty: &Duty, granted: Instant, stopping: &CancellationToken) {
        let held = Held::new(duty, DUTY_LEASE);
        let work = async { Ok((self.look_again(&held, &Throttle::default()).await?, ())) };
        self.settle_look(&held, granted, stopping, work).await;
    }

    /// Works under the lease of a recheck, and settles it as the work says. Gives
    /// what came of the work; None where it is not settled.
    pub(super) async fn settle_look<T>(
        &self,
        held: &Held<'_>,
        granted: Instant,
        stopping: &CancellationToken,
        work: impl Future<Output = Result<(Finding, T), BucketError>>,
    ) -> Option<T> {
        let recording = held.duty.lease.id;
        let (finding, came_of_it, again) = match self.work_under(held, granted, stopping, work).await {
            Worked::Done(Ok((finding, came_of_it))) => (finding, Some(came_of_it), self.recheck_after),
            Worked::Done(Err(error)) => {
                tracing::warn!(%recording, %error, "a recheck is not finished");
                (Finding::Unfinished, None, self.recheck_after)
            }
            Worked::Lost => {
                tracing::warn!(%recording, "the lease of a recheck was lost");
                telemetry::recheck_ended("stale");
                return None;
            }
            Worked::Stopped => (Finding::Unfinished, None, Duration::ZERO),
        };
        if held.has_delete_in_doubt() {
            // No claim before it has arrived, or the store refuses it: the lease lasts longer.
            tracing::warn!(%recording, "a delete is not answered; the lease of its recheck is left to run out");
            telemetry::recheck_ended("unfinished");
            return None;
        }
        let settled = self.catalog.settle_recheck(held.duty, &finding, again).await;
        if let Err(error) = &settled {
            tracing::warn!(%recording, %error, "the end of a recheck is not told; its lease will run out");
        }
        let is_done = matches!(settled, Ok(Settled::Done));
        telemetry::recheck_ended(if is_done { outcome_label(&finding) } else { "stale" });
        if is_done {
            tracing::info!(%recording, ?finding, "a recheck ended");
        }
        came_of_it.filter(|_| is_done)
    }

    pub(super) async fn look_again(&self, held: &Held<'_>, throttle: &Throttle) -> Result<Finding, BucketError> {
        let recording = &held.duty.recording;
        if matches!(recording.state, State::Evicted | State::Erased) {
            return Ok(match self.clear_bucket(held).await? {
                Cleared::All => Finding::InOrder,
                Cleared::NotAll => Finding::Unfinished,
                Cleared::Unclaimed(key) => {
                    let recording = recording.id;
                    tracing::warn!(%recording, key, "what is left of it has no `account-sid`: remove it by hand");
                    Finding::Unfinished
                }
            });
        }
        self.sweep_staging(held).await?;
        let folder = self.bucket.layout().recording_folder(&recording.id, &recording.details);
        // No key is made of a call that Twilio has not named.
        let Some(folder) = folder.filter(|_| recording.details_confirmed) else { return Ok(Finding::InOrder) };
        match (recording.state, &recording.object) {
            // Whoever claims it looks there; of an account that is paused nobody does.
            (State::Pending, _) if held.duty.look_first => self.look_for_whole(held, &folder, None, throttle).await,
            (State::Announced | State::Pending | State::Fetching | State::Evicted | State::Erased, _)
            | (State::Stored, None) => Ok(Finding::InOrder),
            (State::Stored, Some(object)) => self.look_at_stored(held, &folder, object, throttle).await,
            (State::Failed | State::Absent, named) => {
                self.look_for_whole(held, &folder, named.as_ref(), throttle).await
            }
        }
    }

    async fn look_at_stored(
        &self,
        held: &Held<'_>,
        folder: &str,
        object: &StoredObject,
        throttle: &Throttle,
    ) -> Result<Finding, BucketError> {
        // First of all: where the bucket itself is gone, this fails, and nothing counts as lost.
        let keys = self.bucket.list_folder(folder, OBJECTS_AT_ONCE).await?;
        if self.bucket.facts(&object.key).await?.is_none() {
            let recording = held.duty.lease.id;
            return Ok(match self.look_for_objects().await {
                Ok(()) => Finding::Lost,
                Err(error) => {
                    tracing::warn!(%recording, %error, "its object is missing, and it does not count as lost");
                    Finding::Unfinished
                }
            });
        }
        if held.duty.is_doubted {
            return Ok(self.mend_stored(held, object, throttle).await?.0);
        }
        let recording = &held.duty.recording;
        let own = self.bucket.layout().audio(&recording.id, &recording.details, &object.digest, object.format);
        if own.as_deref() != Some(object.key.as_str()) {
            // As where the bucket's prefix was changed: what lies here may be what was moved.
            tracing::warn!(recording = %recording.id, key = object.key, "its row names a key that is not its own; nothing is removed");
            return Ok(Finding::InOrder);
        }
        Ok(found(self.remove_ours(held, &keys, Some(&object.key)).await?))
    }

    /// Of a recording that has no audio: what is whole. What is damaged stays where it is
    /// on its way, or named by the row: there may be no other copy.
    async fn look_for_whole(
        &self,
        held: &Held<'_>,
        folder: &str,
        named: Option<&StoredObject>,
        throttle: &Throttle,
    ) -> Result<Finding, BucketError> {
        let keys = self.bucket.list_folder(folder, OBJECTS_AT_ONCE).await?;
        if let Some(whole) = self.newest_whole(held.duty.lease.id.account, &keys, throttle).await? {
            return Ok(Finding::Adopted(whole.object, Box::new(whole.said.unwrap_or_default())));
        }
        if held.duty.recording.state == State::Pending {
            return Ok(Finding::InOrder);
        }
        Ok(found(self.remove_ours(held, &keys, named.map(|object| object.key.as_str())).await?))
    }
}

/// What it is that all was looked at, or not.
pub(super) fn found(all: bool) -> Finding {
    if all { Finding::InOrder } else { Finding::Unfinished }
}

fn outcome_label(finding: &Finding) -> &'static str {
    match finding {
        Finding::InOrder => "in_order",
        Finding::Lost | Finding::Damaged(_) | Finding::Gone(_) => "lost",
        Finding::Adopted(..) | Finding::Replaced(..) => "adopted",
        Finding::Unfinished => "unfinished",
    }
}
