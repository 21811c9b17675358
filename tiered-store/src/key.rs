//! What identifies a block: its multihash, in 33 bytes, and how to get the CID back.

use std::hash::{Hash, Hasher};

use cid::{Cid, Version};
use hashbrown::HashMap;
use multihash::Multihash;
use multihash_codetable::{Code, MultihashDigest};
use parking_lot::RwLock;

/// Multicodec `raw`.
const RAW: u64 = 0x55;

/// More hash functions or codecs than this in one store are kept in the long form; both are bytes in an index entry.
const MOST_KINDS: usize = 250;

/// A block's identity. CIDs of version 0 and 1, and of different codecs, with one multihash have one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The digest, padded with zeros; for digests over 32 bytes the SHA-256 of the multihash.
    pub(crate) digest: [u8; 32],
    /// Number of the hash function and digest length in [`Kinds`]; 0 for the long form.
    pub(crate) hash: u8,
}

/// In three words: a hasher takes them faster than a slice of bytes.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (first, second) = self.digest.split_at(16);
        for half in [first, second] {
            state.write_u128(half.try_into().map_or(0, u128::from_le_bytes));
        }
        state.write_u8(self.hash);
    }
}

/// The hash functions and codecs that occur in this store, numbered, so that an index entry needs a byte for each.
#[derive(Default)]
pub(crate) struct Kinds(RwLock<Tables>);

#[derive(Default)]
struct Tables {
    /// Hash code and digest length; number 1 is the first.
    hashes: Vec<(u64, u8)>,
    /// CID version 0 or not, and codec; number 1 is the first, 0 stands for raw.
    codecs: Vec<(bool, u64)>,
    /// Multihashes in the long form.
    long: HashMap<[u8; 32], Multihash<64>>,
}

impl Kinds {
    /// The key of a CID if a block like it may be here: never adds anything, so that strangers cannot grow the tables.
    pub(crate) fn find(&self, cid: &Cid) -> Option<Key> {
        let tables = self.0.read();
        let hash = cid.hash();
        let kind = (hash.code(), hash.size());
        match tables.hashes.iter().position(|known| *known == kind) {
            Some(number) => short(hash, number),
            None => {
                let digest = long(hash);
                tables
                    .long
                    .contains_key(&digest)
                    .then_some(Key { digest, hash: 0 })
            }
        }
    }

    /// The key of a CID that is being stored, and its codec's number.
    pub(crate) fn intern(&self, cid: &Cid) -> (Key, u8) {
        let hash = cid.hash();
        let kind = (hash.code(), hash.size());
        let codec = (cid.version() == Version::V0, cid.codec());
        {
            let tables = self.0.read();
            let number = tables.hashes.iter().position(|known| *known == kind);
            let codec = tables.codecs.iter().position(|known| *known == codec);
            if let (Some(key), Some(codec)) = (number.and_then(|number| short(hash, number)), codec)
            {
                return (key, number_of(codec));
            }
        }
        let mut tables = self.0.write();
        let codec = intern(&mut tables.codecs, codec).map_or(0, number_of);
        if usize::from(hash.size()) <= 32
            && let Some(key) =
                intern(&mut tables.hashes, kind).and_then(|number| short(hash, number))
        {
            return (key, codec);
        }
        let digest = long(hash);
        tables.long.insert(digest, *hash);
        (Key { digest, hash: 0 }, codec)
    }

    /// The CID, as it was stored first.
    pub(crate) fn cid(&self, key: &Key, codec: u8) -> Option<Cid> {
        let tables = self.0.read();
        let hash = match usize::from(key.hash).checked_sub(1) {
            Some(number) => {
                let (code, size) = *tables.hashes.get(number)?;
                Multihash::wrap(code, key.digest.get(..usize::from(size))?).ok()?
            }
            None => *tables.long.get(&key.digest)?,
        };
        match usize::from(codec)
            .checked_sub(1)
            .and_then(|number| tables.codecs.get(number))
        {
            Some((true, _)) => Cid::new_v0(hash).ok(),
            Some((false, codec)) => Some(Cid::new_v1(*codec, hash)),
            None => Some(Cid::new_v1(RAW, hash)),
        }
    }

