//! What duties have in common: a lease that is kept, and removing under it.
//!
//! Only an object whose `account-sid` is the row's is ever removed; a staging key
//! names the account itself. Where all of a recording is to go, that is not all that
//! counts: what lies under a key of ours in its folder and has no `account-sid`, as
//! when a tool wrote it again, is ours where its bytes are what the key says, and
//! otherwise the recording is not gone. No delete outlives the lease by which it was made
//! by more than its signature does, and whoever takes over waits for that.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::Vault;
use crate::bucket::{BucketError, ObjectFacts, Version};
use crate::catalog::{CatalogError, Duty, InHand, Settled};
use crate::domain::place::Place;
use crate::domain::recording::Recording;
use crate::telemetry;

/// How long a duty may go without renewing its lease: a minute longer than the
/// store takes a delete that was made under it. By so much its clock may be
/// behind the catalog's.
pub(super) const DUTY_LEASE: Duration = Duration::from_secs(120);
/// A renewed lease is a fresh grant: so early that a delete always has half of
/// its time left when it is made.
const RENEW_AT_LEAST_EVERY: Duration = Duration::from_secs(30);
/// Epochs that are swept at once.
const EPOCHS_AT_ONCE: usize = 4;
/// Objects that are looked at in one go. A recording has one or two.
pub(super) const OBJECTS_AT_ONCE: usize = 1000;

/// In what work on a recording at rest is told of: with what people search for.
pub fn span_of(work: &'static str, recording: &Recording) -> Span {
    tracing::info_span!(
        "duty",
        work,
        account_sid = %recording.id.account,
        recording_sid = %recording.id.recording,
        call_sid = recording.details.call_sid.map(tracing::field::display),
    )
}

/// A duty that was begun: its lease, and as of when that was last granted.
pub(super) struct Held<'a> {
    pub(super) duty: &'a Duty,
    lease: Duration,
    granted_at: Mutex<Timestamp>,
    /// A delete was sent and not answered: it may still arrive.
    delete_in_doubt: AtomicBool,
}

/// What came of clearing away all of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cleared {
    /// Nothing of it is left.
    All,
    /// There is, or may be, more than was looked at.
    NotAll,
    /// The object at that key may be of it, and does not say whose it is.
    Unclaimed(String),
}

impl Cleared {
    fn of(is_all: bool) -> Self {
        if is_all { Self::All } else { Self::NotAll }
    }

    fn and(self, other: Self) -> Self {
        if self == Self::All { other } else { self }
    }
}

/// Whose an object in the folder of a recording is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This service wrote it for the row's account.
    Ours,
    /// It is nothing of this service's, or another account's.
    Others,
    /// It has the key of such an object, and neither its metadata nor its bytes.
    NotSaid,
}

/// How the work under a lease ended.
pub(super) enum Worked<T> {
    /// By itself.
    Done(T),
    /// The lease is another's, or may be.
    Lost,
    /// This node is to end.
    Stopped,
}

impl<'a> Held<'a> {
    /// A duty whose lease has that length.
    pub(super) fn new(duty: &'a Duty, lease: Duration) -> Self {
        Self { duty, lease, granted_at: Mutex::new(duty.granted_at), delete_in_doubt: AtomicBool::new(false) }
    }

    pub(super) fn granted_at(&self) -> Timestamp {
        *self.granted_at.lock().expect("nothing panics while it holds the time")
    }

    /// Whether a delete may still arrive: the lease is to be left to run out then.
    pub(super) fn has_delete_in_doubt(&self) -> bool {
        self.delete_in_doubt.load(Ordering::Acquire)
    }
}

