//! The cold tier in a directory: blocks leave a full disk for it, come back, and survive whatever ends the process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use anypath_tiered_store::{ColdConfig, Config, GetError, PinError, Policy, PutOptions, Store};
use bytes::Bytes;
use cid::Cid;
use common::{MIB, block, cid_of, run};

/// Text that zstd halves at least, different for every number.
fn text(n: u32, len: usize) -> (Cid, Bytes) {
    let line = format!("line {n} of a log that repeats itself, as logs do\n");
    let mut data: Vec<u8> = line.bytes().cycle().take(len.max(4)).collect();
    data[..4].copy_from_slice(&n.to_le_bytes());
    let data = Bytes::from(data);
    (cid_of(&data), data)
}

fn config(path: &Path, disk: u64, cold: ColdConfig) -> Config {
    Config::builder()
        .path(path)
        .disk_capacity(disk)
        .memory_capacity(0)
        .cold(cold)
        .build()
        .expect("valid")
}

fn packs(path: &Path) -> Vec<std::path::PathBuf> {
    let mut packs = Vec::new();
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "pack") {
                packs.push(path);
            }
        }
    }
    packs.sort();
    packs
}

/// Waits for what runs in the background.
async fn settled(store: &Store) {
    while store.stats().cold.unwrap().is_moving {
        smol::Timer::after(Duration::from_millis(1)).await;
    }
}

async fn overfill(store: &Store, blocks: &[(Cid, Bytes)]) {
    for (cid, data) in blocks {
        store.put(*cid, data.clone()).await.expect("never refused");
    }
}

async fn assert_all_there(store: &Store, blocks: &[(Cid, Bytes)]) {
    for (cid, data) in blocks {
        assert_eq!(store.size(cid), Some(data.len() as u32));
        assert_eq!(store.get(cid).await.expect("readable").as_ref(), Some(data));
    }
}

#[test]
fn a_full_disk_demotes_instead_of_evicting_and_every_block_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let cold = ColdConfig::default().pack_bytes(MIB);
        let store = Store::open(config(dir.path(), 4 * MIB, cold))
            .await
            .unwrap();
        let blocks: Vec<_> = (0..300)
            .map(|n| {
                if n % 2 == 0 {
                    block(n, 65_536)
                } else {
                    text(n, 65_536)
                }
            })
            .collect();
        overfill(&store, &blocks).await;
        let stats = store.stats();
        let in_cold = stats.cold.unwrap();
        assert_eq!(stats.disk.evictions, 0);
        assert_eq!(stats.disk.blocks + in_cold.blocks, 300);
        assert!(in_cold.blocks > 200, "{in_cold:?}");
        assert!(
            stats.disk.used_bytes <= 4 * MIB + 256 * 1024,
            "{:?}",
            stats.disk
        );
        assert!(in_cold.compression_ratio().unwrap() > 1.5, "{in_cold:?}");
        assert_all_there(&store, &blocks).await;
        assert!(store.stats().cold.unwrap().hits > 200);
        assert_eq!(store.iter().count(), 300);
        let scrub = store.scrub().await.unwrap();
        assert_eq!((scrub.checked, scrub.corrupt.len()), (300, 0));
        let mut scanned = 0;
        let mut scan = store.scan();
        while let Some(read) = futures::StreamExt::next(&mut scan).await {
            let (cid, data) = read.unwrap();
            assert_eq!(cid_of(&data), cid);
            scanned += 1;
        }
        assert_eq!(scanned, 300);
        drop(scan);
        store.close().await.unwrap();

        let cold = ColdConfig::default().pack_bytes(MIB);
        let store = Store::open(config(dir.path(), 4 * MIB, cold))
            .await
            .unwrap();
        assert_all_there(&store, &blocks).await;
    });
}

