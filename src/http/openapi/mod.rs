//! The API's document (OpenAPI 3.1) at `/openapi.json`, and the page made of it at
//! `/docs`.
//!
//! Shapes come from the types that handlers answer with, problems from
//! [`Problem`](super::Problem), words from the domain's lists. Both answers are
//! made once, from what lies in the binary; the page runs no script.

mod examples;
mod operation;
mod operations;
mod page;
mod problems;
pub mod schemas;

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::header;
use serde_json::{Map, Value, json};

use self::operation::{API_KEY, TWILIO_SIGNATURE, named};
use super::calls::PutBody;
use super::ops::Readiness;
use super::problem::Document;
use super::shares::{ShareAnswer, Wishes};
use super::view::{CallAnswer, EventView, FeedPage, LinkAnswer, Page, PendingAnswer, RecordingView};
use super::webhooks::{DeliveriesAnswer, DeliveryView, ReceiverView, ReceiversAnswer};
use crate::domain::sid::ConferenceSid;

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
static TEXT: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string_pretty(&*DOCUMENT).expect("the document has text keys only"));
static PAGE: LazyLock<String> = LazyLock::new(|| page::render(&DOCUMENT));

const STYLE: &str = include_str!("style.css");
/// The page has no script, and is in nobody's frame.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The document as it is served, and as `callvault openapi` prints it.
pub fn text() -> &'static str {
    &TEXT
}

/// `GET /openapi.json`.
pub async fn json() -> Response {
    answer("application/json", text())
}

/// `GET /docs`.
pub async fn docs() -> Response {
    answer("text/html; charset=utf-8", &PAGE)
}

/// `GET /docs/style.css`.
pub async fn style() -> Response {
    answer("text/css; charset=utf-8", STYLE)
}

fn answer(content_type: &'static str, text: &'static str) -> Response {
    let told = [
        (header::CONTENT_TYPE, content_type),
        // After an upgrade nobody has the old one.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (told, text).into_response()
}

const ABOUT: &str = "Fetches each Twilio call recording exactly once, keeps it in S3 under its call SID, and serves \
    everyone from there.\n\nA field that is not known is `null`, never left out. Times are RFC 3339 in UTC. Every \
    problem is an `application/problem+json` (RFC 9457) with a stable `code`. What belongs to another account is the \
    same `not_found` as what does not exist. HEAD is answered wherever GET is; another method that a path has not is \
    405 `method_not_allowed`.";

fn document() -> Value {
    let (mut paths, mut problems) = (Map::new(), Map::new());
    for operation in operations::all() {
        let methods = paths.entry(operation.path).or_insert_with(|| json!({}));
        let mut call = operation.finished();
        if let Some(answers) = call["responses"].as_object_mut() {
            problems::share(answers, &mut problems);
        }
        methods[operation.method] = call;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "callvault",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This service."}],
        "tags": tags(),
        "paths": paths,
        "components": {"schemas": shapes(), "responses": problems, "securitySchemes": security()},
    })
}

fn tags() -> Value {
    let tags = [
        ("Calls", "What is recorded of a call."),
        ("Recordings", "One recording, and lists of them."),
        ("Audio", "By a redirect, as a link, or through the service."),
        ("Shares", "URLs that play without a key."),
        ("Events", "The feed of all that happens."),
        ("Webhooks", "Who gets events, and what they got."),
        ("Letting go", "Erasing, and holds that forbid it."),
        ("Twilio", "What Twilio calls."),
        ("Service", "For those who run it."),
    ];
    tags.map(|(name, description)| json!({"name": name, "description": description})).into()
}

fn shapes() -> Map<String, Value> {
    let mut shapes = Map::new();
    let types = [
        named::<RecordingView>,
        named::<CallAnswer>,
        named::<Page>,
        named::<LinkAnswer>,
        named::<PendingAnswer>,
        named::<EventView>,
        named::<FeedPage>,
        named::<ShareAnswer>,
        named::<ReceiversAnswer>,
        named::<ReceiverView>,
        named::<DeliveriesAnswer>,
        named::<DeliveryView>,
        named::<Readiness>,
        named::<Document>,
        named::<PutBody>,
        named::<Wishes>,
        named::<ConferenceSid>,
    ];
    operation::components(&mut shapes, &types);
    shapes
}

fn security() -> Value {
    json!({
        API_KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key of `callvault keys create`, or CALLVAULT_ADMIN_KEY. It has scopes (`read`, \
                `ingest`, `admin`, which includes the others), named beside each call, and may be bound to accounts.",
        },
        TWILIO_SIGNATURE: {
            "type": "apiKey",
            "in": "header",
            "name": "X-Twilio-Signature",
            "description": "Twilio's: HMAC-SHA1 with the account's auth token over the URL that Twilio was told to \
                call (CALLVAULT_PUBLIC_URL, then path and query as they came), for a form followed by its fields \
                sorted by name; in base64.",
        },
    })
}
