//! Programs in `tests/browser` that drive a real Chromium, and what they ask for.
//!
//! A program prints a line of JSON `{"please": …}` where it needs something done
//! outside the browser, and reads the answer as a line. It ends with 0 where
//! every claim held.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::support::python::PYTHON;

type Asked = (Value, oneshot::Sender<Value>);

/// Runs a program of `tests/browser` with that JSON as its argument, and does
/// what it asks for. Fails the test where the program does.
pub async fn run(program: &str, argument: Value, mut please: impl AsyncFnMut(Value) -> Value) {
    let (asks, mut asked) = mpsc::channel::<Asked>(1);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser").join(program);
    let running = tokio::task::spawn_blocking(move || run_program(&path, &argument, &asks));
    while let Some((request, answer)) = asked.recv().await {
        let _ = answer.send(please(request).await);
    }
    let failure = running.await.expect("the program is waited for");
    if let Some(failure) = failure {
        panic!("{program} failed:\n{failure}");
    }
}

/// Why it failed, if it did.
fn run_program(path: &Path, argument: &Value, asks: &mpsc::Sender<Asked>) -> Option<String> {
    let mut child = Command::new(PYTHON)
        .arg(path)
        .arg(argument.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python is there: run tests/install-tools.sh");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let mut stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stderr, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    for line in stdout.lines().map_while(Result::ok) {
        let request = serde_json::from_str(&line).unwrap_or_else(|_| json!({"said": line}));
        if request["please"].is_null() {
            eprintln!("{request}");
            continue;
        }
        let (answer, answered) = oneshot::channel();
        let told = asks.blocking_send((request, answer)).is_ok();
        let answer = if told { answered.blocking_recv().unwrap_or_default() } else { Value::Null };
        let _ = writeln!(stdin, "{answer}");
    }
    let status = child.wait().expect("the program ends");
    let errors = errors.join().expect("a text");
    (!status.success()).then(|| format!("{status}\n{errors}"))
}