#[test]
fn one_block_is_one_request_and_one_pack_is_one_put() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        // Nothing comes to the disk, so that reads are all that happens after the collection.
        let config = Config::builder()
            .path(dir.path())
            .disk_capacity(4 * MIB)
            .memory_capacity(0)
            .cold(ColdConfig::default().pack_bytes(MIB))
            .policy(Policy::builder().promote_reads(1000.0))
            .build()
            .unwrap();
        let store = Store::open(config).await.unwrap();
        let blocks: Vec<_> = (0..200).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        settled(&store).await;
        let cold = store.stats().cold.unwrap();
        let (puts, packs) = (cold.put_requests, cold.packs_written);
        assert_eq!(puts, packs + 1, "and the marker: {cold:?}");
        let before = store.stats().cold.unwrap();
        for (cid, _) in &blocks[..100] {
            store.get(cid).await.unwrap().unwrap();
        }
        let after = store.stats().cold.unwrap();
        let reads = after.hits - before.hits;
        assert!(reads > 50, "{reads}");
        assert_eq!(after.get_requests - before.get_requests, reads);
    });
}

#[test]
fn what_is_read_often_comes_back_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let cold = ColdConfig::default().pack_bytes(MIB);
        let config = Config::builder()
            .path(dir.path())
            .disk_capacity(4 * MIB)
            .memory_capacity(0)
            .cold(cold)
            .policy(Policy::builder().promote_reads(2.0))
            .build()
            .unwrap();
        let store = Store::open(config).await.unwrap();
        let blocks: Vec<_> = (0..200).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        let (cid, data) = &blocks[0];
        // Promotion is in the background: the disk counts a hit once it is done.
        let disk_hits = store.stats().disk.hits;
        for _ in 0..10_000 {
            assert_eq!(store.get(cid).await.unwrap().as_ref(), Some(data));
            if store.stats().disk.hits > disk_hits {
                break;
            }
            smol::Timer::after(Duration::from_millis(1)).await;
        }
        let cold = store.stats().cold.unwrap();
        assert_eq!(cold.promotions, 1, "{cold:?}");
        store.close().await.unwrap();
    });
}

#[test]
fn a_pin_brings_cold_blocks_to_the_disk_and_keeps_them_there() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let cold = ColdConfig::default().pack_bytes(MIB);
        let store = Store::open(config(dir.path(), 4 * MIB, cold))
            .await
            .unwrap();
        let blocks: Vec<_> = (0..150).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        let cids: Vec<Cid> = blocks[..8].iter().map(|(cid, _)| *cid).collect();
        store.pin("kept", &cids).await.unwrap();
        let more: Vec<_> = (1000..1150).map(|n| block(n, 65_536)).collect();
        overfill(&store, &more).await;
        let before = store.stats();
        assert_all_there(&store, &blocks[..8]).await;
        let after = store.stats();
        assert_eq!(after.disk.hits - before.disk.hits, 8, "none was cold");
        let missing = block(9999, 10).0;
        let error = store.pin("kept", &[missing]).await.unwrap_err();
        assert!(matches!(error, PinError::Missing { .. }), "{error}");
    });
}

#[test]
fn a_flipped_bit_in_a_pack_is_one_block_lost_and_found_out() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let open = || {
            let cold = ColdConfig::default().pack_bytes(MIB);
            Store::open(config(dir.path(), 4 * MIB, cold))
        };
        let store = open().await.unwrap();
        let blocks: Vec<_> = (0..150).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        store.close().await.unwrap();
        let pack = packs(dir.path()).remove(0);
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[100_000] ^= 1;
        std::fs::write(&pack, bytes).unwrap();

        let store = open().await.unwrap();
        let report = store.scrub().await.unwrap();
        assert_eq!((report.corrupt.len(), report.checked), (1, 150));
        let lost = report.corrupt[0];
        assert!(!store.has(&lost));
        let error = store.get(&lost).await.unwrap_err();
        assert!(matches!(error, GetError::Corrupt { .. }), "{error}");
        // Put again, it is there again.
        let (_, data) = blocks.iter().find(|(cid, _)| *cid == lost).unwrap();
        store.put(lost, data.clone()).await.unwrap();
        assert_all_there(&store, &blocks).await;
    });
}

