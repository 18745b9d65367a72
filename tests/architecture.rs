//! The rooms of the house, and which way they know each other.
//!
//! Reads the sources: an import against the design's arrows fails here, and so
//! does a domain that looks at a clock or does I/O.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, reason = "a test may fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which rooms each room may know.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("config", &["domain"]),
    ("telemetry", &["config", "domain"]),
    ("twilio", &["config", "domain", "telemetry"]),
    ("bucket", &["config", "domain", "telemetry"]),
    ("catalog", &["config", "domain", "telemetry"]),
    ("vault", &["bucket", "catalog", "config", "domain", "telemetry", "twilio"]),
    ("worker", &["bucket", "catalog", "config", "domain", "telemetry", "twilio", "vault"]),
    ("http", &["bucket", "catalog", "config", "domain", "telemetry", "twilio", "vault"]),
    ("console", &["bucket", "catalog", "config", "domain", "telemetry", "twilio", "vault"]),
    ("app", &["bucket", "catalog", "config", "console", "domain", "http", "telemetry", "twilio", "vault", "worker"]),
    (
        "commands",
        &["app", "bucket", "catalog", "config", "console", "domain", "http", "telemetry", "twilio", "vault", "worker"],
    ),
    ("main", &["commands"]),
];

fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&src(), &mut found);
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The room that a file lies in: the first folder below `src`, or the file's own name.
fn room(path: &Path) -> String {
    let first = path.strip_prefix(src()).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// How many `super::` lead from a file's module, or one that it holds, to the crate.
fn modules_deep(path: &Path) -> usize {
    let parts = path.strip_prefix(src()).unwrap().components().count();
    let is_folder = path.file_name().unwrap() == "mod.rs";
    let holds_tests = std::fs::read_to_string(path).unwrap().contains("mod tests {");
    parts - usize::from(is_folder) + usize::from(holds_tests)
}

/// A file without its comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

/// The rooms that a piece of code names: `crate::room`, `crate::{room, …}`, and `callvault::room`.
fn known_rooms(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = BTreeSet::new();
    for prefix in ["crate::", "callvault::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                None => {
                    rooms.insert(word(rest));
                }
                Some(list) => {
                    let (mut depth, mut entry) = (0, String::new());
                    for c in list.chars() {
                        match c {
                            '{' => depth += 1,
                            '}' if depth == 0 => break,
                            '}' => depth -= 1,
                            ',' if depth == 0 => drop(rooms.insert(word(entry.trim()))),
                            _ => {}
                        }
                        entry = if c == ',' && depth == 0 { String::new() } else { entry + &c.to_string() };
                    }
                    rooms.insert(word(entry.trim()));
                }
            }
        }
    }
    rooms.remove("");
    rooms
}

#[test]
fn imports_run_one_way() {
    let may_know: BTreeMap<&str, BTreeSet<&str>> =
        MAY_KNOW.iter().map(|(room, known)| (*room, known.iter().copied().collect())).collect();
    let rooms: BTreeSet<&str> = may_know.keys().copied().collect();
    let mut wrong = Vec::new();
    for path in sources() {
        let room = room(&path);
        if room == "lib" {
            continue;
        }
        let allowed =
            may_know.get(room.as_str()).unwrap_or_else(|| panic!("{room} is not a room of the house: {path:?}"));
        let code = code(&path);
        // `super::super::room` would be an import that the search below does not see.
        let deepest = (1..=4).filter(|depth| code.contains(&"super::".repeat(*depth))).max().unwrap_or(0);
        assert!(deepest < modules_deep(&path), "{} leaves its room by super::", path.display());
        for known in known_rooms(&code) {
            let is_room = rooms.contains(known.as_str());
            if is_room && known != room && !allowed.contains(known.as_str()) {
                wrong.push(format!("{} knows {known}", path.strip_prefix(src()).unwrap().display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "imports against the arrows of the design");
}

#[test]
fn imports_in_every_form_are_seen() {
    let code = "use crate::{vault::Vault, http::{self, Problem}, config};\ncrate::bucket::Bucket::open(); use callvault::app::App;";
    let rooms: Vec<String> = known_rooms(code).into_iter().collect();
    assert_eq!(rooms, ["app", "bucket", "config", "http", "vault"]);
}

#[test]
fn the_domain_is_pure() {
    let impure = [
        "async fn",
        ".await",
        "tokio::",
        "std::fs",
        "std::net",
        "std::env",
        "SystemTime",
        "Instant",
        "::now()",
        "rand::",
    ];
    for path in sources().into_iter().filter(|path| room(path) == "domain") {
        let code = code(&path);
        for word in impure {
            assert!(!code.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for path in sources().into_iter().filter(|path| path.file_name().unwrap() != "tests.rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not begin with //!", path.display());
    }
}
