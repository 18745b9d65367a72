//! Who may work on what is due.
//!
//! A claim grants a lease on a row that is due: the row becomes `fetching` with
//! its epoch raised and a deadline. A lease that ran out is a failed attempt.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::lease::{Lease, Settled, settle_failure};
use super::sql::{Row, Session, args, now, one_of, place_each};
use super::{Catalog, CatalogError, Result, recheck, rows};
use crate::domain::recording::{ErrorCode, Recording, State};
use crate::domain::retry::{self, Failure};
use crate::domain::sid::AccountSid;

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
    /// When what it may have left in the bucket is looked at.
    pub recheck_after: Duration,
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
}

const DUE_OF: &str = "SELECT *, (SELECT now_ms FROM clock) AS now_ms FROM recordings \
                      WHERE state IN ('pending', 'fetching') AND due_at <= (SELECT now_ms FROM clock) \
                      AND (duty_until IS NULL OR duty_until <= (SELECT now_ms FROM clock))";
const GRANT: &str = concat!(
    "UPDATE recordings SET state = 'fetching', epoch = epoch + 1, lease_node = $3, due_at = ",
    now!(),
    " + $4, attempts = attempts + 1 WHERE account_sid = $1 AND recording_sid = $2"
);
/// The first entry of each account in the index of what is due.
const NEXT_DUE_OF: &str = "SELECT min((SELECT r.due_at FROM recordings r WHERE r.account_sid = a.column1 \
     AND r.state IN ('pending', 'fetching') ORDER BY r.due_at LIMIT 1)) AS due_at, \
     (SELECT now_ms FROM clock) AS now_ms FROM";

impl dyn Catalog + '_ {
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
                Ok(due) if due.known.state == State::Fetching => due.lease_is_over(&mut session, claimant).await?,
                Ok(due) => claims.push(due.grant(&mut session, claimant).await?),
                // One row that a newer node wrote must not keep all others from being fetched.
                Err(error) => tracing::error!(%error, "a recording cannot be claimed"),
            }
        }
        session.commit().await?;
        Ok(claims)
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
    async fn lease_is_over(self, session: &mut Session, claimant: &Claimant) -> Result<()> {
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
        let decision = claimant.retry.decide(&failure, 0.0);
        let settled = settle_failure(session, &lease, failure.code, &detail, decision).await?;
        debug_assert_eq!(settled, Settled::Done, "the row is locked");
        // It may still write, if it was only frozen.
        recheck::owe(session, &lease, claimant.recheck_after).await
    }
}
