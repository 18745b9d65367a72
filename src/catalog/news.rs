//! What is new in the feed, as little of it as whoever is to be woken needs.
//!
//! Beside the event's place and kind only the names under which its recording
//! is asked for. Nothing is rendered from it: that is read when it is shown.

use std::collections::HashMap;

use jiff::Timestamp;

use super::feed::Cursor;
use super::sql::{Row, args};
use super::{Catalog, Result};
use crate::domain::recording::RecordingId;
use crate::domain::sid::{AccountSid, CallSid, RecordingSid};

/// An event that was appended, and whom it may concern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Its place in the feed.
    pub cursor: Cursor,
    /// `recording.stored` and others.
    pub kind: String,
    /// When it happened.
    pub at: Timestamp,
    /// Whose it is.
    pub account: AccountSid,
    /// The recording; None for what concerns the account.
    pub recording: Option<RecordingSid>,
    /// The calls that the recording is asked for by, or may be: its own, those that it
    /// was PUT for, and other names of these.
    pub calls: Vec<CallSid>,
}

impl News {
    /// The recording's identity; None for what concerns the account.
    pub fn id(&self) -> Option<RecordingId> {
        self.recording.map(|recording| RecordingId { account: self.account, recording })
    }
}

/// What came behind a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewsPage {
    /// In order, without gaps.
    pub news: Vec<News>,
    /// All up to here has been looked at.
    pub reached: Cursor,
    /// Whether that was the end of the feed.
    pub is_end: bool,
    /// The cursor that was given is of no use here: `reached` is where the feed
    /// ends, and nothing is known of what came before.
    pub begins_anew: bool,
}

const NEWS: &str = "SELECT e.seq AS event_seq, e.type AS type, e.at AS at, e.account_sid AS account_sid, \
     e.recording_sid AS recording_sid, r.call_sid AS call_sid FROM events e LEFT JOIN recordings r \
     ON r.account_sid = e.account_sid AND r.recording_sid = e.recording_sid \
     WHERE e.seq > $1 AND e.seq <= $2 ORDER BY e.seq";
const NAMES: &str = "SELECT e.seq AS event_seq, c.call_sid AS name FROM events e JOIN choices c \
     ON c.account_sid = e.account_sid AND c.recording_sid = e.recording_sid WHERE e.seq > $1 AND e.seq <= $2 \
     UNION SELECT e.seq AS event_seq, a.alias_sid AS name FROM events e JOIN recordings r \
     ON r.account_sid = e.account_sid AND r.recording_sid = e.recording_sid \
     JOIN aliases a ON a.account_sid = r.account_sid AND a.target_sid IN (r.call_sid, r.conference_sid) \
     WHERE e.seq > $1 AND e.seq <= $2 \
     UNION SELECT e.seq AS event_seq, a.alias_sid AS name FROM events e JOIN choices c \
     ON c.account_sid = e.account_sid AND c.recording_sid = e.recording_sid \
     JOIN aliases a ON a.account_sid = c.account_sid AND a.target_sid = c.call_sid WHERE e.seq > $1 AND e.seq <= $2";

impl dyn Catalog + '_ {
    /// What came behind that cursor, at most so many events. Without one, where
    /// the feed ends now.
    pub async fn news(&self, after: Option<Cursor>, at_most: i64) -> Result<NewsPage> {
        let mut session = self.read().await?;
        let latest = super::feed::latest(&mut session).await?;
        let Some(after) = after.filter(|after| after.is_before_or_at(latest)) else {
            return Ok(NewsPage { news: Vec::new(), reached: latest, is_end: true, begins_anew: true });
        };
        let reached = after.advanced(at_most).min(latest);
        let mut news = Vec::new();
        if after < reached {
            let range = args![after.seq(), reached.seq()];
            let read = |row: &Row| read(row, after);
            news = session.rows(NEWS, range.clone()).await?.iter().map(read).collect::<Result<Vec<_>>>()?;
            add_names(&mut news, &session.rows(NAMES, range).await?)?;
        }
        Ok(NewsPage { news, reached, is_end: reached == latest, begins_anew: false })
    }
}

fn read(row: &Row, after: Cursor) -> Result<News> {
    Ok(News {
        cursor: after.at(row.get("event_seq")?),
        kind: row.get("type")?,
        at: row.time("at")?,
        account: row.parse("account_sid")?,
        recording: row.parse_opt("recording_sid")?,
        calls: row.parse_opt("call_sid")?.into_iter().collect(),
    })
}

fn add_names(news: &mut [News], rows: &[Row]) -> Result<()> {
    let mut names: HashMap<i64, Vec<CallSid>> = HashMap::new();
    for row in rows {
        names.entry(row.get("event_seq")?).or_default().push(row.parse("name")?);
    }
    for one in news {
        let more = names.remove(&one.cursor.seq()).unwrap_or_default();
        let more = more.into_iter().filter(|name| !one.calls.contains(name));
        one.calls.extend(more.collect::<Vec<_>>());
    }
    Ok(())
}
