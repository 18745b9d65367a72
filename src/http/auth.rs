//! Who asks: API keys, and what they may see.

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use secrecy::{ExposeSecret, SecretString};

use super::State;
use super::problem::Problem;
use crate::domain::digest::Digest;
use crate::domain::sid::AccountSid;

/// What a key may do. `admin` includes the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Read,
    Ingest,
    Admin,
}

impl Scope {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Ingest => "ingest",
            Self::Admin => "admin",
        }
    }
}

/// The keys that this service knows. Only their hashes are kept.
#[derive(Debug, Default)]
pub struct Keys {
    admin: Option<Digest>,
}

impl Keys {
    /// The admin key of the settings, if there is one.
    pub fn new(admin_key: Option<&SecretString>) -> Self {
        Self { admin: admin_key.map(|key| Digest::of(key.expose_secret().as_bytes())) }
    }

    /// Who holds that key. The time it takes tells nothing: hashes are
    /// compared, and nobody can choose a key by its hash.
    fn holder(&self, key: &str) -> Option<Caller> {
        let known = self.admin.is_some_and(|admin| admin == Digest::of(key.as_bytes()));
        known.then(|| Caller { scopes: vec![Scope::Admin], accounts: None })
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    scopes: Vec<Scope>,
    accounts: Option<Vec<AccountSid>>,
}

impl Caller {
    /// The accounts that may be seen; None is all.
    pub fn visible(&self) -> Option<&[AccountSid]> {
        self.accounts.as_deref()
    }

    fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    fn of_request(parts: &Parts, state: &State, scope: Scope) -> Result<Self, Problem> {
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = header.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let caller = bearer.and_then(|key| state.keys.holder(key)).ok_or(Problem::Unauthorized)?;
        if caller.may(scope) { Ok(caller) } else { Err(Problem::Forbidden(scope.as_str())) }
    }
}

macro_rules! scoped {
    ($(#[$doc:meta])* $name:ident, $scope:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(pub Caller);

        impl FromRequestParts<State> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
                Caller::of_request(parts, state, $scope).map(Self)
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
