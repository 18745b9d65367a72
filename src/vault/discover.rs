//! Asking Twilio for a call that nobody has told of.
//!
//! A question is one round for one call and one account: the call's own
//! recordings; else the call, for its parent; then the parent's recordings, in
//! the catalog first. It is asked under a right that one node has at a time,
//! and "nothing" is remembered for all nodes, so however many want a call,
//! Twilio is asked once. What is found is accepted, and the call that was asked
//! for becomes another name of the one that has it.
//!
//! "Nothing" is only ever Twilio's word; where Twilio could not be asked,
//! nothing is remembered.

use std::time::Duration;

use super::Vault;
use super::inquiry::Answer;
use crate::catalog::{AnnouncedBy, Announcement, CatalogError, FoundBy, Question, Settled, Urgency};
use crate::domain::recording::Recording;
use crate::domain::sid::{AccountSid, CallSid};
use crate::telemetry;
use crate::twilio::api::{Described, Listed, Listing};
use crate::twilio::media::MediaError;
use crate::twilio::source::SourceHost;

/// The right to ask. A node that died with it keeps others waiting for so long.
const LEASE: Duration = Duration::from_secs(30);
/// The longest that Twilio may take for a round: the right must not run out before.
const ROUND_MAX: Duration = Duration::from_secs(25);
/// How long the first "nothing" holds; each that follows, twice as long.
const QUIET_FIRST: Duration = Duration::from_secs(10);
/// The longest that a "nothing" holds.
const QUIET_MAX: Duration = Duration::from_secs(3600);
/// An answer that ended so long ago does not count any more.
const FORGET_AFTER: Duration = QUIET_MAX;
/// What a round came to.
enum Told {
    /// The catalog had learnt of the call just before.
    Already,
    /// Twilio has these, of the call or of its parent.
    Recordings(Vec<Announcement>),
    /// The parent is known, and has these.
    Known(Vec<Recording>),
    /// Twilio knows nothing.
    Nothing,
    /// News of the call came, or the right was lost.
    Overtaken,
}

/// Why a round came to nothing that could be remembered.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Twilio(#[from] MediaError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("Twilio took longer than {} s", ROUND_MAX.as_secs())]
    TooSlow,
    #[error("this node is stopping")]
    Stopping,
}

impl Vault {
    /// Asks one question, if this node gets the right to. Gives the answer, and
    /// what Twilio said where it refused one.
    pub(super) async fn ask(&self, account: AccountSid, call: CallSid) -> (Answer, Option<MediaError>) {
        let stopping = &self.questions.stopping;
        let Some(turns) = self.questions.turns.get(&account) else { return (Answer::Nothing, None) };
        let _turn = tokio::select! {
            biased;
            () = stopping.cancelled() => return (Answer::Unavailable, None),
            turn = turns.acquire() => turn,
        };
        let question = match self.right_to_ask(account, call).await {
            Ok(question) => question,
            Err(answer) => return (answer, None),
        };
        let told = tokio::select! {
            told = self.round(&question) => told,
            () = tokio::time::sleep(ROUND_MAX) => Err(RoundError::TooSlow),
            () = stopping.cancelled() => Err(RoundError::Stopping),
        };
        let settled = match told {
            Ok(told) => self.settle_question(&question, told).await,
            Err(error) => Err(error),
        };
        match settled {
            Ok((answer, outcome)) => {
                telemetry::question(outcome);
                (answer, None)
            }
            Err(error) => (Answer::Unavailable, self.give_up_question(&question, error).await),
        }
    }

    /// The right to ask, or the answer where there is none to be had.
    async fn right_to_ask(&self, account: AccountSid, call: CallSid) -> Result<Question, Answer> {
        let away = |error: CatalogError| {
            tracing::warn!(%account, %call, %error, "Twilio is not asked for a call");
            Answer::Unavailable
        };
        if self.catalog.is_left_alone(account).await.map_err(away)? {
            telemetry::question("unavailable");
            return Err(Answer::Unavailable);
        }
        let granted = self.catalog.ask(account, call, LEASE, FORGET_AFTER).await.map_err(away)?;
        granted.ok_or(Answer::Elsewhere)
    }

