//! How accounts fare at Twilio: their pace, and whether they are paused.
//!
//! What one node learns holds for all. An account without a row here fares
//! well. Nothing here touches another account.

use std::time::Duration;

use serde_json::{Value as Json, json};
use sqlx::AssertSqlSafe;

use super::columns::columns_of;
use super::sql::{Row, Session, args, now, one_of};
use super::{Catalog, CatalogError, Result, feed};
use crate::domain::recording::ErrorCode;
use crate::domain::retry::Pace;
use crate::domain::sid::AccountSid;

/// An answer of Twilio's that asks for less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowDown {
    /// It said that there are too many requests at once.
    pub too_many: bool,
    /// How long it wants to be left alone.
    pub quiet_for: Duration,
    /// How long ago the attempt began: what slowed down since has heard it already.
    pub began_ago: Duration,
}

/// An account that is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// Which one.
    pub account: AccountSid,
    /// How many probes it had.
    pub probes: u32,
    /// Whether the next one is due.
    pub probe_is_due: bool,
}

/// What may be claimed of an account now.
pub(super) struct Room {
    /// At most so many.
    pub at_most: usize,
    /// Whether its pace is limited.
    pub limited: bool,
}

const MAKE_ROW: &str = "INSERT INTO accounts (account_sid) VALUES ($1) ON CONFLICT DO NOTHING";
const ROW: &str =
    concat!("SELECT ", columns_of!(accounts), ", ", now!(), " AS now_ms FROM accounts WHERE account_sid = $1");
/// Fetches of the account `$account`, and other requests that have a turn. A lease that
/// ran out is nobody's work any more.
macro_rules! sent {
    ($account:literal) => {
        concat!(
            "(SELECT count(*) FROM recordings f WHERE f.account_sid = ",
            $account,
            " AND f.state = 'fetching' AND f.due_at > ",
            now!(),
            ") + (SELECT count(*) FROM turns t WHERE t.account_sid = ",
            $account,
            " AND t.is_granted = 1 AND t.until_at > ",
            now!(),
            ")"
        )
    };
}
pub(super) use sent;

/// Whether the next place is a fetch's: a request has just given one back, and none
/// is being fetched.
macro_rules! is_fetches_turn {
    ($account:literal) => {
        concat!(
            "(EXISTS (SELECT 1 FROM turns y WHERE y.account_sid = ",
            $account,
            " AND y.is_granted = 2 AND y.until_at > ",
            now!(),
            ") AND NOT EXISTS (SELECT 1 FROM recordings u WHERE u.account_sid = ",
            $account,
            " AND u.state = 'fetching' AND u.due_at > ",
            now!(),
            "))"
        )
    };
}
pub(super) use is_fetches_turn;

/// What leaves no room for a fetch: what was sent, and one place for the urgent requests
/// that wait, unless it is a fetch's turn.
macro_rules! under_way {
    ($account:literal) => {
        concat!(
            sent!($account),
            " + (SELECT count(*) FROM (SELECT turn_id FROM turns w WHERE w.account_sid = ",
            $account,
            " AND w.is_granted = 0 AND w.is_urgent = 1 AND w.until_at > ",
            now!(),
            " AND NOT ",
            $crate::catalog::accounts::is_fetches_turn!($account),
            " LIMIT 1) AS waiting)"
        )
    };
}
pub(super) use under_way;

const UNDER_WAY: &str = concat!("SELECT ", under_way!("$1"), " AS under_way");
const SENT: &str = concat!("SELECT ", sent!("$1"), " AS under_way");
/// What leaves no room for another request: those who wait do not keep each other
/// waiting, but one place is kept for a fetch that is due when it is a fetch's turn.
const BEFORE_REQUEST: &str = concat!(
    "SELECT ",
    sent!("$1"),
    " + (SELECT count(*) FROM (SELECT d.recording_sid FROM recordings d WHERE d.account_sid = $1 \
     AND d.state = 'pending' AND d.due_at <= ",
    now!(),
    " AND (d.duty_until IS NULL OR d.duty_until <= ",
    now!(),
    ") AND ",
    is_fetches_turn!("$1"),
    " LIMIT 1) AS due) AS under_way"
);
const FETCHES_HAD_THEIR_TURN: &str = "DELETE FROM turns WHERE account_sid = $1 AND is_granted = 2";
const LIMITED: &str = "SELECT account_sid FROM accounts WHERE account_sid = $1 AND fetch_limit IS NOT NULL";
const SLOWED: &str = concat!(
    "UPDATE accounts SET fetch_limit = $2, too_many = $3, limit_set_at = ",
    now!(),
    ", slowed_at = ",
    now!(),
    " WHERE account_sid = $1"
);
const RAISED: &str =
    concat!("UPDATE accounts SET fetch_limit = $2, too_many = $3, limit_set_at = ", now!(), " WHERE account_sid = $1");
