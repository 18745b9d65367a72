//! What lies in a bucket, planted as a node of this service would have written it,
//! and the commands that look at it.

use std::process::{Command, Output};

use callvault::domain::digest::Digest;
use callvault::domain::media::Format;
use callvault::domain::object_key::{self, CACHE_CONTROL, Layout};
use callvault::domain::recording::{Details, RecordingId};
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStore as _, ObjectStoreExt as _, PutOptions};

use super::world::{Store, World, call_sid, debug_binary, recording_id, started_at};

/// What is known of the recording of that number.
pub fn details(number: u32) -> Details {
    Details {
        call_sid: Some(call_sid(number)),
        duration_seconds: Some(6),
        channels: Some(2),
        recorded_at: Some(started_at()),
        ..Details::default()
    }
}

/// Where those bytes lie as an object of that recording.
pub fn key(number: u32, bytes: &[u8]) -> String {
    let key = Layout::below("").audio(&recording_id(number), &details(number), &Digest::of(bytes), Format::Mp3);
    key.expect("a call")
}

/// The attributes of an object of that recording, stored so many seconds after it was made.
pub fn attributes(id: &RecordingId, number: u32, bytes: &[u8], seconds: i64) -> Attributes {
    let stored_at: Timestamp = started_at() + jiff::SignedDuration::from_secs(seconds);
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::ContentType, Format::Mp3.content_type().into());
    attributes.insert(Attribute::CacheControl, CACHE_CONTROL.into());
    for (name, value) in object_key::metadata(id, &details(number), &Digest::of(bytes), stored_at) {
        attributes.insert(Attribute::Metadata(name.into()), value.into());
    }
    attributes
}

/// Writes an object of that recording as a node would have; gives its key.
pub async fn plant(store: &Store, number: u32, bytes: &[u8], seconds: i64) -> String {
    let key = key(number, bytes);
    let attributes = attributes(&recording_id(number), number, bytes, seconds);
    put(store, &key, bytes, attributes).await;
    key
}

/// The same for many recordings, one second after the other.
pub async fn plant_many(store: &Store, numbers: std::ops::RangeInclusive<u32>, bytes: &[u8]) -> Vec<String> {
    stream::iter(numbers).map(|number| plant(store, number, bytes, number.into())).buffered(16).collect().await
}

/// Writes an object.
pub async fn put(store: &Store, key: &str, bytes: &[u8], attributes: Attributes) {
    let options = PutOptions { attributes, ..PutOptions::default() };
    store.s3.put_opts(&Path::from(key), bytes.to_vec().into(), options).await.expect("the store takes it");
}

/// Removes an object.
pub async fn remove(store: &Store, key: &str) {
    store.s3.delete(&Path::from(key)).await.expect("the store removes it");
}

/// A command on the settings of the world's services, not run yet.
pub fn command(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new(debug_binary());
    command.args(args).current_dir(world.folder()).env_clear().envs(&world.settings);
    command
}

/// Runs a command on the settings of the world's services.
pub async fn run(world: &World, args: &[&str]) -> Output {
    let mut command = command(world, args);
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = ran.await.expect("the command is run").expect("the binary starts");
    world.forbidden().is_not_in(&String::from_utf8_lossy(&output.stderr));
    output
}

/// What a command wrote to stdout, as JSON; fails unless it ended with that status.
pub fn document(output: &Output, code: i32) -> serde_json::Value {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}
