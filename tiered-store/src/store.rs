//! The handle.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cid::Cid;
use futures::{
    FutureExt, StreamExt,
    channel::oneshot,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use multihash::Multihash;

use crate::{
    Config, DeleteError, GcReport, GetError, MIN_DISK_CAPACITY, MaintenanceError, OpenError,
    PinError, PutError, PutOptions, ScrubReport, Stats, ValueError,
    blocking_store::{BlockingStore, block_on},
    commit::{self, Delete, DeleteValue, Op, Origin, Pin, Put, PutValue, Unpin},
    disk::{index::Entry, recovery},
    flight::Flights,
    key::Key,
    pinning::{self, Pinned},
    placement, read_through, scrub,
    state::{Read, Shared},
    tiers::{self, GcError, Mover},
    upkeep, values,
};

/// Blocks of [`Store::put_many`] that are on their way at once; the queue's bytes limit them too.
const PUTS_AT_ONCE: usize = 1024;

/// Reads of [`Store::get_many`] that run at once.
const READS_AT_ONCE: usize = 16;

/// Times that a pin looks again for blocks that left the disk since it brought them there.
const PIN_ATTEMPTS: usize = 5;

/// An open store. Cheap to clone; all clones are the same store.
///
/// Dropping the last clone is safe at any time: whatever was acknowledged is there at the next opening, which
/// [`close`](Store::close) makes faster.
///
/// # Cancellation
///
/// Every future may be dropped at any time. A write (`put`, `delete`, `pin`, values, upkeep) that waits for room in the queue is
/// undone by it, one that is in the queue is carried out all the same. A read is given up; one that others wait for too goes
/// on for them. Limit the time of any call with your runtime's timeout; requests to the cold tier and to a
/// [`Source`](crate::Source) have limits of their own.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    inner: Arc<Inner>,
}

/// What the handles share, and the writing job does not keep alive.
pub(crate) struct Inner {
    pub(crate) mover: Option<Arc<Mover>>,
    source: Option<read_through::Origin>,
    reads: Arc<Flights<Key, Found>>,
    fetches: Arc<Flights<Multihash<64>, Found>>,
}

