//! "Play this": what is answered, for a call or a recording.
//!
//! What is stored is answered with a link, without a call to the store or to
//! Twilio. What is on its way is hurried, and waited for as long as the caller
//! likes; so is Twilio's answer where a call is not known. The same question
//! gets the same answer from every node.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::flight::Waiter;
use super::inquiry::{Inquired, Inquiry};
use super::places::NoPlace;
use super::{Noted, Vault};
use crate::bucket::{BucketError, Disposition, Link, LinkBase, LinkMethod};
use crate::catalog::{CallView, CatalogError};
use crate::domain::digest::Digest;
use crate::domain::media::Format;
use crate::domain::recording::{Recording, RecordingId, State, StoredObject};
use crate::domain::sid::{AccountSid, CallSid, RecordingSid};

/// What a client is told to wait at most; it may be hurried by then.
const RETRY_AFTER_MAX_SECONDS: u64 = 60;
/// When to ask again for a call that Twilio is asked for: it answers within that, or not soon.
const ASKING_RETRY_AFTER_SECONDS: u64 = 2;

/// What someone wants to play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The recording that a call answers for.
    Call(CallSid),
    /// That recording.
    Recording(RecordingSid),
    /// That recording of that account.
    Exact(RecordingId),
    /// Any that is stored with those bytes.
    Content(Digest),
}

/// How it is to be given.
#[derive(Debug, Clone)]
pub struct Manner<'a> {
    /// The accounts that may be seen; None is all.
    pub visible: Option<&'a [AccountSid]>,
    /// How long to wait for what is on its way.
    pub patience: Duration,
    /// What the link is for.
    pub method: LinkMethod,
    /// Whether it is to be saved rather than played.
    pub attachment: bool,
    /// What a link begins with.
    pub base: LinkBase<'a>,
}

/// The answer to "play this".
#[derive(Debug)]
pub enum Delivery<T> {
    /// It is there.
    Ready(T),
    /// It is on its way.
    NotReady {
        /// The recording.
        recording: Box<Recording>,
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// It is not known, and Twilio has not said yet whether it is there.
    Asking {
        /// When to ask again.
        retry_after_seconds: u64,
    },
    /// It is absent, failed or erased.
    Gone(Box<Recording>),
    /// There is no such thing.
    Unknown,
}

/// A stored recording and a link to it.
#[derive(Debug)]
pub struct Playable {
    /// The recording.
    pub recording: Recording,
    /// Its object.
    pub object: StoredObject,
    /// The link.
    pub link: Link,
    /// The time at which it was made: the catalog's.
    pub now: Timestamp,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The catalog did not say.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// No link could be made.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The bucket did not give the bytes.
    #[error("the object cannot be read: {0}")]
    Read(#[source] BucketError),
    /// The object of a stored recording is not there, or not what its row says.
    #[error("the object of a stored recording is missing or wrong")]
    Missing,
    /// As much audio flows through this node as it has room for.
    #[error(transparent)]
    NoPlace(#[from] NoPlace),
    /// It is not known here, and Twilio could not be asked.
    #[error("the call is not known, and Twilio cannot be asked")]
    Twilio,
}

/// Who says what the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaidBy {
    /// The catalog, which was just asked.
    Catalog,
    /// This node's memory, which is up to date: the last link that was given ends then.
    Memory {
        /// The end of the link.
        link_ends_at: Timestamp,
    },
    /// This node's memory, where the catalog cannot be asked: no link is given for
    /// longer for that.
    Past,
}

/// What somebody waited for.
pub(super) enum Arrival<L> {
    /// A stored recording.
    Stored {
        /// The recording.
        recording: Recording,
        /// Its object.
        object: StoredObject,
        /// Who says so.
        said_by: SaidBy,
        /// The catalog's time.
        now: Timestamp,
    },
    /// One that can be heard while it is being fetched.
    Live(Recording, L),
}

impl<T> Delivery<T> {
    /// What is there, else the same answer for whoever wanted something else.
    pub fn ready<U>(self) -> Result<T, Delivery<U>> {
        match self {
            Self::Ready(ready) => Ok(ready),
            Self::NotReady { recording, retry_after_seconds } => {
                Err(Delivery::NotReady { recording, retry_after_seconds })
            }
            Self::Asking { retry_after_seconds } => Err(Delivery::Asking { retry_after_seconds }),
            Self::Gone(recording) => Err(Delivery::Gone(recording)),
            Self::Unknown => Err(Delivery::Unknown),
        }
    }
}

impl Vault {
    /// Answers "play this" with a link. Gives up waiting when it is dropped; what
    /// is on its way goes on, and so does a question to Twilio.
    pub async fn deliver(
        self: &Arc<Self>,
        wanted: Wanted,
        manner: &Manner<'_>,
    ) -> Result<Delivery<Playable>, DeliveryError> {
        let deaf = |_| std::future::pending::<Infallible>();
        let seen = self.follower.reached();
        let arrived = self.arrival(wanted, manner.visible, manner.patience, deaf).await?;
        let (recording, object, said_by, now) = match arrived.ready() {
            Ok(Arrival::Stored { recording, object, said_by, now }) => (recording, object, said_by, now),
            Ok(Arrival::Live(_, never)) => match never {},
            Err(other) => return Ok(other),
        };
        let playable = self.playable(recording, object, manner, now).await?;
        let ends_at = playable.link.expires_at;
        match said_by {
            SaidBy::Catalog => self.remember(wanted, manner.visible, &playable.recording, ends_at, seen),
            SaidBy::Memory { link_ends_at } if link_ends_at < ends_at => {
                self.hits.note_link(wanted, manner.visible, ends_at)
            }
            SaidBy::Memory { .. } | SaidBy::Past => {}
        }
        Ok(Delivery::Ready(playable))
    }

