//! What clients cannot do to the service, and what does not get out of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use callvault::twilio::simulator::Fault;
use reqwest::StatusCode;
use serde_json::Value;

use crate::keys::create;
use crate::support::world::{ADMIN_KEY, AUTH_TOKEN, Parts, Service, World, call_sid};
use crate::support::{PATIENCE, eventually};

fn connect(service: &Service) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", service.port)).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    socket
}

/// Reads until the service closes the connection; says how long that took.
fn closed_after(mut socket: TcpStream) -> (Duration, String) {
    let began = Instant::now();
    let mut said = Vec::new();
    let _ = socket.read_to_end(&mut said);
    (began.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

on_all_parts! {
    async fn connections_that_waste_time_are_closed(world: World) {
        let service = world.start().await;
        let silent = connect(&service);
        let mut partial = connect(&service);
        partial.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").unwrap();
        let mut preface = connect(&service);
        preface.write_all(b"PRI * HTTP").unwrap();
        let mut trickle = connect(&service);
        let head = format!("PUT /v1/calls/{}/recording HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\
                            Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{", call_sid(1));
        trickle.write_all(head.as_bytes()).unwrap();
        let closed: Vec<_> = [silent, partial, preface].map(|socket| tokio::task::spawn_blocking(|| closed_after(socket))).into();
        for closed in closed {
            let (took, said) = closed.await.unwrap();
            assert!(took < Duration::from_secs(40), "{took:?}: {said}");
        }
        trickle.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        let mut answer = [0; 12];
        trickle.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 400");
    }

    async fn odd_requests_get_a_clear_answer(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        let ask = |target: &str, host: &str| {
            let mut socket = connect(&service);
            let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\
                                   Connection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).unwrap();
            closed_after(socket).1
        };
        let not_found = ask("/v1/calls/%ff", "x");
        assert!(not_found.starts_with("HTTP/1.1 404") && not_found.contains("\"not_found\""), "{not_found}");
        let audio = format!("/v1/recordings/{}/audio", id.recording);
        for host in ["a b", "x/y", "user@x"] {
            let refused = ask(&audio, host);
            assert!(refused.starts_with("HTTP/1.1 400"), "{host}: {refused}");
        }
        assert!(ask(&audio, "calls.example:8443").starts_with("HTTP/1.1 307"));
        let long = format!("/healthz?{}", "x".repeat(100_000));
        assert!(ask(&long, "x").starts_with("HTTP/1.1 4"));
    }

    async fn nothing_secret_is_logged(world: World) {
        world.set("CALLVAULT_LOG", "trace");
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.script(id.recording, [Fault::Status(500), Fault::RedirectToMediaHost(2)]);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        service.play(&format!("/v1/recordings/{}/audio", id.recording)).await;
        service.play(&format!("/v1/calls/{}/audio?disposition=attachment", call_sid(1))).await;
        let store = world.store(&service);
        store.keys().await;
        let log = service.log();
        assert!(log.contains("a callback was taken"), "it does log");
        for secret in [ADMIN_KEY, AUTH_TOKEN, &store.secret_access_key, "X-Amz-Signature", "signature=simulated", "Authorization"] {
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(secret)).collect();
            assert_eq!(lines, Vec::<&str>::new(), "{secret}");
        }
    }

    async fn tiny_chunks_do_not_fill_the_memory(world: World) {
        let service = world.start().await;
        let id = crate::support::world::recording_id(1);
        let mut recording = callvault::twilio::simulator::SimulatedRecording::speech(
            id, call_sid(1), crate::support::world::started_at());
        recording.audio = callvault::twilio::simulator::Audio::made_up_wav(8 << 20, 7);
        let digest = recording.audio.wav.as_ref().unwrap().digest();
        world.simulator.add(recording);
        world.simulator.script(id.recording, [Fault::Crumbs(8)]);
        let before = resident_bytes(&service);
        service.deliver(&world.callback(id.recording)).await;
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!(shown["sha256"], digest.to_string());
        // A million chunks of 8 bytes would take 100 MB if each were kept by itself.
        let grown = peak_bytes(&service).saturating_sub(before);
        assert!(grown < 40 << 20, "{} MiB", grown >> 20);
    }
}

fn memory(service: &Service, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

fn resident_bytes(service: &Service) -> u64 {
    memory(service, "VmRSS:")
}

fn peak_bytes(service: &Service) -> u64 {
    memory(service, "VmHWM:")
}

/// Whoever reads too often at once is told so; others read on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_cannot_take_all_readers_places() {
    let world = World::new(Parts::Embedded).await;
    let service = world.start().await;
    let (greedy, _) = create(&world, &["--scope", "read"]);
    let (other, _) = create(&world, &["--scope", "read"]);
    let read = |key: &str, wait: u32| {
        let url = format!("{}/v1/events?after=latest&wait={wait}", service.url);
        world.http.get(url).bearer_auth(key).timeout(PATIENCE).send()
    };
    eventually("the keys are known", async || {
        let (first, second) = (read(&greedy, 0).await.unwrap(), read(&other, 0).await.unwrap());
        (first.status() == StatusCode::OK && second.status() == StatusCode::OK).then_some(())
    })
    .await;
    // A stream is a reader from its first answer on, until it is closed.
    let open = || {
        let url = format!("{}/v1/events?after=latest", service.url);
        world.http.get(url).bearer_auth(&greedy).header("accept", "text/event-stream").timeout(PATIENCE).send()
    };
    let mut streams = Vec::new();
    let refused = loop {
        match open().await.unwrap() {
            stream if stream.status() == StatusCode::OK => streams.push(stream),
            refused => break refused,
        }
        assert!(streams.len() <= 1024, "nothing ends it");
    };
    assert!(streams.len() >= 1000, "{} at once are not too many", streams.len());
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "too_many_requests");
    assert_eq!(read(&greedy, 30).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS, "nor by a page");
    assert_eq!(read(&other, 0).await.unwrap().status(), StatusCode::OK);
    drop(streams);
    eventually("it reads again", async || (read(&greedy, 0).await.unwrap().status() == StatusCode::OK).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_is_played_while_nothing_can_be_written() {
    let world = World::new(Parts::Embedded).await;
    let service = world.start().await;
    let id = world.record(1);
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await;
    // Another process holds the one writer's place.
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(world.folder().join("callvault.db"));
    let mut holder = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();

    let began = Instant::now();
    let answer = service.get(&format!("/v1/calls/{}/audio", call_sid(1))).await;
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let second = world.record(2);
    let began = Instant::now();
    let answer = service.send(&world.callback(second.recording)).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    crate::support::eventually("the service says that it is degraded", async || {
        let answer = world.http.get(format!("{}/readyz", service.url)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        (answer.json::<Value>().await.unwrap()["status"] == "degraded").then_some(())
    })
    .await;

    sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
    crate::support::eventually("callbacks are taken again", async || {
        (service.send(&world.callback(second.recording)).await.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
    service.recording_in(second.recording, "stored").await;
}
