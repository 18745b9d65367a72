//! Who signs requests to the store, and until when.
//!
//! Either a pair of keys from the settings, or the usual AWS chain (profile, web
//! identity, container, instance role), whose credentials end. object_store
//! does not tell when; aws-config does, and a link must never promise to live
//! longer than the credentials that signed it.

use std::sync::Arc;
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

use crate::config::{AwsKeys, S3Config};

/// What a signature for AWS names where nobody says more.
const DEFAULT_REGION: &str = "us-east-1";
/// Credentials are renewed when so little of their life is left: links that
/// are made then still live for a while.
const RENEW_BEFORE_END: Duration = Duration::from_secs(15 * 60);

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
    Chain { chain: SharedCredentialsProvider, cached: Mutex<Option<Signer>> },
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
                Source::Chain { chain, cached: Mutex::new(None) }
            }
        };
        Ok((Self { source }, region))
    }

    /// Credentials that are good now, renewed where they end soon. While they
    /// cannot be renewed, the old ones are given for as long as they last.
    pub async fn current(&self) -> Result<Signer, CredentialError> {
        match &self.source {
            Source::Keys(signer) => Ok(signer.clone()),
            Source::Chain { chain, cached } => {
                // Held while the chain is asked: one question, whoever waits for it.
                let mut cached = cached.lock().await;
                #[expect(clippy::disallowed_methods, reason = "credentials end by the clock of AWS, not the catalog's")]
                let now = Timestamp::now();
                if let Some(signer) = cached.as_ref().filter(|signer| signer.lasts(now, RENEW_BEFORE_END)) {
                    return Ok(signer.clone());
                }
                match ask(chain, now).await {
                    Ok(signer) => Ok(cached.insert(signer).clone()),
                    Err(error) => {
                        let old = cached.clone().filter(|signer| signer.lasts(now, Duration::ZERO));
                        old.ok_or(error)
                    }
                }
            }
        }
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
    let credentials = chain.provide_credentials().await.map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        CredentialError(cause.to_string())
    })?;
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
