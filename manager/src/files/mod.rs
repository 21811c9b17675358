//! Files and directories as UnixFS: [`add`] cuts a file into blocks, [`add_directory`] a directory with all that is in it, and [`get`]
//! puts either together again.
//!
//! CIDs equal kubo's. [`Profile::KUBO`] is `ipfs add --cid-version=1 --chunker=size-262144 --max-file-links=174`,
//! [`Profile::UNIXFS_V1_2025`] is the profile of that name (kubo 0.40): raw leaves, balanced trees of dag-pb nodes,
//! SHA2-256. The trees come from `rust-unixfs`; `tests/files_kubo.rs` compares them with CIDs that kubo printed.
//!
//! [`get`] reads what others have made too: CIDv0, dag-pb leaves, trickle trees, inlined (identity) blocks, modes and
//! times at the root (which it ignores), sharded directories.
//!
//! Directories are as `ipfs add -r` makes them: hidden files are left out unless asked for, symbolic links are links, empty directories
//! are there, and one of more than 256 KiB is sharded as in kubo 0.40 (256 links, names hashed with murmur3). Names are UTF-8.

mod add;
mod add_directory;
mod dag_pb;
mod directory;
mod download;
mod get;
mod get_directory;
mod node;
mod part;
mod plan;
mod scan;

use std::future::Future;

use bytes::Bytes;
use cid::Cid;

pub use self::add::{AddError, AddOptions, Added, PIN_SET_PREFIX, add, clean_up, dag_size};
pub use self::add_directory::{AddDirectoryOptions, AddedDirectory, add_directory};
pub use self::download::{Download, DownloadEvent, download};
pub use self::get::{Fetched, GetError, GetOptions, Progress, get, part_path};
pub use self::node::Kind;
pub use self::scan::{Scan, scan};

/// Directories within directories that [`add_directory`] and [`get`] go down to; a path of the file system can hardly be longer.
const MAX_DIRECTORY_DEPTH: usize = 128;

/// Files, directories and links in one tree that is added or got: more is a mistake or an attack.
const MAX_ENTRIES: usize = 1_000_000;

/// How a file is cut and its tree built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    chunk_bytes: u32,
    max_links: u32,
    estimation: SizeEstimation,
}

/// What of a directory is measured to see whether it has to be sharded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SizeEstimation {
    /// The names and CIDs of its links.
    Links,
    /// Its block.
    Block,
}

impl Profile {
    /// kubo's values for CIDv1 since its first version: 256 KiB chunks, 174 links a node.
    pub const KUBO: Self = Self {
        chunk_bytes: 256 * 1024,
        max_links: 174,
        estimation: SizeEstimation::Links,
    };

    /// IPIP-499's `unixfs-v1-2025`: 1 MiB chunks, 1,024 links a node.
    pub const UNIXFS_V1_2025: Self = Self {
        chunk_bytes: 1024 * 1024,
        max_links: 1024,
        estimation: SizeEstimation::Block,
    };

    /// Chunks of `chunk_bytes` (1 to 1 MiB, what other implementations accept as a block) and trees with up to
    /// `max_links` (2 to 8,192) links a node; nothing if a value is out of range.
    #[must_use]
    pub fn new(chunk_bytes: u32, max_links: u32) -> Option<Self> {
        let fits = (1..=1024 * 1024).contains(&chunk_bytes) && (2..=8192).contains(&max_links);
        fits.then_some(Self {
            chunk_bytes,
            max_links,
            estimation: SizeEstimation::Links,
        })
    }

    /// The profile that kubo calls by this name: `unixfs-v1-2025`, or `kubo` for [`Profile::KUBO`].
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "kubo" => Some(Self::KUBO),
            "unixfs-v1-2025" => Some(Self::UNIXFS_V1_2025),
            _ => None,
        }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::KUBO
    }
}

/// Where [`get`] takes blocks from.
pub trait Fetch: Sync {
    /// Why a block cannot be had.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The block `cid`, already verified: its hash is that of the CID. Hundreds of calls are pending at a time;
    /// earlier calls are wanted earlier. Dropping the future ends the request.
    fn get(&self, cid: Cid) -> impl Future<Output = Result<Bytes, Self::Error>> + Send;
}
