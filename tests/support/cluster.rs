//! Several nodes on one catalog and one bucket, each behind links of its own
//! that can be broken, and each a process that can be killed or frozen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use callvault::domain::digest::Digest;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{Audio, SimulatedRecording};
use reqwest::StatusCode;

use super::eventually;
use super::relay::Relay;
use super::servers::free_port;
use super::world::{Service, World, call_sid, recording_id, started_at};

/// A node, and its links to the parts.
pub struct Node {
    /// The process.
    pub service: Service,
    /// Its link to PostgreSQL; it leads nowhere where the catalog is SQLite.
    pub catalog: Relay,
    /// Its link to the store.
    pub store: Relay,
    /// Its link to Twilio.
    pub twilio: Relay,
    settings: BTreeMap<String, String>,
}

impl std::ops::Deref for Node {
    type Target = Service;
    fn deref(&self) -> &Service {
        &self.service
    }
}

impl Node {
    /// Another node of that world.
    pub async fn start(world: &World) -> Self {
        let mut settings = BTreeMap::new();
        let mut through = async |name: &str, suffix: &str| {
            let Some(url) = world.settings.get(name) else { return Relay::to(1).await };
            let port = reqwest::Url::parse(url).expect("a URL").port().expect("a port");
            let relay = Relay::to(port).await;
            settings.insert(name.to_owned(), format!("{}{suffix}", relay.instead_of(url)));
            relay
        };
        // Every statement is sent as text each time, so that a rule can tell it.
        let catalog = through("CALLVAULT_DATABASE_URL", "?statement-cache-capacity=0").await;
        let store = through("CALLVAULT_S3_ENDPOINT", "").await;
        let twilio = through("CALLVAULT_TWILIO_ORIGIN", "").await;
        let service = world.start_with(free_port(), &settings).await;
        Self { service, catalog, store, twilio, settings }
    }

    /// What leads a process to the parts by way of its links.
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    /// Starts it again, on the same port, after it has ended.
    pub async fn start_again(&mut self, world: &World) {
        self.service = world.start_with(self.service.port, &self.settings).await;
    }

    /// Stops the process in its tracks, as a host that swaps does.
    pub async fn freeze(&self) {
        self.signal("STOP");
        let stat = format!("/proc/{}/stat", self.pid());
        eventually("the process is stopped", async || {
            let stat = std::fs::read_to_string(&stat).expect("the process is there");
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')).then_some(())
        })
        .await;
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }
}

/// As many nodes, all ready.
pub async fn start(world: &World, nodes: usize) -> Vec<Node> {
    futures::future::join_all((0..nodes).map(|_| Node::start(world))).await
}

/// A callback is sent again, to another node, until one has acknowledged it: as
/// a balancer in front of the nodes would have it.
pub async fn send_until_taken(world: &World, ports: &[u16], first: usize, id: RecordingId) {
    let callback = world.callback(id.recording);
    let at = AtomicUsize::new(first);
    eventually("a node takes the callback", async || {
        let port = ports[at.fetch_add(1, Ordering::Relaxed) % ports.len()];
        let url = format!("http://127.0.0.1:{port}/webhooks/twilio/recording");
        let answer = callback.send(&world.http, &url).await.ok()?;
        (answer.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
}

/// A recording that is staged: larger than what one put takes.
pub fn add_large(world: &World, number: u32) -> (RecordingId, Digest) {
    let id = recording_id(number);
    let mut recording = SimulatedRecording::speech(id, call_sid(number), started_at());
    recording.audio = Audio::made_up_wav(20 << 20, u64::from(number));
    let digest = recording.audio.wav.as_ref().unwrap().digest();
    world.simulator.add(recording);
    (id, digest)
}

/// Dice that fall alike for the same seed (Marsaglia's xorshift64).
pub struct Dice(u64);

impl Dice {
    /// Dice of that seed.
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

impl Dice {
    /// One of these.
    pub fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let at = self.below(of.len() as u64);
        &of[usize::try_from(at).expect("an index")]
    }
}
