//! `callvault reindex`: the catalog made anew of what lies in the bucket.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::beside::{self, Beside};
use super::{config, print_line};
use crate::vault::reindex::ReindexProgress;

/// How often the progress is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Rebuild the catalog from the bucket.
///
/// Reads the markers of erased and held recordings first, then the metadata of
/// every object, and makes a row of each recording that has none. Nothing is
/// fetched from Twilio, and no audio is read: `callvault verify` does that.
///
/// Run it once after the catalog was lost, or restored from a backup and before
/// `callvault serve`. It works on the settings of `callvault serve`, also beside
/// running nodes, and can be stopped at any time: the next run goes on. One that comes
/// more than an hour later, or with --restored, begins anew.
///
/// A catalog from a backup is older than what readers of its feed have read: they
/// would miss what comes now. Where the bucket knows more than the catalog, the
/// feed begins anew, and each reader reads it once from its beginning. Say
/// --restored after a backup was restored: then it does in any case, also where
/// nothing in the bucket tells that something is missing.
///
/// Exit status: 0 done; 1 it failed or was stopped; 2 wrong usage or settings.
///
/// Examples:
///   callvault reindex
///   callvault reindex --restored
///   callvault reindex --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The catalog was restored from a backup: its feed begins anew
    #[arg(long)]
    restored: bool,
    /// Write what it came to as one JSON document
    #[arg(long)]
    json: bool,
}

/// Reindexes.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Beside { vault, node } = beside::open(&config()?).await?;
    let progress = ReindexProgress::default();
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let stopping = CancellationToken::new();
    let _signals = beside::stop_on_signal(stopping.clone())?;
    let ended = {
        let mut reindexing = std::pin::pin!(vault.reindex(&node, args.restored, &progress, &stopping));
        let mut draw = tokio::time::interval(DRAW_EVERY);
        loop {
            tokio::select! {
                ended = &mut reindexing => break ended,
                _ = draw.tick() => {
                    bar.set_message(words(&progress));
                    bar.tick();
                }
            }
        }
    };
    bar.finish_and_clear();
    tell(&progress, ended.is_ok(), args.json);
    ended.context(match args.restored && progress.feed_began_anew.load(Ordering::Relaxed) {
        // What was done by then is of after the restore.
        true => "the catalog is not rebuilt; run it again without --restored to go on",
        false => "the catalog is not rebuilt; run it again to go on",
    })
}

fn words(progress: &ReindexProgress) -> String {
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let of_all = match count(&progress.gathered) {
        0 => String::new(),
        gathered => format!(" of {gathered}"),
    };
    format!(
        "{} markers, {} keys listed ({} passed over), {}{of_all} recordings gone through",
        count(&progress.markers),
        count(&progress.listed),
        count(&progress.passed_over),
        count(&progress.indexed),
    )
}

fn tell(progress: &ReindexProgress, complete: bool, as_json: bool) {
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let feed_began_anew = progress.feed_began_anew.load(Ordering::Relaxed);
    if !as_json {
        print_line(&words(progress));
        if feed_began_anew {
            print_line("the feed begins anew: each of its readers reads it once from its beginning");
        }
        return;
    }
    let document = json!({
        "markers": count(&progress.markers),
        "objects": count(&progress.listed),
        "passed_over": count(&progress.passed_over),
        "recordings": count(&progress.indexed),
        "feed_began_anew": feed_began_anew,
        "complete": complete,
    });
    print_line(&document.to_string());
}
