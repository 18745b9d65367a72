//! The handbook: every command on its pages is run by a test.
//!
//! What a reader has to put in is put in (`Terminal::put_in`); everything else is run
//! as it stands on the page.

mod commands;
mod names;
mod sealed;
mod walks;

use std::collections::BTreeMap;

use crate::support::pages::{blocks, page, pages};

/// The file and the function that run a block.
type Proof = (&'static str, &'static str);

const WALKS: &str = "tests/it/handbook/walks.rs";
const DISASTERS: &str = "tests/it/disasters.rs";
const COMMANDS_RUN: &str = "tests/it/handbook/commands.rs";
const SEALED: &str = "tests/it/handbook/sealed.rs";
const PROGRAMS: &str = "tests/it/clients/programs.rs";
const README: Proof = (WALKS, "the_readme_leads_from_nothing_to_many_nodes");
const GUIDE: Proof = (WALKS, "the_guide_sets_up_database_bucket_and_service");
const COMMANDS: Proof = (COMMANDS_RUN, "a_command_runs_where_a_node_does_and_where_none_does");
const ENCRYPTED: Proof = (SEALED, "a_key_that_came_late_opens_all_that_failed_for_it");
const MOVING: Proof = (PROGRAMS, "an_application_moves_over_as_its_page_says");
const CATALOG_LOST: Proof = (DISASTERS, "a_lost_catalog_is_made_anew_as_the_guide_says");
const CATALOG_OLD: Proof = (DISASTERS, "a_catalog_from_a_backup_is_brought_up_to_date_as_the_guide_says");
const SQLITE: Proof = (DISASTERS, "a_node_on_sqlite_comes_back_from_its_backup_as_the_guide_says");
const BUCKET_LOST: Proof = (DISASTERS, "a_lost_bucket_is_filled_again_as_the_guide_says");
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
    ("README.md", "Keys", &[README]),
    ("README.md", "Events", &[README]),
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
    ("deploy/OPERATING.md", "Running a command", &[COMMANDS, COMMANDS, COMMANDS, COMMANDS]),
    ("deploy/OPERATING.md", "Twilio", &[GUIDE]),
    ("deploy/OPERATING.md", "Encrypted recordings", &[ENCRYPTED, ENCRYPTED]),
    ("deploy/OPERATING.md", "PostgreSQL", &[GUIDE]),
    ("deploy/OPERATING.md", "The bucket", &[GUIDE, GUIDE, GUIDE, GUIDE]),
    ("deploy/OPERATING.md", "Sizing", &[GUIDE, GUIDE]),
    ("deploy/OPERATING.md", "Upgrades and rollback", &[GUIDE]),
    ("deploy/OPERATING.md", "Backups", &[CATALOG_OLD, SQLITE]),
    ("deploy/OPERATING.md", "The catalog is lost", &[CATALOG_LOST, CATALOG_LOST, CATALOG_LOST]),
    ("deploy/OPERATING.md", "The catalog is restored from a backup", &[CATALOG_OLD, SQLITE, CATALOG_OLD]),
    ("deploy/OPERATING.md", "The bucket is lost", &[BUCKET_LOST, BUCKET_LOST]),
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
        for (file, test) in proofs.iter().filter(|(file, _)| [WALKS, COMMANDS_RUN, SEALED, DISASTERS].contains(file)) {
            let named = page(file).contains(&format!("\"{heading}\""));
            assert!(named, "{test} does not read {path}, {heading}");
        }
    }
}
