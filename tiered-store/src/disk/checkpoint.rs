//! The checkpoint: the whole index, pins and values in one file, so that opening reads only what the log holds beyond it.
//!
//! The file is a row of chunks: length 4, crc 4, bytes. Each crc continues the one before, so that chunks cannot be lost or swapped.
//! It is written beside the old one, synced, and renamed over it.

use std::io::{self, IoSlice};

use cid::Cid;

use super::{
    index::Place,
    log::{Log, Position},
    record::{Fields, MOST_SEQ, get_cid, put_cid},
};
use crate::{FORMAT, cold::Location, error::WriteFailure, state::Shared, vfs::VfsFile};

pub(crate) const FILE: &str = "checkpoint";
const TEMPORARY: &str = "checkpoint.tmp";
const MAGIC: &[u8; 8] = b"ANYPCHKP";
/// A chunk is written when it reaches this, in bytes.
const CHUNK: usize = 256 * 1024;
/// A longer one is damaged. A pin set's chunk is cut like all others.
const MOST_CHUNK: u32 = 4 * 1024 * 1024;

/// Log bytes between two checkpoints: at least 256 MiB, and 32 times the checkpoint's size, so that checkpoints are 3 % of what is written.
pub(crate) fn is_due(log: &Log) -> bool {
    log.since_checkpoint >= (256 * 1024 * 1024).max(32 * log.checkpoint_bytes)
}

/// What a checkpoint says, one thing at a time.
#[derive(Debug)]
pub(crate) enum Entry {
    /// Everything up to this seq, and before this place in the log, is in here.
    Start { seq: u64, segment: u32, offset: u64 },
    /// A block.
    Block(Block),
    /// A member of a pin set.
    Pin { set: String, cid: Cid },
    /// A value.
    Value {
        key: String,
        at: Position,
        len: u32,
        expiry_ms: u64,
    },
}

/// A block as a checkpoint has it.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) cid: Cid,
    pub(crate) place: Place,
    /// Bytes of the record before the block; on disk only.
    pub(crate) head: u8,
    pub(crate) len: u32,
    pub(crate) expiry_s: u32,
    /// Relative to the clock when the checkpoint was written.
    pub(crate) heat: f32,
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

/// Writes a checkpoint of the state as it is. What the log holds is synced first.
pub(crate) fn write(shared: &Shared, log: &mut Log) -> Result<(), WriteFailure> {
    log.sync(shared)?;
    let seq = log.next_seq.saturating_sub(1);
    let (segment, offset) = match &log.active {
        Some(active) => (active.id, active.len),
        None => (log.next_segment, 0),
    };
    let bytes = write_file(shared, log, seq, segment, offset).map_err(WriteFailure::from_io)?;
    log.checkpoint_seq = seq;
    log.checkpoint_bytes = bytes;
    log.since_checkpoint = 0;
    log.has_shadows = false;
    shared.counters.written.add(bytes);
    shared.counters.syncs.add(2);
    Ok(())
}

