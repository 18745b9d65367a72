//! The command line.

use std::process::ExitCode;

use callvault::commands::{self, Cli};
use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    commands::run(Cli::parse()).await
}
