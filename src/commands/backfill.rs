//! `callvault backfill`: what Twilio's list has, and the catalog has not.
//!
//! Makes rows, which running nodes work on after all else; fetches nothing
//! itself. Every number comes from the catalog, so that whoever goes on with a
//! backfill counts what those before brought.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use futures::StreamExt;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use jiff::civil::Date;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config;
use crate::app;
use crate::catalog::{DayCount, Span};
use crate::config::Config;
use crate::domain::sid::AccountSid;
use crate::telemetry;
use crate::vault::backfill::{Backfill, Progress, Survey};

/// Accounts that are walked over at once.
const ACCOUNTS_AT_ONCE: usize = 8;
/// The numbers are looked at so often, but for no more than a part of the time.
const COUNT_EVERY: Duration = Duration::from_secs(1);
const COUNT_PARTS: u32 = 5;
/// When nothing has moved for that long, people are told what may be missing.
const STANDSTILL: Duration = Duration::from_secs(30);

/// Bring in what Twilio's list has.
///
/// Walks over the list of each account day by day and takes what this service
/// does not know. Running nodes fetch it, when nothing else is due: start
/// `callvault serve` with the same settings. It may be stopped at any time; the
/// same command goes on from there. Ends when all that it brought is stored or
/// failed.
///
/// Exit status: 0 done; 1 something failed or was stopped, or the numbers do
/// not add up to what Twilio's list has; 2 wrong usage or settings.
///
/// Examples:
///   callvault backfill --dry-run
///   callvault backfill --since 2024-01-01
///   callvault backfill --account AC0123456789abcdef0123456789abcdef --since 2024-01-01 --until 2024-03-31 --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The account, several times for several; without it, all that are configured
    #[arg(long, value_delimiter = ',', value_name = "AC…")]
    account: Vec<AccountSid>,
    /// The first day in UTC, as 2024-01-31 [default: as far back as there is anything]
    #[arg(long, value_name = "DATE")]
    since: Option<Date>,
    /// The last day in UTC [default: today]
    #[arg(long, value_name = "DATE")]
    until: Option<Date>,
    /// Only say what there is, and about how many bytes it would come to
    #[arg(long)]
    dry_run: bool,
    /// End when all is accepted, and do not wait until it is stored
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
    /// The numbers as JSON
    #[arg(long)]
    json: bool,
}

/// Does what is asked.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = config()?;
    telemetry::init_logs(&config.log);
    let accounts = accounts(&config, &args);
    let span = Span { since: args.since, until: args.until };
    let backfill = app::backfill(&config).await?;
    let stopping = until_told_to_stop()?;
    let began = Instant::now();
    let reports = match args.dry_run {
        true => survey(&backfill, &accounts, span, &stopping).await,
        false => bring_in(&backfill, &accounts, span, &args, &stopping).await,
    };
    let report = Report {
        dry_run: args.dry_run,
        since: args.since,
        until: args.until,
        total: reports.iter().map(|report| report.numbers).sum(),
        adds_up: reports.iter().all(AccountReport::adds_up),
        seconds: began.elapsed().as_secs(),
        accounts: reports,
    };
    report.show(args.json)?;
    if stopping.is_cancelled() {
        bail!("stopped; the same command goes on from here");
    }
    report.verdict()
}

/// The accounts that are meant; ends the process where one is not configured.
fn accounts(config: &Config, args: &Args) -> Vec<AccountSid> {
    let configured: Vec<AccountSid> = config.accounts.iter().map(|account| account.sid).collect();
    let wrong = |words: String| -> ! { super::Cli::command().error(ErrorKind::ValueValidation, words).exit() };
    if configured.is_empty() {
        wrong(
            "no Twilio account is configured: set CALLVAULT_TWILIO_ACCOUNT_SID and CALLVAULT_TWILIO_AUTH_TOKEN".into(),
        );
    }
    if let Some(unknown) = args.account.iter().find(|sid| !configured.contains(sid)) {
        wrong(format!("{unknown} is not among the accounts of these settings"));
    }
    if args.since.zip(args.until).is_some_and(|(since, until)| since > until) {
        wrong("--since is after --until".into());
    }
    let mut accounts = if args.account.is_empty() { configured } else { args.account.clone() };
    accounts.sort();
    accounts.dedup();
    accounts
}

/// Cancelled by SIGTERM and Ctrl-C.
fn until_told_to_stop() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let stopping = CancellationToken::new();
    let told = stopping.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stopping)
}

async fn survey(
    backfill: &Backfill,
    accounts: &[AccountSid],
    span: Span,
    stopping: &CancellationToken,
) -> Vec<AccountReport> {
    let look = |account: AccountSid| async move {
        let surveyed = tokio::select! {
            surveyed = backfill.survey(account, span) => surveyed.map_err(|error| error.to_string()),
            () = stopping.cancelled() => Err("stopped".to_owned()),
        };
        let (numbers, error) = match surveyed {
            Ok(survey) => (Numbers::from(survey), None),
            Err(error) => (Numbers::default(), Some(error)),
        };
        AccountReport { account_sid: account, numbers, error }
    };
    futures::stream::iter(accounts.iter().copied()).map(look).buffered(ACCOUNTS_AT_ONCE).collect().await
}

