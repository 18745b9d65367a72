//! What a scrub asks and notes: what rows name, which look again is owed, and the
//! lease under which one recording is mended.
//!
//! Nothing here decides what is wrong.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::accept::lock;
use super::claim::{Claim, Claimant, claim_row};
use super::columns::columns_of;
use super::duty::{Duty, at_rest, grant};
use super::lease::Lease;
use super::names::keep_names;
use super::sql::{Row, Session, args, now, one_of};
use super::{Catalog, Result, birth, recheck, rows};
use crate::domain::object_key::Marker;
use crate::domain::recording::{Details, Recording, RecordingId, State};
use crate::domain::sid::{CallSid, ConferenceSid, RecordingSid};

/// What a row says of what lies in the bucket for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InHand {
    /// Which recording.
    pub id: RecordingId,
    /// Where it stands.
    pub state: State,
    /// Its newest epoch.
    pub epoch: i64,
    /// The object that it names.
    pub key: Option<String>,
    /// Whether its call is known by Twilio's own word: only in that folder is it looked for.
    pub is_confirmed: bool,
    /// Whether the bucket is to be looked at again for it anyhow.
    pub is_owed: bool,
    /// Whether it is held.
    pub hold: bool,
    /// Whether the marker of its hold is still to be brought in line with it.
    pub owes_hold_marker: bool,
    /// How often that was begun.
    pub hold_marker_epoch: i64,
    /// Whether it was erased and the marker of that was written.
    pub is_erase_marked: bool,
}

const OF: &str = concat!("SELECT ", columns_of!(recordings), ", ", now!(), " AS now_ms FROM recordings WHERE 1 = 1");
const COUNT: &str = "SELECT count(*) AS known, count(CASE WHEN state = 'stored' THEN 1 END) AS stored FROM recordings";
const AT_REST: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    ", ",
    now!(),
    " AS now_ms FROM recordings WHERE account_sid = $1 AND recording_sid = $2 AND ",
    at_rest!()
);
const DUE: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    ", ",
    now!(),
    " AS now_ms FROM recordings WHERE account_sid = $1 AND recording_sid = $2 AND state = 'pending' AND due_at <= ",
    now!(),
    " AND (duty_until IS NULL OR duty_until <= ",
    now!(),
    ")"
);
/// Nothing was looked for there before, and its marker did not name it: whoever is at
/// it begins anew.
const TELL_CALL: &str = concat!(
    "UPDATE recordings SET call_sid = $3, conference_sid = $4, details_confirmed = 1, epoch = epoch + 1, \
     duty_until = NULL, erase_cleared = 0, erase_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2 AND state = 'erased' AND details_confirmed = 0"
);

/// The same where its marker is gone: what else of it is in the bucket is looked for anew.
const OWE_ERASED_MARKER: &str = concat!(
    "UPDATE recordings SET epoch = epoch + 1, duty_until = NULL, erase_marked = 0, erase_cleared = 0, erase_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2 AND state = 'erased' AND erase_marked = 1"
);
const OWE_HELD_MARKER: &str = concat!(
    "UPDATE recordings SET hold_marker_due_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2 AND hold = 1 AND hold_marker_due_at IS NULL"
);

/// Of the next recordings by their SIDs, which are random: whatever is asked for, and however
/// few are stored, it is soon answered.
macro_rules! some_stored {
    ($where:literal) => {
        concat!(
            "SELECT object_key FROM (SELECT state, object_key FROM recordings WHERE recording_sid ",
            $where,
            " $1 ORDER BY recording_sid LIMIT 1000) AS seen WHERE state = 'stored' AND object_key IS NOT NULL LIMIT $2"
        )
    };
}
const STORED_BEHIND: &str = some_stored!(">");
const STORED_FROM_THE_FIRST: &str = some_stored!("<=");

