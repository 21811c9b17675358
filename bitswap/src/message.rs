//! Typed messages and their wire form. Every limit on what a peer can send is applied here.
//!
//! Framing is strict, items are lenient: a frame that is no protobuf is an error, an item in it
//! that we cannot use (unknown hash, bad CID, bad prefix) is skipped and counted.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cid::{Cid, Version as CidVersion};
use prost::{
    Message as _,
    encoding::{
        DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint,
        skip_field,
    },
};

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

/// Field key of `blocks` (2) and `payload` (3) and, inside the latter, `prefix` (1), `data` (2); all
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
    let mut message = Message {
        frame_bytes: frame.len(),
        ..Message::default()
    };
    let frame_bytes = frame.len();
    let mut rest = frame;
    while rest.has_remaining() {
        match next_field(&mut rest)? {
            Field::Bytes(1, wantlist) => decode_wantlist(wantlist, max_items, &mut message)?,
            Field::Bytes(2, data) if message.legacy_blocks.len() < max_items => {
                let data = detach(data, frame_bytes);
                match Cid::new_v0(hash::sha2_256(&data)) {
                    Ok(cid) => message.legacy_blocks.push(Block::trusted(cid, data)),
                    Err(_) => message.skipped += 1,
                }
            }
            Field::Bytes(3, payload) if message.blocks.len() < max_items => {
                let block = pb::message::Block::decode(payload)
                    .ok()
                    .and_then(|b| block_from_prefix(&b.prefix, detach(b.data, frame_bytes)));
                keep(block, &mut message.blocks, &mut message.skipped);
            }
            Field::Bytes(4, presence) if message.presences.len() < max_items => {
                let presence = decode_presence(presence);
                keep(presence, &mut message.presences, &mut message.skipped);
            }
            Field::Bytes(1000, cid) if message.promised.len() < max_items => {
                keep(wire_cid(&cid), &mut message.promised, &mut message.skipped);
            }
            Field::Bytes(2 | 3 | 4 | 1000, _) => message.skipped += 1,
            Field::Varint(5, value) => message.pending_bytes = value as i32,
            Field::Bytes(..) | Field::Varint(..) | Field::Other => {}
        }
    }
    Ok(message)
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
    let (tag, wire) = decode_key(buf).map_err(|_| DecodeError("field key"))?;
    match wire {
        WireType::LengthDelimited => {
            let length = decode_varint(buf).map_err(|_| DecodeError("field length"))?;
            match usize::try_from(length) {
                Ok(length) if length <= buf.remaining() => {
                    Ok(Field::Bytes(tag, buf.split_to(length)))
                }
                _ => Err(DecodeError("field longer than its message")),
            }
        }
        WireType::Varint => decode_varint(buf)
            .map(|value| Field::Varint(tag, value))
            .map_err(|_| DecodeError("varint")),
        _ => skip_field(wire, tag, buf, DecodeContext::default())
            .map(|()| Field::Other)
            .map_err(|_| DecodeError("unknown field")),
    }
}
