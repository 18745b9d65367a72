//! Who signs requests to the store, and until when.
//!
//! Either a pair of keys from the settings, or the usual AWS chain (profile, web
//! identity, container, instance role), whose credentials end. object_store
//! does not tell when; aws-config does, and a link must never promise to live
//! longer than the credentials that signed it.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use jiff::Timestamp;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::config::{AwsKeys, S3Config};
use crate::telemetry::innermost;

/// What a signature for AWS names where nobody says more.
const DEFAULT_REGION: &str = "us-east-1";
/// Credentials are renewed when so little of their life is left: links that
/// are made then still live for a while.
const RENEW_BEFORE_END: Duration = Duration::from_secs(15 * 60);
/// An instance's new credentials may come only minutes before its old ones end:
/// until then the same ones are given again, and asking is not repeated at once.
const RENEW_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// A chain that does not answer must not hold up whoever signs.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// There is nobody to sign as.
#[derive(Debug, thiserror::Error)]
#[error("no credentials for the bucket: {0}")]
pub struct CredentialError(String);

/// Credentials that can sign now.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The keys.
    pub keys: Arc<AwsCredential>,
    /// When they end; None where they do not, or nobody knows.
    pub expires_at: Option<Timestamp>,
    /// When this node got them. Nothing may be signed as of an earlier time.
    pub issued_at: Option<Timestamp>,
}

/// Where credentials come from.
#[derive(Debug)]
pub struct Credentials {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Keys(Signer),
    Chain(Arc<Chain>),
}

/// The AWS chain, and what it gave last.
#[derive(Debug)]
struct Chain {
    provider: SharedCredentialsProvider,
    /// What is good now, read by whoever signs.
    signer: RwLock<Option<Signer>>,
    /// Held while the chain is asked: one question, whoever waits for it. Holds
    /// when it was last asked.
    asked: Mutex<Option<Instant>>,
}

impl Credentials {
    /// The credentials of these settings, and the region that signatures name:
    /// as set, else as the AWS chain says. No credentials are asked for yet.
    pub async fn new(s3: &S3Config) -> Result<(Self, String), CredentialError> {
        let named = s3.region.clone();
        // With an endpoint of its own a store takes the default for granted.
        let settled = named.clone().or_else(|| s3.endpoint.as_ref().map(|_| DEFAULT_REGION.to_owned()));
        if let (Some(keys), Some(region)) = (&s3.credentials, settled) {
            return Ok((Self { source: Source::Keys(Signer::of_keys(keys)) }, region));
        }
        let aws = aws_chain(named).await;
        let region = aws.region().map_or_else(|| DEFAULT_REGION.to_owned(), Region::to_string);
        let source = match &s3.credentials {
            Some(keys) => Source::Keys(Signer::of_keys(keys)),
            None => {
                let chain = aws.credentials_provider();
                let chain = chain.ok_or_else(|| CredentialError("the AWS chain has no link".to_owned()))?;
                Source::Chain(Arc::new(Chain::new(chain)))
            }
        };
        Ok((Self { source }, region))
    }

    /// Credentials that are good now. Those that end soon are renewed in the
    /// background; nobody waits while there are any that are still good.
    pub async fn current(&self) -> Result<Signer, CredentialError> {
        let chain = match &self.source {
            Source::Keys(signer) => return Ok(signer.clone()),
            Source::Chain(chain) => chain,
        };
        #[expect(clippy::disallowed_methods, reason = "credentials end by the clock of AWS, not the catalog's")]
        let now = Timestamp::now();
        match chain.last().filter(|signer| signer.lasts(now, Duration::ZERO)) {
            Some(signer) if signer.lasts(now, RENEW_BEFORE_END) => Ok(signer),
            Some(signer) => {
                chain.clone().renew_in_background(now);
                Ok(signer)
            }
            None => chain.renew(now).await,
        }
    }
}

impl Chain {
    fn new(provider: SharedCredentialsProvider) -> Self {
        Self { provider, signer: RwLock::new(None), asked: Mutex::new(None) }
    }

    fn last(&self) -> Option<Signer> {
        self.signer.read().expect("nothing panics while it holds the signer").clone()
    }

    fn renew_in_background(self: Arc<Self>, now: Timestamp) {
        let due = self.asked.try_lock().is_ok_and(|asked| asked.is_none_or(|at| at.elapsed() >= RENEW_AGAIN_AFTER));
        if due {
            tokio::spawn(async move {
                if let Err(error) = self.renew(now).await {
                    tracing::warn!(%error, "the bucket's credentials are not renewed; the old ones still last");
                }
            });
        }
    }

    /// Asks the chain, unless someone else just did.
    async fn renew(&self, now: Timestamp) -> Result<Signer, CredentialError> {
        let waited_since = Instant::now();
        let mut asked = self.asked.lock().await;
        if let Some(signer) = self.last().filter(|_| asked.is_some_and(|at| at >= waited_since)) {
            return Ok(signer);
        }
        let answer = tokio::time::timeout(ASK_TIMEOUT, ask(&self.provider, now)).await;
        *asked = Some(Instant::now());
        let fresh = answer.unwrap_or_else(|_| Err(CredentialError("the AWS chain does not answer".to_owned())))?;
        let mut signer = self.signer.write().expect("nothing panics while it holds the signer");
        // The same session again was not issued now: links of its window stay the same.
        let same = signer.take().filter(|known| known.keys.key_id == fresh.keys.key_id);
        Ok(signer.insert(Signer { issued_at: same.map_or(fresh.issued_at, |known| known.issued_at), ..fresh }).clone())
    }
}

