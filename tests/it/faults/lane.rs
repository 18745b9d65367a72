//! Nodes on which one pair of the matrix runs after the other.

use callvault::domain::digest::Digest;
use callvault::domain::recording::{RecordingId, State};
use callvault::twilio::simulator::{Audio, Fault as Scripted, SimulatedRecording};
use callvault::vault::Vault;
use futures::future::join_all;
use reqwest::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use super::Fault::{self, *};
use super::Stage;
use super::Step::{self, *};
use crate::support::audit::{self, content};
use crate::support::cluster::{self, Node};
use crate::support::eventually;
use crate::support::relay::{Act, Rule};
use crate::support::world::{Parts, World, call_sid, recording_id, started_at};

const STORE_503: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const STORE_504: &str = "HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// A store's client tries again by itself, three times: this outlasts it once.
const LONGER_THAN_A_CLIENT: usize = 6;
/// A statement is first prepared, then run.
const RUN: usize = 1;

/// Nodes of one world, on which one pair runs after the other. The first node
/// is the one that meets the fault.
pub(super) struct Lane {
    world: World,
    nodes: Vec<Node>,
    vault: Vault,
    stage: Stage,
}

/// One recording on its way to a step.
struct Way {
    step: Step,
    id: RecordingId,
    answer: Option<JoinHandle<bool>>,
    /// The rest of a request that was begun.
    unsent: Option<(tokio::net::TcpStream, Vec<u8>)>,
}

impl Lane {
    pub(super) async fn on(stage: Stage) -> Self {
        let mut world = World::new(Parts::Servers).await;
        world.set("CALLVAULT_LEASE", "1s");
        world.set("CALLVAULT_SHUTDOWN_TIMEOUT", "4s");
        if stage == Stage::Sqlite {
            world.settings.remove("CALLVAULT_DATABASE_URL");
        }
        let nodes = cluster::start(&world, if stage == Stage::Sqlite { 1 } else { 3 }).await;
        let vault = audit::vault(&world).await;
        Self { world, nodes, vault, stage }
    }

    fn others(&self) -> &[Node] {
        &self.nodes[1..]
    }

    /// Runs one pair, and looks whether all that always holds still does.
    pub(super) async fn run(&mut self, number: u32, step: Step, fault: Fault) {
        eprintln!("pair {number}: {fault:?} at {step:?} on {:?}", self.stage);
        let (id, digest) = self.record(number, matches!(step, Part | Complete));
        // The first node is to be the one that takes it.
        join_all(self.others().iter().map(Node::freeze)).await;
        let way = match fault {
            Kill | Freeze | CatalogGone => {
                self.stop_at(step, id);
                let mut way = self.set_out(step, id).await;
                self.reach(&mut way).await;
                way
            }
            _ => {
                self.break_at(step, fault, id);
                self.set_out(step, id).await
            }
        };
        self.happen(way, fault).await;
        self.come_to_rest(id).await;
        let row = self.vault.catalog.recording(&id).await.unwrap().unwrap();
        assert_eq!(row.object.unwrap().digest, digest, "{fault:?} at {step:?}");
        let told = self.vault.catalog.told(&id).await.unwrap();
        assert_eq!(told.len(), 2, "{fault:?} at {step:?}: accepted once, stored once");
        content(&self.world).await;
    }

    fn record(&self, number: u32, large: bool) -> (RecordingId, Digest) {
        let id = recording_id(number);
        let mut recording = SimulatedRecording::speech(id, call_sid(number), started_at());
        // 17 MiB is more than one put takes.
        let bytes = if large { 17 << 20 } else { 100 << 10 };
        recording.audio = Audio::made_up_wav(bytes, u64::from(number));
        let digest = recording.audio.wav.as_ref().unwrap().digest();
        self.world.simulator.add(recording);
        (id, digest)
    }

