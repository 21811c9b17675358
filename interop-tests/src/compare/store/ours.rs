//! Our own store.

use super::peer::Blocks;
use crate::compare::Error;
use anypath_tiered_store::{BlockingStore, Config, Durability, PutOptions};
use bytes::Bytes;
use cid::Cid;
use futures::executor::block_on;
use std::path::Path;

/// Blocks of one `put_many`, in bytes.
const CHUNK: usize = 16 << 20;

pub(super) struct Ours {
    pub(super) store: BlockingStore,
}

impl Ours {
    pub(super) fn open(directory: &Path, capacity: u64) -> Result<Self, Error> {
        let config = Config::builder()
            .path(directory)
            .disk_capacity(capacity)
            .build()?;
        Ok(Self {
            store: BlockingStore::open(config)?,
        })
    }

    pub(super) fn fill_with(
        &self,
        blocks: &mut dyn Iterator<Item = (Cid, Bytes)>,
        options: &PutOptions,
    ) -> Result<(), Error> {
        loop {
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while bytes < CHUNK
                && let Some((cid, data)) = blocks.next()
            {
                bytes += data.len() + 64;
                chunk.push((cid, data));
            }
            if chunk.is_empty() {
                break;
            }
            self.store.put_many(chunk, options.clone())?;
        }
        Ok(())
    }
}

impl Blocks for Ours {
    fn put(&self, cid: &Cid, data: &Bytes) -> Result<(), Error> {
        Ok(self.store.put(*cid, data.clone())?)
    }

    fn fill(&self, blocks: &mut dyn Iterator<Item = (Cid, Bytes)>) -> Result<(), Error> {
        let options = PutOptions::default().with_durability(Durability::Relaxed);
        self.fill_with(blocks, &options)?;
        Ok(self.store.flush()?)
    }

    fn get(&self, cid: &Cid) -> Result<Option<usize>, Error> {
        Ok(self.store.get(cid)?.map(|data| data.len()))
    }

    fn has(&self, cid: &Cid) -> Result<bool, Error> {
        Ok(self.store.store().has(cid))
    }

    fn delete(&self, cids: &[Cid]) -> Result<(), Error> {
        use futures::{StreamExt as _, TryStreamExt as _};
        let deletes = futures::stream::iter(cids)
            .map(|cid| self.store.store().delete(cid))
            .buffer_unordered(1024);
        block_on(deletes.try_for_each(|_| async { Ok(()) }))?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(self.store.close()?)
    }
}
