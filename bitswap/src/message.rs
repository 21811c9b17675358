//! Typed messages and their wire form. Every limit on what a peer can send is applied here.
//!
//! Framing is strict, items are lenient: a frame that is no protobuf is an error, an item in it
//! that we cannot use (unknown hash, bad CID, bad prefix) is skipped and counted.

#![cfg_attr(
    not(feature = "swarm"),
    expect(dead_code, reason = "the adapter reads streams item by item")
)]

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cid::{Cid, Version as CidVersion};
use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint, encode_varint, encoded_len_varint},
};

use smallvec::SmallVec;

use crate::{Block, generated::pb, hash};

/// Longest CID on the wire, in bytes: four varints of at most 10 and a digest of at most 128.
pub const MAX_CID_BYTES: usize = 168;
/// Blocks below this size are copied: into one buffer when sent, out of their frame when received,
/// so that a small block kept does not keep a large frame.
const COPY_BELOW: usize = 64 * 1024;

/// The versions of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `/ipfs/bitswap`, before versions: as 1.0.0.
    Unversioned,
    /// `/ipfs/bitswap/1.0.0`: CIDv0 blocks without prefix.
    V1_0,
    /// `/ipfs/bitswap/1.1.0`: CIDs and prefixes.
    V1_1,
    /// `/ipfs/bitswap/1.2.0`: HAVE, DONT_HAVE.
    V1_2,
}

impl Version {
    /// All, the preferred one first.
    pub const ALL: [Version; 4] = [
        Version::V1_2,
        Version::V1_1,
        Version::V1_0,
        Version::Unversioned,
    ];

    /// The protocol id.
    pub fn id(self) -> &'static str {
        match self {
            Version::V1_2 => "/ipfs/bitswap/1.2.0",
            Version::V1_1 => "/ipfs/bitswap/1.1.0",
            Version::V1_0 => "/ipfs/bitswap/1.0.0",
            Version::Unversioned => "/ipfs/bitswap",
        }
    }

    /// Whether HAVE and DONT_HAVE exist.
    pub fn has_presences(self) -> bool {
        self >= Version::V1_2
    }

    fn has_prefixes(self) -> bool {
        self >= Version::V1_1
    }
}

/// What an [`Entry`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WantType {
    /// The block.
    Block,
    /// Whether the peer has it.
    Have,
}

/// One entry of a wantlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The block.
    pub cid: Cid,
    /// Higher first.
    pub priority: i32,
    /// Withdraws both kinds of want for the block.
    pub cancel: bool,
    /// What is wanted.
    pub want_type: WantType,
    /// Whether absence shall be answered.
    pub send_dont_have: bool,
    /// Extension: descendants to push after the block.
    pub descend: u32,
}

/// HAVE or DONT_HAVE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The block.
    pub cid: Cid,
    /// Whether the sender has it.
    pub have: bool,
}

/// A message, decoded or to be encoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Changes of the sender's wantlist.
    pub entries: Vec<Entry>,
    /// `entries` replace the wantlist.
    pub full: bool,
    /// Verified blocks.
    pub blocks: Vec<Block>,
    /// Blocks of a 1.0.0 peer: only their SHA2-256 is known, the CID says v0. Never encoded.
    pub legacy_blocks: Vec<Block>,
    /// Answers to wants.
    pub presences: Vec<Presence>,
    /// Bytes the sender still has queued for us.
    pub pending_bytes: i32,
    /// Extension: blocks that will follow unasked.
    pub promised: Vec<Cid>,
    /// Items that were skipped: malformed, unknown hash, or above the limit.
    pub skipped: usize,
    /// Bytes of blocks that were not read because nothing was wanted from the sender.
    pub unread_bytes: usize,
    /// Length of the frame.
    pub frame_bytes: usize,
}

/// Why a frame is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct DecodeError(pub &'static str);

