//! The player module for pages, in a real Chromium, with links of a few seconds.

use callvault::twilio::simulator::{Audio, Fault, SimulatedRecording};
use serde_json::{Value, json};

use crate::browser;
use crate::support::world::{ADMIN_KEY, Parts, World, call_sid, recording_id, started_at};

/// Twenty-five minutes of sound: more than a browser loads in advance.
pub const LONG_BYTES: u64 = 24_000_000;

/// Links live for two seconds, or three.
pub fn with_short_links(world: &mut World) {
    world.set("CALLVAULT_LINK_TTL", "2s");
    world.set("CALLVAULT_LINK_WINDOW", "1s");
}

/// A long recording of a call of its own, at Twilio.
pub fn record_long(world: &World, number: u32) {
    let mut recording = SimulatedRecording::speech(recording_id(number), call_sid(number), started_at());
    recording.audio = Audio::made_up_wav(LONG_BYTES, u64::from(number));
    (recording.duration, recording.channels) = ("1500".to_owned(), 1);
    world.simulator.add(recording);
}

on_all_parts! {
    async fn a_page_plays_on_past_the_end_of_its_links(world: World) {
        with_short_links(&mut world);
        let service = world.start().await;
        let [long, late, short, failed] = [1, 2, 3, 4];
        record_long(&world, long);
        world.record(short);
        world.record(late);
        world.record(failed);
        world.simulator.always(recording_id(late).recording, Some(Fault::NotReady));
        for number in [long, late, short] {
            service.deliver(&world.callback(recording_id(number).recording)).await;
        }
        let gave_up = world.simulator.callback(recording_id(failed).recording, "failed").unwrap();
        service.deliver(&gave_up).await;
        service.recording_in(recording_id(long).recording, "stored").await;
        service.recording_in(recording_id(short).recording, "stored").await;
        service.recording_in(recording_id(failed).recording, "failed").await;

        let argument = json!({"service": service.url, "key": ADMIN_KEY, "long": call_sid(long), "late": call_sid(late),
            "short": call_sid(short), "failed": call_sid(failed)});
        browser::run("player.py", argument, async |request| {
            assert_eq!(request["please"], "let the late one come");
            world.simulator.always(recording_id(late).recording, None);
            Value::Null
        })
        .await;
    }
}
