//! The names under which a recording is asked for, and what was PUT for a call.
//!
//! Aliases and choices are kept by account, and are never taken back. What changes
//! the answer of a call that is known has every node's memory told, in the same
//! transaction.

use super::sql::{Session, args, now};
use super::{Result, feed};
use crate::domain::recording::{Details, Recording, RecordingId};
use crate::domain::sid::CallSid;

const CHOOSE: &str = concat!(
    "INSERT INTO choices (account_sid, call_sid, recording_sid, put_at) VALUES ($1, $2, $3, ",
    now!(),
    ") ON CONFLICT (account_sid, call_sid) DO UPDATE SET recording_sid = excluded.recording_sid, put_at = excluded.put_at"
);
/// What is chosen for the call already, and nothing else under another of its names since.
macro_rules! chosen {
    () => {
        "SELECT 1 AS one FROM choices c WHERE c.account_sid = $1 AND c.call_sid = $2 \
         AND c.recording_sid = $3 AND NOT EXISTS (SELECT 1 FROM aliases a JOIN choices o \
         ON o.account_sid = a.account_sid \
         AND o.call_sid = CASE WHEN a.alias_sid = $2 THEN a.target_sid ELSE a.alias_sid END \
         WHERE a.account_sid = $1 AND (a.alias_sid = $2 OR a.target_sid = $2) \
         AND o.recording_sid <> $3 AND o.put_at >= c.put_at)"
    };
}
const CHOSEN: &str = chosen!();
/// Nothing else is chosen until this is.
const CHOSEN_ON_POSTGRES: &str = concat!(chosen!(), " FOR UPDATE OF c");
/// Unless something was PUT for the other one since.
const COPY_CHOICE: &str = "INSERT INTO choices (account_sid, call_sid, recording_sid, put_at) \
     SELECT account_sid, $3, recording_sid, put_at FROM choices WHERE account_sid = $1 AND call_sid = $2 \
     ON CONFLICT (account_sid, call_sid) DO UPDATE SET recording_sid = excluded.recording_sid, put_at = excluded.put_at \
     WHERE choices.put_at <= excluded.put_at";
const ADD_ALIAS: &str = concat!(
    "INSERT INTO aliases (account_sid, alias_sid, target_sid, created_at) VALUES ($1, $2, $3, ",
    now!(),
    ") ON CONFLICT DO NOTHING"
);
const CALLS_PUT: &str = "SELECT call_sid FROM choices WHERE account_sid = $1 AND recording_sid = $2";

/// Whether a PUT chooses another recording for its call than is chosen now, under
/// whichever of its names.
pub(super) async fn is_other_choice(session: &mut Session, id: &RecordingId, call: CallSid) -> Result<bool> {
    let statement = if session.is_postgres() { CHOSEN_ON_POSTGRES } else { CHOSEN };
    let chosen = session.row(statement, args![id.account, call, id.recording]).await?;
    Ok(chosen.is_none())
}

/// The recording is what the call answers for, until another one is PUT for it.
pub(super) async fn choose(session: &mut Session, id: &RecordingId, call: CallSid) -> Result<()> {
    session.execute(CHOOSE, args![id.account, call, id.recording]).await?;
    Ok(())
}

/// Once Twilio's own call is known: every other SID under which the recording
/// was PUT becomes another name of that call.
pub(super) async fn keep_names(session: &mut Session, confirmed: &Recording) -> Result<()> {
    let id = &confirmed.id;
    let rows = session.rows(CALLS_PUT, args![id.account, id.recording]).await?;
    for row in rows {
        add_alias(session, id, &confirmed.details, row.parse("call_sid")?).await?;
    }
    Ok(())
}

/// Makes `call` another name of the recording's own call, if it is another one.
/// What was PUT for the one is then what was PUT for the other. Says whether the
/// name is new; memories were told then.
pub(super) async fn add_alias(
    session: &mut Session,
    id: &RecordingId,
    details: &Details,
    call: CallSid,
) -> Result<bool> {
    let target = match (details.call_sid, details.conference_sid) {
        (Some(own), _) if own == call => return Ok(false),
        (Some(own), _) => own.to_string(),
        (None, Some(conference)) => conference.to_string(),
        (None, None) => return Ok(false),
    };
    let is_new = session.execute(ADD_ALIAS, args![id.account, call, target]).await? == 1;
    if let Some(own) = details.call_sid {
        session.execute(COPY_CHOICE, args![id.account, call, own]).await?;
    }
    if is_new {
        feed::tell_memories(session, id).await?;
    }
    Ok(is_new)
}
