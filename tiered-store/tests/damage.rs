//! Damage that is not a power cut: rotten sectors, a full device. And what lies together because it dies together.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anypath_tiered_store::{
    GetError, PutOptions, Store,
    vfs::{Fault, Image, Op, SimVfs},
};
use bytes::Bytes;
use common::{MIB, block, open_sim, run};

const NOW: u64 = 1_000_000_000_000;

/// The files of a kind, oldest first.
fn files(image: &Image, part: &str) -> Vec<std::path::PathBuf> {
    let names = image.keys();
    names
        .filter(|path| path.to_string_lossy().contains(part))
        .cloned()
        .collect()
}

/// A store where compaction has dropped records of pins and deletions that only checkpoints know by now, and a few that the log has.
async fn with_compacted_news(vfs: &SimVfs) -> Store {
    let store = open_sim(vfs, 2 * MIB).await;
    for round in 0..6 {
        for n in 0..30 {
            let (cid, data) = block(round * 100 + n, 4000);
            let pinned = PutOptions::pinned("p");
            store.put_with(cid, data, pinned).await.unwrap();
        }
        // Half of them are given up again, so that their segments are compacted.
        for n in 0..30 {
            if n % 3 != 0 {
                let (cid, _) = block(round * 100 + n, 4000);
                store.unpin("p", &[cid]).await.unwrap();
                store.delete(&cid).await.unwrap();
            }
        }
        store.gc().await.unwrap();
    }
    assert!(store.stats().disk.compactions > 3);
    store
}

async fn check_news(store: &Store, what: &str) {
    for round in 0..6 {
        for n in 0..30 {
            let (cid, data) = block(round * 100 + n, 4000);
            if n % 3 == 0 {
                assert!(store.is_pinned(&cid), "{what}: pin {round} {n} is lost");
                assert_eq!(store.get(&cid).await.unwrap(), Some(data), "{what}");
            } else {
                assert!(!store.has(&cid), "{what}: block {round} {n} is back");
            }
        }
    }
}

#[test]
fn a_damaged_checkpoint_loses_no_pin_and_brings_no_deleted_block_back() {
    run(async {
        let vfs = SimVfs::new();
        let store = with_compacted_news(&vfs).await;
        for closed in [false, true] {
            if closed {
                store.close().await.unwrap();
            }
            let image = vfs.live_image();
            let checkpoints = files(&image, "checkpoint");
            assert_eq!(checkpoints.len(), 2, "{checkpoints:?}");
            for at in [0.0, 0.3, 0.99] {
                let mut image = image.clone();
                let newest = image.get_mut(&checkpoints[1]).unwrap();
                let at = (newest.len() as f64 * at) as usize;
                newest[at] ^= 0x10;
                let vfs = SimVfs::from_image(image, NOW);
                let store = open_sim(&vfs, 2 * MIB).await;
                check_news(&store, "the older checkpoint").await;
                // And again, with what is written now.
                store.gc().await.unwrap();
                drop(store);
                let store = open_sim(&vfs, 2 * MIB).await;
                check_news(&store, "the opening after").await;
            }
        }
    });
}

#[test]
fn a_rotten_record_of_the_last_segment_costs_that_record_and_no_other() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, 16 * MIB).await;
        for n in 0..20 {
            let (cid, data) = block(n, 900);
            let pinned = PutOptions::pinned("p");
            store.put_with(cid, data, pinned).await.unwrap();
        }
        let image = vfs.live_image();
        let segments = files(&image, "segment");
        let (_, data) = block(7, 900);
        let bytes = &image[&segments[0]];
        let at = bytes.windows(900).position(|bytes| bytes == data).unwrap();
        // In the payload, in the header before it, in the record of the pin behind it.
        for at in [at + 500, at - 60, at + 920] {
            let mut image = image.clone();
            image.get_mut(&segments[0]).unwrap()[at] ^= 1;
            let vfs = SimVfs::from_image(image, NOW);
            for _ in 0..2 {
                let store = open_sim(&vfs, 16 * MIB).await;
                assert!(store.stats().disk.corruptions > 0);
                for n in 0..20 {
                    let (cid, data) = block(n, 900);
                    let read = store.get(&cid).await;
                    if n != 7 {
                        assert_eq!(read.unwrap(), Some(data), "block {n}");
                        assert!(store.is_pinned(&cid), "the pin of block {n} is lost");
                    } else if let Ok(Some(read)) = read {
                        assert_eq!(read, data);
                    } else {
                        // It stays pinned, so that its loss shows.
                        assert!(matches!(read, Err(GetError::Corrupt { .. })), "{read:?}");
                        assert!(store.is_pinned(&cid));
                    }
                }
                drop(store);
            }
            let store = open_sim(&vfs, 16 * MIB).await;
            let (cid, data) = block(7, 900);
            store.put(cid, data.clone()).await.unwrap();
            assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        }
    });
}

