//! `/v1/events`: the feed, as pages that may be waited for, and as a stream.
//!
//! A reader goes on from a cursor: `next` of the page before, or the id of the
//! last event of a stream. A stream reads a page only when the one before was
//! taken, so a slow reader holds no more than that; it ends when the service
//! does, and its reader comes back to another node.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::{HeaderMap, HeaderName, StatusCode, header};
use tokio::time::{Instant, sleep_until};

use super::State;
use super::auth::{Caller, Reader};
use super::problem::Problem;
use super::recordings::accounts;
use super::request::{Query, wrong};
use super::view::{self, EventView, FeedPage};
use crate::catalog::{Cursor, EventFilter};
use crate::config::EVENT_TYPES;
use crate::vault::Vault;
use crate::vault::feed::Moved;
use crate::vault::follow::ReaderPlace;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies close connections on which nothing comes, many of them after 30 s.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// The first thing that a stream says: come back so many milliseconds after it ended.
const RETRY: &str = "retry: 1000\n\n";
/// Events that a stream reads at once.
const STREAM_PAGE: usize = 100;
/// The wait before a stream asks a catalog again that does not answer.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Oldest,
    Latest,
    After(Cursor),
}

/// `GET /v1/events`.
pub async fn events(
    Shared(state): Shared<State>,
    Reader(caller): Reader,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    let filter = filter(&caller, &query)?;
    let (limit, wait) = (query.limit()?, query.wait()?);
    let as_stream = wants_stream(&headers);
    let start = start(&query, as_stream.then_some(&headers))?;
    let place = state.vault.follower.join(caller.key_id())?;
    let until = Instant::now() + wait;
    let after = match start {
        Start::Oldest => None,
        Start::Latest => Some(state.vault.latest_event().await?),
        Start::After(cursor) => Some(cursor),
    };
    if as_stream {
        return Ok(stream_from(Streaming::new(state, filter, start, after, place)));
    }
    let (events, next) = state.vault.await_feed(after, &filter, limit, until).await?;
    let events = events.into_iter().map(|event| EventView::new(&state.vault, event)).collect();
    Ok(view::json(StatusCode::OK, &FeedPage { events, next: next.to_string() }))
}

fn filter(caller: &Caller, query: &Query) -> Result<EventFilter, Problem> {
    let kinds: Vec<String> = query.all("type", "a type of event")?;
    if let Some(unknown) = kinds.iter().find(|kind| !EVENT_TYPES.contains(&kind.as_str())) {
        return Err(wrong("type", unknown, &format!("one of {}", EVENT_TYPES.join(", "))));
    }
    Ok(EventFilter {
        accounts: accounts(caller, query.one("account_sid", "AC and 32 hex digits")?),
        kinds: EVENT_TYPES
            .iter()
            .filter(|kind| kinds.iter().any(|asked| asked == *kind))
            .map(|kind| (*kind).to_owned())
            .collect(),
        call: query.one("call_sid", "CA and 32 hex digits")?,
    })
}

/// Where to begin: a stream that is resumed says so in a header, which is newer
/// than its URL.
fn start(query: &Query, stream_headers: Option<&HeaderMap>) -> Result<Start, Problem> {
    let asked: Option<String> = query.one("after", "a cursor")?;
    let resumed = stream_headers.and_then(|headers| headers.get(LAST_EVENT_ID));
    let resumed = resumed.map(|id| ("Last-Event-ID", String::from_utf8_lossy(id.as_bytes()).into_owned()));
    let resumed = resumed.filter(|(_, id)| !id.is_empty());
    let Some((name, text)) = resumed.or_else(|| asked.map(|text| ("after", text))) else { return Ok(Start::Oldest) };
    match text.as_str() {
        "latest" => Ok(Start::Latest),
        _ => text
            .parse()
            .map(Start::After)
            .map_err(|_| wrong(name, &text, "latest, the `next` of a page, or the id of an event")),
    }
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(',')).map(|kind| kind.split(';').next().unwrap_or_default());
    kinds.any(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// A stream, between two of its pages.
struct Streaming {
    state: State,
    filter: EventFilter,
    /// What is to be sent first.
    opening: Option<String>,
    after: Option<Cursor>,
    /// Whether there may be something behind the cursor already.
    look: bool,
    comment_at: Instant,
    _place: ReaderPlace,
}

impl Streaming {
    fn new(state: State, filter: EventFilter, start: Start, after: Option<Cursor>, place: ReaderPlace) -> Self {
        // Who begins with what is new, and is cut off before anything was, goes on from there.
        let begin = after.filter(|_| start == Start::Latest).map(|after| format!("id: {after}\n\n"));
        let opening = format!("{RETRY}{}", begin.unwrap_or_default());
        let comment_at = Instant::now() + COMMENT_EVERY;
        Self { state, filter, opening: Some(opening), after, look: true, comment_at, _place: place }
    }

    /// What is sent next; None where the stream is over.
    async fn next(&mut self) -> Option<String> {
        if let Some(opening) = self.opening.take() {
            return Some(opening);
        }
        let text = self.next_text().await;
        self.comment_at = Instant::now() + COMMENT_EVERY;
        text
    }

    async fn next_text(&mut self) -> Option<String> {
        let vault = self.state.vault.clone();
        loop {
            if vault.follower.ended().is_cancelled() {
                return None;
            }
            if Instant::now() >= self.comment_at {
                return Some(":\n\n".to_owned());
            }
            match self.after.filter(|_| !self.look) {
                None => {
                    if let Some(events) = self.read(&vault).await {
                        return Some(events);
                    }
                }
                Some(after) => match vault.feed_moved(after, &self.filter, self.comment_at).await {
                    Moved::NothingUpTo(cursor) => self.after = Some(cursor),
                    Moved::Perhaps(cursor) => (self.after, self.look) = (Some(cursor), true),
                },
            }
        }
    }

    /// The next page, if there is one now.
    async fn read(&mut self, vault: &Vault) -> Option<String> {
        match vault.read_feed(self.after, &self.filter, STREAM_PAGE).await {
            Ok((events, next)) => {
                (self.after, self.look) = (Some(next), false);
                let texts = events.into_iter().map(|event| {
                    let (id, kind) = (event.cursor, event.kind.clone());
                    format!("id: {id}\nevent: {kind}\ndata: {}\n\n", view::event_json(vault, event))
                });
                Some(texts.collect::<String>()).filter(|text| !text.is_empty())
            }
            Err(error) => {
                tracing::debug!(%error, "a stream of the feed waits for the catalog");
                let again = (Instant::now() + TRY_AGAIN_AFTER).min(self.comment_at);
                tokio::select! {
                    () = sleep_until(again) => {}
                    () = vault.follower.ended().cancelled() => {}
                }
                None
            }
        }
    }
}

fn stream_from(streaming: Streaming) -> Response {
    let chunks = stream::unfold(streaming, |mut streaming| async move {
        let text = streaming.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), streaming))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would keep events back until it has a buffer full of them.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(chunks)).into_response()
}
