//! One block of a file's tree, checked: everything in it may come from a stranger.
//!
//! This reads dag-pb and UnixFS itself: rust-unixfs 0.6 decodes with quick-protobuf 0.8, which panics on malformed
//! lengths, adds up block sizes unchecked, and does not read the links of roots with a mode or time.

use std::fmt;

use bytes::Bytes;
use cid::Cid;

/// Multicodec `raw`.
pub(super) const RAW: u64 = 0x55;
/// Multicodec `dag-pb`.
const DAG_PB: u64 = 0x70;
/// Links in one node; the profiles in use have up to 1,024, and a block of 2 MiB holds about 40,000.
const MAX_LINKS: usize = 65_536;

/// What a block of a file's tree is.
#[derive(Debug)]
pub(super) enum Node {
    /// Bytes of the file.
    Leaf(Bytes),
    /// Subtrees, in the order of the file. None is empty.
    Branch(Vec<Child>),
}

/// A subtree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) cid: Cid,
    /// Bytes of the file below it, at least 1.
    pub(super) size: u64,
}

/// What a CID is if it is not a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A directory with these entries.
    Directory(Vec<Entry>),
    /// A directory so large that it is split over several blocks.
    ShardedDirectory,
    /// A symbolic link.
    Symlink,
    /// Something that is not UnixFS.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(entries) => {
                const SHOWN: usize = 20;
                write!(f, "a directory; get its files one by one:")?;
                for Entry { name, cid } in entries.iter().take(SHOWN) {
                    write!(f, "\n  {cid}  {}", name.escape_debug())?;
                }
                match entries.len().saturating_sub(SHOWN) {
                    0 => Ok(()),
                    more => write!(f, "\n  … and {more} more"),
                }
            }
            Self::ShardedDirectory => write!(f, "a sharded directory; get its files one by one"),
            Self::Symlink => write!(f, "a symbolic link"),
            Self::Other => write!(f, "not a UnixFS file"),
        }
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as the directory's author wrote it.
    pub name: String,
    /// What it names.
    pub cid: Cid,
}

/// Why a block cannot be part of a file.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is something else.
    NotAFile(Kind),
    /// It breaks UnixFS' rules.
    Malformed(&'static str),
}

/// Reads a block. `expected` is the size that its parent promised; a root has none.
pub(super) fn decode(cid: &Cid, block: Bytes, expected: Option<u64>) -> Result<Node, Refused> {
    let node = match cid.codec() {
        RAW => Node::Leaf(block),
        DAG_PB => decode_dag_pb(&block)?,
        _ => return Err(Refused::NotAFile(Kind::Other)),
    };
    match expected {
        Some(expected) if node.size() != Some(expected) => Err(Refused::Malformed(
            "its size is not the one that its parent states",
        )),
        _ => Ok(node),
    }
}

impl Node {
    /// Bytes of the file in or below this node; none if they do not fit in 64 bits.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Leaf(data) => u64::try_from(data.len()).ok(),
            Self::Branch(children) => children
                .iter()
                .try_fold(0_u64, |sum, child| sum.checked_add(child.size)),
        }
    }
}

fn decode_dag_pb(block: &Bytes) -> Result<Node, Refused> {
    let node = PbNode::read(block).ok_or(Refused::NotAFile(Kind::Other))?;
    let data = node.data.ok_or(Refused::NotAFile(Kind::Other))?;
    let unixfs = UnixFs::read(data).ok_or(Refused::Malformed("it is not valid UnixFS"))?;
    match unixfs.kind {
        UnixFs::FILE | UnixFs::RAW if node.links.is_empty() => leaf(block, &unixfs),
        UnixFs::FILE | UnixFs::RAW => branch(&node, &unixfs),
        UnixFs::DIRECTORY => Err(Refused::NotAFile(Kind::Directory(entries(&node)))),
        UnixFs::HAMT_SHARD => Err(Refused::NotAFile(Kind::ShardedDirectory)),
        UnixFs::SYMLINK => Err(Refused::NotAFile(Kind::Symlink)),
        _ => Err(Refused::NotAFile(Kind::Other)),
    }
}

fn leaf(block: &Bytes, unixfs: &UnixFs<'_>) -> Result<Node, Refused> {
    let length = u64::try_from(unixfs.data.len()).ok();
    if unixfs.file_size.is_some() && unixfs.file_size != length {
        return Err(Refused::Malformed(
            "its content has not the size that it states",
        ));
    }
    Ok(Node::Leaf(block.slice_ref(unixfs.data)))
}

fn branch(node: &PbNode<'_>, unixfs: &UnixFs<'_>) -> Result<Node, Refused> {
    if node.links.len() != unixfs.block_sizes.len() {
        return Err(Refused::Malformed("its links and block sizes do not match"));
    }
    if !unixfs.data.is_empty() {
        return Err(Refused::Malformed("it has both links and content"));
    }
    let mut children = Vec::with_capacity(node.links.len());
    for (link, size) in node.links.iter().zip(&unixfs.block_sizes) {
        let cid = link.cid().ok_or(Refused::Malformed("a link has no CID"))?;
        // An empty subtree adds nothing to the file.
        if *size > 0 {
            children.push(Child { cid, size: *size });
        }
    }
    let node = Node::Branch(children);
    if node.size().is_none() || node.size() != unixfs.file_size {
        return Err(Refused::Malformed(
            "its block sizes do not add up to its size",
        ));
    }
    Ok(node)
}

