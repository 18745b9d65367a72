//! Deleting at Twilio what is stored here.
//!
//! The row is marked first, under the lease of a duty, unless it is held or owes a
//! recheck. The mark stays until the copy is gone, or turns out to be needed: any
//! node goes on from it.

use std::time::Duration;

use serde_json::json;

use super::accept::lock;
use super::duty::{Due, Duty, held, held_to_now};
use super::lease::Settled;
use super::sql::{args, now};
use super::{Catalog, Result, feed, recheck};
use crate::domain::sid::AccountSid;

/// What the history tells of it, here and where it was erased.
pub(super) const DELETED_AT_TWILIO: &str = "deleted_at_twilio";
/// Since when it is stored; the indexes of the schema name the same.
const COPIED_SINCE: &str = "(CASE WHEN coalesce(kept_at, 0) >= stored_at THEN kept_at ELSE stored_at END)";
macro_rules! has_a_copy {
    () => {
        concat!("state = 'stored' AND hold = 0 AND twilio_deleted_at IS NULL AND ", $crate::catalog::birth::indexed!())
    };
}
const ANNOUNCED: &str = concat!(has_a_copy!(), " AND announced_by IN ('callback', 'put') AND recheck_due_at IS NULL");
const FOUND: &str = concat!(has_a_copy!(), " AND announced_by NOT IN ('callback', 'put') AND recheck_due_at IS NULL");
const MARK: &str = concat!(
    "UPDATE recordings SET twilio_marked_at = coalesce(twilio_marked_at, ",
    now!(),
    ")",
    held_to_now!(),
    " AND ",
    has_a_copy!(),
    " AND recheck_due_at IS NULL"
);
/// What has been removed there is so whoever has the lease by now: a hold may have come
/// when it was too late.
const DELETED: &str = concat!(
    "UPDATE recordings SET twilio_deleted_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2 AND twilio_deleted_at IS NULL"
);
const END: &str = concat!("UPDATE recordings SET duty_until = NULL, kept_at = NULL", held!());
const NEEDED: &str =
    concat!("UPDATE recordings SET duty_until = NULL, twilio_marked_at = NULL, kept_at = ", now!(), held!());

impl dyn Catalog + '_ {
    /// Grants leases for recordings that have been stored for that long and are
    /// still at Twilio: those that were announced, or those that were `discovered`.
    pub async fn grant_twilio_deletions(
        &self,
        accounts: &[AccountSid],
        discovered: bool,
        stored_for: Duration,
        at_most: usize,
        duration: Duration,
    ) -> Result<Vec<Duty>> {
        let only = if discovered { FOUND } else { ANNOUNCED };
        let due = Due { since: COPIED_SINCE, only, age: stored_for };
        self.grant_duties(&due, accounts, at_most, duration).await
    }

    /// Marks a recording for deletion at Twilio, if it still may be; so it does
    /// again right before the deletion.
    pub async fn mark_for_twilio(&self, duty: &Duty) -> Result<Settled> {
        self.settle_duty(MARK, duty.args()).await
    }

    /// Twilio has no copy any more.
    pub async fn deleted_at_twilio(&self, duty: &Duty) -> Result<Settled> {
        let id = &duty.lease.id;
        let mut session = self.begin().await?;
        lock(&mut session, id).await?;
        if session.execute(DELETED, args![id.account, id.recording]).await? == 1 {
            feed::note(&mut session, id, DELETED_AT_TWILIO, json!({})).await?;
        }
        let is_held = session.execute(END, duty.args()).await? == 1;
        session.commit().await?;
        Ok(if is_held { Settled::Done } else { Settled::Stale })
    }

    /// What is stored here is not what the row says: Twilio's copy is needed. A
    /// recheck is due at once, and reads it back.
    pub async fn copy_is_needed(&self, duty: &Duty) -> Result<Settled> {
        let mut session = self.begin().await?;
        lock(&mut session, &duty.lease.id).await?;
        if session.execute(NEEDED, duty.args()).await? == 0 {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        recheck::doubt(&mut session, &duty.lease).await?;
        session.commit().await?;
        self.announce_change();
        Ok(Settled::Done)
    }
}
