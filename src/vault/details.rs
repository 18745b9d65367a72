//! What Twilio says of a recording, read before its media where that matters.
//!
//! The key of the object needs Twilio's own call; what is encrypted needs to be
//! known as such. Where an account has no private keys, nothing is read for that
//! until a body turns out to be no audio.

use super::fetch::{AttemptError, held};
use super::{Vault, source_of};
use crate::catalog::Claim;
use crate::domain::recording::Details;
use crate::twilio::api::Described;
use crate::twilio::decrypt::Decryptor;
use crate::twilio::media::MediaError;

impl Vault {
    /// What is known of the recording, Twilio's own word on its call included; and
    /// all that Twilio said, where it was asked.
    pub(super) async fn details(&self, claim: &Claim) -> Result<(Details, Option<Described>), AttemptError> {
        let recording = &claim.recording;
        if recording.details_confirmed {
            return Ok((recording.details.clone(), None));
        }
        let described = self.describe(claim).await?;
        let told = described.details.clone();
        let named = told.call_sid.is_some() || told.conference_sid.is_some();
        let call_sid = if named { told.call_sid } else { recording.details.call_sid };
        let details = Details { call_sid, ..recording.details.clone().updated_by(told) };
        held(self.catalog.confirm(&claim.lease, &details).await?)?;
        Ok((details, Some(described)))
    }

    /// What decrypts the recording; None where it is not encrypted. Twilio is asked
    /// where it was not, and the account has keys.
    pub(super) async fn decryptor(
        &self,
        claim: &Claim,
        described: Option<Described>,
    ) -> Result<Option<Decryptor>, AttemptError> {
        let account = claim.recording.id.account;
        let described = match described {
            None if self.twilio.decrypts(&account) => self.describe(claim).await?,
            None => return Ok(None),
            Some(described) => described,
        };
        let sealed = described.encryption.as_ref();
        Ok(sealed.map(|encryption| self.twilio.decryptor(&account, encryption)).transpose()?)
    }

    async fn describe(&self, claim: &Claim) -> Result<Described, AttemptError> {
        let recording = &claim.recording;
        let source = source_of(&recording.id, recording.source_host.as_deref());
        let not_known = || MediaError::NotReady("404 for its description".to_owned());
        let described = self.twilio.describe(&source).await?.ok_or_else(not_known)?;
        match described.status.as_str() {
            "absent" | "deleted" | "failed" => Err(AttemptError::Twilio(described.status)),
            _ => Ok(described),
        }
    }

    /// What a body that is no audio means: one that is encrypted, and that no key opens, is that.
    pub(super) async fn not_audio(&self, claim: &Claim, first: String) -> AttemptError {
        let account = claim.recording.id.account;
        if !self.twilio.decrypts(&account)
            && let Ok(described) = self.describe(claim).await
            && let Err(error) = self.decryptor(claim, Some(described)).await
        {
            return error;
        }
        AttemptError::NotAudio(first)
    }
}
