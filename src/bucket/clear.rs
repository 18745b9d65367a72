//! Clearing away: deletes that the store refuses once they are late, and
//! multipart uploads that nobody goes on with.
//!
//! A delete can be held up on its way until the key was written again. So each
//! is a presigned request that ends [`DELETE_WITHIN`] after the lease under which
//! it is made was granted, by the catalog's time: whoever comes later finds the
//! lease over, and the store refuses the delete. An abort names its upload, and
//! may come as late as it likes.

use std::time::Duration;

use http::{Method, StatusCode};
use jiff::Timestamp;
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody, HttpResponse};
use object_store::multipart::MultipartStore;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::credentials::Signer;
use super::{Bucket, BucketError, Result, path};

/// How long after its lease was granted a delete is taken.
pub const DELETE_WITHIN: Duration = Duration::from_secs(60);
/// The life of a signature that changes nothing.
const ASK_WITHIN: Duration = Duration::from_secs(600);

/// Speaks to the store in requests that object_store has not.
pub(super) struct Direct {
    pub(super) http: HttpClient,
    pub(super) bucket: rusty_s3::Bucket,
}

/// The answer to ListMultipartUploads, as far as it matters
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>).
#[derive(Deserialize)]
struct Uploads {
    #[serde(default, rename = "Upload")]
    uploads: Vec<Upload>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: Option<String>,
}

/// A multipart upload that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// Where it would become an object.
    pub key: String,
    /// Its id.
    pub upload_id: String,
    /// When it was begun, by the store's clock.
    pub begun_at: Option<Timestamp>,
}

impl From<Upload> for OpenUpload {
    fn from(Upload { key, upload_id, initiated }: Upload) -> Self {
        Self { key, upload_id, begun_at: initiated.and_then(|at| at.parse().ok()) }
    }
}

impl Direct {
    pub(super) async fn ask(&self, method: Method, url: &Url) -> Result<HttpResponse> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method;
        let uri = url.as_str().parse();
        *request.uri_mut() = uri.map_err(|_| BucketError::Setup("a request has no valid URL".to_owned()))?;
        self.http.execute(request).await.map_err(BucketError::Unanswered)
    }

    fn sign(
        &self,
        signer: &Signer,
        method: rusty_s3::Method,
        object: Url,
        as_of: Timestamp,
        within: Duration,
        query: &[(&str, &str)],
    ) -> Url {
        let keys = &signer.keys;
        rusty_s3::signing::sign(
            &as_of,
            method,
            object,
            &keys.key_id,
            &keys.secret_key,
            keys.token.as_deref(),
            self.bucket.region(),
            within.as_secs(),
            query.iter().copied(),
            std::iter::empty(),
        )
    }
}

impl Bucket {
    /// Removes an object under a lease that was granted at that time of the
    /// catalog; one that is not there is fine. The store refuses it when it
    /// arrives more than [`DELETE_WITHIN`] later.
    pub async fn delete_under_lease(&self, key: &str, granted_at: Timestamp) -> Result<()> {
        self.delete_version_under_lease(key, None, granted_at).await?;
        self.forget(key).await
    }

    /// The same with one version of it.
    pub(super) async fn delete_version_under_lease(
        &self,
        key: &str,
        version: Option<&str>,
        granted_at: Timestamp,
    ) -> Result<()> {
        let signer = self.inner.credentials.current().await?;
        let end = granted_at.as_second() + DELETE_WITHIN.as_secs() as i64;
        // What a session signs, it signs after it began.
        let issued = signer.issued_at.map_or(i64::MIN, |at| at.as_second());
        let begin = granted_at.as_second().max(issued);
        let within = u64::try_from(end - begin).ok().filter(|seconds| *seconds > 0);
        let within = within.map(Duration::from_secs).ok_or(BucketError::TooLate)?;
        let as_of = Timestamp::from_second(begin).unwrap_or(granted_at);
        let direct = &self.inner.direct;
        let object = direct.bucket.object_url(key);
        let query: Vec<(&str, &str)> = version.iter().map(|version| ("versionId", *version)).collect();
        let url = direct.sign(&signer, rusty_s3::Method::Delete, object, as_of, within, &query);
        match direct.ask(Method::DELETE, &url).await?.status() {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            status => Err(BucketError::Refused { what: "a delete", status }),
        }
    }

