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
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Vault;
use crate::domain::recording::{Recording, RecordingId};

/// How long a lost wake-up can delay whoever waits.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A busy catalog changes all the time: it is looked at no more often than this.
const LOOKS_APART: Duration = Duration::from_millis(25);
/// Whoever waits for a question of another node looks for its end no more often than this.
const QUESTIONS_APART: Duration = Duration::from_millis(500);
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
    over: CancellationToken,
}

impl Waiter {
    /// To be called before looking: what changes from now on will wake.
    pub(super) fn look(&mut self) {
        self.changes.mark_unchanged();
    }

    /// Waits for a reason to look again; false where the patience is over.
    pub(super) async fn wait(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until || self.over.is_cancelled() {
            return false;
        }
        let again = self.until.min(now + LOOK_AGAIN_AFTER);
        let reason = async {
            // A catalog that is gone wakes nobody: the time does.
            let _ = tokio::time::timeout_at(again, self.changes.changed()).await;
            tokio::time::sleep_until(again.min(now + QUESTIONS_APART)).await;
        };
        tokio::select! {
            () = reason => true,
            () = self.over.cancelled() => false,
        }
    }
}

/// The recordings that are waited for on this node.
#[derive(Default)]
pub(super) struct Flights {
    waited_for: Mutex<HashMap<RecordingId, watch::Sender<Recording>>>,
    someone_came: Notify,
    /// The node stops: whoever waits still is answered now, or not at all.
    over: CancellationToken,
}

/// A place among those who wait for a recording.
pub(super) struct Waiting {
    news: watch::Receiver<Recording>,
    over: CancellationToken,
}

impl Flights {
    /// Someone who waits for a question until then, and for what these changes tell.
    pub(super) fn waiter(&self, changes: watch::Receiver<u64>, until: Instant) -> Waiter {
        Waiter { changes, until, over: self.over.clone() }
    }

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
        Waiting { news, over: self.over.clone() }
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
        if now >= until || self.over.is_cancelled() {
            return false;
        }
        let again = until.min(now + ASK_AGAIN_AFTER);
        let arrived = async {
            // Other news, such as the begin of an attempt, is nobody's answer.
            let _ = self.news.wait_for(|known| !known.state.is_on_its_way()).await;
        };
        tokio::select! {
            _ = tokio::time::timeout_at(again, arrived) => true,
            () = self.over.cancelled() => false,
        }
    }
}

/// Attempts that this node has brought forward lately; more are forgotten.
const HURRIED_MAX: usize = 10_000;

/// Which attempts were brought forward, and when.
#[derive(Default)]
pub(super) struct Hurried(Mutex<HashMap<RecordingId, (Timestamp, Instant)>>);

impl Hurried {
    /// Whether the next attempt is to be brought forward: once when it was
    /// planned, and again once it may begin at the latest.
    fn is_due(&self, recording: &Recording, now: Timestamp, base: Duration) -> bool {
        let Some(next) = recording.next_attempt_at.filter(|next| *next != Timestamp::UNIX_EPOCH) else { return false };
        let mut hurried = self.0.lock().expect("nothing panics while it holds this");
        if let Some((planned, at)) = hurried.get(&recording.id)
            && *planned == next
            && (next > now || at.elapsed() < base)
        {
            return false;
        }
        if hurried.len() >= HURRIED_MAX {
            hurried.clear();
        }
        hurried.insert(recording.id, (next, Instant::now()));
        true
    }
}

impl Vault {
    /// Follows what is waited for, for as long as the service runs.
    pub async fn follow_flights(self: Arc<Self>) {
        let mut changes = self.catalog.changes();
        loop {
            changes.mark_unchanged();
            let ids = self.flights.all();
            for some in ids.chunks(LOOKED_AT_ONCE) {
                match self.catalog.recordings(some).await {
                    Ok(recordings) => self.pass_on(&recordings).await,
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

    /// Ends everybody's patience: to be called when the node stops, while their
    /// connections are still there to be answered on.
    pub fn end_waits(&self) {
        self.flights.over.cancel();
    }

    async fn pass_on(&self, recordings: &[Recording]) {
        recordings.iter().for_each(|recording| self.flights.tell(recording));
        let Ok(now) = self.now() else { return };
        futures::stream::iter(recordings)
            .for_each_concurrent(HURRIED_AT_ONCE, |recording| self.hurry_once(recording, now))
            .await;
    }

    /// Brings the next attempt forward, if this node has not just done so.
    /// Whoever waits goes on waiting if that fails.
    pub(super) async fn hurry_once(&self, recording: &Recording, now: Timestamp) {
        if self.hurried.is_due(recording, now, self.retry.base)
            && let Err(error) = self.catalog.hurry(&recording.id, self.retry.base).await
        {
            let call = recording.details.call_sid.map(tracing::field::display);
            tracing::warn!(recording = %recording.id, call, %error, "its next attempt was not brought forward");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::recording::State;
    use crate::domain::recording::tests::recording;

    #[tokio::test(start_paused = true)]
    async fn a_change_between_looking_and_waiting_is_not_lost() {
        let (sender, receiver) = watch::channel(0);
        let mut waiter = Flights::default().waiter(receiver, Instant::now() + Duration::from_secs(30));
        waiter.look();
        sender.send_modify(|count| *count += 1);
        let before = Instant::now();
        assert!(waiter.wait().await);
        assert_eq!(before.elapsed(), QUESTIONS_APART);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let (_sender, receiver) = watch::channel(0);
        let before = Instant::now();
        let until = before + Duration::from_millis(2500);
        let mut waiter = Flights::default().waiter(receiver, until);
        while waiter.wait().await {
            waiter.look();
        }
        let mut waiting = Flights::default().join(&recording(1, State::Fetching, 1));
        assert!(!waiting.wait(until).await);
        assert_eq!(before.elapsed(), Duration::from_millis(2500));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_node_ends_everybodys_patience() {
        let (_sender, receiver) = watch::channel(0);
        let (flights, before) = (Flights::default(), Instant::now());
        let until = before + Duration::from_secs(30);
        let (mut waiter, mut late) = (flights.waiter(receiver.clone(), until), flights.waiter(receiver, until));
        let mut waiting = flights.join(&recording(1, State::Fetching, 1));
        let stops = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            flights.over.cancel();
        };
        let asks = async { while waiter.wait().await {} };
        let (goes_on, (), ()) = tokio::join!(waiting.wait(until), asks, stops);
        assert!(!goes_on && !waiting.wait(until).await && !late.wait().await);
        assert_eq!(before.elapsed(), Duration::from_millis(700));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_is_brought_forward_when_planned_and_when_it_may_begin() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let planned = |next| Recording { next_attempt_at: next, ..recording(1, State::Pending, 1) };
        let (hurried, base) = (Hurried::default(), Duration::from_secs(2));
        assert!(hurried.is_due(&planned(Some(at(100))), at(50), base));
        assert!(!hurried.is_due(&planned(Some(at(100))), at(99), base), "once");
        assert!(hurried.is_due(&planned(Some(at(90))), at(50), base), "another plan");
        assert!(!hurried.is_due(&planned(Some(at(90))), at(91), base), "it has just been tried");
        tokio::time::advance(base).await;
        assert!(hurried.is_due(&planned(Some(at(90))), at(93), base), "it may begin by now");
        assert!(!hurried.is_due(&planned(Some(Timestamp::UNIX_EPOCH)), at(93), base), "it is first already");
        assert!(!hurried.is_due(&planned(None), at(93), base), "nothing is planned");
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
