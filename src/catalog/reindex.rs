//! Making rows of what lies in the bucket.
//!
//! What the walk over the objects finds is gathered first, of each recording the
//! newest object, and made rows of afterwards in the order in which it was stored.
//! A row is made only where there is none; whatever else lies there gets a recheck,
//! and of a row that has no audio yet it is told that there may be some.
//! Both parts are saved as they go, so that whoever goes on misses nothing. A walk that
//! finds more than an indexed catalog knew begins a new era of the feed; an object that
//! is registered by itself does not.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::accept::{lock, write_details};
use super::bucket_walk::{BucketWalk, Position, finish, save};
use super::columns::columns_of;
use super::lease::{Lease, Settled};
use super::markers::HOLD_AS_MARKED;
use super::names::keep_names;
use super::sql::{Row, Session, args, now};
use super::{Catalog, Result, birth, era, feed, recheck, rows, scrub};
use crate::domain::recording::{Details, Recording, RecordingId, State, StoredObject};

/// An object of this service's, as it lies in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundObject {
    /// Whose it is.
    pub id: RecordingId,
    /// What its metadata tells of the recording.
    pub details: Details,
    /// The object.
    pub object: StoredObject,
    /// When it was stored, as its metadata tells.
    pub stored_at: Timestamp,
    /// The host that has the recording; None is the configured origin.
    pub source_host: Option<&'static str>,
}

/// The newest wins, and between two of the same time the one whose key sorts last.
const GATHER: &str = "INSERT INTO found_objects (account_sid, recording_sid, object_key, call_sid, conference_sid, \
     duration_seconds, channels, recorded_at, sha256, size_bytes, format, stored_at, source_host) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
     ON CONFLICT (account_sid, recording_sid) DO UPDATE SET \
     others = CASE WHEN excluded.object_key <> found_objects.object_key THEN 1 ELSE found_objects.others END";
const REPLACE: &str = "UPDATE found_objects SET object_key = $3, call_sid = $4, conference_sid = $5, \
     duration_seconds = $6, channels = $7, recorded_at = $8, sha256 = $9, size_bytes = $10, format = $11, \
     stored_at = $12, source_host = $13 WHERE account_sid = $1 AND recording_sid = $2 \
     AND (stored_at, object_key) < ($12, $3)";
const NEXT: &str = concat!(
    "SELECT ",
    columns_of!(found_objects),
    " FROM found_objects ORDER BY stored_at, recording_sid, account_sid LIMIT $1"
);
const LEFT: &str = "SELECT count(*) AS found FROM found_objects";
const FORGET: &str = "DELETE FROM found_objects WHERE account_sid = $1 AND recording_sid = $2";
const CREATE_STORED: &str = "INSERT INTO recordings (account_sid, recording_sid, state, announced_by, details_confirmed, \
     call_sid, conference_sid, duration_seconds, channels, recorded_at, sha256, size_bytes, format, object_key, \
     stored_at, accepted_at, ordered_at, source_host) \
     SELECT account_sid, recording_sid, 'stored', 'reindex', 1, call_sid, conference_sid, duration_seconds, channels, \
     recorded_at, sha256, size_bytes, format, object_key, stored_at, stored_at, coalesce(recorded_at, stored_at), \
     source_host FROM found_objects WHERE account_sid = $1 AND recording_sid = $2 ON CONFLICT DO NOTHING";

/// A row that has no audio yet: there is no need to wait for Twilio, but what
/// Twilio said stands.
const LOOK_FIRST: &str = concat!(
    "UPDATE recordings SET look_first = 1, due_at = CASE WHEN state <> 'pending' OR due_at <= ",
    now!(),
    " THEN due_at WHEN not_before > ",
    now!(),
    " THEN not_before ELSE ",
    now!(),
    " END WHERE account_sid = $1 AND recording_sid = $2 \
     AND state IN ('announced', 'pending', 'fetching', 'absent', 'failed')"
);

/// A row that waits for nobody and nothing, and has no audio or an older one than that:
/// when the object was stored, another catalog knew of it. What is under way, or owed a
/// look, may leave such objects, too.
const KNOWS_LESS: &str = concat!(
    "SELECT 1 AS one FROM recordings WHERE account_sid = $1 AND recording_sid = $2 AND recheck_due_at IS NULL \
     AND duty_until IS NULL AND (state IN ('announced', 'pending', 'evicted', 'absent', 'failed') \
     OR (state = 'fetching' AND due_at <= ",
    now!(),
    ") OR (state = 'stored' AND stored_at < $3))"
);

/// What came of an object that was found.
struct Indexed {
    /// Its recording had no row, and has one now.
    created: bool,
    /// The catalog did not know what the bucket tells.
    knew_less: bool,
}

