//! The scrub: reading every object back, slowly and always.
//!
//! One pass goes over all rows and then over the bucket's list, in parts that any
//! node may take, each under the walk's lease. Parts are spread so that a pass takes
//! most of the time between two passes. What is wrong is mended as `verify --repair`
//! does it, but that no row is made of what none knows: that is for people to decide.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Vault;
use super::audit::AuditError;
use super::cure::Remedy;
use super::found::{Cure, Found, FoundKind};
use super::reindex::{WalkError, held};
use crate::bucket::Throttle;
use crate::catalog::{BucketWalk, BucketWalkKind, Position, WalkAhead};
use crate::domain::recording::{Recording, RecordingId};
use crate::telemetry;

/// Recordings of one part.
const PART_ROWS: i64 = 8;
/// Of these, how many are read side by side: there is no hurry.
const READS_AT_ONCE: usize = 2;
/// Keys of one part.
const PART_KEYS: usize = 200;
/// The share of the time between two passes in which a pass is to be done.
const SHARE: f64 = 0.9;
/// The same once the list was gone over as well.
const SHARE_WITH_LIST: f64 = 0.98;
/// The longest pause between two parts of the list.
const LIST_PAUSE_MAX: Duration = Duration::from_secs(10);
/// The longest pause where all that was known of was gone over.
const PAUSE_BEYOND_MAX: Duration = Duration::from_secs(10);
/// So many recordings are reckoned with where they could never be counted: rather
/// too many, as that makes a pass quicker.
const EXPECTED_UNCOUNTED: i64 = 10_000_000;
/// A part that failed is tried again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// What leaving a part may take at the end of a node.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// The stages of a pass.
const ROWS: i64 = 0;
const LIST: i64 = 1;

/// What is gone over again and again, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    kind: BucketWalkKind,
    every: Duration,
}

impl Round {
    /// The scrub of the whole bucket, one pass in that time.
    pub fn scrub(every: Duration) -> Self {
        Self { kind: BucketWalkKind::Scrub, every }
    }

    /// The daily look at what is staged: no row may name it.
    pub fn staging() -> Self {
        Self { kind: BucketWalkKind::Staging, every: Duration::from_secs(86_400) }
    }
}

/// A part that was granted.
struct Part<'a> {
    round: Round,
    walk: &'a BucketWalk,
    stopping: &'a CancellationToken,
}

impl Part<'_> {
    /// The pause behind a part of the list, once so many keys were gone over. A bucket
    /// has about as many objects as there are recordings.
    fn list_pause(&self, done: i64) -> Duration {
        let every = self.round.every;
        if self.round.kind != BucketWalkKind::Scrub {
            return (every / 1000).min(LIST_PAUSE_MAX);
        }
        let all = self.walk.expected.unwrap_or(EXPECTED_UNCOUNTED);
        let pace = Pace {
            budget: every.mul_f64(SHARE_WITH_LIST),
            gone: self.walk.under_way_for,
            all,
            at_once: PART_KEYS as i64,
        };
        pace.pause(done).min(LIST_PAUSE_MAX)
    }
}

/// How quickly the parts of a stage follow one another.
#[derive(Clone, Copy)]
struct Pace {
    /// The time from the beginning of the pass in which the stage is to be done.
    budget: Duration,
    /// What of it is gone.
    gone: Duration,
    /// How many there are to go over, as far as is known.
    all: i64,
    /// How many of them make a part.
    at_once: i64,
}

impl Pace {
    /// The pause behind a part, once so many were gone over. Where there may be more
    /// than was known it is short: nobody knows how many.
    fn pause(&self, done: i64) -> Duration {
        let left = self.budget.saturating_sub(self.gone);
        match self.all - done {
            known_left if known_left > 0 => left.div_f64((known_left as f64 / self.at_once as f64).max(1.0)),
            _ => left.min(PAUSE_BEYOND_MAX),
        }
    }
}

/// Where the next part goes on, and after which pause; None where the round is over.
type Next = (Option<Position>, Duration);

