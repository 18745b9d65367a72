//! The words of this service as types and decisions.
//!
//! Owns what a SID, a digest, a format, a recording, an object key, an API key and a retry
//! are. Everything here is pure: no I/O, no async, no clock, no randomness;
//! what depends on those is passed in. Nothing here knows Twilio's API, SQL,
//! HTTP or the bucket.

pub mod digest;
pub mod key;
pub mod media;
pub mod object_key;
pub mod place;
pub mod recording;
pub mod retry;
pub mod share;
pub mod sid;
