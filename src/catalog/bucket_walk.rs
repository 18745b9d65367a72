//! Walks over the whole bucket: whose turn it is, and how far each one came.
//!
//! There is one of each kind. A part of it is granted to one node at a time, under
//! a lease with an epoch; whoever lost it changes nothing more. Where it is, is
//! saved with what was done, so that any node goes on from there.

use std::time::Duration;

use jiff::Timestamp;

use super::clock::between;
use super::lease::Settled;
use super::sql::{Row, Session, Value, args, now};
use super::{Catalog, CatalogError, Result};

/// What goes over the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketWalkKind {
    /// Reading the markers.
    Markers,
    /// Making rows of the objects.
    Objects,
    /// Reading objects back, and looking for what no row names.
    Scrub,
    /// Looking for what is staged and no row names.
    Staging,
}

impl BucketWalkKind {
    fn name(self) -> &'static str {
        match self {
            Self::Markers => "markers",
            Self::Objects => "objects",
            Self::Scrub => "scrub",
            Self::Staging => "staging",
        }
    }
}

/// How far a walk has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Its stage.
    pub stage: i64,
    /// It goes on behind this place; None is the beginning of the stage.
    pub after: Option<String>,
    /// What it has gone over in this stage.
    pub done: i64,
}

/// A part of a walk that was just granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketWalk {
    /// Which walk.
    pub kind: BucketWalkKind,
    /// The epoch that was granted.
    pub epoch: i64,
    /// How long ago the walk was begun.
    pub under_way_for: Duration,
    /// When this part was granted, by the catalog's clock.
    pub granted_at: Timestamp,
    /// Where it goes on.
    pub position: Position,
    /// How many recordings there are, as was last counted for it.
    pub expected: Option<i64>,
}

/// Where a walk stands, for those who only look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkAhead {
    /// How long until a part of it may be granted.
    pub due_in: Duration,
    /// How long ago the last whole one began. Where there was none yet: how long the
    /// first one has been under way, or has been waited for since the catalog was made.
    pub uncovered_for: Duration,
    /// Whether there was a whole one.
    pub was_covered: bool,
    /// Where the one under way goes on; None between two of them.
    pub under_way: Option<Position>,
    /// How many recordings there are, as was last counted for it.
    pub expected: Option<i64>,
}

const GRANT: &str = concat!(
    "UPDATE bucket_walks SET epoch = epoch + 1, lease_node = $2, due_at = ",
    now!(),
    " + $3, begun_at = coalesce(begun_at, ",
    now!(),
    ") WHERE name = $1 AND due_at <= ",
    now!(),
    " RETURNING epoch, begun_at, stage, position, done, expected, ",
    now!(),
    " AS now_ms"
);
/// What was under way and nobody has at the moment.
const BEGIN_ANEW: &str = concat!(
    "UPDATE bucket_walks SET begun_at = NULL, stage = 0, position = NULL, done = 0 \
     WHERE name = $1 AND begun_at IS NOT NULL AND due_at <= ",
    now!(),
    " - $2"
);
const AHEAD: &str = concat!(
    "SELECT due_at, begun_at, covered_until, stage, position, done, expected, \
     (SELECT created_at FROM catalog WHERE only_row = 1) AS created_at, ",
    now!(),
    " AS now_ms FROM bucket_walks WHERE name = $1"
);

/// What every update of a walk ends with.
macro_rules! held {
    () => {
        " WHERE name = $1 AND epoch = $2 AND lease_node IS NOT NULL"
    };
}
const RENEW: &str = concat!("UPDATE bucket_walks SET due_at = ", now!(), " + $3", held!());
const SAVE: &str = concat!("UPDATE bucket_walks SET stage = $3, position = $4, done = $5", held!());
const EXPECT: &str = concat!("UPDATE bucket_walks SET expected = $3", held!());
const LEAVE: &str = concat!("UPDATE bucket_walks SET lease_node = NULL, due_at = ", now!(), " + $3", held!());
/// The next one comes `$3` after this one was begun, or at once where that is over.
const FINISH: &str = concat!(
    "UPDATE bucket_walks SET lease_node = NULL, covered_until = begun_at, stage = 0, position = NULL, done = 0, \
     due_at = CASE WHEN begun_at + $3 > ",
    now!(),
    " THEN begun_at + $3 ELSE ",
    now!(),
    " END, begun_at = NULL",
    held!()
);

fn position(row: &Row) -> Result<Position> {
    Ok(Position { stage: row.get("stage")?, after: row.get("position")?, done: row.get("done")? })
}

