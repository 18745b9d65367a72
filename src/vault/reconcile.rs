//! Walking over Twilio's lists for what the callbacks did not tell.
//!
//! A walk goes over the pages of an account's list. What the catalog does not
//! know is accepted, what it knows as announced may move on, and nothing else
//! is touched. Each page is saved when it is done, and the walk goes on from
//! there, on whichever node. Twilio ignores filters that it does not know in
//! silence, so dates are compared here as well, and every walk comes to an end.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Vault;
use super::pace::Manners;
use crate::catalog::{AnnouncedBy, Announcement, CatalogError, FoundBy, Settled, Urgency, Walk, Walker};
use crate::domain::recording::{ErrorCode, RecordingId, State};
use crate::domain::retry::{Decision, Failure};
use crate::domain::sid::AccountSid;
use crate::telemetry;
use crate::twilio::api::{Described, ListPage, Listed, Listing};
use crate::twilio::media::MediaError;

/// After this time a walk lets those of other accounts go first.
const ROUND_MAX: Duration = Duration::from_secs(30);
/// How far back a walk looks at most, where the window is not longer.
const REACH: Duration = Duration::from_secs(30 * 86_400);
/// The pages of a walk: ten million recordings. A list that has more does not end.
const PAGES_MAX: i64 = 10_000;
/// What handing a walk back may take at the end of a node.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// When Twilio is asked, and how far back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// `CALLVAULT_RECONCILE_EVERY`; None: no walks.
    pub(super) every: Option<Duration>,
    /// `CALLVAULT_RECONCILE_WINDOW`.
    pub(super) window: Duration,
}

/// How a node's part of a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkOutcome {
    /// The walk is over.
    Completed,
    /// Others may go on with it, from its last page.
    HandedBack,
    /// It will go on later.
    Failed,
    /// Another node has the lease by now.
    Lost,
}

impl WalkOutcome {
    fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::HandedBack => "handed_back",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }
}

/// Why a node's part of a walk failed.
#[derive(Debug, thiserror::Error)]
enum WalkError {
    #[error(transparent)]
    Twilio(#[from] MediaError),
    #[error("Twilio answered 404 for the account's list")]
    NoList,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the lease was lost")]
    Lost,
}

impl WalkError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Twilio(error) => error.code(),
            Self::NoList => ErrorCode::UpstreamError,
            Self::Catalog(_) | Self::Lost => ErrorCode::Interrupted,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Twilio(error) => error.retry_after(),
            Self::NoList | Self::Catalog(_) | Self::Lost => None,
        }
    }

    /// Whether the page may be to blame: its query can have become too old for Twilio.
    fn is_of_the_page(&self) -> bool {
        match self {
            Self::Twilio(MediaError::Upstream { status, .. }) => status.is_client_error(),
            Self::Twilio(MediaError::Unreadable(_)) | Self::NoList => true,
            Self::Twilio(_) | Self::Catalog(_) | Self::Lost => false,
        }
    }
}

/// The time that a walk looks at. What Twilio filters by, and what is compared,
/// is when a recording was made; one that does not say it is in no window.
#[derive(Debug, Clone, Copy)]
struct Window {
    from: Timestamp,
    first: Date,
    last: Date,
}

impl Window {
    fn of(walk: &Walk) -> Self {
        // A day more: Twilio's clock may be ahead of the catalog's.
        let last = day(walk.begun_at).tomorrow().unwrap_or(Date::MAX);
        Self { from: walk.from, first: day(walk.from), last }
    }

    fn has(&self, listed: &Listed) -> bool {
        made_at(listed).is_some_and(|at| at >= self.from) && self.has_day_of(listed)
    }

    /// Whether it was made on one of the days that Twilio was asked for.
    fn has_day_of(&self, listed: &Listed) -> bool {
        made_at(listed).is_some_and(|at| (self.first..=self.last).contains(&day(at)))
    }

