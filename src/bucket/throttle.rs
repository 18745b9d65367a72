//! A bound on how fast is read, shared by all who read.
//!
//! Whoever has taken bytes waits until they were due. Idle time is not saved up.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Bytes a second, over all who share it. The default is no bound.
#[derive(Debug, Default)]
pub struct Throttle {
    bytes_per_second: Option<u64>,
    /// When all that was taken so far is due.
    due: Mutex<Option<Instant>>,
}

impl Throttle {
    /// A bound; None is none.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|bytes| *bytes > 0), due: Mutex::default() }
    }

    /// So many bytes were taken: returns when others may be.
    pub(super) async fn took(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let due = {
            let mut due = self.due.lock().expect("nothing panics while it counts");
            let now = Instant::now();
            let next = due.map_or(now, |due| due.max(now)) + takes;
            *due = Some(next);
            next
        };
        tokio::time::sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_share_it_are_not_faster_together() {
        let throttle = Throttle::new(Some(1000));
        let began = Instant::now();
        futures::future::join_all((0..10).map(|_| throttle.took(500))).await;
        assert_eq!(began.elapsed().as_secs(), 5);
        Throttle::default().took(usize::MAX).await;
        assert_eq!(began.elapsed().as_secs(), 5);
    }
}
