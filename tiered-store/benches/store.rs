//! Durable puts with 1 and 16 writers, and gets from disk and memory. The bars are in `compare -- store`; this is for finding changes.

#![expect(clippy::unwrap_used, reason = "a bench has nobody to tell")]

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anypath_tiered_store::{Config, Store};
use bytes::Bytes;
use cid::Cid;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use multihash::Multihash;

/// A new block each time. Its digest is a number: hashing is not what is measured.
fn block(template: &[u8]) -> (Cid, Bytes) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT
        .fetch_add(1, Relaxed)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut data = template.to_vec();
    for (to, from) in data.iter_mut().zip(n.to_le_bytes()) {
        *to = from;
    }
    let mut digest = [0; 32];
    for (to, from) in digest.iter_mut().zip(n.to_le_bytes()) {
        *to = from;
    }
    (
        Cid::new_v1(0x55, Multihash::wrap(0x12, &digest).unwrap()),
        Bytes::from(data),
    )
}

fn open(memory: u64) -> (tempfile::TempDir, Store) {
    let dir =
        tempfile::tempdir_in(std::env::var_os("BENCH_DIR").unwrap_or_else(|| "/var/tmp".into()))
            .unwrap();
    let config = Config::builder()
        .path(dir.path())
        .memory_capacity(memory)
        .build()
        .unwrap();
    let store = smol::block_on(Store::open(config)).unwrap();
    (dir, store)
}

/// `writers` threads put `puts` blocks in all.
#[expect(clippy::disallowed_methods, reason = "it measures time")]
fn put(store: &Store, template: &[u8], writers: u64, puts: u64) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for writer in 0..writers {
            scope.spawn(move || {
                let mine = puts / writers + u64::from(writer < puts % writers);
                smol::block_on(async {
                    for _ in 0..mine {
                        let (cid, data) = block(template);
                        store.put(cid, data).await.unwrap();
                    }
                });
            });
        }
    });
    start.elapsed()
}

fn durable_put(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("durable put");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    for (name, size) in [("4 KiB", 4 << 10), ("256 KiB", 256 << 10)] {
        let template: Vec<u8> = (0..size)
            .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        group.throughput(Throughput::Bytes(template.len() as u64));
        for writers in [1, 16] {
            let (_dir, store) = open(100 << 20);
            group.bench_function(format!("{name}, {writers} writers"), |bencher| {
                bencher.iter_custom(|puts| put(&store, &template, writers, puts));
            });
        }
    }
    group.finish();
}

fn get(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("get");
    for (name, memory) in [("page cache", 0), ("memory tier", 500 << 20)] {
        let (_dir, store) = open(memory);
        let template = vec![7; 256 << 10];
        let cids: Vec<Cid> = (0..400)
            .map(|_| {
                let (cid, data) = block(&template);
                smol::block_on(store.put(cid, data)).unwrap();
                cid
            })
            .collect();
        let mut next = cids.iter().cycle();
        group.throughput(Throughput::Bytes(template.len() as u64));
        group.bench_function(format!("256 KiB, {name}"), |bencher| {
            bencher.iter(|| {
                smol::block_on(store.get(next.next().unwrap()))
                    .unwrap()
                    .unwrap()
            });
        });
        group.bench_function(format!("has, {name}"), |bencher| {
            bencher.iter(|| store.has(next.next().unwrap()));
        });
    }
    group.finish();
}

criterion_group!(benches, durable_put, get);
criterion_main!(benches);
