//! Putting a file together: drives the [`Plan`] with a [`Fetch`] and a [`Part`]. Directories are in `get_directory`.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use cid::Cid;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};

use super::{
    Fetch, Kind,
    directory::Object,
    get_directory,
    node::{self, Refused},
    part::Part,
    plan::{Fault, Plan, Request, WINDOW_BYTES},
};

pub use super::part::part_path;

/// Bytes handed to the disk at a time.
const WRITE_BYTES: usize = 8 * 1024 * 1024;
/// Comparisons of the partial output running at a time.
const COMPARISONS: usize = 4;

/// How [`get`] behaves.
#[derive(Default)]
pub struct GetOptions<'a> {
    /// Replace an output that exists, a file by a file. Default false.
    pub force: bool,
    /// Called when the size is known and whenever bytes have reached the output. Must return quickly.
    pub on_progress: Option<Box<dyn FnMut(Progress) + Send + 'a>>,
}

/// How far a [`get`] is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are in the output, of a file from its beginning.
    pub written: u64,
    /// Size of the file. Of a directory, the sizes of the files that are known; what its author says of the others until they are.
    pub total: u64,
    /// Bytes among `written` that an earlier, interrupted run had left.
    pub resumed: u64,
}

/// What [`get`] has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Size of the file, or of all files of the directory.
    pub bytes: u64,
    /// Bytes that an earlier, interrupted run had left.
    pub resumed: u64,
    /// Regular files that were written: 1, or those of the directory.
    pub files: u64,
}

/// Writes the file or directory `cid` to `output`.
///
/// The bytes go to [`part_path`] first, in order and as soon as they arrive; the final name appears when the file is
/// whole and on disk. A run that is interrupted, by an error, by dropping the future or by a crash, leaves the part
/// file, and the next one compares it with the CIDs of the leaves and fetches only what is missing. At most
/// 32 MiB of the file are in memory or on their way.
///
/// A directory grows under that name in the same way: files that are there already are compared, up to 256 are fetched at a time, and
/// what is in memory or on its way is hardly more. No entry leads out of it: names like `..` or with a slash in them, and a name that is
/// there twice, make it malformed. Symbolic links are made last, as they are in it (Unix only); nothing is written through them.
pub async fn get<F: Fetch>(
    fetch: &F,
    cid: Cid,
    output: &Path,
    options: GetOptions<'_>,
) -> Result<Fetched, GetError<F::Error>> {
    check_output(output, options.force)?;
    let block = block(fetch, cid).await?;
    let object = Object::read(&cid, &block, None);
    let object = object.map_err(|refused| GetError::from_fault(cid, Fault { cid, refused }))?;
    if !matches!(object, Object::File) {
        return get_directory::get(fetch, cid, object, output, options).await;
    }
    let mut run = Run::new(fetch, cid, part_path(output, &cid));
    run.root_block = Some(block);
    run.on_progress = options.on_progress;
    let (part, fetched) = run.finish().await?;
    // Again: it may have appeared meanwhile.
    check_output(output, options.force)?;
    let path = output.to_owned();
    let finished = blocking::unblock(move || part.finish(fetched.bytes, &path)).await;
    finished.map_err(|source| GetError::io(output.to_owned(), source))?;
    Ok(fetched)
}

/// A block, from the network or out of its CID.
pub(super) async fn block<F: Fetch>(fetch: &F, cid: Cid) -> Result<Bytes, GetError<F::Error>> {
    match node::inlined(&cid) {
        Some(block) => Ok(block),
        None => {
            let fetched = fetch.get(cid).await;
            fetched.map_err(|source| GetError::Fetch { cid, source })
        }
    }
}

pub(super) fn check_output<E>(output: &Path, force: bool) -> Result<(), GetError<E>> {
    match output.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => Err(GetError::IsDirectory {
            path: output.to_owned(),
        }),
        Ok(_) if !force => Err(GetError::Exists {
            path: output.to_owned(),
        }),
        // A rename over a device or a pipe would put a file in its place.
        Ok(metadata) if !metadata.is_file() && !metadata.is_symlink() => {
            Err(GetError::NotRegular {
                path: output.to_owned(),
            })
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(GetError::Io {
            path: output.to_owned(),
            source,
        }),
    }
}

/// One file on its way to its part file.
pub(super) struct Run<'a, 'o, F: Fetch> {
    fetch: &'a F,
    root: Cid,
    /// The root, where the caller has fetched it.
    pub(super) root_block: Option<Bytes>,
    path: PathBuf,
    plan: Plan,
    /// Opened when the root has said that this is a file and how large it is.
    part: Option<Part>,
    jobs: FuturesUnordered<BoxFuture<'a, Done<F::Error>>>,
    comparisons: VecDeque<(Cid, u64, u64)>,
    comparing: usize,
    is_writing: bool,
    pub(super) on_progress: Option<Box<dyn FnMut(Progress) + Send + 'o>>,
    /// Where the file is one of a directory's: who of them may look far ahead.
    pub(super) turns: Option<&'a Turns>,
    turn: Option<Turn<'a>>,
}

