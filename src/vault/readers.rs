//! Who reads the feed on this node: so many at once, and no key so many that
//! others find no place.
//!
//! A key may take a place as long as it has fewer than are left. So one key has half
//! of a node's places at most, the next half of what it left, and a key that reads
//! nothing yet is never turned away for the sake of one that reads too much.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::domain::key::KeyId;
use crate::telemetry::Running;

/// Readers at once on a node. Each holds a connection and some kilobytes.
const READERS_MAX: usize = 2048;

/// Why there is no place for a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// The key has as many as it may.
    #[error("the key has its share of the readers")]
    ForThisKey,
    /// All places are taken.
    #[error("too many read the feed here at once")]
    ForAnyone,
}

/// The readers of a node.
#[derive(Debug, Default)]
pub struct Readers {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_all: usize,
    by_key: HashMap<KeyId, usize>,
}

/// Someone who reads the feed, for as long as this lives.
pub struct ReaderPlace {
    readers: Arc<Readers>,
    key: KeyId,
    _counted: Running,
}

impl Readers {
    /// A place for a reader with that key.
    pub fn join(self: &Arc<Self>, key: KeyId) -> Result<ReaderPlace, NoPlace> {
        self.taken().take(key)?;
        Ok(ReaderPlace { readers: self.clone(), key, _counted: Running::feed_reader() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("nothing panics while it holds the readers")
    }
}

impl Taken {
    fn take(&mut self, key: KeyId) -> Result<(), NoPlace> {
        let left = READERS_MAX - self.by_all;
        if left == 0 {
            return Err(NoPlace::ForAnyone);
        }
        let of_key = self.by_key.get(&key).copied().unwrap_or_default();
        if of_key >= left {
            return Err(NoPlace::ForThisKey);
        }
        self.by_key.insert(key, of_key + 1);
        self.by_all += 1;
        Ok(())
    }

    fn give_back(&mut self, key: KeyId) {
        self.by_all -= 1;
        match self.by_key.entry(key) {
            Entry::Occupied(of_key) if *of_key.get() == 1 => drop(of_key.remove()),
            of_key => drop(of_key.and_modify(|of_key| *of_key -= 1)),
        }
    }
}

impl Drop for ReaderPlace {
    fn drop(&mut self) {
        self.readers.taken().give_back(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> KeyId {
        KeyId::from([number; 8])
    }

    /// So many places as that key gets.
    fn as_many_as_it_gets(readers: &Arc<Readers>, key: KeyId) -> Vec<ReaderPlace> {
        std::iter::from_fn(|| readers.join(key).ok()).collect()
    }

    #[test]
    fn a_key_takes_half_of_what_is_left_and_the_next_one_finds_a_place() {
        let readers = Arc::new(Readers::default());
        let greedy = as_many_as_it_gets(&readers, key(1));
        assert_eq!(greedy.len(), READERS_MAX / 2);
        assert_eq!(readers.join(key(1)).err(), Some(NoPlace::ForThisKey));
        let other = as_many_as_it_gets(&readers, key(2));
        assert_eq!(other.len(), READERS_MAX / 4);
        assert!(readers.join(key(3)).is_ok());
    }

    #[test]
    fn a_place_that_is_given_back_can_be_taken_again_and_nothing_is_kept_of_its_key() {
        let readers = Arc::new(Readers::default());
        let mut places = as_many_as_it_gets(&readers, key(1));
        places.pop();
        places.extend(readers.join(key(1)).ok());
        assert_eq!(places.len(), READERS_MAX / 2);
        drop(places);
        let taken = readers.taken();
        assert!(taken.by_key.is_empty() && taken.by_all == 0, "{taken:?}");
    }

    #[test]
    fn a_node_has_so_many_readers_and_no_more() {
        let readers = Arc::new(Readers::default());
        let all: Vec<_> = (0..=255).flat_map(|number| as_many_as_it_gets(&readers, key(number))).collect();
        assert_eq!(all.len(), READERS_MAX);
        assert_eq!(readers.join(key(1)).err(), Some(NoPlace::ForAnyone));
    }
}
