//! Who works on a recording, and what came of it.
//!
//! A claim grants a lease: the row becomes `fetching` with its epoch raised and
//! a deadline. Every later update names that epoch, so whoever lost the lease
//! changes nothing more and is told so. Deadlines are the catalog's; whoever
//! holds a lease only knows for how long.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use sqlx::AssertSqlSafe;

use super::accept::{TO_PENDING, keep_names, lock, write_details};
use super::clock::millis;
use super::rows;
use super::sql::{Session, Value, args, now, one_of};
use super::{Catalog, CatalogError, Result, feed};
use crate::domain::recording::{Details, ErrorCode, Recording, RecordingId, State, StoredObject};
use crate::domain::sid::AccountSid;

/// The right to work on one recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Which recording.
    pub id: RecordingId,
    /// The epoch that was granted.
    pub epoch: i64,
}

/// What an earlier attempt may have left in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its epoch, which its staging key names.
    pub epoch: i64,
    /// Its multipart upload.
    pub upload_id: String,
}

/// A lease that was just granted, and all that the work needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The lease.
    pub lease: Lease,
    /// The recording.
    pub recording: Recording,
    /// How long it has been pending.
    pub pending_for: Duration,
    /// The attempts that failed since it became pending.
    pub failed_before: u32,
    /// What is to be cleared away first.
    pub leftover: Option<Leftover>,
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

const DUE_OF: &str = "SELECT *, (SELECT now_ms FROM clock) AS now_ms FROM recordings \
                      WHERE state IN ('pending', 'fetching') AND due_at <= (SELECT now_ms FROM clock)";
const GRANT: &str = concat!(
    "UPDATE recordings SET state = 'fetching', epoch = epoch + 1, lease_node = $3, due_at = ",
    now!(),
    " + $4, attempts = attempts + 1, failed_attempts = $5 WHERE account_sid = $1 AND recording_sid = $2"
);
const NEXT_DUE: &str = "SELECT min(due_at) - (SELECT now_ms FROM clock) AS wait_ms, (SELECT now_ms FROM clock) AS now_ms \
                        FROM recordings WHERE state IN ('pending', 'fetching')";

/// What every update of a fetch ends with.
macro_rules! held {
    () => {
        " WHERE account_sid = $1 AND recording_sid = $2 AND epoch = $3 AND state = 'fetching'"
    };
}

