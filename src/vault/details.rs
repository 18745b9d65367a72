//! What Twilio says of a recording, read before its media where that matters.
//!
//! The key of the object needs Twilio's own call; what is encrypted needs to be
//! known as such. Where an account has no private keys, nothing is read for that
//! until a body turns out to be no audio.

use super::fetch::{AttemptError, held};
use super::{Vault, source_of};
use crate::catalog::Claim;
use crate::domain::recording::Details;
use crate::twilio::decrypt::Decryptor;
use crate::twilio::media::MediaError;

impl Vault {
    /// What is known of the recording, Twilio's own word on its call included, and
    /// what decrypts it, where it is encrypted.
    pub(super) async fn details(&self, claim: &Claim) -> Result<(Details, Option<Decryptor>), AttemptError> {
        let recording = &claim.recording;
        let account = recording.id.account;
        if recording.details_confirmed && !self.twilio.decrypts(&account) {
            return Ok((recording.details.clone(), None));
        }
        let source = source_of(&recording.id, recording.source_host.as_deref());
        let not_known = || MediaError::NotReady("404 for its description".to_owned());
        let described = self.twilio.describe(&source).await?.ok_or_else(not_known)?;
        if matches!(described.status.as_str(), "absent" | "deleted" | "failed") {
            return Err(AttemptError::Twilio(described.status));
        }
        let sealed = described.encryption.as_ref();
        let decryptor = sealed.map(|encryption| self.twilio.decryptor(&account, encryption)).transpose()?;
        if recording.details_confirmed {
            return Ok((recording.details.clone(), decryptor));
        }
        let named = described.details.call_sid.is_some() || described.details.conference_sid.is_some();
        let call_sid = if named { described.details.call_sid } else { recording.details.call_sid };
        let details = Details { call_sid, ..recording.details.clone().updated_by(described.details) };
        held(self.catalog.confirm(&claim.lease, &details).await?)?;
        Ok((details, decryptor))
    }

    /// What a body that is no audio means: one that is encrypted, and that no key opens, is that.
    pub(super) async fn not_audio(&self, claim: &Claim, first: String) -> AttemptError {
        let id = claim.recording.id;
        let source = source_of(&id, claim.recording.source_host.as_deref());
        if !self.twilio.decrypts(&id.account)
            && let Ok(Some(described)) = self.twilio.describe(&source).await
            && let Some(encryption) = described.encryption
            && let Err(error) = self.twilio.decryptor(&id.account, &encryption)
        {
            return error.into();
        }
        AttemptError::NotAudio(first)
    }
}