impl Vault {
    /// Works under a lease that was granted after `granted`, for as long as it is kept.
    pub(super) async fn work_under<T>(
        &self,
        held: &Held<'_>,
        granted: Instant,
        stopping: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Worked<T> {
        tokio::select! {
            done = work => Worked::Done(done),
            () = self.keep_duty(held, granted) => Worked::Lost,
            () = stopping.cancelled() => Worked::Stopped,
        }
    }

    /// Renews the lease for as long as that works; returns when it is lost, or may be.
    async fn keep_duty(&self, held: &Held<'_>, granted: Instant) {
        let mut renewed = granted;
        loop {
            tokio::time::sleep_until(renewed + (held.lease / 4).min(RENEW_AT_LEAST_EVERY)).await;
            let asked = Instant::now();
            let renewing = self.catalog.renew_duty(held.duty, held.lease);
            match tokio::time::timeout_at(renewed + held.lease, renewing).await {
                Ok(Ok(Some(granted_at))) => {
                    *held.granted_at.lock().expect("nothing panics while it holds the time") = granted_at;
                    renewed = asked;
                }
                // Begun again by the next grant, rather than prolonged in doubt.
                Ok(Ok(None) | Err(_)) | Err(_) => return telemetry::lease_lost("duty"),
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

    /// Removes all that this service wrote for a recording, with all versions
    /// where the bucket keeps them.
    pub(super) async fn clear_bucket(&self, held: &Held<'_>) -> Result<Cleared, BucketError> {
        self.sweep_staging(held).await?;
        let id = &held.duty.lease.id;
        let staged = self.clear_versions(held, &self.bucket.layout().staging_of(id), true).await?;
        let recording = &held.duty.recording;
        let folder = self.bucket.layout().recording_folder(id, &recording.details);
        // No key is made of a call that Twilio has not named; a catalog before this one may have known it.
        let Some(folder) = folder.filter(|_| recording.details_confirmed) else {
            return Ok(staged.and(Cleared::of(self.catalog.is_indexed().await.unwrap_or(false))));
        };
        let objects = self.clear_folder(held, &folder).await?;
        let versions = self.clear_versions(held, &folder, false).await?;
        Ok(objects.and(versions).and(staged))
    }

    async fn clear_folder(&self, held: &Held<'_>, folder: &str) -> Result<Cleared, BucketError> {
        let keys = self.bucket.list_folder(folder, OBJECTS_AT_ONCE).await?;
        let mut cleared = Cleared::of(keys.len() < OBJECTS_AT_ONCE);
        for key in keys {
            match self.whose(held, &key, None).await? {
                Whose::Ours => self.remove(held, &key).await?,
                Whose::Others => {}
                Whose::NotSaid => cleared = Cleared::Unclaimed(key),
            }
        }
        Ok(cleared)
    }

    /// Removes versions below a prefix: those of the row's account, or all where
    /// the prefix itself names it.
    async fn clear_versions(&self, held: &Held<'_>, prefix: &str, all_are_ours: bool) -> Result<Cleared, BucketError> {
        let (versions, are_all) = self.bucket.versions(prefix, held.granted_at()).await?;
        let mut cleared = Cleared::of(are_all);
        let mut others = HashSet::new();
        for version in versions.iter().filter(|version| !version.is_delete_marker) {
            let whose = if all_are_ours { Whose::Ours } else { self.whose(held, &version.key, Some(version)).await? };
            if whose == Whose::NotSaid {
                cleared = Cleared::Unclaimed(version.key.clone());
            }
            if whose == Whose::Ours {
                self.in_doubt(held, self.bucket.delete_version(version, held.granted_at())).await?;
                telemetry::recheck_removed("version");
            } else {
                others.insert(version.key.as_str());
            }
        }
        // With those gone, nothing of anybody else's comes to light again.
        let marks = versions.iter().filter(|version| version.is_delete_marker && are_all);
        for mark in marks.filter(|mark| !others.contains(mark.key.as_str())) {
            self.in_doubt(held, self.bucket.delete_version(mark, held.granted_at())).await?;
        }
        Ok(cleared)
    }

    /// Whose an object is, or one version of it.
    async fn whose(&self, held: &Held<'_>, key: &str, version: Option<&Version>) -> Result<Whose, BucketError> {
        let id = &held.duty.lease.id;
        let described = match version {
            Some(version) => self.bucket.version_facts(version).await?,
            None => self.bucket.facts(key).await?,
        };
        let Some(described) = described else { return Ok(Whose::Others) };
        if let Some(account) = described.account_sid() {
            return Ok(if account == id.account.as_str() { Whose::Ours } else { Whose::Others });
        }
        let Place::Audio(place) = self.bucket.layout().place(key) else { return Ok(Whose::Others) };
        // Another account's row may name it.
        let Ok(rows) = self.catalog.in_hand([id.recording]).await else { return Ok(Whose::NotSaid) };
        let names = |row: &InHand| row.id != *id && row.key.as_deref() == Some(key);
        if rows.values().flatten().any(names) {
            return Ok(Whose::Others);
        }
        let read = match version {
            Some(version) => self.bucket.read_back_version(version).await?,
            None => self.bucket.read_back(key).await?,
        };
        Ok(match read {
            Some((digest, _)) if digest == place.digest => Whose::Ours,
            Some(_) => Whose::NotSaid,
            None => Whose::Others,
        })
    }

    /// Removes what this service wrote for the row's account, but for what the row
    /// names. False where there is more than these keys.
    pub(super) async fn remove_ours(
        &self,
        held: &Held<'_>,
        keys: &[String],
        named: Option<&str>,
    ) -> Result<bool, BucketError> {
        for key in keys.iter().filter(|key| Some(key.as_str()) != named) {
            if self.describe_ours(held, key).await?.is_some() {
                self.remove(held, key).await?;
            }
        }
        Ok(keys.len() < OBJECTS_AT_ONCE)
    }

    async fn remove(&self, held: &Held<'_>, key: &str) -> Result<(), BucketError> {
        self.delete(held, key).await?;
        tracing::info!(recording = %held.duty.lease.id, key, "an object that no row names was removed");
        telemetry::recheck_removed("object");
        Ok(())
    }

    async fn delete(&self, held: &Held<'_>, key: &str) -> Result<(), BucketError> {
        self.in_doubt(held, self.bucket.delete_under_lease(key, held.granted_at())).await
    }

    /// Cancelled or not answered, a delete stays in doubt.
    async fn in_doubt(
        &self,
        held: &Held<'_>,
        deleting: impl Future<Output = Result<(), BucketError>>,
    ) -> Result<(), BucketError> {
        held.delete_in_doubt.store(true, Ordering::Release);
        let deleted = deleting.await;
        let is_clear = deleted.as_ref().map_or_else(BucketError::is_refusal, |()| true);
        // One that was in doubt before would have ended the duty.
        held.delete_in_doubt.store(!is_clear, Ordering::Release);
        deleted
    }

    /// An object that this service wrote for the row's account.
    pub(super) async fn describe_ours(&self, held: &Held<'_>, key: &str) -> Result<Option<ObjectFacts>, BucketError> {
        self.describe_own(held.duty.lease.id.account, key).await
    }

    /// Gives a duty back, unless something done under it may still arrive.
    pub(super) async fn give_back(&self, held: &Held<'_>) {
        let recording = held.duty.lease.id;
        if held.has_delete_in_doubt() {
            // No claim before it has arrived, or the store refuses it: the lease lasts longer.
            tracing::warn!(%recording, "a delete is not answered; the lease of its duty is left to run out");
            return;
        }
        let given_back = self.catalog.give_back_duty(held.duty).await;
        log_end(held, given_back);
    }
}

/// A catalog that is not told of the end of a duty learns it from its lease.
pub(super) fn log_end(held: &Held<'_>, settled: Result<Settled, CatalogError>) -> bool {
    let recording = held.duty.lease.id;
    match settled {
        Ok(Settled::Done) => true,
        Ok(Settled::Stale) => {
            tracing::info!(%recording, "the lease of a duty was another's by its end");
            false
        }
        Err(error) => {
            tracing::warn!(%recording, %error, "the end of a duty is not told; its lease will run out");
            false
        }
    }
}
