//! Finding the audio of a recording that lies in the bucket already.
//!
//! Only an object of the recording's own account is taken, and only one that reads
//! back as what its key says. Of several the newest is.

use std::cmp::Reverse;

use super::Vault;
use super::duty::OBJECTS_AT_ONCE;
use super::fetch::AttemptError;
use crate::bucket::{BucketError, ObjectFacts};
use crate::catalog::Claim;
use crate::domain::object_key::Layout;
use crate::domain::recording::{Details, StoredObject};
use crate::domain::sid::AccountSid;

impl Vault {
    /// The object of a recording that was claimed, where the catalog is not indexed:
    /// then it may lie in the bucket already. What else lies there gets a recheck.
    pub(super) async fn already_there(
        &self,
        claim: &Claim,
        details: &Details,
    ) -> Result<Option<StoredObject>, AttemptError> {
        if self.catalog.is_indexed().await? {
            return Ok(None);
        }
        let id = claim.lease.id;
        let Some(folder) = self.bucket.layout().recording_folder(&id, details) else { return Ok(None) };
        let keys = self.bucket.list_folder(&folder, OBJECTS_AT_ONCE).await?;
        if keys.len() > 1 {
            self.owe_recheck(&claim.lease).await?;
        }
        Ok(self.newest_whole(id.account, &keys).await?)
    }

    /// The newest of these objects that is whole, if one is.
    pub(super) async fn newest_whole(
        &self,
        account: AccountSid,
        keys: &[String],
    ) -> Result<Option<StoredObject>, BucketError> {
        let mut candidates = Vec::new();
        for key in keys {
            let Some((digest, format)) = Layout::content_of(key) else { continue };
            if let Some(described) = self.describe_own(account, key).await? {
                candidates.push((Reverse(described.stored_at()), key, digest, format));
            }
        }
        candidates.sort_by_key(|(stored_at, ..)| *stored_at);
        for (_, key, digest, format) in candidates {
            match self.bucket.read_back(key).await? {
                Some((read, size_bytes)) if read == digest => {
                    return Ok(Some(StoredObject { digest, size_bytes, format, key: key.clone() }));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// An object that this service wrote for that account.
    pub(super) async fn describe_own(
        &self,
        account: AccountSid,
        key: &str,
    ) -> Result<Option<ObjectFacts>, BucketError> {
        let described = self.bucket.facts(key).await?;
        Ok(described.filter(|described| described.account_sid() == Some(account.as_str())))
    }
}