    /// Bytes of the CID, as it was stored first.
    pub(crate) fn name_len(&self, key: &Key, codec: u8) -> usize {
        self.cid(key, codec).map_or(0, |cid| cid.encoded_len())
    }

    /// All numbers that were given out.
    pub(crate) fn all(&self) -> Numbered {
        let tables = self.0.read();
        Numbered {
            hashes: tables.hashes.clone(),
            codecs: tables.codecs.clone(),
        }
    }

    /// The number of a hash function and digest length; `None` if there are too many.
    pub(crate) fn intern_hash(&self, code: u64, size: u8) -> Option<u8> {
        intern(&mut self.0.write().hashes, (code, size)).map(number_of)
    }

    /// The number of a codec; 0 if there are too many.
    pub(crate) fn intern_codec(&self, is_v0: bool, codec: u64) -> u8 {
        intern(&mut self.0.write().codecs, (is_v0, codec)).map_or(0, number_of)
    }

    /// A block is gone: its long form is not needed any more.
    pub(crate) fn forget(&self, key: &Key) {
        if key.hash == 0 {
            self.0.write().long.remove(&key.digest);
        }
    }
}

/// What the numbers stand for, from 1 on.
pub(crate) struct Numbered {
    /// Hash code and digest length.
    pub(crate) hashes: Vec<(u64, u8)>,
    /// CID version 0 or not, and codec.
    pub(crate) codecs: Vec<(bool, u64)>,
}

fn intern<T: PartialEq>(table: &mut Vec<T>, value: T) -> Option<usize> {
    match table.iter().position(|known| *known == value) {
        Some(number) => Some(number),
        None if table.len() < MOST_KINDS => {
            table.push(value);
            Some(table.len() - 1)
        }
        None => None,
    }
}

fn number_of(position: usize) -> u8 {
    u8::try_from(position + 1).unwrap_or(0)
}

fn short(hash: &Multihash<64>, position: usize) -> Option<Key> {
    let mut digest = [0; 32];
    digest
        .get_mut(..hash.digest().len())?
        .copy_from_slice(hash.digest());
    Some(Key {
        digest,
        hash: number_of(position),
    })
}

fn long(hash: &Multihash<64>) -> [u8; 32] {
    let mut digest = [0; 32];
    let of = Code::Sha2_256.digest(&hash.to_bytes());
    for (to, from) in digest.iter_mut().zip(of.digest()) {
        *to = *from;
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_0_and_1_are_one_block_and_the_first_name_comes_back() {
        let kinds = Kinds::default();
        let hash = Code::Sha2_256.digest(b"x");
        let (v0, v1) = (Cid::new_v0(hash).unwrap(), Cid::new_v1(RAW, hash));
        let (key, codec) = kinds.intern(&v0);
        assert_eq!(kinds.find(&v1), Some(key));
        assert_eq!(kinds.cid(&key, codec), Some(v0));
    }

    #[test]
    fn digests_over_32_bytes_come_back_whole_until_forgotten() {
        let kinds = Kinds::default();
        let cid = Cid::new_v1(0x70, Code::Sha2_512.digest(b"x"));
        assert_eq!(kinds.find(&cid), None);
        let (key, codec) = kinds.intern(&cid);
        assert_eq!(kinds.find(&cid), Some(key));
        assert_eq!(kinds.cid(&key, codec), Some(cid));
        kinds.forget(&key);
        assert_eq!(kinds.find(&cid), None);
    }

    #[test]
    fn hash_functions_with_equal_digests_are_different_blocks() {
        let kinds = Kinds::default();
        let digest = [7; 32];
        let one = Cid::new_v1(RAW, Multihash::wrap(0x12, &digest).unwrap());
        let two = Cid::new_v1(RAW, Multihash::wrap(0x1e, &digest).unwrap());
        assert_ne!(kinds.intern(&one).0, kinds.intern(&two).0);
    }
}
