//! Cutting a file into blocks and pinning them.

use std::{io, path::PathBuf};

use anypath_tiered_store::{PutError, PutOptions, Store};
use bytes::Bytes;
use cid::{Cid, Version};
use futures::{AsyncRead, AsyncReadExt as _};
use rust_unixfs::file::adder::{BalancedCollector, Chunker, FileAdder};

use super::Profile;

/// The pin set of a file that was added is this and the CID of its root; it holds every block of the file.
pub const PIN_SET_PREFIX: &str = "file/";

/// The pin set of a file while it is being added is this and a random number.
const UNFINISHED_PREFIX: &str = "adding/";

/// Bytes put into the store at a time, while the next ones are read and hashed.
pub(super) const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How [`add`] behaves.
#[derive(Default)]
pub struct AddOptions<'a> {
    /// How the file is cut. Default [`Profile::KUBO`].
    pub profile: Profile,
    /// Size of the source in bytes, if known: then what does not fit fails before anything is written.
    pub size: Option<u64>,
    /// Called with the bytes read so far. Must return quickly.
    pub on_progress: Option<Box<dyn FnMut(u64) + Send + 'a>>,
}

/// What [`add`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// The root, CIDv1.
    pub cid: Cid,
    /// Blocks of the tree; a block that occurs several times counts as often.
    pub blocks: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Adds what `source` yields to `store`, pinned, in constant memory.
///
/// The blocks are in a temporary pin set until the last one is durable; then the set becomes that of the root. On an
/// error the set is dropped. So it is by [`clean_up`] after the future was dropped or the process died.
pub async fn add(
    store: &Store,
    source: impl AsyncRead + Send + Unpin,
    options: AddOptions<'_>,
) -> Result<Added, AddError> {
    if let Some(size) = options.size {
        let (needed, room) = (dag_size(options.profile, size), store.room_for_pinned());
        if needed > room {
            return Err(AddError::NoRoom { needed, room });
        }
    }
    let mut cutter = Cutter::new(source, options.profile);
    cutter.on_progress = options.on_progress;
    pin(store, &mut cutter).await
}

/// Yields the blocks of what is added.
pub(super) trait Blocks {
    /// About [`BATCH_BYTES`] of blocks, those below before those above; none at the end.
    fn next_batch(&mut self) -> impl Future<Output = Result<Vec<(Cid, Bytes)>, AddError>> + Send;

    /// What was added, once the last batch was taken.
    fn added(&self) -> Option<Added>;
}

/// Puts all blocks into the store, in one pin set.
pub(super) async fn pin(store: &Store, blocks: &mut impl Blocks) -> Result<Added, AddError> {
    let unfinished = format!("{UNFINISHED_PREFIX}{:016x}", rand::random::<u64>());
    let added = match put_all(store, blocks, &unfinished).await {
        Ok(added) => added,
        Err(error) => {
            drop_pin_set(store, &unfinished).await?;
            return Err(error);
        }
    };
    let finished = format!("{PIN_SET_PREFIX}{}", added.cid);
    if store.pin_sets().contains(&finished) {
        // The same file was added before: the same blocks.
        drop_pin_set(store, &unfinished).await?;
    } else {
        store
            .rename_pin_set(&unfinished, &finished)
            .await
            .map_err(AddError::store)?;
    }
    Ok(added)
}

/// Drops what unfinished [`add`]s of an earlier process have left. Call it after opening the store, before adding.
pub async fn clean_up(store: &Store) -> Result<(), AddError> {
    for set in store.pin_sets() {
        if set.starts_with(UNFINISHED_PREFIX) {
            drop_pin_set(store, &set).await?;
        }
    }
    Ok(())
}

async fn drop_pin_set(store: &Store, set: &str) -> Result<(), AddError> {
    store.drop_pin_set(set).await.map_err(AddError::store)?;
    Ok(())
}

/// A link and its block size: hash 36, sizes up to 10 each, names and tags 10.
pub(super) const LINK: u64 = 66;
/// A node without its links.
const NODE: u64 = 32;
/// What the store writes beside each block: the record's frame, its CID and its pin (measured: 140).
pub(super) const RECORD: u64 = 192;

/// Bytes that a file of `file_bytes` takes in the store, at most.
#[must_use]
pub fn dag_size(profile: Profile, file_bytes: u64) -> u64 {
    let mut nodes = file_bytes.div_ceil(u64::from(profile.chunk_bytes)).max(1);
    let mut bytes = file_bytes.saturating_add(nodes.saturating_mul(RECORD));
    while nodes > 1 {
        let parents = nodes.div_ceil(u64::from(profile.max_links));
        bytes = bytes
            .saturating_add(nodes * LINK)
            .saturating_add(parents * (NODE + RECORD));
        nodes = parents;
    }
    bytes
}

