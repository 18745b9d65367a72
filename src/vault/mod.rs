//! What the service does, a use case a file.
//!
//! The vault joins Twilio, the bucket and the catalog, which do not know each
//! other. It decides nothing that the domain can decide, and answers nobody
//! directly: HTTP, the worker and the commands call it. Its time is the
//! catalog's, its dice are passed in.

pub mod accept;
mod adopt;
mod announced;
pub mod audit;
pub mod backfill;
mod backlog;
pub mod content;
pub mod cure;
pub mod deliver;
mod details;
mod discover;
pub mod doctor;
mod duty;
pub mod erase;
mod evict;
pub mod feed;
pub mod fetch;
mod flaws;
mod flight;
pub mod follow;
pub mod found;
pub mod health;
mod hits;
pub mod hold;
mod inquiry;
mod intake;
pub mod keys;
mod lease;
mod letting_go;
mod live;
mod look_ups;
mod memory;
mod mend;
mod pace;
pub mod places;
pub mod recheck;
pub mod reconcile;
pub mod reindex;
pub mod scrub;
pub mod share;
mod staging;
mod stray_uploads;
mod streams;
mod tape;
mod traces;
mod turns;
mod twilio_copies;
mod unmarked;
pub mod verify;
pub mod webhooks;
mod whole_bucket;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Mutex, Semaphore, mpsc};

use crate::bucket::{Bucket, UPLOAD_RESERVE_BYTES};
use crate::catalog::{CLOCK_OFF_MAX, Catalog, CatalogError, Claimant};
use crate::config::Config;
use crate::domain::recording::{Recording, RecordingId};
use crate::domain::retry;
use crate::domain::sid::AccountSid;
use crate::twilio::Twilio;
use crate::twilio::source::{Source, SourceHost};
use content::Doubts;
pub use duty::span_of;
use flight::{Flights, Hurried};
use follow::Follower;
use health::Health;
use hits::Hits;
use inquiry::Questions;
use keys::{Entropy, KeyRing};
use live::Lives;
use memory::MemoryBudget;
pub use memory::Reservation;
use pace::Manners;
use streams::Streams;
use webhooks::Receiver;

/// A number in [0, 1), another one each time.
pub type Dice = Box<dyn Fn() -> f64 + Send + Sync>;

/// The wait before what could not be written of that is tried again.
const ASKED_WRITE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Those that wait to be written; more of them are forgotten.
const ASKED_WAITING_MAX: usize = 1000;

/// Connections that requests to play leave to callbacks, claims and the renewal
/// of leases.
const CONNECTIONS_LEFT: u32 = 3;

/// This node's clock is not the catalog's.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("this node's clock is {seconds} s off the catalog's: it fetches nothing until it is set right")]
pub struct ClockIsOff {
    /// By how much.
    seconds: u64,
}

/// Whether it is written down that somebody asked for a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    /// It was not long ago, or is not now.
    Before,
    /// It is, or will be in a moment.
    Now,
    /// The recording moved on meanwhile, and is to be looked up anew.
    MovedOn,
}

/// All that use cases need.
pub struct Vault {
    /// The SQL truth.
    pub catalog: Arc<dyn Catalog>,
    /// The object store.
    pub bucket: Bucket,
    /// Twilio.
    pub twilio: Twilio,
    /// What the service knows of its own parts.
    pub health: Health,
    /// Who holds a key.
    pub keys: KeyRing,
    /// What is new in the feed.
    pub follower: Follower,
    accounts: Vec<AccountSid>,
    receivers: Vec<Arc<Receiver>>,
    /// Whether the catalog knows them, as far as this node saw to it.
    has_enrolled: AtomicBool,
    retry: retry::Policy,
    max_recording_bytes: u64,
    lease: Duration,
    reconcile: reconcile::Terms,
    recheck_after: Duration,
    letting_go: letting_go::Terms,
    memory: MemoryBudget,
    share_max: Duration,
    link_ttl: Duration,
    dice: Dice,
    entropy: Entropy,
    /// Look-ups for requests that may be under way at once.
    look_ups: Semaphore,
    flights: Flights,
    hurried: Hurried,
    hits: Hits,
    lives: Arc<Lives>,
    streams: Arc<Streams>,
    doubts: Doubts,
    questions: Questions,
    manners: Manners,
    asked: mpsc::Sender<RecordingId>,
    asked_to_write: Mutex<mpsc::Receiver<RecordingId>>,
}