impl dyn Catalog + '_ {
    /// Keeps what a part of the bucket's list has, and saves with it how far the
    /// walk came.
    pub async fn gather(&self, walk: &BucketWalk, found: &[FoundObject], next: &Position) -> Result<Settled> {
        let mut session = self.begin().await?;
        for object in found {
            gather(&mut session, object).await?;
        }
        if save(&mut session, walk, next).await? == Settled::Stale {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        session.commit().await?;
        Ok(Settled::Done)
    }

    /// How many recordings were gathered and are no rows yet.
    pub async fn gathered(&self) -> Result<i64> {
        let row = self.read().await?.row(LEFT, args![]).await?;
        row.map_or(Ok(0), |row| row.get("found"))
    }

    /// Makes rows of at most so many of those that were gathered, oldest first, and
    /// gives how many; None where the lease is another's by now. What else lies in
    /// the bucket for a recording is looked at `after` that time.
    pub async fn index(
        &self,
        walk: &BucketWalk,
        at: &Position,
        at_most: i64,
        after: Duration,
    ) -> Result<Option<usize>> {
        let mut session = self.begin().await?;
        let next = session.rows(NEXT, args![at_most]).await?;
        let mut knew_less = false;
        for row in &next {
            knew_less |= index(&mut session, row, after).await?.knew_less;
        }
        if save(&mut session, walk, at).await? == Settled::Stale {
            session.rollback().await?;
            return Ok(None);
        }
        if knew_less {
            era::begin_once(&mut session).await?;
        }
        session.commit().await?;
        self.announce_change();
        Ok(Some(next.len()))
    }

    /// Every object was made a row of: the catalog is indexed.
    pub async fn finish_index(&self, walk: &BucketWalk) -> Result<Settled> {
        let mut session = self.begin().await?;
        if finish(&mut session, walk).await? == Settled::Stale {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        birth::all_is_indexed(&mut session).await?;
        session.commit().await?;
        Ok(Settled::Done)
    }

    /// Makes a row of one object, where its recording has none. Says whether it did.
    pub async fn register(&self, found: &FoundObject, after: Duration) -> Result<bool> {
        let mut session = self.begin().await?;
        gather(&mut session, found).await?;
        let row = session.row(ONE, args![found.id.account, found.id.recording]).await?;
        let registered = match row {
            Some(row) => index(&mut session, &row, after).await?.created,
            None => false,
        };
        session.commit().await?;
        self.announce_change();
        Ok(registered)
    }
}

const ONE: &str =
    concat!("SELECT ", columns_of!(found_objects), " FROM found_objects WHERE account_sid = $1 AND recording_sid = $2");

async fn gather(session: &mut Session, found: &FoundObject) -> Result<()> {
    let FoundObject { id, details, object, stored_at, source_host } = found;
    let args = args![
        id.account,
        id.recording,
        object.key.as_str(),
        details.call_sid,
        details.conference_sid,
        details.duration_seconds,
        details.channels,
        details.recorded_at,
        object.digest,
        object.size_bytes,
        object.format.as_str(),
        *stored_at,
        *source_host,
    ];
    session.execute(GATHER, args.clone()).await?;
    session.execute(REPLACE, args).await?;
    Ok(())
}

async fn index(session: &mut Session, found: &Row, after: Duration) -> Result<Indexed> {
    let id = rows::id(found)?;
    let others = found.get::<i64>("others")? != 0;
    let created = session.execute(CREATE_STORED, args![id.account, id.recording]).await? == 1;
    if created {
        session.execute(HOLD_AS_MARKED, args![id.account, id.recording]).await?;
        feed::append(session, &id, "recording.accepted", json!({"by": "reindex"})).await?;
        feed::append(session, &id, "recording.stored", json!({"reindexed": true})).await?;
    }
    let key: String = found.get("object_key")?;
    let names = |known: &Recording| {
        known.state == State::Stored && known.object.as_ref().is_some_and(|object| object.key == key)
    };
    let known = lock(session, &id).await?;
    let mut knew_less = created;
    if let Some(known) = known.filter(|known| others || !names(known)) {
        let stored_at = found.time("stored_at")?;
        let knows_less = session.row(KNOWS_LESS, args![id.account, id.recording, stored_at]).await?.is_some();
        knew_less |= knows_less && !names(&known);
        tell_row(session, &known, found).await?;
        recheck::owe(session, &Lease { id, epoch: known.epoch }, after).await?;
    }
    session.execute(FORGET, args![id.account, id.recording]).await?;
    Ok(Indexed { created, knew_less })
}

/// Tells a row of an object that it does not name. The call in whose folder it lies is
/// Twilio's own: this service writes to no other.
async fn tell_row(session: &mut Session, known: &Recording, found: &Row) -> Result<()> {
    let id = &known.id;
    let said = Details {
        call_sid: found.parse_opt("call_sid")?,
        conference_sid: found.parse_opt("conference_sid")?,
        duration_seconds: found.get("duration_seconds")?,
        channels: found.get("channels")?,
        recorded_at: found.time_opt("recorded_at")?,
        ..Details::default()
    };
    if known.state == State::Erased {
        return scrub::tell_call(session, known, said.call_sid, said.conference_sid).await;
    }
    session.execute(LOOK_FIRST, args![id.account, id.recording]).await?;
    if !known.details_confirmed {
        let (call_sid, conference_sid) = (said.call_sid, said.conference_sid);
        let details = Details { call_sid, conference_sid, ..said.updated_by(known.details.clone()) };
        write_details(session, known, &details, true).await?;
        keep_names(session, &Recording { details, ..known.clone() }).await?;
    }
    Ok(())
}
