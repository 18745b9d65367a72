//! Encrypted recordings of the simulator, made as they are sent.

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};

use crate::twilio::gcm::{Gcm, KEY_BYTES, TAG_BYTES};

/// How a recording is encrypted.
#[derive(Debug, Clone)]
pub struct SimulatedEncryption {
    public_key_sid: String,
    spoilt_byte: Option<u64>,
    key: [u8; KEY_BYTES],
    iv: Vec<u8>,
    wrapped_key: Vec<u8>,
}

impl SimulatedEncryption {
    /// For a public key in DER (SubjectPublicKeyInfo), with that key and IV of the
    /// body. None where it is no RSA key.
    pub fn new(public_key_sid: &str, public_key: &[u8], key: [u8; KEY_BYTES], iv: &[u8]) -> Option<Self> {
        let rsa = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(public_key).ok()?).ok()?;
        let mut wrapped = vec![0; rsa.ciphertext_size()];
        let wrapped_key = rsa.encrypt(&OAEP_SHA256_MGF1SHA256, &key, &mut wrapped, None).ok()?.to_vec();
        Some(Self { public_key_sid: public_key_sid.to_owned(), spoilt_byte: None, key, iv: iv.to_vec(), wrapped_key })
    }

    /// The same, with another name for the public key.
    #[must_use]
    pub fn named(self, public_key_sid: &str) -> Self {
        Self { public_key_sid: public_key_sid.to_owned(), ..self }
    }

    /// The same with one wrong bit in that byte of the body, counted from its beginning.
    #[must_use]
    pub fn spoilt_at(self, byte: u64) -> Self {
        Self { spoilt_byte: Some(byte), ..self }
    }

    /// `encryption_details` of `Recordings/{RE}.json`.
    pub(super) fn details(&self) -> Value {
        json!({
            "type": "rsa-aes",
            "public_key_sid": self.public_key_sid,
            "encrypted_cek": BASE64.encode(&self.wrapped_key),
            "iv": BASE64.encode(&self.iv),
        })
    }

    /// How long a body is once it is sealed.
    pub(super) fn sealed_bytes(plain_bytes: u64) -> u64 {
        plain_bytes + TAG_BYTES as u64
    }

    /// A body, sealed, with its tag at the end.
    pub(super) fn seal(&self, plain: BoxStream<'static, Bytes>) -> BoxStream<'static, Bytes> {
        let mut gcm = Some(Gcm::new(&self.key, &self.iv));
        let (spoilt_byte, mut sent) = (self.spoilt_byte, 0u64);
        let pieces = plain.map(Some).chain(stream::iter([None]));
        let sealed = pieces.map(move |piece| {
            let mut sealed = match piece {
                Some(plain) => {
                    let mut bytes = BytesMut::from(&plain[..]);
                    if let Some(gcm) = &mut gcm {
                        gcm.encrypt(&mut bytes);
                    }
                    bytes
                }
                None => gcm.take().map(|gcm| BytesMut::from(&gcm.tag()[..])).unwrap_or_default(),
            };
            let here = spoilt_byte.and_then(|at| usize::try_from(at.checked_sub(sent)?).ok());
            if let Some(byte) = here.and_then(|at| sealed.get_mut(at)) {
                *byte ^= 1;
            }
            sent += sealed.len() as u64;
            sealed.freeze()
        });
        sealed.boxed()
    }
}
