//! Opening encrypted recordings (<https://www.twilio.com/docs/voice/tutorials/voice-recording-encryption>).
//!
//! RSA-OAEP gives the key of the body, AES-256-GCM the body, whose tag is its
//! end. Of a body that is not whole, or not right, some bytes may have come out
//! already: they are worth nothing before [`Decryptor::finish`] has said so.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rsa::OAEP_SHA256_MGF1SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};

use super::Twilio;
use super::gcm::{Gcm, KEY_BYTES, TAG_BYTES};
use crate::config::PrivateKey;
use crate::domain::sid::AccountSid;

/// Longer than any wrapped key of an RSA key that is taken.
const TEXT_MAX_BYTES: usize = 2048;
/// Longer than any IV that makes sense.
const IV_MAX_BYTES: usize = 64;

/// How a recording is encrypted, as Twilio says (`encryption_details`).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Encryption {
    /// The public key: `CR…`. What is missing or unreadable is empty.
    pub public_key_sid: String,
    /// The body's key, wrapped, in base64.
    pub encrypted_cek: String,
    /// In base64.
    pub iv: String,
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encryption({})", self.public_key_sid)
    }
}

/// Why a recording could not be decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// Nobody gave this service the key.
    #[error("the recording is encrypted for the public key {0}, and no private key that is configured opens it")]
    NoKey(String),
    /// It is not what it should be.
    #[error("the recording's encryption_details cannot be read")]
    Details,
    /// The bytes, or the key, are not the right ones.
    #[error("the recording's tag does not match: its bytes or its key are wrong")]
    Tag,
}

impl Twilio {
    /// Whether the account has keys to decrypt recordings with.
    pub fn decrypts(&self, account: &AccountSid) -> bool {
        !self.private_keys(account).is_empty()
    }

    /// What opens a recording of the account that is encrypted so.
    pub fn decryptor(&self, account: &AccountSid, encryption: &Encryption) -> Result<Decryptor, DecryptError> {
        let wrapped = decoded(&encryption.encrypted_cek)?;
        let iv = decoded(&encryption.iv)?;
        if iv.len() > IV_MAX_BYTES {
            return Err(DecryptError::Details);
        }
        let keys = self.private_keys(account);
        // While keys are rotated Twilio may have taken another one than it names.
        let named = keys.get(&encryption.public_key_sid);
        let others = keys.iter().filter(|(sid, _)| **sid != encryption.public_key_sid).map(|(_, key)| key);
        let cek = named.into_iter().chain(others).find_map(|key| unwrap(key, &wrapped));
        let cek = cek.ok_or_else(|| DecryptError::NoKey(shown(&encryption.public_key_sid)))?;
        Ok(Decryptor { gcm: Gcm::new(&cek, &iv), held: BytesMut::new() })
    }
}

/// A text of Twilio's, if it looks like a SID.
fn shown(sid: &str) -> String {
    let is_sid = sid.len() <= 40 && !sid.is_empty() && sid.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_sid { sid.to_owned() } else { "(unreadable)".to_owned() }
}

fn decoded(text: &str) -> Result<Vec<u8>, DecryptError> {
    let bytes = if text.len() <= TEXT_MAX_BYTES { BASE64.decode(text.trim()).ok() } else { None };
    bytes.filter(|bytes| !bytes.is_empty()).ok_or(DecryptError::Details)
}

fn unwrap(key: &PrivateKey, wrapped: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let mut plain = vec![0; key.rsa().min_output_size()];
    let plain = key.rsa().decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut plain, None).ok()?;
    (*plain).try_into().ok()
}

/// Opens a body as it comes.
pub struct Decryptor {
    gcm: Gcm,
    /// The end of what came, which may be the tag.
    held: BytesMut,
}

impl Decryptor {
    /// What is opened of a body of that many bytes.
    pub fn plain_bytes(body_bytes: u64) -> u64 {
        body_bytes.saturating_sub(TAG_BYTES as u64)
    }

    /// Takes the next bytes; gives what is certain not to be the tag.
    pub fn update(&mut self, chunk: &[u8]) -> Bytes {
        self.held.extend_from_slice(chunk);
        let mut opened = self.held.split_to(self.held.len().saturating_sub(TAG_BYTES));
        self.gcm.decrypt(&mut opened);
        opened.freeze()
    }

    /// Says whether all that came is right.
    pub fn finish(self) -> Result<(), DecryptError> {
        verify_slices_are_equal(&self.gcm.tag(), &self.held).map_err(|_| DecryptError::Tag)
    }
}
