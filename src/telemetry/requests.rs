//! The metrics of what this node was asked, and what it answered.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};

use super::registry::{Kind, Metric};
use crate::domain::sid::AccountSid;

const HTTP_REQUESTS: &str = "callvault_http_requests_total";
const HTTP_SECONDS: &str = "callvault_http_request_seconds";
const CALLBACKS: &str = "callvault_callbacks_total";
const SIGNATURES: &str = "callvault_callback_signatures_total";
const DELIVERIES: &str = "callvault_deliveries_total";
const QUESTIONS: &str = "callvault_questions_total";
const MEMORY_HITS: &str = "callvault_memory_hits_total";

/// The methods that are counted by name; clients that make one up make no label.
pub(super) const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "other"];

/// What became of a callback. `foreign`: badly signed, too, but by it no account of
/// ours misses a recording.
pub const CALLBACK_OUTCOMES: &[&str] =
    &["accepted", "known", "bad_signature", "foreign", "malformed", "unsupported_media_type", "unavailable"];

/// What was answered to "play this".
pub const DELIVERY_KINDS: &[&str] = &["redirect", "stream", "not_ready", "gone", "unknown", "unavailable"];

/// What became of asking Twilio for a call that was not known. `overtaken`: news of
/// it came first, or the right to ask was lost; `refused`: too many were asked for.
pub const QUESTION_OUTCOMES: &[&str] = &["found", "nothing", "unavailable", "overtaken", "handed_back", "refused"];

/// Those whose labels are known only once the service is put together.
pub(super) const OPEN: &[&str] = &[HTTP_REQUESTS, HTTP_SECONDS, SIGNATURES];

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: CALLBACKS,
        kind: Kind::Counter,
        help: "Callbacks by what became of them",
        label: Some(("outcome", CALLBACK_OUTCOMES)),
    },
    Metric {
        name: DELIVERIES,
        kind: Kind::Counter,
        help: "Requests to play a recording by what was answered",
        label: Some(("kind", DELIVERY_KINDS)),
    },
    Metric {
        name: QUESTIONS,
        kind: Kind::Counter,
        help: "Questions to Twilio for calls that were not known, by what became of them",
        label: Some(("outcome", QUESTION_OUTCOMES)),
    },
    Metric {
        name: MEMORY_HITS,
        kind: Kind::Counter,
        help: "Requests to play a recording that were answered from memory, without asking the catalog",
        label: None,
    },
];

pub(super) fn declare() {
    metrics::describe_counter!(HTTP_REQUESTS, "Requests by route, method and status");
    metrics::describe_histogram!(HTTP_SECONDS, metrics::Unit::Seconds, "How long requests took until their headers");
    metrics::describe_counter!(SIGNATURES, "Callbacks that tell of a recording, by account and whether it signed them");
}

/// The accounts that callbacks are taken of: no other becomes a label.
pub fn callback_accounts(accounts: &[AccountSid]) {
    for account in accounts {
        for signature in ["right", "wrong"] {
            counter!(SIGNATURES, "account" => account.to_string(), "signature" => signature).absolute(0);
        }
    }
}

/// A callback told of a recording of that account, which is configured.
pub fn callback_signed(account: &AccountSid, is_right: bool) {
    let signature = if is_right { "right" } else { "wrong" };
    counter!(SIGNATURES, "account" => account.to_string(), "signature" => signature).increment(1);
}

/// A route that will be counted.
pub fn http_route(route: &'static str) {
    counter!(HTTP_REQUESTS, "route" => route, "method" => "GET", "status" => "200").absolute(0);
    drop(histogram!(HTTP_SECONDS, "route" => route));
}

/// A request was answered. `route` is the route's pattern, never the path.
pub fn http_answered(route: &str, method: &'static str, status: u16, took: Duration) {
    ROUTES.with_borrow_mut(|routes| {
        if !routes.contains_key(route) {
            routes.insert(route.to_owned(), OfRoute::new(route));
        }
        if let Some(of_route) = routes.get_mut(route) {
            of_route.answered(method, status).increment(1);
            of_route.took.record(took);
        }
    });
}

thread_local! {
    /// What is counted of each route: to find it by its labels takes longer than to answer from memory.
    static ROUTES: RefCell<HashMap<String, OfRoute>> = RefCell::default();
}

/// What is counted of a route.
struct OfRoute {
    route: String,
    took: Histogram,
    answered: Vec<(&'static str, u16, Counter)>,
}

impl OfRoute {
    fn new(route: &str) -> Self {
        // What is found before there is a recorder counts nothing.
        super::registry::metrics();
        let took = histogram!(HTTP_SECONDS, "route" => route.to_owned());
        Self { route: route.to_owned(), took, answered: Vec::new() }
    }

    fn answered(&mut self, method: &'static str, status: u16) -> &Counter {
        let is_it = |known: &(&'static str, u16, Counter)| (known.0, known.1) == (method, status);
        let at = self.answered.iter().position(is_it).unwrap_or_else(|| {
            let labels = [("route", self.route.clone()), ("method", method.to_owned()), ("status", status.to_string())];
            self.answered.push((method, status, counter!(HTTP_REQUESTS, &labels)));
            self.answered.len() - 1
        });
        &self.answered[at].2
    }
}

/// A method as a label.
pub fn method_label(method: &http::Method) -> &'static str {
    METHODS.iter().find(|known| **known == method.as_str()).copied().unwrap_or("other")
}

/// A callback came; `outcome` is one of [`CALLBACK_OUTCOMES`].
pub fn callback(outcome: &'static str) {
    counter!(CALLBACKS, "outcome" => outcome).increment(1);
}

/// Someone wanted to play a recording; `kind` is one of [`DELIVERY_KINDS`].
pub fn delivery(kind: &'static str) {
    counter!(DELIVERIES, "kind" => kind).increment(1);
}

/// Twilio was asked for a call that was not known, or should have been; `outcome`
/// is one of [`QUESTION_OUTCOMES`].
pub fn question(outcome: &'static str) {
    counter!(QUESTIONS, "outcome" => outcome).increment(1);
}

/// The answer came from memory: the catalog was not asked, or did not answer.
pub fn memory_hit() {
    counter!(MEMORY_HITS).increment(1);
}
