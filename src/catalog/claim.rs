//! Who may work on what is due.
//!
//! A claim grants a lease on a row that is due: the row becomes `fetching` with
//! its epoch raised and a deadline. A lease that ran out is a failed attempt.
//! What a backfill brought comes when nothing else of its account is due.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::accounts::{sent, under_way};
use super::columns::columns_of;
use super::lease::{Lease, Settled, settle_failure};
use super::sql::{Row, Session, args, now, place_each};
use super::{Catalog, CatalogError, Result, accounts, birth, recheck, rows};
use crate::domain::recording::{ErrorCode, Recording, State};
use crate::domain::retry::{self, Failure};
use crate::domain::sid::AccountSid;
use crate::telemetry;

/// Who claims, and on which terms.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// The node's name, for people.
    pub node: String,
    /// How long a claim may go without being renewed.
    pub lease: Duration,
    /// When the recording of a lease that ran out is due again.
    pub retry: retry::Policy,
    /// When what it may have left in the bucket is looked at.
    pub recheck_after: Duration,
}

/// An account of which something is pending or fetching, and that is not paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which one.
    pub account: AccountSid,
    /// How long until something of it may be claimed: zero where it may be now.
    pub due_in: Duration,
    /// Whether as many are under way, over all nodes, as may be.
    pub is_full: bool,
}

/// How many recordings of an account a node has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Which account.
    pub account: AccountSid,
    /// At most so many.
    pub at_most: usize,
    /// So many of them may be of a backfill, which come when nothing else is due.
    pub of_backfill: usize,
}

/// What an earlier attempt may have left in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its epoch, which its staging key names.
    pub epoch: i64,
    /// Its multipart upload.
    pub upload_id: String,
}

impl Leftover {
    pub(super) fn read(row: &Row) -> Result<Option<Self>> {
        let epoch: Option<i64> = row.get("upload_epoch")?;
        let upload_id: Option<String> = row.get("upload_id")?;
        Ok(epoch.zip(upload_id).map(|(epoch, upload_id)| Self { epoch, upload_id }))
    }
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
    /// Where the trace of its acceptance is at.
    pub traceparent: Option<String>,
    /// Whether the account's pace is limited.
    pub is_limited: bool,
    /// Whether its audio may lie in the bucket already.
    pub look_first: bool,
}

const DUE_OF: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    ", (SELECT now_ms FROM clock) AS now_ms FROM recordings \
                      WHERE account_sid = $1 AND is_backfill = $3 AND state IN ('pending', 'fetching') \
                      AND due_at <= (SELECT now_ms FROM clock) \
                      AND (duty_until IS NULL OR duty_until <= (SELECT now_ms FROM clock)) ORDER BY due_at LIMIT $2"
);
const GRANT: &str = concat!(
    "UPDATE recordings SET state = 'fetching', epoch = epoch + 1, lease_node = $3, due_at = ",
    now!(),
    " + $4, attempts = attempts + 1 WHERE account_sid = $1 AND recording_sid = $2"
);
/// Of each account the first entry in the index of what is due.
const STANDINGS: &str = concat!(
    "SELECT a.column1 AS account_sid, s.quiet_until, s.fetch_limit, \
     (SELECT r.due_at FROM recordings r WHERE r.account_sid = a.column1 \
     AND r.state IN ('pending', 'fetching') ORDER BY r.due_at LIMIT 1) AS due_at, \
     CASE WHEN s.fetch_limit IS NOT NULL THEN ",
    under_way!("a.column1"),
    " END AS under_way, ",
    now!(),
    " AS now_ms FROM"
);
const NOT_PAUSED: &str = "AS a LEFT JOIN accounts s ON s.account_sid = a.column1 WHERE s.paused_at IS NULL";

impl dyn Catalog + '_ {
    /// How the accounts stand. Also reads the catalog's time.
    pub async fn standings(&self, accounts: &[AccountSid]) -> Result<Vec<Standing>> {
        let mut args = args![];
        let places = place_each(accounts.iter().copied(), &mut args);
        let sql = format!("{STANDINGS} (VALUES ({})) {NOT_PAUSED}", places.join("), ("));
        let rows = match accounts {
            [] => Vec::new(),
            _ => self.read().await?.rows(AssertSqlSafe(sql), args).await?,
        };
        match rows.first() {
            Some(row) => self.clock().set(row.time("now_ms")?),
            None => self.read_clock().await?,
        }
        let standings: Result<Vec<Option<Standing>>> = rows.iter().map(standing).collect();
        Ok(standings?.into_iter().flatten().collect())
    }

    /// Grants leases on recordings that are due, as many as are wished for and
    /// Twilio likes. A lease that ran out is a failed attempt first, and its
    /// recording is due again as the claimant's policy says.
    pub async fn claim(&self, claimant: &Claimant, wishes: &[Wish]) -> Result<Vec<Claim>> {
        self.must_be_read().await?;
        let mut session = self.begin().await?;
        // Asked before: what is indexed later than that is looked for all the same.
        let is_indexed = birth::look(&mut session).await?.must_be_read()?.is_indexed;
        let mut claims = Vec::new();
        let mut changed = false;
        for wish in wishes {
            let Some(room) = accounts::room(&mut session, wish.account).await? else { continue };
            for due in due_of(&mut session, wish, room.at_most).await? {
                changed = true;
                if due.known.state == State::Fetching {
                    due.lease_is_over(&mut session, claimant).await?;
                } else {
                    let claim = due.grant(&mut session, claimant).await?;
                    let look_first = claim.look_first || !is_indexed;
                    claims.push(Claim { is_limited: room.limited, look_first, ..claim });
                }
            }
        }
        match changed {
            true => session.commit().await?,
            false => session.rollback().await?,
        }
        Ok(claims)
    }
}

