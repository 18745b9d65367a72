//! The terms on which recordings go by themselves, and when none does.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Vault;
use super::erase::{Retention, retention};
use crate::config::Config;
use crate::domain::sid::AccountSid;

/// That someone asked is written at most this often for a recording.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// And often enough for evicting: to a part of the time without a question.
const ASKED_PARTS: u32 = 100;

/// What the settings say of letting go.
pub(super) struct Terms {
    /// The accounts whose recordings are erased by age.
    pub(super) retention: BTreeMap<AccountSid, Retention>,
    /// Cache mode: what nobody asked for in that time leaves the bucket.
    evict_after: Option<Duration>,
    /// Stored for that long, a recording is deleted at Twilio.
    pub(super) delete_at_twilio_after: Option<Duration>,
    /// The accounts of which even what was found by asking is deleted there.
    pub(super) delete_discovered: Vec<AccountSid>,
}

impl Terms {
    pub(super) fn new(config: &Config) -> Self {
        let discovered = config.accounts.iter().filter(|account| account.delete_discovered);
        Self {
            retention: retention(&config.accounts),
            evict_after: config.evict_after,
            delete_at_twilio_after: config.delete_at_twilio_after,
            delete_discovered: discovered.map(|account| account.sid).collect(),
        }
    }

    /// How long after it was noted that someone asked it is noted again.
    pub(super) fn asked_again_after(&self) -> Duration {
        self.evict_after.map_or(ASKED_AGAIN_AFTER, |after| (after / ASKED_PARTS).min(ASKED_AGAIN_AFTER))
    }

    /// How long ago it must have been noted last that someone asked for what is
    /// evicted; None: nothing is. Longer than the setting by what is not noted.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        self.evict_after.map(|after| after + self.asked_again_after())
    }
}

impl Vault {
    /// Whether recordings may go by themselves now, by age, out of the bucket or at
    /// Twilio: not before catalog and bucket were reached, not by a node whose clock is
    /// wrong, and not where the bucket is another one than the catalog's. That none goes
    /// while the catalog is not indexed, its statements say.
    pub fn may_let_go(&self) -> bool {
        self.health.is_ready() && self.check_clock().is_ok() && self.knows_its_bucket()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(evict_after: Option<&str>) -> Terms {
        let set = |(name, value): (&str, &str)| (name.into(), value.into());
        let env = evict_after.map(|after| set(("CALLVAULT_EVICT_AFTER", after)));
        Terms::new(&Config::load(env).expect("settings"))
    }

    #[test]
    fn nothing_is_evicted_before_its_time_for_want_of_a_note() {
        assert_eq!(terms(None).idle_for(), None);
        assert_eq!(terms(None).asked_again_after(), Duration::from_secs(3600));
        for after in ["2h", "3d", "365d"] {
            let terms = terms(Some(after));
            let (idle_for, setting) = (terms.idle_for().unwrap(), terms.evict_after.unwrap());
            assert_eq!(idle_for, setting + terms.asked_again_after());
            assert!(terms.asked_again_after() <= setting / ASKED_PARTS);
        }
    }
}
