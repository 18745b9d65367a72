//! `callvault serve`: the service. All nodes are alike.

use anyhow::Context;
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};

use super::config;
use crate::app::App;
use crate::telemetry;

/// An API key of so many random characters cannot be guessed.
const ADMIN_KEY_GOOD_LEN: usize = 20;

/// Run the service.
///
/// Settings come from the environment and from the TOML file that
/// CALLVAULT_CONFIG names; deploy/callvault.toml documents them all. Without
/// any, the service runs on SQLite and an embedded S3 in the current folder,
/// and listens on 127.0.0.1:8080.
///
/// On SIGTERM or Ctrl-C it stops being ready, serves on for CALLVAULT_DRAIN,
/// lets fetches end or hands them to other nodes, and exits with 0.
///
/// Exit status: 0 it was told to stop; 1 it cannot listen, or a part of it broke;
/// 2 wrong usage or settings. A catalog or a bucket that does not answer is waited
/// for: /readyz and `callvault doctor` say why.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {}

/// Runs until it is told to stop.
pub async fn run() -> anyhow::Result<()> {
    let config = config()?;
    telemetry::init_logs(&config.log);
    if config.accounts.is_empty() {
        tracing::warn!("no Twilio account is configured: callbacks are refused, and nothing is fetched");
    }
    if config.admin_key.is_none() {
        tracing::info!("CALLVAULT_ADMIN_KEY is not set: keys that `callvault keys create` made are good, no others");
    }
    if config.admin_key.as_ref().is_some_and(|key| key.expose_secret().len() < ADMIN_KEY_GOOD_LEN) {
        tracing::warn!(
            "CALLVAULT_ADMIN_KEY is short: {ADMIN_KEY_GOOD_LEN} random characters or more cannot be guessed"
        );
    }
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let app = App::start(config).await?;
    tracing::info!(address = %app.address, public_url = app.public_url, "listening");
    let broken = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = app.broken() => true,
    };
    app.shutdown().await;
    telemetry::flush_traces().await;
    anyhow::ensure!(!broken, "a part of the service ended that never should; the log tells which");
    Ok(())
}
