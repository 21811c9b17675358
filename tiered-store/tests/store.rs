//! The public behaviour on real files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{sync::Arc, time::Duration};

use anypath_tiered_store::{
    Config, DeleteError, Importance, OpenError, PinError, PutError, PutOptions, Store, vfs::SimVfs,
};
use bytes::Bytes;
use cid::Cid;
use common::{MIB, block, cid_of, open_sim, run};
use futures::StreamExt;
use multihash_codetable::{Code, MultihashDigest};

#[test]
fn what_was_put_is_there_after_drop_and_reopen() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        for round in 0..3u32 {
            let store = Store::open(Config::new(dir.path())).await.unwrap();
            for n in 0..round * 50 {
                let (cid, data) = block(n, 1000 + n as usize);
                assert_eq!(
                    store.get(&cid).await.unwrap(),
                    Some(data),
                    "round {round} block {n}"
                );
            }
            for n in round * 50..(round + 1) * 50 {
                let (cid, data) = block(n, 1000 + n as usize);
                store.put(cid, data).await.unwrap();
            }
            store
                .put_value("round", Bytes::from(vec![round as u8]), None)
                .await
                .unwrap();
        }
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        assert_eq!(store.iter().count(), 150);
        assert_eq!(
            store.get_value("round").await.unwrap().as_deref(),
            Some(&[2u8][..])
        );
    });
}

#[test]
fn a_closed_store_opens_again_with_everything_and_the_old_handle_says_closed() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        let (cid, data) = block(1, 70_000);
        store
            .put_with(cid, data.clone(), PutOptions::pinned("set"))
            .await
            .unwrap();
        let old = store.clone();
        store.close().await.unwrap();
        store.close().await.unwrap();
        assert!(matches!(
            old.put(cid, data.clone()).await,
            Err(PutError::Closed)
        ));
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        assert_eq!(store.pins("set"), vec![cid]);
        assert!(matches!(
            store.delete(&cid).await,
            Err(DeleteError::Pinned { .. })
        ));
    });
}

#[test]
fn a_second_opener_is_told_the_path() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let _store = Store::open(Config::new(dir.path())).await.unwrap();
        let error = Store::open(Config::new(dir.path())).await.unwrap_err();
        assert!(
            matches!(&error, OpenError::Locked { path, pid: Some(_) } if path == dir.path()),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains(&dir.path().display().to_string())
        );
    });
}

#[test]
fn a_newer_format_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("FORMAT"), "anypath-tiered-store 9\n").unwrap();
    let error = run(Store::open(Config::new(dir.path()))).unwrap_err();
    assert!(matches!(
        error,
        OpenError::NewerFormat {
            found: 9,
            supported: 3,
            ..
        }
    ));
    assert!(error.to_string().contains("update the program"), "{error}");
    std::fs::write(dir.path().join("FORMAT"), "anypath-tiered-store 1\n").unwrap();
    let error = run(Store::open(Config::new(dir.path()))).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::OlderFormat {
                found: 1,
                supported: 3,
                ..
            }
        ),
        "{error}"
    );
    std::fs::write(dir.path().join("FORMAT"), "something else").unwrap();
    assert!(matches!(
        run(Store::open(Config::new(dir.path()))),
        Err(OpenError::Foreign { .. })
    ));
}

#[test]
fn version_0_and_1_are_one_block() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        let data = Bytes::from_static(b"node");
        let hash = Code::Sha2_256.digest(&data);
        store
            .put(Cid::new_v0(hash).unwrap(), data.clone())
            .await
            .unwrap();
        let other = Cid::new_v1(0x71, hash);
        assert_eq!(store.size(&other), Some(4));
        assert_eq!(store.get(&other).await.unwrap(), Some(data.clone()));
        store.put(other, data).await.unwrap();
        assert_eq!(store.stats().duplicate_puts, 1);
        assert_eq!(
            store.iter().collect::<Vec<_>>(),
            vec![Cid::new_v0(hash).unwrap()]
        );
    });
}

