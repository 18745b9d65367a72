//! The problems in the document: one of each, and what a route says of its own.
//! Answers that many routes give stand in the document once.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::domain::recording::State;
use crate::http::problem::{Document, Problem};

/// One of each.
fn samples() -> Vec<Problem> {
    use Problem::*;
    vec![
        InvalidRequest("wait: \"99\" is wrong; expected whole seconds from 0 to 30.".to_owned()),
        Unauthorized,
        Forbidden("admin"),
        BadSignature(
            "Twilio's signature does not match. CALLVAULT_PUBLIC_URL must be exactly what Twilio was told to call."
                .to_owned(),
        ),
        NotFound,
        NotReady { state: State::Fetching, retry_after_seconds: 2 },
        RecordingAbsent,
        MethodNotAllowed,
        Conflict("The receiver answered that it wants no more events.".to_owned()),
        Held,
        Erased,
        Expired,
        PreconditionFailed,
        PayloadTooLarge { max_bytes: 16384 },
        UnsupportedMediaType("application/json"),
        RangeNotSatisfiable { size_bytes: 48_000 },
        RecordingFailed("Twilio answered 404 for every format. (not_ready)".to_owned()),
        TooManyRequests { retry_after_seconds: 1 },
        Unavailable("The catalog cannot be asked."),
    ]
}

/// All codes.
pub fn codes() -> Vec<&'static str> {
    samples().iter().map(|problem| problem.document().code).collect()
}

/// The answers that carry these problems, by status.
///
/// Panics at a code that is none; the tests make the whole document.
pub fn answers(codes: &[&str]) -> BTreeMap<u16, Value> {
    let mut of_status: BTreeMap<u16, Vec<Problem>> = BTreeMap::new();
    let samples = samples();
    for code in codes {
        let sample = samples.iter().find(|problem| problem.document().code == *code);
        let sample = sample.unwrap_or_else(|| panic!("{code} is not the code of a problem")).clone();
        let of_status = of_status.entry(sample.status().as_u16()).or_default();
        if !of_status.contains(&sample) {
            of_status.push(sample);
        }
    }
    of_status.into_iter().map(|(status, problems)| (status, answer(status, &problems))).collect()
}

/// Puts each answer that carries problems at one place, and names it at the others.
pub fn share(answers: &mut Map<String, Value>, shared: &mut Map<String, Value>) {
    for answer in answers.values_mut() {
        let examples = &answer["content"]["application/problem+json"]["examples"];
        let Some(codes) = examples.as_object().map(|examples| examples.keys().cloned().collect::<Vec<_>>()) else {
            continue;
        };
        let name = codes.join(".");
        let reference = json!({"$ref": format!("#/components/responses/{name}")});
        shared.insert(name, std::mem::replace(answer, reference));
    }
}

fn answer(status: u16, problems: &[Problem]) -> Value {
    let documents: Vec<Document> = problems.iter().map(Problem::document).collect();
    let codes: Vec<&str> = documents.iter().map(|document| document.code).collect();
    let examples: Map<String, Value> =
        documents.iter().map(|document| (document.code.to_owned(), json!({"value": document}))).collect();
    let description = documents.iter().map(|document| format!("`{}`: {}.", document.code, document.title));
    let schema = json!({
        "allOf": [{"$ref": format!("#/components/schemas/{}", Document::name())}],
        "properties": {"code": {"enum": codes}, "status": {"const": status}},
    });
    let mut answer = json!({
        "description": description.collect::<Vec<_>>().join(" "),
        "content": {"application/problem+json": {"schema": schema, "examples": examples}},
    });
    if problems.iter().any(|problem| problem.retry_after_seconds().is_some()) {
        answer["headers"]["Retry-After"] =
            json!({"description": "When to ask again, in seconds.", "schema": {"type": "integer", "minimum": 0}});
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A problem that is new does not compile here: it needs a place, and a sample.
    fn place(problem: &Problem) -> u8 {
        use Problem::*;
        match problem {
            InvalidRequest(_) => 0,
            Unauthorized => 1,
            Forbidden(_) => 2,
            BadSignature(_) => 3,
            NotFound => 4,
            // The same problem, with another word for it.
            NotReady { .. } | Asking { .. } => 5,
            RecordingAbsent => 6,
            MethodNotAllowed => 7,
            Conflict(_) => 8,
            Held => 9,
            Erased => 10,
            Expired => 11,
            PreconditionFailed => 12,
            PayloadTooLarge { .. } => 13,
            UnsupportedMediaType(_) => 14,
            RangeNotSatisfiable { .. } => 15,
            RecordingFailed(_) => 16,
            TooManyRequests { .. } => 17,
            ObjectMissing | Unavailable(_) => 18,
        }
    }

    #[test]
    fn every_problem_is_in_the_document() {
        let places: BTreeSet<u8> = samples().iter().map(place).collect();
        assert_eq!(places, (0..=18).collect());
        let codes = codes();
        assert_eq!(codes.iter().collect::<BTreeSet<_>>().len(), codes.len(), "a code each: {codes:?}");
    }
}
