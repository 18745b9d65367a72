//! Multipart uploads that nobody goes on with and no row names.
//!
//! Looked for with what is staged, once a round. Of what a row may know of, a
//! recheck decides; the rest is ended once it is a day old. A store that lists the
//! uploads of an exact key only shows none here: its own rules for old uploads are
//! to end them.

use jiff::{SignedDuration, Timestamp};

use super::Vault;
use super::audit::AuditError;
use crate::bucket::OpenUpload;
use crate::catalog::InHand;
use crate::domain::place::Place;
use crate::domain::recording::{RecordingId, State};

/// No attempt is under way for that long.
const OLD: SignedDuration = SignedDuration::from_hours(24);

/// What becomes of an open upload.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It may be gone on with, or is seen to.
    Stays,
    /// The bucket is looked at again for its row.
    Owed,
    /// It is ended: no row can ask for that.
    Ends,
}

impl Vault {
    /// Sees to the open uploads below the staging folder.
    pub(super) async fn end_stray_uploads(&self) -> Result<(), AuditError> {
        let layout = self.bucket.layout();
        let now = self.now()?;
        let open = self.bucket.open_uploads_below(&layout.staging_folder(), now).await?;
        let staged = open.into_iter().filter_map(|upload| match layout.place(&upload.key) {
            Place::Staged { id, epoch } => Some((upload, id, epoch)),
            _ => None,
        });
        let staged: Vec<(OpenUpload, RecordingId, i64)> = staged.collect();
        let known = self.catalog.in_hand(staged.iter().map(|(_, id, _)| id.recording)).await?;
        for (upload, id, epoch) in &staged {
            let row = known.get(&id.recording).and_then(|rows| rows.iter().find(|row| row.id == *id));
            match fate(upload, *epoch, row, now) {
                Fate::Stays => {}
                Fate::Owed => self.catalog.owe_for_find(id, *epoch, (None, None), self.recheck_after).await?,
                Fate::Ends => {
                    let ended = self.bucket.abort_upload(&upload.key, &upload.upload_id).await;
                    match ended {
                        Ok(()) => tracing::warn!(key = upload.key, "an upload that no row names was ended"),
                        Err(error) => tracing::warn!(key = upload.key, %error, "an old upload is not ended"),
                    }
                }
            }
        }
        Ok(())
    }
}

fn fate(upload: &OpenUpload, epoch: i64, row: Option<&InHand>, now: Timestamp) -> Fate {
    let is_old = upload.begun_at.is_some_and(|begun_at| now.duration_since(begun_at) > OLD);
    let is_worked_on = row.is_some_and(|row| row.is_owed || row.state == State::Fetching);
    match row {
        _ if is_worked_on || !is_old => Fate::Stays,
        Some(row) if epoch <= row.epoch => Fate::Owed,
        _ => Fate::Ends,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::recording::tests::recording;

    #[test]
    fn what_is_old_and_named_by_no_row_is_ended_and_nothing_else_is() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let begun = |hours| OpenUpload {
            key: "k".to_owned(),
            upload_id: "u".to_owned(),
            begun_at: Some(now - SignedDuration::from_hours(hours)),
        };
        let row = |state, is_owed| InHand {
            id: recording(1, State::Stored, 1).id,
            state,
            epoch: 3,
            is_confirmed: true,
            key: None,
            is_owed,
            hold: false,
            owes_hold_marker: false,
            hold_marker_epoch: 0,
            is_erase_marked: false,
        };
        let rest = row(State::Stored, false);
        assert_eq!(fate(&begun(25), 1, None, now), Fate::Ends);
        assert_eq!(fate(&begun(23), 1, None, now), Fate::Stays);
        assert_eq!(fate(&begun(25), 4, Some(&rest), now), Fate::Ends, "a row that is made anew counts its epochs anew");
        assert_eq!(fate(&begun(25), 3, Some(&rest), now), Fate::Owed);
        assert_eq!(fate(&begun(25), 3, Some(&row(State::Stored, true)), now), Fate::Stays);
        assert_eq!(fate(&begun(25), 4, Some(&row(State::Fetching, false)), now), Fate::Stays);
        assert_eq!(fate(&OpenUpload { begun_at: None, ..begun(25) }, 1, None, now), Fate::Stays);
    }
}
