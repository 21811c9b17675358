//! A segment file: header, records, and once it is sealed a footer that lists them.
//!
//! ```text
//! header   "ANYPSEG\0", format 4, id 4, first seq 8, salt 8, lane 1, zero 11, crc 4
//! records  see record.rs
//! items    kind 1, class 1, key length 2, payload length 4, offset 4, expiry 8, seq 8, key
//! trailer  item bytes 4, item count 4, id 4, crc of items and trailer so far 4, "ANYPFOOT"
//! ```
//!
//! The crc of the footer begins with a token of the segment's secret salt, as records carry one: a payload that ends like a footer passes for
//! none. Without a whole header no footer counts.
//!
//! The seqs of a segment's records rise.

use std::{io, io::IoSlice, ops::Range, sync::Arc};

use super::{
    lane::LaneKind,
    record::{Fields, HEADER, Header, Kind, MORE, MOST_SEQ, Record, SETTLED},
};
use crate::{FORMAT, MAX_BLOCK_BYTES, MAX_NAME_BYTES, vfs::VfsFile};

/// Bytes of a segment's header.
pub(crate) const SEGMENT_HEADER: u64 = 48;
/// Bytes of a footer's trailer.
pub(crate) const TRAILER: u64 = 24;
const MAGIC: &[u8; 8] = b"ANYPSEG\0";
const FOOTER_MAGIC: &[u8; 8] = b"ANYPFOOT";

/// A segment is sealed early when its list of records reaches this, so that tiny blocks do not fill the memory: 8 MiB.
pub(crate) const MOST_ITEM_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of a footer's item before its key.
const ITEM: u64 = 28;

/// What a record takes of a segment, its item in the footer included.
pub(crate) fn footprint(record_len: u64, key_len: u64) -> u64 {
    record_len + ITEM + key_len
}

/// Longest key of a record: a CID has at most 104 bytes.
const MOST_KEY: usize = MAX_NAME_BYTES;

pub(crate) fn file_name(id: u32) -> String {
    format!("segment-{id:08x}.log")
}

pub(crate) fn parse_name(name: &str) -> Option<u32> {
    let hex = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    u32::from_str_radix(hex, 16).ok()
}

/// The fixed part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: u32,
    /// No record in it has a lower seq.
    pub(crate) first_seq: u64,
    /// Random, and known to nobody outside.
    pub(crate) salt: u64,
    pub(crate) lane: LaneKind,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.first_seq.to_le_bytes());
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        bytes.push(self.lane as u8);
        bytes.extend_from_slice(&[0; 11]);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if any bit of it is wrong.
    pub(crate) fn parse(bytes: &[u8], id: u32) -> Option<SegmentHeader> {
        let mut fields = Fields(bytes.get(16..)?);
        let header = SegmentHeader {
            id,
            first_seq: fields.u64()?,
            salt: fields.u64()?,
            lane: LaneKind::parse(fields.u8()?)?,
        };
        (bytes == header.encode()).then_some(header)
    }

    /// What a record at this offset carries.
    pub(crate) fn token(&self, offset: u64) -> u32 {
        // The finisher of splitmix64: the salt cannot be told from some tokens, which nobody sees anyway.
        let mut mixed = self.salt ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 32) as u32
    }

    /// The checksum of a footer whose items begin at this offset, up to the checksum itself.
    fn footer_crc(&self, items_at: u64, items: &[u8], head: &[u8]) -> u32 {
        // No record begins at such an offset: footers have tokens of their own.
        let seeded = crc32c::crc32c_append(self.token(!items_at), items);
        crc32c::crc32c_append(seeded, head)
    }
}

