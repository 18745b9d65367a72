//! Erasing: the row, and what is owed of it afterwards.
//!
//! One transaction makes a recording `erased`, unless it is held: the epoch is
//! raised, so that whoever works on it changes nothing more, and every field is
//! cleared but the SIDs, the times, and the upload until it is aborted. What its
//! history told beyond that is cleared, too. The host of its source stays: only
//! there can its copy at Twilio be deleted. The marker, the bucket's part and
//! Twilio's are owed from then on, and any node goes on with them, under a lease
//! (`duty.rs`). Nothing leads out of `erased`.

use std::time::Duration;

use serde_json::json;
use sqlx::AssertSqlSafe;

use super::accept::lock;
use super::clock::{agrees, between};
use super::columns::columns_of;
use super::duty::{Due, Duty, at_rest, grant, held};
use super::lease::Settled;
use super::sql::{Row, Session, args, now, one_of};
use super::twilio_copies::DELETED_AT_TWILIO;
use super::{Catalog, Result, birth, feed, rows};
use crate::domain::recording::{Recording, RecordingId, State};
use crate::domain::sid::{AccountSid, CallSid};

/// Why something is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErasedBy {
    /// Somebody asked for it.
    Request,
    /// It reached the age at which recordings of its account go.
    Retention,
    /// The bucket says that it was: a marker of a catalog before this one.
    Marker,
}

/// What is to be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erase {
    /// One recording.
    Recording(RecordingId),
    /// Every recording that a call of an account has, under any of its names.
    Call(AccountSid, CallSid),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erased {
    /// Nothing is known of it.
    Unknown,
    /// Something of it is held: nothing was erased.
    Held,
    /// These are erased, now or since before.
    Done(Vec<RecordingId>),
}

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
    /// Twilio has no copy of it.
    pub gone_at_twilio: bool,
}

const LOCK: &str = concat!("SELECT ", columns_of!(recordings), " FROM recordings WHERE account_sid = $1");
const BY_RECORDING: &str = " AND recording_sid = $2";
/// Its own, those of calls that it is another name of, and those PUT for it.
const BY_CALL: &str = " AND recording_sid IN ( \
     SELECT recording_sid FROM recordings WHERE account_sid = $1 AND call_sid = $2 \
     UNION SELECT recording_sid FROM choices WHERE account_sid = $1 AND call_sid = $2 \
     UNION SELECT o.recording_sid FROM aliases a JOIN recordings o ON o.account_sid = a.account_sid \
     AND o.call_sid = a.target_sid WHERE a.account_sid = $1 AND a.alias_sid = $2 \
     UNION SELECT o.recording_sid FROM aliases a JOIN recordings o ON o.account_sid = a.account_sid \
     AND o.conference_sid = a.target_sid WHERE a.account_sid = $1 AND a.alias_sid = $2)";
/// In an order: two that erase the same must not wait for each other.
const IN_ORDER: &str = " ORDER BY recording_sid";
const ACCOUNTS_WITH_OLD: &str = "SELECT a.column1 AS account_sid FROM";
const HAS_OLD: &str = concat!(
    "SELECT 1 FROM recordings WHERE account_sid = a.column1 AND state <> 'erased' AND hold = 0 AND ordered_at <= ",
    now!(),
    " - a.column2 AND ",
    birth::indexed!()
);
const OLD: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    ", ",
    now!(),
    " AS now_ms FROM recordings WHERE account_sid = $1 AND state <> 'erased' AND hold = 0 AND ordered_at <= ",
    now!(),
    " - $2 AND ",
    birth::indexed!(),
    " ORDER BY ordered_at LIMIT $3"
);
/// The lease of a duty ends with it: a delete that comes late does no harm here.
const ERASE: &str = concat!(
    "UPDATE recordings SET state = 'erased', epoch = epoch + 1, announced_by = '', lease_node = NULL, due_at = NULL, \
     not_before = NULL, pending_since = NULL, asked_about_at = NULL, attempts = 0, failed_attempts = 0, \
     duty_until = NULL, recheck_due_at = NULL, doubted_at = NULL, duration_seconds = NULL, channels = NULL, track = NULL, \
     recording_source = NULL, traceparent = NULL, sha256 = NULL, size_bytes = NULL, format = NULL, object_key = NULL, error_code = NULL, \
     error_detail = NULL, error_at = NULL, kept_at = NULL, look_first = 0, erase_marked = 0, erase_cleared = 0, erase_failures = 0, \
     erase_twilio = $3, erase_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2"
);
const FORGET_DETAILS: &str = "UPDATE events SET detail = NULL WHERE account_sid = $1 AND recording_sid = $2";
/// Asked for again: what is still owed is tried at once, and Twilio's part is owed if it was not.
const ERASE_AGAIN: &str = concat!(
    "UPDATE recordings SET erase_twilio = CASE WHEN $3 = 1 AND erase_twilio = 0 THEN 1 ELSE erase_twilio END, \
     erase_due_at = CASE WHEN erase_due_at IS NOT NULL OR ($3 = 1 AND erase_twilio = 0) THEN ",
    now!(),
    " END WHERE account_sid = $1 AND recording_sid = $2"
);
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
const DUE_IN_BUCKET: Due =
    Due { since: "erase_due_at", only: concat!(can_go_on!(), " AND erase_cleared = 0"), age: Duration::ZERO };
