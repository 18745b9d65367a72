//! Taking what Twilio or the application says of a recording.
//!
//! Nothing is acknowledged before the catalog has committed it.

use crate::catalog::{Accepted, AnnouncedBy, Announcement, CatalogError};
use crate::domain::recording::{Details, Recording, State};
use crate::domain::sid::{AccountSid, CallSid};
use crate::twilio::callback::Callback;
use crate::twilio::source::{RefusedSource, SourceHost};

use super::Vault;
use super::deliver::Wanted;
use tracing::Instrument;

/// What a PUT came to.
#[derive(Debug)]
pub enum Put {
    /// The recording is new, and on its way.
    Accepted(Recording),
    /// It was known.
    Known(Recording),
}

/// Why a PUT was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RefusedPut {
    /// It is not a recording's URL.
    #[error("recording_url: {0}")]
    Url(#[from] RefusedSource),
    /// The key may not see the account: for it there is no such account.
    #[error("the account of recording_url is not known here")]
    NotVisible,
    /// Nobody gave this service credentials for the account.
    #[error("recording_url names account {0}, which is not configured here")]
    NotConfigured(AccountSid),
    /// It was erased, and stays so.
    #[error("the recording was erased")]
    Erased,
    /// It could not be made durable.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Vault {
    /// Takes a callback whose signature was checked.
    pub async fn take_callback(&self, callback: Callback) -> Result<Accepted, CatalogError> {
        let announcement = Announcement {
            id: callback.source.id,
            source_host: callback.source.host.name(),
            details: callback.details,
            by: AnnouncedBy::Callback { status: callback.status.as_str().to_owned(), error_code: callback.error_code },
        };
        self.accept(&announcement).await
    }

    /// Its fetch goes on with the trace, on any node.
    async fn accept(&self, announcement: &Announcement) -> Result<Accepted, CatalogError> {
        let id = announcement.id;
        let span = tracing::info_span!(
            "accept",
            account_sid = %id.account,
            recording_sid = %id.recording,
            call_sid = announcement.details.call_sid.map(tracing::field::display),
        );
        self.catalog.accept(announcement).instrument(span).await
    }

    /// Takes a recording that an application names for a call. `visible` are
    /// the accounts that its key is bound to; None is all.
    pub async fn put(&self, call: CallSid, url: &str, visible: Option<&[AccountSid]>) -> Result<Put, RefusedPut> {
        let (host, id) = self.twilio.hosts().read(url)?;
        if visible.is_some_and(|visible| !visible.contains(&id.account)) {
            return Err(RefusedPut::NotVisible);
        }
        let home = self.twilio.home(&id.account).ok_or(RefusedPut::NotConfigured(id.account))?;
        let host: SourceHost = host.unwrap_or(home);
        let announcement = Announcement {
            id,
            source_host: host.name(),
            details: Details { call_sid: Some(call), ..Details::default() },
            by: AnnouncedBy::Put { call },
        };
        let Accepted { recording, created } = self.accept(&announcement).await?;
        // Whoever has PUT it may ask for it here at once.
        for call in [Some(call), recording.details.call_sid].into_iter().flatten() {
            self.hits.forget_all_of(Wanted::Call(call));
        }
        match (recording.state, created) {
            (State::Erased, _) => Err(RefusedPut::Erased),
            (_, true) => Ok(Put::Accepted(recording)),
            (_, false) => Ok(Put::Known(recording)),
        }
    }
}
