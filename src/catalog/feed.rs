//! What happened: the append-only feed, and the history of a recording.
//!
//! An event is appended in the transaction of what it tells, and gets its place
//! in the feed once that is committed. Readers see events that have a place, in
//! its order: whoever follows with a cursor misses nothing and sees nothing
//! twice. An event keeps no copy of the recording; it is read beside it.
//!
//! What is remembered of calls follows the feed, too. That another recording may
//! answer for a call, where no event tells it, has a place in it for their sake,
//! and is shown to nobody.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde_json::{Value as Json, json};
use sqlx::AssertSqlSafe;

use super::lookup::recordings_of_call;
use super::news::News;
use super::rows::{self, HistoryEntry};
use super::sql::{Row, Session, args, now};
use super::{Catalog, CatalogError, Result};
use crate::domain::recording::{ErrorCode, Recording, RecordingId};
use crate::domain::sid::{AccountSid, CallSid, RecordingSid};

/// Events that a page is looked for in at most: some milliseconds.
const LOOKED_THROUGH: i64 = 10_000;

/// Entries that a recording's history keeps beside its events.
const HISTORY_MAX: i64 = 100;

/// A place in the feed: the catalog it belongs to, and the event's number.
///
/// As text it sorts as the feed does. It begins with the time at which its catalog
/// was made, or was found to be older than its readers (`era.rs`), so that one from a
/// catalog that was lost is known to be foreign, and reads the whole new feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    catalog_created_ms: i64,
    seq: i64,
}

impl Cursor {
    /// The event's number.
    pub(super) fn seq(self) -> i64 {
        self.seq
    }

    /// The cursor of the same catalog with that number.
    pub(super) fn at(self, seq: i64) -> Self {
        Self { seq, ..self }
    }

    /// So many events further on.
    pub(super) fn advanced(self, events: i64) -> Self {
        self.at(self.seq.saturating_add(events))
    }

    /// Whether the feed began anew between that cursor and this one.
    pub fn is_of_another_era(self, than: Self) -> bool {
        self.catalog_created_ms != than.catalog_created_ms
    }

    /// Whether it is of the same catalog as `end`, and not behind it.
    pub(super) fn is_before_or_at(self, end: Self) -> bool {
        !self.is_of_another_era(end) && self.seq <= end.seq
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:013}-{:015}", self.catalog_created_ms, self.seq)
    }
}

/// A text that is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of the feed")]
pub struct InvalidCursor;

impl FromStr for Cursor {
    type Err = InvalidCursor;
    fn from_str(text: &str) -> std::result::Result<Self, InvalidCursor> {
        let digits = |text: &str, len| -> std::result::Result<i64, InvalidCursor> {
            let right = text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| right).ok_or(InvalidCursor)
        };
        let (created, seq) = text.split_once('-').ok_or(InvalidCursor)?;
        Ok(Self { catalog_created_ms: digits(created, 13)?, seq: digits(seq, 15)? })
    }
}

/// An entry of the feed.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its place.
    pub cursor: Cursor,
    /// `recording.stored` and others.
    pub kind: String,
    /// When it happened.
    pub at: Timestamp,
    /// Whose it is.
    pub account: AccountSid,
    /// The recording as it is now; None for what concerns the account.
    pub recording: Option<Recording>,
    /// What belongs to it; an object, or null.
    pub detail: Json,
}

/// Which events a reader wants. Nothing set is all of them.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only of these accounts.
    pub accounts: Option<Vec<AccountSid>>,
    /// Only of these types.
    pub kinds: Vec<String>,
    /// Only of recordings that are asked for by this call.
    pub call: Option<CallSid>,
}

impl EventFilter {
    /// Whether such an event is wanted, as far as its essentials tell.
    pub fn passes(&self, news: &News) -> bool {
        news.kind != OTHER_ANSWER
            && self.accounts.as_ref().is_none_or(|accounts| accounts.contains(&news.account))
            && (self.kinds.is_empty() || self.kinds.contains(&news.kind))
            && self.call.is_none_or(|call| news.calls.contains(&call))
    }
}

