//! Beginning the rechecks that are due.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalog::{CatalogError, Duty};
use crate::vault::Vault;

/// What falls due is to begin within 10 s.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Rechecks at once on this node: they are not urgent, and each holds a chunk at most.
const AT_ONCE: usize = 8;

/// Begins what is due until `stopping`, which also gives back what is under way.
pub async fn recheck(vault: Arc<Vault>, stopping: CancellationToken) {
    let mut running = JoinSet::new();
    while !stopping.is_cancelled() {
        if vault.health.is_ready() && vault.check_clock().is_ok() {
            let begun = begin(&vault, &stopping, &mut running).await;
            vault.health.note("rechecks_failing", begun);
        }
        tokio::select! {
            () = stopping.cancelled() => {}
            // There is room for another one.
            Some(_) = running.join_next() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    while running.join_next().await.is_some() {}
}

async fn begin(
    vault: &Arc<Vault>,
    stopping: &CancellationToken,
    running: &mut JoinSet<()>,
) -> Result<(), CatalogError> {
    if running.len() >= AT_ONCE {
        return Ok(());
    }
    // From here on nothing may be cancelled: what is granted must be started.
    let granted = Instant::now();
    for duty in vault.begin_rechecks(AT_ONCE - running.len()).await? {
        running.spawn(run(vault.clone(), duty, granted, stopping.clone()));
    }
    Ok(())
}

async fn run(vault: Arc<Vault>, duty: Duty, granted: Instant, stopping: CancellationToken) {
    vault.recheck(&duty, granted, &stopping).await;
}
