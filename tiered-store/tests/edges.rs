//! Rare turns of events, each of which once went wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anypath_tiered_store::{
    Durability, PutError, PutOptions, Store,
    vfs::{Fault, Op, SimVfs, Vfs},
};
use bytes::Bytes;
use cid::Cid;
use common::{MIB, block, cid_of, open_sim, run};

fn ttl(seconds: u64) -> PutOptions {
    PutOptions {
        ttl: Some(Duration::from_secs(seconds)),
        ..PutOptions::default()
    }
}

/// The footer takes nearly as much as the records of tiny blocks. It is not garbage that compaction could win.
#[test]
fn tiny_blocks_fill_the_disk_tier_and_no_more() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        // Compaction that wins nothing would go on for ever.
        vfs.inject(|call, _| (call > 20_000).then_some(Fault::Error(io::ErrorKind::Other)));
        let blocks: Vec<_> = (0..12_000).map(|n| block(n, 16)).collect();
        for some in blocks.chunks(500) {
            store
                .put_many(some.to_vec(), PutOptions::default())
                .await
                .unwrap();
            let used = store.stats().disk.used_bytes;
            assert!(used <= MIB + 64 * 1024, "{used} bytes");
        }
        let (cid, data) = &blocks[11_999];
        assert_eq!(store.get(cid).await.unwrap().as_ref(), Some(data));
    });
}

/// The record of one multihash is two bytes longer under version 1.
#[test]
fn a_pinned_block_that_is_put_under_another_name_is_accounted_for() {
    run(async {
        let store = open_sim(&SimVfs::new(), MIB).await;
        let (v1, data) = block(1, 1000);
        let v0 = Cid::new_v0(*v1.hash()).unwrap();
        let mut options = ttl(60);
        options.pin = Some("p".to_owned());
        store.put_with(v0, data.clone(), options).await.unwrap();
        store.put(v1, data).await.unwrap();
        let stats = store.stats().disk;
        assert_eq!(stats.pinned_bytes, stats.live_bytes);
        store.unpin("p", &[v1]).await.unwrap();
        assert_eq!(store.stats().disk.pinned_bytes, 0);
    });
}

/// A process dies after it created a segment and before it synced the directory; the next one goes on in that segment.
#[test]
fn names_that_a_dead_process_left_are_durable_before_they_are_relied_on() {
    run(async {
        let vfs = SimVfs::new();
        open_sim(&vfs, MIB)
            .await
            .put(block(1, 1000).0, block(1, 1000).1)
            .await
            .unwrap();
        let left = vfs.live_image();
        let vfs = SimVfs::new();
        for (path, data) in left {
            let file = vfs.create(&path).unwrap();
            file.write_all_at(0, &[IoSlice::new(&data)]).unwrap();
            file.sync_data().unwrap();
        }
        let store = open_sim(&vfs, MIB).await;
        let (cid, data) = block(2, 1000);
        store.put(cid, data.clone()).await.unwrap();
        // Odd numbers: no name survives that was not synced.
        let image = vfs.crash_image(|| 1);
        drop(store);
        let store = open_sim(&SimVfs::from_image(image, vfs.now_ms()), MIB).await;
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}

/// The record of the replaced value is still in the log when that of the expired one goes.
#[test]
fn a_replaced_value_does_not_come_back_when_its_successor_expires() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        let value = |text: &'static str| Bytes::from_static(text.as_bytes());
        store.put_value("k", value("old"), None).await.unwrap();
        for n in 0..17 {
            let (cid, data) = block(n, 4096);
            store.put(cid, data).await.unwrap();
        }
        let second = Some(Duration::from_secs(1));
        store.put_value("k", value("new"), second).await.unwrap();
        for n in 100..116 {
            let (cid, data) = block(n, 4096);
            store.put_with(cid, data, ttl(1)).await.unwrap();
        }
        for n in 200..217 {
            let (cid, data) = block(n, 4096);
            store.put(cid, data).await.unwrap();
        }
        vfs.advance_ms(5000);
        assert_eq!(store.get_value("k").await.unwrap(), None);
        assert!(store.gc().await.unwrap().segments > 0);
        drop(store);
        let vfs = SimVfs::from_image(vfs.live_image(), vfs.now_ms());
        let store = open_sim(&vfs, MIB).await;
        assert_eq!(store.get_value("k").await.unwrap(), None);
    });
}

