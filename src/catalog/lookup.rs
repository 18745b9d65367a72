//! Finding recordings: by their SID, by their call, by their content, in lists.
//!
//! Every look-up names the accounts that may be seen; None is all of them.
//! Nothing here ever asks anybody but the database.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::columns::columns_of;
use super::rows;
use super::sql::{Value, args, one_of, place_each};
use super::{Catalog, Result};
use crate::domain::digest::Digest;
use crate::domain::recording::{Recording, RecordingId, State, answer_for_call};
use crate::domain::sid::{AccountSid, CallSid, ConferenceSid, RecordingSid};

/// A call's recordings are few; a call that is asked for with more has its newest shown.
const RECORDINGS_OF_CALL_MAX: usize = 1000;

/// What was last PUT for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutChoice {
    /// The recording.
    pub recording: RecordingSid,
    /// When.
    pub put_at: Timestamp,
}

/// A call's recordings in one account.
#[derive(Debug, Clone, PartialEq)]
pub struct CallView {
    /// The account.
    pub account: AccountSid,
    /// All of them, newest first.
    pub recordings: Vec<Recording>,
    /// The one that was last PUT for the call.
    pub last_put: Option<PutChoice>,
    /// Whether the SID is Twilio's own for one of them.
    pub is_own: bool,
    /// When it was last made another name of a call.
    pub alias_since: Option<Timestamp>,
}

impl CallView {
    /// The recording that the call answers for.
    pub fn answer(&self) -> Option<&Recording> {
        answer_for_call(&self.recordings, self.last_put.map(|put| put.recording))
    }
}

/// What a list is to show.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Only of these accounts.
    pub accounts: Option<Vec<AccountSid>>,
    /// Only of these calls, under any of their names.
    pub calls: Vec<CallSid>,
    /// Only of this conference.
    pub conference: Option<ConferenceSid>,
    /// Only in this state; None shows all but the erased.
    pub state: Option<State>,
    /// Only from then on.
    pub since: Option<Timestamp>,
    /// Only before then.
    pub until: Option<Timestamp>,
}

/// Where a page ended: the next one begins behind it, whatever came in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCursor {
    ordered_at: Timestamp,
    id: RecordingId,
}

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.ordered_at.as_millisecond(), self.id.recording, self.id.account)
    }
}

/// A text that is not a cursor of a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the `next` of an earlier page")]
pub struct InvalidPageCursor;

impl FromStr for PageCursor {
    type Err = InvalidPageCursor;
    fn from_str(text: &str) -> std::result::Result<Self, InvalidPageCursor> {
        let parts: Vec<&str> = text.split('.').collect();
        let [millis, recording, account] = parts[..] else { return Err(InvalidPageCursor) };
        let millis = millis.parse().map_err(|_| InvalidPageCursor)?;
        Ok(Self {
            ordered_at: Timestamp::from_millisecond(millis).map_err(|_| InvalidPageCursor)?,
            id: RecordingId {
                account: account.parse().map_err(|_| InvalidPageCursor)?,
                recording: recording.parse().map_err(|_| InvalidPageCursor)?,
            },
        })
    }
}

const ONE: &str =
    concat!("SELECT ", columns_of!(recordings), " FROM recordings WHERE account_sid = $1 AND recording_sid = $2");
const SOME: &str =
    concat!("SELECT ", columns_of!(recordings), " FROM recordings WHERE (account_sid, recording_sid) IN");
const NAMED: &str = concat!("SELECT ", columns_of!(recordings), " FROM recordings WHERE recording_sid = $1");
const WITH: &str =
    concat!("SELECT ", columns_of!(recordings), " FROM recordings WHERE sha256 = $1 AND state = 'stored'");
/// It was evicted or lost, and is fetched again when it is asked for.
const AWAITED: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    " FROM recordings WHERE sha256 = $1 AND state IN ('evicted', 'pending', 'fetching')"
);
/// It was to be fetched again, and was given up.
const GIVEN_UP: &str =
    concat!("SELECT ", columns_of!(recordings), " FROM recordings WHERE sha256 = $1 AND state = 'failed'");

/// By its own SID, by another name of it, or by what was PUT for it; the condition
/// follows the column, as in `"= $1"`. A union of look-ups by index: an OR of them
/// would read the whole table.
macro_rules! recordings_of_call {
    ($condition:literal) => {
        concat!(
            "(SELECT account_sid, recording_sid FROM recordings WHERE call_sid ",
            $condition,
            " UNION SELECT account_sid, recording_sid FROM choices WHERE call_sid ",
            $condition,
            " UNION SELECT o.account_sid, o.recording_sid FROM aliases a JOIN recordings o \
             ON o.account_sid = a.account_sid AND o.call_sid = a.target_sid WHERE a.alias_sid ",
            $condition,
            " UNION SELECT o.account_sid, o.recording_sid FROM aliases a JOIN recordings o \
             ON o.account_sid = a.account_sid AND o.conference_sid = a.target_sid WHERE a.alias_sid ",
            $condition,
            ")"
        )
    };
}
pub(super) use recordings_of_call;

