//! What an attempt may have left in the bucket, as far as it can tell itself.
//!
//! A write that was dropped half-way, or of which the store never said clearly
//! that it did not take it, may still take effect. Whoever settles the attempt
//! then says that the bucket is to be looked at again; nothing is removed here.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{bucket, catalog};

/// What one attempt has written so far.
#[derive(Default)]
pub(super) struct Traces {
    /// The multipart upload that it began.
    upload_id: OnceLock<String>,
    /// Something was begun to be written, whatever became of it.
    any: AtomicBool,
    /// Something may be there that the row does not name.
    unclear: AtomicBool,
}

impl Traces {
    /// Writes something that leaves nothing behind once the store has answered.
    pub(super) async fn write<T>(&self, writing: impl Future<Output = bucket::Result<T>>) -> bucket::Result<T> {
        self.any.store(true, Ordering::Relaxed);
        self.unclear_until(writing, bucket::BucketError::is_refusal).await
    }

    /// Tells the row of an upload that was begun: once that is done, it names it. An attempt
    /// that is told to have lost its lease is looked at later for that alone.
    pub(super) async fn name<T>(&self, naming: impl Future<Output = catalog::Result<T>>) -> catalog::Result<T> {
        self.unclear_until(naming, |_| false).await
    }

    /// Unclear until it is answered, and if it is dropped before; after an error, unless that is clear.
    async fn unclear_until<T, E>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
        is_clear: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let before = self.unclear.swap(true, Ordering::Relaxed);
        let answered = answer.await;
        let is_clear = answered.as_ref().err().is_none_or(is_clear);
        self.unclear.store(before || !is_clear, Ordering::Relaxed);
        answered
    }

    /// Something lies there, or goes on lying there, that the row may not come to name.
    pub(super) fn left_something(&self) {
        self.unclear.store(true, Ordering::Relaxed);
    }

    /// Remembers the upload that was begun.
    pub(super) fn began_upload(&self, upload_id: &str) {
        let _ = self.upload_id.set(upload_id.to_owned());
    }

    /// The upload that was begun.
    pub(super) fn upload_id(&self) -> Option<&str> {
        self.upload_id.get().map(String::as_str)
    }

    /// Whether something may be there that the row does not name.
    pub(super) fn is_unclear(&self) -> bool {
        self.unclear.load(Ordering::Relaxed)
    }

    /// Whether anything was begun to be written.
    pub(super) fn is_any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::BucketError;

    #[tokio::test]
    async fn only_what_the_store_answered_is_clear() {
        let traces = Traces::default();
        assert!(!traces.is_any());
        traces.write(async { Ok(()) }).await.unwrap();
        let refused = BucketError::Refused { what: "a put", status: http::StatusCode::FORBIDDEN };
        traces.write::<()>(async { Err(refused) }).await.unwrap_err();
        assert!(traces.is_any() && !traces.is_unclear());

        drop(tokio::time::timeout(std::time::Duration::ZERO, traces.write::<()>(std::future::pending())).await);
        assert!(traces.is_unclear());
        // What comes later does not make it clear.
        traces.write(async { Ok(()) }).await.unwrap();
        assert!(traces.is_unclear());
    }

    #[tokio::test]
    async fn an_upload_that_the_row_may_not_name_is_unclear() {
        let traces = Traces::default();
        traces.name(async { Ok(()) }).await.unwrap();
        assert!(!traces.is_unclear());
        let unanswered = catalog::CatalogError::Unavailable("a commit without an answer".to_owned());
        Traces::name::<()>(&traces, async { Err(unanswered) }).await.unwrap_err();
        assert!(traces.is_unclear());

        let traces = Traces::default();
        drop(tokio::time::timeout(std::time::Duration::ZERO, traces.name::<()>(std::future::pending())).await);
        assert!(traces.is_unclear());
    }

    #[tokio::test]
    async fn an_error_of_the_store_is_unclear() {
        let traces = Traces::default();
        let failed = BucketError::Refused { what: "a put", status: http::StatusCode::BAD_GATEWAY };
        traces.write::<()>(async { Err(failed) }).await.unwrap_err();
        assert!(traces.is_unclear());
    }
}
