//! Clients that ask as fast as they are answered, each on a connection of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::cluster::Dice;

/// What clients ask a server for, and how often each is asked.
pub struct Load {
    port: u16,
    requests: Vec<String>,
    /// For each request, the share of all that ask for it or for one before it.
    shares: Vec<f64>,
    expected: &'static str,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Requests that were answered as expected; others end the run.
    pub answered: f64,
    /// How long it took.
    pub seconds: f64,
}

impl Load {
    /// GETs of these paths, the n-th asked for `n^-exponent` times as often as the
    /// first (Zipf's law), which are answered with that status.
    pub fn new(port: u16, paths: &[String], headers: &str, exponent: f64, expected: &'static str) -> Self {
        let request = |path: &String| format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{headers}\r\n");
        let mut sum = 0.0;
        let mut shares: Vec<f64> = (1..=paths.len())
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        shares.iter_mut().for_each(|share| *share /= sum);
        Self { port, requests: paths.iter().map(request).collect(), shares, expected }
    }

    fn request(&self, dice: &mut Dice) -> &str {
        let at = dice.below(1 << 52) as f64 / (1u64 << 52) as f64;
        let index = self.shares.partition_point(|share| *share < at);
        &self.requests[index.min(self.requests.len() - 1)]
    }

    /// So many clients ask for so long.
    pub async fn run(self: &Arc<Self>, clients: u64, time: Duration, seed: u64) -> Outcome {
        let (began, answered) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients).map(|client| {
            let (load, answered) = (self.clone(), answered.clone());
            tokio::spawn(async move {
                let mut dice = Dice::of(seed * 1000 + client + 1);
                let mut connection = Connection::open(load.port).await;
                while began.elapsed() < time {
                    let status = connection.ask(load.request(&mut dice)).await;
                    assert!(status.contains(load.expected), "{status}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        for client in futures::future::join_all(clients).await {
            client.expect("every answer is as expected");
        }
        Outcome { answered: answered.load(Ordering::Relaxed) as f64, seconds: began.elapsed().as_secs_f64() }
    }
}

/// A connection that is kept.
struct Connection {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    async fn open(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("the server listens");
        socket.set_nodelay(true).expect("a TCP socket");
        Self { socket, read: Vec::with_capacity(4 << 10) }
    }

    /// Asks, reads the whole answer, and gives its status line.
    async fn ask(&mut self, request: &str) -> String {
        self.socket.write_all(request.as_bytes()).await.expect("the server reads");
        self.read.clear();
        let head_bytes = loop {
            let some = self.socket.read_buf(&mut self.read).await.expect("the server answers");
            assert!(some > 0, "the server has closed the connection");
            if let Some(at) = self.read.windows(4).position(|end| end == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.read[..head_bytes]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let body_bytes: usize = length.map_or(0, |length| length.trim().parse().expect("a length"));
        while self.read.len() < head_bytes + body_bytes {
            let some = self.socket.read_buf(&mut self.read).await.expect("the server answers");
            assert!(some > 0, "the server has closed the connection");
        }
        head.lines().next().unwrap_or_default().to_owned()
    }
}
