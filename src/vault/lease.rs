//! Keeping a lease for as long as the work under it goes on.

use tokio::time::Instant;

use super::Vault;
use crate::catalog::{CatalogError, Settled};
use crate::telemetry;

impl Vault {
    /// Renews a lease that was granted after `granted`, for as long as that works;
    /// returns when it is lost, or may be by the time another node looks. `work` is for
    /// the metrics.
    pub(super) async fn keep<R>(&self, work: &'static str, granted: Instant, renew: impl Fn() -> R)
    where
        R: Future<Output = Result<Settled, CatalogError>>,
    {
        let mut renewed = granted;
        loop {
            let next = renewed + self.lease / 3;
            tokio::time::sleep_until(next.max(Instant::now() + self.lease / 10)).await;
            // The lease runs from when the catalog grants it, which is later than this.
            let asked = Instant::now();
            let end = renewed + self.lease;
            match tokio::time::timeout_at(end, renew()).await {
                Ok(Ok(Settled::Done)) => renewed = asked,
                Ok(Err(_)) if Instant::now() < end => {}
                Ok(Ok(Settled::Stale) | Err(_)) | Err(_) => return telemetry::lease_lost(work),
            }
        }
    }
}
