//! What no log may hold. One list, for whatever a test starts: what shows a secret
//! whoever's it is, and the secrets of the settings that a process was given. Each
//! node is held against it when it ends, each command that a test or a page runs, the
//! programs that use the clients, and the nginx of the compose file.

use std::collections::BTreeMap;
use std::path::Path;

/// The numbers of the people who are on every call of a world, as its callbacks and
/// Twilio's answers name them.
pub const PEOPLE: [(&str, &str); 4] =
    [("From", "+15005550101"), ("To", "+15005550102"), ("Caller", "+15005550103"), ("Called", "+15005550104")];

/// Words that stand beside a secret or begin one, in lower case; and what may stand
/// behind them, where it is told how such a thing looks.
const MARKS: [(&str, &str, Option<&str>); 10] = [
    ("a signed URL", "x-amz-signature", None),
    ("a signed URL", "x-amz-credential", None),
    ("a session's token", "x-amz-security-token", None),
    ("credentials that were sent", "authorization", Some(": bearer <key>")),
    ("an API key that was sent", "bearer ", Some("<key>")),
    ("credentials that were sent", "basic ", None),
    ("an API key", "cvk_", None),
    ("a receiver's secret", "whsec_", None),
    ("a private key", "private key--", None),
    ("a share", "/s/", Some("{token}")),
];

/// A part of a setting's name that says that its value is secret.
const SECRET_NAMES: [&str; 6] = ["token", "secret", "password", "admin_key", "api_key", "private_key"];

/// Nothing shorter is searched for: it would be found in innocent words.
const SHORTEST: usize = 10;
/// So much of a secret in a file is searched for.
const PIECE: usize = 60;

/// What may not be found, and what it is.
#[derive(Debug, Clone, Default)]
pub struct Forbidden(Vec<(String, String)>);

impl Forbidden {
    /// The secrets of a process with these settings, that runs in that folder.
    pub fn of(settings: &BTreeMap<String, String>, folder: &Path) -> Self {
        let mut forbidden = Self::default();
        for (name, number) in PEOPLE {
            forbidden.add(&format!("the phone number {name}"), number.trim_start_matches('+'));
        }
        for (name, value) in settings {
            forbidden.add_setting(name, value);
        }
        if let Some(file) = settings.get("CALLVAULT_CONFIG") {
            let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
            // What cannot be read is refused by the process, and tested as such.
            for (name, value) in text.parse::<toml::Table>().unwrap_or_default() {
                forbidden.add_of_file(&name, &value);
            }
        }
        forbidden
    }

    /// Something else that may not be found.
    pub fn add(&mut self, what: &str, secret: &str) {
        assert!(secret.len() >= SHORTEST, "{what} is too short to be searched for");
        self.0.push((what.to_owned(), secret.to_owned()));
    }

    /// How much is searched for, apart from what shows any secret.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    fn add_of_file(&mut self, name: &str, value: &toml::Value) {
        match value {
            toml::Value::String(text) => self.add_setting(name, text),
            toml::Value::Array(values) => values.iter().for_each(|value| self.add_of_file(name, value)),
            toml::Value::Table(table) => {
                // Those of private keys are called by the SIDs of their public halves.
                let is_of_keys = name == "private_keys";
                table.iter().for_each(|(key, value)| self.add_of_file(if is_of_keys { name } else { key }, value));
            }
            _ => {}
        }
    }

    fn add_setting(&mut self, name: &str, value: &str) {
        let url = url::Url::parse(value).ok();
        let in_url = url.and_then(|url| url.password().or(url.query()).map(str::to_owned));
        let is_secret = SECRET_NAMES.iter().any(|part| name.to_lowercase().contains(part));
        let in_file = std::fs::read_to_string(value).ok().filter(|_| is_secret);
        let secret = match (in_url, in_file) {
            (Some(password), _) => password,
            // Any piece of what is in a file would be too much.
            (None, Some(text)) => {
                text.lines().max_by_key(|line| line.len()).unwrap_or_default().chars().take(PIECE).collect()
            }
            (None, None) if is_secret => value.to_owned(),
            (None, None) => return,
        };
        if secret.len() >= SHORTEST {
            self.add(name, &secret);
        }
    }

    /// What of it is in a text: what it is, and the line.
    pub fn found_in(&self, text: &str) -> Vec<String> {
        let lower = text.to_ascii_lowercase();
        let marked = MARKS.iter().filter_map(|(what, mark, innocent)| {
            let is_innocent = |behind: &usize| innocent.is_some_and(|text| lower[*behind..].starts_with(text));
            let mut shown = lower.match_indices(mark).map(|(at, mark)| at + mark.len());
            Some((*what, shown.find(|behind| !is_innocent(behind))?))
        });
        let known = self.0.iter().filter_map(|(what, secret)| {
            let at = spellings(secret).iter().find_map(|spelling| text.find(spelling))?;
            Some((what.as_str(), at))
        });
        let found = marked.chain(known);
        found.map(|(what, at)| format!("{what}: {}", line_at(text, at))).collect()
    }

    /// Fails where something of it is in that text.
    pub fn is_not_in(&self, text: &str) {
        let found = self.found_in(text);
        assert!(found.is_empty(), "this may not be said: {found:#?}");
    }
}

/// As it is, and as URLs have it.
fn spellings(secret: &str) -> Vec<String> {
    let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let mut all = vec![secret.to_owned(), encoded, secret.replace('+', "%2B")];
    all.dedup();
    all
}

fn line_at(text: &str, at: usize) -> &str {
    let begin = text[..at].rfind('\n').map_or(0, |end| end + 1);
    text[begin..].lines().next().unwrap_or_default()
}
