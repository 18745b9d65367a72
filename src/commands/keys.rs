//! `callvault keys`: API keys, and the secret of the shares.
//!
//! Works on the catalog of the settings, beside running nodes, which follow it
//! within a second or two. A key is shown once, alone on stdout, and is kept
//! nowhere; what else is said of it goes to stderr.

use std::num::NonZeroU32;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Subcommand;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Serialize;

use super::{beside, config, print_line};
use crate::app;
use crate::catalog::{self, Catalog, KEYS_MAX, KeptKey, NewKey, Rotation};
use crate::config::Config;
use crate::domain::digest::Digest;
use crate::domain::key::{self, Holder, KeyId, RATE_DEFAULT_PER_SECOND, Scope};
use crate::domain::sid::AccountSid;

/// A label, not a description.
const NAME_MAX_CHARS: usize = 100;
/// Every request's key carries its accounts along.
const ACCOUNTS_MAX: usize = 100;
const RATE_MAX_PER_SECOND: u32 = 1_000_000;

/// API keys, and the secret of the shares.
///
/// Works on the catalog that the settings name, as `serve` has them: run it with
/// the same environment and in the same folder. Running nodes follow at once, at
/// the latest within two seconds.
///
/// Exit status: 0 done; 1 there is no such key, or the catalog cannot be
/// reached; 2 wrong usage or settings.
///
/// Examples:
///   callvault keys create --scope read --name console
///   callvault keys create --scope read,ingest --account AC0123456789abcdef0123456789abcdef
///   callvault keys list
///   callvault keys revoke key_0123456789abcdef
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(Create),
    List(List),
    Revoke(Revoke),
    Rotate(Rotate),
}

/// Make a key, and show it: alone on stdout, this once.
#[derive(Debug, clap::Args)]
struct Create {
    /// What it may do: read, ingest, admin (which includes the others), with commas between them
    #[arg(long, required = true, value_delimiter = ',', value_name = "SCOPE[,SCOPE…]")]
    scope: Vec<Scope>,
    /// The account that it may see, several times for several; without it, all
    #[arg(long, value_delimiter = ',', value_name = "AC…")]
    account: Vec<AccountSid>,
    /// What people call it
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Requests a second that each node takes from it, or off
    #[arg(long, value_name = "N", default_value_t = Rate(NonZeroU32::new(RATE_DEFAULT_PER_SECOND)), value_parser = rate)]
    rate: Rate,
    /// Show the key and what it is good for as JSON
    #[arg(long)]
    json: bool,
}

/// List the keys, revoked ones too. None of them can be shown again.
#[derive(Debug, clap::Args)]
struct List {
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Revoke a key, and with it every share that was made with it.
///
/// Every node refuses it within two seconds, in open streams too. It cannot be
/// made good again.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Revoke {
    /// What `keys list` calls it
    id: KeyId,
    /// Show what was revoked as JSON
    #[arg(long)]
    json: bool,
}

/// Make a new secret, with which shares are signed from now on.
///
/// Shares that were made before stay good until they end. Where a secret may be
/// known to others, --end-shares ends every share that there is.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Rotate {
    /// End all shares that were made before
    #[arg(long)]
    end_shares: bool,
    /// Show the number of the new secret as JSON
    #[arg(long)]
    json: bool,
}

/// Requests a second; None: no limit.
#[derive(Debug, Clone, Copy)]
struct Rate(Option<NonZeroU32>);

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(rate) => write!(f, "{rate}"),
            None => f.write_str("off"),
        }
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    let expected = || format!("a whole number from 1 to {RATE_MAX_PER_SECOND}, or off, is expected");
    match text {
        "off" => Ok(Rate(None)),
        _ => {
            let rate = text.parse::<NonZeroU32>().ok().filter(|rate| rate.get() <= RATE_MAX_PER_SECOND);
            rate.map(|rate| Rate(Some(rate))).ok_or_else(expected)
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    let is_right = (1..=NAME_MAX_CHARS).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if is_right { Ok(text.to_owned()) } else { Err(format!("1 to {NAME_MAX_CHARS} printable characters are expected")) }
}

/// A key as it is shown.
#[derive(Debug, Serialize)]
struct View {
    id: KeyId,
    name: Option<String>,
    scopes: Vec<Scope>,
    accounts: Option<Vec<AccountSid>>,
    rate_per_second: Option<NonZeroU32>,
    created_at: Timestamp,
    revoked_at: Option<Timestamp>,
}

impl From<KeptKey> for View {
    fn from(kept: KeptKey) -> Self {
        let Holder { id, scopes, accounts, rate_per_second } = kept.holder;
        let (created_at, revoked_at) = (kept.created_at, kept.revoked_at);
        Self { id, name: kept.name, scopes, accounts, rate_per_second, created_at, revoked_at }
    }
}

/// Does what is asked.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = config()?;
    let has_catalog = beside::has_catalog(&config);
    match &args.command {
        Command::Create(_) if has_catalog.is_err() => {
            tell("The catalog is new: a service knows this key only if it has the same settings, and this folder.");
        }
        // The first key may be made before the first service is started; of others there is none.
        Command::Create(_) | Command::List(_) | Command::Revoke(_) | Command::Rotate(_) => has_catalog?,
    }
    let catalog = catalog::open(&config).context("the catalog cannot be opened")?;
    catalog.prepare().await?;
    match args.command {
        Command::Create(args) => create(&config, &catalog, args).await,
        Command::List(args) => list(&catalog, &args).await,
        Command::Revoke(args) => revoke(&config, &catalog, &args).await,
        Command::Rotate(args) => rotate(&catalog, &args).await,
    }
}