async fn bring_in(
    backfill: &Backfill,
    accounts: &[AccountSid],
    span: Span,
    args: &Args,
    stopping: &CancellationToken,
) -> Vec<AccountReport> {
    let bar = bar();
    let shown = std::sync::Mutex::new(vec![DayCount::default(); accounts.len()]);
    let began = Instant::now();
    let show = |at: usize, count: DayCount| {
        let mut shown = shown.lock().expect("nothing panics while it holds this");
        shown[at] = count;
        let mut sum = DayCount::default();
        shown.iter().for_each(|count| sum += *count);
        draw(&bar, &sum, began.elapsed());
    };
    let work = |(at, account): (usize, AccountSid)| {
        let show = &show;
        async move { bring_in_account(backfill, account, span, args, stopping, |count| show(at, count)).await }
    };
    let work = futures::stream::iter(accounts.iter().copied().enumerate()).map(work);
    let reports = work.buffered(ACCOUNTS_AT_ONCE).collect().await;
    bar.finish_and_clear();
    reports
}

async fn bring_in_account(
    backfill: &Backfill,
    account: AccountSid,
    span: Span,
    args: &Args,
    stopping: &CancellationToken,
    show: impl Fn(DayCount),
) -> AccountReport {
    let failed =
        |error: String| AccountReport { account_sid: account, numbers: Numbers::default(), error: Some(error) };
    let progress = match backfill.begin(account, span).await {
        Ok(Some(progress)) => progress,
        Ok(None) => return failed("a backfill of other days is under way; let it end first".to_owned()),
        Err(error) => return failed(error.to_string()),
    };
    if progress.run().is_resumed {
        tell(&format!("{account}: going on with the backfill that was begun at {:.0}", progress.run().begun_at));
    }
    let walked = tokio::select! {
        walked = backfill.walk(&progress, span) => walked.map_err(|error| error.to_string()),
        () = watch(backfill, &progress, &show, false) => unreachable!("it is not told to end"),
        () = stopping.cancelled() => Err("stopped".to_owned()),
    };
    backfill.hand_back(&progress).await;
    if walked.is_ok() && !args.no_wait {
        tokio::select! {
            () = watch(backfill, &progress, &show, true) => {}
            () = stopping.cancelled() => {}
        }
    }
    let counted = backfill.count(&progress).await.map_err(|error| error.to_string());
    let mut error = walked.and(counted).err();
    if error.is_none()
        && !stopping.is_cancelled()
        && let Err(not_noted) = backfill.complete(&progress).await
    {
        error = Some(not_noted.to_string());
    }
    AccountReport { account_sid: account, numbers: Numbers::from(progress.sum()), error }
}

/// Looks at the numbers again and again; with `until_settled`, until nothing that
/// was brought is under way any more.
async fn watch(backfill: &Backfill, progress: &Progress, show: &impl Fn(DayCount), until_settled: bool) {
    let (mut last, mut moved_at, mut is_told) = (0, Instant::now(), false);
    loop {
        let began = Instant::now();
        match backfill.count(progress).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "the numbers are not known at the moment"),
        }
        let sum = progress.sum();
        show(sum);
        if until_settled && sum.is_walked && sum.new_under_way == 0 {
            return;
        }
        if sum.new_under_way != last {
            (last, moved_at) = (sum.new_under_way, Instant::now());
        } else if until_settled && !is_told && moved_at.elapsed() > STANDSTILL {
            tell("nothing was stored for a while: is `callvault serve` running with the same settings?");
            is_told = true;
        }
        tokio::time::sleep(COUNT_EVERY.max(began.elapsed() * COUNT_PARTS)).await;
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// What was brought since this process began is what tells how fast it goes.
fn draw(bar: &ProgressBar, sum: &DayCount, elapsed: Duration) {
    let done = sum.new - sum.new_under_way.min(sum.new);
    bar.set_length(sum.new);
    bar.set_position(done);
    let per_second = bar.per_sec();
    let left = match per_second > 0.0 && sum.new_under_way > 0 && elapsed > COUNT_EVERY {
        true => {
            #[expect(clippy::cast_precision_loss, reason = "it is told in words")]
            let seconds = sum.new_under_way as f64 / per_second;
            format!(", {} left", HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
        }
        false => String::new(),
    };
    bar.set_message(format!(
        "found {}, new {}, stored {}, failed {}, {per_second:.1}/s{left}",
        sum.found, sum.new, sum.stored, sum.failed
    ));
}

/// The numbers of an account, or of all.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Numbers {
    /// Different recordings on Twilio's list.
    found: u64,
    new: u64,
    known: u64,
    stored: u64,
    failed: u64,
    absent: u64,
    erased: u64,
    evicted: u64,
    on_the_way: u64,
    deleted_at_twilio: u64,
    missing: u64,
    unreadable: u64,
    new_failed: u64,
    /// Of what is new: as it was stored, or, of a dry run, as it is estimated.
    new_bytes: u64,
    of_unknown_length: u64,
    #[serde(skip)]
    is_survey: bool,
}