async fn put_all(
    store: &Store,
    blocks: &mut impl Blocks,
    pin_set: &str,
) -> Result<Added, AddError> {
    let mut batch = blocks.next_batch().await?;
    while !batch.is_empty() {
        let options = PutOptions::pinned(pin_set);
        let (put, next) = futures::join!(store.put_many(batch, options), blocks.next_batch());
        put.map_err(AddError::put)?;
        batch = next?;
    }
    let added = blocks.added();
    added.ok_or_else(|| AddError::store("what was added has no root"))
}

/// Reads the source and yields blocks, leaves before the nodes that link them, the root last.
pub(super) struct Cutter<'a, R> {
    source: R,
    chunk: Vec<u8>,
    chunk_bytes: usize,
    /// None once the source has ended.
    adder: Option<FileAdder>,
    on_progress: Option<Box<dyn FnMut(u64) + Send + 'a>>,
    root: Option<Cid>,
    blocks: u64,
    bytes: u64,
}

impl<R: AsyncRead + Unpin> Cutter<'_, R> {
    pub(super) fn new(source: R, profile: Profile) -> Self {
        let Profile {
            chunk_bytes,
            max_links,
            ..
        } = profile;
        let adder = FileAdder::builder()
            .with_cid_version(Version::V1)
            .with_raw_leaves(true)
            .with_chunker(Chunker::Size(chunk_bytes as usize))
            .with_collector(BalancedCollector::with_branching_factor(max_links as usize))
            .build();
        Self {
            source,
            chunk: Vec::new(),
            chunk_bytes: chunk_bytes as usize,
            adder: Some(adder),
            on_progress: None,
            root: None,
            blocks: 0,
            bytes: 0,
        }
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether all blocks have been taken.
    pub(super) fn is_done(&self) -> bool {
        self.adder.is_none()
    }

    /// The leaf that the next chunk makes and the nodes that it completes.
    pub(super) async fn next_blocks(&mut self) -> io::Result<Vec<(Cid, Bytes)>> {
        self.chunk.clear();
        let limit = self.chunk_bytes as u64;
        let read = (&mut self.source)
            .take(limit)
            .read_to_end(&mut self.chunk)
            .await?;
        self.bytes += read as u64;
        if let Some(on_progress) = &mut self.on_progress {
            on_progress(self.bytes);
        }
        let mut blocks = Vec::new();
        if let Some(adder) = &mut self.adder
            && !self.chunk.is_empty()
        {
            // A whole chunk, or the last one: it is consumed at once.
            let (made, _) = adder.push(&self.chunk);
            blocks.extend(made);
        }
        if read < self.chunk_bytes
            && let Some(adder) = self.adder.take()
        {
            blocks.extend(adder.finish());
        }
        self.blocks += blocks.len() as u64;
        self.root = blocks.last().map(|(cid, _)| *cid).or(self.root);
        let blocks = blocks.into_iter();
        Ok(blocks
            .map(|(cid, block)| (cid, Bytes::from(block)))
            .collect())
    }
}

impl<R: AsyncRead + Send + Unpin> Blocks for Cutter<'_, R> {
    async fn next_batch(&mut self) -> Result<Vec<(Cid, Bytes)>, AddError> {
        let (mut batch, mut size) = (Vec::new(), 0);
        while size < BATCH_BYTES && !self.is_done() {
            let blocks = self.next_blocks().await;
            for (cid, block) in blocks.map_err(|source| AddError::Read { source })? {
                size += block.len();
                batch.push((cid, block));
            }
        }
        Ok(batch)
    }

    fn added(&self) -> Option<Added> {
        Some(Added {
            cid: self.root?,
            blocks: self.blocks,
            bytes: self.bytes,
        })
    }
}

/// Why a file was not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// The store is too small.
    #[error(
        "it needs {needed} bytes and the store has room for {room}; \
         raise `disk_capacity` in config.toml or with ANYPATH_DISK_CAPACITY"
    )]
    NoRoom {
        /// Bytes that it takes as blocks.
        needed: u64,
        /// Bytes that can still be pinned.
        room: u64,
    },
    /// The source cannot be read.
    #[error("cannot read the file: {source}")]
    Read {
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Something in a directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    ReadPath {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Something in a directory cannot be part of what is added.
    #[error("cannot add {}: {reason}", path.display())]
    Unsupported {
        /// What it is about.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// Whoever was told of the progress did not want to go on.
    #[error("stopped before all was added; nothing of it is kept")]
    Stopped,
    /// The device has no space left.
    #[error("the disk is full; free some space, or choose another data directory with --data-dir")]
    DiskFull,
    /// The store cannot write.
    #[error("the store failed: {source}")]
    Store {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl AddError {
    pub(super) fn store(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Store {
            source: source.into(),
        }
    }

    fn put(error: PutError) -> Self {
        match error {
            PutError::Full { needed, capacity } => Self::NoRoom {
                needed,
                room: capacity,
            },
            PutError::DiskFull { .. } => Self::DiskFull,
            other => Self::store(other),
        }
    }
}