impl Vault {
    /// Does the next part of a round as a node of that name, if it is due and no
    /// other node does. Says how long until the next one is.
    pub async fn scrub_part(
        &self,
        round: Round,
        node: &str,
        stopping: &CancellationToken,
    ) -> Result<Duration, WalkError> {
        let ahead = self.catalog.bucket_walk_ahead(round.kind).await?;
        if round.kind == BucketWalkKind::Scrub {
            telemetry::scrub_stands(progress(&ahead), ahead.uncovered_for);
        }
        if !ahead.due_in.is_zero() {
            return Ok(ahead.due_in);
        }
        let granted = Instant::now();
        let walk = self.catalog.grant_bucket_walk(round.kind, node, self.lease).await?;
        let Some(walk) = walk else { return Ok(self.lease) };
        let part = Part { round, walk: &walk, stopping };
        let worked = tokio::select! {
            worked = self.do_part(&part) => worked,
            () = self.keep("bucket_walk", granted, || self.catalog.renew_bucket_walk(&walk, self.lease)) => Err(WalkError::Lost),
            () = stopping.cancelled() => {
                let left = self.catalog.leave_bucket_walk(&walk, &walk.position, Duration::ZERO);
                // Where it fails the lease runs out.
                let _ = tokio::time::timeout(LEAVE_WITHIN, left).await;
                return Ok(Duration::ZERO);
            }
        };
        if matches!(worked, Err(WalkError::Parts(_))) {
            let _ = self.catalog.leave_bucket_walk(&walk, &walk.position, AGAIN_AFTER).await?;
        }
        worked
    }

    async fn do_part(&self, part: &Part<'_>) -> Result<Duration, WalkError> {
        let walk = part.walk;
        let is_scrub = part.round.kind == BucketWalkKind::Scrub;
        let (next, pause) = match (is_scrub, walk.position.stage) {
            (true, ROWS) => self.scrub_rows(part).await?,
            (true, _) => self.scrub_list(part, self.bucket.layout().prefix()).await?,
            (false, _) => self.scrub_staging(part).await?,
        };
        match next {
            Some(next) => held(self.catalog.leave_bucket_walk(walk, &next, pause).await?)?,
            None => {
                held(self.catalog.finish_bucket_walk(walk, part.round.every).await?)?;
                if is_scrub {
                    tracing::info!(took = ?walk.under_way_for, "the whole bucket was scrubbed");
                }
            }
        }
        Ok(pause)
    }

    async fn scrub_rows(&self, part: &Part<'_>) -> Result<Next, WalkError> {
        let at = &part.walk.position;
        let after = at.after.as_deref().and_then(place_of);
        let rows = self.catalog.every_recording(after.as_ref(), PART_ROWS).await?;
        let Some(last) = rows.last() else {
            held(self.catalog.expect_of_bucket_walk(part.walk, at.done).await?)?;
            return Ok((Some(Position { stage: LIST, after: None, done: 0 }), Duration::ZERO));
        };
        let next = Position { after: Some(last.id.to_string()), done: at.done + rows.len() as i64, ..*at };
        let looks: Vec<_> = rows.iter().map(|row| self.scrub_row(row)).collect();
        let found: Vec<_> = stream::iter(looks).buffered(READS_AT_ONCE).collect().await;
        for found in found.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
            self.see_to(&found, part).await?;
        }
        let all = self.expected(part.walk).await?;
        let pace =
            Pace { budget: part.round.every.mul_f64(SHARE), gone: part.walk.under_way_for, all, at_once: PART_ROWS };
        let pause = pace.pause(next.done);
        Ok((Some(next), pause))
    }

    /// How many recordings a pass has to do with. Counted once a pass, for a count
    /// goes over the whole table; where that takes too long, the last one counts.
    async fn expected(&self, walk: &BucketWalk) -> Result<i64, WalkError> {
        let at = &walk.position;
        if at.stage == ROWS && at.after.is_none() {
            match self.catalog.count_recordings().await {
                Ok((all, _)) => {
                    held(self.catalog.expect_of_bucket_walk(walk, all).await?)?;
                    return Ok(all);
                }
                Err(error) => tracing::warn!(%error, "the recordings are not counted; the scrub goes on without"),
            }
        }
        Ok(walk.expected.unwrap_or(EXPECTED_UNCOUNTED))
    }

    async fn scrub_row(&self, row: &Recording) -> Result<Vec<Found>, AuditError> {
        let found = self.look_at_row(row, &Throttle::default()).await?;
        telemetry::scrub_checked("recording", 1);
        telemetry::scrub_bytes(row.object.as_ref().map_or(0, |object| object.size_bytes.unsigned_abs()));
        Ok(found)
    }

    async fn scrub_staging(&self, part: &Part<'_>) -> Result<Next, WalkError> {
        if part.walk.position.after.is_none() {
            match self.end_stray_uploads().await {
                // A store that does not tell of them still lists what is staged.
                Err(AuditError::Bucket(error)) => tracing::warn!(%error, "open uploads are not looked for"),
                looked => looked?,
            }
        }
        self.scrub_list(part, &self.bucket.layout().staging_folder()).await
    }

    async fn scrub_list(&self, part: &Part<'_>, folder: &str) -> Result<Next, WalkError> {
        let at = &part.walk.position;
        let page = self.bucket.list_page(folder, at.after.as_deref(), PART_KEYS, self.now()?).await?;
        for found in self.find_strays(&page.objects).await? {
            self.see_to(&found, part).await?;
        }
        telemetry::scrub_checked("key", page.objects.len() as u64);
        let last = page.objects.last().filter(|_| page.has_more);
        let done = at.done + page.objects.len() as i64;
        let next = last.map(|last| Position { after: Some(last.key.clone()), done, ..*at });
        Ok((next, part.list_pause(done)))
    }

    async fn see_to(&self, found: &Found, part: &Part<'_>) -> Result<(), AuditError> {
        telemetry::scrub_found(found.kind.as_str());
        let (kind, key) = (found.kind.as_str(), &found.key);
        if found.kind == FoundKind::Missing {
            // Before the first of them is mended.
            self.look_for_objects().await?;
        }
        if matches!(found.cure, Cure::LeaveAlone | Cure::Register(_)) {
            tracing::warn!(kind, key, "the scrub found what {}", found.words);
            return Ok(());
        }
        let remedy = match self.cure(found, &Throttle::default(), part.stopping).await {
            // One that cannot be cured must not end every pass.
            Err(AuditError::Bucket(error)) => {
                self.bucket_answers().await?;
                Remedy::NotNow(error.to_string())
            }
            cured => cured?,
        };
        tracing::warn!(kind, key, ?remedy, "the scrub found what {}", found.words);
        Ok(())
    }
}

