//! The console: a page at `/console` for those who look for a call and listen.
//!
//! Owns its files, which lie in the binary as they are, and what browsers are
//! told about them. It has no rights of its own: all that it shows it asks the
//! API for, with the key that its reader typed in. Nothing of it is kept or
//! known here.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::domain::digest::Digest;
use crate::telemetry;

/// One of its files: its name below `/console/`, what it is, and its bytes.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! assets {
    ($($content_type:literal: $($name:literal),+;)+) => {
        &[$($(Asset { name: $name, content_type: $content_type, bytes: include_bytes!(concat!("assets/", $name)) },)+)+]
    };
}

/// The page itself, which lies at `/console`.
const PAGE: &str = "index.html";
/// The one that applications get, too.
const PLAYER: Asset = Asset {
    name: "callvault-player.js",
    content_type: "text/javascript; charset=utf-8",
    bytes: include_bytes!("../../deploy/clients/browser/callvault-player.js"),
};
const ASSETS: &[Asset] = assets! {
    "text/html; charset=utf-8": "index.html";
    "text/javascript; charset=utf-8":
        "actions.js", "api.js", "dom.js", "facts.js", "feed.js", "filters.js", "format.js", "list.js", "main.js",
        "player.js", "recording.js", "row.js", "session.js", "share.js", "sign-in.js", "story.js", "wav.js",
        "waveform.js", "words.js";
    "text/css; charset=utf-8": "base.css", "player.css", "views.css";
    "image/svg+xml": "icon.svg";
};

/// The files with what changes when they do.
struct Console {
    files: Vec<(&'static Asset, HeaderValue)>,
    policy: HeaderValue,
}

/// The console's routes. `link_origin` is where links to recordings lead, where
/// that is not the origin of the page itself.
pub fn router<S: Clone + Send + Sync + 'static>(link_origin: Option<&str>) -> Router<S> {
    let tagged = |asset: &'static Asset| {
        let tag = HeaderValue::from_str(&format!("\"{}\"", Digest::of(asset.bytes))).expect("hex is a header");
        (asset, tag)
    };
    let files = ASSETS.iter().chain([&PLAYER]).map(tagged).collect();
    let console = Arc::new(Console { files, policy: policy(link_origin) });
    // What the page asks for is relative to it, and would not be found from below.
    let up = get(async || (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "../console")]));
    // Whoever knows no more than the service's address wants to see something.
    let home = get(async || (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "console")]));
    let routes = [("/", home), ("/console", get(page)), ("/console/", up), ("/console/{file}", get(file))];
    let mut router = Router::new();
    for (path, methods) in routes {
        telemetry::http_route(path);
        router = router.route(path, methods);
    }
    router.with_state(console)
}

async fn page(State(console): State<Arc<Console>>, headers: HeaderMap) -> Response {
    console.answer(PAGE, &headers)
}

async fn file(State(console): State<Arc<Console>>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    console.answer(&name, &headers)
}

/// Nothing but its own files, this service, and the bucket that links lead to.
fn policy(link_origin: Option<&str>) -> HeaderValue {
    let origin = link_origin.map(|origin| format!(" {origin}")).unwrap_or_default();
    let text = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self'{origin}; media-src 'self'{origin}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    HeaderValue::try_from(text).expect("an origin is plain ASCII")
}

impl Console {
    fn answer(&self, name: &str, headers: &HeaderMap) -> Response {
        let Some((asset, tag)) = self.files.iter().find(|(asset, _)| asset.name == name) else {
            return (StatusCode::NOT_FOUND, "The console has no such file.").into_response();
        };
        let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == tag);
        let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { asset.bytes.into_response() };
        let told = [
            (header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type)),
            // Kept, but asked about: after an upgrade nobody has the old one.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::ETAG, tag.clone()),
            (header::CONTENT_SECURITY_POLICY, self.policy.clone()),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        ];
        for (name, value) in told {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_console_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/console/assets");
        let mut lying: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let mut served: Vec<&str> = ASSETS.iter().map(|asset| asset.name).collect();
        lying.sort();
        served.sort_unstable();
        assert_eq!(lying, served);
    }

    #[test]
    fn the_bucket_is_allowed_for_links_and_nothing_else_is() {
        let policy = policy(Some("https://media.example.com"));
        let text = policy.to_str().unwrap();
        for directive in text.split("; ") {
            let of_links = directive.starts_with("media-src") || directive.starts_with("connect-src");
            assert_eq!(directive.contains("https://media.example.com"), of_links, "{directive}");
        }
        assert!(text.starts_with("default-src 'none'"));
        assert!(!text.contains("unsafe"));
    }
}
