//! Backfills: what was asked for, how far each day came, and what was found.
//!
//! A backfill goes over an account's list day by day. Of each day one process
//! has the lease at a time, and whoever lost it changes nothing more. What is
//! taken of a page and that it was found are one transaction, so wherever a
//! process ends, the next one goes on, and every recording counts once. A row
//! is made for what the catalog does not know, and what is announced may move
//! on; no other row is touched.

mod count;
mod runs;

use std::time::Duration;

use jiff::civil::Date;
use sqlx::AssertSqlSafe;

pub use count::DayCount;
pub use runs::{BackfillRun, Span};

use super::accept::take;
use super::columns::columns_of;
use super::lease::Settled;
use super::reconcile::states_of;
use super::sql::{Row, Session, Value, args, now};
use super::{Announcement, Catalog, Result, questions};
use crate::domain::recording::State;
use crate::domain::sid::AccountSid;

/// The right to walk over a day of a backfill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayLease {
    /// Whose list.
    pub account: AccountSid,
    /// Which day.
    pub day: Date,
    /// The backfill's number.
    pub run: i64,
    /// The epoch that was granted.
    pub epoch: i64,
}

/// A walk over a day: a new one, or one that was left off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayWalk {
    /// The lease.
    pub lease: DayLease,
    /// Twilio's query for the page that is next; None is the first page.
    pub next_page: Option<String>,
    /// The pages of this pass that are done.
    pub pages: i64,
    /// What was new on them.
    pub news: i64,
    /// The passes over the day that are done.
    pub passes: i64,
}

/// Whether a day may be walked over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DayGrant {
    /// It may.
    Granted(DayWalk),
    /// Another process is at it.
    Held,
    /// It is done.
    Done,
    /// Another backfill of the account was begun since.
    Superseded,
}

/// What is to be done with a recording of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Find {
    /// What is said of it.
    pub said: Announcement,
    /// Twilio does not have it any more.
    pub is_deleted: bool,
    /// Twilio is done with it.
    pub is_final: bool,
    /// Whether it was there before the backfill was begun.
    pub counts_as_news: bool,
}

const MAKE_DAY: &str = "INSERT INTO backfill_days (account_sid, day, run, epoch) VALUES ($1, $2, $3, 0) \
     ON CONFLICT (account_sid, day) DO UPDATE SET run = $3, epoch = backfill_days.epoch + 1, leased_until = NULL, \
     next_page = NULL, pages = 0, news = 0, unreadable = 0, passes = 0, walked_at = NULL WHERE backfill_days.run < $3";
const DAY: &str = concat!(
    "SELECT ",
    columns_of!(backfill_days),
    ", ",
    now!(),
    " AS now_ms FROM backfill_days WHERE account_sid = $1 AND day = $2 AND run = $3"
);
/// A day that is looked at once more begins with a first page.
const GRANT: &str = concat!(
    "UPDATE backfill_days SET epoch = epoch + 1, leased_until = ",
    now!(),
    " + $4, walked_at = NULL, passes = CASE WHEN walked_at IS NULL THEN passes ELSE 0 END \
     WHERE account_sid = $1 AND day = $2 AND run = $3"
);

/// What every update of a walk ends with.
macro_rules! held {
    () => {
        " WHERE account_sid = $1 AND day = $2 AND run = $3 AND epoch = $4 AND leased_until IS NOT NULL"
    };
}

const RENEW: &str = concat!("UPDATE backfill_days SET leased_until = ", now!(), " + $5", held!());
const NOTE_NEWS: &str = concat!("UPDATE backfill_days SET news = news + $5, leased_until = ", now!(), " + $6", held!());
const SAVE_PAGE: &str =
    concat!("UPDATE backfill_days SET next_page = $5, pages = pages + 1, unreadable = unreadable + $6", held!());
const BEGIN_PASS: &str =
    concat!("UPDATE backfill_days SET next_page = NULL, pages = 0, news = 0, unreadable = 0, passes = $5", held!());
const FINISH: &str = concat!(
    "UPDATE backfill_days SET next_page = NULL, pages = 0, news = 0, unreadable = unreadable + $5, leased_until = NULL, \
     walked_at = ",
    now!(),
    held!()
);
const HAND_BACK: &str = concat!("UPDATE backfill_days SET leased_until = NULL", held!());
const NOTE_FIND: &str = "INSERT INTO backfill_finds (account_sid, day, recording_sid, run, what) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (account_sid, day, recording_sid) DO UPDATE SET run = $4, what = $5 WHERE backfill_finds.run < $4";
impl DayLease {
    fn args_and(&self, more: Vec<Value>) -> Vec<Value> {
        args![self.account, self.day.to_string(), self.run, self.epoch].into_iter().chain(more).collect()
    }
}