#[test]
fn a_pack_that_is_gone_loses_its_blocks_only_where_the_directory_is_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    run(async {
        let open = |cold: ColdConfig| Store::open(config(&dir.path().join("store"), 4 * MIB, cold));
        let right = dir.path().join("cold");
        let store = open(ColdConfig::directory(&right).pack_bytes(MIB))
            .await
            .unwrap();
        let blocks: Vec<_> = (0..150).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        store.close().await.unwrap();

        // Another directory: nothing is lost, and the error says where it looked.
        let store = open(ColdConfig::directory(&elsewhere).pack_bytes(MIB))
            .await
            .unwrap();
        let error = store.get(&blocks[0].0).await.unwrap_err();
        assert!(error.to_string().contains("elsewhere"), "{error}");
        assert!(matches!(error, GetError::ColdUnreachable { .. }), "{error}");
        store.close().await.unwrap();

        let store = open(ColdConfig::directory(&right).pack_bytes(MIB))
            .await
            .unwrap();
        assert_all_there(&store, &blocks).await;
        let gone = packs(&right).remove(0);
        std::fs::remove_file(gone).unwrap();
        let report = store.scrub().await.unwrap();
        assert!(!report.corrupt.is_empty() && report.corrupt.len() < 40);
        assert_eq!(report.checked, 150);
        store.close().await.unwrap();
    });
}

#[test]
fn packs_that_nothing_points_to_are_removed_at_opening() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let open = || {
            let cold = ColdConfig::default().pack_bytes(MIB);
            Store::open(config(dir.path(), 4 * MIB, cold))
        };
        let store = open().await.unwrap();
        let blocks: Vec<_> = (0..150).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        settled(&store).await;
        store.close().await.unwrap();
        let before = packs(dir.path());
        // As a crash between a put and its record leaves it: a whole pack, and a part of one under object_store's name for it.
        let orphan = before[0].with_file_name("00000001.pack");
        std::fs::copy(&before[0], &orphan).unwrap();
        let part = before[0].with_file_name("00000002.pack#1");
        std::fs::write(&part, b"part").unwrap();
        let store = open().await.unwrap();
        store.gc().await.unwrap();
        assert!(!orphan.exists() && !part.exists());
        assert_eq!(store.stats().cold.unwrap().orphans, 1);
        assert_all_there(&store, &blocks).await;
    });
}

#[test]
fn packs_that_are_mostly_garbage_are_written_again() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let open = || {
            let cold = ColdConfig::default().pack_bytes(MIB);
            Store::open(config(dir.path(), 4 * MIB, cold))
        };
        let store = open().await.unwrap();
        let blocks: Vec<_> = (0..300).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        // The job in the background may write some of them again before `gc` does.
        let before = store.stats().cold.unwrap();
        for (number, (cid, _)) in blocks.iter().enumerate() {
            if number % 3 != 0 {
                assert!(store.delete(cid).await.unwrap());
            }
        }
        store.gc().await.unwrap();
        let after = store.stats().cold.unwrap();
        assert!(
            after.used_bytes <= 2 * after.stored_bytes + MIB,
            "{before:?}, {after:?}"
        );
        assert!(after.repacks > 0 && after.packs < before.packs);
        let left: Vec<_> = blocks.iter().step_by(3).cloned().collect();
        assert_all_there(&store, &left).await;
        store.close().await.unwrap();
        let store = open().await.unwrap();
        assert_all_there(&store, &left).await;
        assert_eq!(store.iter().count(), 100);
        assert_eq!(store.scrub().await.unwrap().corrupt, []);
    });
}

#[test]
fn the_cold_tier_keeps_within_its_capacity_and_forgets_its_coldest() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let open = || {
            let cold = ColdConfig::default().pack_bytes(MIB).capacity(8 * MIB);
            Store::open(config(dir.path(), 4 * MIB, cold))
        };
        let store = open().await.unwrap();
        let mut most = 0;
        for n in 0..500 {
            let (cid, data) = block(n, 65_536);
            store.put(cid, data).await.unwrap();
            most = most.max(store.stats().cold.unwrap().used_bytes);
        }
        assert!(most <= 9 * MIB, "{most}");
        store.gc().await.unwrap();
        assert!(store.stats().cold.unwrap().used_bytes <= 8 * MIB);
        let cold = store.stats().cold.unwrap();
        assert!(cold.evictions > 250, "{cold:?}");
        store.close().await.unwrap();
        let there: Vec<_> = (0..500)
            .map(|n| block(n, 65_536))
            .filter(|(cid, _)| store.has(cid))
            .collect();
        assert!(there.len() > 150, "{}", there.len());
        let store = open().await.unwrap();
        assert_eq!(store.iter().count(), there.len());
        // Reading moves blocks up and others down, which may cost a few packs more; what is there is right.
        let mut forgotten = 0;
        for (cid, data) in &there {
            match store.get(cid).await.unwrap() {
                Some(found) => assert_eq!(found, *data),
                None => forgotten += 1,
            }
        }
        assert!(forgotten < 64, "{forgotten}");
    });
}

