//! Memory of a process that stores and reads 1 GiB.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test panics when it fails")]

use anypath_tiered_store::{Config, Durability, PutOptions, Store};
use bytes::Bytes;
use cid::Cid;
use futures::{StreamExt, stream};
use multihash::Multihash;

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// The digest is a number: nothing here looks at it.
fn cid(n: u64) -> Cid {
    let digest = [n.to_le_bytes(), [1; 8], [2; 8], [3; 8]].concat();
    Cid::new_v1(0x55, Multihash::wrap(0x12, &digest).unwrap())
}

#[test]
fn storing_and_reading_a_gibibyte_takes_less_than_200_mib_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::builder()
        .path(dir.path())
        .disk_capacity(2 << 30)
        .build()
        .unwrap();
    smol::block_on(async {
        let store = Store::open(config).await.unwrap();
        // As many callers as like: what waits in the queue is bounded, and so is what a caller holds. Relaxed is the fastest way to fill it.
        let options = PutOptions::default().with_durability(Durability::Relaxed);
        let puts = stream::iter(0..4096u64).map(|n| {
            let (store, options) = (store.clone(), options.clone());
            async move {
                store
                    .put_with(cid(n), Bytes::from(vec![n as u8; 256 << 10]), options)
                    .await
            }
        });
        puts.buffer_unordered(64)
            .for_each(|put| async { put.unwrap() })
            .await;
        println!("peak after puts {} MiB", peak_mib());
        for n in 0..4096 {
            assert_eq!(store.get(&cid(n)).await.unwrap().unwrap().len(), 256 << 10);
        }
        assert_eq!(store.iter().count(), 4096);
    });
    let peak = peak_mib();
    println!("peak {peak} MiB");
    assert!(peak < 200, "{peak} MiB");
}
