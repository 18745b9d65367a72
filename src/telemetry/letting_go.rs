//! The metrics of what is erased, held, evicted and deleted at Twilio.

use std::time::Duration;

use metrics::{counter, gauge};

use super::{Kind, Metric};

const ERASURES: &str = "callvault_erasures_total";
const ERASED_BY_AGE: &str = "callvault_erased_by_age_total";
const EVICTIONS: &str = "callvault_evictions_total";
const TWILIO_DELETIONS: &str = "callvault_twilio_deletions_total";
const OWED: &str = "callvault_letting_go_owed";
const OLDEST: &str = "callvault_letting_go_oldest_seconds";

/// How a try at what is left of an erased recording ended.
pub const ERASURE_OUTCOMES: &[&str] = &["done", "owed", "handed_back", "lost"];
/// How a try at evicting a recording ended. `kept`: it may not go.
pub const EVICTION_OUTCOMES: &[&str] = &["evicted", "kept", "failed", "handed_back", "lost"];
/// How a try at deleting a recording at Twilio ended. `differs`: the stored copy is
/// not what the catalog says.
pub const TWILIO_DELETION_OUTCOMES: &[&str] = &["deleted", "kept", "differs", "failed", "handed_back", "lost"];
/// What may be owed of what was let go, or held.
const OWED_KINDS: &[&str] = &["erasure", "hold_marker"];

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: ERASURES,
        kind: Kind::Counter,
        help: "Tries at what is left of erased recordings, by how they ended",
        label: Some(("outcome", ERASURE_OUTCOMES)),
    },
    Metric { name: ERASED_BY_AGE, kind: Kind::Counter, help: "Recordings that were erased by their age", label: None },
    Metric {
        name: EVICTIONS,
        kind: Kind::Counter,
        help: "Tries at evicting recordings, by how they ended",
        label: Some(("outcome", EVICTION_OUTCOMES)),
    },
    Metric {
        name: TWILIO_DELETIONS,
        kind: Kind::Counter,
        help: "Tries at deleting recordings at Twilio, by how they ended",
        label: Some(("outcome", TWILIO_DELETION_OUTCOMES)),
    },
    Metric {
        name: OWED,
        kind: Kind::Gauge,
        help: "Recordings of which erasing, or the marker of a hold, is still owed; the same on every node",
        label: Some(("what", OWED_KINDS)),
    },
    Metric {
        name: OLDEST,
        kind: Kind::Gauge,
        help: "Seconds for which the oldest erasing, or marker of a hold, has been owed, 0 where none is; the same \
               on every node",
        label: Some(("what", OWED_KINDS)),
    },
];

/// A try at what is left of an erased recording ended; one of [`ERASURE_OUTCOMES`].
pub fn erasure_ended(outcome: &'static str) {
    counter!(ERASURES, "outcome" => outcome).increment(1);
}

/// So many recordings were erased by their age.
pub fn erased_by_age(count: usize) {
    counter!(ERASED_BY_AGE).increment(count as u64);
}

/// A try at evicting ended; one of [`EVICTION_OUTCOMES`].
pub fn eviction_ended(outcome: &'static str) {
    counter!(EVICTIONS, "outcome" => outcome).increment(1);
}

/// A try at deleting at Twilio ended; one of [`TWILIO_DELETION_OUTCOMES`].
pub fn twilio_deletion_ended(outcome: &'static str) {
    counter!(TWILIO_DELETIONS, "outcome" => outcome).increment(1);
}

/// So many recordings owe that, the oldest of them for so long; one of [`OWED_KINDS`].
pub fn owed(what: &'static str, count: u64, oldest: Duration) {
    gauge!(OWED, "what" => what).set(count as f64);
    gauge!(OLDEST, "what" => what).set(oldest.as_secs_f64());
}