#[test]
fn pins_are_sets_that_can_be_renamed_and_dropped_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        let cids: Vec<Cid> = (0..5).map(|n| block(n, 100).0).collect();
        for n in 0..5 {
            let (cid, data) = block(n, 100);
            store.put(cid, data).await.unwrap();
        }
        store.pin("a", &cids[..3]).await.unwrap();
        store.pin("b", &cids[2..]).await.unwrap();
        let missing = block(99, 100).0;
        assert!(
            matches!(store.pin("a", &[cids[4], missing]).await, Err(PinError::Missing { cid }) if cid == missing)
        );
        assert_eq!(store.pins("a").len(), 3, "all or nothing");
        assert!(matches!(
            store.rename_pin_set("a", "b").await,
            Err(PinError::SetExists { .. })
        ));
        assert!(matches!(
            store.rename_pin_set("x", "y").await,
            Err(PinError::NoSuchSet { .. })
        ));
        store.rename_pin_set("a", "c").await.unwrap();
        store.unpin("c", &cids[..1]).await.unwrap();
        drop(store);
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        assert_eq!(store.pin_sets(), vec!["b", "c"]);
        assert!(!store.is_pinned(&cids[0]) && store.is_pinned(&cids[2]));
        let record = store.stats().disk.pinned_bytes / 4;
        store.drop_pin_set("b").await.unwrap();
        assert_eq!(
            store.stats().disk.pinned_bytes,
            2 * record,
            "block 2 is in c still"
        );
        store.drop_pin_set("c").await.unwrap();
        assert_eq!(store.stats().disk.pinned_bytes, 0);
        assert!(store.delete(&cids[2]).await.unwrap());
        assert!(!store.delete(&cids[2]).await.unwrap());
        assert_eq!(store.get(&cids[2]).await.unwrap(), None);
    });
}

#[test]
fn a_full_store_forgets_the_coldest_and_never_what_is_pinned() {
    let vfs = SimVfs::new();
    run(async {
        let capacity = 4 * MIB;
        let store = open_sim(&vfs, capacity).await;
        let mut hot = Vec::new();
        for n in 0..20 {
            let (cid, data) = block(n, 16_000);
            store
                .put_with(cid, data, PutOptions::pinned("keep"))
                .await
                .unwrap();
        }
        for n in 20..40 {
            let (cid, data) = block(n, 16_000);
            store
                .put_with(
                    cid,
                    data,
                    PutOptions::default().with_importance(Importance::High),
                )
                .await
                .unwrap();
            hot.push(cid);
        }
        for n in 100..1100 {
            let (cid, data) = block(n, 16_000);
            store.put(cid, data).await.unwrap();
            for cid in &hot {
                store.get(cid).await.unwrap();
            }
            let used = vfs.file_bytes("segment");
            assert!(
                used <= capacity + capacity / 16 + 16_100,
                "{used} bytes after block {n}"
            );
        }
        for n in 0..20 {
            let (cid, data) = block(n, 16_000);
            assert_eq!(
                store.get(&cid).await.unwrap(),
                Some(data),
                "pinned block {n}"
            );
        }
        assert!(
            hot.iter().all(|cid| store.has(cid)),
            "what is read often stays"
        );
        let stats = store.stats().disk;
        assert!(stats.evictions > 700 && stats.compactions > 10, "{stats:?}");
        let amplification = stats.write_amplification().unwrap();
        assert!(amplification < 4.0, "write amplification {amplification}");
        store.close().await.unwrap();
        assert_eq!(vfs.file_bytes("segment"), store.stats().disk.used_bytes);
        drop(store);
        let store = open_sim(&vfs, capacity).await;
        assert_eq!(store.pins("keep").len(), 20);
    });
}

#[test]
fn a_store_full_of_pins_pushes_back_and_takes_blocks_again_after_unpinning() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, MIB).await;
        let mut n = 0;
        let error = loop {
            let (cid, data) = block(n, 16_000);
            n += 1;
            match store.put_with(cid, data, PutOptions::pinned("all")).await {
                Ok(()) => assert!(n < 100),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, PutError::Full { capacity: MIB, .. }),
            "{error}"
        );
        assert!(store.room_for_pinned() < 16_100);
        assert!(matches!(
            store
                .put(block(1000, 16_000).0, block(1000, 16_000).1)
                .await,
            Err(PutError::Full { .. })
        ));
        store.drop_pin_set("all").await.unwrap();
        let (cid, data) = block(1000, 16_000);
        store.put(cid, data).await.unwrap();
        assert!(store.has(&cid));
    });
}

