//! Making a catalog of what lies in the bucket: markers first, then objects.
//!
//! Works beside running nodes and before there are any. Both walks are saved as they
//! go: whoever is cut off is gone on for by the next one. Holds a page of the list at
//! most. Reads metadata, and no audio: what is wrong with the bytes a scrub finds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Vault;
use super::audit::AuditError;
use crate::bucket::{ListedObject, ObjectFacts, PAGE_MAX};
use crate::catalog::{BucketWalk, BucketWalkKind, FoundObject, InHand, Marked, Position, Settled};
use crate::domain::object_key::Marker;
use crate::domain::place::{Described, Place, said_of_recording};
use crate::domain::recording::{Details, RecordingId, State, StoredObject};
use crate::domain::sid::RecordingSid;
use crate::twilio::source::SourceHost;

/// Markers that are taken in one transaction.
const MARKERS_AT_ONCE: usize = 200;
/// Rows that are made in one transaction: others write between two of them.
const ROWS_AT_ONCE: i64 = 100;
/// Objects whose metadata is asked for side by side.
const LOOKS_AT_ONCE: usize = 16;
/// How often is looked whether another's walk is over.
const TURN_EVERY: Duration = Duration::from_millis(250);
/// A walk that was cut off is gone on with for so long. Later it begins anew: its catalog
/// may come out of a backup that was made then, and what the bucket had behind that place
/// is not what it has now.
const GOES_ON_WITHIN: Duration = Duration::from_secs(3600);
/// What giving a walk back may take at the end of a process.
const HAND_BACK_WITHIN: Duration = Duration::from_secs(2);
/// In this order: erased wins over held.
const MARKERS: [Marker; 2] = [Marker::Erased, Marker::Held];
/// The stages of the walk over the objects.
const GATHERING: i64 = 0;
const INDEXING: i64 = 1;

/// How far a reindex has come, for those who watch it.
#[derive(Debug, Default)]
pub struct ReindexProgress {
    /// Markers that were read.
    pub markers: AtomicU64,
    /// Entries of the bucket's list that were looked at.
    pub listed: AtomicU64,
    /// Objects that are not this service's, or do not agree with their key.
    pub passed_over: AtomicU64,
    /// Recordings that are to become rows, once all were gathered; 0 where that is not known.
    pub gathered: AtomicU64,
    /// Recordings that were gone through.
    pub indexed: AtomicU64,
    /// Whether the feed began anew: the catalog was older than its readers.
    pub feed_began_anew: AtomicBool,
}

/// Why a walk over the bucket could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// Catalog or bucket did not answer.
    #[error(transparent)]
    Parts(#[from] AuditError),
    /// Another has the lease by now.
    #[error("another process goes on with it")]
    Lost,
    /// This process is to end; what was done is saved.
    #[error("stopped")]
    Stopped,
}

impl From<crate::catalog::CatalogError> for WalkError {
    fn from(error: crate::catalog::CatalogError) -> Self {
        Self::Parts(error.into())
    }
}

impl From<crate::bucket::BucketError> for WalkError {
    fn from(error: crate::bucket::BucketError) -> Self {
        Self::Parts(error.into())
    }
}

impl Vault {
    /// Whether nothing at all lies in the bucket; then the catalog is read and indexed.
    pub async fn read_empty_bucket(&self) -> Result<bool, WalkError> {
        if self.catalog.is_read().await? {
            return Ok(false);
        }
        let prefix = self.bucket.layout().prefix();
        if !self.bucket.list_page(prefix, None, 1, self.now()?).await?.objects.is_empty() {
            return Ok(false);
        }
        self.catalog.nothing_is_there().await?;
        tracing::info!("the bucket is empty, and the catalog new: nothing is to be read");
        Ok(true)
    }

