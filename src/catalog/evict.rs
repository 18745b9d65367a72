//! Evicting: what nobody asks for leaves the bucket, and comes back when asked for.
//!
//! The row is marked first: `evicted`, under the lease of a duty, unless it is
//! held, was asked for meanwhile, or is marked for deletion at Twilio. From then on
//! no link to the object is given, and it may go.

use std::time::Duration;

use serde_json::Value as Json;

use super::accept::{TO_PENDING, lock};
use super::duty::{Due, Duty, held_to_now};
use super::lease::Settled;
use super::sql::{args, now};
use super::{Catalog, Result, feed, recheck};
use crate::domain::recording::{RecordingId, State};
use crate::domain::sid::AccountSid;

/// Since when nobody has asked for it; the index of the schema names the same.
macro_rules! idle_since {
    () => {
        "(CASE WHEN coalesce(last_asked_at, 0) >= stored_at AND coalesce(last_asked_at, 0) >= coalesce(kept_at, 0) \
         THEN last_asked_at WHEN coalesce(kept_at, 0) >= stored_at THEN kept_at ELSE stored_at END)"
    };
}
macro_rules! may_be_evicted {
    () => {
        concat!("state = 'stored' AND hold = 0 AND twilio_marked_at IS NULL AND ", $crate::catalog::birth::indexed!())
    };
}
const EVICT: &str = concat!(
    "UPDATE recordings SET state = 'evicted', kept_at = NULL",
    held_to_now!(),
    " AND ",
    may_be_evicted!(),
    " AND ",
    idle_since!(),
    " <= ",
    now!(),
    " - $4"
);

impl dyn Catalog + '_ {
    /// Grants leases for recordings that nobody has asked for in that time.
    pub async fn grant_evictions(
        &self,
        accounts: &[AccountSid],
        idle_for: Duration,
        at_most: usize,
        duration: Duration,
    ) -> Result<Vec<Duty>> {
        let due = Due { since: idle_since!(), only: may_be_evicted!(), age: idle_for };
        self.grant_duties(&due, accounts, at_most, duration).await
    }

    /// Marks a recording as evicted, if it may be and nobody has asked for it
    /// since. Its object may go then; a recheck looks for what is left of it.
    pub async fn evict(&self, duty: &Duty, idle_for: Duration, recheck_after: Duration) -> Result<Settled> {
        let mut session = self.begin().await?;
        lock(&mut session, &duty.lease.id).await?;
        if session.execute(EVICT, duty.args_and(args![idle_for])).await? == 0 {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        recheck::owe(&mut session, &duty.lease, recheck_after).await?;
        feed::append(&mut session, &duty.lease.id, "recording.evicted", Json::Null).await?;
        session.commit().await?;
        self.announce_change();
        Ok(Settled::Done)
    }

    /// Someone asks for a recording that was evicted: it is fetched again. Does
    /// nothing where it is not evicted any more.
    pub async fn bring_back(&self, id: &RecordingId) -> Result<()> {
        let mut session = self.begin().await?;
        let known = lock(&mut session, id).await?;
        if known.is_none_or(|known| known.state != State::Evicted) {
            return session.rollback().await;
        }
        session.execute(TO_PENDING, args![id.account, id.recording]).await?;
        session.commit().await?;
        self.announce_change();
        Ok(())
    }
}
