//! One error per operation. The text says what to do next.

use std::{error::Error, io, path::PathBuf, sync::Arc};

use cid::Cid;

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another [`Store`](crate::Store) of this one, has the directory open.
    #[error("the store at {} is in use{}; stop that process or choose another directory", path.display(), by(pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, where it could be read.
        pid: Option<u32>,
    },
    /// The directory was written by a newer version of this crate.
    #[error(
        "the store at {} has format {found}, this program reads up to format {supported}; update the program or choose another directory",
        path.display()
    )]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// The format of the directory.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// The directory has a `FORMAT` file that this crate did not write.
    #[error("{} is not a block store (its FORMAT file is foreign); choose another directory", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The directory was written by an older version of this crate, which this one does not read.
    #[error(
        "the store at {} has format {found}, this program reads format {supported}; open it with the version that wrote it, or choose another directory",
        path.display()
    )]
    OlderFormat {
        /// The directory.
        path: PathBuf,
        /// The format of the directory.
        found: u32,
        /// The format that this version reads.
        supported: u32,
    },
    /// The cold tier's directory cannot be used, or its S3 settings make no sense. A server that does not answer is no reason not to open.
    #[error("cannot set up the cold tier ({at}); check its settings")]
    Cold {
        /// The directory or bucket.
        at: String,
        /// The cause.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The operating system refused.
    #[error("cannot open the store at {}: {what}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn by(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" by process {pid}"))
        .unwrap_or_default()
}

/// A failure of the log that every waiting write is told.
#[derive(Debug, Clone)]
pub(crate) enum WriteFailure {
    Closed,
    DiskFull(Arc<io::Error>),
    Sync(Arc<io::Error>),
    Io(Arc<io::Error>),
}

impl WriteFailure {
    pub(crate) fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => WriteFailure::DiskFull(Arc::new(error)),
            _ => WriteFailure::Io(Arc::new(error)),
        }
    }
}

macro_rules! from_write_failure {
    ($($error:ident),*) => {$(
        impl From<WriteFailure> for $error {
            fn from(failure: WriteFailure) -> Self {
                match failure {
                    WriteFailure::Closed => $error::Closed,
                    WriteFailure::DiskFull(source) => $error::DiskFull { source },
                    WriteFailure::Sync(source) => $error::Sync { source },
                    WriteFailure::Io(source) => $error::Io { source },
                }
            }
        }
    )*};
}

from_write_failure!(
    PutError,
    DeleteError,
    PinError,
    ValueError,
    MaintenanceError
);

