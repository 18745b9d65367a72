//! A link that can be broken: a TCP relay between a service and one of its parts.
//!
//! It can be cut, refuse, or swallow every byte both ways and close nothing, as
//! a failed-over database does. Rules act on the first piece of bytes from the
//! client that shows a pattern, perhaps only on a connection that showed another
//! one before: hold it there, lose it, lose its answer, or answer in the part's
//! place. A pattern must lie within one write of the client, as the heads of
//! requests and short statements do.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::eventually;

/// What becomes of the bytes that a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// They wait, and all behind them, until [`Relay::release`]. They arrive
    /// even if the client has gone away by then.
    Hold,
    /// They arrive; the answer, and all behind it, waits until [`Relay::release`].
    HoldAnswer,
    /// The connection is reset before they arrive.
    Reset,
    /// They arrive; the connection is reset when the answer comes.
    LoseAnswer,
    /// They do not arrive; this is the answer, and the connection's end.
    Answer(&'static str),
    /// They arrive; when the answer comes, this is given instead.
    AnswerInstead(&'static str),
}

/// When to act, on what, and how often.
#[derive(Debug, Clone)]
pub struct Rule {
    id: u64,
    act: Act,
    when: Vec<u8>,
    armed_by: Option<Vec<u8>>,
    /// Pieces that pass from the one with the pattern on.
    skip: usize,
    times: usize,
}

impl Rule {
    /// Acts once, on the first bytes with that pattern.
    pub fn on(pattern: &str, act: Act) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let id = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { id, act, when: pattern.into(), armed_by: None, skip: 0, times: 1 }
    }

    /// Only on a connection that has shown this pattern, and for what comes behind it.
    #[must_use]
    pub fn after(mut self, pattern: &str) -> Self {
        self.armed_by = Some(pattern.into());
        self
    }

    /// So many pieces behind the pattern: a statement is first prepared, then run.
    #[must_use]
    pub fn then(mut self, pieces: usize) -> Self {
        self.skip = pieces;
        self
    }

    /// So often.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Refusing,
    Swallowing,
}

struct State {
    /// Changes with every cut, so that each connection knows which it belongs to.
    mode: watch::Sender<(Mode, u64)>,
    rules: Mutex<Vec<Rule>>,
    /// How often held bytes were let go.
    released: watch::Sender<u64>,
    acted: AtomicUsize,
    arrived_late: AtomicUsize,
}

/// A relay to one port of loopback; it ends when it is dropped.
pub struct Relay {
    /// Its own port.
    pub port: u16,
    state: Arc<State>,
    _accepting: AbortOnDropHandle<()>,
}

impl Relay {
    /// A relay to that port, open.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State {
            mode: watch::Sender::new((Mode::Open, 0)),
            rules: Mutex::new(Vec::new()),
            released: watch::Sender::new(0),
            acted: AtomicUsize::new(0),
            arrived_late: AtomicUsize::new(0),
        });
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                let Ok((client, _)) = listener.accept().await else { continue };
                connections.spawn(relay(client, target, shared.clone()));
            }
        });
        Self { port, state, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// The same URL, by way of this relay.
    pub fn instead_of(&self, url: &str) -> String {
        let mut url = reqwest::Url::parse(url).expect("a URL");
        url.set_port(Some(self.port)).expect("a URL with a host");
        url.as_str().trim_end_matches('/').to_owned()
    }

    /// Swallows every byte from now on, of connections that are there and of
    /// new ones, and closes none of them.
    pub fn swallow(&self) {
        self.change(Mode::Swallowing, false);
    }

    /// Resets all connections and every new one.
    pub fn refuse(&self) {
        self.change(Mode::Refusing, true);
    }

    /// Lets new connections through. Those whose bytes were swallowed stay dead.
    pub fn heal(&self) {
        self.change(Mode::Open, false);
    }

    fn change(&self, mode: Mode, cut: bool) {
        self.state.mode.send_modify(|(now, cuts)| {
            *now = mode;
            *cuts += u64::from(cut);
        });
    }

    /// Adds a rule.
    pub fn rule(&self, rule: Rule) {
        self.state.rules.lock().expect("rules").push(rule);
    }

    /// Forgets all rules, and lets go of what they hold.
    pub fn release(&self) {
        self.state.rules.lock().expect("rules").clear();
        self.state.acted.store(0, Ordering::SeqCst);
        self.state.released.send_modify(|count| *count += 1);
    }

    /// Whether a rule has acted since the last release.
    pub fn has_acted(&self) -> bool {
        self.state.acted.load(Ordering::SeqCst) > 0
    }

    /// Waits until a rule has acted.
    pub async fn acts(&self) {
        eventually("a rule of the relay acts", async || self.has_acted().then_some(())).await;
    }

    /// How many held pieces have arrived after they were released, and were answered.
    pub fn arrived_late(&self) -> usize {
        self.state.arrived_late.load(Ordering::SeqCst)
    }
}

