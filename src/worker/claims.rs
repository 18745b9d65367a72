//! Claiming what is due, and running it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::{CatalogError, Claim, Claimant};
use crate::telemetry::RunningFetch;
use crate::vault::Vault;

/// How long a lost wake-up can delay a claim.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// What handing leases back may take at the very end of a node.
pub const HAND_BACK_WITHIN: Duration = Duration::from_secs(3);

/// Claims recordings for one node, and works on them.
pub struct ClaimLoop {
    vault: Arc<Vault>,
    claimant: Claimant,
    free: Arc<Semaphore>,
    running: TaskTracker,
    /// An attempt ended: there is room, and perhaps another one to plan.
    ended: Arc<Notify>,
    /// Hands back what is running.
    cut_short: CancellationToken,
}

impl ClaimLoop {
    /// A loop of the node of that name, which works on `concurrency` recordings at once.
    pub fn new(vault: Arc<Vault>, node: String, concurrency: usize) -> Self {
        Self {
            claimant: vault.claimant(node),
            vault,
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
            let claimed = self.claim_what_is_due(stopping).await;
            let idle_for = *claimed.as_ref().unwrap_or(&POLL_EVERY);
            self.vault.health.note("claims_failing", claimed.map(|_| ()));
            tokio::select! {
                () = stopping.cancelled() => {}
                _ = changes.changed() => {}
                () = self.ended.notified() => {}
                () = tokio::time::sleep(idle_for) => {}
            }
        }
    }

    /// Lets what is running end within `limit`, then hands the rest back. To be
    /// called once [`Self::run`] has returned.
    pub async fn finish(&self, limit: Duration) {
        self.running.close();
        if tokio::time::timeout(limit, self.running.wait()).await.is_err() {
            tracing::info!(running = self.running.len(), "handing back what is not done");
            self.cut_short.cancel();
            if tokio::time::timeout(HAND_BACK_WITHIN, self.running.wait()).await.is_err() {
                tracing::warn!(running = self.running.len(), "not handed back in time; the leases will run out");
            }
        }
    }

    /// Claims as much as there is room for, and starts it. Says for how long
    /// nothing is due then.
    async fn claim_what_is_due(&self, stopping: &CancellationToken) -> Result<Duration, CatalogError> {
        loop {
            // Waits for room: nothing can be claimed before.
            let permit = tokio::select! {
                biased;
                () = stopping.cancelled() => return Ok(POLL_EVERY),
                permit = self.free.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            match self.vault.catalog.next_due(&self.claimant.accounts).await? {
                Some(Duration::ZERO) => {}
                Some(wait) => return Ok(wait.min(POLL_EVERY)),
                None => return Ok(POLL_EVERY),
            }
            let mut permits = vec![permit];
            while let Ok(more) = self.free.clone().try_acquire_owned() {
                permits.push(more);
            }
            // From here on nothing may be cancelled: what is granted must be started.
            let granted = Instant::now();
            let claims = self.vault.catalog.claim(&self.claimant, permits.len()).await?;
            if claims.is_empty() {
                // Other nodes were quicker, or leases ran out and are due later.
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
