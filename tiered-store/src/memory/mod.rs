//! The memory tier: a sharded cache of `Bytes` under the heat policy.
//!
//! [`cache`] is the policy, pure and single-threaded; every shard has one. [`tuner`] chooses the window and the half-life for all of them.

mod cache;
mod ghosts;
mod heap;
mod model;
mod slots;
mod spares;
mod tuner;

use std::{
    hash::BuildHasher,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;

pub use model::Model;

use crate::key::Key;
use cache::{Cache, Setting};
use spares::Spares;
use tuner::Tuner;

/// Each shard holds at least this many bytes, so that the largest usual block (4 MiB) finds room.
const SHARD_BYTES: u64 = 12 * 1024 * 1024;
const MOST_SHARDS: usize = 8;
/// What the allocator adds to a block: its header, and the count of references.
const ALLOCATION: usize = 64;
/// Bookkeeping of a block in a shard, ghosts included, in bytes, where only about counts: the tuner's model of the tier.
const ABOUT: u32 = 192;

/// The hasher is a parameter for tests that need the same order in every run.
pub(crate) struct Memory<H = DefaultHashBuilder> {
    shards: Vec<Mutex<Cache<Key, Held>>>,
    tuner: Mutex<Tuner>,
    /// That of the tuner.
    thinning: AtomicU32,
    hasher: H,
    capacity: AtomicU64,
    spares: Spares,
    pub(crate) evictions: AtomicU64,
}

struct Held {
    data: Bytes,
    /// Wall clock in milliseconds; 0 for never.
    expiry_ms: u64,
}

/// What the policy does, for [`Stats`](crate::Stats).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PolicyStats {
    /// Share of the tier that is window, as chosen.
    pub(crate) window: f64,
    /// Half-life in accesses per block, as chosen.
    pub(crate) half_life: f64,
    /// How often another setting was chosen.
    pub(crate) switches: u64,
    /// Blocks that came back and whose heat was remembered.
    pub(crate) ghost_hits: u64,
    /// Bytes of blocks in the windows.
    pub(crate) window_bytes: u64,
    /// Bytes of tables, ghosts, the tuner's miniatures and spare buffers; part of the tier's bytes.
    pub(crate) bookkeeping_bytes: u64,
}

fn weight(data: &Bytes) -> u32 {
    let slack = if data.len() < spares::LEAST {
        0
    } else {
        spares::SLACK
    };
    u32::try_from(data.len() + slack + ALLOCATION).unwrap_or(u32::MAX)
}

/// What the shards share of the tier's bytes; the rest is the tuner's and the spare buffers'.
fn of_shards(capacity: u64) -> u64 {
    capacity - capacity / tuner::SHARE - capacity / spares::SHARE
}

impl Memory {
    pub(crate) fn new(capacity: u64) -> Self {
        Self::with_hasher(capacity, DefaultHashBuilder::default())
    }
}

impl<H: BuildHasher> Memory<H> {
    fn with_hasher(capacity: u64, hasher: H) -> Self {
        let number = usize::try_from(capacity / SHARD_BYTES)
            .unwrap_or(MOST_SHARDS)
            .clamp(1, MOST_SHARDS);
        let each = of_shards(capacity) / number as u64;
        let shard = || Mutex::new(Cache::new(each, tuner::DEFAULT, true));
        let tuner = Tuner::new(of_shards(capacity), true);
        let memory = Memory {
            shards: (0..number).map(|_| shard()).collect(),
            thinning: AtomicU32::new(tuner.thinning()),
            tuner: Mutex::new(tuner),
            hasher,
            capacity: AtomicU64::new(capacity),
            spares: Spares::default(),
            evictions: AtomicU64::new(0),
        };
        memory.spares.set_capacity(capacity);
        memory
    }

    fn shard(&self, key: &Key) -> Option<(u64, &Mutex<Cache<Key, Held>>)> {
        let hash = self.hasher.hash_one(key);
        let number = usize::try_from(hash >> 32).unwrap_or(0) % self.shards.len().max(1);
        Some((hash, self.shards.get(number)?))
    }

    /// The block, unless its time is over.
    pub(crate) fn get(&self, key: &Key, now_ms: u64) -> Option<Bytes> {
        let (hash, shard) = self.shard(key)?;
        let mut shard = shard.lock();
        let (held, weight) = shard.get(hash, key)?;
        if held.expiry_ms != 0 && held.expiry_ms <= now_ms {
            shard.remove(hash, key);
            return None;
        }
        let data = held.data.clone();
        drop(shard);
        self.tune(hash, weight);
        Some(data)
    }

    /// An empty buffer for `len` bytes, for a block that will be offered.
    pub(crate) fn buffer(&self, len: usize) -> BytesMut {
        self.spares.buffer(len)
    }

