//! Following the feed, once a node, for all who want to know.
//!
//! One loop reads what is new, woken by the commit on whichever node and at the
//! latest by its own poll, and keeps the newest events' essentials in a ring of
//! bounded length. Who follows remembers a cursor and looks there: it learns of
//! every event behind its cursor, or that the ring does not reach back so far
//! and it has to ask the catalog. However many follow, the catalog is asked once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Vault;
use super::places::{NoPlace, Place, Places};
use crate::catalog::{Catalog, CatalogError, Cursor, News, NewsPage};
use crate::domain::key::KeyId;
use crate::telemetry::{self, Running};

/// How late a node may learn of what it was not woken for.
pub const POLL_EVERY: Duration = Duration::from_millis(500);
/// Who answers from memory has heard from the catalog within this time.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// And knows of all that was committed until then, at the latest: what is erased is
/// given to nobody after two seconds.
const KNOWN_WITHIN: Duration = Duration::from_millis(1500);
/// A busy catalog changes all the time: it is looked at no more often than this.
const LOOKS_APART: Duration = Duration::from_millis(20);
/// Events that are read with one statement.
const READ_AT_ONCE: i64 = 1000;
/// Events that are kept; one takes some 250 bytes. A minute of a very busy service.
const RING_MAX: usize = 16_384;

/// Readers of the feed at once on a node. Each holds a connection and some kilobytes.
const READERS_MAX: usize = 2048;

/// The events behind a cursor are not known here any more: whoever followed has
/// to look at the catalog itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the feed has moved on too far")]
pub struct FellBehind;

/// What came of looking for something behind a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There is something.
    Something,
    /// There is nothing up to here.
    NothingUpTo(Cursor),
    /// That cannot be said without the catalog.
    NotKnown,
}

/// Someone who reads the feed, for as long as this lives.
pub struct ReaderPlace {
    _place: Place,
    _counted: Running,
}

/// The newest events, and where the feed ends as far as this node knows.
pub struct Follower {
    catalog: Arc<dyn Catalog>,
    poll_every: Duration,
    ring: Mutex<Ring>,
    reached: watch::Sender<Option<Cursor>>,
    /// Who reads the feed here.
    readers: Arc<Places>,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct Ring {
    /// All events behind this cursor are in `news`; None before the first look.
    begins: Option<Cursor>,
    news: VecDeque<Arc<News>>,
    /// When the look began that last came to the end of the feed.
    up_to_date_at: Option<Instant>,
    /// What was committed before is in `news`, or came before it.
    known_until: Option<Instant>,
}

impl Ring {
    /// The events behind a cursor.
    fn behind(&self, after: Cursor) -> Result<impl Iterator<Item = &Arc<News>>, FellBehind> {
        if self.begins.is_none_or(|begins| after < begins) {
            return Err(FellBehind);
        }
        let first = self.news.partition_point(|news| news.cursor <= after);
        Ok(self.news.range(first..))
    }

    fn add(&mut self, page: NewsPage) {
        if page.begins_anew || self.begins.is_none() {
            self.news.clear();
            self.begins = Some(page.reached);
        }
        self.news.extend(page.news.into_iter().map(Arc::new));
        while self.news.len() > RING_MAX {
            self.begins = self.news.pop_front().map(|oldest| oldest.cursor);
        }
    }
}

impl Follower {
    /// One over that catalog, which looks there at least so often.
    pub fn new(catalog: Arc<dyn Catalog>, poll_every: Duration) -> Self {
        Self {
            catalog,
            poll_every,
            ring: Mutex::default(),
            reached: watch::Sender::new(None),
            readers: Arc::new(Places::new(READERS_MAX, 1)),
            ended: CancellationToken::new(),
        }
    }

