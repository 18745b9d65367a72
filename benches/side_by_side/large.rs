//! P8 and P9: what is large, in and out.

use std::process::Command;
use std::time::Instant;

use futures::StreamExt;
use reqwest::Client;

use crate::peers::program;
use crate::rounds::{Comparison, Goal, tell_alone};
use crate::support::servers::{Nginx, free_port};
use crate::support::world::{ACCOUNT, AUTH_TOKEN, Parts, World, call_sid, recording_id};
use crate::{cpu, ingest, setting};

const MIB: u64 = 1 << 20;

async fn world() -> World {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_LOG", "info");
    world.set("CALLVAULT_FORMATS", "wav");
    world.set("CALLVAULT_LEASE", "30s");
    world
}

/// P8: one large recording, beside curl from the same origin; and the memory for it.
pub async fn gibibyte() {
    let mib = setting("CALLVAULT_BENCH_LARGE_MIB", 1024u64);
    let curl = Comparison {
        id: "P8",
        work: "one large recording, callback to stored",
        unit: "MiB/s",
        peer: "curl from the origin",
        goal: Goal::AtLeast(0.8),
    };
    let Some(program) = program("curl") else { return curl.missing("curl is not installed") };
    let world = world().await;
    let service = world.start().await;
    let (mut measured, mut peaks) = (Vec::new(), Vec::new());
    for number in 1..=u32::try_from(crate::rounds::rounds()).expect("few") {
        let began = Instant::now();
        ingest::stored(&world, &service, number, mib * MIB).await;
        let ours = mib as f64 / began.elapsed().as_secs_f64();
        peaks.push(cpu::peak_mib(service.pid()));
        let sid = recording_id(number).recording;
        let url = format!("{}/2010-04-01/Accounts/{ACCOUNT}/Recordings/{sid}.wav", world.simulator.origin());
        let program = program.clone();
        let took = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let user = format!("{ACCOUNT}:{AUTH_TOKEN}");
            let status = Command::new(program).args(["-sSfL", "-u", &user, "-o", "/dev/null", &url]).status();
            assert!(status.expect("curl runs").success());
            began.elapsed().as_secs_f64()
        });
        measured.push((ours, mib as f64 / took.await.expect("curl ends")));
        // The disk holds one of them.
        let erased = service.request(reqwest::Method::DELETE, &format!("/v1/recordings/{sid}")).send().await;
        assert!(erased.expect("an answer").status().is_success());
    }
    curl.tell(&measured);
    println!("    of {mib} MiB: CALLVAULT_BENCH_LARGE_MIB says another size");
    tell_alone("P8", "the same, peak memory", "MiB", &peaks, Goal::AtMost(96.0));
}

/// P9: megabytes that a second of CPU gives through the service, beside nginx before the same store.
pub async fn content() {
    const BYTES: u64 = 100_000_000;
    let world = world().await;
    let service = world.start().await;
    ingest::stored(&world, &service, 1, BYTES).await;
    let (_, link) = service.json(&format!("/v1/calls/{}/link", call_sid(1))).await;
    let link = reqwest::Url::parse(link["url"].as_str().expect("a link")).expect("a URL");
    let store = format!("{}:{}", link.host_str().expect("a host"), link.port().expect("a port"));
    let port = free_port();
    let nginx = Nginx::with_config(
        port,
        &format!(
            "worker_processes 1; events {{ worker_connections 1024; }}\n\
             http {{ access_log off; upstream store {{ server {store}; keepalive 8; }}\n\
             server {{ listen 127.0.0.1:{port}; location = /healthz {{ return 200; }}\n\
             location / {{ proxy_pass http://store; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header Host {store}; proxy_set_header Authorization \"\"; proxy_buffers 16 64k; proxy_buffer_size 64k;\n\
             proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0; }} }} }}\n"
        ),
    );
    let p9 = Comparison {
        id: "P9",
        work: "/content hit, 100 MB",
        unit: "MB a CPU second",
        peer: "nginx before the same store",
        goal: Goal::AtLeast(0.5),
    };
    let path = link.path().to_owned() + "?" + link.query().unwrap_or_default();
    let proxied = format!("http://127.0.0.1:{port}{path}");
    let own = format!("{}/v1/calls/{}/content", service.url, call_sid(1));
    let http = Client::builder().no_proxy().build().expect("a client");
    let rate = async |pid, url: &str| {
        let before = cpu::seconds_of_tree(pid);
        for _ in 0..3 {
            read(&http, url, BYTES).await;
        }
        3.0 * BYTES as f64 / 1e6 / (cpu::seconds_of_tree(pid) - before)
    };
    p9.run(async || rate(service.pid(), &own).await, async || rate(nginx.pid(), &proxied).await).await;
}

async fn read(http: &Client, url: &str, expected: u64) {
    let asked = http.get(url).bearer_auth(crate::support::world::ADMIN_KEY).send();
    let mut chunks = asked.await.expect("an answer").error_for_status().expect("200").bytes_stream();
    let mut read = 0;
    while let Some(chunk) = chunks.next().await {
        read += chunk.expect("whole").len() as u64;
    }
    assert_eq!(read, expected);
}