/// Bytes that a file of a directory looks ahead while it is not its turn to look further.
pub(super) const NARROW_WINDOW_BYTES: u64 = 1024 * 1024;

/// Lets one file of a directory at a time look as far ahead as one that is alone.
#[derive(Default)]
pub(super) struct Turns(AtomicBool);

struct Turn<'a>(&'a Turns);

impl Turns {
    fn take(&self) -> Option<Turn<'_>> {
        (!self.0.swap(true, Ordering::Relaxed)).then_some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

/// A job that has ended.
enum Done<E> {
    Fetched(Cid, Result<Bytes, E>),
    Compared(u64, io::Result<bool>),
    Written(io::Result<u64>),
}

impl<'a, 'o, F: Fetch> Run<'a, 'o, F> {
    pub(super) fn new(fetch: &'a F, root: Cid, part: PathBuf) -> Self {
        Self {
            fetch,
            root,
            root_block: None,
            path: part,
            plan: Plan::new(root),
            part: None,
            jobs: FuturesUnordered::new(),
            comparisons: VecDeque::new(),
            comparing: 0,
            is_writing: false,
            on_progress: None,
            turns: None,
            turn: None,
        }
    }

    /// Runs until all bytes are in the part file.
    pub(super) async fn finish(mut self) -> Result<(Part, Fetched), GetError<F::Error>> {
        if self.turns.is_some() {
            self.plan.set_window(NARROW_WINDOW_BYTES);
        }
        self.until_written().await?;
        let fetched = Fetched {
            bytes: self.plan.written(),
            resumed: self.plan.kept(),
            files: 1,
        };
        match self.part.take() {
            Some(part) => Ok((part, fetched)),
            None => Err(GetError::io(self.path, io::ErrorKind::NotFound.into())),
        }
    }

    async fn until_written(&mut self) -> Result<(), GetError<F::Error>> {
        let root = self.root;
        let path = self.path.clone();
        let fault = |fault: Fault| GetError::from_fault(root, fault);
        let io_error = |source| GetError::io(path.clone(), source);
        loop {
            if self.part.is_none() && self.plan.total().is_some() {
                self.open_part().await?;
            }
            if self.turn.is_none()
                && self.plan.total() > Some(NARROW_WINDOW_BYTES)
                && let Some(turn) = self.turns.and_then(Turns::take)
            {
                self.turn = Some(turn);
                self.plan.set_window(WINDOW_BYTES);
            }
            while let Some(request) = self.plan.poll_request().map_err(fault)? {
                match request {
                    Request::Fetch(cid) if cid == root && self.root_block.is_some() => {
                        let block = self.root_block.take().unwrap_or_default();
                        self.plan.on_block(cid, &block).map_err(fault)?;
                        // Its leaves are not asked for before the part file has been looked at.
                        break;
                    }
                    Request::Fetch(cid) => {
                        let block = self.fetch.get(cid);
                        self.jobs
                            .push(async move { Done::Fetched(cid, block.await) }.boxed());
                    }
                    Request::Compare { cid, offset, size } => {
                        self.comparisons.push_back((cid, offset, size))
                    }
                }
            }
            if self.part.is_none() && self.plan.total().is_some() {
                continue;
            }
            self.start_comparisons();
            self.start_writing();
            if self.plan.is_complete() && self.part.is_some() && !self.is_writing {
                return Ok(());
            }
            match self.jobs.next().await {
                Some(Done::Fetched(cid, Ok(block))) => {
                    self.plan.on_block(cid, &block).map_err(fault)?
                }
                Some(Done::Fetched(cid, Err(source))) => {
                    return Err(GetError::Fetch { cid, source });
                }
                Some(Done::Compared(offset, equal)) => {
                    self.comparing -= 1;
                    self.plan.on_compared(offset, equal.map_err(io_error)?);
                    self.report();
                }
                Some(Done::Written(end)) => {
                    self.is_writing = false;
                    self.plan.on_written(end.map_err(io_error)?);
                    self.report();
                }
                // Cannot happen: while bytes are missing, the front of the plan is asked for or being written.
                None if self.plan.total().is_some() && self.part.is_some() => {
                    return Err(io_error(io::ErrorKind::Other.into()));
                }
                None => {}
            }
        }
    }

