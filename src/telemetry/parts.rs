//! The metrics of what the service stands on, and of what is wrong with it.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::registry::{Kind, Metric};
use super::requests::METHODS;

const STORE_REQUESTS: &str = "callvault_store_requests_total";
const STORE_SECONDS: &str = "callvault_store_request_seconds";
const STORE_FAILURES: &str = "callvault_store_failures_total";
const CATALOG_SECONDS: &str = "callvault_catalog_statement_seconds";
const TROUBLE: &str = "callvault_trouble";

/// The parts of the service that may be in trouble.
pub const TROUBLES: &[&str] = &[
    "catalog_unreachable",
    "bucket_unreachable",
    "objects_missing",
    "claims_failing",
    "rechecks_failing",
    "keys_failing",
    "clock_off",
    "accounts_paused",
    "reconcile_failing",
    "scrub_failing",
    "unread",
    "unindexed",
    "letting_go_failing",
    "erasing_failing",
    "erasures_failing",
    "evicting_failing",
    "twilio_deletions_failing",
];

/// How a statement ended. `unavailable`: it was not answered, or not in time.
const STATEMENT_OUTCOMES: &[&str] = &["done", "refused", "unavailable"];

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: STORE_REQUESTS,
        kind: Kind::Counter,
        help: "Requests to the bucket's store",
        label: Some(("method", METHODS)),
    },
    Metric {
        name: STORE_SECONDS,
        kind: Kind::Histogram,
        help: "How long the store took until the headers of its answers",
        label: Some(("method", METHODS)),
    },
    Metric {
        name: STORE_FAILURES,
        kind: Kind::Counter,
        help: "Requests to the bucket's store that it did not answer, or with a status from 500 on",
        label: Some(("method", METHODS)),
    },
    Metric {
        name: CATALOG_SECONDS,
        kind: Kind::Histogram,
        help: "How long statements of the catalog took, by how they ended",
        label: Some(("outcome", STATEMENT_OUTCOMES)),
    },
    Metric {
        name: TROUBLE,
        kind: Kind::Gauge,
        help: "1 while a part of the service is in trouble",
        label: Some(("code", TROUBLES)),
    },
];

/// The store answered, or failed to.
pub fn store_answered(method: &'static str, has_failed: bool, took: Duration) {
    if has_failed {
        counter!(STORE_FAILURES, "method" => method).increment(1);
    }
    counter!(STORE_REQUESTS, "method" => method).increment(1);
    histogram!(STORE_SECONDS, "method" => method).record(took);
}

/// A statement ended; `outcome` is one of [`STATEMENT_OUTCOMES`].
pub fn catalog_answered(outcome: &'static str, took: Duration) {
    histogram!(CATALOG_SECONDS, "outcome" => outcome).record(took);
}

/// A part of the service got into trouble, or out of it; `code` is one of [`TROUBLES`].
pub fn trouble(code: &'static str, is_in_trouble: bool) {
    gauge!(TROUBLE, "code" => code).set(if is_in_trouble { 1.0 } else { 0.0 });
}