    /// Reads the markers if nobody else does and the catalog is not read yet. Says
    /// whether it is now. Given back to other nodes when it is `stopping`.
    pub async fn read_markers_once(&self, node: &str, stopping: &CancellationToken) -> Result<bool, WalkError> {
        if self.catalog.is_read().await? || self.read_empty_bucket().await? {
            return Ok(true);
        }
        let granted = Instant::now();
        let Some(walk) = self.catalog.grant_bucket_walk(BucketWalkKind::Markers, node, self.lease).await? else {
            return Ok(false);
        };
        self.keep_walk(&walk, granted, stopping, self.read_markers(&walk, &ReindexProgress::default())).await?;
        Ok(self.catalog.is_read().await?)
    }

    /// Makes a catalog of all that lies in the bucket, as a process of that name.
    /// Where another one is at it, that is waited for, and its work gone on with. Given
    /// back to others when it is `stopping`. The feed begins anew where the bucket knows
    /// more than a catalog that was indexed before, and where it was `restored` in any case;
    /// then nothing of an earlier walk counts either.
    pub async fn reindex(
        &self,
        node: &str,
        restored: bool,
        progress: &ReindexProgress,
        stopping: &CancellationToken,
    ) -> Result<(), WalkError> {
        let before = self.catalog.latest_event().await?;
        let walked = self.walk_over_all(node, restored, progress, stopping).await;
        // Where that is not known, the walk has failed, too.
        let began_anew = self.catalog.latest_event().await.is_ok_and(|now| now.is_of_another_era(before));
        progress.feed_began_anew.store(began_anew, Ordering::Relaxed);
        walked
    }

    async fn walk_over_all(
        &self,
        node: &str,
        restored: bool,
        progress: &ReindexProgress,
        stopping: &CancellationToken,
    ) -> Result<(), WalkError> {
        let owes_era = AtomicBool::new(restored);
        let left_for = if restored { Duration::ZERO } else { GOES_ON_WITHIN };
        for kind in [BucketWalkKind::Markers, BucketWalkKind::Objects] {
            self.catalog.begin_walk_anew(kind, left_for).await?;
        }
        self.again_until_held(async || {
            let (walk, granted) = self.wait_for_walk(BucketWalkKind::Markers, node, stopping).await?;
            // Once the walk was begun: what it finds begins no other one.
            if owes_era.load(Ordering::Relaxed) {
                self.catalog.begin_era().await?;
                owes_era.store(false, Ordering::Relaxed);
            }
            self.keep_walk(&walk, granted, stopping, self.read_markers(&walk, progress)).await
        })
        .await?;
        self.again_until_held(async || {
            let (walk, granted) = self.wait_for_walk(BucketWalkKind::Objects, node, stopping).await?;
            self.keep_walk(&walk, granted, stopping, self.walk_objects(&walk, progress)).await
        })
        .await
    }

    /// A lease that was lost is waited for again: what was done until then is saved.
    async fn again_until_held(&self, walk: impl AsyncFn() -> Result<(), WalkError>) -> Result<(), WalkError> {
        loop {
            match walk().await {
                Err(WalkError::Lost) => tracing::info!("the lease of the walk was lost; waiting for another one"),
                walked => return walked,
            }
        }
    }

    /// Waits until the walk is granted.
    async fn wait_for_walk(
        &self,
        kind: BucketWalkKind,
        node: &str,
        stopping: &CancellationToken,
    ) -> Result<(BucketWalk, Instant), WalkError> {
        let mut is_told = false;
        while !stopping.is_cancelled() {
            let granted = Instant::now();
            if let Some(walk) = self.catalog.grant_bucket_walk(kind, node, self.lease).await? {
                return Ok((walk, granted));
            }
            if !std::mem::replace(&mut is_told, true) {
                tracing::info!("another process is at it, or was cut off; waiting for its lease to end");
            }
            tokio::time::sleep(TURN_EVERY).await;
        }
        Err(WalkError::Stopped)
    }

