//! Bringing in what an account's list at Twilio has, day by day.
//!
//! Works beside running nodes, on the catalog alone: they fetch what it brings,
//! after all else. A day whose list has several pages is gone over until a whole
//! pass brings nothing new, since pages shift while recordings come and go.
//! Twilio ignores filters that it does not know in silence, so a recording of
//! another day ends a walk: what it would count is not what was asked for.

mod error;
mod survey;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokio::time::Instant;

pub use error::BackfillError;
pub use survey::Survey;

use super::Dice;
use super::erase::{Retention, retention};
use super::lease::keep;
use super::pace::Manners;
use super::reconcile::{day, made_at, next_page};
use crate::catalog::{
    AnnouncedBy, Announcement, BackfillRun, Catalog, CatalogError, DayCount, DayGrant, DayLease, DayWalk, Find,
    FoundBy, Settled, Span, Urgency,
};
use crate::config::Config;
use crate::domain::recording::ErrorCode;
use crate::domain::sid::AccountSid;
use crate::twilio::Twilio;
use crate::twilio::api::{ListPage, Listed, Listing};

/// Twilio has no recordings of before it was there.
const FIRST_DAY: Date = Date::constant(2008, 1, 1);
/// So many days are walked one by one; of more, Twilio is first asked whether there is anything.
const DAYS_WALKED_UNASKED: i32 = 31;
/// Finds that are taken in one transaction: others write in between.
const FINDS_AT_ONCE: usize = 50;
/// Passes over a day before its list counts as one that never settles.
const PASSES_MAX: i64 = 6;
/// Times that a pass may begin anew because Twilio would not go on with it.
const RESTARTS_MAX: u32 = 3;
/// A day is over for good so long after its end: what was made in it is listed by then.
const LISTED_WITHIN: Duration = Duration::from_secs(3600);
/// Whoever waits for another process, or for Twilio, looks again so often.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Failures in a row that are waited out. By then the waits have their full length.
const FAILURES_MAX: u32 = 10;

/// Backfills, as a process makes them.
pub struct Backfill {
    manners: Manners,
    dice: Dice,
    lease: Duration,
    retention: BTreeMap<AccountSid, Retention>,
}

/// One account's, from the beginning of the process to its end.
pub struct Progress {
    run: BackfillRun,
    days: Mutex<BTreeMap<Date, DayCount>>,
    /// The pages that this process has taken.
    pages: AtomicU64,
    /// What this process is walking over.
    held: Mutex<Option<DayLease>>,
}

impl Progress {
    /// What is being done.
    pub fn run(&self) -> &BackfillRun {
        &self.run
    }

    /// All days together, as they were last counted.
    pub fn sum(&self) -> DayCount {
        let mut sum = DayCount { is_walked: true, ..DayCount::default() };
        self.days().values().for_each(|count| sum += *count);
        sum
    }

    fn days(&self) -> MutexGuard<'_, BTreeMap<Date, DayCount>> {
        self.days.lock().expect("nothing panics while it holds the days")
    }

    fn hold(&self, lease: Option<DayLease>) -> Option<DayLease> {
        std::mem::replace(&mut *self.held.lock().expect("nothing panics while it holds this"), lease)
    }
}

impl Backfill {
    /// Backfills by these settings.
    pub fn new(config: &Config, catalog: Arc<dyn Catalog>, twilio: Twilio, dice: Dice) -> Self {
        let manners = Manners::new(catalog, twilio, config.retry);
        Self { manners, dice, lease: config.lease, retention: retention(&config.accounts) }
    }

    /// Begins, or goes on with what was begun for the same days. None: another
    /// process is at it for other days.
    pub async fn begin(&self, account: AccountSid, span: Span) -> Result<Option<Progress>, CatalogError> {
        let Some(run) = self.catalog().begin_backfill(account, span, self.lease).await? else { return Ok(None) };
        Ok(Some(Progress { run, days: Mutex::default(), pages: AtomicU64::new(0), held: Mutex::default() }))
    }

