//! What the service knows of its own parts.
//!
//! Written by whoever meets a part, read by `/readyz` and the metrics. Trouble
//! that all nodes share never makes a node unready: taking every one of them out
//! of its balancer would help nobody.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use crate::telemetry;

/// Something that is not as it should be. Names no account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// A stable word for it.
    pub code: &'static str,
    /// What is wrong and what to do, in words.
    pub detail: String,
}

/// The state of the service's parts.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    stopping: AtomicBool,
    troubles: Mutex<Vec<Trouble>>,
    /// Occasions on which callbacks may have been lost, and how many of them were made up for.
    lost_callbacks: AtomicU64,
    made_up_for: AtomicU64,
}

impl Health {
    /// Catalog and bucket were both reached: once is enough.
    pub fn became_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// The service is about to end.
    pub fn is_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether requests are to be sent here.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.stopping.load(Ordering::Acquire)
    }

    /// What is wrong now.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.list().clone()
    }

    /// Whether a part is in that trouble.
    pub fn is_in_trouble(&self, code: &'static str) -> bool {
        self.list().iter().any(|trouble| trouble.code == code)
    }

    /// Notes how a part fared: an error is a trouble until it fares well again.
    pub fn note<E: std::fmt::Display>(&self, code: &'static str, fared: Result<(), E>) {
        telemetry::trouble(code, fared.is_err());
        let mut troubles = self.list();
        let known = troubles.iter().position(|trouble| trouble.code == code);
        match (fared, known) {
            (Ok(()), Some(at)) => {
                tracing::info!(code, "all is well again");
                troubles.remove(at);
            }
            (Ok(()), None) => {}
            (Err(error), Some(at)) => troubles[at].detail = error.to_string(),
            (Err(error), None) => {
                tracing::warn!(code, %error, "trouble");
                troubles.push(Trouble { code, detail: error.to_string() });
            }
        }
    }

    /// A callback was refused for want of the catalog, or one may have been.
    pub fn callbacks_may_be_lost(&self) {
        self.lost_callbacks.fetch_add(1, Ordering::AcqRel);
    }

    /// The occasions on which callbacks may have been lost; None where all of
    /// them were made up for.
    pub fn lost_callbacks(&self) -> Option<u64> {
        let lost = self.lost_callbacks.load(Ordering::Acquire);
        (lost > self.made_up_for.load(Ordering::Acquire)).then_some(lost)
    }

    /// So many occasions were made up for. Later ones are not among them.
    pub fn made_up_for(&self, lost_callbacks: u64) {
        self.made_up_for.fetch_max(lost_callbacks, Ordering::AcqRel);
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Trouble>> {
        self.troubles.lock().expect("nothing panics while it holds the troubles")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_lasts_until_its_part_fares_well() {
        let health = Health::default();
        health.note("catalog_unreachable", Err("refused"));
        health.note("catalog_unreachable", Err("timed out"));
        assert_eq!(health.troubles(), [Trouble { code: "catalog_unreachable", detail: "timed out".to_owned() }]);
        health.note("bucket_unreachable", Err("refused"));
        health.note("catalog_unreachable", Ok::<_, &str>(()));
        assert_eq!(health.troubles().len(), 1);
    }

    #[test]
    fn what_is_lost_while_it_is_made_up_for_is_not_forgotten() {
        let health = Health::default();
        assert_eq!(health.lost_callbacks(), None);
        health.callbacks_may_be_lost();
        let lost = health.lost_callbacks().unwrap();
        health.callbacks_may_be_lost();
        health.made_up_for(lost);
        let lost = health.lost_callbacks().unwrap();
        health.made_up_for(lost);
        assert_eq!(health.lost_callbacks(), None);
    }

    #[test]
    fn ready_comes_after_first_contact_and_ends_with_stopping() {
        let health = Health::default();
        assert!(!health.is_ready());
        health.became_ready();
        health.note("catalog_unreachable", Err("gone"));
        assert!(health.is_ready());
        health.is_stopping();
        assert!(!health.is_ready());
    }
}
