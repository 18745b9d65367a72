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
use super::rows;
use super::sql::{Session, Value, args, now, one_of, place_each};
use super::{Catalog, CatalogError, Result, feed};
use crate::domain::recording::{Details, ErrorCode, Recording, RecordingId, State, StoredObject};
use crate::domain::retry::{self, Decision, Failure};
use crate::domain::sid::AccountSid;

/// The right to work on one recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Which recording.
    pub id: RecordingId,
    /// The epoch that was granted.
    pub epoch: i64,
}

/// Who claims, and on which terms.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// The node's name, for people.
    pub node: String,
    /// The accounts that it has credentials for.
    pub accounts: Vec<AccountSid>,
    /// How long a claim may go without being renewed.
    pub lease: Duration,
    /// When the recording of a lease that ran out is due again.
    pub retry: retry::Policy,
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
    " + $4, attempts = attempts + 1 WHERE account_sid = $1 AND recording_sid = $2"
);
/// The first entry of each account in the index of what is due.
const NEXT_DUE_OF: &str = "SELECT min((SELECT r.due_at FROM recordings r WHERE r.account_sid = a.column1 \
     AND r.state IN ('pending', 'fetching') ORDER BY r.due_at LIMIT 1)) AS due_at, \
     (SELECT now_ms FROM clock) AS now_ms FROM";

/// What every update of a fetch ends with.
macro_rules! held {
    () => {
        " WHERE account_sid = $1 AND recording_sid = $2 AND epoch = $3 AND state = 'fetching'"
    };
}

const RENEW: &str = concat!("UPDATE recordings SET due_at = ", now!(), " + $4", held!());
const NOTE_UPLOAD: &str = concat!("UPDATE recordings SET upload_epoch = $3, upload_id = $4", held!());
const FORGET_UPLOAD: &str = concat!("UPDATE recordings SET upload_epoch = NULL, upload_id = NULL", held!());
/// What was staged is forgotten where it is known to be gone (`$8`).
const STORE: &str = concat!(
    "UPDATE recordings SET state = 'stored', sha256 = $4, size_bytes = $5, format = $6, object_key = $7, \
     upload_epoch = CASE WHEN $8 = 1 THEN NULL ELSE upload_epoch END, \
     upload_id = CASE WHEN $8 = 1 THEN NULL ELSE upload_id END, stored_at = ",
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
        if accounts.is_empty() {
            return self.read_clock().await.map(|()| None);
        }
        let mut args = args![];
        let places = place_each(accounts.iter().copied(), &mut args);
        let sql = format!("{NEXT_DUE_OF} (VALUES ({})) AS a", places.join("), ("));
        let row = self.read().await?.row(AssertSqlSafe(sql), args).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable("an aggregate has no row".to_owned()))?;
        let now = row.time("now_ms")?;
        self.clock().set(now);
        let due_at = row.time_opt("due_at")?;
        Ok(due_at.map(|due_at| Duration::try_from(due_at.duration_since(now)).unwrap_or_default()))
    }

    /// Grants leases on at most `at_most` recordings that are due. A lease that
    /// ran out is a failed attempt first, and its recording is due again as the
    /// claimant's policy says.
    pub async fn claim(&self, claimant: &Claimant, at_most: usize) -> Result<Vec<Claim>> {
        let mut session = self.begin().await?;
        let mut args = args![];
        let filter = one_of("account_sid", claimant.accounts.iter().copied(), &mut args);
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
            match Due::read(row) {
                Ok(due) if due.known.state == State::Fetching => {
                    due.lease_is_over(&mut session, &claimant.retry).await?
                }
                Ok(due) => claims.push(due.grant(&mut session, claimant).await?),
                // One row that a newer node wrote must not keep all others from being fetched.
                Err(error) => tracing::error!(%error, "a recording cannot be claimed"),
            }
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
    pub async fn asked(&self, id: &RecordingId) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(ASKED, args![id.account, id.recording]).await?;
        session.commit().await
    }

    /// Asks by hand for another attempt: at a recording that was given up, and
    /// at once at one that is waiting for its next. Gives the recording as it is
    /// then; None where it is not known.
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

/// A recording that is pending and due, or whose lease ran out.
struct Due {
    known: Recording,
    now: Timestamp,
    pending_for: Duration,
    failed_before: u32,
    leftover: Option<Leftover>,
    lease_node: Option<String>,
}

impl Due {
    fn read(row: &super::sql::Row) -> Result<Self> {
        let now = row.time("now_ms")?;
        let pending_since = row.time_opt("pending_since")?.unwrap_or(now);
        let upload_id: Option<String> = row.get("upload_id")?;
        let upload_epoch: Option<i64> = row.get("upload_epoch")?;
        Ok(Self {
            known: rows::recording(row)?,
            now,
            pending_for: Duration::try_from(now.duration_since(pending_since)).unwrap_or_default(),
            failed_before: u32::try_from(row.get::<i64>("failed_attempts")?).unwrap_or(u32::MAX),
            leftover: upload_epoch.zip(upload_id).map(|(epoch, upload_id)| Leftover { epoch, upload_id }),
            lease_node: row.get("lease_node")?,
        })
    }

    async fn grant(self, session: &mut Session, claimant: &Claimant) -> Result<Claim> {
        let id = self.known.id;
        session.execute(GRANT, args![id.account, id.recording, claimant.node.as_str(), claimant.lease]).await?;
        let epoch = self.known.epoch + 1;
        let attempts = self.known.attempts + 1;
        Ok(Claim {
            lease: Lease { id, epoch },
            recording: Recording { state: State::Fetching, epoch, attempts, next_attempt_at: None, ..self.known },
            pending_for: self.pending_for,
            failed_before: self.failed_before,
            leftover: self.leftover,
        })
    }

    /// An attempt of which nothing more was heard is one that failed.
    async fn lease_is_over(self, session: &mut Session, retry: &retry::Policy) -> Result<()> {
        let lease = Lease { id: self.known.id, epoch: self.known.epoch };
        let node = self.lease_node.as_deref().unwrap_or("a node");
        let detail = format!("{node} was not heard of for the length of its lease");
        tracing::warn!(recording = %lease.id, epoch = lease.epoch, node, at = %self.now, "a lease ran out");
        let failure = Failure {
            code: ErrorCode::Interrupted,
            failed_before: self.failed_before,
            pending_for: self.pending_for,
            retry_after: None,
        };
        // No dice: whoever finds it must decide alike.
        let settled = settle_failure(session, &lease, failure.code, &detail, retry.decide(&failure, 0.0)).await?;
        debug_assert_eq!(settled, Settled::Done, "the row is locked");
        Ok(())
    }
}

/// The attempt is over, and `decision` says what comes next.
async fn settle_failure(
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
            feed::append(session, &lease.id, "recording.failed", told).await?;
        }
    }
    Ok(Settled::Done)
}
