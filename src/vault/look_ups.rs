//! Reading the catalog for requests, so many at a time.
//!
//! Callbacks, claims and the renewal of leases need connections, too: whatever
//! is asked for over HTTP, its look-ups never take the last ones. Whoever waits
//! too long for their turn is told so, rather than made to wait longer.

use std::time::Duration;

use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::Vault;
use crate::catalog::{CatalogError, Cursor, HistoryEntry, ListFilter, PageCursor};
use crate::domain::recording::{Recording, RecordingId};

/// A look-up that has waited so long for its turn will not be answered soon.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(2);

impl Vault {
    /// A turn for a look-up. An error where too many wait; the catalog may be well.
    pub(super) async fn look_up_turn(&self) -> Result<SemaphorePermit<'_>, CatalogError> {
        let in_time = timeout(LOOK_UP_WITHIN, self.look_ups.acquire()).await;
        in_time.map_err(|_| CatalogError::Busy)?.map_err(|_| CatalogError::Busy)
    }

    /// A page of recordings, newest first, and where the next one begins.
    pub async fn list(
        &self,
        filter: &ListFilter,
        after: Option<PageCursor>,
        limit: usize,
    ) -> Result<(Vec<Recording>, Option<PageCursor>), CatalogError> {
        let _turn = self.look_up_turn().await?;
        self.catalog.list(filter, after, limit).await
    }

    /// What happened to a recording, oldest first.
    pub async fn history(&self, id: &RecordingId) -> Result<Vec<HistoryEntry>, CatalogError> {
        let _turn = self.look_up_turn().await?;
        self.catalog.history(id).await
    }

    /// The cursor behind the last event.
    pub async fn latest_event(&self) -> Result<Cursor, CatalogError> {
        let _turn = self.look_up_turn().await?;
        self.catalog.latest_event().await
    }
}