    /// Walks under a lease that was granted after `granted`, for as long as it is kept.
    async fn keep_walk(
        &self,
        walk: &BucketWalk,
        granted: Instant,
        stopping: &CancellationToken,
        walking: impl Future<Output = Result<(), WalkError>>,
    ) -> Result<(), WalkError> {
        let renew = || self.catalog.renew_bucket_walk(walk, self.lease);
        let walked = tokio::select! {
            walked = walking => walked,
            () = self.keep("bucket_walk", granted, renew) => Err(WalkError::Lost),
            () = stopping.cancelled() => Err(WalkError::Stopped),
        };
        if matches!(walked, Err(WalkError::Parts(_) | WalkError::Stopped)) {
            // Where it fails the lease runs out.
            let _ = tokio::time::timeout(HAND_BACK_WITHIN, self.catalog.hand_back_bucket_walk(walk)).await;
        }
        walked
    }

    async fn read_markers(&self, walk: &BucketWalk, progress: &ReindexProgress) -> Result<(), WalkError> {
        let layout = self.bucket.layout();
        let mut at = walk.position.clone();
        loop {
            let stage = usize::try_from(at.stage).unwrap_or_default().min(MARKERS.len() - 1);
            let (marker, is_last) = (MARKERS[stage], stage + 1 == MARKERS.len());
            let folder = layout.marker_folder(marker);
            let page = self.bucket.list_page(&folder, at.after.as_deref(), MARKERS_AT_ONCE, self.now()?).await?;
            let marked = self.look_at_markers(marker, &page.objects).await?;
            let done = at.done + i64::try_from(marked.len()).unwrap_or_default();
            let next = match page.objects.last().filter(|_| page.has_more) {
                Some(last) => Some(Position { after: Some(last.key.clone()), done, ..at }),
                None if is_last => None,
                None => Some(Position { stage: at.stage + 1, after: None, done }),
            };
            held(self.catalog.take_markers(walk, marker, &marked, next.as_ref(), self.recheck_after).await?)?;
            progress.markers.fetch_add(marked.len() as u64, Ordering::Relaxed);
            let Some(next) = next else { return Ok(()) };
            at = next;
        }
    }

    /// What a part of a list of markers names.
    async fn look_at_markers(&self, marker: Marker, listed: &[ListedObject]) -> Result<Vec<Marked>, AuditError> {
        let layout = self.bucket.layout();
        let named = listed.iter().filter_map(|object| Some((layout.marked(marker, &object.key)?, &object.key)));
        let named: Vec<(RecordingId, &String)> = named.collect();
        let known = match marker {
            Marker::Held => self.catalog.in_hand(named.iter().map(|(id, _)| id.recording)).await?,
            Marker::Erased => HashMap::new(),
        };
        let looks: Vec<_> = named.into_iter().map(|(id, key)| self.marked(marker, id, key, &known)).collect();
        let marked: Vec<Option<Marked>> = stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect().await?;
        Ok(marked.into_iter().flatten().collect())
    }

    /// What a marker says of its recording, whose row was as `known` before: the row that
    /// is made of it is found by its call. None where a hold was released since its marker
    /// was listed; what was erased stays so.
    pub(super) async fn marked(
        &self,
        marker: Marker,
        id: RecordingId,
        key: &str,
        known: &HashMap<RecordingSid, Vec<InHand>>,
    ) -> Result<Option<Marked>, AuditError> {
        let facts = self.bucket.facts(key).await?;
        if marker == Marker::Held && facts.is_none() {
            return Ok(None);
        }
        let owes_twilio = facts.as_ref().is_some_and(ObjectFacts::owes_twilio);
        let said = facts.map(|facts| said_of_recording(&facts.metadata)).unwrap_or_default();
        let row = known.get(&id.recording).and_then(|rows| rows.iter().find(|row| row.id == id));
        let hold_marker_epoch = row.map_or(Some(0), |row| (!row.owes_hold_marker).then_some(row.hold_marker_epoch));
        let Details { call_sid, conference_sid, .. } = said;
        Ok(Some(Marked { id, call_sid, conference_sid, owes_twilio, hold_marker_epoch }))
    }

