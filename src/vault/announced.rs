//! Asking what became of recordings that Twilio began and then said no more of.
//!
//! Each is asked about by itself, for as long as a walk would look back; one of
//! which Twilio cannot say then what became of it is given up. Only an answer
//! ends the waiting: where Twilio does not answer, it is asked again.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reconcile::Terms;
use super::{Vault, source_of};
use crate::catalog::{Announced, CatalogError, Urgency};
use crate::domain::recording::ErrorCode;
use crate::twilio::media::MediaError;

/// How often Twilio is asked where walks are switched off.
const EVERY_WITHOUT_WALKS: Duration = Duration::from_secs(15 * 60);
/// A failure counts as the latest of many: the account's next one is asked about after the longest wait.
const FAILED_BEFORE: u32 = u32::MAX;
/// Of Twilio's word for a state, what is kept.
const STATUS_MAX_CHARS: usize = 40;

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Twilio(#[from] MediaError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Terms {
    /// The time between two walks.
    pub(super) fn between_walks(&self) -> Duration {
        self.every.unwrap_or(EVERY_WITHOUT_WALKS)
    }

    /// How long nothing may be heard of an announced recording before Twilio is asked.
    fn ask_announced_every(&self) -> Duration {
        self.between_walks().min(self.window)
    }
}

impl Vault {
    /// How long nothing may be heard of an announced recording before Twilio is asked.
    pub fn ask_announced_every(&self) -> Duration {
        self.reconcile.ask_announced_every()
    }

    /// Asks Twilio about a recording that was claimed for it. Once `stopping`, it is
    /// left to be asked about again.
    pub async fn ask_about(&self, announced: &Announced, stopping: &CancellationToken) {
        let id = announced.recording.id;
        let asked = tokio::select! {
            asked = self.ask_twilio(announced) => asked,
            () = stopping.cancelled() => return,
        };
        let pause = match &asked {
            Ok(()) => Duration::ZERO,
            Err(AskError::Twilio(error)) => self.pause_after(error.code(), FAILED_BEFORE, error.retry_after()).0,
            Err(AskError::Catalog(_)) => self.retry.base,
        };
        if let Err(error) = &asked {
            let call = announced.recording.details.call_sid.map(tracing::field::display);
            tracing::warn!(recording = %id, call, %error, "what became of it was not told; Twilio is asked again");
        }
        if let Err(error) = self.catalog.asked_about(id.account, pause).await {
            tracing::debug!(recording = %id, %error, "the account's next one is asked about later");
        }
    }

    async fn ask_twilio(&self, announced: &Announced) -> Result<(), AskError> {
        let id = announced.recording.id;
        let source = source_of(&id, announced.recording.source_host.as_deref());
        let (began, described) = self
            .in_turn(id.account, Urgency::Urgent, async { (Instant::now(), self.twilio.describe(&source).await) })
            .await?;
        if let Err(error) = &described {
            self.heed(id.account, error, began).await;
        }
        let word = match described? {
            Some(described) if described.is_final() => {
                self.take_found(id, described).await?;
                return Ok(());
            }
            Some(described) => described.status.chars().take(STATUS_MAX_CHARS).collect(),
            None => "not known".to_owned(),
        };
        if announced.known_for >= self.reconcile.window {
            let detail = format!("Twilio began to record, and still says that the recording is {word}");
            self.catalog.give_up_announced(&id, ErrorCode::NotReady, &detail).await?;
        }
        Ok(())
    }
}
