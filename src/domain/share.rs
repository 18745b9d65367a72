//! Shares: a URL that plays one recording for whoever has it, until it ends.
//!
//! Its token holds all that has to be known, under a signature: no table of
//! shares, and nothing to ask. What nobody signed cannot be told from what was
//! never a token.

use std::str::FromStr;

use aws_lc_rs::{constant_time, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jiff::Timestamp;

use super::key::KeyId;
use super::recording::RecordingId;

/// The form of tokens that is written and read here.
const VERSION: u8 = 1;
/// Version, secret, key, end, account, recording.
const CLAIMS_LEN: usize = 1 + 8 + 8 + 8 + DIGITS_LEN + DIGITS_LEN;
/// The digits of a SID, as they are: their case is part of the name.
const DIGITS_LEN: usize = 32;
/// Half of the HMAC: 128 bits cannot be guessed, and the URL stays short.
const SIGNATURE_LEN: usize = 16;

/// What a share promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What it plays.
    pub recording: RecordingId,
    /// The key with which it was made: it ends with that.
    pub key: KeyId,
    /// When it ends.
    pub ends_at: Timestamp,
}

/// A token as it came: whether anyone signed it is still to be found out.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What it says that it promises.
    pub claimed: Share,
    /// The secret that it says it was signed with.
    pub secret_id: i64,
    claims: [u8; CLAIMS_LEN],
    signature: [u8; SIGNATURE_LEN],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever has the token can play it: it is not shown.
        write!(f, "Token({})", self.claimed.recording)
    }
}

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a share")]
pub struct InvalidToken;

impl Share {
    /// The token of this share.
    pub fn sign(&self, secret_id: i64, secret: &[u8; 32]) -> String {
        let mut token = Vec::with_capacity(CLAIMS_LEN + SIGNATURE_LEN);
        token.push(VERSION);
        token.extend(secret_id.to_be_bytes());
        token.extend(self.key.as_bytes());
        token.extend(self.ends_at.as_millisecond().to_be_bytes());
        token.extend(&self.recording.account.as_str().as_bytes()[2..]);
        token.extend(&self.recording.recording.as_str().as_bytes()[2..]);
        let signature = signature(&token, secret);
        token.extend(signature);
        BASE64.encode(token)
    }
}

impl Token {
    /// Whether it was signed with that secret. The time it takes tells nothing.
    pub fn is_signed_with(&self, secret: &[u8; 32]) -> bool {
        constant_time::verify_slices_are_equal(&signature(&self.claims, secret), &self.signature).is_ok()
    }
}

impl FromStr for Token {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        // A longer one is not worth decoding.
        if text.len() > base64::encoded_len(CLAIMS_LEN + SIGNATURE_LEN, false).unwrap_or(usize::MAX) {
            return Err(InvalidToken);
        }
        let bytes = BASE64.decode(text).map_err(|_| InvalidToken)?;
        let (claims, signature) = bytes.split_first_chunk::<CLAIMS_LEN>().ok_or(InvalidToken)?;
        let signature = signature.try_into().map_err(|_| InvalidToken)?;
        let (secret_id, claimed) = read(claims).ok_or(InvalidToken)?;
        Ok(Self { claimed, secret_id, claims: *claims, signature })
    }
}

fn read(claims: &[u8; CLAIMS_LEN]) -> Option<(i64, Share)> {
    let (version, rest) = claims.split_first()?;
    let (secret_id, rest) = rest.split_first_chunk()?;
    let (key, rest) = rest.split_first_chunk::<8>()?;
    let (ends_at, digits) = rest.split_first_chunk()?;
    let (account, recording) = std::str::from_utf8(digits).ok()?.split_at_checked(DIGITS_LEN)?;
    let share = Share {
        recording: RecordingId {
            account: format!("AC{account}").parse().ok()?,
            recording: format!("RE{recording}").parse().ok()?,
        },
        key: KeyId::from(*key),
        ends_at: Timestamp::from_millisecond(i64::from_be_bytes(*ends_at)).ok()?,
    };
    (*version == VERSION).then_some((i64::from_be_bytes(*secret_id), share))
}

fn signature(claims: &[u8], secret: &[u8; 32]) -> [u8; SIGNATURE_LEN] {
    let whole = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), claims);
    *whole.as_ref().first_chunk().expect("an HMAC-SHA256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share() -> Share {
        Share {
            recording: RecordingId {
                account: format!("AC{}", "a".repeat(32)).parse().unwrap(),
                recording: format!("RE{}", "B".repeat(32)).parse().unwrap(),
            },
            key: KeyId::from([7; 8]),
            ends_at: Timestamp::from_millisecond(1_763_900_000_123).unwrap(),
        }
    }

    #[test]
    fn a_token_comes_back_as_it_was_signed() {
        let text = share().sign(3, &[1; 32]);
        let token: Token = text.parse().unwrap();
        assert_eq!((token.secret_id, &token.claimed), (3, &share()));
        assert!(token.is_signed_with(&[1; 32]));
        assert!(!token.is_signed_with(&[2; 32]));
        assert_eq!(text.len(), 140);
    }

    #[test]
    fn not_one_bit_can_be_changed() {
        let bytes = BASE64.decode(share().sign(3, &[1; 32])).unwrap();
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let token = BASE64.encode(changed).parse::<Token>();
            assert!(token.is_err() || !token.unwrap().is_signed_with(&[1; 32]), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn nothing_else_is_a_token(text in "[-_0-9A-Za-z]{0,200}|\\PC{0,40}") {
            let token = text.parse::<Token>();
            prop_assert!(token.is_err() || !token.unwrap().is_signed_with(&[1; 32]));
        }
    }

    #[test]
    fn a_token_has_one_spelling() {
        let text = share().sign(3, &[1; 32]);
        for other in [format!("{text}="), format!(" {text}"), text.replacen(&text[..1], "", 1), format!("{text}A")] {
            assert!(other.parse::<Token>().is_err(), "{other}");
        }
    }
}
