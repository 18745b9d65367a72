//! `callvault verify`: every object read back, and what is wrong repaired.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::beside::{self, Beside};
use super::{config, print_line};
use crate::bucket::Throttle;
use crate::config::parse;
use crate::domain::sid::{AccountSid, RecordingSid};
use crate::vault::cure::Remedy;
use crate::vault::found::FoundKind;
use crate::vault::verify::{Verified, VerifyError, VerifyProgress, VerifyTerms};

/// Findings that a JSON document holds; further ones are counted.
const FINDINGS_MAX: usize = 10_000;
/// Findings that wait to be written.
const WAITING_MAX: usize = 100;
/// How often the progress is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Read every object back, and compare bucket and catalog.
///
/// Reads the object of every stored recording and checks its SHA-256, its size
/// and its metadata, and looks for the markers of what was erased or is held; then
/// goes over the bucket's list for what no recording names. Works on the settings
/// of `callvault serve`, beside running nodes.
///
/// What can be found:
///   missing       a stored recording has no object
///   corrupted     its bytes are others
///   unreadable    the store does not give an object, though it answers
///   misdescribed  the store says of it what is not so (metadata, Content-Type)
///   unregistered  an object of callvault's, of a recording that is not known
///   leftover      an object, or what is staged, that no recording names
///   marker        a marker of an erased or held recording that its row does not heed
///   unmarked      a recording that was erased or is held, without its marker
///   alien         what callvault did not write: it is reported, and never touched
///
/// With --repair, what is lost or corrupted is fetched from Twilio again, what the
/// bucket has is registered, metadata is mended, lost markers are written again, and
/// what no recording names is left to a recheck (CALLVAULT_RECHECK_AFTER), which
/// removes it. What neither the bucket nor Twilio has is said to be lost. The service
/// does the same all the time, slowly: see CALLVAULT_SCRUB_EVERY.
///
/// Open multipart uploads are not looked for here. The service ends those that no
/// recording names after a day, where the store lists all of a folder. MinIO, and
/// the embedded store, list those of an exact key only: MinIO ends old ones by itself.
///
/// With --sample, --since or --until the bucket's list is not gone over. A sample is
/// one of stored recordings.
///
/// Exit status: 0 all is in order, or was repaired; 1 something is wrong; 2 wrong
/// usage or settings.
///
/// Examples:
///   callvault verify
///   callvault verify --repair --concurrency 16
///   callvault verify --sample 1000 --bandwidth 20MiB
///   callvault verify --since 2026-11-01 --until 2026-12-01 --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Repair what is wrong
    #[arg(long)]
    repair: bool,
    /// Only so many recordings, chosen at random
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sample: Option<u32>,
    /// Only recordings that were made from then on
    #[arg(long, value_name = "TIME", value_parser = parse::time)]
    since: Option<Timestamp>,
    /// Only recordings that were made before then
    #[arg(long, value_name = "TIME", value_parser = parse::time)]
    until: Option<Timestamp>,
    /// Objects that are read at once
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Read no more than that in a second, such as 20MiB
    #[arg(long, value_name = "SIZE", value_parser = some_size)]
    bandwidth: Option<u64>,
    /// Write one JSON document
    #[arg(long)]
    json: bool,
}

fn some_size(text: &str) -> Result<u64, String> {
    parse::size_bytes(text).and_then(|size| if size == 0 { Err("a size above zero".to_owned()) } else { Ok(size) })
}

/// A finding as it is written.
#[derive(Debug, Serialize)]
struct Finding {
    kind: &'static str,
    account_sid: Option<AccountSid>,
    recording_sid: Option<RecordingSid>,
    key: String,
    detail: String,
    /// None where no repair was wanted.
    remedy: Option<&'static str>,
    remedy_detail: Option<String>,
}

impl Finding {
    fn of(verified: Verified) -> Self {
        let Verified { found, remedy } = verified;
        let (remedy, remedy_detail) = match remedy {
            Remedy::None => (None, None),
            Remedy::Cured(how) => (Some("cured"), Some(how.to_owned())),
            Remedy::Owed(how) => (Some("owed"), Some(how.to_owned())),
            Remedy::ToFetch => (Some("to_fetch"), Some("will be fetched again".to_owned())),
            Remedy::Lost => (Some("lost"), Some("neither the bucket nor Twilio has it".to_owned())),
            Remedy::NotNow(why) => (Some("not_now"), Some(why)),
        };
        Self {
            kind: found.kind.as_str(),
            account_sid: found.id.map(|id| id.account),
            recording_sid: found.id.map(|id| id.recording),
            key: found.key,
            detail: found.words,
            remedy,
            remedy_detail,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.remedy, Some("cured" | "owed"))
    }

