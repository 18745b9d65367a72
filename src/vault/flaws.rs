//! What is wrong with the object of a stored recording.
//!
//! Compares the row with what the store says, and with the bytes where they are
//! read back. Reads only; whoever asks decides what follows.

use std::fmt;

use jiff::Timestamp;

use super::Vault;
use crate::bucket::{BucketError, ObjectFacts, Throttle};
use crate::domain::object_key::{self, CACHE_CONTROL};
use crate::domain::recording::{Recording, StoredObject};

/// One thing that is wrong, in words that follow a recording's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The row names a key that is not the recording's own.
    Key(String),
    /// There is no object.
    Missing(String),
    /// The bytes are others.
    Bytes(String),
    /// The bytes may be right, but not what the store says of them.
    Facts(String),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Key(words) | Self::Missing(words) | Self::Bytes(words) | Self::Facts(words)) = self;
        f.write_str(words)
    }
}

impl Vault {
    /// What is wrong with the object that a row names; its bytes are looked at where
    /// they are `read`, no faster than that.
    pub(super) async fn flaws(
        &self,
        recording: &Recording,
        object: &StoredObject,
        read: Option<&Throttle>,
    ) -> Result<Vec<Flaw>, BucketError> {
        let layout = self.bucket.layout();
        let mut flaws = Vec::new();
        let key = layout.audio(&recording.id, &recording.details, &object.digest, object.format);
        if key.as_deref() != Some(&object.key) {
            flaws.push(Flaw::Key(format!("names the key {}, which is not its own", object.key)));
        }
        let Some(facts) = self.bucket.facts(&object.key).await? else {
            flaws.push(Flaw::Missing(format!("is stored, but nothing lies at {}", object.key)));
            return Ok(flaws);
        };
        flaws.extend(said_wrongly(recording, object, &facts));
        if let Some(throttle) = read {
            match self.bucket.read_back_within(&object.key, throttle).await? {
                Some((digest, _)) if digest == object.digest => {}
                Some((digest, _)) => flaws.push(Flaw::Bytes(format!("reads back as {digest}, not {}", object.digest))),
                None => flaws.push(Flaw::Missing(format!("is gone from {}", object.key))),
            }
        }
        Ok(flaws)
    }
}

/// What the store says otherwise than the row. When it was stored is the writer's word alone.
fn said_wrongly(recording: &Recording, object: &StoredObject, facts: &ObjectFacts) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let words = |what: &str, is: Option<&str>, right: &str| {
        format!("has {what} {} at its object, not {right}", is.unwrap_or("none"))
    };
    let (is, right) = (facts.size_bytes.to_string(), object.size_bytes.to_string());
    if is != right {
        flaws.push(Flaw::Bytes(words("size", Some(&is), &right)));
    }
    let mut compare = |what: &str, is: Option<&str>, right: &str| {
        if is != Some(right) {
            flaws.push(Flaw::Facts(words(what, is, right)));
        }
    };
    compare("Content-Type", facts.content_type.as_deref(), object.format.content_type());
    compare("Cache-Control", facts.cache_control.as_deref(), CACHE_CONTROL);
    let known = object_key::metadata(&recording.id, &recording.details, &object.digest, Timestamp::UNIX_EPOCH);
    for (name, right) in known.iter().filter(|(name, _)| *name != "stored-at") {
        compare(name, facts.metadata.get(*name).map(String::as_str), right);
    }
    if facts.stored_at().is_none() {
        let stored_at = facts.metadata.get("stored-at").map_or("none", String::as_str);
        flaws.push(Flaw::Facts(format!("has stored-at {stored_at} at its object, which is no time")));
    }
    flaws
}
