//! A pack: one object of frames with a sorted list of them. Written once, never changed. All numbers are little-endian.
//!
//! ```text
//! header   16   magic "APPACK\r\n" 8, version 4, pack 4
//! frames        see super::frame
//! index         per frame, sorted by key: offset 4, stored 4, length 4, expiry 8, class 1, key length 1, key
//! trailer  32   magic "APIX" 4, version 4, index offset 4, index bytes 4, frames 4, pack 4, CRC32C of the index 4, CRC32C of the
//!               trailer before it 4
//! ```
//!
//! A frame names its pack, so that no byte of one object passes for another's.

use bytes::Bytes;

use super::frame::{self, Frame, FrameError};
use crate::disk::record::Fields;

const MAGIC: [u8; 8] = *b"APPACK\r\n";
const INDEX_MAGIC: [u8; 4] = *b"APIX";

/// The format of packs that this version writes and reads.
const VERSION: u32 = 1;

/// Bytes before the first frame.
pub(crate) const HEADER: usize = 16;

/// Bytes at the end.
pub(crate) const TRAILER: usize = 32;

/// Bytes of an index item without its key.
const ITEM: usize = 22;

/// Bytes of a pack without blocks.
pub(crate) const BYTES_OF_NONE: u64 = (HEADER + TRAILER) as u64;

/// Bytes that a block takes in a pack beside what is stored of it: the rest of its frame, and its item.
pub(crate) fn bytes_beside(name_len: usize) -> u64 {
    (frame::HEADER + ITEM + 2 * name_len) as u64
}

/// A frame as the index of its pack lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) offset: u32,
    /// Bytes in the frame.
    pub(crate) stored: u32,
    /// Bytes of the block.
    pub(crate) len: u32,
    /// Milliseconds since 1970; 0 for never.
    pub(crate) expiry_ms: u64,
    pub(crate) class: u8,
    /// The CID's bytes.
    pub(crate) key: Vec<u8>,
}

impl Item {
    /// Bytes of the whole frame.
    pub(crate) fn frame_len(&self) -> u64 {
        (frame::HEADER + self.key.len()) as u64 + u64::from(self.stored)
    }
}

/// Why bytes are not a pack's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PackError {
    #[error("it is not a pack, or its end is missing")]
    NotAPack,
    #[error("it has format {found}, this program reads format {VERSION}; update the program")]
    NewerFormat { found: u32 },
    #[error("it is another pack than its name says")]
    Misplaced,
    #[error("its index is damaged")]
    Index,
    #[error("a frame is damaged: {0}")]
    Frame(#[from] FrameError),
}

/// A pack under construction.
pub(crate) struct Builder {
    pack: u32,
    parts: Vec<Bytes>,
    items: Vec<Item>,
    len: usize,
    index_len: usize,
}

/// A finished pack, in pieces.
#[derive(Debug, Clone)]
pub(crate) struct Pack {
    pub(crate) parts: Vec<Bytes>,
    pub(crate) len: u64,
    /// Sorted by key.
    pub(crate) items: Vec<Item>,
}

impl Builder {
    pub(crate) fn new(pack: u32) -> Builder {
        Builder {
            pack,
            parts: vec![header(pack)],
            items: Vec::new(),
            len: HEADER,
            index_len: TRAILER,
        }
    }

    /// Bytes of the object so far.
    pub(crate) fn len(&self) -> u64 {
        (self.len + self.index_len) as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds a frame made for this pack. `false`: a pack cannot hold more; nothing was added.
    pub(crate) fn push(&mut self, bytes: Vec<u8>) -> Result<bool, FrameError> {
        let Ok(offset) = u32::try_from(self.len) else {
            return Ok(false);
        };
        if u32::try_from(self.len + bytes.len() + self.index_len + ITEM + 256).is_err() {
            return Ok(false);
        }
        let frame = Frame::parse(&bytes, self.pack)?;
        self.items.push(Item {
            offset,
            stored: frame.header.stored,
            len: frame.header.len,
            expiry_ms: frame.header.expiry_ms,
            class: frame.header.class,
            key: frame.key.to_vec(),
        });
        self.index_len += ITEM + frame.key.len();
        self.len += bytes.len();
        self.parts.push(bytes.into());
        Ok(true)
    }

    /// Ends the pack.
    pub(crate) fn finish(mut self) -> Pack {
        self.items
            .sort_unstable_by(|one, other| one.key.cmp(&other.key));
        let mut end = Vec::with_capacity(self.index_len);
        for item in &self.items {
            end.extend_from_slice(&item.offset.to_le_bytes());
            end.extend_from_slice(&item.stored.to_le_bytes());
            end.extend_from_slice(&item.len.to_le_bytes());
            end.extend_from_slice(&item.expiry_ms.to_le_bytes());
            end.extend_from_slice(&[item.class, u8::try_from(item.key.len()).unwrap_or(u8::MAX)]);
            end.extend_from_slice(&item.key);
        }
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let index_crc = crc32c::crc32c(&end).to_le_bytes();
        let mut trailer = INDEX_MAGIC.to_vec();
        trailer.extend_from_slice(&VERSION.to_le_bytes());
        trailer.extend_from_slice(&number(self.len));
        trailer.extend_from_slice(&number(end.len()));
        trailer.extend_from_slice(&number(self.items.len()));
        trailer.extend_from_slice(&self.pack.to_le_bytes());
        trailer.extend_from_slice(&index_crc);
        trailer.extend_from_slice(&crc32c::crc32c(&trailer).to_le_bytes());
        end.extend_from_slice(&trailer);
        let len = (self.len + end.len()) as u64;
        self.parts.push(end.into());
        Pack {
            parts: self.parts,
            len,
            items: self.items,
        }
    }
}

fn header(pack: u32) -> Bytes {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&pack.to_le_bytes());
    bytes.into()
}

