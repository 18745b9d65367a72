//! What one step costs, as a ratio against the obvious peer.
//!
//! Ours and the peer run in turn (ours, peer, ours, peer …), so that a machine
//! that drifts does not favour either; the median of each and the range of the
//! ratio are printed. `cargo bench --bench micro`.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may fail")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use callvault::domain::digest::Digest;
use callvault::domain::media::sniff;
use sha2::Digest as _;

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(200);

/// Nanoseconds of one call, measured over a round.
fn nanoseconds<T>(step: &mut impl FnMut() -> T) -> f64 {
    let began = Instant::now();
    let mut calls = 0u32;
    while began.elapsed() < ROUND {
        black_box(step());
        calls += 1;
    }
    began.elapsed().as_nanos() as f64 / f64::from(calls)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn compare<A, B>(name: &str, mut ours: impl FnMut() -> A, peer_name: &str, mut peer: impl FnMut() -> B) {
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (nanoseconds(&mut ours), nanoseconds(&mut peer))).collect();
    let ratios: Vec<f64> = rounds.iter().map(|(ours, peer)| ours / peer).collect();
    let (lowest, highest) =
        ratios.iter().fold((f64::MAX, 0f64), |(low, high), ratio| (low.min(*ratio), high.max(*ratio)));
    let ours = median(&rounds.iter().map(|(ours, _)| *ours).collect::<Vec<_>>());
    let peer = median(&rounds.iter().map(|(_, peer)| *peer).collect::<Vec<_>>());
    println!("{name}: {ours:.0} ns, {peer_name} {peer:.0} ns, ratio {:.2} ({lowest:.2}–{highest:.2})", median(&ratios));
}

fn main() {
    let mebibyte: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    compare(
        "SHA-256 of 1 MiB",
        || Digest::of(black_box(&mebibyte)),
        "sha2",
        || sha2::Sha256::digest(black_box(&mebibyte)),
    );
    let speech = include_bytes!("../tests/fixtures/speech-mono.mp3");
    compare(
        "telling audio from an error page, by 4 KiB",
        || sniff(black_box(&speech[..4096])),
        "copying them",
        || speech[..4096].to_vec(),
    );
}
