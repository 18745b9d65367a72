//! Keeping a lease for as long as the work under it goes on.

use std::time::Duration;

use tokio::time::Instant;

use super::Vault;
use crate::catalog::{CatalogError, Settled};
use crate::telemetry;

impl Vault {
    /// Keeps a lease of this node; see [`keep`]. `work` is for the metrics.
    pub(super) async fn keep<R>(&self, work: &'static str, granted: Instant, renew: impl Fn() -> R)
    where
        R: Future<Output = Result<Settled, CatalogError>>,
    {
        keep(self.lease, granted, renew).await;
        telemetry::lease_lost(work);
    }
}

/// Renews a lease of that length that was granted after `granted`, for as long as
/// that works; returns when it is lost, or may be by the time another node looks.
pub(super) async fn keep<R>(lease: Duration, granted: Instant, renew: impl Fn() -> R)
where
    R: Future<Output = Result<Settled, CatalogError>>,
{
    let mut renewed = granted;
    loop {
        let next = renewed + lease / 3;
        tokio::time::sleep_until(next.max(Instant::now() + lease / 10)).await;
        // The lease runs from when the catalog grants it, which is later than this.
        let asked = Instant::now();
        let end = renewed + lease;
        match tokio::time::timeout_at(end, renew()).await {
            Ok(Ok(Settled::Done)) => renewed = asked,
            Ok(Err(_)) if Instant::now() < end => {}
            Ok(Ok(Settled::Stale) | Err(_)) | Err(_) => return,
        }
    }
}