    /// Whether all on a page is older. Lists begin with the newest: so is all behind it then.
    fn is_behind(&self, page: &ListPage) -> bool {
        let mut days = page.recordings.iter().filter_map(made_at).map(day).peekable();
        days.peek().is_some() && days.all(|day| day < self.first)
    }
}

pub(super) fn made_at(listed: &Listed) -> Option<Timestamp> {
    listed.created_at.or(listed.described.details.recorded_at)
}

pub(super) fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

impl Vault {
    /// The terms on which a node of that name walks; None where walks are switched off.
    pub fn walker(&self, node: String) -> Option<Walker> {
        let (accounts, window) = (self.accounts.clone(), self.reconcile.window);
        self.reconcile.every.map(|_| Walker { node, accounts, lease: self.lease, window, reach: REACH })
    }

    /// Wants a walk over every account if callbacks may have been lost since
    /// one was last wanted. To be called when the catalog answers; an error
    /// leaves it to be done. Says whether walks are wanted now.
    pub async fn make_up_for_lost_callbacks(&self) -> Result<bool, CatalogError> {
        let Some(lost) = self.health.lost_callbacks() else { return Ok(false) };
        if self.reconcile.every.is_some() {
            self.catalog.walk_all_now(&self.accounts).await?;
            tracing::info!("callbacks may have been lost: Twilio's lists are walked at once");
        }
        self.health.made_up_for(lost);
        Ok(self.reconcile.every.is_some())
    }

    /// Works on a walk that was granted after `granted`: until it is over, it
    /// is the turn of others, something fails, the lease is lost, or `stopping`
    /// hands it back.
    pub async fn walk(&self, walk: &Walk, granted: Instant, stopping: &CancellationToken) -> WalkOutcome {
        let walked = tokio::select! {
            walked = self.walk_pages(walk) => walked,
            () = self.keep("walk", granted, || self.catalog.renew_walk(&walk.lease, self.lease)) => Err(WalkError::Lost),
            () = stopping.cancelled() => {
                // Where it fails the lease runs out.
                let _ = tokio::time::timeout(HAND_BACK_TIMEOUT, self.catalog.hand_back_walk(&walk.lease)).await;
                Ok(WalkOutcome::HandedBack)
            }
        };
        let outcome = match walked {
            Ok(outcome) => outcome,
            Err(WalkError::Lost) => WalkOutcome::Lost,
            Err(error) => self.settle_failed_walk(walk, &error).await,
        };
        telemetry::walk_ended(outcome.label());
        outcome
    }

    async fn walk_pages(&self, walk: &Walk) -> Result<WalkOutcome, WalkError> {
        let account = walk.lease.account;
        let window = Window::of(walk);
        let listing = Listing::OfDays { first: window.first, last: window.last };
        let until = Instant::now() + ROUND_MAX;
        let mut next = walk.next_page.clone();
        let mut seen: HashSet<String> = next.iter().cloned().collect();
        let mut pages = walk.pages;
        loop {
            let page = self.list_page(account, listing, next.as_deref()).await?;
            let found = self.take_page(account, &window, &page).await?;
            pages += 1;
            let every = self.reconcile.between_walks();
            let onward = match onward(page, &window, &mut seen, pages) {
                Ok(Some(onward)) => onward,
                Ok(None) => {
                    held(self.catalog.finish_walk(&walk.lease, found, every).await?)?;
                    return Ok(WalkOutcome::Completed);
                }
                Err(why) => {
                    tracing::warn!(%account, why, pages, "Twilio's list has no end: the walk ends here, and does not count");
                    held(self.catalog.abandon_walk(&walk.lease, found, every).await?)?;
                    return Ok(WalkOutcome::Failed);
                }
            };
            held(self.catalog.save_page(&walk.lease, &onward, found, self.lease).await?)?;
            if Instant::now() >= until {
                held(self.catalog.hand_back_walk(&walk.lease).await?)?;
                return Ok(WalkOutcome::HandedBack);
            }
            next = Some(onward);
        }
    }

