//! How long recordings have waited to be stored.

use super::Vault;
use crate::catalog::CatalogError;
use crate::telemetry;

impl Vault {
    /// Measures how long the oldest has waited that is not stored yet.
    pub async fn measure_backlog(&self) -> Result<(), CatalogError> {
        let backlog = self.catalog.backlog(&self.accounts).await?;
        telemetry::oldest_pending(
            backlog.oldest.unwrap_or_default(),
            backlog.oldest_of_many.unwrap_or_default(),
            backlog.oldest_of_backfill.unwrap_or_default(),
        );
        Ok(())
    }
}
