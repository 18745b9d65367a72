//! What this service may do in its bucket: all that it will have to.
//!
//! Writes one small object the way recordings are written that are large, below
//! the staging folder, where nobody looks for recordings.

use bytes::Bytes;
use jiff::Timestamp;

use super::{Finding, PATIENCE};
use crate::bucket::{BucketError, Disposition, Lifecycle, Link, LinkBase, LinkMethod, NewObject, Versions};
use crate::config::{BucketConfig, Config};
use crate::domain::digest::Digest;
use crate::domain::media::Format;
use crate::vault::Vault;
use crate::vault::audit::AuditError;

/// Nobody takes these bytes for a recording.
const BYTES: &[u8] = b"callvault doctor was here; this object may be deleted\n";
const RIGHTS: &str = "give the service's credentials the rights of deploy/iam/service.json";

/// The object that is written, and removed again.
struct Specimen {
    key: String,
    staging: String,
    now: Timestamp,
}

pub(super) async fn examine(vault: &Vault, config: &Config, now: Timestamp) -> Vec<Finding> {
    let reached = tokio::time::timeout(PATIENCE, vault.bucket.check()).await;
    let reached = reached.unwrap_or_else(|_| Err(BucketError::Setup("its store does not answer".to_owned())));
    if let Err(error) = reached {
        let cure = "let CALLVAULT_BUCKET_URL and CALLVAULT_S3_ENDPOINT name a bucket that is there, and give \
                    credentials that may list it (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of this \
                    machine; deploy/iam/service.json), and AWS_REGION";
        return vec![Finding::wrong("bucket", format!("{}: {error}", place(config)), cure)];
    }
    let mut findings = vec![Finding::ok("bucket", format!("{} answers", place(config)))];
    let nonce = Digest::of(&(vault.entropy)()).to_string();
    let folder = vault.bucket.layout().staging_folder();
    let specimen =
        Specimen { key: format!("{folder}doctor-{nonce}"), staging: format!("{folder}doctor-{nonce}.1"), now };
    // Whatever is found, what was written is removed at the end.
    let is_written = specimen.write(vault, &mut findings).await;
    if is_written {
        specimen.read(vault, &mut findings).await;
        findings.extend(specimen.link(vault, config).await);
    }
    findings.push(specimen.remove(vault).await);
    findings.extend(objects(vault).await);
    findings.push(versions(vault, now).await);
    findings.extend(lifecycle(vault, now).await);
    findings
}

/// The bucket as the settings name it, so that another one than was meant is seen.
fn place(config: &Config) -> String {
    match &config.bucket {
        BucketConfig::Embedded(folder) => format!("the embedded store in {}", folder.display()),
        BucketConfig::S3(s3) => {
            let name = format!("s3://{}/{}", s3.bucket, s3.prefix);
            format!("{} at {}", name.trim_end_matches('/'), s3.endpoint.as_deref().unwrap_or("AWS"))
        }
    }
}

/// Whether it is another one than the catalog's. That the catalog does not answer is told elsewhere.
async fn objects(vault: &Vault) -> Option<Finding> {
    const CURE: &str = "let CALLVAULT_BUCKET_URL, with its prefix, and CALLVAULT_S3_ENDPOINT name the bucket that \
                        recordings were stored in; if its objects are lost, run `callvault verify --repair`";
    match vault.look_for_objects().await {
        Err(AuditError::OtherBucket(missing)) => Some(Finding::wrong("bucket.objects", missing.to_string(), CURE)),
        Ok(()) | Err(AuditError::Catalog(_) | AuditError::Bucket(_)) => None,
    }
}

impl Specimen {
    fn object(&self) -> NewObject {
        NewObject {
            key: self.key.clone(),
            format: Format::Wav,
            metadata: vec![("sha256", Digest::of(BYTES).to_string())],
        }
    }

    /// Puts it, then stages it and copies it over that.
    async fn write(&self, vault: &Vault, findings: &mut Vec<Finding>) -> bool {
        let put = vault.bucket.put(&self.object(), vec![Bytes::from_static(BYTES)]).await;
        let is_written = put.is_ok();
        findings.push(told("bucket.put", put.map(|()| "an object can be written"), RIGHTS));
        let copied = async {
            let mut staging = vault.bucket.stage(&self.staging).await?;
            let upload_id = staging.upload_id().to_owned();
            let published = async {
                staging.write(Bytes::from_static(BYTES)).await?;
                staging.publish(&self.object()).await
            };
            match published.await {
                Ok(_) => Ok("a multipart upload can be made and copied to its key"),
                Err(error) => {
                    // What it began is taken back as far as that goes.
                    let _ = vault.bucket.clear_staging(&self.staging, &upload_id).await;
                    Err(error)
                }
            }
        };
        findings.push(told("bucket.copy", copied.await, RIGHTS));
        is_written
    }

    async fn read(&self, vault: &Vault, findings: &mut Vec<Finding>) {
        let finding = match vault.bucket.read_back(&self.key).await {
            Ok(Some((digest, _))) if digest == Digest::of(BYTES) => {
                Finding::ok("bucket.get", "what was written reads back")
            }
            Ok(_) => Finding::wrong(
                "bucket.get",
                "what was written does not read back the same",
                "use a store that shows an object as soon as it is written",
            ),
            Err(error) => Finding::wrong("bucket.get", error.to_string(), RIGHTS),
        };
        findings.push(finding);
    }

