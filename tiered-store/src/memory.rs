//! The memory tier: a sharded cache of `Bytes` under the heat policy.
//!
//! New blocks enter a small window in order of use. What falls out of it may enter the main part, if its score is at least the
//! sum of the scores of the blocks that would have to go (the rule of Einziger, Eytan, Friedman and Manes 2022): so a scan passes through the
//! window and leaves the main part alone. Heats of evicted blocks are remembered for four times the number of blocks.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use hashbrown::{DefaultHashBuilder, HashMap};
use parking_lot::Mutex;
use std::{
    hash::BuildHasher,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    heat::{Clock, Heat},
    key::Key,
};

/// Each shard holds at least this many bytes, so that the largest usual block (4 MiB) finds room.
const SHARD_BYTES: u64 = 12 * 1024 * 1024;
const MOST_SHARDS: usize = 8;
/// Part of a shard that is window: 1/16, near the 5 % that was best on most traces (`notes/store-and-dht.md` §1.4).
const WINDOW: u64 = 16;
/// Bookkeeping of one block, in bytes (two map entries and the `Bytes`).
const OVERHEAD: u64 = 160;
/// Evicted blocks whose heat is remembered, per block kept.
const GHOSTS: usize = 4;
/// Buffers from this size on are used again: allocators give large pieces back late, and threads that take turns at
/// allocating them leave holes in an arena each (measured with glibc: three times the tier's bytes).
const LEAST_SPARE: usize = 32 * 1024;
/// Buffers kept for that, in number and bytes.
const SPARES: usize = 64;
const SPARE_BYTES: usize = 16 * 1024 * 1024;

pub(crate) struct Memory {
    shards: Vec<Mutex<Shard>>,
    hasher: DefaultHashBuilder,
    capacity: AtomicU64,
    pub(crate) evictions: AtomicU64,
    spares: Mutex<Vec<BytesMut>>,
}

#[derive(Default)]
struct Shard {
    clock: Clock,
    entries: HashMap<Key, Entry>,
    /// Oldest first.
    window: BTreeMap<u64, Key>,
    window_bytes: u64,
    /// Coldest first.
    main: BTreeMap<(Order, u64), Key>,
    main_bytes: u64,
    ghosts: HashMap<Key, Heat>,
    ghost_order: VecDeque<Key>,
    next: u64,
}

struct Entry {
    data: Bytes,
    heat: Heat,
    /// Wall clock in milliseconds; 0 for never.
    expiry_ms: u64,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Window(u64),
    Main(Order, u64),
}

/// A heat as a totally ordered number.
#[derive(Clone, Copy, PartialEq)]
struct Order(Heat);

impl Eq for Order {}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

fn cost(data: &Bytes) -> u64 {
    data.len() as u64 + OVERHEAD
}

impl Memory {
    pub(crate) fn new(capacity: u64) -> Self {
        let shards = usize::try_from(capacity / SHARD_BYTES)
            .unwrap_or(MOST_SHARDS)
            .clamp(1, MOST_SHARDS);
        Memory {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            capacity: AtomicU64::new(capacity),
            evictions: AtomicU64::new(0),
            spares: Mutex::default(),
        }
    }

    fn shard(&self, key: &Key) -> Option<&Mutex<Shard>> {
        let hash = self.hasher.hash_one(key);
        self.shards
            .get(usize::try_from(hash >> 32).unwrap_or(0) % self.shards.len().max(1))
    }

    fn shard_capacity(&self) -> u64 {
        self.capacity.load(Relaxed) / self.shards.len().max(1) as u64
    }

    /// The block, unless its time is over.
    pub(crate) fn get(&self, key: &Key, now_ms: u64) -> Option<Bytes> {
        let mut shard = self.shard(key)?.lock();
        shard.get(key, now_ms)
    }

    /// An empty buffer for `len` bytes, a used one if there is one.
    pub(crate) fn buffer(&self, len: usize) -> BytesMut {
        if len >= LEAST_SPARE {
            let mut spares = self.spares.lock();
            let fits = |spare: &mut BytesMut| spare.try_reclaim(len) && spare.capacity() <= 2 * len;
            if let Some(at) = spares.iter_mut().position(fits) {
                return spares.swap_remove(at);
            }
            // A block alone and its whole record get equal buffers.
            return BytesMut::with_capacity((len + 256).next_multiple_of(4096));
        }
        BytesMut::with_capacity(len)
    }

