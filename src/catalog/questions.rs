//! Who may ask Twilio for a call that is not known, and what came of it.
//!
//! One row a call and account: while it is open, one node has the right to ask;
//! afterwards it keeps the answer "nothing" for a while, for all nodes. A call
//! that becomes known loses its row in the same transaction, and so does a call
//! of which it is the parent: whoever still asks for it then is told that the
//! right is gone, and writes no "nothing" over the news.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::accept::{Announcement, take};
use super::lease::Settled;
use super::names::add_alias;
use super::sql::{Row, Session, Value, args, now, one_of};
use super::{Catalog, Result};
use crate::domain::recording::Recording;
use crate::domain::sid::{AccountSid, CallSid};

/// Rows that are of no more use are removed so many at a time, whenever a right
/// is granted: more than one, so that they become fewer.
const FORGOTTEN_AT_ONCE: i64 = 10;

/// The right to ask Twilio for one call of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The account.
    pub account: AccountSid,
    /// The call.
    pub call: CallSid,
    /// How long the last "nothing" held; zero where there was none.
    pub quiet_before: Duration,
    granted_at: i64,
}

/// Where a question stands that need not be asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It is being asked.
    Open,
    /// It was asked: Twilio knows nothing.
    Nothing,
}

/// Nothing is granted while a right or an answer holds.
const GRANT: &str = "INSERT INTO questions (account_sid, call_sid, is_open, granted_at, until_at, quiet_ms) \
     SELECT $1, $2, 1, now_ms, now_ms + $3, 0 FROM clock WHERE 1 = 1 \
     ON CONFLICT (account_sid, call_sid) DO UPDATE \
     SET is_open = 1, granted_at = excluded.granted_at, until_at = excluded.until_at, parent_sid = NULL \
     WHERE questions.until_at <= excluded.granted_at RETURNING granted_at, quiet_ms";
/// What is locked is another node's to remove.
const FORGET: &str = "DELETE FROM questions WHERE (account_sid, call_sid) IN \
     (SELECT account_sid, call_sid FROM questions WHERE until_at < (SELECT now_ms FROM clock) - $1 \
     ORDER BY until_at LIMIT $2)";
const FORGET_ON_POSTGRES: &str = "DELETE FROM questions WHERE (account_sid, call_sid) IN \
     (SELECT account_sid, call_sid FROM questions WHERE until_at < (SELECT now_ms FROM clock) - $1 \
     ORDER BY until_at LIMIT $2 FOR UPDATE SKIP LOCKED)";
const ASKED: &str = concat!("SELECT account_sid, is_open FROM questions WHERE call_sid = $1 AND until_at > ", now!());

/// What every update of a question ends with.
macro_rules! granted {
    () => {
        " WHERE account_sid = $1 AND call_sid = $2 AND granted_at = $3 AND is_open = 1"
    };
}

const NOTE_PARENT: &str = concat!("UPDATE questions SET parent_sid = $4", granted!());
const NOTHING: &str =
    concat!("UPDATE questions SET is_open = 0, quiet_ms = $4, until_at = ", now!(), " + $4", granted!());
/// The next one may ask at once; what came of it before counts on.
const WITHDRAW: &str = concat!("UPDATE questions SET is_open = 0, until_at = ", now!(), granted!());

const ANSWERED: &str = "DELETE FROM questions WHERE account_sid = $1 AND call_sid = $2";
/// Locked in an order: two that clear the same rows must not wait for each other.
const CLEAR: &str = "DELETE FROM questions WHERE (account_sid, call_sid) IN (SELECT account_sid, call_sid FROM questions \
     WHERE (account_sid = $1 AND call_sid = $2) OR (account_sid = $1 AND parent_sid = $2))";
const CLEAR_ON_POSTGRES: &str = "DELETE FROM questions WHERE (account_sid, call_sid) IN \
     (SELECT account_sid, call_sid FROM questions \
     WHERE (account_sid = $1 AND call_sid = $2) OR (account_sid = $1 AND parent_sid = $2) \
     ORDER BY call_sid FOR UPDATE)";

impl Question {
    fn args(&self) -> Vec<Value> {
        args![self.account, self.call, self.granted_at]
    }

    fn args_and(&self, more: Vec<Value>) -> Vec<Value> {
        self.args().into_iter().chain(more).collect()
    }
}

