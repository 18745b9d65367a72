//! Claiming what is due, and running it.
//!
//! No account takes all of a node: the less room is left, the less each may
//! take of it, so that one whose fetches all hang leaves some for the others.
//! Who can use no place leaves it to the others. A backfill leaves a part of the
//! node to what comes meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::{CatalogError, Claim, Claimant, Standing, Wish};
use crate::domain::sid::AccountSid;
use crate::telemetry::Running;
use crate::vault::{Reservation, Vault};

/// How long a lost wake-up can delay a claim.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// What handing leases back may take at the very end of a node.
pub const HAND_BACK_WITHIN: Duration = Duration::from_secs(3);

/// Claims recordings for one node, and works on them.
pub struct ClaimLoop {
    vault: Arc<Vault>,
    claimant: Claimant,
    free: Arc<Semaphore>,
    /// Free places that a backfill does not take.
    kept_free: usize,
    running: TaskTracker,
    /// What of them is each account's.
    loads: Loads,
    /// An attempt ended: there is room, and perhaps another one to plan.
    ended: Arc<Notify>,
    /// Hands back what is running.
    cut_short: CancellationToken,
}

impl ClaimLoop {
    /// A loop of the node of that name, which works on `concurrency` recordings at once.
    pub fn new(vault: Arc<Vault>, node: String, concurrency: usize) -> Self {
        Self {
            claimant: vault.claimant(node),
            kept_free: concurrency.min(vault.fetches_that_fit()) / 4,
            vault,
            free: Arc::new(Semaphore::new(concurrency)),
            running: TaskTracker::new(),
            loads: Arc::default(),
            ended: Arc::new(Notify::new()),
            cut_short: CancellationToken::new(),
        }
    }

    /// Claims until `stopping`. What it began goes on; see [`Self::finish`].
    pub async fn run(&self, stopping: &CancellationToken) {
        let mut changes = self.vault.catalog.changes();
        while !stopping.is_cancelled() {
            changes.mark_unchanged();
            let claimed = self.claim_what_is_due(stopping).await;
            let idle_for = *claimed.as_ref().unwrap_or(&POLL_EVERY);
            self.vault.health.note("claims_failing", claimed.map(|_| ()));
            tokio::select! {
                () = stopping.cancelled() => {}
                _ = changes.changed() => {}
                () = self.ended.notified() => {}
                () = self.vault.memory_freed() => {}
                () = tokio::time::sleep(idle_for) => {}
            }
        }
    }

    /// Lets what is running end within `limit`, then hands the rest back. To be
    /// called once [`Self::run`] has returned.
    pub async fn finish(&self, limit: Duration) {
        self.running.close();
        if tokio::time::timeout(limit, self.running.wait()).await.is_err() {
            tracing::info!(running = self.running.len(), "handing back what is not done");
            self.cut_short.cancel();
            if tokio::time::timeout(HAND_BACK_WITHIN, self.running.wait()).await.is_err() {
                tracing::warn!(running = self.running.len(), "not handed back in time; the leases will run out");
            }
        }
    }

    /// Claims as much as there is room for, and starts it. Says for how long
    /// nothing is due then.
    async fn claim_what_is_due(&self, stopping: &CancellationToken) -> Result<Duration, CatalogError> {
        loop {
            // Waits for room: nothing can be claimed before.
            let permit = tokio::select! {
                biased;
                () = stopping.cancelled() => return Ok(POLL_EVERY),
                permit = self.free.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            let standings = self.vault.catalog.standings(self.vault.accounts()).await?;
            if self.vault.check_clock().is_err() {
                return Ok(POLL_EVERY);
            }
            let later = standings.iter().map(|standing| standing.due_in).filter(|wait| !wait.is_zero()).min();
            let mut places: Vec<Place> = self.place(permit).into_iter().collect();
            while let Some(more) = self.free.clone().try_acquire_owned().ok().and_then(|permit| self.place(permit)) {
                places.push(more);
            }
            if !self.fill(places, standings).await? {
                return Ok(later.map_or(POLL_EVERY, |wait| wait.min(POLL_EVERY)));
            }
        }
    }

    /// Claims for these places and starts what is granted, for as long as there is
    /// something for one of them. Says whether anything was.
    async fn fill(&self, mut places: Vec<Place>, mut standings: Vec<Standing>) -> Result<bool, CatalogError> {
        let mut any = false;
        loop {
            let wishes = self.wishes(&standings, places.len());
            if wishes.is_empty() {
                return Ok(any);
            }
            // From here on nothing may be cancelled: what is granted must be started.
            let granted = Instant::now();
            let claims = self.vault.catalog.claim(&self.claimant, &wishes).await?;
            any |= !claims.is_empty();
            // Of some there was less than they could have: other nodes were quicker, leases
            // ran out, or a duty is at it. The others have what they leave.
            let got = |of: AccountSid| claims.iter().filter(|claim| claim.lease.id.account == of).count();
            let left: Vec<AccountSid> =
                wishes.iter().filter(|wish| got(wish.account) < wish.at_most).map(|wish| wish.account).collect();
            standings.retain(|standing| !left.contains(&standing.account));
            let begun = places.split_off(places.len().saturating_sub(claims.len()));
            for (claim, place) in claims.into_iter().zip(begun) {
                self.start(claim, granted, place);
            }
        }
    }

    /// A place with the memory that it needs, if there is as much.
    fn place(&self, permit: OwnedSemaphorePermit) -> Option<Place> {
        Some(Place { memory: self.vault.reserve_memory()?, permit })
    }

    /// How much to claim of each account that has something due.
    fn wishes(&self, standings: &[Standing], free: usize) -> Vec<Wish> {
        let loads = self.loads.lock().expect("nothing panics while it counts");
        let may_be_claimed = |standing: &&Standing| standing.due_in.is_zero() && !standing.is_full;
        let load_of = |found: &Standing| (found.account, loads.get(&found.account).copied().unwrap_or_default());
        let accounts = standings.iter().filter(may_be_claimed).map(load_of).collect();
        let is_alone = self.vault.accounts().len() == 1;
        wishes(accounts, free, free.saturating_sub(self.kept_free), is_alone)
    }

    fn start(&self, claim: Claim, granted: Instant, mut place: Place) {
        place.memory.begin();
        let (vault, cut_short, ended) = (self.vault.clone(), self.cut_short.clone(), self.ended.clone());
        let counted = Counted::begin(self.loads.clone(), claim.lease.id.account);
        self.running.spawn(async move {
            let _running = Running::fetch();
            vault.fetch(&claim, granted, place.memory, &cut_short).await;
            drop((place.permit, counted));
            ended.notify_one();
        });
    }
}

/// Room for one attempt.
struct Place {
    permit: OwnedSemaphorePermit,
    memory: Reservation,
}

/// What an account has of a node.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    running: usize,
    /// When the last of its attempts was begun.
    served_at: Option<Instant>,
}

