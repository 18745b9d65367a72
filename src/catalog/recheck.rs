//! Rechecks: who looks again at what lies in the bucket for a recording, and
//! what came of it.
//!
//! A row owes a recheck when an attempt may have left something that the row
//! does not name, and when it was erased or evicted. It is a duty like others
//! (`duty.rs`). What is owed stays owed until a recheck that began later has found
//! all in order.

use std::time::Duration;

use serde_json::json;

use super::accept::{TO_FAILED, lock, write_details};
use super::duty::{Due, Duty, held};
use super::lease::{Lease, Settled};
use super::sql::{Session, Value, args, now};
use super::{Catalog, Result, feed};
use crate::domain::recording::{Details, ErrorCode, Recording, State, StoredObject};
use crate::domain::sid::AccountSid;

/// What a recheck found. All but `Unfinished` say that nothing is staged any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// What lies in the bucket is what the row names.
    InOrder,
    /// The object of a stored recording is not there: it is to be fetched again.
    Lost,
    /// The object of a stored recording is not what the row names, in these words:
    /// it is to be fetched again.
    Damaged(String),
    /// The same, or it is not there, and Twilio does not have it any more: it is given up.
    Gone(String),
    /// The same, but another object of it is whole, which tells this of it: it is stored.
    Replaced(String, StoredObject, Box<Details>),
    /// A whole object of a recording that has none, and what it tells of that: it is stored.
    Adopted(StoredObject, Box<Details>),
    /// The bucket could not be looked through.
    Unfinished,
}

/// Whoever lost a lease may say so too: it changes nothing but what is looked at.
const OWE: &str = concat!(
    "UPDATE recordings SET recheck_due_at = ",
    now!(),
    " + $4, swept_epoch = CASE WHEN swept_epoch > $3 THEN $3 ELSE swept_epoch END \
     WHERE account_sid = $1 AND recording_sid = $2"
);
const DOUBT: &str =
    concat!("UPDATE recordings SET doubted_at = ", now!(), " WHERE account_sid = $1 AND recording_sid = $2");
/// What was owed since the grant (`$4`) stays owed. So does what a recording
/// that is still on its way may leave: its folder was not looked at.
const END: &str = concat!(
    "UPDATE recordings SET duty_until = NULL, upload_epoch = NULL, upload_id = NULL, \
     doubted_at = CASE WHEN doubted_at > $4 THEN doubted_at END, swept_epoch = CASE WHEN recheck_due_at > $4 THEN swept_epoch ELSE $3 END, \
     recheck_due_at = CASE WHEN recheck_due_at > $4 THEN recheck_due_at \
     WHEN state IN ('announced', 'pending') THEN ",
    now!(),
    " + $5 END",
    held!()
);
const LEAVE: &str = concat!(
    "UPDATE recordings SET duty_until = NULL, \
     recheck_due_at = CASE WHEN recheck_due_at > $4 THEN recheck_due_at ELSE ",
    now!(),
    " + $5 END",
    held!()
);
const LOSE: &str = concat!(
    "UPDATE recordings SET state = 'pending', due_at = ",
    now!(),
    ", not_before = NULL, pending_since = ",
    now!(),
    ", failed_attempts = 0, error_code = $3, error_detail = $4, error_at = ",
    now!(),
    " WHERE account_sid = $1 AND recording_sid = $2"
);
/// What else lies in its folder is looked at next.
const ADOPT: &str = concat!(
    "UPDATE recordings SET state = 'stored', sha256 = $3, size_bytes = $4, format = $5, object_key = $6, \
     look_first = 0, stored_at = ",
    now!(),
    ", recheck_due_at = coalesce(recheck_due_at, ",
    now!(),
    "), due_at = NULL, not_before = NULL, failed_attempts = 0, \
     error_code = NULL, error_detail = NULL, error_at = NULL WHERE account_sid = $1 AND recording_sid = $2"
);

/// From one account to the next in the index, however many rechecks each owes.
const ACCOUNTS_OWING: &str = "WITH RECURSIVE owing (account_sid) AS (\
     SELECT min(account_sid) FROM recordings WHERE recheck_due_at IS NOT NULL UNION ALL \
     SELECT (SELECT min(account_sid) FROM recordings WHERE recheck_due_at IS NOT NULL \
     AND account_sid > owing.account_sid) FROM owing WHERE owing.account_sid IS NOT NULL) \
     SELECT account_sid FROM owing WHERE account_sid IS NOT NULL";

/// Notes, in the transaction of what makes it necessary, that the bucket is to
/// be looked at `after` that time for what attempts from this epoch on left.
pub(super) async fn owe(session: &mut Session, lease: &Lease, after: Duration) -> Result<()> {
    session.execute(OWE, args![lease.id.account, lease.id.recording, lease.epoch, after]).await?;
    Ok(())
}

/// The same at once, and the object is to be read back: somebody saw other bytes.
pub(super) async fn doubt(session: &mut Session, lease: &Lease) -> Result<()> {
    owe(session, lease, Duration::ZERO).await?;
    session.execute(DOUBT, args![lease.id.account, lease.id.recording]).await?;
    Ok(())
}

/// A recording that owes a recheck.
const DUE: Due = Due { since: "recheck_due_at", only: "recheck_due_at IS NOT NULL", age: Duration::ZERO };

fn end_args(duty: &Duty, again: Duration) -> Vec<Value> {
    duty.args_and(args![duty.granted_at, again])
}

