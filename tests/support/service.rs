//! A service under test: the process, what it says, and asking it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use callvault::domain::sid::{CallSid, RecordingSid};
use callvault::twilio::simulator::OutgoingCallback;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::secrets::Forbidden;
use super::world::ADMIN_KEY;
use super::{PATIENCE, eventually};

/// A running service. When it is dropped it is killed, and its log is searched for
/// what no log may hold.
pub struct Service {
    /// Where it answers.
    pub url: String,
    /// Its port.
    pub port: u16,
    child: Mutex<Child>,
    log: Arc<Mutex<String>>,
    /// Ends with the process, when all is read that it said.
    reading: Option<JoinHandle<()>>,
    forbidden: Forbidden,
    /// Where the embedded store has its own keys.
    store_keys: PathBuf,
    http: Client,
}

impl Service {
    /// Starts it in that folder, with these settings and no others.
    pub fn spawn(
        binary: PathBuf,
        port: u16,
        folder: &std::path::Path,
        settings: &BTreeMap<String, String>,
        http: Client,
    ) -> Self {
        let mut child = Command::new(binary)
            .arg("serve")
            .current_dir(folder)
            .env_clear()
            .env("CALLVAULT_LISTEN", format!("127.0.0.1:{port}"))
            .envs(settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        let kept = log.clone();
        let reading = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = kept.lock().expect("a log");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self {
            url: format!("http://127.0.0.1:{port}"),
            port,
            child: Mutex::new(child),
            log,
            reading: Some(reading),
            forbidden: Forbidden::of(settings, folder),
            store_keys: folder.join("callvault-data/keys.json"),
            http,
        }
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("a log").clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().expect("a child").id()
    }

    /// Its end, if it has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().expect("a child").try_wait().expect("the child can be asked")
    }

    /// Ends it at once, as a power cut does.
    pub fn kill(&self) {
        let mut child = self.child.lock().expect("a child");
        child.kill().expect("SIGKILL");
        child.wait().expect("the child is reaped");
    }

    /// Sends it a signal by name, such as TERM.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits for its end.
    pub async fn end(&self) -> ExitStatus {
        eventually("the service ends", async || self.exited()).await
    }

    /// A request with the admin key.
    pub fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(ADMIN_KEY).timeout(PATIENCE)
    }

    /// A GET with the admin key.
    pub async fn get(&self, path: &str) -> Response {
        self.request(reqwest::Method::GET, path).send().await.expect("the service answers")
    }

    /// Whether it says that it is degraded, for that reason.
    pub async fn trouble(&self, code: &str) -> Option<()> {
        let answer = self.get("/readyz").await;
        assert_eq!(answer.status(), StatusCode::OK);
        let body: Value = answer.json().await.expect("JSON");
        let told = body["problems"].as_array()?.iter().any(|problem| problem["code"] == code);
        (told && body["status"] == "degraded").then_some(())
    }

    /// The JSON of a GET, whatever its status.
    pub async fn json(&self, path: &str) -> (StatusCode, Value) {
        let answer = self.get(path).await;
        let status = answer.status();
        (status, answer.json().await.expect("JSON"))
    }

    /// Sends a callback, signed for this service.
    pub async fn send(&self, callback: &OutgoingCallback) -> Response {
        let url = format!("{}/webhooks/twilio/recording", self.url);
        callback.send(&self.http, &url).await.expect("the service answers")
    }

    /// Sends a callback that is to be accepted.
    pub async fn deliver(&self, callback: &OutgoingCallback) {
        let answer = self.send(callback).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{:?}", answer.text().await);
    }

    /// PUTs a recording URL for a call.
    pub async fn put(&self, call: CallSid, recording_url: &str) -> Response {
        let body = serde_json::json!({"recording_url": recording_url});
        let request = self.request(reqwest::Method::PUT, &format!("/v1/calls/{call}/recording")).json(&body);
        request.send().await.expect("the service answers")
    }

    /// A recording as the service shows it, once it is in that state.
    pub async fn recording_in(&self, recording: RecordingSid, state: &str) -> Value {
        let path = format!("/v1/recordings/{recording}");
        let mut last = Value::Null;
        let what = format!("{recording} is {state}");
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let (_, shown) = self.json(&path).await;
                if shown["state"] == state {
                    return shown;
                }
                last = shown;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("waited in vain until {what}: {last}\n{}", self.log()))
    }

    /// The bytes behind `/audio`, as a browser gets them.
    pub async fn play(&self, path: &str) -> (bytes::Bytes, reqwest::header::HeaderMap) {
        self.follow(self.get(path).await).await
    }

    /// The bytes to which that answer leads.
    pub async fn follow(&self, answer: reqwest::Response) -> (bytes::Bytes, reqwest::header::HeaderMap) {
        let path = answer.url().path().to_owned();
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "{path}: {:?}", answer.text().await);
        let link = answer.headers()["location"].to_str().expect("a URL").to_owned();
        let audio = self.http.get(link).send().await.expect("the store answers");
        assert_eq!(audio.status(), StatusCode::OK);
        let headers = audio.headers().clone();
        (audio.bytes().await.expect("a whole body"), headers)
    }
}

impl Service {
    /// Its log may hold nothing of it.
    fn nothing_secret_was_said(&mut self) {
        if let Ok(keys) = std::fs::read(&self.store_keys) {
            let keys: Value = serde_json::from_slice(&keys).unwrap_or_default();
            self.forbidden.add("the embedded store's secret", keys["secret_access_key"].as_str().expect("a secret"));
        }
        self.forbidden.is_not_in(&self.log());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
        let read = self.reading.take().map(JoinHandle::join);
        // A second failure would end all tests of the process.
        if std::thread::panicking() {
            return eprintln!("--- log of the service at {} ---\n{}", self.url, self.log());
        }
        assert!(matches!(read, Some(Ok(()))), "the log is whole");
        self.nothing_secret_was_said();
    }
}
