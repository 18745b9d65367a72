//! Private keys of encrypted recordings: RSA, PEM, PKCS#8 or PKCS#1.
//!
//! A key that is taken here is good: what cannot decrypt is refused at the start.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rsa::{OaepPrivateDecryptingKey, PrivateDecryptingKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::parse::Expected;

/// A private key. It is never shown.
#[derive(Clone)]
pub struct PrivateKey(Arc<OaepPrivateDecryptingKey>);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl PrivateKey {
    /// What decrypts.
    pub fn rsa(&self) -> &OaepPrivateDecryptingKey {
        &self.0
    }

    /// The key in that file.
    pub(super) fn read(path: &str) -> Result<Self, Expected> {
        let pem = std::fs::read(path).map_err(|error| format!("a readable PEM file ({error})"))?;
        Self::of_pem(&pem).ok_or_else(|| {
            "a PEM file with an RSA private key of 2048 to 8192 bits, without a passphrase (BEGIN PRIVATE KEY \
             or BEGIN RSA PRIVATE KEY)"
                .to_owned()
        })
    }

    fn of_pem(pem: &[u8]) -> Option<Self> {
        let pkcs8 = match PrivateKeyDer::from_pem_slice(pem).ok()? {
            PrivateKeyDer::Pkcs8(der) => der.secret_pkcs8_der().to_vec(),
            PrivateKeyDer::Pkcs1(der) => pkcs8_of(der.secret_pkcs1_der()),
            _ => return None,
        };
        let key = PrivateDecryptingKey::from_pkcs8(&pkcs8).ok()?;
        Some(Self(Arc::new(OaepPrivateDecryptingKey::new(key).ok()?)))
    }
}

/// Version 0 and the algorithm rsaEncryption, as DER.
const PKCS8_HEAD: &[u8] =
    &[0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// An RSA key of PKCS#1 as PKCS#8 has it (RFC 5958, 2).
fn pkcs8_of(pkcs1: &[u8]) -> Vec<u8> {
    let key = tagged(OCTET_STRING, pkcs1);
    tagged(SEQUENCE, &[PKCS8_HEAD, &key].concat())
}

/// A DER value: tag, length, content.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len().to_be_bytes();
    let significant = len.iter().position(|byte| *byte != 0).map_or(&[][..], |first| &len[first..]);
    let mut value = vec![tag];
    match significant {
        [short] if *short < 0x80 => value.push(*short),
        // Eight bytes at most.
        long => {
            value.push(0x80 | u8::try_from(long.len()).unwrap_or(u8::MAX));
            value.extend_from_slice(long);
        }
    }
    value.extend_from_slice(content);
    value
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::KeySize;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der))
    }

    #[test]
    fn keys_are_read_in_both_forms_and_sizes() {
        for (size, bits) in [(KeySize::Rsa2048, 2048), (KeySize::Rsa4096, 4096)] {
            let key = PrivateDecryptingKey::generate(size).unwrap();
            let pkcs8 = key.as_der().unwrap();
            let pkcs8 = pkcs8.as_ref();
            // SEQUENCE and its length, the head, OCTET STRING and its length: each length has three bytes.
            let pkcs1 = &pkcs8[4 + PKCS8_HEAD.len() + 4..];
            assert_eq!(pkcs8_of(pkcs1), pkcs8);
            for pem in [pem("PRIVATE KEY", pkcs8), pem("RSA PRIVATE KEY", pkcs1)] {
                assert_eq!(PrivateKey::of_pem(pem.as_bytes()).unwrap().rsa().key_size_bits(), bits);
            }
            assert!(PrivateKey::of_pem(pem("PUBLIC KEY", pkcs8).as_bytes()).is_none());
            assert!(PrivateKey::of_pem(pem("PRIVATE KEY", &pkcs8[..pkcs8.len() / 2]).as_bytes()).is_none());
        }
        assert!(PrivateKey::of_pem(b"").is_none());
        assert!(PrivateKey::of_pem(b"-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----").is_none());
    }
}
