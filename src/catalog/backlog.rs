//! What waits to be stored.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::sql::{args, now, place_each};
use super::{Catalog, Result};
use crate::domain::sid::AccountSid;

/// Of each account the first entry in an index: no row is counted.
const OLDEST_PENDING: &str = concat!(
    "SELECT (SELECT r.pending_since FROM recordings r WHERE r.account_sid = a.column1 \
     AND r.state IN ('pending', 'fetching') AND r.pending_since IS NOT NULL ORDER BY r.pending_since LIMIT 1) \
     AS pending_since, ",
    now!(),
    " AS now_ms FROM"
);

impl dyn Catalog + '_ {
    /// For how long the oldest of these accounts' recordings has been pending that is not stored yet.
    pub async fn oldest_pending(&self, accounts: &[AccountSid]) -> Result<Option<Duration>> {
        if accounts.is_empty() {
            return Ok(None);
        }
        let mut args = args![];
        let places = place_each(accounts.iter().copied(), &mut args);
        let sql = format!("{OLDEST_PENDING} (VALUES ({})) AS a", places.join("), ("));
        let mut oldest = None;
        for row in self.read().await?.rows(AssertSqlSafe(sql), args).await? {
            if let Some(since) = row.time_opt("pending_since")? {
                let waited = Duration::try_from(row.time("now_ms")?.duration_since(since)).unwrap_or_default();
                oldest = oldest.max(Some(waited));
            }
        }
        Ok(oldest)
    }
}