    /// Follows for as long as the service runs.
    pub async fn run(&self) {
        let mut changes = self.catalog.changes();
        let mut up_to_date_at = Instant::now();
        loop {
            changes.mark_unchanged();
            let looked_at = Instant::now();
            let is_end = match self.look(looked_at).await {
                Ok(is_end) => is_end,
                Err(error) => {
                    // It is told elsewhere that the catalog is away.
                    tracing::debug!(%error, "the feed cannot be followed");
                    true
                }
            };
            up_to_date_at = self.ring().up_to_date_at.unwrap_or(up_to_date_at);
            telemetry::feed_lag(looked_at.saturating_duration_since(up_to_date_at));
            if is_end {
                let woken = tokio::time::timeout(self.poll_every, changes.changed());
                let _ = tokio::join!(woken, tokio::time::sleep(LOOKS_APART));
            }
        }
    }

    /// Takes in what is new; says whether that was all.
    async fn look(&self, looked_at: Instant) -> Result<bool, CatalogError> {
        let after = self.reached();
        let numbered_until = self.catalog.numbered_until();
        let page = self.catalog.news(after, READ_AT_ONCE).await?;
        let (reached, is_end) = (page.reached, page.is_end);
        self.ring().add(page);
        if after != Some(reached) {
            self.reached.send_replace(Some(reached));
        }
        if is_end {
            // Last of all: who finds this node up to date finds what it knows, too.
            let mut ring = self.ring();
            ring.up_to_date_at = Some(looked_at);
            ring.known_until = numbered_until;
        }
        Ok(is_end)
    }

    /// The cursor behind the newest event that this node knows of; None before
    /// the catalog was reached. What is read of the catalog after this was asked
    /// is at least as new.
    pub fn reached(&self) -> Option<Cursor> {
        *self.reached.borrow()
    }

    /// Whether this node knew of all that was in the feed at some time within
    /// the last `time`. Otherwise the catalog is away, or too slow to follow.
    pub fn is_up_to_date_within(&self, time: Duration) -> bool {
        self.ring().up_to_date_at.is_some_and(|at| at.elapsed() <= time)
    }

    /// The cursor up to which this node knows the feed, if that is all that was
    /// committed up to a moment ago. None where the catalog is away or slow, and after
    /// this process was frozen: then what is remembered may be over.
    pub fn fresh_cursor(&self) -> Option<Cursor> {
        let ring = self.ring();
        let is_fresh = ring.up_to_date_at.is_some_and(|at| at.elapsed() <= HEARD_WITHIN)
            && ring.known_until.is_some_and(|at| at.elapsed() <= KNOWN_WITHIN);
        drop(ring);
        if is_fresh { self.reached() } else { None }
    }

    /// The events behind a cursor, in order.
    pub fn since(&self, after: Cursor) -> Result<Vec<Arc<News>>, FellBehind> {
        Ok(self.ring().behind(after)?.cloned().collect())
    }

    /// Whether something of that kind came behind a cursor.
    pub fn look_for(&self, after: Cursor, mut wanted: impl FnMut(&News) -> bool) -> Found {
        let reached = self.reached();
        let ring = self.ring();
        let found = ring.behind(after).map(|mut news| news.any(|news| wanted(news)));
        match (found, reached) {
            (Ok(true), _) => Found::Something,
            (Ok(false), Some(reached)) => Found::NothingUpTo(reached.max(after)),
            _ => Found::NotKnown,
        }
    }

    /// Changes when there is news.
    pub fn watch(&self) -> watch::Receiver<Option<Cursor>> {
        self.reached.subscribe()
    }

    /// Follows from now on.
    pub fn subscribe(&self) -> Subscriber<'_> {
        let mut watch = self.watch();
        let reached = *watch.borrow_and_update();
        Subscriber { follower: self, watch, reached }
    }

    /// A place among the readers, for one with that key.
    pub fn join(&self, key: KeyId) -> Result<ReaderPlace, NoPlace> {
        Ok(ReaderPlace { _place: self.readers.take(key)?, _counted: Running::feed_reader() })
    }

