//! What a scrub finds: a stored recording whose object is not right, a marker that is
//! gone (`unmarked.rs`), and what lies in the bucket that no row names.
//!
//! Finding changes nothing. What changed while it was looked at is no find, nor is
//! what a recheck is owed for anyhow.

use std::collections::HashMap;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::Vault;
use super::audit::AuditError;
use super::flaws::Flaw;
use super::unmarked::marker_of;
use crate::bucket::{ListedObject, ObjectFacts, Throttle};
use crate::catalog::{FoundObject, InHand};
use crate::domain::object_key::Marker;
use crate::domain::place::{AudioPlace, Described, Place};
use crate::domain::recording::{Recording, RecordingId, State};
use crate::domain::sid::RecordingSid;

/// Objects that are looked at side by side.
const LOOKS_AT_ONCE: usize = 16;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FoundKind {
    /// A stored recording has no object.
    Missing,
    /// The bytes of a stored recording are others.
    Corrupted,
    /// The store does not give an object, though it answers.
    Unreadable,
    /// The store says of an object what is not so.
    Misdescribed,
    /// An object of this service's, of a recording that has no row.
    Unregistered,
    /// What a row does not name: an object, or something staged.
    Leftover,
    /// A marker that its row does not heed.
    Marker,
    /// A recording that was erased or is held, without the marker that says so.
    Unmarked,
    /// What this service did not write.
    Alien,
}

impl FoundKind {
    /// Every one of them.
    pub const ALL: &[Self] = &[
        Self::Missing,
        Self::Corrupted,
        Self::Unreadable,
        Self::Misdescribed,
        Self::Unregistered,
        Self::Leftover,
        Self::Marker,
        Self::Unmarked,
        Self::Alien,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Corrupted => "corrupted",
            Self::Unreadable => "unreadable",
            Self::Misdescribed => "misdescribed",
            Self::Unregistered => "unregistered",
            Self::Leftover => "leftover",
            Self::Marker => "marker",
            Self::Unmarked => "unmarked",
            Self::Alien => "alien",
        }
    }
}

/// Something that is wrong, and what cures it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What kind of thing.
    pub kind: FoundKind,
    /// The recording, where it is one's.
    pub id: Option<RecordingId>,
    /// The object.
    pub key: String,
    /// What is wrong, in words.
    pub words: String,
    pub(super) cure: Cure,
}

/// What is to be done about something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cure {
    /// Nothing: it is not ours.
    LeaveAlone,
    /// The recording is mended.
    Mend,
    /// The bucket is looked at again for the row, from that epoch on.
    Owe(i64, Option<AudioPlace>),
    /// A row is made of it, or told of it.
    Register(Box<FoundObject>),
    /// The row heeds it.
    Heed(Marker),
    /// It is written again.
    Mark(Marker),
    /// It goes: no row can ask for that.
    Sweep,
}

impl Vault {
    /// What is wrong with the object of a recording, read back no faster than that.
    pub(super) async fn find_flaw(
        &self,
        recording: &Recording,
        throttle: &Throttle,
    ) -> Result<Option<Found>, AuditError> {
        let (State::Stored, Some(object)) = (recording.state, &recording.object) else { return Ok(None) };
        let flaws = self.flaws(recording, object, Some(throttle)).await?;
        let Some(worst) = worst(&flaws) else { return Ok(None) };
        // What was read piece by piece is wrong only if it was one piece.
        let now = self.catalog.recording(&recording.id).await?;
        let is_unchanged = now.is_some_and(|now| (now.epoch, now.state) == (recording.epoch, recording.state));
        let words: Vec<String> = flaws.iter().map(Flaw::to_string).collect();
        Ok(is_unchanged.then(|| Found {
            kind: worst,
            id: Some(recording.id),
            key: object.key.clone(),
            words: words.join("; "),
            cure: Cure::Mend,
        }))
    }

