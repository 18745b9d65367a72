//! API keys and the secrets of shares: made, revoked, rotated, and read by
//! every node's key ring.
//!
//! Of a key its hash alone is here. Every change raises one revision, in its own
//! transaction: a node that knows the revision knows all keys and secrets, and
//! asks for that number alone. Changes take turns at its row.

use std::num::NonZeroU32;

use jiff::Timestamp;

use super::columns::columns_of;
use super::sql::{Row, Session, args, now};
use super::{Catalog, CatalogError, Result, rows};
use crate::domain::digest::Digest;
use crate::domain::key::{Holder, KeyId};
use crate::domain::sid::AccountSid;

/// Keys that are good at once: every node has all of them in memory.
pub const KEYS_MAX: i64 = 10_000;

/// A key that is to be made.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// What it is good for.
    pub holder: Holder,
    /// Its hash.
    pub hash: Digest,
    /// What people call it.
    pub name: Option<String>,
}

/// A key as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptKey {
    /// What it is good for.
    pub holder: Holder,
    /// Its hash.
    pub hash: Digest,
    /// What people call it.
    pub name: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A secret that shares are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct ShareSecret {
    /// Its number; the highest signs.
    pub id: i64,
    /// The secret itself.
    pub secret: [u8; 32],
    /// Whether what it signed is over, whatever was promised.
    pub is_over: bool,
}

impl std::fmt::Debug for ShareSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShareSecret({})", self.id)
    }
}

/// All that a node needs to know who asks.
#[derive(Debug, Clone)]
pub struct KeyRingRows {
    /// It is another one after each change.
    pub revision: i64,
    /// The keys that are good.
    pub keys: Vec<KeptKey>,
    /// The secrets of shares, the one that signs last. There is always one.
    pub secrets: Vec<ShareSecret>,
}

/// What a rotation does to what was signed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Nothing: it is good until it ends.
    LetThemEnd,
    /// It is over.
    EndThem,
}

const REVISION: &str = "SELECT revision FROM key_changes";
const RAISE_REVISION: &str = concat!(
    "UPDATE key_changes SET revision = CASE WHEN revision < ",
    now!(),
    " THEN ",
    now!(),
    " ELSE revision + 1 END"
);
const COUNT_GOOD: &str = "SELECT count(*) AS good FROM api_keys WHERE revoked_at IS NULL";
const INSERT_KEY: &str = concat!(
    "INSERT INTO api_keys (key_id, key_hash, name, scopes, account_sids, rate_per_second, created_at) \
     VALUES ($1, $2, $3, $4, $5, $6, ",
    now!(),
    ") RETURNING ",
    columns_of!(api_keys)
);
const ALL_KEYS: &str = concat!("SELECT ", columns_of!(api_keys), " FROM api_keys ORDER BY created_at, key_id");
const GOOD_KEYS: &str = concat!("SELECT ", columns_of!(api_keys), " FROM api_keys WHERE revoked_at IS NULL");
const ONE_KEY: &str = concat!("SELECT ", columns_of!(api_keys), " FROM api_keys WHERE key_id = $1");
const REVOKE: &str = concat!(
    "UPDATE api_keys SET revoked_at = ",
    now!(),
    " WHERE key_id = $1 AND revoked_at IS NULL RETURNING ",
    columns_of!(api_keys)
);
const SECRETS: &str = concat!("SELECT ", columns_of!(share_secrets), " FROM share_secrets ORDER BY secret_id");
const RETIRE: &str = concat!("UPDATE share_secrets SET retired_at = ", now!(), " WHERE retired_at IS NULL");
const END: &str = concat!("UPDATE share_secrets SET ended_at = ", now!(), " WHERE ended_at IS NULL");
const INSERT_SECRET: &str = concat!(
    "INSERT INTO share_secrets (secret_id, secret, created_at) \
     SELECT coalesce(max(secret_id), 0) + 1, $1, ",
    now!(),
    " FROM share_secrets RETURNING secret_id"
);