/// Where the index lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) index_offset: u32,
    pub(crate) index_len: u32,
    frames: u32,
    index_crc: u32,
}

impl Trailer {
    /// Reads the last [`TRAILER`] bytes of an object of `object_len` bytes.
    pub(crate) fn parse(bytes: &[u8], pack: u32, object_len: u64) -> Result<Trailer, PackError> {
        let from = bytes
            .len()
            .checked_sub(TRAILER)
            .ok_or(PackError::NotAPack)?;
        let bytes = bytes.get(from..).ok_or(PackError::NotAPack)?;
        let mut fields = Fields(bytes);
        let magic = fields.bytes(INDEX_MAGIC.len()).ok_or(PackError::NotAPack)?;
        if magic != INDEX_MAGIC {
            return Err(PackError::NotAPack);
        }
        let mut next = || fields.u32().ok_or(PackError::NotAPack);
        let found = next()?;
        if found > VERSION {
            return Err(PackError::NewerFormat { found });
        }
        let trailer = Trailer {
            index_offset: next()?,
            index_len: next()?,
            frames: next()?,
            index_crc: {
                let (named, index_crc) = (next()?, next()?);
                let covered = bytes.get(..TRAILER - 4).unwrap_or_default();
                if next()? != crc32c::crc32c(covered) {
                    return Err(PackError::Index);
                }
                if named != pack {
                    return Err(PackError::Misplaced);
                }
                index_crc
            },
        };
        let end = u64::from(trailer.index_offset) + u64::from(trailer.index_len);
        if end + TRAILER as u64 != object_len || (trailer.index_offset as usize) < HEADER {
            return Err(PackError::Index);
        }
        Ok(trailer)
    }

    /// Reads the index: items by key, each within the frames.
    pub(crate) fn items(&self, index: &[u8]) -> Result<Vec<Item>, PackError> {
        if index.len() as u64 != u64::from(self.index_len)
            || crc32c::crc32c(index) != self.index_crc
        {
            return Err(PackError::Index);
        }
        let mut fields = Fields(index);
        let mut items: Vec<Item> = Vec::new();
        while !fields.0.is_empty() {
            let item = read_item(&mut fields).ok_or(PackError::Index)?;
            let in_place = item.offset as usize >= HEADER
                && u64::from(item.offset) + item.frame_len() <= u64::from(self.index_offset)
                && item.stored <= item.len;
            let in_order = items.last().is_none_or(|before| before.key < item.key);
            if !in_place || !in_order {
                return Err(PackError::Index);
            }
            items.push(item);
        }
        if items.len() as u64 == u64::from(self.frames) {
            Ok(items)
        } else {
            Err(PackError::Index)
        }
    }
}

fn read_item(fields: &mut Fields<'_>) -> Option<Item> {
    let (offset, stored, len, expiry_ms) =
        (fields.u32()?, fields.u32()?, fields.u32()?, fields.u64()?);
    let (class, key_len) = (fields.u8()?, fields.u8()?);
    Some(Item {
        offset,
        stored,
        len,
        expiry_ms,
        class,
        key: fields.bytes(usize::from(key_len))?.to_vec(),
    })
}