    /// Says again and again that this process is at work, so that no backfill of other
    /// days is begun meanwhile. Returns when one was, while the catalog was not reached.
    pub async fn stay(&self, progress: &Progress) {
        loop {
            tokio::time::sleep(self.lease / 3).await;
            match self.catalog().stay_at_backfill(&progress.run, self.lease).await {
                Ok(Settled::Done) => {}
                Ok(Settled::Stale) => return,
                Err(error) => tracing::debug!(%error, "that the backfill goes on is said again later"),
            }
        }
    }

    /// Walks over all days, the oldest first: what arrives meanwhile is on the last of
    /// them. May be dropped: [`Self::hand_back`] is to follow.
    pub async fn walk(&self, progress: &Progress, span: Span) -> Result<(), BackfillError> {
        let account = progress.run.account;
        if let Err(error) = self.catalog().forget_earlier_backfills(&progress.run).await {
            tracing::warn!(%account, %error, "what earlier backfills found is not all forgotten; the next one goes on with that");
        }
        let mut ahead = self.days_of(span)?;
        while let Some((first, last)) = ahead.pop() {
            for day in self.narrow(account, (first, last), &mut ahead).await? {
                progress.days().entry(day).or_default();
                let came_so_far = || progress.pages.load(Ordering::Relaxed);
                self.with_patience(account, came_so_far, async || self.walk_day(progress, day).await).await?;
            }
        }
        Ok(())
    }

    /// This process is not at work any more, on whatever days.
    pub async fn leave(&self, progress: &Progress) {
        if let Err(error) = self.catalog().leave_backfill(&progress.run).await {
            tracing::debug!(%error, "the end of a backfill is not told; it counts as one that goes on for a lease");
        }
    }

    /// Lets other processes go on with what this one was walking over.
    pub async fn hand_back(&self, progress: &Progress) {
        if let Some(lease) = progress.hold(None)
            && let Err(error) = self.catalog().hand_back_day(&lease).await
        {
            tracing::debug!(day = %lease.day, %error, "a day was not handed back; its lease runs out");
        }
    }

    /// All of it is walked over: counts for the last time, and notes that it is done.
    pub async fn complete(&self, progress: &Progress) -> Result<(), BackfillError> {
        let run = &progress.run;
        self.with_patience(run.account, || 0, async || self.count(progress).await).await?;
        self.with_patience(run.account, || 0, async || Ok(self.catalog().complete_backfill(run).await?)).await
    }

    /// Counts again whatever may have changed.
    pub async fn count(&self, progress: &Progress) -> Result<(), BackfillError> {
        let open = |(_, count): &(&Date, &DayCount)| !count.is_walked || count.new_under_way > 0;
        let days: Vec<Date> = progress.days().iter().filter(open).map(|(day, _)| *day).collect();
        for day in days {
            let count = self.catalog().count_day(&progress.run, day).await?.ok_or(BackfillError::Superseded)?;
            progress.days().insert(day, count);
        }
        Ok(())
    }

    /// Whether Twilio refuses the credentials of the account: nothing of it is fetched.
    pub async fn is_paused(&self, account: AccountSid) -> Result<bool, CatalogError> {
        Ok(!self.catalog().paused(&[account]).await?.is_empty())
    }

    fn catalog(&self) -> &Arc<dyn Catalog> {
        &self.manners.catalog
    }

    /// The days to walk over, none of them in the future.
    fn days_of(&self, span: Span) -> Result<Vec<(Date, Date)>, BackfillError> {
        let now = self.catalog().clock().now().ok_or_else(CatalogError::not_prepared)?;
        let last = span.until.unwrap_or(Date::MAX).min(day(now));
        let first = span.since.unwrap_or(FIRST_DAY).max(FIRST_DAY);
        Ok(if first <= last { vec![(first, last)] } else { Vec::new() })
    }

