//! Logs, and every metric that there is.
//!
//! Each metric is declared once, in [`METRICS`], and is there from the start
//! with zero: an alert on a counter that was never raised must not be blind.
//! Labels are from closed sets, never from what came in. Other crates log
//! warnings at most, unless the settings name them: some of them write whole
//! requests at `debug`, signatures included.

mod letting_go;
mod streams;

use std::error::Error;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use letting_go::{erased_by_age, erasure_ended, eviction_ended, owed, twilio_deletion_ended};
pub use streams::{STREAM_ENDS, stream_ended, stream_opened, streamed_bytes};

use crate::config::{LogConfig, LogFormat};
use crate::domain::recording::ErrorCode;

const HTTP_REQUESTS: &str = "callvault_http_requests_total";
const HTTP_SECONDS: &str = "callvault_http_request_seconds";
const CALLBACKS: &str = "callvault_callbacks_total";
const DELIVERIES: &str = "callvault_deliveries_total";
const QUESTIONS: &str = "callvault_questions_total";
const FETCHES: &str = "callvault_fetches_total";
const FETCH_SECONDS: &str = "callvault_fetch_seconds";
const FETCHES_RUNNING: &str = "callvault_fetches_running";
const STORED_BYTES: &str = "callvault_stored_bytes_total";
const RECHECKS: &str = "callvault_rechecks_total";
const RECHECK_REMOVED: &str = "callvault_recheck_removed_total";
const STORE_REQUESTS: &str = "callvault_store_requests_total";
const STORE_SECONDS: &str = "callvault_store_request_seconds";
const ACCOUNTS_PAUSED: &str = "callvault_accounts_paused";
const ACCOUNT_SLOWDOWNS: &str = "callvault_account_slowdowns_total";
const RECONCILE_WALKS: &str = "callvault_reconcile_walks_total";
const RECONCILE_FOUND: &str = "callvault_reconcile_found_total";
const RECONCILE_LAG: &str = "callvault_reconcile_lag_seconds";
const FEED_LAG: &str = "callvault_feed_lag_seconds";
const FEED_READERS: &str = "callvault_feed_readers";
const WEBHOOKS: &str = "callvault_webhook_posts_total";
const WEBHOOK_LAG: &str = "callvault_webhook_lag_seconds";
const WEBHOOKS_PENDING: &str = "callvault_webhooks_pending";
const TROUBLE: &str = "callvault_trouble";
const BUILD_INFO: &str = "callvault_build_info";

mod scrub;

pub use scrub::{scrub_bytes, scrub_checked, scrub_found, scrub_lag, scrub_progress};

enum Kind {
    Counter,
    Gauge,
    Histogram,
}

struct Metric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    /// The label, and all its values.
    label: Option<(&'static str, &'static [&'static str])>,
}

/// The methods that are counted by name; clients that make one up make no label.
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "other"];
/// What became of a callback.
pub const CALLBACK_OUTCOMES: &[&str] =
    &["accepted", "known", "bad_signature", "malformed", "unsupported_media_type", "unavailable"];
