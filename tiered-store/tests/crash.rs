//! Power cuts: at every sync point the disk is rebuilt with torn, lost and reordered unsynced writes, opened, and compared with what
//! had been acknowledged by then.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anypath_tiered_store::{
    PutOptions,
    vfs::{Image, SimVfs},
};
use bytes::Bytes;
use common::{MIB, block, in_parallel, open_sim, random, run};
use parking_lot::Mutex;

const CAPACITY: u64 = 2 * MIB;

/// What has been acknowledged.
#[derive(Clone, Default)]
struct Acked {
    /// Pinned blocks: number and length. They can never go.
    pinned: BTreeMap<u32, usize>,
    /// Blocks whose deletion was acknowledged and that were not put again.
    deleted: BTreeSet<u32>,
    values: BTreeMap<String, Vec<u8>>,
    /// Blocks that were put for ten seconds, and not for good or pinned since.
    timed: BTreeSet<u32>,
    /// Keys, blocks and the like that a call under way may change or not.
    in_flight: Option<(u32, String)>,
}

fn check(image: Image, now: u64, acked: &Acked, what: &str) {
    let late = SimVfs::from_image(image.clone(), now + 11_000);
    let vfs = SimVfs::from_image(image, now);
    run(async {
        let store = open_sim(&late, CAPACITY).await;
        let busy = acked.in_flight.as_ref().map_or(u32::MAX, |(n, _)| *n);
        for n in acked.timed.iter().filter(|n| **n != busy) {
            let (cid, _) = block(*n, len_of(*n));
            let read = store.get(&cid).await.unwrap();
            assert_eq!(read, None, "{what}: block {n} is over and was returned");
        }
        drop(store);
        let store = open_sim(&vfs, CAPACITY).await;
        let (busy_block, busy_key) = acked.in_flight.clone().unwrap_or((u32::MAX, String::new()));
        for (n, len) in &acked.pinned {
            let (cid, data) = block(*n, *len);
            assert_eq!(
                store.get(&cid).await.unwrap(),
                Some(data),
                "{what}: pinned block {n} is lost"
            );
            assert!(
                store.is_pinned(&cid),
                "{what}: the pin of block {n} is lost"
            );
        }
        for n in &acked.deleted {
            if *n != busy_block {
                assert!(
                    !store.has(&block(*n, len_of(*n)).0),
                    "{what}: deleted block {n} is back"
                );
            }
        }
        for (key, value) in &acked.values {
            if *key != busy_key {
                let read = store.get_value(key).await.unwrap();
                assert_eq!(
                    read.as_deref(),
                    Some(value.as_slice()),
                    "{what}: value {key} is lost"
                );
            }
        }
        for cid in store.iter() {
            store
                .get(&cid)
                .await
                .unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        // The store that recovered works.
        let (cid, data) = block(1_000_000, 3000);
        store.put(cid, data.clone()).await.unwrap();
        drop(store);
        let store = open_sim(&vfs, CAPACITY).await;
        assert_eq!(
            store.get(&cid).await.unwrap(),
            Some(data),
            "{what}: lost after recovery"
        );
    });
}

fn len_of(n: u32) -> usize {
    [100, 3000, 700, 20_000, 4, 9000][n as usize % 6]
}

/// Runs a workload and cuts the power `images` times at every sync.
fn torture(seed: u64, steps: u32, images: u64) -> u64 {
    let vfs = SimVfs::new();
    let acked = Arc::new(Mutex::new(Acked::default()));
    let taken = Arc::new(AtomicU64::new(0));
    {
        let (acked, taken) = (acked.clone(), taken.clone());
        let cuts = Mutex::new(random(seed ^ 0xc0ffee));
        vfs.on_sync(move |vfs| {
            let acked = acked.lock().clone();
            for _ in 0..images {
                let mut cuts = cuts.lock();
                let image = vfs.crash_image(&mut *cuts);
                drop(cuts);
                let number = taken.fetch_add(1, Relaxed);
                check(
                    image,
                    1_000_000_000_000,
                    &acked,
                    &format!("seed {seed}, image {number}"),
                );
            }
        });
    }
    let mut random = random(seed);
    run(async {
        let mut store = open_sim(&vfs, CAPACITY).await;
        for step in 0..steps {
            let n = (random() % 60) as u32;
            let (cid, data) = block(n, len_of(n));
            let key = format!("k{}", n % 7);
            acked.lock().in_flight = Some((n, key.clone()));
            match random() % 18 {
                0..=4 => {
                    store
                        .put_with(cid, data, PutOptions::pinned(format!("set {}", n % 3)))
                        .await
                        .unwrap();
                    let mut acked = acked.lock();
                    acked.deleted.remove(&n);
                    acked.timed.remove(&n);
                    acked.pinned.insert(n, len_of(n));
                }
                // For ten seconds, which go to segments of their own.
                15 | 16 => {
                    let is_new = !store.has(&cid);
                    acked.lock().deleted.remove(&n);
                    let ttl = PutOptions::default().with_ttl(Duration::from_secs(10));
                    store.put_with(cid, data, ttl.clone()).await.unwrap();
                    if is_new {
                        acked.lock().timed.insert(n);
                    }
                    // Others of that kind, a few at once.
                    let blocks = (0..6)
                        .map(|k| block(500_000 + step * 20 + k, 5000))
                        .collect();
                    store.put_many(blocks, ttl).await.unwrap();
                }
                5 | 6 => {
                    let blocks = (0..20)
                        .map(|k| block(10_000 + step * 20 + k, 8000))
                        .collect();
                    store.put_many(blocks, PutOptions::default()).await.unwrap();
                }
                7..=9 => {
                    // Not pinned any more: it may go from now on, so it is not looked for while this runs.
                    acked.lock().pinned.remove(&n);
                    for set in store.pin_sets() {
                        store.unpin(&set, &[cid]).await.unwrap();
                    }
                    store.delete(&cid).await.unwrap();
                    let mut acked = acked.lock();
                    acked.timed.remove(&n);
                    acked.deleted.insert(n);
                }
                10 | 11 => {
                    let value = vec![step as u8; len_of(n)];
                    store
                        .put_value(&key, Bytes::from(value.clone()), None)
                        .await
                        .unwrap();
                    acked.lock().values.insert(key, value);
                }
                12 => {
                    acked.lock().values.remove(&key);
                    store.delete_value(&key).await.unwrap();
                }
                13 => {
                    store.rename_pin_set("set 0", "set 9").await.ok();
                    store.rename_pin_set("set 9", "set 0").await.ok();
                }
                14 => drop(store.gc().await.unwrap()),
                _ => {
                    if random().is_multiple_of(3) {
                        store.close().await.unwrap();
                    }
                    drop(store);
                    store = open_sim(&vfs, CAPACITY).await;
                }
            }
            acked.lock().in_flight = None;
        }
    });
    taken.load(Relaxed)
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    let images: u64 = (0..4).map(|seed| torture(seed, 70, 2)).sum();
    assert!(images > 500, "only {images} images");
    println!("{images} crash images");
}

/// Ten thousand images: `cargo test --release -p anypath-tiered-store --test crash -- --ignored`.
#[test]
#[ignore = "takes minutes; CI runs it in release"]
fn no_power_cut_loses_what_was_acknowledged_in_ten_thousand_images() {
    let images: u64 = in_parallel((100..130).collect(), |seed| torture(seed, 120, 3))
        .into_iter()
        .sum();
    assert!(images > 10_000, "only {images} images");
}

#[test]
fn the_death_of_the_process_loses_nothing_acknowledged_even_relaxed() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 16 * MIB).await;
        for n in 0..100 {
            let (cid, data) = block(n, 5000);
            let options =
                PutOptions::default().with_durability(anypath_tiered_store::Durability::Relaxed);
            store.put_with(cid, data, options).await.unwrap();
        }
        let image = vfs.live_image();
        let after = SimVfs::from_image(image, 0);
        let reopened = open_sim(&after, 16 * MIB).await;
        assert_eq!(reopened.iter().count(), 100);
        // A power cut may take them before a flush, not after.
        store.flush().await.unwrap();
        let after = SimVfs::from_image(vfs.crash_image(|| 0), 0);
        assert_eq!(open_sim(&after, 16 * MIB).await.iter().count(), 100);
    });
}

#[test]
fn every_flipped_bit_of_the_log_is_detected() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 16 * MIB).await;
        for n in 0..6 {
            let (cid, data) = block(n, 60);
            store
                .put_with(cid, data, PutOptions::pinned("p"))
                .await
                .unwrap();
        }
        store.close().await.unwrap();
    });
    let image = vfs.live_image();
    for (path, bytes) in &image {
        let name = path.to_string_lossy();
        if !name.contains("segment") && !name.contains("checkpoint") {
            continue;
        }
        for bit in 0..bytes.len() * 8 {
            let mut image = image.clone();
            let target = image.get_mut(path).unwrap();
            target[bit / 8] ^= 1 << (bit % 8);
            let vfs = SimVfs::from_image(image, 0);
            run(async {
                let store = open_sim(&vfs, 16 * MIB).await;
                for n in 0..6 {
                    let (cid, data) = block(n, 60);
                    match store.get(&cid).await {
                        Ok(Some(read)) => assert_eq!(read, data, "{name} bit {bit}"),
                        Ok(None) => panic!("{name} bit {bit}: block {n} is gone without a word"),
                        Err(_) => assert!(name.contains("segment"), "{name} bit {bit}"),
                    }
                }
            });
        }
    }
}
