//! The checkpoint: the whole index, pins and values in one file, so that opening reads only what the log holds beyond it.
//!
//! The file is a row of chunks: length 4, crc 4, bytes. Each crc continues the one before, so that chunks cannot be lost or swapped.
//! Inside: the start, then tagged entries, see the `TAG_` constants. Each block is 60 bytes.
//!
//! Two checkpoints are kept, and opening goes back to the older one if the newer is damaged. So the log has to keep everything that is not
//! data (pins, deletions and the like) since the *older* one: see [`Checkpoints::safe_seq`].
//!
//! Writing happens beside the job that writes the log. What a checkpoint says of pins is of one moment, of everything else a
//! little later: whatever changed since that moment is in the log and is replayed over it, and the last word of the log wins.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IoSlice},
    sync::Arc,
};

use cid::Cid;
use parking_lot::{Condvar, Mutex};

use super::{
    id_set::IdSet,
    index::{self, EntryId, Place},
    log::{Log, Position},
    record::{Fields, MOST_SEQ, get_cid, put_cid},
};
use crate::{
    FORMAT,
    cold::Location,
    commit,
    error::WriteFailure,
    heat::Heat,
    state::{Shared, Value},
    vfs::VfsFile,
};

const PREFIX: &str = "checkpoint-";
pub(crate) const TEMPORARY: &str = "checkpoint.tmp";
const MAGIC: &[u8; 8] = b"ANYPCHKP";
/// A chunk is written when it reaches this, in bytes.
const CHUNK: usize = 256 * 1024;
/// A longer one is damaged. A pin set's chunk is cut like all others.
const MOST_CHUNK: u32 = 4 * 1024 * 1024;
/// What the device reads ahead while a checkpoint is read, in bytes. With more the first of it comes late: devices choose the order.
pub(crate) const AHEAD: u64 = 16 * 1024 * 1024;
/// Members of a pin set in one entry.
const PINS_PER_ENTRY: usize = 4096;

/// A hash function: number 1, multihash code 8, digest length 1.
const TAG_HASH: u8 = b'H';
/// A codec: number 1, CID version 0 or not 1, multicodec 8.
const TAG_CODEC: u8 = b'O';
/// A block on disk: hash 1, codec 1, bytes of the record before it 1, digest 32, segment 4, offset 4, length 4, expiry in s 4, heat 4.
const TAG_DISK: u8 = b'b';
/// A block in the cold tier: the same with its bound, pack and offset there.
const TAG_COLD: u8 = b'c';
/// The same with a CID for hash, codec and digest, which were too many or too long.
const TAG_DISK_LONG: u8 = b'B';
const TAG_COLD_LONG: u8 = b'C';
/// A pin set, which the next members belong to: length 2, name.
const TAG_SET: u8 = b's';
/// Members: count 2, then for each the number of the block in this file 4.
const TAG_PINS: u8 = b'p';
/// A value: length 2, key, segment 4, offset 4, length 4, expiry in ms 8.
const TAG_VALUE: u8 = b'v';
const TAG_END: u8 = b'e';

/// What a block's entry takes in the file, in bytes.
pub(crate) const BLOCK_BYTES: u64 = 60;

/// Log bytes between two checkpoints: at least 256 MiB, and 32 times the checkpoint's size, so that checkpoints are 3 % of what is written.
pub(crate) fn is_due(log: &Log) -> bool {
    let last = log.checkpoints.kept.back().map_or(0, |kept| kept.bytes);
    log.since_checkpoint >= (256 * 1024 * 1024).max(32 * last)
}

pub(crate) fn file_name(number: u32) -> String {
    format!("{PREFIX}{number:08x}")
}

pub(crate) fn parse_name(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()
}

/// The checkpoints on the disk, and the one that is being written.
#[derive(Default)]
pub(crate) struct Checkpoints {
    /// Oldest first; two at most once things have settled.
    pub(crate) kept: VecDeque<Kept>,
    pub(crate) next_number: u32,
    writing: Option<Writing>,
}

/// A durable checkpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) number: u32,
    pub(crate) seq: u64,
    pub(crate) bytes: u64,
    /// It was read or written whole by this process.
    pub(crate) is_checked: bool,
}

type Slot = Arc<(Mutex<Option<io::Result<u64>>>, Condvar)>;

struct Writing {
    number: u32,
    seq: u64,
    since: u64,
    result: Slot,
}

