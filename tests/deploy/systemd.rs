//! deploy/systemd/callvault.service: by systemd itself.

use std::process::Command;

use crate::support::deploy;
use crate::{said, succeeds};

fn the_unit() -> String {
    deploy("systemd/callvault.service")
}

/// What the unit says of that.
fn of_unit(name: &str) -> Option<String> {
    let value = the_unit().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
    value.map(|value| value.replace("%S", "/var/lib"))
}

/// The lines of its head that set it up.
fn installing() -> Vec<String> {
    let text = the_unit();
    let lines = text.lines().filter_map(|line| line.strip_prefix("#   "));
    lines.filter_map(|line| line.split(" #").next()).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("callvault.service");
    // Only its program is not installed here.
    let text = the_unit();
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
    std::fs::write(&unit, the_unit()).unwrap();
    // On its scale 0 is shut and 10 open; units are commonly at 9.
    succeeds(security.args(["security", "--offline=yes", "--threshold=20", "--no-pager"]).arg(&unit));
}

/// The service reads its secrets as its user, who owns none of them.
#[test]
fn what_is_installed_for_the_service_is_readable_to_its_user_and_to_no_other() {
    let (user, group) = (of_unit("User").unwrap(), of_unit("Group").unwrap());
    assert_eq!(of_unit("DynamicUser"), None, "such a user is in no group that a file can be given to");
    let made = installing().into_iter().find(|line| line.starts_with("useradd ")).unwrap();
    assert!(made.ends_with(&format!(" {user}")) && made.contains(" --user-group "), "{made}");
    let secrets: Vec<String> = installing().into_iter().filter(|line| line.contains(" /etc/callvault")).collect();
    assert!(secrets.iter().any(|line| line.contains("callvault.env")), "{secrets:?}");
    assert!(secrets.iter().any(|line| line.contains(".pem")), "{secrets:?}");
    for line in secrets {
        let mode = if line.contains(" -d ") { "750" } else { "640" };
        assert!(line.contains(&format!(" -m {mode} -g {group} ")), "{line}");
    }
}

/// The guide runs other commands as the unit runs the service.
#[test]
fn a_command_of_the_guide_has_what_the_service_has() {
    let guide = deploy("OPERATING.md");
    let command = guide.split("\nsystemd-run ").nth(1).expect("it is there").split("\n```").next().unwrap();
    let properties: Vec<(&str, &str)> =
        command.split_whitespace().filter_map(|word| word.strip_prefix("--property=")?.split_once('=')).collect();
    for (name, value) in &properties {
        assert_eq!(of_unit(name).as_deref(), Some(*value), "{name}");
    }
    for name in ["User", "UMask", "WorkingDirectory", "EnvironmentFile"] {
        assert!(properties.iter().any(|(given, _)| *given == name), "{name} is missing");
    }
    let program = of_unit("ExecStart").unwrap();
    let program = program.split(' ').next().unwrap();
    assert!(command.ends_with(&format!(" {program} doctor")), "{command}");
}

#[test]
fn the_unit_lets_a_node_hand_over_before_it_is_killed() {
    let text = the_unit();
    let grace = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let grace = callvault::config::parse::duration(grace).unwrap();
    assert!(grace > std::time::Duration::from_secs(25), "above CALLVAULT_SHUTDOWN_TIMEOUT");
}