fn write_file(shared: &Shared, log: &Log, seq: u64, segment: u32, offset: u64) -> io::Result<u64> {
    let temporary = shared.dir.join(TEMPORARY);
    let file = shared.vfs.create(&temporary)?;
    let mut out = Writer {
        file: &*file,
        chunk: Vec::with_capacity(CHUNK + 4096),
        crc: 0,
        at: 0,
    };
    out.chunk.extend_from_slice(MAGIC);
    out.chunk.extend_from_slice(&FORMAT.to_le_bytes());
    out.chunk.extend_from_slice(&seq.to_le_bytes());
    out.chunk.extend_from_slice(&segment.to_le_bytes());
    out.chunk.extend_from_slice(&offset.to_le_bytes());
    // Seqs given to writes that failed lie below `seq` as well, so no abort has to be kept.
    debug_assert!(log.next_seq > seq || seq == 0);
    out.flush()?;
    let now = shared.clock.get().now();
    let mut number = 0;
    while let Some(entries) = shared.index.shard(number) {
        for entry in entries
            .iter()
            .filter(|entry| !entry.is_damaged() || entry.pins > 0)
        {
            let Some(cid) = shared.kinds.cid(&entry.key(), entry.codec) else {
                continue;
            };
            let (tag, unit, offset, last) = match entry.place() {
                Place::Disk(at) => (b'b', at.segment, at.offset, entry.head()),
                Place::Cold(at) => (b'c', at.pack, at.offset, at.bound),
            };
            out.chunk.push(tag);
            put_cid(&cid, &mut out.chunk);
            for word in [unit, offset, entry.len(), entry.expiry_s] {
                out.chunk.extend_from_slice(&word.to_le_bytes());
            }
            out.chunk
                .extend_from_slice(&((f64::from(entry.heat) - now) as f32).to_le_bytes());
            out.chunk.push(last);
            out.flush_if_full()?;
        }
        number += 1;
    }
    {
        let pins = shared.pins.read();
        for set in pins.names() {
            out.chunk.push(b's');
            out.text(&set);
            for id in pins.members(&set) {
                let Some(entry) = shared.index.by_id(id) else {
                    continue;
                };
                let Some(cid) = shared.kinds.cid(&entry.key(), entry.codec) else {
                    continue;
                };
                out.chunk.push(b'p');
                put_cid(&cid, &mut out.chunk);
                out.flush_if_full()?;
            }
        }
    }
    let mut values: Vec<_> = shared
        .values
        .read()
        .iter()
        .map(|(key, value)| (key.clone(), *value))
        .collect();
    values.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    for (key, value) in values {
        out.chunk.push(b'v');
        out.text(&key);
        for word in [value.at.segment, value.at.offset, value.len] {
            out.chunk.extend_from_slice(&word.to_le_bytes());
        }
        out.chunk.extend_from_slice(&value.expiry_ms.to_le_bytes());
        out.flush_if_full()?;
    }
    out.chunk.push(b'e');
    out.flush()?;
    let bytes = out.at;
    file.sync_data()?;
    shared.vfs.rename(&temporary, &shared.dir.join(FILE))?;
    shared.vfs.sync_dir(&shared.dir)?;
    Ok(bytes)
}

/// Reads a checkpoint and hands out what it says. `false`: it is damaged, and what was handed out does not count.
pub(crate) fn read(file: &dyn VfsFile, mut each: impl FnMut(Entry)) -> io::Result<bool> {
    let end = file.len()?;
    let (mut at, mut crc, mut set) = (0, 0, String::new());
    while at < end {
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
        let mut chunk = vec![0; len as usize];
        file.read_exact_at(at + 8, &mut chunk)?;
        crc = crc32c::crc32c_append(crc, &chunk);
        if crc != expected {
            return Ok(false);
        }
        let mut fields = Fields(&chunk);
        if at == 0 {
            match start(&mut fields) {
                Some(entry) => each(entry),
                None => return Ok(false),
            }
        }
        at += 8 + u64::from(len);
        while let Some(tag) = fields.u8() {
            let entry = match tag {
                b'e' => return Ok(at == end && fields.0.is_empty()),
                b's' => {
                    let Some(name) = text(&mut fields) else {
                        return Ok(false);
                    };
                    set = name;
                    continue;
                }
                b'p' => get_cid(&mut fields).map(|cid| Entry::Pin {
                    set: set.clone(),
                    cid,
                }),
                b'b' | b'c' => block(&mut fields, tag == b'c').map(Entry::Block),
                b'v' => value(&mut fields),
                _ => None,
            };
            match entry {
                Some(entry) => each(entry),
                None => return Ok(false),
            }
        }
    }
    Ok(false)
}

fn start(fields: &mut Fields<'_>) -> Option<Entry> {
    if fields.bytes(8)? != MAGIC || fields.u32()? != FORMAT {
        return None;
    }
    Some(Entry::Start {
        seq: fields.u64().filter(|seq| *seq <= MOST_SEQ)?,
        segment: fields.u32().filter(|segment| *segment < u32::MAX)?,
        offset: fields.u64()?,
    })
}

fn text(fields: &mut Fields<'_>) -> Option<String> {
    let len = usize::from(fields.u16()?);
    String::from_utf8(fields.bytes(len)?.to_vec()).ok()
}

fn block(fields: &mut Fields<'_>, is_cold: bool) -> Option<Block> {
    let cid = get_cid(fields)?;
    let (unit, offset, len) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (expiry_s, heat) = (fields.u32()?, f32::from_bits(fields.u32()?));
    let head = fields.u8()?;
    let place = if is_cold {
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
    Some(Block {
        cid,
        place,
        head,
        len,
        expiry_s,
        heat,
    })
}

fn value(fields: &mut Fields<'_>) -> Option<Entry> {
    Some(Entry::Value {
        key: text(fields)?,
        at: Position {
            segment: fields.u32()?,
            offset: fields.u32()?,
        },
        len: fields.u32()?,
        expiry_ms: fields.u64()?,
    })
}
