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

use super::Vault;
use super::flaws::Flaw;
use super::whole_bucket::MostAreMissing;
use crate::bucket::{BucketError, Throttle};
use crate::catalog::{CatalogError, Told};
use crate::domain::object_key::Marker;
use crate::domain::place::Place;
use crate::domain::recording::{Recording, RecordingId, State};

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
    /// It did, and is not the one that the catalog knows.
    #[error(transparent)]
    OtherBucket(#[from] MostAreMissing),
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
                Some(object) => {
                    let throttle = scope.read_back.then(Throttle::default);
                    let flaws = self.flaws(recording, object, throttle.as_ref()).await?;
                    findings.extend(flaws.iter().map(Flaw::to_string));
                }
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

    async fn audit_marker(&self, key: &str, marker: Marker, id: &RecordingId) -> Result<Option<String>, AuditError> {
        let row = self.catalog.recording(id).await?;
        Ok(match marker {
            Marker::Held => {
                let is_held = row.is_some_and(|recording| recording.hold);
                let is_right = is_held || self.catalog.owes_hold_marker(id).await?;
                (!is_right).then(|| format!("{key} marks a hold that no row has"))
            }
            Marker::Erased => {
                let is_erased = row.is_some_and(|recording| recording.state == State::Erased);
                (!is_erased).then(|| format!("{key} marks as erased what no row calls so"))
            }
        })
    }

    async fn audit_keys(&self, report: &mut Report) -> Result<(), AuditError> {
        let mut keys = self.bucket.keys();
        while let Some(key) = keys.try_next().await? {
            match self.bucket.layout().place(&key) {
                Place::Marker(marker, id) => report.add(self.audit_marker(&key, marker, &id).await?),
                Place::Staged { .. } => report.add([format!("{key} is staged, and nobody works on it")]),
                Place::Audio(audio) if !self.catalog.names_object(audio.recording, &key).await? => {
                    report.add([format!("{key} is named by no row")]);
                }
                Place::Audio(_) | Place::Foreign => {}
            }
        }
        Ok(())
    }
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
}
