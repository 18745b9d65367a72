//! The metrics of what travels from Twilio into the bucket.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use crate::domain::recording::ErrorCode;
use crate::domain::sid::AccountSid;

use super::registry::{Kind, Metric};

const FETCHES: &str = "callvault_fetches_total";
const FAILED: &str = "callvault_recordings_failed_total";
const FETCH_SECONDS: &str = "callvault_fetch_seconds";
pub(super) const FETCHES_RUNNING: &str = "callvault_fetches_running";
const STORED_BYTES: &str = "callvault_stored_bytes_total";
const RECHECKS: &str = "callvault_rechecks_total";
const RECHECK_REMOVED: &str = "callvault_recheck_removed_total";
const ACCOUNTS_PAUSED: &str = "callvault_accounts_paused";
const ACCOUNT_SLOWDOWNS: &str = "callvault_account_slowdowns_total";
const RECONCILE_WALKS: &str = "callvault_reconcile_walks_total";
const RECONCILE_FOUND: &str = "callvault_reconcile_found_total";
const RECONCILE_LAG: &str = "callvault_reconcile_lag_seconds";
const OLDEST_PENDING: &str = "callvault_oldest_pending_seconds";
const MANY_PENDING: &str = "callvault_many_pending_seconds";
const OLDEST_BACKFILL: &str = "callvault_oldest_backfill_pending_seconds";
const LEASES_LOST: &str = "callvault_leases_lost_total";
const LEASES_EXPIRED: &str = "callvault_leases_expired_total";
const RATE_LIMITED: &str = "callvault_twilio_rate_limited_total";

/// What a node works on under a lease: a fetch; a duty of a recording; a walk over
/// Twilio's list; the deliveries to a receiver; a part of a scrub or a reindex.
const LEASED_WORK: &[&str] = &["fetch", "duty", "walk", "receiver", "bucket_walk"];

/// What a recheck came to.
pub const RECHECK_OUTCOMES: &[&str] = &["in_order", "lost", "adopted", "unfinished", "stale"];

/// What a recheck removes: an object that its row does not name, what was staged, an
/// open upload, a version of what was deleted. What is erased or evicted counts, too.
pub const REMOVED_KINDS: &[&str] = &["object", "staged", "upload", "version"];

/// How a node's part of a walk over Twilio's list ended.
const WALK_OUTCOMES: &[&str] = &["completed", "handed_back", "failed", "lost"];

/// What Twilio was asked for and callbacks had not told: a recording, or what
/// became of an announced one; or an entry of its list that cannot be read.
const FINDS: &[&str] = &["new", "announced", "unreadable"];

/// Those whose labels are known only once the settings are.
pub(super) const OPEN: &[&str] = &[FETCHES, FAILED, RATE_LIMITED];

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: FETCH_SECONDS,
        kind: Kind::Histogram,
        help: "How long attempts to fetch a recording took",
        label: None,
    },
    Metric {
        name: FETCHES_RUNNING,
        kind: Kind::Gauge,
        help: "Attempts to fetch a recording that are under way on this node",
        label: None,
    },
    Metric { name: STORED_BYTES, kind: Kind::Counter, help: "Bytes of recordings that were stored", label: None },
    Metric {
        name: RECHECKS,
        kind: Kind::Counter,
        help: "Looks at what an attempt may have left in the bucket, by what they came to",
        label: Some(("outcome", RECHECK_OUTCOMES)),
    },
    Metric {
        name: RECHECK_REMOVED,
        kind: Kind::Counter,
        help: "What rechecks removed because no row names it",
        label: Some(("kind", REMOVED_KINDS)),
    },
    Metric { name: ACCOUNTS_PAUSED, kind: Kind::Gauge, help: "Accounts whose credentials Twilio refuses", label: None },
    Metric {
        name: ACCOUNT_SLOWDOWNS,
        kind: Kind::Counter,
        help: "How often Twilio asked for fewer requests at once of an account",
        label: None,
    },
    Metric {
        name: RECONCILE_WALKS,
        kind: Kind::Counter,
        help: "Walks over Twilio's list by how this node's part of them ended",
        label: Some(("outcome", WALK_OUTCOMES)),
    },
    Metric {
        name: RECONCILE_FOUND,
        kind: Kind::Counter,
        help: "Recordings of which Twilio told only when it was asked: new ones, announced ones that moved on, and \
               entries of its list that cannot be read",
        label: Some(("what", FINDS)),
    },
    Metric {
        name: RECONCILE_LAG,
        kind: Kind::Gauge,
        help: "Seconds since the last complete walk over Twilio's list began, of the account that waits longest; \
               the same on every node with the same accounts, and 0 where walks are switched off",
        label: None,
    },
    Metric {
        name: OLDEST_PENDING,
        kind: Kind::Gauge,
        help: "Seconds since the oldest recording that is not stored yet became pending, 0 where there is none; \
               what a backfill brought is left out; the same on every node with the same accounts",
        label: None,
    },
    Metric {
        name: MANY_PENDING,
        kind: Kind::Gauge,
        help: "Seconds for which more than ten recordings of an account have been pending, 0 where none has so many; \
               what a backfill brought is left out; the same on every node with the same accounts",
        label: None,
    },
    Metric {
        name: OLDEST_BACKFILL,
        kind: Kind::Gauge,
        help: "Seconds since the oldest recording that a backfill brought became pending, 0 where there is none; it \
               is fetched when nothing else is due; the same on every node with the same accounts",
        label: None,
    },
    Metric {
        name: LEASES_LOST,
        kind: Kind::Counter,
        help: "Work that this node stopped because its lease was lost, or might be",
        label: Some(("work", LEASED_WORK)),
    },
    Metric {
        name: LEASES_EXPIRED,
        kind: Kind::Counter,
        help: "Leases of fetches that this node found run out: whoever held them died, froze or was cut off",
        label: None,
    },
];

