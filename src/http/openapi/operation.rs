//! How one call is described: what it takes, who may, and all that it answers.

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::problems;
use super::schemas;
use crate::domain::key::Scope;
use crate::domain::sid::{CallSid, RecordingSid};

/// A method of a path.
pub struct Operation {
    /// In lower case, as documents write it.
    pub method: &'static str,
    /// The route's pattern.
    pub path: &'static str,
    value: Value,
    codes: Vec<&'static str>,
}

/// What every call with a key may answer.
const KEYED: [&str; 4] = ["unauthorized", "forbidden", "too_many_requests", "unavailable"];

/// The name of the scheme of keys.
pub const API_KEY: &str = "api_key";
/// The name of the scheme of Twilio's signatures.
pub const TWILIO_SIGNATURE: &str = "twilio_signature";

impl Operation {
    /// A call that anyone may make, and its name for programs.
    pub fn new(method: &'static str, path: &'static str, id: &str, summary: &str) -> Self {
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parameters: Vec<Value> = names.map(in_path).collect();
        let value = json!({
            "operationId": id,
            "summary": summary,
            "parameters": parameters,
            "security": [],
            "responses": {},
        });
        Self { method, path, value, codes: Vec::new() }
    }

    /// Under which heading it stands.
    pub fn tag(mut self, tag: &str) -> Self {
        self.value["tags"] = json!([tag]);
        self
    }

    /// What is to be known beside.
    pub fn about(mut self, text: &str) -> Self {
        self.value["description"] = text.into();
        self
    }

    /// A key of that scope is needed.
    pub fn needs(mut self, scope: Scope) -> Self {
        self.value["security"] = json!([{API_KEY: [scope]}]);
        self.codes.extend(KEYED);
        self
    }

    /// Twilio's signature is needed.
    pub fn signed(mut self) -> Self {
        self.value["security"] = json!([{TWILIO_SIGNATURE: []}]);
        self
    }

    /// Takes these parameters, besides those of the path.
    pub fn takes(mut self, parameters: impl IntoIterator<Item = Value>) -> Self {
        self.list("parameters").extend(parameters);
        self
    }

    /// Takes a body of JSON.
    pub fn body<T: ToSchema>(mut self, is_required: bool, example: Value) -> Self {
        let content = json!({"application/json": {"schema": reference::<T>(), "example": example}});
        self.value["requestBody"] = json!({"required": is_required, "content": content});
        self
    }

    /// Takes a form, or JSON with the same names.
    pub fn form(mut self, schema: Value, example: Value) -> Self {
        let content = json!({"schema": schema, "example": example});
        self.value["requestBody"] = json!({"required": true, "content": {
            "application/x-www-form-urlencoded": content,
            "application/json": content,
        }});
        self
    }

    /// Answers so, without a body.
    pub fn gives(mut self, status: u16, description: &str) -> Self {
        self.value["responses"][status.to_string()] = json!({"description": description});
        self
    }

    /// Answers so, with JSON.
    pub fn gives_json<T: ToSchema>(self, status: u16, description: &str, example: Value) -> Self {
        self.gives_as(status, description, "application/json", json!({"schema": reference::<T>(), "example": example}))
    }

    /// Answers so, with a body of that type; may be said several times of a status.
    pub fn gives_as(mut self, status: u16, description: &str, media_type: &str, content: Value) -> Self {
        let answer = &mut self.value["responses"][status.to_string()];
        answer["description"] = description.into();
        answer["content"][media_type] = content;
        self
    }

    /// These headers come with that answer.
    pub fn with_headers(mut self, status: u16, headers: &[(&str, &str)]) -> Self {
        for (name, description) in headers {
            self.value["responses"][status.to_string()]["headers"][*name] =
                json!({"description": description, "schema": {"type": "string"}});
        }
        self
    }

    /// Answers with these problems, too.
    pub fn problems(mut self, codes: &[&'static str]) -> Self {
        self.codes.extend(codes);
        self
    }

    /// The same asked by HEAD: what GET answers, without its bodies.
    pub fn head(&self) -> Self {
        let mut value = self.finished();
        let id = value["operationId"].as_str().unwrap_or_default();
        value["operationId"] = format!("head_{}", id.trim_start_matches("get_")).into();
        value["description"] = "What GET answers, without a body.".into();
        if let Some(answers) = value["responses"].as_object_mut() {
            for answer in answers.values_mut().filter_map(Value::as_object_mut) {
                answer.remove("content");
            }
        }
        Self { method: "head", path: self.path, value, codes: Vec::new() }
    }

    /// As it stands in the document.
    pub fn finished(&self) -> Value {
        let mut value = self.value.clone();
        if let Some(answers) = value["responses"].as_object_mut() {
            for (status, answer) in problems::answers(&self.codes) {
                answers.entry(status.to_string()).or_insert(answer);
            }
        }
        value
    }

    fn list(&mut self, name: &str) -> &mut Vec<Value> {
        self.value[name].as_array_mut().expect("`new` made it a list")
    }
}

/// A name in a path.
fn in_path(name: &str) -> Value {
    let schema = match name {
        "call_sid" => reference::<CallSid>(),
        "recording_sid" => reference::<RecordingSid>(),
        "blob" => json!({"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}),
        _ => json!({"type": "string", "minLength": 1}),
    };
    let description = match name {
        "call_sid" => "The call, or another of its legs.",
        "recording_sid" => "The recording.",
        "blob" => "`sha256:` and the digest of the bytes.",
        "token" => "What `…/share` gave.",
        "receiver" => "A receiver of the settings.",
        _ => "The id of an event.",
    };
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": schema})
}

/// A parameter of the query that may be left out.
pub fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}

/// One that may be given several times.
pub fn queries(name: &str, schema: Value, items_max: usize, description: &str) -> Value {
    let schema = json!({"type": "array", "items": schema, "maxItems": items_max});
    json!({"name": name, "in": "query", "style": "form", "explode": true, "description": description, "schema": schema})
}

/// A header that may be left out.
pub fn header(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "header", "description": description, "schema": {"type": "string"}})
}

/// Where the document says what a type is.
pub fn reference<T: ToSchema>() -> Value {
    json!({"$ref": format!("#/components/schemas/{}", T::name())})
}

/// What the document says of types, and of those in them. In answers no field is
/// ever left out, but for `history`, which lists have not.
pub fn components(into: &mut Map<String, Value>, types: &[fn() -> Vec<schemas::Named>]) {
    for (name, schema) in types.iter().flat_map(|named| named()) {
        let mut schema = serde_json::to_value(schema).expect("a schema has text keys only");
        let is_request = schemas::REQUESTS.contains(&name.as_str());
        if let Some(fields) = schema["properties"].as_object().filter(|_| !is_request) {
            let there: Vec<&String> = fields.keys().filter(|field| *field != "history").collect();
            schema["required"] = json!(there);
        }
        into.insert(name, schema);
    }
}

/// A type and those in it, by name.
pub fn named<T: ToSchema + PartialSchema>() -> Vec<schemas::Named> {
    let mut found = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut found);
    found
}
