//! When a failed attempt is repeated, and when it is given up.
//!
//! Pure: how long a recording has been waiting, and the dice, are passed in.

use std::time::Duration;

use super::recording::ErrorCode;

/// The longest Retry-After that is believed. Twilio asks for seconds; a header
/// that says more than a day is a mistake, and must not park a recording for good.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// How patient this service is with one recording.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// The wait after the first failure (`CALLVAULT_RETRY_BASE`).
    pub base: Duration,
    /// The longest wait (`CALLVAULT_RETRY_CAP`).
    pub cap: Duration,
    /// How long a recording may go on failing (`CALLVAULT_NOT_READY_FOR`).
    pub not_ready_for: Duration,
}

/// What happened to the attempt that failed.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    /// Why it failed.
    pub code: ErrorCode,
    /// How many attempts failed before it since the recording became pending.
    pub failed_before: u32,
    /// How long ago the recording became pending, from any state but fetching.
    pub pending_for: Duration,
    /// What Twilio asked for.
    pub retry_after: Option<Duration>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Try again.
    Again {
        /// After this time.
        after: Duration,
        /// Never before this time, whoever asks for the recording.
        not_before: Duration,
    },
    /// Give up: the recording failed.
    GiveUp,
}

/// How long a code lasts.
enum Patience {
    /// It is over at once.
    None,
    /// Until `not_ready_for` has passed.
    Limited,
    /// For ever: the fault is not the recording's.
    Endless,
}

fn patience(code: ErrorCode) -> Patience {
    use ErrorCode::*;
    match code {
        NotReady | NotAudio | Truncated | Empty | RefusedRedirect | UpstreamError | Interrupted => Patience::Limited,
        RateLimited | StoreError | Unauthorized | ObjectLost => Patience::Endless,
        TooLarge | DecryptionFailed | TwilioFailed => Patience::None,
    }
}

impl Policy {
    /// The wait after a failure that `failed_before` others went before.
    pub fn wait(&self, failed_before: u32) -> Duration {
        self.base.saturating_mul(2u32.saturating_pow(failed_before)).min(self.cap)
    }

    /// Whether and when to try again. `dice` is uniform in [0, 1).
    pub fn decide(&self, failure: &Failure, dice: f64) -> Decision {
        let over = match patience(failure.code) {
            Patience::None => true,
            Patience::Limited => failure.pending_for >= self.not_ready_for,
            Patience::Endless => false,
        };
        if over {
            return Decision::GiveUp;
        }
        let wait = self.wait(failure.failed_before);
        let wait = match failure.code {
            // One side of many clients is in trouble: full jitter spreads them.
            ErrorCode::RateLimited | ErrorCode::UpstreamError | ErrorCode::StoreError => wait.mul_f64(dice),
            _ => wait,
        };
        let not_before = failure.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        Decision::Again { after: wait.max(not_before), not_before }
    }
}

/// How many fetches an account may have at once, over all nodes.
///
/// Falls by half when Twilio is overburdened, and rises by one at a time. Where
/// Twilio once said "too many", it rises far more slowly from there on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// The most at once; None is no limit.
    pub limit: Option<i64>,
    /// The fewest at which Twilio lately said that there are too many.
    pub too_many: Option<i64>,
}

/// A limit that has risen so far limits nobody.
const LIMIT_MAX: i64 = 256;

impl Pace {
    /// After an answer that asks for less, while so many were under way.
    pub fn slowed(self, under_way: i64, too_many: bool) -> Self {
        let at = self.limit.unwrap_or(under_way).clamp(1, LIMIT_MAX);
        Self { limit: Some((at / 2).max(1)), too_many: if too_many { Some(at.max(2)) } else { self.too_many } }
    }

    /// One step up, after a time in which all went well.
    pub fn raised(self) -> Self {
        match self.limit.map(|limit| limit + 1) {
            Some(limit) if limit < LIMIT_MAX => {
                Self { limit: Some(limit), too_many: self.too_many.filter(|at| *at > limit) }
            }
            _ => Self::default(),
        }
    }

