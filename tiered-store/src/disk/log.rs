//! The writer's end of the log: appends to one active segment, syncs it, seals it, gives it up when the device fails.

use std::{collections::BTreeMap, io::IoSlice, sync::Arc};

use bytes::Bytes;
use web_time::Instant;

use super::{
    compact::Compaction,
    record::{Header, Kind},
    segment,
};
use crate::{error::WriteFailure, state::Shared, vfs::VfsFile};

/// Everything that only the one writing job touches.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) segments: BTreeMap<u32, Segment>,
    pub(crate) active: Option<Active>,
    pub(crate) next_segment: u32,
    pub(crate) next_seq: u64,
    /// Seqs whose sync failed; told in the next segment before anything else is acknowledged.
    pub(crate) aborts: Vec<(u64, u64)>,
    /// Last seq that the checkpoint covers.
    pub(crate) checkpoint_seq: u64,
    pub(crate) checkpoint_bytes: u64,
    /// Log bytes written since.
    pub(crate) since_checkpoint: u64,
    /// Whether the log may hold records beyond the checkpoint that the index passed over without one that says so: of blocks that were
    /// evicted, or written again. They would count again if what came after them were gone.
    pub(crate) has_shadows: bool,
    pub(crate) compaction: Option<Compaction>,
    /// Since when puts found no room for want of the cold tier.
    pub(crate) lacking_since: Option<Instant>,
    pub(crate) budget: super::compact::Budget,
}

/// A segment file as the writer sees it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Segment {
    /// Bytes of the file.
    pub(crate) len: u64,
    /// Footprints of the records that an index points to.
    pub(crate) live: u64,
}

/// The segment that grows.
pub(crate) struct Active {
    pub(crate) id: u32,
    pub(crate) file: Arc<dyn VfsFile>,
    pub(crate) len: u64,
    /// Up to here it is durable.
    pub(crate) synced: u64,
    /// First seq that is not durable.
    pub(crate) unsynced_seq: u64,
    /// The footer to be.
    pub(crate) items: Vec<u8>,
    pub(crate) count: u32,
}

/// A record to be written.
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) class: u8,
    pub(crate) expiry_ms: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) payload: Bytes,
    pub(crate) payload_crc: u32,
}

impl Draft {
    pub(crate) fn new(kind: Kind, key: Vec<u8>, payload: Bytes) -> Draft {
        Draft {
            kind,
            flags: 0,
            class: 0,
            expiry_ms: 0,
            key,
            payload_crc: crc32c::crc32c(&payload),
            payload,
        }
    }

    pub(crate) fn record_len(&self) -> u64 {
        (super::record::HEADER + self.key.len() + self.payload.len()) as u64
    }

    pub(crate) fn footprint(&self) -> u64 {
        segment::footprint(self.record_len(), self.key.len() as u64)
    }
}

/// Where a record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
}

impl Log {
    /// Bytes that still fit into the active segment.
    pub(crate) fn room_in_segment(&self, shared: &Shared) -> u64 {
        match &self.active {
            Some(active) if active.items.len() < segment::MOST_ITEM_BYTES => {
                shared.segment_bytes().saturating_sub(active.len)
            }
            _ => shared
                .segment_bytes()
                .saturating_sub(segment::SEGMENT_HEADER),
        }
    }

    /// Writes records into one segment, not yet durable. On an error none of them counts.
    pub(crate) fn append(
        &mut self,
        shared: &Shared,
        drafts: &[Draft],
    ) -> Result<Vec<Position>, WriteFailure> {
        let total: u64 = drafts.iter().map(Draft::record_len).sum();
        self.open_segment(shared, total)?;
        if !self.aborts.is_empty() {
            let aborts: Vec<Draft> = self
                .aborts
                .iter()
                .map(|(first, last)| {
                    let range = [first.to_le_bytes(), last.to_le_bytes()].concat();
                    Draft::new(Kind::Abort, Vec::new(), range.into())
                })
                .collect();
            self.write(shared, &aborts)?;
            // If this sync fails the list stays and grows; written twice it does no harm.
            self.sync(shared)?;
            self.aborts.clear();
        }
        self.write(shared, drafts)
    }

    fn write(&mut self, shared: &Shared, drafts: &[Draft]) -> Result<Vec<Position>, WriteFailure> {
        let Some(active) = &mut self.active else {
            return Err(WriteFailure::Closed);
        };
        let first_seq = self.next_seq;
        let (mut heads, mut ends) = (Vec::new(), Vec::new());
        let (mut items, mut places) = (Vec::new(), Vec::new());
        let mut at = active.len;
        for draft in drafts {
            let header = Header {
                kind: draft.kind,
                flags: draft.flags,
                class: draft.class,
                key_len: u16::try_from(draft.key.len()).unwrap_or(u16::MAX),
                payload_len: u32::try_from(draft.payload.len()).unwrap_or(u32::MAX),
                expiry_ms: draft.expiry_ms,
                seq: self.next_seq,
            };
            self.next_seq += 1;
            header.encode(&draft.key, draft.payload_crc, &mut heads);
            ends.push(heads.len());
            let offset = u32::try_from(at).unwrap_or(u32::MAX);
            segment::push_item(&header, offset, &draft.key, &mut items);
            places.push(Position {
                segment: active.id,
                offset,
            });
            at += draft.record_len();
        }
        let mut parts = Vec::with_capacity(drafts.len() * 2);
        let mut start = 0;
        for (draft, end) in drafts.iter().zip(ends) {
            parts.push(IoSlice::new(heads.get(start..end).unwrap_or_default()));
            if !draft.payload.is_empty() {
                parts.push(IoSlice::new(&draft.payload));
            }
            start = end;
        }
        let written = active.file.write_all_at(active.len, &parts);
        shared.counters.written.add(at - active.len);
        if let Err(error) = written {
            if active.file.set_len(active.len).is_err() {
                self.poison(shared, first_seq);
            }
            return Err(WriteFailure::from_io(error));
        }
        self.since_checkpoint += at - active.len;
        if active.synced == active.len {
            active.unsynced_seq = first_seq;
        }
        active.len = at;
        active.items.extend_from_slice(&items);
        active.count += u32::try_from(drafts.len()).unwrap_or(u32::MAX);
        let (id, len) = (active.id, active.len);
        self.set_len(shared, id, len);
        Ok(places)
    }