#[test]
fn a_full_device_gives_dead_segments_back_and_keeps_no_half_checkpoint() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, 16 * MIB).await;
        for n in 0..60 {
            let (cid, data) = block(n, 100_000);
            let ttl = PutOptions::default().with_ttl(Duration::from_secs(100));
            store.put_with(cid, data, ttl).await.unwrap();
        }
        let segments = files(&vfs.live_image(), "segment").len();
        assert!(segments > 3);
        vfs.advance_ms(200_000);
        // The store knows that they are over.
        vfs.inject(|_, op| (op == Op::Name).then_some(Fault::Error(io::ErrorKind::Other)));
        let _ = store.gc().await;
        let full = Arc::new(AtomicBool::new(true));
        vfs.inject(move |_, op| {
            if op == Op::Name {
                full.store(false, Relaxed);
            }
            (op == Op::Write && full.load(Relaxed))
                .then_some(Fault::Error(io::ErrorKind::StorageFull))
        });
        let (cid, data) = block(1000, 100_000);
        store.put(cid, data.clone()).await.unwrap();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        assert!(files(&vfs.live_image(), "segment").len() < segments);
        vfs.inject(|_, op| (op == Op::Write).then_some(Fault::Short));
        assert!(store.close().await.is_err());
        vfs.heal();
        assert!(files(&vfs.live_image(), "tmp").is_empty());
        drop(store);
        let store = open_sim(&vfs, 16 * MIB).await;
        assert!(store.has(&cid));
    });
}

#[test]
fn blocks_that_are_over_at_the_same_time_are_removed_without_copying() {
    removed_without_copying(false);
}

/// Opening neither reads nor changes a segment that the checkpoint knows and that nothing goes into any more.
#[test]
fn blocks_that_were_over_together_when_the_store_was_closed_are_removed_without_copying_too() {
    removed_without_copying(true);
}

fn removed_without_copying(is_reopened: bool) {
    run(async {
        let vfs = SimVfs::new();
        let mut store = open_sim(&vfs, 16 * MIB).await;
        for n in 0..120 {
            let (cid, data) = block(n, 50_000);
            let options = if n % 2 == 0 {
                PutOptions::default().with_ttl(Duration::from_secs(1000 + u64::from(n)))
            } else {
                PutOptions::default()
            };
            store.put_with(cid, data, options).await.unwrap();
        }
        if is_reopened {
            store.close().await.unwrap();
            drop(store);
            let (bytes, reads) = (vfs.file_bytes("segment-"), vfs.reads());
            store = open_sim(&vfs, 16 * MIB).await;
            assert_eq!(vfs.file_bytes("segment-"), bytes);
            // 3 MB of the main lane are looked through, as it grows on; 3 MB of the other are not.
            let reads = vfs.reads() - reads;
            assert!(reads < 40, "{reads} reads");
            for n in 0..120 {
                let (cid, data) = block(n, 50_000);
                assert_eq!(store.get(&cid).await.unwrap(), Some(data));
            }
        }
        let used = store.stats().disk.used_bytes;
        vfs.advance_ms(2_000_000);
        let before = store.stats().disk.written_bytes;
        let report = store.gc().await.unwrap();
        assert_eq!(report.expired, 60);
        let stats = store.stats().disk;
        // The list of what is over, and checkpoints.
        let written = stats.written_bytes - before;
        assert!(written < 50_000, "{written} bytes were written");
        assert!(
            stats.used_bytes < used * 6 / 10,
            "{} of {used}",
            stats.used_bytes
        );
    });
}

