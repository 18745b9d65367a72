//! The catalog in PostgreSQL, for many nodes.
//!
//! Events are written without a number; a task of each node gives committed
//! ones their place and then tells the other nodes (NOTIFY), outside every
//! business transaction. A notification is a hint: it may be lost, and whoever
//! waits for one polls as well.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use sqlx::{Executor, Postgres};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::migrations::{Step, migrator, missing};
use super::sql::args;
use super::{ACQUIRE_TIMEOUT, Birth, Catalog, CatalogError, Clock, Result, SESSION_TIMEOUT, Session, sql};

/// What every connection is told. A node that freezes in the middle of a
/// transaction must not keep its locks for longer than a lease of others.
const SESSION_SETTINGS: &str = "SET idle_in_transaction_session_timeout = '5s'; SET statement_timeout = '10s'; \
                                SET lock_timeout = '2s'";
/// Answered with a row by the primary alone: one that was demoted goes on
/// answering reads, with what it knew then.
const PING: &str = "SELECT 1 WHERE NOT pg_is_in_recovery()";
/// The channel on which nodes wake each other. Catalogs that share a database
/// wake each other for nothing, which does no harm.
const CHANNEL: &str = "callvault";
/// Events that are numbered in one go.
const NUMBERED_AT_ONCE: i64 = 1000;
/// How long an event may wait for its number when the node that wrote it died.
const NUMBER_AT_LEAST_EVERY: Duration = Duration::from_millis(500);
/// How long the listener trusts a silent connection.
const LISTEN_AFRESH_EVERY: Duration = Duration::from_secs(60);
/// The wait before a lost connection of the listener is sought again.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The catalog on a server.
pub struct PostgresCatalog {
    shared: Arc<Shared>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// What a connection is tried with.
#[derive(Debug, Clone, Copy)]
enum FirstStatement {
    Begin,
    Ping,
}

struct Shared {
    pool: PgPool,
    options: PgConnectOptions,
    clock: Clock,
    birth: Birth,
    changes: watch::Sender<u64>,
    /// Something was committed here that is to be numbered and told.
    committed: Notify,
    /// When the last numbering began that came to its end.
    numbered_until: watch::Sender<Option<Instant>>,
    prepared: watch::Sender<bool>,
}

impl PostgresCatalog {
    /// The catalog at that URL. Connections are made when they are needed.
    pub fn open(url: &SecretString, max_connections: u32) -> Result<Arc<Self>> {
        let options =
            PgConnectOptions::from_str(url.expose_secret()).map_err(sql::error)?.application_name("callvault");
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // The first statement of every session is the test; see `Shared::session`.
            .test_before_acquire(false)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(SESSION_SETTINGS).await.map(|_| ()) })
            })
            .connect_lazy_with(options.clone());
        let shared = Arc::new(Shared {
            pool,
            options,
            clock: Clock::default(),
            birth: Birth::default(),
            changes: watch::Sender::new(0),
            committed: Notify::new(),
            numbered_until: watch::Sender::new(None),
            prepared: watch::Sender::new(false),
        });
        let tasks = [tokio::spawn(number_and_tell(shared.clone())), tokio::spawn(listen(shared.clone()))];
        Ok(Arc::new(Self { shared, _tasks: tasks.map(AbortOnDropHandle::new) }))
    }
}

/// The schema, a step after the other.
const MIGRATIONS: &[Step] = &[
    Step(1, "recordings", include_str!("migrations/postgres/0001_recordings.sql")),
    Step(2, "keys", include_str!("migrations/postgres/0002_keys.sql")),
    Step(3, "webhooks", include_str!("migrations/postgres/0003_webhooks.sql")),
    Step(4, "letting_go", include_str!("migrations/postgres/0004_letting_go.sql")),
    Step(5, "bucket_read", include_str!("migrations/postgres/0005_bucket_read.sql")),
    Step(6, "content", include_str!("migrations/postgres/0006_content.sql")),
    Step(7, "backfill", include_str!("migrations/postgres/0007_backfill.sql")),
    Step(8, "turns", include_str!("migrations/postgres/0008_turns.sql")),
    Step(9, "traces", include_str!("migrations/postgres/0009_traces.sql")),
    Step(14, "awaited_content", include_str!("migrations/postgres/0014_awaited_content.sql")),
    Step(15, "look_first", include_str!("migrations/postgres/0015_look_first.sql")),
    Step(16, "scrubbing", include_str!("migrations/postgres/0016_scrubbing.sql")),
    Step(17, "failed_content", include_str!("migrations/postgres/0017_failed_content.sql")),
    Step(18, "waiting", include_str!("migrations/postgres/0018_waiting.sql")),
    Step(19, "backfill_processes", include_str!("migrations/postgres/0019_backfill_processes.sql")),
    Step(20, "slowed", include_str!("migrations/postgres/0020_slowed.sql")),
];

impl Shared {
    async fn acquire(&self) -> Result<PoolConnection<Postgres>> {
        self.pool.acquire().await.map_err(|error| self.not_connected(error))
    }

    /// A pool tries for as long as it may where nothing listens, and tells that its time was over.
    fn not_connected(&self, error: sqlx::Error) -> CatalogError {
        let sqlx::Error::PoolTimedOut = error else { return sql::error(error) };
        let (host, port) = (self.options.get_host(), self.options.get_port());
        CatalogError::Unavailable(format!(
            "no connection to {host}:{port} in time: nothing listens there, or all that this node may have are in use"
        ))
    }

