//! Whether the public URL leads back to this service.
//!
//! A callback is sent there that names no recording. Signed by an account's own
//! token it is malformed; signed otherwise it is refused for that: whoever gives
//! both answers has this service's tokens and sees the URL as Twilio signs it.
//! Neither can become a recording.

use std::time::Duration;

use serde::Deserialize;

use super::Finding;
use crate::config::Config;
use crate::domain::sid::AccountSid;
use crate::vault::Vault;

const CHECK: &str = "public_url";
/// Twilio gives up sooner.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
struct Problem {
    code: String,
}

/// A client that follows nothing and goes through no proxy.
pub(super) fn client(config: &Config) -> Result<reqwest::Client, String> {
    let mut builder =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().timeout(TIMEOUT);
    let told = |error: reqwest::Error| error.to_string();
    if let Some(pem) = &config.ca_pem {
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem).map_err(told)?);
    }
    builder.build().map_err(told)
}

pub(super) async fn examine(vault: &Vault, config: &Config) -> Vec<Finding> {
    let public_url = config.public_url.clone().unwrap_or_else(|| format!("http://{}", config.listen));
    let mut findings = Vec::new();
    if config.public_url.is_none() {
        findings.push(Finding::warning(
            CHECK,
            format!("CALLVAULT_PUBLIC_URL is not set: callbacks are checked as if Twilio called {public_url}"),
            "set it to what Twilio calls, without /webhooks/twilio/recording",
        ));
    }
    let signing = vault.accounts().iter().filter(|account| vault.twilio.can_check_callbacks(account));
    let signing: Vec<AccountSid> = signing.copied().collect();
    let Some(first) = signing.first() else {
        let cure = match vault.accounts() {
            [] => "configure an account: doctor then calls as Twilio does",
            _ => "give each account its auth token, beside its API key",
        };
        let detail = "no account has an auth token: no callback can be checked, and all are refused";
        findings.push(Finding::warning(CHECK, detail, cure));
        return findings;
    };
    if let Err(wrong) = refuses_forged(vault, config, &public_url, first).await {
        findings.push(wrong);
        return findings;
    }
    for account in &signing {
        let taken = takes_signed(vault, config, &public_url, account).await;
        findings.push(taken.unwrap_or_else(|wrong| wrong).of(*account));
    }
    findings
}

fn callback_url(public_url: &str) -> String {
    format!("{public_url}/webhooks/twilio/recording")
}

/// A server that answers everything alike is found out by a signature that is wrong.
async fn refuses_forged(vault: &Vault, config: &Config, public_url: &str, account: &AccountSid) -> Result<(), Finding> {
    let url = callback_url(public_url);
    let body = vault.twilio.harmless_callback(account, &url).body;
    match send(config, &url, &body, "bm90IHNpZ25lZA==").await? {
        (403, Some(code)) if code == "bad_signature" => Ok(()),
        (status, _) => Err(no_callvault(public_url, status)),
    }
}

async fn takes_signed(
    vault: &Vault,
    config: &Config,
    public_url: &str,
    account: &AccountSid,
) -> Result<Finding, Finding> {
    let url = callback_url(public_url);
    let signed = vault.twilio.harmless_callback(account, &url);
    let (status, code) = send(config, &url, &signed.body, &signed.signature).await?;
    match (status, code.as_deref()) {
        (400, Some("invalid_request")) => {
            Ok(Finding::ok(CHECK, format!("{public_url} leads to a node that takes signed callbacks")))
        }
        (403, Some("bad_signature")) => Err(Finding::wrong(
            CHECK,
            format!("{public_url} is a callvault that finds the signature wrong"),
            "CALLVAULT_PUBLIC_URL must be the same on every node, and what stands in front of them must not \
             change the path or the query; its nodes need the same auth tokens as these settings",
        )),
        _ => Err(no_callvault(public_url, status)),
    }
}

fn no_callvault(public_url: &str, status: u16) -> Finding {
    Finding::wrong(
        CHECK,
        format!("{public_url} answers {status} to a callback, which is not what this service says"),
        "let /webhooks/twilio/recording of CALLVAULT_PUBLIC_URL lead to the nodes, by POST and unchanged",
    )
}

async fn send(config: &Config, url: &str, body: &str, signature: &str) -> Result<(u16, Option<String>), Finding> {
    let unreachable = |why: String| {
        Finding::wrong(
            CHECK,
            format!("{url} cannot be reached: {why}"),
            "start a node, and let CALLVAULT_PUBLIC_URL lead to it from here as from the world",
        )
    };
    let http = client(config).map_err(unreachable)?;
    let request = http
        .post(url)
        .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header("x-twilio-signature", signature)
        .body(body.to_owned());
    let answer = request.send().await.map_err(|error| unreachable(super::innermost(&error).to_string()))?;
    let status = answer.status().as_u16();
    Ok((status, answer.json::<Problem>().await.ok().map(|problem| problem.code)))
}
