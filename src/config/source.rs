//! Where settings come from: the environment, then the TOML file.
//!
//! Owns the look-up, `_FILE` and `_env` secrets, and the finding of names that
//! mean nothing. A [`Reader`] collects every problem instead of stopping at
//! the first. The value of a secret never gets into a problem.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use secrecy::SecretString;
use toml::{Table, Value};

use super::parse::Expected;
use super::settings::{Kind, SETTINGS, Setting};

/// One thing that is wrong with the settings, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable or key.
    pub setting: String,
    /// What is wrong and what is expected, in words.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.what)
    }
}

/// A text that was found, and the name under which it was.
struct Found {
    name: String,
    text: String,
}

/// Reads settings, remembering what was wrong.
pub struct Reader {
    env: BTreeMap<String, String>,
    file: Table,
    problems: Vec<Problem>,
}

impl Reader {
    /// A reader over these variables and the text of a file. Variables whose
    /// value is empty are unset, and so are such keys.
    pub fn new(env: impl IntoIterator<Item = (String, String)>, mut file: Table) -> Self {
        remove_empty(&mut file);
        let env = env.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let mut reader = Self { env, file, problems: Vec::new() };
        reader.refuse_unknown_variables();
        reader.refuse_unknown_keys();
        reader
    }

    /// Notes something wrong.
    pub fn problem(&mut self, setting: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem { setting: setting.into(), what: what.into() });
    }

    /// What was wrong.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// The value of a setting, or None where it is unset or wrong.
    pub fn get<T>(&mut self, env: &'static str, parse: impl Fn(&str) -> Result<T, Expected>) -> Option<T> {
        let setting = Setting::named(env);
        let found = self.find(setting)?;
        self.parse(found, setting.is_secret(), parse)
    }

    /// The same, with the default of the settings table.
    pub fn get_or_default<T>(&mut self, env: &'static str, parse: impl Fn(&str) -> Result<T, Expected>) -> T {
        let default = Setting::named(env).default;
        let value = self.get(env, &parse);
        value.unwrap_or_else(|| parse(default).expect("the default of every setting is right: a test reads them all"))
    }

    /// A secret.
    pub fn secret(&mut self, env: &'static str) -> Option<SecretString> {
        self.get(env, |text| Ok(text.to_owned())).map(SecretString::from)
    }

    /// Whether a setting was given at all, right or wrong.
    pub fn is_set(&self, env: &'static str) -> bool {
        let setting = Setting::named(env);
        let secret_file = setting.is_secret().then(|| format!("{env}_FILE"));
        self.env.contains_key(env)
            || secret_file.is_some_and(|name| self.env.contains_key(&name))
            || setting.key().is_some_and(|key| {
                ["", "_file", "_env"].iter().any(|suffix| self.file.contains_key(&format!("{key}{suffix}")))
            })
    }

    fn parse<T>(&mut self, found: Found, secret: bool, parse: impl Fn(&str) -> Result<T, Expected>) -> Option<T> {
        match parse(&found.text) {
            Ok(value) => Some(value),
            Err(expected) if secret => {
                self.problem(found.name, format!("its value (not shown) is wrong; expected {expected}"));
                None
            }
            Err(expected) => {
                self.problem(found.name, format!("\"{}\" is wrong; expected {expected}", without_user(&found.text)));
                None
            }
        }
    }

    fn find(&mut self, setting: &Setting) -> Option<Found> {
        let plain = self.env.get(setting.env).cloned();
        let name = setting.env.to_owned();
        if !setting.is_secret() {
            return match plain {
                Some(text) => Some(Found { name, text }),
                None => self.find_in_file(setting),
            };
        }
        let file_name = format!("{name}_FILE");
        match (plain, self.env.get(&file_name).cloned()) {
            (Some(_), Some(_)) => {
                self.problem(name, format!("is given twice, also by {file_name}; keep one of them"));
                None
            }
            (Some(text), None) => Some(Found { name, text }),
            (None, Some(path)) => self.read_secret_file(file_name, &path),
            (None, None) => self.find_in_file(setting),
        }
    }

    fn find_in_file(&mut self, setting: &Setting) -> Option<Found> {
        let key = setting.key()?;
        let table = std::mem::take(&mut self.file);
        let found = self.find_in_table(&table, "", &key, setting.is_secret());
        self.file = table;
        found
    }

    /// A key of the file, or of one of its `[[accounts]]` and `[[webhooks]]`;
    /// a secret may stand in a file or a variable that `<key>_file` or
    /// `<key>_env` names.
    fn find_in_table(&mut self, table: &Table, path: &str, key: &str, secret: bool) -> Option<Found> {
        let name = format!("{path}{key}");
        let plain = table.get(key).and_then(|value| self.text(&name, value));
        if !secret {
            return plain.map(|text| Found { name, text });
        }
        let (file_name, env_name) = (format!("{name}_file"), format!("{name}_env"));
        let file = table.get(&format!("{key}_file")).and_then(|value| self.text(&file_name, value));
        let env = table.get(&format!("{key}_env")).and_then(|value| self.text(&env_name, value));
        match (plain, file, env) {
            (None, None, None) => None,
            (Some(text), None, None) => Some(Found { name, text }),
            (None, Some(path), None) => self.read_secret_file(file_name, &path),
            (None, None, Some(variable)) => match self.env.get(&variable).cloned() {
                Some(text) => Some(Found { name: env_name, text }),
                None => {
                    self.problem(env_name, format!("the variable {variable} that it names is not set"));
                    None
                }
            },
            _ => {
                self.problem(&name, format!("is given twice; keep one of {name}, {file_name} and {env_name}"));
                None
            }
        }
    }

    /// A value of the file as the text that the environment would have held.
    fn text(&mut self, name: &str, value: &Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Boolean(boolean) => Some(boolean.to_string()),
            Value::Array(entries) => {
                let texts: Option<Vec<String>> = entries.iter().map(|entry| self.text(name, entry)).collect();
                texts.map(|texts| texts.join(","))
            }
            Value::Float(_) | Value::Datetime(_) | Value::Table(_) => {
                self.problem(name, format!("a {} is wrong here; expected a text", value.type_str()));
                None
            }
        }
    }

    /// A secret in a file of its own. The line end that editors leave is not part of it.
    fn read_secret_file(&mut self, name: String, path: &str) -> Option<Found> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
            Err(error) => {
                self.problem(name, format!("the file \"{path}\" cannot be read: {error}"));
                return None;
            }
        };
        if text.is_empty() {
            self.problem(name, format!("the file \"{path}\" is empty"));
            return None;
        }
        Some(Found { name, text })
    }

    /// The tables of `[[accounts]]` or `[[webhooks]]`, each to be read by
    /// [`TableReader`]; keys that are not among `known` are problems.
    pub fn tables(&mut self, key: &'static str, known: &[(&'static str, Kind)]) -> Vec<TableReader> {
        let tables = match self.file.get(key) {
            None => return Vec::new(),
            Some(Value::Array(entries)) => entries.iter().map(|entry| entry.as_table().cloned()).collect(),
            Some(_) => None,
        };
        let Some::<Vec<Table>>(tables) = tables else {
            self.problem(key, format!("is wrong; expected tables that begin with [[{key}]]"));
            return Vec::new();
        };
        let readers = tables.into_iter().enumerate();
        let readers: Vec<TableReader> =
            readers.map(|(at, table)| TableReader { path: format!("{key}[{at}]."), table }).collect();
        for reader in &readers {
            self.refuse_unknown_in(&reader.table, &reader.path, known);
        }
        readers
    }

    fn refuse_unknown_in(&mut self, table: &Table, path: &str, known: &[(&str, Kind)]) {
        let known: BTreeSet<String> = known.iter().flat_map(|(key, kind)| file_names(key, *kind)).collect();
        for key in table.keys().filter(|key| !known.contains(*key)) {
            self.problem(format!("{path}{key}"), unknown(key, known.iter().map(String::as_str)));
        }
    }

    fn refuse_unknown_keys(&mut self) {
        let settings = SETTINGS.iter().filter_map(|setting| Some((setting.key()?, setting.kind)));
        let known: Vec<String> = settings
            .flat_map(|(key, kind)| file_names(&key, kind))
            .chain(["accounts", "webhooks"].map(str::to_owned))
            .collect();
        let unknown_keys: Vec<String> = self.file.keys().filter(|key| !known.contains(key)).cloned().collect();
        for key in unknown_keys {
            let what = unknown(&key, known.iter().map(String::as_str));
            self.problem(key, what);
        }
    }

    fn refuse_unknown_variables(&mut self) {
        let known: BTreeSet<String> = SETTINGS
            .iter()
            .flat_map(|setting| {
                let file = setting.is_secret().then(|| format!("{}_FILE", setting.env));
                file.into_iter().chain([setting.env.to_owned()])
            })
            .chain(CLIENT_VARIABLES.map(str::to_owned))
            .collect();
        let ours = self.env.keys().filter(|name| name.starts_with("CALLVAULT_"));
        let unknown_names: Vec<String> =
            ours.filter(|name| !known.contains(*name) && !is_service_link(name)).cloned().collect();
        for name in unknown_names {
            let what = unknown(&name, known.iter().map(String::as_str));
            self.problem(name, what);
        }
    }
}

