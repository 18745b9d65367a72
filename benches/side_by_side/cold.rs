//! P4: a hundred who want one recording that nobody has fetched yet.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{Audio, Fault, SimulatedRecording};
use futures::StreamExt;
use futures::future::join_all;
use reqwest::Client;

use crate::peers::{NOT_INSTALLED, Running, program};
use crate::rounds::{Comparison, Goal, median};
use crate::support::eventually;
use crate::support::servers::{Nginx, free_port};
use crate::support::world::{
    ACCOUNT, ADMIN_KEY, AUTH_TOKEN, Parts, Service, World, call_sid, recording_id, started_at,
};

const CLIENTS: usize = 100;

/// The first byte of whoever follows, beside Varnish and beside nginx's lock.
pub async fn beside_caches() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LOG", "info");
    world.set("CALLVAULT_FORMATS", "wav");
    let service = world.start().await;
    let mut next = 0;
    let mut cold = || {
        next += 1;
        record(&world, next)
    };
    let origin = world.simulator.origin();
    let varnish = Comparison {
        id: "P4",
        work: "100 clients at one cold recording, /content: first byte",
        unit: "s",
        peer: "Varnish",
        goal: Goal::AtMost(1.1),
    };
    match Varnish::start(&origin).await {
        Some(peer) => run(&varnish, &world, &service, &mut cold, peer.port).await,
        None => varnish.missing(NOT_INSTALLED),
    }
    let port = free_port();
    let _nginx = Nginx::with_config(port, &nginx(&origin, port));
    let lock = Comparison { peer: "nginx proxy_cache_lock", goal: Goal::AtMost(0.1), ..varnish };
    run(&lock, &world, &service, &mut cold, port).await;
}

async fn run(
    comparison: &Comparison,
    world: &World,
    service: &Service,
    cold: &mut impl FnMut() -> RecordingId,
    peer_port: u16,
) {
    let mut measured = Vec::new();
    for _ in 0..crate::rounds::rounds() {
        let id = cold();
        let answer = service.send(&world.callback(id.recording)).await;
        assert_eq!(answer.status(), 204);
        let ours = first_byte(&format!("{}/v1/recordings/{}/content?wait=30", service.url, id.recording)).await;
        let path = format!("2010-04-01/Accounts/{ACCOUNT}/Recordings/{}.wav", cold().recording);
        measured.push((ours, first_byte(&format!("http://127.0.0.1:{peer_port}/{path}")).await));
    }
    comparison.tell(&measured);
}

/// A recording of a megabyte, of which the first bytes come after 0.2 s and the last after 2 s.
fn record(world: &World, number: u32) -> RecordingId {
    let id = recording_id(number);
    let mut recording = SimulatedRecording::speech(id, call_sid(number), started_at());
    recording.audio = Audio::made_up_wav(1_000_000, u64::from(number));
    world.simulator.add(recording);
    world.simulator.always(id.recording, Some(Fault::Slow { piece_bytes: 100_000, wait: Duration::from_millis(200) }));
    id
}

/// Seconds until the first byte, of the client in the middle. All of them read to the end.
async fn first_byte(url: &str) -> f64 {
    let http = Client::builder().no_proxy().build().expect("a client");
    let clients = (0..CLIENTS).map(|_| async {
        let began = Instant::now();
        let asked = http.get(url).bearer_auth(ADMIN_KEY).send();
        let mut chunks = asked.await.expect("an answer").error_for_status().expect("200").bytes_stream();
        chunks.next().await.expect("a body").expect("bytes");
        let first = began.elapsed().as_secs_f64();
        while let Some(chunk) = chunks.next().await {
            chunk.expect("whole");
        }
        first
    });
    median(&join_all(clients).await)
}

fn credentials() -> String {
    STANDARD.encode(format!("{ACCOUNT}:{AUTH_TOKEN}"))
}

/// One that lets a single request through, and has all others wait for its end.
fn nginx(origin: &str, port: u16) -> String {
    let credentials = credentials();
    format!(
        "worker_processes 1; events {{ worker_connections 1024; }}\n\
         http {{ access_log off; proxy_cache_path cache keys_zone=recordings:10m;\n\
         server {{ listen 127.0.0.1:{port}; location = /healthz {{ return 200; }}\n\
         location / {{ proxy_pass {origin}; proxy_set_header Authorization \"Basic {credentials}\";\n\
         proxy_cache recordings; proxy_cache_valid 200 1h; proxy_cache_lock on; proxy_cache_lock_age 30s;\n\
         proxy_cache_lock_timeout 30s; }} }} }}\n"
    )
}

/// A Varnish before the origin, in a folder of its own.
struct Varnish {
    port: u16,
    _running: Running,
    _folder: tempfile::TempDir,
}

impl Varnish {
    async fn start(origin: &str) -> Option<Self> {
        let program = program("varnishd")?;
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let origin_port = origin.rsplit(':').next().expect("a port");
        // A request with credentials of its own is never answered from its memory.
        let vcl = format!(
            "vcl 4.1; backend origin {{ .host = \"127.0.0.1\"; .port = \"{origin_port}\"; }}\n\
             sub vcl_recv {{ unset req.http.Authorization; return (hash); }}\n\
             sub vcl_backend_fetch {{ set bereq.http.Authorization = \"Basic {}\"; }}\n\
             sub vcl_backend_response {{ set beresp.ttl = 1h; }}\n",
            credentials()
        );
        let path = folder.path().join("recordings.vcl");
        std::fs::write(&path, vcl).expect("a file");
        let mut command = Command::new(program);
        command.args(["-F", "-j", "none", "-s", "malloc,256m", "-a", &format!("127.0.0.1:{port}"), "-f"]).arg(&path);
        command.arg("-n").arg(folder.path().join("work")).stdout(Stdio::null()).stderr(Stdio::null());
        let running = Running(command.spawn().expect("Varnish starts"));
        eventually("Varnish listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Some(Self { port, _running: running, _folder: folder })
    }
}