/// What was answered to "play this".
pub const DELIVERY_KINDS: &[&str] = &["redirect", "stream", "not_ready", "gone", "unknown", "unavailable"];
/// What became of asking Twilio for a call that was not known. `overtaken`: news of
/// it came first, or the right to ask was lost; `refused`: too many were asked for.
pub const QUESTION_OUTCOMES: &[&str] = &["found", "nothing", "unavailable", "overtaken", "handed_back", "refused"];
/// What a recheck came to.
pub const RECHECK_OUTCOMES: &[&str] = &["in_order", "lost", "adopted", "unfinished", "stale"];
/// What a recheck removes: an object that its row does not name, what was staged, an
/// open upload, a version of what was deleted. What is erased or evicted counts, too.
pub const REMOVED_KINDS: &[&str] = &["object", "staged", "upload", "version"];
/// What came of posting an event: it was taken; it is posted again; it was not taken
/// for a day; the receiver wants no more.
pub const WEBHOOK_OUTCOMES: &[&str] = &["delivered", "failed", "given_up", "unwanted"];
/// The parts of the service that may be in trouble.
pub const TROUBLES: &[&str] = &[
    "catalog_unreachable",
    "bucket_unreachable",
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
/// How a node's part of a walk over Twilio's list ended.
const WALK_OUTCOMES: &[&str] = &["completed", "handed_back", "failed", "lost"];
/// What Twilio was asked for and callbacks had not told: a recording, or what
/// became of an announced one.
const FINDS: &[&str] = &["new", "announced"];

const METRICS: &[Metric] = &[
    Metric {
        name: CALLBACKS,
        kind: Kind::Counter,
        help: "Callbacks by what became of them",
        label: Some(("outcome", CALLBACK_OUTCOMES)),
    },
    Metric {
        name: DELIVERIES,
        kind: Kind::Counter,
        help: "Requests to play a recording by what was answered",
        label: Some(("kind", DELIVERY_KINDS)),
    },
    Metric {
        name: QUESTIONS,
        kind: Kind::Counter,
        help: "Questions to Twilio for calls that were not known, by what became of them",
        label: Some(("outcome", QUESTION_OUTCOMES)),
    },
    Metric {
        name: FETCHES_RUNNING,
        kind: Kind::Gauge,
        help: "Attempts to fetch a recording that are under way on this node",
        label: None,
    },
    Metric {
        name: FETCH_SECONDS,
        kind: Kind::Histogram,
        help: "How long attempts to fetch a recording took",
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
        help: "Recordings of which Twilio told only when it was asked: new ones, and announced ones that moved on",
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
    Metric {
        name: TROUBLE,
        kind: Kind::Gauge,
        help: "1 while a part of the service is in trouble",
        label: Some(("code", TROUBLES)),
    },
];

/// Starts logging as the settings say. Only the first call of a process does.
pub fn init_logs(log: &LogConfig) {
    let to_people = std::io::stderr().is_terminal();
    let text = log.format.map_or(to_people, |format| format == LogFormat::Text);
    let filter = EnvFilter::new(for_our_own(&log.filter));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match text {
        true => registry.with(layer.with_ansi(to_people)).try_init(),
        false => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    // A second service in the same process logs to where the first one does.
    drop(started);
}

/// The filter of the settings, where a level without a target is meant for this
/// crate: others keep to warnings. The embedded store's crates never say more.
fn for_our_own(filter: &str) -> String {
    let directives = filter.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let directives = directives.map(|directive| match directive.parse::<LevelFilter>() {
        Ok(level) => format!("{},{}={level}", level.min(LevelFilter::WARN), env!("CARGO_CRATE_NAME")),
        Err(_) => directive.to_owned(),
    });
    directives.chain(["s3s=warn".to_owned(), "s3s_fs=warn".to_owned()]).collect::<Vec<_>>().join(",")
}

/// The first cause of an error, which says most.
pub fn innermost<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// The metrics of this process. [`keep_up`] must be run beside it.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        const SECONDS: [f64; 14] =
            [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .expect("the list of buckets is not empty")
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).expect("nobody else sets the recorder of this process");
        declare();
        handle
    })
}

/// Folds what was measured into the metrics, for as long as the process runs:
/// until then every measurement is kept by itself.
pub async fn keep_up() {
    const EVERY: Duration = Duration::from_secs(5);
    loop {
        tokio::time::sleep(EVERY).await;
        metrics().run_upkeep();
    }
}

fn every_metric() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().chain(streams::METRICS).chain(letting_go::METRICS).chain(scrub::METRICS)
}

fn declare() {
    for metric in every_metric() {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metrics::Unit::Seconds, metric.help),
        }
        let (label, values) = metric.label.unwrap_or(("", &[""]));
        for value in values {
            let labels = if label.is_empty() { vec![] } else { vec![(label, *value)] };
            match metric.kind {
                Kind::Counter => counter!(metric.name, &labels).absolute(0),
                Kind::Gauge => gauge!(metric.name, &labels).set(0.0),
                Kind::Histogram => drop(histogram!(metric.name, &labels)),
            }
        }
    }
    metrics::describe_counter!(FETCHES, "Attempts to fetch a recording by how they ended");
    let codes = ErrorCode::ALL.iter().map(|code| code.as_str());
    for outcome in ["stored", "lost", "handed_back"].into_iter().chain(codes) {
        counter!(FETCHES, "outcome" => outcome).absolute(0);
    }
    metrics::describe_counter!(HTTP_REQUESTS, "Requests by route, method and status");
    metrics::describe_histogram!(HTTP_SECONDS, metrics::Unit::Seconds, "How long requests took until their headers");
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::describe_gauge!(BUILD_INFO, "1, with the version as a label");
}

