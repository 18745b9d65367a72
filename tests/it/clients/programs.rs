//! The programs around the Python client: the worker, the tasks, and what the pages say.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use callvault::domain::digest::Digest;
use callvault::domain::sid::RecordingSid;
use callvault::twilio::simulator::{Audio, Fault, SimulatedRecording, speech_mp3};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{client, ended, url_of};
use crate::support::python::{CLIENTS, PROGRAMS, PYTHON, logs_no_secret, python, said};
use crate::support::servers::free_port;
use crate::support::world::{
    ACCOUNT, ADMIN_KEY, AUTH_TOKEN, Parts, Service, World, call_sid, debug_binary, recording_id, started_at,
};
use crate::support::{eventually, kept};

/// The worker as its page starts it, in a folder with a copy of the programs.
struct Worker {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    logged: Arc<Mutex<String>>,
}

impl Worker {
    fn start(world: &World, service: &Service, folder: &Path) -> Self {
        for program in std::fs::read_dir(CLIENTS).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            std::fs::copy(program.path(), folder.join(program.file_name())).unwrap();
        }
        let store = world.store(service);
        let with_bucket = |command: &mut Command| {
            let venv = Path::new(PYTHON).parent().unwrap().display().to_string();
            command
                .env("PATH", format!("{venv}:{}", std::env::var("PATH").unwrap_or_default()))
                .env("AWS_ENDPOINT_URL_S3", &store.endpoint)
                .env("AWS_ACCESS_KEY_ID", &store.access_key_id)
                .env("AWS_SECRET_ACCESS_KEY", &store.secret_access_key)
                .env("AWS_DEFAULT_REGION", store.region)
                .env("CALLVAULT_URL", &service.url)
                .env("CALLVAULT_API_KEY", ADMIN_KEY)
                .env("CALLVAULT_CACHE_DIR", folder.join("cache"))
                .current_dir(folder);
        };
        let mut page = python();
        with_bucket(page.arg(format!("{PROGRAMS}/pages.py")).arg("worker"));
        let block = said(&page.output().unwrap()).trim().to_owned();
        let (exports, last) = block.rsplit_once('\n').expect("exports, and the worker");
        let mut command = Command::new("sh");
        with_bucket(command.env_clear().args(["-ec", &format!("{exports}\nexec {last}")]));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a shell");
        let logged = kept(child.stderr.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stdout, told) = (BufReader::new(child.stdout.take().unwrap()), lines.clone());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                told.lock().unwrap().push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        Self { child, lines, logged }
    }

    /// What it printed of that recording, once it has.
    async fn told(&self, recording: RecordingSid) -> Value {
        let of = |line: &&Value| line["recording_sid"] == recording.to_string();
        eventually("the worker is done with a recording", async || self.lines.lock().unwrap().iter().find(of).cloned())
            .await
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let logged = self.logged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        match std::thread::panicking() {
            true => eprintln!("--- log of the worker ---\n{logged}"),
            false => logs_no_secret(&logged),
        }
    }
}

