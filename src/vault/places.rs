//! Places on this node for what lasts: so many at once, and no key so many that
//! others find none.
//!
//! A key may take another place as long as it has fewer than so many for each that is
//! left. So one key alone never has all of a node's places, the next one has as large
//! a part of what it left, and a key that has none yet is hardly ever turned away for
//! the sake of one that takes too many.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::domain::key::KeyId;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// The key has as many as it may.
    #[error("the key has its share of the places")]
    ForThisKey,
    /// All places are taken.
    #[error("all places are taken")]
    ForAnyone,
}

/// The places of a node for one kind of thing.
#[derive(Debug)]
pub struct Places {
    places_max: usize,
    for_each_left: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_all: usize,
    by_key: HashMap<KeyId, usize>,
}

/// A place, for as long as this lives.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    key: KeyId,
}

impl Places {
    /// So many places, of which a key takes at most `for_each_left` for each that is left.
    pub fn new(places_max: usize, for_each_left: usize) -> Self {
        Self { places_max, for_each_left, taken: Mutex::default() }
    }

    /// A place for something of that key.
    pub fn take(self: &Arc<Self>, key: KeyId) -> Result<Place, NoPlace> {
        let mut taken = self.taken();
        let left = self.places_max - taken.by_all;
        if left == 0 {
            return Err(NoPlace::ForAnyone);
        }
        let of_key = taken.by_key.get(&key).copied().unwrap_or_default();
        if of_key >= left * self.for_each_left {
            return Err(NoPlace::ForThisKey);
        }
        taken.by_key.insert(key, of_key + 1);
        taken.by_all += 1;
        Ok(Place { places: self.clone(), key })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("nothing panics while it holds the places")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.by_all -= 1;
        match taken.by_key.entry(self.key) {
            Entry::Occupied(of_key) if *of_key.get() == 1 => drop(of_key.remove()),
            of_key => drop(of_key.and_modify(|of_key| *of_key -= 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 256;

    fn key(number: u8) -> KeyId {
        KeyId::from([number; 8])
    }

    /// So many places as that key gets.
    fn as_many_as_it_gets(places: &Arc<Places>, key: KeyId) -> Vec<Place> {
        std::iter::from_fn(|| places.take(key).ok()).collect()
    }

    #[test]
    fn a_key_takes_its_part_of_what_is_left_and_the_next_one_finds_a_place() {
        for (for_each_left, first, second) in [(1, 128, 64), (3, 192, 48)] {
            let places = Arc::new(Places::new(PLACES, for_each_left));
            let greedy = as_many_as_it_gets(&places, key(1));
            assert_eq!(greedy.len(), first);
            assert_eq!(places.take(key(1)).err(), Some(NoPlace::ForThisKey));
            let other = as_many_as_it_gets(&places, key(2));
            assert_eq!(other.len(), second);
            assert!(places.take(key(3)).is_ok());
        }
    }

    #[test]
    fn a_place_that_is_given_back_can_be_taken_again_and_nothing_is_kept_of_its_key() {
        let places = Arc::new(Places::new(PLACES, 1));
        let mut mine = as_many_as_it_gets(&places, key(1));
        mine.pop();
        mine.extend(places.take(key(1)).ok());
        assert_eq!(mine.len(), PLACES / 2);
        drop(mine);
        let taken = places.taken();
        assert!(taken.by_key.is_empty() && taken.by_all == 0, "{taken:?}");
    }

    #[test]
    fn a_node_has_so_many_places_and_no_more() {
        let places = Arc::new(Places::new(PLACES, 1));
        let all: Vec<_> = (0..=255).flat_map(|number| as_many_as_it_gets(&places, key(number))).collect();
        assert_eq!(all.len(), PLACES);
        assert_eq!(places.take(key(1)).err(), Some(NoPlace::ForAnyone));
    }
}
