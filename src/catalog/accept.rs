//! Learning of a recording.
//!
//! One transaction makes or changes the row, appends its event and notes in the
//! history what was said. It is committed before anybody is answered.

use serde_json::json;

use super::columns::columns_of;
use super::markers::HOLD_AS_MARKED;
use super::names::{add_alias, keep_names};
use super::rows;
use super::sql::{Session, args, now};
use super::{Catalog, Result, birth, feed, names, questions, scrub};
use crate::domain::recording::{Details, ErrorCode, News, Recording, RecordingId, State, react};
use crate::domain::sid::CallSid;
use crate::telemetry;

/// Who told of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnnouncedBy {
    /// Twilio, by a callback of that status.
    Callback {
        /// Twilio's word.
        status: String,
        /// Twilio's error code.
        error_code: Option<String>,
    },
    /// The application, for this call.
    Put {
        /// The call under which it was PUT, which may be another leg than Twilio's.
        call: CallSid,
    },
    /// Twilio's API, asked by this service.
    Found {
        /// What made this service ask.
        by: FoundBy,
        /// Twilio's word: `completed`, `processing`, `absent` and others.
        status: String,
        /// Twilio's error code.
        error_code: Option<String>,
    },
}

/// What made this service ask Twilio for recordings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// The periodic walk over Twilio's list.
    Reconcile,
    /// Someone asked for a call that was not known.
    Request,
    /// `callvault backfill`.
    Backfill,
}

/// What was said of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Which recording.
    pub id: RecordingId,
    /// The host that has it; None is the configured origin.
    pub source_host: Option<&'static str>,
    /// What is known of it. The call of a callback is Twilio's own word.
    pub details: Details,
    /// Who says so.
    pub by: AnnouncedBy,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The recording as it is now.
    pub recording: Recording,
    /// Whether it was not known before.
    pub created: bool,
}

const LOCK: &str =
    concat!("SELECT ", columns_of!(recordings), " FROM recordings WHERE account_sid = $1 AND recording_sid = $2");
const LOCK_ON_POSTGRES: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    " FROM recordings WHERE account_sid = $1 AND recording_sid = $2 FOR UPDATE"
);

const CREATE: &str = concat!(
    "INSERT INTO recordings (account_sid, recording_sid, state, announced_by, details_confirmed, source_host, \
     call_sid, conference_sid, duration_seconds, channels, track, recording_source, recorded_at, \
     is_backfill, accepted_at, ordered_at, due_at, pending_since, asked_about_at, traceparent) \
     SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
     now_ms, coalesce($13, now_ms), CASE WHEN $3 = 'pending' THEN now_ms END, CASE WHEN $3 = 'pending' THEN now_ms END, \
     CASE WHEN $3 = 'announced' THEN now_ms END, $15 FROM clock WHERE ",
    birth::read!(),
    " ON CONFLICT DO NOTHING"
);

/// Details are filled in as long as no attempt may have used them.
const LEARN: &str = "UPDATE recordings SET call_sid = $3, conference_sid = $4, duration_seconds = $5, channels = $6, \
     track = $7, recording_source = $8, recorded_at = $9, details_confirmed = $10, \
     ordered_at = coalesce($9, accepted_at) \
     WHERE account_sid = $1 AND recording_sid = $2";

pub(super) const TO_PENDING: &str = concat!(
    "UPDATE recordings SET state = 'pending', due_at = ",
    now!(),
    ", not_before = NULL, pending_since = ",
    now!(),
    ", failed_attempts = 0, is_backfill = 0 WHERE account_sid = $1 AND recording_sid = $2"
);
const TO_ABSENT: &str =
    "UPDATE recordings SET state = 'absent', due_at = NULL WHERE account_sid = $1 AND recording_sid = $2";
pub(super) const TO_FAILED: &str = concat!(
    "UPDATE recordings SET state = 'failed', due_at = NULL, error_code = $3, error_detail = $4, error_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2"
);

/// What was found by asking counts as announced once it was.
const ANNOUNCE: &str = "UPDATE recordings SET announced_by = $3, is_backfill = 0 WHERE account_sid = $1 AND recording_sid = $2 \
                        AND announced_by NOT IN ('callback', 'put')";

/// The row, locked until the end of the transaction.
pub(super) async fn lock(session: &mut Session, id: &RecordingId) -> Result<Option<Recording>> {
    let statement = if session.is_postgres() { LOCK_ON_POSTGRES } else { LOCK };
    let row = session.row(statement, args![id.account, id.recording]).await?;
    row.as_ref().map(rows::recording).transpose()
}

