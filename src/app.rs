//! The composition root: from settings to a running service, and its orderly end.
//!
//! Shutdown, in this order: `/readyz` fails and nothing new is claimed, while
//! serving goes on for `CALLVAULT_DRAIN`; then no connection is accepted and
//! what is under way may end. Shortly before `CALLVAULT_SHUTDOWN_TIMEOUT` whoever
//! still waits is answered, and fetches are handed back; what has not ended by
//! then is cut off.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bucket::Bucket;
use crate::catalog;
use crate::config::Config;
use crate::console;
use crate::http;
use crate::telemetry;
use crate::twilio::Twilio;
use crate::vault::Vault;
use crate::vault::backfill::Backfill;
use crate::vault::webhooks::Poster;
use crate::worker::{self, ClaimLoop, DutyKind, ReconcileLoop, WebhookLoop};

/// What answering those who still wait may take at the end.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// A running service.
pub struct App {
    /// Where it listens: the port is the real one, where the settings said 0.
    pub address: SocketAddr,
    /// What it is called.
    pub public_url: String,
    /// Its use cases.
    pub vault: Arc<Vault>,
    drain: Duration,
    shutdown_timeout: Duration,
    no_more_claims: CancellationToken,
    no_more_connections: CancellationToken,
    stopped: CancellationToken,
    /// A loop ended that never should.
    broken: CancellationToken,
    claims: Arc<ClaimLoop>,
    /// What claims fetches, until nothing more is to be begun.
    claiming: Vec<JoinHandle<()>>,
    /// The other loops that begin work, until then.
    duties: Vec<JoinHandle<()>>,
    servers: Vec<JoinHandle<()>>,
    loops: Vec<JoinHandle<()>>,
}

