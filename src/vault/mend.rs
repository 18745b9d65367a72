//! Mending a recording whose object is lost, damaged or wrongly described.
//!
//! Works under the lease of a recheck, so that no fetch is under way meanwhile, and
//! looks again before it changes anything. What is only described wrongly is
//! described anew. What is lost or damaged is fetched again where Twilio still has
//! it. Where Twilio says that it has not, another whole object of it counts instead, and
//! without one it is given up; until Twilio has answered nothing is changed. Removes
//! nothing that a row names.

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::adopt::Whole;
use super::duty::{DUTY_LEASE, Held, OBJECTS_AT_ONCE, span_of};
use super::flaws::Flaw;
use super::recheck::found;
use super::{Vault, source_of};
use crate::bucket::{BucketError, NewObject, Throttle};
use crate::catalog::{CatalogError, Finding, Urgency};
use crate::domain::object_key;
use crate::domain::place::said_of_recording;
use crate::domain::recording::{Details, Recording, RecordingId, State, StoredObject};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mended {
    /// Nothing is wrong with it any more.
    InOrder,
    /// Its object is described as it should be.
    Described,
    /// A whole object of it lay in the bucket: it is stored.
    Adopted,
    /// It is pending: Twilio has it.
    ToFetch,
    /// Neither the bucket nor Twilio has it: it was given up.
    Lost,
    /// It could not be mended now, for this reason.
    NotNow(String),
}

impl Vault {
    /// Mends a recording, reading no faster than that. Where it is being worked on, that
    /// is done another time.
    pub async fn mend(
        &self,
        id: &RecordingId,
        throttle: &Throttle,
        stopping: &CancellationToken,
    ) -> Result<Mended, CatalogError> {
        let granted = Instant::now();
        let Some(duty) = self.catalog.begin_duty(id, DUTY_LEASE).await? else {
            return Ok(Mended::NotNow("it is being worked on".to_owned()));
        };
        let held = Held::new(&duty, DUTY_LEASE);
        let mending = self.settle_look(&held, granted, stopping, self.mend_under(&held, throttle));
        let mended = mending.instrument(span_of("mend", &duty.recording)).await;
        Ok(mended.unwrap_or_else(|| Mended::NotNow("the bucket or the catalog did not answer".to_owned())))
    }

    async fn mend_under(&self, held: &Held<'_>, throttle: &Throttle) -> Result<(Finding, Mended), BucketError> {
        let recording = &held.duty.recording;
        if let (State::Stored, Some(object)) = (recording.state, &recording.object) {
            return self.mend_stored(held, object, throttle).await;
        }
        let finding = self.look_again(held, throttle).await?;
        let mended = if matches!(finding, Finding::Adopted(..)) { Mended::Adopted } else { Mended::InOrder };
        Ok((finding, mended))
    }

    pub(super) async fn mend_stored(
        &self,
        held: &Held<'_>,
        object: &StoredObject,
        throttle: &Throttle,
    ) -> Result<(Finding, Mended), BucketError> {
        let recording = &held.duty.recording;
        self.sweep_staging(held).await?;
        let Some(folder) = self.bucket.layout().recording_folder(&recording.id, &recording.details) else {
            return Ok((Finding::Unfinished, Mended::NotNow("its call is not known".to_owned())));
        };
        // Where the bucket itself is gone, this fails, and nothing counts as lost.
        let keys = self.bucket.list_folder(&folder, OBJECTS_AT_ONCE).await?;
        let flaws = self.flaws(recording, object, Some(throttle)).await?;
        if flaws.is_empty() {
            return Ok((found(self.remove_ours(held, &keys, Some(&object.key)).await?), Mended::InOrder));
        }
        if let Some(flaw) = flaws.iter().find(|flaw| matches!(flaw, Flaw::Key(_))) {
            return Ok((Finding::Unfinished, Mended::NotNow(format!("its row {flaw}"))));
        }
        let damage = flaws.iter().find(|flaw| matches!(flaw, Flaw::Missing(_) | Flaw::Bytes(_)));
        let Some(damage) = damage else {
            self.describe_object(recording, object).await?;
            return Ok((Finding::Unfinished, Mended::Described));
        };
        let how = match damage {
            Flaw::Missing(_) => format!("is not at {}", object.key),
            damage => damage.to_string(),
        };
        match self.twilio_has(recording).await {
            Ok(true) => Ok((Finding::Damaged(how), Mended::ToFetch)),
            Ok(false) => {
                let others: Vec<String> = keys.into_iter().filter(|key| *key != object.key).collect();
                Ok(match self.newest_whole(recording.id.account, &others, throttle).await? {
                    Some(Whole { object, said }) => {
                        (Finding::Replaced(how, object, Box::new(said.unwrap_or_default())), Mended::Adopted)
                    }
                    None => (Finding::Gone(how), Mended::Lost),
                })
            }
            Err(why) => Ok((Finding::Unfinished, Mended::NotNow(why))),
        }
    }

    /// Says of an object what its row knows, and what it said itself of what the row does
    /// not; its bytes were just read back.
    async fn describe_object(&self, recording: &Recording, object: &StoredObject) -> Result<(), BucketError> {
        let facts = self.bucket.facts(&object.key).await?;
        let said = facts.as_ref().and_then(|facts| facts.stored_at());
        let stored_at = said.or(recording.stored_at).unwrap_or(Timestamp::UNIX_EPOCH);
        let said = facts.map(|facts| said_of_recording(&facts.metadata)).unwrap_or_default();
        // In whose folder it lies, the row knows.
        let call_sid = recording.details.call_sid;
        let details = Details { call_sid, ..said.updated_by(recording.details.clone()) };
        let described = NewObject {
            key: object.key.clone(),
            format: object.format,
            metadata: object_key::metadata(&recording.id, &details, &object.digest, stored_at),
        };
        self.bucket.describe_anew(&described).await
    }

    /// Whether Twilio has the recording at this moment, or why that is not known.
    async fn twilio_has(&self, recording: &Recording) -> Result<bool, String> {
        let account = recording.id.account;
        if !self.accounts.contains(&account) {
            return Err(format!("no credentials are configured for {account}"));
        }
        let source = source_of(&recording.id, recording.source_host.as_deref());
        let described =
            self.in_turn(account, Urgency::Idle, async { (Instant::now(), self.twilio.describe(&source).await) }).await;
        let (began, described) = described.map_err(|error| format!("Twilio is not asked for it: {error}"))?;
        match described {
            Ok(Some(described)) => Ok(!matches!(described.status.as_str(), "absent" | "deleted" | "failed")),
            Ok(None) => Ok(false),
            Err(error) => {
                self.heed(account, &error, began).await;
                Err(format!("Twilio cannot be asked for it: {error}"))
            }
        }
    }
}