async fn relay(client: TcpStream, target: u16, state: Arc<State>) {
    let mut mode = state.mode.subscribe();
    let (began_in, cuts) = *mode.borrow_and_update();
    // A second handle, to have the connection reset instead of closed.
    let Ok(handle) = SockRef::from(&client).try_clone() else { return };
    let part = match began_in {
        Mode::Refusing => return reset(&handle),
        Mode::Swallowing => {
            swallow(client, mode, cuts).await;
            return reset(&handle);
        }
        Mode::Open => TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await,
    };
    let Ok(part) = part else { return reset(&handle) };
    let _ = (client.set_nodelay(true), part.set_nodelay(true));
    let answers = watch::Sender::new(Answers::Pass);
    let (from_client, to_client) = client.into_split();
    let (from_part, to_part) = part.into_split();
    let exchange = async {
        let up = upwards(from_client, to_part, &state, &answers);
        let mut down = std::pin::pin!(downwards(from_part, to_client, &state, &answers));
        // What the client sent is at its end before the answer is, or for nothing.
        tokio::select! {
            end = &mut down => end,
            // Kept until the answer has come: a part may give up a request whose client has gone.
            _to_part = up => down.await,
        }
    };
    let mut exchange = std::pin::pin!(exchange);
    let end = tokio::select! {
        end = &mut exchange => end,
        _ = broken(&mut mode, cuts) => {
            // From here on nothing is read, written or closed until the next cut.
            let _ = mode.wait_for(|now| now.1 != cuts).await;
            End::Reset
        }
    };
    if end == End::Reset {
        reset(&handle);
    }
}

async fn broken(mode: &mut watch::Receiver<(Mode, u64)>, cuts: u64) {
    let _ = mode.wait_for(|now| now.0 == Mode::Swallowing || now.1 != cuts).await;
}

fn reset(handle: &socket2::Socket) {
    // With nothing to linger for, closing sends a reset.
    let _ = handle.set_linger(Some(std::time::Duration::ZERO));
}

async fn swallow(mut client: TcpStream, mut mode: watch::Receiver<(Mode, u64)>, cuts: u64) {
    let mut bytes = vec![0; 16 << 10];
    let swallowed = async { while client.read(&mut bytes).await.is_ok_and(|len| len > 0) {} };
    tokio::select! {
        () = swallowed => {}
        _ = mode.wait_for(|now| now.1 != cuts) => {}
    }
}

