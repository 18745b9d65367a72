//! Whether the bucket is the one that the catalog knows.
//!
//! An object that is missing is lost, and fetched again. Where most of them are, it is the
//! bucket that is another one, by its name, its prefix or its store, or was emptied. Then
//! nothing counts as lost by itself, nothing is fetched for that, and nothing goes: it may be
//! another service's. People are told. Where the bucket is right, `callvault verify --repair`
//! says so, and has all fetched again.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::Vault;
use super::audit::AuditError;
use crate::bucket::BucketError;
use crate::domain::place::Place;

/// Stored recordings that are looked at, wherever among all. Of fewer nothing is concluded:
/// to fetch those again is soon done.
const LOOKED_AT: usize = 20;
/// How it is told.
const TROUBLE: &str = "objects_missing";
/// Objects that are looked at side by side.
const LOOKS_AT_ONCE: usize = 16;

/// So many of the recordings that were looked at have no object.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error(
    "of {LOOKED_AT} stored recordings {missing} have no object in the bucket, below its prefix: it is another one, or was \
     emptied; nothing is scrubbed or let go, and none of them counts as lost, until most are there; \
     where bucket and prefix are right, `callvault verify --repair` fetches them again"
)]
pub struct MostAreMissing {
    missing: usize,
}

impl Vault {
    /// Whether the bucket is, as far as was seen, the one that the catalog knows: in another
    /// one nothing is to be done by itself.
    pub fn knows_its_bucket(&self) -> bool {
        !self.health.is_in_trouble(TROUBLE)
    }

    /// Looks at some of what is stored, and notes whether the bucket has most of it. Fails
    /// where it has not, or does not answer.
    pub async fn look_for_objects(&self) -> Result<(), AuditError> {
        let behind = format!("RE{:032x}", ((self.dice)() * u128::MAX as f64) as u128);
        let keys = self.catalog.some_stored(&behind, LOOKED_AT).await?;
        let seen = if keys.len() < LOOKED_AT { Ok(()) } else { self.most_are_there(&keys).await? };
        self.health.note(TROUBLE, seen);
        Ok(seen?)
    }

    async fn most_are_there(&self, keys: &[String]) -> Result<Result<(), MostAreMissing>, BucketError> {
        // Below another prefix it may be there, and nothing of it is found where things are looked for.
        let is_in_place = |key: &&String| matches!(self.bucket.layout().place(key), Place::Audio(_));
        let looks: Vec<_> = keys.iter().filter(is_in_place).map(|key| self.bucket.facts(key)).collect();
        let looked: Vec<_> = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE).try_collect().await?;
        let missing = keys.len() - looked.iter().flatten().count();
        Ok(if missing * 2 > keys.len() { Err(MostAreMissing { missing }) } else { Ok(()) })
    }
}