    /// How many `base`s all must go well before the next step.
    pub fn bases_until_raised(self) -> u32 {
        let next_was_too_many = self.limit.zip(self.too_many).is_some_and(|(limit, at)| limit + 1 >= at);
        if next_was_too_many { 16 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        base: Duration::from_secs(2),
        cap: Duration::from_secs(300),
        not_ready_for: Duration::from_secs(86_400),
    };

    #[test]
    fn a_pace_falls_by_half_and_rises_by_one_slowly_where_it_was_too_much() {
        let storm = Pace::default().slowed(48, true);
        assert_eq!(storm, Pace { limit: Some(24), too_many: Some(48) });
        let storm = storm.slowed(30, true).slowed(30, true);
        assert_eq!(storm, Pace { limit: Some(6), too_many: Some(12) });
        assert_eq!(storm.bases_until_raised(), 1);
        let below = (7..12).fold(storm, |pace, _| pace.raised());
        assert_eq!((below.limit, below.bases_until_raised()), (Some(11), 16));
        assert_eq!(below.raised(), Pace { limit: Some(12), too_many: None }, "it is not too many any more");
        assert_eq!(Pace { limit: Some(1), too_many: None }.slowed(1, false).limit, Some(1));
        assert_eq!((0..LIMIT_MAX).fold(below, |pace, _| pace.raised()), Pace::default());
    }

    fn failure(code: ErrorCode) -> Failure {
        Failure { code, failed_before: 0, pending_for: Duration::ZERO, retry_after: None }
    }

    fn after(decision: Decision) -> Duration {
        match decision {
            Decision::Again { after, .. } => after,
            Decision::GiveUp => panic!("given up"),
        }
    }

    #[test]
    fn not_ready_doubles_from_base_to_cap() {
        let waits = (0..10).map(|failed_before| {
            after(POLICY.decide(&Failure { failed_before, ..failure(ErrorCode::NotReady) }, 0.5)).as_secs()
        });
        assert_eq!(waits.collect::<Vec<_>>(), [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn the_end_comes_as_the_code_says() {
        let old = POLICY.not_ready_for;
        for code in ErrorCode::ALL {
            let young = POLICY.decide(&failure(*code), 0.5) == Decision::GiveUp;
            let aged = POLICY.decide(&Failure { pending_for: old, ..failure(*code) }, 0.5) == Decision::GiveUp;
            let expected = match code.as_str() {
                "too_large" | "decryption_failed" | "twilio_failed" => (true, true),
                "rate_limited" | "store_error" | "unauthorized" | "object_lost" => (false, false),
                _ => (false, true),
            };
            assert_eq!((young, aged), expected, "{code}");
        }
    }

    #[test]
    fn retry_after_is_honoured_even_by_those_who_wait() {
        let retry_after = Some(Duration::from_secs(40));
        let decision = POLICY.decide(&Failure { retry_after, ..failure(ErrorCode::RateLimited) }, 0.0);
        let forty = Duration::from_secs(40);
        assert_eq!(decision, Decision::Again { after: forty, not_before: forty });
    }

    #[test]
    fn a_foolish_retry_after_does_not_park_a_recording() {
        let retry_after = Some(Duration::from_secs(u64::MAX));
        let decision = POLICY.decide(&Failure { retry_after, ..failure(ErrorCode::RateLimited) }, 0.0);
        assert_eq!(after(decision), RETRY_AFTER_MAX);
    }

    proptest! {
        #[test]
        fn waits_never_pass_the_cap(failed_before: u32, dice in 0.0..1.0f64) {
            for code in [ErrorCode::NotReady, ErrorCode::RateLimited, ErrorCode::StoreError] {
                let failure = Failure { failed_before, ..failure(code) };
                prop_assert!(after(POLICY.decide(&failure, dice)) <= POLICY.cap);
            }
        }
    }
}
