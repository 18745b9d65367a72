//! `callvault demo`: the whole journey of a recording, told step by step.
//!
//! Everything is real but Twilio: the service listens, the embedded S3 and
//! SQLite lie in a temporary folder, the audio is speech. Every step is checked
//! as it is told; the first that does not hold ends the demo.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use console::style;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::config::{BucketConfig, Config, Database};
use crate::domain::digest::Digest;
use crate::domain::recording::RecordingId;
use crate::domain::sid::CallSid;
use crate::telemetry;
use crate::twilio::simulator::{Fault, SimulatedAccount, SimulatedRecording, Simulator};

/// Show a recording's whole journey, from Twilio's callback to a link that plays.
///
/// Needs no account, no network and no file: a scripted Twilio, the embedded S3
/// and SQLite run in this process, in a temporary folder. Afterwards the service
/// goes on, for you to play the link and to try the API, until Ctrl-C.
///
/// Exit status: 0 every step held, 1 one did not.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// End after the last step
    #[arg(long)]
    once: bool,
}

/// Tells the story.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("Ctrl-C cannot be caught")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let folder = tempfile::Builder::new().prefix("callvault-demo-").tempdir().context("no temporary folder")?;
    let stage = Stage::set(folder.path()).await?;
    let told = tokio::select! {
        told = stage.tell() => told,
        _ = interrupt.recv() => Err(anyhow::anyhow!("it was ended before its last step")),
        _ = terminate.recv() => Err(anyhow::anyhow!("it was ended before its last step")),
    };
    if told.is_ok() && !args.once {
        stage.say_what_to_try();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        say("");
    }
    stage.app.shutdown().await;
    told
}

/// Everything that plays a part.
struct Stage {
    simulator: Simulator,
    app: App,
    http: Client,
    api_key: String,
    id: RecordingId,
    call: CallSid,
}

