//! deploy/compose.yaml: by its schema, and against the service's own settings.

use std::collections::BTreeMap;
use std::process::Command;

use callvault::config::{Config, SETTINGS};
use serde_json::Value;

use crate::support::{compose, deploy, python_tool, root, trial_env};
use crate::{is_content, succeeds};

fn node() -> Value {
    compose(&trial_env())["services"]["node-1"].clone()
}

fn environment(service: &Value) -> BTreeMap<String, String> {
    let fields = service["environment"].as_object().unwrap();
    fields.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

#[test]
fn compose_knows_every_key_of_it() {
    let mut check = Command::new(python_tool("check-jsonschema"));
    succeeds(check.args(["--builtin-schema", "vendor.compose-spec"]).arg(root().join("deploy/compose.yaml")));
}

#[test]
fn three_nodes_are_alike_and_their_settings_are_right() {
    let compose = compose(&trial_env());
    let nodes = ["node-1", "node-2", "node-3"].map(|name| &compose["services"][name]);
    assert!(nodes.iter().all(|node| *node == nodes[0]));
    let settings = environment(nodes[0]);
    for name in settings.keys() {
        assert!(SETTINGS.iter().any(|setting| setting.env == name), "{name} is no setting");
    }
    Config::load(settings.into_iter().map(|(name, value)| (name.into(), value.into()))).unwrap();
}

#[test]
fn a_trial_without_the_simulator_asks_twilio_itself() {
    let mut env = trial_env();
    env.remove("CALLVAULT_TWILIO_ORIGIN");
    let compose = compose(&env);
    let settings = environment(&compose["services"]["node-1"]);
    assert_eq!(settings["CALLVAULT_TWILIO_ORIGIN"], "https://api.twilio.com");
    for (name, service) in compose["services"].as_object().unwrap() {
        let of_the_trial = name.starts_with("simulator");
        assert_eq!(service["profiles"][0] == "trial", of_the_trial, "{name}");
    }
}

#[test]
fn a_node_is_not_killed_before_it_has_handed_over() {
    let grace = callvault::config::parse::duration(node()["stop_grace_period"].as_str().unwrap()).unwrap();
    let default = SETTINGS.iter().find(|setting| setting.env == "CALLVAULT_SHUTDOWN_TIMEOUT").unwrap().default;
    assert!(grace > callvault::config::parse::duration(default).unwrap());
}

/// `up --wait` waits for this check, and the upgrade goes on to the next node after it.
#[test]
fn a_node_is_waited_for_until_it_is_ready_and_not_only_alive() {
    let healthcheck = &node()["healthcheck"];
    let words: Vec<&str> = healthcheck["test"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let is_ready = |answer| {
        let check = |port| {
            let here = |word: &&str| word.replace("127.0.0.1/8080", &format!("127.0.0.1/{port}"));
            let mut check = Command::new(words[1]);
            check.args(words[2..].iter().map(here));
            check
        };
        is_content(check, "/readyz", answer)
    };
    assert_eq!(words[0], "CMD");
    assert!(is_ready(Some("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n")));
    assert!(!is_ready(Some("HTTP/1.0 503 Service Unavailable\r\n\r\n")));
    assert!(!is_ready(None));
    assert!(deploy("compose.yaml").contains("--wait $node || break; done"), "one that is not ready is the last");
}

#[test]
fn nginx_takes_the_way_to_the_simulator() {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    assert!(std::path::Path::new(MODULE).is_file(), "{MODULE} is not installed: run `make tools`");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nginx.conf");
    // The image of compose.yaml is newer: it has the module built in, and asks for names again.
    let config = deploy("compose/nginx-trial.conf")
        .replace("/var/run/", "")
        .replace(" resolve;", ";")
        .replace("simulator:4010", "127.0.0.1:4010");
    std::fs::write(&file, format!("load_module {MODULE};\n{config}")).unwrap();
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let mut nginx = Command::new("nginx");
    succeeds(nginx.env("PATH", path).args(["-t", "-p"]).arg(folder.path()).arg("-c").arg(&file));
}
