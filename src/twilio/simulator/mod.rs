//! A scripted Twilio on loopback: for the demo, for trials, and for tests.
//!
//! It signs callbacks, serves media in Twilio's formats, redirects to a media
//! host of its own, answers the REST API, and does what Twilio does on a bad
//! day, as a script tells it ([`Fault`]). Every request is counted, so that a
//! test can say how often a recording was fetched. It is never reached in
//! production: nothing but a loopback origin in the settings leads here.

mod audio;
mod body;
mod callbacks;
mod encryption;
mod faults;
mod lists;
mod rest;
mod server;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use audio::{Audio, Body, speech_dual_wav, speech_mp3, speech_wav};
pub use callbacks::OutgoingCallback;
pub use encryption::SimulatedEncryption;
pub use faults::{Fault, RestFault};

use crate::domain::recording::RecordingId;
use crate::domain::sid::{AccountSid, CallSid, ConferenceSid, RecordingSid};

/// An account that the simulator knows.
#[derive(Debug, Clone)]
pub struct SimulatedAccount {
    /// Its SID.
    pub sid: AccountSid,
    /// Signs its callbacks and opens its API.
    pub auth_token: String,
    /// Opens its API too: SID and secret.
    pub api_key: Option<(String, String)>,
}

/// A recording that the simulator has.
#[derive(Debug, Clone)]
pub struct SimulatedRecording {
    /// Account and recording.
    pub id: RecordingId,
    /// The call it was made of.
    pub call_sid: Option<CallSid>,
    /// The conference it was made of.
    pub conference_sid: Option<ConferenceSid>,
    /// Its media in the formats that there are.
    pub audio: Audio,
    /// As Twilio writes it: seconds, or `"-1"` while it does not know.
    pub duration: String,
    /// 1 or 2.
    pub channels: u8,
    /// When it was begun.
    pub started_at: Timestamp,
    /// `completed`, `in-progress`, `absent`, `deleted` and others.
    pub status: String,
    /// How its media is encrypted; None: it is not.
    pub encryption: Option<SimulatedEncryption>,
}

impl SimulatedRecording {
    /// Two people on the phone, six seconds of them.
    pub fn speech(id: RecordingId, call_sid: CallSid, started_at: Timestamp) -> Self {
        Self {
            id,
            call_sid: Some(call_sid),
            conference_sid: None,
            audio: Audio::speech(),
            duration: "6".to_owned(),
            channels: 2,
            started_at,
            status: "completed".to_owned(),
            encryption: None,
        }
    }
}

/// What was asked of one recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests for its media, whatever the answer.
    pub media_requests: u64,
    /// Requests for its media that were answered with 200: fetches.
    pub fetches: u64,
    /// Requests for `Recordings/{RE}.json`.
    pub descriptions: u64,
}

/// One request as it came, for tests that look closely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `DELETE`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Whether it came to the media host rather than to the API.
    pub at_media_host: bool,
    /// Whether it brought credentials, right or wrong.
    pub with_credentials: bool,
    /// The status of the answer.
    pub status: u16,
}

/// The requests that are remembered one by one; older ones are forgotten.
const SEEN_MAX: usize = 10_000;

#[derive(Debug, Default)]
struct Script {
    next: VecDeque<Fault>,
    always: Option<Fault>,
}

#[derive(Debug)]
struct State {
    accounts: HashMap<AccountSid, SimulatedAccount>,
    recordings: HashMap<RecordingSid, SimulatedRecording>,
    calls: HashSet<(AccountSid, CallSid)>,
    parents: HashMap<CallSid, CallSid>,
    scripts: HashMap<RecordingSid, Script>,
    gates: HashMap<RecordingSid, watch::Sender<bool>>,
    refused_accounts: Vec<AccountSid>,
    rest_faults: HashMap<AccountSid, watch::Sender<Option<RestFault>>>,
    account_faults: HashMap<AccountSid, Fault>,
    counts: HashMap<RecordingSid, Counts>,
    in_flight: HashMap<AccountSid, usize>,
    in_flight_max: HashMap<AccountSid, usize>,
    seen: VecDeque<Seen>,
    lists: lists::Lists,
}

/// A running simulator; it stops when it is dropped.
#[derive(Debug)]
pub struct Simulator {
    shared: Arc<Shared>,
    _servers: [AbortOnDropHandle<()>; 2],
}

#[derive(Debug)]
struct Shared {
    api: SocketAddr,
    media_host: SocketAddr,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the simulator's state")
    }
}

