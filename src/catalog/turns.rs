//! Turns of requests to Twilio that are no fetches, of accounts whose pace is limited.
//!
//! Such a request takes one of the places that fetches have. Whoever wants a
//! turn and finds all places taken is noted as waiting. For urgent ones one fetch
//! fewer is begun then, however many wait, so that a backlog keeps no person
//! waiting for long; what nobody waits for takes what is left over. A turn that
//! is not given back, because its node died, runs out.
//!
//! Requests that never cease do not keep an account's fetches at nothing: where none
//! is being fetched, the place that a request gives back is a fetch's for a moment.

use std::time::Duration;

use super::accounts;
use super::sql::{args, now};
use super::{Catalog, CatalogError, Result};
use crate::domain::sid::AccountSid;

/// Who a request is sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Someone waits for the answer, or recordings that nobody told of do.
    Urgent,
    /// It can be sent whenever there is room.
    Idle,
}

/// A request's place, or its place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nobody counts: the account's pace is not limited.
    Free,
    /// It may be sent, within the time that was asked for; to be given back.
    Granted(i64),
    /// All places are taken: to be asked for again, by this number.
    Waiting(i64),
}

const TAKE: &str = "INSERT INTO turns (account_sid, is_granted, until_at, is_urgent) \
                    SELECT $1, $2, now_ms + $3, $4 FROM clock WHERE 1 = 1 RETURNING turn_id";
const MOVE_UP: &str =
    concat!("UPDATE turns SET is_granted = $2, until_at = ", now!(), " + $3 WHERE turn_id = $1 RETURNING turn_id");
/// What is left of a turn that was had (`is_granted` = 2) says that it is a fetch's turn now.
const GIVE_BACK: &str =
    concat!("UPDATE turns SET is_granted = 2, until_at = ", now!(), " + $2 WHERE turn_id = $1 AND is_granted = 1");
const LEAVE: &str = "DELETE FROM turns WHERE turn_id = $1 AND is_granted = 0";
const FORGET: &str = concat!("DELETE FROM turns WHERE account_sid = $1 AND until_at <= ", now!());

impl dyn Catalog + '_ {
    /// Takes a turn for a request to Twilio that ends within `lasts`, where there
    /// is one; else a place among those who wait, which holds for `waits`.
    /// `waiting` is the place that was given before.
    pub async fn take_turn(
        &self,
        account: AccountSid,
        urgency: Urgency,
        waiting: Option<i64>,
        lasts: Duration,
        waits: Duration,
    ) -> Result<Turn> {
        // Most accounts are not limited, which a look shows.
        if waiting.is_none() && !self.is_limited(account).await? {
            return Ok(Turn::Free);
        }
        let mut session = self.begin().await?;
        let room = accounts::room_for_request(&mut session, account).await?;
        let is_granted = i64::from(room != Some(0));
        let length = if is_granted == 1 { lasts } else { waits };
        let moved = match waiting {
            Some(turn) => session.row(MOVE_UP, args![turn, is_granted, length]).await?,
            None => None,
        };
        let row = match moved {
            Some(row) => row,
            None => {
                session.execute(FORGET, args![account]).await?;
                let taken = session
                    .row(TAKE, args![account, is_granted, length, i64::from(urgency == Urgency::Urgent)])
                    .await?;
                taken.ok_or_else(|| CatalogError::Unreadable("an insert gave nothing".to_owned()))?
            }
        };
        let turn: i64 = row.get("turn_id")?;
        session.commit().await?;
        Ok(if is_granted == 1 { Turn::Granted(turn) } else { Turn::Waiting(turn) })
    }

    /// Gives a turn back, or leaves the queue. What was had is kept for a fetch for
    /// `kept`, where one is due and none under way.
    pub async fn give_back_turn(&self, turn: i64, kept: Duration) -> Result<()> {
        let mut session = self.begin().await?;
        if session.execute(GIVE_BACK, args![turn, kept]).await? == 0 {
            session.execute(LEAVE, args![turn]).await?;
        }
        session.commit().await?;
        self.announce_change();
        Ok(())
    }
}
