//! deploy/helm/callvault: by helm, and its manifests against Kubernetes' schemas.

use std::path::PathBuf;
use std::process::Command;

use callvault::config::SETTINGS;
use serde_json::Value;

use crate::support::{deploy, python_tool, root, yaml};
use crate::{said, succeeds};

/// The oldest that the chart names, one in wide use, and the newest.
const KUBERNETES: &[&str] = &["1.27", "1.31", "1.37"];

/// What must be given, and nothing else: one node on a volume.
const ONE: &[&str] = &["publicUrl=https://recordings.example.com", "adminKey.existingSecret.name=callvault"];
/// Several nodes on PostgreSQL and MinIO.
const MANY: &[&str] = &[
    "publicUrl=https://recordings.example.com",
    "adminKey.existingSecret.name=callvault",
    "replicaCount=3",
    "database.existingSecret.name=database",
    "bucket.url=s3://recordings",
    "bucket.endpoint=http://minio.storage.svc:9000",
    "bucket.publicEndpoint=https://media.example.com",
    "bucket.existingSecret.name=bucket",
    "twilio.accountSid=ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "twilio.existingSecret.name=twilio",
];
/// All that can be switched on.
const ALL: &[&str] = &[
    "bucket.linkKeys.existingSecret.name=links",
    "twilio.existingSecret.apiKeyKey=api-key",
    "twilio.existingSecret.apiSecretKey=api-secret",
    "autoscaling.enabled=true",
    "ingress.enabled=true",
    "ingress.className=nginx",
    "metrics.serviceMonitor.enabled=true",
    "metrics.prometheusRule.enabled=true",
    "metrics.prometheusRule.rules=groups: []",
    "settings.CALLVAULT_LINK_TTL=2h",
    "config=formats = [\"mp3\"]",
    "secretFiles={twilio}",
    "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
    "serviceAccount.annotations.role=recordings",
];

fn helm(command: &[&str], values: &[&str]) -> Command {
    let program: PathBuf = root().join("target/test-tools/bin/helm");
    assert!(program.is_file(), "helm is not installed: run `make tools`, or `tests/install-tools.sh`");
    let mut helm = Command::new(program);
    // A helm that go built itself knows no version of Kubernetes.
    helm.args(command).args(["--kube-version", "1.31"]).arg(root().join("deploy/helm/callvault"));
    for value in values {
        helm.args(["--set", value]);
    }
    helm
}

fn every_set() -> [Vec<&'static str>; 3] {
    [ONE.to_vec(), MANY.to_vec(), [MANY, ALL].concat()]
}

fn template(values: &[&str]) -> Vec<Value> {
    yaml(&succeeds(&mut helm(&["template", "callvault"], values)))
}

fn find<'a>(manifests: &'a [Value], kind: &str) -> Option<&'a Value> {
    manifests.iter().find(|manifest| manifest["kind"] == kind)
}

fn pod(manifests: &[Value]) -> &Value {
    &find(manifests, "Deployment").unwrap()["spec"]["template"]["spec"]
}

#[test]
fn helm_lint_finds_nothing() {
    for values in every_set() {
        succeeds(&mut helm(&["lint", "--strict"], &values));
    }
}

#[test]
fn every_manifest_is_what_kubernetes_takes() {
    let folder = tempfile::tempdir().unwrap();
    for values in every_set() {
        // Those of the Prometheus operator are no kinds of Kubernetes itself.
        let of_kubernetes =
            |manifest: &Value| !manifest["apiVersion"].as_str().unwrap().starts_with("monitoring.coreos.com/");
        let manifests: Vec<String> =
            template(&values).into_iter().filter(of_kubernetes).map(|manifest| manifest.to_string()).collect();
        let file = folder.path().join("manifests.yaml");
        std::fs::write(&file, manifests.join("\n---\n")).unwrap();
        for version in KUBERNETES {
            succeeds(Command::new(python_tool("kubernetes-validate")).args(["-k", version, "--strict"]).arg(&file));
        }
    }
}

