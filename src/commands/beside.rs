//! What commands stand on that work on catalog and bucket beside running nodes.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::config;
use crate::vault::Vault;
use crate::{app, telemetry};

/// The use cases over the parts of this process' settings, which are reached.
pub struct Beside {
    /// The use cases.
    pub vault: Vault,
    /// What this process is called.
    pub node: String,
}

/// Opens the parts that the settings name, as `serve` does.
pub async fn open() -> anyhow::Result<Beside> {
    let config = config()?;
    telemetry::init_logs(&config.log);
    let vault = app::vault(&config).await?;
    vault.catalog.prepare().await.context("the catalog cannot be used")?;
    vault.bucket.check().await.context("the bucket cannot be used")?;
    vault.check_clock()?;
    Ok(Beside { vault, node: app::node_name() })
}

/// Ctrl-C and SIGTERM, caught.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Catches them from now on.
    fn catch() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?,
            terminate: signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?,
        })
    }

    /// Returns when one has come.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Cancels that when the command is told to stop, for as long as the handle lives.
pub fn stop_on_signal(stopping: CancellationToken) -> anyhow::Result<AbortOnDropHandle<()>> {
    let mut signals = Signals::catch()?;
    let stop = async move {
        signals.received().await;
        stopping.cancel();
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(stop)))
}