    /// Of a few days all, the oldest first. Many are cut in halves, which go
    /// back `ahead`, unless there is nothing in them.
    async fn narrow(
        &self,
        account: AccountSid,
        (first, last): (Date, Date),
        ahead: &mut Vec<(Date, Date)>,
    ) -> Result<Vec<Date>, BackfillError> {
        let days = (last - first).get_days();
        if days < DAYS_WALKED_UNASKED {
            return Ok(first.series(jiff::Span::new().days(1)).take_while(|day| *day <= last).collect());
        }
        let page = self
            .with_patience(account, || 0, async || self.page(account, Listing::AnyOfDays { first, last }, None).await)
            .await?;
        let is_near = |at: Timestamp| {
            first.yesterday().is_ok_and(|from| from <= day(at)) && last.tomorrow().is_ok_and(|to| day(at) <= to)
        };
        if !page.recordings.iter().filter_map(made_at).all(is_near) {
            return Err(BackfillError::OtherDays(first));
        }
        if !page.recordings.is_empty() || page.unreadable > 0 || page.next.is_some() {
            let middle = first + jiff::Span::new().days(days / 2);
            let after = middle.tomorrow().unwrap_or(last);
            ahead.extend([(after, last), (first, middle)]);
        }
        Ok(Vec::new())
    }

    /// Does something again while what it fails of may pass: for as long as it
    /// comes further each time, and a number of times where it does not.
    async fn with_patience<T>(
        &self,
        account: AccountSid,
        came_so_far: impl Fn() -> u64,
        mut does: impl AsyncFnMut() -> Result<T, BackfillError>,
    ) -> Result<T, BackfillError> {
        let (mut failed, mut reached) = (0, came_so_far());
        loop {
            let done = does().await;
            if came_so_far() > reached {
                (failed, reached) = (0, came_so_far());
            }
            let error = match done {
                Err(error) if error.is_passing() && failed < FAILURES_MAX => error,
                done => return done,
            };
            let (code, retry_after) = match &error {
                BackfillError::Twilio(error) => (error.code(), error.retry_after()),
                _ => (ErrorCode::Interrupted, None),
            };
            let (after, not_before) = self.manners.pause_after((self.dice)(), code, failed, retry_after);
            tracing::info!(%account, %error, "a backfill goes on later");
            tokio::time::sleep(after.max(not_before)).await;
            failed += 1;
        }
    }

