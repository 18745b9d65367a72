//! What the service does, a use case a file.
//!
//! The vault joins Twilio, the bucket and the catalog, which do not know each
//! other. It decides nothing that the domain can decide, and answers nobody
//! directly: HTTP, the worker and the commands call it. Its time is the
//! catalog's, its dice are passed in.

pub mod accept;
pub mod deliver;
pub mod fetch;
mod flight;
pub mod health;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::bucket::Bucket;
use crate::catalog::{Catalog, CatalogError};
use crate::config::Config;
use crate::domain::recording::{Recording, RecordingId};
use crate::domain::retry;
use crate::domain::sid::AccountSid;
use crate::twilio::Twilio;
use crate::twilio::source::{Source, SourceHost};
use health::Health;

/// A number in [0, 1), another one each time.
pub type Dice = Box<dyn Fn() -> f64 + Send + Sync>;

/// The memory budget is counted in these.
const BUDGET_UNIT_BYTES: u64 = 1024;

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
    accounts: Vec<AccountSid>,
    retry: retry::Policy,
    max_recording_bytes: u64,
    lease: std::time::Duration,
    /// Bytes of recordings that may be in memory, in [`BUDGET_UNIT_BYTES`].
    memory: Arc<Semaphore>,
    dice: Dice,
}

impl Vault {
    /// A vault over these parts.
    pub fn new(config: &Config, catalog: Arc<dyn Catalog>, bucket: Bucket, twilio: Twilio, dice: Dice) -> Self {
        let budget = usize::try_from(config.memory_budget_bytes / BUDGET_UNIT_BYTES).unwrap_or(Semaphore::MAX_PERMITS);
        let mut accounts: Vec<AccountSid> = twilio.accounts().copied().collect();
        accounts.sort();
        Self {
            catalog,
            bucket,
            twilio,
            health: Health::default(),
            accounts,
            retry: config.retry,
            max_recording_bytes: config.max_recording_bytes,
            lease: config.lease,
            memory: Arc::new(Semaphore::new(budget.min(Semaphore::MAX_PERMITS))),
            dice,
        }
    }

    /// The accounts that this service works for: those it has credentials for.
    pub fn accounts(&self) -> &[AccountSid] {
        &self.accounts
    }

    /// How long a claim may go without being renewed.
    pub fn lease(&self) -> std::time::Duration {
        self.lease
    }

    /// The catalog's time, without asking it.
    pub fn now(&self) -> Result<Timestamp, CatalogError> {
        self.catalog.clock().now().ok_or_else(CatalogError::not_prepared)
    }

    /// The URL that Twilio gave for a recording, without credentials.
    pub fn source_url(&self, recording: &Recording) -> String {
        self.twilio.hosts().source_url(&source_of(&recording.id, recording.source_host.as_deref()))
    }
}

fn source_of(id: &RecordingId, host: Option<&str>) -> Source {
    Source { host: SourceHost::named(host), id: *id }
}
