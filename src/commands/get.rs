//! `callvault get`: a recording, through a running service, checked.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, StatusCode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use tempfile::NamedTempFile;

use super::print_line;
use crate::config::ClientConfig;
use crate::domain::digest::{Digest, Hasher};
use crate::domain::sid::{CallSid, RecordingSid};
use crate::telemetry::innermost;

/// What one request to the service waits for.
const WAIT_SECONDS: u64 = 30;
/// A service that is there answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest silence of the service, which may wait, or within a download.
const READ_TIMEOUT: Duration = Duration::from_secs(WAIT_SECONDS + 15);
/// Above what the service waits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(WAIT_SECONDS + 15);

/// A node that restarts is back by then.
const AWAY_MAX: Duration = Duration::from_secs(10);

/// Fetch a recording through a running service, and check its digest.
///
/// CALLVAULT_URL names the service, CALLVAULT_API_KEY holds a key that may read.
/// A recording that is on its way is waited for. The file appears whole and
/// checked, or not at all; its path is written to stdout.
///
/// Exit status: 0 done; 1 there is no such recording, or it did not come in
/// time, or its digest is wrong; 2 wrong usage or settings.
///
/// Examples:
///   callvault get CA0123456789abcdef0123456789abcdef
///   callvault get RE0123456789abcdef0123456789abcdef -o call.mp3
///   callvault get CA0123456789abcdef0123456789abcdef -o - | ffplay -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The call (CA…) or the recording (RE…)
    sid: Sid,
    /// Where to write it; `-` is stdout [default: <RecordingSid>.<mp3|wav> here]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How long to wait for a recording that is on its way
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::config::parse::duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Sid {
    Call(CallSid),
    Recording(RecordingSid),
}

impl FromStr for Sid {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let call = text.parse().map(Self::Call).ok();
        call.or_else(|| text.parse().map(Self::Recording).ok()).ok_or("CA or RE and 32 hex digits are expected")
    }
}

#[derive(Debug, Deserialize)]
struct Link {
    url: String,
    recording_sid: RecordingSid,
    sha256: String,
    size_bytes: u64,
    key: String,
}

#[derive(Debug, Deserialize)]
struct Pending {
    state: String,
    retry_after_seconds: u64,
}

#[derive(Debug, Deserialize)]
struct Problem {
    detail: String,
    code: String,
}

/// Fetches it.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = ClientConfig::from_process()?;
    let http = Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build()?;
    let link = wait_for_link(&http, &config, &args).await?;
    let digest: Digest = link.sha256.parse().context("the service gave no SHA-256")?;
    let target = match &args.output {
        Some(path) if path == Path::new("-") => None,
        Some(path) => Some(path.clone()),
        None => {
            let extension = link.key.rsplit('.').next().unwrap_or("bin");
            Some(PathBuf::from(format!("{}.{extension}", link.recording_sid)))
        }
    };
    let folder = target.as_deref().and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
    // As readable as the user's other files: the umask takes away from this.
    let mut builder = tempfile::Builder::new();
    builder.prefix(".callvault-").permissions(PermissionsExt::from_mode(0o666));
    let file = match (&target, folder) {
        (None, _) => builder.tempfile(),
        (Some(_), Some(folder)) => builder.tempfile_in(folder),
        (Some(_), None) => builder.tempfile_in("."),
    };
    let mut file = file.context("no file can be written there")?;
    download(&http, &link, digest, &mut file).await?;
    finish(file, target.as_deref())
}

/// What the service says of the link.
enum Told {
    Link(Link),
    /// Not now: why, and when to ask again.
    Later(String, Duration),
}

