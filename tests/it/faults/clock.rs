//! A node whose clock is 20 minutes off the catalog's: it takes callbacks and
//! gives links, and leaves all else to the others.

use callvault::domain::recording::RecordingId;
use reqwest::StatusCode;

use crate::support::audit::content;
use crate::support::eventually;
use crate::support::world::{Parts, World, call_sid};

pub(super) async fn is_off() {
    let mut world = World::new(Parts::Servers).await;
    let library = faketime();
    world.set("LD_PRELOAD", library.to_str().unwrap());
    world.set("FAKETIME", "+20m");
    world.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let wrong = world.start().await;
    let ids: Vec<RecordingId> = (1..=3).map(|number| world.record(number)).collect();
    for id in &ids {
        assert_eq!(wrong.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
    }
    eventually("it says so", async || wrong.trouble("clock_off").await).await;
    for id in &ids {
        let (_, shown) = wrong.json(&format!("/v1/recordings/{}", id.recording)).await;
        assert_eq!((&shown["state"], &shown["attempts"]), (&"pending".into(), &0.into()));
    }

    for name in ["LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"] {
        world.settings.remove(name);
    }
    let right = world.start().await;
    for id in &ids {
        right.recording_in(id.recording, "stored").await;
    }
    assert!(right.trouble("clock_off").await.is_none());
    // What another one fetched, it serves as any other does.
    let (bytes, _) = wrong.play(&format!("/v1/calls/{}/audio", call_sid(1))).await;
    assert!(!bytes.is_empty());
    content(&world).await;
}

/// What shifts the clock of a process that is started with it.
pub(crate) fn faketime() -> std::path::PathBuf {
    find("/usr/lib", "libfaketime.so.1").expect("tests/install-tools.sh installs faketime")
}

/// The first file of that name below a folder.
fn find(folder: &str, name: &str) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let here = paths.iter().find(|path| path.is_file() && path.ends_with(name)).cloned();
    here.or_else(|| {
        let folders = paths.iter().filter(|path| path.is_dir() && !path.is_symlink());
        folders.filter_map(|path| find(path.to_str()?, name)).next()
    })
}