/// A route that will be counted.
pub fn http_route(route: &'static str) {
    counter!(HTTP_REQUESTS, "route" => route, "method" => "GET", "status" => "200").absolute(0);
    drop(histogram!(HTTP_SECONDS, "route" => route));
}

/// A request was answered. `route` is the route's pattern, never the path.
pub fn http_answered(route: String, method: &'static str, status: u16, took: Duration) {
    counter!(HTTP_REQUESTS, "route" => route.clone(), "method" => method, "status" => status.to_string()).increment(1);
    histogram!(HTTP_SECONDS, "route" => route).record(took);
}

/// A method as a label.
pub fn method_label(method: &http::Method) -> &'static str {
    METHODS.iter().find(|known| **known == method.as_str()).copied().unwrap_or("other")
}

/// The store answered, or failed to.
pub fn store_answered(method: &'static str, took: Duration) {
    counter!(STORE_REQUESTS, "method" => method).increment(1);
    histogram!(STORE_SECONDS, "method" => method).record(took);
}

/// A callback came; `outcome` is one of [`CALLBACK_OUTCOMES`].
pub fn callback(outcome: &'static str) {
    counter!(CALLBACKS, "outcome" => outcome).increment(1);
}

/// Someone wanted to play a recording; `kind` is one of [`DELIVERY_KINDS`].
pub fn delivery(kind: &'static str) {
    counter!(DELIVERIES, "kind" => kind).increment(1);
}

/// Twilio was asked for a call that was not known, or should have been; `outcome`
/// is one of [`QUESTION_OUTCOMES`].
pub fn question(outcome: &'static str) {
    counter!(QUESTIONS, "outcome" => outcome).increment(1);
}

/// Something that is counted as long as this lives.
pub struct Running(&'static str);

impl Running {
    /// An attempt to fetch a recording.
    pub fn fetch() -> Self {
        Self::begin(FETCHES_RUNNING)
    }

    /// A reader of the feed.
    pub fn feed_reader() -> Self {
        Self::begin(FEED_READERS)
    }

    fn begin(gauge: &'static str) -> Self {
        gauge!(gauge).increment(1.0);
        Self(gauge)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        gauge!(self.0).decrement(1.0);
    }
}

/// An attempt ended: `stored`, `lost`, `handed_back`, or the code of its error.
pub fn fetch_ended(outcome: &'static str, took: Duration) {
    counter!(FETCHES, "outcome" => outcome).increment(1);
    histogram!(FETCH_SECONDS).record(took);
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

/// The last complete walk of the account that waits longest began so long ago.
pub fn reconcile_lag(lag: Duration) {
    gauge!(RECONCILE_LAG).set(lag.as_secs_f64());
}

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

/// A part of the service got into trouble, or out of it; `code` is one of [`TROUBLES`].
pub fn trouble(code: &'static str, is_in_trouble: bool) {
    gauge!(TROUBLE, "code" => code).set(if is_in_trouble { 1.0 } else { 0.0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_ours_and_others_keep_quiet() {
        assert_eq!(for_our_own("debug"), "warn,callvault=debug,s3s=warn,s3s_fs=warn");
        assert_eq!(for_our_own("error"), "error,callvault=error,s3s=warn,s3s_fs=warn");
        let named = "info, callvault=trace,sqlx=debug,s3s=trace";
        assert_eq!(for_our_own(named), "warn,callvault=info,callvault=trace,sqlx=debug,s3s=trace,s3s=warn,s3s_fs=warn");
    }

    #[test]
    fn every_metric_is_there_from_the_start_and_named_as_ours() {
        let text = metrics().render();
        for metric in every_metric().filter(|metric| !matches!(metric.kind, Kind::Histogram)) {
            assert!(text.contains(metric.name), "{} is missing", metric.name);
        }
        assert!(text.contains(r#"callvault_fetches_total{outcome="not_ready"} 0"#), "{text}");
        let ours = |line: &&str| !line.starts_with('#') && !line.is_empty();
        assert!(text.lines().filter(ours).all(|line| line.starts_with("callvault_")), "{text}");
    }
}