on_all_parts! {
    async fn the_worker_is_told_and_reads_the_bucket_through_restarts_of_both(world: World) {
        let service = world.start().await;
        let folder = tempfile::tempdir().unwrap();
        let stored = async |service: &Service, number: u32| {
            let id = world.record(number);
            assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::NO_CONTENT);
            service.recording_in(id.recording, "stored").await
        };
        let first = stored(&service, 1).await;
        let worker = Worker::start(&world, &service, folder.path());
        let told = worker.told(recording_id(1).recording).await;
        assert_eq!((&told["sha256"], &told["call_sid"]), (&first["sha256"], &json!(call_sid(1))), "{told}");
        let seconds = told["seconds"].as_f64().unwrap();
        assert!((6.3..6.6).contains(&seconds) && told["peak"].as_u64().unwrap() > 1000, "it is decoded: {told}");

        // The service goes away and comes back; the worker goes on by itself.
        service.kill();
        let service = world.start_on(service.port, debug_binary()).await;
        let id = recording_id(2);
        let mut wav = SimulatedRecording::speech(id, call_sid(2), started_at());
        wav.audio = Audio { mp3: None, ..Audio::speech() };
        world.simulator.add(wav);
        service.deliver(&world.callback(id.recording)).await;
        let told = worker.told(id.recording).await;
        assert!((6.3..6.6).contains(&told["seconds"].as_f64().unwrap()), "WAV is decoded, too: {told}");

        // The worker is killed; another one goes on where it was.
        worker.signal("KILL");
        drop(worker);
        stored(&service, 3).await;
        let worker = Worker::start(&world, &service, folder.path());
        worker.told(recording_id(3).recording).await;
        let done: Vec<Value> = worker.lines.lock().unwrap().iter().map(|line| line["recording_sid"].clone()).collect();
        assert!(!done.contains(&json!(recording_id(1).recording)), "{done:?}");
        let mut worker = worker;
        worker.signal("TERM");
        assert!(worker.child.wait().unwrap().success(), "SIGTERM is an orderly end");
    }

    async fn a_webhook_becomes_a_task_and_a_task_waits_for_its_recording(world: World) {
        let port = free_port();
        let secret = "whsec_dGhpcnR5LXR3byBieXRlcyBvZiBhIHNlY3JldCAuLi4=";
        world.set("CALLVAULT_EVENTS_URL", format!("http://127.0.0.1:{port}/hooks/callvault"));
        world.set("CALLVAULT_EVENTS_SECRET", secret);
        let service = world.start().await;
        let cache = tempfile::tempdir().unwrap();
        let (called, told) = (world.record(1), world.record(2));
        world.simulator.script(called.recording, vec![Fault::NotReady; 3]);
        let mut tasks = client(&service, cache.path());
        tasks.env("EVENTS_SECRET", secret).arg(format!("{PROGRAMS}/tasks.py")).arg(port.to_string());
        tasks.args([call_sid(1).as_str(), &url_of(called.recording), "2"]);
        let tasks = tasks.spawn().unwrap();
        assert_eq!(service.send(&world.callback(told.recording)).await.status(), StatusCode::NO_CONTENT);
        let output = ended(tasks).await;
        let done: Value = serde_json::from_str(&said(&output)).unwrap();
        let result = |task: &str, argument: &str| {
            let of = |done: &&Value| done[0] == task && done[1][0] == argument;
            done.as_array().unwrap().iter().find(of).map(|done| done[2]["seconds"].as_f64().unwrap())
        };
        for (task, argument) in [
            ("transcribe_call", call_sid(1).as_str()),
            ("transcribe_recording", called.recording.as_str()),
            ("transcribe_recording", told.recording.as_str()),
        ] {
            assert!(result(task, argument).is_some_and(|seconds| (6.3..6.6).contains(&seconds)), "{task}: {done}");
        }
        assert_eq!(world.simulator.counts(called.recording).fetches, 1);
    }

    async fn the_pages_for_python_do_what_they_say(world: World) {
        let service = world.start().await;
        let cache = tempfile::tempdir().unwrap();
        world.record(1);
        let mut page = client(&service, cache.path());
        page.arg(format!("{PROGRAMS}/pages.py")).arg("readme");
        said(&ended(page.spawn().unwrap()).await);
    }

    async fn an_application_moves_over_as_its_page_says(world: World) {
        let port = free_port();
        for number in 1..=4 {
            world.record(number);
        }
        // Twilio recorded nothing that can be fetched of the fifth.
        world.record(5);
        world.simulator.always(recording_id(5).recording, Some(Fault::Html));
        let folder = tempfile::tempdir().unwrap();
        let path = format!("{}:{}", debug_binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
        let own = ["CALLVAULT_ADMIN_KEY", "CALLVAULT_TWILIO_ACCOUNT_SID", "CALLVAULT_TWILIO_AUTH_TOKEN"];
        let settings = world.settings.iter().filter(|(name, _)| !own.contains(&name.as_str()));
        let mut page = python();
        page.arg(format!("{PROGRAMS}/pages.py")).arg("moving").current_dir(folder.path()).envs(settings);
        page.env("PATH", path)
            .env("CALLVAULT_LISTEN", format!("127.0.0.1:{port}"))
            .env("CALLVAULT_NOT_READY_FOR", "1s")
            .env("CALLVAULT_CACHE_DIR", folder.path().join("cache"))
            .env("SERVICE_URL", format!("http://127.0.0.1:{port}"))
            .env("ACCOUNT", ACCOUNT)
            .env("AUTH_TOKEN", AUTH_TOKEN)
            .env("SHA256", Digest::of(&speech_mp3()).to_string());
        let page = page.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        said(&ended(page).await);
        for number in 1..=4 {
            assert_eq!(world.simulator.counts(recording_id(number).recording).fetches, 1, "{number}");
        }
    }
}
