//! What all handles and the writing job of a store share, and how it is read.

use std::{
    any::Any,
    io,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::SyncSender,
    },
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};

use crate::{
    Config, GetError, ValueError,
    cold::Packs,
    commit::Queue,
    disk::{
        checkpoint,
        index::{Entry, Index, Place},
        log::{Log, Position},
        pins::Pins,
        record::{Kind, Record},
        segment,
    },
    heat::SharedClock,
    key::{Key, Kinds},
    memory::Memory,
    values,
    vfs::{Vfs, VfsFile},
};

/// Segment files that are kept open.
const OPEN_FILES: usize = 256;

/// A block can move once while it is looked for, when compaction removes its old segment; more often is a fault.
const READ_ATTEMPTS: usize = 5;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) capacity: AtomicU64,
    pub(crate) kinds: Kinds,
    pub(crate) index: Index,
    pub(crate) pins: RwLock<Pins>,
    pub(crate) values: RwLock<HashMap<String, Value>>,
    pub(crate) memory: Memory,
    /// What is needed of the packs in the cold tier.
    pub(crate) packs: Packs,
    /// Moves blocks to the cold tier, if there is one.
    pub(crate) demoter: OnceLock<Arc<dyn Demoter>>,
    /// Set while opening, if the checkpoint was lost: pins, deletions and places in the cold tier that it alone knew are gone.
    pub(crate) checkpoint_lost: AtomicBool,
    pub(crate) clock: SharedClock,
    files: Mutex<Files>,
    pub(crate) counters: Counters,
    pub(crate) queue: Queue,
    pub(crate) log: Mutex<Log>,
    pub(crate) closed: AtomicBool,
    /// Ends the timer of upkeep when it is dropped.
    pub(crate) timer: Mutex<Option<SyncSender<()>>>,
    /// The lock file; given back on close.
    pub(crate) lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

#[derive(Default)]
struct Files {
    open: HashMap<u32, Arc<dyn VfsFile>>,
    /// Those that exist.
    segments: HashSet<u32>,
}

/// A value on disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value {
    pub(crate) at: Position,
    /// Bytes of the record.
    pub(crate) len: u32,
    /// Milliseconds since 1970; 0 for never.
    pub(crate) expiry_ms: u64,
}

impl Value {
    /// Bytes that it takes on the disk.
    pub(crate) fn footprint(&self, key: &str) -> u64 {
        segment::footprint(u64::from(self.len), key.len() as u64)
    }

    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        self.expiry_ms != 0 && self.expiry_ms <= now_ms
    }
}

/// What reading a block from the disk gave.
pub(crate) enum Read {
    /// The bytes, and when its time is over in milliseconds since 1970; 0 for never.
    Here(Bytes, u64),
    /// It is in the cold tier.
    Cold(Entry),
    Absent,
}

/// Moves blocks from the disk to the cold tier when the disk is short of room.
///
/// The writing job calls it and goes on: it must not block. It may be called often with the same need.
pub(crate) trait Demoter: Send + Sync {
    /// `bytes` of records should leave the disk. Puts wait if `urgent`.
    fn make_room(&self, bytes: u64, urgent: bool);

    /// How long puts wait while every attempt fails, before they are told; see [`crate::commit::demotion_failed`].
    fn patience(&self) -> Duration;
}

/// Whether a record whose checksum is right is the block of this key.
pub(crate) fn is_record_of(shared: &Shared, record: &Record<'_>, key: &Key) -> bool {
    record.header.kind == Kind::Block
        && Cid::try_from(record.key)
            .ok()
            .and_then(|cid| shared.kinds.find(&cid))
            == Some(*key)
}

/// A number that threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) memory_hits: Counter,
    pub(crate) promotions: Counter,
    pub(crate) disk_hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) source_hits: Counter,
    pub(crate) source_misses: Counter,
    pub(crate) source_errors: Counter,
    pub(crate) source_bytes: Counter,
    pub(crate) source_micros: Counter,
    pub(crate) puts: Counter,
    pub(crate) duplicate_puts: Counter,
    pub(crate) user_bytes: Counter,
    pub(crate) evictions: Counter,
    pub(crate) expirations: Counter,
    pub(crate) corruptions: Counter,
    pub(crate) compactions: Counter,
    pub(crate) written: Counter,
    pub(crate) syncs: Counter,
    pub(crate) batches: Counter,
    pub(crate) poisoned: Counter,
    pub(crate) live: Counter,
    /// Footprints of values; part of `live`.
    pub(crate) value_bytes: Counter,
    pub(crate) pinned: Counter,
    pub(crate) used: Counter,
    pub(crate) segments: Counter,
    pub(crate) checkpoint_bytes: Counter,
    /// Of the last checkpoint alone.
    pub(crate) last_checkpoint: Counter,
}

