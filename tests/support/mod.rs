//! What tests stand on: real servers, real processes, and waiting for conditions.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod audit;
pub mod bucket;
pub mod cluster;
pub mod compose;
pub mod pages;
pub mod python;
pub mod relay;
pub mod secrets;
pub mod servers;
pub mod service;
pub mod world;

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The longest that anything here may take before a test fails. It is only
/// ever reached by a failure.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `condition` gives something, and fails the test if it never does.
pub async fn eventually<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, condition).await
}

/// The same with another patience.
pub async fn eventually_within<T>(patience: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + patience;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < until, "waited {patience:?} in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until nothing is left, and fails the test with what is left if that never is.
pub async fn eventually_none<T: std::fmt::Debug>(what: &str, mut left: impl AsyncFnMut() -> Vec<T>) {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let left = left().await;
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "waited {PATIENCE:?} in vain for: {what}; left: {left:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What comes out of a pipe, as it comes.
pub fn kept(mut pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let kept = text.clone();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(len @ 1..) = pipe.read(&mut piece) {
            kept.lock().expect("a text").push_str(&String::from_utf8_lossy(&piece[..len]));
        }
    });
    text
}

/// What random schedules are made of: `CALLVAULT_TEST_SEED`, which repeats a run,
/// else always the same.
pub fn seed() -> u64 {
    let given = std::env::var("CALLVAULT_TEST_SEED").ok();
    let seed = given.map_or(1, |seed| seed.parse().expect("CALLVAULT_TEST_SEED is a number"));
    eprintln!("CALLVAULT_TEST_SEED={seed}");
    seed
}