    /// The first node will stop at that step until it is let go.
    fn stop_at(&self, step: Step, id: RecordingId) {
        let node = &self.nodes[0];
        match step {
            // What the client does: see `set_out`.
            Receive => {}
            Verify => node.catalog.rule(Rule::on("recording_sid = $2 FOR UPDATE", Act::Hold)),
            Commit => node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("recording.accepted").then(RUN)),
            Acknowledge => node.catalog.rule(Rule::on("COMMIT", Act::HoldAnswer).after("recording.accepted").then(RUN)),
            Claim => node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("lease_node = $3").then(RUN)),
            Connect => node.twilio.rule(Rule::on("GET /2010-04-01/", Act::Hold)),
            Headers => self.world.simulator.script(id.recording, [Scripted::Silent]),
            MidBody | Release => self.world.simulator.script(id.recording, [Scripted::Held(1000)]),
            BeginPut => node.store.rule(Rule::on(&format!("/{}/", id.recording), Act::Hold)),
            Part => node.store.rule(Rule::on("partNumber=1", Act::Hold)),
            Complete => node.store.rule(Rule::on("?uploadId=", Act::Hold)),
            CommitStored => node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("recording.stored").then(RUN)),
            Redirect => {}
        }
    }

    /// What the first node asks for at that step will meet the fault.
    fn break_at(&self, step: Step, fault: Fault, id: RecordingId) {
        let (node, simulator) = (&self.nodes[0], &self.world.simulator);
        let commit = |after: &str| Rule::on("COMMIT", Act::LoseAnswer).after(after).then(RUN);
        let at_store = match step {
            BeginPut => format!("/{}/", id.recording),
            Part => "partNumber=1".to_owned(),
            _ => "?uploadId=".to_owned(),
        };
        match (fault, step) {
            (UnknownOutcome, Commit) => node.catalog.rule(commit("recording.accepted")),
            (UnknownOutcome, Claim) => node.catalog.rule(commit("lease_node = $3")),
            (UnknownOutcome, Release) => {
                simulator.script(id.recording, [Scripted::Held(1000)]);
                node.catalog.rule(commit("handed_back"));
            }
            (UnknownOutcome, _) => node.catalog.rule(commit("recording.stored")),
            (Store503, _) => {
                node.store.rule(Rule::on(&at_store, Act::Answer(STORE_503)).times(LONGER_THAN_A_CLIENT));
            }
            (StoreReset, _) => node.store.rule(Rule::on(&at_store, Act::Reset).times(LONGER_THAN_A_CLIENT)),
            (StoreTimeOut, _) => node.store.rule(Rule::on(&at_store, Act::AnswerInstead(STORE_504))),
            (OriginReset, Connect) => node.twilio.rule(Rule::on("GET /2010-04-01/", Act::Reset)),
            (OriginReset, Headers) => node.twilio.rule(Rule::on("GET /2010-04-01/", Act::LoseAnswer)),
            (OriginReset, _) => simulator.script(id.recording, [Scripted::Reset(1000)]),
            (Truncation, _) => simulator.script(id.recording, [Scripted::Truncated(1000), Scripted::Truncated(0)]),
            (RateLimits, _) => {
                simulator.script(id.recording, (0..4).map(|_| Scripted::RateLimited { retry_after: None }));
            }
            (Html, _) => simulator.script(id.recording, [Scripted::Html, Scripted::Html]),
            (Kill | Freeze | CatalogGone, _) => unreachable!("these happen to a node that was stopped at"),
            (ClockOff, _) => unreachable!("this is another node from the start"),
        }
    }

    /// Sends the callback to the first node, half of it where that is the step.
    async fn set_out(&self, step: Step, id: RecordingId) -> Way {
        let node = &self.nodes[0];
        let callback = self.world.callback(id.recording);
        let mut way = Way { step, id, answer: None, unsent: None };
        if step == Receive {
            let signature = callback.signature(&format!("{}/webhooks/twilio/recording", node.url));
            let form = callback.form();
            let head = format!(
                "POST /webhooks/twilio/recording HTTP/1.1\r\nHost: node\r\nContent-Length: {}\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\nX-Twilio-Signature: {signature}\r\n\r\n",
                form.len()
            );
            let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
            let (now, later) = form.as_bytes().split_at(form.len() / 2);
            socket.write_all(&[head.as_bytes(), now].concat()).await.unwrap();
            way.unsent = Some((socket, later.to_vec()));
            return way;
        }
        let (http, url) = (self.world.http.clone(), format!("{}/webhooks/twilio/recording", node.url));
        way.answer = Some(tokio::spawn(async move {
            callback.send(&http, &url).await.is_ok_and(|answer| answer.status() == StatusCode::NO_CONTENT)
        }));
        way
    }

    /// Waits until the first node has come to the step.
    async fn reach(&self, way: &mut Way) {
        let (node, id) = (&self.nodes[0], way.id);
        let counts = || self.world.simulator.counts(id.recording);
        match way.step {
            Receive => {}
            Verify | Commit | Acknowledge | Claim | CommitStored => node.catalog.acts().await,
            Connect => node.twilio.acts().await,
            BeginPut | Part | Complete => node.store.acts().await,
            // There is no MP3 of it: the second request is the one that matters.
            Headers => eventually("it asks", async || (counts().media_requests == 2).then_some(())).await,
            MidBody => eventually("it fetches", async || (counts().fetches == 1).then_some(())).await,
            Release => {
                eventually("it fetches", async || (counts().fetches == 1).then_some(())).await;
                node.catalog.rule(Rule::on("COMMIT", Act::Hold).after("handed_back").then(RUN));
                node.signal("TERM");
                node.catalog.acts().await;
            }
            Redirect => {
                self.is_stored(id).await;
                node.catalog.rule(Rule::on("FROM recordings r JOIN", Act::Hold));
                let path = format!("/v1/calls/{}/audio", way.id.recording.as_str().replacen("RE", "CA", 1));
                let request = node.request(reqwest::Method::GET, &path);
                // Whatever it says, the client asks again: see `come_to_rest`.
                tokio::spawn(request.send());
                node.catalog.acts().await;
            }
        }
    }

    /// The fault happens, and whoever is left goes on.
    async fn happen(&mut self, mut way: Way, fault: Fault) {
        let step = way.step;
        match fault {
            Kill => self.nodes[0].kill(),
            Freeze => self.nodes[0].freeze().await,
            CatalogGone => self.nodes[0].catalog.refuse(),
            UnknownOutcome if step == Release => {
                let fetches = async || (self.world.simulator.counts(way.id.recording).fetches == 1).then_some(());
                eventually("it fetches", fetches).await;
                self.nodes[0].signal("TERM");
            }
            _ => {}
        }
        let is_passive = !matches!(fault, Kill | Freeze | CatalogGone);
        if is_passive
            && step != Release
            && !matches!(fault, Truncation | RateLimits | Html)
            && !(fault == OriginReset && step == MidBody)
        {
            // No other node takes it away before the fault has been met.
            let node = &self.nodes[0];
            eventually("the fault is met", async || {
                (node.catalog.has_acted() || node.store.has_acted() || node.twilio.has_acted()).then_some(())
            })
            .await;
        }
        self.others().iter().for_each(Node::thaw);
        match fault {
            Freeze => {
                self.send_again(&mut way).await;
                self.is_stored(way.id).await;
                self.nodes[0].thaw();
                self.let_go(&mut way).await;
            }
            Kill => {
                self.let_go(&mut way).await;
                self.nodes[0].start_again(&self.world).await;
                self.send_again(&mut way).await;
            }
            CatalogGone => {
                self.let_go(&mut way).await;
                self.send_again(&mut way).await;
                self.is_stored(way.id).await;
                self.nodes[0].catalog.heal();
            }
            _ => self.send_again(&mut way).await,
        }
    }

    /// Lets what was stopped go on.
    async fn let_go(&self, way: &mut Way) {
        if let Some((mut socket, rest)) = way.unsent.take() {
            let _ = socket.write_all(&rest).await;
        }
        self.world.simulator.release(way.id.recording);
        let node = &self.nodes[0];
        [&node.catalog, &node.store, &node.twilio].into_iter().for_each(|link| link.release());
    }

    /// What no node has acknowledged yet is sent again, to whoever takes it.
    async fn send_again(&self, way: &mut Way) {
        if let Some(answer) = way.answer.take() {
            // Not waited for: Twilio's patience may be over first.
            if answer.is_finished() && answer.await.unwrap() {
                return;
            }
        }
        let callback = self.world.callback(way.id.recording);
        let nodes = if self.others().is_empty() { &self.nodes[..] } else { self.others() };
        eventually("a node takes the callback", async || {
            for node in nodes {
                let url = format!("{}/webhooks/twilio/recording", node.url);
                let answer = callback.send(&self.world.http, &url).await;
                if answer.is_ok_and(|answer| answer.status() == StatusCode::NO_CONTENT) {
                    return Some(());
                }
            }
            None
        })
        .await;
    }

    async fn is_stored(&self, id: RecordingId) {
        eventually("it is stored", async || {
            let row = self.vault.catalog.recording(&id).await.unwrap();
            row.is_some_and(|row| row.state == State::Stored).then_some(())
        })
        .await;
    }

    /// All nodes are there and work, and the recording can be played from each.
    async fn come_to_rest(&mut self, id: RecordingId) {
        self.is_stored(id).await;
        if self.is_ending().await {
            self.nodes[0].start_again(&self.world).await;
        }
        self.nodes.iter().for_each(|node| {
            [&node.catalog, &node.store, &node.twilio].into_iter().for_each(|link| link.release());
        });
        for node in &self.nodes {
            let path = format!("/v1/recordings/{}/audio", id.recording);
            eventually("the node plays it", async || {
                let answer = node.request(reqwest::Method::GET, &path).send().await.ok()?;
                (answer.status() == StatusCode::TEMPORARY_REDIRECT).then_some(())
            })
            .await;
            eventually("the node works on nothing", async || {
                let text = node.get("/metrics").await.text().await.ok()?;
                text.lines().any(|line| line == "callvault_fetches_running 0").then_some(())
            })
            .await;
        }
    }

    /// Whether the first node was told to stop; it has ended then.
    async fn is_ending(&self) -> bool {
        let node = &self.nodes[0];
        if !node.log().contains("\"stopping") {
            return false;
        }
        node.end().await;
        true
    }
}
