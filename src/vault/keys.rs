//! Who holds a key, and what shares are signed with: the catalog's, in memory.
//!
//! A node looks at the catalog's key revision at least every second, and reads
//! keys and secrets anew when it is another one. So nobody who asks with a known
//! key waits for the catalog, and a key that is revoked is refused within
//! [`FRESH_FOR`]: a node that was frozen, or whose last look is older for any
//! reason, looks before it answers. While the catalog is away, what is known
//! stays good for [`GOOD_WHILE_AWAY`]. A key that is not known has the node look
//! again, together with all others that are not: however many come, the catalog
//! is asked no more often than every [`LOOKS_APART`].
//!
//! The admin key of the settings is not the catalog's, and is good without it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Vault;
use crate::catalog::{CatalogError, KeyRingRows, ShareSecret};
use crate::domain::digest::Digest;
use crate::domain::key::{self, Holder, KeyId, Scope};

/// How old what is known may be while the catalog answers.
const FRESH_FOR: Duration = Duration::from_secs(2);
/// How long what is known stays good while the catalog is away.
const GOOD_WHILE_AWAY: Duration = Duration::from_secs(15 * 60);
/// A wake-up may be lost: the catalog is looked at all the same.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A busy catalog wakes all the time, and anyone may ask with a made-up key.
const LOOKS_APART: Duration = Duration::from_millis(200);
/// The longest wait for a look, of whoever cannot be answered without one. A
/// catalog that has not answered by then counts as away.
const PATIENCE: Duration = Duration::from_millis(2500);

/// 32 random bytes that nobody can guess.
pub type Entropy = fn() -> [u8; 32];

/// What the catalog said last.
#[derive(Debug, Default)]
struct Known {
    revision: Option<i64>,
    holders: HashMap<Digest, Arc<Holder>>,
    by_id: HashMap<KeyId, Digest>,
    secrets: Vec<ShareSecret>,
}

impl Known {
    fn new(rows: KeyRingRows) -> Self {
        let by_id = rows.keys.iter().map(|key| (key.holder.id, key.hash)).collect();
        let holders = rows.keys.into_iter().map(|key| (key.hash, Arc::new(key.holder))).collect();
        Self { revision: Some(rows.revision), holders, by_id, secrets: rows.secrets }
    }
}

/// How the last look went.
#[derive(Debug, Clone, Copy, Default)]
struct Looked {
    /// When the last one began that the catalog answered.
    answered: Option<Instant>,
    /// Whether it did not answer the last one.
    is_away: bool,
}

impl Looked {
    fn is_fresh(&self) -> bool {
        self.answered.is_some_and(|at| at.elapsed() < FRESH_FOR)
    }

    fn is_good(&self) -> bool {
        self.answered.is_some_and(|at| at.elapsed() < GOOD_WHILE_AWAY)
    }
}

/// The keys and secrets that this node knows.
#[derive(Debug)]
pub struct KeyRing {
    admin: Option<(Digest, Arc<Holder>)>,
    known: watch::Sender<Arc<Known>>,
    looked: watch::Sender<Looked>,
    wanted: Notify,
}

impl KeyRing {
    /// A ring that knows the admin key of the settings alone, until it is followed.
    pub(super) fn new(admin_key: Option<&SecretString>) -> Self {
        Self {
            admin: admin_key.map(admin),
            known: watch::Sender::new(Arc::default()),
            looked: watch::Sender::new(Looked::default()),
            wanted: Notify::new(),
        }
    }

    /// Who holds that key; None where nobody does. The time it takes tells
    /// nothing: hashes are compared, and nobody can choose a key by its hash.
    pub async fn holder(&self, key: &str) -> Result<Option<Arc<Holder>>, CatalogError> {
        let hash = Digest::of(key.as_bytes());
        if let Some((known, admin)) = &self.admin
            && *known == hash
        {
            return Ok(Some(admin.clone()));
        }
        if !key::is_well_formed(key) {
            return Ok(None);
        }
        self.find(|known| known.holders.get(&hash).cloned()).await
    }

    /// Whether a key is good, as far as it is known now.
    fn is_good(&self, id: KeyId) -> bool {
        self.is_admin(id) || self.known.borrow().by_id.contains_key(&id)
    }

