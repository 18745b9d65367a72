//! Reaching the catalog and the bucket for the first time, and watching them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::bucket::BucketError;
use crate::catalog::CatalogError;
use crate::telemetry;
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
        let mut prepared = false;
        let mut bucket_found = false;
        loop {
            if !prepared {
                let fared = tokio::time::timeout(PATIENCE * 6, vault.catalog.prepare()).await;
                let fared = fared.unwrap_or_else(|_| Err(CatalogError::Unavailable("it does not answer".to_owned())));
                prepared = fared.is_ok();
                note(&vault, "catalog_unreachable", fared);
            } else {
                note(&vault, "catalog_unreachable", vault.catalog.next_due(vault.accounts()).await.map(|_| ()));
            }
            let fared = tokio::time::timeout(PATIENCE, vault.bucket.check()).await;
            let fared = fared.unwrap_or_else(|_| Err(BucketError::Setup("its store does not answer".to_owned())));
            bucket_found |= fared.is_ok();
            note(&vault, "bucket_unreachable", fared);
            if prepared && bucket_found {
                vault.health.became_ready();
                tokio::time::sleep(LOOK_EVERY).await;
            } else {
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
            }
        }
    };
    tokio::select! {
        () = watched => {}
        () = stopping.cancelled() => {}
    }
}

fn note<E: std::fmt::Display>(vault: &Vault, code: &'static str, fared: Result<(), E>) {
    telemetry::trouble(code, fared.is_err());
    vault.health.note(code, fared);
}
