//! The exact index of the blocks on disk and in the cold tier: 56 bytes an entry, and a table of 4-byte numbers that finds them.

use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;
use std::{
    hash::BuildHasher,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{log::Position, record::HEADER, segment, slots::Slots, table::Table};
use crate::{cold::Location, heat::Heat, key::Key};

const SHARD_BITS: u32 = 4;
pub(crate) const SHARDS: usize = 1 << SHARD_BITS;
/// Places of the table that are asked of memory at once.
const TOUCHED: usize = 64;
/// Blocks have at most 2^26 bytes; the bits above are flags.
pub(crate) const MOST_LEN: u32 = (1 << 30) - 1;
/// The segment of a block whose bytes are nowhere: it is known because it is pinned, and counts as damaged.
const NOWHERE: u32 = u32::MAX;
/// Set in [`Entry::len`] when the bytes were found damaged.
const DAMAGED: u32 = 1 << 31;
/// Set in [`Entry::len`] when the block is in the cold tier.
const COLD: u32 = 1 << 30;

/// Which tier has a block, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Disk(Position),
    Cold(Location),
}

/// A block on disk or in the cold tier.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    digest: [u8; 32],
    /// Segment or pack. 0 of what is not cold: this slot is free.
    unit: u32,
    offset: u32,
    len: u32,
    /// In seconds since 1970; 0 for never. On disk rounded up, and the record has the exact time; in the cold tier rounded down.
    pub(crate) expiry_s: u32,
    pub(crate) heat: Heat,
    hash: u8,
    pub(crate) codec: u8,
    /// On disk the bytes of the record before the block; in the cold tier [`Location::bound`].
    head: u8,
    /// Number of pin sets that hold it; 255 means 255 or more. A pinned block is on disk.
    pub(crate) pins: u8,
}

impl Entry {
    /// A block on disk.
    #[inline]
    pub(crate) fn new(
        key: Key,
        codec: u8,
        at: Position,
        head: u8,
        len: u32,
        expiry_ms: u64,
        heat: Heat,
    ) -> Entry {
        Entry {
            digest: key.digest,
            hash: key.hash,
            codec,
            unit: at.segment,
            offset: at.offset,
            len: len & !(DAMAGED | COLD),
            expiry_s: seconds(expiry_ms.div_ceil(1000)),
            heat,
            head,
            pins: 0,
        }
    }

    /// A block in the cold tier.
    #[inline]
    pub(crate) fn cold(
        key: Key,
        codec: u8,
        at: Location,
        len: u32,
        expiry_s: u32,
        heat: Heat,
    ) -> Entry {
        Entry {
            digest: key.digest,
            hash: key.hash,
            codec,
            unit: at.pack,
            offset: at.offset,
            len: len & !(DAMAGED | COLD) | COLD,
            expiry_s,
            heat,
            head: at.bound,
            pins: 0,
        }
    }

    /// A block that is pinned and whose bytes are lost.
    pub(crate) fn lost(key: Key, codec: u8) -> Entry {
        let nowhere = Position {
            segment: NOWHERE,
            offset: 0,
        };
        let mut entry = Entry::new(key, codec, nowhere, 0, 0, 0, f32::NEG_INFINITY);
        entry.set_damaged();
        entry
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.unit == NOWHERE && !self.is_cold()
    }

    #[inline]
    pub(crate) fn key(&self) -> Key {
        Key {
            digest: self.digest,
            hash: self.hash,
        }
    }

    pub(crate) fn place(&self) -> Place {
        if self.is_cold() {
            Place::Cold(Location {
                pack: self.unit,
                offset: self.offset,
                bound: self.head,
            })
        } else {
            Place::Disk(Position {
                segment: self.unit,
                offset: self.offset,
            })
        }
    }

    /// Where it is on disk, if it is.
    pub(crate) fn position(&self) -> Option<Position> {
        match self.place() {
            Place::Disk(at) => Some(at),
            Place::Cold(_) => None,
        }
    }

    /// Where it is in the cold tier, if it is.
    pub(crate) fn location(&self) -> Option<Location> {
        match self.place() {
            Place::Cold(at) => Some(at),
            Place::Disk(_) => None,
        }
    }

    pub(crate) fn is_cold(&self) -> bool {
        self.len & COLD != 0
    }

    /// The same record was copied to another place on disk.
    pub(crate) fn move_on_disk(&mut self, to: Position) {
        (self.unit, self.offset) = (to.segment, to.offset);
        self.len &= !COLD;
    }

    /// It is in the cold tier from now on.
    pub(crate) fn move_to_cold(&mut self, to: Location, expiry_s: u32) {
        (self.unit, self.offset, self.head) = (to.pack, to.offset, to.bound);
        self.len |= COLD;
        self.expiry_s = expiry_s;
    }

