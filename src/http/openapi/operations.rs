//! Every call of the API: what it takes and what it answers.
//!
//! In the order of the router's table. What a test finds in one of the two and
//! not in the other, fails.

use serde_json::{Value, json};

use super::examples;
use super::operation::{Operation, header, queries, query, reference};
use super::schemas::EventType;
use crate::catalog::DeliveryState;
use crate::domain::key::Scope::{Admin, Ingest, Read};
use crate::domain::recording::State;
use crate::domain::sid::{AccountSid, CallSid, ConferenceSid, RecordingSid};
use crate::http::calls::PutBody;
use crate::http::ops::Readiness;
use crate::http::shares::{ShareAnswer, Wishes};
use crate::http::view::{CallAnswer, FeedPage, LinkAnswer, Page, PendingAnswer, RecordingView};
use crate::http::webhooks::{DeliveriesAnswer, DeliveryView, ReceiverView, ReceiversAnswer};

/// All of them.
pub fn all() -> Vec<Operation> {
    let mut all = [callbacks(), calls(), recordings(), shares(), events(), webhooks(), service()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    let heads: Vec<Operation> =
        all.iter().filter(|call| call.method == "get" && HEADS.contains(&call.path)).map(Operation::head).collect();
    all.extend(heads);
    all
}

/// GET is answered to HEAD everywhere; here it is a call of its own.
const HEADS: [&str; 7] = [
    "/v1/calls/{call_sid}/audio",
    "/v1/calls/{call_sid}/content",
    "/api/calls/{call_sid}/download",
    "/v1/recordings/{recording_sid}/audio",
    "/v1/recordings/{recording_sid}/content",
    "/v1/blobs/{blob}",
    "/s/{token}",
];
/// Audio that is asked for, and is not given.
const NO_AUDIO: [&str; 6] =
    ["invalid_request", "not_found", "not_ready", "recording_absent", "erased", "recording_failed"];

fn wait() -> Value {
    let schema = json!({"type": "integer", "minimum": 0, "maximum": 30, "default": 10});
    query("wait", schema, "Seconds to wait for what is on its way.")
}

fn limit() -> Value {
    query("limit", json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}), "How many at once.")
}

fn disposition() -> Value {
    let schema = json!({"type": "string", "enum": ["inline", "attachment"], "default": "inline"});
    query("disposition", schema, "`attachment` to save it under a name that a person understands.")
}

fn after(what: &str) -> Value {
    query("after", json!({"type": "string"}), what)
}

fn at_twilio() -> Value {
    query("twilio", json!({"type": "boolean", "default": false}), "Whether Twilio's copy is erased, too.")
}

fn time(name: &str, what: &str) -> Value {
    let schema = json!({"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date"}]});
    query(name, schema, what)
}

fn callbacks() -> Vec<Operation> {
    let sids: Value = [
        ("AccountSid", reference::<AccountSid>()),
        ("CallSid", reference::<CallSid>()),
        ("RecordingSid", reference::<RecordingSid>()),
    ]
    .into_iter()
    .map(|(name, schema)| (name.to_owned(), schema))
    .collect();
    let mut fields =
        json!({"type": "object", "properties": sids, "required": ["AccountSid", "RecordingSid", "RecordingUrl"]});
    fields["properties"]["RecordingUrl"] = json!({"type": "string"});
    fields["properties"]["RecordingStatus"] =
        json!({"type": "string", "examples": ["completed", "in-progress", "absent", "failed"]});
    let callback = |method, id| {
        Operation::new(method, "/webhooks/twilio/recording", id, "Twilio tells of a recording")
            .tag("Twilio")
            .about(
                "Where `recordingStatusCallback` points. 204 comes once it is durable. X-Twilio-Signature is over \
                 CALLVAULT_PUBLIC_URL and the path and query as they came: of GET the fields are in the query, of \
                 POST in the form; a JSON body is signed by `bodySHA256` in the query.",
            )
            .signed()
            .gives(204, "It is durable.")
            .problems(&["invalid_request", "bad_signature", "payload_too_large", "unavailable"])
    };
    let in_query = ["AccountSid", "RecordingSid", "RecordingUrl", "RecordingStatus", "CallSid"]
        .map(|name| query(name, json!({"type": "string"}), "As Twilio sends it."));
    vec![
        callback("post", "post_callback").form(fields, examples::callback()).problems(&["unsupported_media_type"]),
        callback("get", "get_callback").takes(in_query),
    ]
}

