//! Reading what the bucket says, where the catalog is new.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::vault::Vault;
use crate::vault::reindex::WalkError;

/// How often is looked whether another node, or a command, has done it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum NotDone {
    #[error(
        "the catalog is new, and the bucket's markers are not read yet: callbacks are refused, and nothing is fetched"
    )]
    Unread,
    #[error("the catalog is new, and the bucket's markers cannot be read: {0}")]
    Unreadable(WalkError),
    #[error(
        "the catalog is new, and the bucket was not empty: run `callvault reindex`; until then what is not known \
         is answered with 503, and nothing is reconciled, evicted, retired or deleted at Twilio"
    )]
    Unindexed,
}

/// Reads the markers as a node of that name, and says what is missing until the
/// catalog is read and indexed, or until `stopping`.
pub async fn read_bucket(vault: Arc<Vault>, node: String, stopping: CancellationToken) {
    let reading = async {
        loop {
            if vault.health.is_ready() && look(&vault, &node).await {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = reading => stopping.cancelled().await,
        () = stopping.cancelled() => {}
    }
}

/// Whether there is nothing more to be done.
async fn look(vault: &Vault, node: &str) -> bool {
    if let Ok(false) = vault.catalog.is_read().await {
        // Twilio does not repeat what is refused now.
        vault.health.callbacks_may_be_lost();
        // It is said while it is done: there may be very many markers.
        vault.health.note("unread", Err(NotDone::Unread));
    }
    let read = match vault.read_markers_once(node).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(WalkError::Lost) => Err(NotDone::Unread),
        Err(error) => Err(NotDone::Unreadable(error)),
    };
    let is_read = read.is_ok();
    vault.health.note("unread", read);
    let Ok(is_indexed) = vault.catalog.is_indexed().await else { return false };
    let indexed = if is_read && !is_indexed { Err(NotDone::Unindexed) } else { Ok(()) };
    vault.health.note("unindexed", indexed);
    is_indexed
}