/// A relaxed write of a block that is pinned, and was damaged, is lost with the segment; the pin stays with its block.
#[test]
fn a_pin_never_passes_to_another_block() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        let data = Bytes::from_static(b"pinned");
        let cid = cid_of(&data);
        let options = PutOptions::pinned("p");
        store.put_with(cid, data.clone(), options).await.unwrap();
        for (path, bytes) in vfs.live_image() {
            if let Some(at) = bytes.windows(data.len()).position(|part| part == data) {
                let file = vfs.open(&path).unwrap();
                let parts = [IoSlice::new(b"rotten")];
                file.write_all_at(at as u64, &parts).unwrap();
            }
        }
        assert!(store.get(&cid).await.is_err());
        let relaxed = PutOptions {
            durability: Some(Durability::Relaxed),
            ..PutOptions::default()
        };
        store.put_with(cid, data.clone(), relaxed).await.unwrap();
        vfs.inject(|_, op| (op == Op::Sync).then_some(Fault::Error(io::ErrorKind::Other)));
        assert!(store.flush().await.is_err());
        vfs.heal();
        // They take the index entries that are free.
        for n in 0..200 {
            let (cid, data) = block(n, 100);
            store.put(cid, data).await.unwrap();
        }
        assert_eq!(store.pins("p"), [cid]);
        assert!(store.is_pinned(&cid));
        // Its record is not there to be copied; that must not stop the compaction.
        assert!(store.gc().await.unwrap().segments > 0);
        assert!(store.is_pinned(&cid));
        store.put(cid, data.clone()).await.unwrap();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}

/// What a failed sync leaves in the page cache can be read, though the device does not have it.
#[test]
fn what_a_failed_sync_left_does_not_pass_for_durable_at_the_next_opening() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        let ((first, data), (second, lost)) = (block(1, 1000), block(2, 1000));
        store.put(first, data.clone()).await.unwrap();
        vfs.inject(|_, op| (op == Op::Sync).then_some(Fault::Error(io::ErrorKind::Other)));
        assert!(store.put(second, lost).await.is_err());
        drop(store);
        let vfs = SimVfs::from_image(vfs.live_image(), vfs.now_ms());
        let store = open_sim(&vfs, MIB).await;
        assert!(!store.has(&second));
        assert_eq!(store.get(&first).await.unwrap(), Some(data));
    });
}

/// A panic in the writing job must not leave its callers waiting for ever.
#[test]
fn a_panic_while_writing_closes_the_store() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        vfs.inject(|_, op| {
            if op == Op::Write {
                panic!("injected")
            } else {
                None
            }
        });
        let (one, two) = (block(1, 100), block(2, 100));
        // The second one comes while the job unwinds, or after that.
        let puts = async {
            let first = store.put(one.0, one.1).await;
            (first, store.put(two.0, two.1).await)
        };
        let limit = async {
            smol::Timer::after(Duration::from_secs(20)).await;
            panic!("the puts are not answered");
        };
        let (one, two) = smol::future::or(puts, limit).await;
        assert!(matches!(one, Err(PutError::Closed)), "{one:?}");
        assert!(matches!(two, Err(PutError::Closed)), "{two:?}");
        assert!(store.get(&block(1, 100).0).await.is_err());
        vfs.heal();
        drop(store);
        let store = open_sim(&vfs, MIB).await;
        store.put(block(1, 100).0, block(1, 100).1).await.unwrap();
    });
}

/// Writes that come together go in groups; a group must not need more room than pins leave, where each block alone finds it.
#[test]
fn many_puts_at_once_find_the_little_room_that_pins_leave() {
    run(async {
        let store = open_sim(&SimVfs::new(), MIB).await;
        for n in 0..200 {
            let (cid, data) = block(n, 4096);
            let pinned = PutOptions::pinned("p");
            store.put_with(cid, data, pinned).await.unwrap();
        }
        let room = store.room_for_pinned();
        assert!((20_000..50_000).contains(&room), "{room} bytes");
        let many = (1000..1100).map(|n| block(n, 4096)).collect();
        store.put_many(many, PutOptions::default()).await.unwrap();
        assert!(store.has(&block(1099, 4096).0));
        assert_eq!(store.pins("p").len(), 200);
    });
}

