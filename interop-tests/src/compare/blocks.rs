//! The blocks that every endpoint makes for itself, so that no list of CIDs crosses between processes. `peers/rust/src/lib.rs` makes the same.

use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest as _};

/// Multicodec code of raw blocks.
const RAW: u64 = 0x55;

/// Blocks `0..count` of `bytes` bytes each.
pub fn all(count: u64, bytes: usize) -> impl Iterator<Item = (Cid, Bytes)> {
    (0..count).map(move |index| {
        let data = block(index, bytes);
        (Cid::new_v1(RAW, Code::Sha2_256.digest(&data)), data)
    })
}

/// SplitMix64 from a seed of its own for each block: nothing compresses and no two are equal.
pub(super) fn block(index: u64, bytes: usize) -> Bytes {
    let mut state = index.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        data.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    data.truncate(bytes);
    data.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_blocks_are_equal_and_each_has_its_size() {
        let blocks: Vec<_> = all(64, 8192).collect();
        assert!(blocks.iter().all(|(_, data)| data.len() == 8192));
        assert_eq!(
            blocks
                .iter()
                .map(|(cid, _)| cid)
                .collect::<HashSet<_>>()
                .len(),
            64
        );
    }
}
