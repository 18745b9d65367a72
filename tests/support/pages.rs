//! The pages of the handbook, and a terminal that does what they say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::compose::root;
use super::kept;
use super::secrets::Forbidden;
use super::world::debug_binary;

/// The command that runs until it is ended. It is the last of its block.
const SERVE: &str = "callvault serve";

/// Every page: of the project, and of what is deployed.
pub fn pages() -> Vec<String> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            match entry.path() {
                path if path.is_dir() => below(&path, found),
                path if path.extension().is_some_and(|extension| extension == "md") => found.push(path),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    below(&root().join("deploy"), &mut found);
    let own = std::fs::read_dir(root()).expect("a folder").flatten().map(|entry| entry.path());
    found.extend(own.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    let relative = |path: PathBuf| path.strip_prefix(root()).expect("below the root").display().to_string();
    let mut pages: Vec<String> = found.into_iter().map(relative).collect();
    pages.sort();
    pages
}

/// The text of a page.
pub fn page(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The heading that it stands under; empty above the first.
    pub heading: String,
    /// What it is written in.
    pub language: String,
    /// Its lines.
    pub text: String,
}

/// Every fenced block of a page's text, in its order.
pub fn blocks(text: &str) -> Vec<Block> {
    let (mut found, mut heading) = (Vec::new(), String::new());
    let (mut open, mut was_blank): (Option<Block>, bool) = (None, true);
    for line in text.lines() {
        // No other fence, and no indented one, may hold a command that is overlooked.
        let is_fence = ["```", "~~~"].iter().any(|fence| line.trim_start().starts_with(fence));
        assert!(!is_fence || line.starts_with("```"), "a block is to begin with ``` alone: {line}");
        assert!(open.is_some() || !was_blank || !line.starts_with("    "), "a block is to have a fence: {line}");
        was_blank = line.trim().is_empty();
        open = match (open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                Some(Block { heading: heading.clone(), language: language.to_owned(), text: String::new() })
            }
            (Some(block), Some(_)) => {
                found.push(block);
                None
            }
            (Some(mut block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
                Some(block)
            }
            (None, None) => {
                if line.starts_with('#') {
                    line.trim_start_matches('#').trim().clone_into(&mut heading);
                }
                None
            }
        };
    }
    assert_eq!(open, None, "a block is not closed");
    found
}

/// The commands under a heading of a page: as many blocks as there must be.
pub fn commands<const BLOCKS: usize>(path: &str, heading: &str) -> [String; BLOCKS] {
    let under = blocks(&page(path)).into_iter().filter(|block| block.heading == heading && block.language == "sh");
    let texts: Vec<String> = under.map(|block| block.text).collect();
    texts.try_into().unwrap_or_else(|texts| panic!("{path}, {heading}: {BLOCKS} blocks are expected: {texts:#?}"))
}

/// A terminal: what a block exports is there in the next one. What it started ends with it.
/// Nothing that runs in it may say what no log may hold. (What it writes is for its reader.)
pub struct Terminal {
    env: BTreeMap<String, String>,
    folder: PathBuf,
    instead: Vec<(String, String)>,
    servers: Vec<Child>,
}

impl Terminal {
    /// One in that folder, with that environment and a PATH that finds the binary under test.
    pub fn new(folder: &Path, env: &BTreeMap<String, String>) -> Self {
        let mut env = env.clone();
        let tools = root().join("target/test-tools");
        let own = [debug_binary().parent().expect("a folder").to_owned(), tools.join("bin"), tools.join("python/bin")];
        let path = std::env::var("PATH").expect("a PATH");
        let folders = own.into_iter().chain(std::env::split_paths(&path));
        let path = std::env::join_paths(folders).expect("a PATH").into_string().expect("UTF-8");
        env.extend([("PATH".to_owned(), path), ("HOME".to_owned(), folder.display().to_string())]);
        Self { env, folder: folder.to_owned(), instead: Vec::new(), servers: Vec::new() }
    }

    /// Sets a variable, as its reader did before.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.env.insert(name.to_owned(), value.into());
    }

    /// A variable as it is now.
    pub fn var(&self, name: &str) -> &str {
        self.env.get(name).unwrap_or_else(|| panic!("{name} is not set"))
    }

    /// From now on that stands in the place of what its reader has to put in.
    pub fn put_in(&mut self, theirs: &str, ours: impl Into<String>) {
        self.instead.push((theirs.to_owned(), ours.into()));
    }

    /// The block with what its reader puts in.
    fn filled(&self, block: &str) -> String {
        self.instead.iter().fold(block.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
    }

    fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-o", "pipefail", "-euc", script]).current_dir(&self.folder).env_clear().envs(&self.env);
        shell.stdin(Stdio::null());
        shell
    }

    /// Runs a block, whatever comes of it.
    pub async fn run(&mut self, block: &str) -> Output {
        let exported = self.folder.join(".exported");
        let script = format!("{}\nenv -0 >\"{}\"", self.filled(block), exported.display());
        let mut shell = self.shell(&script);
        let ran = tokio::task::spawn_blocking(move || shell.output()).await.expect("it is waited for");
        let ran = ran.expect("bash runs");
        if let Ok(variables) = std::fs::read_to_string(&exported) {
            let pairs = variables.split('\0').filter_map(|pair| pair.split_once('='));
            self.env.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
            std::fs::remove_file(exported).expect("it was there");
        }
        self.nothing_secret_is_in(&String::from_utf8_lossy(&ran.stderr));
        ran
    }

    /// With the settings that it has by now.
    fn nothing_secret_is_in(&self, said: &str) {
        Forbidden::of(&self.env, &self.folder).is_not_in(said);
    }

    /// Runs a block that must end well; gives what it wrote.
    pub async fn does(&mut self, block: &str) -> String {
        let ran = self.run(block).await;
        let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{}{stdout}{stderr}", self.filled(block));
        stdout.into_owned()
    }

    /// Runs a block whose last command serves, which goes on until the terminal is closed.
    pub async fn serves(&mut self, block: &str) {
        let rest =
            block.trim_end().strip_suffix(SERVE).unwrap_or_else(|| panic!("{SERVE} is not the last of\n{block}"));
        self.does(rest).await;
        let mut shell = self.shell(&format!("exec {SERVE}"));
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("serve.log"));
        shell.stdout(Stdio::null()).stderr(log.expect("a file"));
        self.servers.push(shell.spawn().expect("bash starts"));
    }

    /// Runs a block that goes on for ever until it has written that; `meanwhile` is repeated.
    pub async fn tells(&mut self, block: &str, text: &str, mut meanwhile: impl AsyncFnMut()) {
        let mut shell = self.shell(&format!("trap 'kill 0' EXIT\n{}", self.filled(block)));
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let mut child = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash starts");
        let group = child.id();
        let written = kept(child.stdout.take().expect("a pipe"));
        let said = kept(child.stderr.take().expect("a pipe"));
        super::eventually(&format!("{text:?} is written"), async || {
            meanwhile().await;
            written.lock().expect("a text").contains(text).then_some(())
        })
        .await;
        // All that the block started, and nothing else.
        let ended = Command::new("kill").args(["-TERM", "--", &format!("-{group}")]).status();
        assert!(ended.expect("kill runs").success());
        child.wait().expect("it is reaped");
        self.nothing_secret_is_in(&said.lock().expect("a text"));
    }

    /// Ends what serves.
    pub fn end_servers(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        self.servers.clear();
        // A second failure would end all tests of the process.
        if !std::thread::panicking() {
            self.nothing_secret_is_in(&self.log());
        }
    }

    /// What its servers said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("serve.log")).unwrap_or_default()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of what was served ---\n{}", self.log());
        }
        self.end_servers();
    }
}