    /// A page, once Twilio may be asked for it.
    async fn page(&self, account: AccountSid, listing: Listing, next: Option<&str>) -> Result<ListPage, BackfillError> {
        while self.catalog().is_left_alone(account).await? {
            if self.is_paused(account).await? {
                return Err(BackfillError::Paused);
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.manners.list_page(account, Urgency::Idle, listing, next).await??.ok_or(BackfillError::NoList)
    }

    async fn walk_day(&self, progress: &Progress, day: Date) -> Result<(), BackfillError> {
        let is_over = day
            .tomorrow()
            .unwrap_or(Date::MAX)
            .to_zoned(TimeZone::UTC)
            .map_or(Timestamp::MAX, |at| at.timestamp().saturating_add(LISTED_WITHIN).unwrap_or(Timestamp::MAX));
        let walk = loop {
            match self.catalog().grant_day(&progress.run, day, is_over, self.lease).await? {
                DayGrant::Granted(walk) => break walk,
                DayGrant::Done => return Ok(()),
                DayGrant::Superseded => return Err(BackfillError::Superseded),
                DayGrant::Held => tokio::time::sleep(AGAIN_AFTER).await,
            }
        };
        progress.hold(Some(walk.lease));
        let walked = self.walk_pages(progress, walk).await;
        match &walked {
            Ok(()) => drop(progress.hold(None)),
            Err(_) => self.hand_back(progress).await,
        }
        walked
    }

    async fn walk_pages(&self, progress: &Progress, walk: DayWalk) -> Result<(), BackfillError> {
        let DayWalk { lease, mut next_page, mut pages, mut news, mut passes } = walk;
        let mut seen: HashSet<String> = next_page.iter().cloned().collect();
        let mut restarts = 0;
        loop {
            let page = match self.page_under(&lease, next_page.as_deref()).await {
                Err(error) if error.is_of_the_page() && next_page.is_some() && restarts < RESTARTS_MAX => {
                    held(self.catalog().begin_day_pass(&lease, passes).await?)?;
                    (next_page, pages, news) = (None, 0, 0);
                    seen.clear();
                    restarts += 1;
                    continue;
                }
                page => page?,
            };
            news += self.take_page(progress, &lease, &page).await?;
            progress.pages.fetch_add(1, Ordering::Relaxed);
            pages += 1;
            let unreadable = i64::try_from(page.unreadable).unwrap_or(i64::MAX);
            next_page = onward(page, lease.day, &mut seen, pages)?;
            if let Some(next) = &next_page {
                held(self.catalog().save_day_page(&lease, next, unreadable).await?)?;
            } else if pages == 1 || news == 0 {
                return held(self.catalog().finish_day(&lease, unreadable).await?);
            } else {
                passes += 1;
                let has_passes_left = passes < PASSES_MAX;
                // Whoever comes after this one has all passes again.
                held(self.catalog().begin_day_pass(&lease, if has_passes_left { passes } else { 0 }).await?)?;
                if !has_passes_left {
                    return Err(BackfillError::NeverSettles(lease.day));
                }
                (pages, news) = (0, 0);
                seen.clear();
            }
        }
    }

    /// A page, while the lease is kept. Taking it needs no renewing beside that: each of
    /// the transactions prolongs the lease itself, and holds its row, however long it takes.
    async fn page_under(&self, lease: &DayLease, next: Option<&str>) -> Result<ListPage, BackfillError> {
        let renew = || self.catalog().renew_day(lease, self.lease);
        let renewed = Instant::now();
        held(renew().await?)?;
        tokio::select! {
            page = self.page_of_day(lease.account, lease.day, next) => page,
            () = keep(self.lease, renewed, renew) => Err(BackfillError::Lost),
        }
    }

    /// A page of a day, on which nothing is of any other.
    async fn page_of_day(
        &self,
        account: AccountSid,
        of_day: Date,
        next: Option<&str>,
    ) -> Result<ListPage, BackfillError> {
        let listing = Listing::OfDays { first: of_day, last: of_day };
        let mut page = self.page(account, listing, next).await?;
        let listed = page.recordings.len();
        // One that does not say when it was made cannot be told to belong here.
        page.recordings.retain(|listed| made_at(listed).is_some());
        page.unreadable += listed - page.recordings.len();
        let is_of_day = |listed: &Listed| made_at(listed).is_some_and(|at| day(at) == of_day);
        if !page.recordings.iter().all(is_of_day) {
            return Err(BackfillError::OtherDays(of_day));
        }
        Ok(page)
    }

    /// Accepts what a page has. Says how much of it was news.
    async fn take_page(&self, progress: &Progress, lease: &DayLease, page: &ListPage) -> Result<i64, BackfillError> {
        let mut finds: Vec<Find> = page.recordings.iter().map(|listed| self.find(progress, listed)).collect();
        // In one order, so that no two transactions wait for each other.
        finds.sort_by_key(|find| find.said.id);
        let mut news = 0;
        for finds in finds.chunks(FINDS_AT_ONCE) {
            let taken = self.catalog().take_finds(lease, finds, self.lease).await?;
            news += taken.ok_or(BackfillError::Lost)?;
        }
        Ok(news)
    }

    fn find(&self, progress: &Progress, listed: &Listed) -> Find {
        let described = listed.described.clone();
        let home = self.manners.twilio.home(&listed.id.account);
        Find {
            is_deleted: described.status == "deleted",
            is_final: described.is_final(),
            counts_as_news: made_at(listed).is_some_and(|at| at < progress.run.begun_at),
            said: Announcement {
                id: listed.id,
                source_host: home.and_then(|host| host.name()),
                details: described.details,
                by: AnnouncedBy::Found {
                    by: FoundBy::Backfill,
                    status: described.status,
                    error_code: described.error_code,
                },
            },
        }
    }
}

fn onward(page: ListPage, day: Date, seen: &mut HashSet<String>, pages: i64) -> Result<Option<String>, BackfillError> {
    let has_any = !page.recordings.is_empty();
    next_page(page.next, has_any, seen, pages).map_err(|why| BackfillError::Endless(day, why))
}

fn held(settled: Settled) -> Result<(), BackfillError> {
    match settled {
        Settled::Done => Ok(()),
        Settled::Stale => Err(BackfillError::Lost),
    }
}
