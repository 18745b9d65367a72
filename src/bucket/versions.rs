//! Versions: what a bucket that keeps them still has of deleted objects.
//!
//! object_store knows nothing of versions, so they are asked for by hand
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html>).
//! A store that does not know the question keeps none.

use jiff::Timestamp;
use serde::Deserialize;

use super::inspect::ObjectFacts;
use super::{Bucket, BucketError, Result, Throttle};
use crate::domain::digest::Digest;

/// Pages of versions that are read; each has a thousand. Further ones are read
/// once these are gone.
const PAGES_MAX: usize = 10;

/// One version of an object, or the mark of its deletion.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    /// The object's key.
    pub key: String,
    /// Its name among the versions.
    pub version_id: String,
    /// Whether it only says that the object was deleted.
    #[serde(skip)]
    pub is_delete_marker: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default, rename = "Version")]
    versions: Vec<Version>,
    #[serde(default, rename = "DeleteMarker")]
    delete_markers: Vec<Version>,
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_version_id_marker: Option<String>,
}

impl Page {
    fn into_versions(self) -> impl Iterator<Item = Version> {
        let marks = self.delete_markers.into_iter().map(|mark| Version { is_delete_marker: true, ..mark });
        self.versions.into_iter().chain(marks)
    }
}

impl Bucket {
    /// Every version of the objects whose keys begin so, asked for at that time
    /// of the catalog, and whether these are all.
    pub async fn versions(&self, prefix: &str, now: Timestamp) -> Result<(Vec<Version>, bool)> {
        // The embedded store keeps none, and would log the question as an error.
        if self.embedded().is_some() {
            return Ok((Vec::new(), true));
        }
        let mut found = Vec::new();
        let (mut key_marker, mut version_marker) = (String::new(), String::new());
        for _ in 0..PAGES_MAX {
            let mut query = vec![("prefix", prefix), ("versions", "")];
            let markers = [("key-marker", key_marker.as_str()), ("version-id-marker", &version_marker)];
            query.extend(markers.into_iter().filter(|(_, value)| !value.is_empty()));
            // As the signature wants them.
            query.sort_unstable();
            let Some(page) = self.ask_for_list::<Page>("a list of versions", &query, now).await? else {
                return Ok((Vec::new(), true));
            };
            let next = page.next_key_marker.clone().filter(|_| page.is_truncated);
            let next_version = page.next_version_id_marker.clone().unwrap_or_default();
            found.extend(page.into_versions().filter(|version| version.key.starts_with(prefix)));
            let Some(next) = next else { return Ok((found, true)) };
            if (&next, &next_version) == (&key_marker, &version_marker) {
                return Err(BucketError::Unreadable("a list of versions does not go on".to_owned()));
            }
            (key_marker, version_marker) = (next, next_version);
        }
        Ok((found, false))
    }

    /// What the store says of one version; None where it is not there any more.
    pub async fn version_facts(&self, version: &Version) -> Result<Option<ObjectFacts>> {
        self.facts_of_version(&version.key, Some(version.version_id.clone())).await
    }

    /// Reads one version through the hash: its digest and its length.
    pub async fn read_back_version(&self, version: &Version) -> Result<Option<(Digest, i64)>> {
        self.read_back_of_version(&version.key, Some(version.version_id.clone()), &Throttle::default()).await
    }

    /// Removes one version under a lease that was granted at that time, as
    /// [`Self::delete_under_lease`] removes an object.
    pub async fn delete_version(&self, version: &Version, granted_at: Timestamp) -> Result<()> {
        self.delete_version_under_lease(&version.key, Some(&version.version_id), granted_at).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_versions_is_read_with_its_marks_in_between() {
        let document = r#"<?xml version="1.0"?><ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Name>b</Name><Prefix>p</Prefix><KeyMarker></KeyMarker><NextKeyMarker>p2</NextKeyMarker>
            <NextVersionIdMarker>v3</NextVersionIdMarker><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>
            <Version><Key>p1</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest><Size>1</Size></Version>
            <DeleteMarker><Key>p1</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest></DeleteMarker>
            <Version><Key>p2</Key><VersionId>v3</VersionId><IsLatest>true</IsLatest><Size>1</Size></Version>
            </ListVersionsResult>"#;
        let page = quick_xml::de::from_str::<Page>(document).unwrap();
        assert!(page.is_truncated);
        assert_eq!((page.next_key_marker.as_deref(), page.next_version_id_marker.as_deref()), (Some("p2"), Some("v3")));
        let found: Vec<_> = page.into_versions().map(|found| (found.version_id, found.is_delete_marker)).collect();
        assert_eq!(found, [("v1".into(), false), ("v3".into(), false), ("v2".into(), true)]);
    }
}
