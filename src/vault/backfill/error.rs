//! Why a backfill did not come to its end, and what of that may pass.

use jiff::civil::Date;

use super::PASSES_MAX;
use crate::catalog::CatalogError;
use crate::twilio::media::MediaError;

/// Why a backfill of an account did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// Twilio did not give the list.
    #[error(transparent)]
    Twilio(#[from] MediaError),
    /// There is no such account.
    #[error("Twilio answered 404 for the account's list")]
    NoList,
    /// The catalog did not take it.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Twilio refuses the credentials.
    #[error("the account is paused: Twilio refuses its credentials; `callvault doctor` tells more")]
    Paused,
    /// What came is not what was asked for.
    #[error("Twilio was asked for the recordings of {0}, and gave some of other days: it ignores the filter")]
    OtherDays(Date),
    /// The list does not end as lists do.
    #[error("Twilio's list of {0} does not end as it should: {1}")]
    Endless(Date, &'static str),
    /// Each pass found more.
    #[error("Twilio's list of {0} had something new on each of {PASSES_MAX} passes")]
    NeverSettles(Date),
    /// Another one of the account was begun since.
    #[error("another backfill of the account was begun while this one did not reach the catalog")]
    Superseded,
    /// Another process has the day by now.
    #[error("the lease of a day was lost")]
    Lost,
}

impl BackfillError {
    /// Whether it may pass by itself.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Catalog(CatalogError::Unavailable(_) | CatalogError::Refused(_) | CatalogError::Unread)
            | Self::Twilio(_)
            | Self::Lost => true,
            Self::Catalog(_)
            | Self::NoList
            | Self::Paused
            | Self::OtherDays(_)
            | Self::Endless(..)
            | Self::NeverSettles(_)
            | Self::Superseded => false,
        }
    }

    /// Whether the page may be to blame: its query can have become too old for Twilio.
    pub(super) fn is_of_the_page(&self) -> bool {
        match self {
            Self::Twilio(MediaError::Upstream { status, .. }) => status.is_client_error(),
            Self::Twilio(MediaError::Unreadable(_)) | Self::NoList => true,
            _ => false,
        }
    }
}
