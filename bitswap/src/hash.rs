//! The hash functions blocks may use: boxo's allow-list (`verifcid/allowlist.go`), with digests of up
//! to 64 bytes.

use cid::multihash::Multihash;
use multihash_codetable::{Blake3Hasher, Code, MultihashDigest, Sha1};
use multihash_derive::Hasher;
use sha3::{
    Shake256,
    digest::{ExtendableOutput, Update, XofReader},
};

/// Multihash code of the identity "hash": the digest is the data.
pub(crate) const IDENTITY: u64 = 0x00;
/// Multihash code of SHA2-256.
pub(crate) const SHA2_256: u64 = 0x12;
/// Multihash code of SHA-1 (git objects), which the code table lacks.
const SHA1: u64 = 0x11;
/// Multihash code of SHAKE-256, whose digest has 64 bytes (go-multihash's `register/sha3`).
const SHAKE_256: u64 = 0x19;
/// Multihash code of BLAKE3, whose digest has any length.
const BLAKE3: u64 = 0x1e;
/// Multihash code of SHA2-256 applied twice, which `multihash-codetable` lacks.
const DBL_SHA2_256: u64 = 0x56;
/// Multihash code of BLAKE2b with a digest of 0 bytes, were there one: that of n bytes is n more.
const BLAKE2B: u64 = 0xb200;
/// The same of BLAKE2s.
const BLAKE2S: u64 = 0xb240;
/// Codec `raw`.
pub(crate) const RAW: u64 = 0x55;
/// Codec `dag-pb`.
pub(crate) const DAG_PB: u64 = 0x70;
/// Shorter digests are too easy to collide (boxo: `minDigestSize`).
const MIN_DIGEST_BYTES: usize = 20;
/// What a [`Multihash<64>`] holds.
const MAX_DIGEST_BYTES: usize = 64;

/// The SHA2-256 multihash of `data`.
pub(crate) fn sha2_256(data: &[u8]) -> Multihash<64> {
    Code::Sha2_256.digest(data)
}

/// Hashes `data` with function `code`, cut to `length` bytes. `None` if the function is not on the
/// list, or the length is below 20 bytes or above what the function gives.
pub(crate) fn digest(code: u64, length: usize, data: &[u8]) -> Option<Multihash<64>> {
    if !(MIN_DIGEST_BYTES..=MAX_DIGEST_BYTES).contains(&length) {
        return None;
    }
    let full: Multihash<64> = match code {
        SHA1 => {
            let mut hasher = Sha1::default();
            Hasher::update(&mut hasher, data);
            Multihash::wrap(SHA1, hasher.finalize()).ok()?
        }
        0x12..=0x17 | 0x1a..=0x1d => Code::try_from(code).ok()?.digest(data),
        SHAKE_256 => {
            let mut hasher = Shake256::default();
            Update::update(&mut hasher, data);
            let mut digest = [0; 64];
            hasher.finalize_xof().read(&mut digest);
            Multihash::wrap(SHAKE_256, &digest).ok()?
        }
        BLAKE3 => {
            let mut hasher = Blake3Hasher::<MAX_DIGEST_BYTES>::default();
            Hasher::update(&mut hasher, data);
            Multihash::wrap(BLAKE3, hasher.finalize()).ok()?
        }
        DBL_SHA2_256 => {
            let twice = sha2_256(sha2_256(data).digest());
            Multihash::wrap(DBL_SHA2_256, twice.digest()).ok()?
        }
        0xb214..=0xb240 => {
            let bytes = usize::try_from(code - BLAKE2B).ok()?;
            let digest = blake2b_simd::Params::new().hash_length(bytes).hash(data);
            Multihash::wrap(code, digest.as_bytes()).ok()?
        }
        0xb254..=0xb260 => {
            let bytes = usize::try_from(code - BLAKE2S).ok()?;
            let digest = blake2s_simd::Params::new().hash_length(bytes).hash(data);
            Multihash::wrap(code, digest.as_bytes()).ok()?
        }
        _ => return None,
    };
    match usize::from(full.size()) {
        size if size == length => Some(full),
        size if size > length => Multihash::wrap(code, full.digest().get(..length)?).ok(),
        _ => None,
    }
}