/// Claims a row that is pending and due, and locked. None where Twilio wants its
/// account to be left alone.
pub(super) async fn claim_row(session: &mut Session, claimant: &Claimant, row: &Row) -> Result<Option<Claim>> {
    let due = Due::read(row)?;
    let Some(room) = accounts::room(session, due.known.id.account).await?.filter(|room| room.at_most > 0) else {
        return Ok(None);
    };
    let claim = due.grant(session, claimant).await?;
    Ok(Some(Claim { is_limited: room.limited, ..claim }))
}

/// What is due of an account. Others' claims under way are passed over, not waited for.
async fn due_of(session: &mut Session, wish: &Wish, room: usize) -> Result<Vec<Due>> {
    let at_most = wish.at_most.min(room);
    let mut rows = due_in_turn(session, wish.account, at_most, false).await?;
    let of_backfill = (at_most - rows.len()).min(wish.of_backfill);
    if of_backfill > 0 {
        rows.extend(due_in_turn(session, wish.account, of_backfill, true).await?);
    }
    // One row that a newer node wrote must not keep all others from being fetched.
    let unreadable = |error: &CatalogError| tracing::error!(%error, "a recording cannot be claimed");
    Ok(rows.iter().filter_map(|row| Due::read(row).inspect_err(unreadable).ok()).collect())
}

async fn due_in_turn(
    session: &mut Session,
    account: AccountSid,
    at_most: usize,
    of_backfill: bool,
) -> Result<Vec<Row>> {
    let locking = session.for_update_skip_locked();
    let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
    let args = args![account, at_most, i64::from(of_backfill)];
    session.rows(AssertSqlSafe(format!("{DUE_OF}{locking}")), args).await
}

/// None where nothing is to be done for the account.
fn standing(row: &Row) -> Result<Option<Standing>> {
    let Some(due_at) = row.time_opt("due_at")? else { return Ok(None) };
    let may_at = row.time_opt("quiet_until")?.map_or(due_at, |quiet_until| quiet_until.max(due_at));
    let due_in = Duration::try_from(may_at.duration_since(row.time("now_ms")?)).unwrap_or_default();
    let limit: Option<i64> = row.get("fetch_limit")?;
    let is_full = limit.is_some() && row.get::<Option<i64>>("under_way")? >= limit;
    Ok(Some(Standing { account: row.parse("account_sid")?, due_in, is_full }))
}

/// A recording that is pending and due, or whose lease ran out.
struct Due {
    known: Recording,
    now: Timestamp,
    pending_for: Duration,
    failed_before: u32,
    leftover: Option<Leftover>,
    lease_node: Option<String>,
    look_first: bool,
    traceparent: Option<String>,
}

impl Due {
    fn read(row: &Row) -> Result<Self> {
        let now = row.time("now_ms")?;
        let pending_since = row.time_opt("pending_since")?.unwrap_or(now);
        Ok(Self {
            known: rows::recording(row)?,
            now,
            pending_for: Duration::try_from(now.duration_since(pending_since)).unwrap_or_default(),
            failed_before: u32::try_from(row.get::<i64>("failed_attempts")?).unwrap_or(u32::MAX),
            leftover: Leftover::read(row)?,
            lease_node: row.get("lease_node")?,
            look_first: row.get::<i64>("look_first")? != 0,
            traceparent: row.get("traceparent")?,
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
            traceparent: self.traceparent,
            is_limited: false,
            look_first: self.look_first,
        })
    }

    /// An attempt of which nothing more was heard is one that failed.
    async fn lease_is_over(self, session: &mut Session, claimant: &Claimant) -> Result<()> {
        let lease = Lease { id: self.known.id, epoch: self.known.epoch };
        let node = self.lease_node.as_deref().unwrap_or("a node");
        let detail = format!("{node} was not heard of for the length of its lease");
        let call = self.known.details.call_sid.map(tracing::field::display);
        tracing::warn!(recording = %lease.id, call, epoch = lease.epoch, node, at = %self.now, "a lease ran out");
        let failure = Failure {
            code: ErrorCode::Interrupted,
            failed_before: self.failed_before,
            pending_for: self.pending_for,
            retry_after: None,
        };
        telemetry::lease_expired();
        // No dice: whoever finds it must decide alike.
        let decision = claimant.retry.decide(&failure, 0.0);
        let settled = settle_failure(session, &lease, failure.code, &detail, decision).await?;
        debug_assert_eq!(settled, Settled::Done, "the row is locked");
        // It may still write, if it was only frozen.
        recheck::owe(session, &lease, claimant.recheck_after).await
    }
}