impl dyn Catalog + '_ {
    /// Takes what was said of a recording. When this returns it is durable.
    ///
    /// Saying the same again changes nothing. An error leaves open whether it
    /// was taken; saying it again is then right.
    ///
    /// Nothing is taken before the bucket's markers were read.
    pub async fn accept(&self, said: &Announcement) -> Result<Accepted> {
        self.must_be_read().await?;
        let mut session = self.begin().await?;
        let Taken { accepted, moved } = take(&mut session, said).await?;
        if let Some(call) = said.details.call_sid {
            questions::clear(&mut session, said.id.account, call).await?;
        }
        session.commit().await?;
        if moved {
            self.announce_change();
        }
        Ok(accepted)
    }
}

/// What news came to, before it is committed.
pub(super) struct Taken {
    pub(super) accepted: Accepted,
    /// Whether the recording is in another state than before, or a call may answer otherwise.
    pub(super) moved: bool,
}

/// Takes what was said of a recording. Its row is locked from then on.
pub(super) async fn take(session: &mut Session, said: &Announcement) -> Result<Taken> {
    let known = match lock(session, &said.id).await? {
        Some(known) => known,
        None if create(session, said).await? => {
            let recording = reread(session, &said.id).await?;
            return Ok(Taken { accepted: Accepted { recording, created: true }, moved: true });
        }
        // Another node made it between the two statements, unless none is made yet.
        None => {
            birth::look(session).await?.must_be_read()?;
            reread(session, &said.id).await?
        }
    };
    let is_told = update(session, &known, said).await?;
    let recording = reread(session, &said.id).await?;
    let moved = is_told || recording.state != known.state;
    Ok(Taken { accepted: Accepted { recording, created: false }, moved })
}

async fn reread(session: &mut Session, id: &RecordingId) -> Result<Recording> {
    let recording = lock(session, id).await?;
    recording.ok_or_else(|| super::CatalogError::Unreadable(format!("{id} vanished in a transaction")))
}

impl Announcement {
    fn news(&self, repeated: bool) -> News {
        match &self.by {
            AnnouncedBy::Put { .. } => News::Named,
            AnnouncedBy::Callback { status, .. } => match status.as_str() {
                "completed" => News::Completed { repeated },
                "absent" => News::Absent,
                "failed" => News::Failed,
                _ => News::InProgress,
            },
            AnnouncedBy::Found { status, .. } => match status.as_str() {
                "completed" => News::Named,
                "absent" | "deleted" => News::Absent,
                "failed" => News::Failed,
                _ => News::InProgress,
            },
        }
    }

    /// Whether its call or conference is Twilio's own word.
    fn is_confirmed(&self) -> bool {
        let named = self.details.call_sid.is_some() || self.details.conference_sid.is_some();
        named && !matches!(self.by, AnnouncedBy::Put { .. })
    }

    fn announced_by(&self) -> &'static str {
        match self.by {
            AnnouncedBy::Callback { .. } => "callback",
            AnnouncedBy::Put { .. } => "put",
            AnnouncedBy::Found { by: FoundBy::Reconcile, .. } => "reconcile",
            AnnouncedBy::Found { by: FoundBy::Request, .. } => "request",
            AnnouncedBy::Found { by: FoundBy::Backfill, .. } => "backfill",
        }
    }
}

/// Makes the row; false where it is there already.
async fn create(session: &mut Session, said: &Announcement) -> Result<bool> {
    // A recording that is not known has no state to stay in: every news makes one.
    let state = react(None, said.news(false)).unwrap_or(State::Announced);
    let details = &said.details;
    let args = args![
        said.id.account,
        said.id.recording,
        state.as_str(),
        said.announced_by(),
        i64::from(said.is_confirmed()),
        said.source_host,
        details.call_sid,
        details.conference_sid,
        details.duration_seconds,
        details.channels,
        details.track.clone(),
        details.recording_source.clone(),
        details.recorded_at,
        i64::from(matches!(said.by, AnnouncedBy::Found { by: FoundBy::Backfill, .. })),
        telemetry::traceparent(),
    ];
    if session.execute(CREATE, args).await? == 0 {
        return Ok(false);
    }
    session.execute(HOLD_AS_MARKED, args![said.id.account, said.id.recording]).await?;
    feed::append(session, &said.id, "recording.accepted", json!({"by": said.announced_by()})).await?;
    note_what_was_said(session, said).await?;
    enter(session, said, state).await?;
    Ok(true)
}

