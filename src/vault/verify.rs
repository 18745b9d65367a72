//! Verifying the bucket against the catalog by hand, and repairing what is wrong.
//!
//! Goes over the rows, whose objects are read back and whose markers are looked for, and
//! then over the bucket's list.
//! Runs beside nodes at work. What is found is told as it is found; memory is bounded
//! by a page, and by the number of a sample.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Vault;
use super::audit::AuditError;
use super::cure::Remedy;
use super::fetch::Outcome;
use super::found::Found;
use crate::bucket::{PAGE_MAX, Throttle};
use crate::catalog::CatalogError;
use crate::domain::recording::{Recording, RecordingId, State};

/// Rows that are read at once.
const PAGE_ROWS: i64 = 500;
/// How long a recording that is pending is waited for: its account may be paused.
const CLAIM_WITHIN: Duration = Duration::from_secs(20);
/// How often is looked what another node made of a fetch.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// An outage that is over by then does not end a run.
const OUTAGE_WITHIN: Duration = Duration::from_secs(60);
/// How often is asked during it.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// What is verified, and how.
#[derive(Debug)]
pub struct VerifyTerms {
    /// Only recordings from then on, by when they were recorded.
    pub since: Option<Timestamp>,
    /// Only recordings before then.
    pub until: Option<Timestamp>,
    /// So many recordings at random; None is all of them.
    pub sample: Option<usize>,
    /// Objects that are read side by side.
    pub concurrency: usize,
    /// How fast they are read, all together.
    pub throttle: Throttle,
    /// Whether what is wrong is repaired.
    pub repair: bool,
    /// The name of the process, for people.
    pub node: String,
}

impl VerifyTerms {
    /// Whether the whole is verified: only then the bucket's list tells what no row names.
    fn is_whole(&self) -> bool {
        self.since.is_none() && self.until.is_none() && self.sample.is_none()
    }

    /// Whether it is of the time that is meant.
    fn has(&self, recording: &Recording) -> bool {
        let at = recording.ordered_at();
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }

    /// Whether it is among those of which a sample is taken.
    fn samples(&self, recording: &Recording) -> bool {
        recording.state == State::Stored && self.has(recording)
    }
}

/// How far it has come, for those who watch it.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Recordings that are stored, at the beginning, or those of the sample; 0 where
    /// that is not known.
    pub to_read: AtomicU64,
    /// Recordings that were read back.
    pub read: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Entries of the bucket's list that were looked at.
    pub listed: AtomicU64,
}

/// Something that is wrong, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What was found.
    pub found: Found,
    /// What came of repairing it; [`Remedy::None`] where that was not wanted.
    pub remedy: Remedy,
}

/// Why it could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Catalog or bucket did not answer.
    #[error(transparent)]
    Parts(#[from] AuditError),
    /// Against a catalog that knows nothing yet all would be wrong.
    #[error("the catalog is new, and what lies in the bucket has not been indexed: run `callvault reindex` first")]
    Unindexed,
    /// It was told to stop.
    #[error("stopped before the end")]
    Stopped,
}

impl From<CatalogError> for VerifyError {
    fn from(error: CatalogError) -> Self {
        Self::Parts(error.into())
    }
}

/// One run of it.
struct Run<'a> {
    terms: &'a VerifyTerms,
    progress: &'a VerifyProgress,
    told: mpsc::Sender<Verified>,
    stopping: &'a CancellationToken,
}

impl Vault {
    /// Verifies, and tells what is wrong as it is found.
    pub async fn verify(
        &self,
        terms: &VerifyTerms,
        progress: &VerifyProgress,
        told: mpsc::Sender<Verified>,
        stopping: &CancellationToken,
    ) -> Result<(), VerifyError> {
        if !self.catalog.is_indexed().await? {
            return Err(VerifyError::Unindexed);
        }
        let run = Run { terms, progress, told, stopping };
        match terms.sample {
            Some(count) => self.verify_sample(&run, count).await?,
            None => self.verify_rows(&run).await?,
        }
        if terms.is_whole() { self.verify_list(&run).await } else { Ok(()) }
    }