    fn recycle(&self, evicted: Vec<Bytes>) {
        self.evictions.fetch_add(evicted.len() as u64, Relaxed);
        for data in evicted.into_iter().filter(|data| data.len() >= LEAST_SPARE) {
            // Somebody may still read it.
            let Ok(mut buffer) = data.try_into_mut() else {
                continue;
            };
            buffer.clear();
            let mut spares = self.spares.lock();
            let bytes: usize = spares.iter().map(BytesMut::capacity).sum();
            if spares.len() < SPARES && bytes + buffer.capacity() <= SPARE_BYTES {
                spares.push(buffer);
            }
        }
    }

    /// Whether it is here, without counting as a read.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.shard(key)
            .is_some_and(|shard| shard.lock().entries.contains_key(key))
    }

    /// Offers a block; the policy decides whether it stays. `data` must own no more than its own bytes.
    pub(crate) fn insert(&self, key: Key, data: Bytes, weight: f32, expiry_ms: u64) {
        let capacity = self.shard_capacity();
        if cost(&data) > capacity {
            return;
        }
        if let Some(shard) = self.shard(&key) {
            let mut evicted = Vec::new();
            shard
                .lock()
                .insert(key, data, weight, expiry_ms, capacity, &mut evicted);
            self.recycle(evicted);
        }
    }

    /// The block's time to live changed (it was pinned or put again).
    pub(crate) fn set_expiry(&self, key: &Key, expiry_ms: u64) {
        if let Some(shard) = self.shard(key)
            && let Some(entry) = shard.lock().entries.get_mut(key)
        {
            entry.expiry_ms = expiry_ms;
        }
    }

    pub(crate) fn remove(&self, key: &Key) {
        if let Some(shard) = self.shard(key) {
            shard.lock().remove(key);
        }
    }

    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Relaxed);
        let each = self.shard_capacity();
        for shard in &self.shards {
            let mut evicted = Vec::new();
            shard.lock().shrink(each, &mut evicted);
            self.evictions.fetch_add(evicted.len() as u64, Relaxed);
        }
        self.spares.lock().clear();
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Relaxed)
    }

    /// Blocks and bytes.
    pub(crate) fn usage(&self) -> (u64, u64) {
        self.shards.iter().fold((0, 0), |(blocks, bytes), shard| {
            let shard = shard.lock();
            (
                blocks + shard.entries.len() as u64,
                bytes + shard.window_bytes + shard.main_bytes,
            )
        })
    }
}

impl Shard {
    fn get(&mut self, key: &Key, now_ms: u64) -> Option<Bytes> {
        self.clock.tick(self.entries.len());
        let entry = self.entries.get_mut(key)?;
        if entry.expiry_ms != 0 && entry.expiry_ms <= now_ms {
            self.remove(key);
            return None;
        }
        entry.heat = self.clock.touched(entry.heat);
        self.next += 1;
        match entry.place {
            Place::Window(at) => {
                self.window.remove(&at);
                self.window.insert(self.next, *key);
                entry.place = Place::Window(self.next);
            }
            Place::Main(heat, at) => {
                self.main.remove(&(heat, at));
                self.main.insert((Order(entry.heat), at), *key);
                entry.place = Place::Main(Order(entry.heat), at);
            }
        }
        Some(entry.data.clone())
    }

