//! `callvault doctor`: what is wrong with a service's surroundings, and the cure.

use anyhow::bail;
use console::style;
use jiff::Timestamp;
use serde::Serialize;

use super::{config, print_line};
use crate::app;
use crate::vault::doctor::{self, Finding, Status};

/// Check settings, catalog, bucket rights, Twilio credentials, public URL and clock.
///
/// Run it with the settings of `serve`, in the same folder, while a node runs. It
/// writes one small object to the bucket and removes it again; the catalog is only
/// read. Says a line for each check, and the cure of what is wrong.
///
/// Exit status: 0 nothing is wrong, though there may be warnings; 1 something is
/// wrong; 2 wrong usage or settings.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Show the findings as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Finding],
}

/// Examines everything.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = config()?;
    let findings = match doctor::no_parts(&config) {
        Some(findings) => findings,
        None => doctor::examine(&app::vault(&config).await?, &config, own_time()).await,
    };
    let wrong = findings.iter().filter(|finding| finding.status == Status::Wrong).count();
    if args.json {
        print_line(&serde_json::to_string_pretty(&Report { ok: wrong == 0, checks: &findings })?);
    } else {
        findings.iter().for_each(|finding| print_line(&line(finding)));
    }
    match wrong {
        0 => Ok(()),
        1 => bail!("one check found something wrong"),
        _ => bail!("{wrong} checks found something wrong"),
    }
}

fn line(finding: &Finding) -> String {
    let mark = match finding.status {
        Status::Ok => style("ok     ").green(),
        Status::Warning => style("warning").yellow(),
        Status::Wrong => style("WRONG  ").red(),
    };
    let account = finding.account_sid.map(|account| format!(" {account}")).unwrap_or_default();
    let cure = finding.cure.as_ref().map(|cure| format!("\n         cure: {cure}")).unwrap_or_default();
    format!("{mark}  {}{account}: {}{cure}", finding.check, finding.detail)
}

/// Stands in for the catalog's time where there is none.
#[expect(clippy::disallowed_methods, reason = "the catalog may be what is away")]
fn own_time() -> Timestamp {
    Timestamp::now()
}