/// What becomes of the part's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Pass,
    /// Until it is released more often than so: that may be before the answer comes.
    Hold(u64),
    Lose,
    Instead(&'static str),
    /// The client went away while its bytes were held; they arrive all the same.
    ToNobody,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// What a connection has shown of a rule.
#[derive(Debug, Default)]
struct Progress {
    armed: bool,
    left: Option<usize>,
}

/// What is to be done with these bytes.
fn act_on(bytes: &[u8], seen: &mut HashMap<u64, Progress>, state: &State) -> Option<Act> {
    let mut rules = state.rules.lock().expect("rules");
    let shows = |pattern: &[u8]| bytes.windows(pattern.len()).any(|window| window == pattern);
    for rule in rules.iter_mut().filter(|rule| rule.times > 0) {
        let progress = seen.entry(rule.id).or_default();
        let left = match progress.left {
            Some(left) => left - 1,
            None if !progress.armed && rule.armed_by.is_some() => {
                progress.armed = rule.armed_by.as_deref().is_some_and(shows);
                continue;
            }
            None if shows(&rule.when) => rule.skip,
            None => continue,
        };
        if left == 0 {
            *progress = Progress::default();
            rule.times -= 1;
            return Some(rule.act);
        }
        progress.left = Some(left);
    }
    None
}

/// Returns the part's end, to be closed when the exchange is over.
async fn upwards(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    answers: &watch::Sender<Answers>,
) -> OwnedWriteHalf {
    let mut bytes = vec![0; 64 << 10];
    let mut seen = HashMap::new();
    loop {
        let len = from.read(&mut bytes).await.unwrap_or(0);
        if len == 0 {
            let _ = to.shutdown().await;
            return to;
        }
        let mut piece = bytes[..len].to_vec();
        match act_on(&piece, &mut seen, state) {
            None => {}
            Some(Act::Hold) => {
                let released = state.released.subscribe();
                state.acted.fetch_add(1, Ordering::SeqCst);
                if hold(&mut from, &mut piece, released).await {
                    answers.send_replace(Answers::ToNobody);
                    let _ = to.write_all(&piece).await;
                    return to;
                }
            }
            Some(Act::Reset) => {
                answers.send_replace(Answers::Lose);
                let _ = to.shutdown().await;
                return to;
            }
            Some(Act::Answer(text)) => {
                answers.send_replace(Answers::Instead(text));
                let _ = to.shutdown().await;
                // The rest of the request is read, or the answer would be lost in a reset.
                while from.read(&mut bytes).await.is_ok_and(|len| len > 0) {}
                return to;
            }
            Some(Act::HoldAnswer) => drop(answers.send_replace(Answers::Hold(*state.released.borrow()))),
            Some(Act::LoseAnswer) => drop(answers.send_replace(Answers::Lose)),
            Some(Act::AnswerInstead(text)) => drop(answers.send_replace(Answers::Instead(text))),
        }
        if to.write_all(&piece).await.is_err() {
            return to;
        }
    }
}

/// Keeps what comes until it may go on; says whether the client has gone by then.
async fn hold(from: &mut OwnedReadHalf, held: &mut Vec<u8>, mut released: watch::Receiver<u64>) -> bool {
    let mut bytes = vec![0; 64 << 10];
    loop {
        tokio::select! {
            biased;
            _ = released.changed() => return false,
            read = from.read(&mut bytes) => match read {
                Ok(len) if len > 0 => held.extend_from_slice(&bytes[..len]),
                _ => {
                    let _ = released.changed().await;
                    return true;
                }
            }
        }
    }
}

async fn downwards(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    answers: &watch::Sender<Answers>,
) -> End {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let len = from.read(&mut bytes).await.unwrap_or(0);
        let now = *answers.borrow();
        match now {
            Answers::Pass => {}
            Answers::ToNobody => {
                state.arrived_late.fetch_add(usize::from(len > 0), Ordering::SeqCst);
                return End::Reset;
            }
            Answers::Lose => {
                state.acted.fetch_add(1, Ordering::SeqCst);
                return End::Reset;
            }
            Answers::Instead(text) => {
                state.acted.fetch_add(1, Ordering::SeqCst);
                let _ = to.write_all(text.as_bytes()).await;
                let _ = to.shutdown().await;
                return End::Closed;
            }
            Answers::Hold(releases) => {
                let mut released = state.released.subscribe();
                if *released.borrow() == releases {
                    state.acted.fetch_add(1, Ordering::SeqCst);
                }
                let _ = released.wait_for(|now| *now > releases).await;
                answers.send_replace(Answers::Pass);
            }
        }
        if len == 0 || to.write_all(&bytes[..len]).await.is_err() {
            let _ = to.shutdown().await;
            return End::Closed;
        }
    }
}
