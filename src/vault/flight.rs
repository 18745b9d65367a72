//! Waiting for a recording that is on its way.
//!
//! Whoever waits is woken by a change in the catalog, from whichever node it
//! came, and looks again at the latest after [`LOOK_AGAIN_AFTER`]: a wake-up may
//! be lost.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long a lost wake-up can delay a waiter.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Someone's patience, and what wakes them.
pub(super) struct Waiter {
    changes: watch::Receiver<u64>,
    until: Instant,
}

impl Waiter {
    pub(super) fn new(changes: watch::Receiver<u64>, patience: Duration) -> Self {
        Self { changes, until: Instant::now() + patience }
    }

    /// To be called before looking: what changes from now on will wake.
    pub(super) fn look(&mut self) {
        self.changes.mark_unchanged();
    }

    /// Waits for a reason to look again; false where the patience is over.
    pub(super) async fn wait(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until {
            return false;
        }
        let again = self.until.min(now + LOOK_AGAIN_AFTER);
        // A catalog that is gone wakes nobody: the time does.
        let _ = tokio::time::timeout_at(again, self.changes.changed()).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_between_looking_and_waiting_is_not_lost() {
        let (sender, receiver) = watch::channel(0);
        let mut waiter = Waiter::new(receiver, Duration::from_secs(30));
        waiter.look();
        sender.send_modify(|count| *count += 1);
        let before = Instant::now();
        assert!(waiter.wait().await);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let (_sender, receiver) = watch::channel(0);
        let mut waiter = Waiter::new(receiver, Duration::from_millis(2500));
        let before = Instant::now();
        while waiter.wait().await {
            waiter.look();
        }
        assert_eq!(before.elapsed(), Duration::from_millis(2500));
    }
}