    /// Returns when the key is revoked of whom `who` names, as soon as it names someone.
    pub async fn until_revoked(&self, who: impl Fn() -> Option<KeyId> + Send) {
        let mut news = self.known.subscribe();
        while who().is_none_or(|id| self.is_good(id)) {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// As [`KeyRing::is_good`], after a look where that says no.
    pub(super) async fn is_good_at_last(&self, id: KeyId) -> Result<bool, CatalogError> {
        if self.is_admin(id) {
            return Ok(true);
        }
        Ok(self.find(|known| known.by_id.get(&id).copied()).await?.is_some())
    }

    /// The secret of that number.
    pub(super) async fn secret(&self, id: i64) -> Result<Option<ShareSecret>, CatalogError> {
        self.find(|known| known.secrets.iter().find(|secret| secret.id == id).cloned()).await
    }

    /// The secret that signs.
    pub(super) async fn signing_secret(&self) -> Result<ShareSecret, CatalogError> {
        let secret = self.find(|known| known.secrets.last().cloned()).await?;
        secret.ok_or_else(|| CatalogError::Unreadable("there is no secret for shares".to_owned()))
    }

    fn is_admin(&self, id: KeyId) -> bool {
        self.admin.as_ref().is_some_and(|(_, admin)| admin.id == id)
    }

    /// What is looked for, as it was at most [`FRESH_FOR`] ago; where it is not
    /// known, as it is now.
    async fn find<T>(&self, look_up: impl Fn(&Known) -> Option<T>) -> Result<Option<T>, CatalogError> {
        let came = Instant::now();
        self.look_until(Looked::is_fresh).await?;
        let found = look_up(&self.known.borrow());
        if found.is_some() {
            return Ok(found);
        }
        let looked = self.look_until(|looked| looked.answered.is_some_and(|at| at >= came)).await?;
        if looked.is_away {
            return Err(CatalogError::Unavailable("whether there is such a key cannot be asked".to_owned()));
        }
        Ok(look_up(&self.known.borrow()))
    }

    /// Waits for a look of that kind, unless the catalog is away. Fails where
    /// what is known is not good any more.
    async fn look_until(&self, is_enough: impl Fn(&Looked) -> bool) -> Result<Looked, CatalogError> {
        let mut looked = *self.looked.borrow();
        if !is_enough(&looked) && !looked.is_away {
            let mut news = self.looked.subscribe();
            self.wanted.notify_one();
            let enough = news.wait_for(|looked| is_enough(looked) || looked.is_away);
            looked = match timeout_at(Instant::now() + PATIENCE, enough).await {
                Ok(Ok(looked)) => *looked,
                _ => Looked { is_away: true, ..*self.looked.borrow() },
            };
        }
        if is_enough(&looked) {
            looked.is_away = false;
        }
        if looked.is_good() {
            Ok(looked)
        } else {
            Err(CatalogError::Unavailable("keys cannot be asked for".to_owned()))
        }
    }

    fn take(&self, began: Instant, rows: Option<KeyRingRows>) {
        if let Some(rows) = rows {
            self.known.send_replace(Arc::new(Known::new(rows)));
        }
        self.looked.send_replace(Looked { answered: Some(began), is_away: false });
    }

    fn is_away(&self) {
        self.looked.send_modify(|looked| looked.is_away = true);
    }
}

impl Vault {
    /// Follows the catalog's keys for as long as the service runs.
    pub async fn follow_keys(&self) {
        let mut changes = self.catalog.changes();
        loop {
            changes.mark_unchanged();
            let began = Instant::now();
            let fared = self.look_for_keys(began).await;
            if fared.is_err() {
                self.keys.is_away();
            }
            self.health.note("keys_failing", fared);
            let woken = async {
                tokio::select! {
                    _ = changes.changed() => {}
                    () = self.keys.wanted.notified() => {}
                }
            };
            let _ = timeout_at(began + LOOK_EVERY, woken).await;
            sleep_until(began + LOOKS_APART).await;
        }
    }

    async fn look_for_keys(&self, began: Instant) -> Result<(), CatalogError> {
        let known = self.keys.known.borrow().revision;
        let rows = self.catalog.key_ring(known, self.entropy).await?;
        self.keys.take(began, rows);
        Ok(())
    }
}

fn admin(key: &SecretString) -> (Digest, Arc<Holder>) {
    let hash = Digest::of(key.expose_secret().as_bytes());
    let holder =
        Holder { id: KeyId::of_chosen(&hash), scopes: vec![Scope::Admin], accounts: None, rate_per_second: None };
    (hash, Arc::new(holder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::KeptKey;
    use tokio::time::advance;

    const SECRET: ShareSecret = ShareSecret { id: 1, secret: [1; 32], is_over: false };

    fn ring() -> KeyRing {
        KeyRing::new(Some(&"the admin key".into()))
    }

    fn text(random: u8) -> String {
        key::new_key([random; 32])
    }

    fn rows(revision: i64, keys: &[u8]) -> Option<KeyRingRows> {
        let kept = |random: &u8| {
            let hash = Digest::of(text(*random).as_bytes());
            let holder = Holder {
                id: KeyId::of_random(&hash),
                scopes: vec![Scope::Read],
                accounts: None,
                rate_per_second: None,
            };
            KeptKey { holder, hash, name: None, created_at: jiff::Timestamp::UNIX_EPOCH, revoked_at: None }
        };
        Some(KeyRingRows { revision, keys: keys.iter().map(kept).collect(), secrets: vec![SECRET] })
    }

    async fn knows(ring: &KeyRing, key: &str) -> Option<bool> {
        ring.holder(key).await.ok().map(|holder| holder.is_some())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_is_good_for_a_quarter_of_an_hour_while_the_catalog_is_away() {
        let ring = ring();
        ring.take(Instant::now(), rows(1, &[1]));
        ring.is_away();
        advance(GOOD_WHILE_AWAY - Duration::from_secs(1)).await;
        assert_eq!(knows(&ring, &text(1)).await, Some(true));
        assert!(ring.signing_secret().await.is_ok());
        assert_eq!(knows(&ring, &text(2)).await, None, "whether it is one cannot be said");
        advance(Duration::from_secs(1)).await;
        assert_eq!(knows(&ring, &text(1)).await, None);
        assert!(ring.signing_secret().await.is_err());
        assert_eq!(knows(&ring, "the admin key").await, Some(true), "it is not the catalog's");
        assert_eq!(knows(&ring, "nonsense").await, Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_not_known_waits_for_the_next_look_and_no_longer() {
        let ring = ring();
        ring.take(Instant::now(), rows(1, &[]));
        advance(Duration::from_millis(1)).await;
        let looked = async {
            ring.wanted.notified().await;
            advance(LOOKS_APART).await;
            ring.take(Instant::now(), rows(2, &[2]));
        };
        let key = text(2);
        let (known, ()) = tokio::join!(knows(&ring, &key), looked);
        assert_eq!(known, Some(true));
        advance(Duration::from_millis(1)).await;
        let began = Instant::now();
        assert_eq!(knows(&ring, &text(3)).await, None);
        assert!(began.elapsed() >= PATIENCE, "the catalog does not answer, and counts as away");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_is_not_trusted_for_longer_than_two_seconds_without_a_look() {
        let ring = ring();
        ring.take(Instant::now(), rows(1, &[1]));
        advance(FRESH_FOR).await;
        let looked = async {
            ring.wanted.notified().await;
            ring.take(Instant::now(), rows(2, &[]));
        };
        let key = text(1);
        let (known, ()) = tokio::join!(knows(&ring, &key), looked);
        assert_eq!(known, Some(false), "it was revoked meanwhile");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_revoked_is_told() {
        let ring = ring();
        ring.take(Instant::now(), rows(1, &[1, 2]));
        let id = |random| KeyId::of_random(&Digest::of(text(random).as_bytes()));
        let revoked = ring.until_revoked(|| Some(id(1)));
        let others = ring.until_revoked(|| Some(id(2)));
        let taken = async { ring.take(Instant::now(), rows(2, &[2])) };
        let (revoked, ()) = tokio::join!(tokio::time::timeout(PATIENCE, revoked), taken);
        assert!(revoked.is_ok());
        assert!(tokio::time::timeout(PATIENCE, others).await.is_err());
        assert!(tokio::time::timeout(PATIENCE, ring.until_revoked(|| None)).await.is_err());
    }
}