    async fn open_part(&mut self) -> Result<(), GetError<F::Error>> {
        let path = self.path.clone();
        let total = self.plan.total().unwrap_or(0);
        let is_in_directory = self.turns.is_some();
        let opened = blocking::unblock({
            let path = path.clone();
            move || -> io::Result<(Part, u64, u64)> {
                let part = match is_in_directory {
                    true => Part::open_in_directory(path.clone())?,
                    false => Part::open(path.clone())?,
                };
                let (length, free) = (part.length()?, fs4::available_space(&path)?);
                Ok((part, length, free))
            }
        });
        let (part, length, free) = opened.await.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => GetError::InProgress { path: path.clone() },
            _ => GetError::io(path.clone(), source),
        })?;
        let needed = total.saturating_sub(length);
        if needed > free {
            return Err(GetError::NoSpace { path, needed, free });
        }
        self.plan.set_partial(length);
        self.part = Some(part);
        self.report();
        Ok(())
    }

    fn start_comparisons(&mut self) {
        let Some(part) = &self.part else { return };
        while self.comparing < COMPARISONS
            && let Some((cid, offset, size)) = self.comparisons.pop_front()
        {
            let part = part.clone();
            self.comparing += 1;
            let job = blocking::unblock(move || part.holds(&cid, offset, size));
            self.jobs
                .push(async move { Done::Compared(offset, job.await) }.boxed());
        }
    }

    fn start_writing(&mut self) {
        let Some(part) = &self.part else { return };
        if !self.is_writing
            && let Some((offset, run)) = self.plan.take_writable(WRITE_BYTES)
        {
            let part = part.clone();
            self.is_writing = true;
            let job = blocking::unblock(move || part.write(offset, &run));
            self.jobs
                .push(async move { Done::Written(job.await) }.boxed());
        }
    }

    fn report(&mut self) {
        if let (Some(on_progress), Some(total)) = (&mut self.on_progress, self.plan.total()) {
            on_progress(Progress {
                written: self.plan.written(),
                total,
                resumed: self.plan.kept(),
            });
        }
    }
}

/// Why a file could not be written. What has arrived stays in the part file, for the next run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError<E> {
    /// The output is there already.
    #[error("{} exists; choose another name with -o, or replace it with --force", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output names a device, a pipe or a socket.
    #[error("{} is not a regular file; name another one with -o", path.display())]
    NotRegular {
        /// The output.
        path: PathBuf,
    },
    /// The output names a directory.
    #[error("{} is a directory that exists; choose another name with -o", path.display())]
    IsDirectory {
        /// The output.
        path: PathBuf,
    },
    /// Another `get` is writing the same output.
    #[error("another get is writing {}; wait for it or choose another output with -o", path.display())]
    InProgress {
        /// The part file.
        path: PathBuf,
    },
    /// The disk has not enough room.
    #[error("{} needs {needed} more bytes, the disk has {free} free; free some or choose another disk with -o", path.display())]
    NoSpace {
        /// The part file.
        path: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The output is there already, and what is got is a directory.
    #[error("{} exists, and a directory replaces nothing; choose another name with -o", path.display())]
    InTheWay {
        /// The output.
        path: PathBuf,
    },
    /// The directory has more in it than is written, or than this system can write.
    #[error("cannot write {}: {reason}", path.display())]
    Unsupported {
        /// Where it would have been.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// The CID is not that of a file or directory.
    #[error("{cid} is {kind}")]
    NotAFile {
        /// The CID.
        cid: Cid,
        /// What it is.
        kind: Kind,
    },
    /// The author of the file or directory has made a mistake: its blocks do not fit together, or an entry leads out of it.
    #[error("it is malformed: block {cid}: {reason}")]
    Malformed {
        /// The block.
        cid: Cid,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A block cannot be had.
    #[error("cannot get block {cid}: {source}")]
    Fetch {
        /// The block.
        cid: Cid,
        /// Why.
        #[source]
        source: E,
    },
    /// The disk has no space left.
    #[error("the disk is full; free some space and run the same command again, {} is kept", path.display())]
    DiskFull {
        /// The part file.
        path: PathBuf,
    },
    /// The output cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl<E> GetError<E> {
    pub(super) fn io(path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { path, source },
        }
    }

    pub(super) fn from_fault(root: Cid, fault: Fault) -> Self {
        match fault.refused {
            Refused::NotAFile(kind) if fault.cid == root => Self::NotAFile { cid: root, kind },
            Refused::NotAFile(_) => Self::Malformed {
                cid: fault.cid,
                reason: "it is not part of a file",
            },
            Refused::Malformed(reason) => Self::Malformed {
                cid: fault.cid,
                reason,
            },
        }
    }
}
