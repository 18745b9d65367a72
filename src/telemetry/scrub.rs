//! How the scrub fares: what it has gone over, and what it found.

use std::time::Duration;

use metrics::{counter, gauge};

use super::{Kind, Metric};

const CHECKED: &str = "callvault_scrub_checked_total";
const BYTES: &str = "callvault_scrub_bytes_total";
const FOUND: &str = "callvault_scrub_found_total";
const PROGRESS: &str = "callvault_scrub_progress_ratio";
const LAG: &str = "callvault_scrub_lag_seconds";

/// What a scrub looks at: a recording, whose object is read back, and a key of the list.
const SCRUBBED: &[&str] = &["recording", "key"];
/// What a scrub finds; see `vault/found.rs`.
const FINDS: &[&str] =
    &["missing", "corrupted", "unreadable", "misdescribed", "unregistered", "leftover", "marker", "unmarked", "alien"];

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: CHECKED,
        kind: Kind::Counter,
        help: "Recordings that this node scrubbed, and keys of the bucket's list that it looked at",
        label: Some(("what", SCRUBBED)),
    },
    Metric { name: BYTES, kind: Kind::Counter, help: "Bytes of objects that were scrubbed", label: None },
    Metric {
        name: FOUND,
        kind: Kind::Counter,
        help: "What scrubs found wrong, by kind; alien is what this service did not write",
        label: Some(("kind", FINDS)),
    },
    Metric {
        name: PROGRESS,
        kind: Kind::Gauge,
        help: "How much of the pass is done, from 0 to 1, and 1 between two of them; the same on every node",
        label: None,
    },
    Metric {
        name: LAG,
        kind: Kind::Gauge,
        help: "Seconds since the last whole scrub began, or the first one, where none is done yet; the same on every \
               node, and 0 where scrubs are switched off",
        label: None,
    },
];

/// So many were scrubbed; `what` is one of [`SCRUBBED`].
pub fn scrub_checked(what: &'static str, count: u64) {
    counter!(CHECKED, "what" => what).increment(count);
}

/// So many bytes were scrubbed.
pub fn scrub_bytes(bytes: u64) {
    counter!(BYTES).increment(bytes);
}

/// A scrub found something wrong; `kind` is one of [`FINDS`].
pub fn scrub_found(kind: &'static str) {
    counter!(FOUND, "kind" => kind).increment(1);
}

/// So much of a pass is done, from 0 to 1, and the last whole one began so long ago.
pub fn scrub_stands(progress: f64, lag: Duration) {
    gauge!(PROGRESS).set(progress);
    gauge!(LAG).set(lag.as_secs_f64());
}
