//! What the tests share.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "every test binary uses a part"
)]

use std::{
    future::Future,
    sync::{Arc, Mutex},
    thread,
};

use anypath_tiered_store::{Config, Store, vfs::SimVfs};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};

pub const RAW: u64 = 0x55;

pub fn run<T>(future: impl Future<Output = T>) -> T {
    smol::block_on(future)
}

/// Does the work on twice as many threads as there are cores, since stores wait for their own threads; a panic in one is the test's.
pub fn in_parallel<W: Send, T: Send>(work: Vec<W>, each: impl Fn(W) -> T + Sync) -> Vec<T> {
    let work = Mutex::new(work.into_iter());
    let one_after_the_other = || {
        let next = || work.lock().expect("no panic inside").next();
        std::iter::from_fn(next).map(&each).collect::<Vec<T>>()
    };
    let threads = 2 * thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(one_after_the_other))
            .collect();
        let done = workers.into_iter().map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.flatten().collect()
    })
}

pub fn cid_of(data: &[u8]) -> Cid {
    Cid::new_v1(RAW, Code::Sha2_256.digest(data))
}

/// A block whose bytes follow from its number.
pub fn block(n: u32, len: usize) -> (Cid, Bytes) {
    let mut state = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data: Vec<u8> = n.to_le_bytes().to_vec();
    data.resize_with(len.max(4), || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    let data = Bytes::from(data);
    (cid_of(&data), data)
}

pub fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
}

pub const MIB: u64 = 1024 * 1024;

/// A store on a simulated disk without a memory tier, so that every get reads.
pub async fn open_sim(vfs: &SimVfs, capacity: u64) -> Store {
    // A store that was dropped without `close` holds its lock until its last write is done, on a busy machine for seconds.
    for _ in 0..1000 {
        match try_open_sim(vfs, capacity).await {
            Err(anypath_tiered_store::OpenError::Locked { .. }) => {}
            opened => return opened.expect("opens"),
        }
    }
    panic!("the store that was dropped never lets go of its lock")
}

pub async fn try_open_sim(
    vfs: &SimVfs,
    capacity: u64,
) -> Result<Store, anypath_tiered_store::OpenError> {
    let config = Config::builder()
        .path("/store")
        .disk_capacity(capacity)
        .memory_capacity(0)
        .vfs(Arc::new(vfs.clone()))
        .build()
        .expect("valid");
    Store::open(config).await
}