    /// A connection that has just answered. One that broke while it lay idle
    /// is thrown away and the next one tried, so that a restart of the server
    /// fails no request once the server is back.
    async fn session(&self, first_statement: FirstStatement) -> Result<Session> {
        super::until_prepared(&self.prepared).await?;
        let answered = tokio::time::timeout(SESSION_TIMEOUT, self.first_answer(first_statement)).await;
        answered.unwrap_or_else(|_| Err(CatalogError::Unavailable("no connection answers".to_owned())))
    }

    async fn first_answer(&self, first_statement: FirstStatement) -> Result<Session> {
        let mut tries_left = self.pool.options().get_max_connections();
        loop {
            let mut session = Session::postgres(self.acquire().await?);
            let answered = match first_statement {
                FirstStatement::Begin => session.begin("BEGIN").await,
                FirstStatement::Ping => session.execute(PING, args![]).await.and_then(|rows| match rows {
                    1 => Ok(()),
                    _ => Err(CatalogError::Unavailable("the server is not the primary".to_owned())),
                }),
            };
            match answered {
                Ok(()) => return Ok(session),
                Err(CatalogError::Unavailable(_)) if tries_left > 0 => tries_left -= 1,
                Err(error) => {
                    session.give_up();
                    return Err(error);
                }
            }
            session.give_up();
        }
    }

    async fn number_events(&self) -> Result<u64> {
        let began = Instant::now();
        let mut numbered = 0;
        loop {
            let mut session = Session::postgres(self.acquire().await?);
            let row = session.row("SELECT number_events($1) AS numbered", args![NUMBERED_AT_ONCE]).await?;
            let some: i64 = row.map_or(Ok(0), |row| row.get("numbered"))?;
            numbered += some.unsigned_abs();
            if some < NUMBERED_AT_ONCE {
                self.numbered_until.send_replace(Some(began));
                return Ok(numbered);
            }
        }
    }

    async fn notify(&self) -> Result<()> {
        let mut session = Session::postgres(self.acquire().await?);
        session.execute("SELECT pg_notify($1, '')", args![CHANNEL]).await.map(|_| ())
    }

    /// A pool of its own for what would keep one of the others' connections.
    fn single_connection(&self) -> PgPool {
        let options = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
        options.connect_lazy_with(self.options.clone())
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Numbers what was committed, here or by a node that died, and tells all nodes.
async fn number_and_tell(shared: Arc<Shared>) {
    // A channel that is closed belongs to a catalog that is gone, and this task with it.
    let _ = shared.prepared.subscribe().wait_for(|prepared| *prepared).await;
    loop {
        let told = tokio::time::timeout(NUMBER_AT_LEAST_EVERY, shared.committed.notified()).await.is_ok();
        match shared.number_events().await {
            Ok(0) if !told => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "events wait for their numbers");
                shared.committed.notify_one();
                tokio::time::sleep(NUMBER_AT_LEAST_EVERY).await;
                continue;
            }
        }
        shared.changed();
        if let Err(error) = shared.notify().await {
            tracing::debug!(%error, "other nodes were not notified; they poll");
        }
    }
}

/// Passes on what other nodes tell.
async fn listen(shared: Arc<Shared>) {
    let _ = shared.prepared.subscribe().wait_for(|prepared| *prepared).await;
    loop {
        if let Err(error) = listen_until_lost(&shared).await {
            tracing::debug!(%error, "not listening to other nodes; polling goes on");
        }
        tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
    }
}

async fn listen_until_lost(shared: &Shared) -> std::result::Result<(), sqlx::Error> {
    let begun = async {
        let mut listener = PgListener::connect_with(&shared.single_connection()).await?;
        listener.listen(CHANNEL).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    let begun = tokio::time::timeout(SESSION_TIMEOUT, begun).await;
    let mut listener = begun.map_err(|_| sqlx::Error::PoolTimedOut)??;
    // What was told while nobody listened.
    shared.changed();
    // A connection on which nothing comes may be one on which nothing can come.
    while let Ok(received) = tokio::time::timeout(LISTEN_AFRESH_EVERY, listener.try_recv()).await {
        match received? {
            Some(_) => shared.changed(),
            None => break,
        }
    }
    Ok(())
}

#[async_trait]
impl Catalog for PostgresCatalog {
    async fn prepare(&self) -> Result<()> {
        // A connection without time limits: a migration may take long.
        let pool = self.shared.single_connection();
        // Whether anybody is there is found out within a limit; a migration has none.
        let reached = tokio::time::timeout(SESSION_TIMEOUT, sqlx::query("SELECT 1").execute(&pool)).await;
        let reached = reached.map_err(|_| CatalogError::Unavailable("no connection answers".to_owned()))?;
        reached.map_err(|error| self.shared.not_connected(error))?;
        let migrated = migrator(MIGRATIONS).run(&pool).await;
        pool.close().await;
        migrated.map_err(CatalogError::Migration)?;
        // The time is known before anybody is let in.
        let catalog: &dyn Catalog = self;
        catalog.read_clock_by(Session::postgres(self.shared.acquire().await?)).await?;
        self.shared.prepared.send_replace(true);
        Ok(())
    }

    async fn missing_steps(&self) -> Result<usize> {
        missing(&mut Session::postgres(self.shared.acquire().await?), MIGRATIONS).await
    }

    async fn begin(&self) -> Result<Session> {
        self.shared.session(FirstStatement::Begin).await
    }

    async fn read(&self) -> Result<Session> {
        self.shared.session(FirstStatement::Ping).await
    }

    fn announce_change(&self) {
        self.shared.changed();
        self.shared.committed.notify_one();
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn numbered_until(&self) -> Option<Instant> {
        *self.shared.numbered_until.borrow()
    }

    fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    fn birth(&self) -> &Birth {
        &self.shared.birth
    }
}