/// A store whose first segment holds this block, which was evicted, and pinned ones, so that the segment stays.
async fn with_an_evicted_block(cid: Cid, data: Bytes) -> (SimVfs, Store) {
    let vfs = SimVfs::new();
    let store = open_sim(&vfs, MIB).await;
    store.put(cid, data).await.unwrap();
    for n in 0..17 {
        let (cid, data) = block(n, 4096);
        let pinned = PutOptions::pinned("p");
        store.put_with(cid, data, pinned).await.unwrap();
    }
    // Pins beyond a checkpoint make another one when their segment goes.
    store.close().await.unwrap();
    drop(store);
    let store = open_sim(&vfs, MIB).await;
    let mut n = 1000;
    while store.has(&cid) {
        let (cid, data) = block(n, 4096);
        store.put(cid, data).await.unwrap();
        n += 1;
    }
    (vfs, store)
}

/// What a process that dies now leaves.
async fn after_a_death(vfs: &SimVfs) -> Store {
    let vfs = SimVfs::from_image(vfs.live_image(), vfs.now_ms());
    open_sim(&vfs, MIB).await
}

/// Puts blocks for a second, this one among them, waits, and gives their segment back.
async fn put_for_a_second(vfs: &SimVfs, store: &Store, cid: Cid, data: Bytes) {
    for n in 100..134 {
        if n == 117 {
            store.put_with(cid, data.clone(), ttl(1)).await.unwrap();
        }
        let (cid, data) = block(n, 4096);
        store.put_with(cid, data, ttl(1)).await.unwrap();
    }
    assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    for n in 200..234 {
        let (cid, data) = block(n, 4096);
        store.put(cid, data).await.unwrap();
    }
    vfs.advance_ms(5000);
    assert_eq!(store.get(&cid).await.unwrap(), None);
    assert!(store.gc().await.unwrap().segments > 0);
}

/// The record of before the eviction, which has no end, is still in the log when that of the expired block goes.
#[test]
fn an_evicted_block_does_not_come_back_when_its_successor_expires() {
    run(async {
        let (cid, data) = block(500, 100);
        let (vfs, store) = with_an_evicted_block(cid, data.clone()).await;
        // Evictions are in the log.
        assert!(!after_a_death(&vfs).await.has(&cid));
        put_for_a_second(&vfs, &store, cid, data).await;
        drop(store);
        let store = after_a_death(&vfs).await;
        assert!(!store.has(&cid));
        assert_eq!(store.get(&cid).await.unwrap(), None);
    });
}

/// The index has its time in whole seconds, rounded up.
#[test]
fn a_pin_does_not_bring_back_what_was_over_a_moment_ago() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        let (cid, data) = block(1, 100);
        let options = PutOptions::default().with_ttl(Duration::from_millis(1500));
        store.put_with(cid, data, options).await.unwrap();
        vfs.advance_ms(1600);
        assert_eq!(store.get(&cid).await.unwrap(), None);
        assert!(store.pin("p", &[cid]).await.is_err());
        assert_eq!(store.get(&cid).await.unwrap(), None);
    });
}

/// Every put is a promise, whoever else puts the block.
#[test]
fn of_several_puts_the_one_that_keeps_a_block_longest_counts() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        let (cid, data) = block(500, 100);
        store.put_with(cid, data.clone(), ttl(600)).await.unwrap();
        store.put_with(cid, data.clone(), ttl(1)).await.unwrap();
        vfs.advance_ms(500_000);
        assert_eq!(store.get(&cid).await.unwrap(), Some(data.clone()));
        store.pin("p", &[cid]).await.unwrap();
        vfs.advance_ms(500_000);
        store.put_with(cid, data.clone(), ttl(3000)).await.unwrap();
        // The time that it was put for begins to count when nothing else holds it.
        store.unpin("p", &[cid]).await.unwrap();
        vfs.advance_ms(2_900_000);
        assert_eq!(store.get(&cid).await.unwrap(), Some(data.clone()));
        drop(store);
        let store = after_a_death(&vfs).await;
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        drop(store);
        vfs.advance_ms(200_000);
        let store = after_a_death(&vfs).await;
        assert_eq!(store.get(&cid).await.unwrap(), None);
    });
}