/// Checks the first bytes of an object.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_header(bytes: &[u8], pack: u32) -> Result<(), PackError> {
    let mut fields = Fields(bytes);
    if fields.bytes(MAGIC.len()).ok_or(PackError::NotAPack)? != MAGIC {
        return Err(PackError::NotAPack);
    }
    let (version, named) = (
        fields.u32().ok_or(PackError::NotAPack)?,
        fields.u32().ok_or(PackError::NotAPack)?,
    );
    if version > VERSION {
        return Err(PackError::NewerFormat { found: version });
    }
    if version != VERSION || named != pack {
        return Err(PackError::Misplaced);
    }
    Ok(())
}

/// Reads the index of a whole pack.
#[cfg(any(test, fuzzing))]
pub(crate) fn read(bytes: &[u8], pack: u32) -> Result<Vec<Item>, PackError> {
    check_header(bytes, pack)?;
    let trailer = Trailer::parse(bytes, pack, bytes.len() as u64)?;
    let (start, len) = (trailer.index_offset as usize, trailer.index_len as usize);
    let index = bytes
        .get(start..)
        .and_then(|rest| rest.get(..len))
        .ok_or(PackError::Index)?;
    trailer.items(index)
}

/// The frame of an item in a whole pack. It must be the one that the index means.
#[cfg(any(test, fuzzing))]
pub(crate) fn frame_at<'a>(
    bytes: &'a [u8],
    pack: u32,
    item: &Item,
) -> Result<Frame<'a>, FrameError> {
    let rest = bytes.get(item.offset as usize..).ok_or(FrameError::Short)?;
    let frame = Frame::parse(rest, pack)?;
    if frame.key != item.key || frame.header.stored != item.stored || frame.header.len != item.len {
        return Err(FrameError::Misplaced);
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cold::frame::Coder;

    fn pack(number: u32, blocks: &[(&[u8], Vec<u8>)]) -> (Vec<u8>, Pack) {
        let mut coder = Coder::new(3).unwrap();
        let mut builder = Builder::new(number);
        for (key, block) in blocks {
            let frame = coder.frame(number, key, 1, 5, block).unwrap();
            assert!(builder.push(frame).unwrap());
        }
        let promised = builder.len();
        let pack = builder.finish();
        let bytes = pack.parts.concat();
        assert_eq!((pack.len, promised), (bytes.len() as u64, pack.len));
        (bytes, pack)
    }

    fn sample() -> (Vec<u8>, Pack) {
        pack(
            3,
            &[
                (b"zebra", vec![1; 200]),
                (b"ape", b"short".to_vec()),
                (b"mole", (0..=255).collect()),
            ],
        )
    }

    #[test]
    fn blocks_are_found_by_a_sorted_index() {
        let (bytes, pack) = sample();
        let items = read(&bytes, 3).unwrap();
        assert_eq!(items, pack.items);
        let keys: Vec<_> = items.iter().map(|item| item.key.as_slice()).collect();
        assert_eq!(keys, [&b"ape"[..], b"mole", b"zebra"]);
        let frame = frame_at(&bytes, 3, &items[2]).unwrap();
        assert_eq!(frame.block(1000).unwrap(), vec![1; 200]);
        assert_eq!(
            items[2].frame_len(),
            u64::from(items[0].offset - items[2].offset)
        );
    }

    /// What reading the whole pack means: header, index and every frame.
    fn read_all(bytes: &[u8]) -> bool {
        read(bytes, 3).is_ok_and(|items| {
            items
                .iter()
                .all(|item| frame_at(bytes, 3, item).is_ok_and(|f| f.block(1000).is_ok()))
        })
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_detected() {
        let (bytes, _) = sample();
        assert!(read_all(&bytes));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!read_all(&flipped), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(!read_all(&bytes[..len]), "cut at {len}");
        }
    }

    #[test]
    fn a_pack_under_a_wrong_name_and_a_newer_format_are_told_apart() {
        let (bytes, _) = sample();
        let trailer = Trailer::parse(&bytes, 4, bytes.len() as u64).unwrap_err();
        assert_eq!(trailer, PackError::Misplaced);
        assert_eq!(read(&bytes, 4).unwrap_err(), PackError::Misplaced);
        for at in [8, bytes.len() - TRAILER + 4] {
            let mut newer = bytes.clone();
            newer[at] = 9;
            assert_eq!(
                read(&newer, 3).unwrap_err(),
                PackError::NewerFormat { found: 9 }
            );
        }
    }

    #[test]
    fn an_empty_pack_has_no_blocks() {
        let (bytes, pack) = pack(3, &[]);
        assert_eq!(read(&bytes, 3).unwrap(), pack.items);
        assert!(pack.items.is_empty());
    }
}
