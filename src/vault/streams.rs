//! Audio on its way to someone through this node: how much of it at once, how it
//! ends, and how it is ended.
//!
//! Every open stream is known by its recording, so that what is erased flows no
//! further.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;

use super::Vault;
use super::follow::{FellBehind, Found};
use super::places::{NoPlace, Place, Places};
use crate::catalog::{Cursor, News};
use crate::domain::key::KeyId;
use crate::domain::recording::{RecordingId, State};
use crate::telemetry;

/// Streams at once. Each may hold a megabyte, where the store is fast and the
/// client slow: what was read ahead, and a chunk that is held back.
const STREAMS_MAX: usize = 512;
/// Three quarters of them are one key's at most: many have but one key.
const FOR_EACH_LEFT: usize = 3;

/// The streams of this node.
pub(super) struct Streams {
    room: Arc<Places>,
    open: Mutex<HashMap<RecordingId, Open>>,
}

struct Open {
    count: usize,
    ended: CancellationToken,
}

/// An open stream; it is over when this is dropped.
pub(super) struct OpenStream {
    streams: Arc<Streams>,
    id: RecordingId,
    ended: CancellationToken,
    /// How it ended: until it is said, whoever listened has left.
    how: &'static str,
    _room: Place,
}

impl Default for Streams {
    fn default() -> Self {
        Self { room: Arc::new(Places::new(STREAMS_MAX, FOR_EACH_LEFT)), open: Mutex::default() }
    }
}

impl Streams {
    /// Opens a stream of that recording for that key, if there is room for one.
    pub(super) fn open(self: &Arc<Self>, id: RecordingId, key: KeyId) -> Result<OpenStream, NoPlace> {
        let room = self.room.take(key)?;
        let mut all = self.all();
        let open = all.entry(id).or_insert_with(|| Open { count: 0, ended: CancellationToken::new() });
        open.count += 1;
        let ended = open.ended.clone();
        drop(all);
        telemetry::stream_opened();
        Ok(OpenStream { streams: self.clone(), id, ended, how: "left", _room: room })
    }

    /// The recordings that flow to someone.
    pub(super) fn flowing(&self) -> Vec<RecordingId> {
        self.all().keys().copied().collect()
    }

    /// Breaks off every stream of that recording.
    pub(super) fn end(&self, id: &RecordingId) {
        if let Some(open) = self.all().get(id) {
            open.ended.cancel();
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<RecordingId, Open>> {
        self.open.lock().expect("nothing panics while it holds the streams")
    }
}

impl Vault {
    /// Breaks off the streams of what is erased, on whichever node, for as long
    /// as the service runs.
    pub async fn end_streams_of_erased(self: Arc<Self>) {
        let mut feed = self.follower.subscribe();
        loop {
            match feed.next().await {
                Ok(news) => news.iter().filter(|news| is_erasure(news)).filter_map(|news| news.id()).for_each(|id| {
                    self.streams.end(&id);
                }),
                Err(FellBehind) => self.look_for_erased().await,
            }
        }
    }

    /// Where the feed was not followed for a while, the rows tell.
    async fn look_for_erased(&self) {
        let flowing = self.streams.flowing();
        match self.catalog.recordings(&flowing).await {
            Ok(rows) => rows.iter().filter(|row| row.state == State::Erased).for_each(|row| self.streams.end(&row.id)),
            Err(error) => {
                // Better ended than given to someone who may not have it.
                tracing::warn!(%error, "whether what flows was erased cannot be asked: it is broken off");
                flowing.iter().for_each(|id| self.streams.end(id));
            }
        }
    }

    /// Opens a stream of what was looked up after the feed had come to `seen`.
    pub(super) fn open_stream(&self, id: RecordingId, key: KeyId, seen: Option<Cursor>) -> Result<OpenStream, NoPlace> {
        let open = self.streams.open(id, key)?;
        // It may have been erased after it was looked up, and before it was known here.
        let is_erasure = |news: &News| is_erasure(news) && news.id() == Some(id);
        let is_new = |seen| matches!(self.follower.look_for(seen, is_erasure), Found::NothingUpTo(_));
        if seen.is_some_and(|seen| !is_new(seen)) {
            self.streams.end(&id);
        }
        Ok(open)
    }
}

fn is_erasure(news: &News) -> bool {
    news.kind == "recording.erased"
}

impl OpenStream {
    /// Is cancelled when the stream is to be broken off.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Says how it ended: one of [`telemetry::STREAM_ENDS`].
    pub(super) fn note_end(&mut self, how: &'static str) {
        self.how = how;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut all = self.streams.all();
        if let Some(open) = all.get_mut(&self.id) {
            open.count -= 1;
            if open.count == 0 {
                all.remove(&self.id);
            }
        }
        drop(all);
        telemetry::stream_ended(self.how);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::recording::tests::recording;

    #[test]
    fn streams_are_ended_by_their_recording_and_forgotten_when_they_are_over() {
        let streams = Arc::new(Streams::default());
        let (one, other) = (recording(1, State::Stored, 1).id, recording(2, State::Stored, 1).id);
        let key = KeyId::from([1; 8]);
        let open: Vec<OpenStream> =
            [one, one, other].map(|id| streams.open(id, key).expect("there is room")).into_iter().collect();
        streams.end(&one);
        let ended: Vec<bool> = open.iter().map(|stream| stream.ended().is_cancelled()).collect();
        assert_eq!(ended, [true, true, false]);
        drop(open);
        assert!(streams.flowing().is_empty());
        assert!(!streams.open(one, key).expect("there is room").ended().is_cancelled());
    }

    #[test]
    fn one_key_never_takes_all_streams() {
        let streams = Arc::new(Streams::default());
        let id = recording(1, State::Stored, 1).id;
        let open: Vec<OpenStream> = std::iter::from_fn(|| streams.open(id, KeyId::from([1; 8])).ok()).collect();
        assert_eq!(open.len(), STREAMS_MAX / 4 * 3);
        assert!(streams.open(id, KeyId::from([2; 8])).is_ok());
    }
}