/// Why a block was not stored.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// Pinned blocks leave no room: nothing more can be evicted.
    #[error(
        "the store is full of pinned blocks: {needed} bytes needed, capacity {capacity}; raise the disk capacity or unpin something"
    )]
    Full {
        /// Bytes that this put would have to add.
        needed: u64,
        /// Bytes that the disk tier may take.
        capacity: u64,
    },
    /// The block is larger than [`ConfigBuilder::max_block_bytes`](crate::ConfigBuilder::max_block_bytes).
    #[error("the block has {size} bytes, the store takes up to {most}")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        most: u32,
    },
    /// The name of the pin set is empty or longer than [`MAX_NAME_BYTES`](crate::MAX_NAME_BYTES).
    #[error("a pin set's name must have 1 to {} bytes", crate::MAX_NAME_BYTES)]
    Name,
    /// The device has no space left. The store stays readable, and writes work again once there is space.
    #[error("the disk is full; free some space, what is stored stays readable")]
    DiskFull {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The device did not confirm the write: it may or may not survive. The segment is left as it is and never synced again.
    #[error("the disk did not confirm the write; check the device")]
    Sync {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The operating system refused.
    #[error("the write failed")]
    Io {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk tier is full, and the cold tier has taken no blocks for as long as puts wait for it. Nothing is lost: put again once it
    /// can be reached.
    #[error(
        "the disk tier is full and the cold tier cannot take blocks; put again once it can be reached, or raise the disk capacity"
    )]
    ColdTier {
        /// Why the last attempt failed.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// A request to the cold tier that came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{cause}")]
#[non_exhaustive]
pub struct ColdFailure {
    /// The directory or bucket.
    pub at: String,
    /// What to look at.
    pub check: &'static str,
    /// What happened.
    pub cause: Arc<dyn Error + Send + Sync>,
}

/// Why a block could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// The bytes on the disk or in the cold tier are not those that were written, or its pack is gone. The block counts as absent from now
    /// on: fetch and put it again.
    #[error("block {cid} is damaged; fetch it again")]
    Corrupt {
        /// The block.
        cid: Cid,
    },
    /// The block is in the cold tier, which does not answer or refuses. It is not lost; all other blocks can be read.
    #[error("block {cid} is in the cold tier ({}), which cannot be read: {}", source.at, source.check)]
    ColdUnreachable {
        /// The block.
        cid: Cid,
        /// Where it is, what to look at, and what happened.
        #[source]
        source: Arc<ColdFailure>,
    },
    /// The [`Source`](crate::Source) failed or took too long. The next get asks it again.
    #[error("block {cid} is not here, and its source failed")]
    Source {
        /// The block.
        cid: Cid,
        /// The cause.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The [`Source`](crate::Source) brought bytes that do not have the block's hash. They were not stored.
    #[error("the source of block {cid} brought other bytes; check the source")]
    WrongBlock {
        /// The block.
        cid: Cid,
    },
    /// The operating system refused.
    #[error("reading block {cid} failed")]
    Io {
        /// The block.
        cid: Cid,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a block was not deleted.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// The block is pinned.
    #[error("block {cid} is pinned; unpin it first")]
    Pinned {
        /// The block.
        cid: Cid,
    },
    /// See [`PutError::DiskFull`].
    #[error("the disk is full; free some space, what is stored stays readable")]
    DiskFull {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// See [`PutError::Sync`].
    #[error("the disk did not confirm the deletion; check the device")]
    Sync {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The operating system refused.
    #[error("the deletion could not be written")]
    Io {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why pins did not change. All of the call or nothing of it took effect.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// A block that is not in the store cannot be pinned; put it first, or with [`PutOptions::pin`](crate::PutOptions::pin).
    #[error("block {cid} is not in the store and cannot be pinned")]
    Missing {
        /// The block.
        cid: Cid,
    },
    /// See [`PutError::Full`].
    #[error(
        "pinning needs {needed} bytes more than may be pinned, capacity {capacity}; raise the disk capacity or unpin something"
    )]
    Full {
        /// Bytes that would become pinned.
        needed: u64,
        /// Bytes that the disk tier may take.
        capacity: u64,
    },
    /// The block is in the cold tier, which cannot be reached. Pinned blocks are on the disk, so it has to be read first.
    #[error("block {cid} is in the cold tier, which cannot be reached; pin it once it can")]
    ColdTier {
        /// The block.
        cid: Cid,
    },
    /// There is no such set.
    #[error("there is no pin set {set:?}")]
    NoSuchSet {
        /// The set.
        set: String,
    },
    /// The new name is taken.
    #[error("the pin set {set:?} exists already")]
    SetExists {
        /// The set.
        set: String,
    },
    /// The name of the set is empty or longer than [`MAX_NAME_BYTES`](crate::MAX_NAME_BYTES).
    #[error("a pin set's name must have 1 to {} bytes", crate::MAX_NAME_BYTES)]
    Name,
    /// See [`PutError::DiskFull`].
    #[error("the disk is full; free some space, what is stored stays readable")]
    DiskFull {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// See [`PutError::Sync`].
    #[error("the disk did not confirm the change of pins; check the device")]
    Sync {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The operating system refused.
    #[error("the change of pins could not be written")]
    Io {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a value was not stored, read or deleted.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// The key is empty or longer than [`MAX_NAME_BYTES`](crate::MAX_NAME_BYTES).
    #[error("a key must have 1 to {} bytes", crate::MAX_NAME_BYTES)]
    Key,
    /// The value is larger than the largest block.
    #[error("the value has {size} bytes, the store takes up to {most}")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        most: u32,
    },
    /// See [`PutError::Full`].
    #[error(
        "the store is full: {needed} bytes needed, capacity {capacity}; raise the disk capacity or unpin something"
    )]
    Full {
        /// Bytes needed.
        needed: u64,
        /// Bytes that the disk tier may take.
        capacity: u64,
    },
    /// The hash that the value should be stored with is longer than 128 bytes.
    #[error("the hash has {size} bytes, a value is stored with up to 128")]
    Hash {
        /// Its size in bytes.
        size: usize,
    },
    /// See [`PutError::ColdTier`].
    #[error(
        "the disk tier is full and the cold tier cannot take blocks; put again once it can be reached, or raise the disk capacity"
    )]
    ColdTier {
        /// Why the last attempt failed.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The bytes on the disk are not those that were written. Put the value again or delete it.
    #[error("the value of {key:?} is damaged on the disk")]
    Corrupt {
        /// The key.
        key: String,
    },
    /// See [`PutError::DiskFull`].
    #[error("the disk is full; free some space, what is stored stays readable")]
    DiskFull {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// See [`PutError::Sync`].
    #[error("the disk did not confirm the write; check the device")]
    Sync {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The operating system refused.
    #[error("reading or writing a value failed")]
    Io {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why upkeep (flush, gc, scrub, capacity, close) did not finish. What was stored stays readable.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MaintenanceError {
    /// The disk capacity is below [`MIN_DISK_CAPACITY`](crate::MIN_DISK_CAPACITY) or below what is pinned.
    #[error("the disk tier cannot shrink to {asked} bytes: it needs at least {least}")]
    Capacity {
        /// What was asked for, in bytes.
        asked: u64,
        /// The least possible now, in bytes.
        least: u64,
    },
    /// See [`PutError::DiskFull`].
    #[error("the disk is full; free some space, what is stored stays readable")]
    DiskFull {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// See [`PutError::Sync`].
    #[error("the disk did not confirm a write; check the device")]
    Sync {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The operating system refused.
    #[error("upkeep of the store failed")]
    Io {
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The cold tier does not answer or refuses. What is on the disk is done.
    #[error("the cold tier ({}) cannot be tidied up: {}", source.at, source.check)]
    ColdUnreachable {
        /// Where it is, what to look at, and what happened.
        #[source]
        source: Arc<ColdFailure>,
    },
    /// The disk failed while something moved to the cold tier. Nothing is lost.
    #[error("a move to the cold tier failed on the disk")]
    Move {
        /// The cause.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl From<PutError> for PinError {
    /// A pin that first brings a block to the disk fails as a put does.
    fn from(error: PutError) -> Self {
        let io = |error: PutError| PinError::Io {
            source: Arc::new(io::Error::other(error)),
        };
        match error {
            PutError::Full { needed, capacity } => PinError::Full { needed, capacity },
            PutError::DiskFull { source } => PinError::DiskFull { source },
            PutError::Sync { source } => PinError::Sync { source },
            PutError::Io { source } => PinError::Io { source },
            PutError::Closed => PinError::Closed,
            error => io(error),
        }
    }
}