const ACCOUNTS_OWING: &str = "SELECT DISTINCT account_sid FROM recordings WHERE erase_due_at IS NOT NULL";
const MARKED: &str = concat!("UPDATE recordings SET erase_marked = 1", held!());
/// Whether Twilio's part was asked for meanwhile is seen by the row alone. The upload
/// stays known until the recheck: a part that was under way may outlast an abort.
const SETTLE: &str = concat!(
    "UPDATE recordings SET duty_until = NULL, erase_cleared = CASE WHEN $4 = 1 THEN 1 ELSE erase_cleared END, \
     erase_twilio = CASE WHEN $5 = 1 THEN 2 ELSE erase_twilio END, \
     recheck_due_at = CASE WHEN $4 = 1 THEN ",
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
    /// Erases a recording, or all of a call, in one transaction; `at_twilio` asks
    /// for Twilio's copies, too. What is owed of it then is due at once. Erasing
    /// again changes nothing, but what is still owed is tried at once.
    pub async fn erase(&self, what: Erase, at_twilio: bool) -> Result<Erased> {
        let mut session = self.begin().await?;
        let known = lock_all(&mut session, what).await?;
        if known.is_empty() {
            session.rollback().await?;
            return Ok(Erased::Unknown);
        }
        if known.iter().any(|recording| recording.hold) {
            session.rollback().await?;
            return Ok(Erased::Held);
        }
        for recording in &known {
            match recording.state {
                State::Erased => {
                    let id = &recording.id;
                    let args = args![id.account, id.recording, i64::from(at_twilio)];
                    session.execute(ERASE_AGAIN, args).await?;
                }
                _ => erase(&mut session, &recording.id, ErasedBy::Request, at_twilio).await?,
            }
        }
        session.commit().await?;
        self.announce_change();
        Ok(Erased::Done(known.into_iter().map(|recording| recording.id).collect()))
    }

    /// Those of the accounts, each with its age, that have a recording of that age
    /// that is not held.
    pub async fn accounts_with_old(&self, ages: &[(AccountSid, Duration)]) -> Result<Vec<AccountSid>> {
        if ages.is_empty() {
            return Ok(Vec::new());
        }
        let (mut args, mut places) = (args![], Vec::new());
        for (account, age) in ages {
            args.extend(args![*account, *age]);
            places.push(format!("(${}, ${})", args.len() - 1, args.len()));
        }
        let sql = format!("{ACCOUNTS_WITH_OLD} (VALUES {}) AS a WHERE EXISTS ({HAS_OLD})", places.join(", "));
        let rows = self.read().await?.rows(AssertSqlSafe(sql), args).await?;
        rows.iter().map(|row| row.parse("account_sid")).collect()
    }

    /// Erases at most so many recordings of an account that are that old and not
    /// held. Says how many there were. By a clock that is not this node's nothing is old:
    /// a database that came back with a wrong one must not empty the bucket.
    pub async fn erase_old(
        &self,
        account: AccountSid,
        age: Duration,
        at_twilio: bool,
        at_most: usize,
    ) -> Result<usize> {
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        let mut session = self.begin().await?;
        let locking = if session.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" };
        let rows = session.rows(AssertSqlSafe(format!("{OLD}{locking}")), args![account, age, at_most]).await?;
        for row in &rows {
            if !agrees(row.time("now_ms")?) {
                session.rollback().await?;
                return Ok(0);
            }
            erase(&mut session, &rows::id(row)?, ErasedBy::Retention, at_twilio).await?;
        }
        session.commit().await?;
        self.announce_change();
        Ok(rows.len())
    }

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
        let locking = if session.is_postgres() { " FOR UPDATE" } else { "" };
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

    /// Notes that the marker of an erased recording is in the bucket.
    pub async fn note_marked(&self, duty: &Duty) -> Result<Settled> {
        self.settle_duty(MARKED, duty.args()).await
    }

    /// Ends a try at erasing. What is still owed is due `again` from now; what is
    /// cleared owes a recheck `recheck_after` that time.
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

/// The recordings, locked until the end of the transaction.
async fn lock_all(session: &mut Session, what: Erase) -> Result<Vec<Recording>> {
    let (by, args) = match what {
        Erase::Recording(id) => (BY_RECORDING, args![id.account, id.recording]),
        Erase::Call(account, call) => (BY_CALL, args![account, call]),
    };
    let locking = if session.is_postgres() { " FOR UPDATE" } else { "" };
    let rows = session.rows(AssertSqlSafe(format!("{LOCK}{by}{IN_ORDER}{locking}")), args).await?;
    rows.iter().map(rows::recording).collect()
}

/// Makes a recording erased, whose row is locked; what is owed of it is due at once.
pub(super) async fn erase(session: &mut Session, id: &RecordingId, by: ErasedBy, at_twilio: bool) -> Result<()> {
    session.execute(ERASE, args![id.account, id.recording, i64::from(at_twilio)]).await?;
    // What an event kept beside the row would tell what the row does not any more.
    session.execute(FORGET_DETAILS, args![id.account, id.recording]).await?;
    let by = match by {
        ErasedBy::Request => "request",
        ErasedBy::Retention => "retention",
        ErasedBy::Marker => "bucket",
    };
    feed::append(session, id, "recording.erased", json!({"by": by, "at_twilio": at_twilio})).await
}