    /// Bytes of the block.
    pub(crate) fn len(&self) -> u32 {
        self.len & !(DAMAGED | COLD)
    }

    /// Bytes of the record before the block; on disk only.
    pub(crate) fn head(&self) -> u8 {
        self.head
    }

    /// Bytes of the record; on disk only.
    pub(crate) fn record_len(&self) -> u64 {
        u64::from(self.head) + u64::from(self.len())
    }

    /// Bytes that it takes on the disk: none in the cold tier.
    pub(crate) fn footprint(&self) -> u64 {
        if self.is_cold() || self.is_lost() {
            return 0;
        }
        let key_len = u64::from(self.head).saturating_sub(HEADER as u64);
        segment::footprint(self.record_len(), key_len)
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.len & DAMAGED != 0
    }

    pub(crate) fn set_damaged(&mut self) {
        self.len |= DAMAGED;
    }

    /// Whether its time is over. A pin suspends the time to live.
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        self.expiry_s != 0 && self.pins == 0 && u64::from(self.expiry_s) * 1000 <= now_ms
    }

    /// Whether a reader may be told that it is here.
    pub(crate) fn is_present(&self, now_ms: u64) -> bool {
        !self.is_damaged() && !self.is_expired(now_ms)
    }

    fn is_free(&self) -> bool {
        self.unit == 0 && !self.is_cold()
    }
}

pub(crate) fn seconds(s: u64) -> u32 {
    u32::try_from(s).unwrap_or(u32::MAX)
}

/// Names an entry for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EntryId(pub(crate) u32);

impl EntryId {
    pub(crate) fn shard_and_slot(self) -> (usize, usize) {
        (self.0 as usize % SHARDS, (self.0 >> SHARD_BITS) as usize)
    }
}

pub(crate) struct Index {
    shards: Vec<Mutex<Shard>>,
    hasher: DefaultHashBuilder,
    len: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    table: Table,
    slots: Slots,
    free: Vec<u32>,
    /// Slots that became free while ids were frozen.
    frozen: Vec<u32>,
    is_frozen: bool,
}

impl Shard {
    fn find(&self, hash: u64, key: &Key) -> Option<u32> {
        self.table.find(hash, |at| {
            self.slots.get(at).is_some_and(|entry| entry.key() == *key)
        })
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter(|entry| !entry.is_free())
    }

    /// Inserts, or replaces what has the key; then pins and heat of the old entry stay.
    fn insert(
        &mut self,
        hasher: &DefaultHashBuilder,
        hash: u64,
        mut entry: Entry,
    ) -> Option<(u32, Option<Entry>)> {
        let key = entry.key();
        if self.table.is_full() && self.find(hash, &key).is_none() {
            self.grow(hasher, 0);
        }
        let next = match self.free.last() {
            Some(at) => *at,
            None => self.end()?,
        };
        let slots = &self.slots;
        let found = self.table.find_or_insert(hash, next, |at| {
            slots.get(at).is_some_and(|entry| entry.key() == key)
        });
        if let Some(found) = found {
            let old = self.slots.get_mut(found)?;
            entry.pins = old.pins;
            entry.heat = entry.heat.max(old.heat);
            return Some((found, Some(std::mem::replace(old, entry))));
        }
        if self.free.pop().is_some() {
            *self.slots.get_mut(next)? = entry;
        } else {
            self.slots.push(entry);
        }
        Some((next, None))
    }

    /// The first slot that never had an entry; `None` if ids have no bits for it.
    fn end(&self) -> Option<u32> {
        u32::try_from(self.slots.len())
            .ok()
            .filter(|end| *end < 1 << (u32::BITS - SHARD_BITS))
    }

    /// Gives the table more places, for `least` members at least.
    fn grow(&mut self, hasher: &DefaultHashBuilder, least: usize) {
        self.table.clear_and_grow(least);
        for (at, entry) in (0..).zip(self.slots.iter()) {
            if !entry.is_free() {
                self.table.insert(hasher.hash_one(entry.key()), at);
            }
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Index {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            len: AtomicUsize::new(0),
        }
    }
}

impl Index {
    #[inline]
    fn hash(&self, key: &Key) -> (u64, usize) {
        let hash = self.hasher.hash_one(key);
        // The table uses the top bits and the low eight.
        (hash, (hash >> 8) as usize % SHARDS)
    }

