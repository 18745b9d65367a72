//! What one attempt has read so far: for the bucket, and for whoever listens.
//!
//! Bytes are held once, however many want them. Listeners may have all that is
//! certain not to be the end: the last byte is theirs only when the recording is
//! committed. They are never waited for. Of a large recording only the newest
//! bytes are held, for which the attempt has reserved memory anyway; after the
//! commit a short tail is, and who has fallen behind goes on from the bucket.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use super::Reservation;
use crate::bucket::SINGLE_PUT_MAX_BYTES;
use crate::domain::recording::StoredObject;

/// Chunks below this are copied together: each that is kept costs some 100 bytes
/// beside its own.
const SMALL_CHUNK_BYTES: usize = 4 << 10;
/// What small chunks are copied together into.
const GATHERED_BYTES: usize = 64 << 10;
/// The newest bytes of a large recording that are held for listeners. What is on
/// its way to the bucket is among them.
const WINDOW_BYTES: u64 = SINGLE_PUT_MAX_BYTES as u64;
/// What is held after the commit, for those who are about to have it all.
const TAIL_BYTES: u64 = 256 << 10;

/// The bytes of one attempt.
pub(super) struct Tape {
    held: Mutex<Held>,
    /// Told whenever there is more to hear, or no more.
    news: watch::Sender<()>,
}

struct Held {
    /// Each with the place where it begins.
    pieces: VecDeque<(u64, Bytes)>,
    /// Small chunks behind the last piece, copied together.
    gathered: BytesMut,
    /// Where the gathered bytes end.
    end: u64,
    /// So many were passed on to the bucket.
    passed_on: u64,
    announced_bytes: Option<u64>,
    /// All bytes came.
    is_whole: bool,
    fate: Fate,
    /// For what is held after the commit.
    _memory: Option<Reservation>,
}

/// What came of a body so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) bytes: u64,
    /// It is all of it.
    pub(super) is_whole: bool,
}

/// What became of the attempt.
enum Fate {
    Open,
    Committed(StoredObject),
    Failed,
}

/// What a listener hears at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// These bytes.
    Bytes(Bytes),
    /// The last bytes: all is committed as this object.
    Last(Bytes, StoredObject),
    /// Nothing that may be passed on yet.
    Silence,
    /// It is committed as this object, and these bytes are held no more.
    Behind(StoredObject),
    /// The attempt failed.
    Failed,
}

impl Tape {
    /// A tape for a body of that length, where one was announced.
    pub(super) fn new(announced_bytes: Option<u64>) -> Self {
        let held = Held {
            pieces: VecDeque::new(),
            gathered: BytesMut::new(),
            end: 0,
            passed_on: 0,
            announced_bytes,
            is_whole: false,
            fate: Fate::Open,
            _memory: None,
        };
        Self { held: Mutex::new(held), news: watch::Sender::new(()) }
    }

    /// Takes the next bytes.
    pub(super) fn push(&self, chunk: Bytes) {
        self.held().push(chunk);
        self.news.send_replace(());
    }

    /// No more bytes come.
    pub(super) fn all_came(&self) {
        self.held().is_whole = true;
    }

    /// What came so far.
    pub(super) fn came(&self) -> Came {
        let held = self.held();
        Came { bytes: held.end, is_whole: held.is_whole }
    }

    /// How many bytes were not passed on yet.
    pub(super) fn waiting_bytes(&self) -> u64 {
        let held = self.held();
        held.end - held.passed_on
    }

    /// The first bytes, while nothing was let go.
    pub(super) fn first(&self, at_most: usize) -> Vec<u8> {
        let held = self.held();
        let bytes = held.pieces.iter().flat_map(|(_, piece)| piece).chain(&held.gathered);
        bytes.take(at_most).copied().collect()
    }

    /// All that was not passed on yet, in order.
    pub(super) fn pass_on_all(&self) -> Vec<Bytes> {
        let mut held = self.held();
        held.close_gathered();
        held.pass_on()
    }

    /// The same without what small chunks have not filled yet. What nobody needs
    /// is let go: from now on the whole is in the bucket alone.
    pub(super) fn pass_on_and_let_go(&self) -> Vec<Bytes> {
        let mut held = self.held();
        let passed_on = held.pass_on();
        let window = if self.news.receiver_count() == 0 { 0 } else { WINDOW_BYTES };
        held.let_go(window);
        passed_on
    }

    /// A listener's ear, as long as everything can still be heard from the beginning.
    pub(super) fn listen(&self) -> Option<watch::Receiver<()>> {
        let held = self.held();
        (held.begin() == 0 && matches!(held.fate, Fate::Open)).then(|| self.news.subscribe())
    }

