//! Recordings of which Twilio told that it records, and then nothing more.
//!
//! Each is asked about when nothing was heard of it for a while. It is
//! claimed for that, so that one node asks, and about one of an account at a time;
//! what a node that died was to ask is asked again.

use std::time::Duration;

use serde_json::json;
use sqlx::AssertSqlSafe;

use super::accept::{TO_FAILED, lock};
use super::columns::columns_of;
use super::reconcile::may_be_asked;
use super::sql::{args, now, one_of};
use super::{Catalog, Result, feed, rows};
use crate::domain::recording::{ErrorCode, Recording, RecordingId, State};
use crate::domain::sid::AccountSid;

/// How long a node may take to ask: longer than any request to Twilio's API.
const ASKING_MAX: Duration = Duration::from_secs(30);

/// An announced recording that this node is to ask about.
#[derive(Debug, Clone, PartialEq)]
pub struct Announced {
    /// The recording.
    pub recording: Recording,
    /// How long it has been known.
    pub known_for: Duration,
}

/// An announced recording is due `$1` after it was last asked about.
const DUE_ACCOUNT_OF: &str = concat!(
    "SELECT account_sid FROM reconciles c WHERE ",
    may_be_asked!(),
    " AND c.asking_from <= ",
    now!(),
    " AND EXISTS (SELECT 1 FROM recordings r WHERE r.account_sid = c.account_sid AND r.state = 'announced' \
     AND r.asked_about_at <= ",
    now!(),
    " - $1)"
);
const DUE: &str = concat!(
    "SELECT ",
    columns_of!(recordings),
    ", ",
    now!(),
    " AS now_ms FROM recordings WHERE account_sid = $1 AND state = 'announced' AND asked_about_at <= ",
    now!(),
    " - $2 ORDER BY asked_about_at LIMIT 1"
);
const ASK: &str =
    concat!("UPDATE recordings SET asked_about_at = ", now!(), " WHERE account_sid = $1 AND recording_sid = $2");
const WAIT: &str = concat!("UPDATE reconciles SET asking_from = ", now!(), " + $2 WHERE account_sid = $1");

impl dyn Catalog + '_ {
    /// Claims the next one to ask about, of the account that was left alone for longest.
    /// [`Self::asked_about`] ends it.
    pub async fn claim_announced(&self, accounts: &[AccountSid], every: Duration) -> Result<Option<Announced>> {
        let mut session = self.begin().await?;
        let mut args = args![every];
        let filter = one_of("c.account_sid", accounts.iter().copied(), &mut args);
        // Another node is about to ask there.
        let locking = session.for_update_skip_locked();
        let sql = format!("{DUE_ACCOUNT_OF}{filter} ORDER BY c.asking_from LIMIT 1{locking}");
        let Some(due) = session.row(AssertSqlSafe(sql), args).await? else {
            session.rollback().await?;
            return Ok(None);
        };
        let account: AccountSid = due.parse("account_sid")?;
        let sql = format!("{DUE}{locking}");
        let Some(row) = session.row(AssertSqlSafe(sql), args![account, every]).await? else {
            session.rollback().await?;
            return Ok(None);
        };
        let recording = rows::recording(&row)?;
        let known_for = row.time("now_ms")?.duration_since(recording.accepted_at);
        session.execute(ASK, args![account, recording.id.recording]).await?;
        session.execute(WAIT, args![account, ASKING_MAX]).await?;
        session.commit().await?;
        Ok(Some(Announced { recording, known_for: Duration::try_from(known_for).unwrap_or_default() }))
    }

    /// It was asked about. The account's next one has to wait for `pause`.
    pub async fn asked_about(&self, account: AccountSid, pause: Duration) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(WAIT, args![account, pause]).await?;
        session.commit().await
    }

    /// Gives up an announced recording. Does nothing where it is not announced any more.
    pub async fn give_up_announced(&self, id: &RecordingId, code: ErrorCode, detail: &str) -> Result<()> {
        let mut session = self.begin().await?;
        let known = lock(&mut session, id).await?;
        if known.is_none_or(|known| known.state != State::Announced) {
            return session.rollback().await;
        }
        session.execute(TO_FAILED, args![id.account, id.recording, code.as_str(), detail]).await?;
        feed::append_failed(&mut session, id, code, json!({"code": code, "detail": detail})).await?;
        session.commit().await?;
        self.announce_change();
        Ok(())
    }
}
