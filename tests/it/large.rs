//! Recordings that do not fit into memory.

use callvault::twilio::simulator::{Audio, SimulatedRecording};
use futures::StreamExt;

use crate::support::servers::free_port;
use crate::support::world::{Parts, World, call_sid, recording_id, release_binary, started_at};

const GIB: u64 = 1 << 30;

/// The most memory that a process has had, in bytes.
fn peak_memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    kib << 10
}

on_all_parts! {
    async fn a_gibibyte_is_stored_in_96_mib_of_memory(world: World) {
        // The memory of the binary that users have; a debug build's is another.
        let service = world.start_on(free_port(), release_binary()).await;
        let id = recording_id(1);
        let mut recording = SimulatedRecording::speech(id, call_sid(1), started_at());
        recording.audio = Audio::made_up_wav(GIB, 11);
        let body = recording.audio.wav.clone().unwrap();
        world.simulator.add(recording);
        service.send(&world.callback(id.recording)).await;
        let digest = tokio::task::spawn_blocking(move || body.digest()).await.unwrap();
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!((&shown["sha256"], &shown["size_bytes"]), (&digest.to_string().into(), &GIB.into()));
        let peak = peak_memory_bytes(service.pid());
        assert!(peak < 96 << 20, "{} MiB", peak >> 20);

        let (_, link) = service.json(&format!("/v1/recordings/{}/link", id.recording)).await;
        let mut bytes = world.http.get(link["url"].as_str().unwrap()).send().await.unwrap().bytes_stream();
        let mut hasher = callvault::domain::digest::Hasher::default();
        while let Some(chunk) = bytes.next().await {
            hasher.update(&chunk.unwrap());
        }
        assert_eq!(hasher.finish(), digest);
        assert_eq!(world.store(&service).keys().await.len(), 1);
    }
}
