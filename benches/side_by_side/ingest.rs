//! P6 and P7: from a callback to what is stored, many at a time.

use std::time::Instant;

use callvault::twilio::simulator::{Audio, SimulatedRecording};
use futures::stream::{self, StreamExt};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use sqlx::{Connection, PgConnection};

use crate::cpu;
use crate::peers::{NOT_INSTALLED, Told, python_tool};
use crate::rounds::{Comparison, Goal};
use crate::setting;
use crate::support::eventually;
use crate::support::servers::ObjectStore;
use crate::support::world::{ACCOUNT, AUTH_TOKEN, Parts, Service, Store, World, call_sid, recording_id, started_at};

const AT_ONCE: usize = 8;
const MEGABYTE: u64 = 1_000_000;
/// One minute of MP3.
const MINUTE: u64 = 240_000;

/// A service, and recordings at its Twilio of which each is taken once.
struct Ingesting {
    world: World,
    service: Service,
    database: PgConnection,
    next: u32,
}

impl Ingesting {
    async fn start(concurrency: usize) -> Self {
        let mut world = World::new(Parts::Servers).await;
        world.set("CALLVAULT_LOG", "info");
        // What the simulator has made up is WAV: nobody else asks for other formats first.
        world.set("CALLVAULT_FORMATS", "wav");
        world.set("CALLVAULT_FETCH_CONCURRENCY", concurrency.to_string());
        world.set("CALLVAULT_LEASE", "30s");
        let service = world.start().await;
        let database = PgConnection::connect(&world.settings["CALLVAULT_DATABASE_URL"]).await.expect("PostgreSQL");
        Self { world, service, database, next: 1 }
    }

    /// So many recordings of that length that nobody has asked for.
    fn record(&mut self, count: u32, len_bytes: u64) -> std::ops::Range<u32> {
        let range = self.next..self.next + count;
        self.next = range.end;
        for number in range.clone() {
            let mut recording = SimulatedRecording::speech(recording_id(number), call_sid(number), started_at());
            recording.audio = Audio::made_up_wav(len_bytes, u64::from(number));
            self.world.simulator.add(recording);
        }
        range
    }

    /// Takes them by callbacks, until all are stored; gives CPU seconds and seconds.
    async fn take(&mut self, numbers: std::ops::Range<u32>) -> (f64, f64) {
        let before: i64 = self.stored().await;
        let (began, spent) = (Instant::now(), cpu::seconds_of(self.service.pid()));
        let all = i64::from(numbers.end - numbers.start);
        let (world, service) = (&self.world, &self.service);
        let send = async |number| {
            let answer = service.send(&world.callback(recording_id(number).recording)).await;
            assert_eq!(answer.status(), 204);
        };
        stream::iter(numbers).for_each_concurrent(AT_ONCE, send).await;
        while self.stored().await < before + all {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        (cpu::seconds_of(self.service.pid()) - spent, began.elapsed().as_secs_f64())
    }

    async fn stored(&mut self) -> i64 {
        let count = "SELECT count(*) FROM recordings WHERE state = 'stored'";
        sqlx::query_scalar(count).fetch_one(&mut self.database).await.expect("a count")
    }
}

/// P6: CPU time of a recording of 1 MB, beside a loop of requests, hashlib and boto3.
pub async fn megabytes() {
    let count = setting("CALLVAULT_BENCH_INGEST", 200u32);
    let boto3 = Comparison {
        id: "P6",
        work: "1 MB: fetch, hash, put; 8 at a time",
        unit: "ms CPU",
        peer: "requests + boto3",
        goal: Goal::AtMost(1.0 / 3.0),
    };
    let Some(mut python) = python_tool("python") else { return boto3.missing(NOT_INSTALLED) };
    let mut ours = Ingesting::start(AT_ONCE).await;
    let store = ObjectStore::shared();
    python.arg("ingest.py").args([&ours.world.simulator.origin(), ACCOUNT, AUTH_TOKEN, &store.endpoint]);
    python.arg(ours.world.bucket());
    python.env("AWS_ACCESS_KEY_ID", &store.access_key_id).env("AWS_SECRET_ACCESS_KEY", &store.secret_access_key);
    let mut peer = Told::start(python);
    let mut measured = Vec::new();
    for _ in 0..crate::rounds::rounds() {
        let range = ours.record(count, MEGABYTE);
        let (spent, _) = ours.take(range).await;
        let range = ours.record(count, MEGABYTE);
        let peers = peer.tell(&format!("{} {}", range.start, range.end))[0];
        let each = |seconds: f64| seconds / f64::from(count) * 1e3;
        measured.push((each(spent), each(peers)));
    }
    boto3.tell(&measured);
    let bare = Comparison { peer: "a bare Rust loop", goal: Goal::AtMost(1.3), ..boto3 };
    bare.missing("it was written on the machine of the goals alone: 1.05 ms there");
}

/// P7: recordings a second, beside the puts that the store takes by itself.
pub async fn minutes() {
    let count = setting("CALLVAULT_BENCH_INGEST", 200u32);
    let puts = Comparison {
        id: "P7",
        work: "240 KB, callback to stored",
        unit: "a second",
        peer: "PUTs alone",
        goal: Goal::AtLeast(0.8),
    };
    let mut ours = Ingesting::start(16).await;
    let store = ours.world.store(&ours.service);
    let mut measured = Vec::new();
    let mut folder = 0;
    for _ in 0..crate::rounds::rounds() {
        let range = ours.record(count, MINUTE);
        let (_, seconds) = ours.take(range).await;
        folder += 1;
        measured.push((f64::from(count) / seconds, puts_a_second(&store, folder, count).await));
    }
    puts.tell(&measured);
}

async fn puts_a_second(store: &Store, folder: u32, count: u32) -> f64 {
    let body = bytes::Bytes::from(vec![7u8; MINUTE as usize]);
    let began = Instant::now();
    let put = async |number| {
        let key = Path::from(format!("puts/{folder}/{number}"));
        store.s3.put(&key, body.clone().into()).await.expect("a put");
    };
    stream::iter(0..count).for_each_concurrent(16, put).await;
    f64::from(count) / began.elapsed().as_secs_f64()
}

/// A recording of that length, stored.
pub async fn stored(world: &World, service: &Service, number: u32, len_bytes: u64) {
    let id = recording_id(number);
    let mut recording = SimulatedRecording::speech(id, call_sid(number), started_at());
    recording.audio = Audio::made_up_wav(len_bytes, u64::from(number));
    world.simulator.add(recording);
    service.send(&world.callback(id.recording)).await;
    eventually("it is stored", async || {
        let (_, shown) = service.json(&format!("/v1/recordings/{}", id.recording)).await;
        (shown["state"] == "stored").then_some(())
    })
    .await;
}
