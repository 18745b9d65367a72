//! What this node answered lately, for the time in which the catalog is away.
//!
//! While the catalog answers, it is asked each time: what it says is the truth.
//! While it is away, what was played from here before is played on, until the
//! link that was given then would end. Nothing else is ever answered from here,
//! and nothing of which the feed told news since it was looked up.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Vault;
use super::deliver::Wanted;
use super::follow::{FellBehind, Found};
use crate::catalog::{Cursor, News};
use crate::domain::recording::{Recording, RecordingId};
use crate::domain::sid::{AccountSid, CallSid};

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
    fn keep(&self, wanted: Wanted, visible: Option<&[AccountSid]>, recording: &Recording, link_ends_at: Timestamp) {
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

    /// Forgets what there is news of; everything, where some of the news was missed.
    fn heed(&self, news: &Result<Vec<Arc<News>>, FellBehind>) {
        let Ok(news) = news else { return *self.generations() = Default::default() };
        let recordings: HashSet<RecordingId> =
            news.iter().filter(|news| !is_as_it_was(news)).filter_map(|news| news.id()).collect();
        let mut of_calls: HashMap<CallSid, Vec<Option<RecordingId>>> = HashMap::new();
        for news in news {
            news.calls.iter().for_each(|call| of_calls.entry(*call).or_default().push(news.id()));
        }
        let is_stale = |(wanted, _): &Question, hit: &Hit| {
            let id = Some(hit.recording.id);
            let of_call = if let Wanted::Call(call) = wanted { of_calls.get(call) } else { None };
            recordings.contains(&hit.recording.id) || of_call.is_some_and(|told| told.iter().any(|told| *told != id))
        };
        for generation in self.generations().iter_mut() {
            generation.retain(|question, hit| !is_stale(question, hit));
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

/// Whether a recording that was stored before such news is stored as it was. What
/// changes its object is told by other news first.
fn is_as_it_was(news: &News) -> bool {
    matches!(news.kind.as_str(), "recording.accepted" | "recording.stored" | "recording.held" | "recording.released")
}

fn question(wanted: Wanted, visible: Option<&[AccountSid]>) -> Question {
    (wanted, visible.map(<[AccountSid]>::to_vec))
}

impl Vault {
    /// Keeps an answer that was looked up after the feed had come to `seen`,
    /// unless there is news of it since.
    pub(super) fn remember(
        &self,
        wanted: Wanted,
        visible: Option<&[AccountSid]>,
        recording: &Recording,
        until: Timestamp,
        seen: Option<Cursor>,
    ) {
        let Some(seen) = seen else { return };
        self.hits.keep(wanted, visible, recording, until);
        let is_of_it = |news: &News| match (news.id() == Some(recording.id), wanted) {
            (true, _) => !is_as_it_was(news),
            (false, Wanted::Call(call)) => news.calls.contains(&call),
            (false, _) => false,
        };
        // Kept first: news that comes from now on finds it.
        if !matches!(self.follower.look_for(seen, is_of_it), Found::NothingUpTo(_)) {
            self.hits.forget(wanted, visible);
        }
    }

    /// Forgets answers of which the feed tells news, for as long as the service runs.
    pub async fn heed_news_of_hits(self: Arc<Self>) {
        let mut feed = self.follower.subscribe();
        loop {
            let news = feed.next().await;
            self.hits.heed(&news);
        }
    }
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
    fn what_there_is_news_of_is_forgotten() {
        let hits = Hits::default();
        let (stored, other) = (recording(1, State::Stored, 5), recording(2, State::Stored, 5));
        let call: CallSid = format!("CA{}", "c".repeat(32)).parse().expect("a SID");
        let of = |recording: &Recording| Wanted::Recording(recording.id.recording);
        let known = |wanted| hits.known(wanted, None, at(99), true).is_some();
        let news = |recording: Option<&Recording>, calls: Vec<CallSid>| {
            Ok(vec![Arc::new(News {
                cursor: "0000000000001-000000000000001".parse().expect("a cursor"),
                kind: "recording.erased".to_owned(),
                at: at(1),
                account: stored.id.account,
                recording: recording.map(|recording| recording.id.recording),
                calls,
            })])
        };
        hits.keep(of(&stored), None, &stored, at(100));
        hits.keep(Wanted::Call(call), None, &stored, at(100));
        hits.keep(of(&other), None, &other, at(100));
        hits.heed(&news(Some(&other), vec![call]));
        assert!(known(of(&stored)));
        assert!(!known(Wanted::Call(call)), "another recording of that call");
        assert!(!known(of(&other)));
        hits.keep(Wanted::Call(call), None, &stored, at(100));
        hits.heed(&news(Some(&stored), vec![]));
        assert!(!known(of(&stored)) && !known(Wanted::Call(call)));
        hits.keep(of(&stored), None, &stored, at(100));
        hits.heed(&Err(FellBehind));
        assert!(!known(of(&stored)), "some news was missed");
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
