//! What a holder does with deliveries: making them, and settling them.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::{ReceiverLease, held, is_held, one_of};
use crate::catalog::feed::{Event, event, event_columns, latest, shown, with_recordings};
use crate::catalog::lease::Settled;
use crate::catalog::sql::{Row, args, now};
use crate::catalog::{Catalog, CatalogError, Cursor, Result};

/// Events that are looked through in one transaction.
const LOOKED_THROUGH: i64 = 2000;

/// A delivery that is due.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// What is to be posted, with the recording as it is now.
    pub event: Event,
    /// Attempts that failed before.
    pub failed_before: u32,
    /// For how long it has been tried.
    pub tried_for: Duration,
    /// Attempts in a row, of any of the receiver's, that met nobody.
    pub unanswered: u32,
}

/// What came of posting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    /// The receiver has it.
    Taken {
        /// What it answered.
        status: u16,
    },
    /// It is to be posted again.
    Again {
        /// After this time.
        after: Duration,
        /// What it answered, if it did.
        status: Option<u16>,
        /// What went wrong, in words.
        error: String,
        /// Nobody was there: the receiver rests for this time, longer each time.
        rest: Option<Duration>,
    },
    /// It was tried long enough.
    GivenUp {
        /// What the receiver answered last, if it did.
        status: Option<u16>,
        /// What went wrong, in words.
        error: String,
    },
    /// The receiver wants no more.
    Unwanted {
        /// What it answered.
        status: u16,
    },
}

const PLACE: &str = concat!("SELECT after_seq FROM receivers", held!());
const MOVE: &str = concat!("UPDATE receivers SET after_seq = $3", held!());
/// What is older than `$4` is over.
const MAKE: &str = concat!(
    "INSERT INTO deliveries (receiver_id, seq, state, since, due_at) \
     SELECT $1, e.seq, 'pending', now_ms, now_ms FROM events e CROSS JOIN clock \
     WHERE e.seq > $2 AND e.seq <= $3 AND e.at > now_ms - $4",
    shown!("e.type")
);
const DUE: &str = concat!(
    "SELECT ",
    event_columns!(),
    ", d.failed_attempts AS delivery_failed, ",
    now!(),
    " - d.since AS delivery_ms, h.unanswered AS delivery_unanswered FROM receivers h JOIN deliveries d ON d.receiver_id = h.receiver_id \
     JOIN events e ON e.seq = d.seq",
    with_recordings!(),
    "WHERE h.receiver_id = $1 AND h.epoch = $2 AND h.disabled_at IS NULL AND h.resting_until <= ",
    now!(),
    " AND d.state = 'pending' AND d.due_at <= ",
    now!(),
    shown!("e.type")
);

const SETTLE: &str = concat!(
    "UPDATE deliveries SET state = $3, due_at = ",
    now!(),
    " + $4, attempts = attempts + 1, failed_attempts = failed_attempts + $5, last_status = $6, last_error = $7, \
     last_attempt_at = ",
    now!(),
    ", ended_at = CASE WHEN $3 = 'pending' THEN NULL ELSE ",
    now!(),
    " END WHERE receiver_id = $1 AND seq = $2"
);
const ANSWERED: &str = "UPDATE receivers SET unanswered = 0, resting_until = 0 WHERE receiver_id = $1";
/// Several that met nobody at once count as one.
const REST: &str = concat!(
    "UPDATE receivers SET unanswered = unanswered + 1, resting_until = ",
    now!(),
    " + $2 WHERE receiver_id = $1 AND resting_until <= ",
    now!()
);
const DISABLE: &str = concat!(
    "UPDATE receivers SET lease_node = NULL, lease_until = 0, disabled_at = ",
    now!(),
    " WHERE receiver_id = $1"
);
const END_ALL: &str = concat!(
    "UPDATE deliveries SET state = 'failed', last_error = $2, ended_at = ",
    now!(),
    " WHERE receiver_id = $1 AND state = 'pending'"
);

