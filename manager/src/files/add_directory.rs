//! Cutting a directory with all that is in it into blocks.

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anypath_tiered_store::Store;
use blocking::Unblock;
use bytes::Bytes;
use cid::Cid;

use super::{
    AddError, Added, Profile, Scan,
    add::{BATCH_BYTES, Blocks, Cutter, pin},
    dag_pb::{Built, DAG_PB, Link, PbNode},
    directory,
    scan::{Step, scan},
};

/// Blocks put into the store at a time, where they are small.
const BATCH_BLOCKS: usize = 4096;

/// Bytes of a file that are read ahead.
const READ_AHEAD: u64 = 1024 * 1024;

type OnProgress<'a> = Box<dyn FnMut(u64, u64) -> ControlFlow<()> + Send + 'a>;

/// How [`add_directory`] behaves.
#[derive(Default)]
pub struct AddDirectoryOptions<'a> {
    /// How the files are cut. Default [`Profile::KUBO`].
    pub profile: Profile,
    /// Take files and directories whose names begin with a dot, too. Default false, as in `ipfs add`.
    pub hidden: bool,
    /// Called with the bytes read so far, and how many there are. Must return quickly; a break ends it with [`AddError::Stopped`].
    pub on_progress: Option<OnProgress<'a>>,
}

/// What [`add_directory`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AddedDirectory {
    /// The directory, CIDv1.
    pub cid: Cid,
    /// Blocks of all files and directories; a block that occurs several times counts as often.
    pub blocks: u64,
    /// Bytes in all files.
    pub bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Hidden files and directories that were left out.
    pub left_out: u64,
}

/// Adds a directory and all below it to `store`, in one pin set, in memory that does not depend on the size of files; with the same
/// CID that `ipfs add -r --cid-version=1` gives it. Symbolic links are added as such, wherever they lead. A file that changes
/// meanwhile is added as it was read.
///
/// # Errors
///
/// As for [`add`](super::add) and [`scan`](super::scan()). Nothing stays pinned.
pub async fn add_directory(
    store: &Store,
    path: &Path,
    options: AddDirectoryOptions<'_>,
) -> Result<AddedDirectory, AddError> {
    let AddDirectoryOptions {
        profile,
        hidden,
        on_progress,
    } = options;
    let scanned = path.to_owned();
    let scan = blocking::unblock(move || scan(&scanned, profile, hidden)).await?;
    let room = store.room_for_pinned();
    if scan.stored > room {
        return Err(AddError::NoRoom {
            needed: scan.stored,
            room,
        });
    }
    let Scan {
        steps,
        files,
        bytes,
        left_out,
        ..
    } = scan;
    let mut tree = Tree {
        profile,
        steps: steps.into_iter(),
        path: path.to_owned(),
        open: vec![Open::default()],
        reading: None,
        root: None,
        blocks: 0,
        bytes: 0,
        total: bytes,
        on_progress,
    };
    let Added { cid, blocks, bytes } = pin(store, &mut tree).await?;
    Ok(AddedDirectory {
        cid,
        blocks,
        bytes,
        files,
        left_out,
    })
}

/// Goes through the steps and yields blocks.
struct Tree<'a> {
    profile: Profile,
    steps: std::vec::IntoIter<Step>,
    /// The directory that the next step is in.
    path: PathBuf,
    /// The directories that the next step is in, the outermost first; empty at the end.
    open: Vec<Open>,
    reading: Option<Reading>,
    root: Option<Cid>,
    blocks: u64,
    bytes: u64,
    total: u64,
    on_progress: Option<OnProgress<'a>>,
}

/// A directory some of whose entries are still to come.
#[derive(Default)]
struct Open {
    name: String,
    links: Vec<Link>,
}

struct Reading {
    name: String,
    path: PathBuf,
    cutter: Cutter<'static, Unblock<File>>,
    /// Of the last block: bytes that it and everything below it take.
    size: u64,
}

