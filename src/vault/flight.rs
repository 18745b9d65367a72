//! Waiting for recordings that are on their way.
//!
//! However many wait on a node, one loop looks at the catalog for all of them:
//! when something changed there, on whichever node, and at the latest after
//! [`LOOK_AGAIN_AFTER`], because a wake-up may be lost. It also brings forward
//! what is waited for. Whoever waits may go away at any time; nothing that is
//! on its way ends with them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Vault;
use crate::domain::recording::{Recording, RecordingId};

/// How long a lost wake-up can delay whoever waits.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A busy catalog changes all the time: it is looked at no more often than this.
const LOOKS_APART: Duration = Duration::from_millis(25);
/// Whoever waits looks for themselves after so long: what is wanted may be another recording by then.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Recordings that are looked at with one statement.
const LOOKED_AT_ONCE: usize = 500;
/// Recordings that are brought forward at once: callbacks need connections, too.
const HURRIED_AT_ONCE: usize = 2;

/// Someone's patience with a question that is open, and what wakes them.
pub(super) struct Waiter {
    changes: watch::Receiver<u64>,
    until: Instant,
}

impl Waiter {
    pub(super) fn new(changes: watch::Receiver<u64>, until: Instant) -> Self {
        Self { changes, until }
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
        tokio::time::sleep_until(again.min(now + LOOKS_APART)).await;
        true
    }
}

/// The recordings that are waited for on this node.
#[derive(Default)]
pub(super) struct Flights {
    waited_for: Mutex<HashMap<RecordingId, watch::Sender<Recording>>>,
    someone_came: Notify,
}

/// A place among those who wait for a recording.
pub(super) struct Waiting {
    news: watch::Receiver<Recording>,
}

impl Flights {
    /// Joins those who wait for a recording, which was just seen to be like this.
    pub(super) fn join(&self, seen: &Recording) -> Waiting {
        let mut waited_for = self.waited_for();
        let flight = waited_for.entry(seen.id).or_insert_with(|| watch::Sender::new(seen.clone()));
        // One that had arrived before, and is on its way again.
        flight.send_if_modified(|known| {
            if !known.state.is_on_its_way() {
                known.clone_from(seen);
            }
            false
        });
        let news = flight.subscribe();
        drop(waited_for);
        self.someone_came.notify_one();
        Waiting { news }
    }

    /// What is waited for. Flights that everybody has left are over.
    fn all(&self) -> Vec<RecordingId> {
        let mut waited_for = self.waited_for();
        waited_for.retain(|_, flight| flight.receiver_count() > 0);
        waited_for.keys().copied().collect()
    }

    /// Passes on how a recording is now.
    fn tell(&self, recording: &Recording) {
        if let Some(flight) = self.waited_for().get(&recording.id) {
            flight.send_if_modified(|known| {
                let is_news = known.state != recording.state;
                known.clone_from(recording);
                is_news
            });
        }
    }

    fn waited_for(&self) -> MutexGuard<'_, HashMap<RecordingId, watch::Sender<Recording>>> {
        self.waited_for.lock().expect("nothing panics while it holds the flights")
    }
}

impl Waiting {
    /// Returns when there is a reason to look again, at the latest at `until`;
    /// false where that is over already.
    pub(super) async fn wait(&mut self, until: Instant) -> bool {
        let now = Instant::now();
        if now >= until {
            return false;
        }
        let again = until.min(now + ASK_AGAIN_AFTER);
        let over = async {
            // Other news, such as the begin of an attempt, is nobody's answer.
            let _ = self.news.wait_for(|known| !known.state.is_on_its_way()).await;
        };
        let _ = tokio::time::timeout_at(again, over).await;
        true
    }
}

