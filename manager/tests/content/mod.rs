//! What several test files need.

#![allow(dead_code, reason = "each test binary uses its part")]

use anypath_tiered_store::{Config, Store};
use sha2::{Digest as _, Sha256};

/// `length` bytes of SHA2-256(0) ‖ SHA2-256(1) ‖ …, the numbers as 8 bytes little-endian.
pub(crate) fn content(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 32);
    for counter in 0_u64.. {
        if bytes.len() >= length {
            break;
        }
        bytes.extend_from_slice(&Sha256::digest(counter.to_le_bytes()));
    }
    bytes.truncate(length);
    bytes
}

/// An empty store in a directory that lives as long as the first value.
#[expect(clippy::expect_used, reason = "a test fails by panicking")]
pub(crate) async fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(Config::new(directory.path()))
        .await
        .expect("a store");
    (directory, store)
}
