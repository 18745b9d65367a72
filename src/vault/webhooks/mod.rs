//! Webhooks: telling receivers what happened, until they have it.
//!
//! Each event goes to each receiver that wants its type: at least once, by one
//! node at a time, in the order of the feed, events of one recording one after
//! the other. What a receiver did not take is posted again after
//! `CALLVAULT_RETRY_BASE`, doubling to an hour, for a day; later events do not
//! wait for it. Where nobody answers at all, the receiver is left alone for as
//! long, and then asked with one event first. A 410 ends it: nothing is posted
//! there until someone enables it again. No receiver waits for another.

mod post;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use super::Vault;
use crate::catalog::{CatalogError, Due, Posted, ReceiverLease, ReceiverStanding};
use crate::config::Webhook;
use crate::domain::digest::Digest;
use crate::domain::retry;
pub use post::{Answer, Poster, SigningKey};

/// The longest wait between two attempts, and the longest Retry-After that counts.
const RETRY_CAP: Duration = Duration::from_secs(3600);
/// For how long an event is tried; one that is older is not begun with.
pub const TRIED_FOR: Duration = Duration::from_secs(24 * 3600);
/// For how long deliveries can be looked at, and repeated by hand.
pub const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where events are posted.
#[derive(Debug, Clone)]
pub struct Receiver {
    /// What it is called: made of its URL, and tells nothing of it.
    pub id: String,
    /// Where it is. May hold secrets.
    pub url: Url,
    /// What it is to get; empty is all.
    pub kinds: Vec<String>,
    /// What its events are signed with.
    pub key: SigningKey,
}

impl Receiver {
    /// The receiver that the settings name.
    pub fn new(webhook: &Webhook) -> Self {
        let digest = Digest::of(webhook.url.as_str().as_bytes()).to_string();
        Self {
            id: format!("wh_{}", &digest[..16]),
            url: webhook.url.clone(),
            kinds: webhook.types.clone(),
            key: SigningKey::of(&webhook.secret),
        }
    }

    /// The URL as it may be shown: what may be a secret in it is left out.
    pub fn shown_url(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        url.set_fragment(None);
        // Fails for URLs without a host, of which the settings have none.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.into()
    }
}

impl Vault {
    /// Brings the catalog up to date, and makes the receivers known to it: from
    /// then on they miss nothing.
    pub async fn prepare_catalog(&self) -> Result<(), CatalogError> {
        self.catalog.prepare().await?;
        if self.receivers.is_empty() {
            return Ok(());
        }
        self.catalog.enroll_receivers(&self.receiver_ids()).await?;
        self.has_enrolled.store(true, Ordering::Release);
        Ok(())
    }

    /// The receivers of the settings.
    pub fn receivers(&self) -> &[Arc<Receiver>] {
        &self.receivers
    }

    /// The receiver of that name.
    pub fn receiver(&self, id: &str) -> Option<&Arc<Receiver>> {
        self.receivers.iter().find(|receiver| receiver.id == id)
    }

    /// How the receivers of the settings fare.
    pub async fn receiver_standings(&self) -> Result<Vec<ReceiverStanding>, CatalogError> {
        self.catalog.receivers(&self.receiver_ids()).await
    }

    fn receiver_ids(&self) -> Vec<String> {
        self.receivers.iter().map(|receiver| receiver.id.clone()).collect()
    }

    /// The right to post to a receiver, if no other node has it. None before this node has
    /// enrolled its own: one that is new would be taken for one whose catalog was lost, and
    /// told of all that ever happened.
    pub async fn grant_receiver(&self, receiver: &str, node: &str) -> Result<Option<ReceiverLease>, CatalogError> {
        if !self.has_enrolled.load(Ordering::Acquire) {
            return Ok(None);
        }
        self.catalog.grant_receiver(receiver, node, self.lease).await
    }

    /// Keeps that right, which was granted after `granted`; returns when it is
    /// lost, or may be by the time another node looks.
    pub async fn keep_receiver(&self, lease: &ReceiverLease, granted: Instant) {
        self.keep("receiver", granted, || self.catalog.renew_receiver(lease, self.lease)).await;
    }

