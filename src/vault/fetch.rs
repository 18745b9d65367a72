//! One attempt at one recording: from Twilio, through the hash, into the bucket.
//!
//! The attempt works under a lease, which is renewed beside it; once the lease
//! is lost, or might be, the attempt stops and changes nothing more. What comes
//! is sniffed, hashed and counted on the way, and becomes an object only when
//! it is whole.
//!
//! The recording is stored when, and only when, the catalog says so.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::intake::Intake;
use super::traces::Traces;
use super::{Reservation, Vault, source_of};
use crate::bucket::{BucketError, NewObject, SINGLE_PUT_MAX_BYTES, Staging};
use crate::catalog::{CatalogError, Claim, Lease, Settled};
use crate::domain::media::Format;
use crate::domain::object_key;
use crate::domain::recording::{Details, ErrorCode, State, StoredObject};
use crate::domain::retry::{Decision, Failure};
use crate::telemetry;
use crate::twilio::decrypt::DecryptError;
use crate::twilio::media::{Media, MediaError};

/// The wait between two tries to tell the catalog how an attempt ended.
const SETTLE_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Stored.
    Stored,
    /// It will be tried again.
    Again(ErrorCode),
    /// It was given up.
    Failed(ErrorCode),
    /// Another node has the lease by now.
    Lost,
    /// Given back, for another node to begin at once.
    HandedBack,
}

