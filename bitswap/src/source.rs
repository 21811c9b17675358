//! Where served blocks come from: [`BlockSource`], and [`MemorySource`] for tests and small users.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use bytes::Bytes;
use cid::{Cid, multihash::Multihash};
use futures::future::{BoxFuture, FutureExt, ready};

use crate::{Block, links};

/// Any error of a block source; bitswap logs it and answers as if the block were absent.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The blocks we serve. Read only: bitswap never writes.
///
/// Look blocks up by multihash: v0 and v1 of one CID are the same data.
pub trait BlockSource: Send + Sync + 'static {
    /// Reads a block. It is sent as it is: it must be the data that `cid` names.
    fn get(&self, cid: &Cid) -> BoxFuture<'static, Result<Option<Bytes>, BoxError>>;

    /// Size in bytes of the block, if it is there. Never does I/O: it is called for every want.
    fn size(&self, cid: &Cid) -> Option<u32>;

    /// The CIDs a block links to, in order, for peers that ask to be pushed descendants. At most
    /// a few thousand. The default parses dag-pb; other codecs have none.
    fn links(&self, cid: &Cid, data: &Bytes) -> Vec<Cid> {
        links::dag_pb(cid, data)
    }
}

/// Blocks in a map.
#[derive(Debug, Default)]
pub struct MemorySource {
    blocks: RwLock<HashMap<Multihash<64>, Bytes>>,
}

impl MemorySource {
    /// An empty source.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a block.
    pub fn insert(&self, block: Block) {
        let (cid, data) = block.into_parts();
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        blocks.insert(*cid.hash(), data);
    }

    /// Removes a block; whether it was there.
    pub fn remove(&self, cid: &Cid) -> bool {
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        blocks.remove(cid.hash()).is_some()
    }

    /// The data of a block.
    pub fn data(&self, cid: &Cid) -> Option<Bytes> {
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        blocks.get(cid.hash()).cloned()
    }
}

impl BlockSource for MemorySource {
    fn get(&self, cid: &Cid) -> BoxFuture<'static, Result<Option<Bytes>, BoxError>> {
        ready(Ok(self.data(cid))).boxed()
    }

    fn size(&self, cid: &Cid) -> Option<u32> {
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        blocks
            .get(cid.hash())
            .and_then(|data| u32::try_from(data.len()).ok())
    }
}
