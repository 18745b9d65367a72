//! What is owed of recordings that were erased: the marker, the bucket's part and
//! Twilio's.
//!
//! It is owed from the transaction that erased them (`erase.rs`). Any node goes on
//! with it, under a lease (`duty.rs`), until nothing is owed; a try that fails is
//! counted and due again. Nothing here erases, and nothing brings back.

use std::time::Duration;

use serde_json::json;
use sqlx::AssertSqlSafe;

use super::accept::lock;
use super::clock::between;
use super::columns::columns_of;
use super::duty::{Due, Duty, at_rest, grant, held};
use super::lease::Settled;
use super::sql::{Row, args, now, one_of};
use super::twilio_copies::DELETED_AT_TWILIO;
use super::{Catalog, Result, birth, feed, rows};
use crate::domain::recording::RecordingId;
use crate::domain::sid::AccountSid;

/// How far the erasing of a recording came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erasure {
    /// Which recording.
    pub id: RecordingId,
    /// Its marker is in the bucket.
    pub is_marked: bool,
    /// Nothing else of it is.
    pub is_cleared: bool,
    /// Its copy at Twilio is still to be deleted.
    pub owes_twilio: bool,
    /// Tries that did not bring it to an end.
    pub failures: u32,
}

/// What is owed of recordings that were erased, or of holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owed {
    /// Of how many recordings.
    pub count: u64,
    /// For how long the oldest of them has owed it; nothing where none does.
    pub oldest: Duration,
}

impl Owed {
    pub(super) fn read(row: &Row) -> Result<Self> {
        let now = row.time("now_ms")?;
        Ok(Self {
            count: row.get::<i64>("owed")?.unsigned_abs(),
            oldest: row.time_opt("owed_since")?.map_or(Duration::ZERO, |since| between(since, now)),
        })
    }
}

impl Erasure {
    /// Whether nothing is owed any more.
    pub fn is_done(&self) -> bool {
        self.is_marked && self.is_cleared && !self.owes_twilio
    }

    fn read(row: &Row) -> Result<Self> {
        let is = |column: &str, value: i64| Ok::<_, super::CatalogError>(row.get::<i64>(column)? == value);
        Ok(Self {
            id: rows::id(row)?,
            is_marked: is("erase_marked", 1)?,
            is_cleared: is("erase_cleared", 1)?,
            owes_twilio: is("erase_twilio", 1)?,
            failures: u32::try_from(row.get::<i64>("erase_failures")?).unwrap_or(u32::MAX),
        })
    }
}

/// What a try at erasing achieved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Nothing of it is in the bucket but its marker.
    pub cleared: bool,
    /// Twilio has no copy of it, and its marker does not say any more that it is to go.
    pub gone_at_twilio: bool,
}

const ONE: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    ", ",
    now!(),
    " AS now_ms FROM recordings WHERE account_sid = $1 AND recording_sid = $2 AND erase_due_at IS NOT NULL AND ",
    at_rest!()
);
/// Where its objects lie may be known only once the bucket is indexed; until then there
/// is nothing more to be done than its marker.
macro_rules! can_go_on {
    () => {
        concat!("erase_due_at IS NOT NULL AND (details_confirmed = 1 OR erase_marked = 0 OR ", birth::indexed!(), ")")
    };
}
const DUE: Due = Due { since: "erase_due_at", only: can_go_on!(), age: Duration::ZERO };
/// Of accounts that this node has no credentials for, the bucket's part.
const DUE_IN_BUCKET: Due = Due {
    since: "erase_due_at",
    only: concat!(can_go_on!(), " AND (erase_cleared = 0 OR erase_marked = 0)"),
    age: Duration::ZERO,
};
const ACCOUNTS_OWING: &str = "SELECT DISTINCT account_sid FROM recordings WHERE erase_due_at IS NOT NULL";
/// A marker that was written before Twilio's part was asked for does not say that it is owed.
const MARKED: &str = concat!(
    "UPDATE recordings SET erase_marked = CASE WHEN erase_twilio = 1 AND $4 = 0 THEN erase_marked ELSE 1 END",
    held!()
);
/// Whether Twilio's part was asked for meanwhile is seen by the row alone. The upload
/// stays known until the recheck: a part that was under way may outlast an abort.
const SETTLE: &str = concat!(
    "UPDATE recordings SET duty_until = NULL, erase_marked = CASE WHEN $5 = 1 THEN 1 ELSE erase_marked END, \
     erase_cleared = CASE WHEN $4 = 1 THEN 1 ELSE erase_cleared END, \
     erase_twilio = CASE WHEN $5 = 1 THEN 2 ELSE erase_twilio END, \
     recheck_due_at = CASE WHEN $4 = 1 AND erase_cleared = 0 THEN ",
    now!(),
    " + $7 ELSE recheck_due_at END, \
     erase_failures = CASE WHEN $4 = 1 AND ($5 = 1 OR erase_twilio <> 1) THEN 0 ELSE erase_failures + 1 END, \
     erase_owed_since = CASE WHEN $4 = 1 AND ($5 = 1 OR erase_twilio <> 1) THEN NULL \
     ELSE coalesce(erase_owed_since, erase_due_at) END, \
     erase_due_at = CASE WHEN $4 = 1 AND ($5 = 1 OR erase_twilio <> 1) THEN NULL ELSE ",
    now!(),
    " + $6 END",
    held!()
);
const OWED: &str = concat!(
    "SELECT count(*) AS owed, coalesce(sum(CASE WHEN erase_failures >= $1 THEN 1 ELSE 0 END), 0) AS failing, \
     min(coalesce(erase_owed_since, erase_due_at)) AS owed_since, ",
    now!(),
    " AS now_ms FROM recordings WHERE erase_due_at IS NOT NULL"
);