impl dyn Catalog + '_ {
    /// Grants the walk over a day. It is done when it was walked over at
    /// `settled_at` or later.
    pub async fn grant_day(
        &self,
        run: &BackfillRun,
        day: Date,
        settled_at: jiff::Timestamp,
        lease: Duration,
    ) -> Result<DayGrant> {
        let mut session = self.begin().await?;
        session.execute(MAKE_DAY, args![run.account, day.to_string(), run.run]).await?;
        let locking = session.for_update();
        let key = || args![run.account, day.to_string(), run.run];
        let Some(row) = session.row(AssertSqlSafe(format!("{DAY}{locking}")), key()).await? else {
            session.rollback().await?;
            return Ok(DayGrant::Superseded);
        };
        let refused = if row.time_opt("walked_at")?.is_some_and(|at| at >= settled_at) {
            Some(DayGrant::Done)
        } else {
            (row.time_opt("leased_until")? > Some(row.time("now_ms")?)).then_some(DayGrant::Held)
        };
        if let Some(refused) = refused {
            session.rollback().await?;
            return Ok(refused);
        }
        session.execute(GRANT, key().into_iter().chain(args![lease]).collect()).await?;
        let row = session.row(DAY, key()).await?;
        let walk = row.as_ref().map(|row| day_walk(row, run, day)).transpose()?;
        session.commit().await?;
        Ok(walk.map_or(DayGrant::Superseded, DayGrant::Granted))
    }

    /// Takes what is on the list, and notes that it was found, in one
    /// transaction, which also prolongs the lease. Says how much of it was news;
    /// None where the lease is lost, and nothing was taken.
    pub async fn take_finds(&self, lease: &DayLease, finds: &[Find], duration: Duration) -> Result<Option<i64>> {
        self.must_be_read().await?;
        let mut session = self.begin().await?;
        // Whoever is granted the day now waits for the end of this.
        if session.execute(NOTE_NEWS, lease.args_and(args![0, duration])).await? == 0 {
            session.rollback().await?;
            return Ok(None);
        }
        let recordings = finds.iter().map(|find| find.said.id.recording);
        let known = states_of(&mut session, lease.account, recordings).await?;
        let (mut news, mut moved) = (0, false);
        for find in finds {
            let what = take_find(&mut session, find, known.get(&find.said.id.recording), &mut moved).await?;
            let args = args![lease.account, lease.day.to_string(), find.said.id.recording, lease.run, what];
            let noted = session.execute(NOTE_FIND, args).await?;
            news += i64::from(noted > 0 && find.counts_as_news);
        }
        session.execute(NOTE_NEWS, lease.args_and(args![news, duration])).await?;
        session.commit().await?;
        if moved {
            self.announce_change();
        }
        Ok(Some(news))
    }

    /// Prolongs the lease of a day.
    pub async fn renew_day(&self, lease: &DayLease, duration: Duration) -> Result<Settled> {
        self.settle_backfill(RENEW, lease.args_and(args![duration])).await
    }

    /// A page is done, and `next` is Twilio's query for the page after it.
    pub async fn save_day_page(&self, lease: &DayLease, next: &str, unreadable: i64) -> Result<Settled> {
        self.settle_backfill(SAVE_PAGE, lease.args_and(args![next, unreadable])).await
    }

    /// The next page is the first one again, of a pass before which so many were done.
    pub async fn begin_day_pass(&self, lease: &DayLease, passes: i64) -> Result<Settled> {
        self.settle_backfill(BEGIN_PASS, lease.args_and(args![passes])).await
    }

    /// The day is done.
    pub async fn finish_day(&self, lease: &DayLease, unreadable: i64) -> Result<Settled> {
        self.settle_backfill(FINISH, lease.args_and(args![unreadable])).await
    }

    /// The day may be gone on with at once, by any process.
    pub async fn hand_back_day(&self, lease: &DayLease) -> Result<Settled> {
        self.settle_backfill(HAND_BACK, lease.args_and(args![])).await
    }

    async fn settle_backfill(&self, statement: &'static str, args: Vec<Value>) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(statement, args).await?;
        session.commit().await?;
        Ok(if changed == 1 { Settled::Done } else { Settled::Stale })
    }
}

/// Takes one find, where it tells something. Says what it is to the backfill.
async fn take_find(
    session: &mut Session,
    find: &Find,
    known: Option<&State>,
    moved: &mut bool,
) -> Result<&'static str> {
    let tells_something = match known {
        None if find.is_deleted => return Ok("deleted"),
        None => true,
        Some(State::Announced) => find.is_final,
        Some(_) => false,
    };
    if !tells_something {
        return Ok("known");
    }
    let taken = take(session, &find.said).await?;
    *moved |= taken.moved;
    if let Some(call) = find.said.details.call_sid {
        questions::clear(session, find.said.id.account, call).await?;
    }
    Ok(if taken.accepted.created { "new" } else { "known" })
}

fn day_walk(row: &Row, run: &BackfillRun, day: Date) -> Result<DayWalk> {
    Ok(DayWalk {
        lease: DayLease { account: run.account, day, run: run.run, epoch: row.get("epoch")? },
        next_page: row.get("next_page")?,
        pages: row.get("pages")?,
        news: row.get("news")?,
        passes: row.get("passes")?,
    })
}