impl Message {
    /// Whether there is nothing in it worth sending.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && !self.full
            && self.blocks.is_empty()
            && self.presences.is_empty()
            && self.promised.is_empty()
    }

    /// Bytes of block data.
    pub fn block_bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.data().len()).sum()
    }

    /// The frame, length prefix included, as buffers to be written one after the other. Large
    /// blocks are not copied.
    pub fn encode(&self, version: Version) -> Vec<Bytes> {
        let control = self.control(version).encode_to_vec();
        let items: Vec<Item<'_>> = self.blocks.iter().map(|b| Item::new(b, version)).collect();
        let total = control.len() + items.iter().map(Item::encoded_len).sum::<usize>();

        let mut chunks = Vec::new();
        let mut buffer = BytesMut::with_capacity(
            16 + control.len() + items.iter().map(|item| item.copied_len()).sum::<usize>(),
        );
        encode_varint(total as u64, &mut buffer);
        buffer.put_slice(&control);
        for item in &items {
            item.encode(&mut buffer, &mut chunks);
        }
        if !buffer.is_empty() {
            chunks.push(buffer.freeze());
        }
        chunks
    }

    /// Everything but the blocks. The wantlist is there even when empty: kubo up to 0.35
    /// dereferences nil without it (boxo PR 961).
    fn control(&self, version: Version) -> pb::Message {
        let entries = self.entries.iter().map(|entry| {
            let want_type = match entry.want_type {
                WantType::Block => pb::message::wantlist::WantType::Block,
                WantType::Have => pb::message::wantlist::WantType::Have,
            };
            pb::message::wantlist::Entry {
                block: entry.cid.to_bytes().into(),
                priority: entry.priority,
                cancel: entry.cancel,
                want_type: want_type.into(),
                send_dont_have: entry.send_dont_have,
                descend: entry.descend,
            }
        });
        let presences = self.presences.iter().map(|presence| {
            let kind = match presence.have {
                true => pb::message::BlockPresenceType::Present,
                false => pb::message::BlockPresenceType::DontHave,
            };
            pb::message::BlockPresence {
                cid: presence.cid.to_bytes().into(),
                r#type: kind.into(),
            }
        });
        pb::Message {
            wantlist: Some(pb::message::Wantlist {
                entries: entries.collect(),
                full: self.full,
            }),
            block_presences: match version.has_presences() {
                true => presences.collect(),
                false => Vec::new(),
            },
            pending_bytes: self.pending_bytes,
            promised: self
                .promised
                .iter()
                .map(|cid| cid.to_bytes().into())
                .collect(),
            ..pb::Message::default()
        }
    }
}

/// Field numbers of `Message`.
const TAG_WANTLIST: u32 = 1;
pub(crate) const TAG_BLOCKS: u32 = 2;
pub(crate) const TAG_PAYLOAD: u32 = 3;
const TAG_PRESENCES: u32 = 4;
const TAG_PENDING_BYTES: u32 = 5;
const TAG_PROMISED: u32 = 1000;
/// Field key of `blocks` and `payload` and, inside the latter, of `prefix` (1) and `data` (2); all
/// length-delimited.
const KEY_BLOCKS: u8 = 2 << 3 | 2;
const KEY_PAYLOAD: u8 = 3 << 3 | 2;
const KEY_PREFIX: u8 = 1 << 3 | 2;
const KEY_DATA: u8 = 2 << 3 | 2;

/// One block as it is written.
struct Item<'a> {
    data: &'a Bytes,
    /// `None`: a 1.0.0 item.
    prefix: Option<Vec<u8>>,
}

impl<'a> Item<'a> {
    fn new(block: &'a Block, version: Version) -> Self {
        Self {
            data: block.data(),
            prefix: version.has_prefixes().then(|| prefix(block.cid())),
        }
    }

    /// Length of the submessage.
    fn body_len(&self) -> usize {
        match &self.prefix {
            None => self.data.len(),
            Some(prefix) => {
                1 + encoded_len_varint(prefix.len() as u64)
                    + prefix.len()
                    + 1
                    + encoded_len_varint(self.data.len() as u64)
                    + self.data.len()
            }
        }
    }

    fn encoded_len(&self) -> usize {
        1 + encoded_len_varint(self.body_len() as u64) + self.body_len()
    }

    fn copied_len(&self) -> usize {
        64 + if self.data.len() < COPY_BELOW {
            self.data.len()
        } else {
            0
        }
    }

