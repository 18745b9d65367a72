//! What is in deploy/, each proved by the tool that reads it, and by what it is
//! for: nothing here starts a service. The topology of the compose file runs in
//! tests/it/topology.rs; the image is built by `make image-check`.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, reason = "a test may fail")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
#[path = "../support/compose.rs"]
mod support;

mod alerts;
mod compose;
mod dockerfile;
mod helm;
mod iam;
mod migrations;
mod systemd;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};

/// What a program wrote, when it ended well.
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(output.status.success(), "{command:?} says:\n{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a check of health, made for a port, is content with whoever answers so there,
/// or with nobody. It must ask for that path.
fn is_content(check: impl FnOnce(u16) -> Command, path: &str, answer: Option<&'static str>) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = format!("GET {path} HTTP/1.0\r\n\r\n");
    let answering = answer.map(|answer| {
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = vec![0; asked.len()];
            socket.read_exact(&mut request).unwrap();
            assert_eq!(String::from_utf8(request).unwrap(), asked);
            socket.write_all(answer.as_bytes()).unwrap();
        })
    });
    let is_content = check(port).output().unwrap().status.success();
    if let Some(answering) = answering {
        answering.join().expect("it asked as it should");
    }
    is_content
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
