//! What Prometheus would have of a run, and what its alerts make of that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::rules;
use crate::support::compose::root;
use crate::support::eventually;
use crate::support::world::{ADMIN_KEY, Service, World};

/// The series of one scrape, each with its labels, and their values.
pub(super) type Scrape = BTreeMap<String, f64>;

/// For how long the last scrape stays as it was. Longer than any alert waits, but that
/// of the scrub.
const MINUTES: usize = 180;
/// For the scrub, which is waited for for 60 days, a scrape an hour is taken.
const HOURS: usize = 61 * 24;

pub(super) async fn scrape(world: &World, service: &Service) -> Scrape {
    let answer = world.http.get(format!("{}/metrics", service.url)).bearer_auth(ADMIN_KEY).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let text = answer.text().await.unwrap();
    let series = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    series
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The scrape in which a series is so much.
pub(super) async fn measures(world: &World, service: &Service, series: &str, at_least: f64) -> Scrape {
    until(world, service, &format!("{series} is {at_least}"), |scraped| {
        scraped.get(series).is_some_and(|value| *value >= at_least)
    })
    .await
}

/// The scrape of which that holds.
pub(super) async fn until(world: &World, service: &Service, what: &str, holds: impl Fn(&Scrape) -> bool) -> Scrape {
    eventually(what, async || Some(scrape(world, service).await).filter(|scraped| holds(scraped))).await
}

/// The label that Prometheus adds.
fn of_instance(series: &str, instance: &str) -> String {
    match series.strip_suffix('}') {
        Some(labelled) => format!("{labelled},instance=\"{instance}\"}}"),
        None => format!("{series}{{instance=\"{instance}\"}}"),
    }
}

/// What a series is called, without its labels.
fn name_of(series: &str) -> &str {
    series.split('{').next().unwrap_or(series)
}

fn is_counter(series: &str) -> bool {
    ["_total", "_bucket", "_sum", "_count"].iter().any(|end| name_of(series).ends_with(end))
}

/// A node of the run.
struct Node {
    instance: &'static str,
    began: Scrape,
    before_the_end: Scrape,
    ended: Scrape,
    goes_on: bool,
    /// It does not answer any more.
    is_gone: bool,
}

impl Node {
    /// As it began, for ten scrapes; then as it ended. An age that grew at the end grows
    /// on; what was counted is counted again in each scrape where it goes on so. Of a
    /// node that is gone Prometheus has nothing more but that it does not answer.
    fn series(&self, seconds_apart: f64, scrapes: usize) -> impl Iterator<Item = Value> {
        let answers = if self.is_gone { 0 } else { 1 };
        let up = json!({"series": of_instance("up", self.instance), "values": format!("1+0x9 {answers}+0x{scrapes}")});
        let measured = self.ended.iter().map(move |(name, end)| {
            // What was not there yet had not happened.
            let begin = self.began.get(name).copied().unwrap_or(0.0);
            let before = self.before_the_end.get(name).copied().unwrap_or(0.0);
            let growth = match (is_counter(name), name_of(name).ends_with("_seconds")) {
                (true, _) if self.goes_on => end - begin,
                (false, true) if before < *end => seconds_apart,
                _ => 0.0,
            };
            let then = if self.is_gone { "stale".to_owned() } else { format!("{end}+{growth}x{scrapes}") };
            json!({"series": of_instance(name, self.instance), "values": format!("{begin}+0x9 {then}")})
        });
        std::iter::once(up).chain(measured)
    }
}

/// A run as Prometheus has it, and which alerts fired in it.
pub(super) struct Measured {
    folder: PathBuf,
    nodes: Vec<Node>,
    fired: BTreeSet<String>,
}

impl Measured {
    pub(super) fn of(world: &World) -> Self {
        Self { folder: world.folder(), nodes: Vec::new(), fired: BTreeSet::new() }
    }

    /// A node, by its scrapes before and after the trouble. The second but last tells what grows.
    pub(super) fn node(
        mut self,
        instance: &'static str,
        began: &Scrape,
        before_the_end: &Scrape,
        ended: &Scrape,
    ) -> Self {
        let (began, before_the_end, ended) = (began.clone(), before_the_end.clone(), ended.clone());
        self.nodes.push(Node { instance, began, before_the_end, ended, goes_on: false, is_gone: false });
        self
    }

    /// A node that was so, and of which nothing was scraped any more.
    pub(super) fn gone(self, instance: &'static str, was: &Scrape) -> Self {
        let mut measured = self.node(instance, was, was, was);
        measured.nodes.last_mut().expect("a node").is_gone = true;
        measured
    }

    /// What the last node counted, it counts for ever after.
    pub(super) fn that_goes_on(mut self) -> Self {
        self.nodes.last_mut().expect("a node").goes_on = true;
        self
    }

    /// The alerts that fire at that minute, and only these, each with the labels that
    /// its series have.
    pub(super) fn fire(&mut self, minute: usize, firing: &[(&str, &[(&str, &str)])]) {
        self.test(("1m", 60.0, MINUTES), &format!("{minute}m"), firing);
    }

    /// The same, where all that is known is a scrape an hour.
    pub(super) fn fire_after_hours(&mut self, hour: usize, firing: &[(&str, &[(&str, &str)])]) {
        self.test(("1h", 3600.0, HOURS), &format!("{hour}h"), firing);
    }

    pub(super) fn fired(self) -> BTreeSet<String> {
        self.fired
    }

    fn test(&mut self, (apart, seconds, scrapes): (&str, f64, usize), at: &str, firing: &[(&str, &[(&str, &str)])]) {
        let rules = rules();
        for (name, _) in firing {
            assert!(rules.iter().any(|rule| rule["alert"] == *name), "there is no alert {name}");
            self.fired.insert((*name).to_owned());
        }
        let tests: Vec<Value> = rules.iter().map(|rule| expected(rule, at, firing)).collect();
        let series: Vec<Value> = self.nodes.iter().flat_map(|node| node.series(seconds, scrapes)).collect();
        let file = json!({
            "rule_files": [root().join("deploy/alerts/callvault.yaml")],
            "evaluation_interval": apart,
            "tests": [{"interval": apart, "input_series": series, "alert_rule_test": tests}],
        });
        let path = self.folder.join("alerts-test.yaml");
        std::fs::write(&path, file.to_string()).unwrap();
        let ran = Command::new("promtool").args(["test", "rules"]).arg(&path).output().expect("promtool is installed");
        let told = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(ran.status.success(), "at {at}: {told}");
    }
}

/// What promtool is told to expect of a rule.
fn expected(rule: &Value, at: &str, firing: &[(&str, &[(&str, &str)])]) -> Value {
    let alert = rule["alert"].as_str().unwrap();
    let fires = firing.iter().filter(|(name, _)| *name == alert);
    let alerts: Vec<Value> = fires
        .map(|(_, labels)| {
            let mut all = rule["labels"].as_object().unwrap().clone();
            all.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
            json!({"exp_labels": all, "exp_annotations": rule["annotations"]})
        })
        .collect();
    json!({"alertname": alert, "eval_time": at, "exp_alerts": alerts})
}