    /// The multipart uploads that are open at exactly that key, asked for at that
    /// time of the catalog. A store that cannot tell has none to show.
    pub async fn open_uploads(&self, key: &str, now: Timestamp) -> Result<Vec<String>> {
        if let Some(embedded) = self.embedded() {
            return embedded.open_uploads(key).await;
        }
        // MinIO lists an exact key only; of others whose keys begin alike it sorts first.
        let at_key = self.list_uploads(key, now).await?.into_iter().filter(|upload| upload.key == key);
        Ok(at_key.map(|upload| upload.upload_id).collect())
    }

    /// The first of the multipart uploads that are open below a folder, asked for at
    /// that time of the catalog. Some stores, MinIO and the embedded one among them,
    /// tell only of an exact key: they have none to show.
    pub async fn open_uploads_below(&self, folder: &str, now: Timestamp) -> Result<Vec<OpenUpload>> {
        if self.embedded().is_some() {
            return Ok(Vec::new());
        }
        let below = self.list_uploads(folder, now).await?.into_iter().filter(|upload| upload.key.starts_with(folder));
        Ok(below.map(OpenUpload::from).collect())
    }

    async fn list_uploads(&self, prefix: &str, now: Timestamp) -> Result<Vec<Upload>> {
        let query = [("prefix", prefix), ("uploads", "")];
        let listed = self.ask_for_list::<Uploads>("a list of open uploads", &query, now).await?;
        Ok(listed.map(|listed| listed.uploads).unwrap_or_default())
    }

    /// Asks the bucket for a list, at that time of the catalog. None where the
    /// store does not know such lists.
    pub(super) async fn ask_for_list<T: DeserializeOwned>(
        &self,
        what: &'static str,
        query: &[(&str, &str)],
        now: Timestamp,
    ) -> Result<Option<T>> {
        let signer = self.inner.credentials.current().await?;
        let as_of = signer.issued_at.map_or(now, |issued| now.max(issued));
        let direct = &self.inner.direct;
        let folder = direct.bucket.base_url().clone();
        let url = direct.sign(&signer, rusty_s3::Method::Get, folder, as_of, ASK_WITHIN, query);
        let answer = direct.ask(Method::GET, &url).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => return Ok(None),
            status => return Err(BucketError::Refused { what, status }),
        }
        let document = answer.into_body().bytes().await.map_err(BucketError::Unanswered)?;
        let listed = quick_xml::de::from_reader(&*document);
        listed.map(Some).map_err(|error| BucketError::Unreadable(format!("{what}: {error}")))
    }

    /// Ends a multipart upload; one that is not open is fine.
    pub async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<()> {
        if let Some(embedded) = self.embedded() {
            return embedded.abort_upload(key, upload_id).await;
        }
        match self.inner.control.abort_multipart(&path(key)?, &upload_id.to_owned()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Clears away what an attempt may have left at a staging key: its open
    /// upload, or the object that it became. What is not there is fine.
    pub async fn clear_staging(&self, key: &str, upload_id: &str) -> Result<()> {
        let aborted = self.abort_upload(key, upload_id).await;
        // An upload that was completed is an object by now.
        self.delete(key).await?;
        aborted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_uploads_is_read() {
        let empty = r#"<?xml version="1.0"?><ListMultipartUploadsResult><Bucket>b</Bucket><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"#;
        assert!(quick_xml::de::from_str::<Uploads>(empty).unwrap().uploads.is_empty());
        let two = r#"<ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket>
            <Upload><Key>a.1</Key><UploadId>x&amp;y</UploadId><Initiator><ID>i</ID></Initiator><Initiated>2026-11-23T14:00:00.000Z</Initiated></Upload>
            <Upload><Key>a.10</Key><UploadId>z</UploadId></Upload></ListMultipartUploadsResult>"#;
        let listed = quick_xml::de::from_str::<Uploads>(two).unwrap().uploads;
        let begun: Vec<_> = listed.iter().map(|upload| OpenUpload::from(upload.clone()).begun_at).collect();
        assert_eq!(begun, [Some("2026-11-23T14:00:00Z".parse().unwrap()), None]);
        let listed: Vec<_> = listed.iter().map(|upload| (upload.key.as_str(), upload.upload_id.as_str())).collect();
        assert_eq!(listed, [("a.1", "x&y"), ("a.10", "z")]);
    }
}
