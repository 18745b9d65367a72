//! The eras of the feed: when its readers have to begin anew.
//!
//! A catalog that was restored from a backup gives numbers again that readers of the
//! one before it have seen: whoever had read further would miss what comes now. So a
//! walk over the bucket that finds there more than an indexed catalog knows begins a new
//! era, in the transaction of what it found. A cursor of another era reads the whole feed,
//! and a node that follows begins at its end. One run over the bucket begins one at most,
//! however often it is cut off: it begins with the markers, and what came after that is
//! this run's.

use super::sql::{Session, args, now};
use super::{Catalog, Result};

const BEGIN: &str = concat!(
    "UPDATE catalog SET created_at = CASE WHEN created_at < ",
    now!(),
    " THEN ",
    now!(),
    " ELSE created_at + 1 END WHERE only_row = 1"
);
/// The run began with a walk over the markers, which is under way or was the last one.
const BEGIN_ONCE: &str = concat!(
    "UPDATE catalog SET created_at = ",
    now!(),
    " WHERE only_row = 1 AND unindexed = 0 AND created_at < \
     (SELECT coalesce(begun_at, covered_until) FROM bucket_walks WHERE name = 'markers')"
);

impl dyn Catalog + '_ {
    /// Begins a new era of the feed in any case: somebody knows that this catalog is
    /// older than what its readers have read.
    pub async fn begin_era(&self) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(BEGIN, args![]).await?;
        session.commit().await?;
        self.announce_change();
        Ok(())
    }
}

/// Begins one where this run over the bucket has not yet. After the walk was saved: whoever
/// locks both locks the walk first.
pub(super) async fn begin_once(session: &mut Session) -> Result<()> {
    session.execute(BEGIN_ONCE, args![]).await?;
    Ok(())
}