/// How much of a pass is done, from 0 to 1, whichever nodes do it. Between two passes all is.
fn progress(ahead: &WalkAhead) -> f64 {
    let Some(at) = &ahead.under_way else { return if ahead.was_covered { 1.0 } else { 0.0 } };
    let all = ahead.expected.unwrap_or(EXPECTED_UNCOUNTED).max(1);
    let of_stage = (at.done as f64 / all as f64).min(1.0);
    if at.stage == ROWS { SHARE * of_stage } else { SHARE + (1.0 - SHARE) * of_stage }
}

/// The recording behind which a pass goes on.
fn place_of(position: &str) -> Option<RecordingId> {
    let (account, recording) = position.split_once('/')?;
    Some(RecordingId { account: account.parse().ok()?, recording: recording.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn parts_are_spread_over_the_time_that_is_left() {
        let pace = Pace { budget: A_DAY, gone: Duration::ZERO, all: 8_000, at_once: 8 };
        assert_eq!(pace.pause(0), A_DAY / 1_000);
        assert_eq!(Pace { gone: A_DAY / 2, ..pace }.pause(4_000), A_DAY / 1_000);
        assert_eq!(Pace { gone: A_DAY * 2, ..pace }.pause(4_000), Duration::ZERO, "what is late does not wait");
    }

    #[test]
    fn the_list_of_a_large_bucket_is_gone_over_in_time_too() {
        let (all, every) = (20_000_000, A_DAY * 30);
        let stopping = CancellationToken::new();
        let mut walk = BucketWalk {
            kind: BucketWalkKind::Scrub,
            epoch: 1,
            under_way_for: every.mul_f64(SHARE),
            granted_at: jiff::Timestamp::UNIX_EPOCH,
            position: Position { stage: LIST, after: None, done: 0 },
            expected: Some(all),
        };
        for done in (0..all).step_by(PART_KEYS) {
            walk.under_way_for +=
                Part { round: Round::scrub(every), walk: &walk, stopping: &stopping }.list_pause(done);
        }
        assert!(walk.under_way_for <= every, "{:?}", walk.under_way_for);
    }

    #[test]
    fn what_is_done_of_a_pass_only_grows_and_is_all_between_two_of_them() {
        let ahead = |under_way: Option<(i64, i64)>, was_covered| WalkAhead {
            due_in: Duration::ZERO,
            uncovered_for: Duration::ZERO,
            was_covered,
            under_way: under_way.map(|(stage, done)| Position { stage, after: None, done }),
            expected: Some(100),
        };
        assert_eq!(progress(&ahead(None, false)), 0.0, "the first one is to begin");
        let pass = [(ROWS, 0), (ROWS, 50), (ROWS, 100), (LIST, 50), (LIST, 100)];
        let done: Vec<f64> = pass.map(|at| progress(&ahead(Some(at), true))).into();
        assert_eq!((done[0], done[2]), (0.0, SHARE));
        assert!(done.is_sorted_by(|earlier, later| earlier < later), "{done:?}");
        assert_eq!(progress(&ahead(Some((LIST, 1000)), true)), 1.0, "more keys than recordings");
        assert_eq!(progress(&ahead(None, true)), 1.0);
    }

    #[test]
    fn more_recordings_than_were_known_do_not_wait_for_the_end_of_the_time() {
        let pace = Pace { budget: A_DAY * 27, gone: Duration::ZERO, all: 10, at_once: 8 };
        assert_eq!(pace.pause(16), PAUSE_BEYOND_MAX);
    }
}