impl dyn Catalog + '_ {
    /// Notes that an attempt may have left something in the bucket, which is to
    /// be looked at `after` that time. Whoever lost the lease may say so as well.
    pub async fn owe_recheck(&self, lease: &Lease, after: Duration) -> Result<()> {
        let mut session = self.begin().await?;
        owe(&mut session, lease, after).await?;
        session.commit().await
    }

    /// Notes that the object of a stored recording is not what its row says. A
    /// recheck is due at once, and reads it back.
    pub async fn doubt(&self, lease: &Lease) -> Result<()> {
        let mut session = self.begin().await?;
        doubt(&mut session, lease).await?;
        session.commit().await
    }

    /// Grants leases of that length for at most `at_most` rechecks that are due,
    /// shared evenly by the accounts that have some, whoever's they are: the bucket
    /// is looked at without Twilio's credentials.
    pub async fn grant_rechecks(&self, at_most: usize, duration: Duration) -> Result<Vec<Duty>> {
        let rows = self.read().await?.rows(ACCOUNTS_OWING, args![]).await?;
        let owing: Vec<AccountSid> = rows.iter().map(|row| row.parse("account_sid")).collect::<Result<_>>()?;
        self.grant_duties(&DUE, &owing, at_most, duration).await
    }

    /// Ends a recheck. What is not finished, or is still on its way, is looked
    /// at `again` after that time.
    ///
    /// An error leaves open whether it took place; the lease runs out then.
    pub async fn settle_recheck(&self, duty: &Duty, finding: &Finding, again: Duration) -> Result<Settled> {
        let mut session = self.begin().await?;
        let known = lock(&mut session, &duty.lease.id).await?;
        let end = if *finding == Finding::Unfinished { LEAVE } else { END };
        let held = session.execute(end, end_args(duty, again)).await? == 1;
        let settled = match (known, finding) {
            (Some(known), Finding::Lost) if held => lose(&mut session, &known, None, again).await?,
            (Some(known), Finding::Damaged(how)) if held => lose(&mut session, &known, Some(how), again).await?,
            (Some(known), Finding::Gone(how)) if held => give_up(&mut session, &known, how, again).await?,
            (Some(known), Finding::Replaced(how, object, said)) if held => {
                replace(&mut session, known, how, object, said, again).await?
            }
            (Some(known), Finding::Adopted(object, said)) if held => adopt(&mut session, &known, object, said).await?,
            _ if held => Settled::Done,
            _ => Settled::Stale,
        };
        match settled {
            Settled::Done => session.commit().await?,
            Settled::Stale => session.rollback().await?,
        }
        self.announce_change();
        Ok(settled)
    }
}

async fn lose(session: &mut Session, known: &Recording, why: Option<&str>, again: Duration) -> Result<Settled> {
    if known.state != State::Stored {
        return Ok(Settled::Stale);
    }
    let id = &known.id;
    let key = known.object.as_ref().map(|object| object.key.as_str()).unwrap_or_default();
    let detail = why.map_or_else(|| format!("no object is at {key}"), |why| format!("the object {why}"));
    session.execute(LOSE, args![id.account, id.recording, ErrorCode::ObjectLost.as_str(), detail.as_str()]).await?;
    owe(session, &Lease { id: *id, epoch: known.epoch }, again).await?;
    feed::append(session, id, "recording.lost", json!({"code": ErrorCode::ObjectLost, "detail": detail})).await?;
    Ok(Settled::Done)
}

/// Lost, and not to be had again: nobody is to wait for it.
async fn give_up(session: &mut Session, known: &Recording, how: &str, again: Duration) -> Result<Settled> {
    if lose(session, known, Some(how), again).await? == Settled::Stale {
        return Ok(Settled::Stale);
    }
    let id = &known.id;
    let detail = format!("the object {how}, and Twilio does not have the recording any more");
    session
        .execute(TO_FAILED, args![id.account, id.recording, ErrorCode::ObjectLost.as_str(), detail.as_str()])
        .await?;
    let told = json!({"code": ErrorCode::ObjectLost, "detail": detail});
    feed::append_failed(session, id, ErrorCode::ObjectLost, told).await?;
    Ok(Settled::Done)
}

/// Lost, and stored as what else lay there.
async fn replace(
    session: &mut Session,
    known: Recording,
    how: &str,
    object: &StoredObject,
    said: &Details,
    again: Duration,
) -> Result<Settled> {
    match lose(session, &known, Some(how), again).await? {
        Settled::Done => adopt(session, &Recording { state: State::Pending, ..known }, object, said).await,
        Settled::Stale => Ok(Settled::Stale),
    }
}

async fn adopt(session: &mut Session, known: &Recording, object: &StoredObject, said: &Details) -> Result<Settled> {
    // A first callback may have come in between: that it is pending makes no difference.
    if !matches!(known.state, State::Failed | State::Absent | State::Pending) {
        return Ok(Settled::Stale);
    }
    let id = &known.id;
    let args =
        args![id.account, id.recording, object.digest, object.size_bytes, object.format.as_str(), object.key.as_str(),];
    session.execute(ADOPT, args).await?;
    let details = said.clone().updated_by(known.details.clone());
    write_details(session, known, &details, known.details_confirmed).await?;
    let mut detail = json!({"adopted": true});
    if let Some(previous) = known.object.as_ref().filter(|previous| previous.digest != object.digest) {
        detail["previous_sha256"] = json!(previous.digest);
    }
    feed::append(session, id, "recording.stored", detail).await?;
    Ok(Settled::Done)
}
