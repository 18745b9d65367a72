//! Holds: set and released in the catalog, and said in the bucket by a marker.
//!
//! The marker is written before a hold is acknowledged, and removed before its
//! release is. Where that fails, the row says already what was asked for, and a
//! node goes on with the marker.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Vault;
use super::duty::DUTY_LEASE;
use crate::bucket::BucketError;
use crate::catalog::{CatalogError, HoldMarker};
use crate::domain::key::KeyId;
use crate::domain::object_key::Marker;
use crate::domain::recording::{Recording, RecordingId, State};

/// How long a request waits for another node that is at the same marker.
const WAIT_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Markers that are brought in line in one go.
const MARKERS_AT_ONCE: usize = 20;
/// A store that is away is tried again no sooner.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What a request to hold or release came to.
#[derive(Debug)]
pub enum Holding {
    /// The recording is not known.
    Unknown,
    /// It was erased: there is nothing to hold.
    Erased,
    /// The row says it, the bucket does not yet.
    Unmarked,
    /// Both say it.
    Done(Box<Recording>),
}

impl Vault {
    /// Sets a hold, or releases it, as the holder of that key asks for.
    pub async fn hold(
        self: &Arc<Self>,
        id: &RecordingId,
        hold: bool,
        asked_by: KeyId,
    ) -> Result<Holding, CatalogError> {
        let recording = match self.catalog.set_hold(id, hold, asked_by).await? {
            None => return Ok(Holding::Unknown),
            Some(recording) if recording.state == State::Erased => return Ok(Holding::Erased),
            Some(recording) => recording,
        };
        let call = recording.details.call_sid.map(tracing::field::display);
        tracing::info!(recording = %id, call, hold, %asked_by, "a hold was set or released");
        let until = Instant::now() + WAIT_MAX;
        loop {
            let (vault, id) = (self.clone(), *id);
            // Nobody's going away ends it.
            let marking = tokio::spawn(async move { vault.mark_hold(&id).await });
            let is_tried = match tokio::time::timeout_at(until, marking).await {
                Ok(Ok(is_tried)) => is_tried?,
                Ok(Err(_)) | Err(_) => true,
            };
            if !self.catalog.owes_hold_marker(&id).await? {
                return Ok(Holding::Done(Box::new(recording)));
            }
            if is_tried || Instant::now() >= until {
                return Ok(Holding::Unmarked);
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// Brings markers of holds in line that are due.
    pub async fn mark_holds(&self) -> Result<(), CatalogError> {
        for id in self.catalog.hold_markers_due(MARKERS_AT_ONCE).await? {
            self.mark_hold(&id).await?;
        }
        Ok(())
    }

    /// Brings the marker of a hold in line with its row; false where another node
    /// is at it, or nothing is owed.
    pub(super) async fn mark_hold(&self, id: &RecordingId) -> Result<bool, CatalogError> {
        if !self.knows_its_bucket() {
            // In another one it would be another service's. It stays owed.
            return Ok(true);
        }
        let Some(marker) = self.catalog.grant_hold_marker(id, DUTY_LEASE).await? else { return Ok(false) };
        let marked = self.write_hold_marker(&marker).await;
        if let Err(error) = &marked {
            let call = marker.recording.details.call_sid.map(tracing::field::display);
            tracing::warn!(recording = %id, call, %error, "the marker of a hold is not as it should be yet");
            if !error.is_refusal() && !marker.recording.hold {
                // A removal may still arrive: nobody writes there before the store refuses it.
                return Ok(true);
            }
        }
        let _ = self.catalog.settle_hold_marker(&marker, marked.is_ok(), AGAIN_AFTER).await?;
        Ok(true)
    }

    async fn write_hold_marker(&self, marker: &HoldMarker) -> Result<(), BucketError> {
        let recording = &marker.recording;
        match recording.hold {
            true => self.bucket.put_marker(Marker::Held, recording, false).await,
            false => {
                let key = self.bucket.layout().marker(Marker::Held, &recording.id);
                self.bucket.delete_under_lease(&key, marker.granted_at).await
            }
        }
    }
}