impl dyn Catalog + '_ {
    /// Where the question for a call stands in each of these accounts. One that
    /// is not in the answer may be asked.
    pub async fn questions(&self, call: CallSid, accounts: &[AccountSid]) -> Result<Vec<(AccountSid, Asked)>> {
        let mut args = args![call];
        let filter = one_of("account_sid", accounts.iter().copied(), &mut args);
        let rows = self.read().await?.rows(AssertSqlSafe(format!("{ASKED}{filter}")), args).await?;
        let asked = |row: &Row| -> Result<(AccountSid, Asked)> {
            let is_open = row.get::<i64>("is_open")? != 0;
            Ok((row.parse("account_sid")?, if is_open { Asked::Open } else { Asked::Nothing }))
        };
        rows.iter().map(asked).collect()
    }

    /// Asks for the right to ask Twilio for a call, for as long as `lease`. None
    /// where another has it, or an answer holds.
    ///
    /// By the way a few rows are removed that ended more than `forget_after` ago.
    pub async fn ask(
        &self,
        account: AccountSid,
        call: CallSid,
        lease: Duration,
        forget_after: Duration,
    ) -> Result<Option<Question>> {
        self.must_be_read().await?;
        let mut session = self.begin().await?;
        let Some(granted) = session.row(GRANT, args![account, call, lease]).await? else {
            session.rollback().await?;
            return Ok(None);
        };
        let quiet_ms: i64 = granted.get("quiet_ms")?;
        let quiet_before = Duration::from_millis(quiet_ms.unsigned_abs());
        let granted_at = granted.get("granted_at")?;
        let forget = if session.is_postgres() { FORGET_ON_POSTGRES } else { FORGET };
        session.execute(forget, args![forget_after, FORGOTTEN_AT_ONCE]).await?;
        session.commit().await?;
        Ok(Some(Question { account, call, quiet_before, granted_at }))
    }

    /// Remembers which call is asked for next: news of that one ends the question too.
    pub async fn note_parent(&self, question: &Question, parent: CallSid) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(NOTE_PARENT, question.args_and(args![parent])).await?;
        session.commit().await?;
        Ok(settled(changed))
    }

    /// Twilio told of these recordings, under the call or under its parent: they
    /// are accepted, and the call becomes another name of theirs. This holds
    /// whoever has the right to ask by now.
    ///
    /// An error leaves open whether they were; saying it again is then right.
    pub async fn found(&self, question: &Question, told: &[Announcement]) -> Result<()> {
        self.must_be_read().await?;
        let mut session = self.begin().await?;
        // In an order: two that accept the same must not wait for each other.
        let mut told: Vec<&Announcement> = told.iter().collect();
        told.sort_by_key(|said| said.id.recording);
        for said in &told {
            take(&mut session, said).await?;
            add_alias(&mut session, &said.id, &said.details, question.call).await?;
        }
        let mut calls: Vec<CallSid> = told.iter().filter_map(|said| said.details.call_sid).collect();
        calls.sort();
        calls.dedup();
        for call in calls {
            clear(&mut session, question.account, call).await?;
        }
        self.answered(session, question).await
    }

    /// The call is another name of these recordings' own, which were known.
    pub async fn found_known(&self, question: &Question, known: &[Recording]) -> Result<()> {
        let mut session = self.begin().await?;
        for recording in known {
            add_alias(&mut session, &recording.id, &recording.details, question.call).await?;
        }
        self.answered(session, question).await
    }

    async fn answered(&self, mut session: Session, question: &Question) -> Result<()> {
        session.execute(ANSWERED, args![question.account, question.call]).await?;
        session.commit().await?;
        self.announce_change();
        Ok(())
    }

    /// Twilio knows nothing: that is the answer for as long as `quiet`, unless
    /// news of the call came, or the right was lost.
    pub async fn found_nothing(&self, question: &Question, quiet: Duration) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(NOTHING, question.args_and(args![quiet])).await?;
        session.commit().await?;
        self.announce_change();
        Ok(settled(changed))
    }

    /// Twilio could not be asked: the next one may try at once.
    pub async fn withdraw(&self, question: &Question) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(WITHDRAW, question.args()).await?;
        session.commit().await?;
        self.announce_change();
        Ok(settled(changed))
    }
}

/// A call is known from now on: no question for it, nor for a leg of it, has an
/// answer any more, or the right to one.
pub(super) async fn clear(session: &mut Session, account: AccountSid, call: CallSid) -> Result<()> {
    let statement = if session.is_postgres() { CLEAR_ON_POSTGRES } else { CLEAR };
    session.execute(statement, args![account, call]).await?;
    Ok(())
}

fn settled(changed: u64) -> Settled {
    if changed == 1 { Settled::Done } else { Settled::Stale }
}