async fn create(config: &Config, catalog: &Arc<dyn Catalog>, mut args: Create) -> anyhow::Result<()> {
    args.scope.sort();
    args.scope.dedup();
    args.account.sort();
    args.account.dedup();
    if args.account.len() > ACCOUNTS_MAX {
        super::wrong_usage(&format!("a key can be bound to at most {ACCOUNTS_MAX} accounts"));
    }
    for unknown in args.account.iter().filter(|sid| !config.accounts.iter().any(|account| account.sid == **sid)) {
        tell(&format!("{unknown} is not among the accounts of these settings."));
    }
    let key = key::new_key(app::entropy());
    let hash = Digest::of(key.as_bytes());
    let accounts = Some(args.account).filter(|accounts| !accounts.is_empty());
    let holder = Holder { id: KeyId::of_random(&hash), scopes: args.scope, accounts, rate_per_second: args.rate.0 };
    let made = catalog.create_key(&NewKey { holder, hash, name: args.name }).await?;
    let Some(made) = made else { bail!("there are {KEYS_MAX} keys already: revoke those that nobody uses") };
    let view = View::from(made);
    tell(&format!("{} {}. The key is not shown again.", view.id, may(&view)));
    if args.json {
        #[derive(Serialize)]
        struct Created {
            key: String,
            #[serde(flatten)]
            view: View,
        }
        return show_json(&Created { key, view });
    }
    print_line(&key);
    Ok(())
}

/// What a key is good for, in words.
fn may(view: &View) -> String {
    let scopes = words(&view.scopes);
    match &view.accounts {
        Some(accounts) => {
            format!("may {scopes} in {}", accounts.iter().map(AccountSid::as_str).collect::<Vec<_>>().join(", "))
        }
        None => format!("may {scopes} in all accounts"),
    }
}

fn words(scopes: &[Scope]) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(",")
}

async fn list(catalog: &Arc<dyn Catalog>, args: &List) -> anyhow::Result<()> {
    let views: Vec<View> = catalog.keys().await?.into_iter().map(View::from).collect();
    if args.json {
        return show_json(&views);
    }
    print_line(&line(["ID", "SCOPES", "RATE", "CREATED", "REVOKED", "NAME", "ACCOUNTS"]));
    for view in views {
        let accounts = view
            .accounts
            .as_deref()
            .map_or("all".to_owned(), |accounts| accounts.iter().map(AccountSid::as_str).collect::<Vec<_>>().join(","));
        print_line(&line([
            &view.id.to_string(),
            &words(&view.scopes),
            &Rate(view.rate_per_second).to_string(),
            &second(view.created_at),
            &view.revoked_at.map_or("-".to_owned(), second),
            view.name.as_deref().unwrap_or("-"),
            &accounts,
        ]));
    }
    Ok(())
}

fn line([id, scopes, rate, created, revoked, name, accounts]: [&str; 7]) -> String {
    format!("{id:<20}  {scopes:<17}  {rate:<7}  {created:<20}  {revoked:<20}  {name:<20}  {accounts}")
}

fn second(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn revoke(config: &Config, catalog: &Arc<dyn Catalog>, args: &Revoke) -> anyhow::Result<()> {
    let Some(revoked) = catalog.revoke_key(args.id).await? else {
        let admin = config.admin_key.as_ref().map(|key| Digest::of(key.expose_secret().as_bytes()));
        if admin.is_some_and(|hash| KeyId::of_chosen(&hash) == args.id) {
            bail!("{} is CALLVAULT_ADMIN_KEY: change it in the settings, and start the nodes again", args.id);
        }
        bail!("there is no key {}; `callvault keys list` shows all", args.id);
    };
    tell(&format!("{} is revoked: every node refuses it within two seconds.", args.id));
    if args.json { show_json(&View::from(revoked)) } else { Ok(()) }
}

async fn rotate(catalog: &Arc<dyn Catalog>, args: &Rotate) -> anyhow::Result<()> {
    let rotation = match args.end_shares {
        true => Rotation::EndThem,
        false => Rotation::LetThemEnd,
    };
    let secret_id = catalog.rotate_share_secret(app::entropy(), rotation).await?;
    tell(match args.end_shares {
        true => "Shares are signed with a new secret; all earlier ones are over.",
        false => "Shares are signed with a new secret; earlier ones are good until they end.",
    });
    if args.json { show_json(&serde_json::json!({"secret_id": secret_id})) } else { Ok(()) }
}

fn show_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    print_line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

#[expect(clippy::print_stderr, reason = "what is said beside the result")]
fn tell(text: &str) {
    eprintln!("{text}");
}