fn audio(path: &'static str, id: &str, whose: &str) -> Operation {
    Operation::new("get", path, id, &format!("Play {whose}"))
        .tag("Audio")
        .about("A redirect to a link into the bucket. Never a 2xx without audio.")
        .needs(Read)
        .takes([wait(), disposition()])
        .gives(307, "Where it plays.")
        .with_headers(307, &[("Location", "The link."), ("Cache-Control", "How long the redirect may be kept.")])
        .problems(&NO_AUDIO)
}

fn link(path: &'static str, id: &str, whose: &str) -> Operation {
    Operation::new("get", path, id, &format!("A link to {whose}"))
        .tag("Audio")
        .needs(Read)
        .takes([wait(), disposition()])
        .gives_json::<LinkAnswer>(200, "The link.", examples::link())
        .gives_json::<PendingAnswer>(202, "It is known, and on its way.", examples::pending())
        .with_headers(202, &[("Retry-After", "When to ask again, in seconds.")])
        .problems(&NO_AUDIO)
}

fn content(path: &'static str, id: &str, whose: &str) -> Operation {
    let conditions = ["If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range"]
        .map(|name| header(name, "As RFC 9110 says."));
    let about = [
        ("ETag", "The digest, where the recording is stored."),
        ("Repr-Digest", "The digest as RFC 9530 writes it."),
        ("Content-Disposition", "Its name."),
    ];
    let call = Operation::new("get", path, id, &format!("The bytes of {whose}"))
        .tag("Audio")
        .about(
            "Through the service. What is being fetched flows as it comes, in chunks, without ETag and Range; \
             what is stored has both.",
        )
        .needs(Read)
        .takes([wait(), disposition(), header("Range", "Which bytes.")])
        .takes(conditions)
        .gives(304, "What the client has is what it is.")
        .problems(&NO_AUDIO)
        .problems(&["precondition_failed", "range_not_satisfiable"]);
    let binary = json!({"schema": {}});
    [(200, "All bytes."), (206, "The bytes of the range.")].into_iter().fold(call, |call, (status, words)| {
        let call = call.gives_as(status, words, "audio/mpeg", binary.clone());
        call.gives_as(status, words, "audio/wav", binary.clone()).with_headers(status, &about)
    })
}

fn share(path: &'static str, id: &str, whose: &str) -> Operation {
    Operation::new("post", path, id, &format!("A URL that plays {whose} without a key"))
        .tag("Shares")
        .about("It names the recording that is chosen now, stored or not. Without a body it lives a day.")
        .needs(Read)
        .takes([wait()])
        .body::<Wishes>(false, json!({"expires_in": "90m"}))
        .gives_json::<ShareAnswer>(201, "The share.", examples::share())
        .problems(&NO_AUDIO)
        .problems(&["payload_too_large", "unsupported_media_type"])
}

fn calls() -> Vec<Operation> {
    const WHOSE: &str = "a call's recording";
    vec![
        Operation::new("get", "/v1/calls/{call_sid}", "get_call", "A call and its recordings")
            .tag("Calls")
            .about("Never asks Twilio.")
            .needs(Read)
            .gives_json::<CallAnswer>(200, "Its recordings, newest first.", examples::call())
            .problems(&["not_found"]),
        Operation::new("delete", "/v1/calls/{call_sid}", "erase_call", "Erase a call's recordings")
            .tag("Letting go")
            .about("All of them, for good; none where one is held. Repeatable.")
            .needs(Admin)
            .takes([at_twilio()])
            .gives(204, "They are erased.")
            .gives_json::<CallAnswer>(202, "They are; a part in the bucket or at Twilio is owed.", examples::call())
            .problems(&["invalid_request", "not_found", "held"]),
        Operation::new("put", "/v1/calls/{call_sid}/recording", "put_recording", "Name a recording of a call")
            .tag("Calls")
            .about("Of an application that holds the URL, as Twilio told it. The call answers for it from now on.")
            .needs(Ingest)
            .body::<PutBody>(true, examples::put())
            .gives_json::<RecordingView>(202, "It is new, and on its way.", examples::recording_pending())
            .gives_json::<RecordingView>(200, "It was known.", examples::recording_alone())
            .problems(&["invalid_request", "not_found", "erased", "payload_too_large", "unsupported_media_type"]),
        audio("/v1/calls/{call_sid}/audio", "get_call_audio", WHOSE),
        link("/v1/calls/{call_sid}/link", "get_call_link", WHOSE),
        content("/v1/calls/{call_sid}/content", "get_call_content", WHOSE),
        content("/api/calls/{call_sid}/download", "get_call_download", WHOSE)
            .about("The older application's path: the same as `/v1/calls/{call_sid}/content`."),
        share("/v1/calls/{call_sid}/share", "share_call", WHOSE),
    ]
}