impl dyn Catalog + '_ {
    /// Makes a key; None where there are [`KEYS_MAX`] already.
    pub async fn create_key(&self, new: &NewKey) -> Result<Option<KeptKey>> {
        let mut session = self.begin_key_change().await?;
        let good = session.row(COUNT_GOOD, args![]).await?.map_or(Ok(0), |row| row.get::<i64>("good"))?;
        if good >= KEYS_MAX {
            session.rollback().await?;
            return Ok(None);
        }
        let holder = &new.holder;
        let args = args![
            holder.id.to_string(),
            new.hash,
            new.name.clone(),
            joined(&holder.scopes),
            holder.accounts.as_deref().map(joined),
            rate_column(holder.rate_per_second),
        ];
        let row = session.row(INSERT_KEY, args).await?;
        let kept = kept_key(&row.ok_or_else(|| CatalogError::Unreadable("no key was made".to_owned()))?)?;
        self.commit_key_change(session).await?;
        Ok(Some(kept))
    }

    /// All keys, revoked ones too, the oldest first.
    pub async fn keys(&self) -> Result<Vec<KeptKey>> {
        self.read().await?.rows(ALL_KEYS, args![]).await?.iter().map(kept_key).collect()
    }

    /// Revokes a key, which may have been revoked before; None where there is none.
    pub async fn revoke_key(&self, id: KeyId) -> Result<Option<KeptKey>> {
        let mut session = self.begin_key_change().await?;
        if let Some(row) = session.row(REVOKE, args![id.to_string()]).await? {
            let revoked = kept_key(&row)?;
            self.commit_key_change(session).await?;
            return Ok(Some(revoked));
        }
        let known = session.row(ONE_KEY, args![id.to_string()]).await?;
        session.rollback().await?;
        known.as_ref().map(kept_key).transpose()
    }

    /// Makes a secret that signs shares from now on; gives its number.
    pub async fn rotate_share_secret(&self, secret: [u8; 32], rotation: Rotation) -> Result<i64> {
        let mut session = self.begin_key_change().await?;
        // Retired secrets are kept, a row each: what they signed is known to be over, not forged.
        if rotation == Rotation::EndThem {
            session.execute(END, args![]).await?;
        }
        session.execute(RETIRE, args![]).await?;
        let id = insert_secret(&mut session, secret).await?;
        self.commit_key_change(session).await?;
        Ok(id)
    }

    /// All that a node needs to know who asks; None where it is what it was at
    /// the revision `known`. Where there is no secret yet, it becomes the one
    /// that `secret` makes.
    pub async fn key_ring(&self, known: Option<i64>, secret: impl Fn() -> [u8; 32]) -> Result<Option<KeyRingRows>> {
        let mut session = self.read().await?;
        let mut revision = revision(&mut session).await?;
        if known == Some(revision) {
            return Ok(None);
        }
        let mut secrets = secrets(&mut session).await?;
        if secrets.is_empty() {
            drop(session);
            self.make_first_secret(secret()).await?;
            session = self.read().await?;
            revision = self::revision(&mut session).await?;
            secrets = self::secrets(&mut session).await?;
        }
        // Read after the revision: what changed in between is read again, never missed.
        let rows = session.rows(GOOD_KEYS, args![]).await?;
        Ok(Some(KeyRingRows { revision, keys: rows.iter().filter_map(readable_key).collect(), secrets }))
    }

    async fn make_first_secret(&self, secret: [u8; 32]) -> Result<()> {
        let mut session = self.begin_key_change().await?;
        // Another node may have been quicker.
        if !secrets(&mut session).await?.is_empty() {
            return session.rollback().await;
        }
        insert_secret(&mut session, secret).await?;
        self.commit_key_change(session).await
    }

    async fn begin_key_change(&self) -> Result<Session> {
        let mut session = self.begin().await?;
        session.execute(RAISE_REVISION, args![]).await?;
        Ok(session)
    }

    async fn commit_key_change(&self, session: Session) -> Result<()> {
        session.commit().await?;
        self.announce_change();
        Ok(())
    }
}

async fn revision(session: &mut Session) -> Result<i64> {
    let row = session.row(REVISION, args![]).await?;
    row.ok_or_else(|| CatalogError::Unreadable("key_changes is empty".to_owned()))?.get("revision")
}

async fn insert_secret(session: &mut Session, secret: [u8; 32]) -> Result<i64> {
    let row = session.row(INSERT_SECRET, args![Digest::from(secret)]).await?;
    row.ok_or_else(|| CatalogError::Unreadable("no secret was made".to_owned()))?.get("secret_id")
}

async fn secrets(session: &mut Session) -> Result<Vec<ShareSecret>> {
    let rows = session.rows(SECRETS, args![]).await?;
    let secret = |row: &Row| {
        Ok(ShareSecret {
            id: row.get("secret_id")?,
            secret: *rows::digest(row.get("secret")?, "secret")?.as_bytes(),
            is_over: row.time_opt("ended_at")?.is_some(),
        })
    };
    rows.iter().map(secret).collect()
}

/// A key that cannot be read is no key; the others are none the worse for it.
fn readable_key(row: &Row) -> Option<KeptKey> {
    let read = kept_key(row);
    if let Err(error) = &read {
        tracing::warn!(%error, "an API key in the catalog cannot be read, and is refused");
    }
    read.ok()
}

fn kept_key(row: &Row) -> Result<KeptKey> {
    // A newer node may know more scopes, which mean nothing here.
    let scopes: String = row.get("scopes")?;
    let scopes = scopes.split(',').filter_map(|word| word.parse().ok()).collect();
    let rate: i64 = row.get("rate_per_second")?;
    let holder = Holder { id: row.parse("key_id")?, scopes, accounts: accounts(row)?, rate_per_second: rate_of(rate)? };
    Ok(KeptKey {
        holder,
        hash: rows::digest(row.get("key_hash")?, "key_hash")?,
        name: row.get("name")?,
        created_at: row.time("created_at")?,
        revoked_at: row.time_opt("revoked_at")?,
    })
}

fn accounts(row: &Row) -> Result<Option<Vec<AccountSid>>> {
    let Some(texts) = row.get::<Option<String>>("account_sids")? else { return Ok(None) };
    let unreadable = |_| CatalogError::Unreadable(format!("account_sids: {texts:?}"));
    texts.split(',').map(|text| text.parse().map_err(unreadable)).collect::<Result<_>>().map(Some)
}

fn rate_column(rate: Option<NonZeroU32>) -> i64 {
    rate.map_or(0, |rate| i64::from(rate.get()))
}

fn rate_of(column: i64) -> Result<Option<NonZeroU32>> {
    let rate = u32::try_from(column).map_err(|_| CatalogError::Unreadable(format!("rate_per_second: {column}")))?;
    Ok(NonZeroU32::new(rate))
}

fn joined<T: ToString>(words: &[T]) -> String {
    words.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}
