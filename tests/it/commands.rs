//! The commands, as people and scripts call them.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use callvault::domain::digest::Digest;
use callvault::twilio::simulator::{Fault, speech_mp3};
use serde_json::Value;

use crate::support::python::PYTHON;
use crate::support::secrets::Forbidden;
use crate::support::servers::free_port;
use crate::support::world::{ADMIN_KEY, Parts, Service, World, call_sid, debug_binary};

fn run(folder: &std::path::Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(debug_binary());
    command.args(args).current_dir(folder).env_clear().envs(env.iter().copied());
    let output = command.output().expect("the binary starts");
    let settings = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Forbidden::of(&settings, folder).is_not_in(&stderr(&output));
    output
}

fn get(service: &Service, folder: &std::path::Path, args: &[&str]) -> Output {
    let env = [("CALLVAULT_URL", service.url.as_str()), ("CALLVAULT_API_KEY", ADMIN_KEY)];
    run(folder, &[&["get"], args].concat(), &env)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

on_all_parts! {
    async fn get_fetches_and_checks(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(&speech_mp3());

        let by_call = get(&service, folder.path(), &[call_sid(1).as_str()]);
        assert_eq!(by_call.status.code(), Some(0), "{}", stderr(&by_call));
        let name = format!("{}.mp3", id.recording);
        assert_eq!(String::from_utf8_lossy(&by_call.stdout), format!("{name}\n"));
        assert_eq!(Digest::of(&std::fs::read(folder.path().join(&name)).unwrap()), digest);

        let by_name = get(&service, folder.path(), &[id.recording.as_str(), "-o", "call.mp3"]);
        assert_eq!(by_name.status.code(), Some(0), "{}", stderr(&by_name));
        assert_eq!(Digest::of(&std::fs::read(folder.path().join("call.mp3")).unwrap()), digest);

        let to_stdout = get(&service, folder.path(), &[id.recording.as_str(), "-o", "-"]);
        assert_eq!(Digest::of(&to_stdout.stdout), digest);
    }

    async fn get_waits_for_what_is_on_its_way(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.script(id.recording, vec![Fault::NotReady; 6]);
        service.deliver(&world.callback(id.recording)).await;
        let folder = tempfile::tempdir().unwrap();
        let (url, sid) = (service.url.clone(), call_sid(1));
        let path = folder.path().to_owned();
        let got = tokio::task::spawn_blocking(move || {
            run(&path, &["get", sid.as_str()], &[("CALLVAULT_URL", &url), ("CALLVAULT_API_KEY", ADMIN_KEY)])
        });
        let got = got.await.unwrap();
        assert_eq!(got.status.code(), Some(0), "{}", stderr(&got));
    }

    async fn get_goes_on_when_the_service_restarts(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.always(id.recording, Some(Fault::NotReady));
        service.deliver(&world.callback(id.recording)).await;
        let folder = tempfile::tempdir().unwrap();
        service.kill();
        // In its place, for as long as it takes to be asked once.
        let nobody = tokio::net::TcpListener::bind(("127.0.0.1", service.port)).await.unwrap();
        let mut get = tokio::process::Command::new(debug_binary());
        get.args(["get", call_sid(1).as_str()]).current_dir(folder.path()).env_clear();
        get.env("CALLVAULT_URL", &service.url).env("CALLVAULT_API_KEY", ADMIN_KEY);
        let got = tokio::spawn(async move { get.output().await.expect("the binary starts") });
        drop(nobody.accept().await.unwrap());
        drop(nobody);
        world.simulator.always(id.recording, None);
        let _again = world.start_on(service.port, debug_binary()).await;
        let got = got.await.unwrap();
        assert_eq!(got.status.code(), Some(0), "{}", stderr(&got));
    }

    async fn get_says_what_is_wrong_and_leaves_nothing(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        let shown = service.recording_in(id.recording, "stored").await;
        let folder = tempfile::tempdir().unwrap();

        let unknown = get(&service, folder.path(), &[call_sid(404).as_str(), "--timeout", "5m"]);
        assert_eq!(unknown.status.code(), Some(1));
        assert!(stderr(&unknown).contains("not_found"), "{}", stderr(&unknown));

        // Someone with the bucket's keys overwrites the object.
        let key = object_store::path::Path::from(shown["key"].as_str().unwrap());
        let store = world.store(&service);
        object_store::ObjectStoreExt::put(&store.s3, &key, b"not what it was".as_slice().into()).await.unwrap();
        let spoilt = get(&service, folder.path(), &[id.recording.as_str()]);
        assert_eq!(spoilt.status.code(), Some(1));
        assert!(stderr(&spoilt).contains("SHA-256"), "{}", stderr(&spoilt));

        let wrong_key = run(folder.path(), &["get", id.recording.as_str()], &[
            ("CALLVAULT_URL", &service.url), ("CALLVAULT_API_KEY", "wrong")]);
        assert_eq!(wrong_key.status.code(), Some(1));
        assert!(stderr(&wrong_key).contains("unauthorized"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        for (args, env) in [
            (vec!["get", "nonsense"], vec![("CALLVAULT_URL", "http://x"), ("CALLVAULT_API_KEY", "k")]),
            (vec!["get", id.recording.as_str()], vec![("CALLVAULT_API_KEY", "k")]),
            (vec!["get", id.recording.as_str()], vec![("CALLVAULT_URL", "x"), ("CALLVAULT_API_KEY", "k")]),
        ] {
            let ended = run(folder.path(), &args, &env);
            assert_eq!(ended.status.code(), Some(2), "{args:?}: {}", stderr(&ended));
        }
    }
}

#[test]
fn commands_in_a_folder_without_a_catalog_say_so_and_make_none() {
    let folder = tempfile::tempdir().unwrap();
    let files =
        || -> Vec<_> { std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect() };
    let account = [
        ("CALLVAULT_TWILIO_ACCOUNT_SID", "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        ("CALLVAULT_TWILIO_AUTH_TOKEN", "auth-token"),
    ];
    let is_refused = |args: &[&str], what: &str| {
        let ended = run(folder.path(), args, &account);
        let told = stderr(&ended);
        assert_eq!(ended.status.code(), Some(1), "{args:?}: {told}");
        assert!(told.contains(&format!("there is no {what}")) && told.contains("callvault serve"), "{args:?}: {told}");
    };
    for args in [
        &["verify", "--repair"][..],
        &["backfill"],
        &["backfill", "--dry-run"],
        &["keys", "list"],
        &["keys", "revoke", "key_0123456789abcdef"],
        &["keys", "rotate"],
    ] {
        is_refused(args, "catalog");
    }
    // The bucket is enough for it, where there is one.
    is_refused(&["reindex"], "embedded store");
    assert!(files().is_empty(), "{:?}", files());

    // The first key may be made before the first node is started.
    let made = run(folder.path(), &["keys", "create", "--scope", "read"], &account);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert!(stderr(&made).contains("The catalog is new"), "{}", stderr(&made));
    let listed = run(folder.path(), &["keys", "list", "--json"], &account);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    is_refused(&["verify"], "embedded store");
    assert!(!folder.path().join("callvault-data").exists());
}

#[test]
fn a_part_that_is_away_is_told_of_once_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let made = run(folder.path(), &["keys", "create", "--scope", "read"], &[]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let settings = [
        ("CALLVAULT_BUCKET_URL", "s3://recordings"),
        ("CALLVAULT_S3_ENDPOINT", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "callvault"),
        ("AWS_SECRET_ACCESS_KEY", "secret-access-key"),
        ("AWS_REGION", "us-east-1"),
    ];
    for command in ["verify", "reindex"] {
        let ended = run(folder.path(), &[command], &settings);
        let why =
            "callvault: the bucket cannot be used: the bucket's store failed: Connection refused (os error 111)\n";
        assert_eq!((ended.status.code(), stderr(&ended).as_str()), (Some(1), why));
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("callvault.db"), "another program's file").unwrap();
    let ended = run(folder.path(), &["keys", "list"], &[]);
    let why = "callvault: the catalog's schema cannot be migrated: (code: 26) file is not a database\n";
    assert_eq!((ended.status.code(), stderr(&ended).as_str()), (Some(1), why));
}

#[test]
fn what_asks_twilio_wants_an_account() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["backfill", "simulate"] {
        let ended = run(folder.path(), &[command], &[]);
        assert_eq!(ended.status.code(), Some(2), "{command}: {}", stderr(&ended));
        assert!(stderr(&ended).contains("CALLVAULT_TWILIO_ACCOUNT_SID"), "{command}: {}", stderr(&ended));
    }
}

/// The embedded store is reached through the node that holds it, by its address,
/// whatever the name is under which the world knows the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_beside_a_node_reach_its_store_whatever_its_public_name() {
    let mut world = World::new(Parts::Embedded).await;
    world.set("CALLVAULT_PUBLIC_URL", "https://recordings.example.com");
    let service = world.start().await;
    let id = world.record(1);
    let url = format!("/2010-04-01/Accounts/{}/Recordings/{}", id.account, id.recording);
    assert_eq!(service.put(call_sid(1), &url).await.status(), 202);
    service.recording_in(id.recording, "stored").await;
    let settings: Vec<(&str, &str)> =
        world.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // It lists, and reads back.
    let verified = run(&world.folder(), &["verify"], &settings);
    assert_eq!(verified.status.code(), Some(0), "{}", stderr(&verified));
    // It deletes, and asks what the bucket is like. The public name leads nowhere here.
    let seen = run(&world.folder(), &["doctor", "--json"], &settings);
    let report: Value = serde_json::from_slice(&seen.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let not_well = checks.iter().filter(|check| check["status"] != "ok").map(|check| &check["check"]);
    assert_eq!(not_well.collect::<Vec<_>>(), ["public_url"], "{report}");
}

/// As with `callvault openapi | head`: whoever reads stops when they have read enough.
#[test]
fn a_reader_that_has_read_enough_ends_a_command_in_silence() {
    let mut command = Command::new(debug_binary());
    command.arg("openapi").env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut printing = command.spawn().expect("the binary starts");
    drop(printing.stdout.take());
    let ended = printing.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), stderr(&ended).as_str()), (Some(0), ""));
}

