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

use std::process::{Command, Output};

/// What a program wrote, when it ended well.
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(output.status.success(), "{command:?} says:\n{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
