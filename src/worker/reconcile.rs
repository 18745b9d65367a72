//! Asking Twilio what callbacks did not tell, when it is due.
//!
//! Several accounts are asked of beside each other, so that none waits for another. What is running when the node stops is dropped: it
//! goes on elsewhere, from what was saved.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::{Announced, CatalogError, Walk, Walker};
use crate::telemetry;
use crate::vault::Vault;

/// How late something may begin that others made due.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Walks at once; each holds a page of a list, some megabytes.
const WALKS_MAX: usize = 8;
/// Announced recordings that are asked about at once, each of another account.
const ASKING_MAX: usize = 4;

/// Asks Twilio for one node.
pub struct ReconcileLoop {
    vault: Arc<Vault>,
    /// None: walks are switched off.
    walker: Option<Walker>,
    walks: Arc<Semaphore>,
    asking: Arc<Semaphore>,
    running: TaskTracker,
    /// Something ended: there is room, and perhaps more to do.
    ended: Arc<Notify>,
}

impl ReconcileLoop {
    /// A loop of the node of that name.
    pub fn new(vault: Arc<Vault>, node: String) -> Self {
        Self {
            walker: vault.walker(node),
            vault,
            walks: Arc::new(Semaphore::new(WALKS_MAX)),
            asking: Arc::new(Semaphore::new(ASKING_MAX)),
            running: TaskTracker::new(),
            ended: Arc::new(Notify::new()),
        }
    }

    /// Asks until `stopping`; returns when what was running is handed back.
    pub async fn run(&self, stopping: &CancellationToken) {
        while !stopping.is_cancelled() {
            let begun = self.begin_what_is_due(stopping).await;
            let idle_for = *begun.as_ref().unwrap_or(&POLL_EVERY);
            self.vault.health.note("reconcile_failing", begun.map(|_| ()));
            tokio::select! {
                () = stopping.cancelled() => {}
                () = self.ended.notified() => {}
                () = tokio::time::sleep(idle_for) => {}
            }
        }
        self.running.close();
        self.running.wait().await;
    }

    /// Begins as much as there is room for. Says for how long nothing is due then.
    async fn begin_what_is_due(&self, stopping: &CancellationToken) -> Result<Duration, CatalogError> {
        let accounts = self.vault.accounts();
        let Some(ahead) = self.vault.catalog.ahead(accounts, self.vault.ask_announced_every()).await? else {
            // This node is new, or the catalog is.
            if accounts.is_empty() {
                return Ok(POLL_EVERY);
            }
            self.vault.catalog.enroll(accounts).await?;
            return Ok(Duration::ZERO);
        };
        // Of a catalog that is not indexed the list would fetch what the bucket has.
        if self.vault.check_clock().is_err() || !self.vault.catalog.is_indexed().await? {
            return Ok(POLL_EVERY);
        }
        let mut idle_for = POLL_EVERY;
        if let Some(walker) = &self.walker {
            telemetry::reconcile_lag(ahead.lag);
            match ahead.walk_in {
                Some(Duration::ZERO) => self.begin_walks(walker, stopping).await?,
                Some(wait) => idle_for = idle_for.min(wait),
                None => {}
            }
        }
        match ahead.announced_in {
            Some(Duration::ZERO) => self.begin_asking(stopping).await?,
            Some(wait) => idle_for = idle_for.min(wait),
            None => {}
        }
        Ok(idle_for)
    }

    async fn begin_walks(&self, walker: &Walker, stopping: &CancellationToken) -> Result<(), CatalogError> {
        while let Ok(permit) = self.walks.clone().try_acquire_owned() {
            let granted = Instant::now();
            let Some(walk) = self.vault.catalog.grant_walk(walker).await? else { break };
            self.start_walk(walk, granted, permit, stopping.clone());
        }
        Ok(())
    }

    fn start_walk(&self, walk: Walk, granted: Instant, permit: OwnedSemaphorePermit, stopping: CancellationToken) {
        let (vault, ended) = (self.vault.clone(), self.ended.clone());
        self.running.spawn(async move {
            let outcome = vault.walk(&walk, granted, &stopping).await;
            tracing::debug!(account = %walk.lease.account, epoch = walk.lease.epoch, ?outcome, "a walk ended");
            drop(permit);
            ended.notify_one();
        });
    }

    async fn begin_asking(&self, stopping: &CancellationToken) -> Result<(), CatalogError> {
        let every = self.vault.ask_announced_every();
        while let Ok(permit) = self.asking.clone().try_acquire_owned() {
            let Some(announced) = self.vault.catalog.claim_announced(self.vault.accounts(), every).await? else {
                break;
            };
            self.start_asking(announced, permit, stopping.clone());
        }
        Ok(())
    }

    fn start_asking(&self, announced: Announced, permit: OwnedSemaphorePermit, stopping: CancellationToken) {
        let (vault, ended) = (self.vault.clone(), self.ended.clone());
        self.running.spawn(async move {
            vault.ask_about(&announced, &stopping).await;
            drop(permit);
            ended.notify_one();
        });
    }
}
