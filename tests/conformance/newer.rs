//! A newer version beside this one: its migrations only add, and this one goes on.

use callvault::catalog::ListFilter;
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::*;

/// What every newer version may do: a column more in each table, and a step of its own.
fn statements(tables: Vec<String>, integer: &str) -> Vec<String> {
    let column =
        |table: String| format!("ALTER TABLE {table} ADD COLUMN of_a_newer_version {integer} NOT NULL DEFAULT 0");
    let step = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                VALUES (9001, 'of a newer version', TRUE, 'x', 1)";
    tables.into_iter().map(column).chain([step.to_owned()]).collect()
}

async fn migrate_further(database: &Database) {
    match &database.url {
        Url::Postgres(url) => {
            let mut newer = sqlx::PgConnection::connect(url).await.unwrap();
            let tables = "SELECT table_name::TEXT FROM information_schema.tables WHERE table_schema = 'public' \
                          AND table_type = 'BASE TABLE' AND table_name <> '_sqlx_migrations'";
            let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut newer).await.unwrap();
            assert!(tables.len() > 5, "{tables:?}");
            for statement in statements(tables, "BIGINT") {
                newer.execute(AssertSqlSafe(statement)).await.unwrap();
            }
        }
        Url::Sqlite(folder) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("catalog.db"));
            let options = options.busy_timeout(Duration::from_secs(30));
            let mut newer = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
                          AND name <> '_sqlx_migrations'";
            let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut newer).await.unwrap();
            assert!(tables.len() > 5, "{tables:?}");
            for statement in statements(tables, "INTEGER") {
                newer.execute(AssertSqlSafe(statement)).await.unwrap();
            }
        }
    }
}

/// A callback is taken, and all is read; twice, so that every statement has been prepared.
async fn work(catalog: &dyn Catalog, number: u32) {
    for _ in 0..2 {
        catalog.accept(&callback(number, "completed")).await.unwrap();
        assert!(catalog.recording(&recording_id(number)).await.unwrap().is_some());
        assert!(!catalog.list(&ListFilter::default(), None, 10).await.unwrap().0.is_empty());
        catalog.history(&recording_id(number)).await.unwrap();
    }
}

on_every_catalog! {
    async fn a_node_goes_on_beside_a_newer_one_and_starts_after_it(database: Database) {
        let node = database.node().await;
        work(&*node, 1).await;
        migrate_further(&database).await;
        work(&*node, 1).await;
        work(&*node, 2).await;
        // Rolled back: this version starts on what the newer one left.
        work(&*database.node().await, 3).await;
    }
}
