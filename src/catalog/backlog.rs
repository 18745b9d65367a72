//! What waits to be stored.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::clock::between;
use super::sql::{args, now, place_each};
use super::{Catalog, CatalogError, Result};
use crate::domain::sid::AccountSid;

/// How long the oldest that are not stored yet have been pending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Of what came by itself; None: nothing waits.
    pub oldest: Option<Duration>,
    /// Of the account of which that is longest, all but the oldest ten; None: no account has more.
    pub oldest_of_many: Option<Duration>,
    /// Of what a backfill brought, and nothing else was heard of.
    pub oldest_of_backfill: Option<Duration>,
}

/// Of an account one of the first entries in an index: no row is counted.
macro_rules! oldest {
    ($is_backfill:literal, $but:literal) => {
        concat!(
            "(SELECT r.pending_since FROM recordings r WHERE r.account_sid = a.column1 AND r.is_backfill = ",
            $is_backfill,
            " AND r.state IN ('pending', 'fetching') AND r.pending_since IS NOT NULL ORDER BY r.pending_since LIMIT 1 OFFSET ",
            $but,
            ")"
        )
    };
}
const OLDEST_PENDING: &str = concat!(
    "SELECT ",
    oldest!("0", "0"),
    " AS oldest, ",
    oldest!("0", "10"),
    " AS oldest_of_many, ",
    oldest!("1", "0"),
    " AS oldest_of_backfill, ",
    now!(),
    " AS now_ms FROM"
);

impl dyn Catalog + '_ {
    /// For how long the oldest of these accounts' recordings have been pending that are not stored yet.
    pub async fn backlog(&self, accounts: &[AccountSid]) -> Result<Backlog> {
        let mut backlog = Backlog::default();
        if accounts.is_empty() {
            return Ok(backlog);
        }
        let mut args = args![];
        let places = place_each(accounts.iter().copied(), &mut args);
        let sql = format!("{OLDEST_PENDING} (VALUES ({})) AS a", places.join("), ("));
        for row in self.read().await?.rows(AssertSqlSafe(sql), args).await? {
            let now = row.time("now_ms")?;
            let waited = |since| Ok::<_, CatalogError>(row.time_opt(since)?.map(|since| between(since, now)));
            backlog.oldest = backlog.oldest.max(waited("oldest")?);
            backlog.oldest_of_many = backlog.oldest_of_many.max(waited("oldest_of_many")?);
            backlog.oldest_of_backfill = backlog.oldest_of_backfill.max(waited("oldest_of_backfill")?);
        }
        Ok(backlog)
    }
}