impl Blocks for Tree<'_> {
    async fn next_batch(&mut self) -> Result<Vec<(Cid, Bytes)>, AddError> {
        let (mut batch, mut size) = (Vec::new(), 0);
        while size < BATCH_BYTES && batch.len() < BATCH_BLOCKS && !self.open.is_empty() {
            for (cid, block) in self.next_blocks().await? {
                size += block.len();
                self.blocks += 1;
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

impl Tree<'_> {
    async fn next_blocks(&mut self) -> Result<Vec<(Cid, Bytes)>, AddError> {
        if let Some(reading) = self.reading.take() {
            return self.read_on(reading).await;
        }
        match self.steps.next() {
            Some(Step::Enter(name)) => {
                self.path.push(&name);
                let links = Vec::new();
                self.open.push(Open { name, links });
                Ok(Vec::new())
            }
            Some(Step::File { name, bytes }) => {
                self.begin(name, bytes).await?;
                Ok(Vec::new())
            }
            Some(Step::Symlink { name, target }) => {
                let built = directory::symlink(&target);
                let block = (built.cid, built.block.clone());
                self.link(name, built.cid, built.size);
                Ok(vec![block])
            }
            Some(Step::Leave) | None => self.leave(),
        }
    }

    async fn begin(&mut self, name: String, bytes: u64) -> Result<(), AddError> {
        let path = self.path.join(&name);
        let opened = blocking::unblock({
            let path = path.clone();
            move || open_file(&path)
        });
        let file = opened.await.map_err(|source| AddError::ReadPath {
            path: path.clone(),
            source,
        })?;
        let ahead = usize::try_from(bytes.clamp(1, READ_AHEAD)).unwrap_or(1);
        self.reading = Some(Reading {
            name,
            path,
            cutter: Cutter::new(Unblock::with_capacity(ahead, file), self.profile),
            size: 0,
        });
        Ok(())
    }

    async fn read_on(&mut self, mut reading: Reading) -> Result<Vec<(Cid, Bytes)>, AddError> {
        let before = reading.cutter.bytes();
        let blocks = reading.cutter.next_blocks().await;
        let blocks = blocks.map_err(|source| AddError::ReadPath {
            path: reading.path.clone(),
            source,
        })?;
        self.bytes += reading.cutter.bytes() - before;
        if let Some(on_progress) = &mut self.on_progress {
            let goes_on = on_progress(self.bytes, self.total.max(self.bytes));
            if goes_on.is_break() {
                return Err(AddError::Stopped);
            }
        }
        if let Some((cid, block)) = blocks.last() {
            reading.size = cumulative_size(cid, block);
        }
        let root = reading.cutter.added().map(|added| added.cid);
        match root.filter(|_| reading.cutter.is_done()) {
            Some(root) => self.link(reading.name, root, reading.size),
            None => self.reading = Some(reading),
        }
        Ok(blocks)
    }

    /// All entries of the innermost directory are known.
    fn leave(&mut self) -> Result<Vec<(Cid, Bytes)>, AddError> {
        let Some(Open { name, links }) = self.open.pop() else {
            return Ok(Vec::new());
        };
        let built = directory::build(self.profile, links).map_err(|_| AddError::Unsupported {
            path: self.path.clone(),
            reason: "two of its names have the same hash; rename one",
        })?;
        if let Some(Built { cid, size, .. }) = built.last() {
            match self.open.is_empty() {
                true => self.root = Some(*cid),
                false => self.link(name, *cid, *size),
            }
        }
        self.path.pop();
        let blocks = built.into_iter();
        Ok(blocks.map(|built| (built.cid, built.block)).collect())
    }

    fn link(&mut self, name: String, cid: Cid, size: u64) {
        if let Some(open) = self.open.last_mut() {
            open.links.push(Link { name, cid, size });
        }
    }
}

/// Of a node that was just made.
fn cumulative_size(cid: &Cid, block: &Bytes) -> u64 {
    let below = match cid.codec() {
        DAG_PB => {
            PbNode::read(block).map_or(0, |node| node.links.iter().map(|link| link.size).sum())
        }
        _ => 0,
    };
    below + block.len() as u64
}

/// Not what a link leads to that was put in the place of the file since it was seen.
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags.bits().cast_signed());
    }
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no longer a regular file")),
    }
}