impl Signer {
    /// Keys that do not end, as far as anyone knows.
    pub fn of_keys(keys: &AwsKeys) -> Self {
        let credential = AwsCredential {
            key_id: keys.id().to_owned(),
            secret_key: keys.secret_access_key.expose_secret().to_owned(),
            token: keys.session_token.as_ref().map(|token| token.expose_secret().to_owned()),
        };
        Self { keys: Arc::new(credential), expires_at: None, issued_at: None }
    }

    fn lasts(&self, now: Timestamp, at_least: Duration) -> bool {
        self.expires_at.is_none_or(|end| now.checked_add(at_least).is_ok_and(|then| then < end))
    }
}

async fn ask(chain: &SharedCredentialsProvider, now: Timestamp) -> Result<Signer, CredentialError> {
    let given = chain.provide_credentials().await;
    let credentials = given.map_err(|error| CredentialError(innermost(&error).to_string()))?;
    let expires_at = credentials.expiry().and_then(|end| Timestamp::try_from(end).ok());
    let keys = AwsCredential {
        key_id: credentials.access_key_id().to_owned(),
        secret_key: credentials.secret_access_key().to_owned(),
        token: credentials.session_token().map(str::to_owned),
    };
    Ok(Signer { keys: Arc::new(keys), expires_at, issued_at: expires_at.map(|_| now) })
}

async fn aws_chain(region: Option<String>) -> SdkConfig {
    let client = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(client);
    if let Some(region) = region {
        loader = loader.region(Region::new(region));
    }
    loader.load().await
}

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let signer = self.current().await;
        let signer = signer.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        Ok(signer.keys)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::SystemTime;

    use aws_credential_types::provider::error::CredentialsError;
    use aws_credential_types::provider::future::ProvideCredentials as Provided;

    use super::*;

    /// A chain that gives one answer after the other, and counts the questions.
    #[derive(Debug)]
    struct Scripted {
        answers: Vec<Answer>,
        asked: Arc<AtomicU32>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Answer {
        /// Credentials of that name, which last so long.
        Keys(&'static str, Duration),
        Error,
        Silence,
    }

    impl ProvideCredentials for Scripted {
        fn provide_credentials<'a>(&'a self) -> Provided<'a>
        where
            Self: 'a,
        {
            let at = self.asked.fetch_add(1, Ordering::SeqCst) as usize;
            let answer = self.answers[at.min(self.answers.len() - 1)];
            Provided::new(async move {
                match answer {
                    #[expect(clippy::disallowed_methods, reason = "AWS gives an instant of its own clock")]
                    Answer::Keys(id, lasts) => {
                        let end = Some(SystemTime::now() + lasts);
                        Ok(aws_credential_types::Credentials::new(
                            id,
                            "secret",
                            Some("token".to_owned()),
                            end,
                            "scripted",
                        ))
                    }
                    Answer::Error => Err(CredentialsError::provider_error("scripted")),
                    Answer::Silence => std::future::pending().await,
                }
            })
        }
    }

    fn scripted(answers: &[Answer]) -> (Credentials, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let provider = Scripted { answers: answers.to_vec(), asked: asked.clone() };
        let chain = Arc::new(Chain::new(SharedCredentialsProvider::new(provider)));
        (Credentials { source: Source::Chain(chain) }, asked)
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    async fn id(credentials: &Credentials) -> String {
        credentials.current().await.unwrap().keys.key_id.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_last_are_asked_for_once() {
        let (credentials, asked) = scripted(&[Answer::Keys("first", HOUR)]);
        let all = futures::future::join_all((0..20).map(|_| id(&credentials))).await;
        assert!(all.iter().all(|id| id == "first"));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_end_soon_are_renewed_while_the_old_ones_are_given() {
        let (credentials, asked) = scripted(&[Answer::Keys("old", 5 * MINUTE), Answer::Keys("new", HOUR)]);
        assert_eq!(id(&credentials).await, "old");
        tokio::time::advance(RENEW_AGAIN_AFTER).await;
        assert_eq!(id(&credentials).await, "old", "nobody waits");
        while asked.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        while id(&credentials).await != "new" {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_session_given_again_keeps_its_links() {
        let (credentials, asked) = scripted(&[Answer::Keys("same", 5 * MINUTE)]);
        let first = credentials.current().await.unwrap();
        tokio::time::advance(RENEW_AGAIN_AFTER).await;
        credentials.current().await.unwrap();
        while asked.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(credentials.current().await.unwrap().issued_at, first.issued_at);
        for _ in 0..100 {
            credentials.current().await.unwrap();
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2, "not asked again at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_in_trouble_does_not_take_what_still_lasts() {
        let (credentials, _) = scripted(&[Answer::Keys("old", 5 * MINUTE), Answer::Error, Answer::Silence]);
        assert_eq!(id(&credentials).await, "old");
        for _ in 0..3 {
            tokio::time::advance(RENEW_AGAIN_AFTER).await;
            assert_eq!(id(&credentials).await, "old");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_that_is_silent_is_an_error_in_the_end() {
        let (credentials, _) = scripted(&[Answer::Silence]);
        let error = credentials.current().await.unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
    }
}
