//! The catalog in a SQLite file, for one node.
//!
//! One connection writes, others read (WAL). Every commit is synced to the
//! disk: what was acknowledged survives a power cut. Transactions begin
//! IMMEDIATE, so that none fails between its reading and its writing. Events
//! are numbered as they are written: there is one writer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::watch;
use tokio::time::Instant;

use super::migrations::{Step, migrator, missing};
use super::{ACQUIRE_TIMEOUT, Birth, Catalog, CatalogError, Clock, Result, STATEMENT_TIMEOUT, Session, sql};

/// How long another process's transaction is waited for.
const BUSY_TIMEOUT: Duration = STATEMENT_TIMEOUT;

/// What another process may need to end the step that it is at.
const MIGRATE_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The catalog in a file.
pub struct SqliteCatalog {
    writer: SqlitePool,
    readers: SqlitePool,
    clock: Clock,
    birth: Birth,
    changes: watch::Sender<u64>,
    prepared: watch::Sender<bool>,
}

impl SqliteCatalog {
    /// The catalog in that file, which is made where there is none.
    pub fn open(path: &Path, max_connections: u32) -> Result<Arc<Self>> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_lazy_with(options.clone())
        };
        Ok(Arc::new(Self {
            writer: pool(1),
            readers: pool(max_connections - 1),
            clock: Clock::default(),
            birth: Birth::default(),
            changes: watch::Sender::new(0),
            prepared: watch::Sender::new(false),
        }))
    }
}

/// The schema, a step after the other.
const MIGRATIONS: &[Step] = &[
    Step(1, "recordings", include_str!("migrations/sqlite/0001_recordings.sql")),
    Step(2, "keys", include_str!("migrations/sqlite/0002_keys.sql")),
    Step(3, "webhooks", include_str!("migrations/sqlite/0003_webhooks.sql")),
    Step(4, "letting_go", include_str!("migrations/sqlite/0004_letting_go.sql")),
    Step(5, "bucket_read", include_str!("migrations/sqlite/0005_bucket_read.sql")),
    Step(6, "content", include_str!("migrations/sqlite/0006_content.sql")),
    Step(7, "backfill", include_str!("migrations/sqlite/0007_backfill.sql")),
    Step(8, "turns", include_str!("migrations/sqlite/0008_turns.sql")),
    Step(9, "traces", include_str!("migrations/sqlite/0009_traces.sql")),
    Step(14, "awaited_content", include_str!("migrations/sqlite/0014_awaited_content.sql")),
    Step(15, "look_first", include_str!("migrations/sqlite/0015_look_first.sql")),
    Step(16, "scrubbing", include_str!("migrations/sqlite/0016_scrubbing.sql")),
    Step(17, "failed_content", include_str!("migrations/sqlite/0017_failed_content.sql")),
    Step(18, "waiting", include_str!("migrations/sqlite/0018_waiting.sql")),
    Step(19, "backfill_processes", include_str!("migrations/sqlite/0019_backfill_processes.sql")),
    Step(20, "slowed", include_str!("migrations/sqlite/0020_slowed.sql")),
];

impl SqliteCatalog {
    async fn session(&self, pool: &SqlitePool) -> Result<Session> {
        super::until_prepared(&self.prepared).await?;
        Ok(Session::sqlite(pool.acquire().await.map_err(sql::error)?))
    }
}

#[async_trait]
impl Catalog for SqliteCatalog {
    async fn prepare(&self) -> Result<()> {
        // SQLite takes no migration lock: another process may be quicker, at every step.
        let mut quicker = MIGRATIONS.len();
        while let Err(error) = migrator(MIGRATIONS).run(&self.writer).await {
            if quicker == 0 {
                return Err(CatalogError::Migration(error));
            }
            quicker -= 1;
            tokio::time::sleep(MIGRATE_AGAIN_AFTER).await;
        }
        // The time is known before anybody is let in.
        let catalog: &dyn Catalog = self;
        catalog.read_clock_by(Session::sqlite(self.readers.acquire().await.map_err(sql::error)?)).await?;
        self.prepared.send_replace(true);
        Ok(())
    }

    async fn missing_steps(&self) -> Result<usize> {
        let mut session = Session::sqlite(self.readers.acquire().await.map_err(sql::error)?);
        missing(&mut session, MIGRATIONS).await
    }

    async fn begin(&self) -> Result<Session> {
        let mut session = self.session(&self.writer).await?;
        session.begin("BEGIN IMMEDIATE").await?;
        Ok(session)
    }

    async fn read(&self) -> Result<Session> {
        self.session(&self.readers).await
    }

    fn announce_change(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn numbered_until(&self) -> Option<Instant> {
        Some(Instant::now())
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn birth(&self) -> &Birth {
        &self.birth
    }
}
