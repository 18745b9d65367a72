//! Recordings that do not fit into memory: plain ones, and such as Twilio encrypted.

use aws_lc_rs::rsa::KeySize;
use callvault::domain::digest::Hasher;
use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::{Audio, SimulatedEncryption};
use futures::StreamExt;

use crate::encrypted::{encryption, pair, record};
use crate::support::servers::free_port;
use crate::support::world::{Parts, World, release_binary};

const MIB: u64 = 1 << 20;

/// The most memory that a process has had, in bytes.
fn peak_memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    kib << 10
}

/// Stores a recording of that length and plays it, in less than 96 MiB of memory.
async fn is_stored(world: &World, len_bytes: u64, encryption: Option<SimulatedEncryption>) {
    // The memory of the binary that users have; a debug build's is another.
    let service = world.start_on(free_port(), release_binary()).await;
    let audio = Audio::made_up_wav(len_bytes, 11);
    let body = audio.wav.clone().unwrap();
    let id: RecordingId = record(world, 1, audio, encryption);
    service.deliver(&world.callback(id.recording)).await;
    let digest = tokio::task::spawn_blocking(move || body.digest()).await.unwrap();
    let shown = service.recording_in(id.recording, "stored").await;
    assert_eq!((&shown["sha256"], &shown["size_bytes"]), (&digest.to_string().into(), &len_bytes.into()));
    let peak = peak_memory_bytes(service.pid());
    assert!(peak < 96 * MIB, "{} MiB", peak / MIB);

    let (_, link) = service.json(&format!("/v1/recordings/{}/link", id.recording)).await;
    let mut bytes = world.http.get(link["url"].as_str().unwrap()).send().await.unwrap().bytes_stream();
    let mut hasher = Hasher::default();
    while let Some(chunk) = bytes.next().await {
        hasher.update(&chunk.unwrap());
    }
    assert_eq!(hasher.finish(), digest);
    assert_eq!(world.store(&service).keys().await.len(), 1);
}

on_all_parts! {
    async fn a_gibibyte_is_stored_in_96_mib_of_memory(world: World) {
        is_stored(&world, 1024 * MIB, None).await;
    }

    // More than the bound, and no larger: it is sealed by a debug build, which is slow.
    async fn an_encrypted_one_of_160_mib_is_opened_in_96_mib_of_memory(world: World) {
        let pair = pair(&world, "a", KeySize::Rsa2048);
        world.set("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", pair.path.as_str());
        // It is fetched once, as long as no lease runs out on a busy machine.
        world.set("CALLVAULT_LEASE", "1m");
        is_stored(&world, 160 * MIB, Some(encryption(&pair, 1))).await;
    }
}
