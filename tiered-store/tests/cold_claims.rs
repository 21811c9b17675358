//! The cold tier is the right one, and what it has is found again after the index was lost: neither a wrong place nor a lost checkpoint nor another
//! configuration costs a block.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anypath_tiered_store::{
    ColdConfig, Config, ConfigBuilder, GetError, OpenError, PutError, PutOptions, Store,
    vfs::{Fault, Image, SimVfs},
};
use bytes::Bytes;
use cid::Cid;
use common::{MIB, block, random, run};
use multihash_codetable::{Code, MultihashDigest};
use object_store::memory::InMemory;

const NOW_MS: u64 = 1_000_000_000_000;

fn builder(cold: ColdConfig) -> ConfigBuilder {
    Config::builder()
        .path("/store")
        .disk_capacity(MIB)
        .memory_capacity(0)
        .cold(
            cold.pack_bytes(MIB)
                .attempts(1)
                .put_patience(Duration::from_millis(50)),
        )
}

async fn open(vfs: &SimVfs, cold: ColdConfig) -> Result<Store, OpenError> {
    let config = builder(cold).vfs(Arc::new(vfs.clone())).build().unwrap();
    Store::open(config).await
}

fn bucket(memory: &Arc<InMemory>) -> ColdConfig {
    ColdConfig::object_store(memory.clone())
}

fn blocks(from: u32, to: u32) -> Vec<(Cid, Bytes)> {
    (from..to).map(|n| block(n, 16_384)).collect()
}

async fn fill(store: &Store, blocks: &[(Cid, Bytes)]) {
    for (cid, data) in blocks {
        store.put(*cid, data.clone()).await.unwrap();
    }
}

async fn assert_all_there(store: &Store, blocks: &[(Cid, Bytes)], what: &str) {
    for (cid, data) in blocks {
        let found = store.get(cid).await;
        let found = found.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(found.as_ref(), Some(data), "{what}");
    }
}

