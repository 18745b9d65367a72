//! deploy/iam: against what src/bucket asks of the store. What it comes to on a
//! real store is tested in tests/it/topology.rs.
//!
//! Every request that src/bucket makes is found in its source: calls of the
//! object_store clients, and the words of requests of its own. A call that this
//! file does not know fails the test, and so does an action that no policy has.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::support::{deploy, root};

/// What a client's call needs
/// (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html>).
const CALLS: &[(&str, &[&str])] = &[
    ("put", &["s3:PutObject"]),
    ("put_opts", &["s3:PutObject"]),
    ("put_part", &["s3:PutObject"]),
    ("create_multipart", &["s3:PutObject"]),
    ("complete_multipart", &["s3:PutObject"]),
    ("abort_multipart", &["s3:AbortMultipartUpload"]),
    ("copy", &["s3:GetObject", "s3:PutObject"]),
    ("get", &["s3:GetObject"]),
    ("get_opts", &["s3:GetObject"]),
    ("get_range", &["s3:GetObject"]),
    ("head", &["s3:GetObject"]),
    ("list", &["s3:ListBucket"]),
    ("list_with_offset", &["s3:ListBucket"]),
    ("list_with_delimiter", &["s3:ListBucket"]),
    ("delete", &["s3:DeleteObject"]),
];

/// What the words of a request of its own need.
const WORDS: &[(&str, &[&str])] = &[
    ("rusty_s3::Method::Delete", &["s3:DeleteObject"]),
    ("rusty_s3::Method::Put", &["s3:PutObject"]),
    ("Method::Get", &["s3:GetObject"]),
    ("\"uploads\"", &["s3:ListBucketMultipartUploads"]),
    ("facts_of_version", &["s3:GetObjectVersion"]),
    ("\"versions\"", &["s3:ListBucketVersions"]),
    ("\"versionId\"", &["s3:DeleteObjectVersion"]),
    ("\"versioning\"", &["s3:GetBucketVersioning"]),
    // AWS writes CORS and does not mind; MinIO takes no other case than this.
    ("\"cors\"", &["s3:GetBucketCors"]),
    ("\"lifecycle\"", &["s3:GetLifecycleConfiguration"]),
    ("\"list-type\"", &["s3:ListBucket"]),
    ("\"acl\"", &["s3:GetObjectAcl"]),
    ("\"tagging\"", &["s3:GetObjectTagging"]),
    ("\"object-lock\"", &["s3:GetBucketObjectLockConfiguration"]),
    ("\"policyStatus\"", &["s3:GetBucketPolicyStatus"]),
    ("\"encryption\"", &["s3:GetEncryptionConfiguration"]),
    ("\"location\"", &["s3:GetBucketLocation"]),
];

/// The sources of src/bucket, without tests, without what only the embedded store does.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            match path.is_dir() {
                true => walk(&path, found),
                false if name == "embedded.rs" || name == "tests.rs" => {}
                false => {
                    let text = std::fs::read_to_string(&path).unwrap();
                    found.push((name, text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()));
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join("src/bucket"), &mut found);
    found
}

/// The methods that are called on what is reached by `receiver`.
fn called<'a>(source: &'a str, receiver: &str) -> Vec<&'a str> {
    let after = source.split(receiver).skip(1);
    after.filter_map(|rest| rest.trim_start().strip_prefix('.')?.split('(').next()).collect()
}

fn needed() -> BTreeSet<&'static str> {
    let mut needed = BTreeSet::new();
    for (file, source) in sources() {
        for receiver in ["inner.uploads", "inner.control", "inner.reads", "copier(headers)?"] {
            for call in called(&source, receiver) {
                let actions = CALLS.iter().find(|(name, _)| *name == call);
                let (_, actions) = actions.unwrap_or_else(|| panic!("{file}: which action does {call} need?"));
                needed.extend(*actions);
            }
        }
        let spoken = WORDS.iter().filter(|(word, _)| source.contains(word));
        needed.extend(spoken.flat_map(|(_, actions)| *actions));
    }
    needed
}

fn allowed(file: &str) -> BTreeSet<String> {
    let policy: Value = serde_json::from_str(&deploy(file)).unwrap();
    let mut actions = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        let on_objects = statement["Resource"] == serde_json::json!(["arn:aws:s3:::recordings/*"]);
        assert!(on_objects || statement["Resource"] == serde_json::json!(["arn:aws:s3:::recordings"]), "{statement}");
        for action in statement["Action"].as_array().unwrap() {
            let action = action.as_str().unwrap();
            assert!(!action.contains('*'), "{action} is more than one right");
            let of_a_bucket = action.contains("Bucket") || action.contains("Configuration");
            assert_ne!(on_objects, of_a_bucket, "{action} is asked of the other");
            assert!(actions.insert(action.to_owned()), "{action} is there twice");
        }
    }
    actions
}

#[test]
fn the_policy_allows_what_the_service_does_and_nothing_else() {
    let (needed, allowed) = (needed(), allowed("iam/service.json"));
    assert!(needed.len() > 5, "the calls are not found any more: {needed:?}");
    let missing: Vec<_> = needed.iter().filter(|action| !allowed.contains(**action)).collect();
    assert!(missing.is_empty(), "deploy/iam/service.json lacks {missing:?}");
    let idle: Vec<_> = allowed.iter().filter(|action| !needed.contains(action.as_str())).collect();
    assert!(idle.is_empty(), "deploy/iam/service.json allows what nobody does: {idle:?}");
}

#[test]
fn a_key_for_links_may_read_and_no_more() {
    assert_eq!(allowed("iam/links.json"), BTreeSet::from(["s3:GetObject".to_owned()]));
}

#[test]
fn settings_name_the_same_rights() {
    let text = deploy("callvault.toml");
    for action in allowed("iam/service.json") {
        assert!(text.contains(&action), "deploy/callvault.toml does not name {action}");
    }
}
