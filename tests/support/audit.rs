//! The auditor in tests: the product's own, and what only the origin can tell.

use std::time::Duration;

use callvault::config::Config;
use callvault::domain::recording::{Recording, State};
use callvault::vault::Vault;
use callvault::vault::audit::Scope;

use super::eventually;
use super::world::World;

/// A vault over the parts of a world with a real store, past every node and link.
pub async fn vault(world: &World) -> Vault {
    let mut settings = world.settings.clone();
    let file = format!("sqlite://{}", world.folder().join("callvault.db").display());
    settings.entry("CALLVAULT_DATABASE_URL".to_owned()).or_insert(file);
    let settings = settings.into_iter().map(|(name, value)| (name.into(), value.into()));
    let config = Config::load(settings).expect("settings");
    let vault = callvault::app::vault(&config).await.expect("a vault");
    vault.catalog.prepare().await.expect("the catalog is up");
    vault
}

/// Every row there is.
pub async fn rows(vault: &Vault) -> Vec<Recording> {
    let mut rows: Vec<Recording> = Vec::new();
    loop {
        let page = vault.catalog.every_recording(rows.last().map(|last| &last.id), 1000).await.expect("a page");
        if page.is_empty() {
            return rows;
        }
        rows.extend(page);
    }
}

/// How many attempts at a recording were cut short, failed or were handed back.
pub async fn attempts_that_failed(vault: &Vault, recording: &Recording) -> u64 {
    let history = vault.catalog.history(&recording.id).await.expect("a history");
    let of = |entry: &callvault::catalog::HistoryEntry| match entry.kind.as_str() {
        "attempt" | "handed_back" => entry.detail["times"].as_u64().unwrap_or(1),
        "recording.failed" => 1,
        _ => 0,
    };
    history.iter().map(of).sum()
}

/// The same, once rechecks have cleared up what was left behind.
pub async fn content_in_the_end(world: &World) {
    let vault = vault(world).await;
    eventually("nothing is left behind", async || {
        let report = vault.audit(Scope { read_back: false, strict: true }).await.expect("an audit");
        let uploads = world.real_store().open_uploads(&world.http).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        (report.is_content() && !uploads.contains("<Upload>")).then_some(())
    })
    .await;
    content(world).await;
}

/// Fails unless catalog, bucket, feed and origin agree, and nothing else is there.
pub async fn content(world: &World) {
    let vault = vault(world).await;
    let report = vault.audit(Scope { read_back: true, strict: true }).await.expect("an audit");
    assert!(report.is_content(), "the auditor found: {:#?}", report.findings);
    for recording in rows(&vault).await {
        let fetches = world.simulator.counts(recording.id.recording).fetches;
        let failed = attempts_that_failed(&vault, &recording).await;
        let running = u64::from(recording.state == State::Fetching);
        let evicted = vault.catalog.told(&recording.id).await.expect("what was told");
        let evicted = evicted.iter().filter(|event| event.kind == "recording.evicted").count() as u64;
        assert!(
            fetches <= 1 + failed + running + evicted,
            "{} was fetched {fetches} times, though {failed} attempts failed: {:#?}",
            recording.id,
            vault.catalog.history(&recording.id).await
        );
    }
    let uploads = world.real_store().open_uploads(&world.http).await;
    assert!(!uploads.contains("<Upload>"), "an upload is open: {uploads}");
}
