//! For those who run the service: is it alive, is it ready, how does it fare.

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use super::auth::Reader;
use super::problem::Problem;
use super::view;
use crate::telemetry;
use crate::vault::health::Trouble;

/// `GET /healthz`: the process answers. Touches nothing else.
pub async fn healthz() -> StatusCode {
    StatusCode::OK
}

/// How the service fares.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = readiness)]
pub struct Readiness {
    /// In a word.
    pub(super) status: Fitness,
    /// What is not as it should be.
    pub(super) problems: Vec<Trouble>,
}

/// Whether requests are to be sent here, and whether all is well.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fitness {
    /// All is well.
    Ok,
    /// It serves, and something is wrong.
    Degraded,
    /// Nothing is to be sent here.
    Unready,
}

/// `GET /readyz`: whether requests are to be sent here.
pub async fn readyz(Shared(state): Shared<State>) -> Response {
    let health = &state.vault.health;
    let problems = health.troubles();
    let (status, fitness) = match (health.is_ready(), problems.is_empty()) {
        (true, true) => (StatusCode::OK, Fitness::Ok),
        (true, false) => (StatusCode::OK, Fitness::Degraded),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, Fitness::Unready),
    };
    view::json(status, &Readiness { status: fitness, problems })
}

/// `GET /metrics`, with a key that may see all accounts.
pub async fn metrics(Reader(caller): Reader) -> Result<Response, Problem> {
    match caller.visible() {
        None => Ok(exposition().await.into_response()),
        Some(_) => Err(Problem::Forbidden("read, and may not be bound to accounts")),
    }
}

/// The metrics as Prometheus reads them, without a key: for a port of their own.
pub async fn exposition() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::metrics().render())
}
