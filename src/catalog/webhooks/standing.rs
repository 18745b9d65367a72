//! How receivers and their deliveries fare, and another try by hand.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::super::columns::columns_of;
use super::one_of;
use crate::catalog::feed::latest;
use crate::catalog::sql::{Row, args, now};
use crate::catalog::{Catalog, Cursor, Result};

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is posted, or will be.
    Pending,
    /// The receiver has it.
    Delivered,
    /// It was given up.
    Failed,
}

impl DeliveryState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Failed];

    /// The word that the catalog and the API use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// A word that is not the state of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the state of a delivery")]
pub struct UnknownState;

impl std::str::FromStr for DeliveryState {
    type Err = UnknownState;
    fn from_str(text: &str) -> std::result::Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(UnknownState)
    }
}

/// A delivery, without what is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The event.
    pub event: Cursor,
    /// Its type.
    pub kind: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// How often it was posted.
    pub attempts: i64,
    /// When it is posted next, if it is.
    pub next_attempt_at: Option<Timestamp>,
    /// When it was posted last.
    pub last_attempt_at: Option<Timestamp>,
    /// What the receiver answered then.
    pub last_status: Option<i64>,
    /// What went wrong then.
    pub last_error: Option<String>,
    /// When it was taken or given up.
    pub ended_at: Option<Timestamp>,
}

/// How a receiver fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverStanding {
    /// Which one.
    pub receiver: String,
    /// Since when it wants no more.
    pub disabled_at: Option<Timestamp>,
    /// Until when it is left alone, because nobody answered there.
    pub resting_until: Option<Timestamp>,
    /// Attempts in a row that met nobody.
    pub unanswered: i64,
    /// Deliveries that wait.
    pub pending: i64,
    /// Deliveries that were given up, of those that are kept.
    pub failed: i64,
    /// For how long the oldest event waits that it is to get.
    pub lag: Duration,
    /// When it last took an event.
    pub last_delivered_at: Option<Timestamp>,
}

/// What became of asking for another try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retried {
    /// It is due now.
    Due(Delivery),
    /// The receiver wants no more events.
    Unwanted,
    /// There is no such delivery.
    Unknown,
}

/// Deliveries of receiver `r` in that state: of very many, as many as can be counted in a moment.
macro_rules! counted {
    ($state:literal) => {
        concat!(
            "(SELECT count(*) FROM (SELECT 1 AS one FROM deliveries d WHERE d.receiver_id = r.receiver_id AND d.state = '",
            $state,
            "' LIMIT 100000) AS some_of_them) AS ",
            $state
        )
    };
}

const STANDING: &str = concat!(
    "SELECT r.receiver_id, r.disabled_at, CASE WHEN r.resting_until > ",
    now!(),
    " THEN r.resting_until END AS resting_until, r.unanswered, ",
    now!(),
    " AS now_ms, ",
    counted!("pending"),
    ", ",
    counted!("failed"),
    ", (SELECT min(d.since) FROM deliveries d WHERE d.receiver_id = r.receiver_id AND d.state = 'pending') \
     AS waits_since, (SELECT e.at FROM events e WHERE e.seq = r.after_seq + 1) AS unread_since, \
     (SELECT d.ended_at FROM deliveries d WHERE d.receiver_id = r.receiver_id AND d.state = 'delivered' \
     ORDER BY d.seq DESC LIMIT 1) AS last_delivered_at FROM receivers r WHERE 1 = 1"
);
const DELIVERIES: &str = concat!(
    "SELECT ",
    columns_of!(deliveries, "d."),
    ", e.type AS event_type FROM deliveries d JOIN events e ON e.seq = d.seq WHERE d.receiver_id = $1"
);
const RETRY: &str = concat!(
    "UPDATE deliveries SET state = 'pending', failed_attempts = 0, ended_at = NULL, since = ",
    now!(),
    ", due_at = ",
    now!(),
    " WHERE receiver_id = $1 AND seq = $2"
);
/// Whoever asks for another try thinks that somebody is there again.
const WAKE: &str = "UPDATE receivers SET resting_until = 0 WHERE receiver_id = $1 AND disabled_at IS NULL";