/// Reads a segment's header; `None` if it is damaged or cut.
pub(crate) fn read_header(file: &dyn VfsFile, id: u32) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER as usize];
    match file.read_exact_at(0, &mut bytes) {
        Ok(()) => Ok(SegmentHeader::parse(&bytes, id)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// A record's place and fixed part, as listed in a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    pub(crate) kind: Kind,
    pub(crate) class: u8,
    pub(crate) payload_len: u32,
    pub(crate) offset: u32,
    pub(crate) expiry_ms: u64,
    pub(crate) seq: u64,
    pub(crate) key: &'a [u8],
}

impl Item<'_> {
    pub(crate) fn record_len(&self) -> u64 {
        (HEADER + self.key.len()) as u64 + u64::from(self.payload_len)
    }

    pub(crate) fn push(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.kind as u8, self.class]);
        let key_len = u16::try_from(self.key.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&key_len.to_le_bytes());
        out.extend_from_slice(&self.payload_len.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.expiry_ms.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(self.key);
    }
}

/// A list of items as it stands in a footer: everything in it has been checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Items {
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: u32,
}

impl Items {
    /// Gives the bytes back if they are no such list.
    fn parse(bytes: Vec<u8>, count: u32) -> Result<Items, Vec<u8>> {
        let (mut at, mut found) = (0, 0);
        while let Some((item, next)) = item_at(&bytes, at)
            && item.seq <= MOST_SEQ
        {
            (at, found) = (next, found + 1);
        }
        if at == bytes.len() && found == u64::from(count) {
            Ok(Items { bytes, count })
        } else {
            Err(bytes)
        }
    }

    pub(crate) fn push(&mut self, item: &Item<'_>) {
        item.push(&mut self.bytes);
        self.count += 1;
    }

    /// The item at a position, and the position of the next.
    pub(crate) fn at(&self, position: usize) -> Option<(Item<'_>, usize)> {
        item_at(&self.bytes, position)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Item<'_>> {
        let mut position = 0;
        std::iter::from_fn(move || {
            let (item, next) = self.at(position)?;
            position = next;
            Some(item)
        })
    }
}

fn item_at(bytes: &[u8], at: usize) -> Option<(Item<'_>, usize)> {
    let mut fields = Fields(bytes.get(at..)?);
    let kind = Kind::parse(fields.u8()?)?;
    let class = fields.u8()?;
    let key_len = usize::from(fields.u16()?);
    let item = Item {
        kind,
        class,
        payload_len: fields.u32()?,
        offset: fields.u32()?,
        expiry_ms: fields.u64()?,
        seq: fields.u64()?,
        key: fields.bytes(key_len)?,
    };
    Some((item, at + ITEM as usize + key_len))
}

/// Items and trailer.
pub(crate) fn write_footer(
    file: &dyn VfsFile,
    at: u64,
    header: &SegmentHeader,
    items: &Items,
) -> io::Result<u64> {
    let mut trailer = Vec::new();
    let item_bytes = u32::try_from(items.bytes.len()).unwrap_or(u32::MAX);
    trailer.extend_from_slice(&item_bytes.to_le_bytes());
    trailer.extend_from_slice(&items.count.to_le_bytes());
    trailer.extend_from_slice(&header.id.to_le_bytes());
    let crc = header.footer_crc(at, &items.bytes, &trailer);
    trailer.extend_from_slice(&crc.to_le_bytes());
    trailer.extend_from_slice(FOOTER_MAGIC);
    file.write_all_at(at, &[IoSlice::new(&items.bytes), IoSlice::new(&trailer)])?;
    Ok(items.bytes.len() as u64 + TRAILER)
}

/// The end of a footer.
struct Trailer {
    items_at: u64,
    item_bytes: u32,
    count: u32,
    crc: u32,
    /// What the checksum covers of it.
    head: [u8; 12],
}