#[test]
fn a_deleted_block_stays_deleted_whichever_tier_it_was_in() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let open = || {
            let cold = ColdConfig::default().pack_bytes(MIB);
            Store::open(config(dir.path(), 4 * MIB, cold))
        };
        let store = open().await.unwrap();
        let blocks: Vec<_> = (0..150).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        for (cid, _) in &blocks[..50] {
            assert!(store.delete(cid).await.unwrap());
        }
        drop(store);
        let store = open().await.unwrap();
        for (cid, _) in &blocks[..50] {
            assert!(!store.has(cid));
            assert_eq!(store.get(cid).await.unwrap(), None);
        }
        assert_all_there(&store, &blocks[50..]).await;
    });
}

#[test]
fn a_time_to_live_holds_in_the_cold_tier() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let cold = ColdConfig::default().pack_bytes(MIB);
        let store = Store::open(config(dir.path(), 4 * MIB, cold))
            .await
            .unwrap();
        let (cid, data) = block(1_000_000, 65_536);
        let options = PutOptions::default().with_ttl(Duration::from_secs(2));
        store.put_with(cid, data, options).await.unwrap();
        let blocks: Vec<_> = (0..100).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        while store.has(&cid) {
            smol::Timer::after(Duration::from_millis(20)).await;
        }
        assert_eq!(store.get(&cid).await.unwrap(), None);
    });
}

/// A store in virtual time whose disk holds some fifteen blocks.
async fn in_virtual_time(dir: &Path) -> (anypath_tiered_store::vfs::SimVfs, Store) {
    let vfs = anypath_tiered_store::vfs::SimVfs::new();
    let config = Config::builder()
        .path("/store")
        .disk_capacity(MIB)
        .memory_capacity(0)
        .policy(Policy::builder().promote_reads(1.0).hysteresis(0.0))
        .vfs(Arc::new(vfs.clone()))
        .cold(ColdConfig::directory(dir).pack_bytes(MIB))
        .build()
        .unwrap();
    let store = Store::open(config).await.unwrap();
    (vfs, store)
}

/// Moves everything down that is there, by the weight of others.
async fn push_down(store: &Store, others: &mut std::ops::RangeFrom<u32>) {
    let cold = store.stats().cold.unwrap();
    while store.stats().cold.unwrap().demotions < cold.demotions + 30 {
        let (cid, data) = block(others.next().unwrap(), 65_536);
        store.put(cid, data).await.unwrap();
    }
}

#[test]
fn a_time_to_live_does_not_shrink_each_time_a_block_moves() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (vfs, store) = in_virtual_time(dir.path()).await;
        let (cid, data) = block(1_000_000, 65_536);
        let options = PutOptions::default().with_ttl(Duration::from_secs(20));
        store.put_with(cid, data.clone(), options).await.unwrap();
        let mut others = 0..;
        for _ in 0..6 {
            push_down(&store, &mut others).await;
            // Up again, by a pin that is taken back.
            store.pin("up", &[cid]).await.unwrap();
            store.unpin("up", &[cid]).await.unwrap();
        }
        vfs.advance_ms(18_500);
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        vfs.advance_ms(1_500);
        assert_eq!(store.get(&cid).await.unwrap(), None);
    });
}

#[test]
fn a_put_for_a_shorter_time_never_shortens_what_was_promised() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (vfs, store) = in_virtual_time(dir.path()).await;
        let (cid, data) = block(1_000_000, 65_536);
        let mut others = 0..;
        let put = async |ttl_ms| {
            let options = PutOptions::default().with_ttl(Duration::from_millis(ttl_ms));
            store.put_with(cid, data.clone(), options).await.unwrap();
        };
        put(20_850).await;
        push_down(&store, &mut others).await;
        store.pin("up", &[cid]).await.unwrap();
        store.unpin("up", &[cid]).await.unwrap();
        // Its record says 20 s now, and this is less than a second before.
        put(19_500).await;
        push_down(&store, &mut others).await;
        vfs.advance_ms(19_900);
        assert_eq!(store.get(&cid).await.unwrap(), Some(data.clone()));
        store.pin("up", &[cid]).await.expect("in its last second");
    });
}

