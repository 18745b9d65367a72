//! Rechecks: who looks again at what lies in the bucket for a recording, and
//! what came of it.
//!
//! A row owes a recheck when an attempt may have left something that the row
//! does not name. It is granted on a row at rest, under a lease of its own: the
//! grant raises the epoch, so that every older holder is stale, and no claim is
//! granted while the lease lasts. Only the holder of that epoch settles it. What
//! is owed stays owed until a recheck that began later has found all in order.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use sqlx::AssertSqlSafe;

use super::accept::lock;
use super::claim::Leftover;
use super::lease::{Lease, Settled};
use super::sql::{Row, Session, Value, args, now, place_each};
use super::{Catalog, Result, feed, rows};
use crate::domain::recording::{ErrorCode, Recording, State, StoredObject};
use crate::domain::sid::AccountSid;

/// A lease that was just granted for a recheck, and all that the work needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Duty {
    /// The lease.
    pub lease: Lease,
    /// The recording, at rest.
    pub recording: Recording,
    /// When it was granted, by the catalog's clock, or a little earlier.
    pub granted_at: Timestamp,
    /// Nothing is staged by any attempt of a lower epoch.
    pub swept_epoch: i64,
    /// An upload that the row still names.
    pub leftover: Option<Leftover>,
}

/// What a recheck found. All but `Unfinished` say that nothing is staged any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// What lies in the bucket is what the row names.
    InOrder,
    /// The object of a stored recording is not there: it is to be fetched again.
    Lost,
    /// The object of a stored recording is not what the row names, in these words:
    /// it is to be fetched again.
    Damaged(String),
    /// A whole object of a recording that was given up: it is stored.
    Adopted(StoredObject),
    /// The bucket could not be looked through.
    Unfinished,
}

/// Whoever lost a lease may say so too: it changes nothing but what is looked at.
const OWE: &str = concat!(
    "UPDATE recordings SET recheck_due_at = ",
    now!(),
    " + $4, swept_epoch = CASE WHEN swept_epoch > $3 THEN $3 ELSE swept_epoch END \
     WHERE account_sid = $1 AND recording_sid = $2"
);
/// What is due of the account `$1`, or of the one that a statement calls `a`.
macro_rules! due {
    ($account:literal) => {
        concat!(
            " FROM recordings WHERE account_sid = ",
            $account,
            " AND recheck_due_at <= ",
            now!(),
            " AND state <> 'fetching' AND (duty_until IS NULL OR duty_until <= ",
            now!(),
            ") ORDER BY recheck_due_at LIMIT "
        )
    };
}
const OLDEST: &str =
    concat!("SELECT a.column1 AS account_sid, (SELECT recheck_due_at", due!("a.column1"), "1) AS due_at FROM");
const DUE: &str = concat!("SELECT *, ", now!(), " AS now_ms", due!("$1"), "$2");
const GRANT: &str = concat!(
    "UPDATE recordings SET epoch = epoch + 1, duty_until = ",
    now!(),
    " + $3 WHERE account_sid = $1 AND recording_sid = $2"
);

/// What every update of a duty ends with.
macro_rules! held {
    () => {
        " WHERE account_sid = $1 AND recording_sid = $2 AND epoch = $3 AND duty_until IS NOT NULL"
    };
}
const RENEW: &str = concat!("UPDATE recordings SET duty_until = ", now!(), " + $4", held!(), " RETURNING duty_until");
/// What was owed since the grant (`$4`) stays owed. So does what a recording
/// that is still on its way may leave: its folder was not looked at.
const END: &str = concat!(
    "UPDATE recordings SET duty_until = NULL, upload_epoch = NULL, upload_id = NULL, \
     swept_epoch = CASE WHEN recheck_due_at > $4 THEN swept_epoch ELSE $3 END, \
     recheck_due_at = CASE WHEN recheck_due_at > $4 THEN recheck_due_at \
     WHEN state IN ('announced', 'pending') THEN ",
    now!(),
    " + $5 END",
    held!()
);
const LEAVE: &str = concat!(
    "UPDATE recordings SET duty_until = NULL, \
     recheck_due_at = CASE WHEN recheck_due_at > $4 THEN recheck_due_at ELSE ",
    now!(),
    " + $5 END",
    held!()
);
const LOSE: &str = concat!(
    "UPDATE recordings SET state = 'pending', due_at = ",
    now!(),
    ", not_before = NULL, pending_since = ",
    now!(),
    ", failed_attempts = 0, error_code = $3, error_detail = $4, error_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2"
);
/// What else lies in its folder is looked at next.
const ADOPT: &str = concat!(
    "UPDATE recordings SET state = 'stored', sha256 = $3, size_bytes = $4, format = $5, object_key = $6, stored_at = ",
    now!(),
    ", recheck_due_at = coalesce(recheck_due_at, ",
    now!(),
    "), due_at = NULL, not_before = NULL, failed_attempts = 0, \
     error_code = NULL, error_detail = NULL, error_at = NULL WHERE account_sid = $1 AND recording_sid = $2"
);

