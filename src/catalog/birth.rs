//! What a catalog knows of the bucket when it is new: nothing.
//!
//! It is born *unread* and *unindexed*, and both are kept in it. While it is
//! unread nothing is taken: a recording that was erased could come back, and one
//! that is held be removed. While it is unindexed what it does not know may lie in
//! the bucket all the same.
//!
//! Nodes outlive a catalog that is lost, and find another one in its place, new again.
//! So nothing is concluded from what was seen before: what must not happen is refused
//! in the transaction that would do it, and whoever wants to know looks.

use std::time::Duration;

use tokio::sync::watch;

use super::sql::{Session, args};
use super::{Catalog, CatalogError, Result};

/// A node that has just been started reads an empty bucket at once: its first
/// requests wait for that.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// What this node saw when it last looked: a hint, for whoever waits.
#[derive(Debug)]
pub struct Birth {
    is_read: watch::Sender<bool>,
}

impl Default for Birth {
    fn default() -> Self {
        Self { is_read: watch::Sender::new(false) }
    }
}

/// How far a catalog is that was new.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stage {
    is_read: bool,
    /// Whether the bucket's objects were indexed. One that is not read is not.
    pub(super) is_indexed: bool,
}

impl Stage {
    /// Fails while the bucket's markers were not read.
    pub(super) fn must_be_read(self) -> Result<Self> {
        if self.is_read { Ok(self) } else { Err(CatalogError::Unread) }
    }
}

/// What a statement says that is to do nothing while the catalog is unread.
macro_rules! read {
    () => {
        "EXISTS (SELECT 1 FROM catalog WHERE unread = 0)"
    };
}
pub(super) use read;

/// The same while it is unindexed: one that is unread is that, too.
macro_rules! indexed {
    () => {
        "EXISTS (SELECT 1 FROM catalog WHERE unindexed = 0)"
    };
}
pub(super) use indexed;

const LOOK: &str = "SELECT unread, unindexed FROM catalog WHERE only_row = 1";
const READ_ALL: &str = "UPDATE catalog SET unread = 0 WHERE only_row = 1";
const INDEXED_ALL: &str = "UPDATE catalog SET unindexed = 0 WHERE only_row = 1 AND unread = 0";
const NOTHING_THERE: &str = "UPDATE catalog SET unread = 0, unindexed = 0 WHERE only_row = 1 AND unread = 1";

impl dyn Catalog + '_ {
    /// Whether the bucket's markers were read.
    pub async fn is_read(&self) -> Result<bool> {
        Ok(self.look_at_birth().await?.is_read)
    }

    /// Whether the bucket's objects were indexed. One that is not read is not.
    pub async fn is_indexed(&self) -> Result<bool> {
        Ok(self.look_at_birth().await?.is_indexed)
    }

    async fn look_at_birth(&self) -> Result<Stage> {
        let stage = look(&mut self.read().await?).await?;
        self.birth().is_read.send_replace(stage.is_read);
        Ok(stage)
    }

    /// Fails while the bucket's markers were not read, as far as this node has seen.
    /// Whoever takes something makes sure of it in the transaction.
    pub(super) async fn must_be_read(&self) -> Result<()> {
        let mut is_read = self.birth().is_read.subscribe();
        let was_read = *is_read.borrow_and_update();
        if was_read || self.is_read().await? {
            return Ok(());
        }
        let _ = tokio::time::timeout(READ_WITHIN, is_read.wait_for(|is_read| *is_read)).await;
        // Another node may have been the one that read them.
        if self.is_read().await? { Ok(()) } else { Err(CatalogError::Unread) }
    }

    /// The bucket is empty: there is nothing to be read, and nothing to be indexed.
    pub async fn nothing_is_there(&self) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(NOTHING_THERE, args![]).await?;
        session.commit().await?;
        self.look_at_birth().await.map(|_| ())
    }
}

/// How far the catalog is, in the transaction of what needs to know.
pub(super) async fn look(session: &mut Session) -> Result<Stage> {
    let row = session.row(LOOK, args![]).await?;
    let row = row.ok_or_else(|| CatalogError::Unreadable("the catalog's own row is missing".to_owned()))?;
    let is_read = row.get::<i64>("unread")? == 0;
    Ok(Stage { is_read, is_indexed: is_read && row.get::<i64>("unindexed")? == 0 })
}

/// Every marker was read, in the transaction of the last of them.
pub(super) async fn all_is_read(session: &mut Session) -> Result<()> {
    session.execute(READ_ALL, args![]).await?;
    Ok(())
}

/// Every object was indexed, in the transaction that ends the walk over them.
pub(super) async fn all_is_indexed(session: &mut Session) -> Result<()> {
    session.execute(INDEXED_ALL, args![]).await?;
    Ok(())
}
