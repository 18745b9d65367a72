//! For those who run the service: is it alive, is it ready, how does it fare.

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::json;

use super::State;
use super::auth::Reader;
use super::problem::Problem;
use super::view;
use crate::telemetry;

/// `GET /healthz`: the process answers. Touches nothing else.
pub async fn healthz() -> StatusCode {
    StatusCode::OK
}

/// `GET /readyz`: whether requests are to be sent here.
pub async fn readyz(Shared(state): Shared<State>) -> Response {
    let health = &state.vault.health;
    let problems = health.troubles();
    let status = if problems.is_empty() { "ok" } else { "degraded" };
    match health.is_ready() {
        true => view::json(StatusCode::OK, &json!({"status": status, "problems": problems})),
        false => view::json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "unready", "problems": problems})),
    }
}

/// `GET /metrics`, with a key that may see all accounts.
pub async fn metrics(Reader(caller): Reader) -> Result<Response, Problem> {
    match caller.visible() {
        None => Ok(exposition().await.into_response()),
        Some(_) => Err(Problem::Forbidden("read, not bound to accounts,")),
    }
}

/// The metrics as Prometheus reads them, without a key: for a port of their own.
pub async fn exposition() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::metrics().render())
}