/// Not an event: a call of the recording may answer otherwise from now on.
pub const OTHER_ANSWER: &str = "other_answer";

/// Leaves out what is not shown.
macro_rules! shown {
    ($type:literal) => {
        concat!(" AND ", $type, " <> 'other_answer'")
    };
}
pub(super) use shown;

const APPEND: &str = concat!(
    "INSERT INTO events (seq, in_feed, account_sid, recording_sid, at, type, detail) \
     VALUES (NULL, $1, $2, $3, ",
    now!(),
    ", $4, $5)"
);
/// With its number: where there is one writer, order of writing is order of commit.
const APPEND_NUMBERED: &str = concat!(
    "INSERT INTO events (seq, in_feed, account_sid, recording_sid, at, type, detail) \
     VALUES (CASE WHEN $1 = 1 THEN (SELECT coalesce(max(seq), 0) + 1 FROM events) END, $1, $2, $3, ",
    now!(),
    ", $4, $5)"
);
const TELL_ONCE: &str = concat!(
    "INSERT INTO events (in_feed, account_sid, recording_sid, at, type, detail, told_once) VALUES (0, $1, $2, ",
    now!(),
    ", $3, $4, $5) ON CONFLICT DO NOTHING"
);
const LAST_ENTRY: &str = "SELECT row_id, type, detail FROM events WHERE account_sid = $1 AND recording_sid = $2 \
                          ORDER BY row_id DESC LIMIT 1";
const REPEAT_ENTRY: &str = concat!("UPDATE events SET at = ", now!(), ", detail = $2 WHERE row_id = $1");
const FORGET_OLDEST: &str = "DELETE FROM events WHERE row_id IN (SELECT row_id FROM events \
     WHERE account_sid = $1 AND recording_sid = $2 AND in_feed = 0 AND told_once IS NULL \
     ORDER BY row_id DESC LIMIT 1000 OFFSET $3)";
const HISTORY: &str = concat!(
    "SELECT at, type, detail FROM events WHERE account_sid = $1 AND recording_sid = $2",
    shown!("type"),
    " ORDER BY row_id"
);
const LATEST: &str =
    "SELECT created_at, (SELECT coalesce(max(seq), 0) FROM events) AS last_seq FROM catalog WHERE only_row = 1";

/// Appends an event to the feed, in the transaction of what it tells.
pub(super) async fn append(session: &mut Session, id: &RecordingId, kind: &str, detail: Json) -> Result<()> {
    insert(session, 1, id, kind, detail).await
}

/// Appends that a recording is given up, and has it counted: whoever gives one up says so here.
pub(super) async fn append_failed(
    session: &mut Session,
    id: &RecordingId,
    code: ErrorCode,
    detail: Json,
) -> Result<()> {
    session.gives_up(code);
    append(session, id, "recording.failed", detail).await
}

/// Has every node forget what it remembers of the recording's calls, in the
/// transaction that has them answer otherwise.
pub(super) async fn tell_memories(session: &mut Session, id: &RecordingId) -> Result<()> {
    insert(session, 1, id, OTHER_ANSWER, Json::Null).await
}

/// Appends an event that concerns an account as a whole.
pub(super) async fn append_of_account(
    session: &mut Session,
    account: AccountSid,
    kind: &str,
    detail: Json,
) -> Result<()> {
    let statement = if session.is_postgres() { APPEND } else { APPEND_NUMBERED };
    session.execute(statement, args![1, account, None::<RecordingSid>, kind, text(detail)]).await?;
    Ok(())
}