    /// What a receiver's answer means for a delivery.
    pub fn judge(&self, due: &Due, answer: Answer) -> Posted {
        let policy = retry::Policy { base: self.retry.base.min(RETRY_CAP), cap: RETRY_CAP, not_ready_for: TRIED_FOR };
        judge(policy, due.failed_before, due.unanswered, due.tried_for, answer)
    }
}

fn judge(policy: retry::Policy, failed_before: u32, unanswered: u32, tried_for: Duration, answer: Answer) -> Posted {
    let (status, retry_after, error, rest) = match answer {
        Answer::Status { status: status @ 200..=299, .. } => return Posted::Taken { status },
        Answer::Status { status: 410, .. } => return Posted::Unwanted { status: 410 },
        Answer::Status { status, retry_after } => {
            let what = if (300..400).contains(&status) { ", and redirects are not followed" } else { "" };
            (Some(status), retry_after, format!("it answered {status}{what}"), None)
        }
        Answer::Nobody(error) => (None, None, error, Some(policy.wait(unanswered))),
        Answer::Silence(error) => (None, None, error, None),
    };
    if tried_for >= policy.not_ready_for {
        return Posted::GivenUp { status, error };
    }
    let after = policy.wait(failed_before).max(retry_after.unwrap_or_default().min(policy.cap));
    Posted::Again { after, status, error, rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: retry::Policy =
        retry::Policy { base: Duration::from_secs(2), cap: RETRY_CAP, not_ready_for: TRIED_FOR };

    fn status(status: u16) -> Answer {
        Answer::Status { status, retry_after: None }
    }

    fn after(failed_before: u32, answer: Answer) -> Duration {
        match judge(POLICY, failed_before, 0, Duration::ZERO, answer) {
            Posted::Again { after, .. } => after,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_taken_is_repeated_doubling_to_an_hour_for_a_day() {
        let waits: Vec<u64> = (0..13).map(|failed| after(failed, status(500)).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]);
        let old = judge(POLICY, 30, 0, TRIED_FOR, status(503));
        assert_eq!(old, Posted::GivenUp { status: Some(503), error: "it answered 503".to_owned() });
    }

    #[test]
    fn any_2xx_is_taken_410_ends_it_and_redirects_are_failures() {
        assert_eq!(judge(POLICY, 0, 0, TRIED_FOR, status(202)), Posted::Taken { status: 202 });
        assert_eq!(judge(POLICY, 0, 0, Duration::ZERO, status(410)), Posted::Unwanted { status: 410 });
        assert_eq!(after(0, status(307)), POLICY.base);
        assert_eq!(after(0, status(404)), POLICY.base);
    }

    #[test]
    fn a_receiver_says_when_to_come_again_within_an_hour() {
        let asks = |seconds| Answer::Status { status: 429, retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(after(0, asks(60)), Duration::from_secs(60));
        assert_eq!(after(0, asks(1)), POLICY.base);
        assert_eq!(after(0, asks(u64::MAX)), RETRY_CAP);
    }

    #[test]
    fn where_nobody_answers_the_receiver_rests_longer_each_time() {
        let rest = |unanswered| match judge(POLICY, 0, unanswered, Duration::ZERO, Answer::Nobody("refused".to_owned()))
        {
            Posted::Again { rest, .. } => rest,
            other => panic!("{other:?}"),
        };
        assert_eq!(rest(0), Some(POLICY.base));
        assert_eq!(rest(3), Some(POLICY.base * 8));
        let silent = judge(POLICY, 0, 5, Duration::ZERO, Answer::Silence("no answer within 15 s".to_owned()));
        assert!(matches!(silent, Posted::Again { rest: None, .. }), "one event may be the reason");
    }

    #[test]
    fn what_is_shown_of_a_url_has_no_secret_in_it() {
        let webhook = Webhook {
            url: "https://user:pass@app.example.com/hook?token=secret#x".parse().unwrap(),
            secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned().into(),
            types: vec![],
        };
        let receiver = Receiver::new(&webhook);
        assert_eq!(receiver.shown_url(), "https://app.example.com/hook");
        assert_eq!(receiver.id.len(), 19);
    }
}
