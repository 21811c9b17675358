//! A segment file: header, records, and once it is sealed a footer that lists them.
//!
//! ```text
//! header   "ANYPSEG\0", format 4, id 4, zero 12, crc 4
//! records  see record.rs
//! items    kind 1, class 1, key length 2, payload length 4, offset 4, expiry 8, seq 8, key
//! trailer  item bytes 4, item count 4, id 4, crc of items and trailer so far 4, "ANYPFOOT"
//! ```

use std::{io, io::IoSlice, sync::Arc};

use super::record::{Fields, HEADER, Header, Kind, MORE, MOST_SEQ, Record};
use crate::{FORMAT, MAX_BLOCK_BYTES, MAX_NAME_BYTES, vfs::VfsFile};

/// Bytes of a segment's header.
pub(crate) const SEGMENT_HEADER: u64 = 32;
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

/// A record's place and fixed part, as listed in a footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) class: u8,
    pub(crate) payload_len: u32,
    pub(crate) offset: u32,
    pub(crate) expiry_ms: u64,
    pub(crate) seq: u64,
    pub(crate) key: Vec<u8>,
}

impl Item {
    pub(crate) fn record_len(&self) -> usize {
        HEADER + self.key.len() + self.payload_len as usize
    }
}

pub(crate) fn push_item(header: &Header, offset: u32, key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[header.kind as u8, header.class]);
    out.extend_from_slice(&header.key_len.to_le_bytes());
    out.extend_from_slice(&header.payload_len.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&header.expiry_ms.to_le_bytes());
    out.extend_from_slice(&header.seq.to_le_bytes());
    out.extend_from_slice(key);
}

fn parse_items(bytes: &[u8], count: u32) -> Option<Vec<Item>> {
    let mut fields = Fields(bytes);
    let mut items = Vec::new();
    while !fields.0.is_empty() {
        let kind = Kind::parse(fields.u8()?)?;
        let class = fields.u8()?;
        let key_len = usize::from(fields.u16()?);
        items.push(Item {
            kind,
            class,
            payload_len: fields.u32()?,
            offset: fields.u32()?,
            expiry_ms: fields.u64()?,
            seq: fields.u64().filter(|seq| *seq <= MOST_SEQ)?,
            key: fields.bytes(key_len)?.to_vec(),
        });
    }
    (items.len() == count as usize).then_some(items)
}

pub(crate) fn encode_header(id: u32) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(&[0; 12]);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn header_is_right(bytes: &[u8], id: u32) -> bool {
    bytes == encode_header(id)
}

/// Items and trailer.
pub(crate) fn write_footer(
    file: &dyn VfsFile,
    at: u64,
    id: u32,
    items: &[u8],
    count: u32,
) -> io::Result<u64> {
    let mut trailer = Vec::new();
    trailer.extend_from_slice(&u32::try_from(items.len()).unwrap_or(u32::MAX).to_le_bytes());
    trailer.extend_from_slice(&count.to_le_bytes());
    trailer.extend_from_slice(&id.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(items), &trailer);
    trailer.extend_from_slice(&crc.to_le_bytes());
    trailer.extend_from_slice(FOOTER_MAGIC);
    file.write_all_at(at, &[IoSlice::new(items), IoSlice::new(&trailer)])?;
    Ok(items.len() as u64 + TRAILER)
}

/// The list of records of a sealed segment; `None` if it has no whole footer.
pub(crate) fn read_footer(file: &dyn VfsFile, id: u32) -> io::Result<Option<Vec<Item>>> {
    let len = file.len()?;
    let Some(trailer_at) = len.checked_sub(TRAILER).filter(|at| *at >= SEGMENT_HEADER) else {
        return Ok(None);
    };
    let mut trailer = [0; TRAILER as usize];
    file.read_exact_at(trailer_at, &mut trailer)?;
    let mut fields = Fields(&trailer);
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
    let mut items = vec![0; item_bytes as usize];
    file.read_exact_at(items_at, &mut items)?;
    let actual = crc32c::crc32c_append(
        crc32c::crc32c(&items),
        trailer.get(..12).unwrap_or_default(),
    );
    Ok((actual == crc)
        .then(|| parse_items(&items, count))
        .flatten())
}

/// The records up to the first that is damaged or cut, and where that is. A group (see [`MORE`]) counts whole or not at all.
///
/// A wrong header is reported and passed over: the records have checksums of their own.
pub(crate) fn scan(file: &Arc<dyn VfsFile>, id: u32, from: u64) -> io::Result<(Vec<Item>, u64)> {
    let mut window = Window {
        len: file.len()?,
        file: file.clone(),
        start: 0,
        bytes: Vec::new(),
    };
    match window.get(0, SEGMENT_HEADER as usize)? {
        Some(bytes) if header_is_right(bytes, id) => {}
        Some(_) => tracing::warn!(segment = id, "the header of a segment is damaged"),
        None => return Ok((Vec::new(), 0)),
    }
    let from = from.max(SEGMENT_HEADER);
    let (mut items, mut whole, mut end, mut at) = (Vec::new(), 0, from, from);
    while let Some((header, _)) = window.get(at, HEADER)?.and_then(Header::parse) {
        if usize::from(header.key_len) > MOST_KEY || header.payload_len > MAX_BLOCK_BYTES {
            break;
        }
        let len = header.record_len();
        let Some(record) = window.get(at, len as usize)?.and_then(Record::parse) else {
            break;
        };
        let Ok(offset) = u32::try_from(at) else { break };
        items.push(Item {
            kind: header.kind,
            class: header.class,
            payload_len: header.payload_len,
            offset,
            expiry_ms: header.expiry_ms,
            seq: header.seq,
            key: record.key.to_vec(),
        });
        at += len;
        if header.flags & MORE == 0 {
            (whole, end) = (items.len(), at);
        }
    }
    items.truncate(whole);
    Ok((items, end))
}

/// A piece of a file in memory that moves forward.
struct Window {
    file: Arc<dyn VfsFile>,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    const READ: u64 = 1024 * 1024;

    /// The bytes at `at`; `None` past the end of the file.
    fn get(&mut self, at: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let end = at + len as u64;
        if end > self.len {
            return Ok(None);
        }
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
