//! The clients that users copy into their applications, before a real service.

mod programs;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use callvault::domain::digest::Digest;
use callvault::domain::sid::RecordingSid;
use callvault::twilio::simulator::{Audio, Fault, SimulatedRecording, speech_mp3};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::python::{CLIENTS, PROGRAMS, PYTHON, python, said};
use crate::support::world::{
    ACCOUNT, ADMIN_KEY, Parts, Service, World, call_sid, debug_binary, recording_id, started_at,
};

/// A program that finds this service in its environment.
fn client(service: &Service, cache: &Path) -> Command {
    let mut command = python();
    command
        .env("CALLVAULT_URL", &service.url)
        .env("CALLVAULT_API_KEY", ADMIN_KEY)
        .env("CALLVAULT_CACHE_DIR", cache)
        .env("ACCOUNT", ACCOUNT)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// `tests/clients/calls.py`, which asks for these calls.
fn asking(service: &Service, cache: &Path, timeout_seconds: u32, calls: &Value) -> Child {
    let mut command = client(service, cache);
    command.arg(format!("{PROGRAMS}/calls.py")).arg(timeout_seconds.to_string()).arg(calls.to_string());
    command.spawn().expect("the tests' Python is not installed: run `make test`, or tests/install-tools.sh")
}

/// Waits for a program without standing in the way of the world's other parts.
async fn ended(child: Child) -> Output {
    tokio::task::spawn_blocking(move || child.wait_with_output().expect("it ends")).await.expect("it is waited for")
}

async fn outcomes(service: &Service, cache: &Path, timeout_seconds: u32, calls: &Value) -> Value {
    let output = ended(asking(service, cache, timeout_seconds, calls)).await;
    serde_json::from_str(&said(&output)).expect("JSON")
}

/// The URL that an application holds of it.
fn url_of(recording: RecordingSid) -> String {
    format!("https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Recordings/{recording}")
}

/// Ten programs at once, one for each folder, and what they have in the end.
async fn ten_ask(service: &Service, folders: &[&Path], call: &Value) -> (Vec<Value>, usize) {
    let asked: Vec<Child> = folders.iter().map(|folder| asking(service, folder, 60, &json!([call]))).collect();
    let mut found = Vec::new();
    let mut downloads = 0;
    for output in futures::future::join_all(asked.into_iter().map(ended)).await {
        let outcome: Value = serde_json::from_str(&said(&output)).expect("JSON");
        found.push(outcome[0].clone());
        downloads += String::from_utf8_lossy(&output.stderr).matches("downloaded RE").count();
    }
    (found, downloads)
}

on_all_parts! {
    async fn ten_processes_that_ask_for_one_new_call_cost_one_fetch(world: World) {
        let service = world.start().await;
        let caches = tempfile::tempdir().unwrap();
        let own: Vec<_> = (0..10).map(|number| caches.path().join(number.to_string())).collect();
        let own: Vec<&Path> = own.iter().map(AsRef::as_ref).collect();
        let shared = caches.path().join("shared");
        for (number, folders, named) in [(1, &own, true), (2, &vec![shared.as_path(); 10], true), (3, &own, false)] {
            let id = recording_id(number);
            let mut recording = SimulatedRecording::speech(id, call_sid(number), started_at());
            recording.audio = Audio::made_up_wav(3 << 20, u64::from(number));
            let digest = recording.audio.wav.as_ref().unwrap().digest().to_string();
            world.simulator.add(recording);
            let recording_url = named.then(|| url_of(id.recording));
            let call = json!({"call_sid": call_sid(number), "recording_url": recording_url, "duration": "-1"});

            let (found, downloads) = ten_ask(&service, folders, &call).await;

            assert!(found.iter().all(|file| file["sha256"] == digest), "{found:?}");
            assert_eq!(world.simulator.counts(id.recording).fetches, 1);
            let mut different = folders.clone();
            different.dedup();
            assert_eq!(downloads, different.len(), "each folder is filled once");
        }
    }

    async fn the_recording_that_a_call_log_names_is_the_one_that_is_read(world: World) {
        let service = world.start().await;
        let cache = tempfile::tempdir().unwrap();
        let digests: Vec<String> = (1..=2).map(|number| {
            let mut recording = SimulatedRecording::speech(recording_id(number), call_sid(1), started_at());
            recording.audio = Audio::made_up_wav(10_000, u64::from(number));
            let digest = recording.audio.wav.as_ref().unwrap().digest().to_string();
            world.simulator.add(recording);
            digest
        }).collect();
        let log = |number: u32| json!({"call_sid": call_sid(1), "recording_url": url_of(recording_id(number).recording)});
        let found = outcomes(&service, cache.path(), 60, &json!([log(1), log(2), log(1), {"call_sid": call_sid(1)}])).await;
        let found: Vec<&str> = found.as_array().unwrap().iter().map(|file| file["sha256"].as_str().unwrap()).collect();
        // Without a URL it is what the call answers for: the last one that was named.
        assert_eq!(found, [&digests[0], &digests[1], &digests[0], &digests[0]].map(String::as_str));
    }

    async fn never_is_none_and_not_yet_says_when_to_ask_again(world: World) {
        world.set("CALLVAULT_NOT_READY_FOR", "1s");
        let service = world.start().await;
        let cache = tempfile::tempdir().unwrap();
        for number in 1..=4 {
            world.record(number);
        }
        let absent = world.simulator.callback(recording_id(1).recording, "absent").unwrap();
        assert_eq!(service.send(&absent).await.status(), StatusCode::NO_CONTENT);
        world.simulator.always(recording_id(2).recording, Some(Fault::Html));
        world.simulator.always(recording_id(3).recording, Some(Fault::RateLimited { retry_after: Some("20".to_owned()) }));
        let log = |number: u32| json!({"call_sid": call_sid(number), "recording_url": url_of(recording_id(number).recording)});

        // Absent, given up, and of no call that anybody knows.
        let never = json!([{"call_sid": call_sid(1)}, log(2), {"call_sid": call_sid(404)}]);
        assert_eq!(outcomes(&service, cache.path(), 60, &never).await, json!([null, null, null]));

        let pending = outcomes(&service, cache.path(), 1, &json!([log(3)])).await;
        assert!(pending[0]["pending"].as_u64().unwrap() >= 1, "{pending}");
        assert_eq!(pending[0]["unavailable"], false);
        world.simulator.always(recording_id(3).recording, None);
        let found = outcomes(&service, cache.path(), 120, &json!([log(3)])).await;
        assert_eq!(found[0]["sha256"], Digest::of(&speech_mp3()).to_string());

        let mut refused = client(&service, cache.path());
        refused.env("CALLVAULT_API_KEY", "wrong").arg(format!("{PROGRAMS}/calls.py")).arg("60").arg(json!([log(4)]).to_string());
        let refused: Value = serde_json::from_str(&said(&ended(refused.spawn().unwrap()).await)).unwrap();
        assert_eq!(refused[0]["error"], "AccessDenied", "{refused}");
    }

    async fn what_was_erased_is_none_and_gone_from_the_folder(world: World) {
        let service = world.start().await;
        let cache = tempfile::tempdir().unwrap();
        for (number, named) in [(1, true), (2, false)] {
            let id = world.record(number);
            let recording_url = named.then(|| url_of(id.recording));
            let log = json!([{"call_sid": call_sid(number), "recording_url": recording_url}]);
            let found = outcomes(&service, cache.path(), 60, &log).await;
            assert_eq!(found[0]["sha256"], Digest::of(&speech_mp3()).to_string());
            let erased = service.request(Method::DELETE, &format!("/v1/recordings/{}", id.recording)).send().await.unwrap();
            assert!(erased.status().is_success(), "{}", erased.status());
            assert_eq!(outcomes(&service, cache.path(), 60, &log).await, json!([null]));
            assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
        }
    }

    async fn a_worker_that_cannot_reach_the_bucket_gets_its_file_through_the_service(world: World) {
        // Links lead to where nobody is.
        match world.parts {
            Parts::Embedded => world.set("CALLVAULT_PUBLIC_URL", "http://127.0.0.1:9"),
            Parts::Servers => world.set("CALLVAULT_S3_PUBLIC_ENDPOINT", "http://127.0.0.1:9"),
        }
        let service = world.start().await;
        let cache = tempfile::tempdir().unwrap();
        let id = world.record(1);
        let log = json!([{"call_sid": call_sid(1), "recording_url": url_of(id.recording)}]);
        let found = outcomes(&service, cache.path(), 60, &log).await;
        assert_eq!(found[0]["sha256"], Digest::of(&speech_mp3()).to_string());
    }

    async fn whoever_asks_while_the_service_restarts_gets_the_file(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::NotReady));
        let cache = tempfile::tempdir().unwrap();
        let log = json!([{"call_sid": call_sid(1), "recording_url": url_of(id.recording)}]);
        let asked = asking(&service, cache.path(), 120, &log);
        service.recording_in(id.recording, "pending").await;
        service.kill();
        world.simulator.always(id.recording, None);
        let _again = world.start_on(service.port, debug_binary()).await;
        let found: Value = serde_json::from_str(&said(&ended(asked).await)).unwrap();
        assert_eq!(found[0]["sha256"], Digest::of(&speech_mp3()).to_string());
    }
}

/// What the client does in trouble is tested in Python, where the trouble is scripted.
#[test]
fn the_client_holds_in_all_trouble_that_can_be_scripted() {
    let mut tests = python();
    tests.current_dir(PROGRAMS).args(["-W", "error", "-m", "unittest", "test_client"]);
    said(&tests.output().expect("the tests' Python is not installed: run `make test`, or tests/install-tools.sh"));
}

#[test]
fn what_users_copy_is_clean_to_the_linter_from_python_3_9_on() {
    let ruff = Path::new(PYTHON).with_file_name("ruff");
    for check in [["check", "--no-cache"], ["format", "--check"]] {
        let mut command = Command::new(&ruff);
        command.args(check).args(["--isolated", "--target-version", "py39", CLIENTS]);
        let output = command.output().expect("ruff is not installed: run `make test`, or tests/install-tools.sh");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let mut compile = python();
    let output = tempfile::tempdir().unwrap();
    compile.env("PYTHONPYCACHEPREFIX", output.path()).env_remove("PYTHONDONTWRITEBYTECODE");
    compile.args(["-W", "error", "-m", "compileall", "-q", CLIENTS, PROGRAMS]);
    said(&compile.output().unwrap());
}
