//! The memory that recordings in flight may take, over all fetches of a node.
//!
//! A fetch has its memory before it is claimed: one that waited for it later
//! would hold a lease, or an answer of Twilio's that is cut off meanwhile.

use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The budget is counted in these.
const UNIT_BYTES: u64 = 1024;

/// What may be reserved.
pub(super) struct MemoryBudget {
    units: Arc<Semaphore>,
    /// All there are.
    total: usize,
    freed: Arc<Notify>,
}

/// Reserved memory; it is given back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    units: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
    is_used: bool,
}

impl MemoryBudget {
    pub(super) fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes / UNIT_BYTES).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)), total: units, freed: Arc::default() }
    }

    /// How often so much memory is in it.
    pub(super) fn fits(&self, bytes: u64) -> usize {
        self.total / usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX).max(1)
    }

    /// So much memory, if there is as much.
    pub(super) fn reserve(&self, bytes: u64) -> Option<Reservation> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).ok()?;
        let units = self.units.clone().try_acquire_many_owned(units).ok()?;
        Some(Reservation { units: Some(units), freed: self.freed.clone(), is_used: false })
    }

    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }
}

impl Reservation {
    /// From now on it is in use: when it is given back, that is told. What was
    /// never used was missing to nobody but whoever reserved it.
    pub fn begin(&mut self) {
        self.is_used = true;
    }

    /// Gives back what so many bytes do not need.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let needed = usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        if let Some(units) = &mut self.units {
            let surplus = units.num_permits().saturating_sub(needed);
            drop(units.split(surplus));
            self.freed.notify_one();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        drop(self.units.take());
        if self.is_used {
            self.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_given_back_can_be_reserved_again() {
        let budget = MemoryBudget::new(10 << 10);
        assert_eq!([1 << 10, 4 << 10, 10 << 10, 11 << 10].map(|bytes| budget.fits(bytes)), [10, 2, 1, 0]);
        let mut first = budget.reserve(8 << 10).expect("there is enough");
        first.begin();
        assert!(budget.reserve(8 << 10).is_none());
        first.shrink_to(1);
        budget.freed().await;
        let second = budget.reserve(8 << 10).expect("there is enough again");
        assert!(budget.reserve(2 << 10).is_none());
        drop((first, second));
        budget.freed().await;
        assert!(budget.reserve(10 << 10).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_used_wakes_nobody() {
        let budget = MemoryBudget::new(10 << 10);
        drop(budget.reserve(8 << 10).expect("there is enough"));
        let woken = tokio::time::timeout(std::time::Duration::from_secs(60), budget.freed()).await;
        assert!(woken.is_err());
    }
}
