//! What this node answered lately, for the time in which the catalog is away.
//!
//! While the catalog answers, it is asked each time: what it says is the truth.
//! While it is away, what was played from here before is played on, until the
//! link that was given then would end. Nothing else is ever answered from here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::deliver::Wanted;
use crate::domain::recording::Recording;
use crate::domain::sid::AccountSid;

/// Answers of one generation; two are kept. One takes about a kilobyte.
const GENERATION_MAX: usize = 16_384;

/// The life of an answer while the catalog is there, though too busy to be asked.
const LIFE: Duration = Duration::from_secs(60);

/// Who asked for what.
type Question = (Wanted, Option<Vec<AccountSid>>);

/// A stored recording that was the answer.
#[derive(Debug, Clone)]
struct Hit {
    recording: Recording,
    kept_at: Instant,
    link_ends_at: Timestamp,
}

/// The answers that are kept: those that were asked for lately.
#[derive(Debug, Default)]
pub(super) struct Hits {
    generations: Mutex<[HashMap<Question, Hit>; 2]>,
}

impl Hits {
    /// Keeps an answer of the catalog's, and the end of the link that was given.
    pub(super) fn keep(
        &self,
        wanted: Wanted,
        visible: Option<&[AccountSid]>,
        recording: &Recording,
        link_ends_at: Timestamp,
    ) {
        let mut generations = self.generations();
        if generations[0].len() >= GENERATION_MAX {
            generations.swap(0, 1);
            generations[0].clear();
        }
        let hit = Hit { recording: recording.clone(), kept_at: Instant::now(), link_ends_at };
        generations[0].insert(question(wanted, visible), hit);
    }

    /// Forgets an answer that is none any more.
    pub(super) fn forget(&self, wanted: Wanted, visible: Option<&[AccountSid]>) {
        let question = question(wanted, visible);
        for generation in self.generations().iter_mut() {
            generation.remove(&question);
        }
    }

    /// The answer that was given before, if its link is still good. Unless the
    /// catalog is away, it may be a minute old.
    pub(super) fn known(
        &self,
        wanted: Wanted,
        visible: Option<&[AccountSid]>,
        now: Timestamp,
        is_away: bool,
    ) -> Option<Recording> {
        let question = question(wanted, visible);
        let generations = self.generations();
        let hit = generations.iter().find_map(|generation| generation.get(&question))?;
        let is_good = now < hit.link_ends_at && (is_away || hit.kept_at.elapsed() < LIFE);
        is_good.then(|| hit.recording.clone())
    }

    fn generations(&self) -> MutexGuard<'_, [HashMap<Question, Hit>; 2]> {
        self.generations.lock().expect("nothing panics while it holds the hits")
    }
}

fn question(wanted: Wanted, visible: Option<&[AccountSid]>) -> Question {
    (wanted, visible.map(<[AccountSid]>::to_vec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::recording::State;
    use crate::domain::recording::tests::recording;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_lives_a_minute_where_the_catalog_is_only_busy() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let wanted = Wanted::Recording(stored.id.recording);
        hits.keep(wanted, None, &stored, at(100));
        tokio::time::advance(LIFE - Duration::from_secs(1)).await;
        assert!(hits.known(wanted, None, at(99), false).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(hits.known(wanted, None, at(99), false).is_none());
        assert!(hits.known(wanted, None, at(99), true).is_some());
    }

    #[test]
    fn an_answer_is_known_until_its_link_ends_to_whoever_may_see_the_same() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let wanted = Wanted::Recording(stored.id.recording);
        hits.keep(wanted, None, &stored, at(100));
        assert_eq!(hits.known(wanted, None, at(99), true).as_ref(), Some(&stored));
        assert_eq!(hits.known(wanted, None, at(100), true), None);
        assert_eq!(hits.known(wanted, Some(&[stored.id.account]), at(99), true), None);
        hits.forget(wanted, None);
        assert_eq!(hits.known(wanted, None, at(99), true), None);
    }

    #[test]
    fn what_is_not_asked_for_makes_room() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let wanted = |number: usize| Wanted::Recording(format!("RE{number:032x}").parse().expect("a SID"));
        for number in 0..3 * GENERATION_MAX {
            hits.keep(wanted(number), None, &stored, at(100));
        }
        let generations = hits.generations();
        assert!(generations.iter().map(HashMap::len).sum::<usize>() <= 2 * GENERATION_MAX);
        drop(generations);
        assert!(hits.known(wanted(3 * GENERATION_MAX - 1), None, at(0), true).is_some());
        assert!(hits.known(wanted(0), None, at(0), true).is_none());
    }
}
