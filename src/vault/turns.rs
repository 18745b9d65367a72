//! Turns: requests to Twilio beside the fetches, where an account's pace is limited.
//!
//! Over all nodes an account never has more requests at once than its pace
//! allows, lists and questions included. Where it is not limited, nobody waits.

use std::time::Duration;

use super::Vault;
use crate::catalog::{CatalogError, Turn};
use crate::domain::sid::AccountSid;

/// Longer than any request to Twilio's API takes.
const LASTS: Duration = Duration::from_secs(30);
/// A place in the queue is kept by asking again.
const WAITS: Duration = Duration::from_secs(2);
/// Whoever waits looks so often whether it is their turn.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Vault {
    /// Sends a request to Twilio's API when it is its turn. Dropping it gives the
    /// turn up: it runs out.
    pub(super) async fn in_turn<T>(
        &self,
        account: AccountSid,
        request: impl Future<Output = T>,
    ) -> Result<T, CatalogError> {
        let turn = self.turn(account).await?;
        let answer = request.await;
        if let Some(turn) = turn
            && let Err(error) = self.catalog.give_back_turn(turn).await
        {
            tracing::debug!(%account, %error, "a turn was not given back; it will run out");
        }
        Ok(answer)
    }

    /// Waits for a turn; None where none is needed.
    async fn turn(&self, account: AccountSid) -> Result<Option<i64>, CatalogError> {
        let mut waiting = None;
        loop {
            match self.catalog.take_turn(account, waiting, LASTS, WAITS).await? {
                Turn::Free => return Ok(None),
                Turn::Granted(turn) => return Ok(Some(turn)),
                Turn::Waiting(turn) => waiting = Some(turn),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}
