//! What may go wrong with a media request, and with the REST API.

use std::time::Duration;

/// One thing that Twilio does on a bad day.
#[derive(Debug, Clone)]
pub enum Fault {
    /// 404 with Twilio's XML: the media is not there yet.
    NotReady,
    /// 429, with Retry-After where it is told.
    RateLimited {
        /// The header's value.
        retry_after: Option<String>,
    },
    /// Any status without more, such as 500 or 503.
    Status(u16),
    /// An HTML page under 200.
    Html,
    /// An XML error under 200.
    Xml,
    /// A JSON error under 200.
    Json,
    /// No bytes under 200.
    Empty,
    /// The connection is closed in good order after so many bytes of the body.
    Truncated(u64),
    /// The connection is reset after so many bytes of the body.
    Reset(u64),
    /// The whole body, but neither Content-Length nor chunks.
    Unframed,
    /// Chunks instead of Content-Length; the body is whole.
    Chunked,
    /// Chunks of so many bytes; the body is whole.
    Crumbs(usize),
    /// A redirect to that URL.
    Redirect(String),
    /// A chain of so many redirects over the media host, which then serves the media.
    RedirectToMediaHost(u32),
    /// The body in pieces, with a wait before each.
    Slow {
        /// The size of a piece.
        piece_bytes: usize,
        /// The wait before it.
        wait: Duration,
    },
    /// The body waits after so many bytes until the test releases it.
    Held(u64),
    /// The body waits as with [`Fault::Held`]; then the connection is closed in
    /// good order one byte later.
    HeldThenTruncated(u64),
    /// No answer at all until the connection is closed.
    Silent,
}

/// What the REST API does to an account on a bad day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestFault {
    /// Any status without more, such as 500.
    Status(u16),
    /// 429, with Retry-After where it is told.
    RateLimited {
        /// The header's value.
        retry_after: Option<String>,
    },
    /// The right answer, after a wait.
    Slow(Duration),
    /// No answer until the fault is over; then the right one.
    Silent,
}