    async fn verify_rows(&self, run: &Run<'_>) -> Result<(), VerifyError> {
        match self.catalog.count_recordings().await {
            Ok((_, stored)) => run.progress.to_read.store(stored.unsigned_abs(), Ordering::Relaxed),
            // Only those who watch miss something.
            Err(error) => tracing::warn!(%error, "how many recordings there are is not known"),
        }
        let mut after: Option<RecordingId> = None;
        loop {
            let page =
                run.patiently(async || Ok(self.catalog.every_recording(after.as_ref(), PAGE_ROWS).await?)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            self.verify_some(run, page.into_iter().filter(|row| run.terms.has(row))).await?;
        }
    }

    async fn verify_sample(&self, run: &Run<'_>, count: usize) -> Result<(), VerifyError> {
        let chosen = self.choose_sample(run, count).await?;
        run.progress.to_read.store(chosen.len() as u64, Ordering::Relaxed);
        for some in chosen.chunks(PAGE_ROWS.unsigned_abs() as usize) {
            let rows = run.patiently(async || Ok(self.catalog.recordings(some).await?)).await?;
            self.verify_some(run, rows.into_iter().filter(|row| run.terms.samples(row))).await?;
        }
        Ok(())
    }

    /// So many of the recordings that are meant, each with the same chance.
    async fn choose_sample(&self, run: &Run<'_>, count: usize) -> Result<Vec<RecordingId>, VerifyError> {
        let mut chosen = Vec::new();
        let mut seen = 0_usize;
        let mut after: Option<RecordingId> = None;
        loop {
            run.go_on()?;
            let page =
                run.patiently(async || Ok(self.catalog.every_recording(after.as_ref(), PAGE_ROWS).await?)).await?;
            let Some(last) = page.last() else { return Ok(chosen) };
            after = Some(last.id);
            for row in page.iter().filter(|row| run.terms.samples(row)) {
                seen += 1;
                let place = ((self.dice)() * seen as f64) as usize;
                match chosen.len() < count {
                    true => chosen.push(row.id),
                    false if place < count => chosen[place] = row.id,
                    false => {}
                }
            }
        }
    }

    async fn verify_some(&self, run: &Run<'_>, rows: impl Iterator<Item = Recording>) -> Result<(), VerifyError> {
        let looks: Vec<_> = rows.map(|row| self.verify_row(run, row)).collect();
        let mut looks = stream::iter(looks).buffer_unordered(run.terms.concurrency.max(1));
        while let Some(looked) = looks.next().await {
            looked?;
        }
        Ok(())
    }

    async fn verify_row(&self, run: &Run<'_>, row: Recording) -> Result<(), VerifyError> {
        run.go_on()?;
        for found in run.patiently(async || self.look_at_row(&row, &run.terms.throttle).await).await? {
            self.tell(run, found).await?;
        }
        if let (State::Stored, Some(object)) = (row.state, row.object) {
            run.progress.read.fetch_add(1, Ordering::Relaxed);
            run.progress.bytes.fetch_add(object.size_bytes.unsigned_abs(), Ordering::Relaxed);
        }
        Ok(())
    }

    async fn verify_list(&self, run: &Run<'_>) -> Result<(), VerifyError> {
        let mut after: Option<String> = None;
        loop {
            run.go_on()?;
            let prefix = self.bucket.layout().prefix();
            let list = async || Ok(self.bucket.list_page(prefix, after.as_deref(), PAGE_MAX, self.now()?).await?);
            let page = run.patiently(list).await?;
            for found in run.patiently(async || self.find_strays(&page.objects).await).await? {
                self.tell(run, found).await?;
            }
            run.progress.listed.fetch_add(page.objects.len() as u64, Ordering::Relaxed);
            match page.objects.last().filter(|_| page.has_more) {
                Some(last) => after = Some(last.key.clone()),
                None => return Ok(()),
            }
        }
    }

    /// Tells what was found, once it is repaired where that is wanted.
    async fn tell(&self, run: &Run<'_>, found: Found) -> Result<(), VerifyError> {
        let mut remedy = Remedy::None;
        if run.terms.repair {
            remedy = match self.cure(&found, &run.terms.throttle, run.stopping).await {
                Ok(remedy) => remedy,
                Err(error) => Remedy::NotNow(error.to_string()),
            };
            if let (Remedy::ToFetch, Some(id)) = (&remedy, &found.id) {
                remedy = self.fetch_now(run, id).await?;
            }
        }
        // Whoever does not listen any more has ended the run.
        run.told.send(Verified { found, remedy }).await.map_err(|_| VerifyError::Stopped)
    }

    /// Fetches a recording that is pending, or waits for the node that does.
    async fn fetch_now(&self, run: &Run<'_>, id: &RecordingId) -> Result<Remedy, VerifyError> {
        let claimant = self.claimant(run.terms.node.clone());
        let mut until = Instant::now() + CLAIM_WITHIN;
        loop {
            run.go_on()?;
            let row = run.patiently(async || Ok(self.catalog.recording(id).await?)).await?;
            let Some(row) = row else { return Ok(Remedy::Lost) };
            match row.state {
                State::Stored => return Ok(Remedy::Cured("is fetched again, and stored")),
                State::Fetching => until = Instant::now() + CLAIM_WITHIN,
                State::Pending => {}
                state => return Ok(Remedy::NotNow(format!("it is {state} now"))),
            }
            if row.state == State::Pending
                && let Some(memory) = self.reserve_memory()
            {
                let claiming =
                    run.patiently(async || Ok((Instant::now(), self.catalog.claim_named(&claimant, id).await?)));
                if let (granted, Some(claim)) = claiming.await? {
                    match self.fetch(&claim, granted, memory, run.stopping).await {
                        Outcome::Again(code) => return Ok(Remedy::NotNow(format!("it is tried again later: {code}"))),
                        Outcome::Stored | Outcome::Failed(_) | Outcome::Lost | Outcome::HandedBack => continue,
                    }
                }
            }
            if Instant::now() >= until {
                return Ok(Remedy::NotNow("it waits for its turn to be fetched".to_owned()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Run<'_> {
    fn go_on(&self) -> Result<(), VerifyError> {
        if self.stopping.is_cancelled() { Err(VerifyError::Stopped) } else { Ok(()) }
    }

    /// Looks again where catalog or bucket did not answer, for as long as an outage
    /// may be a short one.
    async fn patiently<T>(&self, look: impl AsyncFn() -> Result<T, AuditError>) -> Result<T, VerifyError> {
        let until = Instant::now() + OUTAGE_WITHIN;
        loop {
            match look().await {
                Ok(seen) => return Ok(seen),
                Err(error) if Instant::now() >= until => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "catalog or bucket did not answer; they are asked again"),
            }
            tokio::time::sleep(ASK_EVERY).await;
            self.go_on()?;
        }
    }
}
