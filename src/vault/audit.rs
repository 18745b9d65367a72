//! Whether catalog, bucket and feed tell the same.
//!
//! Goes over every row, a page at a time, and compares it with its object and
//! with what the feed told of it; in a strict audit also over every object.
//! Reads only. What is found is told in words; a row that changed while it was
//! looked at is no finding, so an audit may run beside nodes at work. Memory is
//! bounded by a page and by [`FINDINGS_MAX`].
//!
//! What it cannot see is what Twilio was asked, and uploads that are open.

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::Vault;
use crate::bucket::{BucketError, ObjectFacts};
use crate::catalog::{CatalogError, Told};
use crate::domain::object_key::{self, CACHE_CONTROL, Marker};
use crate::domain::recording::{Recording, State, StoredObject};
use crate::domain::sid::RecordingSid;

/// Rows that are read at once.
const PAGE_ROWS: i64 = 500;
/// Objects that are looked at side by side.
const OBJECTS_AT_ONCE: usize = 8;
/// Findings that are kept in words; further ones are counted.
pub const FINDINGS_MAX: usize = 1000;

/// What an audit looks at, beside rows, their objects' facts, and the feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scope {
    /// Read every object back and hash it.
    pub read_back: bool,
    /// Find what no row names, too. Right once every node is at rest and what
    /// attempts left behind was cleared away.
    pub strict: bool,
}

/// What an audit came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that were looked at.
    pub recordings: u64,
    /// Those of them that are stored.
    pub stored: u64,
    /// What is wrong, in words; at most [`FINDINGS_MAX`].
    pub findings: Vec<String>,
    /// What is wrong beyond those.
    pub more_findings: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_content(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, findings: impl IntoIterator<Item = String>) {
        for finding in findings {
            if self.findings.len() < FINDINGS_MAX {
                self.findings.push(finding);
            } else {
                self.more_findings += 1;
            }
        }
    }
}

/// Why an audit could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The catalog did not say.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The bucket did not say.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

impl Vault {
    /// Compares catalog, bucket and feed. Takes as long as asking the store for
    /// every object does; it may be dropped at any time.
    pub async fn audit(&self, scope: Scope) -> Result<Report, AuditError> {
        let mut report = Report::default();
        let mut after = None;
        loop {
            let page = self.catalog.every_recording(after.as_ref(), PAGE_ROWS).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            report.recordings += page.len() as u64;
            report.stored += page.iter().filter(|row| row.state == State::Stored).count() as u64;
            let audits = page.iter().map(|recording| self.audit_recording(recording, scope));
            let found: Vec<_> = stream::iter(audits).buffer_unordered(OBJECTS_AT_ONCE).try_collect().await?;
            report.add(found.into_iter().flatten());
        }
        report.add(self.audit_feed().await?);
        if scope.strict {
            self.audit_keys(&mut report).await?;
        }
        Ok(report)
    }

    async fn audit_recording(&self, recording: &Recording, scope: Scope) -> Result<Vec<String>, AuditError> {
        let mut findings = told_wrongly(recording.state, &self.catalog.told(&recording.id).await?);
        if recording.state == State::Stored {
            match &recording.object {
                Some(object) => findings.extend(self.audit_object(recording, object, scope).await?),
                None => findings.push("is stored but names no object".to_owned()),
            }
        }
        findings.extend(self.audit_markers(recording).await?);
        if findings.is_empty() {
            return Ok(findings);
        }
        // What was read piece by piece is wrong only if it was one piece.
        let now = self.catalog.recording(&recording.id).await?;
        let unchanged = now.is_some_and(|now| (now.epoch, now.state) == (recording.epoch, recording.state));
        let named = findings.into_iter().map(|finding| format!("{} {finding}", recording.id));
        Ok(if unchanged { named.collect() } else { Vec::new() })
    }

