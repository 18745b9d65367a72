//! deploy/compose.yaml as docker compose would read it: with the values of an
//! environment file in it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file below deploy/.
pub fn deploy(path: &str) -> String {
    let path = root().join("deploy").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A program that `tests/install-tools.sh` puts into the Python of the deploy checks.
pub fn python_tool(name: &str) -> PathBuf {
    let path = root().join("target/test-tools/deploy-python/bin").join(name);
    assert!(path.is_file(), "{name} is not installed: run `make tools`, or `tests/install-tools.sh`");
    path
}

/// Every document of that YAML.
pub fn yaml(text: &str) -> Vec<Value> {
    let mut python = Command::new(python_tool("python"));
    let python = python.arg(root().join("tests/deploy/yaml_to_json.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = python.spawn().expect("python starts");
    // Dropped, and so closed, when all is written.
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("python reads");
    let output = child.wait_with_output().expect("python ends");
    assert!(output.status.success(), "this is no YAML:\n{text}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The names and values of deploy/compose/trial.env.
pub fn trial_env() -> BTreeMap<String, String> {
    let text = deploy("compose/trial.env");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    lines.map(|line| pair(line).unwrap_or_else(|| panic!("{line} is no NAME=value"))).collect()
}

/// deploy/compose.yaml with those values in it.
pub fn compose(env: &BTreeMap<String, String>) -> Value {
    let mut compose = yaml(&deploy("compose.yaml")).remove(0);
    fill_in(&mut compose, env);
    compose
}

fn fill_in(value: &mut Value, env: &BTreeMap<String, String>) {
    match value {
        Value::String(text) => *text = interpolate(text, env),
        Value::Array(items) => items.iter_mut().for_each(|item| fill_in(item, env)),
        Value::Object(fields) => fields.values_mut().for_each(|field| fill_in(field, env)),
        _ => {}
    }
}

/// `${NAME:-default}`, `${NAME:?why}` and `$$`, as the Compose Specification has them
/// (<https://github.com/compose-spec/compose-spec/blob/main/12-interpolation.md>).
fn interpolate(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(literal) = after.strip_prefix('$') {
            out.push('$');
            rest = literal;
            continue;
        }
        let inside = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        let (inside, tail) = inside.unwrap_or_else(|| panic!("{text}: a variable is written ${{NAME}}"));
        let (name, otherwise) = inside.split_once(':').unwrap_or((inside, ""));
        match (env.get(name).filter(|value| !value.is_empty()), otherwise.strip_prefix('-')) {
            (Some(value), _) => out.push_str(value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => panic!("{name} is not set: {otherwise}"),
        }
        rest = tail;
    }
    out + rest
}