async fn wait_for_link(http: &Client, config: &ClientConfig, args: &Args) -> anyhow::Result<Link> {
    let path = match args.sid {
        Sid::Call(sid) => format!("/v1/calls/{sid}/link"),
        Sid::Recording(sid) => format!("/v1/recordings/{sid}/link"),
    };
    let (began, until) = (Instant::now(), Instant::now() + args.timeout);
    let spinner = ProgressBar::new_spinner();
    loop {
        let wait = until.saturating_duration_since(Instant::now()).as_secs().min(WAIT_SECONDS);
        let url = format!("{}{path}?wait={wait}", config.url);
        let request = http.get(&url).bearer_auth(config.api_key.expose_secret()).timeout(REQUEST_TIMEOUT);
        let (why, after) = match request.send().await {
            Ok(answer) => match read(answer, &config.url).await? {
                Told::Link(link) => return Ok(link),
                Told::Later(why, after) => (why, after),
            },
            // A node that restarts, or is not there at all.
            Err(_) if began.elapsed() < AWAY_MAX => (format!("{} does not answer", config.url), Duration::from_secs(1)),
            Err(error) => bail!("{} does not answer: {}", config.url, innermost(&error)),
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("{why}; try again later");
        }
        spinner.set_message(why);
        spinner.tick();
        tokio::time::sleep(left.min(after)).await;
    }
}

/// Reads an answer; an error is final.
async fn read(answer: reqwest::Response, url: &str) -> anyhow::Result<Told> {
    let after = retry_after(&answer);
    match answer.status() {
        StatusCode::OK => Ok(Told::Link(answer.json().await.context("the service's answer is not a link")?)),
        StatusCode::ACCEPTED => {
            let pending: Pending = answer.json().await.context("the service's answer cannot be read")?;
            let after = Duration::from_secs(pending.retry_after_seconds);
            Ok(Told::Later(format!("the recording is {}", pending.state), after))
        }
        status => match answer.json::<Problem>().await {
            Ok(problem) if problem.code == "not_ready" => {
                Ok(Told::Later("Twilio is being asked for the recording".to_owned(), after))
            }
            Ok(problem) if matches!(problem.code.as_str(), "unavailable" | "too_many_requests") => {
                Ok(Told::Later(format!("{} ({})", problem.detail.trim_end_matches('.'), problem.code), after))
            }
            Ok(problem) => bail!("{} ({})", problem.detail, problem.code),
            Err(_) => bail!("{url} answered {status}; is it a callvault?"),
        },
    }
}

/// When the service wants to be asked again.
fn retry_after(answer: &reqwest::Response) -> Duration {
    let header = answer.headers().get(reqwest::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    Duration::from_secs(header.and_then(|seconds| seconds.parse().ok()).unwrap_or(1))
}

async fn download(http: &Client, link: &Link, digest: Digest, file: &mut NamedTempFile) -> anyhow::Result<()> {
    let bar = ProgressBar::new(link.size_bytes);
    let style = ProgressStyle::with_template("{bytes}/{total_bytes} {wide_bar} {bytes_per_sec} {eta}");
    bar.set_style(style.context("the progress bar's template is wrong")?);
    let sent = http.get(&link.url).send().await;
    let mut answer = sent.map_err(reqwest::Error::without_url).context("the bucket does not answer")?;
    if answer.status() != StatusCode::OK {
        bail!("the bucket answered {} to the link", answer.status());
    }
    let mut hasher = Hasher::default();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url).context("the download broke")? {
        hasher.update(&chunk);
        file.write_all(&chunk).context("the file cannot be written")?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let got = hasher.finish();
    if got != digest {
        bail!("the bytes are wrong: their SHA-256 is {got}, not {digest}; nothing was kept");
    }
    Ok(())
}

fn finish(mut file: NamedTempFile, target: Option<&Path>) -> anyhow::Result<()> {
    let Some(target) = target else {
        let mut whole = std::fs::File::open(file.path()).context("the file cannot be read back")?;
        std::io::copy(&mut whole, &mut std::io::stdout().lock()).context("stdout is closed")?;
        return Ok(());
    };
    file.flush().context("the file cannot be written")?;
    file.persist(target).with_context(|| format!("{} cannot be written", target.display()))?;
    print_line(&target.display().to_string());
    Ok(())
}
