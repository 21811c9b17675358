//! The writer's end of the log: appends to the open segment of each lane, syncs, seals, and gives a segment up when the device fails.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    io::IoSlice,
    sync::Arc,
};

use bytes::Bytes;
use hashbrown::HashSet;
use web_time::Instant;

use super::{
    aborts,
    checkpoint::Checkpoints,
    compact::{Budget, Compaction},
    lane::{Lane, MOST_BY_TIME},
    record::{Header, Kind, SETTLED, put_cid},
    segment::{self, Item, Items, SegmentHeader},
};
use crate::{error::WriteFailure, key::Key, state::Shared, vfs::VfsFile};

/// CIDs in one record of blocks that the store forgot.
const GONE_PER_RECORD: usize = 16 * 1024;

/// Everything that only the one writing job touches.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) segments: BTreeMap<u32, Segment>,
    pub(crate) active: BTreeMap<Lane, Active>,
    pub(crate) next_segment: u32,
    pub(crate) next_seq: u64,
    /// Records that do not count, as their sync failed. Told to the disk before anything else is acknowledged.
    pub(crate) aborts: Vec<aborts::Range>,
    /// Whether the disk has to be told.
    pub(crate) has_untold_aborts: bool,
    /// Seqs that were appended and do not count until [`Log::applied`].
    pending: Option<(u64, u64)>,
    /// What the store forgot by itself and the log does not know of yet. It goes out with the next append.
    gone: Vec<Gone>,
    /// What of it is in the log and not known to be durable.
    gone_pending: Vec<Gone>,
    pub(crate) checkpoints: Checkpoints,
    /// Log bytes written since the last checkpoint began.
    pub(crate) since_checkpoint: u64,
    pub(crate) compaction: Option<Compaction>,
    /// Segments that the device did not give all live records of, and how many bytes were live then. With fewer they are tried again.
    pub(crate) unreadable: BTreeMap<u32, u64>,
    /// Since when puts found no room for want of the cold tier.
    pub(crate) lacking_since: Option<Instant>,
    /// What the group under way writes or pins: it is not forgotten while room is made for it.
    pub(crate) keep: HashSet<Key>,
    pub(crate) budget: Budget,
}

/// Something that the store forgot without being asked.
enum Gone {
    /// A CID as in a record.
    Block(Vec<u8>),
    /// A key.
    Value(String),
}

/// A segment file as the writer sees it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Segment {
    /// Bytes of the file.
    pub(crate) len: u64,
    /// Footprints of the records that an index points to.
    pub(crate) live: u64,
}

/// A segment that grows.
pub(crate) struct Active {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn VfsFile>,
    pub(crate) len: u64,
    /// Up to here it is durable.
    pub(crate) synced: u64,
    /// First seq that is not durable.
    pub(crate) unsynced_seq: u64,
    /// What was in it before the process began.
    pub(crate) before: Before,
    /// The rest of the footer to be.
    pub(crate) items: Items,
    /// Seq of the last append, to find the one that was not used for longest.
    pub(crate) used_seq: u64,
}

/// Records that are not listed in memory: the file is read again for its footer, which may be long in coming.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Before {
    /// Where they end.
    pub(crate) end: u64,
    pub(crate) count: u32,
    /// Bytes of their items in the footer.
    pub(crate) bytes: usize,
}

impl Active {
    pub(crate) fn id(&self) -> u32 {
        self.header.id
    }

    /// Whether its footer has grown as long as it may.
    fn is_listed_full(&self) -> bool {
        self.before.bytes + self.items.bytes.len() >= segment::MOST_ITEM_BYTES
    }

