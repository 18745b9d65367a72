//! The way to Twilio: HTTP clients, and whose credentials are sent.
//!
//! There are two clients. One talks to the origin and its regional hosts, with
//! credentials. The other follows redirects to strangers: it has no credentials
//! to give, and connects to public addresses only.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};

use super::egress::{PublicResolver, Terms};
use super::source::{Hosts, SourceHost};
use crate::config::{Account, Config, PrivateKey};
use crate::domain::media::Variant;
use crate::domain::sid::AccountSid;

/// Twilio answers within a second or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest silence within an answer, before and in its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// One of the tokens that an account's callbacks may be signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthToken {
    /// `auth_token`.
    Primary,
    /// `secondary_auth_token`.
    Secondary,
}

/// Twilio, as this service reaches it. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Twilio {
    hosts: Hosts,
    pub(super) origin: reqwest::Client,
    pub(super) stranger: reqwest::Client,
    pub(super) egress: Terms,
    accounts: std::sync::Arc<HashMap<AccountSid, Account>>,
}

impl Twilio {
    /// The clients for these settings. Fails only where TLS cannot be set up.
    pub fn new(config: &Config) -> reqwest::Result<Self> {
        let origin = builder(config)?.build()?;
        let stranger = match config.twilio.proxy {
            // Resolving is the proxy's then, and the proxy itself may well be private.
            Some(_) => builder(config)?,
            None => builder(config)?.dns_resolver(PublicResolver),
        };
        let accounts = config.accounts.iter().map(|account| (account.sid, account.clone())).collect();
        let hosts = Hosts::new(config.twilio.origin.clone());
        Ok(Self {
            egress: Terms { loopback: hosts.origin_is_simulator(), proxied: config.twilio.proxy.is_some() },
            hosts,
            origin,
            stranger: stranger.build()?,
            accounts: std::sync::Arc::new(accounts),
        })
    }

    /// The hosts that recordings may be fetched from.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// The accounts that this service has credentials for.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountSid> {
        self.accounts.keys()
    }

    /// The host of an account's region, if the account is configured.
    pub fn home(&self, account: &AccountSid) -> Option<SourceHost> {
        self.accounts.get(account).map(|account| SourceHost::of_region(account.region))
    }

    /// The formats to ask an account's recordings in.
    pub fn formats(&self, account: &AccountSid) -> &[Variant] {
        self.accounts.get(account).map_or(&[], |account| &account.formats)
    }

    /// The account's private keys, by the SID of the public one; the empty one is for any.
    pub(super) fn private_keys(&self, account: &AccountSid) -> &BTreeMap<String, PrivateKey> {
        static NONE: BTreeMap<String, PrivateKey> = BTreeMap::new();
        self.accounts.get(account).map_or(&NONE, |account| &account.private_keys)
    }

    /// One of the account's tokens, if it has it.
    fn auth_token(&self, account: &AccountSid, which: AuthToken) -> Option<&SecretString> {
        let account = self.accounts.get(account)?;
        match which {
            AuthToken::Primary => account.auth_token.as_ref(),
            AuthToken::Secondary => account.secondary_auth_token.as_ref(),
        }
    }

    /// The tokens that may have signed a callback of this account: none where it is not configured.
    pub(super) fn callback_tokens(&self, account: &AccountSid) -> impl Iterator<Item = &SecretString> {
        [AuthToken::Primary, AuthToken::Secondary].into_iter().filter_map(|which| self.auth_token(account, which))
    }

    /// Whether the account's requests are made with an API key, and its tokens are never shown to Twilio.
    pub fn has_api_key(&self, account: &AccountSid) -> bool {
        self.accounts.get(account).is_some_and(|account| account.api_key.is_some())
    }

    /// Whether the account has that token.
    pub fn has_auth_token(&self, account: &AccountSid, which: AuthToken) -> bool {
        self.auth_token(account, which).is_some()
    }

    /// A request with one of the account's tokens; None where it has no such token.
    pub(super) fn authorized_by(
        &self,
        which: AuthToken,
        account: &AccountSid,
        url: url::Url,
    ) -> Option<reqwest::RequestBuilder> {
        let token = self.auth_token(account, which)?;
        Some(self.origin.get(url).basic_auth(account.as_str(), Some(token.expose_secret())))
    }

    /// A request with the account's credentials; None where it is not configured.
    pub(super) fn authorized(&self, account: &AccountSid, url: url::Url) -> Option<reqwest::RequestBuilder> {
        self.authorized_to(http::Method::GET, account, url)
    }

    /// The same with another method.
    pub(super) fn authorized_to(
        &self,
        method: http::Method,
        account: &AccountSid,
        url: url::Url,
    ) -> Option<reqwest::RequestBuilder> {
        let configured = self.accounts.get(account)?;
        let request = self.origin.request(method, url);
        match (&configured.api_key, &configured.auth_token) {
            (Some(key), _) => Some(request.basic_auth(key.sid.expose_secret(), Some(key.secret.expose_secret()))),
            (None, Some(token)) => Some(request.basic_auth(account.as_str(), Some(token.expose_secret()))),
            (None, None) => None,
        }
    }
}

fn builder(config: &Config) -> reqwest::Result<reqwest::ClientBuilder> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("callvault/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT);
    if let Some(pem) = &config.ca_pem {
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    if let Some(proxy) = &config.twilio.proxy {
        builder = builder.proxy(reqwest::Proxy::all(proxy.expose_secret())?);
    }
    Ok(builder)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::twilio) const ACCOUNT: &str = "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    pub(in crate::twilio) const OTHER: &str = "ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    /// Two accounts; the first has two tokens.
    pub(in crate::twilio) fn twilio() -> &'static Twilio {
        // Reading the system's roots takes a while: once is enough.
        static TWILIO: std::sync::LazyLock<Twilio> = std::sync::LazyLock::new(two_accounts);
        &TWILIO
    }

    fn two_accounts() -> Twilio {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("callvault.toml");
        let file = format!(
            "[[accounts]]\nsid = \"{ACCOUNT}\"\nauth_token = \"token-a\"\nsecondary_auth_token = \"token-a-2\"\n\
             [[accounts]]\nsid = \"{OTHER}\"\nauth_token = \"token-b\"\n"
        );
        std::fs::write(&path, file).unwrap();
        let config = Config::load([("CALLVAULT_CONFIG".into(), path.into())]).unwrap();
        Twilio::new(&config).unwrap()
    }
}