#[test]
fn a_mistake_in_a_manifest_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("manifests.yaml");
    let mut deployment = find(&template(MANY), "Deployment").unwrap().clone();
    deployment["spec"]["replicas"] = "three".into();
    std::fs::write(&file, deployment.to_string()).unwrap();
    let mut validate = Command::new(python_tool("kubernetes-validate"));
    assert!(!validate.args(["-k", "1.31", "--strict"]).arg(&file).output().unwrap().status.success());
}

#[test]
fn what_would_come_up_and_not_do_is_refused() {
    let refused = |values: &[&str], why: &str| {
        let output = helm(&["template", "callvault"], values).output().unwrap();
        assert!(!output.status.success() && said(&output).contains(why), "{values:?}: {}", said(&output));
    };
    refused(&[ONE, &["replicaCount=2"]].concat(), "more than one node needs PostgreSQL");
    refused(&[ONE, &["autoscaling.enabled=true"]].concat(), "more than one node needs PostgreSQL");
    refused(&[ONE, &["database.existingSecret.name=database"]].concat(), "PostgreSQL needs a bucket");
    refused(&[MANY, &["drainSeconds=25"]].concat(), "drainSeconds");
    refused(&ONE[..1], "adminKey.existingSecret.name");
    refused(&ONE[1..], "publicUrl");
    // Secrets by reference alone, and no name that nobody knows.
    refused(&[MANY, &["settings.CALLVAULT_ADMIN_KEY=secret"]].concat(), "CALLVAULT_ADMIN_KEY");
    refused(&[MANY, &["settings.CALLVAULT_TWILIO_AUTH_TOKEN=secret"]].concat(), "CALLVAULT_TWILIO_AUTH_TOKEN");
    refused(&[MANY, &["databse.url=postgres://"]].concat(), "databse");
}

#[test]
fn every_variable_is_a_setting_and_every_secret_a_reference() {
    for values in every_set() {
        let manifests = template(&values);
        for variable in pod(&manifests)["containers"][0]["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            let setting = SETTINGS.iter().find(|setting| setting.env == name);
            assert!(setting.is_some() || name == "CALLVAULT_CONFIG", "{name} is no setting");
            let by_reference = variable["valueFrom"]["secretKeyRef"]["name"].is_string();
            assert_eq!(by_reference, setting.is_some_and(|setting| setting.is_secret()), "{variable}");
        }
        assert!(find(&manifests, "Secret").is_none());
    }
    let manifests = template(&[MANY, ALL].concat());
    let variables = pod(&manifests)["containers"][0]["env"].as_array().unwrap();
    let of = |name: &str| variables.iter().find(|variable| variable["name"] == name).unwrap();
    assert_eq!(of("CALLVAULT_TWILIO_API_KEY")["valueFrom"]["secretKeyRef"]["key"], "api-key");
    assert_eq!(of("CALLVAULT_LINK_TTL")["value"], "2h");
    assert_eq!(of("AWS_ACCESS_KEY_ID")["valueFrom"]["secretKeyRef"]["name"], "bucket");
}

#[test]
fn a_pod_is_locked_down_probed_and_given_time_to_hand_over() {
    for values in every_set() {
        let manifests = template(&values);
        let pod = pod(&manifests);
        let container = &pod["containers"][0];
        assert_eq!(pod["enableServiceLinks"], false);
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz");
        // Above the 25 s of CALLVAULT_SHUTDOWN_TIMEOUT.
        assert_eq!(pod["terminationGracePeriodSeconds"], 35);
        let strategy = &find(&manifests, "Deployment").unwrap()["spec"]["strategy"];
        let expected = if values == ONE { "Recreate" } else { "RollingUpdate" };
        assert_eq!(strategy["type"], expected);
    }
}

#[test]
fn the_world_reaches_the_webhook_and_the_shares_alone() {
    assert!(find(&template(MANY), "Ingress").is_none());
    let manifests = template(&[MANY, ALL].concat());
    let rule = &find(&manifests, "Ingress").unwrap()["spec"]["rules"][0];
    assert_eq!(rule["host"], "recordings.example.com");
    let paths = rule["http"]["paths"].as_array().unwrap();
    let paths: Vec<_> =
        paths.iter().map(|path| (path["path"].as_str().unwrap(), path["pathType"].as_str().unwrap())).collect();
    assert_eq!(paths, [("/webhooks/twilio/recording", "Exact"), ("/s", "Prefix")]);
    // Metrics need no key on their port: it is not the one of the Ingress.
    let main = manifests.iter().find(|manifest| manifest["kind"] == "Service").unwrap();
    assert_eq!(main["spec"]["ports"].as_array().unwrap().len(), 1);
}