fn read_trailer(file: &dyn VfsFile, id: u32) -> io::Result<Option<Trailer>> {
    let len = file.len()?;
    let Some(trailer_at) = len.checked_sub(TRAILER).filter(|at| *at >= SEGMENT_HEADER) else {
        return Ok(None);
    };
    let mut bytes = [0; TRAILER as usize];
    file.read_exact_at(trailer_at, &mut bytes)?;
    let mut fields = Fields(&bytes);
    let (Some(item_bytes), Some(count), Some(footer_id), Some(crc), magic) = (
        fields.u32(),
        fields.u32(),
        fields.u32(),
        fields.u32(),
        fields.0,
    ) else {
        return Ok(None);
    };
    let Some(items_at) = trailer_at
        .checked_sub(u64::from(item_bytes))
        .filter(|at| *at >= SEGMENT_HEADER)
    else {
        return Ok(None);
    };
    if magic != FOOTER_MAGIC || footer_id != id || item_bytes as usize > 2 * MOST_ITEM_BYTES {
        return Ok(None);
    }
    Ok(bytes.first_chunk().map(|head| Trailer {
        items_at,
        item_bytes,
        count,
        crc,
        head: *head,
    }))
}

/// About how many records a segment has, and where its list of them lies: what its footer says, unchecked; `None` without one.
pub(crate) fn outline(file: &dyn VfsFile, id: u32) -> io::Result<Option<Outline>> {
    let trailer = read_trailer(file, id)?;
    Ok(trailer.map(|trailer| Outline {
        // Never more than there are bytes for.
        records: u64::from(trailer.count).min(u64::from(trailer.item_bytes) / ITEM),
        items: trailer.items_at..trailer.items_at + u64::from(trailer.item_bytes),
    }))
}

/// See [`outline`].
#[derive(Debug)]
pub(crate) struct Outline {
    pub(crate) records: u64,
    pub(crate) items: Range<u64>,
}

/// The list of records of a sealed segment; `None` if it has no whole footer.
pub(crate) fn read_footer(file: &dyn VfsFile, header: &SegmentHeader) -> io::Result<Option<Items>> {
    Ok(read_footer_into(file, header, Vec::new())?.ok())
}

/// The same, in memory that was used before, which comes back without a footer.
pub(crate) fn read_footer_into(
    file: &dyn VfsFile,
    header: &SegmentHeader,
    mut items: Vec<u8>,
) -> io::Result<Result<Items, Vec<u8>>> {
    let Some(trailer) = read_trailer(file, header.id)? else {
        return Ok(Err(items));
    };
    items.resize(trailer.item_bytes as usize, 0);
    file.read_exact_at(trailer.items_at, &mut items)?;
    let actual = header.footer_crc(trailer.items_at, &items, &trailer.head);
    Ok(if actual == trailer.crc {
        Items::parse(items, trailer.count)
    } else {
        Err(items)
    })
}

/// What a segment without a footer holds.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) items: Items,
    /// Where the last whole record that counts ends.
    pub(crate) end: u64,
    /// Damaged stretches before it: places and lengths.
    pub(crate) damaged: Vec<(u64, u64)>,
}

/// Reads a segment record by record. A group (see [`MORE`]) counts whole or not at all.
///
/// The first record that is not whole ends the log there, as a power cut leaves it, unless it is known that it was durable once: it lies
/// before `settled`, or a whole record after it says so (see [`SETTLED`]). Then it was damaged later; what follows it counts.
pub(crate) fn scan(
    file: &Arc<dyn VfsFile>,
    header: Option<SegmentHeader>,
    settled: u64,
) -> io::Result<Scan> {
    scan_into(file, header, settled, Vec::new())
}

