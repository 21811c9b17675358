//! One block of a file's tree, checked: everything in it may come from a stranger.

use std::fmt;

use bytes::Bytes;
use cid::Cid;

use super::dag_pb::{DAG_PB, PbNode, UnixFs};

/// Multicodec `raw`.
pub(super) const RAW: u64 = 0x55;
/// The multihash code of inlined data.
const IDENTITY: u64 = 0;

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

/// The content of a CID that is its own block.
pub(super) fn inlined(cid: &Cid) -> Option<Bytes> {
    (cid.hash().code() == IDENTITY).then(|| Bytes::copy_from_slice(cid.hash().digest()))
}

/// What a CID is if it is not a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A symbolic link.
    Symlink,
    /// A directory, where a file was expected.
    Directory,
    /// Something that is not UnixFS.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symlink => "a symbolic link, not a file or a directory",
            Self::Directory => "a directory, not a file",
            Self::Other => "not a UnixFS file or directory",
        })
    }
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
        UnixFs::DIRECTORY | UnixFs::HAMT_SHARD => Err(Refused::NotAFile(Kind::Directory)),
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
