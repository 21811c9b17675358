//! redb 4 with its defaults.

use super::data::{Digest, digest_of};
use super::group::{Commit, Group};
use super::peer::Blocks;
use crate::compare::Error;
use bytes::Bytes;
use cid::Cid;
use redb::{Database, Durability, ReadableDatabase as _, TableDefinition};
use std::path::Path;
use std::sync::Arc;

const BLOCKS: TableDefinition<'_, Digest, &[u8]> = TableDefinition::new("blocks");

/// Blocks of one transaction of [`Redb::fill`].
const FILL_BYTES: usize = 16 << 20;

pub(super) struct Redb {
    database: Arc<Database>,
    group: Option<Group>,
}

struct Shared(Arc<Database>);

impl Shared {
    fn write(&self, durability: Durability, blocks: &[(Digest, Bytes)]) -> Result<(), Error> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(durability)?;
        {
            let mut table = transaction.open_table(BLOCKS)?;
            for (key, data) in blocks {
                table.insert(key, &data[..])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Commit for Shared {
    fn commit(&self, blocks: &[(Digest, Bytes)]) -> Result<(), Error> {
        self.write(Durability::Immediate, blocks)
    }
}

impl Redb {
    pub(super) fn open(directory: &Path, alone: bool) -> Result<Self, Error> {
        let database = Arc::new(Database::create(directory.join("blocks.redb"))?);
        Shared(database.clone()).write(Durability::Immediate, &[])?;
        let group = (!alone).then(|| Group::new(Shared(database.clone())));
        Ok(Self { database, group })
    }
}

impl Blocks for Redb {
    fn put(&self, cid: &Cid, data: &Bytes) -> Result<(), Error> {
        match &self.group {
            Some(group) => group.put(digest_of(cid), data),
            None => Shared(self.database.clone()).commit(&[(digest_of(cid), data.clone())]),
        }
    }

    fn fill(&self, blocks: &mut dyn Iterator<Item = (Cid, Bytes)>) -> Result<(), Error> {
        let shared = Shared(self.database.clone());
        loop {
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while bytes < FILL_BYTES
                && let Some((cid, data)) = blocks.next()
            {
                bytes += data.len();
                chunk.push((digest_of(&cid), data));
            }
            if chunk.is_empty() {
                return Ok(());
            }
            shared.write(Durability::Immediate, &chunk)?;
        }
    }

    fn get(&self, cid: &Cid) -> Result<Option<usize>, Error> {
        let table = self.database.begin_read()?.open_table(BLOCKS)?;
        let value = redb::ReadableTable::get(&table, digest_of(cid))?;
        Ok(value.map(|value| std::hint::black_box(value.value()).len()))
    }

    fn has(&self, cid: &Cid) -> Result<bool, Error> {
        Ok(self.get(cid)?.is_some())
    }

    fn delete(&self, cids: &[Cid]) -> Result<(), Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(BLOCKS)?;
            for cid in cids {
                table.remove(digest_of(cid))?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}
