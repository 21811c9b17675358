//! The handle.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use futures::{
    StreamExt,
    channel::oneshot,
    stream::{self, BoxStream},
};

use crate::{
    Config, DeleteError, DiskStats, GcReport, GetError, MIN_DISK_CAPACITY, MaintenanceError,
    MemoryStats, OpenError, PinError, PutError, PutOptions, ScrubReport, Stats, ValueError,
    commit::{self, Delete, Op, Origin, Put},
    disk::recovery,
    pinning::{self, Pinned},
    scrub,
    state::{Read, Shared},
    upkeep, values,
};

/// Blocks of [`Store::put_many`] that are on their way at once; the queue's bytes limit them too.
const PUTS_AT_ONCE: usize = 1024;

/// An open store. Cheap to clone; all clones are the same store.
///
/// Dropping the last clone is safe at any time: whatever was acknowledged is there at the next opening, which
/// [`close`](Store::close) makes faster. A write whose future is dropped while it waits in the queue is carried out all the same.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.shared.dir)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a directory, creating it if it is missing, and recovers what a crash left.
    ///
    /// The directory is locked until the store is closed or dropped; a second opener gets [`OpenError::Locked`].
    pub async fn open(config: Config) -> Result<Store, OpenError> {
        let shared = blocking::unblock(move || recovery::open(config)).await?;
        Ok(Store {
            shared: Arc::new(shared),
        })
    }

    /// Stores a block; durable when it returns, if the configuration does not say otherwise. A block that is there already costs
    /// nothing. The caller vouches that `data` has the hash in `cid`.
    pub async fn put(&self, cid: Cid, data: Bytes) -> Result<(), PutError> {
        self.put_with(cid, data, PutOptions::default()).await
    }

    /// Stores a block with a time to live, an importance, a pin.
    pub async fn put_with(
        &self,
        cid: Cid,
        data: Bytes,
        options: PutOptions,
    ) -> Result<(), PutError> {
        self.put_shared(cid, data, Arc::new(options)).await
    }

    /// Stores blocks, many at a time. On an error some of them may be stored.
    pub async fn put_many(
        &self,
        blocks: Vec<(Cid, Bytes)>,
        options: PutOptions,
    ) -> Result<(), PutError> {
        let options = Arc::new(options);
        let mut puts = stream::iter(blocks)
            .map(|(cid, data)| self.put_shared(cid, data, options.clone()))
            .buffer_unordered(PUTS_AT_ONCE);
        while let Some(put) = puts.next().await {
            put?;
        }
        Ok(())
    }

    async fn put_shared(
        &self,
        cid: Cid,
        data: Bytes,
        options: Arc<PutOptions>,
    ) -> Result<(), PutError> {
        let most = self.shared.config.max_block_bytes;
        if data.len() as u64 > u64::from(most) {
            return Err(PutError::TooLarge {
                size: data.len() as u64,
                most,
            });
        }
        if options
            .pin
            .as_ref()
            .is_some_and(|set| !pinning::is_name(set))
        {
            return Err(PutError::Name);
        }
        let (reply, answer) = oneshot::channel();
        let put = Put {
            cid,
            crc: crc32c::crc32c(&data),
            data,
            options,
            origin: Origin::User,
            reply,
        };
        commit::submit(&self.shared, Op::Put(put)).await?;
        answer.await.unwrap_or(Err(PutError::Closed)).map(drop)
    }

    /// The block, from memory or with one read from the disk; `None` if it is not here or its time is over.
    pub async fn get(&self, cid: &Cid) -> Result<Option<Bytes>, GetError> {
        match self.get_from_memory(cid)? {
            Lookup::Here(data) => Ok(Some(data)),
            Lookup::Absent => Ok(None),
            Lookup::OnDisk => {
                let (shared, cid) = (self.shared.clone(), *cid);
                blocking::unblock(move || get_from_disk(&shared, &cid)).await
            }
        }
    }

    /// Many blocks, in the order of `cids`. All of them are in memory at the end: ask for a few at a time.
    pub async fn get_many(&self, cids: &[Cid]) -> Vec<Result<Option<Bytes>, GetError>> {
        let mut results = Vec::with_capacity(cids.len());
        let mut on_disk = Vec::new();
        for (number, cid) in cids.iter().enumerate() {
            results.push(match self.get_from_memory(cid) {
                Ok(Lookup::Here(data)) => Ok(Some(data)),
                Ok(Lookup::Absent) => Ok(None),
                Ok(Lookup::OnDisk) => {
                    on_disk.push((number, *cid));
                    Ok(None)
                }
                Err(error) => Err(error),
            });
        }
        if !on_disk.is_empty() {
            let shared = self.shared.clone();
            let read = blocking::unblock(move || {
                let place = |cid: &Cid| {
                    shared
                        .kinds
                        .find(cid)
                        .and_then(|key| shared.index.get(&key))
                        .and_then(|entry| entry.position())
                        .map(|at| (at.segment, at.offset))
                };
                on_disk.sort_by_cached_key(|(_, cid)| place(cid));
                on_disk
                    .into_iter()
                    .map(|(number, cid)| (number, get_from_disk(&shared, &cid)))
                    .collect::<Vec<_>>()
            })
            .await;
            for (number, result) in read {
                if let Some(place) = results.get_mut(number) {
                    *place = result;
                }
            }
        }
        results
    }

    fn get_from_memory(&self, cid: &Cid) -> Result<Lookup, GetError> {
        let shared = &self.shared;
        if shared.is_closed() {
            return Err(GetError::Closed);
        }
        let now = shared.vfs.now_ms();
        let clock = shared.clock.tick(shared.index.len());
        let found = shared.kinds.find(cid).and_then(|key| {
            let entry = shared
                .index
                .update(&key, |entry| entry.heat = clock.touched(entry.heat))?;
            Some((key, entry))
        });
        let Some((key, entry)) = found.filter(|(_, entry)| !entry.is_expired(now)) else {
            shared.counters.misses.add(1);
            return Ok(Lookup::Absent);
        };
        if entry.is_damaged() {
            return Err(GetError::Corrupt { cid: *cid });
        }
        match shared.memory.get(&key, now) {
            Some(data) => {
                shared.counters.memory_hits.add(1);
                Ok(Lookup::Here(data))
            }
            None => Ok(Lookup::OnDisk),
        }
    }

    /// Whether a block is here. Never touches the disk. A time to live counts in whole seconds here, rounded up; `get` is exact.
    pub fn has(&self, cid: &Cid) -> bool {
        self.size(cid).is_some()
    }

    /// The size of a block in bytes. Never touches the disk.
    pub fn size(&self, cid: &Cid) -> Option<u32> {
        let key = self.shared.kinds.find(cid)?;
        let entry = self.shared.index.get(&key)?;
        entry
            .is_present(self.shared.vfs.now_ms())
            .then(|| entry.len())
    }

    /// Forgets a block; `false` if it was not here. Durable when it returns. A pinned block is refused.
    pub async fn delete(&self, cid: &Cid) -> Result<bool, DeleteError> {
        let (reply, answer) = oneshot::channel();
        commit::submit(&self.shared, Op::Delete(Delete { cid: *cid, reply })).await?;
        answer.await.unwrap_or(Err(DeleteError::Closed))
    }

    /// Adds blocks to a pin set, creating it. Pinned blocks are never evicted, expired or deleted. All or nothing, durable when it
    /// returns; every block must be here.
    pub async fn pin(&self, set: &str, cids: &[Cid]) -> Result<(), PinError> {
        let (set, cids) = (set.to_owned(), cids.to_vec());
        let pinned = commit::task(&self.shared, move |shared, log| {
            pinning::pin(shared, log, &set, &cids)
        })
        .await??;
        match pinned {
            Pinned::Cold(cids) => match cids.first() {
                Some(cid) => Err(PinError::ColdTier { cid: *cid }),
                None => Ok(()),
            },
            Pinned::Done => Ok(()),
        }
    }

    /// Takes blocks out of a pin set; those that are not in it are passed over. An empty set ceases to exist.
    pub async fn unpin(&self, set: &str, cids: &[Cid]) -> Result<(), PinError> {
        let (set, cids) = (set.to_owned(), cids.to_vec());
        commit::task(&self.shared, move |shared, log| {
            pinning::unpin(shared, log, &set, &cids)
        })
        .await?
    }

    /// Renames a pin set. The new name must be free.
    pub async fn rename_pin_set(&self, from: &str, to: &str) -> Result<(), PinError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        commit::task(&self.shared, move |shared, log| {
            pinning::rename(shared, log, &from, &to)
        })
        .await?
    }

    /// Drops a pin set and with it its pins; nothing happens if there is none. The blocks stay until their room is needed.
    pub async fn drop_pin_set(&self, set: &str) -> Result<(), PinError> {
        let set = set.to_owned();
        commit::task(&self.shared, move |shared, log| {
            pinning::drop_set(shared, log, &set)
        })
        .await?
    }

    /// The names of all pin sets, sorted.
    pub fn pin_sets(&self) -> Vec<String> {
        self.shared.pins.read().names()
    }

    /// The members of a pin set, in no particular order; none if it does not exist.
    pub fn pins(&self, set: &str) -> Vec<Cid> {
        let members = self.shared.pins.read().members(set);
        let entries = members
            .into_iter()
            .filter_map(|id| self.shared.index.by_id(id));
        entries
            .filter_map(|entry| self.shared.kinds.cid(&entry.key(), entry.codec))
            .collect()
    }

    /// Whether a block is in any pin set.
    pub fn is_pinned(&self, cid: &Cid) -> bool {
        let entry = self
            .shared
            .kinds
            .find(cid)
            .and_then(|key| self.shared.index.get(&key));
        entry.is_some_and(|entry| entry.pins > 0)
    }

    /// The CIDs of all blocks, as they were first put, in no particular order. Taken in sixteen pieces: what is put or deleted meanwhile
    /// may or may not show. Never touches the disk.
    pub fn iter(&self) -> impl Iterator<Item = Cid> + Send + use<> {
        let shared = self.shared.clone();
        let now = shared.vfs.now_ms();
        let pieces = (0..).map_while({
            let shared = shared.clone();
            move |number| shared.index.shard(number)
        });
        pieces
            .flatten()
            .filter(move |entry| entry.is_present(now))
            .filter_map(move |entry| shared.kinds.cid(&entry.key(), entry.codec))
    }

    /// All blocks with their bytes, in the order in which they lie on the disk. They are not offered to the memory tier and do not count as reads.
    pub fn scan(&self) -> BoxStream<'static, Result<(Cid, Bytes), GetError>> {
        scrub::scan(self.shared.clone()).boxed()
    }

    /// Reads blocks into the memory tier, as far as it takes them. Returns how many are there afterwards; absent and damaged ones are passed over.
    pub async fn warm(&self, cids: &[Cid]) -> usize {
        let (shared, cids) = (self.shared.clone(), cids.to_vec());
        blocking::unblock(move || {
            for cid in &cids {
                let Some(key) = shared.kinds.find(cid) else {
                    continue;
                };
                if !shared.memory.contains(&key)
                    && let Ok(Read::Here(data, expiry_ms)) = shared.read_block(&key, cid)
                {
                    shared.remember(key, &data, expiry_ms);
                }
            }
            let is_there = |cid: &&Cid| {
                shared
                    .kinds
                    .find(cid)
                    .is_some_and(|key| shared.memory.contains(&key))
            };
            cids.iter().filter(is_there).count()
        })
        .await
    }

    /// Stores a small value under a key, replacing an old one; durable when it returns. Values are not evicted.
    pub async fn put_value(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<(), ValueError> {
        let key = key.to_owned();
        let crc = crc32c::crc32c(&value);
        commit::task(&self.shared, move |shared, log| {
            values::put(shared, log, key, value, crc, ttl)
        })
        .await?
    }

    /// The value of a key, unless its time is over.
    pub async fn get_value(&self, key: &str) -> Result<Option<Bytes>, ValueError> {
        if self.shared.is_closed() {
            return Err(ValueError::Closed);
        }
        if !self.shared.values.read().contains_key(key) {
            return Ok(None);
        }
        let (shared, key) = (self.shared.clone(), key.to_owned());
        blocking::unblock(move || shared.read_value(&key)).await
    }

    /// Forgets the value of a key; `false` if there was none.
    pub async fn delete_value(&self, key: &str) -> Result<bool, ValueError> {
        let key = key.to_owned();
        commit::task(&self.shared, move |shared, log| {
            values::delete(shared, log, &key)
        })
        .await?
    }

    /// Makes everything durable that was put with [`Durability::Relaxed`](crate::Durability::Relaxed).
    pub async fn flush(&self) -> Result<(), MaintenanceError> {
        Ok(commit::task(&self.shared, |shared, log| log.sync(shared)).await??)
    }

    /// Forgets what is over and gives all garbage back that can be had, without regard to the I/O budget.
    pub async fn gc(&self) -> Result<GcReport, MaintenanceError> {
        Ok(commit::task(&self.shared, upkeep::gc).await??)
    }

    /// Reads every block and compares checksum and hash. Damaged ones count as absent afterwards.
    pub async fn scrub(&self) -> Result<ScrubReport, MaintenanceError> {
        if self.shared.is_closed() {
            return Err(MaintenanceError::Closed);
        }
        let shared = self.shared.clone();
        blocking::unblock(move || scrub::scrub(&shared)).await
    }

    /// Changes the bytes that the tiers may take. A smaller disk tier evicts and compacts before this returns.
    pub async fn set_capacity(&self, memory: u64, disk: u64) -> Result<(), MaintenanceError> {
        if disk < MIN_DISK_CAPACITY {
            return Err(MaintenanceError::Capacity {
                asked: disk,
                least: MIN_DISK_CAPACITY,
            });
        }
        commit::task(&self.shared, move |shared, log| {
            upkeep::set_capacity(shared, log, memory, disk)
        })
        .await?
    }

    /// Bytes that a new pinned add may take: blocks with about 140 bytes for each.
    pub fn room_for_pinned(&self) -> u64 {
        self.shared
            .live_limit()
            .saturating_sub(self.shared.fixed_bytes())
    }

    /// Figures: what is stored, and what happened since opening. Cheap.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let counters = &shared.counters;
        let (memory_blocks, memory_bytes) = shared.memory.usage();
        let pins = shared.pins.read();
        Stats {
            memory: MemoryStats {
                blocks: memory_blocks,
                bytes: memory_bytes,
                capacity: shared.memory.capacity(),
                hits: counters.memory_hits.get(),
                promotions: counters.promotions.get(),
                evictions: shared.memory.evictions.load(Relaxed),
            },
            disk: DiskStats {
                blocks: shared.index.len() as u64,
                live_bytes: counters.live.get(),
                pinned_bytes: counters.pinned.get(),
                used_bytes: counters.used.get(),
                garbage_bytes: counters.used.get().saturating_sub(counters.live.get()),
                capacity: shared.capacity(),
                segments: counters.segments.get(),
                hits: counters.disk_hits.get(),
                evictions: counters.evictions.get(),
                expirations: counters.expirations.get(),
                corruptions: counters.corruptions.get(),
                compactions: counters.compactions.get(),
                user_bytes: counters.user_bytes.get(),
                written_bytes: counters.written.get(),
                syncs: counters.syncs.get(),
                batches: counters.batches.get(),
                poisoned_segments: counters.poisoned.get(),
                index_bytes: shared.index.bytes() + pins.bytes(),
            },
            misses: counters.misses.get(),
            puts: counters.puts.get(),
            duplicate_puts: counters.duplicate_puts.get(),
            pin_sets: pins.len() as u64,
            values: shared.values.read().len() as u64,
        }
    }

    /// Writes what waits, then a checkpoint, and releases the directory. Later calls on any clone fail with `Closed`. Calling it again does nothing.
    pub async fn close(&self) -> Result<(), MaintenanceError> {
        match commit::task(&self.shared, upkeep::close).await {
            Ok(result) => Ok(result?),
            Err(crate::error::WriteFailure::Closed) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }
}

enum Lookup {
    Here(Bytes),
    OnDisk,
    Absent,
}

fn get_from_disk(shared: &Shared, cid: &Cid) -> Result<Option<Bytes>, GetError> {
    let Some(key) = shared.kinds.find(cid) else {
        return Ok(None);
    };
    let read = shared.read_block(&key, cid)?;
    match read {
        Read::Here(data, expiry_ms) => {
            shared.counters.disk_hits.add(1);
            shared.remember(key, &data, expiry_ms);
            Ok(Some(data))
        }
        Read::Cold(_) | Read::Absent => {
            shared.counters.misses.add(1);
            Ok(None)
        }
    }
}