    /// What the bucket alone must know of it, once nothing of that is owed.
    async fn audit_markers(&self, recording: &Recording) -> Result<Vec<String>, AuditError> {
        let id = recording.id;
        let mut findings = Vec::new();
        let mut wanted = None;
        if recording.state == State::Erased {
            if recording.object.is_some()
                || recording.last_error.is_some()
                || recording.details.duration_seconds.is_some()
            {
                findings.push("is erased, but the catalog still tells of it".to_owned());
            }
            let is_marked = self.catalog.erasures(&[id]).await?.iter().any(|erasure| erasure.is_marked);
            wanted = is_marked.then_some(Marker::Erased);
        } else if recording.hold && !self.catalog.owes_hold_marker(&id).await? {
            wanted = Some(Marker::Held);
        }
        if let Some(marker) = wanted
            && self.bucket.facts(&self.bucket.layout().marker(marker, &id)).await?.is_none()
        {
            findings.push(format!("is {}, but has no marker in the bucket", marker.as_str()));
        }
        Ok(findings)
    }

    async fn audit_object(
        &self,
        recording: &Recording,
        object: &StoredObject,
        scope: Scope,
    ) -> Result<Vec<String>, AuditError> {
        let layout = self.bucket.layout();
        let mut findings = Vec::new();
        let key = layout.audio(&recording.id, &recording.details, &object.digest, object.format);
        if key.as_deref() != Some(&object.key) {
            findings.push(format!("names the key {}, which is not its own", object.key));
        }
        let Some(facts) = self.bucket.facts(&object.key).await? else {
            findings.push(format!("is stored, but nothing lies at {}", object.key));
            return Ok(findings);
        };
        findings.extend(said_wrongly(recording, object, &facts));
        if scope.read_back {
            match self.bucket.read_back(&object.key).await? {
                Some((digest, _)) if digest == object.digest => {}
                Some((digest, _)) => findings.push(format!("reads back as {digest}, not {}", object.digest)),
                None => findings.push(format!("is gone from {}", object.key)),
            }
        }
        Ok(findings)
    }

    async fn audit_feed(&self) -> Result<Vec<String>, AuditError> {
        let feed = self.catalog.feed_extent().await?;
        let mut findings = Vec::new();
        // Numbers are unique: so many of them between first and last leave no gap.
        if feed.first > 1 || feed.last != feed.numbered {
            let (first, last, numbered) = (feed.first, feed.last, feed.numbered);
            findings.push(format!("the feed has {numbered} events, numbered from {first} to {last}"));
        }
        if feed.forgotten > 0 {
            findings.push(format!("{} events were never numbered", feed.forgotten));
        }
        Ok(findings)
    }

    async fn audit_keys(&self, report: &mut Report) -> Result<(), AuditError> {
        let staging = self.bucket.layout().staging_folder();
        let mut keys = self.bucket.keys();
        while let Some(key) = keys.try_next().await? {
            if let Some(id) = self.bucket.layout().marked(Marker::Held, &key) {
                let is_held = self.catalog.recording(&id).await?.is_some_and(|recording| recording.hold);
                if !is_held && !self.catalog.owes_hold_marker(&id).await? {
                    report.add([format!("{key} marks a hold that no row has")]);
                }
            } else if let Some(id) = self.bucket.layout().marked(Marker::Erased, &key) {
                let state = self.catalog.recording(&id).await?.map(|recording| recording.state);
                if state != Some(State::Erased) {
                    report.add([format!("{key} marks as erased what no row calls so")]);
                }
            } else if key.starts_with(&staging) {
                report.add([format!("{key} is staged, and nobody works on it")]);
            } else if let Some(recording) = named_by(&key)
                && !self.catalog.names_object(recording, &key).await?
            {
                report.add([format!("{key} is named by no row")]);
            }
        }
        Ok(())
    }
}

/// The recording that a key of audio names; None for markers, and for what this
/// service did not write.
fn named_by(key: &str) -> Option<RecordingSid> {
    let mut parts = key.rsplit('/');
    let (file, recording) = (parts.next()?, parts.next()?);
    let (digest, _) = file.split_once('.')?;
    digest.parse::<crate::domain::digest::Digest>().ok()?;
    recording.parse().ok()
}

