//! Logs, traces, and every metric that there is.
//!
//! Metrics are declared once, in the file of their subject, and are there from
//! the start with zero. Nothing here knows a secret, a signed URL, a share or a
//! phone number: whoever logs hands in SIDs, states and durations.

mod fetches;
mod letting_go;
mod logs;
mod parts;
mod registry;
mod requests;
mod running;
mod scrub;
mod streams;
mod telling;
mod traces;

pub use fetches::{
    RECHECK_OUTCOMES, REMOVED_KINDS, account_slowed, accounts, accounts_paused, fetch_ended, lease_expired, lease_lost,
    oldest_pending, rate_limited, recheck_ended, recheck_removed, reconcile_found, reconcile_lag, recording_failed,
    stored_bytes, unreadable_in_list, walk_ended,
};
pub use letting_go::{erased_by_age, erasure_ended, eviction_ended, owed, twilio_deletion_ended};
pub use logs::{init_logs, innermost};
pub use parts::{TROUBLES, catalog_answered, store_answered, trouble};
use registry::{Kind, Metric};
pub use registry::{keep_up, metric_names, metrics};
pub use requests::{
    CALLBACK_OUTCOMES, DELIVERY_KINDS, QUESTION_OUTCOMES, callback, callback_accounts, callback_signed, delivery,
    http_answered, http_route, memory_hit, method_label, question,
};
pub use running::Running;
pub use scrub::{scrub_bytes, scrub_checked, scrub_found, scrub_stands};
pub use streams::{STREAM_ENDS, stream_ended, stream_opened, streamed_bytes};
pub use telling::{WEBHOOK_OUTCOMES, feed_lag, webhook_posted, webhooks_wait};
pub use traces::{flush_traces, go_on, host_name, traceparent};
