//! What the simulator's lists of an account's recordings do on a bad day.

use std::collections::{HashMap, HashSet, VecDeque};

use super::faults::Fault;
use super::{SimulatedRecording, Simulator};
use crate::domain::sid::{AccountSid, RecordingSid};

/// How lists are answered.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The most recordings on a page; None is Twilio's own limit.
    pub(super) page_size_max: Option<usize>,
    /// The filters by day are not known, and ignored in silence.
    pub(super) ignores_days: bool,
    /// Pages are counted off from the newest, so that they shift when one arrives.
    pub(super) shifts: bool,
    /// Entries that say of no recording which it is.
    pub(super) garbled: HashSet<RecordingSid>,
    /// What is there only from the next request for a first page on, one each.
    pub(super) arriving: VecDeque<SimulatedRecording>,
    script: HashMap<AccountSid, VecDeque<Option<Fault>>>,
    requests: HashMap<AccountSid, u64>,
}

impl Lists {
    /// A request came; gives what it is to meet.
    pub(super) fn next_fault(&mut self, account: AccountSid) -> Option<Fault> {
        *self.requests.entry(account).or_default() += 1;
        self.script.get_mut(&account)?.pop_front().flatten()
    }
}

impl Simulator {
    /// Puts at most so many recordings on a page, whatever is asked for.
    pub fn page_size_max(&self, recordings: usize) {
        self.shared.state().lists.page_size_max = Some(recordings);
    }

    /// Counts pages off from the newest recording: what is on them shifts with each that arrives.
    pub fn shift_pages(&self) {
        self.shared.state().lists.shifts = true;
    }

    /// Ignores filters by day, as Twilio does with those that it does not know.
    pub fn ignore_days(&self) {
        self.shared.state().lists.ignores_days = true;
    }

    /// Leaves out of a recording's entry which one it is.
    pub fn garble(&self, recording: RecordingSid) {
        self.shared.state().lists.garbled.insert(recording);
    }

    /// Adds one of these right before each request for the first page of an account's
    /// list is answered: a list that does not settle.
    pub fn add_before_each_list(&self, recordings: impl IntoIterator<Item = SimulatedRecording>) {
        self.shared.state().lists.arriving.extend(recordings);
    }

    /// What the next requests for the list of an account's recordings meet, one
    /// each; None is a page. A list knows [`Fault::RateLimited`],
    /// [`Fault::Status`] and [`Fault::Silent`]; all others are a 500.
    pub fn script_lists(&self, account: AccountSid, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.shared.state().lists.script.entry(account).or_default().extend(faults);
    }

    /// Requests for the list of an account's recordings, whatever the answer,
    /// those that got none included.
    pub fn lists(&self, account: AccountSid) -> u64 {
        self.shared.state().lists.requests.get(&account).copied().unwrap_or_default()
    }
}
