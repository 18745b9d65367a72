//! P1 and P2: `/audio` of what is stored, with a key that is checked.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::cpu;
use crate::load::{Load, Outcome};
use crate::peers::{NOT_INSTALLED, Running, pin, python_tool};
use crate::rounds::{Comparison, Goal};
use crate::rows;
use crate::setting;
use crate::support::eventually;
use crate::support::servers::{Nginx, free_port};
use crate::support::world::{Parts, Service, World, call_sid, debug_binary};

/// Of requests for media on the web it lies between 0.6 and 1.1.
const ZIPF_EXPONENT: f64 = 1.0;
const CLIENTS: u64 = 32;
const ROUND: Duration = Duration::from_secs(4);

/// A service with a full catalog, and who asks it.
pub struct Asked {
    _world: World,
    service: Service,
    key: String,
    paths: Vec<String>,
    load: Arc<Load>,
}

impl Asked {
    /// With so many recordings; `CALLVAULT_BENCH_RECORDINGS` says how many.
    pub async fn start() -> Self {
        let recordings = setting("CALLVAULT_BENCH_RECORDINGS", 100_000u32);
        let mut world = World::new(Parts::Servers).await;
        world.set("CALLVAULT_LOG", "info");
        let service = world.start().await;
        rows::fill(&world, 0, recordings).await;
        let paths: Vec<String> =
            (0..recordings).map(|number| format!("/v1/calls/{}/audio", call_sid(number))).collect();
        let key = key(&world);
        let load = Arc::new(Load::new(service.port, &paths, &bearer(&key), ZIPF_EXPONENT, " 307 "));
        let asked = Self { _world: world, service, key, paths, load };
        asked.round(0).await;
        asked
    }

    /// What comes of one round, and its CPU microseconds a request.
    pub async fn round(&self, seed: u64) -> (Outcome, f64) {
        measured(self.service.pid(), &self.load, seed).await
    }
}

async fn measured(pid: u32, load: &Arc<Load>, seed: u64) -> (Outcome, f64) {
    let before = cpu::seconds_of_tree(pid);
    let outcome = load.run(CLIENTS, ROUND, seed).await;
    let spent = cpu::seconds_of_tree(pid) - before;
    (outcome, spent / outcome.answered * 1e6)
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// A key that may only read.
fn key(world: &World) -> String {
    let mut command = Command::new(debug_binary());
    command
        .args(["keys", "create", "--scope", "read", "--rate", "off"])
        .current_dir(world.folder())
        .env_clear()
        .envs(&world.settings);
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a key").trim().to_owned()
}

/// CPU time a request, beside the floor: a redirect that is always the same.
pub async fn beside_nginx(asked: &Asked) {
    let port = free_port();
    let link = format!("http://127.0.0.1:9000/calls/CA{0}/RE{0}/{0}{0}.mp3?{1}", "0".repeat(32), "x".repeat(350));
    let nginx = Nginx::with_config(
        port,
        &format!(
            "worker_processes 1; events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; server {{ listen 127.0.0.1:{port};\n\
             location = /healthz {{ return 200; }} location / {{ return 307 \"{link}\"; }} }} }}\n"
        ),
    );
    let load = Arc::new(Load::new(port, &["/".to_owned()], "", 1.0, " 307 "));
    let p1 = Comparison {
        id: "P1",
        work: "/audio hit, key checked",
        unit: "µs CPU",
        peer: "nginx return 307",
        goal: Goal::AtMost(1.5),
    };
    let mut seed = 0;
    let ours = async || {
        seed += 1;
        asked.round(seed).await.1
    };
    p1.run(ours, async || measured(nginx.pid(), &load, 1).await.1).await;
}

/// P2: requests a second, each on one core, beside applications that do it by themselves.
pub async fn beside_applications(asked: &Asked) {
    let fastapi = Comparison {
        id: "P2",
        work: "/audio hit, key checked, on one core",
        unit: "a second",
        peer: "FastAPI + boto3",
        goal: Goal::AtLeast(25.0),
    };
    let port = free_port();
    let uvicorn = ["with_fastapi:app", "--no-access-log", "--log-level", "warning", "--port", &port.to_string()];
    beside_application(asked, &fastapi, "uvicorn", &uvicorn, port).await;
    let flask = Comparison { peer: "Flask + boto3", goal: Goal::AtLeast(50.0), ..fastapi };
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let gunicorn = ["with_flask:app", "--threads", "8", "--keep-alive", "60", "--bind", &listen];
    beside_application(asked, &flask, "gunicorn", &gunicorn, port).await;
}

async fn beside_application(asked: &Asked, comparison: &Comparison, tool: &str, args: &[&str], port: u16) {
    let Some(mut command) = python_tool(tool) else { return comparison.missing(NOT_INSTALLED) };
    command.args(args).env("PEER_KEY", &asked.key).stdout(Stdio::null());
    let peer = Running(command.spawn().expect("the peer starts"));
    eventually("the peer listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
    let load = Arc::new(Load::new(port, &asked.paths, &bearer(&asked.key), ZIPF_EXPONENT, " 307 "));
    // The other core is the clients'.
    pin(asked.service.pid(), 0);
    pin(peer.0.id(), 0);
    let a_second = |outcome: Outcome| outcome.answered / outcome.seconds;
    let ours = async || a_second(asked.load.run(CLIENTS, ROUND, 7).await);
    comparison.run(ours, async || a_second(load.run(CLIENTS, ROUND, 7).await)).await;
}
