//! What the binary can do, a command a file.
//!
//! Results go to stdout, progress and logs to stderr. Exit status: 0 done, 1
//! something was found wrong or failed, 2 wrong usage or settings.

pub mod backfill;
mod beside;
pub mod demo;
pub mod doctor;
pub mod get;
pub mod keys;
pub mod openapi;
pub mod reindex;
pub mod serve;
pub mod simulate;
pub mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, ConfigError};

/// Wrong usage or settings.
const USAGE: u8 = 2;

/// What a command that asks Twilio says without one.
const NO_ACCOUNT: &str =
    "no Twilio account is configured: set CALLVAULT_TWILIO_ACCOUNT_SID and CALLVAULT_TWILIO_AUTH_TOKEN";

/// Fetches each Twilio call recording exactly once, keeps it in S3 under its
/// call SID, and serves everyone from there.
#[derive(Debug, Parser)]
#[command(name = "callvault", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Demo(demo::Args),
    Get(get::Args),
    Doctor(doctor::Args),
    Backfill(backfill::Args),
    Verify(verify::Args),
    Reindex(reindex::Args),
    Keys(keys::Args),
    Openapi(openapi::Args),
    #[command(hide = true)]
    Simulate(simulate::Args),
}

/// Runs the command.
pub async fn run(cli: Cli) -> ExitCode {
    let ended = match cli.command {
        Command::Serve(_) => serve::run().await,
        Command::Demo(args) => demo::run(args).await,
        Command::Get(args) => get::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Backfill(args) => backfill::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Reindex(args) => reindex::run(args).await,
        Command::Keys(args) => keys::run(args).await,
        Command::Openapi(_) => openapi::run().await,
        Command::Simulate(args) => simulate::run(args).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

#[expect(clippy::print_stderr, reason = "a command's last word is for whoever called it")]
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(wrong) = error.downcast_ref::<ConfigError>() {
        eprintln!("callvault: the settings are wrong:\n{wrong}");
        return ExitCode::from(USAGE);
    }
    eprintln!("callvault: {}", chain(error));
    ExitCode::FAILURE
}

/// An error and its causes, down to where the last of them has been told.
fn chain(error: &anyhow::Error) -> String {
    let root = error.root_cause().to_string();
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if told.contains(&root) {
            break;
        }
        told.push_str(": ");
        told.push_str(&cause);
    }
    told
}

/// Ends the process over a wrong usage that only shows beside the settings.
fn wrong_usage(words: &str) -> ! {
    Cli::command().error(ErrorKind::ValueValidation, words).exit()
}

/// Writes a line of a command's result to stdout. Whoever has read enough closes it:
/// that is the command's end, and nothing is wrong.
fn print_line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n")) {
        std::process::exit(i32::from(error.kind() != std::io::ErrorKind::BrokenPipe));
    }
}

/// The settings of this process.
fn config() -> Result<Config, ConfigError> {
    Config::from_process()
}