    /// Makes room for this many entries at once.
    pub(crate) fn reserve(&self, entries: usize) {
        for shard in &self.shards {
            // Shards differ by a few standard deviations of a binomial distribution.
            let (share, mut shard) = (entries / SHARDS, shard.lock());
            shard.grow(&self.hasher, share + 4 * share.isqrt());
            shard.slots.reserve(share);
        }
    }

    /// The hash of a key, and the part of the index that has it, if it is there.
    #[inline]
    pub(crate) fn hash_and_shard(&self, key: &Key) -> (u64, usize) {
        self.hash(key)
    }

    /// Inserts entries of one shard, each with its hash, in their order, and puts their ids at the end of `ids`; `None` if the index is
    /// full.
    pub(crate) fn insert_all(
        &self,
        number: usize,
        entries: &[(u64, Entry)],
        ids: &mut Vec<EntryId>,
    ) -> Option<()> {
        let mut shard = self.shards.get(number)?.lock();
        let mut new = 0;
        let inserted = entries.chunks(TOUCHED).try_for_each(|some| {
            shard.table.touch(some.iter().map(|(hash, _)| *hash));
            some.iter().try_for_each(|(hash, entry)| {
                let (slot, old) = shard.insert(&self.hasher, *hash, *entry)?;
                new += usize::from(old.is_none());
                ids.push(id(slot, number));
                Some(())
            })
        });
        // Once for all: others add to it from other threads.
        self.len.fetch_add(new, Relaxed);
        inserted
    }

    fn with<T>(&self, key: &Key, f: impl FnOnce(EntryId, &mut Entry) -> T) -> Option<T> {
        let (hash, number) = self.hash(key);
        let mut shard = self.shards.get(number)?.lock();
        let found = shard.find(hash, key)?;
        Some(f(id(found, number), shard.slots.get_mut(found)?))
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Entry> {
        self.with(key, |_, entry| *entry)
    }

    pub(crate) fn id(&self, key: &Key) -> Option<EntryId> {
        self.with(key, |id, _| id)
    }

    pub(crate) fn update(&self, key: &Key, f: impl FnOnce(&mut Entry)) -> Option<Entry> {
        self.with(key, |_, entry| {
            f(entry);
            *entry
        })
    }

    pub(crate) fn by_id(&self, id: EntryId) -> Option<Entry> {
        let shard = self.shards.get(id.0 as usize % SHARDS)?.lock();
        shard
            .slots
            .get(id.0 >> SHARD_BITS)
            .filter(|entry| !entry.is_free())
            .copied()
    }

    pub(crate) fn update_id(&self, id: EntryId, f: impl FnOnce(&mut Entry)) {
        let (shard, at) = id.shard_and_slot();
        let mut shard = match self.shards.get(shard) {
            Some(shard) => shard.lock(),
            None => return,
        };
        if let Some(entry) = u32::try_from(at)
            .ok()
            .and_then(|at| shard.slots.get_mut(at))
        {
            f(entry);
        }
    }

    /// Inserts, or replaces what has the key; then pins and heat of the old entry stay. Returns the old one.
    pub(crate) fn insert(&self, entry: Entry) -> Option<Entry> {
        self.insert_at(entry)?.1
    }

    /// The same, and the id of the entry; `None` if the index is full, at 2^28 blocks a shard.
    pub(crate) fn insert_at(&self, entry: Entry) -> Option<(EntryId, Option<Entry>)> {
        let (hash, number) = self.hash(&entry.key());
        let mut shard = self.shards.get(number)?.lock();
        let (at, old) = shard.insert(&self.hasher, hash, entry)?;
        if old.is_none() {
            self.len.fetch_add(1, Relaxed);
        }
        Some((id(at, number), old))
    }

    pub(crate) fn remove(&self, key: &Key) -> Option<Entry> {
        let (hash, number) = self.hash(key);
        let mut shard = self.shards.get(number)?.lock();
        let Shard {
            table,
            slots,
            free,
            frozen,
            is_frozen,
        } = &mut *shard;
        let at = table.remove(
            hash,
            |at| slots.get(at).is_some_and(|entry| entry.key() == *key),
            |at| {
                slots
                    .get(at)
                    .map_or(0, |entry| self.hasher.hash_one(entry.key()))
            },
        )?;
        if *is_frozen { frozen } else { free }.push(at);
        let entry = slots.get_mut(at)?;
        let old = *entry;
        (entry.unit, entry.len) = (0, 0);
        self.len.fetch_sub(1, Relaxed);
        Some(old)
    }

    /// From now on no entry gets an id that another had.
    pub(crate) fn freeze_ids(&self) {
        for shard in &self.shards {
            shard.lock().is_frozen = true;
        }
    }

    /// Ids may be used again.
    pub(crate) fn thaw_ids(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.is_frozen = false;
            let mut frozen = std::mem::take(&mut shard.frozen);
            shard.free.append(&mut frozen);
        }
    }