impl From<DayCount> for Numbers {
    fn from(count: DayCount) -> Self {
        Self {
            found: count.found,
            new: count.new,
            known: count.found.saturating_sub(count.new + count.deleted_at_twilio),
            stored: count.stored,
            failed: count.failed,
            absent: count.absent,
            erased: count.erased,
            evicted: count.evicted,
            on_the_way: count.on_the_way,
            deleted_at_twilio: count.deleted_at_twilio,
            missing: count.missing,
            unreadable: count.unreadable,
            new_failed: count.new_failed,
            new_bytes: count.new_bytes,
            of_unknown_length: 0,
            is_survey: false,
        }
    }
}

impl From<Survey> for Numbers {
    fn from(survey: Survey) -> Self {
        Self {
            found: survey.found,
            new: survey.new,
            known: survey.found - survey.new - survey.deleted_at_twilio,
            deleted_at_twilio: survey.deleted_at_twilio,
            unreadable: survey.unreadable,
            new_bytes: survey.estimated_bytes,
            of_unknown_length: survey.of_unknown_length,
            is_survey: true,
            ..Self::default()
        }
    }
}

impl std::iter::Sum for Numbers {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            found: sum.found + one.found,
            new: sum.new + one.new,
            known: sum.known + one.known,
            stored: sum.stored + one.stored,
            failed: sum.failed + one.failed,
            absent: sum.absent + one.absent,
            erased: sum.erased + one.erased,
            evicted: sum.evicted + one.evicted,
            on_the_way: sum.on_the_way + one.on_the_way,
            deleted_at_twilio: sum.deleted_at_twilio + one.deleted_at_twilio,
            missing: sum.missing + one.missing,
            unreadable: sum.unreadable + one.unreadable,
            new_failed: sum.new_failed + one.new_failed,
            new_bytes: sum.new_bytes + one.new_bytes,
            of_unknown_length: sum.of_unknown_length + one.of_unknown_length,
            is_survey: sum.is_survey || one.is_survey,
        })
    }
}

impl Numbers {
    /// Whether every entry of Twilio's list is accounted for.
    fn add_up(&self) -> bool {
        let stand = match self.is_survey {
            true => self.new + self.known,
            false => self.stored + self.failed + self.absent + self.erased + self.evicted + self.on_the_way,
        };
        self.missing == 0 && self.unreadable == 0 && self.found == stand + self.deleted_at_twilio
    }
}

#[derive(Debug, Serialize)]
struct AccountReport {
    account_sid: AccountSid,
    #[serde(flatten)]
    numbers: Numbers,
    error: Option<String>,
}

impl AccountReport {
    fn adds_up(&self) -> bool {
        self.error.is_none() && self.numbers.add_up()
    }
}

#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    since: Option<Date>,
    until: Option<Date>,
    #[serde(flatten)]
    total: Numbers,
    adds_up: bool,
    seconds: u64,
    accounts: Vec<AccountReport>,
}

impl Report {
    #[expect(clippy::print_stdout, reason = "the command's result")]
    fn show(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        for report in &self.accounts {
            let Numbers { found, new, known, new_bytes, .. } = report.numbers;
            let bytes = HumanBytes(new_bytes);
            match self.dry_run {
                true => println!(
                    "{}  found {found}, new {new} (about {bytes}, {} of unknown length), known {known}",
                    report.account_sid, report.numbers.of_unknown_length
                ),
                false => println!(
                    "{}  found {found}, new {new} ({bytes}), known {known}: {}",
                    report.account_sid,
                    report.numbers.places()
                ),
            }
        }
        Ok(())
    }

    /// Whether all went well, in words where not.
    fn verdict(&self) -> anyhow::Result<()> {
        for report in &self.accounts {
            if let Some(error) = &report.error {
                tell(&format!("{}: {error}", report.account_sid));
            }
        }
        if self.accounts.iter().any(|report| report.error.is_some()) {
            bail!("not all is done; the same command goes on from here");
        }
        if !self.adds_up {
            let Numbers { missing, unreadable, .. } = self.total;
            bail!("the numbers do not add up to Twilio's list: {missing} missing, {unreadable} entries unreadable");
        }
        if self.total.new_failed > 0 {
            bail!("{} recordings failed; GET /v1/recordings?state=failed tells why", self.total.new_failed);
        }
        Ok(())
    }
}

impl Numbers {
    /// Where all that was found stands; nothing is said of what there is none of.
    fn places(&self) -> String {
        let places = [
            (self.stored, "stored"),
            (self.failed, "failed"),
            (self.absent, "absent"),
            (self.erased, "erased"),
            (self.evicted, "evicted"),
            (self.on_the_way, "on the way"),
            (self.deleted_at_twilio, "deleted at Twilio"),
            (self.missing, "missing"),
            (self.unreadable, "unreadable"),
        ];
        let told = places.iter().enumerate().filter(|(at, (count, _))| *at == 0 || *count > 0);
        told.map(|(_, (count, name))| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    }
}

#[expect(clippy::print_stderr, reason = "what is said beside the result")]
fn tell(text: &str) {
    eprintln!("{text}");
}