fn recordings() -> Vec<Operation> {
    const WHOSE: &str = "a recording";
    let states: Vec<&str> = State::ALL.iter().map(|state| state.as_str()).collect();
    let filters = [
        query("account_sid", reference::<AccountSid>(), "Of that account."),
        queries("call_sid", reference::<CallSid>(), 100, "Of these calls."),
        query("conference_sid", reference::<ConferenceSid>(), "Of that conference."),
        query("state", json!({"type": "string", "enum": states}), "In that state; erased ones only come so."),
        time("since", "Recorded at that time or later: a time, or a day (UTC)."),
        time("until", "Recorded before that time."),
        after("`next` of the page before."),
        limit(),
    ];
    let one = |method, id, summary: &str| {
        Operation::new(method, "/v1/recordings/{recording_sid}", id, summary).problems(&["not_found"])
    };
    let hold = |method, id, summary: &str, given: &str| {
        Operation::new(method, "/v1/recordings/{recording_sid}/hold", id, summary)
            .tag("Letting go")
            .needs(Admin)
            .gives_json::<RecordingView>(200, given, examples::recording_alone())
            .problems(&["not_found", "erased"])
    };
    vec![
        Operation::new("get", "/v1/recordings", "list_recordings", "Recordings, newest first")
            .tag("Recordings")
            .about("A page. Never asks Twilio.")
            .needs(Read)
            .takes(filters)
            .gives_json::<Page>(200, "A page.", examples::page())
            .problems(&["invalid_request"]),
        one("get", "get_recording", "A recording and its history")
            .tag("Recordings")
            .about("Of an erased one the SIDs and times are left. Never asks Twilio.")
            .needs(Read)
            .gives_json::<RecordingView>(200, "The recording.", examples::recording()),
        one("delete", "erase_recording", "Erase a recording")
            .tag("Letting go")
            .about("For good: it never comes back. Repeatable.")
            .needs(Admin)
            .takes([at_twilio()])
            .gives(204, "It is erased.")
            .gives_json::<RecordingView>(
                202,
                "It is; a part in the bucket or at Twilio is owed.",
                examples::recording_alone(),
            )
            .problems(&["invalid_request", "held"]),
        audio("/v1/recordings/{recording_sid}/audio", "get_recording_audio", WHOSE),
        link("/v1/recordings/{recording_sid}/link", "get_recording_link", WHOSE),
        content("/v1/recordings/{recording_sid}/content", "get_recording_content", WHOSE),
        audio("/v1/blobs/{blob}", "get_blob", "audio by its content")
            .about("Any recording that the key may see, and that is stored with those bytes, answers."),
        share("/v1/recordings/{recording_sid}/share", "share_recording", WHOSE),
        Operation::new("post", "/v1/recordings/{recording_sid}/fetch", "fetch_recording", "Try again to fetch it")
            .tag("Recordings")
            .needs(Admin)
            .gives_json::<RecordingView>(202, "It is on its way.", examples::recording_pending())
            .gives_json::<RecordingView>(200, "It is stored already.", examples::recording_alone())
            .problems(&["not_found", "erased"]),
        hold("put", "hold_recording", "Hold a recording", "It is held: nothing of it is removed from now on."),
        hold("delete", "release_recording", "Release a hold", "It is not held."),
    ]
}

fn shares() -> Vec<Operation> {
    let told = [("Location", "The link."), ("Referrer-Policy", "`no-referrer`."), ("Cache-Control", "`no-store`.")];
    vec![
        Operation::new("get", "/s/{token}", "play_share", "Play a share")
            .tag("Shares")
            .about("Whoever has the URL. For `<audio src>`, a CRM or a mail.")
            .takes([wait(), disposition()])
            .gives(307, "Where it plays.")
            .with_headers(307, &told)
            .problems(&NO_AUDIO)
            .problems(&["expired", "unavailable"]),
    ]
}

