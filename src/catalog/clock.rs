//! The catalog's time, known without asking.

use std::sync::RwLock;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// The catalog's time as it was last read, and what this node's monotonic
/// clock has counted since. The wall clock of the node is never looked at.
#[derive(Debug, Default)]
pub struct Clock {
    anchor: RwLock<Option<(Timestamp, Instant)>>,
}

impl Clock {
    /// The catalog's time now; None before it was first read.
    pub fn now(&self) -> Option<Timestamp> {
        let (at, read) = (*self.anchor.read().expect("nothing panics while it holds the clock"))?;
        at.checked_add(read.elapsed()).ok()
    }

    /// Takes a time that was read from the catalog.
    pub(super) fn set(&self, now: Timestamp) {
        *self.anchor.write().expect("nothing panics while it holds the clock") = Some((now, Instant::now()));
    }
}

/// A duration as the catalog's milliseconds.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
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
    }
}