    /// Makes what was appended durable. A failure gives the segment up: it is never synced again, since the kernel may have
    /// dropped the pages that it could not write.
    pub(crate) fn sync(&mut self, shared: &Shared) -> Result<(), WriteFailure> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if active.synced == active.len {
            return Ok(());
        }
        shared.counters.syncs.add(1);
        match active.file.sync_data() {
            Ok(()) => {
                active.synced = active.len;
                Ok(())
            }
            Err(error) => {
                let first = active.unsynced_seq;
                self.poison(shared, first);
                Err(WriteFailure::Sync(Arc::new(error)))
            }
        }
    }

    fn poison(&mut self, shared: &Shared, first_seq: u64) {
        let Some(active) = self.active.take() else {
            return;
        };
        tracing::error!(
            segment = active.id,
            "the device failed; the segment is given up for writing"
        );
        shared.counters.poisoned.add(1);
        if self.next_seq > first_seq {
            self.aborts.push((first_seq, self.next_seq - 1));
        }
        // Should the process die before it can write that: the pages that the device refused may still be read, and would pass for
        // durable at the next opening.
        if active.file.set_len(active.synced).is_ok() {
            self.set_len(shared, active.id, active.synced);
        }
        // Relaxed writes that were acknowledged without a sync are lost, as their durability says.
        let mut lost = Vec::new();
        shared.index.for_each(|entry| {
            if entry
                .position()
                .is_some_and(|at| at.segment == active.id && u64::from(at.offset) >= active.synced)
            {
                lost.push((entry.key(), entry.pins > 0));
            }
        });
        self.has_shadows |= !lost.is_empty();
        for (key, pinned) in lost {
            if pinned {
                // One that was put again: its pins name this entry. It waits for the next put.
                shared.index.update(&key, |entry| entry.set_damaged());
                shared.memory.remove(&key);
            } else {
                shared.forget(self, &key);
            }
        }
    }

    pub(crate) fn set_len(&mut self, shared: &Shared, id: u32, len: u64) {
        let segment = self.segments.entry(id).or_insert_with(|| {
            shared.counters.segments.add(1);
            Segment::default()
        });
        shared.counters.used.add(len);
        shared.counters.used.sub(segment.len);
        segment.len = len;
    }

    fn open_segment(&mut self, shared: &Shared, total: u64) -> Result<(), WriteFailure> {
        if let Some(active) = &self.active {
            let full =
                active.len + total > shared.segment_bytes() && active.len > segment::SEGMENT_HEADER;
            if !full && active.items.len() < segment::MOST_ITEM_BYTES {
                return Ok(());
            }
            self.seal(shared)?;
        }
        let id = self.next_segment;
        self.next_segment = id.checked_add(1).ok_or(WriteFailure::Closed)?;
        let path = shared.dir.join(segment::file_name(id));
        let create = || {
            let file = shared.vfs.create(&path)?;
            file.write_all_at(0, &[IoSlice::new(&segment::encode_header(id))])?;
            file.sync_data()?;
            shared.vfs.sync_dir(&shared.dir)?;
            Ok(file)
        };
        let file = match create() {
            Ok(file) => file,
            Err(error) => {
                // Empty at best: recovery ignores it, and this number is not used again.
                let _ = shared.vfs.remove(&path);
                return Err(WriteFailure::from_io(error));
            }
        };
        shared.counters.syncs.add(2);
        shared.counters.written.add(segment::SEGMENT_HEADER);
        shared.keep_file(id, file.clone());
        self.active = Some(Active {
            id,
            file,
            len: segment::SEGMENT_HEADER,
            synced: segment::SEGMENT_HEADER,
            unsynced_seq: self.next_seq,
            items: Vec::new(),
            count: 0,
        });
        self.set_len(shared, id, segment::SEGMENT_HEADER);
        Ok(())
    }

    /// Writes the footer of the active segment; the next append opens another.
    fn seal(&mut self, shared: &Shared) -> Result<(), WriteFailure> {
        self.sync(shared)?;
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let written = segment::write_footer(
            &*active.file,
            active.len,
            active.id,
            &active.items,
            active.count,
        );
        match written {
            Ok(bytes) => {
                shared.counters.written.add(bytes);
                shared.counters.syncs.add(1);
                let (id, len) = (active.id, active.len + bytes);
                let synced = active.file.sync_data();
                if let Err(error) = synced {
                    // The records are durable, the footer may not be: recovery scans the segment then.
                    tracing::error!(segment = id, %error, "the footer was not confirmed");
                    shared.counters.poisoned.add(1);
                }
                self.set_len(shared, id, len);
                self.active = None;
                Ok(())
            }
            Err(error) => {
                if active.file.set_len(active.len).is_err() {
                    let next = self.next_seq;
                    self.poison(shared, next);
                }
                Err(WriteFailure::from_io(error))
            }
        }
    }
}
