//! How what a backfill found stands now, read from the recordings themselves.

use jiff::civil::Date;

use super::DAY;
use super::runs::{BackfillRun, RUN_OF};
use crate::catalog::sql::{Row, args};
use crate::catalog::{Catalog, Result};
use crate::domain::recording::State;

/// How the recordings of a day stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DayCount {
    /// Whether it was walked over to its end.
    pub is_walked: bool,
    /// Entries of the list that could not be read.
    pub unreadable: u64,
    /// Different recordings on the list.
    pub found: u64,
    /// Of these, what was not known before.
    pub new: u64,
    /// Of the new ones, what is pending or being fetched.
    pub new_under_way: u64,
    /// Of the new ones, what failed.
    pub new_failed: u64,
    /// In the bucket.
    pub stored: u64,
    /// The bytes of the new ones that are.
    pub new_bytes: u64,
    /// Given up.
    pub failed: u64,
    /// Without audio, as Twilio says.
    pub absent: u64,
    /// Erased here.
    pub erased: u64,
    /// Dropped from the bucket, and fetched again when asked for.
    pub evicted: u64,
    /// Announced, pending or being fetched.
    pub on_the_way: u64,
    /// Gone at Twilio, and never known here.
    pub deleted_at_twilio: u64,
    /// Found, and not in the catalog.
    pub missing: u64,
}

const COUNT: &str = "SELECT f.what AS what, r.state AS state, count(*) AS recordings, \
     CAST(sum(coalesce(r.size_bytes, 0)) AS BIGINT) AS bytes \
     FROM backfill_finds f LEFT JOIN recordings r \
     ON r.account_sid = f.account_sid AND r.recording_sid = f.recording_sid \
     WHERE f.account_sid = $1 AND f.day = $2 AND f.run = $3 GROUP BY f.what, r.state";

impl dyn Catalog + '_ {
    /// How what was found on a day stands; None where another backfill was begun since.
    pub async fn count_day(&self, run: &BackfillRun, day: Date) -> Result<Option<DayCount>> {
        let mut session = self.read().await?;
        let key = || args![run.account, day.to_string(), run.run];
        let Some(row) = session.row(DAY, key()).await? else {
            let current = session.row(RUN_OF, args![run.account]).await?;
            let current = current.map(|row| row.get::<i64>("run")).transpose()?;
            return Ok((current == Some(run.run)).then(DayCount::default));
        };
        let unreadable = u64::try_from(row.get::<i64>("unreadable")?).unwrap_or_default();
        let is_walked = row.time_opt("walked_at")?.is_some();
        let mut count = DayCount { is_walked, unreadable, ..DayCount::default() };
        for row in session.rows(COUNT, key()).await? {
            count.add(&row)?;
        }
        Ok(Some(count))
    }
}

impl DayCount {
    fn add(&mut self, row: &Row) -> Result<()> {
        let number = |column| -> Result<u64> { Ok(u64::try_from(row.get::<i64>(column)?).unwrap_or_default()) };
        let (recordings, bytes) = (number("recordings")?, number("bytes")?);
        let is_new = row.get::<String>("what")? == "new";
        let state = row.parse_opt::<State>("state")?;
        self.found += recordings;
        if is_new {
            self.new += recordings;
            match state {
                Some(State::Pending | State::Fetching) => self.new_under_way += recordings,
                Some(State::Failed) => self.new_failed += recordings,
                Some(State::Stored) => self.new_bytes += bytes,
                _ => {}
            }
        }
        let place = match state {
            Some(State::Stored) => &mut self.stored,
            Some(State::Failed) => &mut self.failed,
            Some(State::Absent) => &mut self.absent,
            Some(State::Erased) => &mut self.erased,
            Some(State::Evicted) => &mut self.evicted,
            Some(State::Announced | State::Pending | State::Fetching) => &mut self.on_the_way,
            None if row.get::<String>("what")? == "deleted" => &mut self.deleted_at_twilio,
            None => &mut self.missing,
        };
        *place += recordings;
        Ok(())
    }
}

impl std::ops::AddAssign for DayCount {
    fn add_assign(&mut self, other: Self) {
        self.is_walked &= other.is_walked;
        self.unreadable += other.unreadable;
        self.found += other.found;
        self.new += other.new;
        self.new_under_way += other.new_under_way;
        self.new_failed += other.new_failed;
        self.stored += other.stored;
        self.new_bytes += other.new_bytes;
        self.failed += other.failed;
        self.absent += other.absent;
        self.erased += other.erased;
        self.evicted += other.evicted;
        self.on_the_way += other.on_the_way;
        self.deleted_at_twilio += other.deleted_at_twilio;
        self.missing += other.missing;
    }
}
