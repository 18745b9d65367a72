//! callvault takes each Twilio call recording from Twilio exactly once, stores
//! it in an S3-compatible bucket under its call SID, named by its content, and
//! serves everyone from there.
//!
//! The rooms, and which way they know each other: `domain` ← `twilio`,
//! `bucket`, `catalog` ← `vault` ← `worker`, `http`, `console` ← `app`, `commands` ←
//! `main`. A test checks this. ARCHITECTURE.md tells the rest.

pub mod app;
pub mod bucket;
pub mod catalog;
pub mod commands;
pub mod config;
pub mod console;
pub mod domain;
pub mod http;
pub mod telemetry;
pub mod twilio;
pub mod vault;
pub mod worker;
