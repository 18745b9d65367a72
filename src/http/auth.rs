//! Who asks: what a request's key may do, for as long as the request takes.
//!
//! A handler takes a [`Reader`], an [`Ingester`] or an [`Admin`], and is not
//! called for anyone else. [`guard`] stands around every handler: when the key
//! is revoked meanwhile, who still waits gets 401, and a body that is being sent
//! breaks off.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http_body::{Frame, SizeHint};

use super::State;
use super::problem::Problem;
use crate::domain::key::{Holder, KeyId, Scope};
use crate::domain::sid::AccountSid;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Holder>);

impl Caller {
    /// The accounts that may be seen; None is all.
    pub fn visible(&self) -> Option<&[AccountSid]> {
        self.0.accounts.as_deref()
    }

    /// What the key is called.
    pub fn key_id(&self) -> KeyId {
        self.0.id
    }

    async fn of_request(parts: &Parts, state: &State, scope: Scope) -> Result<Self, Problem> {
        let key = bearer(parts).ok_or(Problem::Unauthorized)?;
        let holder = state.vault.keys.holder(key).await?.ok_or(Problem::Unauthorized)?;
        if let Some(admitted) = parts.extensions.get::<Admitted>() {
            let _ = admitted.0.set(holder.id);
        }
        state.limits.admit(&holder).map_err(Problem::too_many_requests)?;
        if holder.may(scope) { Ok(Self(holder)) } else { Err(Problem::Forbidden(scope.as_str())) }
    }
}

fn bearer(parts: &Parts) -> Option<&str> {
    let (scheme, key) = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

macro_rules! scoped {
    ($(#[$doc:meta])* $name:ident, $scope:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(pub Caller);

        impl FromRequestParts<State> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
                Caller::of_request(parts, state, $scope).await.map(Self)
            }
        }
    };
}

scoped!(
    /// A caller who may read.
    Reader, Scope::Read
);
scoped!(
    /// A caller who may name recordings.
    Ingester, Scope::Ingest
);
scoped!(
    /// A caller who may do anything.
    Admin, Scope::Admin
);

/// The key with which a request was let in, once it was.
#[derive(Debug, Clone, Default)]
struct Admitted(Arc<OnceLock<KeyId>>);

/// A body that is shorter is sent before anyone could revoke anything.
const SHORT_BYTES: u64 = 64 << 10;

/// Ends what is under way when the key is revoked with which it was let in.
pub async fn guard(state: &State, mut request: Request, next: Next) -> Response {
    let admitted = Admitted::default();
    request.extensions_mut().insert(admitted.clone());
    let revoked = state.vault.keys.until_revoked(|| admitted.0.get().copied());
    let response = tokio::select! {
        biased;
        response = next.run(request) => response,
        () = revoked => return Problem::Unauthorized.into_response(),
    };
    match admitted.0.get() {
        Some(id) if response.body().size_hint().upper().is_none_or(|bytes| bytes > SHORT_BYTES) => {
            let (state, id) = (state.clone(), *id);
            let revoked = Box::pin(async move { state.vault.keys.until_revoked(|| Some(id)).await });
            response.map(|body| Body::new(Guarded { body, revoked: Some(revoked) }))
        }
        _ => response,
    }
}

/// A body that breaks off when a key is revoked.
struct Guarded {
    body: Body,
    /// None once it has broken off.
    revoked: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(revoked) = &mut self.revoked else { return Poll::Ready(None) };
        if revoked.as_mut().poll(context).is_ready() {
            self.revoked = None;
            return Poll::Ready(Some(Err(axum::Error::new("the key was revoked"))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