impl dyn Catalog + '_ {
    /// Turns events behind the receiver's place into deliveries, those of these
    /// types that are younger than `within`. Says up to where it looked and
    /// whether that is the end; None where the right is lost.
    pub async fn make_deliveries(
        &self,
        lease: &ReceiverLease,
        kinds: &[String],
        within: Duration,
    ) -> Result<Option<(Cursor, bool)>> {
        let mut session = self.begin().await?;
        let latest = latest(&mut session).await?;
        if !is_held(&mut session, lease).await? {
            session.rollback().await?;
            return Ok(None);
        }
        let place = session.row(PLACE, lease.args()).await?;
        let after: i64 = place.map_or(Ok(latest.seq()), |row| row.get("after_seq"))?;
        let until = latest.at(after).advanced(LOOKED_THROUGH).min(latest);
        if after < until.seq() {
            let mut args = args![lease.receiver.as_str(), after, until.seq(), within];
            let mut sql = MAKE.to_owned();
            if !kinds.is_empty() {
                sql.push_str(&one_of("e.type", kinds.iter().map(String::as_str), &mut args));
            }
            sql.push_str(" ON CONFLICT DO NOTHING");
            session.execute(AssertSqlSafe(sql), args).await?;
            session.execute(MOVE, lease.args_and(args![until.seq()])).await?;
        }
        session.commit().await?;
        Ok(Some((until, until == latest)))
    }

    /// What is due for a receiver, what is due longest first, but for what is
    /// being posted. Nothing where the receiver rests or the right is lost.
    pub async fn due_deliveries(
        &self,
        lease: &ReceiverLease,
        being_posted: &[Cursor],
        at_most: usize,
    ) -> Result<Vec<Due>> {
        let mut session = self.read().await?;
        let latest = latest(&mut session).await?;
        let mut args = lease.args();
        let mut sql = DUE.to_owned();
        if !being_posted.is_empty() {
            let posted = one_of("d.seq", being_posted.iter().map(|cursor| cursor.seq()), &mut args);
            sql.push_str(&posted.replacen(" IN ", " NOT IN ", 1));
        }
        sql.push_str(&format!(" ORDER BY d.due_at, d.seq LIMIT {at_most}"));
        let due = |row: &Row| -> Result<Due> {
            let tried_ms: i64 = row.get("delivery_ms")?;
            let count = |column| Ok::<_, CatalogError>(u32::try_from(row.get::<i64>(column)?).unwrap_or(u32::MAX));
            Ok(Due {
                event: event(row, latest)?,
                failed_before: count("delivery_failed")?,
                unanswered: count("delivery_unanswered")?,
                tried_for: Duration::from_millis(tried_ms.max(0).unsigned_abs()),
            })
        };
        session.rows(AssertSqlSafe(sql), args).await?.iter().map(due).collect()
    }

    /// Notes what came of posting.
    pub async fn settle_delivery(&self, lease: &ReceiverLease, of: Cursor, posted: &Posted) -> Result<Settled> {
        let mut session = self.begin().await?;
        if !is_held(&mut session, lease).await? {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        let receiver = lease.receiver.as_str();
        let (state, after, status, error) = match posted {
            Posted::Taken { status } => ("delivered", Duration::ZERO, Some(*status), None),
            Posted::Again { after, status, error, .. } => ("pending", *after, *status, Some(error.as_str())),
            Posted::GivenUp { status, error } => ("failed", Duration::ZERO, *status, Some(error.as_str())),
            Posted::Unwanted { status } => ("failed", Duration::ZERO, Some(*status), Some(UNWANTED)),
        };
        let failed = i64::from(state != "delivered");
        let status: Option<i64> = status.map(i64::from);
        session.execute(SETTLE, args![receiver, of.seq(), state, after, failed, status, error]).await?;
        match posted {
            Posted::Again { rest: Some(rest), .. } => session.execute(REST, args![receiver, *rest]).await?,
            Posted::Again { status: None, .. } | Posted::GivenUp { status: None, .. } => 0,
            Posted::Unwanted { .. } => {
                session.execute(DISABLE, args![receiver]).await?;
                session.execute(END_ALL, args![receiver, UNWANTED]).await?
            }
            _ => session.execute(ANSWERED, args![receiver]).await?,
        };
        session.commit().await?;
        Ok(Settled::Done)
    }
}

/// What is said of what a receiver does not want.
const UNWANTED: &str = "the receiver answered 410: it wants no more events";
