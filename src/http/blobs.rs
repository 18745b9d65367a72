//! `/v1/blobs/sha256:{hex}`: audio by its content.
//!
//! Any recording that the key may see and that is stored with those bytes answers.

use std::str::FromStr;

use axum::extract::{FromRequestParts, State as Shared};
use axum::response::Response;
use http::request::Parts;

use super::State;
use super::audio::{self, Asked};
use super::auth::Reader;
use super::problem::Problem;
use super::request::Named;
use crate::domain::digest::{Digest, InvalidDigest};
use crate::vault::deliver::Wanted;

/// `sha256:` and 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BlobName(Digest);

impl FromStr for BlobName {
    type Err = InvalidDigest;
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        text.strip_prefix("sha256:").ok_or(InvalidDigest)?.parse().map(Self)
    }
}

/// Who asks for which bytes, and how.
#[derive(Debug)]
pub struct AskedBlob(Asked);

impl FromRequestParts<State> for AskedBlob {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let Reader(caller) = Reader::from_request_parts(parts, state).await?;
        let Named(BlobName(digest)) = Named::of(parts, "blob").await?;
        Asked::of(parts, Wanted::Content(digest), caller.visible()).map(Self)
    }
}

/// `GET` or `HEAD /v1/blobs/sha256:{hex}`: a redirect to a link, as `/audio`.
pub async fn blob(Shared(state): Shared<State>, AskedBlob(asked): AskedBlob) -> Result<Response, Problem> {
    audio::redirect(&state, &asked, asked.is_lasting()).await
}
