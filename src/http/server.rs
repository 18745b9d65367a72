//! Connections: how many, how slow, and how they end.
//!
//! HTTP/1.1 is spoken: what stands in front of a service speaks it too, and no
//! other version has to be kept from wasting its connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::patience::Patient;

/// Connections at once; further ones wait to be accepted. Each may hold some
/// 100 KB of buffers.
const CONNECTIONS_MAX: usize = 4096;
/// A client that has not sent a whole request by then is up to no good.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may lie idle between requests, or take over the head of
/// one. Longer than balancers keep theirs (60 s at AWS and nginx), so that it is
/// they who close: a request on a connection that closes is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// The head of a request; links of others are far shorter.
const HEAD_MAX_BYTES: usize = 64 << 10;
/// The wait after an accept failed, for want of file descriptors.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A connection that has waited to be accepted is there at once.
const LAST_CONNECTION_WITHIN: Duration = Duration::from_millis(10);
/// Whoever has just connected sends a request, which is read within this.
const LAST_REQUEST_WITHIN: Duration = Duration::from_millis(100);
/// The most that are looked for in the end: a flood must not keep a node from ending.
const LAST_CONNECTIONS_MAX: usize = 1024;

/// Serves until `stopping`, then lets what is under way end. Returns when the
/// last connection is closed; whoever cannot wait for that drops it.
pub async fn serve(listener: TcpListener, router: Router, stopping: CancellationToken) {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        if let Some((socket, permit)) = accepted {
            connections.spawn(serve_connection(socket, permit, router.clone(), stopping.clone()));
        }
    }
    // Whoever is connected by now, as far as it knows, would meet a reset.
    for _ in 0..LAST_CONNECTIONS_MAX {
        match tokio::time::timeout(LAST_CONNECTION_WITHIN, accept(&listener, &room)).await {
            Ok(Some((socket, permit))) => {
                connections.spawn(serve_connection(socket, permit, router.clone(), stopping.clone()));
            }
            Ok(None) | Err(_) => break,
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
    match listener.accept().await {
        Ok((socket, _)) => Some((socket, permit)),
        Err(error) => {
            tracing::warn!(%error, "no connection could be accepted");
            tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            None
        }
    }
}

async fn serve_connection(
    socket: TcpStream,
    _permit: OwnedSemaphorePermit,
    router: Router,
    stopping: CancellationToken,
) {
    // Answers are small and complete: nothing is gained by waiting for more.
    let _ = socket.set_nodelay(true);
    let asked = Arc::new(AtomicBool::new(false));
    let has_asked = asked.clone();
    let service = router.map_request(move |request: http::Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        request.map(axum::body::Body::new)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(Patient::new(socket)), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let mut first_request = std::pin::pin!(tokio::time::sleep(FIRST_REQUEST_TIMEOUT));
    let mut stopping = std::pin::pin!(async {
        stopping.cancelled().await;
        // A connection that ends before its first request was read loses it.
        if !asked.load(Ordering::Relaxed) {
            tokio::time::sleep(LAST_REQUEST_WITHIN).await;
        }
    });
    let (mut watching, mut ending) = (true, false);
    let ended = loop {
        tokio::select! {
            ended = &mut connection => break ended,
            () = &mut first_request, if watching => {
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
                watching = false;
            }
            () = &mut stopping, if !ending => {
                connection.as_mut().graceful_shutdown();
                ending = true;
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
