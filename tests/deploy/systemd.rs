//! deploy/systemd/callvault.service: by systemd itself.

use std::process::Command;

use crate::support::deploy;
use crate::{said, succeeds};

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("callvault.service");
    // Only its program is not installed here.
    let text = deploy("systemd/callvault.service");
    assert!(text.contains("ExecStart=/usr/local/bin/callvault serve\n"));
    std::fs::write(&unit, text.replace("/usr/local/bin/callvault serve", env!("CARGO_BIN_EXE_callvault"))).unwrap();
    let mut verify = Command::new("systemd-analyze");
    let verified = verify.arg("verify").arg("--man=no").arg(&unit).output();
    let verified = verified.expect("systemd-analyze is not installed: run `make tools`, or `tests/install-tools.sh`");
    assert_eq!(said(&verified), "");
    assert!(verified.status.success());
}

#[test]
fn the_unit_leaves_the_service_little_to_reach() {
    let mut security = Command::new("systemd-analyze");
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("callvault.service");
    std::fs::write(&unit, deploy("systemd/callvault.service")).unwrap();
    // On its scale 0 is shut and 10 open; units are commonly at 9.
    succeeds(security.args(["security", "--offline=yes", "--threshold=20", "--no-pager"]).arg(&unit));
}

#[test]
fn the_unit_lets_a_node_hand_over_before_it_is_killed() {
    let text = deploy("systemd/callvault.service");
    let grace = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let grace = callvault::config::parse::duration(grace).unwrap();
    assert!(grace > std::time::Duration::from_secs(25), "above CALLVAULT_SHUTDOWN_TIMEOUT");
}
