//! Walks over Twilio's lists: whose turn it is, and how far each one came.
//!
//! Every account has one row. A walk is granted to one node at a time, under a
//! lease with an epoch; whoever lost it changes nothing more. What a walk looks
//! at is fixed when it begins, and where it is, is saved after every page: the
//! next node goes on from there. No account's row is touched for another's sake.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::clock::between;
use super::columns::columns_of;
use super::lease::Settled;
use super::sql::{Row, Session, Value, args, now, one_of};
use super::{Catalog, CatalogError, Result, birth};
use crate::domain::recording::State;
use crate::domain::sid::{AccountSid, RecordingSid};

/// Who walks, and on which terms.
#[derive(Debug, Clone)]
pub struct Walker {
    /// The node's name, for people.
    pub node: String,
    /// The accounts that it has credentials for.
    pub accounts: Vec<AccountSid>,
    /// How long a walk may go without being renewed.
    pub lease: Duration,
    /// How far back a walk looks that begins now.
    pub window: Duration,
    /// How far back it looks at most for what no walk has looked at: after an outage
    /// of days the window alone would leave a gap.
    pub reach: Duration,
}

/// The right to walk over the list of one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalkLease {
    /// Whose list.
    pub account: AccountSid,
    /// The epoch that was granted.
    pub epoch: i64,
}

/// A walk that was just granted: a new one, or one that another node left off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// The lease.
    pub lease: WalkLease,
    /// How far back it looks.
    pub from: Timestamp,
    /// When it was begun.
    pub begun_at: Timestamp,
    /// Twilio's query for the page that is next; None is the first page.
    pub next_page: Option<String>,
    /// The pages that are done.
    pub pages: i64,
    /// The times that a node failed to go on with it.
    pub failed_rounds: u32,
}

/// What lies ahead for the accounts of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// How long until a walk may be granted; None: no account may be asked of.
    pub walk_in: Option<Duration>,
    /// How long until Twilio may be asked about an announced recording; None: about none.
    pub announced_in: Option<Duration>,
    /// How long ago the last complete walk began, of the account that waits
    /// longest; where there was none, since when the account is known here.
    pub lag: Duration,
}

const ENROLL: &str = "INSERT INTO reconciles (account_sid, enrolled_at, due_at, asking_from) \
     SELECT $1, now_ms, now_ms, now_ms FROM clock WHERE 1 = 1 ON CONFLICT DO NOTHING";

/// An account whose credentials are refused, or that Twilio wants to be left
/// alone, is not asked of.
macro_rules! may_be_asked {
    () => {
        concat!(
            "NOT EXISTS (SELECT 1 FROM accounts a WHERE a.account_sid = c.account_sid \
             AND (a.paused_at IS NOT NULL OR a.quiet_until > ",
            now!(),
            "))"
        )
    };
}
pub(super) use may_be_asked;

/// An announced recording is due `$1` after it was last asked about.
const AHEAD_OF: &str = concat!(
    "SELECT ",
    now!(),
    " AS now_ms, count(*) AS enrolled, min(coalesce(covered_until, enrolled_at)) AS covered_until, min(CASE WHEN ",
    may_be_asked!(),
    " THEN due_at END) AS walk_at, min(CASE WHEN ",
    may_be_asked!(),
    " THEN (SELECT CASE WHEN r.asked_about_at + $1 > c.asking_from THEN r.asked_about_at + $1 ELSE c.asking_from END \
     FROM recordings r WHERE r.account_sid = c.account_sid AND r.state = 'announced' \
     ORDER BY r.asked_about_at LIMIT 1) END) AS announced_at FROM reconciles c WHERE 1 = 1"
);

/// Of a catalog that is not indexed a list would bring in what the bucket has.
const DUE_OF: &str = concat!(
    "SELECT account_sid FROM reconciles c WHERE ",
    birth::indexed!(),
    " AND ",
    may_be_asked!(),
    " AND due_at <= ",
    now!()
);
/// So much of what a walk has looked at is looked at again where there is a gap: Twilio
/// may list a recording late.
const OVERLAP: Duration = Duration::from_secs(3600);

/// A walk that begins looks afresh; one that was begun goes on. It looks back over
/// `$4`, and where the last complete one began before that, as far as there, less
/// `$5`; but no further than `$6`.
const GRANT: &str = concat!(
    "UPDATE reconciles SET epoch = epoch + 1, lease_node = $2, due_at = ",
    now!(),
    " + $3, pages = CASE WHEN begun_at IS NULL THEN 0 ELSE pages END, \
     found = CASE WHEN begun_at IS NULL THEN 0 ELSE found END, \
     wanted = CASE WHEN begun_at IS NULL THEN 0 ELSE wanted END, window_from = coalesce(window_from, \
     CASE WHEN coalesce(covered_until, enrolled_at) >= ",
    now!(),
    " - $4 THEN ",
    now!(),
    " - $4 WHEN coalesce(covered_until, enrolled_at) - $5 <= ",
    now!(),
    " - $6 THEN ",
    now!(),
    " - $6 ELSE coalesce(covered_until, enrolled_at) - $5 END), begun_at = coalesce(begun_at, ",
    now!(),
    ") WHERE account_sid = $1"
);
const ONE: &str = concat!("SELECT ", columns_of!(reconciles), " FROM reconciles WHERE account_sid = $1");

