//! What the document says of the domain's own words: SIDs, states, codes.
//!
//! The domain does not know that it is documented. The words come from its
//! lists, so a new one is in the document as soon as it is there.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use super::problems;
use crate::catalog::DeliveryState;
use crate::config::EVENT_TYPES;
use crate::domain::digest::Digest;
use crate::domain::media::Format;
use crate::domain::recording::{ErrorCode, LastError, State};
use crate::domain::sid::{AccountSid, CallSid, ConferenceSid, RecordingSid};
use crate::vault::health::Trouble;

/// Types that are written as a text of a fixed form.
macro_rules! texts {
    ($($name:ident: $what:literal, $pattern:literal;)+) => { $(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                text($what).pattern(Some($pattern)).into()
            }
        }

        impl ToSchema for $name {}
    )+ };
}

/// Types that are written as one word of a closed set.
macro_rules! words {
    ($($type:ty as $name:literal: $what:literal, $words:expr;)+) => { $(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                text($what).enum_values(Some($words)).into()
            }
        }

        impl ToSchema for $type {
            fn name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
        }
    )+ };
}

texts! {
    AccountSid: "A Twilio account.", "^AC[0-9a-fA-F]{32}$";
    CallSid: "A Twilio call.", "^CA[0-9a-fA-F]{32}$";
    ConferenceSid: "A Twilio conference.", "^CF[0-9a-fA-F]{32}$";
    RecordingSid: "A Twilio recording.", "^RE[0-9a-fA-F]{32}$";
    Digest: "SHA-256 of the bytes.", "^[0-9a-f]{64}$";
}

/// A schema and its name.
pub type Named = (String, RefOr<Schema>);

/// The schemas of bodies that are sent to the service: there a field may be left out.
pub const REQUESTS: [&str; 2] = ["put", "share_request"];

/// The types of event.
pub struct EventType;
/// The codes of problems.
pub struct ProblemCode;
/// What audio is said to be.
pub struct AudioType;

words! {
    State as "RecordingState": "Where a recording stands.", State::ALL.iter().map(|state| state.as_str());
    ErrorCode as "ErrorCode": "Why an attempt, or the recording, failed.", ErrorCode::ALL.iter().map(|code| code.as_str());
    Format as "Format": "What the audio is, by its bytes.", Format::ALL.map(Format::as_str);
    AudioType as "AudioType": "The media type of the audio.", Format::ALL.map(Format::content_type);
    DeliveryState as "DeliveryState": "Where a delivery stands.", DeliveryState::ALL.map(DeliveryState::as_str);
    EventType as "EventType": "What happened.", EVENT_TYPES;
    ProblemCode as "ProblemCode": "Which problem it is: stable, for programs.", problems::codes();
}

impl PartialSchema for LastError {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .property("code", ErrorCode::schema())
            .property("detail", text("What happened, in words."))
            .property("at", time("When."))
            .into()
    }
}

impl ToSchema for LastError {}

impl PartialSchema for Trouble {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .property("code", text("A stable word for it."))
            .property("detail", text("What is wrong and what to do, in words."))
            .into()
    }
}

impl ToSchema for Trouble {}

fn text(what: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(what))
}

fn time(what: &str) -> ObjectBuilder {
    text(what).format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
}
