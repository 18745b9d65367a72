//! deploy/Dockerfile: by its linter, and its health check as it will be run.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use crate::succeeds;
use crate::support::{deploy, python_tool, root};

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
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("0.0.0.0:{}", listener.local_addr().unwrap().port());
    match answer {
        None => drop(listener),
        Some(answer) => {
            std::thread::spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    socket.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                assert!(request.starts_with(b"GET /healthz HTTP/1.0\r\n"));
                socket.write_all(answer.as_bytes()).unwrap();
            });
        }
    }
    let ended = Command::new(&words[0]).args(&words[1..]).env("CALLVAULT_LISTEN", address).output().unwrap();
    ended.status.success()
}

#[test]
fn the_health_check_tells_who_answers_from_who_does_not() {
    assert!(is_healthy(Some("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n")));
    assert!(!is_healthy(Some("HTTP/1.0 503 Service Unavailable\r\n\r\n")));
    assert!(!is_healthy(Some("")));
    assert!(!is_healthy(None));
}
