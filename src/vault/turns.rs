//! Turns: requests to Twilio beside the fetches, where an account's pace is limited.
//!
//! Over all nodes an account never has more requests at once than its pace
//! allows, lists and questions included. Where it is not limited, nobody waits.

use std::sync::Arc;
use std::time::Duration;

use super::Vault;
use super::pace::Manners;
use crate::catalog::{Catalog, CatalogError, Turn, Urgency};
use crate::domain::sid::AccountSid;

/// Longer than any request to Twilio's API takes.
const LASTS: Duration = Duration::from_secs(30);
/// A place in the queue is kept by asking again.
const WAITS: Duration = Duration::from_secs(2);
/// Whoever waits looks so often whether it is their turn.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Vault {
    /// Sends a request to Twilio's API when it is its turn.
    pub(super) async fn in_turn<T>(
        &self,
        account: AccountSid,
        urgency: Urgency,
        request: impl Future<Output = T>,
    ) -> Result<T, CatalogError> {
        self.manners.in_turn(account, urgency, request).await
    }
}

impl Manners {
    /// Sends a request to Twilio's API when it is its turn. Dropping it gives the
    /// turn back.
    pub(super) async fn in_turn<T>(
        &self,
        account: AccountSid,
        urgency: Urgency,
        request: impl Future<Output = T>,
    ) -> Result<T, CatalogError> {
        let mut held = HeldTurn { catalog: self.catalog.clone(), turn: None };
        loop {
            let waiting = held.turn;
            match self.catalog.take_turn(account, urgency, waiting, LASTS, WAITS).await? {
                Turn::Free => break,
                Turn::Granted(turn) => {
                    held.turn = Some(turn);
                    break;
                }
                Turn::Waiting(turn) => held.turn = Some(turn),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        Ok(request.await)
    }
}

/// A turn, or a place among those who wait, that is given back when this is dropped.
struct HeldTurn {
    catalog: Arc<dyn Catalog>,
    turn: Option<i64>,
}

impl Drop for HeldTurn {
    fn drop(&mut self) {
        let Some(turn) = self.turn else { return };
        let catalog = self.catalog.clone();
        tokio::spawn(async move {
            if let Err(error) = catalog.give_back_turn(turn).await {
                tracing::debug!(%error, "a turn was not given back; it will run out");
            }
        });
    }
}
