//! Receivers of events, and what is to be posted to them.
//!
//! A receiver has a place in the feed. Its holder, one node at a time, turns the
//! events behind it into deliveries and moves the place in the same transaction,
//! so that each event becomes one delivery. Whatever a holder does names the
//! epoch of its lease: once another node has it, nothing is changed any more.
//! One receiver's rows are never in the way of another's.

mod deliveries;
mod standing;

use std::time::Duration;

use super::lease::Settled;
use super::sql::{Session, Value, args, now, one_of};
use super::{Catalog, Result};

pub use deliveries::{Due, Posted};
pub use standing::{Delivery, DeliveryState, ReceiverStanding, Retried};

/// The right to post to a receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverLease {
    /// Which receiver.
    pub receiver: String,
    /// The epoch that was granted.
    pub epoch: i64,
}

impl ReceiverLease {
    fn args(&self) -> Vec<Value> {
        args![self.receiver.as_str(), self.epoch]
    }

    fn args_and(&self, more: Vec<Value>) -> Vec<Value> {
        self.args().into_iter().chain(more).collect()
    }
}

/// A receiver that is new begins where the feed ends.
const ENROLL: &str = "INSERT INTO receivers (receiver_id, after_seq, enrolled_at) \
     SELECT $1, (SELECT coalesce(max(seq), 0) FROM events), now_ms FROM clock WHERE 1 = 1 ON CONFLICT DO NOTHING";
const ENROLL_ANEW: &str = "INSERT INTO receivers (receiver_id, after_seq, enrolled_at) \
     SELECT $1, 0, now_ms FROM clock WHERE 1 = 1 ON CONFLICT DO NOTHING";
const GRANT: &str = concat!(
    "UPDATE receivers SET epoch = epoch + 1, lease_node = $2, lease_until = ",
    now!(),
    " + $3 WHERE receiver_id = $1 AND lease_until <= ",
    now!(),
    " AND disabled_at IS NULL RETURNING epoch"
);
/// What every update of a holder ends with.
macro_rules! held {
    () => {
        " WHERE receiver_id = $1 AND epoch = $2 AND disabled_at IS NULL"
    };
}
use held;

const RENEW: &str = concat!("UPDATE receivers SET lease_until = ", now!(), " + $3", held!());
const RELEASE: &str = concat!("UPDATE receivers SET lease_node = NULL, lease_until = 0", held!());
/// Deliveries that are over are removed so many at a time.
const FORGOTTEN_AT_ONCE: i64 = 1000;
const FORGET: &str = concat!(
    "DELETE FROM deliveries WHERE (receiver_id, seq) IN (SELECT receiver_id, seq FROM deliveries WHERE since < ",
    now!(),
    " - $1 ORDER BY since LIMIT $2)"
);
/// It wanted no more, and begins again where the feed ends now.
const ENABLE: &str = "UPDATE receivers SET disabled_at = NULL, unanswered = 0, resting_until = 0, \
     after_seq = (SELECT coalesce(max(seq), 0) FROM events) WHERE receiver_id = $1 AND disabled_at IS NOT NULL";

impl dyn Catalog + '_ {
    /// Makes receivers known that are not: they are posted what comes from now on.
    pub async fn enroll_receivers(&self, receivers: &[String]) -> Result<()> {
        let mut session = self.begin().await?;
        for receiver in receivers {
            session.execute(ENROLL, args![receiver.as_str()]).await?;
        }
        session.commit().await
    }

    /// The right to post to a receiver, for so long; None where another node has
    /// it, or the receiver wants no more. One that is not known was known to a catalog
    /// that was lost: it is told of all that is in the new one.
    pub async fn grant_receiver(&self, receiver: &str, node: &str, lease: Duration) -> Result<Option<ReceiverLease>> {
        let mut session = self.begin().await?;
        let mut granted = session.row(GRANT, args![receiver, node, lease]).await?;
        if granted.is_none() && session.execute(ENROLL_ANEW, args![receiver]).await? == 1 {
            granted = session.row(GRANT, args![receiver, node, lease]).await?;
        }
        let epoch: Option<i64> = granted.map(|row| row.get("epoch")).transpose()?;
        session.commit().await?;
        Ok(epoch.map(|epoch| ReceiverLease { receiver: receiver.to_owned(), epoch }))
    }

    /// Prolongs the right.
    pub async fn renew_receiver(&self, lease: &ReceiverLease, by: Duration) -> Result<Settled> {
        self.of_holder(RENEW, lease.args_and(args![by])).await
    }

    /// Gives the right back, so that another node need not wait for its end.
    pub async fn release_receiver(&self, lease: &ReceiverLease) -> Result<Settled> {
        self.of_holder(RELEASE, lease.args()).await
    }

    /// A receiver that said that it wants no more wants what comes from now on.
    pub async fn enable_receiver(&self, receiver: &str) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(ENABLE, args![receiver]).await?;
        session.commit().await?;
        self.announce_change();
        Ok(())
    }

    /// Removes deliveries that are older than `keep`. Says whether there may be more.
    pub async fn forget_deliveries(&self, keep: Duration) -> Result<bool> {
        let mut session = self.begin().await?;
        let removed = session.execute(FORGET, args![keep, FORGOTTEN_AT_ONCE]).await?;
        session.commit().await?;
        Ok(removed.cast_signed() == FORGOTTEN_AT_ONCE)
    }

    async fn of_holder(&self, statement: &'static str, args: Vec<Value>) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(statement, args).await?;
        session.commit().await?;
        Ok(settled(changed))
    }
}

fn settled(changed: u64) -> Settled {
    if changed == 1 { Settled::Done } else { Settled::Stale }
}

/// Locks a receiver's row for its holder; false where that is another by now.
async fn is_held(session: &mut Session, lease: &ReceiverLease) -> Result<bool> {
    const LOCK: &str = concat!("UPDATE receivers SET epoch = epoch", held!());
    Ok(session.execute(LOCK, lease.args()).await? == 1)
}
