//! The metrics of audio that flows through this node.

use metrics::{counter, gauge};

use super::{Kind, Metric};

const OPEN: &str = "callvault_streams_open";
const STREAMS: &str = "callvault_streams_total";
const STREAMED_BYTES: &str = "callvault_streamed_bytes_total";

/// How a stream of audio ended. `left`: whoever listened went away, or read nothing
/// for too long; `broken_off`: the bytes did not come, or were not the right ones.
pub const STREAM_ENDS: &[&str] = &["complete", "left", "broken_off"];

pub(super) const METRICS: &[Metric] = &[
    Metric { name: OPEN, kind: Kind::Gauge, help: "Streams of audio that flow through this node", label: None },
    Metric {
        name: STREAMS,
        kind: Kind::Counter,
        help: "Streams of audio through this node by how they ended",
        label: Some(("end", STREAM_ENDS)),
    },
    Metric { name: STREAMED_BYTES, kind: Kind::Counter, help: "Bytes of audio given through this node", label: None },
];

/// A stream of audio began.
pub fn stream_opened() {
    gauge!(OPEN).increment(1.0);
}

/// A stream of audio is over; `end` is one of [`STREAM_ENDS`].
pub fn stream_ended(end: &'static str) {
    gauge!(OPEN).decrement(1.0);
    counter!(STREAMS, "end" => end).increment(1);
}

/// So many bytes of audio were given.
pub fn streamed_bytes(bytes: usize) {
    counter!(STREAMED_BYTES).increment(bytes as u64);
}
