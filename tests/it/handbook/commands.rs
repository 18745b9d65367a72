//! How a command gets the settings of a node, as the guide says it of compose, Kubernetes
//! and systemd. What starts it there is put aside; that it names what is there is looked at.

use serde_json::{Value, json};

use crate::support::compose::{compose, deploy, root, trial_env, yaml};
use crate::support::pages::{Terminal, commands};
use crate::support::world::{Parts, World};

/// The manifests of a release with the name that the pages give it.
fn manifests() -> Vec<Value> {
    let mut helm = std::process::Command::new(root().join("target/test-tools/bin/helm"));
    helm.args(["template", "callvault", "--kube-version", "1.31"]).arg(root().join("deploy/helm/callvault"));
    helm.args(["--set", "publicUrl=https://recordings.example.com,adminKey.existingSecret.name=callvault"]);
    let made = helm.output().expect("helm is not installed: run `make tools`, or `tests/install-tools.sh`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    yaml(&String::from_utf8(made.stdout).unwrap())
}

fn named<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    let found =
        manifests.iter().find(|manifest| manifest["kind"] == kind && manifest["metadata"]["name"] == "callvault");
    found.unwrap_or_else(|| panic!("no {kind} is called callvault"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_where_a_node_does_and_where_none_does() {
    let [in_compose, in_a_pod, in_its_own_pod, by_systemd] = commands("deploy/OPERATING.md", "Running a command");
    let world = World::new(Parts::Servers).await;
    let mut terminal = Terminal::new(&world.folder(), &world.settings);

    let compose = compose(&trial_env());
    assert!(compose["services"]["node-1"].is_object());
    let engine = "docker compose --env-file deploy/compose/trial.env -f deploy/compose.yaml ";
    terminal.put_in(&format!("{engine}exec node-1 callvault "), "callvault ");
    // Its image begins with the program.
    assert!(deploy("Dockerfile").contains("ENTRYPOINT [\"callvault\"]"));
    terminal.put_in(&format!("{engine}run --rm --no-deps node-1 "), "callvault ");
    terminal.put_in("kubectl exec deploy/callvault -- ", "");
    let before_it = "systemd-run --quiet --collect --wait --pipe --property=User=callvault --property=UMask=0077 \\\n  \
                     --property=WorkingDirectory=/var/lib/callvault \\\n  \
                     --property=EnvironmentFile=/etc/callvault/callvault.env /usr/local/bin/";
    terminal.put_in(before_it, "");
    let _node = world.start().await;
    for block in [&in_compose, &in_a_pod, &by_systemd] {
        // What the doctor finds is another test's: it found the settings.
        let ran = terminal.run(&block.replace("doctor", "doctor --json || test $? = 1")).await;
        assert!(ran.status.success(), "{block}{}", String::from_utf8_lossy(&ran.stderr));
        let told = String::from_utf8_lossy(&ran.stdout);
        assert!(told.contains("catalog") && told.contains(world.bucket()), "{block}{told}");
    }

    let manifests = manifests();
    let deployment = world.folder().join("deployment.json");
    std::fs::write(&deployment, named(&manifests, "Deployment").to_string()).unwrap();
    terminal.put_in("kubectl get deployment callvault -o json", format!("cat {}", deployment.display()));
    terminal.put_in("kubectl create -f -", "cat");
    terminal.put_in("kubectl logs --follow --pod-running-timeout=5m callvault-command", "");
    terminal.put_in("kubectl delete pod callvault-command", "");
    let pod: Value = serde_json::from_str(&terminal.does(&in_its_own_pod).await).expect("a manifest");
    let mut expected = named(&manifests, "Deployment")["spec"]["template"]["spec"].clone();
    expected["restartPolicy"] = json!("Never");
    let container = expected["containers"][0].as_object_mut().unwrap();
    container.insert("args".to_owned(), json!(["reindex"]));
    container.remove("livenessProbe").expect("it would be killed: nothing listens in it");
    assert!(container.contains_key("readinessProbe"), "else requests would be sent to it");
    assert_eq!((&pod["kind"], &pod["metadata"]["name"]), (&json!("Pod"), &json!("callvault-command")));
    assert_eq!(pod["spec"], expected);

    // The addresses that the guide gives for the inside.
    let guide = deploy("OPERATING.md");
    let port = &named(&manifests, "Service")["spec"]["ports"][0]["port"];
    assert_eq!(port, 80, "of http://callvault.NAMESPACE.svc and kubectl port-forward");
    assert!(guide.contains("`kubectl port-forward service/callvault 8080:80`"));
    assert!(guide.contains("http://callvault.NAMESPACE.svc`"));
    assert_eq!(compose["services"]["nginx"]["ports"], json!(["8080:8080"]), "of http://127.0.0.1:8080");
}

/// What the world sees of a service is the webhook and the shares: nothing to ask for the rest.
#[test]
fn no_page_asks_the_service_by_its_public_name() {
    for path in crate::support::pages::pages() {
        for line in crate::support::pages::page(&path).lines().filter(|line| line.contains("CALLVAULT_URL")) {
            assert!(!line.contains("https://recordings.example.com"), "{path}: {line}");
        }
    }
}
