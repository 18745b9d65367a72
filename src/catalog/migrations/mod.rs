//! The steps of the schema, a folder a database.
//!
//! A step only adds, so that nodes of the version before go on beside newer
//! ones; one that has landed is never changed again.

use std::collections::HashSet;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::sql::{Session, args};
use super::{CatalogError, Result};

/// One step: its number, its name, its statements.
pub(super) struct Step(pub(super) i64, pub(super) &'static str, pub(super) &'static str);

/// How many of those steps a database has not had yet.
pub(super) async fn missing(session: &mut Session, steps: &[Step]) -> Result<usize> {
    let applied = match session.rows("SELECT version FROM _sqlx_migrations WHERE success", args![]).await {
        Ok(rows) => rows.iter().map(|row| row.get("version")).collect::<Result<HashSet<i64>>>()?,
        // Where there is no such table, none was taken.
        Err(CatalogError::Refused(_)) => HashSet::new(),
        Err(error) => return Err(error),
    };
    Ok(steps.iter().filter(|step| !applied.contains(&step.0)).count())
}

/// What runs those steps that a database has not had yet.
pub(super) fn migrator(steps: &[Step]) -> Migrator {
    let migration = |Step(number, name, statements): &Step| {
        Migration::new(*number, (*name).into(), MigrationType::Simple, (*statements).into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(steps.iter().map(migration).collect());
    // A newer node may have been here: its changes only add.
    migrator.set_ignore_missing(true);
    migrator
}
