//! What is done about what a scrub finds.
//!
//! Nothing that this service did not write is touched. What no row names is left to
//! a recheck, which looks when nothing can be under way any more.

use tokio_util::sync::CancellationToken;

use super::Vault;
use super::audit::AuditError;
use super::found::{Cure, Found};
use super::mend::Mended;
use crate::bucket::{BucketError, Throttle};
use crate::catalog::FoundObject;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// It is as it should be, in these words.
    Cured(&'static str),
    /// It will be seen to, in these words.
    Owed(&'static str),
    /// It is to be fetched from Twilio again.
    ToFetch,
    /// Neither the bucket nor Twilio has the recording.
    Lost,
    /// It could not be done now, for this reason.
    NotNow(String),
    /// Nothing is done about it.
    None,
}

impl Vault {
    /// Does what cures something that was found, reading no faster than that.
    pub(super) async fn cure(
        &self,
        found: &Found,
        throttle: &Throttle,
        stopping: &CancellationToken,
    ) -> Result<Remedy, AuditError> {
        let remedy = match (&found.cure, &found.id) {
            (Cure::Mend, Some(id)) => self.mend(id, throttle, stopping).await?.into(),
            (Cure::Owe(epoch, audio), Some(id)) => {
                let home = audio.map_or((None, None), |audio| (audio.call_sid, audio.conference_sid));
                self.catalog.owe_for_find(id, *epoch, home, self.recheck_after).await?;
                Remedy::Owed("is looked at again by a recheck, which removes it")
            }
            (Cure::Register(object), _) => self.register(object, throttle, stopping).await?,
            (Cure::Heed(marker), Some(id)) => {
                let known = self.catalog.in_hand([id.recording]).await?;
                match self.marked(*marker, *id, &found.key, &known).await? {
                    Some(marked) => {
                        self.catalog.take_marker(*marker, &marked, self.recheck_after).await?;
                        Remedy::Cured("is heeded")
                    }
                    None => Remedy::Cured("is gone"),
                }
            }
            (Cure::Mark(marker), Some(id)) => self.mark_again(*marker, id, stopping).await?,
            (Cure::Sweep, _) => {
                let now = self.now()?;
                self.bucket.delete_under_lease(&found.key, now).await?;
                Remedy::Cured("is removed")
            }
            (Cure::LeaveAlone, _) | (Cure::Mend | Cure::Owe(..) | Cure::Heed(_) | Cure::Mark(_), None) => Remedy::None,
        };
        Ok(remedy)
    }

    /// Makes a row of an object that is whole; a row that is there is told of it, and mended.
    async fn register(
        &self,
        object: &FoundObject,
        throttle: &Throttle,
        stopping: &CancellationToken,
    ) -> Result<Remedy, AuditError> {
        match self.bucket.read_back_within(&object.object.key, throttle).await? {
            Some((digest, _)) if digest == object.object.digest => {}
            Some(_) => return Ok(Remedy::NotNow("its bytes are not what its key says".to_owned())),
            None => return Ok(Remedy::Cured("is gone")),
        }
        if self.catalog.register(object, self.recheck_after).await? {
            return Ok(Remedy::Cured("has a row now"));
        }
        Ok(self.mend(&object.id, throttle, stopping).await?.into())
    }

    /// Whether the bucket answers at all: what one object does then is that object's own.
    pub(super) async fn bucket_answers(&self) -> Result<(), BucketError> {
        self.bucket.check().await
    }
}

impl From<Mended> for Remedy {
    fn from(mended: Mended) -> Self {
        match mended {
            Mended::InOrder => Self::Cured("is in order"),
            Mended::Described => Self::Cured("is described anew"),
            Mended::Adopted => Self::Cured("is stored: its object is whole"),
            Mended::ToFetch => Self::ToFetch,
            Mended::Lost => Self::Lost,
            Mended::NotNow(why) => Self::NotNow(why),
        }
    }
}