impl Shared {
    pub(crate) fn new(config: Config, lock: Box<dyn Any + Send + Sync>) -> Shared {
        Shared {
            vfs: config.vfs.clone(),
            dir: config.path.clone(),
            capacity: AtomicU64::new(config.disk_capacity),
            kinds: Kinds::default(),
            index: Index::default(),
            pins: RwLock::default(),
            values: RwLock::default(),
            memory: Memory::new(config.memory_capacity),
            packs: Packs::default(),
            demoter: OnceLock::new(),
            checkpoint_lost: AtomicBool::new(false),
            clock: SharedClock::default(),
            files: Mutex::default(),
            counters: Counters::default(),
            queue: Queue::new(config.queue_bytes),
            log: Mutex::default(),
            closed: AtomicBool::new(false),
            timer: Mutex::default(),
            lock: Mutex::new(Some(lock)),
            config,
        }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Relaxed)
    }

    /// Bytes of records that neither eviction nor the cold tier can take from the disk.
    pub(crate) fn fixed_bytes(&self) -> u64 {
        self.counters.pinned.get() + self.counters.value_bytes.get()
    }

    /// Bytes of records that may be live: the rest is what three checkpoints take and what compaction works with.
    pub(crate) fn live_limit(&self) -> u64 {
        let checkpoints = 3 * self.next_checkpoint();
        self.capacity().saturating_sub(checkpoints) / 8 * 7
    }

    /// Bytes that the store takes on the disk, with those of the next checkpoint, which is there beside the two before it until it is whole.
    pub(crate) fn used(&self) -> u64 {
        let kept = self.counters.checkpoint_bytes.get();
        self.counters.used.get() + kept + self.next_checkpoint()
    }

    /// About how long it will be: as the last one, which had pins, values and long names, or longer with more blocks.
    fn next_checkpoint(&self) -> u64 {
        let blocks = checkpoint::BLOCK_BYTES * self.index.len() as u64;
        blocks.max(self.counters.last_checkpoint.get())
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        crate::config::segment_bytes(self.config.segment_bytes, self.capacity())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// A segment exists from now on.
    pub(crate) fn add_segment(&self, id: u32) {
        self.files.lock().segments.insert(id);
    }

    /// A segment was removed.
    pub(crate) fn remove_segment(&self, id: u32) {
        let mut files = self.files.lock();
        files.segments.remove(&id);
        files.open.remove(&id);
    }

    pub(crate) fn keep_file(&self, id: u32, file: Arc<dyn VfsFile>) {
        let mut files = self.files.lock();
        // A reader may have opened it just before it was removed: kept, it would hold its room for ever.
        if !files.segments.contains(&id) {
            return;
        }
        if files.open.len() >= OPEN_FILES
            && let Some(other) = files.open.keys().find(|other| **other != id).copied()
        {
            files.open.remove(&other);
        }
        files.open.insert(id, file);
    }

    pub(crate) fn drop_file(&self, id: u32) {
        self.files.lock().open.remove(&id);
    }

    pub(crate) fn drop_files(&self) {
        self.files.lock().open.clear();
    }

    /// Forgets everything that the index holds; while opening.
    pub(crate) fn clear(&self) {
        let mut keys = Vec::new();
        self.index.for_each(|entry| keys.push(entry.key()));
        for key in keys {
            self.index.remove(&key);
        }
        *self.pins.write() = Pins::default();
        self.values.write().clear();
    }

    pub(crate) fn file(&self, id: u32) -> io::Result<Arc<dyn VfsFile>> {
        if let Some(file) = self.files.lock().open.get(&id) {
            return Ok(file.clone());
        }
        let file = self.vfs.open(&self.dir.join(segment::file_name(id)))?;
        self.keep_file(id, file.clone());
        Ok(file)
    }

    /// One read. The bytes may be anything.
    pub(crate) fn read(&self, at: Position, len: u64) -> io::Result<Bytes> {
        let file = self.file(at.segment)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mut bytes = self.memory.buffer(len);
        bytes.resize(len, 0);
        file.read_exact_at(u64::from(at.offset), &mut bytes)?;
        Ok(bytes.freeze())
    }

    /// Reads a block from the disk and checks it.
    pub(crate) fn read_block(&self, key: &Key, cid: &Cid) -> Result<Read, GetError> {
        let mut last = None;
        for _ in 0..READ_ATTEMPTS {
            let now = self.vfs.now_ms();
            let Some(entry) = self.index.get(key).filter(|entry| !entry.is_expired(now)) else {
                return Ok(Read::Absent);
            };
            if entry.is_damaged() {
                return Err(GetError::Corrupt { cid: *cid });
            }
            let at = match entry.place() {
                Place::Disk(at) => at,
                Place::Cold(_) => return Ok(Read::Cold(entry)),
            };
            let record = match self.read(at, entry.record_len()) {
                Ok(bytes) => {
                    let whole =
                        Record::parse(&bytes).filter(|record| is_record_of(self, record, key));
                    whole.map(|record| {
                        (
                            record.header.expiry_ms,
                            bytes.slice(bytes.len() - record.payload.len()..),
                        )
                    })
                }
                // Either the segment was compacted away just now, or the file is damaged.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                    ) =>
                {
                    last = Some(error);
                    None
                }
                Err(error) => {
                    return Err(GetError::Io {
                        cid: *cid,
                        source: Arc::new(error),
                    });
                }
            };
            match record {
                Some((expiry_ms, _)) if expiry_ms != 0 && expiry_ms <= now && entry.pins == 0 => {
                    return Ok(Read::Absent);
                }
                Some((expiry_ms, data)) => {
                    let expiry_ms = if entry.pins == 0 { expiry_ms } else { 0 };
                    return Ok(Read::Here(data, expiry_ms));
                }
                None => {
                    if self.mark_damaged(key, entry.place()) {
                        tracing::error!(%cid, ?at, cause = ?last, "a block is damaged");
                        return Err(GetError::Corrupt { cid: *cid });
                    }
                }
            }
        }
        Err(GetError::Io {
            cid: *cid,
            source: Arc::new(last.unwrap_or_else(|| io::Error::other("the block kept moving"))),
        })
    }

    /// A block's bytes were found damaged at a place. `false`: it is elsewhere by now.
    pub(crate) fn mark_damaged(&self, key: &Key, place: Place) -> bool {
        let mut is_there = false;
        self.index.update(key, |entry| {
            is_there = entry.place() == place;
            if is_there {
                entry.set_damaged();
            }
        });
        if is_there {
            self.counters.corruptions.add(1);
            self.memory.remove(key);
        }
        is_there
    }

    /// Memory first, then the disk; what comes from the disk is offered to memory.
    pub(crate) fn remember(&self, key: Key, data: &Bytes, expiry_ms: u64) {
        if self.memory.capacity() > 0 {
            self.counters.promotions.add(1);
            self.memory.offer(key, data, 1.0, expiry_ms);
        }
    }

    /// The hash that a value was stored with, and the value.
    pub(crate) fn read_value(&self, key: &str) -> Result<Option<(Bytes, Bytes)>, ValueError> {
        for _ in 0..READ_ATTEMPTS {
            let now = self.vfs.now_ms();
            let Some(value) = self
                .values
                .read()
                .get(key)
                .filter(|value| !value.is_expired(now))
                .copied()
            else {
                return Ok(None);
            };
            let record = match self.read(value.at, u64::from(value.len)) {
                Ok(bytes) => Record::parse(&bytes)
                    .filter(|record| {
                        record.header.kind == Kind::Value && record.key == key.as_bytes()
                    })
                    .map(|record| bytes.slice(bytes.len() - record.payload.len()..))
                    .and_then(values::parse),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                    ) =>
                {
                    None
                }
                Err(error) => {
                    return Err(ValueError::Io {
                        source: Arc::new(error),
                    });
                }
            };
            if let Some(data) = record {
                return Ok(Some(data));
            }
            let moved = self
                .values
                .read()
                .get(key)
                .is_none_or(|now| now.at != value.at);
            if !moved {
                self.counters.corruptions.add(1);
                return Err(ValueError::Corrupt {
                    key: key.to_owned(),
                });
            }
        }
        Err(ValueError::Io {
            source: Arc::new(io::Error::other("the value kept moving")),
        })
    }

    /// The store gives a block up by itself, which the log is told with its next append.
    pub(crate) fn forget_and_tell(&self, log: &mut Log, key: &Key) {
        let cid = self
            .index
            .get(key)
            .and_then(|entry| self.kinds.cid(key, entry.codec));
        if let Some(cid) = cid {
            log.note_gone(&cid);
        }
        self.forget(log, key);
    }

    /// The block is not in the store any more.
    pub(crate) fn forget(&self, log: &mut Log, key: &Key) {
        if let Some(entry) = self.index.remove(key) {
            self.memory.remove(key);
            self.kinds.forget(key);
            self.release(log, &entry);
        }
    }

    /// A block is not needed any more where it was.
    pub(crate) fn release(&self, log: &mut Log, entry: &Entry) {
        match entry.place() {
            Place::Disk(at) => self.release_record(log, at.segment, entry.footprint()),
            Place::Cold(at) => self.packs.release(at, entry.len()),
        }
    }

    /// A block is needed where it is now.
    pub(crate) fn retain(&self, log: &mut Log, entry: &Entry) {
        match entry.place() {
            Place::Disk(at) => self.retain_record(log, at.segment, entry.footprint()),
            Place::Cold(at) => self.packs.retain(at, entry.len()),
        }
    }

    /// A record is garbage now.
    pub(crate) fn release_record(&self, log: &mut Log, segment: u32, len: u64) {
        if let Some(segment) = log.segments.get_mut(&segment) {
            segment.live = segment.live.saturating_sub(len);
            self.counters.live.sub(len);
        }
    }

    /// A record is needed now.
    pub(crate) fn retain_record(&self, log: &mut Log, segment: u32, len: u64) {
        if let Some(segment) = log.segments.get_mut(&segment) {
            segment.live += len;
            self.counters.live.add(len);
        }
    }
}