/// Of every account that ever had a place: those of the settings, no more.
type Loads = Arc<Mutex<HashMap<AccountSid, Load>>>;

/// An attempt that is counted to its account while this lives.
struct Counted {
    loads: Loads,
    account: AccountSid,
}

impl Counted {
    fn begin(loads: Loads, account: AccountSid) -> Self {
        let mut all = loads.lock().expect("nothing panics while it counts");
        let load = all.entry(account).or_default();
        *load = Load { running: load.running + 1, served_at: Some(Instant::now()) };
        drop(all);
        Self { loads, account }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut loads = self.loads.lock().expect("nothing panics while it counts");
        loads.entry(self.account).and_modify(|load| load.running -= 1);
    }
}

/// How much to claim of each of these accounts. `for_backfill` of the free places may
/// be a backfill's.
fn wishes(mut accounts: Vec<(AccountSid, Load)>, free: usize, mut for_backfill: usize, is_alone: bool) -> Vec<Wish> {
    // Of those that have as few, whoever was served longest ago comes first.
    accounts.sort_by_key(|(_, load)| load.served_at);
    let running: Vec<usize> = accounts.iter().map(|(_, load)| load.running).collect();
    let shares = shares(free, &running, is_alone);
    let wishes = accounts.into_iter().zip(shares).map(|((account, _), at_most)| {
        let of_backfill = at_most.min(for_backfill);
        for_backfill -= of_backfill;
        Wish { account, at_most, of_backfill }
    });
    wishes.filter(|wish| wish.at_most > 0).collect()
}

/// How many of the free places each account may take, given how many it has.
///
/// One place after the other goes to the account that has the fewest, as long
/// as it has less than three times what is left. An account by itself thus leaves
/// a quarter free, which is what another one finds when it comes.
fn shares(free: usize, running: &[usize], is_alone: bool) -> Vec<usize> {
    let mut shares = vec![0; running.len()];
    for left in (1..=free).rev() {
        let fewest = (0..running.len()).min_by_key(|at| running[*at] + shares[*at]);
        let Some(at) = fewest.filter(|at| is_alone || running[*at] + shares[*at] < 3 * left) else { break };
        shares[at] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_shared_evenly_and_never_all_taken_by_one() {
        assert_eq!(shares(16, &[0], true), [16]);
        assert_eq!(shares(16, &[0], false), [12]);
        assert_eq!(shares(16, &[0, 0], false), [7, 7], "two leave two");
        assert_eq!(shares(4, &[12, 0], false), [0, 3], "one that comes later finds room");
        assert_eq!(shares(4, &[12], false), [0]);
        assert_eq!(shares(1, &[0], false), [1]);
        assert_eq!(shares(1, &[0, 0, 0], false), [1, 0, 0]);
        assert_eq!(shares(0, &[3], true), [0]);
        assert_eq!(shares(3, &[], true), Vec::<usize>::new());
    }

    #[test]
    fn the_only_place_goes_to_whoever_was_served_longest_ago() {
        let accounts: Vec<AccountSid> =
            (0..3).map(|number| format!("AC{number:032x}").parse().expect("an account SID")).collect();
        let now = Instant::now();
        let ago = |seconds| Load { running: 0, served_at: now.checked_sub(Duration::from_secs(seconds)) };
        let never = Load::default();
        let busy = Load { running: 1, ..ago(9) };
        for (loads, expected) in [
            ([ago(1), ago(2), ago(3)], 2),
            ([ago(3), ago(2), ago(1)], 0),
            ([ago(3), never, ago(1)], 1),
            ([busy, ago(1), ago(2)], 2),
        ] {
            let of = accounts.iter().copied().zip(loads).collect();
            let wished = wishes(of, 1, 1, false);
            assert_eq!(wished, [Wish { account: accounts[expected], at_most: 1, of_backfill: 1 }], "{loads:?}");
        }
    }
}