    /// Readers are to end: the service does.
    pub fn end_readers(&self) {
        self.ended.cancel();
    }

    /// Whether, and when, readers are to end.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().expect("nothing panics while it holds the ring")
    }
}

impl Vault {
    /// Follows the feed for as long as the service runs.
    pub async fn follow_feed(self: Arc<Self>) {
        self.follower.run().await;
    }
}

/// Someone who follows the feed from a time on.
pub struct Subscriber<'f> {
    follower: &'f Follower,
    watch: watch::Receiver<Option<Cursor>>,
    reached: Option<Cursor>,
}

impl Subscriber<'_> {
    /// The cursor up to which all was told.
    pub fn reached(&self) -> Option<Cursor> {
        self.reached
    }

    /// The next events, once there are some; or that some of them were missed.
    /// Goes on from where the feed ends then.
    pub async fn next(&mut self) -> Result<Vec<Arc<News>>, FellBehind> {
        loop {
            // Before looking: what comes from now on wakes.
            let reached = *self.watch.borrow_and_update();
            if reached != self.reached {
                let after = std::mem::replace(&mut self.reached, reached);
                let news = after.map_or(Err(FellBehind), |after| self.follower.since(after))?;
                // What came since is told next time.
                let until = |news: &Arc<News>| reached.is_some_and(|reached| news.cursor <= reached);
                let news: Vec<_> = news.into_iter().filter(until).collect();
                if !news.is_empty() {
                    return Ok(news);
                }
                // The feed ends before where it did: it is another one.
                return Err(FellBehind);
            }
            // The follower outlives those who follow: the channel is never closed.
            let _ = self.watch.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(seq: i64) -> Cursor {
        format!("0000000000001-{seq:015}").parse().unwrap()
    }

    fn page(from: i64, to: i64) -> NewsPage {
        let news = |seq| News {
            cursor: cursor(seq),
            kind: "recording.stored".to_owned(),
            at: jiff::Timestamp::from_second(seq).unwrap(),
            account: format!("AC{}", "0".repeat(32)).parse().unwrap(),
            recording: None,
            calls: Vec::new(),
        };
        NewsPage { news: (from..=to).map(news).collect(), reached: cursor(to), is_end: true, begins_anew: false }
    }

    fn behind(ring: &Ring, after: i64) -> Result<Vec<i64>, FellBehind> {
        Ok(ring.behind(cursor(after))?.map(|news| news.at.as_second()).collect())
    }

    #[test]
    fn a_ring_gives_all_behind_a_cursor_or_says_that_it_cannot() {
        let mut ring = Ring::default();
        assert_eq!(behind(&ring, 7), Err(FellBehind), "nothing was read yet");
        ring.add(NewsPage { begins_anew: true, ..page(8, 7) });
        assert_eq!(behind(&ring, 7), Ok(vec![]));
        ring.add(page(8, 11));
        assert_eq!(behind(&ring, 7), Ok(vec![8, 9, 10, 11]));
        assert_eq!(behind(&ring, 9), Ok(vec![10, 11]));
        assert_eq!(behind(&ring, 12), Ok(vec![]));
        assert_eq!(behind(&ring, 6), Err(FellBehind));
    }

    #[test]
    fn a_ring_is_bounded_and_knows_what_it_forgot() {
        let mut ring = Ring::default();
        ring.add(NewsPage { begins_anew: true, ..page(1, 0) });
        let last = RING_MAX as i64 + 5;
        ring.add(page(1, last));
        assert_eq!(ring.news.len(), RING_MAX);
        assert_eq!(behind(&ring, 4), Err(FellBehind));
        assert_eq!(behind(&ring, 5).map(|news| news.len()), Ok(RING_MAX));
        ring.add(NewsPage { begins_anew: true, ..page(1, 0) });
        assert_eq!(ring.news.len(), 0, "the feed of another catalog");
    }
}
