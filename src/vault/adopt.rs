//! Finding the audio of a recording that lies in the bucket already.
//!
//! Only an object of the recording's own account is taken, and only one that reads
//! back as what its key says. Of several the newest is.

use std::cmp::Reverse;

use super::Vault;
use super::duty::OBJECTS_AT_ONCE;
use super::fetch::{AttemptError, held};
use crate::bucket::{BucketError, ObjectFacts, Throttle};
use crate::catalog::Claim;
use crate::domain::object_key::Layout;
use crate::domain::recording::{Details, StoredObject};
use crate::domain::sid::AccountSid;

/// An object that reads back as what its key says.
pub(super) struct Whole {
    pub(super) object: StoredObject,
    /// What it tells of its recording, where that agrees with its key.
    pub(super) said: Option<Details>,
}

impl Vault {
    /// Stores a recording that was claimed, where its audio may lie in the bucket
    /// already and does, in the folder that these details name. Details that Twilio did
    /// not confirm are believed where the object says so, too. What else lies there
    /// gets a recheck.
    pub(super) async fn adopted(
        &self,
        claim: &Claim,
        details: &Details,
        is_confirmed: bool,
    ) -> Result<bool, AttemptError> {
        let lease = &claim.lease;
        let folder = self.bucket.layout().recording_folder(&lease.id, details);
        let Some(folder) = folder.filter(|_| claim.look_first) else { return Ok(false) };
        let keys = self.bucket.list_folder(&folder, OBJECTS_AT_ONCE).await?;
        if keys.len() > 1 {
            self.owe_recheck(lease).await?;
        }
        let Some(Whole { object, said }) = self.newest_whole(lease.id.account, &keys, &Throttle::default()).await?
        else {
            return Ok(false);
        };
        if said.is_none() && !is_confirmed {
            return Ok(false);
        }
        let told = said.unwrap_or_default().updated_by(details.clone());
        if !is_confirmed || told != *details {
            held(self.catalog.confirm(lease, &told).await?)?;
        }
        tracing::info!(recording = %lease.id, key = object.key, "it lies in the bucket already");
        self.settle_stored(lease, &object, true).await?;
        Ok(true)
    }

    /// The newest of these objects that is whole, if one is, read no faster than that.
    pub(super) async fn newest_whole(
        &self,
        account: AccountSid,
        keys: &[String],
        throttle: &Throttle,
    ) -> Result<Option<Whole>, BucketError> {
        let mut candidates = Vec::new();
        for key in keys {
            let Some((digest, format)) = Layout::content_of(key) else { continue };
            if let Some(described) = self.describe_own(account, key).await? {
                let said = self.bucket.layout().described(key, &described.metadata).map(|said| said.details);
                candidates.push((Reverse(described.stored_at()), key, digest, format, said));
            }
        }
        candidates.sort_by_key(|(stored_at, ..)| *stored_at);
        for (_, key, digest, format, said) in candidates {
            match self.bucket.read_back_within(key, throttle).await? {
                Some((read, size_bytes)) if read == digest => {
                    let object = StoredObject { digest, size_bytes, format, key: key.clone() };
                    return Ok(Some(Whole { object, said }));
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