    fn encode(&self, buffer: &mut BytesMut, chunks: &mut Vec<Bytes>) {
        match &self.prefix {
            None => {
                buffer.put_u8(KEY_BLOCKS);
                encode_varint(self.data.len() as u64, buffer);
            }
            Some(prefix) => {
                buffer.put_u8(KEY_PAYLOAD);
                encode_varint(self.body_len() as u64, buffer);
                buffer.put_u8(KEY_PREFIX);
                encode_varint(prefix.len() as u64, buffer);
                buffer.put_slice(prefix);
                buffer.put_u8(KEY_DATA);
                encode_varint(self.data.len() as u64, buffer);
            }
        }
        if self.data.len() < COPY_BELOW {
            buffer.put_slice(self.data);
        } else {
            chunks.push(buffer.split().freeze());
            chunks.push(self.data.clone());
        }
    }
}

/// The prefix of a payload block as go-cid writes it: version, codec, hash function, digest length,
/// also for v0 (`00 70 12 20`).
pub fn prefix(cid: &Cid) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8);
    encode_varint(u64::from(cid.version()), &mut bytes);
    encode_varint(cid.codec(), &mut bytes);
    encode_varint(cid.hash().code(), &mut bytes);
    encode_varint(u64::from(cid.hash().size()), &mut bytes);
    bytes
}

/// Hashes `data` as `prefix` says. `None`: the prefix is malformed or the hash not allowed.
fn block_from_prefix(prefix: &[u8], data: Bytes) -> Option<Block> {
    // beetswap writes the two bytes of the multihash alone for v0.
    let cid = if prefix == [0x12, 0x20] {
        Cid::new_v0(hash::sha2_256(&data)).ok()?
    } else {
        let mut rest = prefix;
        let version = CidVersion::try_from(decode_varint(&mut rest).ok()?).ok()?;
        let codec = decode_varint(&mut rest).ok()?;
        let code = decode_varint(&mut rest).ok()?;
        let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
        if rest.has_remaining() {
            return None;
        }
        if version == CidVersion::V0 && (codec, code, length) != (hash::DAG_PB, hash::SHA2_256, 32)
        {
            return None;
        }
        Cid::new(version, codec, hash::digest(code, length, &data)?).ok()?
    };
    Some(Block::trusted(cid, data))
}

/// Decodes the body of a frame (without its length prefix). Takes at most `max_items` entries,
/// presences and blocks each. Never panics, whatever `frame` is; hashes every block.
pub fn decode(frame: Bytes, max_items: usize) -> Result<Message, DecodeError> {
    let mut assembly = Assembly::new(frame.len(), max_items);
    let mut rest = frame;
    while rest.has_remaining() {
        match next_field(&mut rest)? {
            Field::Bytes(tag, value) => assembly.field(tag, value)?,
            Field::Varint(tag, value) => assembly.varint(tag, value),
            Field::Other => {}
        }
    }
    Ok(assembly.verify())
}

/// A block that is not hashed yet.
#[derive(Debug)]
enum Payload {
    /// Of 1.1.0 and later.
    Prefixed(SmallVec<[u8; 16]>, Bytes),
    /// Of 1.0.0.
    Bare(Bytes),
}

/// A message put together field by field; its blocks are hashed at the end.
#[derive(Debug)]
pub(crate) struct Assembly {
    message: Message,
    payload: Vec<Payload>,
    payload_bytes: usize,
    max_items: usize,
}

impl Assembly {
    pub(crate) fn new(frame_bytes: usize, max_items: usize) -> Self {
        let message = Message {
            frame_bytes,
            ..Message::default()
        };
        Self {
            message,
            payload: Vec::new(),
            payload_bytes: 0,
            max_items,
        }
    }

