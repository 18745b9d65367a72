//! Keys of encrypted recordings: made, and given late, as the guide says it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use callvault::twilio::simulator::{Audio, Fault, SimulatedEncryption};

use crate::encrypted::record;
use crate::support::pages::{Terminal, commands};
use crate::support::world::{ADMIN_KEY, Parts, World};

/// Sealed with the public key in that file.
fn sealed(world: &World, number: u8) -> SimulatedEncryption {
    let pem = std::fs::read_to_string(world.folder().join("recordings.pub.pem")).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with("--")).collect();
    let key = BASE64.decode(base64).unwrap();
    SimulatedEncryption::new(&format!("CR{}", "a".repeat(32)), &key, [number; 32], &[number; 12]).expect("an RSA key")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_came_late_opens_all_that_failed_for_it() {
    const SEALED: std::ops::RangeInclusive<u8> = 1..=5;
    let mut world = World::new(Parts::Embedded).await;
    world.set("CALLVAULT_NOT_READY_FOR", "1s");
    let mut terminal = Terminal::new(&world.folder(), &world.settings);
    let [make, retry] = commands("deploy/OPERATING.md", "Encrypted recordings");
    terminal.does(&make).await;

    let service = world.start().await;
    let sealed: Vec<_> =
        SEALED.map(|number| record(&world, number.into(), Audio::speech(), Some(sealed(&world, number)))).collect();
    // It failed for another reason, and is not to be asked for again.
    let other = world.record(9);
    world.simulator.always(other.recording, Some(Fault::Html));
    for id in sealed.iter().chain([&other]) {
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "failed").await;
    }
    let attempts = service.recording_in(other.recording, "failed").await["attempts"].clone();
    drop(service);

    let key = world.folder().join("recordings.pem");
    world.set("CALLVAULT_TWILIO_PRIVATE_KEY_FILE", key.to_str().unwrap());
    let service = world.start().await;
    terminal.set("CALLVAULT_URL", &service.url);
    terminal.set("CALLVAULT_API_KEY", ADMIN_KEY);
    // More than a page of them.
    assert!(retry.contains("limit=1000"));
    terminal.put_in("limit=1000", "limit=2");
    terminal.does(&retry).await;
    for id in &sealed {
        service.recording_in(id.recording, "stored").await;
    }
    let shown = service.recording_in(other.recording, "failed").await;
    assert_eq!(shown["attempts"], attempts, "{shown}");
}
