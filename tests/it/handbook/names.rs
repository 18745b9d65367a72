//! What the pages name is there: settings, metrics, links, files, commands, calls.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use callvault::config::SETTINGS;
use callvault::telemetry::metric_names;
use reqwest::StatusCode;
use serde_json::Value;

use crate::support::compose::root;
use crate::support::pages::{page, pages};
use crate::support::world::{Parts, World, debug_binary};

/// Words of these characters in a text.
fn words<'a>(text: &'a str, of: impl Fn(char) -> bool + 'a) -> impl Iterator<Item = &'a str> {
    text.split(move |character| !of(character)).filter(|word| !word.is_empty())
}

/// What stands between single backticks, outside of blocks.
fn spans(text: &str) -> Vec<String> {
    let mut prose = String::new();
    let mut is_block = false;
    for line in text.lines() {
        if line.starts_with("```") {
            is_block = !is_block;
        } else if !is_block {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    // A span may go over the end of a line.
    prose.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn every_setting_on_a_page_is_one() {
    const OTHERS: &[&str] = &["CALLVAULT_URL", "CALLVAULT_API_KEY", "CALLVAULT_CACHE_DIR", "CALLVAULT_CONFIG"];
    for path in pages() {
        let text = page(&path);
        let names = words(&text, |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        for name in names.filter(|name| name.starts_with("CALLVAULT_") && !name.ends_with('_')) {
            let is_setting = |name: &str| SETTINGS.iter().any(|setting| setting.env == name);
            let is_file = name.strip_suffix("_FILE").is_some_and(is_setting);
            assert!(is_setting(name) || is_file || OTHERS.contains(&name), "{path}: {name} is no setting");
        }
    }
}

#[test]
fn every_metric_on_a_page_is_one() {
    const OTHERS: &[&str] = &["callvault_client"];
    for path in pages() {
        let text = page(&path);
        let names = words(&text, |c| c.is_ascii_lowercase() || c == '_').filter(|name| name.starts_with("callvault_"));
        for name in names.filter(|name| !OTHERS.contains(name)) {
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            // A command may look for several by what they begin with.
            let is_there = metric_names().any(|known| known.starts_with(name) || Some(known) == of_histogram);
            assert!(is_there, "{path}: no metric begins with {name}");
        }
    }
}

/// The pairs of name and value between a series' braces.
fn labels(series: &str) -> Vec<(&str, &str)> {
    let Some((_, rest)) = series.split_once('{') else { return Vec::new() };
    let pairs = rest.rsplit_once('}').expect("they end").0;
    pairs.split("\",").filter_map(|pair| pair.split_once("=\"")).collect()
}

/// The labels of a metric's series; of one that stands alone in a counter or a gauge all
/// values, but of those that are a service's own.
fn labelled(name: &str, kind: &str, text: &str) -> String {
    let lines = text.lines().filter(|line| {
        let behind = line.strip_prefix(name).unwrap_or("x");
        behind.starts_with(['{', ' ']) || kind == "histogram" && behind.starts_with("_bucket")
    });
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (label, value) in lines.flat_map(labels).filter(|(label, _)| *label != "le") {
        found.entry(label).or_default().insert(value.trim_end_matches('"'));
    }
    let is_open =
        found.len() > 1 || kind == "histogram" || ["account", "version"].iter().any(|own| found.contains_key(own));
    let told = found.iter().map(|(label, values)| match is_open {
        true => format!("`{label}`"),
        false => format!("`{label}`: {}", values.iter().copied().collect::<Vec<_>>().join(", ")),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// The kind, the labels and the meaning of each metric, as Prometheus gets them.
fn scraped(text: &str) -> BTreeMap<String, String> {
    let about = |what: &str| -> BTreeMap<&str, &str> {
        text.lines().filter_map(|line| line.strip_prefix(what)?.split_once(' ')).collect()
    };
    let (kinds, helps) = (about("# TYPE "), about("# HELP "));
    let row = |(name, kind): (&&str, &&str)| {
        let help = helps.get(name).unwrap_or_else(|| panic!("{name} says nothing of itself"));
        (name.to_string(), format!("| `{name}` | {kind} | {} | {help} |", labelled(name, kind, text)))
    };
    kinds.iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_in_the_table_as_the_service_tells_it() {
    let mut world = World::new(Parts::Embedded).await;
    world.set("CALLVAULT_RECONCILE_EVERY", "1s");
    let service = world.start().await;
    let id = world.record(1);
    assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    service.recording_in(id.recording, "stored").await;
    let text = service.get("/metrics").await.text().await.unwrap();
    let promtool = promtool_finds(&text);
    assert!(promtool.is_empty(), "promtool check metrics:\n{promtool}");

    let scraped = scraped(&text);
    let known: BTreeSet<&str> = metric_names().collect();
    assert_eq!(scraped.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
    let table = page("deploy/METRICS.md");
    let table: BTreeSet<&str> = table.lines().filter(|line| line.starts_with("| `callvault_")).collect();
    let expected: BTreeSet<&str> = scraped.values().map(String::as_str).collect();
    let (missing, wrong): (Vec<_>, Vec<_>) =
        (expected.difference(&table).collect(), table.difference(&expected).collect());
    assert!(missing.is_empty() && wrong.is_empty(), "deploy/METRICS.md lacks {missing:#?}, and has {wrong:#?}");
}

/// What Prometheus' own linter says of names, kinds and meanings.
fn promtool_finds(text: &str) -> String {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("promtool is installed");
    // Dropped, and so closed, when all is written.
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    [ended.stdout, ended.stderr].map(|told| String::from_utf8_lossy(&told).into_owned()).concat()
}

#[test]
fn every_target_of_make_in_a_sentence_is_one() {
    let mut count = 0;
    for path in pages() {
        for span in spans(&page(&path)).into_iter().filter(|span| span.starts_with("make ")) {
            count += 1;
            let told = Command::new("make").arg("--dry-run").args(span.split(' ').skip(1)).current_dir(root()).output();
            let told = told.expect("make runs");
            assert!(told.status.success(), "{path}: {span}: {}", String::from_utf8_lossy(&told.stderr));
        }
    }
    assert!(count > 3, "{count}");
}

/// Whether a file of that name, without its folder, is in some room of the house.
fn is_in_a_room(name: &str) -> bool {
    let mut folders = vec![root().join("src"), root().join("tests"), root().join("deploy")];
    while let Some(folder) = folders.pop() {
        if folder.join(name).is_file() {
            return !name.contains('/');
        }
        let inside = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
        folders.extend(inside.filter(|path| path.is_dir()));
    }
    false
}

#[test]
fn every_file_in_a_sentence_is_there() {
    // Made by the tests, by a build, or the reader's own.
    const OTHERS: &[&str] = &["target/", "callvault.db", "callvault-data/"];
    let mut count = 0;
    for path in pages() {
        let folder = root().join(&path).parent().unwrap().to_owned();
        let places = [folder, root().to_owned(), root().join("src")];
        for span in spans(&page(&path)) {
            let is_file =
                [".rs", ".toml", ".json", ".yaml", ".conf", ".py", ".sh"].iter().any(|end| span.ends_with(end));
            let is_folder = span.ends_with('/') && span.starts_with(|c: char| c.is_ascii_lowercase());
            let is_path =
                !span.starts_with('/') && span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
            if !is_path || !(is_file || is_folder) || OTHERS.iter().any(|other| span.starts_with(other)) {
                continue;
            }
            count += 1;
            // One that is named beside another lies in the same room.
            let is_there = places.iter().any(|place| place.join(&span).exists()) || is_in_a_room(&span);
            assert!(is_there, "{path}: {span} is not there");
        }
    }
    assert!(count > 50, "{count}");
}

/// A heading as links to it are written.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_on_a_page_leads_somewhere() {
    for path in pages() {
        let text = page(&path);
        for target in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if target.starts_with("https://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = root().join(&path).parent().unwrap().to_owned();
            let file = if file.is_empty() { root().join(&path) } else { folder.join(file) };
            assert!(file.exists(), "{path}: {target} leads nowhere");
            if !heading.is_empty() {
                let there = std::fs::read_to_string(&file).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(headings.any(|found| found == heading), "{path}: {target} has no such heading");
            }
        }
    }
}

#[test]
fn every_command_in_a_sentence_is_one() {
    let mut commands: BTreeSet<(String, Vec<String>)> = BTreeSet::new();
    for path in pages() {
        for span in spans(&page(&path)).into_iter().filter(|span| span.starts_with("callvault ")) {
            let mut ways: Vec<Vec<String>> = vec![Vec::new()];
            // What a reader may choose from is written with bars between.
            for word in span.split(' ').skip(1) {
                let with = |word: &str| -> Vec<Vec<String>> {
                    ways.iter().map(|way| [&way[..], &[word.to_owned()]].concat()).collect()
                };
                ways = word.split('|').flat_map(with).collect();
            }
            commands.extend(ways.into_iter().map(|way| (path.clone(), way)));
        }
    }
    assert!(commands.len() > 10, "{commands:?}");
    for (path, words) in commands {
        let words = words.iter().map(|word| word.replace("CA…", &format!("CA{}", "0".repeat(32))));
        let words: Vec<String> = words.collect();
        // Everything before is read, and nothing is done.
        let ended = Command::new(debug_binary()).args(&words).arg("--help").output().unwrap();
        assert!(ended.status.success(), "{path}: {words:?}: {}", String::from_utf8_lossy(&ended.stderr));
    }
}

/// A path without what its caller puts in.
fn shape(path: &str) -> Vec<String> {
    let path = path.split('?').next().unwrap();
    let is_put_in = |segment: &str| segment.contains('…') || segment.contains('{');
    path.split('/').map(|segment| if is_put_in(segment) { "{}".to_owned() } else { segment.to_owned() }).collect()
}

#[test]
fn every_call_in_a_sentence_is_in_the_document_of_the_api() {
    let told = Command::new(debug_binary()).arg("openapi").output().unwrap();
    let document: Value = serde_json::from_slice(&told.stdout).unwrap();
    let mut known: BTreeSet<(String, Vec<String>)> = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        known.extend(methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), shape(path))));
    }
    let mut count = 0;
    for path in pages() {
        for span in spans(&page(&path)) {
            let Some((method, called)) = span.split_once(" /") else { continue };
            if !["GET", "HEAD", "POST", "PUT", "DELETE"].contains(&method) {
                continue;
            }
            count += 1;
            let called = (method.to_owned(), shape(&format!("/{called}")));
            assert!(known.contains(&called), "{path}: {span} is no call of the API: {called:?}");
        }
    }
    assert!(count > 15, "{count}");
}
