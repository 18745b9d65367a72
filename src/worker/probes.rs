//! Asking Twilio whether it accepts the credentials of paused accounts again.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::vault::Vault;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Probes paused accounts when it is time, side by side. Ends by being dropped.
pub async fn probe_paused_accounts(vault: Arc<Vault>) {
    let mut probes = JoinSet::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        while probes.try_join_next().is_some() {}
        match vault.accounts_to_probe().await {
            Ok(accounts) => {
                for account in accounts {
                    let vault = vault.clone();
                    probes.spawn(async move { vault.probe(account).await });
                }
            }
            // It is told elsewhere that the catalog is away.
            Err(error) => tracing::debug!(%error, "paused accounts are not known"),
        }
    }
}
