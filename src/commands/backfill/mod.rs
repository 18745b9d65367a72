//! `callvault backfill`: what Twilio's list has, and the catalog has not.
//!
//! Makes rows, which running nodes work on after all else; fetches nothing
//! itself. Every number comes from the catalog, so that whoever goes on with a
//! backfill counts what those before brought.

mod report;

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::StreamExt;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use jiff::civil::Date;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use report::{AccountReport, Numbers, Report};

use super::{NO_ACCOUNT, beside, config, wrong_usage};
use crate::app;
use crate::catalog::{DayCount, Span};
use crate::config::Config;
use crate::domain::sid::AccountSid;
use crate::telemetry;
use crate::vault::backfill::{Backfill, BackfillError, Progress};

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
/// same command goes on from there, or joins one that is under way; one of other
/// days is refused meanwhile. Ends when all that it brought is stored or failed,
/// or Twilio refuses the credentials.
///
/// What is older than CALLVAULT_RETENTION is erased as soon as it is there, at
/// Twilio too where the account says erase_at_twilio: --dry-run tells how much.
///
/// Exit status: 0 done; 1 something failed, was refused or stopped, or the numbers
/// do not add up to what Twilio's list has; 2 wrong usage or settings.
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
    beside::has_catalog(&config)?;
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
    if configured.is_empty() {
        wrong_usage(NO_ACCOUNT);
    }
    if let Some(unknown) = args.account.iter().find(|sid| !configured.contains(sid)) {
        wrong_usage(&format!("{unknown} is not among the accounts of these settings"));
    }
    if args.since.zip(args.until).is_some_and(|(since, until)| since > until) {
        wrong_usage("--since is after --until");
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
        Ok(None) => {
            return failed(
                "a backfill of other days is under way, or was cut off a moment ago; let it end first".to_owned(),
            );
        }
        Err(error) => return failed(error.to_string()),
    };
    if progress.run().is_resumed {
        tell(&format!("{account}: going on with the backfill that was begun at {:.0}", progress.run().begun_at));
    }
    let worked = tokio::select! {
        worked = work(backfill, &progress, span, args, stopping, &show) => worked,
        () = backfill.stay(&progress) => Err(BackfillError::Superseded.into()),
    };
    backfill.hand_back(&progress).await;
    backfill.leave(&progress).await;
    let error = worked.err().map(|error| error.to_string());
    AccountReport { account_sid: account, numbers: Numbers::from(progress.sum()), error }
}

/// From the first day to the last number.
async fn work(
    backfill: &Backfill,
    progress: &Progress,
    span: Span,
    args: &Args,
    stopping: &CancellationToken,
    show: &impl Fn(DayCount),
) -> anyhow::Result<()> {
    let mut worked = tokio::select! {
        walked = backfill.walk(progress, span) => walked.map_err(Into::into),
        watched = watch(backfill, progress, show, false) => watched.map_err(Into::into),
        () = stopping.cancelled() => Err(anyhow!("stopped")),
    };
    backfill.hand_back(progress).await;
    if worked.is_ok() && !args.no_wait {
        worked = tokio::select! {
            watched = watch(backfill, progress, show, true) => watched.map_err(Into::into),
            () = stopping.cancelled() => Ok(()),
        };
    }
    if worked.is_ok() && !stopping.is_cancelled() {
        return tokio::select! {
            completed = backfill.complete(progress) => completed.map_err(Into::into),
            () = stopping.cancelled() => Ok(()),
        };
    }
    let counted = backfill.count(progress).await;
    worked?;
    Ok(counted?)
}

/// Looks at the numbers again and again; with `until_settled`, until nothing that
/// was brought is under way any more, or nothing of the account can be fetched.
async fn watch(
    backfill: &Backfill,
    progress: &Progress,
    show: &impl Fn(DayCount),
    until_settled: bool,
) -> Result<(), BackfillError> {
    let account = progress.run().account;
    let (mut last, mut moved_at, mut is_told) = (0, Instant::now(), false);
    loop {
        let began = Instant::now();
        match backfill.count(progress).await {
            Ok(()) => {}
            Err(BackfillError::Superseded) => return Err(BackfillError::Superseded),
            Err(error) => tracing::debug!(%error, "the numbers are not known at the moment"),
        }
        let sum = progress.sum();
        show(sum);
        if until_settled && sum.is_walked && sum.new_under_way == 0 {
            return Ok(());
        }
        if until_settled && backfill.is_paused(account).await.unwrap_or(false) {
            return Err(BackfillError::Paused);
        }
        if sum.new_under_way != last {
            (last, moved_at, is_told) = (sum.new_under_way, Instant::now(), false);
        } else if until_settled && !is_told && moved_at.elapsed() > STANDSTILL {
            tell(&format!(
                "{account}: nothing was stored for a while: is `callvault serve` running with the same settings?"
            ));
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

#[expect(clippy::print_stderr, reason = "what is said beside the result")]
fn tell(text: &str) {
    eprintln!("{text}");
}