/// Notes something in the history that is no event. An attempt that fails as
/// the one before did is counted there, instead of filling the history.
pub(super) async fn note(session: &mut Session, id: &RecordingId, kind: &str, detail: Json) -> Result<()> {
    if let Some(last) = session.row(LAST_ENTRY, args![id.account, id.recording]).await?
        && let Some(repeated) = repeated(&last, kind, &detail)?
    {
        let row_id: i64 = last.get("row_id")?;
        session.execute(REPEAT_ENTRY, args![row_id, repeated.to_string()]).await?;
        return Ok(());
    }
    insert(session, 0, id, kind, detail).await?;
    session.execute(FORGET_OLDEST, args![id.account, id.recording, HISTORY_MAX]).await?;
    Ok(())
}

/// The last entry's detail with its count raised, if it says the same.
fn repeated(last: &Row, kind: &str, detail: &Json) -> Result<Option<Json>> {
    if last.get::<String>("type")? != kind {
        return Ok(None);
    }
    let mut known = rows::json(last, "detail")?;
    let Some(object) = known.as_object_mut() else { return Ok(None) };
    let count = object.remove("times").and_then(|times| times.as_i64()).unwrap_or(1);
    if Json::Object(object.clone()) != *detail {
        return Ok(None);
    }
    object.insert("times".to_owned(), json!(count + 1));
    Ok(Some(known))
}

/// Notes something that is noted once: says whether this was the first time.
pub(super) async fn tell_once(
    session: &mut Session,
    id: &RecordingId,
    kind: &str,
    detail: Json,
    key: &str,
) -> Result<bool> {
    let args = args![id.account, id.recording, kind, text(detail), key];
    Ok(session.execute(TELL_ONCE, args).await? == 1)
}

async fn insert(session: &mut Session, in_feed: i64, id: &RecordingId, kind: &str, detail: Json) -> Result<()> {
    let statement = if session.is_postgres() { APPEND } else { APPEND_NUMBERED };
    session.execute(statement, args![in_feed, id.account, id.recording, kind, text(detail)]).await?;
    Ok(())
}

fn text(detail: Json) -> Option<String> {
    if detail.is_null() { None } else { Some(detail.to_string()) }
}

impl dyn Catalog + '_ {
    /// What happened to a recording, oldest first.
    pub async fn history(&self, id: &RecordingId) -> Result<Vec<HistoryEntry>> {
        let rows = self.read().await?.rows(HISTORY, args![id.account, id.recording]).await?;
        let entry = |row: &Row| -> Result<HistoryEntry> {
            Ok(HistoryEntry { at: row.time("at")?, kind: row.get("type")?, detail: rows::json(row, "detail")? })
        };
        rows.iter().map(entry).collect()
    }

    /// The cursor behind the last event: from there on, only what is new is read.
    pub async fn latest_event(&self) -> Result<Cursor> {
        latest(&mut self.read().await?).await
    }

    /// At most `limit` events behind `after` that pass the filter, in order,
    /// and the cursor to go on from. None reads from the oldest.
    ///
    /// Fewer than `limit` need not be the end: where few events pass, so much of
    /// the feed is looked through as takes a moment, and the cursor moves on.
    pub async fn events(
        &self,
        after: Option<Cursor>,
        filter: &EventFilter,
        limit: i64,
    ) -> Result<(Vec<Event>, Cursor)> {
        let mut session = self.read().await?;
        let latest = latest(&mut session).await?;
        let after = match after {
            Some(after) if after.catalog_created_ms == latest.catalog_created_ms && after <= latest => after,
            // Another catalog's, one from before a backup was restored, or none: all that this one has.
            _ => latest.at(0),
        };
        // The events of a call are found by its recordings, however long the feed is.
        let until = if filter.call.is_some() { latest } else { latest.min(after.advanced(LOOKED_THROUGH)) };
        let (sql, args) = statement(after, until, filter, limit);
        let rows = session.rows(AssertSqlSafe(sql), args).await?;
        let read = |row: &Row| event(row, after);
        let events: Vec<Event> = rows.iter().map(read).collect::<Result<_>>()?;
        // A full page ends at its last event; else all up to there was looked at.
        let full = events.len() as i64 == limit;
        let next = events.last().filter(|_| full).map_or(until.max(after), |last| last.cursor);
        Ok((events, next))
    }
}