    /// What of a part of the bucket's list no row names.
    pub(super) async fn find_strays(&self, listed: &[ListedObject]) -> Result<Vec<Found>, AuditError> {
        let layout = self.bucket.layout();
        let placed: Vec<(&ListedObject, Place)> =
            listed.iter().map(|object| (object, layout.place(&object.key))).collect();
        let recordings = placed.iter().filter_map(|(_, place)| recording_of(place));
        // Asked after the list was: what was stored meanwhile is named by now.
        let known = self.catalog.in_hand(recordings).await?;
        let look = async |object: &ListedObject, place| {
            let looked = self.find_stray(object, place, &known).await;
            self.or_unreadable(None, &object.key, looked).await
        };
        let looks: Vec<_> = placed.into_iter().map(|(object, place)| look(object, place)).collect();
        let found: Vec<_> = stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What is wrong with what the bucket has of a row: its object and its marker. Or that
    /// they cannot be read.
    pub(super) async fn look_at_row(&self, row: &Recording, throttle: &Throttle) -> Result<Vec<Found>, AuditError> {
        let key = row.object.as_ref().map_or("", |object| &object.key);
        let flaw = self.or_unreadable(Some(row.id), key, self.find_flaw(row, throttle).await).await?;
        let key = marker_of(row).map(|marker| self.bucket.layout().marker(marker, &row.id)).unwrap_or_default();
        let unmarked = self.or_unreadable(Some(row.id), &key, self.find_unmarked(row).await).await?;
        Ok(flaw.into_iter().chain(unmarked).collect())
    }

    /// One object that the store does not give must not end every pass: where the
    /// bucket answers, that is the find.
    async fn or_unreadable(
        &self,
        id: Option<RecordingId>,
        key: &str,
        looked: Result<Option<Found>, AuditError>,
    ) -> Result<Option<Found>, AuditError> {
        let error = match looked {
            Err(AuditError::Bucket(error)) => error,
            looked => return looked,
        };
        self.bucket_answers().await?;
        let words = format!("cannot be read: {error}");
        Ok(Some(Found { kind: FoundKind::Unreadable, id, key: key.to_owned(), words, cure: Cure::LeaveAlone }))
    }

    async fn find_stray(
        &self,
        listed: &ListedObject,
        place: Place,
        known: &HashMap<RecordingSid, Vec<InHand>>,
    ) -> Result<Option<Found>, AuditError> {
        let rows = recording_of(&place).and_then(|recording| known.get(&recording)).map_or(&[][..], Vec::as_slice);
        let row_of = |id: RecordingId| rows.iter().find(|row| row.id == id);
        match place {
            Place::Audio(audio) => self.find_stray_audio(&listed.key, audio, rows).await,
            Place::Staged { id, epoch } => self.find_staged(listed, id, epoch, row_of(id)).await,
            Place::Marker(marker, id) => self.find_unheeded(&listed.key, marker, id, row_of(id)).await,
            Place::Foreign => Ok(Some(alien(&listed.key))),
        }
    }

    async fn find_stray_audio(
        &self,
        key: &str,
        audio: AudioPlace,
        rows: &[InHand],
    ) -> Result<Option<Found>, AuditError> {
        if rows.iter().any(|row| row.state == State::Stored && row.key.as_deref() == Some(key)) {
            return Ok(None);
        }
        let Some(facts) = self.bucket.facts(key).await? else { return Ok(None) };
        let Some(row) = rows.iter().find(|row| facts.account_sid() == Some(row.id.account.as_str())) else {
            let Some(described) = self.bucket.layout().described(key, &facts.metadata) else {
                return Ok(Some(alien(key)));
            };
            let id = described.id;
            let register = self.register_it(key, audio, described, &facts);
            return Ok(Some(found(FoundKind::Unregistered, id, key, "is of a recording that has no row", register)));
        };
        // On its way, it may be the next to be named; owed, it is seen to.
        let is_on_its_way = matches!(row.state, State::Announced | State::Pending | State::Fetching);
        if is_on_its_way || row.is_owed {
            return Ok(None);
        }
        let words = match row.state {
            State::Erased => "is of a recording that was erased",
            State::Failed | State::Absent if row.key.as_deref() == Some(key) => "is of a recording that was given up",
            _ => "is named by no row",
        };
        let given_up = matches!(row.state, State::Failed | State::Absent);
        let described = self.bucket.layout().described(key, &facts.metadata).filter(|_| given_up && !row.is_confirmed);
        let cure = match described {
            // The object tells its row where it lies, whatever it was PUT for.
            Some(described) => self.register_it(key, audio, described, &facts),
            None if given_up => Cure::Mend,
            None => Cure::Owe(row.epoch, Some(audio)),
        };
        Ok(Some(found(FoundKind::Leftover, row.id, key, words, cure)))
    }

    fn register_it(&self, key: &str, audio: AudioPlace, described: Described, facts: &ObjectFacts) -> Cure {
        let object = audio.object(key, i64::try_from(facts.size_bytes).unwrap_or(i64::MAX));
        Cure::Register(Box::new(self.found_object(described, object)))
    }

    async fn find_staged(
        &self,
        listed: &ListedObject,
        id: RecordingId,
        epoch: i64,
        row: Option<&InHand>,
    ) -> Result<Option<Found>, AuditError> {
        let is_worked_on = row.is_some_and(|row| row.is_owed || row.state == State::Fetching);
        if is_worked_on || self.bucket.facts(&listed.key).await?.is_none() {
            return Ok(None);
        }
        let cure = match row {
            Some(row) if epoch <= row.epoch => Cure::Owe(epoch, None),
            // A row that is made now counts its epochs anew.
            _ if self.is_old(listed) => Cure::Sweep,
            _ => return Ok(None),
        };
        let words = "is staged, and nobody works on it";
        Ok(Some(found(FoundKind::Leftover, id, &listed.key, words, cure)))
    }

    async fn find_unheeded(
        &self,
        key: &str,
        marker: Marker,
        id: RecordingId,
        row: Option<&InHand>,
    ) -> Result<Option<Found>, AuditError> {
        let is_heeded = match (marker, row) {
            (_, Some(row)) if row.state == State::Erased => true,
            (Marker::Held, Some(row)) => row.hold || row.owes_hold_marker,
            (Marker::Held, None) => self.catalog.knows_marked_hold(&id).await?,
            (Marker::Erased, _) => false,
        };
        // One that was taken away meanwhile says nothing.
        if is_heeded || self.bucket.facts(key).await?.is_none() {
            return Ok(None);
        }
        let words = match marker {
            Marker::Erased => "says that the recording was erased, and its row does not",
            Marker::Held => "says that the recording is held, and its row does not",
        };
        Ok(Some(found(FoundKind::Marker, id, key, words, Cure::Heed(marker))))
    }

    /// Written longer than a day ago, as far as the store says.
    fn is_old(&self, listed: &ListedObject) -> bool {
        const A_DAY: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
        let age = self.now().ok().zip(listed.written_at).map(|(now, written_at)| now.duration_since(written_at));
        age.is_some_and(|age| age > A_DAY)
    }
}

fn recording_of(place: &Place) -> Option<RecordingSid> {
    match place {
        Place::Audio(audio) => Some(audio.recording),
        Place::Staged { id, .. } | Place::Marker(_, id) => Some(id.recording),
        Place::Foreign => None,
    }
}

fn alien(key: &str) -> Found {
    let words = "was not written by this service, and is left alone".to_owned();
    Found { kind: FoundKind::Alien, id: None, key: key.to_owned(), words, cure: Cure::LeaveAlone }
}

fn found(kind: FoundKind, id: RecordingId, key: &str, words: &str, cure: Cure) -> Found {
    Found { kind, id: Some(id), key: key.to_owned(), words: words.to_owned(), cure }
}

fn worst(flaws: &[Flaw]) -> Option<FoundKind> {
    let kind = |flaw: &Flaw| match flaw {
        Flaw::Missing(_) => FoundKind::Missing,
        Flaw::Bytes(_) => FoundKind::Corrupted,
        Flaw::Key(_) | Flaw::Facts(_) => FoundKind::Misdescribed,
    };
    flaws.iter().map(kind).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry;

    #[test]
    fn every_kind_is_counted_from_the_start() {
        let metrics = telemetry::metrics().render();
        for kind in FoundKind::ALL {
            let counted = format!("callvault_scrub_found_total{{kind=\"{}\"}}", kind.as_str());
            assert!(metrics.contains(&counted), "{counted}");
        }
    }

    #[test]
    fn what_is_missing_is_worse_than_what_is_wrong() {
        let facts = Flaw::Facts("x".to_owned());
        assert_eq!(worst(&[]), None);
        assert_eq!(worst(&[facts.clone(), Flaw::Bytes("y".to_owned())]), Some(FoundKind::Corrupted));
        assert_eq!(worst(&[facts, Flaw::Missing("z".to_owned())]), Some(FoundKind::Missing));
    }
}
