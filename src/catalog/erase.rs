//! Erasing: the row.
//!
//! One transaction makes a recording `erased`, unless it is held: the epoch is
//! raised, so that whoever works on it changes nothing more, and every field is
//! cleared but the SIDs, the times, and the upload until it is aborted. What its
//! history told beyond that is cleared, too. The host of its source stays: only
//! there can its copy at Twilio be deleted. The marker, the bucket's part and
//! Twilio's are owed from then on (`erasures.rs`). Nothing leads out of `erased`.

use std::time::Duration;

use serde_json::json;
use sqlx::AssertSqlSafe;

use super::clock::agrees;
use super::columns::columns_of;
use super::sql::{Session, args, now};
use super::{Catalog, Result, birth, feed, rows};
use crate::domain::key::KeyId;
use crate::domain::recording::{Recording, RecordingId, State};
use crate::domain::sid::{AccountSid, CallSid};

/// Why something is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErasedBy {
    /// The holder of that key asked for it.
    Request(KeyId),
    /// It reached the age at which recordings of its account go.
    Retention,
    /// The bucket says that it was: a marker of a catalog before this one.
    Marker,
}

/// What is to be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erase {
    /// One recording.
    Recording(RecordingId),
    /// Every recording that a call of an account has, under any of its names.
    Call(AccountSid, CallSid),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erased {
    /// Nothing is known of it.
    Unknown,
    /// Something of it is held: nothing was erased.
    Held,
    /// These are erased, now or since before.
    Done(Vec<RecordingId>),
}

const LOCK: &str = concat!("SELECT ", columns_of!(recordings), " FROM recordings WHERE account_sid = $1");
const BY_RECORDING: &str = " AND recording_sid = $2";
/// Its own, those of calls that it is another name of, and those PUT for it.
const BY_CALL: &str = " AND recording_sid IN ( \
     SELECT recording_sid FROM recordings WHERE account_sid = $1 AND call_sid = $2 \
     UNION SELECT recording_sid FROM choices WHERE account_sid = $1 AND call_sid = $2 \
     UNION SELECT o.recording_sid FROM aliases a JOIN recordings o ON o.account_sid = a.account_sid \
     AND o.call_sid = a.target_sid WHERE a.account_sid = $1 AND a.alias_sid = $2 \
     UNION SELECT o.recording_sid FROM aliases a JOIN recordings o ON o.account_sid = a.account_sid \
     AND o.conference_sid = a.target_sid WHERE a.account_sid = $1 AND a.alias_sid = $2)";
/// In an order: two that erase the same must not wait for each other.
const IN_ORDER: &str = " ORDER BY recording_sid";
const ACCOUNTS_WITH_OLD: &str = "SELECT a.column1 AS account_sid FROM";
const HAS_OLD: &str = concat!(
    "SELECT 1 FROM recordings WHERE account_sid = a.column1 AND state <> 'erased' AND hold = 0 AND ordered_at <= ",
    now!(),
    " - a.column2 AND ",
    birth::indexed!()
);
const OLD: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    ", ",
    now!(),
    " AS now_ms FROM recordings WHERE account_sid = $1 AND state <> 'erased' AND hold = 0 AND ordered_at <= ",
    now!(),
    " - $2 AND ",
    birth::indexed!(),
    " ORDER BY ordered_at LIMIT $3"
);
/// The lease of a duty ends with it: a delete that comes late does no harm here.
const ERASE: &str = concat!(
    "UPDATE recordings SET state = 'erased', epoch = epoch + 1, announced_by = '', lease_node = NULL, due_at = NULL, \
     not_before = NULL, pending_since = NULL, asked_about_at = NULL, attempts = 0, failed_attempts = 0, \
     duty_until = NULL, recheck_due_at = NULL, doubted_at = NULL, duration_seconds = NULL, channels = NULL, track = NULL, \
     recording_source = NULL, traceparent = NULL, sha256 = NULL, size_bytes = NULL, format = NULL, object_key = NULL, error_code = NULL, \
     error_detail = NULL, error_at = NULL, kept_at = NULL, look_first = 0, erase_marked = 0, erase_cleared = 0, erase_failures = 0, \
     erase_twilio = $3, erase_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2"
);
/// Who set and released holds is nothing of what was recorded.
const FORGET_DETAILS: &str = "UPDATE events SET detail = NULL WHERE account_sid = $1 AND recording_sid = $2 \
     AND type NOT IN ('recording.held', 'recording.released')";