impl dyn Catalog + '_ {
    /// How far the erasing of these came. What is not erased is left out.
    pub async fn erasures(&self, ids: &[RecordingId]) -> Result<Vec<Erasure>> {
        let mut found = Vec::new();
        let mut session = self.read().await?;
        for id in ids {
            let mut args = args![id.account];
            let sql = format!(
                concat!(
                    "SELECT ",
                    columns_of!(recordings),
                    " FROM recordings WHERE account_sid = $1 AND state = 'erased'{}"
                ),
                one_of("recording_sid", [id.recording], &mut args)
            );
            if let Some(row) = session.row(AssertSqlSafe(sql), args).await? {
                found.push(Erasure::read(&row)?);
            }
        }
        Ok(found)
    }

    /// Grants a lease for what is owed of an erased recording, due or not. None
    /// where nothing is, or another node is at it.
    pub async fn grant_erasure(&self, id: &RecordingId, duration: Duration) -> Result<Option<Duty>> {
        let mut session = self.begin().await?;
        let locking = session.for_update();
        let row = session.row(AssertSqlSafe(format!("{ONE}{locking}")), args![id.account, id.recording]).await?;
        let Some(row) = row else {
            session.rollback().await?;
            return Ok(None);
        };
        let duty = grant(&mut session, &row, duration).await?;
        session.commit().await?;
        Ok(Some(duty))
    }

    /// Grants leases for what is owed and due of erased recordings, whoever's
    /// they are; Twilio's part alone only of `accounts`.
    pub async fn grant_erasures(
        &self,
        accounts: &[AccountSid],
        at_most: usize,
        duration: Duration,
    ) -> Result<Vec<Duty>> {
        let rows = self.read().await?.rows(ACCOUNTS_OWING, args![]).await?;
        let owing: Vec<AccountSid> = rows.iter().map(|row| row.parse("account_sid")).collect::<Result<_>>()?;
        let (ours, others): (Vec<_>, Vec<_>) = owing.into_iter().partition(|account| accounts.contains(account));
        let mut duties = self.grant_duties(&DUE, &ours, at_most, duration).await?;
        let room = at_most - duties.len();
        if room > 0 {
            duties.extend(self.grant_duties(&DUE_IN_BUCKET, &others, room, duration).await?);
        }
        Ok(duties)
    }

    /// Notes that the marker of an erased recording is in the bucket, and whether it says
    /// that Twilio's copy is still to go.
    pub async fn note_marked(&self, duty: &Duty, owes_twilio: bool) -> Result<Settled> {
        self.settle_duty(MARKED, duty.args_and(args![i64::from(owes_twilio)])).await
    }

    /// Ends a try at erasing. What is still owed is due `again` from now; what is cleared
    /// by it owes a recheck `recheck_after` that time.
    pub async fn settle_erasure(
        &self,
        duty: &Duty,
        progress: Progress,
        again: Duration,
        recheck_after: Duration,
    ) -> Result<Settled> {
        let id = &duty.lease.id;
        let done = args![i64::from(progress.cleared), i64::from(progress.gone_at_twilio), again, recheck_after];
        let mut session = self.begin().await?;
        lock(&mut session, id).await?;
        if session.execute(SETTLE, duty.args_and(done)).await? == 0 {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        if progress.gone_at_twilio {
            feed::note(&mut session, id, DELETED_AT_TWILIO, json!({})).await?;
        }
        session.commit().await?;
        self.announce_change();
        Ok(Settled::Done)
    }

    /// What erased recordings owe, and how many of them failed so often.
    pub async fn erasures_owed(&self, failed_at_least: u32) -> Result<(Owed, u64)> {
        let row = self.read().await?.row(OWED, args![i64::from(failed_at_least)]).await?;
        let Some(row) = row else { return Ok((Owed::default(), 0)) };
        Ok((Owed::read(&row)?, row.get::<i64>("failing")?.unsigned_abs()))
    }
}
