//! Shares: made for whoever has a key, opened by whoever has the URL.
//!
//! A share names one recording for as long as it lives: whichever a call
//! answered for when it was made. Opening one asks neither the catalog nor
//! anybody else who it is: the secret, the key and the time are known here. It
//! ends at its time, with its key, or with its secret.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Vault;
use super::deliver::{Delivery, DeliveryError, Wanted};
use super::inquiry::Inquiry;
use crate::catalog::CatalogError;
use crate::domain::key::KeyId;
use crate::domain::recording::{Recording, RecordingId, State};
use crate::domain::share::{Share, Token};
use crate::domain::sid::AccountSid;

/// The life of a share where nobody said.
const LIFE_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// Who wants to share, and how.
#[derive(Debug, Clone)]
pub struct Terms<'a> {
    /// The key that asks.
    pub key: KeyId,
    /// The accounts that it may see; None is all.
    pub visible: Option<&'a [AccountSid]>,
    /// The life of the share; None where nobody said.
    pub expires_in: Option<Duration>,
    /// How long to wait for Twilio's answer where a call is not known.
    pub patience: Duration,
}

/// A share that was made.
#[derive(Debug)]
pub struct Shared {
    /// What opens it.
    pub token: String,
    /// What it plays.
    pub recording: RecordingId,
    /// When it ends.
    pub ends_at: Timestamp,
}

/// Why nothing is shared.
#[derive(Debug, thiserror::Error)]
pub enum NotShared {
    /// A share may not live that long.
    #[error("a share lives for 1 s at least, and for {} s at most", .max.as_secs())]
    Life {
        /// The longest life.
        max: Duration,
    },
    /// It is not known, and Twilio has not said yet whether it is there.
    #[error("Twilio is being asked for it")]
    Asking {
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// It is absent, failed or erased: there is nothing to play.
    #[error("there is no audio")]
    Gone(Box<Recording>),
    /// There is no such thing.
    #[error("it is not known")]
    Unknown,
    /// There is no answer.
    #[error(transparent)]
    Failed(#[from] DeliveryError),
}

/// Why a token opens nothing.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// Nobody signed it.
    #[error("not a share")]
    Forged,
    /// It was one, and is over.
    #[error("the share is over")]
    Over,
    /// Nobody can say: the catalog has been away for too long.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Vault {
    /// Shares what is wanted, stored or not.
    pub async fn share(self: &Arc<Self>, wanted: Wanted, terms: &Terms<'_>) -> Result<Shared, NotShared> {
        let life = terms.expires_in.unwrap_or(LIFE_DEFAULT.min(self.share_max));
        if life > self.share_max || life < Duration::from_secs(1) {
            return Err(NotShared::Life { max: self.share_max });
        }
        let recording = self.choose(wanted, terms).await?;
        let now = self.now().map_err(DeliveryError::from)?;
        // A share is good for what is evicted as well.
        let _ = self.note_asked(&recording, now).await;
        if recording.state != State::Stored && !recording.state.is_on_its_way() {
            return Err(NotShared::Gone(Box::new(recording)));
        }
        let secret = self.keys.signing_secret().await.map_err(DeliveryError::from)?;
        // As precise as the token, so that what is told is what holds.
        let ends_at = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now) + life;
        let share = Share { recording: recording.id, key: terms.key, ends_at };
        Ok(Shared { token: share.sign(secret.id, &secret.secret), recording: recording.id, ends_at })
    }

    /// The recording that is wanted, once it is known.
    async fn choose(self: &Arc<Self>, wanted: Wanted, terms: &Terms<'_>) -> Result<Recording, NotShared> {
        let mut waiter = self.flights.waiter(self.catalog.changes(), Instant::now() + terms.patience);
        let mut inquiry = Inquiry::default();
        loop {
            waiter.look();
            let found = self.look_up(wanted, terms.visible).await.map_err(DeliveryError::from)?;
            if let Some(recording) = found {
                return Ok(recording);
            }
            match self.unknown::<()>(wanted, terms.visible, &mut inquiry, &mut waiter).await? {
                None => {}
                Some(Delivery::Asking { retry_after_seconds }) => {
                    return Err(NotShared::Asking { retry_after_seconds });
                }
                Some(_) => return Err(NotShared::Unknown),
            }
        }
    }

    /// What a token plays, if it does so now.
    pub async fn open_share(&self, token: &Token) -> Result<RecordingId, NotOpened> {
        let secret = self.keys.secret(token.secret_id).await?.ok_or(NotOpened::Forged)?;
        if !token.is_signed_with(&secret.secret) {
            return Err(NotOpened::Forged);
        }
        let share = &token.claimed;
        let is_over = secret.is_over || share.ends_at <= self.now()?;
        if is_over || !self.keys.is_good_at_last(share.key).await? {
            return Err(NotOpened::Over);
        }
        Ok(share.recording)
    }
}
