//! `/v1/webhooks`: the receivers of events, and what they got, for those who run
//! the service.
//!
//! Receivers are the settings': they can be looked at here, never changed. No
//! secret is shown, and of a URL only what cannot be one. Events of all accounts
//! go to them, so a key that is bound to accounts sees none of this.

use std::sync::Arc;

use axum::extract::{FromRequestParts, State as Shared};
use axum::response::Response;
use http::StatusCode;
use http::request::Parts;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use super::auth::{Admin, Caller};
use super::openapi::schemas::EventType;
use super::problem::Problem;
use super::request::{Named, Query};
use super::view;
use crate::catalog::{Cursor, Delivery, DeliveryState, ReceiverStanding, Retried};
use crate::vault::webhooks::Receiver;

/// A receiver and how it fares.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = webhook)]
pub struct ReceiverView {
    /// What it is called.
    pub(super) id: String,
    /// Where it is, without what may be secret.
    pub(super) url: String,
    /// What it gets; empty: all.
    #[schema(value_type = Vec<EventType>)]
    pub(super) types: Vec<String>,
    /// How it stands.
    pub(super) state: ReceiverState,
    /// Deliveries that are to be made.
    pub(super) pending: i64,
    /// Deliveries that were given up.
    pub(super) failed: i64,
    /// How old the oldest is that is to be made.
    pub(super) lag_seconds: u64,
    /// When it last took one.
    pub(super) last_delivered_at: Option<Timestamp>,
    /// When it is tried again, where nobody answers.
    pub(super) resting_until: Option<Timestamp>,
    /// When it said that it wants no more.
    pub(super) disabled_at: Option<Timestamp>,
}

/// How a receiver stands: `resting` while nobody answers there, `disabled` since
/// it wanted no more.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReceiverState {
    /// It takes what it gets.
    Active,
    /// Nobody answers there.
    Resting,
    /// It wanted no more.
    Disabled,
}

impl ReceiverView {
    fn new(receiver: &Receiver, standing: Option<&ReceiverStanding>) -> Self {
        let disabled_at = standing.and_then(|standing| standing.disabled_at);
        let resting_until = standing.and_then(|standing| standing.resting_until);
        Self {
            id: receiver.id.clone(),
            url: receiver.shown_url(),
            types: receiver.kinds.clone(),
            state: match (disabled_at, resting_until) {
                (Some(_), _) => ReceiverState::Disabled,
                (None, Some(_)) => ReceiverState::Resting,
                (None, None) => ReceiverState::Active,
            },
            pending: standing.map_or(0, |standing| standing.pending),
            failed: standing.map_or(0, |standing| standing.failed),
            lag_seconds: standing.map_or(0, |standing| standing.lag.as_secs()),
            last_delivered_at: standing.and_then(|standing| standing.last_delivered_at),
            resting_until,
            disabled_at,
        }
    }
}

/// All receivers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = webhooks)]
pub struct ReceiversAnswer {
    /// As the settings have them.
    pub(super) webhooks: Vec<ReceiverView>,
}

/// What became of one event for one receiver.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = delivery)]
pub struct DeliveryView {
    /// The event, and the `webhook-id`.
    pub(super) event_id: String,
    /// What happened.
    #[serde(rename = "type")]
    #[schema(value_type = EventType)]
    pub(super) kind: String,
    /// Where it stands.
    #[schema(value_type = DeliveryState)]
    pub(super) state: &'static str,
    /// How often it was posted.
    pub(super) attempts: i64,
    /// When it is posted next.
    pub(super) next_attempt_at: Option<Timestamp>,
    /// When it was posted last.
    pub(super) last_attempt_at: Option<Timestamp>,
    /// What was answered then.
    pub(super) last_status: Option<i64>,
    /// What went wrong then.
    pub(super) last_error: Option<String>,
    /// When it was taken or given up.
    pub(super) ended_at: Option<Timestamp>,
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> Self {
        Self {
            event_id: delivery.event.to_string(),
            kind: delivery.kind,
            state: delivery.state.as_str(),
            attempts: delivery.attempts,
            next_attempt_at: delivery.next_attempt_at,
            last_attempt_at: delivery.last_attempt_at,
            last_status: delivery.last_status,
            last_error: delivery.last_error,
            ended_at: delivery.ended_at,
        }
    }
}

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = deliveries)]
pub struct DeliveriesAnswer {
    /// Newest first.
    pub(super) deliveries: Vec<DeliveryView>,
    /// What the next page is asked for with.
    pub(super) next: Option<String>,
}

