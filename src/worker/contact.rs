//! Reaching the catalog and the bucket for the first time, and watching them.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bucket::BucketError;
use crate::vault::Vault;
use crate::vault::audit::AuditError;

/// The wait between two tries at first contact.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How often each part is looked at afterwards.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A part that does not answer for so long is away.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked whether the bucket is the one that the catalog knows, and how often
/// while it is not.
const LOOK_FOR_OBJECTS_EVERY: Duration = Duration::from_secs(600);
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(15);
/// A catalog that comes and goes is no reason to ask Twilio all the time.
const MAKE_UP_AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// Migrates the catalog and finds the bucket, again and again until both are
/// reached; then keeps looking at them until `stopping`.
pub async fn watch_parts(vault: Arc<Vault>, stopping: CancellationToken) {
    let watched = async {
        tokio::join!(prepare(&vault), watch_bucket(&vault, true));
        // A new installation takes callbacks from its first moment on.
        match tokio::time::timeout(PATIENCE, vault.read_empty_bucket()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "whether the bucket is empty is not known"),
            Err(_) => tracing::debug!("whether the bucket is empty was not told in time"),
        }
        // Before any duty begins.
        look_for_objects(&vault).await;
        vault.health.became_ready();
        tokio::join!(watch_catalog(&vault), watch_bucket(&vault, false), watch_objects(&vault));
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
        let mut preparing = std::pin::pin!(vault.prepare_catalog());
        let fared = loop {
            match tokio::time::timeout(PATIENCE, &mut preparing).await {
                Ok(fared) => break fared,
                Err(_) => note_catalog(vault, Err("it is still being prepared")),
            }
        };
        let prepared = fared.is_ok();
        note_catalog(vault, fared);
        if prepared {
            return;
        }
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
    }
}

async fn watch_catalog(vault: &Vault) {
    let mut made_up_at: Option<Instant> = None;
    loop {
        // Until it is back, answers come from memory: that ends soon after.
        let is_away = vault.health.is_in_trouble("catalog_unreachable");
        tokio::time::sleep(if is_away { TRY_AGAIN_AFTER } else { LOOK_EVERY }).await;
        let fared = vault.catalog.check().await;
        let answers = fared.is_ok();
        note_catalog(vault, fared);
        if answers && let Err(error) = vault.measure_backlog().await {
            tracing::debug!(%error, "how long recordings have waited is not known");
        }
        if answers && made_up_at.is_none_or(|at| at.elapsed() >= MAKE_UP_AT_MOST_EVERY) {
            match vault.make_up_for_lost_callbacks().await {
                Ok(true) => made_up_at = Some(Instant::now()),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "Twilio's lists are walked once the catalog answers"),
            }
        }
    }
}

/// A catalog that is away cannot take callbacks, and Twilio does not repeat them.
fn note_catalog<E: Display>(vault: &Vault, fared: Result<(), E>) {
    if fared.is_err() {
        vault.health.callbacks_may_be_lost();
    }
    vault.health.note("catalog_unreachable", fared);
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

/// A bucket that answers may be another one.
async fn watch_objects(vault: &Vault) {
    let mut looked_at = Instant::now();
    loop {
        tokio::time::sleep(LOOK_AGAIN_EVERY).await;
        // Whoever missed an object may have seen it first.
        if !vault.knows_its_bucket() || looked_at.elapsed() >= LOOK_FOR_OBJECTS_EVERY {
            look_for_objects(vault).await;
            looked_at = Instant::now();
        }
    }
}

async fn look_for_objects(vault: &Vault) {
    match tokio::time::timeout(PATIENCE, vault.look_for_objects()).await {
        // What was seen is noted.
        Ok(Ok(()) | Err(AuditError::OtherBucket(_))) => {}
        Ok(Err(error)) => tracing::debug!(%error, "whether the bucket has what is stored is not known"),
        Err(_) => tracing::debug!("whether the bucket has what is stored was not told in time"),
    }
}
