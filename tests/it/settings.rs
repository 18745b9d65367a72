//! Wrong settings end `serve` with 2 before the port is open.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::servers::free_port;
use crate::support::world::debug_binary;

/// What comes of `serve` with settings that it should not take.
fn serve(folder: &Path, settings: &[(&str, &str)]) -> Output {
    let mut process = Command::new(debug_binary())
        .arg("serve")
        .current_dir(folder)
        .env_clear()
        .env("CALLVAULT_LISTEN", format!("127.0.0.1:{}", free_port()))
        .envs(settings.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut said = String::new();
    let mut lines = BufReader::new(process.stderr.take().expect("it is piped"));
    while lines.read_line(&mut said).expect("it speaks UTF-8") > 0 {
        if said.contains("listening") {
            process.kill().expect("it still runs");
            panic!("{settings:?} were taken: {said}");
        }
    }
    Output { stderr: said.into_bytes(), ..process.wait_with_output().expect("it has ended") }
}

#[test]
fn a_wrong_setting_of_each_kind_names_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad_key = file("bad_key.toml", "leese = \"30s\"\n");
    let bad_account = file("bad_account.toml", "[[accounts]]\nsid = \"AC1\"\nauth_token = \"hunter2\"\n");
    let not_toml = file("not.toml", "lease = \n");
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&[("CALLVAULT_LEASE", "thirty")], &["CALLVAULT_LEASE", "thirty", "30s"]),
        (&[("CALLVAULT_MEMORY_BUDGET", "lots")], &["CALLVAULT_MEMORY_BUDGET", "lots", "256MiB"]),
        (&[("CALLVAULT_LISTEN", "nowhere")], &["CALLVAULT_LISTEN", "nowhere", "127.0.0.1:8080"]),
        (&[("CALLVAULT_PUBLIC_URL", "calls.example.com")], &["CALLVAULT_PUBLIC_URL", "calls.example.com", "https://"]),
        (
            &[("CALLVAULT_PUBLIC_URL", "https://calls.example.com/webhooks/twilio/recording")],
            &["CALLVAULT_PUBLIC_URL", "what stands before /webhooks/twilio/recording"],
        ),
        (&[("CALLVAULT_FETCH_CONCURRENCY", "-1")], &["CALLVAULT_FETCH_CONCURRENCY", "-1", "from 1 to 1024"]),
        (&[("CALLVAULT_FORMATS", "flac")], &["CALLVAULT_FORMATS", "flac", "mp3"]),
        (&[("CALLVAULT_LOG_FORMAT", "xml")], &["CALLVAULT_LOG_FORMAT", "xml", "json"]),
        (&[("CALLVAULT_LOG", "loud")], &["CALLVAULT_LOG", "loud", "info,callvault=debug"]),
        (&[("CALLVAULT_DATABASE_URL", "sqlite:///no/where/x.db")], &["CALLVAULT_DATABASE_URL", "/no/where"]),
        (&[("CALLVAULT_DATABASE_URL", "mysql://root:hunter2@db/x")], &["CALLVAULT_DATABASE_URL", "postgres://"]),
        (&[("CALLVAULT_DATABASE_URL", "postgres://db/x")], &["CALLVAULT_BUCKET_URL"]),
        (&[("CALLVAULT_ADMIN_KEY_FILE", "/nowhere")], &["CALLVAULT_ADMIN_KEY_FILE", "/nowhere"]),
        (&[("CALLVAULT_TWILIO_AUTH_TOKEN", "hunter2")], &["CALLVAULT_TWILIO_ACCOUNT_SID"]),
        (&[("CALLVAULT_EVICT_AFTER", "1h")], &["CALLVAULT_EVICT_AFTER", "CALLVAULT_LINK_TTL"]),
        (&[("CALLVAULT_DELETE_AT_TWILIO_AFTER", "7d")], &["CALLVAULT_DELETE_AT_TWILIO_AFTER", "CALLVAULT_BUCKET_URL"]),
        (
            &[
                ("CALLVAULT_BUCKET_URL", "s3://calls"),
                ("CALLVAULT_EVICT_AFTER", "30d"),
                ("CALLVAULT_DELETE_AT_TWILIO_AFTER", "30d"),
            ],
            &["CALLVAULT_EVICT_AFTER", "CALLVAULT_DELETE_AT_TWILIO_AFTER"],
        ),
        (
            &[
                ("CALLVAULT_BUCKET_URL", "s3://calls"),
                ("CALLVAULT_TWILIO_ACCOUNT_SID", "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
                ("CALLVAULT_TWILIO_AUTH_TOKEN", "hunter2"),
                ("CALLVAULT_RETENTION", "7d"),
                ("CALLVAULT_DELETE_AT_TWILIO_AFTER", "7d"),
            ],
            &["CALLVAULT_RETENTION", "CALLVAULT_DELETE_AT_TWILIO_AFTER", "erase_at_twilio"],
        ),
        (&[("CALLVAULT_LEESE", "30s")], &["CALLVAULT_LEESE", "CALLVAULT_LEASE"]),
        (&[("CALLVAULT_CONFIG", "/nowhere.toml")], &["CALLVAULT_CONFIG", "/nowhere.toml"]),
        (&[("CALLVAULT_CONFIG", &bad_key)], &["leese", "lease"]),
        (&[("CALLVAULT_CONFIG", &bad_account)], &["accounts[0].sid", "AC1"]),
        (&[("CALLVAULT_CONFIG", &not_toml)], &["CALLVAULT_CONFIG", "line 1"]),
    ];
    for (settings, expected) in cases {
        let ended = serve(folder.path(), settings);
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{settings:?}: {said}");
        for text in *expected {
            assert!(said.contains(text), "{settings:?}: {text:?} is not in {said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
        assert!(ended.stdout.is_empty());
    }
    assert!(!folder.path().join("callvault.db").exists() && !folder.path().join("callvault-data").exists());
}

#[test]
fn wrong_usage_is_2_and_help_teaches() {
    let run = |args: &[&str]| Command::new(debug_binary()).args(args).env_clear().output().unwrap();
    assert_eq!(run(&["sing"]).status.code(), Some(2));
    assert_eq!(run(&["serve", "--loudly"]).status.code(), Some(2));
    let help = run(&["serve", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("deploy/callvault.toml"));
}

#[test]
fn a_port_that_is_taken_is_1_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let ended = serve(folder.path(), &[("CALLVAULT_LISTEN", &format!("127.0.0.1:{port}"))]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains(&port.to_string()), "{said}");
}
