//! Who wants a call that is not known, and what they are told.
//!
//! Within a node all who want the same call of an account share one question
//! ([`super::discover`]). It belongs to the node: it goes on when nobody waits
//! any more, and ends with the node. An account that is slow, refused or asked
//! for too much takes nothing from another: whichever answers first is heard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Vault;
use crate::catalog::{Asked, CatalogError};
use crate::domain::sid::{AccountSid, CallSid};
use crate::telemetry;

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
pub(super) enum Answer {
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
    /// Who may ask Twilio now.
    pub(super) turns: HashMap<AccountSid, Semaphore>,
    running: TaskTracker,
    /// Ends what is being asked.
    pub(super) stopping: CancellationToken,
}

/// What one request has asked, by account.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    joined: HashMap<AccountSid, Joined>,
    /// Too much was being asked when it came, which is counted once.
    found_no_room: bool,
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
    /// None has it that answered, and of some too much is being asked already.
    Busy,
    /// All answered that there is nothing.
    Nothing,
    /// None has it that answered, but some could not be asked.
    Unavailable,
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
        // Looked at first: whoever is gone by then has said all there is.
        let gone = self.open.has_changed().is_err().then_some(Answer::Unavailable);
        self.seen = self.open.borrow().or(gone);
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
        let Inquiry { joined, found_no_room } = inquiry;
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
            _ if open => Inquired::Open,
            _ if busy => {
                if !std::mem::replace(found_no_room, true) {
                    telemetry::question("refused");
                }
                Inquired::Busy
            }
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
                tokio::select! {
                    () = vault.heed(account, &refusal, began) => {}
                    () = vault.questions.stopping.cancelled() => {}
                }
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
}
