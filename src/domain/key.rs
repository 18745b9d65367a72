//! API keys: how they look, what they may do, and what they are called.
//!
//! A key is a secret that is shown once; what is kept of it is its SHA-256. Its
//! id may be shown to anyone, and is no help in guessing the key.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use aws_lc_rs::pbkdf2;
use serde::{Serialize, Serializer};

use super::digest::Digest;
use super::sid::AccountSid;

/// What every key that is made here begins with: people and scanners of sources
/// know by it what they have found.
const PREFIX: &str = "cvk_";
/// Random bytes of a key: 192 bits are never guessed.
const RANDOM_LEN: usize = 24;
/// The rounds by which a chosen key becomes an id: tens of milliseconds, once a
/// start, and as much for each guess of whoever has the id.
const ROUNDS: NonZeroU32 = NonZeroU32::new(200_000).expect("it is not zero");
/// Separates these ids from anything else that is made from a key.
const SALT: &[u8] = b"callvault: the id of an admin key";

/// How often a key may ask where nobody said: more than people and workers do,
/// and less than a program that runs wild.
pub const RATE_DEFAULT_PER_SECOND: u32 = 1000;

/// What a key may do. `admin` includes the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// See and play recordings.
    Read,
    /// Name recordings.
    Ingest,
    /// Anything.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Ingest, Self::Admin];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Ingest => "ingest",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or("read, ingest or admin is expected")
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What a key is called: `key_` and 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// The id of a key that is random, from its hash.
    pub fn of_random(hash: &Digest) -> Self {
        let (id, _) = hash.as_bytes().split_first_chunk().expect("a SHA-256 has 32 bytes");
        Self(*id)
    }

    /// The id of a key that a person has chosen, from its hash. Slow on purpose:
    /// ids stand in shares, and a key that can be guessed must not be found by one.
    pub fn of_chosen(hash: &Digest) -> Self {
        let mut id = [0; 8];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, SALT, hash.as_bytes(), &mut id);
        Self(id)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl From<[u8; 8]> for KeyId {
    fn from(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key_{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for KeyId {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("key_").filter(|digits| digits.len() == 16);
        let number =
            digits.filter(|digits| !digits.starts_with('+')).and_then(|text| u64::from_str_radix(text, 16).ok());
        let id = number.map(|number| Self(number.to_be_bytes())).filter(|id| id.to_string() == text);
        id.ok_or("key_ and 16 lower-case hex digits are expected, as `callvault keys list` shows them")
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A new key, made of random bytes.
pub fn new_key(random: [u8; 32]) -> String {
    let digits: String = random[..RANDOM_LEN].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{digits}")
}

/// Whether a text has the form of a key that was made here.
pub fn is_well_formed(text: &str) -> bool {
    let digits = text.strip_prefix(PREFIX).filter(|digits| digits.len() == 2 * RANDOM_LEN);
    digits.is_some_and(|digits| digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// Someone who asks with a key, and what that key is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// What the key is called.
    pub id: KeyId,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The accounts that it may see; None is all.
    pub accounts: Option<Vec<AccountSid>>,
    /// Requests a second that each node takes; None: no limit.
    pub rate_per_second: Option<NonZeroU32>,
}

impl Holder {
    /// Whether the key may do that.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_well_formed_and_nothing_else_is() {
        let key = new_key([0xa5; 32]);
        assert_eq!(key, format!("cvk_{}", "a5".repeat(24)));
        assert!(is_well_formed(&key));
        for wrong in
            ["", "cvk_", &key[1..], &key.to_uppercase(), &format!("{key}0"), &format!("cvk_{}", "g".repeat(48))]
        {
            assert!(!is_well_formed(wrong), "{wrong}");
        }
    }

    #[test]
    fn ids_come_from_hashes_and_come_back_as_they_were() {
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        for id in [KeyId::of_random(&one), KeyId::of_chosen(&one)] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_ne!(KeyId::of_chosen(&one), KeyId::of_chosen(&other));
        assert_ne!(KeyId::of_chosen(&one), KeyId::of_random(&one), "the hash does not show");
        for wrong in ["", "key_", "key_+123456789abcde", "key_0123456789ABCDEF", "0123456789abcdef"] {
            assert!(wrong.parse::<KeyId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn admin_may_do_what_the_others_may() {
        let holder = |scopes: &[Scope]| Holder {
            id: KeyId::from([0; 8]),
            scopes: scopes.to_vec(),
            accounts: None,
            rate_per_second: None,
        };
        assert!(Scope::ALL.into_iter().all(|scope| holder(&[Scope::Admin]).may(scope)));
        assert!(holder(&[Scope::Read]).may(Scope::Read));
        assert!(!holder(&[Scope::Read]).may(Scope::Ingest));
        assert!(!holder(&[Scope::Read, Scope::Ingest]).may(Scope::Admin));
    }
}
