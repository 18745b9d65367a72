//! Duties: what is done for a recording at rest, under a lease of its own.
//!
//! A grant raises the epoch, so that every older holder is stale, and no claim
//! and no other duty is granted while the lease lasts. Only the holder of that
//! epoch settles it. Which recordings a duty is due for is said by the file of
//! its subject; accounts share what is granted evenly.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::claim::Leftover;
use super::clock::agrees;
use super::columns::columns_of;
use super::lease::{Lease, Settled};
use super::sql::{Row, Session, Value, args, now, place_each};
use super::{Catalog, Result, rows};
use crate::domain::recording::Recording;
use crate::domain::sid::AccountSid;

/// A lease that was just granted for a duty, and all that the work needs.
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
    /// Somebody saw other bytes than the row names: they are to be read back.
    pub is_doubted: bool,
    /// Whether its audio was found in the bucket while it had none.
    pub look_first: bool,
}

/// Which recordings a duty is due for.
pub(super) struct Due {
    /// The time that they are ordered by; there is an index of it by account.
    pub(super) since: &'static str,
    /// What else holds of them.
    pub(super) only: &'static str,
    /// How long ago `since` must be.
    pub(super) age: Duration,
}

/// Nobody works on the row.
macro_rules! at_rest {
    () => {
        concat!("state <> 'fetching' AND (duty_until IS NULL OR duty_until <= ", $crate::catalog::sql::now!(), ")")
    };
}
pub(super) use at_rest;

/// What every update of a duty ends with.
macro_rules! held {
    () => {
        " WHERE account_sid = $1 AND recording_sid = $2 AND epoch = $3 AND duty_until IS NOT NULL"
    };
}
pub(super) use held;

/// The same for one that relies on what was seen under the lease: what was seen
/// under one that ran out may be long ago, though nobody has taken it since.
macro_rules! held_to_now {
    () => {
        concat!($crate::catalog::duty::held!(), " AND duty_until > ", $crate::catalog::sql::now!())
    };
}
pub(super) use held_to_now;

const GRANT: &str = concat!(
    "UPDATE recordings SET epoch = epoch + 1, duty_until = ",
    now!(),
    " + $3 WHERE account_sid = $1 AND recording_sid = $2"
);
const RENEW: &str =
    concat!("UPDATE recordings SET duty_until = ", now!(), " + $4", held_to_now!(), " RETURNING duty_until");
const GIVE_BACK: &str = concat!("UPDATE recordings SET duty_until = NULL", held!());
/// It was not let go of: it is left alone until it is that old again.
const KEEP: &str = concat!("UPDATE recordings SET duty_until = NULL, kept_at = ", now!(), " - $4 + $5", held!());

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
            is_doubted: row.time_opt("doubted_at")?.is_some(),
            look_first: row.get::<i64>("look_first")? != 0,
        })
    }

    pub(super) fn args(&self) -> Vec<Value> {
        args![self.lease.id.account, self.lease.id.recording, self.lease.epoch]
    }

    pub(super) fn args_and(&self, more: Vec<Value>) -> Vec<Value> {
        self.args().into_iter().chain(more).collect()
    }
}

impl dyn Catalog + '_ {
    /// Grants leases of that length for at most so many duties that are due,
    /// shared evenly by the accounts that have some.
    pub(super) async fn grant_duties(
        &self,
        due: &Due,
        accounts: &[AccountSid],
        at_most: usize,
        duration: Duration,
    ) -> Result<Vec<Duty>> {
        let ready = self.accounts_with(due, accounts).await?;
        if ready.is_empty() {
            return Ok(Vec::new());
        }
        let share = at_most.div_ceil(ready.len());
        let mut session = self.begin().await?;
        let locking = session.for_update_skip_locked();
        let sql = format!(
            concat!(
                "SELECT ",
                columns_of!(recordings),
                ", {now} AS now_ms FROM recordings WHERE account_sid = $1 AND {since} <= {now} - $3 AND {only} \
             AND {rest} ORDER BY {since} LIMIT $2{locking}"
            ),
            now = now!(),
            since = due.since,
            only = due.only,
            rest = at_rest!(),
            locking = locking,
        );
        let mut duties: Vec<Duty> = Vec::new();
        for account in ready {
            let room = i64::try_from(share.min(at_most - duties.len())).unwrap_or(i64::MAX);
            for row in session.rows(AssertSqlSafe(sql.clone()), args![account, room, due.age]).await? {
                if !agrees(row.time("now_ms")?) {
                    // By such a clock nothing is due.
                    session.rollback().await?;
                    return Ok(Vec::new());
                }
                match grant(&mut session, &row, duration).await {
                    Ok(duty) => duties.push(duty),
                    // One row that a newer node wrote must not keep all others from being looked at.
                    Err(super::CatalogError::Unreadable(error)) => {
                        tracing::error!(%error, "a recording cannot be seen to");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        session.commit().await?;
        Ok(duties)
    }

    /// Those of the accounts that have something due, the longest overdue first.
    async fn accounts_with(&self, due: &Due, accounts: &[AccountSid]) -> Result<Vec<AccountSid>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let mut args = args![due.age];
        let places = place_each(accounts.iter().copied(), &mut args);
        let sql = format!(
            "SELECT a.column1 AS account_sid, (SELECT {since} FROM recordings WHERE account_sid = a.column1 \
             AND {since} <= {now} - $1 AND {only} AND {rest} ORDER BY {since} LIMIT 1) AS due_at \
             FROM (VALUES ({places})) AS a ORDER BY due_at",
            now = now!(),
            since = due.since,
            only = due.only,
            rest = at_rest!(),
            places = places.join("), ("),
        );
        let rows = self.read().await?.rows(AssertSqlSafe(sql), args).await?;
        let mut ready = Vec::new();
        for row in &rows {
            if row.time_opt("due_at")?.is_some() {
                ready.push(row.parse("account_sid")?);
            }
        }
        Ok(ready)
    }

    /// Prolongs the lease of a duty; gives the time as of which it is granted
    /// anew, None where it ran out, or is another's by now.
    pub async fn renew_duty(&self, duty: &Duty, duration: Duration) -> Result<Option<Timestamp>> {
        let mut session = self.begin().await?;
        let row = session.row(RENEW, duty.args_and(args![duration])).await?;
        session.commit().await?;
        let until = row.map(|row| row.time("duty_until")).transpose()?;
        Ok(until.map(|until| until - duration))
    }

    /// Gives a duty back as it is, for another node to begin at once.
    pub async fn give_back_duty(&self, duty: &Duty) -> Result<Settled> {
        self.settle_duty(GIVE_BACK, duty.args()).await
    }

    /// Ends a duty that could not let go of its recording: it is due again
    /// `again` from now, where it is due at that age.
    pub async fn keep_recording(&self, duty: &Duty, due_at_age: Duration, again: Duration) -> Result<Settled> {
        self.settle_duty(KEEP, duty.args_and(args![due_at_age, again])).await
    }

    /// Runs one update of a duty.
    pub(super) async fn settle_duty(&self, statement: &'static str, args: Vec<Value>) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(statement, args).await?;
        session.commit().await?;
        self.announce_change();
        Ok(if changed == 1 { Settled::Done } else { Settled::Stale })
    }
}

/// Grants a duty on a row that was read with the time, and is locked.
pub(super) async fn grant(session: &mut Session, row: &Row, duration: Duration) -> Result<Duty> {
    let duty = Duty::read(row)?;
    session.execute(GRANT, args![duty.lease.id.account, duty.lease.id.recording, duration]).await?;
    Ok(duty)
}