    /// What is heard at that place.
    pub(super) fn hear(&self, place: u64) -> Heard {
        let held = self.held();
        match &held.fate {
            Fate::Failed => Heard::Failed,
            Fate::Committed(object) if place < held.begin() => Heard::Behind(object.clone()),
            Fate::Committed(object) => {
                let object = object.clone();
                match held.read(place, held.end) {
                    Some(bytes) if place + bytes.len() as u64 == held.end => Heard::Last(bytes, object),
                    Some(bytes) => Heard::Bytes(bytes),
                    // Nobody is ever given the last byte before.
                    None => Heard::Behind(object),
                }
            }
            Fate::Open => {
                let certain = held.certain_bytes();
                held.read(place, certain).map_or(Heard::Silence, Heard::Bytes)
            }
        }
    }

    /// The recording is committed as that object.
    pub(super) fn commit(&self, object: StoredObject, mut memory: Reservation) {
        let mut held = self.held();
        held.close_gathered();
        held.passed_on = held.end;
        held.let_go(if self.news.receiver_count() == 0 { 0 } else { TAIL_BYTES });
        memory.shrink_to(held.end - held.begin());
        held._memory = Some(memory);
        held.fate = Fate::Committed(object);
        drop(held);
        self.news.send_replace(());
    }

    /// The attempt is over, unless it was committed.
    pub(super) fn end(&self) {
        let mut held = self.held();
        if !matches!(held.fate, Fate::Committed(_)) {
            held.fate = Fate::Failed;
            held.pieces.clear();
            held.gathered = BytesMut::new();
        }
        drop(held);
        self.news.send_replace(());
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("nothing panics while it holds the tape")
    }
}