/// The receiver and the event that a path names.
#[derive(Debug)]
pub struct DeliveryName {
    receiver: String,
    event: Cursor,
}

impl FromRequestParts<State> for DeliveryName {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
        let Named(receiver) = Named::of(parts, "receiver").await?;
        let Named(event) = Named::of(parts, "event").await?;
        Ok(Self { receiver, event })
    }
}

/// `GET /v1/webhooks`.
pub async fn list(Shared(state): Shared<State>, Admin(caller): Admin) -> Result<Response, Problem> {
    for_all_accounts(&caller)?;
    let standings = state.vault.receiver_standings().await?;
    let view = |receiver: &Arc<Receiver>| {
        ReceiverView::new(receiver, standings.iter().find(|standing| standing.receiver == receiver.id))
    };
    let webhooks = state.vault.receivers().iter().map(view).collect();
    Ok(view::json(StatusCode::OK, &ReceiversAnswer { webhooks }))
}

/// `GET /v1/webhooks/{receiver}/deliveries`: newest first.
pub async fn deliveries(
    Shared(state): Shared<State>,
    Admin(caller): Admin,
    Named(receiver): Named<String>,
    query: Query,
) -> Result<Response, Problem> {
    for_all_accounts(&caller)?;
    let receiver = find(&state, &receiver)?;
    let chosen: Option<DeliveryState> = query.one("state", "one of pending, delivered, failed")?;
    let after: Option<Cursor> = query.one("after", "the `next` of an earlier page")?;
    let (deliveries, next) = state.vault.catalog.deliveries(&receiver.id, chosen, after, query.limit()?).await?;
    let answer = DeliveriesAnswer {
        deliveries: deliveries.into_iter().map(DeliveryView::from).collect(),
        next: next.map(|next| next.to_string()),
    };
    Ok(view::json(StatusCode::OK, &answer))
}

/// `POST /v1/webhooks/{receiver}/deliveries/{event}/retry`: post it again now,
/// whether it was taken or not.
pub async fn retry(
    Shared(state): Shared<State>,
    Admin(caller): Admin,
    name: DeliveryName,
) -> Result<Response, Problem> {
    for_all_accounts(&caller)?;
    let receiver = find(&state, &name.receiver)?;
    match state.vault.catalog.retry_delivery(&receiver.id, name.event).await? {
        Retried::Due(delivery) => Ok(view::json(StatusCode::ACCEPTED, &DeliveryView::from(delivery))),
        Retried::Unwanted => Err(Problem::Conflict(format!(
            "The receiver answered that it wants no more events. Enable it first: POST /v1/webhooks/{}/enable.",
            receiver.id
        ))),
        Retried::Unknown => Err(Problem::NotFound),
    }
}

/// `POST /v1/webhooks/{receiver}/enable`: it said that it wants no more, and does
/// again, from now on.
pub async fn enable(
    Shared(state): Shared<State>,
    Admin(caller): Admin,
    Named(receiver): Named<String>,
) -> Result<Response, Problem> {
    for_all_accounts(&caller)?;
    let receiver = find(&state, &receiver)?;
    state.vault.catalog.enable_receiver(&receiver.id).await?;
    let standings = state.vault.receiver_standings().await?;
    let standing = standings.iter().find(|standing| standing.receiver == receiver.id);
    Ok(view::json(StatusCode::OK, &ReceiverView::new(receiver, standing)))
}

fn for_all_accounts(caller: &Caller) -> Result<(), Problem> {
    match caller.visible() {
        None => Ok(()),
        Some(_) => Err(Problem::Forbidden("admin, and may not be bound to accounts")),
    }
}

fn find<'s>(state: &'s State, id: &str) -> Result<&'s Arc<Receiver>, Problem> {
    state.vault.receiver(id).ok_or(Problem::NotFound)
}
