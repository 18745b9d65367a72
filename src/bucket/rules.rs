//! What the bucket itself is told to do: keep versions, let things end.
//!
//! object_store knows nothing of these, so they are asked for by hand
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLifecycleConfiguration.html>).
//! Nothing here changes them.

use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Bucket, BucketError, Result};

/// What a bucket is told to let end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// Whether uploads that nobody goes on with are ended.
    pub ends_uploads: bool,
    /// Whether objects end by their age.
    pub expires_objects: bool,
}

#[derive(Deserialize)]
struct Rules {
    #[serde(default, rename = "Rule")]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    status: String,
    abort_incomplete_multipart_upload: Option<serde::de::IgnoredAny>,
    expiration: Option<Expiration>,
}

/// A rule that only takes away marks of deletion has neither.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Expiration {
    days: Option<serde::de::IgnoredAny>,
    date: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Versioning {
    status: Option<String>,
}

impl Rules {
    fn read(&self) -> Lifecycle {
        let enabled = || self.rules.iter().filter(|rule| rule.status == "Enabled");
        let expires =
            |rule: &Rule| rule.expiration.as_ref().is_some_and(|end| end.days.is_some() || end.date.is_some());
        Lifecycle {
            ends_uploads: enabled().any(|rule| rule.abort_incomplete_multipart_upload.is_some()),
            expires_objects: enabled().any(expires),
        }
    }
}

impl Bucket {
    /// What it is told to let end, asked for at that time of the catalog.
    pub async fn lifecycle(&self, now: Timestamp) -> Result<Lifecycle> {
        match self.ask_for_list::<Rules>("a question for its lifecycle", &[("lifecycle", "")], now).await {
            Ok(rules) => Ok(rules.as_ref().map(Rules::read).unwrap_or_default()),
            // There are no rules.
            Err(BucketError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(Lifecycle::default()),
            Err(error) => Err(error),
        }
    }

    /// Whether it keeps versions of what is deleted.
    pub async fn keeps_versions(&self, now: Timestamp) -> Result<bool> {
        if self.embedded().is_some() {
            return Ok(false);
        }
        let asked = self.ask_for_list::<Versioning>("a question for its versions", &[("versioning", "")], now).await?;
        Ok(asked.and_then(|versioning| versioning.status).is_some_and(|status| status == "Enabled"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rules: &str) -> Lifecycle {
        let document = format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>");
        quick_xml::de::from_str::<Rules>(&document).unwrap().read()
    }

    #[test]
    fn rules_are_read_that_are_switched_on() {
        let ends = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload>";
        let expires = "<Expiration><Days>30</Days></Expiration>";
        let on = |what: &str| format!("<Rule><ID>a</ID><Status>Enabled</Status>{what}</Rule>");
        let off = |what: &str| format!("<Rule><ID>b</ID><Status>Disabled</Status>{what}</Rule>");
        assert_eq!(read(""), Lifecycle::default());
        assert_eq!(read(&on(ends)), Lifecycle { ends_uploads: true, expires_objects: false });
        assert_eq!(read(&(on(ends) + &off(expires))), Lifecycle { ends_uploads: true, expires_objects: false });
        assert_eq!(read(&on(expires)), Lifecycle { ends_uploads: false, expires_objects: true });
        let marks = "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>";
        assert_eq!(read(&on(marks)), Lifecycle::default());
    }
}
