//! Reading what the bucket says, where the catalog is new.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::vault::Vault;
use crate::vault::reindex::WalkError;

/// How often is looked whether another node, or a command, has done it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a look may take at the end of a node, in which it gives back what it began.
const END_WITHIN: Duration = Duration::from_secs(3);

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

/// Reads the markers of a catalog that is new, as a node of that name, and says what is
/// missing, until `stopping`: the catalog may be lost at any time, and made anew.
pub async fn read_bucket(vault: Arc<Vault>, node: String, stopping: CancellationToken) {
    while !stopping.is_cancelled() {
        if vault.health.is_ready() {
            let mut looking = std::pin::pin!(look(&vault, &node, &stopping));
            tokio::select! {
                () = &mut looking => {}
                () = stopping.cancelled() => {
                    let _ = tokio::time::timeout(END_WITHIN, looking).await;
                    return;
                }
            }
        }
        let _ = tokio::time::timeout(LOOK_EVERY, stopping.cancelled()).await;
    }
}

async fn look(vault: &Vault, node: &str, stopping: &CancellationToken) {
    match vault.catalog.is_indexed().await {
        Ok(true) => {
            vault.health.note("unread", Ok::<_, NotDone>(()));
            return vault.health.note("unindexed", Ok::<_, NotDone>(()));
        }
        Ok(false) => {}
        // It is told elsewhere that the catalog is away; how far it is, nobody knows.
        Err(_) => return,
    }
    if let Ok(false) = vault.catalog.is_read().await {
        // Twilio does not repeat what is refused now.
        vault.health.callbacks_may_be_lost();
        // It is said while it is done: there may be very many markers.
        vault.health.note("unread", Err(NotDone::Unread));
    }
    let read = match vault.read_markers_once(node, stopping).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(WalkError::Lost | WalkError::Stopped) => Err(NotDone::Unread),
        Err(error) => Err(NotDone::Unreadable(error)),
    };
    let is_read = read.is_ok();
    vault.health.note("unread", read);
    let Ok(is_indexed) = vault.catalog.is_indexed().await else { return };
    let indexed = if is_read && !is_indexed { Err(NotDone::Unindexed) } else { Ok(()) };
    vault.health.note("unindexed", indexed);
}
