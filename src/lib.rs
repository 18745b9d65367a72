//! callvault takes each Twilio call recording from Twilio exactly once, stores
//! it in an S3-compatible bucket under its call SID, named by its content, and
//! serves everyone from there.

pub mod bucket;
pub mod catalog;
pub mod config;
pub mod domain;
pub mod twilio;
