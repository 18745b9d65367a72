//! What an audit reads: every row, what was told of it, and the feed as a whole.
//!
//! Changes nothing. Pages go by the primary key, so rows that come or change
//! meanwhile move no page.

use super::columns::columns_of;
use super::feed::shown;
use super::sql::{Row, args};
use super::{Catalog, CatalogError, Result, rows};
use crate::domain::recording::{Recording, RecordingId};
use crate::domain::sid::RecordingSid;

/// An event of one recording, as the feed has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// `recording.stored` and others.
    pub kind: String,
    /// Its place in the feed; None until it is numbered.
    pub seq: Option<i64>,
}

/// The numbers of the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedExtent {
    /// Events that have a number.
    pub numbered: i64,
    /// The first number; zero in an empty feed.
    pub first: i64,
    /// The last number; zero in an empty feed.
    pub last: i64,
    /// Events that have waited for their number for longer than any node lets them.
    pub forgotten: i64,
}

/// What was told of one recording is read up to here.
const TOLD_MAX: i64 = 10_000;

const FIRST_PAGE: &str =
    concat!("SELECT ", columns_of!(recordings), " FROM recordings ORDER BY account_sid, recording_sid LIMIT $1");
const PAGE: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    " FROM recordings WHERE (account_sid, recording_sid) > ($2, $3) \
                    ORDER BY account_sid, recording_sid LIMIT $1"
);
const TOLD: &str = concat!(
    "SELECT type, seq FROM events WHERE account_sid = $1 AND recording_sid = $2 AND in_feed = 1",
    shown!("type"),
    " ORDER BY row_id LIMIT $3"
);
/// Numbering takes half a second at most, on whichever node is left.
const EXTENT: &str = "SELECT count(seq) AS numbered, coalesce(min(seq), 0) AS first, coalesce(max(seq), 0) AS last, \
     (SELECT count(*) FROM events WHERE in_feed = 1 AND seq IS NULL AND at < (SELECT now_ms FROM clock) - 30000) \
     AS forgotten FROM events";
const NAMES: &str =
    "SELECT 1 AS one FROM recordings WHERE recording_sid = $1 AND object_key = $2 AND state = 'stored' LIMIT 1";

impl dyn Catalog + '_ {
    /// At most `limit` recordings behind `after`, erased ones too, in the order of their SIDs.
    pub async fn every_recording(&self, after: Option<&RecordingId>, limit: i64) -> Result<Vec<Recording>> {
        let mut session = self.read().await?;
        let rows = match after {
            None => session.rows(FIRST_PAGE, args![limit]).await?,
            Some(after) => session.rows(PAGE, args![limit, after.account, after.recording]).await?,
        };
        rows.iter().map(rows::recording).collect()
    }

    /// The events of one recording, in the order in which they happened.
    pub async fn told(&self, id: &RecordingId) -> Result<Vec<Told>> {
        let rows = self.read().await?.rows(TOLD, args![id.account, id.recording, TOLD_MAX]).await?;
        let told = |row: &Row| -> Result<Told> { Ok(Told { kind: row.get("type")?, seq: row.get("seq")? }) };
        rows.iter().map(told).collect()
    }

    /// The numbers of the feed. Reads all of it.
    pub async fn feed_extent(&self) -> Result<FeedExtent> {
        let row = self.read().await?.row(EXTENT, args![]).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable("a count gave nothing".to_owned()))?;
        Ok(FeedExtent {
            numbered: row.get("numbered")?,
            first: row.get("first")?,
            last: row.get("last")?,
            forgotten: row.get("forgotten")?,
        })
    }

    /// Whether a stored recording of that SID has its object at that key.
    pub async fn names_object(&self, recording: RecordingSid, key: &str) -> Result<bool> {
        Ok(self.read().await?.row(NAMES, args![recording, key]).await?.is_some())
    }
}
