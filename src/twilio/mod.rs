//! All that is known of Twilio.
//!
//! Owns its signatures, callbacks, URLs, media and REST answers, and the
//! simulator. Credentials leave this folder in one kind of request only: one to
//! the configured origin, or to an allow-listed host that stands for it. What
//! a recording becomes here is decided elsewhere: this folder says what Twilio
//! said.

pub mod api;
pub mod callback;
mod client;
pub mod decrypt;
mod egress;
mod gcm;
mod harmless;
pub mod media;
pub mod signature;
pub mod simulator;
pub mod source;

pub use client::{AuthToken, Twilio};