impl Simulator {
    /// Starts one on free loopback ports.
    pub async fn start(accounts: impl IntoIterator<Item = SimulatedAccount>) -> std::io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), accounts).await
    }

    /// The same with its API at that address; the media host stays on loopback.
    pub async fn start_at(
        address: SocketAddr,
        accounts: impl IntoIterator<Item = SimulatedAccount>,
    ) -> std::io::Result<Self> {
        let api = TcpListener::bind(address).await?;
        let media_host = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let state = State {
            accounts: accounts.into_iter().map(|account| (account.sid, account)).collect(),
            recordings: HashMap::new(),
            calls: HashSet::new(),
            parents: HashMap::new(),
            scripts: HashMap::new(),
            gates: HashMap::new(),
            refused_accounts: Vec::new(),
            rest_faults: HashMap::new(),
            account_faults: HashMap::new(),
            counts: HashMap::new(),
            in_flight: HashMap::new(),
            in_flight_max: HashMap::new(),
            seen: VecDeque::new(),
            lists: lists::Lists::default(),
        };
        let shared =
            Arc::new(Shared { api: api.local_addr()?, media_host: media_host.local_addr()?, state: Mutex::new(state) });
        let servers = [
            server::spawn(api, shared.clone(), server::Role::Api),
            server::spawn(media_host, shared.clone(), server::Role::MediaHost),
        ];
        Ok(Self { shared, _servers: servers })
    }

    /// What `CALLVAULT_TWILIO_ORIGIN` is set to.
    pub fn origin(&self) -> String {
        format!("http://{}", self.shared.api)
    }

    /// The host that media is redirected to.
    pub fn media_host(&self) -> String {
        format!("http://{}", self.shared.media_host)
    }

    /// Adds a recording, or replaces it.
    pub fn add(&self, recording: SimulatedRecording) {
        self.shared.state().recordings.insert(recording.id.recording, recording);
    }

    /// Adds a call, which may have no recordings.
    pub fn add_call(&self, account: AccountSid, call: CallSid) {
        self.shared.state().calls.insert((account, call));
    }

    /// Makes `child` a leg that `parent` dialled.
    pub fn add_child_call(&self, child: CallSid, parent: CallSid) {
        self.shared.state().parents.insert(child, parent);
    }

    /// What the next requests for media that a recording has meet, one each; then all is well.
    pub fn script(&self, recording: RecordingSid, faults: impl IntoIterator<Item = Fault>) {
        self.shared.state().scripts.entry(recording).or_default().next.extend(faults);
    }

    /// What every request for media that a recording has meets from now on; None ends that.
    pub fn always(&self, recording: RecordingSid, fault: Option<Fault>) {
        self.shared.state().scripts.entry(recording).or_default().always = fault;
    }

    /// What every request of an account to the REST API meets from now on; None ends that.
    pub fn rest_fault(&self, account: AccountSid, fault: Option<RestFault>) {
        self.shared.state().rest_fault(account).send_replace(fault);
    }

    /// What every request for media that an account has meets from now on, before
    /// anything that is scripted; None ends that.
    pub fn always_of(&self, account: AccountSid, fault: Option<Fault>) {
        let faults = &mut self.shared.state().account_faults;
        match fault {
            Some(fault) => faults.insert(account, fault),
            None => faults.remove(&account),
        };
    }

    /// Adds an account.
    pub fn add_account(&self, account: SimulatedAccount) {
        self.shared.state().accounts.insert(account.sid, account);
    }

    /// Lets bodies that wait ([`Fault::Held`]) go on.
    pub fn release(&self, recording: RecordingSid) {
        self.shared.state().gate(recording).send_replace(true);
    }

    /// Refuses an account's credentials with 401, or takes them again.
    pub fn refuse_credentials(&self, account: AccountSid, refused: bool) {
        let mut state = self.shared.state();
        state.refused_accounts.retain(|known| *known != account);
        if refused {
            state.refused_accounts.push(account);
        }
    }

    /// What was asked of a recording.
    pub fn counts(&self, recording: RecordingSid) -> Counts {
        self.shared.state().counts.get(&recording).copied().unwrap_or_default()
    }

    /// Media requests answered with 200, over all recordings.
    pub fn fetches(&self) -> u64 {
        self.shared.state().counts.values().map(|counts| counts.fetches).sum()
    }

    /// The most requests of an account that were under way at once.
    pub fn in_flight_max(&self, account: AccountSid) -> usize {
        self.shared.state().in_flight_max.get(&account).copied().unwrap_or_default()
    }

    /// Begins to measure [`Self::in_flight_max`] anew.
    pub fn forget_in_flight_max(&self) {
        self.shared.state().in_flight_max.clear();
    }

    /// The requests that came, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.iter().cloned().collect()
    }
}

impl State {
    fn gate(&mut self, recording: RecordingSid) -> &watch::Sender<bool> {
        self.gates.entry(recording).or_insert_with(|| watch::channel(false).0)
    }

    fn rest_fault(&mut self, account: AccountSid) -> &watch::Sender<Option<RestFault>> {
        self.rest_faults.entry(account).or_insert_with(|| watch::channel(None).0)
    }

    fn next_fault(&mut self, RecordingId { account, recording }: RecordingId) -> Option<Fault> {
        if let Some(fault) = self.account_faults.get(&account) {
            return Some(fault.clone());
        }
        let script = self.scripts.get_mut(&recording)?;
        script.next.pop_front().or_else(|| script.always.clone())
    }

    /// A request for a page of an account's list came; gives what it is to meet.
    fn next_of_lists(&mut self, account: AccountSid, is_first_page: bool) -> Option<Fault> {
        if let Some(arriving) = is_first_page.then(|| self.lists.arriving.pop_front()).flatten() {
            self.recordings.insert(arriving.id.recording, arriving);
        }
        self.lists.next_fault(account)
    }

    fn remember(&mut self, seen: Seen) {
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(seen);
    }
}
