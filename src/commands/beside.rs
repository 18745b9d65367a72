//! What commands stand on that work on catalog and bucket beside running nodes.
//!
//! Those make neither: where a folder has none, a service runs in another one, and an
//! empty one would only hide that. Making them is for the service, for its first key, and
//! for a reindex, to which the bucket is enough.

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::bucket::Embedded;
use crate::config::{BucketConfig, Config, Database};
use crate::vault::Vault;
use crate::{app, telemetry};

const ELSEWHERE: &str = "run it in the folder that the node runs in; `callvault serve` makes what a new node needs";

/// The use cases over the parts of this process' settings, which are reached.
pub struct Beside {
    /// The use cases.
    pub vault: Vault,
    /// What this process is called.
    pub node: String,
}

/// Fails where the catalog is a file, and not there.
pub fn has_catalog(config: &Config) -> anyhow::Result<()> {
    match &config.database {
        Database::Sqlite(path) if !path.exists() => bail!("there is no catalog at {}: {ELSEWHERE}", path.display()),
        Database::Sqlite(_) | Database::Postgres(_) => Ok(()),
    }
}

/// Opens the parts that the settings name, as `serve` does; a catalog is made where there is none.
pub async fn open(config: &Config) -> anyhow::Result<Beside> {
    telemetry::init_logs(&config.log);
    if let BucketConfig::Embedded(folder) = &config.bucket
        && !Embedded::is_in(folder)
    {
        bail!("there is no embedded store in {}: {ELSEWHERE}", folder.display());
    }
    let vault = app::vault(config).await?;
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