#[test]
fn expired_blocks_are_never_returned_and_gc_gives_their_room_back() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 8 * MIB).await;
        let options = PutOptions::default().with_ttl(Duration::from_millis(2500));
        for n in 0..40 {
            let (cid, data) = block(n, 20_000);
            store.put_with(cid, data, options.clone()).await.unwrap();
        }
        let (kept, data) = block(0, 20_000);
        store.pin("keep", &[kept]).await.unwrap();
        let (renewed, renewed_data) = block(1, 20_000);
        store.put(renewed, renewed_data).await.unwrap();
        store
            .put_value("v", Bytes::from_static(b"1"), Some(Duration::from_secs(2)))
            .await
            .unwrap();
        vfs.advance_ms(1999);
        assert!(store.get(&block(7, 20_000).0).await.unwrap().is_some());
        assert!(store.get_value("v").await.unwrap().is_some());
        vfs.advance_ms(501);
        assert_eq!(store.get(&block(7, 20_000).0).await.unwrap(), None);
        assert_eq!(store.get_value("v").await.unwrap(), None);
        assert_eq!(
            store.get(&kept).await.unwrap(),
            Some(data),
            "a pin suspends the time to live"
        );
        assert!(store.has(&renewed));
        vfs.advance_ms(500);
        assert!(!store.has(&block(7, 20_000).0));
        let report = store.gc().await.unwrap();
        assert_eq!(report.expired, 39, "38 blocks and a value");
        assert!(report.freed_bytes > 0, "{report:?}");
        store.unpin("keep", &[kept]).await.unwrap();
        assert_eq!(store.get(&kept).await.unwrap(), None);
        drop(store);
        let store = open_sim(&vfs, 8 * MIB).await;
        assert_eq!(store.get(&block(7, 20_000).0).await.unwrap(), None);
        assert!(store.get(&renewed).await.unwrap().is_some());
    });
}

#[test]
fn has_and_size_read_nothing_and_a_hit_reads_once() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 64 * MIB).await;
        for n in 0..10 {
            let (cid, data) = block(n, 200_000);
            store.put(cid, data).await.unwrap();
        }
        let before = vfs.reads();
        for n in 0..20 {
            assert_eq!(
                store.size(&block(n, 200_000).0),
                (n < 10).then_some(200_000)
            );
        }
        assert_eq!(store.get(&block(15, 200_000).0).await.unwrap(), None);
        assert_eq!(store.iter().count(), 10);
        assert_eq!(vfs.reads(), before);
        for n in 0..10 {
            store.get(&block(n, 200_000).0).await.unwrap().unwrap();
        }
        assert_eq!(vfs.reads(), before + 10);
    });
}

#[test]
fn a_flipped_bit_is_found_by_get_and_by_scrub_and_healed_by_put() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let config = Config::builder()
            .path(dir.path())
            .memory_capacity(0)
            .build()
            .unwrap();
        let store = Store::open(config).await.unwrap();
        for n in 0..10 {
            let (cid, data) = block(n, 5000);
            store.put(cid, data).await.unwrap();
        }
        let lie = cid_of(b"truth");
        store.put(lie, Bytes::from_static(b"a lie")).await.unwrap();
        let segment = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_string_lossy().contains("segment"))
            .unwrap();
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[32 + 3 * 5072 + 1000] ^= 4;
        bytes[32 + 6 * 5072 + 50] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        let (third, data) = block(3, 5000);
        assert!(
            store
                .get(&third)
                .await
                .unwrap_err()
                .to_string()
                .contains("fetch it again")
        );
        assert!(!store.has(&third));
        let report = store.scrub().await.unwrap();
        assert_eq!(report.corrupt, vec![block(6, 5000).0, lie]);
        assert_eq!(report.checked, 10);
        store.put(third, data.clone()).await.unwrap();
        assert_eq!(store.get(&third).await.unwrap(), Some(data));
        assert_eq!(
            store
                .scan()
                .filter(|read| futures::future::ready(read.is_ok()))
                .count()
                .await,
            9
        );
    });
}

#[test]
fn many_writers_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        let blocks: Vec<_> = (0..500).map(|n| block(n, 4096)).collect();
        store
            .put_many(blocks.clone(), PutOptions::pinned("many"))
            .await
            .unwrap();
        let syncs = store.stats().disk.syncs;
        assert!(syncs < 100, "{syncs} syncs for 500 puts");
        let cids: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
        for (read, (_, data)) in store.get_many(&cids).await.into_iter().zip(blocks) {
            assert_eq!(read.unwrap(), Some(data));
        }
        assert_eq!(store.pins("many").len(), 500);
        assert_eq!(store.stats().puts, 500);
    });
}

