//! What this node answered lately: hits are answered from here.
//!
//! An answer is the catalog's, and carries how far the feed was followed before it
//! was asked. News of its recording, or, where it answers for a call, of any
//! recording of that call, has it forgotten; so does a minute. It is given only
//! while this node knows all that was committed up to a moment ago, and has heeded
//! it: a node that was frozen, or that follows too slowly, asks the catalog.
//!
//! While the catalog is away, what was played from here before is played on, until
//! the link that was given last would end. What is not stored is never answered
//! from here.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Vault;
use super::deliver::{SaidBy, Wanted};
use super::follow::{FellBehind, Found};
use crate::catalog::{CatalogError, Cursor, News, OTHER_ANSWER};
use crate::domain::recording::{Recording, RecordingId, State};
use crate::domain::sid::{AccountSid, CallSid};
use crate::telemetry;

/// Things wanted of one generation; two are kept. One takes about a kilobyte.
const GENERATION_MAX: usize = 16_384;
/// Answers to one thing that is wanted, for keys that see different accounts.
const ANSWERS_MAX: usize = 8;

/// The life of an answer while the catalog is there.
const LIFE: Duration = Duration::from_secs(60);

/// A catalog that has told this node nothing for so long, though it is asked twice a
/// second, is away.
const AWAY_AFTER: Duration = Duration::from_secs(3);

/// Why an answer may be given from here.
#[derive(Debug, Clone, Copy)]
enum Because {
    /// This node knows all that was committed up to a moment ago: the feed up to there.
    UpToDate(Cursor),
    /// The catalog is away.
    Away,
}

/// A stored recording that was the answer.
#[derive(Debug, Clone)]
struct Hit {
    /// The recording.
    recording: Recording,
    /// When the link ends that was given last.
    link_ends_at: Timestamp,
    kept_at: Instant,
}

/// The answers to what is wanted, each for those who see the same accounts.
type Answers = Vec<(Option<Box<[AccountSid]>>, Hit)>;
type Generation = HashMap<Wanted, Answers>;

#[derive(Debug, Default)]
struct Kept {
    /// Those that were asked for lately, newest first.
    generations: [Generation; 2],
    /// All news up to here was heeded.
    heeded: Option<Cursor>,
}

impl Kept {
    fn find(&self, wanted: Wanted, visible: Option<&[AccountSid]>) -> Option<&Hit> {
        self.generations.iter().find_map(|generation| {
            let answers = generation.get(&wanted)?;
            answers.iter().find(|(for_whom, _)| for_whom.as_deref() == visible).map(|(_, hit)| hit)
        })
    }

    fn find_mut(&mut self, wanted: Wanted, visible: Option<&[AccountSid]>) -> Option<&mut Hit> {
        self.generations.iter_mut().find_map(|generation| {
            let answers = generation.get_mut(&wanted)?;
            answers.iter_mut().find(|(for_whom, _)| for_whom.as_deref() == visible).map(|(_, hit)| hit)
        })
    }

    fn retain(&mut self, mut stays: impl FnMut(&Wanted, &Hit) -> bool) {
        for generation in &mut self.generations {
            generation.retain(|wanted, answers| {
                answers.retain(|(_, hit)| stays(wanted, hit));
                !answers.is_empty()
            });
        }
    }
}

/// The answers that are kept: those that were asked for lately.
#[derive(Debug, Default)]
pub(super) struct Hits(Mutex<Kept>);

impl Hits {
    /// Keeps an answer of the catalog's, and the end of the link that was given.
    fn keep(&self, wanted: Wanted, visible: Option<&[AccountSid]>, recording: &Recording, link_ends_at: Timestamp) {
        let hit = Hit { recording: recording.clone(), link_ends_at, kept_at: Instant::now() };
        self.forget(wanted, visible);
        let mut kept = self.kept();
        if kept.generations[0].len() >= GENERATION_MAX {
            kept.generations.swap(0, 1);
            kept.generations[0].clear();
        }
        let answers = kept.generations[0].entry(wanted).or_default();
        if answers.len() >= ANSWERS_MAX {
            answers.remove(0);
        }
        answers.push((visible.map(Box::from), hit));
    }

