//! Doing the next part of the scrub when it is due.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::vault::Vault;
use crate::vault::reindex::WalkError;
use crate::vault::scrub::Round;

/// How often is looked whether a part is due that another node was to do.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Scrubs as a node of that name, and looks at what is staged, until `stopping`. One
/// pass of the scrub is done `every` so often; None: none is.
pub async fn scrub(vault: Arc<Vault>, node: String, every: Option<Duration>, stopping: CancellationToken) {
    let rounds: Vec<Round> = every.map(Round::scrub).into_iter().chain([Round::staging()]).collect();
    while !stopping.is_cancelled() {
        let mut idle_for = LOOK_EVERY;
        if vault.health.is_ready() && vault.check_clock().is_ok() && vault.knows_its_bucket() {
            let done = parts(&vault, &node, &rounds, &stopping).await;
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

async fn parts(
    vault: &Vault,
    node: &str,
    rounds: &[Round],
    stopping: &CancellationToken,
) -> Result<Duration, WalkError> {
    let mut due_in = LOOK_EVERY;
    // Against a catalog that knows nothing yet all would be unnamed.
    if vault.catalog.is_indexed().await? {
        for round in rounds {
            due_in = due_in.min(vault.scrub_part(*round, node, stopping).await?);
        }
    }
    Ok(due_in)
}
