//! deploy/alerts and deploy/dashboards: by promtool, and against the metrics and
//! the runbook that they name. That alerts fire is shown by tests/it/alerts.rs.

use std::collections::BTreeSet;
use std::process::Command;

use callvault::domain::recording::ErrorCode;
use callvault::telemetry::metric_names;
use callvault::vault::found::FoundKind;
use serde_json::Value;

use crate::succeeds;
use crate::support::{deploy, root, yaml};

fn rules() -> Vec<Value> {
    let file = yaml(&deploy("alerts/callvault.yaml")).remove(0);
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect()
}

fn dashboard_queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&deploy("dashboards/callvault.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// The metrics of this service that a query names.
fn named(query: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    query.split(|c| !is_word(c)).filter(|word| word.starts_with("callvault_")).collect()
}

/// A query without what Grafana puts in.
fn for_promtool(query: &str) -> String {
    query.replace("$__rate_interval", "5m")
}

#[test]
fn promtool_takes_the_alerts() {
    succeeds(Command::new("promtool").args(["check", "rules"]).arg(root().join("deploy/alerts/callvault.yaml")));
}

#[test]
fn promtool_takes_how_the_page_scrapes_nodes() {
    let page = deploy("METRICS.md");
    let config = page.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("prometheus.yaml"), config).unwrap();
    std::fs::write(folder.path().join("callvault.yaml"), deploy("alerts/callvault.yaml")).unwrap();
    // The key's own file is where it says, on Prometheus' machine.
    let check = ["check", "config", "--syntax-only", "prometheus.yaml"];
    succeeds(Command::new("promtool").args(check).current_dir(folder.path()));
}

#[test]
fn promtool_takes_every_query_of_the_dashboard() {
    let folder = tempfile::tempdir().unwrap();
    let as_rule = |query: &String| serde_json::json!({"record": "panel:query", "expr": for_promtool(query)});
    let queries = dashboard_queries();
    assert!(queries.len() > 20, "{queries:?}");
    // One group a query: rules of one name and no labels are repeats otherwise.
    let groups = queries.iter().enumerate();
    let groups: Vec<Value> = groups
        .map(|(at, query)| serde_json::json!({"name": format!("panel-{at}"), "rules": [as_rule(query)]}))
        .collect();
    let file = folder.path().join("panels.yaml");
    std::fs::write(&file, serde_json::json!({"groups": groups}).to_string()).unwrap();
    succeeds(Command::new("promtool").args(["check", "rules", "--lint=none"]).arg(file));
}

#[test]
fn every_metric_that_an_alert_or_a_panel_names_is_there() {
    let known: BTreeSet<&str> = metric_names().collect();
    let is_known = |name: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        known.contains(name) || of_histogram.is_some_and(|name| known.contains(name))
    };
    let alerts = rules().into_iter().map(|rule| rule["expr"].as_str().unwrap().to_owned());
    for query in alerts.chain(dashboard_queries()) {
        let named = named(&query);
        assert!(!named.is_empty(), "{query} names no metric of this service");
        let unknown: Vec<&str> = named.into_iter().filter(|name| !is_known(name)).collect();
        assert_eq!(unknown, Vec::<&str>::new(), "in {query}");
    }
}

