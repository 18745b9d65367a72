//! P3: making a link.

use std::time::{Duration, Instant};

use callvault::bucket::Bucket;
use callvault::bucket::link::{Disposition, LinkBase, LinkMethod};
use callvault::config::Config;

use crate::peers::{NOT_INSTALLED, python_tool};
use crate::rounds::{Comparison, Goal};

const ROUND: Duration = Duration::from_millis(300);

/// Nanoseconds of a link, beside boto3 and aws-sdk-s3.
pub async fn beside_others() {
    let settings = [
        ("CALLVAULT_BUCKET_URL", "s3://calls"),
        ("CALLVAULT_S3_ENDPOINT", "http://127.0.0.1:9000"),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        ("AWS_REGION", "us-east-1"),
    ];
    let settings = settings.map(|(name, value)| (name.into(), value.into()));
    let bucket = Bucket::open(&Config::load(settings).expect("settings")).await.expect("a bucket");
    let key = format!("CA{0}/RE{0}/{0}{0}.mp3", "0123456789abcdef".repeat(2));
    let boto3 = Comparison { id: "P3", work: "a link", unit: "ns", peer: "boto3", goal: Goal::AtMost(0.01) };
    let ours = async || {
        let (began, now) = (Instant::now(), jiff::Timestamp::now());
        let mut links = 0u32;
        while began.elapsed() < ROUND {
            for _ in 0..100 {
                let base = LinkBase { request_host: None };
                let link = bucket.link(&key, LinkMethod::Get, &Disposition::Inline, now, base).await;
                std::hint::black_box(link.expect("a link"));
            }
            links += 100;
        }
        began.elapsed().as_nanos() as f64 / f64::from(links)
    };
    match python_tool("python") {
        Some(_) => boto3.run(ours, async || nanoseconds_of_boto3(&key)).await,
        None => boto3.missing(NOT_INSTALLED),
    }
    let sdk = Comparison { peer: "aws-sdk-s3", goal: Goal::AtMost(0.05), ..boto3 };
    sdk.missing("it is none of the dependencies; its own figure on the machine of the goals was 20 µs");
}

fn nanoseconds_of_boto3(key: &str) -> f64 {
    let mut python = python_tool("python").expect("it was there");
    let output = python.args(["presign.py", key]).output().expect("Python runs");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}