#[test]
fn a_put_until_a_full_second_is_longer_than_what_ends_within_the_second_before() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (vfs, store) = in_virtual_time(dir.path()).await;
        let (cid, data) = block(1_000_000, 65_536);
        for ttl_ms in [2_500, 3_000] {
            let options = PutOptions::default().with_ttl(Duration::from_millis(ttl_ms));
            store.put_with(cid, data.clone(), options).await.unwrap();
        }
        vfs.advance_ms(2_999);
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}

#[test]
fn a_pin_with_a_time_to_live_ends_nothing_that_stays_for_good() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (vfs, store) = in_virtual_time(dir.path()).await;
        let (cid, data) = block(1_000_000, 65_536);
        store.put(cid, data.clone()).await.unwrap();
        push_down(&store, &mut (0..)).await;
        let options = PutOptions::pinned("up").with_ttl(Duration::from_secs(3));
        store.put_with(cid, data.clone(), options).await.unwrap();
        store.unpin("up", &[cid]).await.unwrap();
        vfs.advance_ms(5_000);
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}

#[test]
fn a_block_is_pinned_until_the_millisecond_in_which_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let (vfs, store) = in_virtual_time(dir.path()).await;
        let (cid, data) = block(1_000_000, 65_536);
        let options = PutOptions::default().with_ttl(Duration::from_millis(2_500));
        store.put_with(cid, data.clone(), options).await.unwrap();
        vfs.advance_ms(2_499);
        store.pin("up", &[cid]).await.expect("one more millisecond");
        store.unpin("up", &[cid]).await.unwrap();
        vfs.advance_ms(1);
        let error = store.pin("up", &[cid]).await.unwrap_err();
        assert!(matches!(error, PinError::Missing { .. }), "{error}");
    });
}

#[test]
fn without_its_configuration_cold_blocks_are_an_error_and_the_others_are_there() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let cold = ColdConfig::default().pack_bytes(MIB);
        let store = Store::open(config(dir.path(), 4 * MIB, cold))
            .await
            .unwrap();
        let blocks: Vec<_> = (0..150).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        store.close().await.unwrap();
        let plain = Config::builder()
            .path(dir.path())
            .disk_capacity(4 * MIB)
            .memory_capacity(0)
            .build()
            .unwrap();
        let store = Store::open(plain).await.unwrap();
        let (mut here, mut cold) = (0, 0);
        for (cid, data) in &blocks {
            match store.get(cid).await {
                Ok(found) => {
                    assert_eq!(found.as_ref(), Some(data));
                    here += 1;
                }
                Err(GetError::ColdUnreachable { source, .. }) => {
                    assert!(source.check.contains("configure"));
                    cold += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(here > 20 && cold > 80, "{here} and {cold}");
    });
}

#[test]
fn two_stores_share_a_directory_and_do_not_touch_each_others_packs() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let shared = dir.path().join("cold");
        let open = |name: &str| {
            let cold = ColdConfig::directory(&shared).pack_bytes(MIB);
            Store::open(config(&dir.path().join(name), 4 * MIB, cold))
        };
        let (one, other) = (open("one").await.unwrap(), open("other").await.unwrap());
        let ours: Vec<_> = (0..120).map(|n| block(n, 65_536)).collect();
        let theirs: Vec<_> = (1000..1120).map(|n| block(n, 65_536)).collect();
        let both = futures::future::join(overfill(&one, &ours), overfill(&other, &theirs));
        both.await;
        one.gc().await.unwrap();
        other.gc().await.unwrap();
        assert_all_there(&one, &ours).await;
        assert_all_there(&other, &theirs).await;
    });
}

#[test]
fn the_cold_tier_works_under_tokio_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let cold = ColdConfig::default().pack_bytes(MIB);
        let store = Store::open(config(dir.path(), 4 * MIB, cold))
            .await
            .unwrap();
        let store = Arc::new(store);
        let blocks: Vec<_> = (0..150).map(|n| block(n, 65_536)).collect();
        overfill(&store, &blocks).await;
        let cids: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
        for (found, (_, data)) in store.get_many(&cids).await.into_iter().zip(&blocks) {
            assert_eq!(found.unwrap().as_ref(), Some(data));
        }
        store.close().await.unwrap();
    });
}