const SET_QUIET: &str = concat!(
    "UPDATE accounts SET quiet_until = ",
    now!(),
    " + $2 WHERE account_sid = $1 AND (quiet_until IS NULL OR quiet_until < ",
    now!(),
    " + $2)"
);
const PAUSE: &str = concat!(
    "UPDATE accounts SET paused_at = ",
    now!(),
    ", probe_at = ",
    now!(),
    " + $2, probes = 0 WHERE account_sid = $1 AND paused_at IS NULL"
);
const TAKE_PROBE: &str = concat!(
    "UPDATE accounts SET probes = probes + 1, probe_at = ",
    now!(),
    " + $2 WHERE account_sid = $1 AND paused_at IS NOT NULL AND probe_at <= ",
    now!()
);
const RESUME: &str = "UPDATE accounts SET paused_at = NULL, probe_at = NULL, probes = 0 \
                      WHERE account_sid = $1 AND paused_at IS NOT NULL";
const DUE_AT_ONCE: &str = concat!(
    "UPDATE recordings SET due_at = ",
    now!(),
    " WHERE account_sid = $1 AND state = 'pending' AND error_code = $2 AND due_at > ",
    now!()
);
const LEFT_ALONE: &str = concat!(
    "SELECT account_sid FROM accounts WHERE account_sid = $1 AND (paused_at IS NOT NULL OR quiet_until > ",
    now!(),
    ")"
);

impl dyn Catalog + '_ {
    /// Whether Twilio is not to be asked of an account now: it is paused, or
    /// Twilio wants to be left alone.
    pub async fn is_left_alone(&self, account: AccountSid) -> Result<bool> {
        Ok(self.read().await?.row(LEFT_ALONE, args![account]).await?.is_some())
    }

    /// Whether the pace of an account is limited.
    pub(super) async fn is_limited(&self, account: AccountSid) -> Result<bool> {
        Ok(self.read().await?.row(LIMITED, args![account]).await?.is_some())
    }

    /// Twilio asks for less of an account: fewer fetches at once from now on,
    /// and none at all for as long as it says. Gives the new pace, where it changed.
    pub async fn slow_down(&self, account: AccountSid, asked: SlowDown) -> Result<Option<Pace>> {
        let mut session = self.begin().await?;
        session.execute(MAKE_ROW, args![account]).await?;
        let row = lock(&mut session, account).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable(format!("{account} has no row")))?;
        if !asked.quiet_for.is_zero() {
            session.execute(SET_QUIET, args![account, asked.quiet_for]).await?;
        }
        let began_at = row.get::<i64>("now_ms")? - super::clock::millis(asked.began_ago);
        // An older node tells only when it set the pace.
        let slowed_at = row.get::<Option<i64>>("slowed_at")?.or(row.get("limit_set_at")?);
        let is_heard = slowed_at.is_some_and(|slowed_at| slowed_at > began_at);
        let mut slowed = None;
        if !is_heard {
            // The attempt that heard it may have ended already.
            let under_way = count(&mut session, SENT, account).await?.max(1);
            let pace = pace(&row)?.slowed(under_way, asked.too_many);
            session.execute(SLOWED, args![account, pace.limit, pace.too_many]).await?;
            slowed = Some(pace);
        }
        session.commit().await?;
        Ok(slowed)
    }

    /// Twilio answered something of an account calmly: one more may run at once, if the
    /// last change of its pace is long enough ago and Twilio does not want to be left alone.
    /// `base` is the length of a step. Says whether it was raised; where it is not
    /// time for it, nothing is locked.
    pub async fn speed_up(&self, account: AccountSid, base: Duration) -> Result<bool> {
        let seen = self.read().await?.row(ROW, args![account]).await?;
        if raised(seen.as_ref(), base)?.is_none() {
            return Ok(false);
        }
        let mut session = self.begin().await?;
        let row = lock(&mut session, account).await?;
        let Some(pace) = raised(row.as_ref(), base)? else {
            // Another node was quicker.
            session.rollback().await?;
            return Ok(false);
        };
        session.execute(RAISED, args![account, pace.limit, pace.too_many]).await?;
        session.commit().await?;
        self.announce_change();
        Ok(true)
    }

    /// Twilio refuses the account's credentials: nothing more is claimed of it.
    /// Says whether that is news. The first probe is due `probe_after`.
    pub async fn pause(&self, account: AccountSid, why: &str, probe_after: Duration) -> Result<bool> {
        let mut session = self.begin().await?;
        session.execute(MAKE_ROW, args![account]).await?;
        if session.execute(PAUSE, args![account, probe_after]).await? == 0 {
            session.rollback().await?;
            return Ok(false);
        }
        feed::append_of_account(&mut session, account, "account.paused", json!({"detail": why})).await?;
        session.commit().await?;
        self.announce_change();
        Ok(true)
    }

    /// Twilio accepts the account's credentials again: what they were refused
    /// for is due at once. Says whether that is news.
    pub async fn resume(&self, account: AccountSid) -> Result<bool> {
        let mut session = self.begin().await?;
        if session.execute(RESUME, args![account]).await? == 0 {
            session.rollback().await?;
            return Ok(false);
        }
        session.execute(DUE_AT_ONCE, args![account, ErrorCode::Unauthorized.as_str()]).await?;
        feed::append_of_account(&mut session, account, "account.resumed", Json::Null).await?;
        session.commit().await?;
        self.announce_change();
        Ok(true)
    }

    /// Those of the accounts that are paused.
    pub async fn paused(&self, accounts: &[AccountSid]) -> Result<Vec<Paused>> {
        let mut args = args![];
        let filter = one_of("account_sid", accounts.iter().copied(), &mut args);
        let sql = format!(
            concat!(
                "SELECT ",
                columns_of!(accounts),
                ", {} AS now_ms FROM accounts WHERE paused_at IS NOT NULL{filter}"
            ),
            now!(),
            filter = filter
        );
        let rows = self.read().await?.rows(AssertSqlSafe(sql), args).await?;
        let paused = |row: &Row| -> Result<Paused> {
            Ok(Paused {
                account: row.parse("account_sid")?,
                probes: u32::try_from(row.get::<i64>("probes")?).unwrap_or(u32::MAX),
                probe_is_due: row.time_opt("probe_at")? <= Some(row.time("now_ms")?),
            })
        };
        rows.iter().map(paused).collect()
    }

    /// Takes the right to probe an account, once it is due; the next one is due
    /// `next_after`. False where another node was quicker.
    pub async fn take_probe(&self, account: AccountSid, next_after: Duration) -> Result<bool> {
        let mut session = self.begin().await?;
        let taken = session.execute(TAKE_PROBE, args![account, next_after]).await?;
        session.commit().await?;
        Ok(taken == 1)
    }
}