impl Checkpoints {
    /// What the log says up to here is in two checkpoints: its records that are not data may go.
    pub(crate) fn safe_seq(&self) -> u64 {
        let before_last = self.kept.len().checked_sub(2);
        before_last
            .and_then(|at| self.kept.get(at))
            .filter(|kept| kept.is_checked)
            .map_or(0, |kept| kept.seq)
    }

    /// Says what they take.
    pub(crate) fn count(&self, shared: &Shared) {
        let counters = &shared.counters;
        counters
            .checkpoint_bytes
            .set(self.kept.iter().map(|kept| kept.bytes).sum());
        counters
            .last_checkpoint
            .set(self.kept.back().map_or(0, |kept| kept.bytes));
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Whether one was written beside that nobody took note of yet.
    pub(crate) fn is_written(&self) -> bool {
        let writing = self.writing.as_ref();
        writing.is_some_and(|writing| writing.result.0.lock().is_some())
    }

    /// Whether the one who writes beside surely has the store. It answers first and lets go then.
    pub(crate) fn writer_has_store(&self) -> bool {
        self.is_writing() && !self.is_written()
    }
}

/// What a checkpoint says, one thing at a time.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    Start(Start),
    Hash {
        number: u8,
        code: u64,
        size: u8,
    },
    Codec {
        number: u8,
        is_v0: bool,
        codec: u64,
    },
    Block(Block<'a>),
    /// Members of a pin set, as numbers of blocks in the order of this file.
    Pins {
        set: String,
        blocks: Vec<u32>,
    },
    Value {
        key: String,
        value: Value,
    },
}

/// What the log already said.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// Everything up to this seq is in here.
    pub(crate) seq: u64,
    /// Segments from this one on are newer.
    pub(crate) next_segment: u32,
    /// Number of blocks, roughly.
    pub(crate) blocks: u64,
    /// Older segments that were open, and up to where they were durable.
    pub(crate) open: BTreeMap<u32, u64>,
}

/// A block as a checkpoint has it. It borrows: a million of them are not copied from one form into another.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    pub(crate) name: Name<'a>,
    pub(crate) place: Place,
    /// Bytes of the record before the block; on disk only.
    pub(crate) head: u8,
    pub(crate) len: u32,
    pub(crate) expiry_s: u32,
    /// Relative to the clock when the checkpoint was written.
    pub(crate) heat: Heat,
}

/// Which block it is.
#[derive(Debug)]
pub(crate) enum Name<'a> {
    /// Numbers of hash function and codec in this file.
    Short {
        hash: u8,
        codec: u8,
        digest: &'a [u8; 32],
    },
    Long(Box<Cid>),
}

struct Writer<'a> {
    file: &'a dyn VfsFile,
    chunk: Vec<u8>,
    crc: u32,
    at: u64,
}

