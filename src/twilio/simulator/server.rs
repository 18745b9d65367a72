//! The simulator's HTTP side: routes, credentials, media with its faults, and
//! the REST API as far as callvault asks it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::body::{Framing, Media};
use super::faults::{Fault, RestFault};
use super::{Seen, Shared, SimulatedEncryption, SimulatedRecording};
use crate::domain::media::Format;
use crate::domain::sid::{AccountSid, RecordingSid};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// What a listener stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// `api.twilio.com`.
    Api,
    /// The host that media is redirected to. It asks for no credentials.
    MediaHost,
}

pub(super) fn spawn(listener: TcpListener, shared: Arc<Shared>, role: Role) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            // An accept fails for want of file descriptors: the next one may not.
            let Ok((socket, _)) = listener.accept().await else { continue };
            connections.spawn(serve(socket, shared.clone(), role));
        }
    }))
}

async fn serve(socket: TcpStream, shared: Arc<Shared>, role: Role) {
    // A second handle, to have the connection reset instead of closed.
    let Ok((socket, handle)) = duplicate(socket) else { return };
    let handle = Arc::new(handle);
    let service = service_fn(move |request| {
        let exchange = Exchange { shared: shared.clone(), socket: handle.clone(), role };
        async move { Ok::<_, Infallible>(exchange.answer(request).await) }
    });
    // A body that ends in an error is how a fault breaks the connection.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

fn duplicate(socket: TcpStream) -> io::Result<(TcpStream, std::net::TcpStream)> {
    let socket = socket.into_std()?;
    let handle = socket.try_clone()?;
    Ok((TcpStream::from_std(socket)?, handle))
}

/// One request and all that its answer needs.
pub(super) struct Exchange {
    pub(super) shared: Arc<Shared>,
    socket: Arc<std::net::TcpStream>,
    role: Role,
}

impl Exchange {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let authorization = request.headers().get(header::AUTHORIZATION).cloned();
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let credentials = authorization.as_ref().and_then(|value| value.to_str().ok());
        let answer = match self.role {
            Role::Api => self.api(request.method(), path, query, credentials).await,
            Role::MediaHost => self.media_host(path).await,
        };
        self.shared.state().remember(Seen {
            method: request.method().to_string(),
            at_media_host: self.role == Role::MediaHost,
            with_credentials: authorization.is_some(),
            status: answer.status().as_u16(),
            target: target.clone(),
        });
        answer
    }

    async fn api(&self, method: &Method, path: &str, query: &str, credentials: Option<&str>) -> Answer {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let ["2010-04-01", "Accounts", rest @ ..] = &parts[..] else { return not_found() };
        let account = rest.first().and_then(|account| account.trim_end_matches(".json").parse::<AccountSid>().ok());
        let Some(account) = account else { return not_found() };
        if !self.may_enter(account, credentials) {
            return error(StatusCode::UNAUTHORIZED, 20003, "Authenticate");
        }
        let in_flight = InFlight::begin(self.shared.clone(), account);
        let fault = if path.ends_with(".json") { self.rest_fault(account).await } else { None };
        let answer = match fault {
            Some(answer) => answer,
            None => self.of_account(account, method, &rest[1..], query).await,
        };
        answer.map(|body| {
            // The request is under way until its body is sent or given up.
            body.map_frame(move |frame| {
                let _under_way = &in_flight;
                frame
            })
            .boxed_unsync()
        })
    }

    async fn of_account(&self, account: AccountSid, method: &Method, path: &[&str], query: &str) -> Answer {
        match (method, path) {
            (&Method::GET, []) => answer_json(json!({"sid": account, "status": "active"})),
            (&Method::GET, ["Recordings.json"]) => self.list_of_account(account, query).await,
            (&Method::GET, ["Calls", call, "Recordings.json"]) => match call.parse() {
                Ok(call) => self.list(account, Some(call), query),
                Err(_) => not_found(),
            },
            (&Method::GET, ["Calls", call]) => self.call(account, call),
            (&Method::GET, ["Recordings", file]) => self.recording(account, file, query).await,
            (&Method::DELETE, ["Recordings", file]) => self.delete(account, file),
            _ => not_found(),
        }
    }

    async fn rest_fault(&self, account: AccountSid) -> Option<Answer> {
        let mut fault = self.shared.state().rest_fault(account).subscribe();
        // The simulator's end is the end of the silence too.
        let fault = fault.wait_for(|fault| *fault != Some(RestFault::Silent)).await.ok()?.clone()?;
        match fault {
            RestFault::Status(status) => Some(of_status(status)),
            RestFault::RateLimited { retry_after } => Some(rate_limited(retry_after)),
            RestFault::Slow(wait) => {
                tokio::time::sleep(wait).await;
                None
            }
            RestFault::Silent => None,
        }
    }

    fn may_enter(&self, account: AccountSid, credentials: Option<&str>) -> bool {
        let state = self.shared.state();
        let Some(known) = state.accounts.get(&account) else { return false };
        let given =
            credentials.and_then(|value| value.strip_prefix("Basic ")).and_then(|value| BASE64.decode(value).ok());
        let token = format!("{account}:{}", known.auth_token);
        let api_key = known.api_key.as_ref().map(|(sid, secret)| format!("{sid}:{secret}"));
        let right = given.is_some_and(|given| {
            given == token.as_bytes() || api_key.is_some_and(|api_key| given == api_key.as_bytes())
        });
        right && !state.refused_accounts.contains(&account)
    }

    async fn recording(&self, account: AccountSid, file: &str, query: &str) -> Answer {
        if let Some(sid) = file.strip_suffix(".json") {
            return self.description(account, sid);
        }
        let (sid, extension) = match file.rsplit_once('.') {
            Some((sid, extension)) => (sid, extension.parse::<Format>().ok()),
            None => (file, None),
        };
        let Ok(sid) = sid.parse::<RecordingSid>() else { return not_found() };
        let channels = query.split('&').find_map(|pair| pair.strip_prefix("RequestedChannels=")?.parse::<u8>().ok());
        let recording = {
            let mut state = self.shared.state();
            state.counts.entry(sid).or_default().media_requests += 1;
            state.recordings.get(&sid).cloned()
        };
        let Some(recording) = recording.filter(|known| known.id.account == account && known.status != "deleted") else {
            return not_found();
        };
        let answer = self.media(&recording, extension, channels, true).await;
        if answer.status() == StatusCode::OK {
            self.shared.state().counts.entry(sid).or_default().fetches += 1;
        }
        answer
    }

    async fn media(
        &self,
        recording: &SimulatedRecording,
        extension: Option<Format>,
        channels: Option<u8>,
        scripted: bool,
    ) -> Answer {
        if channels == Some(2) && recording.channels == 1 {
            return error(StatusCode::BAD_REQUEST, 16113, "Requested channels are not available");
        }
        let Some(body) = recording.audio.body(extension, channels) else { return not_found() };
        let content_type = if extension == Some(Format::Mp3) { "audio/mpeg" } else { "audio/x-wav" };
        let (len_bytes, pieces) = match &recording.encryption {
            Some(sealed) => (SimulatedEncryption::sealed_bytes(body.len_bytes()), sealed.seal(body.stream())),
            None => (body.len_bytes(), body.stream()),
        };
        let media = Media { len_bytes, pieces: pieces.map(Ok).boxed(), content_type, framing: Framing::Length };
        let sid = recording.id.recording;
        // Only what there is can go wrong.
        let fault = if scripted { self.shared.state().next_fault(recording.id) } else { None };
        match fault {
            None => media.into_answer(),
            Some(fault) => self.faulty(fault, media, sid, extension).await,
        }
    }

    async fn faulty(&self, fault: Fault, media: Media, sid: RecordingSid, extension: Option<Format>) -> Answer {
        let extension = extension.map(Format::as_str).unwrap_or_default();
        match fault {
            Fault::NotReady => not_found(),
            Fault::RateLimited { retry_after } => rate_limited(retry_after),
            Fault::Status(status) => of_status(status),
            Fault::Html => whole(StatusCode::OK, "text/html", "<!DOCTYPE html><html><body>Sorry</body></html>"),
            Fault::Xml => whole(StatusCode::OK, "application/xml", NOT_FOUND_XML),
            Fault::Json => whole(StatusCode::OK, "application/json", r#"{"code":20404,"message":"not found"}"#),
            Fault::Empty => whole(StatusCode::OK, media.content_type, ""),
            Fault::Truncated(after) => media.broken_after(after, None).into_answer(),
            Fault::Reset(after) => media.broken_after(after, Some(self.socket.clone())).into_answer(),
            Fault::Unframed => Media { framing: Framing::None, ..media }.into_answer(),
            Fault::Crumbs(bytes) => Media { framing: Framing::Chunks, ..media }.in_pieces(bytes).into_answer(),
            Fault::Chunked => Media { framing: Framing::Chunks, ..media }.into_answer(),
            Fault::Redirect(to) => redirect(&to),
            Fault::RedirectToMediaHost(hops) => redirect(&self.media_host_url(sid, extension, hops)),
            Fault::Slow { piece_bytes, wait } => media.slow(piece_bytes, wait).into_answer(),
            Fault::Held(after) => {
                let gate = self.shared.state().gate(sid).subscribe();
                media.held_after(after, gate).into_answer()
            }
            Fault::HeldThenTruncated(after) => {
                let gate = self.shared.state().gate(sid).subscribe();
                media.held_after(after, gate).broken_after(after + 1, None).into_answer()
            }
            Fault::Silent => std::future::pending().await,
        }
    }

    fn media_host_url(&self, sid: RecordingSid, extension: &str, hops: u32) -> String {
        let host = self.shared.media_host;
        format!("http://{host}/{}/{sid}.{extension}?signature=simulated", hops.saturating_sub(1))
    }

    /// `/{hops}/{RE}.{extension}` redirects on, or serves the media;
    /// `/back-to-api/{RE}` redirects to where a recording is asked for.
    async fn media_host(&self, path: &str) -> Answer {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let [hops, file] = parts[..] else { return not_found() };
        if hops == "back-to-api" {
            return self.back_to_api(file);
        }
        let Some((sid, extension)) = file.split_once('.') else { return not_found() };
        let (Ok(hops), Ok(sid)) = (hops.parse::<u32>(), sid.parse::<RecordingSid>()) else { return not_found() };
        if hops > 0 {
            return redirect(&self.media_host_url(sid, extension, hops));
        }
        let recording = self.shared.state().recordings.get(&sid).cloned();
        let Some(recording) = recording else { return not_found() };
        let answer = self.media(&recording, extension.parse().ok(), None, false).await;
        if answer.status() == StatusCode::OK {
            self.shared.state().counts.entry(sid).or_default().fetches += 1;
        }
        answer
    }

    fn back_to_api(&self, sid: &str) -> Answer {
        let known = sid.parse().ok().and_then(|sid: RecordingSid| self.shared.state().recordings.get(&sid).cloned());
        let Some(SimulatedRecording { id, .. }) = known else { return not_found() };
        let api = self.shared.api;
        redirect(&format!("http://{api}/2010-04-01/Accounts/{}/Recordings/{}.mp3", id.account, id.recording))
    }
}

/// A request that counts as under way while this lives.
struct InFlight {
    shared: Arc<Shared>,
    account: AccountSid,
}

impl InFlight {
    fn begin(shared: Arc<Shared>, account: AccountSid) -> Self {
        {
            let mut state = shared.state();
            let now = state.in_flight.entry(account).or_default();
            *now += 1;
            let now = *now;
            let most = state.in_flight_max.entry(account).or_default();
            *most = now.max(*most);
        }
        Self { shared, account }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(now) = self.shared.state().in_flight.get_mut(&self.account) {
            *now -= 1;
        }
    }
}

const NOT_FOUND_XML: &str = "<?xml version='1.0' encoding='UTF-8'?>\n<TwilioResponse><RestException><Code>20404</Code>\
    <Message>The requested resource was not found</Message><Status>404</Status></RestException></TwilioResponse>";

pub(super) fn whole(status: StatusCode, content_type: &'static str, body: &'static str) -> Answer {
    answer(status, content_type, Bytes::from_static(body.as_bytes()))
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    answer
}

pub(super) fn answer_json(value: Value) -> Answer {
    answer(StatusCode::OK, "application/json", value.to_string().into())
}

fn error(status: StatusCode, code: u32, message: &str) -> Answer {
    let body = json!({"code": code, "message": message, "status": status.as_u16()});
    answer(status, "application/json", body.to_string().into())
}

pub(super) fn of_status(status: u16) -> Answer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    error(status, u32::from(status.as_u16()), "Fault")
}

pub(super) fn rate_limited(retry_after: Option<String>) -> Answer {
    let mut answer = error(StatusCode::TOO_MANY_REQUESTS, 20429, "Too Many Requests");
    let value = retry_after.and_then(|value| value.parse().ok());
    answer.headers_mut().extend(value.map(|value| (header::RETRY_AFTER, value)));
    answer
}

pub(super) fn not_found() -> Answer {
    whole(StatusCode::NOT_FOUND, "application/xml", NOT_FOUND_XML)
}

fn redirect(to: &str) -> Answer {
    let mut answer = whole(StatusCode::TEMPORARY_REDIRECT, "text/plain", "");
    if let Ok(location) = to.parse() {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}
