//! What the bucket itself is told to do: keep versions, let things end.
//!
//! object_store knows nothing of these, so they are asked for by hand
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLifecycleConfiguration.html>).
//! Nothing here changes them.

use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Bucket, BucketError, Result};
use crate::domain::object_key::Layout;

/// The classes whose objects have to be restored before they can be read
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-class-intro.html>).
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// What a bucket is told to do with what this service has in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// Whether uploads that nobody goes on with are ended.
    pub ends_uploads: bool,
    /// Whether objects end by their age.
    pub expires_objects: bool,
    /// Whether objects come to a class from which they cannot be read at once.
    pub archives_objects: bool,
}

/// Whether a bucket keeps what is overwritten or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// It never did.
    None,
    /// It does.
    Kept,
    /// It did once: old ones may still be there.
    Suspended,
}

#[derive(Deserialize)]
struct Rules {
    #[serde(default, rename = "Rule")]
    rules: Vec<Rule>,
}

/// One without a filter has its prefix beside it, as all had once, or is for all objects.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    status: String,
    prefix: Option<String>,
    #[serde(default)]
    filter: Filter,
    abort_incomplete_multipart_upload: Option<IgnoredAny>,
    expiration: Option<Expiration>,
    #[serde(default, rename = "Transition")]
    transitions: Vec<Transition>,
}

/// How large objects are is not read: recordings have any size, and markers none.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    prefix: Option<String>,
    tag: Option<IgnoredAny>,
    and: Option<All>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct All {
    prefix: Option<String>,
    #[serde(default, rename = "Tag")]
    tags: Vec<IgnoredAny>,
}