/// Why an attempt did not come to an object.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error(transparent)]
    Media(#[from] MediaError),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("Twilio's body is not audio: it begins with \"{0}\"")]
    NotAudio(String),
    #[error(transparent)]
    Decrypt(#[from] DecryptError),
    #[error("Twilio says that the recording is {0}")]
    Twilio(String),
    #[error("neither a call nor a conference is known for the recording")]
    Homeless,
    #[error("the lease was lost")]
    Lost,
}

impl AttemptError {
    /// What it is to the recording; None where the recording is not this node's any more.
    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Media(error) => Some(error.code()),
            Self::Bucket(_) => Some(ErrorCode::StoreError),
            Self::NotAudio(_) => Some(ErrorCode::NotAudio),
            Self::Decrypt(_) => Some(ErrorCode::DecryptionFailed),
            Self::Twilio(_) => Some(ErrorCode::TwilioFailed),
            Self::Homeless => Some(ErrorCode::UpstreamError),
            Self::Catalog(_) => Some(ErrorCode::Interrupted),
            Self::Lost => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Media(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl Vault {
    /// Works on a claim that was granted after `granted` until it is settled,
    /// the lease is lost, or `stopping` hands it back.
    pub async fn fetch(
        &self,
        claim: &Claim,
        granted: Instant,
        memory: Reservation,
        stopping: &CancellationToken,
    ) -> Outcome {
        let id = claim.lease.id;
        let span = tracing::info_span!(
            "fetch",
            account_sid = %id.account,
            recording_sid = %id.recording,
            call_sid = claim.recording.details.call_sid.map(tracing::field::display),
            epoch = claim.lease.epoch,
            outcome = tracing::field::Empty,
        );
        telemetry::go_on(&span, claim.traceparent.as_deref());
        let outcome = self.fetch_or_settle(claim, granted, memory, stopping).instrument(span.clone()).await;
        span.record("outcome", outcome_label(outcome));
        span.in_scope(|| tracing::debug!(recording = %id, epoch = claim.lease.epoch, ?outcome, "an attempt ended"));
        outcome
    }

    async fn fetch_or_settle(
        &self,
        claim: &Claim,
        granted: Instant,
        memory: Reservation,
        stopping: &CancellationToken,
    ) -> Outcome {
        let traces = Traces::default();
        let began = Instant::now();
        let attempted = tokio::select! {
            attempted = self.attempt(claim, memory, &traces) => Some(attempted),
            () = self.keep("fetch", granted, || self.catalog.renew(&claim.lease, self.lease)) => Some(Err(AttemptError::Lost)),
            () = stopping.cancelled() => None,
        };
        let outcome = match attempted {
            Some(Ok(())) => {
                self.note_success(claim).await;
                Outcome::Stored
            }
            Some(Err(error)) => {
                let outcome = self.settle_failure(claim, &traces, &error, began).await;
                match &error {
                    AttemptError::Media(error) => {
                        self.heed(claim.lease.id.account, error, began).await;
                        if error.is_calm() {
                            self.note_success(claim).await;
                        }
                    }
                    AttemptError::NotAudio(_) | AttemptError::Decrypt(_) | AttemptError::Twilio(_) => {
                        self.note_success(claim).await
                    }
                    _ => {}
                }
                outcome
            }
            None => self.hand_back(claim, &traces).await,
        };
        if outcome == Outcome::Lost && traces.is_any() {
            // It may be looked at already, or for the last time: what is written late is looked for once more.
            let _ = self.owe_recheck(&claim.lease).await;
        }
        telemetry::fetch_ended(outcome_label(outcome), began.elapsed());
        outcome
    }

    async fn attempt(&self, claim: &Claim, mut memory: Reservation, traces: &Traces) -> Result<(), AttemptError> {
        let lease = &claim.lease;
        if let Some(leftover) = &claim.leftover {
            let staging = self.bucket.layout().staging(&lease.id, leftover.epoch);
            traces.write(self.bucket.clear_staging(&staging, &leftover.upload_id)).await?;
            held(self.catalog.forget_upload(lease).await?)?;
        }
        let known = &claim.recording;
        // Twilio may not have it any more, nor its description.
        if self.adopted(claim, &known.details, known.details_confirmed).await? {
            return Ok(());
        }
        let (details, described) = self.details(claim).await?;
        if !known.details_confirmed && self.adopted(claim, &details, true).await? {
            return Ok(());
        }
        let decryptor = self.decryptor(claim, described).await?;
        let source = source_of(&lease.id, claim.recording.source_host.as_deref());
        let formats = self.twilio.formats(&lease.id.account);
        let mut media = self.twilio.media(&source, formats, self.max_recording_bytes).await?;
        if let Some(announced) = media.announced_bytes {
            memory.shrink_to(announced);
        }
        // What is decrypted is nobody's to hear before its tag was compared.
        let is_open = decryptor.is_none();
        let mut intake = Intake::of(&media, decryptor);
        let format = match intake.begin(&mut media).await {
            Err(AttemptError::NotAudio(first)) => return Err(self.not_audio(claim, first).await),
            begun => begun?,
        };
        let tape = intake.tape.clone();
        let broadcast = is_open.then(|| self.lives.begin(lease, format, tape.clone()));
        let storing = async {
            let (object, staging_is_gone) = self.transfer(lease, &details, format, &mut media, intake, traces).await?;
            // Until the row names it.
            traces.left_something();
            telemetry::stored_bytes(object.size_bytes);
            self.settle_stored(lease, &object, staging_is_gone).await?;
            Ok::<_, AttemptError>(object)
        };
        let storing = storing.instrument(tracing::info_span!("store", recording_sid = %lease.id.recording));
        let object = tokio::select! {
            stored = storing => stored?,
            never = self.speed_up_beside(lease.id.account, &tape) => match never {},
        };
        if let Some(broadcast) = broadcast {
            broadcast.commit(object, memory);
        }
        Ok(())
    }

    /// Moves the bytes into the bucket. Says what is there now, and whether
    /// nothing is left of what was staged on the way.
    async fn transfer(
        &self,
        lease: &Lease,
        details: &Details,
        format: Format,
        media: &mut Media,
        mut intake: Intake,
        traces: &Traces,
    ) -> Result<(StoredObject, bool), AttemptError> {
        let mut staging: Option<Staging> = None;
        loop {
            match &mut staging {
                Some(staging) => {
                    for chunk in intake.tape.pass_on_and_let_go() {
                        staging.write(chunk).await?;
                    }
                }
                None if intake.tape.waiting_bytes() > SINGLE_PUT_MAX_BYTES as u64 => {
                    staging = Some(self.stage(lease, traces).await?);
                    continue;
                }
                None => {}
            }
            if !intake.read(media).await? {
                break;
            }
        }
        let size_bytes = intake.size_bytes;
        let chunks = intake.tape.pass_on_all();
        let digest = intake.hasher.finish();
        let stored_at = self.now()?;
        let layout = self.bucket.layout();
        let object = NewObject {
            key: layout.audio(&lease.id, details, &digest, format).ok_or(AttemptError::Homeless)?,
            format,
            metadata: object_key::metadata(&lease.id, details, &digest, stored_at),
        };
        let is_gone = match staging {
            None => traces.write(self.bucket.put(&object, chunks)).await.map(|()| true)?,
            Some(mut staging) => {
                for chunk in chunks {
                    staging.write(chunk).await?;
                }
                traces.write(staging.publish(&object)).await?
            }
        };
        let staging_is_gone = is_gone && !traces.is_unclear();
        Ok((StoredObject { digest, size_bytes, format, key: object.key }, staging_is_gone))
    }

    /// Tells the catalog that the object is there. Where its answer is lost,
    /// the row tells whether it took it.
    pub(super) async fn settle_stored(
        &self,
        lease: &Lease,
        object: &StoredObject,
        staging_is_gone: bool,
    ) -> Result<(), AttemptError> {
        loop {
            match self.store(lease, object, staging_is_gone).await {
                Ok(Settled::Done) => return Ok(()),
                Ok(Settled::Stale) => {
                    let row = self.catalog.recording(&lease.id).await;
                    if let Ok(row) = row {
                        let ours = row.is_some_and(|row| row.epoch == lease.epoch && row.state == State::Stored);
                        return if ours { Ok(()) } else { Err(AttemptError::Lost) };
                    }
                }
                Err(error @ (CatalogError::Refused(_) | CatalogError::Unreadable(_))) => return Err(error.into()),
                // For as long as the lease is ours: `keep` ends it.
                Err(_) => {}
            }
            tokio::time::sleep(SETTLE_AGAIN_AFTER).await;
        }
    }

    async fn store(
        &self,
        lease: &Lease,
        object: &StoredObject,
        staging_is_gone: bool,
    ) -> Result<Settled, CatalogError> {
        if !staging_is_gone {
            self.owe_recheck(lease).await?;
        }
        self.catalog.store(lease, object, staging_is_gone).await
    }

    async fn settle_failure(&self, claim: &Claim, traces: &Traces, error: &AttemptError, began: Instant) -> Outcome {
        let lease = &claim.lease;
        let Some(code) = error.code() else {
            tracing::warn!(recording = %lease.id, epoch = lease.epoch, "the lease was lost; another node may go on");
            return Outcome::Lost;
        };
        self.clear_away(claim, traces).await;
        if traces.is_unclear() && self.owe_recheck(lease).await.is_err() {
            // The lease runs out, and whoever finds that sees to it.
            return Outcome::Lost;
        }
        let failure = Failure {
            code,
            failed_before: claim.failed_before,
            pending_for: claim.pending_for + began.elapsed(),
            retry_after: error.retry_after(),
        };
        let decision = self.retry.decide(&failure, (self.dice)());
        match decision {
            Decision::Again { after, .. } => tracing::info!(%code, %error, again_in = ?after, "an attempt failed"),
            Decision::GiveUp => tracing::info!(%code, %error, "an attempt failed, and was the last"),
        }
        let settled = self.catalog.fail(lease, code, &error.to_string(), decision).await;
        match (settled, decision) {
            (Ok(Settled::Done), Decision::Again { .. }) => Outcome::Again(code),
            (Ok(Settled::Done), Decision::GiveUp) => Outcome::Failed(code),
            (Ok(Settled::Stale), _) => Outcome::Lost,
            (Err(error), _) => {
                tracing::warn!(recording = %lease.id, %error, "the catalog was not told; the lease will run out");
                Outcome::Lost
            }
        }
    }

    /// Lets another node begin at once. What was staged is cleared away beside
    /// that, if it can be in time: the row goes on naming it for the next claimer.
    async fn hand_back(&self, claim: &Claim, traces: &Traces) -> Outcome {
        if traces.is_unclear() && self.owe_recheck(&claim.lease).await.is_err() {
            return Outcome::Lost;
        }
        let (handed_back, _) = tokio::join!(self.catalog.hand_back(&claim.lease), self.clear_staging(claim, traces));
        match handed_back {
            Ok(Settled::Done) => Outcome::HandedBack,
            Ok(Settled::Stale) => Outcome::Lost,
            Err(error) => {
                tracing::warn!(recording = %claim.lease.id, %error, "not handed back; the lease will run out");
                Outcome::Lost
            }
        }
    }
}

pub(super) fn held(settled: Settled) -> Result<(), AttemptError> {
    match settled {
        Settled::Done => Ok(()),
        Settled::Stale => Err(AttemptError::Lost),
    }
}

fn outcome_label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Stored => "stored",
        Outcome::Again(code) | Outcome::Failed(code) => code.as_str(),
        Outcome::Lost => "lost",
        Outcome::HandedBack => "handed_back",
    }
}
