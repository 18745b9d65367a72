//! The loops of a node: claim and run, and what is done now and then.
//!
//! Every node is alike. A loop is woken by a change in the catalog, and polls
//! as well: a wake-up is a hint. Nothing here decides what becomes of a
//! recording.

mod birth;
mod claims;
mod contact;
mod duties;
mod probes;
mod reconcile;
mod scrub;
mod webhooks;

pub use birth::read_bucket;
pub use claims::{ClaimLoop, HAND_BACK_WITHIN};
pub use contact::watch_parts;
pub use duties::{DutyKind, duties, let_go};
pub use probes::probe_paused_accounts;
pub use reconcile::ReconcileLoop;
pub use scrub::scrub;
pub use webhooks::WebhookLoop;