/// Asked for again: what is still owed is tried at once.
const TRY_AGAIN: &str = concat!(
    "UPDATE recordings SET erase_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2 AND erase_due_at IS NOT NULL"
);
/// And Twilio's part is owed if it was not, which its marker is to say.
const ERASE_AT_TWILIO: &str = concat!(
    "UPDATE recordings SET erase_twilio = 1, erase_marked = 0, erase_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2 AND erase_twilio = 0"
);
impl dyn Catalog + '_ {
    /// Erases a recording, or all of a call, in one transaction; `at_twilio` asks
    /// for Twilio's copies, too; the holder of that key asks. What is owed of it then
    /// is due at once. Erasing again changes nothing, but what is still owed is tried at once.
    pub async fn erase(&self, what: Erase, at_twilio: bool, asked_by: KeyId) -> Result<Erased> {
        let mut session = self.begin().await?;
        let known = lock_all(&mut session, what).await?;
        if known.is_empty() {
            session.rollback().await?;
            return Ok(Erased::Unknown);
        }
        if known.iter().any(|recording| recording.hold) {
            session.rollback().await?;
            return Ok(Erased::Held);
        }
        for recording in &known {
            match recording.state {
                State::Erased => erase_again(&mut session, &recording.id, at_twilio, asked_by).await?,
                _ => erase(&mut session, &recording.id, ErasedBy::Request(asked_by), at_twilio).await?,
            }
        }
        session.commit().await?;
        self.announce_change();
        Ok(Erased::Done(known.into_iter().map(|recording| recording.id).collect()))
    }

    /// Those of the accounts, each with its age, that have a recording of that age
    /// that is not held.
    pub async fn accounts_with_old(&self, ages: &[(AccountSid, Duration)]) -> Result<Vec<AccountSid>> {
        if ages.is_empty() {
            return Ok(Vec::new());
        }
        let (mut args, mut places) = (args![], Vec::new());
        for (account, age) in ages {
            args.extend(args![*account, *age]);
            places.push(format!("(${}, ${})", args.len() - 1, args.len()));
        }
        let sql = format!("{ACCOUNTS_WITH_OLD} (VALUES {}) AS a WHERE EXISTS ({HAS_OLD})", places.join(", "));
        let rows = self.read().await?.rows(AssertSqlSafe(sql), args).await?;
        rows.iter().map(|row| row.parse("account_sid")).collect()
    }

    /// Erases at most so many recordings of an account that are that old and not
    /// held. Says how many there were. By a clock that is not this node's nothing is old:
    /// a database that came back with a wrong one must not empty the bucket.
    pub async fn erase_old(
        &self,
        account: AccountSid,
        age: Duration,
        at_twilio: bool,
        at_most: usize,
    ) -> Result<usize> {
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        let mut session = self.begin().await?;
        let locking = session.for_update_skip_locked();
        let rows = session.rows(AssertSqlSafe(format!("{OLD}{locking}")), args![account, age, at_most]).await?;
        for row in &rows {
            if !agrees(row.time("now_ms")?) {
                session.rollback().await?;
                return Ok(0);
            }
            erase(&mut session, &rows::id(row)?, ErasedBy::Retention, at_twilio).await?;
        }
        session.commit().await?;
        self.announce_change();
        Ok(rows.len())
    }
}

/// The recordings, locked until the end of the transaction.
async fn lock_all(session: &mut Session, what: Erase) -> Result<Vec<Recording>> {
    let (by, args) = match what {
        Erase::Recording(id) => (BY_RECORDING, args![id.account, id.recording]),
        Erase::Call(account, call) => (BY_CALL, args![account, call]),
    };
    let locking = session.for_update();
    let rows = session.rows(AssertSqlSafe(format!("{LOCK}{by}{IN_ORDER}{locking}")), args).await?;
    rows.iter().map(rows::recording).collect()
}

/// Sees to what is owed of a recording that was erased before, whose row is locked.
async fn erase_again(session: &mut Session, id: &RecordingId, at_twilio: bool, asked_by: KeyId) -> Result<()> {
    session.execute(TRY_AGAIN, args![id.account, id.recording]).await?;
    if at_twilio && owe_twilio(session, id).await? {
        feed::note(session, id, "twilio_deletion_requested", json!({"key": asked_by})).await?;
    }
    Ok(())
}

/// Has the copy at Twilio of what was erased go, too; false where it was to go before.
pub(super) async fn owe_twilio(session: &mut Session, id: &RecordingId) -> Result<bool> {
    Ok(session.execute(ERASE_AT_TWILIO, args![id.account, id.recording]).await? == 1)
}

/// Makes a recording erased, whose row is locked; what is owed of it is due at once.
pub(super) async fn erase(session: &mut Session, id: &RecordingId, by: ErasedBy, at_twilio: bool) -> Result<()> {
    session.execute(ERASE, args![id.account, id.recording, i64::from(at_twilio)]).await?;
    // What an event kept beside the row would tell what the row does not any more.
    session.execute(FORGET_DETAILS, args![id.account, id.recording]).await?;
    let detail = match by {
        ErasedBy::Request(key) => json!({"by": "request", "key": key, "at_twilio": at_twilio}),
        ErasedBy::Retention => json!({"by": "retention", "at_twilio": at_twilio}),
        ErasedBy::Marker => json!({"by": "bucket", "at_twilio": at_twilio}),
    };
    feed::append(session, id, "recording.erased", detail).await
}
