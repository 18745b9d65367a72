//! What a catalog knows of the bucket when it is new: nothing.
//!
//! It is born *unread* and *unindexed*, and both are kept in it. While it is
//! unread nothing is taken: a recording that was erased could come back, and one
//! that is held be removed. While it is unindexed what it does not know may lie in
//! the bucket all the same. Neither ever comes back, so a node that has seen one
//! end asks no more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::sql::{Session, args};
use super::{Catalog, CatalogError, Result};

/// A node that has just been started reads an empty bucket at once: its first
/// requests wait for that.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// What this node has seen of it.
#[derive(Debug)]
pub struct Birth {
    is_read: watch::Sender<bool>,
    is_indexed: AtomicBool,
}

impl Default for Birth {
    fn default() -> Self {
        Self { is_read: watch::Sender::new(false), is_indexed: AtomicBool::new(false) }
    }
}

impl Birth {
    /// Whether this node has seen that the bucket's objects were indexed.
    pub fn was_seen_indexed(&self) -> bool {
        self.is_indexed.load(Ordering::Acquire)
    }

    fn saw(&self, is_read: bool, is_indexed: bool) {
        if is_read {
            self.is_read.send_replace(true);
        }
        self.is_indexed.fetch_or(is_indexed, Ordering::AcqRel);
    }
}

const LOOK: &str = "SELECT unread, unindexed FROM catalog WHERE only_row = 1";
const READ_ALL: &str = "UPDATE catalog SET unread = 0 WHERE only_row = 1";
const INDEXED_ALL: &str = "UPDATE catalog SET unindexed = 0 WHERE only_row = 1 AND unread = 0";
const NOTHING_THERE: &str = "UPDATE catalog SET unread = 0, unindexed = 0 WHERE only_row = 1 AND unread = 1";

impl dyn Catalog + '_ {
    /// Whether the bucket's markers were read.
    pub async fn is_read(&self) -> Result<bool> {
        if !*self.birth().is_read.borrow() {
            self.look_at_birth().await?;
        }
        Ok(*self.birth().is_read.borrow())
    }

    /// Whether the bucket's objects were indexed. One that is not read is not.
    pub async fn is_indexed(&self) -> Result<bool> {
        if !self.birth().was_seen_indexed() {
            self.look_at_birth().await?;
        }
        Ok(self.birth().was_seen_indexed())
    }

    async fn look_at_birth(&self) -> Result<()> {
        let row = self.read().await?.row(LOOK, args![]).await?;
        let row = row.ok_or_else(|| CatalogError::Unreadable("the catalog's own row is missing".to_owned()))?;
        let is_read = row.get::<i64>("unread")? == 0;
        self.birth().saw(is_read, is_read && row.get::<i64>("unindexed")? == 0);
        Ok(())
    }

    /// Fails while the bucket's markers were not read.
    pub(super) async fn must_be_read(&self) -> Result<()> {
        if self.is_read().await? {
            return Ok(());
        }
        let mut is_read = self.birth().is_read.subscribe();
        let _ = tokio::time::timeout(READ_WITHIN, is_read.wait_for(|is_read| *is_read)).await;
        // Another node may have been the one that read them.
        if self.is_read().await? { Ok(()) } else { Err(CatalogError::Unread) }
    }

    /// The bucket is empty: there is nothing to be read, and nothing to be indexed.
    pub async fn nothing_is_there(&self) -> Result<()> {
        let mut session = self.begin().await?;
        session.execute(NOTHING_THERE, args![]).await?;
        session.commit().await?;
        self.look_at_birth().await
    }
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