/// What clients of the service read; nothing here does.
const CLIENT_VARIABLES: [&str; 4] = ["CALLVAULT_CONFIG", "CALLVAULT_URL", "CALLVAULT_API_KEY", "CALLVAULT_CACHE_DIR"];

/// One table of `[[accounts]]` or `[[webhooks]]`.
pub struct TableReader {
    path: String,
    table: Table,
}

impl TableReader {
    /// The full name of a key, for problems.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// The value of a key, or None where it is unset or wrong.
    pub fn get<T>(&self, reader: &mut Reader, key: &str, parse: impl Fn(&str) -> Result<T, Expected>) -> Option<T> {
        let found = reader.find_in_table(&self.table, &self.path, key, false)?;
        reader.parse(found, false, parse)
    }

    /// The same for a secret.
    pub fn secret<T>(&self, reader: &mut Reader, key: &str, parse: impl Fn(&str) -> Result<T, Expected>) -> Option<T> {
        let found = reader.find_in_table(&self.table, &self.path, key, true)?;
        reader.parse(found, true, parse)
    }

    /// The value of a key as it stands in the file.
    pub fn raw(&self, key: &str) -> Option<&Value> {
        self.table.get(key)
    }
}

/// Takes away keys whose value is an empty text, in tables of tables too.
fn remove_empty(table: &mut Table) {
    table.retain(|_, value| value.as_str() != Some(""));
    for value in table.iter_mut().filter_map(|(_, value)| value.as_array_mut()) {
        value.iter_mut().filter_map(Value::as_table_mut).for_each(remove_empty);
    }
}