    async fn list_page(
        &self,
        account: AccountSid,
        listing: Listing,
        next: Option<&str>,
    ) -> Result<ListPage, WalkError> {
        self.manners.list_page(account, Urgency::Urgent, listing, next).await??.ok_or(WalkError::NoList)
    }

    /// Accepts what a page has and the catalog has not. Says how many were new.
    async fn take_page(&self, account: AccountSid, window: &Window, page: &ListPage) -> Result<i64, WalkError> {
        if page.unreadable > 0 {
            tracing::warn!(%account, entries = page.unreadable, "Twilio's list has entries that cannot be read");
            telemetry::unreadable_in_list(page.unreadable);
        }
        let inside: Vec<&Listed> = page.recordings.iter().filter(|listed| window.has(listed)).collect();
        let known = self.catalog.states_of(account, inside.iter().map(|listed| listed.id.recording)).await?;
        let mut found = 0;
        for listed in inside {
            let described = &listed.described;
            let tells_something = match known.get(&listed.id.recording) {
                None => described.status != "deleted",
                Some(State::Announced) => described.is_final(),
                Some(_) => false,
            };
            if tells_something && self.take_found(listed.id, described.clone()).await? {
                found += 1;
            }
        }
        Ok(found)
    }

    /// Takes what Twilio says of a recording that no callback told, or not all
    /// of. Says whether it is new.
    pub(super) async fn take_found(&self, id: RecordingId, described: Described) -> Result<bool, CatalogError> {
        let home = self.twilio.home(&id.account);
        let Described { details, status, error_code, encryption: _ } = described;
        let by = AnnouncedBy::Found { by: FoundBy::Reconcile, status, error_code };
        let announcement = Announcement { id, source_host: home.and_then(|host| host.name()), details, by };
        let accepted = self.catalog.accept(&announcement).await?;
        match (accepted.created, accepted.recording.state) {
            (true, _) => telemetry::reconcile_found("new"),
            (false, State::Announced) => {}
            (false, _) => telemetry::reconcile_found("announced"),
        }
        Ok(accepted.created)
    }

    async fn settle_failed_walk(&self, walk: &Walk, error: &WalkError) -> WalkOutcome {
        let account = walk.lease.account;
        tracing::warn!(%account, %error, "a walk over Twilio's list failed; it goes on later");
        let (after, not_before) = self.pause_after(error.code(), walk.failed_rounds, error.retry_after());
        let settled = self.catalog.fail_walk(&walk.lease, after, not_before, error.is_of_the_page()).await;
        if let Err(error) = settled {
            tracing::warn!(%account, %error, "the catalog was not told; the lease will run out");
        }
        WalkOutcome::Failed
    }

    /// When Twilio is asked again after such a failure: after that time, and
    /// not before the other one.
    pub(super) fn pause_after(
        &self,
        code: ErrorCode,
        failed_before: u32,
        retry_after: Option<Duration>,
    ) -> (Duration, Duration) {
        self.manners.pause_after((self.dice)(), code, failed_before, retry_after)
    }
}

impl Manners {
    /// A page of an account's list, when it is its turn. What Twilio answers instead is heeded.
    pub(super) async fn list_page(
        &self,
        account: AccountSid,
        urgency: Urgency,
        listing: Listing,
        next: Option<&str>,
    ) -> Result<Result<Option<ListPage>, MediaError>, CatalogError> {
        let (began, page) = self
            .in_turn(account, urgency, async { (Instant::now(), self.twilio.list(&account, listing, next).await) })
            .await?;
        if let Err(error) = &page {
            self.heed(account, error, began).await;
        }
        Ok(page)
    }

