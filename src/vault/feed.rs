//! Reading the feed: what there is, and waiting for what comes.
//!
//! Whoever waits looks at what this node follows, never at the catalog: it is
//! asked once there is something that passes their filter. A reader with a
//! cursor misses nothing and gets nothing twice, however often they stop.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::Vault;
use super::follow::Found;
use crate::catalog::{CatalogError, Cursor, Event, EventFilter};

/// The longest wait for a connection, while many readers were woken at once.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// The longest that a long feed is looked through for the little that passes a
/// filter, before a reader gets a page without events and goes on from there.
const LOOK_THROUGH_WITHIN: Duration = Duration::from_secs(5);

/// What came of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// There may be something behind this cursor.
    Perhaps(Cursor),
    /// There is nothing for this reader up to here.
    NothingUpTo(Cursor),
}

impl Vault {
    /// The events behind a cursor, from the oldest where there is none, and the
    /// cursor to go on from. Does not wait for more.
    pub async fn read_feed(
        &self,
        after: Option<Cursor>,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<(Vec<Event>, Cursor), CatalogError> {
        // Callbacks and leases need connections, too.
        let place = timeout(READ_WITHIN, self.look_ups.acquire()).await;
        let _place = place.map_err(|_| CatalogError::Unavailable("too many read the feed".to_owned()))?;
        self.catalog.events(after, filter, i64::try_from(limit).unwrap_or(i64::MAX)).await
    }

    /// The same, and where there are none, waits for them until that time.
    pub async fn await_feed(
        &self,
        mut after: Option<Cursor>,
        filter: &EventFilter,
        limit: usize,
        until: Instant,
    ) -> Result<(Vec<Event>, Cursor), CatalogError> {
        let look_through_until = until.max(Instant::now() + LOOK_THROUGH_WITHIN);
        loop {
            let (events, next) = self.read_feed(after, filter, limit).await?;
            if !events.is_empty() || Instant::now() >= look_through_until {
                return Ok((events, next));
            }
            match self.feed_moved(next, filter, until).await {
                Moved::Perhaps(next) => after = Some(next),
                Moved::NothingUpTo(next) => return Ok((events, next)),
            }
        }
    }

    /// Returns when something came behind a cursor that passes the filter, at
    /// the latest at `until`, or when the service ends.
    pub async fn feed_moved(&self, mut after: Cursor, filter: &EventFilter, until: Instant) -> Moved {
        let mut news = self.follower.watch();
        loop {
            // Before looking: what comes from now on wakes.
            let reached = *news.borrow_and_update();
            match self.follower.look_for(after, |news| filter.passes(news)) {
                Found::Something => return Moved::Perhaps(after),
                Found::NothingUpTo(cursor) => after = cursor,
                // Nothing is known before the catalog was reached.
                Found::NotKnown if reached.is_some() => return Moved::Perhaps(after),
                Found::NotKnown => {}
            }
            let woken = tokio::select! {
                woken = timeout_at(until, news.changed()) => woken.is_ok(),
                () = self.follower.ended().cancelled() => false,
            };
            if !woken {
                return Moved::NothingUpTo(after);
            }
        }
    }
}
