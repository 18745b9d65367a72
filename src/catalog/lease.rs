//! What became of an attempt.
//!
//! Every update of a fetch names the epoch of its lease, so whoever lost the
//! lease changes nothing more and is told so. Deadlines are the catalog's;
//! whoever holds a lease only knows for how long.

use std::time::Duration;

use serde_json::json;

use super::accept::{TO_PENDING, lock, write_details};
use super::names::keep_names;
use super::sql::{Session, Value, args, now};
use super::{Catalog, Result, feed, questions};
use crate::domain::recording::{Details, ErrorCode, Recording, RecordingId, State, StoredObject};
use crate::domain::retry::Decision;

/// The right to work on one recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Which recording.
    pub id: RecordingId,
    /// The epoch that was granted.
    pub epoch: i64,
}

/// Whether an update of a fetch took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    /// It did.
    Done,
    /// The lease is another's by now; nothing was changed.
    Stale,
}

/// What every update of a fetch ends with.
macro_rules! held {
    () => {
        " WHERE account_sid = $1 AND recording_sid = $2 AND epoch = $3 AND state = 'fetching'"
    };
}

/// When an attempt may begin at the earliest, `$3` after the last one.
macro_rules! soonest {
    () => {
        "(CASE WHEN not_before > coalesce(last_attempt_at, 0) + $3 THEN not_before \
         ELSE coalesce(last_attempt_at, 0) + $3 END)"
    };
}

const RENEW: &str = concat!("UPDATE recordings SET due_at = ", now!(), " + $4", held!());
const NOTE_UPLOAD: &str = concat!("UPDATE recordings SET upload_epoch = $3, upload_id = $4", held!());
const FORGET_UPLOAD: &str = concat!("UPDATE recordings SET upload_epoch = NULL, upload_id = NULL", held!());
/// What was staged is forgotten where it is known to be gone (`$8`).
const STORE: &str = concat!(
    "UPDATE recordings SET state = 'stored', sha256 = $4, size_bytes = $5, format = $6, object_key = $7, \
     look_first = 0, upload_epoch = CASE WHEN $8 = 1 THEN NULL ELSE upload_epoch END, \
     upload_id = CASE WHEN $8 = 1 THEN NULL ELSE upload_id END, stored_at = ",
    now!(),
    ", lease_node = NULL, due_at = NULL, not_before = NULL, last_attempt_at = ",
    now!(),
    ", failed_attempts = 0, is_backfill = 0, error_code = NULL, error_detail = NULL, error_at = NULL, \
     traceparent = NULL",
    held!()
);
const TRY_AGAIN: &str = concat!(
    "UPDATE recordings SET state = 'pending', lease_node = NULL, due_at = ",
    now!(),
    " + $4, not_before = ",
    now!(),
    " + $5, last_attempt_at = ",
    now!(),
    ", failed_attempts = failed_attempts + 1, error_code = $6, error_detail = $7, error_at = ",
    now!(),
    held!()
);
const HAND_BACK: &str = concat!(
    "UPDATE recordings SET state = 'pending', lease_node = NULL, due_at = ",
    now!(),
    ", last_attempt_at = ",
    now!(),
    held!()
);
const GIVE_UP: &str = concat!(
    "UPDATE recordings SET state = 'failed', lease_node = NULL, due_at = NULL, last_attempt_at = ",
    now!(),
    ", error_code = $4, error_detail = $5, error_at = ",
    now!(),
    held!()
);

/// Someone waits: the next attempt is `$3` after the last one, but not before
/// Twilio allows it, and never later than it was. Once it may begin, it goes
/// before all that nobody waits for.
const HURRY: &str = concat!(
    "UPDATE recordings SET due_at = CASE WHEN ",
    soonest!(),
    " <= ",
    now!(),
    " THEN 0 ELSE ",
    soonest!(),
    " END, is_backfill = 0 WHERE account_sid = $1 AND recording_sid = $2 AND state = 'pending' AND due_at > CASE WHEN ",
    soonest!(),
    " <= ",
    now!(),
    " THEN 0 ELSE ",
    soonest!(),
    " END"
);
const ASKED: &str = concat!(
    "UPDATE recordings SET last_asked_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2 RETURNING state"
);

impl Lease {
    fn args(&self) -> Vec<Value> {
        args![self.id.account, self.id.recording, self.epoch]
    }

    fn args_and(&self, more: Vec<Value>) -> Vec<Value> {
        self.args().into_iter().chain(more).collect()
    }
}