    /// Waits until what is wanted is stored, or can be heard, or is known not to come.
    pub(super) async fn arrival<L, H>(
        self: &Arc<Self>,
        wanted: Wanted,
        visible: Option<&[AccountSid]>,
        patience: Duration,
        hear: impl Fn(RecordingId) -> H,
    ) -> Result<Delivery<Arrival<L>>, DeliveryError>
    where
        H: Future<Output = L>,
    {
        let until = Instant::now() + patience;
        let mut waiter = self.flights.waiter(self.catalog.changes(), until);
        let mut inquiry = Inquiry::default();
        let mut is_noted = false;
        loop {
            waiter.look();
            let Some((mut recording, said_by)) = self.find_or_recall(wanted, visible).await? else {
                match self.unknown(wanted, visible, &mut inquiry, &mut waiter).await? {
                    Some(delivery) => return Ok(delivery),
                    None => continue,
                }
            };
            let now = self.now()?;
            if !std::mem::replace(&mut is_noted, true) {
                match self.note_asked(&recording, now).await {
                    Noted::MovedOn => {
                        self.hits.forget(wanted, visible);
                        continue;
                    }
                    Noted::Now => {
                        recording.last_asked_at = Some(now);
                        self.hits.note_asked(wanted, visible, now);
                    }
                    Noted::Before => {}
                }
            }
            match (recording.state, &recording.object) {
                (State::Stored, Some(object)) => {
                    let object = object.clone();
                    return Ok(Delivery::Ready(Arrival::Stored { recording, object, said_by, now }));
                }
                (State::Stored, None) => {
                    let words = format!("{} is stored but has no object", recording.id);
                    return Err(CatalogError::Unreadable(words).into());
                }
                (State::Evicted, _) => {
                    self.catalog.bring_back(&recording.id).await?;
                    continue;
                }
                (state, _) if !state.is_on_its_way() => return Ok(Delivery::Gone(Box::new(recording))),
                _ => {}
            }
            let mut waiting = self.flights.join(&recording);
            let goes_on = tokio::select! {
                biased;
                live = hear(recording.id) => return Ok(Delivery::Ready(Arrival::Live(recording, live))),
                goes_on = waiting.wait(until) => goes_on,
            };
            if !goes_on {
                // Whoever waits has it brought forward; whoever does not wait asks for that, too.
                if patience.is_zero() {
                    self.hurry_once(&recording, now).await;
                }
                let retry_after_seconds = retry_after_seconds(&recording, now);
                return Ok(Delivery::NotReady { recording: Box::new(recording), retry_after_seconds });
            }
        }
    }

