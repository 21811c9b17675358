//! The hash functions blocks may use: boxo's allow-list (`verifcid/allowlist.go`) as far as
//! `multihash-codetable` has them.

use cid::multihash::Multihash;
use multihash_codetable::{Code, MultihashDigest, Sha1};
use multihash_derive::Hasher;

/// Multihash code of the identity "hash": the digest is the data.
pub(crate) const IDENTITY: u64 = 0x00;
/// Multihash code of SHA2-256.
pub(crate) const SHA2_256: u64 = 0x12;
/// Multihash code of SHA-1 (git objects), which the code table lacks.
const SHA1: u64 = 0x11;
/// Multihash code of SHA2-256 applied twice, which `multihash-codetable` lacks.
const DBL_SHA2_256: u64 = 0x56;
/// Codec `raw`.
pub(crate) const RAW: u64 = 0x55;
/// Codec `dag-pb`.
pub(crate) const DAG_PB: u64 = 0x70;
/// Shorter digests are too easy to collide (boxo: `minDigestSize`).
const MIN_DIGEST_BYTES: usize = 20;

/// The SHA2-256 multihash of `data`.
pub(crate) fn sha2_256(data: &[u8]) -> Multihash<64> {
    Code::Sha2_256.digest(data)
}

/// Hashes `data` with function `code`, cut to `length` bytes. `None` if the function is not on the
/// list, or the length is below 20 bytes or above what the function gives.
pub(crate) fn digest(code: u64, length: usize, data: &[u8]) -> Option<Multihash<64>> {
    if length < MIN_DIGEST_BYTES {
        return None;
    }
    let full = match code {
        SHA1 => {
            let mut hasher = Sha1::default();
            hasher.update(data);
            Multihash::wrap(SHA1, hasher.finalize()).ok()?
        }
        0x12..=0x17 | 0x1a..=0x1e | 0xb220 | 0xb240 | 0xb260 => {
            Code::try_from(code).ok()?.digest(data)
        }
        DBL_SHA2_256 => {
            let twice = sha2_256(sha2_256(data).digest());
            Multihash::wrap(DBL_SHA2_256, twice.digest()).ok()?
        }
        _ => return None,
    };
    match usize::from(full.size()) {
        size if size == length => Some(full),
        size if size > length => Multihash::wrap(code, full.digest().get(..length)?).ok(),
        _ => None,
    }
}