/// Notes, in the transaction of what makes it necessary, that the bucket is to
/// be looked at `after` that time for what attempts from this epoch on left.
pub(super) async fn owe(session: &mut Session, lease: &Lease, after: Duration) -> Result<()> {
    session.execute(OWE, args![lease.id.account, lease.id.recording, lease.epoch, after]).await?;
    Ok(())
}

impl Duty {
    fn read(row: &Row) -> Result<Self> {
        let recording = rows::recording(row)?;
        let epoch = recording.epoch + 1;
        Ok(Self {
            lease: Lease { id: recording.id, epoch },
            recording: Recording { epoch, ..recording },
            granted_at: row.time("now_ms")?,
            swept_epoch: row.get("swept_epoch")?,
            leftover: Leftover::read(row)?,
        })
    }

    fn args(&self) -> Vec<Value> {
        args![self.lease.id.account, self.lease.id.recording, self.lease.epoch]
    }

    fn end_args(&self, again: Duration) -> Vec<Value> {
        self.args().into_iter().chain(args![self.granted_at, again]).collect()
    }
}

impl dyn Catalog + '_ {
    /// Notes that an attempt may have left something in the bucket, which is to
    /// be looked at `after` that time. Whoever lost the lease may say so as well.
    pub async fn owe_recheck(&self, lease: &Lease, after: Duration) -> Result<()> {
        let mut session = self.begin().await?;
        owe(&mut session, lease, after).await?;
        session.commit().await
    }

    /// Grants leases of that length for at most `at_most` rechecks that are due,
    /// shared evenly by the accounts that have some.
    pub async fn grant_rechecks(
        &self,
        accounts: &[AccountSid],
        at_most: usize,
        duration: Duration,
    ) -> Result<Vec<Duty>> {
        let ready = self.accounts_to_recheck(accounts).await?;
        if ready.is_empty() {
            return Ok(Vec::new());
        }
        let share = at_most.div_ceil(ready.len());
        let mut session = self.begin().await?;
        let locking = if session.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" };
        let mut duties: Vec<Duty> = Vec::new();
        for account in ready {
            let room = share.min(at_most - duties.len());
            let args = args![account, i64::try_from(room).unwrap_or(i64::MAX)];
            for row in session.rows(AssertSqlSafe(format!("{DUE}{locking}")), args).await? {
                match Duty::read(&row) {
                    Ok(duty) => duties.push(duty),
                    // One row that a newer node wrote must not keep all others from being looked at.
                    Err(error) => tracing::error!(%error, "a recording cannot be rechecked"),
                }
            }
        }
        for duty in &duties {
            grant(&mut session, duty, duration).await?;
        }
        session.commit().await?;
        Ok(duties)
    }

    /// Those of the accounts that have a recheck due, the longest overdue first.
    async fn accounts_to_recheck(&self, accounts: &[AccountSid]) -> Result<Vec<AccountSid>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let mut args = args![];
        let places = place_each(accounts.iter().copied(), &mut args);
        let sql = format!("{OLDEST} (VALUES ({})) AS a ORDER BY due_at", places.join("), ("));
        let rows = self.read().await?.rows(AssertSqlSafe(sql), args).await?;
        let mut ready = Vec::new();
        for row in &rows {
            if row.time_opt("due_at")?.is_some() {
                ready.push(row.parse("account_sid")?);
            }
        }
        Ok(ready)
    }

    /// Prolongs the lease of a recheck; gives the time as of which it is granted
    /// anew, None where it is another's by now.
    pub async fn renew_recheck(&self, duty: &Duty, duration: Duration) -> Result<Option<Timestamp>> {
        let mut session = self.begin().await?;
        let args = duty.args().into_iter().chain(args![duration]).collect();
        let row = session.row(RENEW, args).await?;
        session.commit().await?;
        let until = row.map(|row| row.time("duty_until")).transpose()?;
        Ok(until.map(|until| until - duration))
    }

    /// Ends a recheck. What is not finished, or is still on its way, is looked
    /// at `again` after that time.
    ///
    /// An error leaves open whether it took place; the lease runs out then.
    pub async fn settle_recheck(&self, duty: &Duty, finding: &Finding, again: Duration) -> Result<Settled> {
        let mut session = self.begin().await?;
        let known = lock(&mut session, &duty.lease.id).await?;
        let end = if *finding == Finding::Unfinished { LEAVE } else { END };
        let held = session.execute(end, duty.end_args(again)).await? == 1;
        let settled = match (known, finding) {
            (Some(known), Finding::Lost) if held => lose(&mut session, &known, None, again).await?,
            (Some(known), Finding::Damaged(how)) if held => lose(&mut session, &known, Some(how), again).await?,
            (Some(known), Finding::Adopted(object)) if held => adopt(&mut session, &known, object).await?,
            _ if held => Settled::Done,
            _ => Settled::Stale,
        };
        match settled {
            Settled::Done => session.commit().await?,
            Settled::Stale => session.rollback().await?,
        }
        self.announce_change();
        Ok(settled)
    }
}