#[test]
fn pins_and_values_share_syncs_like_puts() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, 16 * MIB).await;
        let blocks: Vec<_> = (0..200).map(|n| block(n, 100)).collect();
        store
            .put_many(blocks.clone(), PutOptions::default())
            .await
            .unwrap();
        let before = store.stats().disk.syncs;
        let pins = blocks.iter().map(|(cid, _)| {
            let store = store.clone();
            async move { store.pin("p", &[*cid]).await.unwrap() }
        });
        let values = (0..200).map(|n| {
            let store = store.clone();
            async move {
                let value = Bytes::from(vec![n as u8; 10]);
                store.put_value(&n.to_string(), value, None).await.unwrap();
            }
        });
        futures::join!(
            futures::future::join_all(pins),
            futures::future::join_all(values)
        );
        let syncs = store.stats().disk.syncs - before;
        assert!(syncs < 40, "{syncs} syncs for 400 writes");
        assert_eq!(store.pins("p").len(), 200);
    });
}

#[test]
fn a_value_is_returned_only_for_the_hash_that_it_was_put_with() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, 16 * MIB).await;
        let put = |hash: &'static [u8], value: &'static [u8]| {
            let store = store.clone();
            async move {
                let value = Bytes::from_static(value);
                store.put_value_of("page", value, hash, None).await.unwrap();
            }
        };
        put(b"one", b"first").await;
        let of = |hash: &'static [u8]| {
            let store = store.clone();
            async move { store.get_value_of("page", hash).await.unwrap() }
        };
        assert_eq!(of(b"one").await.as_deref(), Some(&b"first"[..]));
        assert_eq!(of(b"two").await, None);
        put(b"two", b"").await;
        assert_eq!(of(b"one").await, None);
        assert_eq!(of(b"two").await.as_deref(), Some(&b""[..]));
        let any = store.get_value("page").await.unwrap();
        assert_eq!(any.as_deref(), Some(&b""[..]));
        let long = store.put_value_of("page", Bytes::new(), &[0; 200], None);
        assert!(long.await.is_err());
    });
}

/// Data that ends like the footer of a segment.
fn like_a_footer(segment: u32, items: &[u8], count: u32) -> Bytes {
    let mut data = b"some innocent looking data".to_vec();
    data.extend_from_slice(items);
    let mut trailer = (items.len() as u32).to_le_bytes().to_vec();
    trailer.extend_from_slice(&count.to_le_bytes());
    trailer.extend_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(items), &trailer);
    data.extend_from_slice(&trailer);
    data.extend_from_slice(&crc.to_le_bytes());
    data.extend_from_slice(b"ANYPFOOT");
    data.into()
}

#[test]
fn a_block_that_ends_like_a_footer_hides_nothing() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, 16 * MIB).await;
        let (cid, data) = block(1, 5000);
        store.put(cid, data.clone()).await.unwrap();
        let forged = like_a_footer(1, &[], 0);
        let forged_cid = common::cid_of(&forged);
        store.put(forged_cid, forged.clone()).await.unwrap();
        let killed = vfs.live_image();
        let log = &killed[&files(&killed, "segment")[0]];
        assert!(log.ends_with(&forged), "it is the end of the log");
        store.close().await.unwrap();
        for image in [killed, vfs.live_image()] {
            let vfs = SimVfs::from_image(image, NOW);
            // Whatever is done about what is thought to be garbage.
            for _ in 0..2 {
                let store = open_sim(&vfs, 16 * MIB).await;
                assert_eq!(store.get(&cid).await.unwrap(), Some(data.clone()));
                assert_eq!(store.get(&forged_cid).await.unwrap(), Some(forged.clone()));
                let (other, data) = block(2, 5000);
                store.put(other, data).await.unwrap();
                store.delete(&other).await.unwrap();
                store.gc().await.unwrap();
            }
        }
    });
}

#[test]
fn a_block_that_ends_like_a_footer_says_nothing() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, 16 * MIB).await;
        let (cid, data) = block(1, 5000);
        let pinned = PutOptions::pinned("x");
        store.put_with(cid, data, pinned).await.unwrap();
        // The set is dropped, with the highest seq that there may be.
        let mut item = vec![6, 0, 1, 0];
        item.extend_from_slice(&0u32.to_le_bytes());
        item.extend_from_slice(&48u32.to_le_bytes());
        item.extend_from_slice(&0u64.to_le_bytes());
        item.extend_from_slice(&(u64::MAX >> 1).to_le_bytes());
        item.push(b'x');
        let forged = like_a_footer(1, &item, 1);
        store.put(common::cid_of(&forged), forged).await.unwrap();
        store.close().await.unwrap();
        let vfs = SimVfs::from_image(vfs.live_image(), NOW);
        let store = open_sim(&vfs, 16 * MIB).await;
        assert!(store.is_pinned(&cid));
        let (cid, data) = block(2, 5000);
        store.put(cid, data.clone()).await.unwrap();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}