    async fn walk_objects(&self, walk: &BucketWalk, progress: &ReindexProgress) -> Result<(), WalkError> {
        let mut at = walk.position.clone();
        while at.stage == GATHERING {
            let prefix = self.bucket.layout().prefix();
            let page = self.bucket.list_page(prefix, at.after.as_deref(), PAGE_MAX, self.now()?).await?;
            let found = self.look_for_recordings(&page.objects, progress).await?;
            let done = at.done + i64::try_from(page.objects.len()).unwrap_or_default();
            at = match page.objects.last().filter(|_| page.has_more) {
                Some(last) => Position { after: Some(last.key.clone()), done, ..at },
                None => Position { stage: INDEXING, after: None, done: 0 },
            };
            held(self.catalog.gather(walk, &found, &at).await?)?;
            progress.listed.fetch_add(page.objects.len() as u64, Ordering::Relaxed);
        }
        match self.catalog.gathered().await {
            Ok(gathered) => progress.gathered.store(gathered.unsigned_abs(), Ordering::Relaxed),
            // Of very many it takes too long; only those who watch miss something.
            Err(error) => tracing::warn!(%error, "how many recordings are to be gone through is not known"),
        }
        loop {
            let indexed = self.catalog.index(walk, &at, ROWS_AT_ONCE, self.recheck_after).await?;
            match indexed.ok_or(WalkError::Lost)? {
                0 => break,
                indexed => progress.indexed.fetch_add(indexed as u64, Ordering::Relaxed),
            };
        }
        held(self.catalog.finish_index(walk).await?)
    }

    /// What of a part of the list is this service's, and not what a row names already.
    async fn look_for_recordings(
        &self,
        listed: &[ListedObject],
        progress: &ReindexProgress,
    ) -> Result<Vec<FoundObject>, WalkError> {
        let layout = self.bucket.layout();
        let mut audio = Vec::new();
        for object in listed {
            match layout.place(&object.key) {
                Place::Audio(place) => audio.push((object, place)),
                Place::Foreign => drop(progress.passed_over.fetch_add(1, Ordering::Relaxed)),
                Place::Staged { .. } | Place::Marker(..) => {}
            }
        }
        let known = self.catalog.in_hand(audio.iter().map(|(_, place)| place.recording)).await?;
        let is_named = |rows: &Vec<InHand>, key: &str| {
            rows.iter().any(|row| row.state == State::Stored && row.key.as_deref() == Some(key))
        };
        audio.retain(|(object, place)| !known.get(&place.recording).is_some_and(|rows| is_named(rows, &object.key)));
        let looks = audio.into_iter().map(async |(object, place)| {
            let Some(facts) = self.bucket.facts(&object.key).await? else { return Ok(None) };
            let size_bytes = i64::try_from(facts.size_bytes).unwrap_or(i64::MAX);
            let described = layout.described(&object.key, &facts.metadata);
            if described.is_none() {
                progress.passed_over.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(key = object.key, "an object is passed over: its metadata does not agree with its key");
            }
            Ok(described.map(|described| self.found_object(described, place.object(&object.key, size_bytes))))
        });
        let found: Result<Vec<Option<FoundObject>>, WalkError> =
            stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect().await;
        Ok(found?.into_iter().flatten().collect())
    }

    /// An object as the catalog takes it.
    pub(super) fn found_object(&self, described: Described, object: StoredObject) -> FoundObject {
        let Described { id, details, stored_at } = described;
        let source_host = self.twilio.home(&id.account).and_then(SourceHost::name);
        FoundObject { id, details, object, stored_at, source_host }
    }
}

pub(super) fn held(settled: Settled) -> Result<(), WalkError> {
    match settled {
        Settled::Done => Ok(()),
        Settled::Stale => Err(WalkError::Lost),
    }
}