impl Vault {
    /// Follows what is waited for, for as long as the service runs.
    pub async fn follow_flights(self: Arc<Self>) {
        let mut changes = self.catalog.changes();
        let mut seen: HashMap<RecordingId, Recording> = HashMap::new();
        loop {
            changes.mark_unchanged();
            let ids = self.flights.all();
            seen.retain(|id, _| self.flights.waited_for().contains_key(id));
            for some in ids.chunks(LOOKED_AT_ONCE) {
                match self.catalog.recordings(some).await {
                    Ok(recordings) => self.pass_on(recordings, &mut seen).await,
                    // Whoever waits learns it when they look for themselves.
                    Err(error) => tracing::debug!(%error, "what is waited for cannot be looked at"),
                }
            }
            let wakes = async {
                tokio::select! {
                    _ = changes.changed() => {}
                    () = self.flights.someone_came.notified() => {}
                    () = tokio::time::sleep(LOOK_AGAIN_AFTER) => {}
                }
            };
            match ids.is_empty() {
                true => self.flights.someone_came.notified().await,
                false => drop(tokio::join!(wakes, tokio::time::sleep(LOOKS_APART))),
            }
        }
    }

    async fn pass_on(&self, recordings: Vec<Recording>, seen: &mut HashMap<RecordingId, Recording>) {
        let Ok(now) = self.now() else { return };
        let mut to_hurry = Vec::new();
        for recording in recordings {
            self.flights.tell(&recording);
            let before = seen.get(&recording.id).and_then(|before| before.next_attempt_at);
            if may_be_hurried(&recording, before, now) {
                to_hurry.push(recording.clone());
            }
            seen.insert(recording.id, recording);
        }
        futures::stream::iter(&to_hurry).for_each_concurrent(HURRIED_AT_ONCE, |recording| self.hurry(recording)).await;
    }

    /// Brings the next attempt forward. Whoever waits goes on waiting if that fails.
    pub(super) async fn hurry(&self, recording: &Recording) {
        if let Err(error) = self.catalog.hurry(&recording.id, self.retry.base).await {
            tracing::warn!(recording = %recording.id, %error, "its next attempt was not brought forward");
        }
    }
}

/// Each attempt that was planned is brought forward once, and put first once it may begin.
fn may_be_hurried(recording: &Recording, before: Option<jiff::Timestamp>, now: jiff::Timestamp) -> bool {
    let next = recording.next_attempt_at;
    let may_begin = next.is_some_and(|next| next <= now && next != jiff::Timestamp::UNIX_EPOCH);
    next > before || may_begin
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::recording::State;
    use crate::domain::recording::tests::recording;

    #[tokio::test(start_paused = true)]
    async fn a_change_between_looking_and_waiting_is_not_lost() {
        let (sender, receiver) = watch::channel(0);
        let mut waiter = Waiter::new(receiver, Instant::now() + Duration::from_secs(30));
        waiter.look();
        sender.send_modify(|count| *count += 1);
        let before = Instant::now();
        assert!(waiter.wait().await);
        assert_eq!(before.elapsed(), LOOKS_APART);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let (_sender, receiver) = watch::channel(0);
        let before = Instant::now();
        let until = before + Duration::from_millis(2500);
        let mut waiter = Waiter::new(receiver, until);
        while waiter.wait().await {
            waiter.look();
        }
        let mut waiting = Flights::default().join(&recording(1, State::Fetching, 1));
        assert!(!waiting.wait(until).await);
        assert_eq!(before.elapsed(), Duration::from_millis(2500));
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_are_told_when_it_arrives_and_not_before() {
        let flights = Flights::default();
        let fetching = recording(1, State::Fetching, 1);
        let until = Instant::now() + Duration::from_secs(3);
        let mut waiting: Vec<Waiting> = (0..3).map(|_| flights.join(&fetching)).collect();
        flights.tell(&Recording { state: State::Pending, ..fetching.clone() });
        let before = Instant::now();
        let told = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            flights.tell(&Recording { state: State::Stored, ..fetching.clone() });
        };
        let waits = futures::future::join_all(waiting.iter_mut().map(|waiting| waiting.wait(until)));
        let (woken, ()) = tokio::join!(waits, told);
        assert_eq!((woken, before.elapsed()), (vec![true; 3], Duration::from_secs(1)));
        // One that comes later, when it is on its way again, waits again.
        let mut late = flights.join(&fetching);
        let timed_out = tokio::time::timeout(Duration::from_secs(1), late.wait(until)).await;
        assert!(timed_out.is_err());
        drop((waiting, late));
        assert_eq!(flights.all(), []);
    }
}
