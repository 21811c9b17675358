//! One record of the log. All numbers are little-endian.
//!
//! ```text
//!  0  magic        4   "APR1"
//!  4  version      1
//!  5  kind         1   see Kind
//!  6  flags        1   bit 0: the next record belongs to this one; both count or none
//!                      bit 1: everything before it in this segment was durable when it was written
//!  7  class        1   class in the low four bits, importance in the high ones
//!  8  key length   2   CID, pin set or key of a value
//! 10  zero         2
//! 12  payload len  4
//! 16  expiry       8   milliseconds since 1970, 0 for never
//! 24  seq          8   rises through the whole log
//! 32  token        4   follows from the segment's secret salt and the record's offset: nobody can put a record into a payload
//! 36  crc          4   CRC32C of payload, then bytes 0..36, then key
//! 40  key, payload
//! ```

/// Bytes before the key.
pub(crate) const HEADER: usize = 40;

pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"APR1");
const VERSION: u8 = 2;

/// No log gets so far: a higher seq is damage, and would leave none for what comes next.
pub(crate) const MOST_SEQ: u64 = u64::MAX >> 1;

/// The next record belongs to this one.
pub(crate) const MORE: u8 = 1;
/// What lies before this record in its segment was durable when it was written: if it is not whole now, it was damaged later.
pub(crate) const SETTLED: u8 = 2;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Key: CID. Payload: the block.
    Block = 1,
    /// Key: CID.
    Delete = 2,
    /// Key: set. Payload: CIDs.
    Pin = 3,
    /// Key: set. Payload: CIDs.
    Unpin = 4,
    /// Key: set. Payload: its new name.
    RenameSet = 5,
    /// Key: set.
    DropSet = 6,
    /// Key: key. Payload: value.
    Value = 7,
    /// Key: key.
    DeleteValue = 8,
    /// Blocks are in a pack of the cold tier from now on. Payload: pack 4; then for each CID, offset 4, bound 1, length 4, expiry in s 4.
    Demoted = 10,
    /// Nothing is in a pack any more. Payload: pack 4.
    DropPack = 11,
    /// Blocks that the store forgot by itself: cold, over, or damaged. Payload: CIDs.
    Gone = 12,
}

impl Kind {
    pub(crate) fn parse(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Block,
            2 => Kind::Delete,
            3 => Kind::Pin,
            4 => Kind::Unpin,
            5 => Kind::RenameSet,
            6 => Kind::DropSet,
            7 => Kind::Value,
            8 => Kind::DeleteValue,
            10 => Kind::Demoted,
            11 => Kind::DropPack,
            12 => Kind::Gone,
            _ => return None,
        })
    }

    /// Whether it carries data that an index points to.
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Kind::Block | Kind::Value)
    }
}

/// A record's fixed part, without its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) class: u8,
    pub(crate) key_len: u16,
    pub(crate) payload_len: u32,
    pub(crate) expiry_ms: u64,
    pub(crate) seq: u64,
    pub(crate) token: u32,
}

impl Header {
    /// Bytes of the whole record.
    pub(crate) fn record_len(&self) -> u64 {
        HEADER as u64 + u64::from(self.key_len) + u64::from(self.payload_len)
    }

    /// Header and key as they stand in the file. `payload_crc` is the CRC32C of the payload alone.
    pub(crate) fn encode(&self, key: &[u8], payload_crc: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[VERSION, self.kind as u8, self.flags, self.class]);
        out.extend_from_slice(&self.key_len.to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.payload_len.to_le_bytes());
        out.extend_from_slice(&self.expiry_ms.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.token.to_le_bytes());
        let crc = crc32c::crc32c_append(payload_crc, out.get(start..).unwrap_or_default());
        let crc = crc32c::crc32c_append(crc, key);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(key);
    }

    /// Reads the fixed part and the checksum; `None` if it is not one.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Header, u32)> {
        let mut fields = Fields(bytes);
        if fields.u32()? != MAGIC || fields.u8()? != VERSION {
            return None;
        }
        let (kind, flags, class) = (Kind::parse(fields.u8()?)?, fields.u8()?, fields.u8()?);
        let (key_len, _zero) = (fields.u16()?, fields.u16()?);
        let header = Header {
            kind,
            flags,
            class,
            key_len,
            payload_len: fields.u32()?,
            expiry_ms: fields.u64()?,
            seq: fields.u64()?,
            token: fields.u32()?,
        };
        let crc = fields.u32()?;
        (header.seq <= MOST_SEQ).then_some((header, crc))
    }
}

/// A record whose checksum is right.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) header: Header,
    pub(crate) key: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// Checks a whole record; `None` if any bit of it is wrong.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (header, crc) = Header::parse(bytes)?;
        let key_end = HEADER + usize::from(header.key_len);
        let end = key_end.checked_add(usize::try_from(header.payload_len).ok()?)?;
        let key = bytes.get(HEADER..key_end)?;
        let payload = bytes.get(key_end..end)?;
        let actual = crc32c::crc32c(payload);
        let actual = crc32c::crc32c_append(actual, bytes.get(..HEADER - 4)?);
        (crc32c::crc32c_append(actual, key) == crc).then_some(Record {
            header,
            key,
            payload,
        })
    }
}

/// Reads little-endian numbers off the front.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Appends a CID with its length, as in pin records and checkpoints.
pub(crate) fn put_cid(cid: &cid::Cid, out: &mut Vec<u8>) {
    let bytes = cid.to_bytes();
    // A CID has at most 10 + 10 + 10 + 10 + 64 bytes.
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(&bytes);
}

/// Reads what [`put_cid`] wrote.
pub(crate) fn get_cid(fields: &mut Fields<'_>) -> Option<cid::Cid> {
    let len = usize::from(fields.u8()?);
    cid::Cid::try_from(fields.bytes(len)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_detected() {
        let payload = b"some payload";
        let header = Header {
            kind: Kind::Block,
            flags: MORE,
            class: 0x12,
            key_len: 3,
            payload_len: payload.len() as u32,
            expiry_ms: 77,
            seq: 1 << 40,
            token: 0x1234_5678,
        };
        let mut bytes = Vec::new();
        header.encode(b"key", crc32c::crc32c(payload), &mut bytes);
        bytes.extend_from_slice(payload);
        let record = Record::parse(&bytes).expect("as written");
        assert_eq!(
            (record.header, record.key, record.payload),
            (header, &b"key"[..], &payload[..])
        );
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::parse(&flipped).is_none(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Record::parse(&bytes[..len]).is_none(), "cut at {len}");
        }
    }
}