    fn line(&self) -> String {
        let subject = self.recording_sid.map_or_else(|| self.key.clone(), |recording| recording.to_string());
        let detail = match self.recording_sid {
            // An object that is not the row's own is named beside the recording.
            Some(_) if !self.detail.contains(&self.key) => format!("{}: {}", self.key, self.detail),
            _ => self.detail.clone(),
        };
        let remedy = self.remedy_detail.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        format!("{:<13} {subject} {detail}{remedy}", self.kind)
    }
}

/// What it came to.
#[derive(Debug, Default, Serialize)]
struct Summary {
    recordings: u64,
    bytes: u64,
    objects: u64,
    found: BTreeMap<&'static str, u64>,
    /// What is still wrong.
    left: u64,
    lost: u64,
    findings: Vec<Finding>,
    more_findings: u64,
    complete: bool,
}

impl Summary {
    fn add(&mut self, finding: Finding) {
        *self.found.entry(finding.kind).or_default() += 1;
        self.left += u64::from(!finding.is_over());
        self.lost += u64::from(finding.remedy == Some("lost"));
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }

    fn words(&self) -> String {
        let found: Vec<String> =
            self.found.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| format!("{count} {kind}")).collect();
        let found = match (found.is_empty(), self.complete) {
            (true, true) => "nothing is wrong".to_owned(),
            (true, false) => "nothing is wrong so far".to_owned(),
            (false, _) => format!("found {}", found.join(", ")),
        };
        let (recordings, bytes, objects) = (self.recordings, HumanBytes(self.bytes), self.objects);
        format!("{recordings} recordings read back ({bytes}), {objects} keys listed: {found}")
    }
}

/// Verifies.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = config()?;
    beside::has_catalog(&config)?;
    let Beside { vault, node } = beside::open(&config).await?;
    let terms = VerifyTerms {
        since: args.since,
        until: args.until,
        sample: args.sample.map(|count| count as usize),
        concurrency: args.concurrency.into(),
        throttle: Throttle::new(args.bandwidth),
        repair: args.repair,
        node,
    };
    let progress = VerifyProgress::default();
    let stopping = CancellationToken::new();
    let (told, mut found) = mpsc::channel(WAITING_MAX);
    let bar = bar(args.json)?;
    let mut summary =
        Summary { found: FoundKind::ALL.iter().map(|kind| (kind.as_str(), 0)).collect(), ..Summary::default() };
    let stop = beside::stop_on_signal(stopping.clone())?;
    let write = async {
        let mut draw = tokio::time::interval(DRAW_EVERY);
        loop {
            tokio::select! {
                verified = found.recv() => match verified {
                    Some(verified) => tell(&mut summary, Finding::of(verified), &bar, args.json),
                    None => return,
                },
                _ = draw.tick() => show(&bar, &progress),
            }
        }
    };
    let (verified, ()) = tokio::join!(vault.verify(&terms, &progress, told, &stopping), write);
    drop(stop);
    bar.finish_and_clear();
    summary.recordings = progress.read.load(Ordering::Relaxed);
    summary.bytes = progress.bytes.load(Ordering::Relaxed);
    summary.objects = progress.listed.load(Ordering::Relaxed);
    summary.complete = verified.is_ok();
    finish(&summary, verified, args.json)
}

fn bar(json: bool) -> anyhow::Result<ProgressBar> {
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{pos}/{len} recordings {wide_bar} {msg} {eta}");
    bar.set_style(style.context("the progress bar's template is wrong")?);
    Ok(bar)
}

fn show(bar: &ProgressBar, progress: &VerifyProgress) {
    bar.set_length(progress.to_read.load(Ordering::Relaxed));
    bar.set_position(progress.read.load(Ordering::Relaxed));
    let listed = progress.listed.load(Ordering::Relaxed);
    let bytes = HumanBytes(progress.bytes.load(Ordering::Relaxed));
    bar.set_message(if listed > 0 { format!("{bytes}, {listed} keys") } else { bytes.to_string() });
}

fn tell(summary: &mut Summary, finding: Finding, bar: &ProgressBar, json: bool) {
    if !json {
        bar.suspend(|| print_line(&finding.line()));
    }
    summary.add(finding);
}

fn finish(summary: &Summary, verified: Result<(), VerifyError>, json: bool) -> anyhow::Result<()> {
    match json {
        true => print_line(&serde_json::to_string(summary).context("the findings are no JSON")?),
        false => print_line(&summary.words()),
    }
    verified?;
    if summary.lost > 0 {
        bail!("{} recordings are lost: neither the bucket nor Twilio has them", summary.lost);
    }
    match summary.left {
        0 => Ok(()),
        left => bail!("{left} of what was found is as it was"),
    }
}