    /// Follows a link as a browser does: from where this runs.
    async fn link(&self, vault: &Vault, config: &Config) -> Vec<Finding> {
        if vault.bucket.embedded().is_some() {
            return vec![Finding::ok("bucket.link", "links lead to the service's own port")];
        }
        let base = LinkBase { request_host: None };
        let link = vault.bucket.link(&self.key, LinkMethod::Get, &Disposition::Inline, self.now, base).await;
        let link = match link {
            Ok(link) => link,
            Err(error) => return vec![Finding::wrong("bucket.link", error.to_string(), RIGHTS)],
        };
        let origin = vault.bucket.link_origin().unwrap_or_default();
        let mut findings = vec![match follow(config, &link, None).await {
            Ok((200, _)) => Finding::ok("bucket.link", format!("a link plays from {origin}")),
            Ok((status, _)) => Finding::wrong(
                "bucket.link",
                format!("{origin} answers {status} to a link"),
                "let CALLVAULT_S3_PUBLIC_ENDPOINT name the store as browsers reach it, past proxies that change \
                 host or path; what signs links must be allowed to get objects (deploy/iam/links.json)",
            ),
            Err(why) => Finding::wrong(
                "bucket.link",
                format!("{origin} cannot be reached: {why}"),
                "let CALLVAULT_S3_PUBLIC_ENDPOINT name the store as browsers reach it",
            ),
        }];
        for page in &config.cors_origins {
            findings.push(match follow(config, &link, Some(page)).await {
                Ok((_, Some(allowed))) if allowed == "*" || allowed == *page => {
                    Finding::ok("bucket.cors", format!("pages of {page} may read what links lead to"))
                }
                Ok(_) => Finding::wrong(
                    "bucket.cors",
                    format!("the bucket does not let pages of {page} read what links lead to"),
                    format!("allow GET and HEAD from {page} in the bucket's CORS rules"),
                ),
                Err(why) => Finding::wrong("bucket.cors", why, "see bucket.link"),
            });
        }
        findings
    }

    async fn remove(&self, vault: &Vault) -> Finding {
        let removed = async {
            vault.bucket.delete_under_lease(&self.key, self.now).await?;
            for version in vault.bucket.versions(&self.key, self.now).await?.0 {
                vault.bucket.delete_version(&version, self.now).await?;
            }
            match vault.bucket.facts(&self.key).await? {
                None => Ok("an object can be deleted, with its versions where they are kept"),
                Some(_) => Err(BucketError::Setup("what was deleted is still there".to_owned())),
            }
        };
        let cure = format!("{RIGHTS}; object lock keeps anything from being erased. Delete {} by hand", self.key);
        told("bucket.delete", removed.await, &cure)
    }
}

fn told(check: &'static str, result: Result<&'static str, BucketError>, cure: &str) -> Finding {
    match result {
        Ok(detail) => Finding::ok(check, detail),
        Err(error) => Finding::wrong(check, error.to_string(), cure),
    }
}

/// The status of a link, and which pages may read what is answered.
async fn follow(config: &Config, link: &Link, page: Option<&str>) -> Result<(u16, Option<String>), String> {
    let http = super::public_url::client(config)?;
    let mut request = http.get(&link.url);
    if let Some(page) = page {
        request = request.header(http::header::ORIGIN, page);
    }
    // The link itself is not to be shown.
    let answer = request.send().await.map_err(|error| super::innermost(&error.without_url()).to_string())?;
    let allowed = answer.headers().get(http::header::ACCESS_CONTROL_ALLOW_ORIGIN);
    let allowed = allowed.and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok((answer.status().as_u16(), allowed))
}

async fn versions(vault: &Vault, now: Timestamp) -> Finding {
    const CHECK: &str = "bucket.versions";
    match vault.bucket.keeps_versions(now).await {
        Ok(Versions::Kept) => Finding::ok(CHECK, "the bucket keeps versions: erasing removes them all"),
        Ok(Versions::Suspended) => Finding::ok(
            CHECK,
            "the bucket keeps no more versions, but has those from before it was told so: erasing removes them all",
        ),
        Ok(Versions::None) => Finding::ok(CHECK, "the bucket keeps no versions"),
        Err(error) => Finding::warning(
            CHECK,
            format!("whether the bucket keeps versions is not known: {error}"),
            "allow s3:GetBucketVersioning to whoever runs doctor",
        ),
    }
}

async fn lifecycle(vault: &Vault, now: Timestamp) -> Vec<Finding> {
    const CHECK: &str = "bucket.lifecycle";
    if vault.bucket.embedded().is_some() {
        return vec![Finding::ok(CHECK, "the embedded store needs no rules")];
    }
    let rules = match vault.bucket.lifecycle(now).await {
        Ok(rules) => rules,
        Err(error) => {
            return vec![Finding::warning(
                CHECK,
                format!("the bucket's rules are not known: {error}"),
                "allow s3:GetLifecycleConfiguration to whoever runs doctor",
            )];
        }
    };
    told_of_rules(CHECK, &rules)
}

fn told_of_rules(check: &'static str, rules: &Lifecycle) -> Vec<Finding> {
    let mut findings = Vec::new();
    if rules.expires_objects {
        findings.push(Finding::wrong(
            check,
            "a rule of the bucket deletes objects by their age, behind the catalog's back",
            "take the rule away, and set CALLVAULT_RETENTION or CALLVAULT_EVICT_AFTER instead",
        ));
    }
    if rules.archives_objects {
        findings.push(Finding::wrong(
            check,
            "a rule of the bucket moves objects to a class from which they cannot be read before they are restored",
            "take the rule away, or let it move them to GLACIER_IR, STANDARD_IA or INTELLIGENT_TIERING; restore and \
             copy back what was moved",
        ));
    }
    findings.push(if rules.ends_uploads {
        Finding::ok(check, "a rule ends uploads that nobody goes on with")
    } else {
        Finding::warning(
            check,
            "no rule ends uploads that nobody goes on with",
            "add a rule AbortIncompleteMultipartUpload of 7 days; MinIO ends them after a day by itself",
        )
    });
    findings
}