    /// Forgets an answer that is none any more.
    pub(super) fn forget(&self, wanted: Wanted, visible: Option<&[AccountSid]>) {
        for generation in &mut self.kept().generations {
            let Some(answers) = generation.get_mut(&wanted) else { continue };
            answers.retain(|(for_whom, _)| for_whom.as_deref() != visible);
            if answers.is_empty() {
                generation.remove(&wanted);
            }
        }
    }

    /// Forgets every answer to what is wanted: it was changed here, and whoever
    /// changed it is not to wait for the news.
    pub(super) fn forget_all_of(&self, wanted: Wanted) {
        for generation in &mut self.kept().generations {
            generation.remove(&wanted);
        }
    }

    /// Forgets a recording, whatever it answers for: it was changed here.
    pub(super) fn forget_recording(&self, id: &RecordingId) {
        self.kept().retain(|_, hit| hit.recording.id != *id);
    }

    /// Forgets what there is news of; everything, where some of the news was missed.
    /// The news came up to `heeded`.
    fn heed(&self, news: &Result<Vec<Arc<News>>, FellBehind>, heeded: Option<Cursor>) {
        let mut kept = self.kept();
        match news {
            Ok(news) => kept.heed(news),
            Err(FellBehind) => kept.generations = Default::default(),
        }
        kept.heeded = heeded;
    }

    /// The answer that was given before, if it may be given again.
    fn known(&self, wanted: Wanted, visible: Option<&[AccountSid]>, now: Timestamp, because: Because) -> Option<Hit> {
        let kept = self.kept();
        let hit = kept.find(wanted, visible)?;
        let is_young = hit.kept_at.elapsed() < LIFE;
        let is_good = match because {
            // What is known of the feed is told to this memory a moment later.
            Because::UpToDate(reached) => is_young && kept.heeded == Some(reached),
            Because::Away => now < hit.link_ends_at,
        };
        is_good.then(|| hit.clone())
    }

    /// A link to it was given that ends later.
    pub(super) fn note_link(&self, wanted: Wanted, visible: Option<&[AccountSid]>, ends_at: Timestamp) {
        if let Some(hit) = self.kept().find_mut(wanted, visible) {
            hit.link_ends_at = hit.link_ends_at.max(ends_at);
        }
    }