/// The cursor behind the last event.
pub(super) async fn latest(session: &mut Session) -> Result<Cursor> {
    let row = session.row(LATEST, args![]).await?;
    let row = row.ok_or_else(|| CatalogError::Unreadable("the catalog's own row is missing".to_owned()))?;
    Ok(Cursor { catalog_created_ms: row.get("created_at")?, seq: row.get("last_seq")? })
}

/// An event beside its recording, of columns that [`event_columns`] names.
pub(super) fn event(row: &Row, after: Cursor) -> Result<Event> {
    let has_recording = row.get::<Option<String>>("recording_sid")?.is_some();
    Ok(Event {
        cursor: after.at(row.get("event_seq")?),
        kind: row.get("event_type")?,
        at: row.time("event_at")?,
        account: row.parse("event_account")?,
        recording: if has_recording { Some(rows::recording(row)?) } else { None },
        detail: rows::json(row, "event_detail")?,
    })
}

/// Of events `e` beside their recordings `r` as they are now.
macro_rules! event_columns {
    () => {
        concat!(
            "e.seq AS event_seq, e.type AS event_type, e.at AS event_at, e.account_sid AS event_account, \
         e.detail AS event_detail, ",
            $crate::catalog::columns::columns_of!(recordings, "r.")
        )
    };
}
pub(super) use event_columns;

/// The recordings `r` of events `e`.
macro_rules! with_recordings {
    () => {
        " LEFT JOIN recordings r ON r.account_sid = e.account_sid AND r.recording_sid = e.recording_sid "
    };
}
pub(super) use with_recordings;

const EVENTS: &str = concat!("SELECT ", event_columns!(), " FROM ");
const WITH_RECORDINGS: &str = concat!("events e", with_recordings!());
/// Crossed: SQLite keeps the order of such a join, and finds the events by recording.
const OF_CALL: &str = concat!(recordings_of_call!("= $4"), " AS of_call CROSS JOIN ");

/// The statement of one page. Its text depends on what is filtered by, never on values.
fn statement(after: Cursor, until: Cursor, filter: &EventFilter, limit: i64) -> (String, Vec<super::sql::Value>) {
    let mut args = args![after.seq, until.seq, limit];
    let mut sql = EVENTS.to_owned();
    if let Some(call) = filter.call {
        args.extend(args![call]);
        sql.push_str(OF_CALL);
    }
    sql.push_str(WITH_RECORDINGS);
    sql.push_str(concat!("WHERE e.seq > $1 AND e.seq <= $2", shown!("e.type")));
    if filter.call.is_some() {
        sql.push_str(" AND e.account_sid = of_call.account_sid AND e.recording_sid = of_call.recording_sid");
    }
    if let Some(accounts) = &filter.accounts {
        sql.push_str(&super::sql::one_of("e.account_sid", accounts.iter().copied(), &mut args));
    }
    if !filter.kinds.is_empty() {
        sql.push_str(&super::sql::one_of("e.type", filter.kinds.iter().map(String::as_str), &mut args));
    }
    sql.push_str(" ORDER BY e.seq LIMIT $3");
    (sql, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_sort_as_text_as_they_do_as_numbers() {
        let cursor = |created, seq| Cursor { catalog_created_ms: created, seq };
        let mut cursors = [cursor(2, 1), cursor(1, 10), cursor(1, 9), cursor(1, 1_000_000)];
        cursors.sort();
        assert!(cursors.map(|cursor| cursor.to_string()).is_sorted());
        for cursor in cursors {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for wrong in ["", "1-1", "latest", "0000000000001-00000000000000a", "-000000000001-000000000000001"] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }
}