/// The store does not know the block any more, but its log does.
#[test]
fn an_evicted_block_does_not_come_back_once_it_was_deleted() {
    run(async {
        let (cid, data) = block(500, 100);
        let (vfs, store) = with_an_evicted_block(cid, data).await;
        assert!(!store.delete(&cid).await.unwrap());
        drop(store);
        let store = after_a_death(&vfs).await;
        assert!(!store.has(&cid));
        assert_eq!(store.get(&cid).await.unwrap(), None);
        // And what is deleted over and over does not fill the disk.
        let used = store.stats().disk.used_bytes;
        for n in 0..3000 {
            assert!(!store.delete(&block(10_000 + n, 10).0).await.unwrap());
        }
        let now = store.stats().disk.used_bytes;
        assert!(now <= MIB.max(used) + MIB / 16, "{now} bytes");
    });
}

/// A put that is not synced takes the place of one that was; then the device refuses it.
#[test]
fn a_relaxed_put_never_costs_the_durable_record_before_it() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        let (cid, data) = block(1, 1000);
        store.put_with(cid, data.clone(), ttl(600)).await.unwrap();
        let relaxed = PutOptions::default().with_durability(Durability::Relaxed);
        store.put_with(cid, data.clone(), relaxed).await.unwrap();
        vfs.inject(|_, op| (op == Op::Sync).then_some(Fault::Error(io::ErrorKind::Other)));
        assert!(store.put(block(2, 10).0, block(2, 10).1).await.is_err());
        vfs.heal();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data.clone()));
        drop(store);
        let image = vfs.crash_image(|| 0);
        let store = open_sim(&SimVfs::from_image(image, vfs.now_ms()), MIB).await;
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}

/// What a put replaces is not counted twice: there is room for it in a store that is full of pins.
#[test]
fn a_block_whose_time_is_over_can_be_put_again_where_pins_leave_just_its_room() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        let (cid, data) = block(1000, 50_000);
        store.put_with(cid, data.clone(), ttl(1)).await.unwrap();
        let mut n = 0;
        while store.room_for_pinned() > 75_000 {
            let (cid, data) = block(n, 20_000);
            let pinned = PutOptions::pinned("p");
            store.put_with(cid, data, pinned).await.unwrap();
            n += 1;
        }
        vfs.advance_ms(2000);
        store.put(cid, data.clone()).await.unwrap();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}

/// Checkpoints of tiny blocks are large, and there are three of them at times: in the smallest store, full of the smallest blocks, that and the
/// copies of a compaction are the most that the disk ever sees beyond its capacity.
#[test]
fn no_moment_sees_more_on_the_disk_than_the_capacity_and_a_third_of_tiny_blocks() {
    run(async {
        let vfs = SimVfs::new();
        let most = Arc::new(AtomicU64::new(0));
        let seen = most.clone();
        vfs.on_sync(move |vfs| {
            seen.fetch_max(vfs.file_bytes(""), Relaxed);
        });
        let store = open_sim(&vfs, MIB).await;
        let blocks: Vec<_> = (0..20_000).map(|n| block(n, 16)).collect();
        for some in blocks.chunks(500) {
            let puts = some.to_vec();
            store.put_many(puts, PutOptions::default()).await.unwrap();
            // What was deleted has to be in two checkpoints before its segment goes.
            for (cid, _) in some.iter().step_by(50) {
                store.delete(cid).await.unwrap();
            }
        }
        let most = most.load(Relaxed);
        println!("at most {most} bytes of {MIB}");
        assert!(store.stats().disk.compactions > 0);
        // 8 to 20 % more were seen. With larger blocks a segment is all: see `model.rs`.
        assert!(most <= MIB + MIB / 3, "{most} bytes");
    });
}
