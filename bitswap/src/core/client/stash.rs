//! Pushed blocks that are not wanted yet.

use std::collections::{HashMap, VecDeque};

use cid::{Cid, multihash::Multihash};
use libp2p_identity::PeerId;

use crate::{Block, core::ConnKey};

/// Blocks kept at most, whatever their size.
const MAX_BLOCKS: usize = 256;

/// A bounded set of blocks of one session; the oldest go first.
#[derive(Debug, Default)]
pub(super) struct Stash {
    blocks: HashMap<Multihash<64>, (Block, PeerId, ConnKey)>,
    order: VecDeque<Multihash<64>>,
    bytes: usize,
}

impl Stash {
    /// Keeps a block if it fits within `max_bytes` at all.
    pub(super) fn insert(&mut self, block: Block, peer: PeerId, conn: ConnKey, max_bytes: usize) {
        let hash = *block.cid().hash();
        let size = block.data().len();
        if size > max_bytes || self.blocks.contains_key(&hash) {
            return;
        }
        self.bytes += size;
        self.order.push_back(hash);
        self.blocks.insert(hash, (block, peer, conn));
        while self.bytes > max_bytes || self.blocks.len() > MAX_BLOCKS {
            match self.order.pop_front() {
                Some(oldest) => self.forget(&oldest),
                None => break,
            }
        }
    }

    /// Takes the data of `cid` out, under the CID that was asked for.
    pub(super) fn take(&mut self, cid: &Cid) -> Option<(Block, PeerId, ConnKey)> {
        let (block, peer, conn) = self.blocks.get(cid.hash()).cloned()?;
        self.forget(cid.hash());
        self.order.retain(|hash| hash != cid.hash());
        let (_, data) = block.into_parts();
        Some((Block::trusted(*cid, data), peer, conn))
    }

    fn forget(&mut self, hash: &Multihash<64>) {
        if let Some((block, ..)) = self.blocks.remove(hash) {
            self.bytes = self.bytes.saturating_sub(block.data().len());
        }
    }
}