pub(super) fn declare() {
    metrics::describe_counter!(FETCHES, "Attempts to fetch a recording by how they ended");
    let codes = ErrorCode::ALL.iter().map(|code| code.as_str());
    for outcome in ["stored", "lost", "handed_back"].into_iter().chain(codes.clone()) {
        counter!(FETCHES, "outcome" => outcome).absolute(0);
    }
    metrics::describe_counter!(FAILED, "Recordings that were given up, by the code of the error: each counts once");
    for code in codes {
        counter!(FAILED, "code" => code).absolute(0);
    }
    metrics::describe_counter!(RATE_LIMITED, "How often Twilio answered 429, by account");
}

/// The accounts that are configured: no other becomes a label.
pub fn accounts<'a>(accounts: impl IntoIterator<Item = &'a AccountSid>) {
    for account in accounts {
        counter!(RATE_LIMITED, "account" => account.to_string()).absolute(0);
    }
}

/// Twilio answered 429 to something of that account, which is configured.
pub fn rate_limited(account: &AccountSid) {
    counter!(RATE_LIMITED, "account" => account.to_string()).increment(1);
}

/// The oldest recordings that are to be stored have waited for so long: of what came
/// by itself, of more than ten of that, and of what a backfill brought.
pub fn oldest_pending(age: Duration, of_many: Duration, of_backfill: Duration) {
    gauge!(OLDEST_PENDING).set(age.as_secs_f64());
    gauge!(MANY_PENDING).set(of_many.as_secs_f64());
    gauge!(OLDEST_BACKFILL).set(of_backfill.as_secs_f64());
}

/// A lease was lost, or may be; `work` is one of [`LEASED_WORK`].
pub fn lease_lost(work: &'static str) {
    counter!(LEASES_LOST, "work" => work).increment(1);
}

/// The lease of a fetch was found run out.
pub fn lease_expired() {
    counter!(LEASES_EXPIRED).increment(1);
}

/// An attempt ended: `stored`, `lost`, `handed_back`, or the code of its error.
pub fn fetch_ended(outcome: &'static str, took: Duration) {
    counter!(FETCHES, "outcome" => outcome).increment(1);
    histogram!(FETCH_SECONDS).record(took);
}

/// A recording was given up for that reason.
pub fn recording_failed(code: ErrorCode) {
    counter!(FAILED, "code" => code.as_str()).increment(1);
}

/// A recording of that length was stored.
pub fn stored_bytes(bytes: i64) {
    counter!(STORED_BYTES).increment(bytes.unsigned_abs());
}

/// A recheck ended; `outcome` is one of [`RECHECK_OUTCOMES`].
pub fn recheck_ended(outcome: &'static str) {
    counter!(RECHECKS, "outcome" => outcome).increment(1);
}

/// A recheck removed something; `kind` is one of [`REMOVED_KINDS`].
pub fn recheck_removed(kind: &'static str) {
    counter!(RECHECK_REMOVED, "kind" => kind).increment(1);
}

/// So many accounts are paused.
pub fn accounts_paused(count: usize) {
    gauge!(ACCOUNTS_PAUSED).set(u32::try_from(count).unwrap_or(u32::MAX));
}

/// An account was slowed down.
pub fn account_slowed() {
    counter!(ACCOUNT_SLOWDOWNS).increment(1);
}

/// This node's part of a walk ended; `outcome` is one of [`WALK_OUTCOMES`].
pub fn walk_ended(outcome: &'static str) {
    counter!(RECONCILE_WALKS, "outcome" => outcome).increment(1);
}

/// Twilio told something that no callback had; `what` is one of [`FINDS`].
pub fn reconcile_found(what: &'static str) {
    counter!(RECONCILE_FOUND, "what" => what).increment(1);
}

/// So many entries of Twilio's list cannot be read.
pub fn unreadable_in_list(entries: usize) {
    counter!(RECONCILE_FOUND, "what" => "unreadable").increment(entries as u64);
}

/// The last complete walk of the account that waits longest began so long ago.
pub fn reconcile_lag(lag: Duration) {
    gauge!(RECONCILE_LAG).set(lag.as_secs_f64());
}