    /// One round at Twilio.
    async fn round(&self, question: &Question) -> Result<Told, RoundError> {
        let Question { account, call, .. } = *question;
        // Learnt between the request's look and the grant.
        if !self.catalog.call(call, Some(&[account])).await?.is_empty() {
            return Ok(Told::Already);
        }
        let own = self.recordings_of(&account, call).await?;
        if !own.is_empty() {
            return Ok(Told::Recordings(own));
        }
        let asked = self.in_turn(account, Urgency::Urgent, self.twilio.parent(&account, call)).await?;
        let Some(parent) = asked?.flatten() else { return Ok(Told::Nothing) };
        if self.catalog.note_parent(question, parent).await? == Settled::Stale {
            return Ok(Told::Overtaken);
        }
        if let Some(known) = self.catalog.call(parent, Some(&[account])).await?.pop() {
            return Ok(Told::Known(known.recordings));
        }
        let theirs = self.recordings_of(&account, parent).await?;
        Ok(if theirs.is_empty() { Told::Nothing } else { Told::Recordings(theirs) })
    }

    /// What Twilio has of a call. The first page is enough: it has a thousand.
    async fn recordings_of(&self, account: &AccountSid, call: CallSid) -> Result<Vec<Announcement>, RoundError> {
        let page =
            self.in_turn(*account, Urgency::Urgent, self.twilio.list(account, Listing::OfCall(call), None)).await??;
        let source_host = self.twilio.home(account).and_then(SourceHost::name);
        let listed = page.map(|page| page.recordings).unwrap_or_default();
        let there = listed.into_iter().filter(|listed| listed.described.status != "deleted");
        Ok(there.map(|listed| announcement(listed, call, source_host)).collect())
    }

    /// Keeps what was told. Gives the answer, and what it is counted as.
    async fn settle_question(&self, question: &Question, told: Told) -> Result<(Answer, &'static str), RoundError> {
        match &told {
            Told::Already => self.catalog.found_known(question, &[]).await?,
            Told::Known(known) => self.catalog.found_known(question, known).await?,
            Told::Recordings(told) => self.catalog.found(question, told).await?,
            Told::Nothing => {
                let quiet = next_quiet(question.quiet_before);
                return Ok(match self.catalog.found_nothing(question, quiet).await? {
                    Settled::Done => (Answer::Nothing, "nothing"),
                    Settled::Stale => (Answer::Elsewhere, "overtaken"),
                });
            }
            Told::Overtaken => return Ok((Answer::Elsewhere, "overtaken")),
        }
        Ok((Answer::Found, if matches!(told, Told::Already) { "overtaken" } else { "found" }))
    }

    /// Twilio could not be asked, or its answer not be kept: others may ask.
    /// Gives what Twilio said, where it is what refused.
    async fn give_up_question(&self, question: &Question, error: RoundError) -> Option<MediaError> {
        let Question { account, call, .. } = question;
        let is_stopping = matches!(error, RoundError::Stopping);
        telemetry::question(if is_stopping { "handed_back" } else { "unavailable" });
        tracing::warn!(%account, %call, %error, "a call was asked for in vain");
        if let Err(error) = self.catalog.withdraw(question).await {
            tracing::debug!(%account, %call, %error, "the right to ask was not given back; it will run out");
        }
        match error {
            RoundError::Twilio(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// What Twilio's list says of a recording that it has under `call`.
fn announcement(listed: Listed, call: CallSid, source_host: Option<&'static str>) -> Announcement {
    let Described { mut details, status, error_code, encryption: _ } = listed.described;
    if details.call_sid.is_none() && details.conference_sid.is_none() {
        details.call_sid = Some(call);
    }
    let by = AnnouncedBy::Found { by: FoundBy::Request, status, error_code };
    Announcement { id: listed.id, source_host, details, by }
}

/// How long a "nothing" holds after one that held for `before`.
fn next_quiet(before: Duration) -> Duration {
    (before * 2).clamp(QUIET_FIRST, QUIET_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_holds_for_ten_seconds_and_then_twice_as_long_up_to_an_hour() {
        let all: Vec<u64> = std::iter::successors(Some(next_quiet(Duration::ZERO)), |before| Some(next_quiet(*before)))
            .map(|quiet| quiet.as_secs())
            .take(11)
            .collect();
        assert_eq!(all, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]);
    }
}
