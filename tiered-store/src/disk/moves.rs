//! Moves between the disk and the cold tier, as the writing job carries them out: the copy is made and durable before, the record of the
//! move is synced, then the index is flipped where the block still is what was copied. Whatever happened meanwhile wins.

use std::io;

use bytes::Bytes;
use cid::Cid;

use super::{
    index::{Entry, Place, seconds},
    log::{Draft, Log},
    record::{Fields, Kind, Record, get_cid, put_cid},
};
use crate::{
    cold::Location,
    error::WriteFailure,
    key::Key,
    state::{Shared, is_record_of},
};

/// Blocks in one record of a move, so that a record stays below a megabyte.
const BLOCKS_PER_RECORD: usize = 8 * 1024;

/// A block that was copied into a pack that is durable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copied {
    pub(crate) key: Key,
    /// Where it was copied from: on disk (a demotion) or in another pack (a repack).
    pub(crate) from: Place,
    pub(crate) to: Location,
    /// When its time is over, as its record says, in milliseconds since 1970; 0 for never.
    pub(crate) expiry_ms: u64,
}

/// What a move did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Blocks that are at their new place. The others were deleted, pinned, or written again since they were copied.
    pub(crate) blocks: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// Says that blocks are in pack `pack` now. Those that are pinned, or no longer where they were copied from, are passed over.
pub(crate) fn to_pack(
    shared: &Shared,
    log: &mut Log,
    pack: u32,
    copied: &[Copied],
) -> Result<Moved, WriteFailure> {
    let mut moved = Moved::default();
    for part in copied.chunks(BLOCKS_PER_RECORD) {
        let mut payload = pack.to_le_bytes().to_vec();
        let mut flips = Vec::new();
        for block in part.iter().filter(|block| block.to.pack == pack) {
            let Some(entry) = shared.index.get(&block.key).filter(|entry| {
                entry.place() == block.from && entry.pins == 0 && !entry.is_damaged()
            }) else {
                continue;
            };
            let Some(cid) = shared.kinds.cid(&entry.key(), entry.codec) else {
                continue;
            };
            let expiry_s = cold_seconds(block.expiry_ms);
            put_cid(&cid, &mut payload);
            payload.extend_from_slice(&block.to.offset.to_le_bytes());
            payload.push(block.to.bound);
            payload.extend_from_slice(&entry.len().to_le_bytes());
            payload.extend_from_slice(&expiry_s.to_le_bytes());
            flips.push((entry, block.to, expiry_s));
        }
        if flips.is_empty() {
            continue;
        }
        // Like deletions this asks for no room: it is small, garbage at once, and gives room.
        log.append(
            shared,
            &[Draft::new(Kind::Demoted, Vec::new(), payload.into())],
        )?;
        log.sync(shared)?;
        for (old, to, expiry_s) in flips {
            let new = shared.index.update(&old.key(), |entry| {
                entry.move_to_cold(to, expiry_s);
            });
            shared.release(log, &old);
            if let Some(new) = new {
                shared.retain(log, &new);
                moved.blocks += 1;
                moved.bytes += u64::from(new.len());
            }
        }
    }
    Ok(moved)
}

/// When the time of a block in the cold tier is over, in seconds since 1970; 0 for never. Rounded down, from the exact time: a block that goes
/// to and fro must not lose a second each time, and none lives longer than it should.
pub(crate) fn cold_seconds(expiry_ms: u64) -> u32 {
    match expiry_ms {
        0 => 0,
        ms => seconds(ms / 1000).max(1),
    }
}

/// Says that nothing is in a pack any more, durably; what the index still has there is forgotten. The pack may be removed afterwards.
pub(crate) fn drop_pack(shared: &Shared, log: &mut Log, pack: u32) -> Result<u64, WriteFailure> {
    log.append(
        shared,
        &[Draft::new(
            Kind::DropPack,
            Vec::new(),
            Bytes::copy_from_slice(&pack.to_le_bytes()),
        )],
    )?;
    log.sync(shared)?;
    let lost = in_pack(shared, pack);
    for entry in &lost {
        shared.forget(log, &entry.key());
    }
    shared.packs.forget(pack);
    Ok(lost.len() as u64)
}

/// The blocks that the index has in a pack. Looks at the whole index.
pub(crate) fn in_pack(shared: &Shared, pack: u32) -> Vec<Entry> {
    let mut entries = Vec::new();
    shared.index.for_each(|entry| {
        if entry.location().is_some_and(|at| at.pack == pack) {
            entries.push(*entry);
        }
    });
    entries
}

/// A block as it lies on disk.
#[derive(Debug, Clone)]
pub(crate) struct OnDisk {
    pub(crate) cid: Cid,
    pub(crate) data: Bytes,
    /// Class and importance as in its record.
    pub(crate) class: u8,
    /// When its time is over, in milliseconds since 1970; 0 for never.
    pub(crate) expiry_ms: u64,
}

/// Reads a block that is to be copied, with one read; `None` if it is not there any more or damaged.
pub(crate) fn read(shared: &Shared, entry: &Entry) -> io::Result<Option<OnDisk>> {
    let Some(at) = entry.position() else {
        return Ok(None);
    };
    let Some(cid) = shared.kinds.cid(&entry.key(), entry.codec) else {
        return Ok(None);
    };
    let bytes = match shared.read(at, entry.record_len()) {
        Ok(bytes) => bytes,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(Record::parse(&bytes)
        .filter(|record| is_record_of(shared, record, &entry.key()))
        .map(|record| OnDisk {
            cid,
            class: record.header.class,
            expiry_ms: record.header.expiry_ms,
            data: bytes.slice(bytes.len() - record.payload.len()..),
        }))
}

/// One block of a record of kind [`Kind::Demoted`].
pub(crate) struct Listed {
    pub(crate) cid: Cid,
    pub(crate) at: Location,
    pub(crate) len: u32,
    pub(crate) expiry_s: u32,
}

/// Reads the payload of a record of kind [`Kind::Demoted`].
pub(crate) fn parse_demoted(payload: &[u8]) -> Option<Vec<Listed>> {
    let mut fields = Fields(payload);
    let pack = fields.u32()?;
    let mut blocks = Vec::new();
    while !fields.0.is_empty() {
        let cid = get_cid(&mut fields)?;
        let (offset, bound) = (fields.u32()?, fields.u8()?);
        blocks.push(Listed {
            cid,
            at: Location {
                pack,
                offset,
                bound,
            },
            len: fields.u32()?,
            expiry_s: fields.u32()?,
        });
    }
    Some(blocks)
}

#[cfg(test)]
mod tests;
