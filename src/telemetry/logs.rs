//! The log: what is said, how, and to whom.
//!
//! Other crates log warnings at most, unless the settings name them. Some would write
//! whole requests, signatures and tokens included: these never say more.

use std::error::Error;
use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::traces;
use crate::config::{LogConfig, LogFormat};

/// The embedded store, and what fetches and signs with the cloud's credentials.
const NEVER_TALKATIVE: [&str; 7] =
    ["s3s", "s3s_fs", "aws_runtime", "aws_sdk_sts", "aws_sigv4", "aws_smithy_http_client", "aws_smithy_runtime"];

/// Starts logging, and tracing, as the settings say. Only the first call of a process does.
pub fn init_logs(log: &LogConfig) {
    let to_people = std::io::stderr().is_terminal();
    let text = log.format.map_or(to_people, |format| format == LogFormat::Text);
    let filter = EnvFilter::new(for_our_own(&log.filter));
    let tracer = log.otlp_endpoint.as_ref().and_then(traces::tracer);
    // What is traced does not hang on what is logged.
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::INFO);
    let traced = tracer.map(|tracer| tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours));
    let registry = tracing_subscriber::registry().with(traced);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match text {
        true => registry.with(layer.with_ansi(to_people).with_filter(filter)).try_init(),
        false => registry.with(layer.json().flatten_event(true).with_filter(filter)).try_init(),
    };
    // A second service in the same process logs to where the first one does.
    drop(started);
}

/// The filter of the settings, where a level without a target is meant for this
/// crate: others keep to warnings.
fn for_our_own(filter: &str) -> String {
    let directives = filter.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let directives = directives.filter(|directive| !is_of_the_quiet(directive));
    let directives = directives.map(|directive| match directive.parse::<LevelFilter>() {
        Ok(level) => format!("{},{}={level}", level.min(LevelFilter::WARN), env!("CARGO_CRATE_NAME")),
        Err(_) => directive.to_owned(),
    });
    // Of two for one crate the last one holds.
    let quiet = NEVER_TALKATIVE.map(|name| format!("{name}=warn"));
    // That there are no credentials is told as the bucket's trouble, once.
    let quiet = quiet.into_iter().chain(["aws_config=error".to_owned()]);
    directives.chain(quiet).collect::<Vec<_>>().join(",")
}

/// Whether a directive is for one of the crates that say no more than warnings, or for a part of it.
fn is_of_the_quiet(directive: &str) -> bool {
    let target = directive.split(['=', '[', ':']).next().unwrap_or_default();
    target == "aws_config" || NEVER_TALKATIVE.contains(&target)
}

/// The first cause of an error, which says most.
pub fn innermost<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_ours_and_others_keep_quiet() {
        let begin = |filter: &str| for_our_own(filter).split_once(",s3s=warn,").map(|(begin, _)| begin.to_owned());
        assert_eq!(begin("debug").as_deref(), Some("warn,callvault=debug"));
        assert_eq!(begin("error").as_deref(), Some("error,callvault=error"));
        let named = begin("info, callvault=trace,sqlx=debug,s3s=trace");
        assert_eq!(named.as_deref(), Some("warn,callvault=info,callvault=trace,sqlx=debug"));
    }

    #[test]
    fn what_writes_whole_requests_says_no_more_whatever_is_wished() {
        let wished = NEVER_TALKATIVE.map(|name| format!("{name}=trace,{name}::client[request]=trace,{name}::x=debug"));
        let wished = wished.join(",");
        let filter = EnvFilter::new(for_our_own(&wished)).to_string();
        for name in NEVER_TALKATIVE {
            assert!(filter.contains(&format!("{name}=warn")) && !filter.contains("trace"), "{filter}");
        }
    }
}
