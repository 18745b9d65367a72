//! The catalog's time, known without asking.

use std::sync::RwLock;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How far a node's clock may be from the catalog's: beyond that one of the two is wrong.
pub const CLOCK_OFF_MAX: Duration = Duration::from_secs(5 * 60);

/// The catalog's time as it was last read, and what this node's monotonic
/// clock has counted since. The wall clock of the node is only compared with it.
#[derive(Debug, Default)]
pub struct Clock {
    anchor: RwLock<Option<Anchor>>,
}

#[derive(Debug, Clone, Copy)]
struct Anchor {
    /// The catalog's time.
    at: Timestamp,
    /// When it was read.
    read: Instant,
    /// What this node took for the time then.
    node: Timestamp,
}

impl Clock {
    /// The catalog's time now; None before it was first read.
    pub fn now(&self) -> Option<Timestamp> {
        let anchor = self.anchor()?;
        anchor.at.checked_add(anchor.read.elapsed()).ok()
    }

    /// How far this node's own clock was from the catalog's when it was last read.
    pub fn off_by(&self) -> Duration {
        let off_by = self.anchor().map(|anchor| anchor.at.duration_since(anchor.node).unsigned_abs());
        off_by.unwrap_or_default()
    }

    fn anchor(&self) -> Option<Anchor> {
        *self.anchor.read().expect("nothing panics while it holds the clock")
    }

    /// Takes a time that was read from the catalog.
    pub(super) fn set(&self, now: Timestamp) {
        let anchor = Anchor { at: now, read: Instant::now(), node: node_time() };
        *self.anchor.write().expect("nothing panics while it holds the clock") = Some(anchor);
    }
}

/// What this node takes for the time.
#[expect(clippy::disallowed_methods, reason = "this is what is compared with the catalog's")]
fn node_time() -> Timestamp {
    Timestamp::now()
}

/// Whether a time that the catalog has just told is near what this node takes for it.
/// Where it is not, nothing that cannot be undone may hang on it.
pub(super) fn agrees(told: Timestamp) -> bool {
    told.duration_since(node_time()).unsigned_abs() <= CLOCK_OFF_MAX
}

/// A duration as the catalog's milliseconds.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// From one time to a later one; zero where it is not later.
pub(super) fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_between_readings() {
        let clock = Clock::default();
        assert_eq!(clock.now(), None);
        let read: Timestamp = "2026-11-23T14:00:00Z".parse().unwrap();
        clock.set(read);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(clock.now(), Some("2026-11-23T14:01:30Z".parse().unwrap()));
        assert!(clock.off_by() > Duration::ZERO, "the test runs at another time");
    }
}