const RENEW: &str = concat!("UPDATE recordings SET due_at = ", now!(), " + $4", held!());
const NOTE_UPLOAD: &str = concat!("UPDATE recordings SET upload_epoch = $3, upload_id = $4", held!());
const FORGET_UPLOAD: &str = concat!("UPDATE recordings SET upload_epoch = NULL, upload_id = NULL", held!());
const STORE: &str = concat!(
    "UPDATE recordings SET state = 'stored', sha256 = $4, size_bytes = $5, format = $6, object_key = $7, stored_at = ",
    now!(),
    ", lease_node = NULL, due_at = NULL, not_before = NULL, last_attempt_at = ",
    now!(),
    ", failed_attempts = 0, error_code = NULL, error_detail = NULL, error_at = NULL",
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
/// Twilio allows it, and never later than it was.
const HURRY: &str = concat!(
    "UPDATE recordings SET due_at = CASE WHEN not_before > coalesce(last_attempt_at, 0) + $3 \
     THEN not_before ELSE coalesce(last_attempt_at, 0) + $3 END \
     WHERE account_sid = $1 AND recording_sid = $2 AND state = 'pending' AND due_at > ",
    now!(),
    " AND due_at > CASE WHEN not_before > coalesce(last_attempt_at, 0) + $3 \
     THEN not_before ELSE coalesce(last_attempt_at, 0) + $3 END"
);
const ASKED: &str =
    concat!("UPDATE recordings SET last_asked_at = ", now!(), " WHERE account_sid = $1 AND recording_sid = $2");

impl Lease {
    fn args(&self) -> Vec<Value> {
        args![self.id.account, self.id.recording, self.epoch]
    }

    fn args_and(&self, more: Vec<Value>) -> Vec<Value> {
        self.args().into_iter().chain(more).collect()
    }
}

impl dyn Catalog + '_ {
    /// Reads the catalog's time.
    pub(super) async fn read_clock(&self) -> Result<()> {
        let row = self.read().await?.row("SELECT now_ms FROM clock", args![]).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable("the clock shows nothing".to_owned()))?;
        self.clock().set(row.time("now_ms")?);
        Ok(())
    }

    /// How long until something may be claimed: zero where it may be now, None
    /// where nothing is pending or fetching. Also reads the catalog's time.
    pub async fn next_due(&self, accounts: &[AccountSid]) -> Result<Option<Duration>> {
        let mut args = args![];
        let filter = one_of("account_sid", accounts.iter().copied(), &mut args);
        let row = self.read().await?.row(AssertSqlSafe(format!("{NEXT_DUE}{filter}")), args).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable("an aggregate has no row".to_owned()))?;
        self.clock().set(row.time("now_ms")?);
        let wait_ms: Option<i64> = row.get("wait_ms")?;
        Ok(wait_ms.map(|millis| Duration::from_millis(millis.max(0).unsigned_abs())))
    }

    /// Grants `node` leases on at most `at_most` recordings of these accounts
    /// that are due: pending ones, and those whose lease is over.
    pub async fn claim(
        &self,
        node: &str,
        accounts: &[AccountSid],
        lease: Duration,
        at_most: usize,
    ) -> Result<Vec<Claim>> {
        let mut session = self.begin().await?;
        let mut args = args![];
        let filter = one_of("account_sid", accounts.iter().copied(), &mut args);
        // Others' claims under way are passed over, not waited for.
        let locking = if session.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" };
        let sql = format!("{DUE_OF}{filter} ORDER BY due_at LIMIT {at_most}{locking}");
        let due = session.rows(AssertSqlSafe(sql), args).await?;
        if due.is_empty() {
            session.rollback().await?;
            return Ok(Vec::new());
        }
        let mut claims = Vec::with_capacity(due.len());
        for row in &due {
            claims.push(grant(&mut session, row, node, lease).await?);
        }
        session.commit().await?;
        Ok(claims)
    }

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
        write_details(&mut session, &lease.id, details, true).await?;
        keep_names(&mut session, &Recording { details: details.clone(), ..held }).await?;
        session.commit().await?;
        Ok(Settled::Done)
    }

    /// The object is at its key: the recording is stored.
    ///
    /// An error leaves open whether it is; [`Catalog`]'s row tells.
    pub async fn store(&self, lease: &Lease, object: &StoredObject) -> Result<Settled> {
        let mut session = self.begin().await?;
        let known = lock(&mut session, &lease.id).await?;
        let args = lease.args_and(args![object.digest, object.size_bytes, object.format.as_str(), object.key.as_str()]);
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

    /// The attempt failed; the next one is due `after` from now, and not before
    /// `not_before` even if someone asks.
    pub async fn try_again(
        &self,
        lease: &Lease,
        code: ErrorCode,
        detail: &str,
        after: Duration,
        not_before: Duration,
    ) -> Result<Settled> {
        let mut session = self.begin().await?;
        let args = lease.args_and(args![after, not_before, code.as_str(), detail]);
        if session.execute(TRY_AGAIN, args).await? == 0 {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        feed::note(&mut session, &lease.id, "attempt", json!({"code": code, "detail": detail})).await?;
        session.commit().await?;
        Ok(Settled::Done)
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

    /// The attempt failed, and there will be no other.
    pub async fn give_up(&self, lease: &Lease, code: ErrorCode, detail: &str) -> Result<Settled> {
        let mut session = self.begin().await?;
        let args = lease.args_and(args![code.as_str(), detail]);
        if session.execute(GIVE_UP, args).await? == 0 {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        feed::append(&mut session, &lease.id, "recording.failed", json!({"code": code, "detail": detail})).await?;
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
    pub async fn asked(&self, id: &RecordingId) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(ASKED, args![id.account, id.recording]).await?;
        session.commit().await
    }

    /// Asks by hand for another attempt at a recording that was given up.
    /// Gives the recording as it is then; None where it is not known.
    pub async fn fetch_again(&self, id: &RecordingId) -> Result<Option<Recording>> {
        let mut session = self.begin().await?;
        let Some(known) = lock(&mut session, id).await? else {
            session.rollback().await?;
            return Ok(None);
        };
        if matches!(known.state, State::Failed | State::Absent) {
            session.execute(TO_PENDING, args![id.account, id.recording]).await?;
            feed::note(&mut session, id, "fetch_requested", json!({})).await?;
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

async fn grant(session: &mut Session, row: &super::sql::Row, node: &str, lease: Duration) -> Result<Claim> {
    let known = rows::recording(row)?;
    let id = known.id;
    let now: Timestamp = row.time("now_ms")?;
    let lease_over = known.state == State::Fetching;
    // An attempt of which nothing more was heard is one that failed.
    let failed_before: i64 = row.get::<i64>("failed_attempts")? + i64::from(lease_over);
    let args = args![id.account, id.recording, node, millis(lease), failed_before];
    session.execute(GRANT, args).await?;
    if lease_over {
        let node: Option<String> = row.get("lease_node")?;
        feed::note(session, &id, "lease_over", json!({"code": ErrorCode::Interrupted, "node": node})).await?;
    }
    let pending_since = row.time_opt("pending_since")?.unwrap_or(now);
    let upload_id: Option<String> = row.get("upload_id")?;
    let upload_epoch: Option<i64> = row.get("upload_epoch")?;
    let epoch = known.epoch + 1;
    Ok(Claim {
        lease: Lease { id, epoch },
        recording: Recording { state: State::Fetching, epoch, attempts: known.attempts + 1, ..known },
        pending_for: Duration::try_from(now.duration_since(pending_since)).unwrap_or_default(),
        failed_before: u32::try_from(failed_before).unwrap_or(u32::MAX),
        leftover: upload_epoch.zip(upload_id).map(|(epoch, upload_id)| Leftover { epoch, upload_id }),
    })
}