/// What every update of a walk ends with.
macro_rules! held {
    () => {
        " WHERE account_sid = $1 AND epoch = $2 AND lease_node IS NOT NULL"
    };
}

const RENEW: &str = concat!("UPDATE reconciles SET due_at = ", now!(), " + $3", held!());
const SAVE_PAGE: &str = concat!(
    "UPDATE reconciles SET next_page = $3, pages = pages + 1, found = found + $4, due_at = ",
    now!(),
    " + $5",
    held!()
);
const HAND_BACK: &str = concat!("UPDATE reconciles SET lease_node = NULL, due_at = ", now!(), held!());
/// The next walk comes `$4` after this one was begun: at once where that is
/// over, or where another one was wanted meanwhile. `$5` is 1 where it was complete.
const FINISH: &str = concat!(
    "UPDATE reconciles SET lease_node = NULL, found = found + $3, failed_rounds = 0, not_before = NULL, \
     covered_until = CASE WHEN $5 = 1 THEN begun_at ELSE covered_until END, begun_at = NULL, window_from = NULL, \
     next_page = NULL, completed_at = CASE WHEN $5 = 1 THEN ",
    now!(),
    " ELSE completed_at END, due_at = CASE WHEN wanted = 1 OR begun_at + $4 < ",
    now!(),
    " THEN ",
    now!(),
    " ELSE begun_at + $4 END",
    held!()
);
/// `$5` is 1 where the page that was next is of no use.
const FAIL: &str = concat!(
    "UPDATE reconciles SET lease_node = NULL, failed_rounds = failed_rounds + 1, due_at = ",
    now!(),
    " + $3, not_before = ",
    now!(),
    " + $4, next_page = CASE WHEN $5 = 1 THEN NULL ELSE next_page END, \
     pages = CASE WHEN $5 = 1 THEN 0 ELSE pages END",
    held!()
);
/// A walk under way is left alone: another one follows it.
const WANT_OF: &str = concat!(
    "UPDATE reconciles SET wanted = 1, due_at = CASE WHEN lease_node IS NOT NULL OR due_at <= ",
    now!(),
    " THEN due_at WHEN not_before > ",
    now!(),
    " THEN not_before ELSE ",
    now!(),
    " END WHERE 1 = 1"
);
const STATES_OF: &str = "SELECT recording_sid, state FROM recordings WHERE account_sid = $1";

impl WalkLease {
    fn args_and(&self, more: Vec<Value>) -> Vec<Value> {
        args![self.account, self.epoch].into_iter().chain(more).collect()
    }
}