type Found = Result<Option<Bytes>, GetError>;

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(mover) = &self.mover {
            mover.stop();
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.shared.dir)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a directory, creating it if it is missing, and recovers what a crash left. A cold tier is not asked for it: the store opens
    /// while that does not answer.
    ///
    /// The directory is locked until the store is closed or dropped; a second opener gets [`OpenError::Locked`].
    pub async fn open(config: Config) -> Result<Store, OpenError> {
        let source = read_through::Origin::new(&config);
        let (shared, mover) = blocking::unblock(move || {
            let shared = Arc::new(recovery::open(config)?);
            let mover = tiers::attach(&shared)?;
            upkeep::start_timer(&shared);
            Ok((shared, mover))
        })
        .await?;
        let inner = Inner {
            mover,
            source,
            reads: Arc::default(),
            fetches: Arc::default(),
        };
        Ok(Store {
            shared,
            inner: Arc::new(inner),
        })
    }

    /// The same store for callers that are not async.
    pub fn blocking(&self) -> BlockingStore {
        BlockingStore::new(self.clone())
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
        put_shared(&self.shared, cid, data, options).await?;
        if let Some(mover) = &self.inner.mover {
            mover.on_put(&self.shared);
        }
        Ok(())
    }

    /// The block: from memory, with one read from the disk, with one request from the cold tier, or from the
    /// [`Source`](crate::Source). `None` if none of them has it, or its time is over.
    ///
    /// Gets of one block at the same time share the read, and its error.
    pub async fn get(&self, cid: &Cid) -> Result<Option<Bytes>, GetError> {
        match self.get_local(cid).await? {
            Some(data) => Ok(Some(data)),
            None => self.get_from_source(cid).await,
        }
    }

    /// Like [`get`](Self::get), without the [`Source`](crate::Source): what to answer others with, who would ask it by way of this store.
    pub async fn get_local(&self, cid: &Cid) -> Result<Option<Bytes>, GetError> {
        match self.get_from_memory(cid)? {
            Lookup::Here(data) => Ok(Some(data)),
            Lookup::Absent => Ok(None),
            Lookup::Below(key) => self.get_from_below(key, *cid).await,
        }
    }

    /// Many blocks, in the order of `cids`. All of them are in memory at the end: ask for a few at a time. Those on the disk are read in the
    /// order in which they lie there, several at once, those in the cold tier and at the source beside them.
    pub async fn get_many(&self, cids: &[Cid]) -> Vec<Result<Option<Bytes>, GetError>> {
        let mut results = Vec::with_capacity(cids.len());
        let mut below = Vec::new();
        for (number, cid) in cids.iter().enumerate() {
            results.push(match self.get_from_memory(cid) {
                Ok(Lookup::Here(data)) => Ok(Some(data)),
                Ok(Lookup::Absent) => {
                    if self.inner.source.is_some() {
                        below.push((number, *cid, None));
                    }
                    Ok(None)
                }
                Ok(Lookup::Below(key)) => {
                    below.push((number, *cid, Some(key)));
                    Ok(None)
                }
                Err(error) => Err(error),
            });
        }
        let (mut on_disk, mut elsewhere) = (Vec::new(), Vec::new());
        for (number, cid, key) in below {
            let entry = key.and_then(|key| self.shared.index.get(&key));
            match (key, entry.and_then(|entry| entry.position())) {
                (Some(key), Some(at)) => on_disk.push(((at.segment, at.offset), number, cid, key)),
                (key, _) => elsewhere.push((number, cid, key)),
            }
        }
        on_disk.sort_unstable_by_key(|(at, ..)| *at);
        let length = on_disk.len().div_ceil(READS_AT_ONCE).max(1);
        let sweeps = on_disk.chunks(length).map(|sweep| {
            let (shared, sweep) = (self.shared.clone(), sweep.to_vec());
            blocking::unblock(move || {
                sweep
                    .into_iter()
                    .map(|(_, number, cid, key)| {
                        (number, cid, key, get_from_disk(&shared, &key, &cid))
                    })
                    .collect::<Vec<_>>()
            })
        });
        for sweep in futures::future::join_all(sweeps).await {
            for (number, cid, key, read) in sweep {
                match read {
                    Ok(OnDisk::Here(data)) => set(&mut results, number, Ok(Some(data))),
                    Ok(OnDisk::Cold) => elsewhere.push((number, cid, Some(key))),
                    Ok(OnDisk::Absent) => elsewhere.push((number, cid, None)),
                    Err(error) => set(&mut results, number, Err(error)),
                }
            }
        }
        let mut others = stream::iter(elsewhere)
            .map(|(number, cid, key)| async move {
                let found = match key {
                    Some(key) => self.get_from_below(key, cid).await,
                    None => Ok(None),
                };
                let found = match found {
                    Ok(None) => self.get_from_source(&cid).await,
                    found => found,
                };
                (number, found)
            })
            .buffer_unordered(READS_AT_ONCE);
        while let Some((number, found)) = others.next().await {
            set(&mut results, number, found);
        }
        drop(others);
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
            // A source may have it whole.
            if self.inner.source.is_some() {
                shared.counters.misses.add(1);
                return Ok(Lookup::Absent);
            }
            return Err(GetError::Corrupt { cid: *cid });
        }
        match shared.memory.get(&key, now) {
            Some(data) => {
                shared.counters.memory_hits.add(1);
                Ok(Lookup::Here(data))
            }
            None => Ok(Lookup::Below(key)),
        }
    }

    /// [`get`](Self::get) on this thread: a read of memory or disk costs no way to another one.
    pub(crate) fn get_here(&self, cid: &Cid) -> Found {
        let key = match self.get_from_memory(cid)? {
            Lookup::Here(data) => return Ok(Some(data)),
            Lookup::Absent => return block_on(self.get_from_source(cid)),
            Lookup::Below(key) => key,
        };
        match get_from_disk(&self.shared, &key, cid)? {
            OnDisk::Here(data) => Ok(Some(data)),
            OnDisk::Absent => block_on(self.get_from_source(cid)),
            OnDisk::Cold => block_on(self.get_from_below(key, *cid)),
        }
    }

    /// From the disk or the cold tier, one read for all who ask at the same time.
    async fn get_from_below(&self, key: Key, cid: Cid) -> Found {
        let begin = || -> BoxFuture<'static, Found> {
            let (shared, mover) = (self.shared.clone(), self.inner.mover.clone());
            read_below(shared, mover, key, cid).boxed()
        };
        let found = self.inner.reads.join(key, begin).await;
        // The read may have begun before a put that this caller knows of. The next one begins after it.
        if matches!(found, Ok(None) | Err(GetError::Corrupt { .. })) && self.size(&cid).is_some() {
            return self.inner.reads.join(key, begin).await;
        }
        found
    }

    /// From the source, one fetch for all who ask at the same time; what comes is stored.
    async fn get_from_source(&self, cid: &Cid) -> Found {
        if self.inner.source.is_none() {
            return Ok(None);
        }
        let begin = || -> BoxFuture<'static, Found> {
            // The flight must not keep the store alive by itself: it lives in it.
            let (shared, inner, cid) = (self.shared.clone(), Arc::downgrade(&self.inner), *cid);
            async move {
                let Some(inner) = inner.upgrade() else {
                    return Err(GetError::Closed);
                };
                let Some(source) = &inner.source else {
                    return Ok(None);
                };
                let (fetched, took) = source.fetch(&cid).await;
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                shared.counters.source_micros.add(micros);
                match &fetched {
                    Ok(Some(data)) => {
                        shared.counters.source_hits.add(1);
                        shared.counters.source_bytes.add(data.len() as u64);
                        let put = put_shared(&shared, cid, data.clone(), source.options.clone());
                        if let Err(error) = put.await {
                            // The caller wanted the block, and here it is.
                            tracing::warn!(%cid, %error, "a fetched block was not stored");
                        }
                    }
                    Ok(None) => shared.counters.source_misses.add(1),
                    Err(_) => shared.counters.source_errors.add(1),
                }
                fetched
            }
            .boxed()
        };
        self.inner.fetches.join(*cid.hash(), begin).await
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
        let (mut first_cold, mut held) = (None, None);
        for _ in 0..PIN_ATTEMPTS {
            let (set, these) = (set.to_owned(), cids.to_vec());
            let (reply, answer) = oneshot::channel();
            let pin = Pin {
                set,
                cids: these,
                reply,
            };
            commit::submit(&self.shared, Op::Pin(pin)).await?;
            let cold = match answer.await.unwrap_or(Err(PinError::Closed))? {
                Pinned::Done => return Ok(()),
                Pinned::Cold(cids) => cids,
            };
            first_cold = cold.first().copied();
            // Those that came would be the first to go again for those that come.
            if held.is_none()
                && let Some(mover) = &self.inner.mover
            {
                let keys = cids.iter().filter_map(|cid| self.shared.kinds.find(cid));
                held = Some(mover.hold(keys.collect()));
            }
            let mut promotions = stream::iter(cold)
                .map(|cid| self.promote(cid))
                .buffer_unordered(READS_AT_ONCE);
            while let Some(promoted) = promotions.next().await {
                promoted?;
            }
        }
        match first_cold {
            Some(cid) => Err(PinError::ColdTier { cid }),
            None => Ok(()),
        }
    }

    /// Brings a block back to the disk, if it is in the cold tier.
    async fn promote(&self, cid: Cid) -> Result<(), PinError> {
        let Some(key) = self.shared.kinds.find(&cid) else {
            return Ok(());
        };
        let mover = self.inner.mover.as_deref();
        match tiers::read(&self.shared, mover, key, cid).await {
            Ok(Some(tiers::Found::Cold(_, name, thawed))) => {
                commit::promote(&self.shared, name, thawed.data, thawed.class, true).await?;
                Ok(())
            }
            // What became of it shows when the pin looks again.
            Ok(_) => Ok(()),
            Err(GetError::Corrupt { cid }) => Err(PinError::Missing { cid }),
            Err(_) => Err(PinError::ColdTier { cid }),
        }
    }

    /// Takes blocks out of a pin set; those that are not in it are passed over. An empty set ceases to exist.
    pub async fn unpin(&self, set: &str, cids: &[Cid]) -> Result<(), PinError> {
        let (set, cids) = (set.to_owned(), cids.to_vec());
        let (reply, answer) = oneshot::channel();
        commit::submit(&self.shared, Op::Unpin(Unpin { set, cids, reply })).await?;
        answer.await.unwrap_or(Err(PinError::Closed))
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

    /// All blocks with their bytes, in the order in which they lie on the disk, then pack by pack. They are not offered to the memory
    /// tier and do not count as reads.
    pub fn scan(&self) -> BoxStream<'static, Result<(Cid, Bytes), GetError>> {
        scrub::scan(self.shared.clone(), self.inner.mover.clone()).boxed()
    }

    /// Reads blocks into the memory tier, as far as it takes them. Returns how many are there afterwards; absent and damaged ones, and those
    /// in a cold tier that does not answer, are passed over. Does not count as reads of them.
    pub async fn warm(&self, cids: &[Cid]) -> usize {
        let keys: Vec<(Key, Cid)> = cids
            .iter()
            .filter_map(|cid| Some((self.shared.kinds.find(cid)?, *cid)))
            .collect();
        let mover = self.inner.mover.as_deref();
        let absent = keys
            .iter()
            .filter(|(key, _)| !self.shared.memory.contains(key));
        let mut reads =
            stream::iter(absent)
                .map(|(key, cid)| async move {
                    (*key, tiers::read(&self.shared, mover, *key, *cid).await)
                })
                .buffer_unordered(READS_AT_ONCE);
        while let Some((key, found)) = reads.next().await {
            match found {
                Ok(Some(tiers::Found::Disk(data, expiry_ms))) => {
                    self.shared.remember(key, &data, expiry_ms);
                }
                Ok(Some(tiers::Found::Cold(entry, _, thawed))) => {
                    let expiry_ms = entry_expiry_ms(&entry);
                    self.shared.remember(key, &thawed.data, expiry_ms);
                }
                Ok(None) | Err(_) => {}
            }
        }
        drop(reads);
        keys.iter()
            .filter(|(key, _)| self.shared.memory.contains(key))
            .count()
    }

    /// Stores a small value under a key, replacing an old one; durable when it returns. Values are not evicted.
    pub async fn put_value(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<(), ValueError> {
        self.put_value_of(key, value, &[], ttl).await
    }

    /// The same, with the hash (any bytes, up to 128) of what the value was computed from: [`get_value_of`](Store::get_value_of) returns it
    /// only as long as that is the same, so that nothing stale is used.
    pub async fn put_value_of(
        &self,
        key: &str,
        value: Bytes,
        hash: &[u8],
        ttl: Option<Duration>,
    ) -> Result<(), ValueError> {
        if hash.len() > values::MOST_HASH {
            return Err(ValueError::Hash { size: hash.len() });
        }
        let payload = values::payload(&value, hash);
        let (reply, answer) = oneshot::channel();
        let put = PutValue {
            key: key.to_owned(),
            crc: crc32c::crc32c(&payload),
            payload,
            ttl,
            reply,
        };
        commit::submit(&self.shared, Op::PutValue(put)).await?;
        answer.await.unwrap_or(Err(ValueError::Closed))
    }

    /// The value of a key, unless its time is over.
    pub async fn get_value(&self, key: &str) -> Result<Option<Bytes>, ValueError> {
        Ok(self.read_value(key).await?.map(|(_, value)| value))
    }

    /// The value of a key, if it was put with this hash and its time is not over.
    pub async fn get_value_of(&self, key: &str, hash: &[u8]) -> Result<Option<Bytes>, ValueError> {
        let read = self.read_value(key).await?;
        Ok(read.and_then(|(its, value)| (its == hash).then_some(value)))
    }

    async fn read_value(&self, key: &str) -> Result<Option<(Bytes, Bytes)>, ValueError> {
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
        let (reply, answer) = oneshot::channel();
        commit::submit(&self.shared, Op::DeleteValue(DeleteValue { key, reply })).await?;
        answer.await.unwrap_or(Err(ValueError::Closed))
    }

    /// Makes everything durable that was put with [`Durability::Relaxed`](crate::Durability::Relaxed).
    pub async fn flush(&self) -> Result<(), MaintenanceError> {
        Ok(commit::task(&self.shared, |shared, log| log.sync(shared)).await??)
    }

    /// Forgets what is over and gives all garbage back that can be had, on the disk and in the cold tier, without regard to the I/O budgets.
    pub async fn gc(&self) -> Result<GcReport, MaintenanceError> {
        let mut report = commit::task(&self.shared, upkeep::gc).await??;
        if let Some(mover) = self.inner.mover.clone() {
            let bucket = mover.clone();
            let collected = blocking::unblock(move || mover.collect())
                .await
                .map_err(|error| match error {
                    GcError::Closed => MaintenanceError::Closed,
                    GcError::Disk(source) => MaintenanceError::Move { source },
                    GcError::Bucket(error) => MaintenanceError::ColdUnreachable {
                        source: bucket.cold.bucket.failure(&error),
                    },
                })?;
            report.packs = collected.packs;
            report.freed_cold_bytes = collected.bytes;
        }
        Ok(report)
    }

    /// Reads every block, in the cold tier too, and compares checksum and hash. Damaged ones count as absent afterwards. Blocks in
    /// a cold tier that does not answer are counted in [`ScrubReport::unreachable`].
    pub async fn scrub(&self) -> Result<ScrubReport, MaintenanceError> {
        if self.shared.is_closed() {
            return Err(MaintenanceError::Closed);
        }
        let shared = self.shared.clone();
        let (mut report, cold) = blocking::unblock(move || scrub::scrub(&shared)).await?;
        let mover = self.inner.mover.as_deref();
        scrub::scrub_cold(&self.shared, mover, cold, &mut report).await?;
        Ok(report)
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

    /// Bytes that a new pinned add may take: blocks with about 300 bytes for each, of which half are for checkpoints.
    pub fn room_for_pinned(&self) -> u64 {
        self.shared
            .live_limit()
            .saturating_sub(self.shared.fixed_bytes())
    }

    /// Figures: what is stored, and what happened since opening. Cheap.
    pub fn stats(&self) -> Stats {
        Stats::of(&self.shared, self.inner.mover.as_deref())
    }

    /// Ends moves, writes what waits, then a checkpoint, and releases the directory. Later calls on any clone fail with `Closed`. Calling it
    /// again does nothing.
    pub async fn close(&self) -> Result<(), MaintenanceError> {
        if let Some(mover) = &self.inner.mover {
            mover.stop();
            mover.ended().await;
        }
        match commit::task(&self.shared, upkeep::close).await {
            Ok(result) => Ok(result?),
            Err(crate::error::WriteFailure::Closed) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }
}

enum Lookup {
    Here(Bytes),
    /// On the disk or in the cold tier.
    Below(Key),
    Absent,
}

enum OnDisk {
    Here(Bytes),
    Cold,
    Absent,
}

fn set(results: &mut [Found], number: usize, found: Found) {
    if let Some(place) = results.get_mut(number) {
        *place = found;
    }
}

async fn put_shared(
    shared: &Arc<Shared>,
    cid: Cid,
    data: Bytes,
    options: Arc<PutOptions>,
) -> Result<(), PutError> {
    let most = shared.config.max_block_bytes;
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
        data: data.clone(),
        options: options.clone(),
        origin: Origin::User,
        reply,
    };
    commit::submit(shared, Op::Put(put)).await?;
    let is_new = answer.await.unwrap_or(Err(PutError::Closed))?;
    if is_new && options.ttl.is_none() {
        remember_put(shared, &cid, data, &options);
    }
    Ok(())
}

/// Offers a block that was put for good to the memory tier, in the caller's thread: copying in the writing job would keep all writers
/// waiting.
fn remember_put(shared: &Shared, cid: &Cid, data: Bytes, options: &PutOptions) {
    let capacity = shared.memory.capacity();
    let placement = placement::place(&shared.config.policy, capacity, data.len(), options);
    let Some(key) = shared.kinds.find(cid).filter(|_| placement.in_memory) else {
        return;
    };
    // A copy, as the caller's bytes may be a small part of a large buffer that would stay with them.
    let mut copy = shared.memory.buffer(data.len());
    copy.extend_from_slice(&data);
    drop(data);
    shared.memory.insert(key, copy.freeze(), placement.reads, 0);
    // It may have been deleted or put with a time to live meanwhile; who does that after this look finds it in memory.
    if shared
        .index
        .get(&key)
        .is_none_or(|entry| entry.expiry_s != 0 && entry.pins == 0)
    {
        shared.memory.remove(&key);
    }
}

fn get_from_disk(shared: &Shared, key: &Key, cid: &Cid) -> Result<OnDisk, GetError> {
    match shared.read_block(key, cid)? {
        Read::Here(data, expiry_ms) => {
            shared.counters.disk_hits.add(1);
            shared.remember(*key, &data, expiry_ms);
            Ok(OnDisk::Here(data))
        }
        Read::Cold(_) => Ok(OnDisk::Cold),
        Read::Absent => {
            shared.counters.misses.add(1);
            Ok(OnDisk::Absent)
        }
    }
}

/// Reads a block that the index has, wherever it is, and counts that.
async fn read_below(shared: Arc<Shared>, mover: Option<Arc<Mover>>, key: Key, cid: Cid) -> Found {
    match tiers::read(&shared, mover.as_deref(), key, cid).await? {
        Some(tiers::Found::Disk(data, expiry_ms)) => {
            shared.counters.disk_hits.add(1);
            shared.remember(key, &data, expiry_ms);
            Ok(Some(data))
        }
        Some(tiers::Found::Cold(entry, name, thawed)) => {
            shared.remember(key, &thawed.data, entry_expiry_ms(&entry));
            if let Some(mover) = &mover {
                mover.cold.counters.hits.add(1);
                mover.on_read(&shared, &entry, name, &thawed);
            }
            Ok(Some(thawed.data))
        }
        None => {
            shared.counters.misses.add(1);
            Ok(None)
        }
    }
}

/// When the time of a block in the cold tier is over, in milliseconds since 1970; 0 for never.
fn entry_expiry_ms(entry: &Entry) -> u64 {
    u64::from(entry.expiry_s) * 1000
}
