//! The handbook: every command on its pages is run by a test, and every name on them
//! is one that there is.
//!
//! What a reader has to put in is put in (`Terminal::put_in`); everything else is run
//! as it stands on the page.

mod walks;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use callvault::config::SETTINGS;
use serde_json::Value;

use crate::support::compose::root;
use crate::support::pages::{blocks, page, pages};
use crate::support::world::{Parts, World, debug_binary};

/// The file and the function that run a block.
type Proof = (&'static str, &'static str);

const WALKS: &str = "tests/it/handbook/walks.rs";
const DISASTERS: &str = "tests/it/disasters.rs";
const PROGRAMS: &str = "tests/it/clients/programs.rs";
const README: Proof = (WALKS, "the_readme_leads_from_nothing_to_many_nodes");
const GUIDE: Proof = (WALKS, "the_guide_sets_up_database_bucket_and_service");
const MOVING: Proof = (PROGRAMS, "an_application_moves_over_as_its_page_says");
const CATALOG_LOST: Proof = (DISASTERS, "a_lost_catalog_is_made_anew_as_the_guide_says");
const CATALOG_OLD: Proof = (DISASTERS, "a_catalog_from_a_backup_is_brought_up_to_date_as_the_guide_says");
const SQLITE: Proof = (DISASTERS, "a_node_on_sqlite_comes_back_from_its_backup_as_the_guide_says");
const BUCKET_LOST: Proof = (DISASTERS, "a_lost_bucket_is_filled_again_as_the_guide_says");
const BUCKET_OF_SQLITE: Proof = (DISASTERS, "a_lost_embedded_store_is_filled_again_as_the_guide_says");
const NODES_LOST: Proof = (DISASTERS, "new_nodes_go_on_where_all_others_were_lost");
const ALL_LOST: Proof = (DISASTERS, "what_twilio_still_has_is_brought_in_anew");

/// Of each heading with commands under it, what proves each of its blocks, in their order.
const PROOFS: &[(&str, &str, &[Proof])] = &[
    // A build with cargo is what made the binary that is asked for a demo there.
    (
        "README.md",
        "See it",
        &[
            ("tests/it/commands.rs", "the_demo_holds_on_a_machine_with_nothing_on_it"),
            // It runs all of this, and cannot run itself.
            (WALKS, "the_targets_of_the_makefile_are_there"),
        ],
    ),
    ("README.md", "Run it", &[README, README, README]),
    ("README.md", "Use it", &[README, README]),
    (
        "deploy/README.md",
        "A trial on one machine",
        &[
            // What compose would start, started as processes.
            ("tests/it/topology.rs", "no_request_is_lost_while_nodes_are_upgraded_and_rolled_back"),
            (WALKS, "a_call_of_the_trial_is_played_as_its_page_says"),
        ],
    ),
    ("deploy/README.md", "Kubernetes", &[(WALKS, "the_chart_takes_what_its_page_gives_it")]),
    ("deploy/clients/MOVING.md", "1. Run callvault beside it", &[MOVING, MOVING, MOVING]),
    ("deploy/clients/MOVING.md", "5. See that both agree", &[MOVING]),
    (
        "deploy/clients/python/README.md",
        "Whole programs",
        &[(PROGRAMS, "the_worker_is_told_and_reads_the_bucket_through_restarts_of_both")],
    ),
    ("deploy/OPERATING.md", "Operating callvault", &[GUIDE]),
    ("deploy/OPERATING.md", "Twilio", &[GUIDE]),
    ("deploy/OPERATING.md", "PostgreSQL", &[GUIDE]),
    ("deploy/OPERATING.md", "The bucket", &[GUIDE, GUIDE, GUIDE, GUIDE]),
    ("deploy/OPERATING.md", "Sizing", &[GUIDE, GUIDE]),
    ("deploy/OPERATING.md", "Upgrades and rollback", &[GUIDE]),
    ("deploy/OPERATING.md", "Backups", &[CATALOG_OLD, SQLITE]),
    ("deploy/OPERATING.md", "The catalog is lost", &[CATALOG_LOST, CATALOG_LOST, CATALOG_LOST]),
    ("deploy/OPERATING.md", "The catalog is restored from a backup", &[CATALOG_OLD, SQLITE, CATALOG_OLD]),
    ("deploy/OPERATING.md", "The bucket is lost", &[BUCKET_LOST, BUCKET_LOST, BUCKET_LOST, BUCKET_OF_SQLITE]),
    ("deploy/OPERATING.md", "All nodes are lost", &[NODES_LOST, NODES_LOST]),
    ("deploy/OPERATING.md", "Everything is lost", &[ALL_LOST]),
];
/// Its every block is run, whatever heading it stands under.
const RUNBOOK: &str = "deploy/RUNBOOK.md";
const OF_THE_RUNBOOK: Proof = (WALKS, "every_command_of_the_runbook_runs");

/// What blocks may be written in. A command is `sh`, so that none is overlooked.
const LANGUAGES: &[&str] = &["sh", "xml", "python", "diff", "html", "jsx", "text"];

#[test]
fn every_command_on_every_page_is_run_by_a_test() {
    let mut there: BTreeMap<(String, String), usize> = BTreeMap::new();
    for path in pages() {
        for block in blocks(&page(&path)) {
            assert!(LANGUAGES.contains(&block.language.as_str()), "{path}: a block in {:?}", block.language);
            if block.language == "sh" && path != RUNBOOK {
                *there.entry((path.clone(), block.heading)).or_default() += 1;
            }
        }
    }
    let proven: BTreeMap<(String, String), usize> =
        PROOFS.iter().map(|(path, heading, proofs)| ((path.to_string(), heading.to_string()), proofs.len())).collect();
    assert_eq!(proven.len(), PROOFS.len(), "a heading has two entries");
    assert_eq!(there, proven, "blocks on the pages, and in the table");
    let proofs = PROOFS.iter().flat_map(|(_, _, proofs)| *proofs);
    for (file, test) in proofs.chain([&OF_THE_RUNBOOK]) {
        assert!(page(file).contains(&format!("fn {test}(")), "{file} has no test {test}");
    }
    // What runs here and in the disasters takes its blocks by their heading.
    for (path, heading, proofs) in PROOFS {
        for (file, test) in proofs.iter().filter(|(file, _)| [WALKS, DISASTERS].contains(file)) {
            let named = page(file).contains(&format!("\"{heading}\""));
            assert!(named, "{test} does not read {path}, {heading}");
        }
    }
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_on_a_page_is_one() {
    const OTHERS: &[&str] = &["callvault_client"];
    let world = World::new(Parts::Embedded).await;
    let metrics = world.start().await.get("/metrics").await.text().await.unwrap();
    for path in pages() {
        let text = page(&path);
        let names = words(&text, |c| c.is_ascii_lowercase() || c == '_').filter(|name| name.starts_with("callvault_"));
        for name in names.filter(|name| !OTHERS.contains(name)) {
            // A command may look for several by what they begin with.
            assert!(metrics.contains(name), "{path}: no metric begins with {name}");
        }
    }
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
