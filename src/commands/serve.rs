//! `callvault serve`: the service. All nodes are alike.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::config;
use crate::app::App;
use crate::telemetry;

/// Run the service.
///
/// Settings come from the environment and from the TOML file that
/// CALLVAULT_CONFIG names; deploy/callvault.toml documents them all. Without
/// any, the service runs on SQLite and an embedded S3 in the current folder,
/// and listens on 127.0.0.1:8080.
///
/// On SIGTERM or Ctrl-C it stops being ready, serves on for CALLVAULT_DRAIN,
/// lets fetches end or hands them to other nodes, and exits with 0.
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
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let app = App::start(config).await?;
    tracing::info!(address = %app.address, public_url = app.public_url, "listening");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    app.shutdown().await;
    Ok(())
}