    /// The footer; `None` if what was there before cannot be read as it was then.
    fn footer(&self) -> Option<Cow<'_, Items>> {
        if self.before.count == 0 {
            return Some(Cow::Borrowed(&self.items));
        }
        let scan = segment::scan(&self.file, Some(self.header), self.before.end).ok()?;
        let mut items = Items::default();
        scan.items
            .iter()
            .take_while(|item| u64::from(item.offset) < self.before.end)
            .for_each(|item| items.push(&item));
        if (items.count, items.bytes.len()) != (self.before.count, self.before.bytes) {
            return None;
        }
        self.items.iter().for_each(|item| items.push(&item));
        Some(Cow::Owned(items))
    }
}

/// A record to be written.
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    pub(crate) lane: Lane,
    pub(crate) flags: u8,
    pub(crate) class: u8,
    pub(crate) expiry_ms: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) payload: Bytes,
    pub(crate) payload_crc: u32,
}

impl Draft {
    /// In the main lane.
    pub(crate) fn new(kind: Kind, key: Vec<u8>, payload: Bytes) -> Draft {
        Draft {
            kind,
            lane: Lane::Main,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
}

impl Log {
    /// Bytes that still fit into the segment of the main lane.
    pub(crate) fn room_in_segment(&self, shared: &Shared) -> u64 {
        match self.active.get(&Lane::Main) {
            Some(active) if !active.is_listed_full() => {
                shared.segment_bytes().saturating_sub(active.len)
            }
            _ => shared
                .segment_bytes()
                .saturating_sub(segment::SEGMENT_HEADER),
        }
    }

    /// Remembers that a block was forgotten without a record of its own; the next append tells it.
    pub(crate) fn note_gone(&mut self, cid: &cid::Cid) {
        let mut bytes = Vec::new();
        put_cid(cid, &mut bytes);
        self.gone.push(Gone::Block(bytes));
    }

    /// The same for a value.
    pub(crate) fn note_gone_value(&mut self, key: String) {
        self.gone.push(Gone::Value(key));
    }

    fn gone_records(&self) -> Vec<Draft> {
        let (mut drafts, mut blocks) = (Vec::new(), Vec::new());
        for gone in &self.gone {
            match gone {
                Gone::Block(cid) => blocks.push(cid.as_slice()),
                Gone::Value(key) => drafts.push(Draft::new(
                    Kind::DeleteValue,
                    key.clone().into_bytes(),
                    Bytes::new(),
                )),
            }
        }
        let lists = blocks.chunks(GONE_PER_RECORD);
        drafts.extend(lists.map(|cids| Draft::new(Kind::Gone, Vec::new(), cids.concat().into())));
        drafts
    }

    /// Whether the disk does not know yet what was forgotten.
    pub(crate) fn has_gone(&self) -> bool {
        !self.gone.is_empty() || !self.gone_pending.is_empty()
    }

    /// Writes records, those of a lane into one segment, not yet durable. On an error none of them counts. Once they count, by a sync or
    /// without one ([`Log::applied`]), the caller changes the index.
    pub(crate) fn append(
        &mut self,
        shared: &Shared,
        drafts: &[Draft],
    ) -> Result<Vec<Position>, WriteFailure> {
        self.tell_aborts(shared)?;
        if !self.gone.is_empty() {
            let gone = self.gone_records();
            let gone = self.numbered(&gone);
            self.write(shared, Lane::Main, &gone)?;
            self.gone_pending.append(&mut self.gone);
        }
        // In the order of the drafts, whatever lanes they go to: of two that are about one thing the later one counts.
        let drafts = self.numbered(drafts);
        let mut lanes: Vec<Lane> = drafts.iter().map(|(_, draft)| draft.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        if let [lane] = *lanes {
            return self.write(shared, lane, &drafts);
        }
        let mut positions = vec![
            Position {
                segment: 0,
                offset: 0
            };
            drafts.len()
        ];
        for lane in lanes {
            let of_lane: Vec<usize> = (0..drafts.len())
                .filter(|n| drafts.get(*n).is_some_and(|(_, draft)| draft.lane == lane))
                .collect();
            let parts: Vec<_> = of_lane
                .iter()
                .filter_map(|n| drafts.get(*n).copied())
                .collect();
            let written = self.write(shared, lane, &parts);
            let written = written.inspect_err(|_| self.abort_pending())?;
            for (n, position) in of_lane.into_iter().zip(written) {
                if let Some(place) = positions.get_mut(n) {
                    *place = position;
                }
            }
        }
        Ok(positions)
    }

    /// Gives each draft its seq.
    fn numbered<'a>(&mut self, drafts: &'a [Draft]) -> Vec<(u64, &'a Draft)> {
        let numbered: Vec<_> = (self.next_seq..).zip(drafts).collect();
        self.next_seq += numbered.len() as u64;
        numbered
    }

    /// What was appended counts without a sync.
    pub(crate) fn applied(&mut self) {
        self.pending = None;
    }

    /// What was appended does not count.
    pub(crate) fn abort_pending(&mut self) {
        self.gone.append(&mut self.gone_pending);
        if let Some((first, last)) = self.pending.take() {
            self.abort(aborts::Range {
                segment: 0,
                first,
                last,
            });
        }
    }

    fn abort(&mut self, range: aborts::Range) {
        self.aborts.push(range);
        self.has_untold_aborts = true;
    }

    fn tell_aborts(&mut self, shared: &Shared) -> Result<(), WriteFailure> {
        if self.has_untold_aborts {
            aborts::write(shared, &self.aborts).map_err(WriteFailure::from_io)?;
            self.has_untold_aborts = false;
        }
        Ok(())
    }

    fn write(
        &mut self,
        shared: &Shared,
        lane: Lane,
        drafts: &[(u64, &Draft)],
    ) -> Result<Vec<Position>, WriteFailure> {
        let total: u64 = drafts.iter().map(|(_, draft)| draft.record_len()).sum();
        let Some((first_seq, _)) = drafts.first().copied() else {
            return Ok(Vec::new());
        };
        self.open_segment(shared, lane, total, first_seq)?;
        let Some(active) = self.active.get_mut(&lane) else {
            return Err(WriteFailure::Closed);
        };
        let (mut heads, mut ends) = (Vec::new(), Vec::new());
        let mut positions = Vec::with_capacity(drafts.len());
        let items_before = (active.items.bytes.len(), active.items.count);
        let mut at = active.len;
        for (n, (seq, draft)) in drafts.iter().enumerate() {
            let settled = if n == 0 && active.synced == active.len {
                SETTLED
            } else {
                0
            };
            let header = Header {
                kind: draft.kind,
                flags: draft.flags | settled,
                class: draft.class,
                key_len: u16::try_from(draft.key.len()).unwrap_or(u16::MAX),
                payload_len: u32::try_from(draft.payload.len()).unwrap_or(u32::MAX),
                expiry_ms: draft.expiry_ms,
                seq: *seq,
                token: active.header.token(at),
            };
            header.encode(&draft.key, draft.payload_crc, &mut heads);
            ends.push(heads.len());
            let offset = u32::try_from(at).unwrap_or(u32::MAX);
            active.items.push(&Item {
                kind: draft.kind,
                class: draft.class,
                payload_len: header.payload_len,
                offset,
                expiry_ms: draft.expiry_ms,
                seq: header.seq,
                key: &draft.key,
            });
            positions.push(Position {
                segment: active.header.id,
                offset,
            });
            at += draft.record_len();
        }
        let mut parts = Vec::with_capacity(drafts.len() * 2);
        let mut start = 0;
        for ((_, draft), end) in drafts.iter().zip(ends) {
            parts.push(IoSlice::new(heads.get(start..end).unwrap_or_default()));
            if !draft.payload.is_empty() {
                parts.push(IoSlice::new(&draft.payload));
            }
            start = end;
        }
        let written = active.file.write_all_at(active.len, &parts);
        shared.counters.written.add(at - active.len);
        if let Err(error) = written {
            active.items.bytes.truncate(items_before.0);
            active.items.count = items_before.1;
            if active.file.set_len(active.len).is_err() {
                self.poison(shared, lane, first_seq);
            }
            return Err(WriteFailure::from_io(error));
        }
        self.since_checkpoint += at - active.len;
        if active.synced == active.len {
            active.unsynced_seq = first_seq;
        }
        active.len = at;
        active.used_seq = self.next_seq;
        let id = active.id();
        let last = self.next_seq - 1;
        let first = self
            .pending
            .map_or(first_seq, |(first, _)| first.min(first_seq));
        self.pending = Some((first, last));
        self.set_len(shared, id, at);
        Ok(positions)
    }

    /// Makes what was appended durable. A failure gives the segment up: it is never synced again, since the kernel may have
    /// dropped the pages that it could not write. What did not count before does not count then, in any lane.
    pub(crate) fn sync(&mut self, shared: &Shared) -> Result<(), WriteFailure> {
        self.sync_lanes(shared)?;
        self.pending = None;
        Ok(())
    }

    fn sync_lanes(&mut self, shared: &Shared) -> Result<(), WriteFailure> {
        let dirty: Vec<Lane> = self
            .active
            .iter()
            .filter(|(_, active)| active.synced < active.len)
            .map(|(lane, _)| *lane)
            .collect();
        let mut failed = None;
        for lane in dirty {
            let Some(active) = self.active.get_mut(&lane) else {
                continue;
            };
            shared.counters.syncs.add(1);
            match active.file.sync_data() {
                Ok(()) => active.synced = active.len,
                Err(error) => {
                    self.poison(shared, lane, self.next_seq);
                    failed = Some(WriteFailure::Sync(Arc::new(error)));
                }
            }
        }
        match failed {
            None => {
                self.gone_pending.clear();
                Ok(())
            }
            Some(failure) => {
                self.abort_pending();
                Err(failure)
            }
        }
    }

    /// Makes durable what the store forgot by itself, and everything else.
    pub(crate) fn settle(&mut self, shared: &Shared) -> Result<(), WriteFailure> {
        if !self.gone.is_empty() {
            self.append(shared, &[])?;
        }
        self.sync(shared)
    }

    /// Gives a lane's segment up. Of what was being written in it, seqs from `failed` on do not count.
    fn poison(&mut self, shared: &Shared, lane: Lane, failed: u64) {
        let Some(active) = self.active.remove(&lane) else {
            return;
        };
        let id = active.id();
        tracing::error!(
            segment = id,
            "the device failed; the segment is given up for writing"
        );
        shared.counters.poisoned.add(1);
        let is_dirty = active.len > active.synced;
        let first = if is_dirty {
            active.unsynced_seq
        } else {
            failed
        };
        if self.next_seq > first {
            self.abort(aborts::Range {
                segment: id,
                first,
                last: self.next_seq - 1,
            });
        }
        self.abort_pending();
        // Should the process die before it can write that: the pages that the device refused may still be read, and would pass for
        // durable at the next opening.
        if active.file.set_len(active.synced).is_ok() {
            self.set_len(shared, id, active.synced);
        }
        // Relaxed writes that were acknowledged without a sync are lost, as their durability says.
        let is_lost = |at: Position| at.segment == id && u64::from(at.offset) >= active.synced;
        let mut lost = Vec::new();
        shared.index.for_each(|entry| {
            if entry.position().is_some_and(is_lost) {
                lost.push((entry.key(), entry.pins > 0));
            }
        });
        for (key, pinned) in lost {
            if pinned {
                // One that was put again: its pins name this entry. It waits for the next put.
                shared.index.update(&key, |entry| entry.set_damaged());
                shared.memory.remove(&key);
            } else {
                shared.forget(self, &key);
            }
        }
        let keys: Vec<String> = {
            let values = shared.values.read();
            let lost = values.iter().filter(|(_, value)| is_lost(value.at));
            lost.map(|(key, _)| key.clone()).collect()
        };
        for key in keys {
            super::compact::forget_value(shared, self, &key);
        }
    }

    pub(crate) fn set_len(&mut self, shared: &Shared, id: u32, len: u64) {
        let segment = self.segments.entry(id).or_insert_with(|| {
            shared.counters.segments.add(1);
            shared.add_segment(id);
            Segment::default()
        });
        shared.counters.used.add(len);
        shared.counters.used.sub(segment.len);
        segment.len = len;
    }

    /// The file is gone.
    pub(crate) fn remove_segment(&mut self, shared: &Shared, id: u32) {
        shared.remove_segment(id);
        self.unreadable.remove(&id);
        if let Some(segment) = self.segments.remove(&id) {
            shared.counters.segments.sub(1);
            shared.counters.used.sub(segment.len);
            shared.counters.live.sub(segment.live);
        }
    }

    fn open_segment(
        &mut self,
        shared: &Shared,
        lane: Lane,
        total: u64,
        first_seq: u64,
    ) -> Result<(), WriteFailure> {
        if let Some(active) = self.active.get(&lane) {
            let full =
                active.len + total > shared.segment_bytes() && active.len > segment::SEGMENT_HEADER;
            if !full && !active.is_listed_full() {
                return Ok(());
            }
            self.seal(shared, lane)?;
        }
        if matches!(lane, Lane::Until { .. }) {
            let by_time = self
                .active
                .iter()
                .filter(|(lane, _)| matches!(lane, Lane::Until { .. }));
            let (count, oldest) = (
                by_time.clone().count(),
                by_time
                    .min_by_key(|(_, active)| active.used_seq)
                    .map(|(lane, _)| *lane),
            );
            if count >= MOST_BY_TIME
                && let Some(oldest) = oldest
            {
                self.seal(shared, oldest)?;
            }
        }
        let id = self.next_segment;
        self.next_segment = id.checked_add(1).ok_or(WriteFailure::Closed)?;
        let header = SegmentHeader {
            id,
            first_seq,
            salt: RandomState::new().hash_one(id),
            lane: lane.kind(),
        };
        let path = shared.dir.join(segment::file_name(id));
        let create = || {
            let file = shared.vfs.create(&path)?;
            file.write_all_at(0, &[IoSlice::new(&header.encode())])?;
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
        self.active.insert(
            lane,
            Active {
                header,
                file: file.clone(),
                len: segment::SEGMENT_HEADER,
                synced: segment::SEGMENT_HEADER,
                unsynced_seq: self.next_seq,
                before: Before::default(),
                items: Items::default(),
                used_seq: self.next_seq,
            },
        );
        self.set_len(shared, id, segment::SEGMENT_HEADER);
        shared.keep_file(id, file);
        Ok(())
    }

    /// Writes the footer of a lane's segment; the next append opens another.
    pub(crate) fn seal(&mut self, shared: &Shared, lane: Lane) -> Result<(), WriteFailure> {
        self.sync_lanes(shared)?;
        let Some(active) = self.active.get(&lane) else {
            return Ok(());
        };
        let id = active.id();
        let Some(items) = active.footer() else {
            tracing::error!(
                segment = id,
                "a segment cannot be read whole; it goes without its list"
            );
            self.active.remove(&lane);
            return Ok(());
        };
        let written = segment::write_footer(&*active.file, active.len, &active.header, &items);
        match written {
            Ok(bytes) => {
                shared.counters.written.add(bytes);
                shared.counters.syncs.add(1);
                let len = active.len + bytes;
                let synced = active.file.sync_data();
                if let Err(error) = synced {
                    // The records are durable, the footer may not be: recovery scans the segment then.
                    tracing::error!(segment = id, %error, "the footer was not confirmed");
                    shared.counters.poisoned.add(1);
                }
                self.set_len(shared, id, len);
                self.active.remove(&lane);
                Ok(())
            }
            Err(error) => {
                if active.file.set_len(active.len).is_err() {
                    self.poison(shared, lane, self.next_seq);
                }
                Err(WriteFailure::from_io(error))
            }
        }
    }
}
