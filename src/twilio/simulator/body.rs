//! The simulator's bodies: in good order, or broken as a fault wants them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{Response, Version, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::server::Answer;

/// Long enough for what was written to leave before a connection is broken.
const FLUSH_TIME: Duration = Duration::from_millis(20);

/// How the end of a body is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Framing {
    Length,
    Chunks,
    None,
}

/// A body to be sent, perhaps not in good order.
pub(super) struct Media {
    pub(super) len_bytes: u64,
    pub(super) content_type: &'static str,
    pub(super) pieces: stream::BoxStream<'static, io::Result<Bytes>>,
    pub(super) framing: Framing,
}

impl Media {
    pub(super) fn into_answer(self) -> Answer {
        let frames = self.pieces.map(|piece| piece.map(Frame::data));
        let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
        answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(self.content_type));
        match self.framing {
            Framing::Length => {
                answer.headers_mut().insert(header::CONTENT_LENGTH, self.len_bytes.into());
            }
            Framing::Chunks => {}
            // An HTTP/1.0 answer ends with its connection.
            Framing::None => *answer.version_mut() = Version::HTTP_10,
        }
        answer
    }

    /// Cut off after so many bytes: closed in good order, or reset by that socket's handle.
    pub(super) fn broken_after(self, after: u64, reset: Option<Arc<std::net::TcpStream>>) -> Self {
        let head = take(self.pieces, after);
        let end = stream::once(async move {
            // What was sent so far gets out first: hyper flushes while it waits.
            tokio::time::sleep(FLUSH_TIME).await;
            if let Some(socket) = reset {
                // With nothing to linger for, closing sends a reset.
                socket2::SockRef::from(&*socket).set_linger(Some(Duration::ZERO))?;
            }
            Err(io::Error::other("scripted"))
        });
        Self { pieces: head.chain(end).boxed(), ..self }
    }

    pub(super) fn held_after(self, after: u64, gate: tokio::sync::watch::Receiver<bool>) -> Self {
        let (mut seen, mut waited) = (0, false);
        let pieces = cut_at(self.pieces, after).then(move |piece| {
            let wait = seen >= after && !waited;
            waited |= wait;
            seen += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
            let mut gate = gate.clone();
            async move {
                if wait {
                    // The simulator's end opens the gate too.
                    let _ = gate.wait_for(|open| *open).await;
                }
                piece
            }
        });
        Self { pieces: pieces.boxed(), ..self }
    }

    pub(super) fn in_pieces(self, piece_bytes: usize) -> Self {
        let pieces = self.pieces.flat_map(move |piece| stream::iter(split(piece, piece_bytes)));
        Self { pieces: pieces.boxed(), ..self }
    }

    pub(super) fn slow(self, piece_bytes: usize, wait: Duration) -> Self {
        let cut = self.in_pieces(piece_bytes);
        let pieces = cut.pieces.then(move |piece| async move {
            tokio::time::sleep(wait).await;
            piece
        });
        Self { pieces: pieces.boxed(), ..cut }
    }
}

type Pieces = stream::BoxStream<'static, io::Result<Bytes>>;

fn split(piece: io::Result<Bytes>, piece_bytes: usize) -> Vec<io::Result<Bytes>> {
    match piece {
        Ok(bytes) => (0..bytes.len())
            .step_by(piece_bytes.max(1))
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + piece_bytes.max(1)))))
            .collect(),
        error => vec![error],
    }
}

/// The same pieces, with a cut between two of them at that place.
fn cut_at(pieces: Pieces, at: u64) -> impl stream::Stream<Item = io::Result<Bytes>> + Send {
    let mut seen = 0u64;
    pieces.flat_map(move |piece| {
        let Ok(bytes) = piece else { return stream::iter(vec![piece]) };
        let begin = seen;
        seen += bytes.len() as u64;
        let inside = (begin < at && at < seen).then(|| usize::try_from(at - begin).unwrap_or(usize::MAX));
        stream::iter(match inside {
            Some(cut) => vec![Ok(bytes.slice(..cut)), Ok(bytes.slice(cut..))],
            None => vec![Ok(bytes)],
        })
    })
}

/// The first bytes of the pieces.
fn take(pieces: Pieces, bytes: u64) -> impl stream::Stream<Item = io::Result<Bytes>> + Send {
    let mut left = bytes;
    cut_at(pieces, bytes).take_while(move |piece| {
        let len = piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let fits = len <= left && left > 0;
        left = left.saturating_sub(len);
        std::future::ready(fits)
    })
}