/// The same, with the list in memory that was used before.
pub(crate) fn scan_into(
    file: &Arc<dyn VfsFile>,
    header: Option<SegmentHeader>,
    settled: u64,
    mut items: Vec<u8>,
) -> io::Result<Scan> {
    items.clear();
    let mut window = Window {
        len: file.len()?,
        file: file.clone(),
        start: 0,
        bytes: Vec::new(),
    };
    let mut scan = Scan {
        items: Items {
            bytes: items,
            count: 0,
        },
        end: SEGMENT_HEADER.min(window.len),
        damaged: Vec::new(),
    };
    // What counts if nothing later proves more: items (bytes and number), end, damaged stretches.
    let mut sure = (0, 0, scan.end, 0);
    let mut is_broken = false;
    // Start of the group under way.
    let mut group = (0, 0);
    let mut at = SEGMENT_HEADER;
    loop {
        let Some((record, len)) = record_at(&mut window, header.as_ref(), at)? else {
            if !is_broken && at >= settled {
                sure = (group.0, group.1, scan.end, scan.damaged.len());
                is_broken = true;
            }
            let next = match header {
                Some(header) => find(&mut window, &header, at + 1)?,
                None => (settled > at && settled < window.len).then_some(settled),
            };
            let Some(next) = next else { break };
            scan.damaged.push((at, next - at));
            at = next;
            continue;
        };
        if record.flags & SETTLED != 0 {
            is_broken = false;
        }
        let Ok(offset) = u32::try_from(at) else { break };
        let key = window
            .get(at + HEADER as u64, usize::from(record.key_len))?
            .unwrap_or_default();
        scan.items.push(&Item {
            kind: record.kind,
            class: record.class,
            payload_len: record.payload_len,
            offset,
            expiry_ms: record.expiry_ms,
            seq: record.seq,
            key,
        });
        at += len;
        if record.flags & MORE == 0 {
            group = (scan.items.bytes.len(), scan.items.count);
            scan.end = at;
        }
    }
    if is_broken {
        scan.items.bytes.truncate(sure.0);
        scan.items.count = sure.1;
        scan.end = sure.2;
        scan.damaged.truncate(sure.3);
    }
    scan.damaged.retain(|(at, _)| *at < scan.end);
    Ok(scan)
}

/// The whole record at a place; `None` if there is none.
fn record_at(
    window: &mut Window,
    segment: Option<&SegmentHeader>,
    at: u64,
) -> io::Result<Option<(Header, u64)>> {
    let Some((header, _)) = window.get(at, HEADER)?.and_then(Header::parse) else {
        return Ok(None);
    };
    let is_right = usize::from(header.key_len) <= MOST_KEY
        && header.payload_len <= MAX_BLOCK_BYTES
        && segment.is_none_or(|segment| segment.token(at) == header.token);
    if !is_right {
        return Ok(None);
    }
    let len = header.record_len();
    let bytes = window.get(at, usize::try_from(len).unwrap_or(usize::MAX))?;
    Ok(bytes.and_then(Record::parse).map(|_| (header, len)))
}

/// The next whole record from a place on.
fn find(window: &mut Window, segment: &SegmentHeader, from: u64) -> io::Result<Option<u64>> {
    let magic = super::record::MAGIC.to_le_bytes();
    let mut at = from;
    while at + HEADER as u64 <= window.len {
        let len = (window.len - at).min(Window::READ);
        let Some(bytes) = window.get(at, usize::try_from(len).unwrap_or(usize::MAX))? else {
            break;
        };
        // Cheap checks first: most places that look like a record are none.
        let candidates: Vec<u64> = bytes
            .windows(HEADER)
            .enumerate()
            .filter(|(_, bytes)| bytes.starts_with(&magic))
            .filter_map(|(n, bytes)| {
                let (header, _) = Header::parse(bytes)?;
                (segment.token(at + n as u64) == header.token).then_some(at + n as u64)
            })
            .collect();
        for candidate in candidates {
            if record_at(window, Some(segment), candidate)?.is_some() {
                return Ok(Some(candidate));
            }
        }
        at += len.saturating_sub(HEADER as u64 - 1).max(1);
    }
    Ok(None)
}

/// A piece of a file in memory that moves forward.
struct Window {
    file: Arc<dyn VfsFile>,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    const READ: u64 = 256 * 1024;

    /// The bytes at `at`; `None` past the end of the file.
    fn get(&mut self, at: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(len as u64).filter(|end| *end <= self.len) else {
            return Ok(None);
        };
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let take = (self.len - at).min(Self::READ.max(len as u64));
            self.bytes
                .resize(usize::try_from(take).unwrap_or(usize::MAX), 0);
            self.start = at;
            self.file.read_exact_at(at, &mut self.bytes)?;
        }
        let from = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        Ok(self.bytes.get(from..from.saturating_add(len)))
    }
}

#[cfg(test)]
mod tests;
