//! dag-pb (<https://ipld.io/specs/codecs/dag-pb/spec/>) and the messages of UnixFS (<https://specs.ipfs.tech/unixfs/>), read and
//! written.
//!
//! Whatever is read may come from a stranger. rust-unixfs 0.6 is no reader for that: it decodes with quick-protobuf 0.8, which panics
//! on malformed lengths, adds up block sizes unchecked, and does not read the links of roots with a mode or time.

use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest as _};

/// Multicodec `dag-pb`.
pub(super) const DAG_PB: u64 = 0x70;
/// Links in one node; the profiles in use have up to 1,024, and a block of 2 MiB holds about 40,000.
const MAX_LINKS: usize = 65_536;

/// A named link, as a directory has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) cid: Cid,
    /// Bytes of all blocks below; of one that was read, as its author says.
    pub(super) size: u64,
}

/// A node, and how many bytes it and everything below it take.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) cid: Cid,
    pub(super) size: u64,
    pub(super) block: Bytes,
}

impl Built {
    /// The node with these links, in this order, and this payload; links come first, as go-merkledag writes them.
    pub(super) fn new(links: &[Link], data: &[u8]) -> Self {
        let mut block = Vec::new();
        let mut size = 0_u64;
        let mut message = Vec::new();
        for link in links {
            message.clear();
            put_bytes(1, &link.cid.to_bytes(), &mut message);
            put_bytes(2, link.name.as_bytes(), &mut message);
            put_varint(3, link.size, &mut message);
            put_bytes(2, &message, &mut block);
            size = size.saturating_add(link.size);
        }
        put_bytes(1, data, &mut block);
        Self {
            cid: Cid::new_v1(DAG_PB, Code::Sha2_256.digest(&block)),
            size: size.saturating_add(block.len() as u64),
            block: block.into(),
        }
    }
}

/// Writes a field of bytes.
pub(super) fn put_bytes(field: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    varint_into(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Writes a field that is a number.
pub(super) fn put_varint(field: u8, value: u64, out: &mut Vec<u8>) {
    out.push(field << 3);
    varint_into(value, out);
}

fn varint_into(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        // The lowest seven bits, and that there are more.
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A dag-pb node.
#[derive(Default)]
pub(super) struct PbNode<'a> {
    pub(super) links: Vec<PbLink<'a>>,
    pub(super) data: Option<&'a [u8]>,
}

#[derive(Default)]
pub(super) struct PbLink<'a> {
    hash: &'a [u8],
    pub(super) name: &'a [u8],
    /// Bytes of all blocks below, as the author says.
    pub(super) size: u64,
}

impl<'a> PbNode<'a> {
    pub(super) fn read(block: &'a [u8]) -> Option<Self> {
        let mut node = Self::default();
        for field in fields(block) {
            match field? {
                (1, Value::Bytes(data)) => node.data = Some(data),
                (2, Value::Bytes(_)) if node.links.len() >= MAX_LINKS => return None,
                (2, Value::Bytes(link)) => node.links.push(PbLink::read(link)?),
                _ => return None,
            }
        }
        Some(node)
    }
}

impl<'a> PbLink<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let mut link = Self::default();
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(hash)) => link.hash = hash,
                (2, Value::Bytes(name)) => link.name = name,
                (3, Value::Varint(size)) => link.size = size,
                _ => return None,
            }
        }
        Some(link)
    }

    pub(super) fn cid(&self) -> Option<Cid> {
        Cid::try_from(self.hash).ok()
    }
}

/// The payload of a dag-pb node of UnixFS.
#[derive(Default)]
pub(super) struct UnixFs<'a> {
    pub(super) kind: u64,
    pub(super) data: &'a [u8],
    pub(super) file_size: Option<u64>,
    pub(super) block_sizes: Vec<u64>,
    pub(super) hash: Option<u64>,
    pub(super) fanout: Option<u64>,
}

impl<'a> UnixFs<'a> {
    pub(super) const RAW: u64 = 0;
    pub(super) const DIRECTORY: u64 = 1;
    pub(super) const FILE: u64 = 2;
    pub(super) const SYMLINK: u64 = 4;
    pub(super) const HAMT_SHARD: u64 = 5;

    pub(super) fn read(message: &'a [u8]) -> Option<Self> {
        let mut unixfs = Self::default();
        for field in fields(message) {
            match field? {
                (1, Value::Varint(kind)) => unixfs.kind = kind,
                (2, Value::Bytes(data)) => unixfs.data = data,
                (3, Value::Varint(size)) => unixfs.file_size = Some(size),
                (4, Value::Varint(size)) => unixfs.block_sizes.push(size),
                (4, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        unixfs.block_sizes.push(varint(&mut packed)?);
                    }
                }
                (5, Value::Varint(hash)) => unixfs.hash = Some(hash),
                (6, Value::Varint(fanout)) => unixfs.fanout = Some(fanout),
                // Of any root: mode and time.
                _ => {}
            }
        }
        Some(unixfs)
    }
}

/// A protobuf field's value.
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a protobuf message, by number; ends with a `None` if the message is malformed.
fn fields(mut message: &[u8]) -> impl Iterator<Item = Option<(u64, Value<'_>)>> {
    std::iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let field = next_field(&mut message);
        if field.is_none() {
            message = &[];
        }
        Some(field)
    })
}

fn next_field<'a>(message: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(message)?;
    let value = match tag & 7 {
        0 => Value::Varint(varint(message)?),
        1 => fixed(message, 8)?,
        2 => {
            let length = usize::try_from(varint(message)?).ok()?;
            let (bytes, rest) = message.split_at_checked(length)?;
            *message = rest;
            Value::Bytes(bytes)
        }
        5 => fixed(message, 4)?,
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn fixed<'a>(message: &mut &'a [u8], length: usize) -> Option<Value<'a>> {
    *message = message.get(length..)?;
    Some(Value::Fixed)
}

/// A protobuf varint, at the front of `input`.
fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
