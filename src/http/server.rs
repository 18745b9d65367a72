//! Connections: how many, how slow, and how they end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Connections at once; further ones wait to be accepted. Each may hold some
/// 100 KB of buffers.
const CONNECTIONS_MAX: usize = 4096;
/// A client that takes longer over its headers is up to no good.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Head and buffered body of a request; links of others are far shorter.
const BUFFER_MAX_BYTES: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// The wait after an accept failed, for want of file descriptors.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

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
        let Some((socket, permit)) = accepted else { continue };
        let (router, stopping) = (router.clone(), stopping.clone());
        connections.spawn(async move {
            serve_connection(socket, router, stopping).await;
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
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

async fn serve_connection(socket: TcpStream, router: Router, stopping: CancellationToken) {
    // Answers are small and complete: nothing is gained by waiting for more.
    let _ = socket.set_nodelay(true);
    let service = router.map_request(|request: http::Request<Incoming>| request.map(axum::body::Body::new));
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_MAX_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(BUFFER_MAX_BYTES as u32);
    let connection = builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection broke");
    }
}