    /// A length-delimited field.
    pub(crate) fn field(&mut self, tag: u32, value: Bytes) -> Result<(), DecodeError> {
        let Self {
            message, max_items, ..
        } = self;
        let frame_bytes = message.frame_bytes;
        match tag {
            TAG_WANTLIST => decode_wantlist(value, *max_items, message)?,
            TAG_BLOCKS => self.bare_block(detach(value, frame_bytes)),
            TAG_PAYLOAD => match pb::message::Block::decode(value) {
                Ok(block) => self.block(&block.prefix, detach(block.data, frame_bytes)),
                Err(_) => message.skipped += 1,
            },
            TAG_PRESENCES if message.presences.len() < *max_items => {
                let presence = decode_presence(value);
                keep(presence, &mut message.presences, &mut message.skipped);
            }
            TAG_PROMISED if message.promised.len() < *max_items => {
                keep(
                    wire_cid(&value),
                    &mut message.promised,
                    &mut message.skipped,
                );
            }
            TAG_PRESENCES | TAG_PROMISED => message.skipped += 1,
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn varint(&mut self, tag: u32, value: u64) {
        if tag == TAG_PENDING_BYTES {
            self.message.pending_bytes = value as i32;
        }
    }

    /// Whether one more block may be added.
    pub(crate) fn takes_blocks(&self) -> bool {
        self.payload.len() < self.max_items
    }

    /// A block of 1.1.0 and later.
    pub(crate) fn block(&mut self, prefix: &[u8], data: Bytes) {
        // Four varints of at most ten bytes.
        if self.takes_blocks() && prefix.len() <= 40 {
            self.payload_bytes += data.len();
            let prefix = SmallVec::from_slice(prefix);
            self.payload.push(Payload::Prefixed(prefix, data));
        } else {
            self.message.skipped += 1;
        }
    }

    /// A block of 1.0.0.
    pub(crate) fn bare_block(&mut self, data: Bytes) {
        if self.takes_blocks() {
            self.payload_bytes += data.len();
            self.payload.push(Payload::Bare(data));
        } else {
            self.message.skipped += 1;
        }
    }

    /// A block above the limit: the reader passed over it.
    pub(crate) fn skip(&mut self) {
        self.message.skipped += 1;
    }

    /// A block of a peer from which nothing is wanted: the reader passed over its `bytes`.
    pub(crate) fn leave_unread(&mut self, bytes: usize) {
        self.message.unread_bytes += bytes;
    }

    /// Bytes to be hashed.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Hashes the blocks.
    pub(crate) fn verify(self) -> Message {
        let mut message = self.message;
        message.blocks.reserve_exact(self.payload.len());
        for payload in self.payload {
            match payload {
                Payload::Prefixed(prefix, data) => {
                    let block = block_from_prefix(&prefix, data);
                    keep(block, &mut message.blocks, &mut message.skipped);
                }
                Payload::Bare(data) => {
                    let block = Cid::new_v0(hash::sha2_256(&data)).ok();
                    let block = block.map(|cid| Block::trusted(cid, data));
                    keep(block, &mut message.legacy_blocks, &mut message.skipped);
                }
            }
        }
        message
    }
}

fn decode_wantlist(
    mut wantlist: Bytes,
    max_items: usize,
    message: &mut Message,
) -> Result<(), DecodeError> {
    while wantlist.has_remaining() {
        match next_field(&mut wantlist)? {
            Field::Bytes(1, entry) if message.entries.len() < max_items => {
                keep(
                    decode_entry(entry),
                    &mut message.entries,
                    &mut message.skipped,
                );
            }
            Field::Bytes(1, _) => message.skipped += 1,
            Field::Varint(2, full) => message.full = full != 0,
            Field::Bytes(..) | Field::Varint(..) | Field::Other => {}
        }
    }
    Ok(())
}

fn decode_entry(bytes: Bytes) -> Option<Entry> {
    let entry = pb::message::wantlist::Entry::decode(bytes).ok()?;
    // proto3 enums are open; an unknown want type is none we can answer.
    let want_type = match pb::message::wantlist::WantType::try_from(entry.want_type).ok()? {
        pb::message::wantlist::WantType::Block => WantType::Block,
        pb::message::wantlist::WantType::Have => WantType::Have,
    };
    Some(Entry {
        cid: wire_cid(&entry.block)?,
        priority: entry.priority,
        cancel: entry.cancel,
        want_type,
        send_dont_have: entry.send_dont_have,
        descend: entry.descend,
    })
}

fn decode_presence(bytes: Bytes) -> Option<Presence> {
    let presence = pb::message::BlockPresence::decode(bytes).ok()?;
    let kind = pb::message::BlockPresenceType::try_from(presence.r#type).ok()?;
    Some(Presence {
        cid: wire_cid(&presence.cid)?,
        have: kind == pb::message::BlockPresenceType::Present,
    })
}

/// A CID that may travel: well-formed, at most 168 bytes, and no identity CID, whose data is known
/// without asking.
fn wire_cid(bytes: &[u8]) -> Option<Cid> {
    if bytes.len() > MAX_CID_BYTES {
        return None;
    }
    let cid = Cid::try_from(bytes).ok()?;
    (cid.hash().code() != hash::IDENTITY && cid.encoded_len() == bytes.len()).then_some(cid)
}

fn keep<T>(item: Option<T>, list: &mut Vec<T>, skipped: &mut usize) {
    match item {
        Some(item) => list.push(item),
        None => *skipped += 1,
    }
}

/// A block that is a small part of its frame gets memory of its own.
fn detach(data: Bytes, frame_bytes: usize) -> Bytes {
    if data.len() < COPY_BELOW && data.len() < frame_bytes / 2 {
        Bytes::copy_from_slice(&data)
    } else {
        data
    }
}

enum Field {
    Bytes(u32, Bytes),
    Varint(u32, u64),
    Other,
}

fn next_field(buf: &mut Bytes) -> Result<Field, DecodeError> {
    match field_head(buf)? {
        FieldHead::Bytes { tag, head, length } if length <= buf.len() - head => {
            buf.advance(head);
            Ok(Field::Bytes(tag, buf.split_to(length)))
        }
        FieldHead::Bytes { .. } => Err(FIELD_TOO_LONG),
        FieldHead::Varint { tag, length, value } => {
            buf.advance(length);
            Ok(Field::Varint(tag, value))
        }
        FieldHead::Other { length } if length <= buf.len() => {
            buf.advance(length);
            Ok(Field::Other)
        }
        FieldHead::Other { .. } => Err(FIELD_TOO_LONG),
    }
}

pub(crate) const FIELD_TOO_LONG: DecodeError = DecodeError("field longer than its message");

/// The key of a field and what its value needs, as far as `bytes` shows.
pub(crate) enum FieldHead {
    /// So many bytes of key and length, so many of value.
    Bytes {
        tag: u32,
        head: usize,
        length: usize,
    },
    /// The whole field is so long.
    Varint { tag: u32, length: usize, value: u64 },
    /// A field nobody knows of so many bytes.
    Other { length: usize },
}

/// Longest key and length, or key and varint.
pub(crate) const MAX_FIELD_HEAD: usize = 20;

/// The field that begins at `bytes`, of which [`MAX_FIELD_HEAD`] are there or all that are left.
pub(crate) fn field_head(bytes: &[u8]) -> Result<FieldHead, DecodeError> {
    let mut rest = bytes;
    let (tag, wire) = decode_key(&mut rest).map_err(|_| DecodeError("field key"))?;
    match wire {
        WireType::LengthDelimited => {
            let length = decode_varint(&mut rest).map_err(|_| DecodeError("field length"))?;
            Ok(FieldHead::Bytes {
                tag,
                head: bytes.len() - rest.len(),
                length: usize::try_from(length).map_err(|_| DecodeError("field length"))?,
            })
        }
        WireType::Varint => {
            let value = decode_varint(&mut rest).map_err(|_| DecodeError("varint"))?;
            let length = bytes.len() - rest.len();
            Ok(FieldHead::Varint { tag, length, value })
        }
        WireType::ThirtyTwoBit | WireType::SixtyFourBit => {
            let value = if wire == WireType::ThirtyTwoBit { 4 } else { 8 };
            let length = bytes.len() - rest.len() + value;
            Ok(FieldHead::Other { length })
        }
        // proto3 has no groups.
        WireType::StartGroup | WireType::EndGroup => Err(DecodeError("group")),
    }
}

/// Of a `payload` item of `length` bytes that begins with `bytes`, in the form that everybody writes
/// (prefix, then data to the end): the prefix, and how many bytes precede the data.
pub(crate) fn payload_head(bytes: &[u8], length: usize) -> Option<(&[u8], usize)> {
    let mut rest = bytes.strip_prefix(&[KEY_PREFIX])?;
    let prefix_length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    let prefix = rest.get(..prefix_length)?;
    let mut rest = rest.get(prefix_length..)?.strip_prefix(&[KEY_DATA])?;
    let data = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    let head = bytes.len() - rest.len();
    (head.checked_add(data)? == length).then_some((prefix, head))
}