impl Held {
    fn push(&mut self, chunk: Bytes) {
        let len = chunk.len();
        if len < SMALL_CHUNK_BYTES {
            self.gathered.extend_from_slice(&chunk);
        } else {
            self.close_gathered();
            self.pieces.push_back((self.end, chunk));
        }
        self.end += len as u64;
        if self.gathered.len() >= GATHERED_BYTES {
            self.close_gathered();
        }
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            let begin = self.end - self.gathered.len() as u64;
            self.pieces.push_back((begin, self.gathered.split().freeze()));
        }
    }

    /// The place of the first byte that is held.
    fn begin(&self) -> u64 {
        self.pieces.front().map_or(self.end - self.gathered.len() as u64, |(begin, _)| *begin)
    }

    /// So many bytes are certain not to be the end.
    fn certain_bytes(&self) -> u64 {
        let last = self.announced_bytes.unwrap_or(self.end).saturating_sub(1);
        last.min(self.end)
    }

    fn pass_on(&mut self) -> Vec<Bytes> {
        let first = self.pieces.partition_point(|(begin, _)| *begin < self.passed_on);
        self.passed_on = self.end - self.gathered.len() as u64;
        self.pieces.range(first..).map(|(_, piece)| piece.clone()).collect()
    }

    /// Lets go of what was passed on, but for the newest bytes.
    fn let_go(&mut self, window_bytes: u64) {
        while let Some((begin, piece)) = self.pieces.front() {
            let end = begin + piece.len() as u64;
            if end > self.passed_on || self.end - begin <= window_bytes {
                break;
            }
            self.pieces.pop_front();
        }
    }

    /// The bytes from `place` on that are held in one piece, up to `limit`.
    fn read(&self, place: u64, limit: u64) -> Option<Bytes> {
        if place >= limit || place < self.begin() {
            return None;
        }
        let behind = self.pieces.partition_point(|(begin, _)| *begin <= place);
        let (begin, piece) = match behind.checked_sub(1).and_then(|at| self.pieces.get(at)) {
            Some((begin, piece)) if place < begin + piece.len() as u64 => (*begin, Ok(piece)),
            _ => (self.end - self.gathered.len() as u64, Err(&self.gathered)),
        };
        let in_piece = |place: u64| usize::try_from(place - begin).unwrap_or(usize::MAX);
        Some(match piece {
            Ok(piece) => piece.slice(in_piece(place)..in_piece(limit).min(piece.len())),
            Err(gathered) => Bytes::copy_from_slice(&gathered[in_piece(place)..in_piece(limit).min(gathered.len())]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryBudget;
    use super::*;
    use crate::domain::digest::Digest;
    use crate::domain::media::Format;

    fn reservation() -> Reservation {
        MemoryBudget::new(1 << 30).reserve(24 << 20).expect("there is enough")
    }

    fn object() -> StoredObject {
        StoredObject { digest: Digest::of(b""), size_bytes: 0, format: Format::Mp3, key: "key".to_owned() }
    }

    /// Bytes that tell where they lie.
    fn bytes(from: u64, len: usize) -> Bytes {
        (from..).take(len).map(|at| (at % 251) as u8).collect::<Vec<u8>>().into()
    }

    /// All that can be heard from a place on.
    fn hear_all(tape: &Tape, mut place: u64) -> (Vec<u8>, Heard) {
        let mut all = Vec::new();
        loop {
            match tape.hear(place) {
                Heard::Bytes(bytes) => {
                    place += bytes.len() as u64;
                    all.extend_from_slice(&bytes);
                }
                end => return (all, end),
            }
        }
    }

    #[test]
    fn all_but_the_last_byte_is_heard_before_the_commit_and_all_after_it() {
        for announced in [None, Some(10_000)] {
            let tape = Tape::new(announced);
            let _ear = tape.listen().expect("nothing was let go");
            let (mut place, mut heard) = (0, Vec::new());
            for len in [1, 2, 4_997, 4_096, 904] {
                tape.push(bytes(place, len));
                place += len as u64;
                let certain = if announced.is_some() { place.min(9_999) } else { place - 1 };
                let (more, end) = hear_all(&tape, heard.len() as u64);
                heard.extend(more);
                assert_eq!((heard.len() as u64, end), (certain, Heard::Silence));
            }
            assert_eq!(tape.pass_on_all().concat(), bytes(0, 10_000));
            tape.commit(object(), reservation());
            assert_eq!(tape.hear(9_999), Heard::Last(bytes(9_999, 1), object()));
            assert_eq!(heard, bytes(0, 9_999));
            assert!(tape.listen().is_none());
        }
    }

    #[test]
    fn of_a_large_recording_the_newest_bytes_are_held_and_only_where_someone_listens() {
        let chunk = 1 << 20;
        for listens in [true, false] {
            let tape = Tape::new(None);
            let ear = listens.then(|| tape.listen());
            let mut passed_on = 0;
            for number in 0..64 {
                tape.push(bytes(number * chunk, chunk as usize));
                passed_on += tape.pass_on_and_let_go().iter().map(Bytes::len).sum::<usize>();
            }
            assert_eq!(passed_on, 64 << 20);
            let window = if listens { WINDOW_BYTES } else { 0 };
            assert_eq!(tape.held().begin(), (64 << 20) - window);
            assert_eq!(tape.hear(0), Heard::Silence, "it may be heard from the bucket, later");
            assert!(tape.listen().is_none());
            tape.commit(object(), reservation());
            assert_eq!(tape.hear(0), Heard::Behind(object()));
            drop(ear);
        }
    }

    #[test]
    fn crumbs_are_passed_on_together() {
        let tape = Tape::new(None);
        let mut pieces = Vec::new();
        for place in 0..200_000 {
            tape.push(bytes(place, 1));
            pieces.extend(tape.pass_on_and_let_go());
        }
        pieces.extend(tape.pass_on_all());
        assert_eq!(pieces.concat(), bytes(0, 200_000));
        assert!(pieces.len() <= 4, "{}", pieces.len());
    }

    #[test]
    fn after_the_commit_a_tail_is_held_and_counted() {
        let budget = MemoryBudget::new(24 << 20);
        let memory = budget.reserve(24 << 20).expect("there is enough");
        let tape = Tape::new(None);
        let ear = tape.listen();
        (0..100).for_each(|number| tape.push(bytes(number * 10_000, 10_000)));
        let all = tape.pass_on_all();
        assert_eq!(all.concat().len(), 1_000_000);
        tape.commit(object(), memory);
        let held = {
            let held = tape.held();
            held.end - held.begin()
        };
        assert!(held <= TAIL_BYTES && held > TAIL_BYTES - 10_000, "{held}");
        assert!(budget.reserve((24 << 20) - TAIL_BYTES).is_some());
        assert!(budget.reserve(24 << 20).is_none());
        drop((tape, ear));
        assert!(budget.reserve(24 << 20).is_some());
    }

    #[test]
    fn nothing_is_heard_of_what_failed() {
        let tape = Tape::new(Some(100));
        let mut ear = tape.listen().expect("nothing was let go");
        tape.push(bytes(0, 50));
        ear.mark_unchanged();
        tape.end();
        assert!(ear.has_changed().expect("the tape is there"));
        assert_eq!(tape.hear(0), Heard::Failed);
        assert!(tape.listen().is_none());
    }
}
