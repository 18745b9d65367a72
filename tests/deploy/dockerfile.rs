//! deploy/Dockerfile: by its linter, and its health check as it will be run.

use std::process::Command;

use crate::support::{deploy, python_tool, root};
use crate::{is_content, succeeds};

fn dockerfile() -> String {
    // Continued lines are one.
    deploy("Dockerfile").replace("\\\n", " ")
}

/// What follows an instruction, the last time it is there.
fn last(instruction: &str) -> String {
    let text = dockerfile();
    let found = text.lines().rev().find_map(|line| line.strip_prefix(instruction));
    found.unwrap_or_else(|| panic!("the Dockerfile has no {instruction}")).trim().to_owned()
}

#[test]
fn hadolint_finds_nothing() {
    let mut hadolint = Command::new(python_tool("hadolint"));
    succeeds(hadolint.args(["--failure-threshold", "style"]).arg(root().join("deploy/Dockerfile")));
}

#[test]
fn the_image_is_built_from_the_lock_file_and_runs_as_nobody_on_all_addresses() {
    assert!(dockerfile().contains("cargo build --release --locked"));
    let user = last("USER");
    let (uid, gid) = user.split_once(':').unwrap();
    assert!(uid.parse::<u32>().unwrap() > 0 && gid.parse::<u32>().unwrap() > 0, "{user}");
    assert_eq!(last("ENV"), "CALLVAULT_LISTEN=0.0.0.0:8080");
    assert_eq!((last("ENTRYPOINT"), last("CMD")), (r#"["callvault"]"#.to_owned(), r#"["serve"]"#.to_owned()));
    assert_eq!(last("STOPSIGNAL"), "SIGTERM");
}

/// Runs the image's health check against whoever answers with that.
fn is_healthy(answer: Option<&'static str>) -> bool {
    let check = last("HEALTHCHECK");
    let words: Vec<String> = serde_json::from_str(check.split_once("CMD").unwrap().1.trim()).unwrap();
    let check = |port| {
        let mut check = Command::new(&words[0]);
        check.args(&words[1..]).env("CALLVAULT_LISTEN", format!("0.0.0.0:{port}"));
        check
    };
    is_content(check, "/healthz", answer)
}

#[test]
fn the_health_check_tells_who_answers_from_who_does_not() {
    assert!(is_healthy(Some("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n")));
    assert!(!is_healthy(Some("HTTP/1.0 503 Service Unavailable\r\n\r\n")));
    assert!(!is_healthy(Some("")));
    assert!(!is_healthy(None));
}
