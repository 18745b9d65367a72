//! How often a key may ask: so many times a second, on each node.
//!
//! A burst is at most a second's worth. Only keys that are known get this far, so
//! memory is bounded by their number; what is kept of revoked ones is thrown away
//! with all the rest when it becomes too much, which costs a burst.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::domain::key::{Holder, KeyId};

/// Twice as many as there can be keys that are good.
const KEPT_MAX: usize = 20_000;

/// The pace of each key.
#[derive(Debug, Default)]
pub struct Limits {
    of_key: Mutex<HashMap<KeyId, DefaultDirectRateLimiter>>,
}

impl Limits {
    /// Counts a request of that key; says when to ask again where it is one too many.
    pub fn admit(&self, holder: &Holder) -> Result<(), Duration> {
        let Some(rate) = holder.rate_per_second else { return Ok(()) };
        let mut of_key = self.of_key();
        if of_key.len() >= KEPT_MAX && !of_key.contains_key(&holder.id) {
            of_key.clear();
        }
        let limiter = of_key.entry(holder.id).or_insert_with(|| RateLimiter::direct(Quota::per_second(rate)));
        limiter.check().map_err(|over| over.wait_time_from(MonotonicClock.now()))
    }

    fn of_key(&self) -> MutexGuard<'_, HashMap<KeyId, DefaultDirectRateLimiter>> {
        self.of_key.lock().expect("nothing panics while it holds the limits")
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn holder(id: u8, rate: u32) -> Holder {
        Holder { id: KeyId::from([id; 8]), scopes: vec![], accounts: None, rate_per_second: NonZeroU32::new(rate) }
    }

    #[test]
    fn a_key_asks_as_often_as_it_may_and_takes_nothing_from_another() {
        let limits = Limits::default();
        let (slow, other, free) = (holder(1, 3), holder(2, 3), holder(3, 0));
        for _ in 0..3 {
            assert_eq!(limits.admit(&slow), Ok(()));
        }
        let again_after = limits.admit(&slow).unwrap_err();
        assert!(again_after <= Duration::from_millis(334), "{again_after:?}");
        assert_eq!(limits.admit(&other), Ok(()));
        assert!((0..10_000).all(|_| limits.admit(&free).is_ok()));
    }
}
