//! The blocks of the store's figures. Hashing is not what they measure, so a CID's digest is a number, spread like a hash.

use crate::compare::blocks;
use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;

/// Multicodec code of raw blocks.
const RAW: u64 = 0x55;

/// Multicodec code of SHA-256.
const SHA2_256: u64 = 0x12;

/// Seeds of digests are far from those of blocks.
const DIGESTS: u64 = 1 << 63;

/// What the peers use as key.
pub(super) type Digest = [u8; 32];

/// The digest of block `index`.
pub(super) fn digest(index: u64) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(&blocks::block(index | DIGESTS, 32));
    digest
}

/// The CID of block `index`.
pub(super) fn cid(index: u64) -> Cid {
    let hash = Multihash::wrap(SHA2_256, &digest(index)).unwrap_or_default();
    Cid::new_v1(RAW, hash)
}

/// The digest in a CID that [`cid`] made.
pub(super) fn digest_of(cid: &Cid) -> Digest {
    let mut digest = [0; 32];
    for (to, from) in digest.iter_mut().zip(cid.hash().digest()) {
        *to = *from;
    }
    digest
}

/// Blocks `range` of `bytes` bytes each.
pub(super) fn blocks(
    range: std::ops::Range<u64>,
    bytes: usize,
) -> impl Iterator<Item = (Cid, Bytes)> {
    range.map(move |index| (cid(index), blocks::block(index, bytes)))
}

/// Numbers below `count` in an order that a seed decides.
pub(super) fn shuffled(count: u64, seed: u64) -> Vec<u64> {
    use rand::SeedableRng as _;
    use rand::seq::SliceRandom as _;
    let mut numbers: Vec<u64> = (0..count).collect();
    numbers.shuffle(&mut rand::rngs::SmallRng::seed_from_u64(seed));
    numbers
}
