//! What the bucket's markers say: erased, and held.
//!
//! They apply to rows that exist too, and erased wins over held. An erased
//! recording that no row knows gets one, so that it never comes back; a hold is
//! kept for the row that is made later. Reading a marker twice changes nothing. A walk
//! over them that tells an indexed catalog what it did not know begins a new era of the
//! feed; one marker that is taken by itself does not.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::accept::lock;
use super::bucket_walk::{BucketWalk, Position, finish, save};
use super::erase::{ErasedBy, erase, owe_twilio};
use super::hold::keep;
use super::lease::{Lease, Settled};
use super::sql::{Session, args};
use super::{Catalog, Result, birth, era, feed, recheck, scrub};
use crate::domain::object_key::Marker;
use crate::domain::recording::{RecordingId, State};
use crate::domain::sid::{CallSid, ConferenceSid};

/// What a marker names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// The recording.
    pub id: RecordingId,
    /// The call it was made of, where the marker says so.
    pub call_sid: Option<CallSid>,
    /// The conference it was made of, where the marker says so.
    pub conference_sid: Option<ConferenceSid>,
    /// Whether the copy at Twilio of what was erased was still to go.
    pub owes_twilio: bool,
    /// As which its row knew the marker of a hold before this one was looked at: one that
    /// was brought in line since says nothing any more. None: it was about to be.
    pub hold_marker_epoch: Option<i64>,
}

/// Its marker is there; whether anything else of it still is, is looked at.
const CREATE_ERASED: &str = "INSERT INTO recordings (account_sid, recording_sid, state, announced_by, details_confirmed, \
     call_sid, conference_sid, accepted_at, ordered_at, erase_marked, erase_twilio, erase_due_at) \
     SELECT $1, $2, 'erased', '', CASE WHEN $3 IS NULL AND $4 IS NULL THEN 0 ELSE 1 END, $3, $4, now_ms, now_ms, 1, $5, \
     now_ms FROM clock WHERE 1 = 1 ON CONFLICT DO NOTHING";
/// Erased wins over held.
const RELEASE: &str = "UPDATE recordings SET hold = 0 WHERE account_sid = $1 AND recording_sid = $2";
/// The marker of a hold that is being released says nothing any more.
const HOLD: &str = "UPDATE recordings SET hold = 1 WHERE account_sid = $1 AND recording_sid = $2 \
     AND hold_marker_due_at IS NULL AND hold_marker_epoch = $3";
const KEEP_HOLD: &str = "INSERT INTO marked_holds (account_sid, recording_sid) VALUES ($1, $2) ON CONFLICT DO NOTHING";
const KNOWS_HOLD: &str = "SELECT 1 AS one FROM marked_holds WHERE account_sid = $1 AND recording_sid = $2";

/// Makes a row that has just been made hold what the bucket said of it.
pub(super) const HOLD_AS_MARKED: &str = "UPDATE recordings SET hold = 1 WHERE account_sid = $1 AND recording_sid = $2 AND EXISTS \
     (SELECT 1 FROM marked_holds h WHERE h.account_sid = recordings.account_sid \
     AND h.recording_sid = recordings.recording_sid)";

impl dyn Catalog + '_ {
    /// Takes markers of a kind, and saves with them how far the walk came. Where
    /// they are the last of all, the catalog is read from then on and the walk is
    /// over. What erased recordings have in the bucket is looked at `after` that time.
    pub async fn take_markers(
        &self,
        walk: &BucketWalk,
        marker: Marker,
        marked: &[Marked],
        next: Option<&Position>,
        after: Duration,
    ) -> Result<Settled> {
        let mut session = self.begin().await?;
        let mut knew_less = false;
        for marked in marked {
            knew_less |= apply(&mut session, marker, marked, after).await?;
        }
        let settled = match next {
            Some(next) => save(&mut session, walk, next).await?,
            None => finish(&mut session, walk).await?,
        };
        if settled == Settled::Stale {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        if knew_less {
            era::begin_once(&mut session).await?;
        }
        if next.is_none() {
            birth::all_is_read(&mut session).await?;
        }
        session.commit().await?;
        self.announce_change();
        Ok(Settled::Done)
    }

    /// Takes one marker.
    pub async fn take_marker(&self, marker: Marker, marked: &Marked, after: Duration) -> Result<()> {
        let mut session = self.begin().await?;
        apply(&mut session, marker, marked, after).await?;
        session.commit().await?;
        self.announce_change();
        Ok(())
    }

    /// Whether a hold is kept for a recording without a row.
    pub async fn knows_marked_hold(&self, id: &RecordingId) -> Result<bool> {
        Ok(self.read().await?.row(KNOWS_HOLD, args![id.account, id.recording]).await?.is_some())
    }
}

/// Says whether the catalog did not know of it.
async fn apply(session: &mut Session, marker: Marker, marked: &Marked, after: Duration) -> Result<bool> {
    let id = &marked.id;
    let mut known = lock(session, id).await?;
    if known.is_none() && marker == Marker::Erased {
        if create_erased(session, marked).await? {
            return Ok(true);
        }
        // Another node made one between the two statements.
        known = lock(session, id).await?;
    }
    match (marker, known) {
        (Marker::Erased, None) => Ok(false),
        (_, Some(known)) if known.state == State::Erased => {
            scrub::tell_call(session, &known, marked.call_sid, marked.conference_sid).await?;
            if marked.owes_twilio {
                owe_twilio(session, id).await?;
            }
            Ok(false)
        }
        (Marker::Erased, Some(_)) => {
            erase(session, id, ErasedBy::Marker, marked.owes_twilio).await?;
            session.execute(RELEASE, args![id.account, id.recording]).await?;
            // Whatever comes of the erasing: late writes are looked for.
            recheck::owe(session, &Lease { id: *id, epoch: 0 }, after).await?;
            Ok(true)
        }
        (Marker::Held, None) => {
            let is_new = session.execute(KEEP_HOLD, args![id.account, id.recording]).await? == 1;
            // A row that came in between is held, too.
            session.execute(HOLD_AS_MARKED, args![id.account, id.recording]).await?;
            Ok(is_new)
        }
        (Marker::Held, Some(known)) if known.hold => Ok(false),
        (Marker::Held, Some(known)) => {
            let is_held = session.execute(HOLD, args![id.account, id.recording, marked.hold_marker_epoch]).await? == 1;
            if is_held {
                feed::append(session, id, "recording.held", told_by()).await?;
                keep(session, &known).await?;
            }
            Ok(is_held)
        }
    }
}

/// Makes the row; false where it is there already.
async fn create_erased(session: &mut Session, marked: &Marked) -> Result<bool> {
    let Marked { id, call_sid, conference_sid, owes_twilio, hold_marker_epoch: _ } = marked;
    let args = args![id.account, id.recording, *call_sid, *conference_sid, i64::from(*owes_twilio)];
    if session.execute(CREATE_ERASED, args).await? == 0 {
        return Ok(false);
    }
    feed::append(session, id, "recording.accepted", Json::Null).await?;
    feed::append(session, id, "recording.erased", told_by()).await?;
    Ok(true)
}

fn told_by() -> Json {
    json!({"by": "bucket"})
}
