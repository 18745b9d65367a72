//! The columns of the tables whose rows are read whole, each named.
//!
//! Never `*`: when a newer node adds a column, PostgreSQL refuses every statement
//! that was prepared before with all columns of that table, once on each
//! connection, in the middle of whatever was under way.

/// The columns of a table, as they follow SELECT or RETURNING; with `"r."`, those of its alias `r`.
macro_rules! columns_of {
    (recordings $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!(
            [$($prefix)?]
            account_sid, recording_sid, state, announced_by, epoch, lease_node, due_at, not_before,
            pending_since, asked_about_at, last_attempt_at, attempts, failed_attempts, upload_epoch,
            upload_id, recheck_due_at, duty_until, swept_epoch, call_sid, conference_sid,
            details_confirmed, source_host, duration_seconds, channels, track, recording_source,
            recorded_at, sha256, size_bytes, format, object_key, accepted_at, ordered_at, stored_at,
            last_asked_at, error_code, error_detail, error_at, hold, erase_due_at, erase_marked,
            erase_cleared, erase_twilio, erase_failures, erase_owed_since, hold_marker_due_at,
            hold_marker_until, hold_marker_epoch, hold_marker_owed_since, kept_at, twilio_marked_at, twilio_deleted_at, is_backfill, traceparent,
            doubted_at, look_first
        )
    };
    (accounts $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!(
            [$($prefix)?]
            account_sid, fetch_limit, too_many, limit_set_at, slowed_at, quiet_until, paused_at, probe_at,
            probes
        )
    };
    (api_keys $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!(
            [$($prefix)?]
            key_id, key_hash, name, scopes, account_sids, rate_per_second, created_at, revoked_at
        )
    };
    (share_secrets $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!([$($prefix)?] secret_id, secret, created_at, retired_at, ended_at)
    };
    (reconciles $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!(
            [$($prefix)?]
            account_sid, enrolled_at, epoch, lease_node, due_at, not_before, wanted, begun_at,
            window_from, next_page, pages, found, failed_rounds, completed_at, covered_until,
            asking_from
        )
    };
    (deliveries $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!(
            [$($prefix)?]
            receiver_id, seq, state, since, due_at, attempts, failed_attempts, last_attempt_at,
            last_status, last_error, ended_at
        )
    };
    (backfills $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!(
            [$($prefix)?]
            account_sid, run, since_day, until_day, begun_at, completed_at
        )
    };
    (backfill_days $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!(
            [$($prefix)?]
            account_sid, day, run, epoch, leased_until, next_page, pages, news, unreadable, passes,
            walked_at
        )
    };
    (found_objects $(, $prefix:literal)?) => {
        $crate::catalog::columns::listed!(
            [$($prefix)?]
            account_sid, recording_sid, object_key, others, call_sid, conference_sid,
            duration_seconds, channels, recorded_at, sha256, size_bytes, format, stored_at,
            source_host
        )
    };
}
pub(super) use columns_of;

/// Names with commas between them, each behind that prefix.
macro_rules! listed {
    ([] $($names:tt)+) => {
        $crate::catalog::columns::listed!([""] $($names)+)
    };
    ([$prefix:literal] $first:ident $(, $more:ident)*) => {
        concat!($prefix, stringify!($first) $(, ", ", $prefix, stringify!($more))*)
    };
}
pub(super) use listed;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sqlx::Connection;

    use crate::catalog::{Catalog, SqliteCatalog};

    #[tokio::test]
    async fn every_column_that_the_steps_make_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("catalog.db");
        SqliteCatalog::open(&file, 10).unwrap().prepare().await.unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
        let mut catalog = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        for (table, named) in [
            ("recordings", columns_of!(recordings)),
            ("accounts", columns_of!(accounts)),
            ("api_keys", columns_of!(api_keys)),
            ("share_secrets", columns_of!(share_secrets)),
            ("reconciles", columns_of!(reconciles)),
            ("deliveries", columns_of!(deliveries)),
            ("backfills", columns_of!(backfills)),
            ("backfill_days", columns_of!(backfill_days)),
            ("found_objects", columns_of!(found_objects)),
        ] {
            let columns = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)").bind(table);
            let columns: Vec<String> = columns.fetch_all(&mut catalog).await.unwrap();
            let named: BTreeSet<&str> = named.split(", ").collect();
            assert_eq!(named, columns.iter().map(String::as_str).collect(), "{table}");
        }
    }
}
