//! Posting events to their receivers.
//!
//! A task for each receiver of the settings tries for the right to post to it;
//! one node has it, and keeps it for as long as it lives. So one that is slow or
//! dead is in nobody's way but its own. What is being posted when the node stops
//! has a moment to end; what has not is posted again by the next holder.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::catalog::{CatalogError, Cursor, Due, Event, Posted, ReceiverLease};
use crate::domain::sid::RecordingSid;
use crate::telemetry;
use crate::vault::Vault;
use crate::vault::webhooks::{Answer, KEPT_FOR, Poster, Receiver, TRIED_FOR};

/// How late something may begin that others made due.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Events that are posted to a receiver at once, each of another recording.
const AT_ONCE: usize = 8;
/// Those that are looked at beyond them, because some may be of the same recordings.
const LOOKED_AT: usize = 4 * AT_ONCE;
/// The wait before a catalog is asked again that did not answer.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How long what is being posted may take once the node is to stop.
const END_WITHIN: Duration = Duration::from_secs(2);
/// How often it is measured how receivers fare, and what is old is removed.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// An event as it is posted.
pub type Render = fn(&Vault, Event) -> String;

/// Posts for one node.
pub struct WebhookLoop {
    vault: Arc<Vault>,
    node: String,
    means: Arc<Means>,
}

/// What posting one event takes.
struct Means {
    vault: Arc<Vault>,
    poster: Poster,
    render: Render,
}

/// What is being posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Posting {
    event: Cursor,
    recording: Option<RecordingSid>,
}

/// What a holder knows of its receiver.
struct Holding<'h> {
    receiver: &'h Arc<Receiver>,
    lease: ReceiverLease,
    /// Up to here events were turned into deliveries.
    looked_to: Option<Cursor>,
    /// What is being posted now.
    posting: Vec<Posting>,
    /// Nobody was there last time: one event goes first.
    is_cautious: bool,
    /// When something falls due that was not taken.
    again_at: Option<Instant>,
}

impl WebhookLoop {
    /// A loop of the node of that name.
    pub fn new(vault: Arc<Vault>, poster: Poster, node: String, render: Render) -> Self {
        Self { vault: vault.clone(), node, means: Arc::new(Means { vault, poster, render }) }
    }

    /// Posts until `stopping`.
    pub async fn run(&self, stopping: &CancellationToken) {
        if self.vault.receivers().is_empty() {
            stopping.cancelled().await;
            return;
        }
        let serve = join_all(self.vault.receivers().iter().map(|receiver| self.serve(receiver, stopping)));
        tokio::select! {
            _ = serve => {}
            () = self.measure() => {}
        }
    }

    /// Tries for the right to post to a receiver, and posts while it has it.
    async fn serve(&self, receiver: &Arc<Receiver>, stopping: &CancellationToken) {
        while !stopping.is_cancelled() {
            let granted = Instant::now();
            match self.vault.grant_receiver(&receiver.id, &self.node).await {
                Ok(Some(lease)) => self.hold(receiver, lease, granted, stopping).await,
                Ok(None) => {}
                // It is told elsewhere that the catalog is away.
                Err(error) => tracing::debug!(receiver = receiver.id, %error, "events wait to be posted"),
            }
            let _ = timeout(POLL_EVERY, stopping.cancelled()).await;
        }
    }

    async fn hold(
        &self,
        receiver: &Arc<Receiver>,
        lease: ReceiverLease,
        granted: Instant,
        stopping: &CancellationToken,
    ) {
        let mut holding = Holding {
            receiver,
            lease: lease.clone(),
            looked_to: None,
            posting: Vec::new(),
            is_cautious: false,
            again_at: None,
        };
        tokio::select! {
            () = self.post_until(&mut holding, stopping) => {}
            () = self.vault.keep_receiver(&lease, granted) => {}
        }
        // Where that fails, its end comes by itself.
        let _ = self.vault.catalog.release_receiver(&lease).await;
    }

