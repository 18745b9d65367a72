//! Every metric that there is, declared once and there from the start.
//!
//! An alert on a counter that was never raised must not be blind. Labels are from
//! closed sets, never from what came in.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::{fetches, letting_go, parts, requests, scrub, streams, telling};

const BUILD_INFO: &str = "callvault_build_info";

pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric: what it is called, and what it tells.
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
    /// The label, and all its values.
    pub(super) label: Option<(&'static str, &'static [&'static str])>,
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
    let subjects = [
        requests::METRICS,
        fetches::METRICS,
        parts::METRICS,
        telling::METRICS,
        streams::METRICS,
        letting_go::METRICS,
        scrub::METRICS,
    ];
    subjects.into_iter().flatten()
}

/// What each is called. A histogram's series end in `_bucket`, `_sum` and `_count`.
pub fn metric_names() -> impl Iterator<Item = &'static str> {
    let without_a_closed_set = requests::OPEN.iter().chain(fetches::OPEN).copied().chain([BUILD_INFO]);
    every_metric().map(|metric| metric.name).chain(without_a_closed_set)
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
    requests::declare();
    fetches::declare();
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::describe_gauge!(BUILD_INFO, "1, with the version as a label");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_there_from_the_start_and_named_as_ours() {
        let text = metrics().render();
        for metric in every_metric() {
            let of_histogram = if matches!(metric.kind, Kind::Histogram) { "_count" } else { "" };
            let series = format!("\n{}{of_histogram}", metric.name);
            assert!(text.contains(&series), "{} is missing", metric.name);
        }
        assert!(text.contains(r#"callvault_fetches_total{outcome="not_ready"} 0"#), "{text}");
        for series in [
            r#"callvault_leases_lost_total{work="fetch"} 0"#,
            "callvault_leases_expired_total 0",
            "callvault_oldest_pending_seconds 0",
            "callvault_memory_hits_total 0",
            r#"callvault_store_failures_total{method="PUT"} 0"#,
        ] {
            assert!(text.contains(series), "{series} is missing: {text}");
        }
        let ours = |line: &&str| !line.starts_with('#') && !line.is_empty();
        assert!(text.lines().filter(ours).all(|line| line.starts_with("callvault_")), "{text}");
    }
}
