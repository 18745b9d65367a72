//! What contradicts what: settings that are right by themselves, and not together.

use std::time::Duration;

use super::source::Reader;
use super::{Account, BucketConfig, Config, Database};

/// The longest life of a presigned URL (S3's limit).
const LINK_MAX: Duration = Duration::from_secs(7 * 86_400);

/// Notes every contradiction as a problem of one of its settings.
pub(super) fn refuse(reader: &mut Reader, config: &Config) {
    let embedded = matches!(config.bucket, BucketConfig::Embedded(_));
    if embedded && matches!(config.database, Database::Postgres(_)) {
        reader.problem(
            "CALLVAULT_BUCKET_URL",
            "is not set, but CALLVAULT_DATABASE_URL is PostgreSQL: many nodes cannot share the embedded store; \
             expected s3://bucket or s3://bucket/prefix",
        );
    }
    if embedded && config.delete_at_twilio_after.is_some() {
        reader.problem(
            "CALLVAULT_DELETE_AT_TWILIO_AFTER",
            "is refused with the embedded store, whose copy would be the only one; expected it unset, or \
             CALLVAULT_BUCKET_URL set",
        );
    }
    let link_life = config.links.window + config.links.ttl;
    if link_life > LINK_MAX {
        reader.problem("CALLVAULT_LINK_TTL", "and CALLVAULT_LINK_WINDOW are together more than 7d, the limit of S3");
    }
    if config.drain >= config.shutdown_timeout {
        reader.problem("CALLVAULT_DRAIN", "is not shorter than CALLVAULT_SHUTDOWN_TIMEOUT, of which it is a part");
    }
    if config.reconcile_every.is_some_and(|every| every > config.reconcile_window) {
        reader.problem(
            "CALLVAULT_RECONCILE_EVERY",
            "is longer than CALLVAULT_RECONCILE_WINDOW, the time over which a walk looks back; expected it no longer, \
             or off",
        );
    }
    refuse_letting_go_in_vain(reader, config);
}

/// What one setting lets go of, another must not need.
fn refuse_letting_go_in_vain(reader: &mut Reader, config: &Config) {
    let link_life = config.links.window + config.links.ttl;
    if let Some(evict_after) = config.evict_after {
        if config.delete_at_twilio_after.is_some() {
            reader.problem(
                "CALLVAULT_EVICT_AFTER",
                "and CALLVAULT_DELETE_AT_TWILIO_AFTER are both set: what is dropped here could not be fetched again; \
                 expected one of them unset",
            );
        }
        if evict_after <= link_life {
            reader.problem(
                "CALLVAULT_EVICT_AFTER",
                "is not longer than a link lives (CALLVAULT_LINK_TTL and CALLVAULT_LINK_WINDOW together): links \
                 would break",
            );
        }
    }
    let Some(delete_after) = config.delete_at_twilio_after else { return };
    let never_deleted = |account: &&Account| {
        account.retention.is_some_and(|retention| retention <= delete_after && !account.erase_at_twilio)
    };
    if let Some(account) = config.accounts.iter().find(never_deleted) {
        reader.problem(
            "CALLVAULT_RETENTION",
            format!(
                "of account {} is not longer than CALLVAULT_DELETE_AT_TWILIO_AFTER: its recordings would be erased \
                 here first, and stay at Twilio for ever; expected it longer, or erase_at_twilio = true",
                account.sid
            ),
        );
    }
}