impl dyn Catalog + '_ {
    /// Makes the rows of accounts that are new here. Their first walk is due at once.
    pub async fn enroll(&self, accounts: &[AccountSid]) -> Result<()> {
        let mut session = self.begin().await?;
        for account in accounts {
            session.execute(ENROLL, args![*account]).await?;
        }
        session.commit().await
    }

    /// What lies ahead for these accounts, where announced recordings are
    /// asked about every `announced_every`. None where one of them is not enrolled, or
    /// there are none.
    pub async fn ahead(&self, accounts: &[AccountSid], announced_every: Duration) -> Result<Option<Ahead>> {
        let mut args = args![announced_every];
        let filter = one_of("account_sid", accounts.iter().copied(), &mut args);
        let row = self.read().await?.row(AssertSqlSafe(format!("{AHEAD_OF}{filter}")), args).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable("an aggregate has no row".to_owned()))?;
        let now = row.time("now_ms")?;
        let are_enrolled = usize::try_from(row.get::<i64>("enrolled")?) == Ok(accounts.len());
        let Some(covered_until) = row.time_opt("covered_until")?.filter(|_| are_enrolled) else { return Ok(None) };
        Ok(Some(Ahead {
            walk_in: row.time_opt("walk_at")?.map(|at| between(now, at)),
            announced_in: row.time_opt("announced_at")?.map(|at| between(now, at)),
            lag: between(covered_until, now),
        }))
    }

    /// Grants the walk that has been due for longest, if one is. One whose
    /// lease ran out goes on where it was saved.
    pub async fn grant_walk(&self, walker: &Walker) -> Result<Option<Walk>> {
        self.must_be_read().await?;
        let mut session = self.begin().await?;
        let mut args = args![];
        let filter = one_of("account_sid", walker.accounts.iter().copied(), &mut args);
        let locking = session.for_update_skip_locked();
        let sql = format!("{DUE_OF}{filter} ORDER BY due_at LIMIT 1{locking}");
        let Some(due) = session.row(AssertSqlSafe(sql), args).await? else {
            session.rollback().await?;
            return Ok(None);
        };
        let account: AccountSid = due.parse("account_sid")?;
        let Walker { window, reach, .. } = *walker;
        let (overlap, reach) = (window.min(OVERLAP), window.max(reach));
        session.execute(GRANT, args![account, walker.node.as_str(), walker.lease, window, overlap, reach]).await?;
        let granted = session.row(ONE, args![account]).await?;
        let walk = granted.as_ref().map(walk).transpose()?;
        session.commit().await?;
        Ok(walk)
    }

    /// Prolongs the lease of a walk from now on.
    pub async fn renew_walk(&self, lease: &WalkLease, duration: Duration) -> Result<Settled> {
        self.settle_walk(RENEW, lease.args_and(args![duration])).await
    }

    /// A page is done, with so many finds on it, and `next` is Twilio's query for
    /// the page after it. Prolongs the lease.
    pub async fn save_page(&self, lease: &WalkLease, next: &str, found: i64, duration: Duration) -> Result<Settled> {
        self.settle_walk(SAVE_PAGE, lease.args_and(args![next, found, duration])).await
    }

    /// The last page is done, with so many finds on it. The next walk comes
    /// `every` after this one was begun.
    pub async fn finish_walk(&self, lease: &WalkLease, found: i64, every: Duration) -> Result<Settled> {
        self.settle_walk(FINISH, lease.args_and(args![found, every, 1])).await
    }

    /// The walk is over, and did not come to the list's end: what it was to look at
    /// counts as not looked at.
    pub async fn abandon_walk(&self, lease: &WalkLease, found: i64, every: Duration) -> Result<Settled> {
        self.settle_walk(FINISH, lease.args_and(args![found, every, 0])).await
    }

    /// The walk goes on after that time, and not before the other one, whoever
    /// wants it: from its saved page, or `from_the_start`.
    pub async fn fail_walk(
        &self,
        lease: &WalkLease,
        after: Duration,
        not_before: Duration,
        from_the_start: bool,
    ) -> Result<Settled> {
        let more = args![after, not_before, i64::from(from_the_start)];
        self.settle_walk(FAIL, lease.args_and(more)).await
    }

    /// The walk may go on at once, from its saved page, on any node.
    pub async fn hand_back_walk(&self, lease: &WalkLease) -> Result<Settled> {
        self.settle_walk(HAND_BACK, lease.args_and(args![])).await
    }

    /// Wants a walk over each of these accounts that begins from now on.
    pub async fn walk_all_now(&self, accounts: &[AccountSid]) -> Result<()> {
        let mut args = args![];
        let filter = one_of("account_sid", accounts.iter().copied(), &mut args);
        let mut session = self.begin().await?;
        session.execute(AssertSqlSafe(format!("{WANT_OF}{filter}")), args).await?;
        session.commit().await
    }

    /// Where those of an account's recordings stand that are known.
    pub async fn states_of(
        &self,
        account: AccountSid,
        recordings: impl IntoIterator<Item = RecordingSid>,
    ) -> Result<HashMap<RecordingSid, State>> {
        states_of(&mut self.read().await?, account, recordings).await
    }

    async fn settle_walk(&self, statement: &'static str, args: Vec<Value>) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(statement, args).await?;
        session.commit().await?;
        Ok(if changed == 1 { Settled::Done } else { Settled::Stale })
    }
}

pub(super) async fn states_of(
    session: &mut Session,
    account: AccountSid,
    recordings: impl IntoIterator<Item = RecordingSid>,
) -> Result<HashMap<RecordingSid, State>> {
    let mut args = args![account];
    let filter = one_of("recording_sid", recordings, &mut args);
    let rows = session.rows(AssertSqlSafe(format!("{STATES_OF}{filter}")), args).await?;
    rows.iter().map(|row| Ok((row.parse("recording_sid")?, row.parse("state")?))).collect()
}

fn walk(row: &Row) -> Result<Walk> {
    Ok(Walk {
        lease: WalkLease { account: row.parse("account_sid")?, epoch: row.get("epoch")? },
        from: row.time("window_from")?,
        begun_at: row.time("begun_at")?,
        next_page: row.get("next_page")?,
        pages: row.get("pages")?,
        failed_rounds: u32::try_from(row.get::<i64>("failed_rounds")?).unwrap_or(u32::MAX),
    })
}
