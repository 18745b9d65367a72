//! Rows as the domain's types.

use jiff::Timestamp;
use serde_json::Value as Json;

use super::sql::Row;
use super::{CatalogError, Result};
use crate::domain::digest::Digest;
use crate::domain::recording::{Details, ErrorCode, LastError, Recording, RecordingId, StoredObject};

/// One thing that happened to a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryEntry {
    /// When.
    pub at: Timestamp,
    /// An event's type, or `callback`, `put`, `reconcile`, `request`, `attempt`, `handed_back`, `fetch_requested`.
    pub kind: String,
    /// What belongs to it; an object, or null.
    pub detail: Json,
}

pub(super) fn id(row: &Row) -> Result<RecordingId> {
    Ok(RecordingId { account: row.parse("account_sid")?, recording: row.parse("recording_sid")? })
}

/// A row of `recordings`, all columns of it.
pub(super) fn recording(row: &Row) -> Result<Recording> {
    let state = row.parse("state")?;
    let due_at = row.time_opt("due_at")?;
    Ok(Recording {
        id: id(row)?,
        state,
        epoch: row.get("epoch")?,
        details: Details {
            call_sid: row.parse_opt("call_sid")?,
            conference_sid: row.parse_opt("conference_sid")?,
            duration_seconds: row.get("duration_seconds")?,
            channels: row.get("channels")?,
            track: row.get("track")?,
            recording_source: row.get("recording_source")?,
            recorded_at: row.time_opt("recorded_at")?,
        },
        details_confirmed: row.get::<i64>("details_confirmed")? != 0,
        source_host: row.get("source_host")?,
        object: object(row)?,
        accepted_at: row.time("accepted_at")?,
        stored_at: row.time_opt("stored_at")?,
        last_asked_at: row.time_opt("last_asked_at")?,
        attempts: row.get("attempts")?,
        next_attempt_at: due_at.filter(|_| state == crate::domain::recording::State::Pending),
        last_error: last_error(row)?,
        hold: row.get::<i64>("hold")? != 0,
    })
}

fn object(row: &Row) -> Result<Option<StoredObject>> {
    let Some(sha256) = row.get::<Option<Vec<u8>>>("sha256")? else { return Ok(None) };
    Ok(Some(StoredObject {
        digest: digest(sha256, "sha256")?,
        size_bytes: row.get("size_bytes")?,
        format: row.parse("format")?,
        key: row.get("object_key")?,
    }))
}

/// What a column of 32 bytes holds.
pub(super) fn digest(bytes: Vec<u8>, column: &str) -> Result<Digest> {
    let bytes: [u8; 32] =
        bytes.try_into().map_err(|_| CatalogError::Unreadable(format!("{column} has not 32 bytes")))?;
    Ok(Digest::from(bytes))
}

fn last_error(row: &Row) -> Result<Option<LastError>> {
    let Some(code) = row.get::<Option<String>>("error_code")? else { return Ok(None) };
    // A newer node may know more codes; what it could not do is no reason not to show a recording.
    let code = code.parse().unwrap_or(ErrorCode::UpstreamError);
    Ok(Some(LastError { code, detail: row.get("error_detail")?, at: row.time("error_at")? }))
}

/// A column that holds JSON, or NULL.
pub(super) fn json(row: &Row, column: &str) -> Result<Json> {
    let text: Option<String> = row.get(column)?;
    match text {
        Some(text) => {
            serde_json::from_str(&text).map_err(|error| CatalogError::Unreadable(format!("{column}: {error}")))
        }
        None => Ok(Json::Null),
    }
}