    /// It was written down that somebody asked for it.
    pub(super) fn note_asked(&self, wanted: Wanted, visible: Option<&[AccountSid]>, at: Timestamp) {
        if let Some(hit) = self.kept().find_mut(wanted, visible) {
            hit.recording.last_asked_at = Some(at);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nothing panics while it holds the hits")
    }
}

impl Kept {
    fn heed(&mut self, news: &[Arc<News>]) {
        let recordings: HashSet<RecordingId> =
            news.iter().filter(|news| !is_as_it_was(news)).filter_map(|news| news.id()).collect();
        // None: whichever recording answers for it.
        let mut of_calls: HashMap<CallSid, Vec<Option<RecordingId>>> = HashMap::new();
        for news in news {
            let told = news.id().filter(|_| news.kind != OTHER_ANSWER);
            news.calls.iter().for_each(|call| of_calls.entry(*call).or_default().push(told));
        }
        self.retain(|wanted, hit| {
            let id = Some(hit.recording.id);
            let of_call = if let Wanted::Call(call) = wanted { of_calls.get(call) } else { None };
            !recordings.contains(&hit.recording.id) && of_call.is_none_or(|told| told.iter().all(|told| *told == id))
        });
    }
}

/// Whether a recording that was stored before such news is stored as it was. What
/// changes its object is told by other news first.
fn is_as_it_was(news: &News) -> bool {
    const SAME: [&str; 5] =
        ["recording.accepted", "recording.stored", "recording.held", "recording.released", OTHER_ANSWER];
    SAME.contains(&news.kind.as_str())
}

impl Vault {
    /// The recording that is wanted, and who says so: the memory of this node, while
    /// it knows all that is new, and while the catalog is away.
    pub(super) async fn find_or_recall(
        &self,
        wanted: Wanted,
        visible: Option<&[AccountSid]>,
    ) -> Result<Option<(Recording, SaidBy)>, CatalogError> {
        let recall = |because| {
            let Hit { recording, link_ends_at, .. } = self.hits.known(wanted, visible, self.now().ok()?, because)?;
            telemetry::memory_hit();
            let said_by = match because {
                Because::UpToDate(_) => SaidBy::Memory { link_ends_at },
                Because::Away => SaidBy::Past,
            };
            Some((recording, said_by))
        };
        let because = match self.follower.fresh_cursor() {
            Some(reached) => Some(Because::UpToDate(reached)),
            None => self.health.is_in_trouble("catalog_unreachable").then_some(Because::Away),
        };
        if let Some(known) = because.and_then(recall) {
            return Ok(Some(known));
        }
        match self.look_up(wanted, visible).await {
            Ok(Some(recording)) if recording.state == State::Stored => Ok(Some((recording, SaidBy::Catalog))),
            Ok(found) => {
                self.hits.forget(wanted, visible);
                Ok(found.map(|recording| (recording, SaidBy::Catalog)))
            }
            Err(error @ CatalogError::Unavailable(_)) => recall(Because::Away).map(Some).ok_or(error),
            // Before it is known to be away, it is what answers nobody.
            Err(error @ CatalogError::Busy) => {
                let because = match self.follower.fresh_cursor() {
                    Some(reached) => Some(Because::UpToDate(reached)),
                    None => (!self.follower.is_up_to_date_within(AWAY_AFTER)).then_some(Because::Away),
                };
                because.and_then(recall).map(Some).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

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
            (true, Wanted::Call(_)) => !is_as_it_was(news) || news.kind == OTHER_ANSWER,
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
        // What was kept before this was told of nothing.
        self.hits.heed(&Err(FellBehind), feed.reached());
        loop {
            let news = feed.next().await;
            self.hits.heed(&news, feed.reached());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::recording::tests::recording;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_lives_a_minute_while_the_catalog_is_there() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let wanted = Wanted::Recording(stored.id.recording);
        hits.keep(wanted, None, &stored, at(100));
        let reached: Cursor = "0000000000001-000000000000001".parse().expect("a cursor");
        let up_to_date = Because::UpToDate(reached);
        assert!(hits.known(wanted, None, at(99), up_to_date).is_none(), "its news was not heeded");
        hits.heed(&Ok(Vec::new()), Some(reached));
        tokio::time::advance(LIFE - Duration::from_secs(1)).await;
        assert!(hits.known(wanted, None, at(99), up_to_date).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(hits.known(wanted, None, at(99), up_to_date).is_none());
        assert!(hits.known(wanted, None, at(99), Because::Away).is_some());
    }

    #[test]
    fn an_answer_is_known_until_its_link_ends_to_whoever_may_see_the_same() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let wanted = Wanted::Recording(stored.id.recording);
        hits.keep(wanted, None, &stored, at(100));
        assert_eq!(hits.known(wanted, None, at(99), Because::Away).map(|hit| hit.recording).as_ref(), Some(&stored));
        assert!(hits.known(wanted, None, at(100), Because::Away).is_none());
        assert!(hits.known(wanted, Some(&[stored.id.account]), at(99), Because::Away).is_none());
        hits.forget(wanted, None);
        assert!(hits.known(wanted, None, at(99), Because::Away).is_none());
    }

    #[test]
    fn what_there_is_news_of_is_forgotten() {
        let hits = Hits::default();
        let (stored, other) = (recording(1, State::Stored, 5), recording(2, State::Stored, 5));
        let call: CallSid = format!("CA{}", "c".repeat(32)).parse().expect("a SID");
        let of = |recording: &Recording| Wanted::Recording(recording.id.recording);
        let known = |wanted| hits.known(wanted, None, at(99), Because::Away).is_some();
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
        hits.heed(&news(Some(&other), vec![call]), None);
        assert!(known(of(&stored)));
        assert!(!known(Wanted::Call(call)), "another recording of that call");
        assert!(!known(of(&other)));
        hits.keep(Wanted::Call(call), None, &stored, at(100));
        hits.heed(&news(Some(&stored), vec![]), None);
        assert!(!known(of(&stored)) && !known(Wanted::Call(call)));
        hits.keep(of(&stored), None, &stored, at(100));
        hits.heed(&Err(FellBehind), None);
        assert!(!known(of(&stored)), "some news was missed");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_given_only_by_whoever_has_heeded_all_that_is_known() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let wanted = Wanted::Recording(stored.id.recording);
        let cursor = |seq: i64| -> Cursor { format!("0000000000001-{seq:015}").parse().expect("a cursor") };
        hits.keep(wanted, None, &stored, at(100));
        let known = |reached| hits.known(wanted, None, at(200), Because::UpToDate(cursor(reached))).is_some();
        assert!(!known(1), "nothing was heeded yet");
        hits.heed(&Ok(vec![]), Some(cursor(1)));
        assert!(known(1), "whenever the link ends that was given before: there is a new one");
        assert!(!known(2), "there is news that was not heeded yet");
        tokio::time::advance(LIFE).await;
        assert!(!known(1), "it is a minute old");
    }

    #[test]
    fn another_answer_for_a_call_has_it_forgotten_whoever_it_is() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let call: CallSid = format!("CA{}", "c".repeat(32)).parse().expect("a SID");
        let (of_call, of_it) = (Wanted::Call(call), Wanted::Recording(stored.id.recording));
        let known = |wanted| hits.known(wanted, None, at(99), Because::Away).is_some();
        let news = |kind: &str| {
            let cursor = "0000000000001-000000000000001".parse().expect("a cursor");
            let (account, recording) = (stored.id.account, Some(stored.id.recording));
            Ok(vec![Arc::new(News { cursor, kind: kind.to_owned(), at: at(1), account, recording, calls: vec![call] })])
        };
        hits.keep(of_call, None, &stored, at(100));
        hits.keep(of_it, None, &stored, at(100));
        hits.heed(&news("recording.held"), None);
        assert!(known(of_call) && known(of_it), "it is stored as it was");
        hits.heed(&news(OTHER_ANSWER), None);
        assert!(!known(of_call) && known(of_it));
    }

    #[test]
    fn what_is_changed_here_is_forgotten_at_once_by_whoever_sees_it() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let (exact, named) = (Wanted::Exact(stored.id), Wanted::Recording(stored.id.recording));
        let accounts = [stored.id.account];
        for visible in [None, Some(&accounts[..])] {
            hits.keep(exact, visible, &stored, at(100));
            hits.keep(named, visible, &stored, at(100));
        }
        let known = |wanted, visible| hits.known(wanted, visible, at(99), Because::Away).is_some();
        hits.forget(named, None);
        assert!(!known(named, None) && known(named, Some(&accounts)));
        hits.forget_all_of(named);
        assert!(!known(named, Some(&accounts)) && known(exact, None));
        hits.forget_recording(&stored.id);
        assert!(!known(exact, None) && !known(exact, Some(&accounts)));
    }

    #[test]
    fn what_is_not_asked_for_makes_room() {
        let hits = Hits::default();
        let stored = recording(1, State::Stored, 5);
        let wanted = |number: usize| Wanted::Recording(format!("RE{number:032x}").parse().expect("a SID"));
        for number in 0..3 * GENERATION_MAX {
            hits.keep(wanted(number), None, &stored, at(100));
        }
        let kept = hits.kept();
        assert!(kept.generations.iter().map(HashMap::len).sum::<usize>() <= 2 * GENERATION_MAX);
        drop(kept);
        assert!(hits.known(wanted(3 * GENERATION_MAX - 1), None, at(0), Because::Away).is_some());
        assert!(hits.known(wanted(0), None, at(0), Because::Away).is_none());
    }
}
