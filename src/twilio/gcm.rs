//! AES-256-GCM (NIST SP 800-38D) over a body that comes in pieces, without
//! associated data.
//!
//! aws-lc-rs, which is here for TLS, opens a message only whole: of a recording
//! that is larger than memory that cannot be had. So the cipher's two halves,
//! the counter mode and the hash, are put together here; they run at 1.3 GB/s a
//! core, which is more than the network gives. What comes out before the tag was
//! compared is nobody's word on anything.

use aes::Aes256;
use aes::cipher::{KeyIvInit, StreamCipher};
use ctr::Ctr32BE;
use ghash::GHash;
use ghash::universal_hash::UniversalHash;

/// The length of a tag.
pub(super) const TAG_BYTES: usize = 16;
/// The length of a key.
pub(super) const KEY_BYTES: usize = 32;

const BLOCK_BYTES: usize = 16;
/// IVs of this length are counted on from; others are hashed.
const PLAIN_IV_BYTES: usize = 12;

/// A message that is being opened or sealed.
pub(super) struct Gcm {
    counter: Ctr32BE<Aes256>,
    hash: BlockHash,
    /// What the tag is covered with.
    mask: [u8; TAG_BYTES],
}

impl Gcm {
    pub(super) fn new(key: &[u8; KEY_BYTES], iv: &[u8]) -> Self {
        let key = key.into();
        let first = |block: [u8; BLOCK_BYTES]| {
            let mut stream = [0; BLOCK_BYTES];
            Ctr32BE::<Aes256>::new(key, &block.into()).apply_keystream(&mut stream);
            stream
        };
        let hash_key = first([0; BLOCK_BYTES]);
        let begin = begin_of(&hash_key, iv);
        let mut counter = Ctr32BE::<Aes256>::new(key, &begin.into());
        // The first block of the stream is the tag's.
        let mut mask = [0; TAG_BYTES];
        counter.apply_keystream(&mut mask);
        Self { counter, hash: BlockHash::new(&hash_key), mask }
    }

    /// Opens the next bytes.
    pub(super) fn decrypt(&mut self, bytes: &mut [u8]) {
        self.hash.update(bytes);
        self.counter.apply_keystream(bytes);
    }

    /// Seals the next bytes.
    pub(super) fn encrypt(&mut self, bytes: &mut [u8]) {
        self.counter.apply_keystream(bytes);
        self.hash.update(bytes);
    }

    /// The tag of all that came.
    pub(super) fn tag(self) -> [u8; TAG_BYTES] {
        let mut tag = self.hash.finish();
        tag.iter_mut().zip(self.mask).for_each(|(byte, mask)| *byte ^= mask);
        tag
    }
}

/// The counter's first block.
fn begin_of(hash_key: &[u8; BLOCK_BYTES], iv: &[u8]) -> [u8; BLOCK_BYTES] {
    if iv.len() == PLAIN_IV_BYTES {
        let mut begin = [0; BLOCK_BYTES];
        begin[..PLAIN_IV_BYTES].copy_from_slice(iv);
        begin[BLOCK_BYTES - 1] = 1;
        return begin;
    }
    let mut hash = BlockHash::new(hash_key);
    hash.update(iv);
    hash.finish()
}

/// GHASH over bytes that do not come in whole blocks.
struct BlockHash {
    hash: GHash,
    /// The bytes of a block that is not full yet.
    part: [u8; BLOCK_BYTES],
    part_bytes: usize,
    len_bytes: u64,
}

impl BlockHash {
    fn new(key: &[u8; BLOCK_BYTES]) -> Self {
        Self { hash: GHash::new(&(*key).into()), part: [0; BLOCK_BYTES], part_bytes: 0, len_bytes: 0 }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        self.len_bytes += bytes.len() as u64;
        if self.part_bytes > 0 {
            let taken = bytes.len().min(BLOCK_BYTES - self.part_bytes);
            self.part[self.part_bytes..self.part_bytes + taken].copy_from_slice(&bytes[..taken]);
            self.part_bytes += taken;
            bytes = &bytes[taken..];
            if self.part_bytes < BLOCK_BYTES {
                return;
            }
            self.hash.update(&[self.part.into()]);
            self.part_bytes = 0;
        }
        let (blocks, rest) = ghash::Block::slice_as_chunks(bytes);
        self.hash.update(blocks);
        self.part[..rest.len()].copy_from_slice(rest);
        self.part_bytes = rest.len();
    }

    fn finish(mut self) -> [u8; BLOCK_BYTES] {
        self.hash.update_padded(&self.part[..self.part_bytes]);
        let mut lengths = [0; BLOCK_BYTES];
        lengths[8..].copy_from_slice(&(self.len_bytes * 8).to_be_bytes());
        self.hash.update(&[lengths.into()]);
        self.hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    use proptest::prelude::*;

    use super::*;

    fn in_pieces(piece_bytes: usize, bytes: &mut [u8], mut each: impl FnMut(&mut [u8])) {
        bytes.chunks_mut(piece_bytes).for_each(&mut each);
    }

    proptest! {
        #[test]
        fn it_is_what_a_whole_message_gives(
            plain in proptest::collection::vec(any::<u8>(), 0..200),
            key in any::<[u8; KEY_BYTES]>(),
            iv in any::<[u8; PLAIN_IV_BYTES]>(),
            piece_bytes in 1usize..40,
        ) {
            let mut peer = plain.clone();
            let whole = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
            whole.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut peer).unwrap();
            let (peer, tag) = peer.split_at(plain.len());

            let mut sealed = plain.clone();
            let mut gcm = Gcm::new(&key, &iv);
            in_pieces(piece_bytes, &mut sealed, |piece| gcm.encrypt(piece));
            prop_assert_eq!(&sealed[..], peer);
            prop_assert_eq!(&gcm.tag()[..], tag);

            let mut gcm = Gcm::new(&key, &iv);
            in_pieces(piece_bytes, &mut sealed, |piece| gcm.decrypt(piece));
            prop_assert_eq!(sealed, plain);
            prop_assert_eq!(&gcm.tag()[..], tag);
        }
    }

    /// Made with OpenSSL, by way of Python's cryptography.
    #[test]
    fn an_iv_of_another_length_is_hashed() {
        let key: [u8; KEY_BYTES] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let iv: Vec<u8> = (100..116).collect();
        let mut bytes = [7; 50];
        let mut gcm = Gcm::new(&key, &iv);
        gcm.encrypt(&mut bytes);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let sealed =
            "dfb44456e31320dfb5feaa8e40d0eb625d765fc79be8e70cc28713699ef000cf7cc689cb67cce4c6060848021076cb35de5a";
        assert_eq!((hex(&bytes).as_str(), hex(&gcm.tag()).as_str()), (sealed, "681d667f27716c34dc0f3551390cb625"));
    }
}
