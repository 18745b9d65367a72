//! The settings of a client of the service.

use secrecy::SecretString;

use super::source::Problem;
use super::{ConfigError, parse};

/// Where the service is, and who asks.
#[derive(Debug)]
pub struct ClientConfig {
    /// `CALLVAULT_URL`, without a slash at the end.
    pub url: String,
    /// `CALLVAULT_API_KEY`.
    pub api_key: SecretString,
}

impl ClientConfig {
    /// Reads the settings of this process.
    pub fn from_process() -> Result<Self, ConfigError> {
        let url = required("CALLVAULT_URL", "an address of the service inside, such as http://127.0.0.1:8080");
        let api_key = required("CALLVAULT_API_KEY", "an API key that may read");
        let url = url.and_then(|text| {
            parse::base_url(&text).map_err(|expected| Problem {
                setting: "CALLVAULT_URL".to_owned(),
                what: format!("\"{text}\" is wrong; expected {expected}"),
            })
        });
        match (url, api_key) {
            (Ok(url), Ok(api_key)) => Ok(Self { url, api_key: api_key.into() }),
            (url, api_key) => Err(ConfigError(url.err().into_iter().chain(api_key.err()).collect())),
        }
    }
}

fn required(name: &str, expected: &str) -> Result<String, Problem> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.ok_or_else(|| Problem { setting: name.to_owned(), what: format!("is not set; expected {expected}") })
}