/// A call's recordings, and when each was last PUT for the call under any of its names.
const OF_CALL: &str = concat!(
    "SELECT ",
    columns_of!(recordings, "r."),
    ", \
     CAST(CASE WHEN r.call_sid = $1 AND r.details_confirmed = 1 THEN 1 ELSE 0 END AS BIGINT) AS is_own, \
     (SELECT max(a.created_at) FROM aliases a WHERE a.alias_sid = $1 AND a.account_sid = r.account_sid \
      AND a.target_sid IN (r.call_sid, r.conference_sid)) AS alias_since, \
     (SELECT max(p.put_at) FROM (SELECT account_sid, recording_sid, put_at FROM choices WHERE call_sid = $1 \
      UNION ALL SELECT c.account_sid, c.recording_sid, c.put_at FROM aliases a JOIN choices c \
      ON c.account_sid = a.account_sid AND c.call_sid = a.target_sid WHERE a.alias_sid = $1) p \
      WHERE p.account_sid = r.account_sid AND p.recording_sid = r.recording_sid) AS put_at \
     FROM recordings r JOIN ",
    recordings_of_call!("= $1"),
    " AS found ON r.account_sid = found.account_sid AND r.recording_sid = found.recording_sid WHERE 1 = 1"
);

impl dyn Catalog + '_ {
    /// One recording.
    pub async fn recording(&self, id: &RecordingId) -> Result<Option<Recording>> {
        let row = self.read().await?.row(ONE, args![id.account, id.recording]).await?;
        row.as_ref().map(rows::recording).transpose()
    }

    /// Those of the recordings that are known, in no order.
    pub async fn recordings(&self, ids: &[RecordingId]) -> Result<Vec<Recording>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut args = args![];
        let pairs: Vec<String> = ids
            .iter()
            .map(|id| {
                args.extend(args![id.account, id.recording]);
                format!("(${}, ${})", args.len() - 1, args.len())
            })
            .collect();
        let sql = format!("{SOME} (VALUES {})", pairs.join(", "));
        let rows = self.read().await?.rows(AssertSqlSafe(sql), args).await?;
        rows.iter().map(rows::recording).collect()
    }

    /// The recording of that SID in one of the accounts. Where several claim it, one
    /// that Twilio confirmed to be that account's, else the one that was accepted first.
    pub async fn recording_named(
        &self,
        recording: RecordingSid,
        accounts: Option<&[AccountSid]>,
    ) -> Result<Option<Recording>> {
        let order = "details_confirmed DESC, accepted_at, account_sid";
        self.first_of(NAMED, args![recording], accounts, order).await
    }

    /// A stored recording with those bytes in one of the accounts: the same for
    /// everyone who may see the same.
    pub async fn recording_with(&self, digest: Digest, accounts: Option<&[AccountSid]>) -> Result<Option<Recording>> {
        let order = "account_sid, recording_sid";
        // One that moves on between two looks is met on the way back.
        for state in [WITH, AWAITED, GIVEN_UP, AWAITED, WITH] {
            if let Some(found) = self.first_of(state, args![digest], accounts, order).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn first_of(
        &self,
        sql: &str,
        mut args: Vec<Value>,
        accounts: Option<&[AccountSid]>,
        order: &str,
    ) -> Result<Option<Recording>> {
        let visible = accounts.map(|accounts| one_of("account_sid", accounts.iter().copied(), &mut args));
        let sql = format!("{sql}{} ORDER BY {order} LIMIT 1", visible.unwrap_or_default());
        let row = self.read().await?.row(AssertSqlSafe(sql), args).await?;
        row.as_ref().map(rows::recording).transpose()
    }

    /// The recordings of a call by account: first the account of which the
    /// SID is Twilio's own, else that of its newest other name.
    pub async fn call(&self, call: CallSid, accounts: Option<&[AccountSid]>) -> Result<Vec<CallView>> {
        let mut views: BTreeMap<AccountSid, CallView> = BTreeMap::new();
        let mut session = self.read().await?;
        let mut args = args![call];
        let mut sql = OF_CALL.to_owned();
        if let Some(accounts) = accounts {
            sql.push_str(&one_of("r.account_sid", accounts.iter().copied(), &mut args));
        }
        sql.push_str(&format!(" ORDER BY r.ordered_at DESC, r.recording_sid DESC LIMIT {RECORDINGS_OF_CALL_MAX}"));
        for row in session.rows(AssertSqlSafe(sql), args).await? {
            let recording = rows::recording(&row)?;
            let account = recording.id.account;
            let view = views.entry(account).or_insert_with(|| CallView {
                account,
                recordings: Vec::new(),
                last_put: None,
                is_own: false,
                alias_since: None,
            });
            let put_at = row.time_opt("put_at")?;
            if let Some(put_at) = put_at.filter(|at| view.last_put.is_none_or(|known| known.put_at < *at)) {
                view.last_put = Some(PutChoice { recording: recording.id.recording, put_at });
            }
            view.recordings.push(recording);
            view.is_own |= row.get::<i64>("is_own")? != 0;
            view.alias_since = view.alias_since.max(row.time_opt("alias_since")?);
        }
        let mut views: Vec<CallView> = views.into_values().collect();
        views.sort_by_key(|view| std::cmp::Reverse((view.is_own, view.alias_since)));
        Ok(views)
    }

    /// A page of recordings, newest first, and where the next one begins.
    pub async fn list(
        &self,
        filter: &ListFilter,
        after: Option<PageCursor>,
        limit: usize,
    ) -> Result<(Vec<Recording>, Option<PageCursor>)> {
        let (sql, args) = list_statement(filter, after, limit + 1);
        let rows = self.read().await?.rows(AssertSqlSafe(sql), args).await?;
        let mut recordings: Vec<Recording> = rows.iter().map(rows::recording).collect::<Result<_>>()?;
        let more = recordings.len() > limit;
        recordings.truncate(limit);
        let next = recordings.last().filter(|_| more);
        let next = next.map(|last| PageCursor { ordered_at: last.ordered_at(), id: last.id });
        Ok((recordings, next))
    }
}

/// The calls take the place of `@calls`. They come first, as joins written so do in
/// SQLite: it would rather walk the accounts, because those are in order.
const LISTED_OF_CALLS: &str = concat!(
    "SELECT ",
    columns_of!(recordings, "r."),
    " FROM ",
    recordings_of_call!("IN (@calls)"),
    " AS found CROSS JOIN recordings r WHERE r.account_sid = found.account_sid AND r.recording_sid = found.recording_sid"
);
const LISTED: &str = concat!("SELECT ", columns_of!(recordings, "r."), " FROM recordings r WHERE 1 = 1");

/// Its text depends on what is filtered by, never on values.
fn list_statement(filter: &ListFilter, after: Option<PageCursor>, limit: usize) -> (String, Vec<Value>) {
    let mut args = args![];
    let calls = place_each(filter.calls.iter().copied(), &mut args);
    let mut sql = match calls.is_empty() {
        true => LISTED.to_owned(),
        false => LISTED_OF_CALLS.replace("@calls", &calls.join(", ")),
    };
    if let Some(accounts) = &filter.accounts {
        // A conference, too, says far more than an account: an expression has no index.
        let column = if filter.conference.is_some() { "r.account_sid || ''" } else { "r.account_sid" };
        sql.push_str(&one_of(column, accounts.iter().copied(), &mut args));
    }
    if let Some(conference) = filter.conference {
        sql.push_str(&one_of("r.conference_sid", [conference], &mut args));
    }
    match filter.state {
        Some(state) => sql.push_str(&one_of("r.state", [state.as_str()], &mut args)),
        None => sql.push_str(" AND r.state <> 'erased'"),
    }
    let mut compare = |comparison: &str, at: Timestamp| {
        args.extend(args![at]);
        format!(" AND r.ordered_at {comparison} ${}", args.len())
    };
    if let Some(since) = filter.since {
        sql.push_str(&compare(">=", since));
    }
    if let Some(until) = filter.until {
        sql.push_str(&compare("<", until));
    }
    if let Some(after) = after {
        let at = args.len();
        args.extend(args![after.ordered_at, after.id.recording, after.id.account]);
        let row =
            format!(" AND (r.ordered_at, r.recording_sid, r.account_sid) < (${}, ${}, ${})", at + 1, at + 2, at + 3);
        sql.push_str(&row);
    }
    sql.push_str(&format!(" ORDER BY r.ordered_at DESC, r.recording_sid DESC, r.account_sid DESC LIMIT {limit}"));
    (sql, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_cursors_come_back_as_they_were() {
        let cursor = PageCursor {
            ordered_at: Timestamp::from_millisecond(1_763_900_000_123).unwrap(),
            id: RecordingId {
                account: format!("AC{}", "a".repeat(32)).parse().unwrap(),
                recording: format!("RE{}", "b".repeat(32)).parse().unwrap(),
            },
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for wrong in ["", "1", "1.2.3", "x.RE.AC"] {
            assert!(wrong.parse::<PageCursor>().is_err(), "{wrong}");
        }
    }
}
