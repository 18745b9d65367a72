//! What an attempt stages of a large recording: begun, named in its row, cleared away.
//!
//! The row names the upload before any of its parts is sent, and until it is cleared away:
//! whatever becomes of this node, the next claimer or a recheck finds it. Nothing here
//! touches an object at its own key.

use std::time::Duration;

use super::Vault;
use super::fetch::{AttemptError, held};
use super::traces::Traces;
use crate::bucket::Staging;
use crate::catalog::{Claim, Lease};

/// An upload is begun with so many tries, each of which waits longer than the one before.
const STAGING_TRIES: u32 = 4;
const STAGE_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long an upload that was given up may take to be cleared away; the next
/// claimer does it otherwise. Short enough for the end of a node.
const CLEAR_AWAY_TIMEOUT: Duration = Duration::from_secs(2);

impl Vault {
    /// Begins the upload of a large recording, which the row names before the first part is sent.
    pub(super) async fn stage(&self, lease: &Lease, traces: &Traces) -> Result<Staging, AttemptError> {
        let key = self.bucket.layout().staging(&lease.id, lease.epoch);
        let mut tried = 1;
        let staging = loop {
            // One that fails without a clear answer may have opened an upload: the row is looked at later.
            match traces.write(self.bucket.stage(&key)).await {
                Ok(staging) => break staging,
                Err(_) if tried < STAGING_TRIES => tokio::time::sleep(STAGE_AGAIN_AFTER * tried).await,
                Err(error) => return Err(error.into()),
            }
            tried += 1;
        };
        traces.began_upload(staging.upload_id());
        held(traces.name(self.catalog.note_upload(lease, staging.upload_id())).await?)?;
        Ok(staging)
    }

    /// Clears away the upload that this attempt began, while the lease is ours.
    pub(super) async fn clear_away(&self, claim: &Claim, traces: &Traces) {
        if traces.upload_id().is_none() {
            return;
        }
        if self.clear_staging(claim, traces).await {
            let _ = self.catalog.forget_upload(&claim.lease).await;
        } else {
            // The row goes on naming it: the next claimer clears it away, or a recheck.
            traces.left_something();
        }
    }

    /// True where an upload was begun and nothing is left of it.
    pub(super) async fn clear_staging(&self, claim: &Claim, traces: &Traces) -> bool {
        let Some(upload_id) = traces.upload_id() else { return false };
        let key = self.bucket.layout().staging(&claim.lease.id, claim.lease.epoch);
        let clearing = traces.write(self.bucket.clear_staging(&key, upload_id));
        matches!(tokio::time::timeout(CLEAR_AWAY_TIMEOUT, clearing).await, Ok(Ok(())))
    }
}
