//! Programs that peers are made of, and whether they are there.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What `tests/install-tools.sh bench` installs for the peers alone.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-tools/bench-python/bin");
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/side_by_side/peers");
/// Why a peer is missing.
pub const NOT_INSTALLED: &str = "it is not installed; run `tests/install-tools.sh bench`";

/// A program of the peers' Python, if it is installed.
pub fn python_tool(name: &str) -> Option<Command> {
    let program = Path::new(PYTHON).join(name);
    program.is_file().then(|| {
        let mut command = Command::new(program);
        command.current_dir(PROGRAMS).env("PYTHONDONTWRITEBYTECODE", "1").stderr(Stdio::null());
        command
    })
}

/// A program of the distribution, if it is installed.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A peer that is killed when this is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A peer that is told by lines what to do, and tells by lines what came of it.
pub struct Told {
    _running: Running,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Told {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the peer starts");
        let (stdin, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Self { _running: Running(child), stdin, stdout: BufReader::new(stdout) }
    }

    /// Tells it a line, and gives the numbers that it answers with.
    pub fn tell(&mut self, line: &str) -> Vec<f64> {
        writeln!(self.stdin, "{line}").expect("the peer reads");
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).expect("the peer answers");
        answer.split_whitespace().map(|number| number.parse().expect("a number")).collect()
    }
}

/// Keeps a process, with all its threads, on one core.
pub fn pin(pid: u32, core: u32) {
    let pinned = Command::new("taskset").args(["-acp", &core.to_string(), &pid.to_string()]).output();
    assert!(pinned.is_ok_and(|output| output.status.success()), "taskset pins a process");
}