impl dyn Catalog + '_ {
    /// How these receivers fare. One that no node has enrolled yet is missing.
    pub async fn receivers(&self, receivers: &[String]) -> Result<Vec<ReceiverStanding>> {
        let mut args = args![];
        let these = one_of("r.receiver_id", receivers.iter().map(String::as_str), &mut args);
        let rows = self.read().await?.rows(AssertSqlSafe(format!("{STANDING}{these}")), args).await?;
        rows.iter().map(standing).collect()
    }

    /// A receiver's deliveries, newest first, and where the next page begins.
    pub async fn deliveries(
        &self,
        receiver: &str,
        state: Option<DeliveryState>,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<Delivery>, Option<Cursor>)> {
        let mut session = self.read().await?;
        let latest = latest(&mut session).await?;
        let mut args = args![receiver];
        let mut sql = DELIVERIES.to_owned();
        if let Some(state) = state {
            sql.push_str(&one_of("d.state", [state.as_str()], &mut args));
        }
        if let Some(before) = before {
            args.extend(args![before.seq()]);
            sql.push_str(&format!(" AND d.seq < ${}", args.len()));
        }
        sql.push_str(&format!(" ORDER BY d.seq DESC LIMIT {}", limit + 1));
        let rows = session.rows(AssertSqlSafe(sql), args).await?;
        let mut deliveries: Vec<Delivery> = rows.iter().map(|row| delivery(row, latest)).collect::<Result<_>>()?;
        let more = deliveries.len() > limit;
        deliveries.truncate(limit);
        let next = deliveries.last().filter(|_| more).map(|last| last.event);
        Ok((deliveries, next))
    }

    /// Has a delivery posted again, whatever came of it before, and tried for as
    /// long as a new one.
    pub async fn retry_delivery(&self, receiver: &str, of: Cursor) -> Result<Retried> {
        const ONE: &str = concat!(
            "SELECT ",
            columns_of!(deliveries, "d."),
            ", e.type AS event_type FROM deliveries d JOIN events e ON e.seq = d.seq \
                           WHERE d.receiver_id = $1 AND d.seq = $2"
        );
        let mut session = self.begin().await?;
        let latest = latest(&mut session).await?;
        if !of.is_before_or_at(latest) {
            session.rollback().await?;
            return Ok(Retried::Unknown);
        }
        let is_wanted = session.execute(WAKE, args![receiver]).await? == 1;
        let is_known = session.execute(RETRY, args![receiver, of.seq()]).await? == 1;
        let row = session.row(ONE, args![receiver, of.seq()]).await?;
        let Some(row) = row.filter(|_| is_known && is_wanted) else {
            session.rollback().await?;
            return Ok(if is_known { Retried::Unwanted } else { Retried::Unknown });
        };
        let due = delivery(&row, latest)?;
        session.commit().await?;
        self.announce_change();
        Ok(Retried::Due(due))
    }
}

fn standing(row: &Row) -> Result<ReceiverStanding> {
    let now = row.time("now_ms")?;
    let disabled_at = row.time_opt("disabled_at")?;
    let waits_since = [row.time_opt("waits_since")?, row.time_opt("unread_since")?];
    let waits_since = waits_since.into_iter().flatten().min().filter(|_| disabled_at.is_none());
    Ok(ReceiverStanding {
        receiver: row.get("receiver_id")?,
        disabled_at,
        resting_until: row.time_opt("resting_until")?,
        unanswered: row.get("unanswered")?,
        pending: row.get("pending")?,
        failed: row.get("failed")?,
        lag: waits_since
            .map_or(Duration::ZERO, |since| Duration::try_from(now.duration_since(since)).unwrap_or_default()),
        last_delivered_at: row.time_opt("last_delivered_at")?,
    })
}

fn delivery(row: &Row, latest: Cursor) -> Result<Delivery> {
    let state: DeliveryState = row.parse("state")?;
    let due_at = row.time_opt("due_at")?;
    Ok(Delivery {
        event: latest.at(row.get("seq")?),
        kind: row.get("event_type")?,
        state,
        attempts: row.get("attempts")?,
        next_attempt_at: due_at.filter(|_| state == DeliveryState::Pending),
        last_attempt_at: row.time_opt("last_attempt_at")?,
        last_status: row.get("last_status")?,
        last_error: row.get("last_error")?,
        ended_at: row.time_opt("ended_at")?,
    })
}
