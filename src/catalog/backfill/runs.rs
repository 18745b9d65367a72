//! Backfills as a whole: how one is begun, who is at work on it, and what is forgotten.
//!
//! Several processes may be at work on one. Each says again and again that it is, and
//! for as long as one does no backfill of other days is begun: it would forget what this
//! one has found. What earlier ones noted is forgotten in small parts, never at once.

use std::time::Duration;

use jiff::civil::Date;
use sqlx::AssertSqlSafe;

use crate::catalog::columns::columns_of;
use crate::catalog::lease::Settled;
use crate::catalog::sql::{Row, args, now};
use crate::catalog::{Catalog, CatalogError, Result};
use crate::domain::sid::AccountSid;

/// The days that a backfill was asked for; None is as far as there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first one.
    pub since: Option<Date>,
    /// The last one.
    pub until: Option<Date>,
}

/// A backfill of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackfillRun {
    /// Whose list.
    pub account: AccountSid,
    /// Its number.
    pub run: i64,
    /// The number of this process among those that are at work on it.
    pub process: i64,
    /// When it was begun.
    pub begun_at: jiff::Timestamp,
    /// Whether it had been begun before, and was not over.
    pub is_resumed: bool,
}

pub(super) const RUN_OF: &str =
    concat!("SELECT ", columns_of!(backfills), ", ", now!(), " AS now_ms FROM backfills WHERE account_sid = $1");
/// There is a row to be locked, even where none was begun yet.
const MAKE: &str = "INSERT INTO backfills (account_sid, run, begun_at, completed_at) SELECT $1, 0, now_ms, now_ms \
     FROM clock WHERE 1 = 1 ON CONFLICT DO NOTHING";
const BEGIN: &str = concat!(
    "UPDATE backfills SET run = run + 1, since_day = $2, until_day = $3, begun_at = ",
    now!(),
    ", completed_at = NULL WHERE account_sid = $1"
);
/// Whoever joins may bring more.
const REOPEN: &str = "UPDATE backfills SET completed_at = NULL WHERE account_sid = $1";
const ALIVE: &str =
    concat!("SELECT process FROM backfill_processes WHERE account_sid = $1 AND alive_until > ", now!(), " LIMIT 1");
const FORGET_PROCESSES: &str = "DELETE FROM backfill_processes WHERE account_sid = $1";
const JOIN: &str = concat!(
    "INSERT INTO backfill_processes (account_sid, process, run, alive_until) \
     SELECT $1, coalesce(max(process), 0) + 1, $2, ",
    now!(),
    " + $3 FROM backfill_processes WHERE account_sid = $1 RETURNING process"
);
const STAY: &str = concat!(
    "UPDATE backfill_processes SET alive_until = ",
    now!(),
    " + $4 WHERE account_sid = $1 AND run = $2 AND process = $3"
);
const LEAVE: &str = "DELETE FROM backfill_processes WHERE account_sid = $1 AND run = $2 AND process = $3";
const COMPLETE: &str = concat!(
    "UPDATE backfills SET completed_at = ",
    now!(),
    " WHERE account_sid = $1 AND run = $2 AND completed_at IS NULL"
);
/// Of many finds few days are left to look at.
const OLD_DAYS: &str = "SELECT day FROM backfill_days WHERE account_sid = $1 AND run <> $2 ORDER BY day";
const FORGET_DAY: &str = "DELETE FROM backfill_days WHERE account_sid = $1 AND day = $3 AND run <> $2";
const FORGET_FINDS: &str = "DELETE FROM backfill_finds WHERE account_sid = $1 AND day = $3 AND run <> $2 AND recording_sid IN \
     (SELECT recording_sid FROM backfill_finds WHERE account_sid = $1 AND day = $3 AND run <> $2 LIMIT $4)";
/// Finds that are forgotten in one transaction: others write in between.
const FORGOTTEN_AT_ONCE: i64 = 1000;

impl dyn Catalog + '_ {
    /// Begins a backfill of an account, or goes on with the one of the same days that
    /// is not over, or that others are at work on. None: they are on one of other days.
    /// Whoever is at work says so again ([`Self::stay_at_backfill`]) before that time is over.
    pub async fn begin_backfill(
        &self,
        account: AccountSid,
        span: Span,
        lease: Duration,
    ) -> Result<Option<BackfillRun>> {
        let asked = [span.since, span.until].map(|day| day.map(|day| day.to_string()));
        let mut session = self.begin().await?;
        session.execute(MAKE, args![account]).await?;
        let locking = session.for_update();
        let known = the_one(session.row(AssertSqlSafe(format!("{RUN_OF}{locking}")), args![account]).await?)?;
        let are_its_days = [known.get::<Option<String>>("since_day")?, known.get("until_day")?] == asked;
        let is_alive = session.row(ALIVE, args![account]).await?.is_some();
        let is_over = known.get::<Option<i64>>("completed_at")?.is_some();
        if is_alive && !are_its_days {
            session.rollback().await?;
            return Ok(None);
        }
        let is_resumed = are_its_days && (is_alive || !is_over);
        if is_resumed {
            session.execute(REOPEN, args![account]).await?;
        } else {
            let [since, until] = asked;
            session.execute(FORGET_PROCESSES, args![account]).await?;
            session.execute(BEGIN, args![account, since, until]).await?;
        }
        let row = the_one(session.row(RUN_OF, args![account]).await?)?;
        let (run, begun_at) = (row.get("run")?, row.time("begun_at")?);
        let joined = the_one(session.row(JOIN, args![account, run, lease]).await?)?;
        let process = joined.get("process")?;
        session.commit().await?;
        Ok(Some(BackfillRun { account, run, process, begun_at, is_resumed }))
    }

    /// This process is still at work on a backfill. Stale: another one was begun since.
    pub async fn stay_at_backfill(&self, run: &BackfillRun, lease: Duration) -> Result<Settled> {
        self.settle_backfill(STAY, args![run.account, run.run, run.process, lease]).await
    }

    /// This process is not at work on a backfill any more.
    pub async fn leave_backfill(&self, run: &BackfillRun) -> Result<()> {
        self.settle_backfill(LEAVE, args![run.account, run.run, run.process]).await.map(|_| ())
    }

    /// Forgets what earlier backfills of the account noted, in small parts: there may
    /// be millions of finds. What is left where it fails is forgotten by the next one.
    pub async fn forget_earlier_backfills(&self, run: &BackfillRun) -> Result<()> {
        let old = self.read().await?.rows(OLD_DAYS, args![run.account, run.run]).await?;
        for row in old {
            let day: String = row.get("day")?;
            let of_day = || args![run.account, run.run, day.as_str()];
            loop {
                let mut session = self.begin().await?;
                let args = of_day().into_iter().chain(args![FORGOTTEN_AT_ONCE]).collect();
                let forgotten = session.execute(FORGET_FINDS, args).await?;
                session.commit().await?;
                if forgotten == 0 {
                    break;
                }
            }
            let mut session = self.begin().await?;
            session.execute(FORGET_DAY, of_day()).await?;
            session.commit().await?;
        }
        Ok(())
    }

    /// All days are walked over, and what they brought is counted.
    pub async fn complete_backfill(&self, run: &BackfillRun) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(COMPLETE, args![run.account, run.run]).await?;
        session.commit().await
    }
}

fn the_one(row: Option<Row>) -> Result<Row> {
    row.ok_or_else(|| CatalogError::Unreadable("a backfill that was begun is not there".to_owned()))
}