    /// When Twilio is asked again after such a failure; `dice` fell so.
    pub(super) fn pause_after(
        &self,
        dice: f64,
        code: ErrorCode,
        failed_before: u32,
        retry_after: Option<Duration>,
    ) -> (Duration, Duration) {
        let failure = Failure { code, failed_before, pending_for: Duration::ZERO, retry_after };
        match self.retry.decide(&failure, dice) {
            Decision::Again { after, not_before } => (after, not_before),
            // That is the end of one recording's patience, not of an account's.
            Decision::GiveUp => (self.retry.cap, Duration::ZERO),
        }
    }
}

/// The query of the page after this one; None where the walk is over.
fn onward(
    page: ListPage,
    window: &Window,
    seen: &mut HashSet<String>,
    pages: i64,
) -> Result<Option<String>, &'static str> {
    if page.next.is_some() && window.is_behind(&page) {
        tracing::warn!(
            pages,
            "Twilio's list does not end as it should: what is left of it is older than was asked for"
        );
        return Ok(None);
    }
    // A page of which nothing can be read says nothing of what is behind it.
    next_page(page.next, true, seen, pages)
}

/// What a page calls its next one, after `pages` of them; or why that cannot be right.
pub(super) fn next_page(
    next: Option<String>,
    has_its_days: bool,
    seen: &mut HashSet<String>,
    pages: i64,
) -> Result<Option<String>, &'static str> {
    let Some(next) = next else { return Ok(None) };
    if !has_its_days {
        Err("a page has nothing of the days that were asked for")
    } else if pages >= PAGES_MAX {
        Err("there are more pages than any list has")
    } else if !seen.insert(next.clone()) {
        Err("a page names one as its next that was there before")
    } else {
        Ok(Some(next))
    }
}

fn held(settled: Settled) -> Result<(), WalkError> {
    match settled {
        Settled::Done => Ok(()),
        Settled::Stale => Err(WalkError::Lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_on(day: &str) -> Listed {
        let id = crate::domain::recording::tests::recording(1, State::Pending, 1).id;
        let described = Described {
            details: Default::default(),
            status: "completed".to_owned(),
            error_code: None,
            encryption: None,
        };
        Listed { id, created_at: format!("{day}T12:00:00Z").parse().ok(), described }
    }

    #[test]
    fn a_walk_goes_on_until_all_that_comes_is_older_and_never_in_a_circle() {
        let on = |day: &str| day.parse::<Date>().expect("a day");
        let window = Window { from: Timestamp::UNIX_EPOCH, first: on("2026-11-20"), last: on("2026-11-22") };
        let unreadable: &[&str] = &[];
        for (days, next, pages, goes_on) in [
            (&["2026-11-22", "2026-11-20"][..], Some("PageToken=2"), 1, Ok(true)),
            (&["2026-11-20", "2026-11-19"], Some("PageToken=2"), 1, Ok(true)),
            (&["2026-11-20"], None, 1, Ok(false)),
            (&["2026-11-19", "2025-01-01"], Some("PageToken=2"), 1, Ok(false)),
            // Of none of these is known where in the list they stand.
            (unreadable, Some("PageToken=2"), 1, Ok(true)),
            (&["no day"], Some("PageToken=2"), 1, Ok(true)),
            (&["2026-11-24"], Some("PageToken=2"), 1, Ok(true)),
            (unreadable, None, 1, Ok(false)),
            (&["2026-11-20"], Some("PageToken=1"), 1, Err(())),
            (unreadable, Some("PageToken=1"), 1, Err(())),
            (&["2026-11-20"], Some("PageToken=2"), PAGES_MAX, Err(())),
        ] {
            let recordings = days.iter().map(|day| made_on(day)).collect();
            let page = ListPage { recordings, unreadable: 0, next: next.map(str::to_owned) };
            let mut seen = HashSet::from(["PageToken=1".to_owned()]);
            let onward = onward(page, &window, &mut seen, pages);
            assert_eq!(onward.map(|next| next.is_some()).map_err(|_| ()), goes_on, "{days:?}, {next:?}, {pages}");
        }
    }
}