impl dyn Catalog + '_ {
    /// The objects of some stored recordings, at most so many: of those behind that SID,
    /// and then from the first one on.
    pub async fn some_stored(&self, behind: &str, at_most: usize) -> Result<Vec<String>> {
        let mut session = self.read().await?;
        let mut keys = Vec::new();
        for statement in [STORED_BEHIND, STORED_FROM_THE_FIRST] {
            let more = i64::try_from(at_most - keys.len()).unwrap_or(i64::MAX);
            let rows = session.rows(statement, args![behind, more]).await?;
            keys.extend(rows.iter().map(|row| row.get::<String>("object_key")).collect::<Result<Vec<_>>>()?);
        }
        Ok(keys)
    }

    /// What the rows of these recordings say, by recording: several accounts may
    /// have one of that SID.
    pub async fn in_hand(
        &self,
        recordings: impl IntoIterator<Item = RecordingSid>,
    ) -> Result<HashMap<RecordingSid, Vec<InHand>>> {
        let mut args = args![];
        let filter = one_of("recording_sid", recordings, &mut args);
        if args.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = self.read().await?.rows(AssertSqlSafe(format!("{OF}{filter}")), args).await?;
        let mut known: HashMap<RecordingSid, Vec<InHand>> = HashMap::new();
        for row in &rows {
            let found = in_hand(row)?;
            known.entry(found.id.recording).or_default().push(found);
        }
        Ok(known)
    }

    /// How many recordings there are, and how many of them are stored.
    pub async fn count_recordings(&self) -> Result<(i64, i64)> {
        let row = self.read().await?.row(COUNT, args![]).await?;
        row.map_or(Ok((0, 0)), |row| Ok((row.get("known")?, row.get("stored")?)))
    }

    /// Notes that something lies in the bucket for a recording which its row does
    /// not name, in the folder of that call or conference; attempts from `epoch` on
    /// may have staged something. Looked at `after` that time.
    pub async fn owe_for_find(
        &self,
        id: &RecordingId,
        epoch: i64,
        home: (Option<CallSid>, Option<ConferenceSid>),
        after: Duration,
    ) -> Result<()> {
        let mut session = self.begin().await?;
        if let Some(known) = lock(&mut session, id).await? {
            tell_call(&mut session, &known, home.0, home.1).await?;
            recheck::owe(&mut session, &Lease { id: *id, epoch }, after).await?;
        }
        session.commit().await
    }

    /// Notes that the marker of a recording that was erased or is held has to be written
    /// again, as its row still asks for it.
    pub async fn owe_marker(&self, id: &RecordingId, marker: Marker) -> Result<()> {
        let owe = match marker {
            Marker::Erased => OWE_ERASED_MARKER,
            Marker::Held => OWE_HELD_MARKER,
        };
        let mut session = self.begin().await?;
        session.execute(owe, args![id.account, id.recording]).await?;
        session.commit().await?;
        self.announce_change();
        Ok(())
    }

    /// Grants the lease of a recheck of one recording, whether one is owed or not.
    /// None where it is not at rest.
    pub async fn begin_duty(&self, id: &RecordingId, duration: Duration) -> Result<Option<Duty>> {
        let mut session = self.begin().await?;
        let row = one_row(&mut session, AT_REST, id).await?;
        let duty = match &row {
            Some(row) => Some(grant(&mut session, row, duration).await?),
            None => None,
        };
        session.commit().await?;
        Ok(duty)
    }

    /// Claims that recording, if it is due and Twilio likes.
    pub async fn claim_named(&self, claimant: &Claimant, id: &RecordingId) -> Result<Option<Claim>> {
        let mut session = self.begin().await?;
        let is_indexed = birth::look(&mut session).await?.must_be_read()?.is_indexed;
        let row = one_row(&mut session, DUE, id).await?;
        let claim = match &row {
            Some(row) => claim_row(&mut session, claimant, row).await?,
            None => None,
        };
        session.commit().await?;
        Ok(claim.map(|claim| Claim { look_first: claim.look_first || !is_indexed, ..claim }))
    }
}

async fn one_row(session: &mut Session, statement: &'static str, id: &RecordingId) -> Result<Option<Row>> {
    let locking = session.for_update_skip_locked();
    session.row(AssertSqlSafe(format!("{statement}{locking}")), args![id.account, id.recording]).await
}

fn in_hand(row: &Row) -> Result<InHand> {
    let recording = rows::recording(row)?;
    // A duty that nobody ended is over by its time: no look again comes of it.
    let (is_at_it, now) = (row.time_opt("duty_until")?, row.time("now_ms")?);
    let owed = [row.time_opt("recheck_due_at")?, row.time_opt("erase_due_at")?, is_at_it.filter(|until| *until > now)];
    Ok(InHand {
        id: recording.id,
        state: recording.state,
        epoch: recording.epoch,
        is_confirmed: recording.details_confirmed,
        key: recording.object.map(|object| object.key),
        is_owed: owed.iter().any(Option::is_some),
        hold: recording.hold,
        owes_hold_marker: row.get::<Option<i64>>("hold_marker_due_at")?.is_some(),
        hold_marker_epoch: row.get("hold_marker_epoch")?,
        is_erase_marked: recording.state == State::Erased && row.get::<i64>("erase_marked")? != 0,
    })
}

/// An erased row that a marker made knows no call, and one that was only PUT maybe
/// another leg: it learns where its objects lie, and is cleared away there.
pub(super) async fn tell_call(
    session: &mut Session,
    known: &Recording,
    call: Option<CallSid>,
    conference: Option<ConferenceSid>,
) -> Result<()> {
    let is_told = call.is_some() || conference.is_some();
    if known.state != State::Erased || known.details_confirmed || !is_told {
        return Ok(());
    }
    session.execute(TELL_CALL, args![known.id.account, known.id.recording, call, conference]).await?;
    let details = Details { call_sid: call, conference_sid: conference, ..known.details.clone() };
    keep_names(session, &Recording { details, details_confirmed: true, ..known.clone() }).await
}