#[test]
fn the_memory_tier_answers_what_is_warm() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        let cids: Vec<Cid> = (0..10).map(|n| block(n, 1000).0).collect();
        for n in 0..10 {
            let (cid, data) = block(n, 1000);
            store.put(cid, data).await.unwrap();
        }
        drop(store);
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        assert_eq!(store.stats().memory.blocks, 0);
        assert_eq!(store.warm(&cids).await, 10);
        for cid in &cids {
            store.get(cid).await.unwrap().unwrap();
        }
        let stats = store.stats();
        assert_eq!((stats.memory.hits, stats.disk.hits), (10, 0));
        store.set_capacity(0, 2 * MIB).await.unwrap();
        assert_eq!(store.stats().memory.blocks, 0);
        assert!(store.get(&cids[0]).await.unwrap().is_some());
    });
}

#[test]
fn shrinking_the_disk_evicts_and_refuses_to_drop_pins() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 16 * MIB).await;
        for n in 0..800 {
            let (cid, data) = block(n, 16_000);
            let options = if n < 100 {
                PutOptions::pinned("p")
            } else {
                PutOptions::default()
            };
            store.put_with(cid, data, options).await.unwrap();
        }
        assert!(store.set_capacity(0, MIB).await.is_err());
        store.set_capacity(0, 4 * MIB).await.unwrap();
        let used = vfs.file_bytes("segment");
        assert!(used <= 4 * MIB + MIB, "{used}");
        assert!((0..100).all(|n| store.has(&block(n, 16_000).0)));
    });
}

#[test]
fn too_large_blocks_and_bad_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        let (cid, data) = block(1, 4 * 1024 * 1024 + 1);
        assert!(matches!(
            store.put(cid, data).await,
            Err(PutError::TooLarge { .. })
        ));
        let (cid, data) = block(1, 4 * 1024 * 1024);
        store.put(cid, data.clone()).await.unwrap();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data.clone()));
        assert!(matches!(
            store.put_with(cid, data, PutOptions::pinned("")).await,
            Err(PutError::Name)
        ));
        assert!(matches!(
            store.pin(&"x".repeat(1025), &[cid]).await,
            Err(PinError::Name)
        ));
        store.put(cid_of(b""), Bytes::new()).await.unwrap();
        assert_eq!(store.get(&cid_of(b"")).await.unwrap(), Some(Bytes::new()));
    });
}

#[test]
fn values_keep_to_their_number_and_to_the_time_that_is_set_for_all() {
    let vfs = SimVfs::new();
    let open = || async {
        let config = Config::builder()
            .path("/store")
            .memory_capacity(0)
            .value_ttl(Duration::from_secs(300))
            .max_values(20)
            .vfs(Arc::new(vfs.clone()));
        Store::open(config.build().unwrap()).await.unwrap()
    };
    let value = |n: u32| Bytes::from(n.to_string());
    run(async {
        let store = open().await;
        for n in 0..100 {
            store
                .put_value(&format!("k{n}"), value(n), None)
                .await
                .unwrap();
            // Replacing one takes no room.
            store
                .put_value(&format!("k{n}"), value(n), None)
                .await
                .unwrap();
            assert!(store.stats().values <= 20, "{}", store.stats().values);
            vfs.advance_ms(1000);
        }
        // Many at once too.
        let puts = (100..200).map(|n| {
            let store = store.clone();
            async move { store.put_value(&format!("k{n}"), value(n), None).await }
        });
        for put in futures::future::join_all(puts).await {
            put.unwrap();
        }
        assert!(store.stats().values <= 20, "{}", store.stats().values);
        let for_long = Some(Duration::from_secs(3000));
        store.put_value("long", value(7), for_long).await.unwrap();
        for n in 200..300 {
            store
                .put_value(&format!("k{n}"), value(n), None)
                .await
                .unwrap();
        }
        assert_eq!(store.get_value("k0").await.unwrap(), None, "it went first");
        assert_eq!(store.get_value("k299").await.unwrap(), Some(value(299)));
        let there = store.stats().values;
        store.close().await.unwrap();
        let store = open().await;
        assert_eq!(store.stats().values, there);
        vfs.advance_ms(301_000);
        assert_eq!(store.get_value("k299").await.unwrap(), None);
        assert_eq!(store.get_value("long").await.unwrap(), Some(value(7)));
    });
}
