//! Fetches that can be listened to while they go on, on the node that makes them.
//!
//! A listener belongs to one attempt, and hears it from the beginning. Nothing
//! that listens is waited for, and no attempt goes on for the sake of a listener.
//! What is decrypted here is not to be heard before all of it is known to be right.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use super::Reservation;
use super::tape::{Heard, Tape};
use crate::catalog::Lease;
use crate::domain::media::Format;
use crate::domain::recording::{RecordingId, StoredObject};

/// The attempts of this node that can be heard.
#[derive(Default)]
pub(super) struct Lives {
    attempts: Mutex<HashMap<RecordingId, Attempt>>,
    /// Told when another one has begun.
    began: watch::Sender<()>,
}

struct Attempt {
    epoch: i64,
    format: Format,
    tape: Arc<Tape>,
}

/// An attempt that can be heard; it has failed when this is dropped without a commit.
pub(super) struct Broadcast {
    lives: Arc<Lives>,
    lease: Lease,
    tape: Arc<Tape>,
}

/// Someone who listens to an attempt.
pub(super) struct Listener {
    /// What it is that is heard.
    pub(super) format: Format,
    tape: Arc<Tape>,
    news: watch::Receiver<()>,
}

impl Lives {
    /// Lets an attempt be heard.
    pub(super) fn begin(self: &Arc<Self>, lease: &Lease, format: Format, tape: Arc<Tape>) -> Broadcast {
        let attempt = Attempt { epoch: lease.epoch, format, tape: tape.clone() };
        self.attempts().insert(lease.id, attempt);
        self.began.send_replace(());
        Broadcast { lives: self.clone(), lease: *lease, tape }
    }

    /// Returns once an attempt at a recording can be heard here.
    pub(super) async fn listen(&self, id: RecordingId) -> Listener {
        let mut began = self.began.subscribe();
        loop {
            began.mark_unchanged();
            if let Some(listener) = self.join(id) {
                return listener;
            }
            if began.changed().await.is_err() {
                // Not while this is borrowed.
                std::future::pending().await
            }
        }
    }

    fn join(&self, id: RecordingId) -> Option<Listener> {
        let attempts = self.attempts();
        let attempt = attempts.get(&id)?;
        Some(Listener { news: attempt.tape.listen()?, tape: attempt.tape.clone(), format: attempt.format })
    }

    fn attempts(&self) -> MutexGuard<'_, HashMap<RecordingId, Attempt>> {
        self.attempts.lock().expect("nothing panics while it holds the attempts")
    }
}

impl Broadcast {
    /// The attempt is committed as that object.
    pub(super) fn commit(self, object: StoredObject, memory: Reservation) {
        self.tape.commit(object, memory);
    }
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        let mut attempts = self.lives.attempts();
        // A newer one may have begun, where this one had lost its lease.
        if attempts.get(&self.lease.id).is_some_and(|attempt| attempt.epoch == self.lease.epoch) {
            attempts.remove(&self.lease.id);
        }
        drop(attempts);
        self.tape.end();
    }
}

impl Listener {
    /// What is heard next from a place on; never silence.
    pub(super) async fn hear(&mut self, place: u64) -> Heard {
        loop {
            self.news.mark_unchanged();
            match self.tape.hear(place) {
                Heard::Silence => {}
                heard => return heard,
            }
            if self.news.changed().await.is_err() {
                return Heard::Failed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::memory::MemoryBudget;
    use super::*;
    use crate::domain::digest::Digest;
    use crate::domain::recording::State;
    use crate::domain::recording::tests::recording;

    fn lease(epoch: i64) -> Lease {
        Lease { id: recording(1, State::Fetching, 1).id, epoch }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_let_in_when_an_attempt_begins_and_hears_its_end() {
        let lives = Arc::new(Lives::default());
        let tape = Arc::new(Tape::new(None));
        let listening = lives.listen(lease(1).id);
        let beginning = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            lives.begin(&lease(1), Format::Mp3, tape.clone())
        };
        let (mut listener, broadcast) = tokio::join!(listening, beginning);
        let hearing = tokio::spawn(async move { (listener.hear(0).await, listener.hear(3).await) });
        tokio::time::sleep(Duration::from_secs(1)).await;
        tape.push(Bytes::from_static(b"abcd"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let object =
            StoredObject { digest: Digest::of(b"abcd"), size_bytes: 4, format: Format::Mp3, key: String::new() };
        broadcast.commit(object.clone(), MemoryBudget::new(1 << 20).reserve(1 << 20).expect("there is enough"));
        let (first, last) = hearing.await.expect("no panic");
        assert_eq!(first, Heard::Bytes(Bytes::from_static(b"abc")));
        assert_eq!(last, Heard::Last(Bytes::from_static(b"d"), object));
        assert!(lives.attempts().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_is_dropped_ends_its_listeners_and_leaves_a_newer_one() {
        let lives = Arc::new(Lives::default());
        let old = lives.begin(&lease(1), Format::Mp3, Arc::new(Tape::new(None)));
        let mut listener = lives.listen(lease(1).id).await;
        let newer = lives.begin(&lease(2), Format::Mp3, Arc::new(Tape::new(None)));
        drop(old);
        assert_eq!(listener.hear(0).await, Heard::Failed);
        assert_eq!(lives.attempts().len(), 1, "the newer one");
        drop(newer);
        let nobody = tokio::time::timeout(Duration::from_secs(60), lives.listen(lease(1).id)).await;
        assert!(nobody.is_err());
    }
}
