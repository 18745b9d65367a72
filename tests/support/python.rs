//! The Python of the tests, with the clients that users copy.

use std::path::Path;
use std::process::{Command, Output};

use super::secrets::Forbidden;
use super::world::{ADMIN_KEY, AUTH_TOKEN};

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

/// What a program says, once it has ended well. What it logged may hold no secret.
pub fn said(output: &Output) -> String {
    let (told, logged) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{logged}");
    logs_no_secret(&logged);
    told.into_owned()
}

/// What a client logs is held against what it was given: keys are, and links come by them.
pub fn logs_no_secret(logged: &str) {
    let given = [("CALLVAULT_API_KEY", ADMIN_KEY), ("CALLVAULT_TWILIO_AUTH_TOKEN", AUTH_TOKEN)];
    let given = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Forbidden::of(&given, Path::new("")).is_not_in(logged);
}