/// What the store says otherwise than the row. When it was stored is the writer's word alone.
fn said_wrongly(recording: &Recording, object: &StoredObject, facts: &ObjectFacts) -> Vec<String> {
    let mut findings = Vec::new();
    let mut compare = |what: &str, is: Option<&str>, right: &str| {
        if is != Some(right) {
            findings.push(format!("has {what} {} at its object, not {right}", is.unwrap_or("none")));
        }
    };
    compare("size", Some(&facts.size_bytes.to_string()), &object.size_bytes.to_string());
    compare("Content-Type", facts.content_type.as_deref(), object.format.content_type());
    compare("Cache-Control", facts.cache_control.as_deref(), CACHE_CONTROL);
    let known = object_key::metadata(&recording.id, &recording.details, &object.digest, Timestamp::UNIX_EPOCH);
    for (name, right) in known.iter().filter(|(name, _)| *name != "stored-at") {
        compare(name, facts.metadata.get(*name).map(String::as_str), right);
    }
    let stored_at = facts.metadata.get("stored-at").map(String::as_str);
    if stored_at.and_then(|at| at.parse::<Timestamp>().ok()).is_none() {
        findings.push(format!("has stored-at {} at its object, which is no time", stored_at.unwrap_or("none")));
    }
    findings
}

/// What the feed told otherwise than it happened.
fn told_wrongly(state: State, told: &[Told]) -> Vec<String> {
    let mut findings = Vec::new();
    let count = |kind: &str| told.iter().filter(|event| event.kind == kind).count();
    let accepted = count("recording.accepted");
    if accepted != 1 {
        findings.push(format!("was told as accepted {accepted} times"));
    }
    if accepted == 1 && told[0].kind != "recording.accepted" {
        findings.push(format!("was told as {} before it was accepted", told[0].kind));
    }
    let mut is_stored = false;
    for event in told {
        match event.kind.as_str() {
            "recording.stored" if is_stored => findings.push("was told as stored again without having left".to_owned()),
            "recording.stored" => is_stored = true,
            "recording.lost" | "recording.evicted" | "recording.erased" => is_stored = false,
            _ => {}
        }
    }
    if is_stored != (state == State::Stored) {
        findings.push(format!("is {state}, but was {}told as stored", if is_stored { "" } else { "not " }));
    }
    let numbers: Vec<i64> = told.iter().filter_map(|event| event.seq).collect();
    if !numbers.is_sorted() {
        findings.push("was told in another order than it happened".to_owned());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kinds: &[&str]) -> Vec<Told> {
        let event = |(at, kind): (i64, &&str)| Told { kind: format!("recording.{kind}"), seq: Some(at) };
        (1..).zip(kinds).map(event).collect()
    }

    #[test]
    fn what_was_told_as_it_happened_is_no_finding() {
        for (state, kinds) in [
            (State::Pending, &["accepted"][..]),
            (State::Stored, &["accepted", "stored"]),
            (State::Stored, &["accepted", "failed", "stored", "held"]),
            (State::Stored, &["accepted", "stored", "evicted", "stored"]),
            (State::Pending, &["accepted", "stored", "lost"]),
            (State::Erased, &["accepted", "stored", "erased"]),
        ] {
            assert_eq!(told_wrongly(state, &told(kinds)), Vec::<String>::new(), "{kinds:?}");
        }
    }

    #[test]
    fn what_was_told_twice_too_early_or_not_at_all_is_found() {
        for (state, kinds) in [
            (State::Pending, &[][..]),
            (State::Pending, &["accepted", "accepted"]),
            (State::Stored, &["accepted"]),
            (State::Stored, &["accepted", "stored", "stored"]),
            (State::Stored, &["stored", "accepted"]),
            (State::Pending, &["accepted", "stored"]),
        ] {
            assert_eq!(told_wrongly(state, &told(kinds)).len(), 1, "{kinds:?}");
        }
        let mut reversed = told(&["accepted", "stored"]);
        reversed[0].seq = Some(9);
        assert_eq!(told_wrongly(State::Stored, &reversed).len(), 1);
    }

    #[test]
    fn only_keys_of_audio_name_a_recording() {
        let (recording, digest) = (format!("RE{}", "a".repeat(32)), "0".repeat(64));
        assert!(named_by(&format!("p/CA1/{recording}/{digest}.mp3")).is_some());
        assert!(named_by(&format!("p/.erased/AC1/{recording}")).is_none());
        assert!(named_by(&format!("notes/{recording}/readme.txt")).is_none());
    }
}
