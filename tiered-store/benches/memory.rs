//! The memory tier: what a hit costs, and a miss with the insert that follows it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a bench has nobody to tell, and measures time"
)]

use std::{hint::black_box, sync::Arc, time::Instant};

use anypath_tiered_store::{Config, Store, heat::Model, vfs::SimVfs};
use bytes::Bytes;
use cid::Cid;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::{FutureExt, executor::block_on};
use multihash_codetable::{Code, MultihashDigest};

const BLOCKS: u32 = 10_000;

fn cid(n: u32) -> Cid {
    Cid::new_v1(0x55, Code::Sha2_256.digest(&n.to_be_bytes()))
}

/// The policy without bytes.
fn policy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    let full = || {
        let mut model = Model::new(u64::from(BLOCKS), 1);
        for key in 0..u64::from(3 * BLOCKS) {
            model.access(key % u64::from(BLOCKS), 1);
        }
        model
    };
    group.throughput(Throughput::Elements(1));
    group.bench_function("hit", |bencher| {
        let (mut model, mut key) = (full(), 0u64);
        bencher.iter(|| {
            key = (key + 7919) % 9000;
            black_box(model.access(key, 1))
        });
    });
    group.bench_function("miss_and_insert", |bencher| {
        let (mut model, mut key) = (full(), 1_000_000u64);
        bencher.iter(|| {
            key += 1;
            black_box(model.access(key, 1))
        });
    });
    group.finish();
}

/// A store whose blocks are all in memory; its files are simulated, as none is read.
fn store(len: usize, blocks: u32) -> (Store, Vec<Cid>) {
    let config = Config::builder()
        .path("store")
        .memory_capacity(256 << 20)
        .vfs(Arc::new(SimVfs::new()))
        .build()
        .unwrap();
    let store = block_on(Store::open(config)).unwrap();
    let cids: Vec<Cid> = (0..blocks).map(cid).collect();
    let puts = cids.iter().map(|cid| (*cid, Bytes::from(vec![7; len])));
    block_on(store.put_many(puts.collect(), Default::default())).unwrap();
    (store, cids)
}

fn hit(store: &Store, cid: &Cid) -> Bytes {
    let found = store.get(cid).now_or_never().unwrap();
    found.unwrap().unwrap()
}

fn tier(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memory_hit");
    group.throughput(Throughput::Elements(1));
    for (name, len, blocks) in [("1KiB", 1 << 10, BLOCKS), ("256KiB", 256 << 10, 400)] {
        let (store, cids) = store(len, blocks);
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                next = (next + 7919) % cids.len();
                hit(&store, &cids[next])
            });
        });
    }
    let (store, cids) = store(1 << 10, BLOCKS);
    group.throughput(Throughput::Elements(4000));
    group.bench_function("1KiB_4_threads", |bencher| {
        bencher.iter_batched(
            || (),
            |()| {
                std::thread::scope(|scope| {
                    for thread in 0..4 {
                        let (store, cids) = (&store, &cids);
                        scope.spawn(move || {
                            for n in 0..1000 {
                                hit(store, &cids[(n * 7919 + thread * 13) % cids.len()]);
                            }
                        });
                    }
                });
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Each hit timed alone: what a caller waits, whatever else the machine does. Bar: half of them within 1 µs.
fn percentiles(_: &mut Criterion) {
    for (name, len, blocks) in [("1KiB", 1 << 10, BLOCKS), ("256KiB", 256 << 10, 400)] {
        let (store, cids) = store(len, blocks);
        let mut times: Vec<u128> = (0..200_000)
            .map(|n| {
                let cid = &cids[(n * 7919) % cids.len()];
                let start = Instant::now();
                black_box(hit(&store, cid));
                start.elapsed().as_nanos()
            })
            .collect();
        times.sort_unstable();
        let at = |percent: usize| times[times.len() * percent / 100];
        let verdict = if at(50) <= 1000 { "met" } else { "MISSED" };
        println!(
            "memory_hit/{name}: p50 {} ns, p90 {} ns, p99 {} ns; bar p50 1000 ns {verdict}",
            at(50),
            at(90),
            at(99)
        );
    }
}

criterion_group!(benches, policy, tier, percentiles);
criterion_main!(benches);
