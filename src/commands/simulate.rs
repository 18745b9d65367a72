//! `callvault simulate`: the scripted Twilio alone, for a trial of several nodes.
//!
//! It is no part of the service: what nodes fetch from it they fetch because
//! `CALLVAULT_TWILIO_ORIGIN` leads here. Not listed among the commands.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};

use super::demo;
use crate::config::Config;
use crate::domain::recording::RecordingId;
use crate::domain::sid::AccountSid;
use crate::twilio::simulator::{OutgoingCallback, SimulatedAccount, SimulatedRecording, Simulator};

/// Nothing that is recorded is forgotten: after so many calls there are no more.
const CALLS_MAX: u32 = 100_000;
/// As often as Twilio itself repeats a callback at most, with its retry overrides.
const TRIES: u32 = 5;
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// Twilio waits as long for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Run a scripted Twilio that has no service in it, for a trial.
///
/// It knows the first account of the settings, records a call every so often, and
/// calls back as Twilio does, signed for CALLVAULT_PUBLIC_URL. Nodes reach it by
/// CALLVAULT_TWILIO_ORIGIN, which must be a loopback address. Runs until Ctrl-C.
///
/// Exit status: 0 it was ended; 1 it cannot listen; 2 wrong usage or settings.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Where it listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4010")]
    listen: SocketAddr,
    /// Where callbacks are sent, if not to CALLVAULT_PUBLIC_URL
    #[arg(long, value_name = "URL")]
    send_to: Option<String>,
    /// How often a call is recorded
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = crate::config::parse::some_time)]
    every: Duration,
    /// How many calls are recorded
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(CALLS_MAX)))]
    calls: u32,
}

/// Runs until it is told to stop.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = super::config()?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let trial = Trial::set(&config, &args).await?;
    say(&format!("Twilio, scripted, at {}", trial.simulator.origin()));
    let calls = async {
        for _ in 0..args.calls {
            trial.call().await?;
            tokio::time::sleep(args.every).await;
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        ended = calls => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

struct Trial {
    simulator: Simulator,
    account: AccountSid,
    http: reqwest::Client,
    /// What callbacks are signed for, and where they are sent.
    signed_for: String,
    send_to: String,
}

impl Trial {
    async fn set(config: &Config, args: &Args) -> anyhow::Result<Self> {
        let known = config.accounts.iter().find_map(|account| Some((account.sid, account.auth_token.clone()?)));
        let Some((sid, token)) = known else { super::wrong_usage(super::NO_ACCOUNT) };
        let account = SimulatedAccount { sid, auth_token: token.expose_secret().to_owned(), api_key: None };
        let simulator = Simulator::start_at(args.listen, [account]).await;
        let simulator = simulator.with_context(|| format!("cannot listen on {}", args.listen))?;
        let public_url = config.public_url.clone().unwrap_or_else(|| format!("http://{}", config.listen));
        let callback = |base: &str| format!("{}/webhooks/twilio/recording", base.trim_end_matches('/'));
        Ok(Self {
            simulator,
            account: sid,
            http: reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?,
            signed_for: callback(&public_url),
            send_to: callback(args.send_to.as_deref().unwrap_or(&public_url)),
        })
    }

    /// Someone calls, is recorded, and the service is told.
    async fn call(&self) -> anyhow::Result<()> {
        let id = RecordingId { account: self.account, recording: demo::sid("RE").parse()? };
        let call = demo::sid("CA").parse()?;
        self.simulator.add(SimulatedRecording::speech(id, call, demo::now()));
        let callback = self.simulator.callback(id.recording, "completed").context("no callback was made")?;
        for _ in 0..TRIES {
            let answer = self.tell(&callback).await;
            say(&format!("{call} {}: {answer}", id.recording));
            if answer == StatusCode::NO_CONTENT.as_str() {
                break;
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
        Ok(())
    }

    async fn tell(&self, callback: &OutgoingCallback) -> String {
        match callback.send_signed_for(&self.http, &self.signed_for, &self.send_to).await {
            Ok(answer) => answer.status().as_str().to_owned(),
            Err(_) => "no answer".to_owned(),
        }
    }
}

/// A reader who has left does not end the trial.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
