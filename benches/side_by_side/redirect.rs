//! P1 and P2: `/audio` of what is stored, with a key that is checked.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::cpu;
use crate::load::{Load, Outcome};
use crate::rounds::{Comparison, Goal};
use crate::rows;
use crate::setting;
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
        let paths: Vec<String> = (0..recordings).map(|number| format!("/v1/calls/{}/audio", call_sid(number))).collect();
        let headers = format!("Authorization: Bearer {}\r\n", key(&world));
        let load = Arc::new(Load::new(service.port, &paths, &headers, ZIPF_EXPONENT, " 307 "));
        let asked = Self { _world: world, service, load };
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

/// A key that may only read.
fn key(world: &World) -> String {
    let mut command = Command::new(debug_binary());
    command.args(["keys", "create", "--scope", "read"]).current_dir(world.folder()).env_clear().envs(&world.settings);
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