/// Puts until the store is full. Returns what was acknowledged.
async fn until_full(store: &Store) -> Vec<(Cid, Bytes)> {
    let mut acked = Vec::new();
    for (cid, data) in blocks(100_000, 100_400) {
        match store.put(cid, data.clone()).await {
            Ok(()) => acked.push((cid, data)),
            Err(PutError::ColdTier { .. }) => return acked,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("blocks went somewhere: {:?}", store.stats());
}

#[test]
fn a_demotion_does_not_make_a_wrong_place_the_right_one() {
    run(async {
        let (vfs, right, wrong) = (SimVfs::new(), Arc::default(), Arc::default());
        let old = blocks(0, 300);
        let store = open(&vfs, bucket(&right)).await.unwrap();
        fill(&store, &old).await;
        store.close().await.unwrap();

        // As with a disk that is not mounted: nothing is there, and it takes whatever is written.
        let store = open(&vfs, bucket(&wrong)).await.unwrap();
        let new = until_full(&store).await;
        let mut unreachable = 0;
        for (cid, data) in &old {
            match store.get(cid).await {
                Ok(found) => assert_eq!(found.as_ref(), Some(data)),
                Err(GetError::ColdUnreachable { .. }) => unreachable += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(unreachable > 200, "{unreachable}");
        assert!(store.gc().await.is_ok() && store.scrub().await.unwrap().corrupt.is_empty());
        store.close().await.unwrap();

        let store = open(&vfs, bucket(&right)).await.unwrap();
        store.gc().await.unwrap();
        assert_all_there(&store, &old, "mounted again").await;
        assert_all_there(&store, &new, "what was put meanwhile").await;
        store.close().await.unwrap();
    });
}

/// A directory that goes away while the store runs.
#[test]
fn a_place_that_changes_while_the_store_runs_gets_no_pack() {
    let dir = tempfile::tempdir().unwrap();
    let (right, aside) = (dir.path().join("cold"), dir.path().join("aside"));
    run(async {
        let vfs = SimVfs::new();
        let store = open(&vfs, ColdConfig::directory(&right)).await.unwrap();
        let old = blocks(0, 300);
        fill(&store, &old).await;
        while store.stats().cold.unwrap().is_moving {
            smol::Timer::after(Duration::from_millis(1)).await;
        }
        std::fs::rename(&right, &aside).unwrap();
        std::fs::create_dir(&right).unwrap();
        let new = until_full(&store).await;
        std::fs::remove_dir_all(&right).unwrap();
        std::fs::rename(&aside, &right).unwrap();
        assert_all_there(&store, &old, "back").await;
        assert_all_there(&store, &new, "what was put meanwhile").await;
        // And it goes on by itself.
        let more = blocks(1000, 1200);
        for (cid, data) in &more {
            while let Err(error) = store.put(*cid, data.clone()).await {
                assert!(matches!(error, PutError::ColdTier { .. }), "{error:?}");
            }
        }
        assert_all_there(&store, &more, "afterwards").await;
        store.close().await.unwrap();
    });
}

/// What is left of a store in whose log only checkpoints know where cold blocks are, with its bucket, and its blocks.
async fn compacted() -> (Image, Arc<InMemory>, Vec<(Cid, Bytes)>) {
    let (vfs, memory) = (SimVfs::new(), Arc::new(InMemory::new()));
    let kept = blocks(0, 200);
    let store = open(&vfs, bucket(&memory)).await.unwrap();
    fill(&store, &kept).await;
    // What pushes them all down and goes again.
    for round in 0..4 {
        let others = blocks(10_000 + round * 100, 10_080 + round * 100);
        fill(&store, &others).await;
        for (cid, _) in &others {
            store.delete(cid).await.unwrap();
        }
        store.gc().await.unwrap();
    }
    assert!(store.stats().disk.compactions > 0);
    store.close().await.unwrap();
    (vfs.live_image(), memory, kept)
}

fn is_checkpoint(path: &Path) -> bool {
    path.to_string_lossy().contains("checkpoint")
}

fn damage_checkpoints(image: &mut Image) {
    let mut damaged = 0;
    for (path, bytes) in image.iter_mut() {
        if is_checkpoint(path) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            damaged += 1;
        }
    }
    assert!(damaged > 0);
}

/// The blocks of the list that a store without a cold tier knows.
async fn known_to_the_log(image: &Image, blocks: &[(Cid, Bytes)]) -> usize {
    let vfs = SimVfs::from_image(image.clone(), NOW_MS);
    let config = Config::builder()
        .path("/store")
        .disk_capacity(MIB)
        .vfs(Arc::new(vfs))
        .build()
        .unwrap();
    let store = Store::open(config).await.unwrap();
    blocks.iter().filter(|(cid, _)| store.has(cid)).count()
}

#[test]
fn what_packs_have_is_adopted_after_the_checkpoints_are_damaged_or_gone() {
    run(async {
        let (image, memory, kept) = compacted().await;
        for are_gone in [false, true] {
            let what = if are_gone { "gone" } else { "damaged" };
            let mut image = image.clone();
            if are_gone {
                image.retain(|path, _| !is_checkpoint(path));
            } else {
                damage_checkpoints(&mut image);
            }
            let known = known_to_the_log(&image, &kept).await;
            assert!(known < kept.len(), "the log alone has them all");
            let (vfs, memory) = (
                SimVfs::from_image(image, NOW_MS),
                Arc::new(InMemory::fork(&memory)),
            );
            let store = open(&vfs, bucket(&memory)).await.unwrap();
            store.gc().await.unwrap();
            assert_all_there(&store, &kept, what).await;
            store.close().await.unwrap();
            let store = open(&vfs, bucket(&memory)).await.unwrap();
            store.gc().await.unwrap();
            assert_all_there(&store, &kept, what).await;
        }
    });
}

#[test]
fn an_opening_that_fails_after_the_checkpoints_are_lost_leaves_the_packs_to_the_next() {
    run(async {
        let (mut image, memory, kept) = compacted().await;
        damage_checkpoints(&mut image);
        let mut random = random(7);
        for at in 0.. {
            let (vfs, memory) = (
                SimVfs::from_image(image.clone(), NOW_MS),
                Arc::new(InMemory::fork(&memory)),
            );
            vfs.inject(move |call, _| {
                (call == at).then_some(Fault::Error(std::io::ErrorKind::Other))
            });
            let config = builder(bucket(&memory)).vfs(Arc::new(vfs.clone())).build();
            let opened = Store::open(config.unwrap()).await;
            vfs.heal();
            let is_through = opened.is_ok() && vfs.calls() <= at;
            let what = format!("call {at} failed");
            // Either the process died of it, or the power went as well.
            for image in [vfs.live_image(), vfs.crash_image(&mut random)] {
                let (vfs, memory) = (
                    SimVfs::from_image(image, NOW_MS),
                    Arc::new(InMemory::fork(&memory)),
                );
                let store = open(&vfs, bucket(&memory)).await.unwrap();
                store.gc().await.unwrap();
                assert_all_there(&store, &kept, &what).await;
            }
            if is_through {
                assert!(at > 10, "{at}");
                return;
            }
        }
    });
}

#[test]
fn cold_blocks_above_a_lowered_max_block_bytes_stay_readable() {
    run(async {
        let (image, memory, kept) = compacted().await;
        let mut lost = image.clone();
        damage_checkpoints(&mut lost);
        for (image, what) in [(image, "lowered"), (lost, "lowered and adopted")] {
            let (vfs, memory) = (
                SimVfs::from_image(image, NOW_MS),
                Arc::new(InMemory::fork(&memory)),
            );
            let config = builder(bucket(&memory)).max_block_bytes(1000);
            let config = config.vfs(Arc::new(vfs.clone())).build().unwrap();
            let store = Store::open(config).await.unwrap();
            store.gc().await.unwrap();
            assert_all_there(&store, &kept, what).await;
            assert!(store.scrub().await.unwrap().corrupt.is_empty());
            store.close().await.unwrap();
        }
    });
}

#[test]
fn packs_that_are_needed_whole_are_not_written_again_however_small_their_blocks_and_long_their_names()
 {
    run(async {
        let (vfs, memory) = (SimVfs::new(), Arc::new(InMemory::new()));
        let cold = bucket(&memory).repack_live_percent(90);
        let store = open(&vfs, cold).await.unwrap();
        // Three checkpoints of them leave a fifth of the disk.
        let puts = (0..3000u32).map(|n| {
            let data = Bytes::from(n.to_le_bytes().repeat(4));
            let cid = Cid::new_v1(common::RAW, Code::Sha2_512.digest(&data));
            store.put(cid, data)
        });
        for put in futures::future::join_all(puts).await {
            put.unwrap();
        }
        store.gc().await.unwrap();
        // The job in the background comes to an end: until then it takes blocks from the disk, into packs of their own.
        while store.stats().cold.unwrap().is_moving {
            smol::Timer::after(Duration::from_millis(1)).await;
        }
        store.gc().await.unwrap();
        let before = store.stats().cold.unwrap();
        assert!(before.blocks > 1000, "{before:?}");
        store.gc().await.unwrap();
        store.gc().await.unwrap();
        let after = store.stats().cold.unwrap();
        assert_eq!(after.packs_written, before.packs_written, "{after:?}");
    });
}

/// Writes that need no room go on meanwhile, and say nothing about whether there is some.
#[test]
fn a_put_waits_for_the_cold_tier_as_long_as_it_should_whatever_else_is_written() {
    run(async {
        let (vfs, right, wrong) = (SimVfs::new(), Arc::default(), Arc::default());
        let store = open(&vfs, bucket(&right)).await.unwrap();
        fill(&store, &blocks(0, 300)).await;
        let (kept, data) = block(1_000_000, 16_384);
        let pinned = PutOptions::pinned("on disk");
        store.put_with(kept, data, pinned).await.unwrap();
        store.close().await.unwrap();

        let patience = Duration::from_millis(500);
        let config = Config::builder()
            .path("/store")
            .disk_capacity(MIB)
            .memory_capacity(0)
            .cold(
                bucket(&wrong)
                    .pack_bytes(MIB)
                    .attempts(1)
                    .put_patience(patience),
            )
            .vfs(Arc::new(vfs.clone()))
            .build()
            .unwrap();
        let store = Store::open(config).await.unwrap();
        let mut waited = Duration::ZERO;
        let puts = async {
            for (cid, data) in blocks(100_000, 100_400) {
                #[expect(clippy::disallowed_methods, reason = "patience is in real time")]
                let began = Instant::now();
                match store.put(cid, data).await {
                    Ok(()) => {}
                    Err(PutError::ColdTier { .. }) => {
                        waited = began.elapsed();
                        return;
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            panic!("blocks went somewhere: {:?}", store.stats());
        };
        let others = async {
            loop {
                store.pin("kept", &[kept]).await.unwrap();
                store.unpin("kept", &[kept]).await.unwrap();
            }
        };
        futures::future::select(std::pin::pin!(puts), std::pin::pin!(others)).await;
        assert!(waited >= patience * 9 / 10, "{waited:?}");
    });
}