#[test]
fn the_demo_holds_on_a_machine_with_nothing_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let ended = run(folder.path(), &["demo", "--once"], &[("TMPDIR", temporary.to_str().unwrap())]);
    let told = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(ended.status.code(), Some(0), "{told}{}", stderr(&ended));
    for text in ["204 in", "fetched    once", "0 further fetches", "read back", "good for", "Every step held"] {
        assert!(told.contains(text), "{text:?} is not told:\n{told}");
    }
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "it leaves nothing behind");
}

#[test]
fn the_demos_link_plays_in_a_browser_and_its_advice_works() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Command::new(debug_binary());
    demo.arg("demo").current_dir(folder.path()).env_clear().env("TMPDIR", folder.path()).stdout(Stdio::piped());
    let mut demo = demo.spawn().expect("the binary starts");
    let lines = BufReader::new(demo.stdout.take().expect("stdout is a pipe")).lines().map_while(Result::ok);
    let mut told: Vec<String> = Vec::new();
    for line in lines {
        let over = line.contains("Ctrl-C");
        told.push(line);
        if over {
            break;
        }
    }
    let link = told.iter().find(|line| line.contains("X-Amz-Signature=")).expect("a link").clone();
    let played =
        Command::new(PYTHON).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/plays.py")).arg(&link).output();
    let played = played.expect("the tests' Python is not installed: run `make test`, or tests/install-tools.sh");
    assert!(played.status.success(), "{}", stderr(&played));
    let played: Value = serde_json::from_slice(&played.stdout).unwrap();
    assert!((6.3..6.6).contains(&played["duration"].as_f64().unwrap()), "{played}");

    let advice: Vec<&String> =
        told.iter().filter(|line| line.contains("Bearer") || line.contains("callvault get")).collect();
    assert_eq!(advice.len(), 3, "{told:?}");
    let path = format!("{}:/usr/bin:/bin", debug_binary().parent().unwrap().display());
    for line in advice {
        let shell =
            Command::new("sh").args(["-ec", line]).current_dir(folder.path()).env("PATH", &path).output().unwrap();
        assert!(shell.status.success(), "{line}: {}", stderr(&shell));
    }
    assert_eq!(std::fs::read(folder.path().join("call.mp3")).unwrap(), speech_mp3());

    Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("callvault-demo")), "{left:?}");
}