impl Writer<'_> {
    fn flush(&mut self) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, &self.chunk);
        let len = u32::try_from(self.chunk.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes();
        let crc = self.crc.to_le_bytes();
        self.file.write_all_at(
            self.at,
            &[
                IoSlice::new(&len),
                IoSlice::new(&crc),
                IoSlice::new(&self.chunk),
            ],
        )?;
        self.at += 8 + self.chunk.len() as u64;
        self.chunk.clear();
        Ok(())
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.chunk.len() >= CHUNK {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn text(&mut self, text: &str) {
        self.chunk
            .extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.chunk.extend_from_slice(text.as_bytes());
    }
}

/// What has to be of one moment.
struct Snapshot {
    start: Start,
    pins: BTreeMap<String, IdSet>,
}

/// Takes the snapshot. What the log holds is synced first.
fn begin(shared: &Shared, log: &mut Log) -> Result<Snapshot, WriteFailure> {
    log.settle(shared)?;
    if let Some(by) = shared.clock.rebase() {
        shared.index.cool(by);
    }
    let open = log.active.values().map(|active| (active.id(), active.len));
    let start = Start {
        seq: log.next_seq.saturating_sub(1),
        next_segment: log.next_segment,
        blocks: shared.index.len() as u64,
        open: open.collect(),
    };
    // Pins are kept as ids of entries, which name other blocks once they are used again.
    shared.index.freeze_ids();
    Ok(Snapshot {
        start,
        pins: shared.pins.read().sets().clone(),
    })
}

/// Writes a checkpoint of the state as it is, and waits for it. One that is being written beside is waited for first.
pub(crate) fn write(shared: &Shared, log: &mut Log) -> Result<(), WriteFailure> {
    if let Some(writing) = &log.checkpoints.writing {
        let (result, ready) = &*writing.result;
        let mut result = result.lock();
        while result.is_none() {
            ready.wait(&mut result);
        }
        drop(result);
        finish_if_written(shared, log);
    }
    let since = log.since_checkpoint;
    let snapshot = begin(shared, log)?;
    let number = log.checkpoints.next_number;
    log.checkpoints.next_number += 1;
    log.since_checkpoint = 0;
    let result = write_file(shared, number, &snapshot, &|| true);
    finish(shared, log, number, snapshot.start.seq, since, result)
}

/// Writes checkpoints until what the log said up to `seq` is in two of them.
pub(crate) fn make_safe(shared: &Shared, log: &mut Log, seq: u64) -> Result<(), WriteFailure> {
    while log.checkpoints.safe_seq() < seq {
        write(shared, log)?;
    }
    Ok(())
}

/// Begins to write a checkpoint beside the job, if none is being written; see [`finish_if_written`].
pub(crate) fn start(shared: &Arc<Shared>, log: &mut Log) -> Result<(), WriteFailure> {
    if log.checkpoints.writing.is_some() {
        return Ok(());
    }
    let snapshot = begin(shared, log)?;
    let number = log.checkpoints.next_number;
    log.checkpoints.next_number += 1;
    let result = Slot::default();
    log.checkpoints.writing = Some(Writing {
        number,
        seq: snapshot.start.seq,
        since: log.since_checkpoint,
        result: result.clone(),
    });
    log.since_checkpoint = 0;
    let shared = shared.clone();
    blocking::unblock(move || {
        let answer = Answer {
            shared,
            result,
            written: None,
        };
        answer.write(number, &snapshot);
    })
    .detach();
    Ok(())
}

/// Answers the job even if writing panics.
struct Answer {
    shared: Arc<Shared>,
    result: Slot,
    written: Option<io::Result<u64>>,
}

impl Answer {
    fn write(mut self, number: u32, snapshot: &Snapshot) {
        // Once nobody has the store any more, its directory should be free for the next.
        let is_wanted = || commit::is_wanted(&self.shared);
        self.written = Some(write_file(&self.shared, number, snapshot, &is_wanted));
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let written = self.written.take();
        let (result, ready) = &*self.result;
        *result.lock() = Some(written.unwrap_or_else(|| Err(io::Error::other("panicked"))));
        ready.notify_all();
        commit::wake(&self.shared);
    }
}

/// Takes note of a checkpoint that was written beside. `false`: there is none.
pub(crate) fn finish_if_written(shared: &Shared, log: &mut Log) -> bool {
    let Some(writing) = &log.checkpoints.writing else {
        return false;
    };
    let Some(result) = writing.result.0.lock().take() else {
        return false;
    };
    let (number, seq, since) = (writing.number, writing.seq, writing.since);
    log.checkpoints.writing = None;
    if let Err(error) = finish(shared, log, number, seq, since, result) {
        tracing::warn!(
            ?error,
            "no checkpoint; the next opening reads more of the log"
        );
    }
    true
}

fn finish(
    shared: &Shared,
    log: &mut Log,
    number: u32,
    seq: u64,
    since: u64,
    result: io::Result<u64>,
) -> Result<(), WriteFailure> {
    shared.index.thaw_ids();
    match result {
        Ok(bytes) => {
            shared.counters.written.add(bytes);
            shared.counters.syncs.add(2);
            let checkpoints = &mut log.checkpoints;
            checkpoints.kept.push_back(Kept {
                number,
                seq,
                bytes,
                is_checked: true,
            });
            while checkpoints.kept.len() > 2 {
                let Some(old) = checkpoints.kept.pop_front() else {
                    break;
                };
                // Left over, it takes some room until the next opening.
                let _ = shared.vfs.remove(&shared.dir.join(file_name(old.number)));
            }
            let safe = checkpoints.safe_seq();
            log.aborts.retain(|range| range.last > safe);
            log.checkpoints.count(shared);
            Ok(())
        }
        Err(error) => {
            // Not at once again.
            log.since_checkpoint += since / 2;
            Err(WriteFailure::from_io(error))
        }
    }
}

fn write_file(
    shared: &Shared,
    number: u32,
    snapshot: &Snapshot,
    is_wanted: &dyn Fn() -> bool,
) -> io::Result<u64> {
    let temporary = shared.dir.join(TEMPORARY);
    let write = || {
        let file = shared.vfs.create(&temporary)?;
        let bytes = write_entries(shared, &*file, snapshot, is_wanted)?;
        file.sync_data()?;
        shared
            .vfs
            .rename(&temporary, &shared.dir.join(file_name(number)))?;
        shared.vfs.sync_dir(&shared.dir)?;
        Ok(bytes)
    };
    write().inspect_err(|_| drop(shared.vfs.remove(&temporary)))
}

fn write_entries(
    shared: &Shared,
    file: &dyn VfsFile,
    snapshot: &Snapshot,
    is_wanted: &dyn Fn() -> bool,
) -> io::Result<u64> {
    let mut out = Writer {
        file,
        chunk: Vec::with_capacity(CHUNK + 4096),
        crc: 0,
        at: 0,
    };
    let start = &snapshot.start;
    out.chunk.extend_from_slice(MAGIC);
    out.chunk.extend_from_slice(&FORMAT.to_le_bytes());
    out.chunk.extend_from_slice(&start.seq.to_le_bytes());
    out.chunk
        .extend_from_slice(&start.next_segment.to_le_bytes());
    out.chunk.extend_from_slice(&start.blocks.to_le_bytes());
    let open = u32::try_from(start.open.len()).unwrap_or(u32::MAX);
    out.chunk.extend_from_slice(&open.to_le_bytes());
    for (segment, len) in &start.open {
        out.chunk.extend_from_slice(&segment.to_le_bytes());
        out.chunk.extend_from_slice(&len.to_le_bytes());
    }
    out.flush()?;
    let numbers = write_blocks(shared, &mut out, is_wanted)?;
    for (set, members) in &snapshot.pins {
        out.chunk.push(TAG_SET);
        out.text(set);
        let members: Vec<u32> = members
            .iter()
            .filter_map(|id| numbers.get(EntryId(id)))
            .collect();
        for part in members.chunks(PINS_PER_ENTRY) {
            out.chunk.push(TAG_PINS);
            let count = u16::try_from(part.len()).unwrap_or(u16::MAX);
            out.chunk.extend_from_slice(&count.to_le_bytes());
            for number in part {
                out.chunk.extend_from_slice(&number.to_le_bytes());
            }
            out.flush_if_full()?;
        }
    }
    let mut values: Vec<(String, Value)> = shared
        .values
        .read()
        .iter()
        .map(|(key, value)| (key.clone(), *value))
        .collect();
    values.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    for (key, value) in values {
        out.chunk.push(TAG_VALUE);
        out.text(&key);
        for word in [value.at.segment, value.at.offset, value.len] {
            out.chunk.extend_from_slice(&word.to_le_bytes());
        }
        out.chunk.extend_from_slice(&value.expiry_ms.to_le_bytes());
        out.flush_if_full()?;
    }
    out.chunk.push(TAG_END);
    out.flush()?;
    Ok(out.at)
}

/// The numbers of blocks in the file by their ids.
#[derive(Default)]
struct Numbers {
    /// By shard and slot; `u32::MAX` for none.
    of: Vec<Vec<u32>>,
    next: u32,
}

impl Numbers {
    fn add(&mut self, id: EntryId) {
        let (shard, slot) = id.shard_and_slot();
        if self.of.len() <= shard {
            self.of.resize(shard + 1, Vec::new());
        }
        if let Some(slots) = self.of.get_mut(shard) {
            if slots.len() <= slot {
                slots.resize(slot + 1, u32::MAX);
            }
            if let Some(place) = slots.get_mut(slot) {
                *place = self.next;
            }
        }
        self.next += 1;
    }

    fn get(&self, id: EntryId) -> Option<u32> {
        let (shard, slot) = id.shard_and_slot();
        let number = *self.of.get(shard)?.get(slot)?;
        (number != u32::MAX).then_some(number)
    }
}

fn write_blocks(
    shared: &Shared,
    out: &mut Writer<'_>,
    is_wanted: &dyn Fn() -> bool,
) -> io::Result<Numbers> {
    let now = shared.clock.get().now();
    let (mut numbers, mut hashes, mut codecs) = (Numbers::default(), 0, 0);
    let mut shard = 0;
    while let Some(entries) = shared.index.shard_with_ids(shard) {
        if !is_wanted() {
            return Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "nobody has the store any more",
            ));
        }
        // Numbers that were given out since the last shard are defined before they occur.
        let kinds = shared.kinds.all();
        for (n, (code, size)) in kinds.hashes.iter().enumerate().skip(hashes) {
            out.chunk.extend_from_slice(&[TAG_HASH, index_byte(n)]);
            out.chunk.extend_from_slice(&code.to_le_bytes());
            out.chunk.push(*size);
        }
        for (n, (is_v0, codec)) in kinds.codecs.iter().enumerate().skip(codecs) {
            out.chunk
                .extend_from_slice(&[TAG_CODEC, index_byte(n), u8::from(*is_v0)]);
            out.chunk.extend_from_slice(&codec.to_le_bytes());
        }
        (hashes, codecs) = (kinds.hashes.len(), kinds.codecs.len());
        for (id, entry) in entries {
            if entry.is_damaged() && entry.pins == 0 {
                continue;
            }
            let (unit, offset, last) = match entry.place() {
                Place::Disk(at) => (at.segment, at.offset, entry.head()),
                Place::Cold(at) => (at.pack, at.offset, at.bound),
            };
            let key = entry.key();
            if key.hash == 0 {
                let Some(cid) = shared.kinds.cid(&key, entry.codec) else {
                    continue;
                };
                out.chunk.push(if entry.is_cold() {
                    TAG_COLD_LONG
                } else {
                    TAG_DISK_LONG
                });
                put_cid(&cid, &mut out.chunk);
                out.chunk.push(last);
            } else {
                let tag = if entry.is_cold() { TAG_COLD } else { TAG_DISK };
                out.chunk
                    .extend_from_slice(&[tag, key.hash, entry.codec, last]);
                out.chunk.extend_from_slice(&key.digest);
            }
            for word in [unit, offset, entry.len(), entry.expiry_s] {
                out.chunk.extend_from_slice(&word.to_le_bytes());
            }
            let heat = (f64::from(entry.heat) - now) as f32;
            out.chunk.extend_from_slice(&heat.to_le_bytes());
            numbers.add(id);
            out.flush_if_full()?;
        }
        shard += 1;
    }
    Ok(numbers)
}