async fn grant(session: &mut Session, duty: &Duty, duration: Duration) -> Result<()> {
    session.execute(GRANT, args![duty.lease.id.account, duty.lease.id.recording, duration]).await?;
    Ok(())
}

/// Grants the lease of a recheck on a row at rest, which is locked.
pub(super) async fn grant_row(session: &mut Session, row: &Row, duration: Duration) -> Result<Duty> {
    let duty = Duty::read(row)?;
    grant(session, &duty, duration).await?;
    Ok(duty)
}

async fn lose(session: &mut Session, known: &Recording, why: Option<&str>, again: Duration) -> Result<Settled> {
    if known.state != State::Stored {
        return Ok(Settled::Stale);
    }
    let id = &known.id;
    let key = known.object.as_ref().map(|object| object.key.as_str()).unwrap_or_default();
    let detail = why.map_or_else(|| format!("no object is at {key}"), |why| format!("the object {why}"));
    session.execute(LOSE, args![id.account, id.recording, ErrorCode::ObjectLost.as_str(), detail.as_str()]).await?;
    owe(session, &Lease { id: *id, epoch: known.epoch }, again).await?;
    feed::append(session, id, "recording.lost", json!({"code": ErrorCode::ObjectLost, "detail": detail})).await?;
    Ok(Settled::Done)
}

async fn adopt(session: &mut Session, known: &Recording, object: &StoredObject) -> Result<Settled> {
    // A first callback may have come in between: that it is pending makes no difference.
    if !matches!(known.state, State::Failed | State::Absent | State::Pending) {
        return Ok(Settled::Stale);
    }
    let id = &known.id;
    let args =
        args![id.account, id.recording, object.digest, object.size_bytes, object.format.as_str(), object.key.as_str(),];
    session.execute(ADOPT, args).await?;
    let mut detail = json!({"adopted": true});
    if let Some(previous) = known.object.as_ref().filter(|previous| previous.digest != object.digest) {
        detail["previous_sha256"] = json!(previous.digest);
    }
    feed::append(session, id, "recording.stored", detail).await?;
    Ok(Settled::Done)
}