    /// Lowers every heat, as the clock was set back.
    pub(crate) fn cool(&self, by: Heat) {
        for shard in &self.shards {
            for entry in shard.lock().slots.iter_mut() {
                entry.heat -= by;
            }
        }
    }

    /// Calls `f` with every entry, a shard at a time.
    pub(crate) fn for_each(&self, f: impl FnMut(&Entry)) {
        self.for_each_of(0..SHARDS, f);
    }

    /// The same for some shards.
    pub(crate) fn for_each_of(&self, shards: Range<usize>, mut f: impl FnMut(&Entry)) {
        for shard in self.shards.get(shards).unwrap_or_default() {
            shard.lock().entries().for_each(&mut f);
        }
    }

    /// The entries of one shard; `None` past the last.
    pub(crate) fn shard(&self, number: usize) -> Option<Vec<Entry>> {
        let shard = self.shards.get(number)?.lock();
        Some(shard.entries().copied().collect())
    }

    /// The entries of one shard in the order of their ids, with them; `None` past the last.
    pub(crate) fn shard_with_ids(&self, number: usize) -> Option<Vec<(EntryId, Entry)>> {
        let shard = self.shards.get(number)?.lock();
        let entries = shard.slots.iter().enumerate();
        let used = entries.filter(|(_, entry)| !entry.is_free());
        Some(
            used.filter_map(|(at, entry)| Some((id(u32::try_from(at).ok()?, number), *entry)))
                .collect(),
        )
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> u64 {
        let of = |shard: &Shard| {
            shard.table.bytes()
                + shard.slots.bytes()
                + (shard.free.capacity() + shard.frozen.capacity()) * 4
        };
        self.shards
            .iter()
            .map(|shard| of(&shard.lock()) as u64)
            .sum()
    }
}

fn id(slot: u32, shard: usize) -> EntryId {
    EntryId(slot << SHARD_BITS | shard as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::pins::Pins;

    fn key(n: u64) -> Key {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&n.to_le_bytes());
        Key { digest, hash: 1 }
    }

    fn entry(n: u64, offset: u32) -> Entry {
        Entry::new(key(n), 1, Position { segment: 1, offset }, 72, 10, 0, 0.0)
    }

    #[test]
    fn takes_at_most_64_bytes_a_block_at_every_size_with_a_time_and_two_pins_each() {
        assert_eq!(size_of::<Entry>(), 56);
        let (index, mut pins) = (Index::default(), Pins::default());
        let mut worst: f64 = 0.0;
        for n in 0..1_000_000u64 {
            let mut entry = entry(n, 0);
            entry.expiry_s = 1_000_000 + n as u32;
            index.insert(entry);
            pins.pin(&index, "everything", &key(n));
            if n % 7 == 0 {
                pins.pin(&index, "something", &key(n));
            }
            if n >= 200_000 && n % 5000 == 0 || n == 999_999 {
                let bytes = (index.bytes() + pins.bytes()) as f64 / (n + 1) as f64;
                worst = worst.max(bytes);
            }
        }
        println!(
            "at most {worst:.1} bytes a block, {:.1} at a million",
            (index.bytes() + pins.bytes()) as f64 / 1e6
        );
        assert!(worst <= 64.0, "{worst} bytes a block");
    }

    #[test]
    fn ids_survive_other_entries_and_slots_are_used_again() {
        ids_survive(Index::default());
        // Fewer and more than come.
        for known in [1, 2000, 20_000] {
            let index = Index::default();
            index.reserve(known);
            ids_survive(index);
        }
    }

    fn ids_survive(index: Index) {
        for n in 0..5000 {
            assert!(index.insert(entry(n, n as u32)).is_none());
        }
        let id = index.id(&key(4321)).unwrap();
        for n in 0..4000 {
            assert_eq!(index.remove(&key(n)).unwrap().offset, n as u32);
        }
        assert!(index.get(&key(17)).is_none());
        assert_eq!(index.by_id(id).unwrap().offset, 4321);
        let bytes = index.bytes();
        for n in 10_000..13_000 {
            index.insert(entry(n, n as u32));
        }
        assert_eq!((index.bytes(), index.len()), (bytes, 4000));
        assert_eq!(index.by_id(id).unwrap().offset, 4321);
        let with_ids = (0..SHARDS).flat_map(|number| index.shard_with_ids(number).unwrap());
        let mut count = 0;
        for (id, entry) in with_ids {
            assert_eq!(index.id(&entry.key()), Some(id));
            count += 1;
        }
        assert_eq!(count, 4000);
    }
}
