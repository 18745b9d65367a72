//! Reaching the catalog and the bucket for the first time, and watching them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::bucket::BucketError;
use crate::vault::Vault;

/// The wait between two tries at first contact.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How often each part is looked at afterwards.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A part that does not answer for so long is away.
const PATIENCE: Duration = Duration::from_secs(10);

/// Migrates the catalog and finds the bucket, again and again until both are
/// reached; then keeps looking at them until `stopping`.
pub async fn watch_parts(vault: Arc<Vault>, stopping: CancellationToken) {
    let watched = async {
        tokio::join!(prepare(&vault), watch_bucket(&vault, true));
        vault.health.became_ready();
        tokio::join!(watch_catalog(&vault), watch_bucket(&vault, false));
    };
    tokio::select! {
        () = watched => {}
        () = stopping.cancelled() => {}
    }
}

/// Returns once the catalog is prepared. A migration is never cut short, however
/// long it takes.
async fn prepare(vault: &Vault) {
    loop {
        let mut preparing = std::pin::pin!(vault.catalog.prepare());
        let fared = loop {
            match tokio::time::timeout(PATIENCE, &mut preparing).await {
                Ok(fared) => break fared,
                Err(_) => vault.health.note("catalog_unreachable", Err("it is still being prepared")),
            }
        };
        let prepared = fared.is_ok();
        vault.health.note("catalog_unreachable", fared);
        if prepared {
            return;
        }
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
    }
}

async fn watch_catalog(vault: &Vault) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        vault.health.note("catalog_unreachable", vault.catalog.check().await);
    }
}

async fn watch_bucket(vault: &Vault, until_found: bool) {
    loop {
        let fared = tokio::time::timeout(PATIENCE, vault.bucket.check()).await;
        let fared = fared.unwrap_or_else(|_| Err(BucketError::Setup("its store does not answer".to_owned())));
        // A node with a wrong clock cannot use the bucket, but can take callbacks and give links.
        let found = fared.as_ref().map_or_else(BucketError::is_about_the_time, |()| true);
        vault.health.note("bucket_unreachable", fared);
        if until_found && found {
            return;
        }
        tokio::time::sleep(if until_found { TRY_AGAIN_AFTER } else { LOOK_EVERY }).await;
    }
}
