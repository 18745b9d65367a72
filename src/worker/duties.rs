//! Beginning the duties that are due: rechecks, and letting go.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::catalog::{CatalogError, Duty};
use crate::vault::{Vault, span_of};

/// What falls due is to begin within 10 s.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Duties of a kind at once on this node: they are not urgent, and each holds a chunk at most.
const AT_ONCE: usize = 8;
/// What is owed is counted this often: the answer is for people.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// What is done for recordings at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DutyKind {
    /// Looking again at what lies in the bucket.
    Recheck,
    /// What is left of erased recordings.
    Erase,
    /// What nobody asks for leaves the bucket.
    Evict,
    /// What is stored here goes at Twilio.
    DeleteAtTwilio,
}

impl DutyKind {
    /// Every one of them.
    pub const ALL: [Self; 4] = [Self::Recheck, Self::Erase, Self::Evict, Self::DeleteAtTwilio];

    async fn grant(self, vault: &Vault, at_most: usize) -> Result<Vec<Duty>, CatalogError> {
        match self {
            Self::Recheck => vault.begin_rechecks(at_most).await,
            Self::Erase => vault.begin_erasing(at_most).await,
            Self::Evict => vault.begin_evictions(at_most).await,
            Self::DeleteAtTwilio => vault.begin_twilio_deletions(at_most).await,
        }
    }

    async fn work(self, vault: Arc<Vault>, duty: Duty, granted: Instant, stopping: CancellationToken) {
        let span = span_of(self.name(), &duty.recording);
        let working = async {
            match self {
                Self::Recheck => vault.recheck(&duty, granted, &stopping).await,
                Self::Erase => vault.go_on_erasing(&duty, granted, &stopping).await,
                Self::Evict => vault.evict(&duty, granted, &stopping).await,
                Self::DeleteAtTwilio => vault.delete_at_twilio(&duty, granted, &stopping).await,
            }
        };
        working.instrument(span).await;
    }

    fn name(self) -> &'static str {
        match self {
            Self::Recheck => "recheck",
            Self::Erase => "erase",
            Self::Evict => "evict",
            Self::DeleteAtTwilio => "delete_at_twilio",
        }
    }

    /// What is told where none can be granted.
    fn trouble(self) -> &'static str {
        match self {
            Self::Recheck => "rechecks_failing",
            Self::Erase => "erasing_failing",
            Self::Evict => "evicting_failing",
            Self::DeleteAtTwilio => "twilio_deletions_failing",
        }
    }
}

/// Begins what is due of a kind until `stopping`, which also gives back what is under way.
pub async fn duties(vault: Arc<Vault>, kind: DutyKind, stopping: CancellationToken) {
    let mut running = JoinSet::new();
    while !stopping.is_cancelled() {
        if vault.health.is_ready() && vault.check_clock().is_ok() && vault.knows_its_bucket() {
            let begun = begin(&vault, kind, &stopping, &mut running).await;
            vault.health.note(kind.trouble(), begun);
        }
        tokio::select! {
            () = stopping.cancelled() => {}
            // There is room for another one.
            Some(_) = running.join_next() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    while running.join_next().await.is_some() {}
}

async fn begin(
    vault: &Arc<Vault>,
    kind: DutyKind,
    stopping: &CancellationToken,
    running: &mut JoinSet<()>,
) -> Result<(), CatalogError> {
    if running.len() >= AT_ONCE {
        return Ok(());
    }
    // From here on nothing may be cancelled: what is granted must be started.
    let granted = Instant::now();
    for duty in kind.grant(vault, AT_ONCE - running.len()).await? {
        running.spawn(kind.work(vault.clone(), duty, granted, stopping.clone()));
    }
    Ok(())
}

/// Erases by age, and brings markers of holds in line, until `stopping`.
pub async fn let_go(vault: Arc<Vault>, stopping: CancellationToken) {
    let letting_go = async {
        let mut counted: Option<Instant> = None;
        loop {
            let mut more = Ok(false);
            if vault.health.is_ready() {
                more = look(&vault).await;
                vault.health.note("letting_go_failing", more.as_ref().map(|_| ()));
                if counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) && vault.note_what_is_owed().await.is_ok() {
                    counted = Some(Instant::now());
                }
            }
            let pause = if matches!(more, Ok(true)) { Duration::ZERO } else { LOOK_EVERY };
            tokio::time::sleep(pause).await;
        }
    };
    // A store that says nothing keeps no node from stopping: what is cut short here is still owed.
    tokio::select! {
        () = letting_go => {}
        () = stopping.cancelled() => {}
    }
}

/// Whether there may be more to erase at once.
async fn look(vault: &Vault) -> Result<bool, CatalogError> {
    if vault.check_clock().is_ok() {
        vault.mark_holds().await?;
    }
    if vault.may_let_go() { vault.erase_old().await } else { Ok(false) }
}
