//! The stores that are compared, behind one interface of blocking calls.

use super::{file_per_block, fjall, ours, raw, redb};
use crate::compare::Error;
use bytes::Bytes;
use cid::Cid;
use std::path::Path;

/// A store under measurement. Every call blocks its thread.
pub(super) trait Blocks: Send + Sync {
    /// Stores a block; durable when it returns.
    fn put(&self, cid: &Cid, data: &Bytes) -> Result<(), Error>;
    /// Stores blocks in the fastest way that the store has; durable once the store is closed and the file system synced.
    fn fill(&self, blocks: &mut dyn Iterator<Item = (Cid, Bytes)>) -> Result<(), Error>;
    /// Reads a block; its length.
    fn get(&self, cid: &Cid) -> Result<Option<usize>, Error>;
    /// Whether a block is there.
    fn has(&self, cid: &Cid) -> Result<bool, Error>;
    /// Forgets blocks; durable when it returns.
    fn delete(&self, cids: &[Cid]) -> Result<(), Error>;
    /// Ends all that runs in the background.
    fn close(self: Box<Self>) -> Result<(), Error>;
}

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// anypath-tiered-store with its defaults, but for the disk capacity.
    Ours,
    /// 64 MiB files that grow by appending, one fdatasync for all that wait; the index lies in memory and is never stored.
    Raw,
    /// A file for each block in 256 directories: written beside, fsynced, renamed, the directory fsynced.
    #[value(name = "file_per_block")]
    FilePerBlock,
    /// fjall 3 with key-value separation; one batch for all that wait, `PersistMode::SyncData`.
    Fjall,
    /// redb 4; one transaction for all that wait.
    Redb,
}

impl Peer {
    /// Everyone but us.
    pub(super) const OTHERS: [Self; 4] = [Self::Raw, Self::FilePerBlock, Self::Fjall, Self::Redb];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Raw => "raw",
            Self::FilePerBlock => "file_per_block",
            Self::Fjall => "fjall",
            Self::Redb => "redb",
        }
    }

    /// Opens a directory that this one filled before, or an empty one. `capacity` is in bytes; only ours has one. With one writer
    /// (`alone`) nobody waits for anybody, and a put commits in its caller's thread.
    pub(super) fn open(
        self,
        directory: &Path,
        capacity: u64,
        alone: bool,
    ) -> Result<Box<dyn Blocks>, Error> {
        Ok(match self {
            Self::Ours => Box::new(ours::Ours::open(directory, capacity)?),
            Self::Raw => Box::new(raw::Raw::open(directory, alone)?),
            Self::FilePerBlock => Box::new(file_per_block::FilePerBlock::open(directory)?),
            Self::Fjall => Box::new(fjall::Fjall::open(directory, alone)?),
            Self::Redb => Box::new(redb::Redb::open(directory, alone)?),
        })
    }
}
