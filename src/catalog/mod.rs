//! The SQL truth: every recording, who is fetching it, and what happened.
//!
//! [`Catalog`] is what a database has to give: transactions, and the little
//! that SQLite and PostgreSQL do differently. Every operation is written once
//! over it, as a method of `dyn Catalog` in the file of its subject, with the
//! same statements for both. The conformance suite runs on both.
//!
//! What always holds: each operation is one transaction; every time is the
//! catalog's own ([`Clock`]), callers hand in durations, never instants; an
//! update of a fetch names its epoch, so that a stale holder changes nothing.

mod accept;
mod accounts;
mod announced;
mod audit;
mod backfill;
mod backlog;
mod birth;
mod bucket_walk;
mod claim;
mod clock;
mod columns;
mod duty;
mod era;
mod erase;
mod erasures;
mod evict;
mod feed;
mod hold;
mod keys;
mod lease;
mod lookup;
mod markers;
mod migrations;
mod names;
mod news;
mod postgres;
mod questions;
mod recheck;
mod reconcile;
mod reindex;
mod rows;
mod scrub;
mod sql;
mod sqlite;
mod turns;
mod twilio_copies;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

pub use accept::{Accepted, AnnouncedBy, Announcement, FoundBy};
pub use accounts::{Paused, SlowDown};
pub use announced::Announced;
pub use audit::{FeedExtent, Told};
pub use backfill::{BackfillRun, DayCount, DayGrant, DayLease, DayWalk, Find, Span};
pub use backlog::Backlog;
pub use birth::Birth;
pub use bucket_walk::{BucketWalk, BucketWalkKind, Position, WalkAhead};
pub use claim::{Claim, Claimant, Leftover, Standing, Wish};
pub use clock::{CLOCK_OFF_MAX, Clock};
pub use duty::Duty;
pub use erase::{Erase, Erased};
pub use erasures::{Erasure, Owed, Progress};
pub use feed::{Cursor, Event, EventFilter, OTHER_ANSWER};
pub use hold::HoldMarker;
pub use keys::{KEYS_MAX, KeptKey, KeyRingRows, NewKey, Rotation, ShareSecret};
pub use lease::{Lease, Settled};
pub use lookup::{CallView, ListFilter, PageCursor, PutChoice};
pub use markers::Marked;
pub use news::{News, NewsPage};
pub use postgres::PostgresCatalog;
pub use questions::{Asked, Question};
pub use recheck::Finding;
pub use reconcile::{Ahead, Walk, WalkLease, Walker};
pub use reindex::FoundObject;
pub use rows::HistoryEntry;
pub use scrub::InHand;
pub use sql::Session;
pub use sqlite::SqliteCatalog;
pub use turns::{Turn, Urgency};
pub use webhooks::{Delivery, DeliveryState, Due, Posted, ReceiverLease, ReceiverStanding, Retried};

use crate::config::{Config, Database};
use crate::telemetry::innermost;

/// The longest a statement may take before the catalog counts as unreachable:
/// a callback must be answered within 5 s, and needs two round trips at least.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest wait for a free connection.
pub(crate) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest until a session has answered for the first time, however many
/// connections turn out to be broken on the way.
pub(crate) const SESSION_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the catalog did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// It cannot be reached, or did not answer in time. Whether a commit under
    /// way took place is not known.
    #[error("the catalog cannot be reached: {0}")]
    Unavailable(String),
    /// Too many want to read it on this node.
    #[error("too many look-ups wait for the catalog")]
    Busy,
    /// It answered with an error.
    #[error("the catalog refuses: {}", said(.0))]
    Refused(#[source] sqlx::Error),
    /// Its schema cannot be brought up to date.
    #[error("the catalog's schema cannot be migrated: {}", innermost(.0))]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// It is new, and nothing is taken before the bucket's markers are read.
    #[error("the catalog is new, and the bucket's markers have not been read yet")]
    Unread,
    /// What it does not know may lie in the bucket all the same.
    #[error("it is not known, but the catalog is new, and what lies in the bucket has not been indexed yet")]
    Unindexed,
    /// It holds something that this service did not write.
    #[error("the catalog holds a value that cannot be read: {0}")]
    Unreadable(String),
}

/// What a server said, without the line of its own source that said so.
fn said(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

impl CatalogError {
    /// It was asked before it was reached for the first time.
    pub(crate) fn not_prepared() -> Self {
        Self::Unavailable("it has not been reached yet".to_owned())
    }
}

/// The result of a catalog operation.
pub type Result<T> = std::result::Result<T, CatalogError>;

/// A database that can be the catalog.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// Connects and migrates. May be called again after it failed.
    async fn prepare(&self) -> Result<()>;

    /// The steps of the schema that [`Self::prepare`] would take. Changes nothing.
    async fn missing_steps(&self) -> Result<usize>;

    /// Begins a transaction that may write. Dropping it rolls back.
    async fn begin(&self) -> Result<Session>;

    /// A connection for statements that only read, each its own transaction.
    async fn read(&self) -> Result<Session>;

    /// Tells all nodes that something was committed that others wait for.
    /// A hint: it may be lost.
    fn announce_change(&self);

    /// Changes whenever something may have been committed, on any node.
    fn changes(&self) -> watch::Receiver<u64>;

    /// A time before which everything that was committed then, on any node, has its
    /// place in the feed; None where that is not known.
    fn numbered_until(&self) -> Option<Instant>;

    /// The catalog's time.
    fn clock(&self) -> &Clock;

    /// What was seen of its birth.
    fn birth(&self) -> &Birth;
}

const CHANGE_NOTHING: &str = "UPDATE catalog SET created_at = created_at WHERE only_row = 0";

impl dyn Catalog + '_ {
    /// Whether the catalog can be written, found out without writing.
    pub async fn check(&self) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(CHANGE_NOTHING, sql::args![]).await?;
        session.rollback().await
    }

    /// Reads the catalog's time.
    async fn read_clock(&self) -> Result<()> {
        self.read_clock_by(self.read().await?).await
    }

    async fn read_clock_by(&self, mut session: Session) -> Result<()> {
        let row = session.row("SELECT now_ms FROM clock", sql::args![]).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable("the clock shows nothing".to_owned()))?;
        self.clock().set(row.time("now_ms")?);
        Ok(())
    }
}

/// Waits until the catalog was reached for the first time. A node that has just
/// been started has its port open: its first requests wait for as long as they
/// would for a connection.
async fn until_prepared(prepared: &watch::Sender<bool>) -> Result<()> {
    if *prepared.borrow() {
        return Ok(());
    }
    let mut prepared = prepared.subscribe();
    match tokio::time::timeout(SESSION_TIMEOUT, prepared.wait_for(|prepared| *prepared)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(CatalogError::not_prepared()),
    }
}

/// Opens the catalog that the settings name, without waiting for it: it is
/// reached by [`Catalog::prepare`].
pub fn open(config: &Config) -> Result<Arc<dyn Catalog>> {
    match &config.database {
        Database::Sqlite(path) => Ok(SqliteCatalog::open(path, config.database_max_connections)?),
        Database::Postgres(url) => Ok(PostgresCatalog::open(url, config.database_max_connections)?),
    }
}