    /// Whether it is here, without counting as a read.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.shard(key)
            .is_some_and(|(hash, shard)| shard.lock().peek_mut(hash, key).is_some())
    }

    /// Offers a block that is part of a larger buffer from [`buffer`](Self::buffer), such as its record: what is small is copied, so
    /// that it pins no more than itself.
    pub(crate) fn offer(&self, key: Key, data: &Bytes, reads: f32, expiry_ms: u64) {
        let data = if data.len() < spares::LEAST {
            Bytes::copy_from_slice(data)
        } else {
            data.clone()
        };
        self.insert(key, data, reads, expiry_ms);
    }

    /// Offers a block that counts as `reads` reads if it is new; the policy decides whether it stays. `data` must own no more
    /// than its own bytes, or come from [`buffer`](Self::buffer) and be large.
    pub(crate) fn insert(&self, key: Key, data: Bytes, reads: f32, expiry_ms: u64) {
        let Some((hash, shard)) = self.shard(&key) else {
            return;
        };
        let weight = weight(&data);
        let mut evicted = Vec::new();
        {
            let mut shard = shard.lock();
            if let Some(held) = shard.peek_mut(hash, &key) {
                held.expiry_ms = expiry_ms;
                return;
            }
            let held = Held { data, expiry_ms };
            shard.insert(hash, key, held, weight, reads, &mut |held| {
                evicted.push(held.data);
            });
        }
        self.recycle(evicted);
        self.tune(hash, weight);
    }

    /// The block's time to live changed (it was pinned or put again).
    pub(crate) fn set_expiry(&self, key: &Key, expiry_ms: u64) {
        if let Some((hash, shard)) = self.shard(key)
            && let Some(held) = shard.lock().peek_mut(hash, key)
        {
            held.expiry_ms = expiry_ms;
        }
    }

    pub(crate) fn remove(&self, key: &Key) {
        if let Some((hash, shard)) = self.shard(key) {
            shard.lock().remove(hash, key);
        }
    }

    pub(crate) fn set_capacity(&self, capacity: u64) {
        let before = self.capacity.swap(capacity, Relaxed);
        let each = of_shards(capacity) / self.shards.len().max(1) as u64;
        for shard in &self.shards {
            let mut evicted = 0;
            let mut shard = shard.lock();
            if capacity < before {
                // First, so that what the tables give back need not be evicted for.
                shard.rebuild(&mut |_| evicted += 1);
            }
            shard.set_capacity(each, &mut |_| evicted += 1);
            self.evictions.fetch_add(evicted, Relaxed);
        }
        self.spares.set_capacity(capacity);
        let mut tuner = self.tuner.lock();
        tuner.set_capacity(of_shards(capacity));
        self.thinning.store(tuner.thinning(), Relaxed);
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Relaxed)
    }

    /// Blocks, and bytes with all bookkeeping.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let rest = self.tuner.lock().bytes() + self.spares.bytes();
        self.shards
            .iter()
            .fold((0, rest), |(blocks, bytes), shard| {
                let shard = shard.lock();
                (blocks + shard.len() as u64, bytes + shard.weight())
            })
    }

    pub(crate) fn policy_stats(&self) -> PolicyStats {
        let (Setting { window, half_life }, switches, own) = {
            let tuner = self.tuner.lock();
            (tuner.setting(), tuner.switches(), tuner.bytes())
        };
        let mut stats = PolicyStats {
            window,
            half_life,
            switches,
            ghost_hits: 0,
            window_bytes: 0,
            bookkeeping_bytes: own + self.spares.bytes(),
        };
        for shard in &self.shards {
            let shard = shard.lock();
            stats.ghost_hits += shard.ghost_hits();
            stats.window_bytes += shard.window_weight();
            stats.bookkeeping_bytes += shard.bookkeeping();
        }
        stats
    }

    fn recycle(&self, evicted: Vec<Bytes>) {
        self.evictions.fetch_add(evicted.len() as u64, Relaxed);
        for data in evicted {
            self.spares.keep(data);
        }
    }

    /// Tells the tuner of an access, unless another thread is telling it of one: it works on a sample anyway.
    fn tune(&self, hash: u64, weight: u32) {
        if !tuner::is_sampled(hash, self.thinning.load(Relaxed)) {
            return;
        }
        let Some(mut tuner) = self.tuner.try_lock() else {
            return;
        };
        let changed = tuner.on_access(hash, weight.saturating_add(ABOUT));
        self.thinning.store(tuner.thinning(), Relaxed);
        drop(tuner);
        if let Some(setting) = changed {
            tracing::debug!(?setting, "the memory tier adapts");
            for shard in &self.shards {
                shard.lock().set_setting(setting);
            }
        }
    }
}

#[cfg(test)]
mod tests;
