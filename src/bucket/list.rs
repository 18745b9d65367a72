//! The bucket's list, a page at a time, from any key on.
//!
//! Asked for by a request of our own: a walk goes on behind a key that was saved,
//! whoever saved it, and other people's keys may look like no path at all.

use jiff::Timestamp;
use serde::Deserialize;

use super::{Bucket, BucketError, Result};

/// The most that a store puts on a page.
pub const PAGE_MAX: usize = 1000;

/// An entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: String,
    /// Its length.
    pub size_bytes: i64,
    /// When it was last written, by the store's clock.
    pub written_at: Option<Timestamp>,
}

/// A page of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedPage {
    /// Its entries, in the order of their keys.
    pub objects: Vec<ListedObject>,
    /// Whether there are more behind it.
    pub has_more: bool,
}

/// The answer to ListObjectsV2, as far as it matters
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(default)]
    is_truncated: bool,
    encoding_type: Option<String>,
    #[serde(default)]
    contents: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    #[serde(default)]
    size: i64,
    last_modified: Option<String>,
}

impl Bucket {
    /// At most so many entries whose keys begin with `folder` and sort behind
    /// `after`, asked for at that time of the catalog.
    pub async fn list_page(
        &self,
        folder: &str,
        after: Option<&str>,
        at_most: usize,
        now: Timestamp,
    ) -> Result<ListedPage> {
        let max_keys = at_most.min(PAGE_MAX).to_string();
        // In the order of their names, as they are signed. Not every key is text that XML
        // can hold; the embedded store says that it encodes, and does not.
        let mut query = if self.embedded().is_some() { vec![] } else { vec![("encoding-type", "url")] };
        query.extend([("list-type", "2"), ("max-keys", max_keys.as_str())]);
        if !folder.is_empty() {
            query.push(("prefix", folder));
        }
        query.extend(after.map(|after| ("start-after", after)));
        match self.ask_for_list::<Listed>("a list", &query, now).await? {
            Some(listed) => Ok(page(listed, folder)),
            None => Err(BucketError::Unreadable("the store knows no ListObjectsV2".to_owned())),
        }
    }
}

fn page(listed: Listed, folder: &str) -> ListedPage {
    // A store that encodes keys says so.
    let is_encoded = listed.encoding_type.as_deref() == Some("url");
    let mut objects = Vec::with_capacity(listed.contents.len());
    for Entry { key, size, last_modified } in listed.contents {
        let key = if is_encoded { decoded(&key) } else { key };
        // Not every store keeps to the prefix.
        if key.starts_with(folder) {
            let written_at = last_modified.and_then(|at| at.parse().ok());
            objects.push(ListedObject { key, size_bytes: size, written_at });
        }
    }
    ListedPage { has_more: listed.is_truncated && !objects.is_empty(), objects }
}

/// A key as it is, of one as a form would write it.
fn decoded(key: &str) -> String {
    let pair = format!("k={key}");
    let decoded = url::form_urlencoded::parse(pair.as_bytes()).next();
    decoded.map_or_else(|| key.to_owned(), |(_, key)| key.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_whatever_its_keys_look_like() {
        let document = "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Name>b</Name><IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>\
            <Contents><Key>p/a%2F%2Fb+c%26d</Key><Size>7</Size><LastModified>2026-11-23T14:00:00.000Z</LastModified>\
            <ETag>&quot;x&quot;</ETag></Contents><Contents><Key>q/else</Key><Size>1</Size></Contents></ListBucketResult>";
        let read = |document: &str, folder| Some(page(quick_xml::de::from_str(document).ok()?, folder));
        let listed = read(document, "p/").unwrap();
        let written_at = Some("2026-11-23T14:00:00Z".parse().unwrap());
        assert_eq!(listed.objects, [ListedObject { key: "p/a//b c&d".to_owned(), size_bytes: 7, written_at }]);
        assert!(listed.has_more);
        let empty = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        assert_eq!(read(empty, ""), Some(ListedPage::default()));
        assert_eq!(read("<html>", ""), None);
    }
}