impl App {
    /// Starts a service. The port is open when this returns; catalog and bucket
    /// may not have been reached yet, which `/readyz` tells.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        // First of all: whatever is counted from here on is there.
        telemetry::metrics();
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr().context("the listener has no address")?;
        let metrics_listener = match config.metrics_listen {
            Some(listen) => Some(
                TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen} for metrics"))?,
            ),
            None => None,
        };
        let public_url = config.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
        let vault = Arc::new(vault(&config).await?);
        telemetry::accounts(vault.accounts());
        telemetry::callback_accounts(vault.accounts());
        if let Some(store) = vault.bucket.embedded() {
            store.must_be_here().and_then(|()| store.announce(address)).context("the bucket cannot be served")?;
        }
        let node = node_name();
        let claims = Arc::new(ClaimLoop::new(vault.clone(), node.clone(), config.fetch_concurrency));
        let reconcile = ReconcileLoop::new(vault.clone(), node.clone());
        let poster = Poster::new(&config).context("the client for receivers of events cannot be set up")?;
        let webhooks = WebhookLoop::new(vault.clone(), poster, node.clone(), http::event_json);
        let mut app = Self {
            address,
            public_url,
            vault,
            drain: config.drain,
            shutdown_timeout: config.shutdown_timeout,
            no_more_claims: CancellationToken::new(),
            no_more_connections: CancellationToken::new(),
            stopped: CancellationToken::new(),
            broken: CancellationToken::new(),
            claims,
            claiming: Vec::new(),
            duties: Vec::new(),
            servers: Vec::new(),
            loops: Vec::new(),
        };
        app.spawn(&config, listener, metrics_listener);
        app.begin_reconciling(reconcile);
        app.begin_posting(webhooks);
        app.begin_scrubbing(&config, node);
        Ok(app)
    }

    fn spawn(&mut self, config: &Config, listener: TcpListener, metrics_listener: Option<TcpListener>) {
        let state = http::State::new(self.vault.clone(), config, &self.public_url);
        let pages = console::router(self.vault.bucket.link_origin().as_deref());
        let serve = |listener, router| tokio::spawn(http::serve(listener, router, self.no_more_connections.clone()));
        self.servers.push(serve(listener, http::router(state, pages)));
        self.servers.extend(metrics_listener.map(|listener| serve(listener, http::metrics_router())));
        let (claims, no_more_claims) = (self.claims.clone(), self.no_more_claims.clone());
        self.claiming.push(self.supervise(async move { claims.run(&no_more_claims).await }));
        for kind in DutyKind::ALL {
            let (vault, no_more_claims) = (self.vault.clone(), self.no_more_claims.clone());
            self.duties.push(self.supervise(worker::duties(vault, kind, no_more_claims)));
        }
        self.duties.push(self.supervise(worker::let_go(self.vault.clone(), self.no_more_claims.clone())));
        let (vault, keys) = (self.vault.clone(), self.vault.clone());
        self.loops = vec![
            self.supervise(worker::watch_parts(vault.clone(), self.stopped.clone())),
            self.supervise(async move { vault.write_what_was_asked().await }),
            self.supervise(worker::probe_paused_accounts(self.vault.clone())),
            self.supervise(self.vault.clone().follow_flights()),
            self.supervise(async move { keys.follow_keys().await }),
            self.supervise(self.vault.clone().follow_feed()),
            self.supervise(self.vault.clone().heed_news_of_hits()),
            self.supervise(self.vault.clone().end_streams_of_erased()),
            self.supervise(telemetry::keep_up()),
        ];
    }

    fn begin_reconciling(&mut self, reconcile: ReconcileLoop) {
        let no_more_claims = self.no_more_claims.clone();
        self.duties.push(self.supervise(async move { reconcile.run(&no_more_claims).await }));
    }

    fn begin_scrubbing(&mut self, config: &Config, node: String) {
        let (vault, no_more_claims) = (self.vault.clone(), self.no_more_claims.clone());
        self.duties.push(self.supervise(worker::read_bucket(vault, node.clone(), no_more_claims)));
        let (vault, no_more_claims) = (self.vault.clone(), self.no_more_claims.clone());
        self.duties.push(self.supervise(worker::scrub(vault, node, config.scrub_every, no_more_claims)));
    }

    fn begin_posting(&mut self, webhooks: WebhookLoop) {
        let no_more_claims = self.no_more_claims.clone();
        self.duties.push(self.supervise(async move { webhooks.run(&no_more_claims).await }));
    }

    /// Runs a loop that ends with the service and not before.
    fn supervise(&self, running: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        // Dropped when the loop panics, too.
        let alarm = self.broken.clone().drop_guard();
        let stops = [self.no_more_claims.clone(), self.stopped.clone()];
        tokio::spawn(async move {
            running.await;
            if stops.iter().any(CancellationToken::is_cancelled) {
                alarm.disarm();
            }
        })
    }

    /// Returns when something has broken that the service cannot do without.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Ends the service in order. See the description of this file.
    pub async fn shutdown(self) {
        let deadline = Instant::now() + self.shutdown_timeout;
        tracing::info!("stopping: not ready any more");
        self.vault.health.is_stopping();
        self.no_more_claims.cancel();
        // Whatever ends meanwhile, or hangs, serving goes on for so long.
        tokio::time::sleep(self.drain).await;
        self.no_more_connections.cancel();
        self.vault.follower.end_readers();
        let hand_back_at = deadline - worker::HAND_BACK_WITHIN;
        let finished = async {
            // A claim that is under way is still started: its lease would be lost otherwise.
            let _ = tokio::time::timeout_at(hand_back_at, ended(self.claiming)).await;
            self.claims.finish(hand_back_at.saturating_duration_since(Instant::now())).await;
        };
        let mut served = std::pin::pin!(ended(self.servers));
        let answered = async {
            // Until then somebody may wait for a recording, or for what Twilio is asked.
            let in_time = tokio::time::timeout_at(hand_back_at, &mut served).await.is_ok();
            self.vault.end_waits();
            // They are to be told that it is not ready, not that Twilio cannot be asked.
            let in_time = in_time || tokio::time::timeout(TOLD_WITHIN, &mut served).await.is_ok();
            self.vault.end_questions().await;
            in_time || tokio::time::timeout_at(deadline, &mut served).await.is_ok()
        };
        let duties_ended = tokio::time::timeout_at(deadline, ended(self.duties));
        let ((), answered, _) = tokio::join!(finished, answered, duties_ended);
        if !answered {
            tracing::warn!("some requests were cut off");
        }
        self.stopped.cancel();
        self.loops.iter().for_each(JoinHandle::abort);
        tracing::info!("stopped");
    }
}

async fn ended(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        let _ = task.await;
    }
}

/// The use cases over the parts that the settings name.
pub async fn vault(config: &Config) -> anyhow::Result<Vault> {
    let catalog = catalog::open(config).context("the catalog cannot be opened")?;
    let bucket = Bucket::open(config).await.context("the bucket cannot be opened")?;
    let twilio = Twilio::new(config).context("the clients for Twilio cannot be set up")?;
    Ok(Vault::new(config, catalog, bucket, twilio, (Box::new(dice), entropy)))
}

/// What brings in the past, over catalog and Twilio alone: the bucket is the nodes'.
pub async fn backfill(config: &Config) -> anyhow::Result<Backfill> {
    let catalog = catalog::open(config).context("the catalog cannot be opened")?;
    catalog.prepare().await?;
    let twilio = Twilio::new(config).context("the clients for Twilio cannot be set up")?;
    Ok(Backfill::new(config, catalog, twilio, Box::new(dice)))
}

/// What the vault's randomness is.
#[expect(clippy::disallowed_methods, reason = "this is where it is passed in")]
fn dice() -> f64 {
    rand::random()
}

/// Where new keys and secrets come from.
#[expect(clippy::disallowed_methods, reason = "this is where it is passed in")]
pub fn entropy() -> [u8; 32] {
    rand::random()
}

/// A name that no other node has, and that tells people which one it is.
#[expect(clippy::disallowed_methods, reason = "a name is to be new, nothing else")]
pub fn node_name() -> String {
    format!("{}-{:08x}", telemetry::host_name(), rand::random::<u32>())
}
