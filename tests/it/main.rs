//! End to end: the real binary on real parts, before a scripted Twilio.
//!
//! Each test is a claim, and where it can be it is made on both sets of parts:
//! SQLite with the embedded S3, and PostgreSQL with MinIO.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, reason = "a test may fail")]

#[path = "../support/mod.rs"]
mod support;

/// A test on SQLite with the embedded S3, and on PostgreSQL with MinIO.
macro_rules! on_all_parts {
    ($($(#[$meta:meta])* async fn $name:ident($world:ident: World) $body:block)+) => {
        $($(#[$meta])* mod $name {
            use super::*;

            async fn claim(#[allow(unused_mut)] mut $world: World) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite_and_the_embedded_store() {
                claim(World::new(Parts::Embedded).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres_and_a_real_store() {
                claim(World::new(Parts::Servers).await).await;
            }
        })+
    };
}

mod alerts;
mod audits;
mod away;
mod backfill;
mod blobs;
mod browser;
mod bucket;
mod callbacks;
mod clients;
mod cluster;
mod commands;
mod console;
mod content;
mod crashes;
mod disasters;
mod discover;
mod doctor;
mod encrypted;
mod erase;
mod erase_races;
mod events;
mod evict;
mod faults;
mod handbook;
mod hold_races;
mod holds;
mod journey;
mod keys;
mod large;
mod letting_go;
mod limits;
mod links;
mod live;
mod lost_catalog;
mod memory;
mod openapi;
mod outages;
mod pace;
mod player;
mod puts;
mod recheck;
mod reconcile;
mod redirects;
mod reindex;
mod retention;
mod secrets;
mod settings;
mod shares;
mod soak;
mod tenants;
mod topology;
mod traces;
mod upstream;
mod verify;
mod webhooks;