fn events() -> Vec<Operation> {
    let words = "What happened, in order.";
    let stream = json!({
        "schema": {"type": "string"},
        "example": "retry: 1000\n\nid: 1795429807000-000000000000002\nevent: recording.stored\ndata: {…}\n\n:\n\n",
    });
    vec![
        Operation::new("get", "/v1/events", "get_events", "Follow what happens")
            .tag("Events")
            .about(
                "A page that is waited for, or with `Accept: text/event-stream` a stream of `id`, `event` and \
                 `data` (an `event`), and a comment every 15 s. Without `after` from the oldest on. Who goes on \
                 from `next`, or the last id, misses nothing and gets nothing twice.",
            )
            .needs(Read)
            .takes([
                after("`next` of the page before, the id of an event, or `latest` for what is new."),
                wait(),
                limit(),
                queries("type", reference::<EventType>(), crate::config::EVENT_TYPES.len(), "Of these types."),
                query("account_sid", reference::<AccountSid>(), "Of that account."),
                query("call_sid", reference::<CallSid>(), "Of that call."),
                header("Last-Event-ID", "Of a stream that was cut off: wins over `after`."),
            ])
            .gives_json::<FeedPage>(200, words, examples::feed())
            .gives_as(200, words, "text/event-stream", stream)
            .problems(&["invalid_request"]),
    ]
}

fn webhooks() -> Vec<Operation> {
    let states = DeliveryState::ALL.map(DeliveryState::as_str);
    let call = |method, path, id, summary: &str| Operation::new(method, path, id, summary).tag("Webhooks").needs(Admin);
    vec![
        call("get", "/v1/webhooks", "list_webhooks", "The receivers of events")
            .about("As the settings have them. A key that is bound to accounts sees none of this.")
            .gives_json::<ReceiversAnswer>(200, "All of them.", examples::receivers()),
        call("get", "/v1/webhooks/{receiver}/deliveries", "list_deliveries", "What a receiver got")
            .takes([
                query("state", json!({"type": "string", "enum": states}), "In that state."),
                after("`next` of the page before."),
                limit(),
            ])
            .gives_json::<DeliveriesAnswer>(200, "A page, newest first.", examples::deliveries())
            .problems(&["invalid_request", "not_found"]),
        call("post", "/v1/webhooks/{receiver}/deliveries/{event}/retry", "retry_delivery", "Post an event again")
            .about("Whether it was taken or not.")
            .gives_json::<DeliveryView>(202, "It is posted at once.", examples::delivery())
            .problems(&["not_found", "conflict"]),
        call("post", "/v1/webhooks/{receiver}/enable", "enable_webhook", "Enable a receiver")
            .about("It said that it wants no more, and does again, from now on.")
            .gives_json::<ReceiverView>(200, "It is enabled.", examples::receiver())
            .problems(&["not_found"]),
    ]
}

fn service() -> Vec<Operation> {
    let call = |path, id, summary: &str| Operation::new("get", path, id, summary).tag("Service");
    let text = |example: &str| json!({"schema": {"type": "string"}, "example": example});
    vec![
        call("/healthz", "get_health", "The process answers").gives(200, "It does. Nothing else is looked at."),
        call("/readyz", "get_readiness", "Whether requests are to be sent here")
            .gives_json::<Readiness>(200, "They are, even where something is wrong.", examples::readiness())
            .gives_json::<Readiness>(503, "Not yet, or no more.", examples::unready()),
        call("/metrics", "get_metrics", "How the service fares")
            .about("For Prometheus. The key must not be bound to accounts.")
            .needs(Read)
            .gives_as(200, "All metrics.", "text/plain", text("callvault_recordings_stored_total 1\n")),
        call("/openapi.json", "get_openapi", "This document").gives_as(
            200,
            "OpenAPI 3.1.",
            "application/json",
            json!({"schema": {"type": "object"}}),
        ),
        call("/docs", "get_docs", "This document for people").gives_as(
            200,
            "A page.",
            "text/html",
            text("<!doctype html>…"),
        ),
        call("/docs/style.css", "get_docs_style", "How that page looks").gives_as(
            200,
            "A style sheet.",
            "text/css",
            text("body { … }"),
        ),
    ]
}