/// Changes the row as the news wants it; says whether memories were told.
async fn update(session: &mut Session, known: &Recording, said: &Announcement) -> Result<bool> {
    if known.state == State::Erased {
        // Whoever asks for its call is told so, where only a marker knew of it.
        if said.is_confirmed() {
            scrub::tell_call(session, known, said.details.call_sid, said.details.conference_sid).await?;
        }
        return Ok(false);
    }
    let mut answers_otherwise = match &said.by {
        AnnouncedBy::Put { call } => names::is_other_choice(session, &said.id, *call).await?,
        _ => false,
    };
    let mut is_told = false;
    let first_time = note_what_was_said(session, said).await?;
    if first_time && !matches!(said.by, AnnouncedBy::Found { .. }) {
        session.execute(ANNOUNCE, args![said.id.account, said.id.recording, said.announced_by()]).await?;
    }
    let unused = matches!(known.state, State::Announced | State::Pending | State::Absent | State::Failed);
    if unused {
        is_told = learn(session, known, said).await?;
    }
    if let AnnouncedBy::Put { call } = &said.by
        && known.details_confirmed
    {
        is_told |= add_alias(session, &known.id, &known.details, *call).await?;
    }
    let error = known.last_error.as_ref().map(|error| error.code);
    match react(Some((known.state, error)), said.news(!first_time)) {
        Some(State::Pending) => {
            session.execute(TO_PENDING, args![said.id.account, said.id.recording]).await?;
            answers_otherwise = true;
        }
        Some(next) => enter(session, said, next).await?,
        None => {}
    }
    if answers_otherwise {
        feed::tell_memories(session, &said.id).await?;
    }
    Ok(is_told || answers_otherwise)
}

/// What a state that is not `pending` brings with it.
async fn enter(session: &mut Session, said: &Announcement, state: State) -> Result<()> {
    let (AnnouncedBy::Callback { error_code, .. } | AnnouncedBy::Found { error_code, .. }) = &said.by else {
        return Ok(());
    };
    let id = &said.id;
    let detail = json!({"twilio_error_code": error_code});
    match state {
        State::Absent => {
            session.execute(TO_ABSENT, args![id.account, id.recording]).await?;
            feed::append(session, id, "recording.absent", detail).await
        }
        State::Failed => {
            let code = error_code.as_deref().map_or_else(String::new, |code| format!(" (error {code})"));
            let words = format!("Twilio says that the recording failed{code}");
            let args = args![id.account, id.recording, ErrorCode::TwilioFailed.as_str(), words.as_str()];
            session.execute(TO_FAILED, args).await?;
            let detail = json!({"code": ErrorCode::TwilioFailed, "detail": words, "twilio_error_code": error_code});
            feed::append_failed(session, id, ErrorCode::TwilioFailed, detail).await
        }
        _ => Ok(()),
    }
}

/// Notes the news; says whether it was told for the first time. A PUT also
/// chooses the recording for its call.
async fn note_what_was_said(session: &mut Session, said: &Announcement) -> Result<bool> {
    let id = &said.id;
    match &said.by {
        AnnouncedBy::Callback { status, error_code } => {
            let detail = json!({"status": status, "twilio_error_code": error_code});
            feed::tell_once(session, id, "callback", detail, &format!("callback {status}")).await
        }
        AnnouncedBy::Put { call } => {
            names::choose(session, id, *call).await?;
            feed::tell_once(session, id, "put", json!({"call_sid": call}), &format!("put {call}")).await
        }
        AnnouncedBy::Found { by: _, status, error_code } => {
            let detail = json!({"status": status, "twilio_error_code": error_code});
            feed::tell_once(session, id, said.announced_by(), detail, &format!("found {status}")).await
        }
    }
}

/// Says whether a call may answer otherwise.
async fn learn(session: &mut Session, known: &Recording, said: &Announcement) -> Result<bool> {
    let mut details = known.details.clone().updated_by(said.details.clone());
    let confirms = said.is_confirmed() && !known.details_confirmed;
    if confirms {
        // What the application took for the call is not it, where Twilio says otherwise.
        details.call_sid = said.details.call_sid;
    } else {
        details.call_sid = known.details.call_sid;
        details.conference_sid = known.details.conference_sid;
    }
    let is_told = write_details(session, known, &details, known.details_confirmed || confirms).await?;
    if confirms {
        keep_names(session, &Recording { details, ..known.clone() }).await?;
    }
    Ok(is_told)
}

/// Writes what is known of a recording; says whether memories were told, because a
/// call may answer otherwise.
pub(super) async fn write_details(
    session: &mut Session,
    known: &Recording,
    details: &Details,
    confirmed: bool,
) -> Result<bool> {
    let id = &known.id;
    let args = args![
        id.account,
        id.recording,
        details.call_sid,
        details.conference_sid,
        details.duration_seconds,
        details.channels,
        details.track.clone(),
        details.recording_source.clone(),
        details.recorded_at,
        i64::from(confirmed),
    ];
    session.execute(LEARN, args).await?;
    // Its calls, its place among their recordings, and whether the SID is Twilio's own.
    let named = |details: &Details| (details.call_sid, details.conference_sid, details.recorded_at);
    let is_other = named(details) != named(&known.details) || confirmed != known.details_confirmed;
    if is_other {
        feed::tell_memories(session, id).await?;
    }
    Ok(is_other)
}