impl BucketWalk {
    fn read(kind: BucketWalkKind, row: &Row) -> Result<Self> {
        let granted_at = row.time("now_ms")?;
        Ok(Self {
            kind,
            epoch: row.get("epoch")?,
            under_way_for: between(row.time("begun_at")?, granted_at),
            granted_at,
            position: position(row)?,
            expected: row.get("expected")?,
        })
    }

    fn args_and(&self, more: Vec<Value>) -> Vec<Value> {
        args![self.kind.name(), self.epoch].into_iter().chain(more).collect()
    }
}

impl dyn Catalog + '_ {
    /// Grants the next part of a walk, if it is due; one that was begun goes on
    /// where it was saved.
    pub async fn grant_bucket_walk(
        &self,
        kind: BucketWalkKind,
        node: &str,
        lease: Duration,
    ) -> Result<Option<BucketWalk>> {
        let mut session = self.begin().await?;
        let granted = session.row(GRANT, args![kind.name(), node, lease]).await?;
        session.commit().await?;
        granted.as_ref().map(|row| BucketWalk::read(kind, row)).transpose()
    }

    /// Has a walk begin from the beginning that nobody has gone on with for that long: what
    /// lies before its place may have changed since.
    pub async fn begin_walk_anew(&self, kind: BucketWalkKind, left_for: Duration) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(BEGIN_ANEW, args![kind.name(), left_for]).await?;
        session.commit().await
    }

    /// Where a walk stands.
    pub async fn bucket_walk_ahead(&self, kind: BucketWalkKind) -> Result<WalkAhead> {
        let row = self.read().await?.row(AHEAD, args![kind.name()]).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable(format!("no walk is called {}", kind.name())))?;
        let now = row.time("now_ms")?;
        let (covered_until, begun_at) = (row.time_opt("covered_until")?, row.time_opt("begun_at")?);
        let since = covered_until.or(begun_at).map_or_else(|| row.time("created_at"), Ok)?;
        Ok(WalkAhead {
            due_in: between(now, row.time("due_at")?),
            uncovered_for: between(since, now),
            was_covered: covered_until.is_some(),
            under_way: begun_at.map(|_| position(&row)).transpose()?,
            expected: row.get("expected")?,
        })
    }

    /// Prolongs the lease of a part from now on.
    pub async fn renew_bucket_walk(&self, walk: &BucketWalk, lease: Duration) -> Result<Settled> {
        self.settle_bucket_walk(RENEW, walk.args_and(args![lease])).await
    }

    /// Keeps for all parts to come how many recordings were counted.
    pub async fn expect_of_bucket_walk(&self, walk: &BucketWalk, expected: i64) -> Result<Settled> {
        self.settle_bucket_walk(EXPECT, walk.args_and(args![expected])).await
    }

    /// A part is done, and the next one may be granted `after` that time.
    pub async fn leave_bucket_walk(&self, walk: &BucketWalk, at: &Position, after: Duration) -> Result<Settled> {
        let mut session = self.begin().await?;
        if save(&mut session, walk, at).await? == Settled::Stale {
            session.rollback().await?;
            return Ok(Settled::Stale);
        }
        session.execute(LEAVE, walk.args_and(args![after])).await?;
        session.commit().await?;
        Ok(Settled::Done)
    }

    /// Gives a walk back where it was saved last, for another node to go on at once.
    pub async fn hand_back_bucket_walk(&self, walk: &BucketWalk) -> Result<Settled> {
        self.settle_bucket_walk(LEAVE, walk.args_and(args![Duration::ZERO])).await
    }

    /// The walk is over. The next one comes `every` after this one was begun.
    pub async fn finish_bucket_walk(&self, walk: &BucketWalk, every: Duration) -> Result<Settled> {
        self.settle_bucket_walk(FINISH, walk.args_and(args![every])).await
    }

    async fn settle_bucket_walk(&self, statement: &'static str, args: Vec<Value>) -> Result<Settled> {
        let mut session = self.begin().await?;
        let changed = session.execute(statement, args).await?;
        session.commit().await?;
        Ok(if changed == 1 { Settled::Done } else { Settled::Stale })
    }
}

/// Saves how far a walk came, as the last of the transaction of what was done: the walk
/// is locked from then on, and its lease is not renewed.
pub(super) async fn save(session: &mut Session, walk: &BucketWalk, at: &Position) -> Result<Settled> {
    let args = walk.args_and(args![at.stage, at.after.clone(), at.done]);
    Ok(if session.execute(SAVE, args).await? == 1 { Settled::Done } else { Settled::Stale })
}

/// Ends a walk in the transaction of the last that it did: it may begin again at once.
pub(super) async fn finish(session: &mut Session, walk: &BucketWalk) -> Result<Settled> {
    let changed = session.execute(FINISH, walk.args_and(args![Duration::ZERO])).await?;
    Ok(if changed == 1 { Settled::Done } else { Settled::Stale })
}