impl Vault {
    /// A vault over these parts.
    pub fn new(
        config: &Config,
        catalog: Arc<dyn Catalog>,
        bucket: Bucket,
        twilio: Twilio,
        (dice, entropy): (Dice, Entropy),
    ) -> Self {
        let mut accounts: Vec<AccountSid> = twilio.accounts().copied().collect();
        accounts.sort();
        let (asked, asked_to_write) = mpsc::channel(ASKED_WAITING_MAX);
        let look_ups = config.database_max_connections.saturating_sub(CONNECTIONS_LEFT).max(1);
        Self {
            follower: Follower::new(catalog.clone(), follow::POLL_EVERY),
            manners: Manners::new(catalog.clone(), twilio.clone(), config.retry),
            catalog,
            bucket,
            twilio,
            health: Health::default(),
            keys: KeyRing::new(config.admin_key.as_ref()),
            questions: Questions::new(&accounts),
            accounts,
            receivers: config.webhooks.iter().map(|webhook| Arc::new(Receiver::new(webhook))).collect(),
            has_enrolled: AtomicBool::new(false),
            retry: config.retry,
            max_recording_bytes: config.max_recording_bytes,
            lease: config.lease,
            reconcile: reconcile::Terms { every: config.reconcile_every, window: config.reconcile_window },
            recheck_after: config.recheck_after,
            letting_go: letting_go::Terms::new(config),
            memory: MemoryBudget::new(config.memory_budget_bytes),
            share_max: config.share_max,
            link_ttl: config.links.ttl,
            dice,
            entropy,
            look_ups: Semaphore::new(look_ups as usize),
            flights: Flights::default(),
            hurried: Hurried::default(),
            hits: Hits::default(),
            lives: Arc::default(),
            streams: Arc::default(),
            doubts: Doubts::default(),
            asked,
            asked_to_write: Mutex::new(asked_to_write),
        }
    }

    /// Writes down what was asked for, for as long as the service runs.
    pub async fn write_what_was_asked(&self) {
        let mut asked = self.asked_to_write.lock().await;
        while let Some(id) = asked.recv().await {
            while let Err(error) = self.catalog.asked(&id).await {
                // What is evicted hangs on it.
                tracing::debug!(recording = %id, %error, "that it was asked for is not noted yet");
                tokio::time::sleep(ASKED_WRITE_AGAIN_AFTER).await;
            }
        }
    }

    /// The accounts that this service works for: those it has credentials for.
    pub fn accounts(&self) -> &[AccountSid] {
        &self.accounts
    }

    /// The memory that one fetch needs, if there is as much.
    pub fn reserve_memory(&self) -> Option<Reservation> {
        self.memory.reserve(UPLOAD_RESERVE_BYTES)
    }

    /// For how many fetches at once there is memory.
    pub fn fetches_that_fit(&self) -> usize {
        self.memory.fits(UPLOAD_RESERVE_BYTES)
    }

    /// Returns when memory was given back since it was last awaited.
    pub async fn memory_freed(&self) {
        self.memory.freed().await;
    }

    /// The terms on which a node of that name claims.
    pub fn claimant(&self, node: String) -> Claimant {
        Claimant { node, lease: self.lease, retry: self.retry, recheck_after: self.recheck_after }
    }

    /// Notes that someone asked for a recording's audio, now and then. Where
    /// recordings are evicted, it is written before anything is answered: else one
    /// could go under a fresh link. Where none is, or the catalog is away, it is never
    /// in the way of an answer, and may be lost.
    async fn note_asked(&self, recording: &Recording, now: Timestamp) -> Noted {
        let again_after = self.letting_go.asked_again_after();
        if recording.last_asked_at.is_some_and(|at| now.duration_since(at).unsigned_abs() < again_after) {
            return Noted::Before;
        }
        if self.letting_go.idle_for().is_some() && !self.health.is_in_trouble("catalog_unreachable") {
            match self.catalog.asked(&recording.id).await {
                Ok(state) if state == Some(recording.state) => return Noted::Now,
                Ok(_) => return Noted::MovedOn,
                Err(error) => {
                    tracing::debug!(recording = %recording.id, %error, "that it was asked for is noted later")
                }
            }
        }
        match self.asked.try_send(recording.id) {
            // Where it counts, it is written first: next time, then.
            Ok(()) if self.letting_go.idle_for().is_none() => Noted::Now,
            _ => Noted::Before,
        }
    }

    /// The catalog's time, without asking it.
    pub fn now(&self) -> Result<Timestamp, CatalogError> {
        self.catalog.clock().now().ok_or_else(CatalogError::not_prepared)
    }

    /// Notes whether this node's own clock is near the catalog's. One that is
    /// not says so, and claims nothing: what else is wrong with it nobody knows.
    pub fn check_clock(&self) -> Result<(), ClockIsOff> {
        let off_by = self.catalog.clock().off_by();
        let fared = if off_by > CLOCK_OFF_MAX { Err(ClockIsOff { seconds: off_by.as_secs() }) } else { Ok(()) };
        self.health.note("clock_off", fared);
        fared
    }

    /// The URL that Twilio gave for a recording, without credentials.
    pub fn source_url(&self, recording: &Recording) -> String {
        self.twilio.hosts().source_url(&source_of(&recording.id, recording.source_host.as_deref()))
    }
}

fn source_of(id: &RecordingId, host: Option<&str>) -> Source {
    Source { host: SourceHost::named(host), id: *id }
}
