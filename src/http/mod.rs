//! The HTTP side: routes, limits, and what is said when something is wrong.
//!
//! Handlers read a request, call one use case and show its answer; they decide
//! nothing else. [`router`] is the table of all routes. Paths are never logged
//! or counted as they came, only by the route that they matched.

mod audio;
mod auth;
mod blobs;
mod callback;
mod calls;
mod conditions;
mod content;
mod cors;
mod erase;
mod events;
mod limits;
mod openapi;
mod ops;
mod patience;
mod problem;
mod recordings;
mod request;
mod server;
mod shares;
mod view;
mod webhooks;

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State as Shared};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use http::{HeaderValue, Method, StatusCode};

pub use openapi::text as openapi;
pub use problem::Problem;
pub use server::serve;
pub use view::event_json;

use crate::bucket::{Embedded, embedded};
use crate::config::Config;
use crate::telemetry;
use crate::vault::Vault;

/// What handlers share. It is cloned several times a request.
#[derive(Clone)]
pub struct State(Arc<Parts>);

/// What it is made of.
pub struct Parts {
    vault: Arc<Vault>,
    limits: limits::Limits,
    /// What Twilio's signatures are over: scheme, host and perhaps a path.
    public_url: String,
    /// What shares begin with.
    share_url: String,
    origins: cors::Origins,
}

impl State {
    /// The state of a service that is called `public_url`.
    pub fn new(vault: Arc<Vault>, config: &Config, public_url: &str) -> Self {
        let share_url = config.share_url.as_deref().unwrap_or(public_url).to_owned();
        let origins = cors::Origins::new(&config.cors_origins);
        let limits = limits::Limits::default();
        Self(Arc::new(Parts { vault, limits, public_url: public_url.to_owned(), share_url, origins }))
    }
}

impl Deref for State {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Every route of the service.
fn routes() -> Vec<(&'static str, MethodRouter<State>)> {
    vec![
        ("/webhooks/twilio/recording", post(callback::receive).get(callback::receive)),
        ("/v1/calls/{call_sid}", get(calls::call).delete(erase::call)),
        ("/v1/calls/{call_sid}/recording", put(calls::put_recording)),
        ("/v1/calls/{call_sid}/audio", get(audio::audio)),
        ("/v1/calls/{call_sid}/link", get(audio::link)),
        ("/v1/calls/{call_sid}/content", get(content::content)),
        ("/api/calls/{call_sid}/download", get(content::content)),
        ("/v1/calls/{call_sid}/share", post(shares::share)),
        ("/v1/recordings", get(recordings::list)),
        ("/v1/recordings/{recording_sid}", get(recordings::recording).delete(erase::recording)),
        ("/v1/recordings/{recording_sid}/audio", get(audio::audio)),
        ("/v1/recordings/{recording_sid}/link", get(audio::link)),
        ("/v1/recordings/{recording_sid}/content", get(content::content)),
        ("/v1/blobs/{blob}", get(blobs::blob)),
        ("/v1/recordings/{recording_sid}/share", post(shares::share)),
        ("/v1/recordings/{recording_sid}/fetch", post(recordings::fetch_again)),
        ("/v1/recordings/{recording_sid}/hold", put(erase::hold).delete(erase::release)),
        ("/s/{token}", get(shares::play)),
        ("/v1/events", get(events::events)),
        ("/v1/webhooks", get(webhooks::list)),
        ("/v1/webhooks/{receiver}/deliveries", get(webhooks::deliveries)),
        ("/v1/webhooks/{receiver}/deliveries/{event}/retry", post(webhooks::retry)),
        ("/v1/webhooks/{receiver}/enable", post(webhooks::enable)),
        ("/healthz", get(ops::healthz)),
        ("/readyz", get(ops::readyz)),
        ("/metrics", get(ops::metrics)),
        ("/openapi.json", get(openapi::json)),
        ("/docs", get(openapi::docs)),
        ("/docs/style.css", get(openapi::style)),
    ]
}

/// The path of every route, as a pattern. Which methods it has is in the header
/// Allow of the answer to one that it has not.
pub fn paths() -> Vec<&'static str> {
    routes().into_iter().map(|(path, _)| path).collect()
}

/// The service's own port, with the pages of other rooms.
pub fn router(state: State, pages: Router<State>) -> Router {
    let mut router = pages.layer(middleware::map_response(as_a_problem));
    for (path, methods) in routes() {
        telemetry::http_route(path);
        router = router.route(path, methods);
    }
    router = router.layer(middleware::from_fn_with_state(state.clone(), in_time));
    if let Some(store) = state.vault.bucket.embedded() {
        router = with_embedded_store(router, store.clone(), &state);
    }
    router
        .fallback(async || Problem::NotFound)
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .layer(middleware::from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

/// What is no page of another room is told as everywhere else.
async fn as_a_problem(response: Response) -> Response {
    if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST) {
        Problem::NotFound.into_response()
    } else {
        response
    }
}

/// A port for metrics alone.
pub fn metrics_router() -> Router {
    Router::new().route("/metrics", get(ops::exposition)).fallback(async || Problem::NotFound)
}

/// The embedded S3 answers below its bucket's name.
fn with_embedded_store(router: Router<State>, store: Embedded, state: &State) -> Router<State> {
    let public_host = state.vault.bucket.signed_host();
    let answer = move |request: Request| {
        let (store, public_host) = (store.clone(), public_host.clone());
        async move {
            // A link was signed for the public host, whatever a proxy made of it since.
            let host = public_host.filter(|_| is_link(&request));
            let host = host.and_then(|host| HeaderValue::from_str(&host).ok());
            store.answer(request, host).await.map(Body::new)
        }
    };
    let bucket = format!("/{}", embedded::BUCKET);
    router
        .route(&bucket, axum::routing::any(answer.clone()))
        .route(&format!("{bucket}/"), axum::routing::any(answer.clone()))
        .route(&format!("{bucket}/{{*key}}"), axum::routing::any(answer))
}

/// Whether this is a link that somebody follows. What a command of this machine
/// signs in the same way, it sends here by itself: deletes, and questions about the
/// bucket.
fn is_link(request: &Request) -> bool {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let names_an_object = request.uri().path().trim_matches('/').contains('/');
    let signed = request.uri().query().is_some_and(|query| query.contains("X-Amz-Signature="));
    reads && names_an_object && signed
}

/// The longest that any answer takes: the longest wait, and time to make it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);

/// Ends what takes too long, or has lost its key.
async fn in_time(Shared(state): Shared<State>, request: Request, next: Next) -> Response {
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, auth::guard(&state, request, next)).await;
    answered.unwrap_or_else(|_| Problem::Unavailable("The answer took too long.").into_response())
}

/// Counts and logs a request by the route that it matched.
async fn observe(Shared(state): Shared<State>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = telemetry::method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = cors::cors(&state.origins, request, next).await;
    let (status, took) = (response.status().as_u16(), began.elapsed());
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    tracing::debug!(method, route, status, ?took, "answered");
    telemetry::http_answered(route, method, status, took);
    response
}
