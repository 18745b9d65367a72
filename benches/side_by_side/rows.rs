//! Catalogs that are full: stored recordings that nobody ever fetched.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::world::{ACCOUNT, World};

/// Rows of one statement: each is a transaction of some seconds.
const AT_ONCE: u32 = 100_000;

/// Makes stored recordings of these numbers, one a call, a minute between two of them.
/// They have no objects: whoever is redirected does not ask the store.
pub async fn fill(world: &World, from: u32, until: u32) {
    let mut connection = connect(world).await;
    for begin in (from..until).step_by(AT_ONCE as usize) {
        let end = until.min(begin + AT_ONCE) - 1;
        let sql = format!(
            "INSERT INTO recordings (account_sid, recording_sid, state, announced_by, epoch, attempts, call_sid, \
             details_confirmed, duration_seconds, channels, recorded_at, sha256, size_bytes, format, object_key, \
             accepted_at, ordered_at, stored_at) \
             SELECT '{ACCOUNT}', 'RE' || hex, 'stored', 'callback', 1, 1, 'CA' || hex, 1, 60, 1, at, \
             decode(hex || hex, 'hex'), 240000, 'mp3', 'CA' || hex || '/RE' || hex || '/' || hex || hex || '.mp3', \
             at, at, at FROM (SELECT lpad(to_hex(n), 32, '0') AS hex, now_ms - n * 60000::bigint AS at \
             FROM generate_series({begin}, {end}) AS n CROSS JOIN clock) AS numbers"
        );
        connection.execute(AssertSqlSafe(sql)).await.expect("rows");
    }
    connection.execute("VACUUM ANALYZE recordings").await.expect("statistics");
}

async fn connect(world: &World) -> PgConnection {
    PgConnection::connect(&world.settings["CALLVAULT_DATABASE_URL"]).await.expect("PostgreSQL is up")
}

/// Makes so many of the stored ones pending and due.
pub async fn make_pending(world: &World, count: u32) {
    let sql = format!(
        "UPDATE recordings SET state = 'pending', due_at = now_ms, pending_since = now_ms FROM clock \
         WHERE (account_sid, recording_sid) IN (SELECT account_sid, recording_sid FROM recordings \
         WHERE state = 'stored' ORDER BY recording_sid LIMIT {count})"
    );
    connect(world).await.execute(AssertSqlSafe(sql)).await.expect("rows");
}
