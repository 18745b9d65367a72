//! The metrics of those who are told what happens: readers of the feed, and receivers.

use std::time::Duration;

use metrics::{counter, gauge};

use super::registry::{Kind, Metric};

const FEED_LAG: &str = "callvault_feed_lag_seconds";
pub(super) const FEED_READERS: &str = "callvault_feed_readers";
const WEBHOOKS: &str = "callvault_webhook_posts_total";
const WEBHOOK_LAG: &str = "callvault_webhook_lag_seconds";
const WEBHOOKS_PENDING: &str = "callvault_webhooks_pending";

/// What came of posting an event: it was taken; it is posted again; it was not taken
/// for a day; the receiver wants no more.
pub const WEBHOOK_OUTCOMES: &[&str] = &["delivered", "failed", "given_up", "unwanted"];

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: FEED_LAG,
        kind: Kind::Gauge,
        help: "Seconds since this node last knew all of the feed; near 0 unless the catalog is away or too slow",
        label: None,
    },
    Metric { name: FEED_READERS, kind: Kind::Gauge, help: "Readers of the feed on this node", label: None },
    Metric {
        name: WEBHOOKS,
        kind: Kind::Counter,
        help: "Events that this node posted to receivers, by what came of it",
        label: Some(("outcome", WEBHOOK_OUTCOMES)),
    },
    Metric {
        name: WEBHOOK_LAG,
        kind: Kind::Gauge,
        help: "Seconds that the oldest event waits for a receiver that is to get it; the same on every node",
        label: None,
    },
    Metric {
        name: WEBHOOKS_PENDING,
        kind: Kind::Gauge,
        help: "Deliveries that receivers are still to take; the same on every node",
        label: None,
    },
];

/// This node last knew all of the feed so long ago.
pub fn feed_lag(lag: Duration) {
    gauge!(FEED_LAG).set(lag.as_secs_f64());
}

/// An event was posted; `outcome` is one of [`WEBHOOK_OUTCOMES`].
pub fn webhook_posted(outcome: &'static str) {
    counter!(WEBHOOKS, "outcome" => outcome).increment(1);
}

/// So many deliveries wait, and the oldest event does for so long.
pub fn webhooks_wait(lag: Duration, pending: i64) {
    gauge!(WEBHOOK_LAG).set(lag.as_secs_f64());
    gauge!(WEBHOOKS_PENDING).set(u32::try_from(pending).unwrap_or(u32::MAX));
}