    /// The answer for what is not known; None once there is a reason to look again.
    pub(super) async fn unknown<T>(
        self: &Arc<Self>,
        wanted: Wanted,
        visible: Option<&[AccountSid]>,
        inquiry: &mut Inquiry,
        waiter: &mut Waiter,
    ) -> Result<Option<Delivery<T>>, DeliveryError> {
        let Wanted::Call(call) = wanted else {
            self.must_be_indexed().await?;
            return Ok(Some(Delivery::Unknown));
        };
        let asking = Delivery::Asking { retry_after_seconds: ASKING_RETRY_AFTER_SECONDS };
        match self.inquire(call, visible, inquiry).await? {
            Inquired::Nothing => {
                self.must_be_indexed().await?;
                Ok(Some(Delivery::Unknown))
            }
            Inquired::Unavailable => Err(DeliveryError::Twilio),
            // There may be room for the question in time.
            Inquired::Busy => Ok(if waiter.wait().await { None } else { Some(asking) }),
            Inquired::Open => {
                let goes_on = tokio::select! {
                    biased;
                    goes_on = waiter.wait() => goes_on,
                    () = inquiry.ended() => true,
                };
                Ok(if goes_on { None } else { Some(asking) })
            }
        }
    }

    /// The recording that is wanted, if it is known. Fails where it is not, and may
    /// lie in the bucket all the same.
    pub async fn find(
        &self,
        wanted: Wanted,
        visible: Option<&[AccountSid]>,
    ) -> Result<Option<Recording>, CatalogError> {
        let found = self.look_up(wanted, visible).await?;
        if found.is_none() {
            self.must_be_indexed().await?;
        }
        Ok(found)
    }

    /// The recording that is wanted, if the catalog knows it.
    pub(super) async fn look_up(
        &self,
        wanted: Wanted,
        visible: Option<&[AccountSid]>,
    ) -> Result<Option<Recording>, CatalogError> {
        let _turn = self.look_up_turn().await?;
        match wanted {
            Wanted::Recording(sid) => self.catalog.recording_named(sid, visible).await,
            Wanted::Exact(id) => {
                let is_visible = visible.is_none_or(|accounts| accounts.contains(&id.account));
                if is_visible { self.catalog.recording(&id).await } else { Ok(None) }
            }
            Wanted::Content(digest) => self.catalog.recording_with(digest, visible).await,
            Wanted::Call(sid) => {
                Ok(self.catalog.call(sid, visible).await?.first().and_then(|view| view.answer().cloned()))
            }
        }
    }

    /// A call's recordings, if it is known: those of the account of which the
    /// SID is Twilio's own, else of the one that has its newest other name. Fails
    /// where it is not known, and may lie in the bucket all the same.
    pub async fn call(&self, sid: CallSid, visible: Option<&[AccountSid]>) -> Result<Option<CallView>, CatalogError> {
        let turn = self.look_up_turn().await?;
        let view = self.catalog.call(sid, visible).await?.into_iter().next();
        drop(turn);
        if view.is_none() {
            self.must_be_indexed().await?;
        }
        Ok(view)
    }

    /// What a catalog does not know that is not indexed may lie in the bucket: fails then.
    pub async fn must_be_indexed(&self) -> Result<(), CatalogError> {
        let _turn = self.look_up_turn().await?;
        if self.catalog.is_indexed().await? { Ok(()) } else { Err(CatalogError::Unindexed) }
    }

    async fn playable(
        &self,
        recording: Recording,
        object: StoredObject,
        manner: &Manner<'_>,
        now: Timestamp,
    ) -> Result<Playable, DeliveryError> {
        let disposition = match manner.attachment {
            true => Disposition::Attachment(download_name(&recording, object.format)),
            false => Disposition::Inline,
        };
        let link = self.bucket.link(&object.key, manner.method, &disposition, now, manner.base).await?;
        Ok(Playable { recording, object, link, now })
    }
}

/// When to ask again for a recording that is on its way: whole seconds, at least one.
fn retry_after_seconds(recording: &Recording, now: Timestamp) -> u64 {
    let until_next = recording.next_attempt_at.map(|next| next.duration_since(now).as_secs().max(0).unsigned_abs());
    (until_next.unwrap_or_default() + 1).min(RETRY_AFTER_MAX_SECONDS)
}

/// The name under which a browser saves a recording: when, and of which call.
pub(super) fn download_name(recording: &Recording, format: Format) -> String {
    let details = &recording.details;
    let of = match (details.call_sid, details.conference_sid) {
        (Some(call), _) => call.to_string(),
        (None, Some(conference)) => conference.to_string(),
        (None, None) => recording.id.recording.to_string(),
    };
    let at = recording.ordered_at().strftime("%Y-%m-%d %H.%M");
    format!("{at} {of}.{}", format.as_str())
}
