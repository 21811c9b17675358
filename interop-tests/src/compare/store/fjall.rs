//! fjall 3 with key-value separation and otherwise its defaults.

use super::data::{Digest, digest_of};
use super::group::{Commit, Group};
use super::peer::Blocks;
use crate::compare::Error;
use bytes::Bytes;
use cid::Cid;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use std::path::Path;

#[derive(Clone)]
struct Tables {
    database: Database,
    blocks: Keyspace,
}

pub(super) struct Fjall {
    tables: Tables,
    group: Option<Group>,
}

impl Tables {
    fn batch(&self, mode: Option<PersistMode>, blocks: &[(Digest, Bytes)]) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(mode);
        for (key, data) in blocks {
            batch.insert(&self.blocks, key, &data[..]);
        }
        Ok(batch.commit()?)
    }
}

impl Commit for Tables {
    fn commit(&self, blocks: &[(Digest, Bytes)]) -> Result<(), Error> {
        self.batch(Some(PersistMode::SyncData), blocks)
    }
}

impl Fjall {
    pub(super) fn open(directory: &Path, alone: bool) -> Result<Self, Error> {
        let database = Database::builder(directory).open()?;
        let blocks = database.keyspace("blocks", || {
            KeyspaceCreateOptions::default()
                .with_kv_separation(Some(KvSeparationOptions::default()))
        })?;
        let tables = Tables { database, blocks };
        let group = (!alone).then(|| Group::new(tables.clone()));
        Ok(Self { tables, group })
    }
}

impl Blocks for Fjall {
    fn put(&self, cid: &Cid, data: &Bytes) -> Result<(), Error> {
        match &self.group {
            Some(group) => group.put(digest_of(cid), data),
            None => {
                self.tables.blocks.insert(digest_of(cid), &data[..])?;
                Ok(self.tables.database.persist(PersistMode::SyncData)?)
            }
        }
    }

    fn fill(&self, blocks: &mut dyn Iterator<Item = (Cid, Bytes)>) -> Result<(), Error> {
        for (cid, data) in blocks {
            self.tables.blocks.insert(digest_of(&cid), &data[..])?;
        }
        // Else up to 64 MiB of the data set are in memory after opening, and no figure of the disk.
        self.tables.blocks.rotate_memtable_and_wait()?;
        Ok(self.tables.database.persist(PersistMode::SyncAll)?)
    }

    fn get(&self, cid: &Cid) -> Result<Option<usize>, Error> {
        let value = self.tables.blocks.get(digest_of(cid))?;
        Ok(std::hint::black_box(value).map(|value| value.len()))
    }

    fn has(&self, cid: &Cid) -> Result<bool, Error> {
        Ok(self.tables.blocks.contains_key(digest_of(cid))?)
    }

    fn delete(&self, cids: &[Cid]) -> Result<(), Error> {
        let mut batch = self
            .tables
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for cid in cids {
            batch.remove(&self.tables.blocks, digest_of(cid));
        }
        Ok(batch.commit()?)
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        drop(self.group);
        Ok(self.tables.database.persist(PersistMode::SyncAll)?)
    }
}
