//! Claiming what is due, and running it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::{CatalogError, Claim};
use crate::telemetry::RunningFetch;
use crate::vault::Vault;

/// How long a lost wake-up can delay a claim.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// Claims recordings for one node, and works on them.
pub struct ClaimLoop {
    vault: Arc<Vault>,
    /// This node's name in leases.
    node: String,
    free: Arc<Semaphore>,
    running: TaskTracker,
    /// An attempt ended: there is room, and perhaps another one to plan.
    ended: Arc<Notify>,
    /// Hands back what is running.
    cut_short: CancellationToken,
}

impl ClaimLoop {
    /// A loop that works on `concurrency` recordings at once.
    pub fn new(vault: Arc<Vault>, node: String, concurrency: usize) -> Self {
        Self {
            vault,
            node,
            free: Arc::new(Semaphore::new(concurrency)),
            running: TaskTracker::new(),
            ended: Arc::new(Notify::new()),
            cut_short: CancellationToken::new(),
        }
    }

    /// Claims until `stopping`. What it began goes on; see [`Self::finish`].
    pub async fn run(&self, stopping: &CancellationToken) {
        let mut changes = self.vault.catalog.changes();
        while !stopping.is_cancelled() {
            changes.mark_unchanged();
            let idle_for = match self.claim_what_is_due().await {
                Ok(idle_for) => idle_for,
                Err(error) => {
                    tracing::debug!(%error, "nothing was claimed");
                    POLL_EVERY
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                _ = changes.changed() => {}
                () = self.ended.notified() => {}
                () = tokio::time::sleep(idle_for) => {}
            }
        }
    }

    /// Lets what is running end within `limit`, then hands the rest back.
    pub async fn finish(&self, limit: Duration) {
        self.running.close();
        if tokio::time::timeout(limit, self.running.wait()).await.is_err() {
            tracing::info!(running = self.running.len(), "handing back what is not done");
            self.cut_short.cancel();
            self.running.wait().await;
        }
    }

    /// Claims as much as there is room for. Says how long nothing is due then.
    async fn claim_what_is_due(&self) -> Result<Duration, CatalogError> {
        loop {
            // Waits for room: nothing can be claimed before.
            let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
            match self.vault.catalog.next_due(self.vault.accounts()).await? {
                Some(Duration::ZERO) => {}
                Some(wait) => return Ok(wait.min(POLL_EVERY)),
                None => return Ok(POLL_EVERY),
            }
            let mut permits = vec![permit];
            while let Ok(more) = self.free.clone().try_acquire_owned() {
                permits.push(more);
            }
            let granted = Instant::now();
            let vault = &self.vault;
            let claims = vault.catalog.claim(&self.node, vault.accounts(), vault.lease(), permits.len()).await?;
            if claims.is_empty() {
                // Other nodes were quicker.
                return Ok(POLL_EVERY);
            }
            for (claim, permit) in claims.into_iter().zip(permits) {
                self.start(claim, granted, permit);
            }
        }
    }

    fn start(&self, claim: Claim, granted: Instant, permit: OwnedSemaphorePermit) {
        let (vault, cut_short, ended) = (self.vault.clone(), self.cut_short.clone(), self.ended.clone());
        self.running.spawn(async move {
            let _running = RunningFetch::begin();
            let outcome = vault.fetch(&claim, granted, &cut_short).await;
            tracing::debug!(recording = %claim.lease.id, epoch = claim.lease.epoch, ?outcome, "an attempt ended");
            drop(permit);
            ended.notify_one();
        });
    }
}
