//! Settings as people write them, and what they are told of wrong ones.

use super::*;

const SID: &str = "AC0123456789abcdef0123456789abcdef";

fn load(env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(env.iter().map(|(name, value)| (name.into(), value.into())))
}

fn problems(env: &[(&str, &str)]) -> String {
    load(env).expect_err("these settings are wrong").to_string()
}

/// Settings with a file, in which `DIR` stands for its folder.
fn load_file(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "from-a-file\n").unwrap();
    let path = dir.path().join("callvault.toml");
    std::fs::write(&path, text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
    let env = env.iter().copied().chain([("CALLVAULT_CONFIG", path.to_str().unwrap())]);
    load(&env.collect::<Vec<_>>())
}

#[test]
fn defaults_are_those_of_the_table() {
    let config = load(&[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert!(matches!(&config.database, Database::Sqlite(path) if path.as_os_str() == "callvault.db"));
    assert!(matches!(&config.bucket, BucketConfig::Embedded(path) if path.as_os_str() == "callvault-data"));
    assert_eq!(config.links.ttl, Duration::from_secs(3600));
    assert_eq!(config.memory_budget_bytes, 256 << 20);
    assert_eq!(config.max_recording_bytes, 4 << 30);
    assert_eq!(config.scrub_every, Some(Duration::from_secs(30 * 86_400)));
    assert_eq!(config.retention, None);
    assert!(config.accounts.is_empty());
}

#[test]
fn every_wrong_value_names_itself_and_what_is_right() {
    let wrong = [
        ("CALLVAULT_LISTEN", "8080", "127.0.0.1:8080"),
        ("CALLVAULT_METRICS_LISTEN", "here", "an IP address and a port"),
        ("CALLVAULT_PUBLIC_URL", "recordings.example.com", "https://"),
        ("CALLVAULT_DATABASE_MAX_CONNECTIONS", "many", "a whole number from 2 to 1000"),
        ("CALLVAULT_BUCKET_URL", "https://bucket", "s3://bucket"),
        ("CALLVAULT_BUCKET_URL", "s3://Bad_Name", "s3://bucket"),
        ("CALLVAULT_BUCKET_URL", "s3://bucket/a/../b", "s3://bucket"),
        ("CALLVAULT_TWILIO_ACCOUNT_SID", "AC123", "AC and 32 hex digits"),
        ("CALLVAULT_TWILIO_ORIGIN", "http://api.twilio.com", "https://api.twilio.com"),
        ("CALLVAULT_TWILIO_ORIGIN", "http://localhost:4010", "a loopback address"),
        ("CALLVAULT_CA_FILE", "/nowhere.pem", "readable PEM"),
        ("CALLVAULT_CORS_ORIGINS", "*", "an exact origin"),
        ("CALLVAULT_FORMATS", "mp3,ogg", "`mp3`, `wav` or `base`"),
        ("CALLVAULT_FORMATS", "mp3,mp3", "nothing stands twice"),
        ("CALLVAULT_LINK_TTL", "1500ms", "whole seconds"),
        ("CALLVAULT_LINK_TTL", "7d", "more than 7d"),
        ("CALLVAULT_FETCH_CONCURRENCY", "0", "a whole number from 1 to 1024"),
        ("CALLVAULT_MEMORY_BUDGET", "1MiB", "at least 32MiB"),
        ("CALLVAULT_MAX_RECORDING_SIZE", "6GB", "at most 5GB"),
        ("CALLVAULT_LEASE", "30", "a duration"),
        ("CALLVAULT_LEASE", "10ms", "at least 1s"),
        ("CALLVAULT_RETRY_BASE", "1h", "CALLVAULT_RETRY_CAP: is shorter"),
        ("CALLVAULT_RECONCILE_EVERY", "never", "or off"),
        ("CALLVAULT_EVENTS_URL", "https://x.example/hook", "CALLVAULT_EVENTS_SECRET: is not set"),
        ("CALLVAULT_EVENTS_TYPES", "recording.played", "recording.stored"),
        ("CALLVAULT_DELETE_AT_TWILIO_AFTER", "1d", "embedded store"),
        ("CALLVAULT_EVICT_AFTER", "1h", "longer than a link lives"),
        ("CALLVAULT_RECONCILE_EVERY", "49h", "longer than CALLVAULT_RECONCILE_WINDOW"),
        ("CALLVAULT_DRAIN", "25s", "shorter than CALLVAULT_SHUTDOWN_TIMEOUT"),
        ("CALLVAULT_LOG", "callvault=loud", "trace, debug, info"),
        ("CALLVAULT_LOG_FORMAT", "xml", "text or json"),
        ("CALLVAULT_S3_ENDPOINT", "http://127.0.0.1:9000", "CALLVAULT_BUCKET_URL is not"),
        ("CALLVAULT_TWILIO_AUTH_TOKEN", "secret-token", "CALLVAULT_TWILIO_ACCOUNT_SID: is not set"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "an http or https URL"),
        ("CALLVAULT_CONFIG", "/nowhere.toml", "cannot be read"),
        ("CALLVAULT_S3_ADDRESSING", "sideways", "auto, path or virtual"),
    ];
    for (name, value, expected) in wrong {
        let said = problems(&[(name, value)]);
        assert!(said.contains(name) && said.contains(expected), "{name}={value}: {said}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let said = problems(&[("CALLVAULT_LEASE", "x"), ("CALLVAULT_LISTEN", "y"), ("CALLVAULT_NONSENSE", "z")]);
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn the_value_of_a_secret_is_never_told() {
    let said = problems(&[
        ("CALLVAULT_DATABASE_URL", "mysql://root:hunter2@db/callvault"),
        ("CALLVAULT_ADMIN_KEY", "hunter2 hunter2"),
        ("CALLVAULT_EVENTS_SECRET", "hunter2"),
        ("CALLVAULT_TWILIO_PROXY", "socks5://user:hunter2@proxy"),
    ]);
    assert_eq!(said.lines().filter(|line| line.contains("not shown")).count(), 4, "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    let config =
        load(&[("CALLVAULT_DATABASE_URL", "postgres://u:hunter2@db/c"), ("CALLVAULT_BUCKET_URL", "s3://calls")]);
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn unknown_names_are_refused_and_foreign_ones_ignored() {
    assert!(problems(&[("CALLVAULT_LEESE", "30s")]).contains("did you mean CALLVAULT_LEASE?"));
    assert!(problems(&[("CALLVAULT_LISTEN_FILE", "/x")]).contains("CALLVAULT_LISTEN_FILE: is not a setting"));
    let foreign = [
        ("CALLVAULT_URL", "https://x"),
        ("CALLVAULT_API_KEY", "k"),
        ("CALLVAULT_CACHE_DIR", "/tmp"),
        ("CALLVAULT_SERVICE_HOST", "10.0.0.1"),
        ("CALLVAULT_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("HOME", "/root"),
    ];
    assert!(load(&foreign).is_ok());
}

#[test]
fn an_empty_value_is_unset() {
    assert!(load(&[("CALLVAULT_LEASE", ""), ("CALLVAULT_UNHEARD_OF", ""), ("CALLVAULT_CONFIG", "")]).is_ok());
}

#[test]
fn an_empty_value_of_the_file_is_unset_too() {
    let file = "bucket_url = \"\"\ntwilio_account_sid = \"\"\nlink_access_key_id = \"\"\nlease = \"\"\nunheard_of = \"\"\n\
                [[accounts]]\nsid = \"ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\nauth_token = \"t\"\nregion = \"\"\n";
    let config = load_file(file, &[]).unwrap();
    assert!(matches!(config.bucket, BucketConfig::Embedded(_)));
    assert!(load_file("formats = [\"wav\", \"\"]", &[]).is_err());
}

#[test]
fn the_password_in_a_wrong_url_is_not_told() {
    for name in ["CALLVAULT_PUBLIC_URL", "CALLVAULT_TWILIO_ORIGIN", "CALLVAULT_S3_ENDPOINT"] {
        let said = problems(&[("CALLVAULT_BUCKET_URL", "s3://calls"), (name, "https://user:hunter2@x.example/p@th")]);
        assert!(said.contains(name) && said.contains("x.example") && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn secrets_come_from_files_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "from-a-file\r\n").unwrap();
    let path = path.to_str().unwrap();
    let config = load(&[("CALLVAULT_TWILIO_ACCOUNT_SID", SID), ("CALLVAULT_TWILIO_AUTH_TOKEN_FILE", path)]).unwrap();
    let token = config.accounts[0].auth_token.as_ref().unwrap();
    assert_eq!(token.expose_secret(), "from-a-file");

    let twice = [("CALLVAULT_ADMIN_KEY", "a"), ("CALLVAULT_ADMIN_KEY_FILE", path)];
    assert!(problems(&twice).contains("given twice"));
    assert!(problems(&[("CALLVAULT_ADMIN_KEY_FILE", "/nowhere")]).contains("cannot be read"));
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = load_file("lease = \"10s\"\nretry_base = \"1s\"", &[("CALLVAULT_LEASE", "20s")]).unwrap();
    assert_eq!((config.lease, config.retry.base), (Duration::from_secs(20), Duration::from_secs(1)));
}

#[test]
fn accounts_come_from_the_file_and_the_environment() {
    let file = r#"
        formats = ["wav", "mp3"]
        retention = "90d"
        [[accounts]]
        sid = "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        auth_token_env = "TOKEN_A"
        secondary_auth_token = "second"
        region = "ie1"
        formats = "wav?RequestedChannels=2,mp3"
        retention = "off"
        [[accounts]]
        sid = "ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
        api_key = "SKx"
        api_secret_file = "DIR/secret"
        erase_at_twilio = true
    "#;
    let env = [("TOKEN_A", "token-a"), ("CALLVAULT_TWILIO_ACCOUNT_SID", SID), ("CALLVAULT_TWILIO_AUTH_TOKEN", "t")];
    let config = load_file(file, &env).unwrap();
    let [from_env, a, b] = &config.accounts[..] else { panic!("{config:?}") };
    assert_eq!(from_env.sid.as_str(), SID);
    assert_eq!(from_env.formats.iter().map(ToString::to_string).collect::<Vec<_>>(), ["wav", "mp3"]);
    assert_eq!(from_env.retention, Some(Duration::from_secs(90 * 86_400)));
    assert_eq!(a.auth_token.as_ref().unwrap().expose_secret(), "token-a");
    assert_eq!((a.region, a.retention), (Region::Ie1, None));
    assert_eq!(a.formats[0].to_string(), "wav?RequestedChannels=2");
    assert_eq!(b.api_key.as_ref().unwrap().secret.expose_secret(), "from-a-file");
    assert!(b.erase_at_twilio && !b.delete_discovered);
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_its_place() {
    let said = load_file(
        "leese = \"1s\"\n[[accounts]]\nsid = \"AC1\"\ntoken = \"hunter2\"\n[[accounts]]\nauth_token = \"hunter2\"\n\
         [[webhooks]]\nurl = \"x\"\n[[webhooks]]\nurl = \"https://a.example\"\n[[webhooks]]\nurl = \"https://a.example\"\n\
         secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\n[[webhooks]]\nurl = \"http://169.254.169.254/\"\n\
         [[webhooks]]\nurl = \"https://a.example\"",
        &[],
    );
    let said = said.unwrap_err().to_string();
    let expected = [
        "leese: is not a setting; did you mean lease?",
        "accounts[0].sid: \"AC1\" is wrong",
        "accounts[0].token: is not a setting",
        "accounts[0].auth_token: is not set",
        "accounts[1].sid: is not set",
        "webhooks[0].url: \"x\" is wrong",
        "webhooks[0].secret: is not set",
        "webhooks[3].url: \"http://169.254.169.254/\" is wrong",
        "webhooks[4].url: is the URL of another receiver",
    ];
    for line in expected {
        assert!(said.contains(line), "{line} in\n{said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
    let said = load_file("lease = \"1s\"\nadmin_key = \"hunter2\n", &[]).unwrap_err().to_string();
    assert!(said.contains("line 2") && !said.contains("hunter2"), "{said}");
}

#[test]
fn contradictions_are_refused() {
    let postgres = ("CALLVAULT_DATABASE_URL", "postgres://u@db/c");
    assert!(problems(&[postgres]).contains("CALLVAULT_BUCKET_URL: is not set"));
    let bucket = ("CALLVAULT_BUCKET_URL", "s3://calls/prefix");
    assert!(load(&[postgres, bucket]).is_ok());
    let both = [bucket, ("CALLVAULT_EVICT_AFTER", "30d"), ("CALLVAULT_DELETE_AT_TWILIO_AFTER", "30d")];
    assert!(problems(&both).contains("are both set"));
    let too_early = [("CALLVAULT_EVICT_AFTER", "75m")];
    assert!(problems(&too_early).contains("CALLVAULT_EVICT_AFTER: is not longer than a link lives"));
    let account = [("CALLVAULT_TWILIO_ACCOUNT_SID", SID), ("CALLVAULT_TWILIO_AUTH_TOKEN", "x"), bucket];
    let with = |more: [(&'static str, &'static str); 2]| [&account[..], &more[..]].concat();
    let in_vain = with([("CALLVAULT_RETENTION", "7d"), ("CALLVAULT_DELETE_AT_TWILIO_AFTER", "7d")]);
    assert!(problems(&in_vain).contains("stay at Twilio for ever"));
    assert!(load(&with([("CALLVAULT_RETENTION", "8d"), ("CALLVAULT_DELETE_AT_TWILIO_AFTER", "7d")])).is_ok());
    // What an account says for itself counts for it, and for no other one.
    let own = |settings: &str| {
        let account = format!("[[accounts]]\nsid = \"{SID}\"\nauth_token = \"x\"\n{settings}\n");
        load_file(&account, &[bucket, ("CALLVAULT_RETENTION", "1d"), ("CALLVAULT_DELETE_AT_TWILIO_AFTER", "7d")])
    };
    assert!(own("").unwrap_err().to_string().contains(SID));
    assert!(own("retention = \"7d\"").is_err());
    for right in ["retention = \"8d\"", "retention = \"off\"", "erase_at_twilio = true"] {
        assert!(own(right).is_ok(), "{right}");
    }
    let link_life = |ttl| load(&[("CALLVAULT_EVICT_AFTER", "76m"), ("CALLVAULT_LINK_TTL", ttl)]);
    assert!(link_life("1h").is_ok() && link_life("61m").is_err());
    let embedded = [("CALLVAULT_DELETE_AT_TWILIO_AFTER", "7d")];
    assert!(problems(&embedded).contains("is refused with the embedded store"));
    let half = [bucket, ("AWS_ACCESS_KEY_ID", "AKIA")];
    assert!(problems(&half).contains("AWS_SECRET_ACCESS_KEY: is not set"));
    let twice = format!("[[accounts]]\nsid = \"{SID}\"\nauth_token = \"x\"");
    let env = [("CALLVAULT_TWILIO_ACCOUNT_SID", SID), ("CALLVAULT_TWILIO_AUTH_TOKEN", "x")];
    assert!(load_file(&twice, &env).unwrap_err().to_string().contains("configured twice"));
}

#[test]
fn addressing_follows_the_endpoint_unless_it_is_said() {
    let path_style = |env: &[(&str, &str)]| match load(env).unwrap().bucket {
        BucketConfig::S3(s3) => s3.path_style,
        BucketConfig::Embedded(_) => panic!("embedded"),
    };
    let bucket = ("CALLVAULT_BUCKET_URL", "s3://calls");
    let endpoint = ("CALLVAULT_S3_ENDPOINT", "http://127.0.0.1:9000");
    assert!(!path_style(&[bucket]));
    assert!(path_style(&[bucket, endpoint]));
    assert!(!path_style(&[bucket, endpoint, ("CALLVAULT_S3_ADDRESSING", "virtual")]));
    assert!(path_style(&[bucket, ("CALLVAULT_S3_ADDRESSING", "path")]));
}

/// The documented file, with every example that is commented out put in force.
fn documented_with_examples(text: &str) -> toml::Table {
    let in_force = text.lines().map(|line| match line.strip_prefix('#') {
        Some(example) if example.starts_with("[[") || is_assignment(example) => example,
        Some(_) => "",
        None => line,
    });
    in_force.collect::<Vec<_>>().join("\n").parse().expect("the examples are TOML")
}

fn is_assignment(line: &str) -> bool {
    let key = line.split_once(" = ").map(|(key, _)| key);
    key.is_some_and(|key| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'))
}

#[test]
fn the_documented_file_has_every_setting_and_changes_none() {
    let text = include_str!("../../deploy/callvault.toml");
    let examples = documented_with_examples(text);
    for key in SETTINGS.iter().filter_map(Setting::key) {
        assert!(examples.contains_key(&key), "{key} is not documented in deploy/callvault.toml");
    }
    for setting in SETTINGS.iter().filter(|setting| setting.key().is_none()) {
        assert!(text.contains(setting.env), "{} is not mentioned in deploy/callvault.toml", setting.env);
    }
    for (table, keys) in [("accounts", ACCOUNT_KEYS), ("webhooks", WEBHOOK_KEYS)] {
        let documented = examples[table].as_array().unwrap()[0].as_table().unwrap();
        for (key, _) in keys {
            assert!(documented.contains_key(*key), "{table}.{key} is not documented in deploy/callvault.toml");
        }
    }
    let as_it_stands = load_file(text, &[]).expect("the documented file loads");
    assert_eq!(format!("{as_it_stands:?}"), format!("{:?}", load(&[]).unwrap()));
}

#[test]
fn every_example_of_the_documented_file_is_right() {
    let examples = documented_with_examples(include_str!("../../deploy/callvault.toml"));
    // One at a time: together some of them contradict each other, and some need files.
    let needs_others = [
        "s3_endpoint",
        "s3_public_endpoint",
        "link_access_key_id",
        "link_secret_access_key",
        "events_secret",
        "events_url",
        "twilio_auth_token",
        "twilio_api_key",
        "twilio_api_secret",
        "twilio_account_sid",
        "database_url",
        "delete_at_twilio_after",
        "ca_file",
        "twilio_private_key_file",
    ];
    for (key, value) in examples.iter().filter(|(key, _)| !needs_others.contains(&key.as_str())) {
        if matches!(key.as_str(), "accounts" | "webhooks") {
            continue;
        }
        let alone = toml::Table::from_iter([(key.clone(), value.clone())]).to_string();
        assert!(load_file(&alone, &[]).is_ok(), "{alone}: {:?}", load_file(&alone, &[]).err());
    }
}