/// A rule that only takes away marks of deletion has neither.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Expiration {
    days: Option<IgnoredAny>,
    date: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Transition {
    storage_class: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Versioning {
    status: Option<String>,
}

impl Rule {
    /// What the keys of its objects begin with.
    fn prefix(&self) -> &str {
        let of_all = self.filter.and.as_ref().and_then(|all| all.prefix.as_deref());
        self.filter.prefix.as_deref().or(of_all).or(self.prefix.as_deref()).unwrap_or_default()
    }

    /// Whether it is for objects with tags only. This service gives none.
    fn is_for_tagged(&self) -> bool {
        self.filter.tag.is_some() || self.filter.and.as_ref().is_some_and(|all| !all.tags.is_empty())
    }

    /// Whether it is for any object that is kept. What is staged is not.
    fn concerns_kept(&self, layout: &Layout) -> bool {
        let prefix = self.prefix();
        let mut kept = layout.kept();
        !self.is_for_tagged() && kept.any(|kept| kept.starts_with(prefix) || prefix.starts_with(&kept))
    }

    /// Whether it ends every upload of this service.
    fn ends_uploads(&self, layout: &Layout) -> bool {
        self.abort_incomplete_multipart_upload.is_some()
            && !self.is_for_tagged()
            && layout.staging_folder().starts_with(self.prefix())
    }

    fn expires(&self) -> bool {
        self.expiration.as_ref().is_some_and(|end| end.days.is_some() || end.date.is_some())
    }

    fn archives(&self) -> bool {
        self.transitions.iter().any(|transition| ARCHIVES.contains(&transition.storage_class.as_str()))
    }
}

impl Rules {
    fn read(&self, layout: &Layout) -> Lifecycle {
        let enabled = || self.rules.iter().filter(|rule| rule.status == "Enabled");
        let mut kept = enabled().filter(|rule| rule.concerns_kept(layout));
        Lifecycle {
            ends_uploads: enabled().any(|rule| rule.ends_uploads(layout)),
            expires_objects: kept.clone().any(Rule::expires),
            archives_objects: kept.any(Rule::archives),
        }
    }
}

impl Bucket {
    /// What it is told to do with what this service has in it, asked for at that time of
    /// the catalog.
    pub async fn lifecycle(&self, now: Timestamp) -> Result<Lifecycle> {
        match self.ask_for_list::<Rules>("a question for its lifecycle", &[("lifecycle", "")], now).await {
            Ok(rules) => Ok(rules.map(|rules| rules.read(self.layout())).unwrap_or_default()),
            // There are no rules.
            Err(BucketError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(Lifecycle::default()),
            Err(error) => Err(error),
        }
    }

    /// Whether it keeps versions of what is deleted.
    pub async fn keeps_versions(&self, now: Timestamp) -> Result<Versions> {
        if self.embedded().is_some() {
            return Ok(Versions::None);
        }
        let asked = self.ask_for_list::<Versioning>("a question for its versions", &[("versioning", "")], now).await?;
        Ok(match asked.and_then(|versioning| versioning.status).as_deref() {
            Some("Enabled") => Versions::Kept,
            Some("Suspended") => Versions::Suspended,
            _ => Versions::None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: &str = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation>\
                        </AbortIncompleteMultipartUpload>";
    const EXPIRES: &str = "<Expiration><Days>30</Days></Expiration>";
    const MARKS: &str = "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>";

    fn read_below(prefix: &str, rules: &str) -> Lifecycle {
        let document = format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>");
        quick_xml::de::from_str::<Rules>(&document).unwrap().read(&Layout::below(prefix))
    }

    fn read(rules: &str) -> Lifecycle {
        read_below("", rules)
    }

    fn on(what: &str) -> String {
        format!("<Rule><ID>a</ID><Status>Enabled</Status>{what}</Rule>")
    }

    fn moves(classes: &[&str]) -> String {
        let moved =
            |class: &&str| format!("<Transition><Days>30</Days><StorageClass>{class}</StorageClass></Transition>");
        on(&classes.iter().map(moved).collect::<String>())
    }

    #[test]
    fn rules_are_read_that_are_switched_on() {
        let off = |what: &str| format!("<Rule><ID>b</ID><Status>Disabled</Status>{what}</Rule>");
        let ends_uploads = Lifecycle { ends_uploads: true, ..Lifecycle::default() };
        assert_eq!(read(""), Lifecycle::default());
        assert_eq!(read(&on(ENDS)), ends_uploads);
        assert_eq!(read(&(on(ENDS) + &off(EXPIRES))), ends_uploads);
        assert_eq!(read(&on(EXPIRES)), Lifecycle { expires_objects: true, ..Lifecycle::default() });
        assert_eq!(read(&on(MARKS)), Lifecycle::default());
    }

    #[test]
    fn only_archives_are_out_of_reach() {
        for classes in [&["GLACIER"][..], &["DEEP_ARCHIVE"], &["STANDARD_IA", "DEEP_ARCHIVE"]] {
            assert!(read(&moves(classes)).archives_objects, "{classes:?}");
        }
        assert_eq!(read(&moves(&["GLACIER_IR", "STANDARD_IA", "INTELLIGENT_TIERING"])), Lifecycle::default());
        let old = "<NoncurrentVersionTransition><StorageClass>GLACIER</StorageClass></NoncurrentVersionTransition>";
        assert_eq!(read(&on(old)), Lifecycle::default());
    }

    #[test]
    fn a_rule_for_other_objects_is_none_of_ours() {
        let tag = "<Tag><Key>k</Key><Value>v</Value></Tag>";
        let sizes = "<ObjectSizeGreaterThan>1</ObjectSizeGreaterThan>";
        let filters = |prefix: &str| {
            [
                format!("<Prefix>{prefix}</Prefix>"),
                format!("<Filter><Prefix>{prefix}</Prefix></Filter>"),
                format!("<Filter><And><Prefix>{prefix}</Prefix>{sizes}</And></Filter>"),
            ]
        };
        let expires = |below: &str, filter: &str| read_below(below, &on(&format!("{filter}{EXPIRES}"))).expires_objects;
        for (below, prefix, is_ours) in [
            ("", "", true),
            ("", "CA", true),
            ("", "CA0123", true),
            ("", ".erased/", true),
            ("", "logs/", false),
            ("", ".staging/", false),
            ("calls", "", true),
            ("calls", "call", true),
            ("calls", "calls/CA01", true),
            ("calls", "calls/.held/AC", true),
            ("calls", "calls/.staging/", false),
            ("calls", "calls-of-old/", false),
            ("calls", "CA", false),
        ] {
            for filter in filters(prefix) {
                assert_eq!(expires(below, &filter), is_ours, "{filter} where recordings lie below {below:?}");
            }
        }
        for filter in ["", "<Filter/>", "<Filter></Filter>", &format!("<Filter>{sizes}</Filter>")] {
            assert!(expires("calls", filter), "{filter} is for all");
        }
        for filter in [format!("<Filter>{tag}</Filter>"), format!("<Filter><And><Prefix/>{tag}{tag}</And></Filter>")] {
            assert!(!expires("", &filter), "{filter} is for tagged ones");
        }
    }

    #[test]
    fn uploads_are_ended_by_a_rule_for_all_of_them() {
        let ends = |prefix: &str| {
            read_below("calls", &on(&format!("<Filter><Prefix>{prefix}</Prefix></Filter>{ENDS}"))).ends_uploads
        };
        for prefix in ["", "calls", "calls/", "calls/.staging/"] {
            assert!(ends(prefix), "{prefix}");
        }
        for prefix in ["logs/", "calls/CA", "calls/.staging/AC1"] {
            assert!(!ends(prefix), "{prefix}");
        }
    }
}