    /// Posts what is due until the node stops, or the right is known to be lost.
    async fn post_until(&self, holding: &mut Holding<'_>, stopping: &CancellationToken) {
        let mut news = self.vault.follower.watch();
        // Tasks of their own: this loop waits for the catalog, and they may hold what it waits for.
        let mut running = JoinSet::new();
        while !stopping.is_cancelled() {
            news.mark_unchanged();
            match self.begin(holding, &mut running).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let receiver = &holding.receiver.id;
                    tracing::debug!(receiver, %error, "events wait to be posted");
                    let _ = timeout(TRY_AGAIN_AFTER, stopping.cancelled()).await;
                }
            }
            let now = Instant::now();
            let again_at = holding.again_at.filter(|at| *at > now);
            holding.again_at = again_at;
            tokio::select! {
                Some(Ok((event, posted))) = running.join_next() => holding.ended(event, &posted),
                _ = news.changed() => {}
                () = sleep_until(again_at.unwrap_or(now + POLL_EVERY).min(now + POLL_EVERY)) => {}
                () = stopping.cancelled() => {}
            }
        }
        let end = Instant::now() + END_WITHIN;
        while let Ok(Some(_)) = timeout_at(end, running.join_next()).await {}
    }

    /// Begins to post what there is room for; false where the right is lost.
    async fn begin(
        &self,
        holding: &mut Holding<'_>,
        running: &mut JoinSet<(Cursor, Posted)>,
    ) -> Result<bool, CatalogError> {
        if !self.look_at_feed(holding).await? {
            return Ok(false);
        }
        for due in self.due(holding).await? {
            holding.posting.push(Posting::of(&due.event));
            running.spawn(self.means.clone().deliver(holding.receiver.clone(), holding.lease.clone(), due));
        }
        Ok(true)
    }

    /// Turns what is new in the feed into deliveries; false where the right is lost.
    async fn look_at_feed(&self, holding: &mut Holding<'_>) -> Result<bool, CatalogError> {
        while holding.looked_to.is_none() || holding.looked_to < self.vault.follower.reached() {
            let kinds = &holding.receiver.kinds;
            let made = self.vault.catalog.make_deliveries(&holding.lease, kinds, TRIED_FOR).await?;
            let Some((looked_to, is_end)) = made else { return Ok(false) };
            holding.looked_to = Some(looked_to);
            if is_end {
                break;
            }
        }
        Ok(true)
    }

    /// What is to be posted now: of each recording the oldest alone.
    async fn due(&self, holding: &Holding<'_>) -> Result<Vec<Due>, CatalogError> {
        let room = if holding.is_cautious { 1 } else { AT_ONCE };
        let room = room.saturating_sub(holding.posting.len());
        if room == 0 {
            return Ok(Vec::new());
        }
        let events: Vec<Cursor> = holding.posting.iter().map(|posting| posting.event).collect();
        let due = self.vault.catalog.due_deliveries(&holding.lease, &events, LOOKED_AT).await?;
        let mut busy: Vec<RecordingSid> = holding.posting.iter().filter_map(|posting| posting.recording).collect();
        let mut begun = Vec::new();
        for due in due {
            let recording = due.event.recording.as_ref().map(|recording| recording.id.recording);
            if recording.is_some_and(|recording| busy.contains(&recording)) {
                continue;
            }
            busy.extend(recording);
            begun.push(due);
            if begun.len() == room {
                break;
            }
        }
        Ok(begun)
    }

    /// Measures how receivers fare and removes what is old, until it is dropped.
    async fn measure(&self) {
        loop {
            if let Ok(standings) = self.vault.receiver_standings().await {
                let lag = standings.iter().map(|standing| standing.lag).max();
                telemetry::webhooks_wait(lag.unwrap_or_default(), standings.iter().map(|one| one.pending).sum());
            }
            while let Ok(true) = self.vault.catalog.forget_deliveries(KEPT_FOR).await {}
            sleep(MEASURE_EVERY).await;
        }
    }
}

impl Means {
    /// Posts an event and notes what came of it, however long the catalog is away.
    async fn deliver(self: Arc<Self>, receiver: Arc<Receiver>, lease: ReceiverLease, due: Due) -> (Cursor, Posted) {
        let event = due.event.cursor;
        let answer = match self.vault.now() {
            Ok(now) => {
                let body = (self.render)(&self.vault, due.event.clone());
                self.poster.post(&receiver.url, &receiver.key, &event.to_string(), body, now).await
            }
            Err(error) => Answer::Silence(error.to_string()),
        };
        let posted = self.vault.judge(&due, answer);
        tell(&receiver, event, &posted);
        while let Err(error) = self.vault.catalog.settle_delivery(&lease, event, &posted).await {
            tracing::debug!(receiver = receiver.id, %event, %error, "what came of a delivery waits to be noted");
            sleep(POLL_EVERY).await;
        }
        (event, posted)
    }
}

impl Posting {
    fn of(event: &Event) -> Self {
        Self { event: event.cursor, recording: event.recording.as_ref().map(|recording| recording.id.recording) }
    }
}

impl Holding<'_> {
    fn ended(&mut self, event: Cursor, posted: &Posted) {
        self.posting.retain(|posting| posting.event != event);
        if let Posted::Again { after, rest, .. } = posted {
            let again_at = Instant::now() + rest.unwrap_or_default().max(*after);
            self.again_at = Some(self.again_at.map_or(again_at, |known| known.min(again_at)));
        }
        match posted {
            Posted::Again { rest: Some(_), .. } => self.is_cautious = true,
            // Somebody is there, and did not answer this one.
            Posted::Again { status: None, .. } | Posted::GivenUp { status: None, .. } => {}
            _ => self.is_cautious = false,
        }
    }
}

/// Counts what came of a delivery, and logs what people should know.
fn tell(receiver: &Receiver, event: Cursor, posted: &Posted) {
    telemetry::webhook_posted(match posted {
        Posted::Taken { .. } => "delivered",
        Posted::Again { .. } => "failed",
        Posted::GivenUp { .. } => "given_up",
        Posted::Unwanted { .. } => "unwanted",
    });
    let receiver = &receiver.id;
    match posted {
        Posted::Taken { status } => tracing::debug!(receiver, %event, status, "an event was delivered"),
        Posted::Again { error, after, .. } => {
            tracing::debug!(receiver, %event, error, ?after, "an event was not taken")
        }
        Posted::GivenUp { error, .. } => tracing::warn!(receiver, %event, error, "an event was not taken for a day"),
        Posted::Unwanted { .. } => tracing::warn!(receiver, "it answered 410: nothing is posted there any more"),
    }
}