/// How much may be claimed of an account now, which stays so until the end of
/// the transaction. None: nothing, or another node is just claiming.
pub(super) async fn room(session: &mut Session, account: AccountSid) -> Result<Option<Room>> {
    let Some(row) = row_of(session, account, session.for_update_skip_locked()).await? else {
        let is_locked = session.is_postgres() && session.row(ROW, args![account]).await?.is_some();
        return Ok((!is_locked).then_some(Room { at_most: usize::MAX, limited: false }));
    };
    if is_quiet(&row)? || row.get::<Option<i64>>("paused_at")?.is_some() {
        return Ok(None);
    }
    let Some(limit) = pace(&row)?.limit else { return Ok(Some(Room { at_most: usize::MAX, limited: false })) };
    let left = limit - count(session, UNDER_WAY, account).await?;
    let Some(at_most) = usize::try_from(left).ok().filter(|left| *left > 0) else { return Ok(None) };
    // Where nothing is claimed, this is rolled back.
    session.execute(FETCHES_HAD_THEIR_TURN, args![account]).await?;
    Ok(Some(Room { at_most, limited: true }))
}

async fn lock(session: &mut Session, account: AccountSid) -> Result<Option<Row>> {
    row_of(session, account, session.for_update()).await
}

async fn row_of(session: &mut Session, account: AccountSid, locking: &str) -> Result<Option<Row>> {
    session.row(AssertSqlSafe(format!("{ROW}{locking}")), args![account]).await
}

/// Requests beside fetches for which there is room now, which stays so until the
/// end of the transaction; None is any number.
pub(super) async fn room_for_request(session: &mut Session, account: AccountSid) -> Result<Option<i64>> {
    let Some(row) = lock(session, account).await? else { return Ok(None) };
    let Some(limit) = pace(&row)?.limit else { return Ok(None) };
    Ok(Some((limit - count(session, BEFORE_REQUEST, account).await?).max(0)))
}

async fn count(session: &mut Session, what: &'static str, account: AccountSid) -> Result<i64> {
    let row = session.row(what, args![account]).await?;
    row.map_or(Ok(0), |row| row.get("under_way"))
}

fn pace(row: &Row) -> Result<Pace> {
    Ok(Pace { limit: row.get("fetch_limit")?, too_many: row.get("too_many")? })
}

/// The next pace of the account with this row, where its time has come.
fn raised(row: Option<&Row>, base: Duration) -> Result<Option<Pace>> {
    let Some(row) = row else { return Ok(None) };
    let pace = pace(row)?;
    let set_at = row.get::<Option<i64>>("limit_set_at")?.unwrap_or_default();
    let step = super::clock::millis(base.saturating_mul(pace.bases_until_raised()));
    let is_time = pace.limit.is_some() && set_at.saturating_add(step) <= row.get("now_ms")?;
    Ok((is_time && !is_quiet(row)?).then(|| pace.raised()))
}

/// Whether Twilio wants to be left alone.
fn is_quiet(row: &Row) -> Result<bool> {
    Ok(row.get::<Option<i64>>("quiet_until")? > Some(row.get("now_ms")?))
}