/// A text in which no URL shows a user's name and password.
fn without_user(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) => match rest.split(['/', '?', '#']).next().and_then(|authority| authority.rfind('@')) {
            Some(at) => format!("{scheme}://…{}", &rest[at..]),
            None => text.to_owned(),
        },
        None => text.to_owned(),
    }
}

fn file_names(key: &str, kind: Kind) -> Vec<String> {
    match kind {
        Kind::Plain => vec![key.to_owned()],
        Kind::Secret => ["", "_file", "_env"].iter().map(|suffix| format!("{key}{suffix}")).collect(),
    }
}

/// What is said of a name that is not known, with the one that was perhaps meant.
fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known.map(|known| (edit_distance(name, known), known)).min();
    match nearest {
        Some((distance, known)) if distance <= 3 => format!("is not a setting; did you mean {known}?"),
        _ => "is not a setting; deploy/callvault.toml lists them all".to_owned(),
    }
}

/// Levenshtein's distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a_char) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b_char) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a_char != *b_char);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The variables that Kubernetes puts into every pod for a service of this
/// name (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
fn is_service_link(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("CALLVAULT_") else { return false };
    let words: Vec<&str> = rest.split('_').collect();
    let ends_with_host = words.ends_with(&["SERVICE", "HOST"]);
    ends_with_host || words.contains(&"PORT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_links_are_known_from_settings() {
        for name in [
            "CALLVAULT_SERVICE_HOST",
            "CALLVAULT_WEB_SERVICE_HOST",
            "CALLVAULT_SERVICE_PORT",
            "CALLVAULT_SERVICE_PORT_HTTP",
            "CALLVAULT_PORT",
            "CALLVAULT_PORT_8080_TCP_ADDR",
            "CALLVAULT_WEB_PORT_8080_TCP",
        ] {
            assert!(is_service_link(name), "{name}");
        }
        for name in ["CALLVAULT_LISTENN", "CALLVAULT_HOST", "CALLVAULT_PORTS", "CALLVAULT_SERVICE"] {
            assert!(!is_service_link(name), "{name}");
        }
    }

    #[test]
    fn a_slip_of_the_finger_is_pointed_at() {
        assert_eq!(
            unknown("CALLVAULT_LISTEM", ["CALLVAULT_LISTEN"].into_iter()),
            "is not a setting; did you mean CALLVAULT_LISTEN?"
        );
        assert!(unknown("CALLVAULT_HOSTNAME", ["CALLVAULT_LISTEN"].into_iter()).contains("deploy/callvault.toml"));
    }
}