fn entries(node: &PbNode<'_>) -> Vec<Entry> {
    let entry = |link: &PbLink<'_>| {
        let name = String::from_utf8_lossy(link.name).into_owned();
        Some(Entry {
            name,
            cid: link.cid()?,
        })
    };
    node.links.iter().filter_map(entry).collect()
}

/// A dag-pb node (<https://ipld.io/specs/codecs/dag-pb/spec/>).
#[derive(Default)]
struct PbNode<'a> {
    links: Vec<PbLink<'a>>,
    data: Option<&'a [u8]>,
}

#[derive(Default)]
struct PbLink<'a> {
    hash: &'a [u8],
    name: &'a [u8],
}

impl<'a> PbNode<'a> {
    fn read(block: &'a [u8]) -> Option<Self> {
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
                (3, Value::Varint(_)) => {}
                _ => return None,
            }
        }
        Some(link)
    }

    fn cid(&self) -> Option<Cid> {
        Cid::try_from(self.hash).ok()
    }
}

/// The payload of a dag-pb node (<https://specs.ipfs.tech/unixfs/>).
#[derive(Default)]
struct UnixFs<'a> {
    kind: u64,
    data: &'a [u8],
    file_size: Option<u64>,
    block_sizes: Vec<u64>,
}

impl<'a> UnixFs<'a> {
    const RAW: u64 = 0;
    const DIRECTORY: u64 = 1;
    const FILE: u64 = 2;
    const SYMLINK: u64 = 4;
    const HAMT_SHARD: u64 = 5;

    fn read(message: &'a [u8]) -> Option<Self> {
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
                // Of a directory: hash type and fan-out; of any root: mode and time.
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

#[cfg(test)]
mod tests {
    use multihash_codetable::{Code, MultihashDigest as _};
    use proptest::prelude::*;

    use super::*;

    fn dag_pb(block: &[u8]) -> Cid {
        Cid::new_v1(DAG_PB, Code::Sha2_256.digest(block))
    }

    /// A file node whose two links claim the given block sizes.
    fn branch(sizes: [u64; 2], file_size: u64, mode: bool) -> Vec<u8> {
        fn field(tag: u8, value: u64, out: &mut Vec<u8>) {
            out.push(tag);
            let mut rest = value;
            while rest >= 0x80 {
                out.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
        }
        let cid = Cid::new_v1(RAW, Code::Sha2_256.digest(b"leaf")).to_bytes();
        let mut link = vec![0x0a, cid.len() as u8];
        link.extend(cid);
        link.extend([0x12, 0, 0x18, 4]);
        let mut data = vec![8, 2];
        field(0x18, file_size, &mut data);
        sizes.iter().for_each(|size| field(0x20, *size, &mut data));
        if mode {
            field(0x38, 0o644, &mut data);
        }
        let mut node = Vec::new();
        for _ in sizes {
            node.extend([0x12, link.len() as u8]);
            node.extend(&link);
        }
        node.extend([0x0a, data.len() as u8]);
        node.extend(data);
        node
    }

    #[test]
    fn a_root_with_a_mode_is_read_like_one_without() {
        for mode in [false, true] {
            let block = Bytes::from(branch([3, 4], 7, mode));
            let Ok(Node::Branch(children)) = decode(&dag_pb(&block), block, None) else {
                panic!()
            };
            assert_eq!(
                children.iter().map(|child| child.size).collect::<Vec<_>>(),
                [3, 4]
            );
        }
    }

    #[test]
    fn sizes_that_overflow_or_do_not_add_up_are_refused() {
        for mode in [false, true] {
            for (sizes, file_size) in [([u64::MAX, 2], 1), ([3, 4], 8), ([3, 4], 0)] {
                let block = Bytes::from(branch(sizes, file_size, mode));
                assert!(matches!(
                    decode(&dag_pb(&block), block, None),
                    Err(Refused::Malformed(_))
                ));
            }
        }
    }

    #[test]
    fn a_block_of_another_size_than_its_parent_states_is_refused() {
        let raw = Cid::new_v1(RAW, Code::Sha2_256.digest(b"leaf"));
        assert!(decode(&raw, Bytes::from_static(b"leaf"), Some(4)).is_ok());
        assert!(decode(&raw, Bytes::from_static(b"leaf"), Some(5)).is_err());
    }

    #[test]
    fn links_to_nothing_are_left_out() {
        let block = Bytes::from(branch([0, 4], 4, false));
        let Ok(Node::Branch(children)) = decode(&dag_pb(&block), block, None) else {
            panic!()
        };
        assert_eq!(children.len(), 1);
    }

    proptest! {
        #[test]
        fn no_block_makes_it_panic(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&dag_pb(&block), block.into(), None);
        }

        #[test]
        fn no_change_of_a_valid_node_makes_it_panic(at in 0_usize..120, byte: u8, mode: bool) {
            let mut block = branch([3, 4], 7, mode);
            let at = at % block.len();
            block[at] = byte;
            let _ = decode(&dag_pb(&block), block.into(), None);
        }
    }
}