impl Stage {
    async fn set(folder: &std::path::Path) -> anyhow::Result<Self> {
        let account = SimulatedAccount { sid: sid("AC").parse()?, auth_token: random_hex(), api_key: None };
        let auth_token = account.auth_token.clone();
        let id = RecordingId { account: account.sid, recording: sid("RE").parse()? };
        let call = sid("CA").parse()?;
        let simulator = Simulator::start([account]).await.context("the scripted Twilio cannot start")?;
        let api_key = random_hex();
        let settings = [
            ("CALLVAULT_LISTEN", "127.0.0.1:0"),
            ("CALLVAULT_ADMIN_KEY", &api_key),
            ("CALLVAULT_TWILIO_ACCOUNT_SID", id.account.as_str()),
            ("CALLVAULT_TWILIO_AUTH_TOKEN", &auth_token),
            ("CALLVAULT_TWILIO_ORIGIN", &simulator.origin()),
            ("CALLVAULT_RETRY_BASE", "300ms"),
            // What is told here comes by callback.
            ("CALLVAULT_RECONCILE_EVERY", "off"),
            ("CALLVAULT_DRAIN", "0s"),
            ("CALLVAULT_LOG", "error"),
        ];
        let settings = settings.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let mut config = Config::load(settings)?;
        config.database = Database::Sqlite(folder.join("callvault.db"));
        config.bucket = BucketConfig::Embedded(folder.join("bucket"));
        telemetry::init_logs(&config.log);
        let app = App::start(config).await?;
        let http = Client::builder().redirect(Policy::none()).no_proxy().build()?;
        let stage = Self { simulator, app, http, api_key, id, call };
        stage.wait_until_ready().await?;
        say(format!("\n{}\n", style("callvault: a recording's journey").bold()));
        line("Twilio", format!("scripted, at {}", stage.simulator.origin()));
        line("service", &stage.app.public_url);
        line("bucket", "the embedded S3, on the service's own port");
        line("catalog", format!("SQLite in {}", folder.display()));
        Ok(stage)
    }

    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.app.public_url);
        let until = Instant::now() + Duration::from_secs(30);
        while self.http.get(&url).send().await.context("the service does not answer")?.status() != StatusCode::OK {
            ensure!(Instant::now() < until, "the service does not become ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn tell(&self) -> anyhow::Result<()> {
        self.call_ends().await.context("the callback was not taken")?;
        let first_link = self.first_listener_waits().await.context("the first listener was not served")?;
        let stored = self.show_what_is_stored(&first_link).await.context("what is stored is not right")?;
        self.others_listen(&stored).await.context("a later listener was not served")?;
        self.show_link().await.context("the link is not right")?;
        say(format!("\n{} Every step held.", style("✔").green().bold()));
        Ok(())
    }

    /// Twilio calls back while its media is not there yet, as it often does.
    async fn call_ends(&self) -> anyhow::Result<()> {
        self.simulator.add(SimulatedRecording::speech(self.id, self.call, now()));
        let formats = 3;
        self.simulator.script(self.id.recording, vec![Fault::NotReady; formats]);
        let callback = self.simulator.callback(self.id.recording, "completed").context("no callback was made")?;
        let began = Instant::now();
        let answer = callback.send(&self.http, &format!("{}/webhooks/twilio/recording", self.app.public_url)).await?;
        let took = began.elapsed();
        ensure!(answer.status() == StatusCode::NO_CONTENT, "the service answered {}", answer.status());
        step(1, "A call ends, and Twilio calls back", format!("204 in {}", milliseconds(took)));
        line("signed", "X-Twilio-Signature checked with the account's token");
        line("durable", "the catalog had committed before Twilio was answered");
        Ok(())
    }

    /// Someone presses play at once: they wait until the recording is there.
    async fn first_listener_waits(&self) -> anyhow::Result<String> {
        let began = Instant::now();
        let answer = self.get(&format!("/v1/calls/{}/audio?wait=30", self.call)).await?;
        let took = began.elapsed();
        let link = location(&answer)?;
        let counts = self.simulator.counts(self.id.recording);
        ensure!(counts.fetches == 1, "Twilio was asked for the media {} times with success", counts.fetches);
        let late = counts.media_requests - counts.fetches;
        step(2, "Someone plays it before Twilio has it", format!("307 in {}", milliseconds(took)));
        line("too early", format!("Twilio answered 404 {late} times; the service tried again by itself"));
        line("fetched", format!("once: {} of Twilio's media requests was answered with 200", counts.fetches));
        Ok(link)
    }

    async fn show_what_is_stored(&self, link: &str) -> anyhow::Result<Digest> {
        let shown = self.json(&format!("/v1/recordings/{}", self.id.recording)).await?;
        let text =
            |field: &str| shown[field].as_str().map(str::to_owned).with_context(|| format!("{field} is missing"));
        let audio = self.http.get(link).send().await?;
        ensure!(audio.status() == StatusCode::OK, "the bucket answered {} to the link", audio.status());
        let in_metadata =
            audio.headers().get("x-amz-meta-sha256").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = audio.bytes().await?;
        let digest = Digest::of(&bytes);
        ensure!(text("sha256")? == digest.to_string(), "the catalog names another SHA-256 than the bytes have");
        ensure!(in_metadata == Some(digest.to_string()), "the object's metadata names another SHA-256");
        let key = text("key")?;
        ensure!(key == format!("{}/{}/{digest}.mp3", self.call, self.id.recording), "the key is {key}");
        step(3, "It lies in the bucket, named by its content", format!("{} bytes", bytes.len()));
        line("call", self.call);
        line("recording", self.id.recording);
        line("sha256", digest);
        line("key", "<call>/<recording>/<sha256>.mp3");
        line("read back", "the bytes hash to their name, and to the SHA-256 in the object's metadata");
        Ok(digest)
    }

    /// Two more listeners, each by another way.
    async fn others_listen(&self, stored: &Digest) -> anyhow::Result<()> {
        let ways = [format!("/v1/recordings/{}/audio", self.id.recording), format!("/v1/calls/{}/audio", self.call)];
        let mut times = Vec::new();
        for way in &ways {
            let began = Instant::now();
            let answer = self.get(way).await?;
            times.push(milliseconds(began.elapsed()));
            let bytes = self.http.get(location(&answer)?).send().await?.bytes().await?;
            ensure!(Digest::of(&bytes) == *stored, "{way} led to other bytes");
        }
        let fetches = self.simulator.counts(self.id.recording).fetches;
        ensure!(fetches == 1, "Twilio was asked again: {fetches} fetches");
        step(4, "A second and a third listener", "0 further fetches");
        line("answered", format!("with a redirect in {}", times.join(" and ")));
        line("asked", "neither Twilio nor the bucket: the link is signed from what the catalog knows");
        Ok(())
    }

    async fn show_link(&self) -> anyhow::Result<()> {
        let link = self.json(&format!("/v1/calls/{}/link", self.call)).await?;
        let expires_at: Timestamp = link["expires_at"].as_str().context("expires_at is missing")?.parse()?;
        let seconds = link["expires_in_seconds"].as_i64().context("expires_in_seconds is missing")?;
        ensure!(seconds >= 3600, "the link lives for {seconds} s only");
        let local = expires_at.to_zoned(TimeZone::UTC).strftime("%H:%M UTC");
        step(5, "The link", format!("good for {} min", seconds / 60));
        line("ends", format!("at {local}; until its window ends everyone gets this same URL"));
        let url = link["url"].as_str().context("url is missing")?;
        say(format!("\n{}", style(url).cyan().underlined()));
        Ok(())
    }

    fn say_what_to_try(&self) {
        let (url, key) = (&self.app.public_url, &self.api_key);
        let bearer = format!("-H 'Authorization: Bearer {key}'");
        say("\nOpen the link in a browser: it plays. Then try:\n");
        say(format!("  curl -sL {bearer} {url}/v1/calls/{}/audio -o call.mp3\n", self.call));
        say(format!("  curl -s {bearer} {url}/v1/recordings/{}\n", self.id.recording));
        let this = std::env::current_exe().map_or_else(|_| "callvault".to_owned(), |path| path.display().to_string());
        say(format!("  CALLVAULT_URL={url} CALLVAULT_API_KEY={key} {this} get {}\n", self.call));
        say(format!("Or sign in at {url}/console with the key {key}; {url}/docs tells of the rest.\n"));
        say(format!("{}", style("Ctrl-C ends the service and removes its folder.").dim()));
    }

    async fn get(&self, path: &str) -> anyhow::Result<Response> {
        let url = format!("{}{path}", self.app.public_url);
        Ok(self.http.get(url).bearer_auth(&self.api_key).send().await?)
    }

    async fn json(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.get(path).await?;
        ensure!(answer.status() == StatusCode::OK, "{path} was answered with {}", answer.status());
        Ok(answer.json().await?)
    }
}

fn location(answer: &Response) -> anyhow::Result<String> {
    if answer.status() != StatusCode::TEMPORARY_REDIRECT {
        bail!("the service answered {} instead of a redirect", answer.status());
    }
    let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
    Ok(location.context("the redirect leads nowhere")?.to_owned())
}

/// A listener who has left does not end the story.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn step(number: u8, what: &str, measured: impl Display) {
    let number = style(format!("{number}")).cyan().bold();
    say(format!("\n{number}  {}  {}", style(what).bold(), style(measured).green()));
}

fn line(name: &str, value: impl Display) {
    say(format!("   {} {value}", style(format!("{name:<10}")).dim()));
}

fn milliseconds(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

/// When a scripted call is made.
#[expect(clippy::disallowed_methods, reason = "the scripted call is made now")]
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

/// A SID that nobody has.
pub(super) fn sid(prefix: &str) -> String {
    format!("{prefix}{}", random_hex())
}

#[expect(clippy::disallowed_methods, reason = "names and keys of one demo")]
fn random_hex() -> String {
    format!("{:032x}", rand::random::<u128>())
}