/// The annotations that the values have as an example, in a file of values.
fn example_of_annotations() -> String {
    let values = deploy("helm/callvault/values.yaml");
    let (_, example) = values.split_once("in the annotations of ingress-nginx:\n").expect("there is an example");
    let lines = example.lines().skip(1).map_while(|line| line.strip_prefix("  #   "));
    lines.fold("ingress:\n".to_owned(), |text, line| format!("{text}  {line}\n"))
}

/// That nginx does so then, tests/it/topology.rs shows with the compose file's configuration.
#[test]
fn the_example_for_an_ingress_repeats_what_the_balancer_of_the_compose_file_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    std::fs::write(&file, example_of_annotations()).unwrap();
    let mut helm = helm(&["template", "callvault"], &[MANY, &["ingress.enabled=true"]].concat());
    let manifests = yaml(&succeeds(helm.arg("--values").arg(&file)));
    let annotations = &find(&manifests, "Ingress").unwrap()["metadata"]["annotations"];
    let of = |name: &str| annotations[format!("nginx.ingress.kubernetes.io/{name}")].as_str();
    let nginx = deploy("compose/nginx.conf");
    let directive = |name: &str| {
        let found = nginx.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("nginx.conf has no {name}")).trim_end_matches(';').trim_end_matches('s')
    };
    for name in ["proxy-next-upstream", "proxy-next-upstream-tries", "proxy-connect-timeout", "proxy-read-timeout"] {
        assert_eq!(of(name), Some(directive(&name.replace('-', "_"))), "{name}");
    }
    assert_eq!(of("enable-access-log"), Some("false"), "paths are shares");
    assert_eq!(annotations.as_object().unwrap().len(), 5, "{annotations}");
}

#[test]
fn the_network_policy_opens_what_the_values_name() {
    let manifests = template(MANY);
    let policy = &find(&manifests, "NetworkPolicy").unwrap()["spec"];
    let ports =
        |rule: &Value| rule["ports"].as_array().unwrap().iter().map(|port| port["port"].clone()).collect::<Vec<_>>();
    let opened: Vec<Value> = policy["egress"].as_array().unwrap().iter().flat_map(ports).collect();
    assert_eq!(opened, [53, 53, 443, 5432, 9000]);
    assert_eq!(policy["policyTypes"], serde_json::json!(["Ingress", "Egress"]));
}

#[test]
fn several_nodes_are_spared_and_scaled_together() {
    assert!(find(&template(ONE), "PodDisruptionBudget").is_none());
    let manifests = template(&[MANY, ALL].concat());
    assert_eq!(find(&manifests, "PodDisruptionBudget").unwrap()["spec"]["maxUnavailable"], 1);
    assert_eq!(find(&manifests, "HorizontalPodAutoscaler").unwrap()["spec"]["scaleTargetRef"]["name"], "callvault");
    // Its replicas are the autoscaler's to say.
    assert!(find(&manifests, "Deployment").unwrap()["spec"]["replicas"].is_null());
    assert_eq!(find(&template(MANY), "Deployment").unwrap()["spec"]["replicas"], 3);
}

#[test]
fn the_alerts_go_in_as_they_are() {
    let file = root().join("deploy/alerts/callvault.yaml");
    let rules = format!("metrics.prometheusRule.rules={}", file.display());
    let mut helm = helm(&["template", "callvault"], &[MANY, &["metrics.prometheusRule.enabled=true"]].concat());
    let manifests = yaml(&succeeds(helm.args(["--set-file", &rules])));
    let expected = yaml(&std::fs::read_to_string(file).unwrap()).remove(0);
    assert_eq!(find(&manifests, "PrometheusRule").unwrap()["spec"], expected);
}
