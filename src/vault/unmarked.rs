//! Markers that are gone from the bucket: of what was erased, and of what is held.
//!
//! While the catalog lives they are not missed. Without it, what was erased would come
//! back, and what is held would be removed. So a marker that was there and is not is
//! found, and written again by the duty that wrote it first: a hold that is released
//! meanwhile, or an erasing under way, is as right as ever. One that is still owed is no
//! find.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::Vault;
use super::audit::AuditError;
use super::cure::Remedy;
use super::duty::span_of;
use super::found::{Cure, Found, FoundKind};
use crate::domain::object_key::Marker;
use crate::domain::recording::{Recording, RecordingId, State};

/// Which marker a recording has in the bucket, once that is not owed any more.
pub(super) fn marker_of(row: &Recording) -> Option<Marker> {
    match row.state {
        State::Erased => Some(Marker::Erased),
        _ => row.hold.then_some(Marker::Held),
    }
}

impl Vault {
    /// Whether the marker of a recording is gone.
    pub(super) async fn find_unmarked(&self, row: &Recording) -> Result<Option<Found>, AuditError> {
        let Some(marker) = marker_of(row) else { return Ok(None) };
        let key = self.bucket.layout().marker(marker, &row.id);
        // Nearly all are there, and nothing more is asked.
        if self.bucket.facts(&key).await?.is_some() {
            return Ok(None);
        }
        // Gone is what was there before the bucket is asked, and has to be there after that.
        let before = self.written_marker(&row.id).await?;
        if before.is_none_or(|(written, _)| written != marker)
            || self.bucket.facts(&key).await?.is_some()
            || self.written_marker(&row.id).await? != before
        {
            return Ok(None);
        }
        let words = match marker {
            Marker::Erased => "is not there, though the recording was erased",
            Marker::Held => "is not there, though the recording is held",
        };
        let (kind, id, words) = (FoundKind::Unmarked, Some(row.id), format!("its marker {words}"));
        Ok(Some(Found { kind, id, key, words, cure: Cure::Mark(marker) }))
    }

    /// The marker that was written for a recording, and by which grant.
    async fn written_marker(&self, id: &RecordingId) -> Result<Option<(Marker, i64)>, AuditError> {
        let known = self.catalog.in_hand([id.recording]).await?;
        let row = known.get(&id.recording).and_then(|rows| rows.iter().find(|row| row.id == *id));
        Ok(row.and_then(|row| match row.state {
            State::Erased => row.is_erase_marked.then_some((Marker::Erased, 0)),
            _ => (row.hold && !row.owes_hold_marker).then_some((Marker::Held, row.hold_marker_epoch)),
        }))
    }

    /// Has the marker written again: now, or else by the next node that does such work.
    pub(super) async fn mark_again(
        &self,
        marker: Marker,
        id: &RecordingId,
        stopping: &CancellationToken,
    ) -> Result<Remedy, AuditError> {
        self.catalog.owe_marker(id, marker).await?;
        match marker {
            Marker::Held => drop(self.mark_hold(id).await?),
            Marker::Erased => {
                let granted = Instant::now();
                if let Some(duty) = self.catalog.grant_erasure(id, self.lease).await? {
                    let erasing = self.go_on_erasing(&duty, granted, stopping);
                    erasing.instrument(span_of("erase", &duty.recording)).await;
                }
            }
        }
        let is_written = self.written_marker(id).await?.is_some_and(|(written, _)| written == marker);
        Ok(if is_written { Remedy::Cured("is written again") } else { Remedy::Owed("will be written again by a node") })
    }
}
