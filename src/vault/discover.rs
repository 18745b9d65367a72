//! Asking Twilio for a call that nobody has told of.
//!
//! A question is one round for one call and one account: the call's own
//! recordings; else the call, for its parent; then the parent's recordings, in
//! the catalog first. It is asked under a right that one node has at a time,
//! and "nothing" is remembered for all nodes, so however many want a call,
//! Twilio is asked once. What is found is accepted, and the call that was asked
//! for becomes another name of the one that has it.
//!
//! Within a node all who want the same call share one question. It belongs to
//! the node: it goes on when nobody waits any more, and ends with the node.
//! "Nothing" is only ever Twilio's word; where Twilio could not be asked,
//! nothing is remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Vault;
use crate::catalog::{AnnouncedBy, Announcement, Asked, CatalogError, FoundBy, Question, Settled};
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
/// Rounds that one node has under way for one account: most of what Twilio
/// allows is for fetching.
const ROUNDS_MAX: usize = 4;
/// Questions of one account that one node has open, those that wait for their
/// turn included. Whoever asks for calls that do not exist fills no more than this.
const OPEN_MAX: usize = 64;
/// How long the end of a node may take to give its rights back.
const END_WITHIN: Duration = Duration::from_secs(2);

/// How a question ended on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The catalog knows the call now.
    Found,
    /// Twilio knows nothing.
    Nothing,
    /// Twilio could not be asked.
    Unavailable,
    /// Another has the right, or news was quicker: the catalog tells.
    Elsewhere,
}

/// A question that this node has open; closed without an answer, nobody asks it any more.
type Open = watch::Receiver<Option<Answer>>;

/// The questions of a node.
pub(super) struct Questions {
    open: Mutex<HashMap<AccountSid, HashMap<CallSid, Open>>>,
    turns: HashMap<AccountSid, Semaphore>,
    running: TaskTracker,
    stopping: CancellationToken,
}

/// What one request has asked, by account.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    joined: HashMap<AccountSid, Joined>,
}

#[derive(Debug)]
struct Joined {
    open: Open,
    /// The answer, as far as it was seen.
    seen: Option<Answer>,
}

/// Where a request stands with all the accounts that it may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inquired {
    /// Some have not answered.
    Open,
    /// Too much is being asked already.
    Busy,
    /// All answered that there is nothing.
    Nothing,
    /// None has it that answered, but some could not be asked.
    Unavailable,
}

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

impl Questions {
    pub(super) fn new(accounts: &[AccountSid]) -> Self {
        Self {
            open: Mutex::default(),
            turns: accounts.iter().map(|account| (*account, Semaphore::new(ROUNDS_MAX))).collect(),
            running: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<AccountSid, HashMap<CallSid, Open>>> {
        self.open.lock().expect("nothing panics while it holds the questions")
    }
}

impl Joined {
    fn look(&mut self) -> Option<Answer> {
        let answer = *self.open.borrow();
        // Whoever asked it is gone.
        let gone = self.open.has_changed().is_err().then_some(Answer::Unavailable);
        self.seen = answer.or(gone);
        self.seen
    }
}

impl Inquiry {
    /// Returns when a question has ended that had not when it was last looked at.
    pub(super) async fn ended(&mut self) {
        let open = self.joined.values_mut().filter(|joined| joined.seen.is_none());
        let ends: Vec<_> = open.map(|joined| Box::pin(joined.open.wait_for(Option::is_some))).collect();
        match ends.is_empty() {
            true => std::future::pending().await,
            false => drop(futures::future::select_all(ends).await),
        }
    }
}

/// A question under way; whatever ends it, it is open no longer.
struct Asking {
    vault: Arc<Vault>,
    account: AccountSid,
    call: CallSid,
    answer: watch::Sender<Option<Answer>>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(open) = self.vault.questions.open().get_mut(&self.account) {
            open.remove(&self.call);
        }
    }
}

impl Vault {
    /// Has Twilio asked for a call that the catalog does not know, in each
    /// account that is configured and may be seen, and says where that stands.
    /// Never waits for Twilio.
    pub(super) async fn inquire(
        self: &Arc<Self>,
        call: CallSid,
        visible: Option<&[AccountSid]>,
        inquiry: &mut Inquiry,
    ) -> Result<Inquired, CatalogError> {
        let joined = &mut inquiry.joined;
        joined.retain(|_, joined| joined.look() != Some(Answer::Elsewhere));
        let asked = self.accounts.iter().filter(|account| visible.is_none_or(|visible| visible.contains(account)));
        let others: Vec<AccountSid> = asked.filter(|account| !joined.contains_key(*account)).copied().collect();
        let (mut open, mut busy) = (false, false);
        if !others.is_empty() {
            let asked: HashMap<_, _> = self.catalog.questions(call, &others).await?.into_iter().collect();
            for account in others {
                match asked.get(&account) {
                    Some(Asked::Nothing) => {}
                    Some(Asked::Open) => open = true,
                    None => match self.join(account, call) {
                        Some(open) => drop(joined.insert(account, Joined { open, seen: None })),
                        None => busy = true,
                    },
                }
            }
        }
        let seen: Vec<Option<Answer>> = joined.values().map(|joined| joined.seen).collect();
        // What was found is there when the catalog is looked at again.
        open |= seen.iter().any(|seen| matches!(seen, None | Some(Answer::Found)));
        Ok(match seen.contains(&Some(Answer::Unavailable)) {
            _ if busy => Inquired::Busy,
            _ if open => Inquired::Open,
            true => Inquired::Unavailable,
            false => Inquired::Nothing,
        })
    }

    /// Joins the question for a call, or begins it; None where too many are open.
    fn join(self: &Arc<Self>, account: AccountSid, call: CallSid) -> Option<Open> {
        let mut open = self.questions.open();
        let of_account = open.entry(account).or_default();
        if let Some(open) = of_account.get(&call) {
            return Some(open.clone());
        }
        if of_account.len() >= OPEN_MAX {
            telemetry::question("refused");
            return None;
        }
        let (answer, open) = watch::channel(None);
        of_account.insert(call, open.clone());
        let asking = Asking { vault: self.clone(), account, call, answer };
        self.questions.running.spawn(async move {
            let vault = asking.vault.clone();
            let began = Instant::now();
            let (answer, refusal) = vault.ask(account, call).await;
            asking.answer.send_replace(Some(answer));
            drop(asking);
            // Whoever waits is answered before.
            if let Some(refusal) = refusal {
                vault.heed(account, &refusal, began).await;
            }
        });
        Some(open)
    }

    /// Ends what this node asks, and lets others ask it. To be called when
    /// nobody waits for an answer any more; takes [`END_WITHIN`] at most.
    pub async fn end_questions(&self) {
        self.questions.stopping.cancel();
        self.questions.running.close();
        if tokio::time::timeout(END_WITHIN, self.questions.running.wait()).await.is_err() {
            tracing::warn!("rights to ask Twilio were not given back in time; they will run out");
        }
    }

    /// Asks one question, if this node gets the right to. Gives the answer, and
    /// what Twilio said where it refused one.
    async fn ask(&self, account: AccountSid, call: CallSid) -> (Answer, Option<MediaError>) {
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
        let Some(parent) = self.twilio.parent(&account, call).await?.flatten() else { return Ok(Told::Nothing) };
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
    async fn recordings_of(&self, account: &AccountSid, call: CallSid) -> Result<Vec<Announcement>, MediaError> {
        let page = self.twilio.list(account, Listing::OfCall(call), None).await?;
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
    let Described { mut details, status, error_code } = listed.described;
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