/// The labels that a metric has, by its row in the table. (That the service says the same is
/// shown by tests/it/handbook/names.rs.)
fn labels(metric: &str) -> BTreeSet<String> {
    let table = deploy("METRICS.md");
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| metric.strip_suffix(end));
    let row = [Some(metric), of_histogram].into_iter().flatten().find_map(|name| {
        let begin = format!("| `{name}` |");
        table.lines().find(|line| line.starts_with(&begin))
    });
    let cell = row.unwrap_or_else(|| panic!("{metric} has no row")).split(" | ").nth(2).unwrap();
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A query by a label that is not there shows one line without a name, and no mistake.
#[test]
fn every_label_that_an_alert_or_a_panel_goes_by_is_there() {
    const OF_PROMETHEUS: [&str; 4] = ["instance", "job", "le", "namespace"];
    let alerts = rules().into_iter().map(|rule| rule["expr"].as_str().unwrap().to_owned());
    let mut seen = 0;
    for query in alerts.chain(dashboard_queries()) {
        let there: BTreeSet<String> = named(&query).into_iter().flat_map(labels).collect();
        for list in query.split(" by (").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            for label in list.split(',').map(str::trim) {
                assert!(OF_PROMETHEUS.contains(&label) || there.contains(label), "{label} in {query}");
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "{seen}");
}

/// A Prometheus may watch a service for a trial beside the one that counts.
#[test]
fn what_is_said_of_one_service_is_not_of_another() {
    for rule in rules() {
        let expr = rule["expr"].as_str().unwrap();
        let gathered: Vec<&str> = ["sum ", "max ", "on "].iter().flat_map(|word| expr.split(*word).skip(1)).collect();
        assert!(rule["alert"] == "CallvaultDown" || !gathered.is_empty(), "{expr}");
        for rest in gathered {
            let of_each = rest.strip_prefix("by ").unwrap_or(rest);
            assert!(of_each.starts_with("(namespace, job"), "{} takes all as one: {expr}", rule["alert"]);
        }
        assert!(!expr.contains("sum(") && !expr.contains("max("), "{} takes all as one: {expr}", rule["alert"]);
    }
    for query in dashboard_queries() {
        let of_one = query.matches("{namespace=~\"$namespace\",job=~\"$job\"").count();
        assert_eq!(of_one, named(&query).len(), "{query}");
    }
}

/// What people ask of a service that has run for years, and what answers it.
const QUESTIONS: &[(&str, &[&str])] = &[
    ("how long the oldest recording waits", &["callvault_oldest_pending_seconds"]),
    ("how long a backfill takes", &["callvault_oldest_backfill_pending_seconds"]),
    ("what is given up", &["callvault_recordings_failed_total"]),
    ("how long erasing takes", &["callvault_letting_go_oldest_seconds"]),
    ("how fetches end", &["callvault_fetches_total", "callvault_fetch_seconds"]),
    ("how many bytes are stored and given", &["callvault_stored_bytes_total", "callvault_streamed_bytes_total"]),
    ("how often leases are lost", &["callvault_leases_lost_total", "callvault_leases_expired_total"]),
    ("which accounts Twilio slows down", &["callvault_twilio_rate_limited_total"]),
    ("what is answered from memory", &["callvault_memory_hits_total"]),
    ("how long the catalog takes", &["callvault_catalog_statement_seconds"]),
    ("how long the store takes", &["callvault_store_request_seconds", "callvault_store_failures_total"]),
    ("how far the feed is behind", &["callvault_feed_lag_seconds"]),
    ("how far receivers are behind", &["callvault_webhook_lag_seconds", "callvault_webhooks_pending"]),
    ("what callbacks did not tell", &["callvault_reconcile_found_total", "callvault_reconcile_lag_seconds"]),
    ("how far the scrub is", &["callvault_scrub_progress_ratio", "callvault_scrub_found_total"]),
];

#[test]
fn the_dashboard_answers_what_people_ask() {
    let queries = dashboard_queries();
    let shown: BTreeSet<&str> = queries.iter().flat_map(|query| named(query)).collect();
    let is_shown = |name: &&str| shown.iter().any(|query| query.trim_end_matches("_bucket") == *name);
    for (question, metrics) in QUESTIONS {
        let missing: Vec<&&str> = metrics.iter().filter(|name| !is_shown(name)).collect();
        assert_eq!(missing, Vec::<&&str>::new(), "nothing shows {question}");
    }
}

/// Nothing is measured that nobody is shown.
#[test]
fn every_metric_is_on_the_dashboard() {
    let queries = dashboard_queries();
    let shown: BTreeSet<&str> = queries.iter().flat_map(|query| named(query)).collect();
    let hidden: Vec<&str> =
        metric_names().filter(|name| !shown.iter().any(|query| query.trim_end_matches("_bucket") == *name)).collect();
    assert_eq!(hidden, Vec::<&str>::new());
}

/// The words in code of an alert's section.
fn words_of_section(alert: &str) -> BTreeSet<String> {
    let runbook = deploy("RUNBOOK.md");
    let section = runbook.split("\n## ").find(|section| section.starts_with(&format!("{alert}\n")));
    section.unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_runbook_tells_what_every_find_of_the_scrub_is() {
    let rules = rules();
    let expr = rules.iter().find(|rule| rule["alert"] == "CallvaultScrubFinds").unwrap()["expr"].as_str().unwrap();
    let told = words_of_section("CallvaultScrubFinds");
    for kind in FoundKind::ALL.iter().map(|kind| kind.as_str()) {
        assert!(told.contains(kind) || expr.contains(kind), "{kind} fires, and nothing says what it is");
    }
}

#[test]
fn the_runbook_tells_what_to_do_for_every_reason_to_give_up() {
    use ErrorCode::*;
    let told = words_of_section("CallvaultRecordingsFailed");
    // They are tried again for ever.
    let never = [RateLimited, StoreError, Unauthorized];
    for code in ErrorCode::ALL.iter().filter(|code| !never.contains(code)) {
        assert!(told.contains(code.as_str()), "{code}");
    }
}

#[test]
fn every_alert_names_its_section_of_the_runbook_and_every_section_is_an_alerts() {
    let runbook = deploy("RUNBOOK.md");
    let sections: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let rules = rules();
    let alerts: Vec<&str> = rules.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(alerts, sections);
    for rule in &rules {
        let anchor = rule["alert"].as_str().unwrap().to_lowercase();
        // A link, of which one replacement changes the place for all.
        let place = "https://runbooks.example.com/callvault/";
        assert_eq!(rule["annotations"]["runbook_url"], format!("{place}RUNBOOK.md#{anchor}"));
        assert!(["page", "ticket"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{rule}");
    }
    // As the file says, in a copy of it.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("callvault.yaml");
    std::fs::copy(root().join("deploy/alerts/callvault.yaml"), &copy).unwrap();
    let file = deploy("alerts/callvault.yaml");
    let sed = file.lines().find_map(|line| line.strip_prefix("#   ")).expect("it says how to put the address in");
    succeeds(Command::new("sh").args(["-euc", sed]).current_dir(folder.path()));
    let links = std::fs::read_to_string(copy).unwrap();
    assert_eq!(links.matches("runbook_url: https://wiki.your.domain/callvault/RUNBOOK.md#").count(), rules.len());
    for section in runbook.split("\n## ").skip(1) {
        for part in ["**Means.**", "**Look at**", "```sh", "**Do.**"] {
            assert!(section.contains(part), "a section lacks {part}:\n{section}");
        }
    }
}
