//! The simulator's REST API: lists, calls and descriptions, as far as callvault asks.

use http::StatusCode;
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::faults::Fault;
use super::server::{Answer, Exchange, answer_json, not_found, of_status, rate_limited, whole};
use super::{SimulatedEncryption, SimulatedRecording};
use crate::domain::sid::{AccountSid, CallSid, RecordingSid};

impl Exchange {
    pub(super) fn description(&self, account: AccountSid, sid: &str) -> Answer {
        let Ok(sid) = sid.parse::<RecordingSid>() else { return not_found() };
        let mut state = self.shared.state();
        state.counts.entry(sid).or_default().descriptions += 1;
        match state.recordings.get(&sid).filter(|known| known.id.account == account) {
            Some(recording) => answer_json(resource(recording)),
            None => not_found(),
        }
    }

    pub(super) fn call(&self, account: AccountSid, file: &str) -> Answer {
        let Some(call) = file.strip_suffix(".json").and_then(|sid| sid.parse::<CallSid>().ok()) else {
            return not_found();
        };
        let state = self.shared.state();
        let parent = state.parents.get(&call).copied();
        let legs = [Some(call), parent];
        let recorded = |known: &SimulatedRecording| {
            known.id.account == account && known.call_sid.is_some() && legs.contains(&known.call_sid)
        };
        match state.calls.contains(&(account, call)) || state.recordings.values().any(recorded) {
            // Who spoke is told, whoever asks.
            true => answer_json(json!({
                "sid": call, "account_sid": account, "parent_call_sid": parent,
                "from": "+15005550101", "to": "+15005550102",
            })),
            false => not_found(),
        }
    }

    pub(super) fn delete(&self, account: AccountSid, file: &str) -> Answer {
        let sid = file.trim_end_matches(".json").parse::<RecordingSid>();
        let mut state = self.shared.state();
        let known = sid.ok().and_then(|sid| state.recordings.get_mut(&sid));
        match known.filter(|known| known.id.account == account && known.status != "deleted") {
            Some(recording) => {
                recording.status = "deleted".to_owned();
                whole(StatusCode::NO_CONTENT, "application/json", "")
            }
            None => not_found(),
        }
    }

    pub(super) async fn list_of_account(&self, account: AccountSid, query: &str) -> Answer {
        let fault = self.shared.state().next_of_lists(account, !query.contains("PageToken"));
        match fault {
            None => self.list(account, None, query),
            Some(Fault::RateLimited { retry_after }) => rate_limited(retry_after),
            Some(Fault::Status(status)) => of_status(status),
            Some(Fault::Silent) => std::future::pending().await,
            Some(_) => of_status(500),
        }
    }

    /// A page of an account's recordings, newest first. Filters that are not
    /// known are ignored in silence, as Twilio does.
    pub(super) fn list(&self, account: AccountSid, call: Option<CallSid>, query: &str) -> Answer {
        let parameter = |name: &str| {
            url::form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let call = call.or_else(|| parameter("CallSid").and_then(|sid| sid.parse().ok()));
        let conference = parameter("ConferenceSid");
        let day = |name| parameter(name);
        let (on, before, after) = (day("DateCreated"), day("DateCreated<"), day("DateCreated>"));
        let page_size = parameter("PageSize").and_then(|size| size.parse::<usize>().ok()).unwrap_or(50).clamp(1, 1000);
        let start = parameter("PageToken");
        let state = self.shared.state();
        let page_size = page_size.min(state.lists.page_size_max.unwrap_or(usize::MAX));
        let mut found: Vec<&SimulatedRecording> = state
            .recordings
            .values()
            .filter(|known| known.id.account == account && known.status != "deleted")
            .filter(|known| call.is_none() || known.call_sid == call)
            .filter(|known| conference.is_none() || known.conference_sid.map(|sid| sid.to_string()) == conference)
            .filter(|known| {
                let created = known.started_at.to_zoned(TimeZone::UTC).date().to_string();
                let of_its_days = on.as_ref().is_none_or(|day| created == *day)
                    && before.as_ref().is_none_or(|day| created <= *day)
                    && after.as_ref().is_none_or(|day| created >= *day);
                of_its_days || state.lists.ignores_days
            })
            .collect();
        found.sort_by_cached_key(|known| std::cmp::Reverse(page_key(known)));
        let from = start.map_or(0, |token| match token.strip_prefix("at-").and_then(|at| at.parse::<usize>().ok()) {
            Some(at) => at.min(found.len()),
            None => found.partition_point(|known| page_key(known) >= token),
        });
        let page = &found[from..found.len().min(from + page_size)];
        let more = from + page.len() < found.len();
        let token = |last: &SimulatedRecording| match state.lists.shifts {
            true => format!("at-{}", from + page.len()),
            false => page_key(last),
        };
        let next = page.last().filter(|_| more).map(|last| {
            let kept = url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != "PageToken");
            let mut next = url::form_urlencoded::Serializer::new(String::new());
            next.extend_pairs(kept).append_pair("PageToken", &token(last));
            format!("/2010-04-01/Accounts/{account}/Recordings.json?{}", next.finish())
        });
        let mut recordings: Vec<Value> = page.iter().map(|known| resource(known)).collect();
        for (entry, known) in recordings.iter_mut().zip(page) {
            if state.lists.garbled.contains(&known.id.recording) {
                entry["sid"] = Value::Null;
            }
        }
        answer_json(json!({"recordings": recordings, "next_page_uri": next, "page_size": page_size}))
    }
}

/// What pages are ordered by: a position that stays while newer recordings arrive.
fn page_key(recording: &SimulatedRecording) -> String {
    format!("{:020}-{}", recording.started_at.as_millisecond(), recording.id.recording)
}

/// `Recordings/{RE}.json`.
fn resource(recording: &SimulatedRecording) -> Value {
    let created = rfc2822::to_string(&recording.started_at.to_zoned(TimeZone::UTC)).ok();
    let id = recording.id;
    json!({
        "account_sid": id.account,
        "sid": id.recording,
        "call_sid": recording.call_sid,
        "conference_sid": recording.conference_sid,
        "duration": recording.duration,
        "channels": recording.channels,
        "track": "both",
        "source": "DialVerb",
        "status": recording.status,
        "start_time": created,
        "date_created": created,
        "date_updated": created,
        "error_code": null,
        "encryption_details": recording.encryption.as_ref().map(SimulatedEncryption::details),
        "uri": format!("/2010-04-01/Accounts/{}/Recordings/{}.json", id.account, id.recording),
    })
}