    fn insert(
        &mut self,
        key: Key,
        data: Bytes,
        weight: f32,
        expiry_ms: u64,
        capacity: u64,
        evicted: &mut Vec<Bytes>,
    ) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.expiry_ms = expiry_ms;
            return;
        }
        self.clock.tick(self.entries.len());
        let heat = match self.ghosts.remove(&key) {
            Some(heat) => self.clock.touched(heat),
            None => self.clock.fresh(weight),
        };
        self.next += 1;
        self.window.insert(self.next, key);
        self.window_bytes += cost(&data);
        let place = Place::Window(self.next);
        self.entries.insert(
            key,
            Entry {
                data,
                heat,
                expiry_ms,
                place,
            },
        );
        self.shrink(capacity, evicted);
    }

    /// Moves the window's overflow to the main part, or out.
    fn shrink(&mut self, capacity: u64, evicted: &mut Vec<Bytes>) {
        while self.window_bytes > capacity / WINDOW
            || self.window_bytes + self.main_bytes > capacity
        {
            let Some((at, key)) = self.window.pop_first() else {
                break;
            };
            self.leave_window(at, key, capacity, evicted);
        }
        while self.window_bytes + self.main_bytes > capacity {
            let Some((_, key)) = self.main.first_key_value() else {
                break;
            };
            let key = *key;
            self.evict(&key, evicted);
        }
    }

    fn leave_window(&mut self, at: u64, key: Key, capacity: u64, evicted: &mut Vec<Bytes>) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let (bytes, order) = (cost(&entry.data), Order(entry.heat));
        // A window smaller than one block must not swallow the newest.
        let limit = capacity.saturating_sub(capacity / WINDOW).max(bytes);
        let mut victims = Vec::new();
        let (mut freed, mut score) = (0, 0.0);
        for ((heat, _), victim) in &self.main {
            if self.main_bytes + bytes <= limit + freed {
                break;
            }
            freed += self
                .entries
                .get(victim)
                .map_or(0, |entry| cost(&entry.data));
            score += self.clock.score(heat.0);
            victims.push(*victim);
        }
        self.window_bytes -= bytes;
        if score > self.clock.score(order.0) {
            if let Some(entry) = self.entries.remove(&key) {
                self.remember(key, entry.heat);
                evicted.push(entry.data);
            }
            return;
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.place = Place::Main(order, at);
        }
        self.main.insert((order, at), key);
        self.main_bytes += bytes;
        for victim in &victims {
            self.evict(victim, evicted);
        }
    }

    fn evict(&mut self, key: &Key, evicted: &mut Vec<Bytes>) {
        if let Some(entry) = self.remove(key) {
            self.remember(*key, entry.heat);
            evicted.push(entry.data);
        }
    }

    fn remember(&mut self, key: Key, heat: Heat) {
        if self.ghosts.insert(key, heat).is_none() {
            self.ghost_order.push_back(key);
        }
        while self.ghost_order.len() > GHOSTS * self.entries.len().max(64) {
            if let Some(oldest) = self.ghost_order.pop_front() {
                self.ghosts.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        match entry.place {
            Place::Window(at) => {
                self.window.remove(&at);
                self.window_bytes -= cost(&entry.data);
            }
            Place::Main(heat, at) => {
                self.main.remove(&(heat, at));
                self.main_bytes -= cost(&entry.data);
            }
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&n.to_le_bytes());
        Key { digest, hash: 1 }
    }

    fn block(n: u32) -> Bytes {
        Bytes::from(vec![n as u8; 1000])
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_read_often() {
        let memory = Memory::new(100 * (1000 + OVERHEAD));
        for n in 0..50 {
            memory.insert(key(n), block(n), 1.0, 0);
            for _ in 0..5 {
                memory.get(&key(n), 0);
            }
        }
        for n in 1000..2500 {
            memory.insert(key(n), block(n), 1.0, 0);
        }
        let kept = (0..50).filter(|n| memory.contains(&key(*n))).count();
        assert!(
            kept >= 45,
            "{kept} of 50 hot blocks survived a scan of fifteen times the capacity"
        );
    }

    #[test]
    fn never_holds_more_than_its_capacity() {
        let capacity = 40 * 1000;
        let memory = Memory::new(capacity);
        for n in 0..5000u32 {
            let size = (n.wrapping_mul(2_654_435_761) >> 16) as usize % 30_000;
            memory.insert(key(n % 700), Bytes::from(vec![0; size]), 1.0, 0);
            memory.get(&key(n / 2 % 700), 0);
            assert!(memory.usage().1 <= capacity);
        }
        memory.set_capacity(5000);
        assert!(memory.usage().1 <= 5000);
        let ghosts: usize = memory
            .shards
            .iter()
            .map(|shard| shard.lock().ghost_order.len())
            .sum();
        assert!(ghosts <= GHOSTS * 700);
    }

    #[test]
    fn what_is_over_is_not_returned() {
        let memory = Memory::new(1 << 20);
        memory.insert(key(1), block(1), 1.0, 5000);
        assert!(memory.get(&key(1), 4999).is_some());
        assert!(memory.get(&key(1), 5000).is_none());
        assert_eq!(memory.usage(), (0, 0));
    }
}
