//! The SHA-256 of a recording's bytes.
//!
//! A [`Digest`] is always written as 64 bare lower-case hex digits. The hash is
//! aws-lc's, which is linked for TLS already: as fast as the sha2 crate on one
//! machine and up to a sixth faster on others (benches/micro.rs), and fast in
//! debug builds too.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Serialize, Serializer};

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// A text that is not 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256: 64 lower-case hex digits are expected")]
pub struct InvalidDigest;

impl Digest {
    /// The digest of bytes that are all at hand.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        if text.len() != 64 {
            return Err(InvalidDigest);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Result<u8, InvalidDigest> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidDigest),
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A SHA-256 that is still taking bytes.
pub struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was taken.
    pub fn finish(self) -> Digest {
        let digest = self.0.finish();
        Digest(digest.as_ref().try_into().expect("SHA-256 gives 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_answers_of_fips_180() {
        assert_eq!(Digest::of(b"").to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(Digest::of(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0usize..2000) {
            let mut hasher = Hasher::default();
            let cut = cut.min(bytes.len());
            hasher.update(&bytes[..cut]);
            hasher.update(&bytes[cut..]);
            prop_assert_eq!(hasher.finish(), Digest::of(&bytes));
        }

        #[test]
        fn hex_comes_back(bytes in any::<[u8; 32]>()) {
            let digest = Digest::from(bytes);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        }
    }

    #[test]
    fn only_bare_lower_case_hex_is_read() {
        let hex = Digest::of(b"abc").to_string();
        assert!(hex.to_uppercase().parse::<Digest>().is_err());
        assert!(format!("sha256:{hex}").parse::<Digest>().is_err());
        assert!(hex[1..].parse::<Digest>().is_err());
        assert!(format!("{}é", &hex[2..]).parse::<Digest>().is_err());
    }
}
