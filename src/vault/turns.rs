//! Turns: requests to Twilio beside the fetches, where an account's pace is limited.
//!
//! Over all nodes an account never has more requests at once than its pace
//! allows, lists and questions included. Where it is not limited, nobody waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Vault;
use super::pace::{Manners, speed_up};
use crate::catalog::{Catalog, CatalogError, Turn, Urgency};
use crate::domain::sid::AccountSid;
use crate::twilio::media::MediaError;

/// Longer than any request to Twilio's API takes.
const LASTS: Duration = Duration::from_secs(30);
/// A place in the queue is kept by asking again.
const WAITS: Duration = Duration::from_secs(2);
/// Whoever waits looks so often whether it is their turn.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// A place that was given back is kept for a fetch: nodes are told, and claim by then.
const KEPT: Duration = Duration::from_millis(500);

/// What came of a request that had a turn.
pub(super) trait Answer {
    /// Whether Twilio answered, and has no reason to be asked less.
    fn is_calm(&self) -> bool;
}

impl<T> Answer for Result<T, MediaError> {
    fn is_calm(&self) -> bool {
        self.as_ref().err().is_none_or(MediaError::is_calm)
    }
}

/// With the time at which it was begun.
impl<A: Answer> Answer for (Instant, A) {
    fn is_calm(&self) -> bool {
        self.1.is_calm()
    }
}

impl Vault {
    /// Sends a request to Twilio's API when it is its turn.
    pub(super) async fn in_turn<A: Answer>(
        &self,
        account: AccountSid,
        urgency: Urgency,
        request: impl Future<Output = A>,
    ) -> Result<A, CatalogError> {
        self.manners.in_turn(account, urgency, request).await
    }
}

impl Manners {
    /// Sends a request to Twilio's API when it is its turn. Dropping it gives the
    /// turn back; where Twilio answered calmly by then, the account's pace may rise.
    pub(super) async fn in_turn<A: Answer>(
        &self,
        account: AccountSid,
        urgency: Urgency,
        request: impl Future<Output = A>,
    ) -> Result<A, CatalogError> {
        let mut held = HeldTurn { catalog: self.catalog.clone(), turn: None, went_well: None };
        loop {
            let waiting = held.turn;
            match self.catalog.take_turn(account, urgency, waiting, LASTS, WAITS).await? {
                Turn::Free => return Ok(request.await),
                Turn::Granted(turn) => {
                    held.turn = Some(turn);
                    break;
                }
                Turn::Waiting(turn) => held.turn = Some(turn),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        let answer = request.await;
        held.went_well = answer.is_calm().then_some((account, self.retry.base));
        Ok(answer)
    }
}

/// A turn, or a place among those who wait, that is given back when this is dropped.
struct HeldTurn {
    catalog: Arc<dyn Catalog>,
    turn: Option<i64>,
    /// The account whose pace may rise, and the length of a step.
    went_well: Option<(AccountSid, Duration)>,
}

impl Drop for HeldTurn {
    fn drop(&mut self) {
        let Some(turn) = self.turn else { return };
        let (catalog, went_well) = (self.catalog.clone(), self.went_well);
        tokio::spawn(async move {
            if let Err(error) = catalog.give_back_turn(turn, KEPT).await {
                tracing::debug!(%error, "a turn was not given back; it will run out");
            }
            if let Some((account, base)) = went_well {
                speed_up(&*catalog, account, base).await;
            }
        });
    }
}
