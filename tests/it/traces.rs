//! Traces: one leads from the callback to the stored recording, over the nodes
//! that took part, as a receiver of OTLP gets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use callvault::twilio::simulator::Fault;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::StatusCode;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::eventually;
use crate::support::world::{Parts, World};

/// A receiver of traces, and what it got.
pub struct Receiver {
    pub url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    /// Of each span by its id: the node that sent it, with all that this says of itself.
    nodes: Arc<Mutex<BTreeMap<Vec<u8>, String>>>,
    _running: AbortOnDropHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let nodes: Arc<Mutex<BTreeMap<Vec<u8>, String>>> = Arc::default();
        let (kept, told_by) = (spans.clone(), nodes.clone());
        let take = move |body: Bytes| async move {
            let Ok(sent) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
            for of_resource in sent.resource_spans {
                let attributes = of_resource.resource.unwrap_or_default().attributes;
                assert!(attributes.iter().any(|attribute| attribute.key == "service.instance.id"));
                let node = format!("{attributes:?}");
                for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
                    told_by.lock().unwrap().insert(span.span_id.clone(), node.clone());
                    kept.lock().unwrap().push(span);
                }
            }
            StatusCode::OK
        };
        let routes = Router::new().route("/v1/traces", post(take));
        let serving = callvault::http::serve(listener, routes, tokio_util::sync::CancellationToken::new());
        Self { url, spans, nodes, _running: AbortOnDropHandle::new(tokio::spawn(serving)) }
    }

    /// All that was sent so far, as text.
    pub fn told(&self) -> String {
        format!("{:?}", self.spans.lock().unwrap())
    }

    /// The node that sent that span.
    fn node_of(&self, span: &Span) -> String {
        self.nodes.lock().unwrap()[&span.span_id].clone()
    }

    /// The spans so far, by trace.
    fn traces(&self) -> BTreeMap<Vec<u8>, Vec<Span>> {
        let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
        for span in self.spans.lock().unwrap().iter() {
            traces.entry(span.trace_id.clone()).or_default().push(span.clone());
        }
        traces
    }
}

fn names(spans: &[Span]) -> BTreeSet<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_leads_from_callback_to_stored_over_two_nodes() {
    let mut world = World::new(Parts::Servers).await;
    let receiver = Receiver::start().await;
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.clone());
    world.set("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=trial");
    // What is logged has nothing to do with it.
    world.set("CALLVAULT_LOG", "error");
    world.set("CALLVAULT_RETRY_CAP", "500ms");
    let first = world.start().await;
    let id = world.record(1);
    // Not there until the node that took the callback is gone.
    world.simulator.always(id.recording, Some(Fault::NotReady));
    assert_eq!(first.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    eventually("it was asked for", async || (world.simulator.counts(id.recording).media_requests > 0).then_some(()))
        .await;
    first.signal("TERM");
    assert!(first.end().await.success());
    let told = |spans: &[Span]| names(spans).is_superset(&BTreeSet::from(["callback", "accept", "fetch"]));
    assert!(receiver.traces().values().any(|spans| told(spans)), "a node that ends has sent its spans");

    let second = world.start().await;
    world.simulator.always(id.recording, None);
    second.recording_in(id.recording, "stored").await;
    second.signal("TERM");
    assert!(second.end().await.success());

    let traces = receiver.traces();
    let [spans] = &traces.values().filter(|spans| told(spans)).collect::<Vec<_>>()[..] else { panic!("{traces:#?}") };
    assert_eq!(names(spans), BTreeSet::from(["callback", "accept", "fetch", "store"]));
    let one = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(one("accept").parent_span_id, one("callback").span_id);
    let fetches: Vec<&Span> = spans.iter().filter(|span| span.name == "fetch").collect();
    assert!(fetches.len() >= 2 && fetches.iter().all(|fetch| fetch.parent_span_id == one("accept").span_id));
    assert!(fetches.iter().any(|fetch| fetch.span_id == one("store").parent_span_id));
    let [called_back, stored] = ["callback", "store"].map(|name| receiver.node_of(one(name)));
    assert_ne!(called_back, stored, "the one took the callback, the other one stored it");
    for said in ["callvault", "deployment.environment.name", "trial"] {
        assert!(called_back.contains(said) && stored.contains(said), "{said}: {stored}");
    }
    let text = format!("{spans:?}");
    assert!(text.contains(id.recording.as_str()), "spans name the recording: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_away_costs_nothing_but_its_spans() {
    let mut world = World::new(Parts::Embedded).await;
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", crate::support::servers::free_port()));
    let service = world.start().await;
    let id = world.record(1);
    assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    service.recording_in(id.recording, "stored").await;
    service.signal("TERM");
    assert!(service.end().await.success());
}
