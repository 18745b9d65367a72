//! Traces over OTLP (HTTP with protobuf), where the settings name a receiver.
//!
//! One trace leads from a callback to the stored recording, over whichever nodes:
//! its context is kept with the recording (W3C `traceparent`). Without a receiver
//! nothing is made and nothing is kept. A receiver that is away costs its spans,
//! never a request: they wait in a bounded queue, and are sent by a thread of its own.

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use url::Url;

/// One batch, and with it the end of a node.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Sends from the exporter's own thread by the service's runtime.
#[derive(Debug)]
struct ByRuntime {
    http: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for ByRuntime {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let answer = http.execute(request).await?;
            let status = answer.status();
            Ok::<_, reqwest::Error>((status, answer.bytes().await?))
        });
        let (status, body) = sent.await??;
        Ok(http::Response::builder().status(status).body(body)?)
    }
}

/// What makes the spans of this process; None where the receiver cannot be used.
pub(super) fn tracer(endpoint: &Url) -> Option<SdkTracer> {
    let http = reqwest::Client::builder().timeout(EXPORT_TIMEOUT).redirect(reqwest::redirect::Policy::none()).build();
    let client = ByRuntime { http: http.ok()?, runtime: Handle::try_current().ok()? };
    // As the specification has it: the endpoint is a base for all signals.
    let url = format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .ok()?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    // Of one trace each span tells on which node it was.
    let instance = KeyValue::new("service.instance.id", format!("{}-{}", host_name(), std::process::id()));
    // And what its operator says of it, in OTEL_RESOURCE_ATTRIBUTES.
    let resource = Resource::builder_empty()
        .with_service_name("callvault")
        .with_attributes([version, instance])
        .with_detector(Box::new(EnvResourceDetector::new()))
        .build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    Some(PROVIDER.get_or_init(|| provider).tracer("callvault"))
}

/// What this machine is called by those who run it.
pub fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { "node".to_owned() } else { host.to_owned() }
}

/// Sends what was not sent yet, for no longer than a batch may take.
pub async fn flush_traces() {
    let Some(provider) = PROVIDER.get() else { return };
    let flushed = tokio::task::spawn_blocking(|| provider.shutdown_with_timeout(EXPORT_TIMEOUT));
    if !matches!(tokio::time::timeout(EXPORT_TIMEOUT, flushed).await, Ok(Ok(Ok(())))) {
        tracing::warn!("some traces were not sent");
    }
}

/// Where the trace is at, for whoever goes on with it; None where none is made.
pub fn traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let at = context.span().span_context().clone();
    at.is_valid().then(|| format!("00-{}-{}-{:02x}", at.trace_id(), at.span_id(), at.trace_flags().to_u8()))
}

/// Makes a span that has not begun go on from there; what cannot be read begins a trace of its own.
pub fn go_on(span: &tracing::Span, traceparent: Option<&str>) {
    if let Some(at) = traceparent.and_then(read) {
        // A span that nobody records has no parent.
        let _ = span.set_parent(Context::new().with_remote_span_context(at));
    }
}

fn read(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let at = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    (version == "00" && at.is_valid()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_traceparent_is_read() {
        let right = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let at = read(right).unwrap();
        assert_eq!(at.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(at.is_remote() && at.is_sampled());
        for wrong in ["", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", &right[..50]] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn without_a_receiver_there_is_no_trace() {
        assert_eq!(traceparent(), None);
    }
}