impl dyn Catalog + '_ {
    /// Prolongs a lease from now on.
    pub async fn renew(&self, lease: &Lease, duration: Duration) -> Result<Settled> {
        self.settle(RENEW, lease.args_and(args![duration])).await
    }

    /// Remembers the multipart upload of this attempt, before its first part is sent.
    pub async fn note_upload(&self, lease: &Lease, upload_id: &str) -> Result<Settled> {
        self.settle(NOTE_UPLOAD, lease.args_and(args![upload_id])).await
    }

    /// Forgets an upload that left nothing behind.
    pub async fn forget_upload(&self, lease: &Lease) -> Result<Settled> {
        self.settle(FORGET_UPLOAD, lease.args()).await
    }

    /// Takes Twilio's own word on what a recording is, before its key is made.
    pub async fn confirm(&self, lease: &Lease, details: &Details) -> Result<Settled> {
        let mut session = self.begin().await?;
        let held = lock(&mut session, &lease.id).await?;
        let Some(held) = held.filter(|row| row.epoch == lease.epoch && row.state == State::Fetching) else {
            session.rollback().await?;
            return Ok(Settled::Stale);
        };
        let is_told = write_details(&mut session, &held, details, true).await?;
        keep_names(&mut session, &Recording { details: details.clone(), ..held }).await?;
        if let Some(call) = details.call_sid {
            questions::clear(&mut session, lease.id.account, call).await?;
        }
        session.commit().await?;
        if is_told {
            self.announce_change();
        }
        Ok(Settled::Done)
    }

    /// The object is at its key: the recording is stored. `staging_is_gone`
    /// says that nothing is left of what was staged on the way.
    ///
    /// An error leaves open whether it is; the row tells.
    pub async fn store(&self, lease: &Lease, object: &StoredObject, staging_is_gone: bool) -> Result<Settled> {
        let mut session = self.begin().await?;
        let known = lock(&mut session, &lease.id).await?;
        let args = lease.args_and(args![
            object.digest,
            object.size_bytes,
            object.format.as_str(),
            object.key.as_str(),
            i64::from(staging_is_gone),
        ]);
        if session.execute(STORE, args).await? == 0 {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        let previous = known.and_then(|known| known.object).map(|previous| previous.digest);
        let detail = match previous.filter(|previous| *previous != object.digest) {
            Some(previous) => json!({"previous_sha256": previous}),
            None => serde_json::Value::Null,
        };
        feed::append(&mut session, &lease.id, "recording.stored", detail).await?;
        session.commit().await?;
        self.announce_change();
        Ok(Settled::Done)
    }

    /// The attempt failed, and `decision` says whether there is another one.
    pub async fn fail(&self, lease: &Lease, code: ErrorCode, detail: &str, decision: Decision) -> Result<Settled> {
        let mut session = self.begin().await?;
        let settled = settle_failure(&mut session, lease, code, detail, decision).await?;
        match settled {
            Settled::Done => session.commit().await?,
            Settled::Stale => session.rollback().await?,
        }
        self.announce_change();
        Ok(settled)
    }

    /// The attempt was cut short by this node's own end: another one may begin at once.
    pub async fn hand_back(&self, lease: &Lease) -> Result<Settled> {
        let mut session = self.begin().await?;
        if session.execute(HAND_BACK, lease.args()).await? == 0 {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        feed::note(&mut session, &lease.id, "handed_back", json!({})).await?;
        session.commit().await?;
        self.announce_change();
        Ok(Settled::Done)
    }

    /// Someone waits for a recording: brings its next attempt forward to
    /// `base` after the last one. Does nothing where it is not pending.
    pub async fn hurry(&self, id: &RecordingId, base: Duration) -> Result<()> {
        let mut session = self.begin().await?;
        let hurried = session.execute(HURRY, args![id.account, id.recording, base]).await?;
        session.commit().await?;
        if hurried > 0 {
            self.announce_change();
        }
        Ok(())
    }

    /// Notes that someone asked for a recording's audio.
    pub async fn asked(&self, id: &RecordingId) -> Result<Option<State>> {
        let mut session = self.begin().await?;
        let row = session.row(ASKED, args![id.account, id.recording]).await?;
        session.commit().await?;
        row.map(|row| row.parse("state")).transpose()
    }

    /// Asks by hand for another attempt: at a recording that was given up or evicted,
    /// and at once at one that is waiting for its next. Gives the recording as it is
    /// then; None where it is not known.
    pub async fn fetch_again(&self, id: &RecordingId) -> Result<Option<Recording>> {
        let mut session = self.begin().await?;
        let Some(known) = lock(&mut session, id).await? else {
            session.rollback().await?;
            return Ok(None);
        };
        if matches!(known.state, State::Failed | State::Absent | State::Evicted) {
            session.execute(TO_PENDING, args![id.account, id.recording]).await?;
            feed::note(&mut session, id, "fetch_requested", json!({})).await?;
            feed::tell_memories(&mut session, id).await?;
        }
        if known.state == State::Pending {
            session.execute(HURRY, args![id.account, id.recording, Duration::ZERO]).await?;
        }
        let recording = lock(&mut session, id).await?;
        session.commit().await?;
        self.announce_change();
        Ok(recording)
    }

    async fn settle(&self, statement: &'static str, args: Vec<Value>) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(statement, args).await?;
        session.commit().await?;
        Ok(if changed == 1 { Settled::Done } else { Settled::Stale })
    }
}

/// The attempt is over, and `decision` says what comes next.
pub(super) async fn settle_failure(
    session: &mut Session,
    lease: &Lease,
    code: ErrorCode,
    detail: &str,
    decision: Decision,
) -> Result<Settled> {
    let told = json!({"code": code, "detail": detail});
    match decision {
        Decision::Again { after, not_before } => {
            let args = lease.args_and(args![after, not_before, code.as_str(), detail]);
            if session.execute(TRY_AGAIN, args).await? == 0 {
                return Ok(Settled::Stale);
            }
            feed::note(session, &lease.id, "attempt", told).await?;
        }
        Decision::GiveUp => {
            if session.execute(GIVE_UP, lease.args_and(args![code.as_str(), detail])).await? == 0 {
                return Ok(Settled::Stale);
            }
            feed::append_failed(session, &lease.id, code, told).await?;
        }
    }
    Ok(Settled::Done)
}
