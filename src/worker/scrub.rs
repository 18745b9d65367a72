//! Doing the next part of the scrub when it is due.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::vault::Vault;
use crate::vault::reindex::WalkError;

/// How often is looked whether a part is due that another node was to do.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Scrubs as a node of that name, one pass `every`, until `stopping`.
pub async fn scrub(vault: Arc<Vault>, node: String, every: Duration, stopping: CancellationToken) {
    while !stopping.is_cancelled() {
        let mut idle_for = LOOK_EVERY;
        if vault.health.is_ready() && vault.check_clock().is_ok() {
            let done = part(&vault, &node, every, &stopping).await;
            if let Ok(due_in) = &done {
                idle_for = LOOK_EVERY.min(*due_in);
            }
            // Another node went on with it: that is no trouble.
            let fared = if matches!(done, Err(WalkError::Lost)) { Ok(()) } else { done.map(|_| ()) };
            vault.health.note("scrub_failing", fared);
        }
        tokio::select! {
            () = stopping.cancelled() => {}
            () = tokio::time::sleep(idle_for) => {}
        }
    }
}

async fn part(vault: &Vault, node: &str, every: Duration, stopping: &CancellationToken) -> Result<Duration, WalkError> {
    // Against a catalog that knows nothing yet all would be unnamed.
    if !vault.catalog.is_indexed().await? {
        return Ok(LOOK_EVERY);
    }
    vault.scrub_part(node, every, stopping).await
}
