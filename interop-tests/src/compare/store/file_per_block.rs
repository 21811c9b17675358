//! A file for each block, as kubo's flatfs with `sync: true` and most hand-made stores have it.

use super::data::digest_of;
use super::peer::Blocks;
use crate::compare::Error;
use bytes::Bytes;
use cid::Cid;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) struct FilePerBlock {
    directory: PathBuf,
    /// The 256 directories, open for their fsync.
    shards: Vec<Arc<File>>,
}

impl FilePerBlock {
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let mut shards = Vec::new();
        for number in 0..=u8::MAX {
            let path = directory.join(format!("{number:02x}"));
            std::fs::create_dir_all(&path)?;
            shards.push(Arc::new(File::open(path)?));
        }
        File::open(directory)?.sync_all()?;
        Ok(Self {
            directory: directory.to_owned(),
            shards,
        })
    }

    fn path(&self, cid: &Cid) -> (usize, PathBuf) {
        let digest = digest_of(cid);
        let shard = digest[0];
        let mut path = self.directory.join(format!("{shard:02x}"));
        path.push(digest.map(|byte| format!("{byte:02x}")).concat());
        (usize::from(shard), path)
    }

    fn write(&self, cid: &Cid, data: &Bytes, durable: bool) -> Result<(), Error> {
        let (shard, path) = self.path(cid);
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(data)?;
        if durable {
            file.sync_all()?;
        }
        std::fs::rename(&temporary, &path)?;
        if durable {
            self.shards.get(shard).ok_or("no such shard")?.sync_all()?;
        }
        Ok(())
    }
}

impl Blocks for FilePerBlock {
    fn put(&self, cid: &Cid, data: &Bytes) -> Result<(), Error> {
        self.write(cid, data, true)
    }

    fn fill(&self, blocks: &mut dyn Iterator<Item = (Cid, Bytes)>) -> Result<(), Error> {
        for (cid, data) in blocks {
            self.write(&cid, &data, false)?;
        }
        Ok(())
    }

    fn get(&self, cid: &Cid) -> Result<Option<usize>, Error> {
        match std::fs::read(self.path(cid).1) {
            Ok(bytes) => Ok(Some(std::hint::black_box(bytes).len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn has(&self, cid: &Cid) -> Result<bool, Error> {
        Ok(self.path(cid).1.try_exists()?)
    }

    fn delete(&self, cids: &[Cid]) -> Result<(), Error> {
        for cid in cids {
            std::fs::remove_file(self.path(cid).1)?;
        }
        for shard in &self.shards {
            shard.sync_all()?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}
