//! What heat, placement and roles do to a store, seen from outside.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail with the test"
)]

use std::sync::Arc;

use anypath_tiered_store::{Class, Config, Importance, PutOptions, Role, Store, vfs::SimVfs};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};
use smol::block_on;

fn block(n: u32, len: usize) -> (Cid, Bytes) {
    let mut data = vec![n as u8; len];
    data[..4].copy_from_slice(&n.to_be_bytes());
    (
        Cid::new_v1(0x55, Code::Sha2_256.digest(&data)),
        Bytes::from(data),
    )
}

fn open(role: Role, memory: Option<u64>) -> Store {
    let mut config = Config::builder()
        .path("store")
        .role(role)
        .vfs(Arc::new(SimVfs::new()));
    if let Some(memory) = memory {
        config = config.memory_capacity(memory);
    }
    block_on(Store::open(config.build().unwrap())).unwrap()
}

fn put(store: &Store, n: u32, len: usize, options: PutOptions) -> Cid {
    let (cid, data) = block(n, len);
    block_on(store.put_with(cid, data, options)).unwrap();
    cid
}

#[test]
fn new_blocks_are_in_memory_by_size_importance_and_role() {
    let kept = |role, len, options: PutOptions| {
        let store = open(role, None);
        put(&store, 1, len, options);
        store.stats().memory.blocks == 1
    };
    let plain = PutOptions::default;
    let important = || plain().with_importance(Importance::High);
    assert!(kept(Role::Worker, 256 << 10, plain()));
    assert!(!kept(Role::Worker, 2 << 20, plain()));
    assert!(kept(Role::Worker, 2 << 20, important()));
    assert!(!kept(
        Role::Worker,
        1 << 10,
        plain().with_importance(Importance::Low)
    ));
    assert!(!kept(Role::Master, 256 << 10, plain()));
    assert!(kept(Role::Master, 1 << 10, plain().with_class(Class::Node)));
    assert!(!kept(Role::Leecher, 1 << 10, plain()));
    assert!(kept(Role::Leecher, 1 << 10, important()));
}

#[test]
fn a_leecher_keeps_what_it_read_in_a_sixth_of_a_workers_memory() {
    let (leecher, worker) = (open(Role::Leecher, None), open(Role::Worker, None));
    assert!(leecher.stats().memory.capacity * 6 <= worker.stats().memory.capacity);
    assert!(leecher.stats().disk.capacity * 4 <= worker.stats().disk.capacity);
    let cid = put(&leecher, 1, 1000, PutOptions::default());
    for _ in 0..2 {
        assert!(block_on(leecher.get(&cid)).unwrap().is_some());
    }
    let stats = leecher.stats();
    assert_eq!((stats.disk.hits, stats.memory.hits), (1, 1));
}

#[test]
fn what_is_set_wins_over_the_role() {
    let store = open(Role::Leecher, Some(50 << 20));
    assert_eq!(store.stats().memory.capacity, 50 << 20);
}

#[test]
fn stats_tell_how_much_memory_helps_and_what_the_policy_chose() {
    let run = |memory| {
        let store = open(Role::Worker, Some(memory));
        let cids: Vec<Cid> = (0..1000)
            .map(|n| put(&store, n, 4000, PutOptions::default()))
            .collect();
        // The lower the number the more often: n is read 1000 / (n + 1) times.
        for round in 0..1000 {
            for cid in cids.iter().take(1000 / (round + 1)) {
                block_on(store.get(cid)).unwrap().unwrap();
            }
        }
        store.stats()
    };
    let (none, small, all) = (run(0), run(1 << 20), run(16 << 20));
    let ratio = |hits: u64, rest: u64| hits as f64 / (hits + rest) as f64;
    assert_eq!(none.memory.hits, 0);
    assert_eq!(all.disk.hits, 0, "everything fits");
    let share = ratio(small.memory.hits, small.disk.hits);
    println!(
        "a fifth of the blocks in memory answers {:.1} % of the gets",
        share * 100.0
    );
    assert!(share > 0.5);
    assert!(small.memory.bytes <= small.memory.capacity);
    assert!(small.memory.ghost_hits > 0);
    assert!(small.memory.bookkeeping_bytes < small.memory.capacity / 4);
    assert!((0.05..=0.5).contains(&small.memory.window_share));
    assert!(small.memory.half_life >= 4.0);
}
