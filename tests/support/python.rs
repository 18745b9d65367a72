//! The Python of the tests, with the clients that users copy.

use std::process::{Command, Output};

/// The interpreter, in a folder of the tests' own.
pub const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-tools/python/bin/python");
/// What users copy.
pub const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/clients/python");
/// What tries it out.
pub const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// A program in Python that finds the clients, and of its environment only what finds other programs.
pub fn python() -> Command {
    let mut command = Command::new(PYTHON);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let modules = format!("{CLIENTS}:{PROGRAMS}");
    command.env_clear().env("PATH", path).env("PYTHONPATH", modules).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// What a program says, once it has ended well.
pub fn said(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    told
}
