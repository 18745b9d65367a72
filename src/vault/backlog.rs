//! How long recordings have waited to be stored.

use super::Vault;
use crate::catalog::CatalogError;
use crate::telemetry;

impl Vault {
    /// Measures how long the oldest has waited that is not stored yet.
    pub async fn measure_backlog(&self) -> Result<(), CatalogError> {
        let waited = self.catalog.oldest_pending(&self.accounts).await?;
        telemetry::oldest_pending(waited.unwrap_or_default());
        Ok(())
    }
}