/// Numbers of kinds begin at 1.
fn index_byte(n: usize) -> u8 {
    u8::try_from(n + 1).unwrap_or(0)
}

/// Reads a checkpoint and hands out what it says. `false`: it is damaged, and what was handed out does not count.
pub(crate) fn read(file: &dyn VfsFile, mut each: impl FnMut(Entry<'_>)) -> io::Result<bool> {
    let end = file.len()?;
    let (mut at, mut crc, mut set) = (0, 0, String::new());
    let (mut chunk, mut asked_for) = (Vec::new(), 0);
    while at < end {
        if at + AHEAD / 2 >= asked_for && asked_for < end {
            file.will_need(asked_for, AHEAD.min(end - asked_for));
            asked_for += AHEAD;
        }
        let mut head = [0; 8];
        if at + 8 > end {
            return Ok(false);
        }
        file.read_exact_at(at, &mut head)?;
        let mut fields = Fields(&head);
        let (Some(len), Some(expected)) = (fields.u32(), fields.u32()) else {
            return Ok(false);
        };
        if len > MOST_CHUNK || at + 8 + u64::from(len) > end {
            return Ok(false);
        }
        chunk.resize(len as usize, 0);
        file.read_exact_at(at + 8, &mut chunk)?;
        crc = crc32c::crc32c_append(crc, &chunk);
        if crc != expected {
            return Ok(false);
        }
        let mut fields = Fields(&chunk);
        let mut is_first = at == 0;
        at += 8 + u64::from(len);
        loop {
            let entry = if std::mem::take(&mut is_first) {
                start_of(&mut fields).map(Entry::Start)
            } else {
                let Some(tag) = fields.u8() else { break };
                match tag {
                    TAG_DISK | TAG_COLD | TAG_DISK_LONG | TAG_COLD_LONG => {
                        block(&mut fields, tag).map(Entry::Block)
                    }
                    TAG_END => return Ok(at == end && fields.0.is_empty()),
                    TAG_SET => {
                        let Some(name) = text(&mut fields) else {
                            return Ok(false);
                        };
                        set = name;
                        continue;
                    }
                    TAG_PINS => members(&mut fields).map(|blocks| Entry::Pins {
                        set: set.clone(),
                        blocks,
                    }),
                    TAG_HASH => kind(&mut fields),
                    TAG_CODEC => codec(&mut fields),
                    TAG_VALUE => value(&mut fields),
                    _ => None,
                }
            };
            // The one place where it is called, so that it is part of this loop.
            match entry {
                Some(entry) => each(entry),
                None => return Ok(false),
            }
        }
    }
    Ok(false)
}

/// The seq of a checkpoint whose first chunk is right, without reading the rest.
pub(crate) fn seq_of(file: &dyn VfsFile) -> io::Result<Option<u64>> {
    let mut head = [0; 8];
    if file.len()? < 8 {
        return Ok(None);
    }
    file.read_exact_at(0, &mut head)?;
    let mut fields = Fields(&head);
    let (Some(len), Some(expected)) = (fields.u32(), fields.u32()) else {
        return Ok(None);
    };
    if len > MOST_CHUNK || 8 + u64::from(len) > file.len()? {
        return Ok(None);
    }
    let mut chunk = vec![0; len as usize];
    file.read_exact_at(8, &mut chunk)?;
    let is_right = crc32c::crc32c(&chunk) == expected;
    let start = is_right.then(|| start_of(&mut Fields(&chunk))).flatten();
    Ok(start.map(|start| start.seq))
}

fn start_of(fields: &mut Fields<'_>) -> Option<Start> {
    if fields.bytes(8)? != MAGIC || fields.u32()? != FORMAT {
        return None;
    }
    let mut start = Start {
        seq: fields.u64().filter(|seq| *seq <= MOST_SEQ)?,
        next_segment: fields.u32().filter(|segment| *segment < u32::MAX / 2)?,
        blocks: fields.u64()?,
        open: BTreeMap::new(),
    };
    for _ in 0..fields.u32()? {
        start.open.insert(fields.u32()?, fields.u64()?);
    }
    Some(start)
}

fn text(fields: &mut Fields<'_>) -> Option<String> {
    let len = usize::from(fields.u16()?);
    String::from_utf8(fields.bytes(len)?.to_vec()).ok()
}

fn members(fields: &mut Fields<'_>) -> Option<Vec<u32>> {
    let count = usize::from(fields.u16()?);
    let mut members = Fields(fields.bytes(count * 4)?);
    Some(std::iter::from_fn(|| members.u32()).collect())
}

fn kind(fields: &mut Fields<'_>) -> Option<Entry<'static>> {
    Some(Entry::Hash {
        number: fields.u8()?,
        code: fields.u64()?,
        size: fields.u8().filter(|size| *size <= 32)?,
    })
}

fn codec(fields: &mut Fields<'_>) -> Option<Entry<'static>> {
    Some(Entry::Codec {
        number: fields.u8()?,
        is_v0: fields.u8()? != 0,
        codec: fields.u64()?,
    })
}

#[inline]
fn block<'a>(fields: &mut Fields<'a>, tag: u8) -> Option<Block<'a>> {
    let (name, head, words) = if matches!(tag, TAG_DISK_LONG | TAG_COLD_LONG) {
        let name = Name::Long(Box::new(get_cid(fields)?));
        (name, fields.u8()?, fields.bytes(20)?)
    } else {
        let whole = fields.bytes(55)?;
        let (&[hash, codec, head], rest) = whole.split_first_chunk()?;
        let (digest, words) = rest.split_first_chunk()?;
        let name = Name::Short {
            hash,
            codec,
            digest,
        };
        (name, head, words)
    };
    let (&[unit, offset, len, expiry_s, heat], []) = words.as_chunks() else {
        return None;
    };
    let [unit, offset, len, expiry_s, heat] =
        [unit, offset, len, expiry_s, heat].map(u32::from_le_bytes);
    let heat = f32::from_bits(heat);
    let place = if matches!(tag, TAG_COLD | TAG_COLD_LONG) {
        Place::Cold(Location {
            pack: unit,
            offset,
            bound: head,
        })
    } else {
        Place::Disk(Position {
            segment: unit,
            offset,
        })
    };
    let is_right = len <= index::MOST_LEN && (unit != 0 || matches!(place, Place::Cold(_)));
    is_right.then_some(Block {
        name,
        place,
        head,
        len,
        expiry_s,
        heat,
    })
}

fn value(fields: &mut Fields<'_>) -> Option<Entry<'static>> {
    Some(Entry::Value {
        key: text(fields)?,
        value: Value {
            at: Position {
                segment: fields.u32()?,
                offset: fields.u32()?,
            },
            len: fields.u32()?,
            expiry_ms: fields.u64()?,
        },
    })
}

#[cfg(test)]
mod tests;
