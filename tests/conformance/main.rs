//! One suite for every catalog: what holds on SQLite holds on PostgreSQL.
//!
//! Where a claim is about several nodes, each is a catalog of its own over the
//! same database: several processes on one file, or several servers' nodes.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, reason = "a test may fail")]

#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use callvault::catalog::{AnnouncedBy, Announcement, Catalog, Claim, Claimant, PostgresCatalog, SqliteCatalog, Wish};
use callvault::domain::digest::Digest;
use callvault::domain::key::KeyId;
use callvault::domain::media::Format;
use callvault::domain::recording::{Details, RecordingId, StoredObject};
use callvault::domain::retry::{Decision, Policy};
use callvault::domain::sid::AccountSid;
use sqlx::{Connection, Executor};
use support::servers::Postgres;
use support::world::{account, call_sid, recording_id};

/// A database, and as many nodes on it as a test wants.
pub struct Database {
    url: Url,
}

enum Url {
    Sqlite(tempfile::TempDir),
    Postgres(String),
}

impl Database {
    async fn sqlite() -> Self {
        Self { url: Url::Sqlite(tempfile::tempdir().unwrap()) }
    }

    async fn postgres() -> Self {
        Self { url: Url::Postgres(Postgres::shared().new_database().await) }
    }

    /// A node's catalog, migrated, over a bucket that was empty when it was new.
    pub async fn node(&self) -> Arc<dyn Catalog> {
        let catalog = self.newborn().await;
        catalog.nothing_is_there().await.expect("the catalog can be written");
        catalog
    }

    /// A node's catalog, migrated, that knows nothing of the bucket where it is new.
    pub async fn newborn(&self) -> Arc<dyn Catalog> {
        let catalog: Arc<dyn Catalog> = match &self.url {
            Url::Sqlite(folder) => SqliteCatalog::open(&folder.path().join("catalog.db"), 10).unwrap(),
            Url::Postgres(url) => PostgresCatalog::open(&url.as_str().into(), 10).unwrap(),
        };
        catalog.prepare().await.expect("the catalog is prepared");
        catalog
    }

    /// Runs a statement beside the nodes.
    pub async fn execute(&self, statement: &'static str) {
        match &self.url {
            Url::Postgres(url) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                connection.execute(statement).await.unwrap();
            }
            Url::Sqlite(folder) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("catalog.db"));
                let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
                connection.execute(statement).await.unwrap();
            }
        }
    }

    /// The database itself, where it is PostgreSQL.
    pub fn postgres_url(&self) -> Option<&str> {
        match &self.url {
            Url::Postgres(url) => Some(url),
            Url::Sqlite(_) => None,
        }
    }
}

/// A test on each database.
macro_rules! on_every_catalog {
    ($($(#[$meta:meta])* async fn $name:ident($database:ident: Database) $body:block)+) => {
        $($(#[$meta])* mod $name {
            use super::*;

            async fn claim($database: Database) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn on_sqlite() {
                claim(Database::sqlite().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn on_postgres() {
                claim(Database::postgres().await).await;
            }
        })+
    };
}

mod accepting;
mod accounts;
mod backfill;
mod bucket;
mod eras;
mod feed;
mod follow;
mod keys;
mod leases;
mod letting_go;
mod lookups;
mod newer;
mod questions;
mod rechecks;
mod reconcile;
mod webhooks;

/// A lease that no test outlives.
const LONG: Duration = Duration::from_secs(3600);

/// What Twilio says of a recording of the account.
pub fn callback(number: u32, status: &str) -> Announcement {
    Announcement {
        id: recording_id(number),
        source_host: None,
        details: Details { call_sid: Some(call_sid(number)), ..Details::default() },
        by: AnnouncedBy::Callback { status: status.to_owned(), error_code: None },
    }
}

/// What an application says of a recording, for a call.
pub fn put(number: u32, call: u32) -> Announcement {
    Announcement {
        details: Details { call_sid: Some(call_sid(call)), ..Details::default() },
        by: AnnouncedBy::Put { call: call_sid(call) },
        ..callback(number, "")
    }
}

/// Takes the callbacks of these recordings.
pub async fn accept(catalog: &Arc<dyn Catalog>, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        catalog.accept(&callback(number, "completed")).await.unwrap();
    }
}

/// The key of whoever asks for something.
pub fn asker() -> KeyId {
    KeyId::from([7; 8])
}

/// The accounts of the node.
pub fn accounts() -> [AccountSid; 1] {
    [account()]
}

/// A node that claims for that long, and tries again at once.
pub fn claimant(lease: Duration) -> Claimant {
    let retry = Policy { base: Duration::from_millis(1), cap: Duration::from_secs(1), not_ready_for: LONG };
    Claimant { node: "node".to_owned(), lease, retry, recheck_after: Duration::ZERO }
}

/// Claims recordings of the node's accounts, for that long.
pub async fn claim_some(catalog: &Arc<dyn Catalog>, lease: Duration, at_most: usize) -> Vec<Claim> {
    let wishes = accounts().map(|account| Wish { account, at_most, of_backfill: at_most });
    catalog.claim(&claimant(lease), &wishes).await.unwrap()
}

/// How long until something of these accounts may be claimed.
pub async fn next_due(catalog: &Arc<dyn Catalog>, accounts: &[AccountSid]) -> Option<Duration> {
    let standings = catalog.standings(accounts).await.unwrap();
    standings.into_iter().map(|standing| standing.due_in).min()
}

/// Another attempt, and when.
pub fn again(after: Duration, not_before: Duration) -> Decision {
    Decision::Again { after, not_before }
}

/// The one recording that is due, claimed.
pub async fn claim_one(catalog: &Arc<dyn Catalog>, lease: Duration) -> Claim {
    let mut claims = claim_some(catalog, lease, 10).await;
    assert_eq!(claims.len(), 1, "{claims:?}");
    claims.remove(0)
}

/// What those bytes are stored as.
pub fn object(id: &RecordingId, bytes: &[u8]) -> StoredObject {
    let digest = Digest::of(bytes);
    let key = format!("CA/{}/{digest}.mp3", id.recording);
    StoredObject { digest, size_bytes: bytes.len() as i64, format: Format::Mp3, key }
}
