//! Holds: the mark on the row, and its marker in the bucket.
//!
//! The row decides: whoever erases, evicts or deletes at Twilio looks at it under
//! its lock, and a hold makes a duty that is under way stale. What was evicted before
//! comes back. The marker follows, by one node at a time, until it says what the row says.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use sqlx::AssertSqlSafe;

use super::accept::{TO_PENDING, lock};
use super::columns::columns_of;
use super::erasures::Owed;
use super::lease::Settled;
use super::sql::{Row, Session, args, now};
use super::{Catalog, Result, feed, rows};
use crate::domain::key::KeyId;
use crate::domain::recording::{Recording, RecordingId, State};

/// The right to bring the marker of a hold in line with its row.
#[derive(Debug, Clone, PartialEq)]
pub struct HoldMarker {
    /// The recording, as it was then: held or not.
    pub recording: Recording,
    /// When it was granted, by the catalog's clock.
    pub granted_at: Timestamp,
    /// Names the grant.
    epoch: i64,
}

impl HoldMarker {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            recording: rows::recording(row)?,
            granted_at: row.time("now_ms")?,
            epoch: row.get::<i64>("hold_marker_epoch")? + 1,
        })
    }
}

/// Whoever holds the lease of a duty is stale from then on; the lease itself
/// lasts, because a delete may be on its way.
const SET: &str = concat!(
    "UPDATE recordings SET hold = $3, epoch = CASE WHEN $3 = 1 AND duty_until IS NOT NULL AND state <> 'fetching' \
     THEN epoch + 1 ELSE epoch END, \
     hold_marker_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2"
);
/// Said again: the marker is looked after at once.
const SET_AGAIN: &str = concat!(
    "UPDATE recordings SET hold_marker_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2 AND (hold = 1 OR hold_marker_due_at IS NOT NULL)"
);
macro_rules! free {
    () => {
        concat!("(hold_marker_until IS NULL OR hold_marker_until <= ", now!(), ")")
    };
}
const ONE: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    ", ",
    now!(),
    " AS now_ms FROM recordings WHERE account_sid = $1 AND recording_sid = $2 AND hold_marker_due_at IS NOT NULL AND ",
    free!()
);
const DUE: &str = concat!(
    "SELECT account_sid, recording_sid FROM recordings WHERE hold_marker_due_at <= ",
    now!(),
    " AND ",
    free!(),
    " ORDER BY hold_marker_due_at LIMIT $1"
);
const GRANT: &str = concat!(
    "UPDATE recordings SET hold_marker_epoch = hold_marker_epoch + 1, hold_marker_until = ",
    now!(),
    " + $3 WHERE account_sid = $1 AND recording_sid = $2"
);
/// A hold that was set or released meanwhile has its own marker to come.
const SETTLE: &str = concat!(
    "UPDATE recordings SET hold_marker_until = NULL, \
     hold_marker_owed_since = CASE WHEN hold = $4 AND $5 = 1 THEN NULL \
     ELSE coalesce(hold_marker_owed_since, hold_marker_due_at) END, \
     hold_marker_due_at = CASE WHEN hold <> $4 THEN ",
    now!(),
    " WHEN $5 = 1 THEN NULL ELSE ",
    now!(),
    " + $6 END WHERE account_sid = $1 AND recording_sid = $2 AND hold_marker_epoch = $3"
);
const OWED: &str = concat!(
    "SELECT count(*) AS owed, min(coalesce(hold_marker_owed_since, hold_marker_due_at)) AS owed_since, ",
    now!(),
    " AS now_ms FROM recordings WHERE hold_marker_due_at IS NOT NULL"
);
const OWES: &str = "SELECT 1 AS one FROM recordings WHERE account_sid = $1 AND recording_sid = $2 \
                    AND hold_marker_due_at IS NOT NULL";

/// What is left of its object is looked at before Twilio is asked.
const LOOK_FIRST: &str = "UPDATE recordings SET look_first = 1 WHERE account_sid = $1 AND recording_sid = $2";

/// Has a recording that is held from now on come back where it was evicted: what
/// Twilio has may go there, and what is left of its object is not to be removed.
pub(super) async fn keep(session: &mut Session, known: &Recording) -> Result<()> {
    if known.state != State::Evicted {
        return Ok(());
    }
    let id = &known.id;
    session.execute(TO_PENDING, args![id.account, id.recording]).await?;
    session.execute(LOOK_FIRST, args![id.account, id.recording]).await?;
    Ok(())
}

impl dyn Catalog + '_ {
    /// Sets a hold, or releases it, as the holder of that key asks for; what is erased is
    /// left as it is. Gives the recording as it is then, None where it is not known. The
    /// marker is owed then.
    pub async fn set_hold(&self, id: &RecordingId, hold: bool, asked_by: KeyId) -> Result<Option<Recording>> {
        let mut session = self.begin().await?;
        let known = lock(&mut session, id).await?;
        match &known {
            None => {}
            Some(known) if known.state == State::Erased => {}
            Some(known) if known.hold == hold => {
                session.execute(SET_AGAIN, args![id.account, id.recording]).await?;
            }
            Some(known) => {
                session.execute(SET, args![id.account, id.recording, i64::from(hold)]).await?;
                let kind = if hold { "recording.held" } else { "recording.released" };
                feed::append(&mut session, id, kind, json!({"by": "request", "key": asked_by})).await?;
                if hold {
                    keep(&mut session, known).await?;
                }
            }
        }
        let recording = lock(&mut session, id).await?;
        session.commit().await?;
        self.announce_change();
        Ok(recording)
    }

    /// Whether the marker does not say yet what the row says of a hold.
    pub async fn owes_hold_marker(&self, id: &RecordingId) -> Result<bool> {
        Ok(self.read().await?.row(OWES, args![id.account, id.recording]).await?.is_some())
    }

    /// What is owed of markers of holds, or of their removal.
    pub async fn hold_markers_owed(&self) -> Result<Owed> {
        let row = self.read().await?.row(OWED, args![]).await?;
        row.map_or(Ok(Owed::default()), |row| Owed::read(&row))
    }

    /// Recordings whose markers of a hold are due, at most so many.
    pub async fn hold_markers_due(&self, at_most: usize) -> Result<Vec<RecordingId>> {
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        let rows = self.read().await?.rows(DUE, args![at_most]).await?;
        rows.iter().map(rows::id).collect()
    }

    /// Grants the right to write or remove the marker of a hold. None where it
    /// is in line, or another node is at it.
    pub async fn grant_hold_marker(&self, id: &RecordingId, duration: Duration) -> Result<Option<HoldMarker>> {
        let mut session = self.begin().await?;
        let locking = session.for_update();
        let row = session.row(AssertSqlSafe(format!("{ONE}{locking}")), args![id.account, id.recording]).await?;
        let Some(row) = row else {
            session.rollback().await?;
            return Ok(None);
        };
        let marker = HoldMarker::read(&row)?;
        session.execute(GRANT, args![id.account, id.recording, duration]).await?;
        session.commit().await?;
        Ok(Some(marker))
    }

    /// The marker is as the recording of the grant wants it, or it is tried
    /// `again` after that time.
    pub async fn settle_hold_marker(&self, marker: &HoldMarker, is_done: bool, again: Duration) -> Result<Settled> {
        let (id, hold) = (&marker.recording.id, i64::from(marker.recording.hold));
        let args = args![id.account, id.recording, marker.epoch, hold, i64::from(is_done), again];
        self.settle_duty(SETTLE, args).await
    }
}
