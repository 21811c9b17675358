//! Putting a directory together: one queue of entries, of which as many are under way as fit into the window.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use cid::Cid;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};

use super::{
    Fetch, Fetched, GetError, GetOptions, MAX_DIRECTORY_DEPTH, MAX_ENTRIES, Progress,
    directory::{Object, Position},
    get::{NARROW_WINDOW_BYTES, Run, Turns, block, check_output},
    node::RAW,
    part::{Part, PartDirectory, make_directory},
    part_path,
    plan::{Fault, WINDOW_BYTES},
};

/// Entries under way at a time: small files are mostly round trips.
const MAX_JOBS: usize = 256;

/// Bytes of symbolic links, their names and targets together, that wait for the end.
const MAX_SYMLINK_BYTES: usize = 64 * 1024 * 1024;

/// What an entry counts at least, however small its author says it is.
const MIN_WEIGHT: u64 = 16 * 1024;

/// Gets the directory `cid`, whose first block has been read.
pub(super) async fn get<F: Fetch>(
    fetch: &F,
    cid: Cid,
    first: Object,
    output: &Path,
    options: GetOptions<'_>,
) -> Result<Fetched, GetError<F::Error>> {
    if let Object::Symlink(_) = first {
        let kind = super::Kind::Symlink;
        return Err(GetError::NotAFile { cid, kind });
    }
    // Not even by force.
    check_output(output, false).map_err(|error| match error {
        GetError::Exists { path } => GetError::InTheWay { path },
        other => other,
    })?;
    let part = part_path(output, &cid);
    let opened = blocking::unblock({
        let part = part.clone();
        move || PartDirectory::open(part)
    });
    let directory = opened.await.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => GetError::InProgress { path: part.clone() },
        _ => GetError::io(part.clone(), source),
    })?;
    let tally = Mutex::new(Tally {
        progress: Progress::default(),
        on_progress: options.on_progress,
    });
    let turns = Turns::default();
    let mut tree = Tree {
        fetch,
        turns: &turns,
        tally: &tally,
        pending: Vec::new(),
        jobs: FuturesUnordered::new(),
        weight: 0,
        entries: 0,
        files: 0,
        symlinks: Vec::new(),
        symlink_bytes: 0,
    };
    let root = Entry {
        directory: part.into(),
        name: None,
        cid,
        claimed: 0,
        position: None,
        depth: 0,
    };
    tree.on_found(root, Found::Object(first))?;
    tree.run().await?;
    let (files, symlinks) = (tree.files, std::mem::take(&mut tree.symlinks));
    drop(tree);
    make_symlinks(symlinks).await?;
    // Again: it may have appeared meanwhile.
    check_output(output, false)?;
    let path = output.to_owned();
    let finished = blocking::unblock(move || directory.finish(&path)).await;
    finished.map_err(|source| GetError::io(output.to_owned(), source))?;
    let progress = lock(&tally).progress;
    Ok(Fetched {
        bytes: progress.written,
        resumed: progress.resumed,
        files,
    })
}

/// The sums over all files.
struct Tally<'o> {
    progress: Progress,
    on_progress: Option<Box<dyn FnMut(Progress) + Send + 'o>>,
}

impl Tally<'_> {
    /// Of one entry `before` is `after` now.
    fn change(&mut self, before: Progress, after: Progress) {
        let change = |sum: &mut u64, before: u64, after: u64| {
            *sum = sum.saturating_sub(before).saturating_add(after);
        };
        change(&mut self.progress.written, before.written, after.written);
        change(&mut self.progress.total, before.total, after.total);
        change(&mut self.progress.resumed, before.resumed, after.resumed);
        if let Some(on_progress) = &mut self.on_progress {
            on_progress(self.progress);
        }
    }
}

fn lock<'a, 'o>(tally: &'a Mutex<Tally<'o>>) -> MutexGuard<'a, Tally<'o>> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn of_size(total: u64) -> Progress {
    Progress {
        total,
        ..Progress::default()
    }
}

struct Tree<'a, 'o, F: Fetch> {
    fetch: &'a F,
    turns: &'a Turns,
    tally: &'a Mutex<Tally<'o>>,
    /// The next one is the last. What is in a directory comes before what is beside it, so that few wait.
    pending: Vec<Entry>,
    jobs: FuturesUnordered<BoxFuture<'a, Done<F::Error>>>,
    /// Of the jobs.
    weight: u64,
    /// Found so far.
    entries: usize,
    files: u64,
    symlinks: Vec<(PathBuf, Vec<u8>)>,
    symlink_bytes: usize,
}

type Done<E> = (Entry, Result<Found, GetError<E>>);

/// An entry of a directory, or a shard of one.
struct Entry {
    /// Shared by all that are in it.
    directory: Arc<Path>,
    /// In the directory; none for the root and shards, which are the directory itself.
    name: Option<Box<str>>,
    cid: Cid,
    /// Bytes in all, as the author of the directory says.
    claimed: u64,
    /// Of a shard that is not the directory's first block.
    position: Option<Position>,
    depth: usize,
}

/// What an entry turned out to be.
enum Found {
    /// A file that is written, all of it.
    File,
    Object(Object),
}

impl Entry {
    fn path(&self) -> PathBuf {
        match &self.name {
            Some(name) => self.directory.join(&**name),
            None => self.directory.to_path_buf(),
        }
    }

    fn weight(&self) -> u64 {
        self.claimed.clamp(MIN_WEIGHT, NARROW_WINDOW_BYTES)
    }
}

impl<F: Fetch> Tree<'_, '_, F> {
    async fn run(&mut self) -> Result<(), GetError<F::Error>> {
        loop {
            while self.jobs.len() < MAX_JOBS
                && (self.jobs.is_empty() || self.weight < WINDOW_BYTES)
                && let Some(entry) = self.pending.pop()
            {
                self.weight += entry.weight();
                let (fetch, turns, tally) = (self.fetch, self.turns, self.tally);
                let job = async move {
                    let found = get_entry(fetch, turns, tally, &entry).await;
                    (entry, found)
                };
                self.jobs.push(job.boxed());
            }
            let Some((entry, found)) = self.jobs.next().await else {
                return Ok(());
            };
            self.weight -= entry.weight();
            self.on_found(entry, found?)?;
        }
    }

    fn on_found(&mut self, entry: Entry, found: Found) -> Result<(), GetError<F::Error>> {
        let (links, shards) = match found {
            Found::File => {
                self.files += 1;
                return Ok(());
            }
            Found::Object(Object::Directory(links)) => (links, Vec::new()),
            Found::Object(Object::Shard(shard)) => (shard.entries, shard.shards),
            Found::Object(Object::Symlink(target)) => {
                let path = entry.path();
                self.symlink_bytes += path.as_os_str().len() + target.len();
                if self.symlink_bytes > MAX_SYMLINK_BYTES {
                    let reason = "there are too many symbolic links; get parts of the directory";
                    return Err(GetError::Unsupported { path, reason });
                }
                self.symlinks.push((path, target));
                (Vec::new(), Vec::new())
            }
            // Files are written where they are found.
            Found::Object(Object::File) => (Vec::new(), Vec::new()),
        };
        let unsupported = |reason| {
            let path = entry.path();
            Err(GetError::Unsupported { path, reason })
        };
        self.entries += links.len() + shards.len();
        if self.entries > MAX_ENTRIES {
            return unsupported("the directory has more than a million entries; get parts of it");
        }
        if entry.depth >= MAX_DIRECTORY_DEPTH && !links.is_empty() {
            return unsupported("it is more than 128 directories down");
        }
        let claimed = links.iter().map(|link| link.size);
        let claimed = claimed.fold(0_u64, u64::saturating_add);
        lock(self.tally).change(of_size(entry.claimed), of_size(claimed));
        let path: Arc<Path> = entry.path().into();
        let links = links.into_iter().rev().map(|link| Entry {
            directory: path.clone(),
            name: Some(link.name.into()),
            cid: link.cid,
            claimed: link.size,
            position: None,
            depth: entry.depth + 1,
        });
        self.pending.extend(links);
        let shards = shards.into_iter().rev().map(|(position, cid)| Entry {
            directory: path.clone(),
            name: None,
            cid,
            claimed: 0,
            position: Some(position),
            depth: entry.depth,
        });
        self.pending.extend(shards);
        Ok(())
    }
}

/// Gets one entry: the first block, and, of a file, all others.
async fn get_entry<F: Fetch>(
    fetch: &F,
    turns: &Turns,
    tally: &Mutex<Tally<'_>>,
    entry: &Entry,
) -> Result<Found, GetError<F::Error>> {
    let (path, cid) = (entry.path(), &entry.cid);
    let mut before = of_size(entry.claimed);
    let mut report = |after: Progress| {
        lock(tally).change(before, after);
        before = after;
    };
    if cid.codec() == RAW
        && let Some(bytes) = is_there(path.clone(), *cid).await
    {
        report(Progress {
            written: bytes,
            total: bytes,
            resumed: bytes,
        });
        return Ok(Found::File);
    }
    let first: Bytes = block(fetch, *cid).await?;
    let object = Object::read(cid, &first, entry.position).map_err(|refused| {
        let fault = Fault { cid: *cid, refused };
        GetError::from_fault(*cid, fault)
    })?;
    match object {
        Object::File => {
            let mut run = Run::new(fetch, *cid, path.clone());
            run.root_block = Some(first);
            run.turns = Some(turns);
            run.on_progress = Some(Box::new(report));
            let (part, fetched) = run.finish().await?;
            let finished = blocking::unblock(move || part.set_length(fetched.bytes)).await;
            finished.map_err(|source| GetError::io(path, source))?;
            Ok(Found::File)
        }
        object => {
            if entry.position.is_none() && !matches!(object, Object::Symlink(_)) {
                let made = {
                    let path = path.clone();
                    blocking::unblock(move || make_directory(&path)).await
                };
                made.map_err(|source| GetError::io(path, source))?;
            }
            Ok(Found::Object(object))
        }
    }
}

/// The size of a file of one block that an earlier run has written.
async fn is_there(path: PathBuf, cid: Cid) -> Option<u64> {
    let compare = move || {
        let length = path
            .symlink_metadata()
            .ok()
            .filter(|found| found.is_file())?
            .len();
        let part = Part::open_in_directory(path).ok()?;
        let is_right = part.holds(&cid, 0, length).ok()?;
        is_right.then_some(length)
    };
    blocking::unblock(compare).await
}

/// After everything else, so that nothing is written through them.
#[cfg(unix)]
async fn make_symlinks<E>(symlinks: Vec<(PathBuf, Vec<u8>)>) -> Result<(), GetError<E>> {
    let make = move || {
        symlinks.into_iter().try_for_each(|(path, target)| {
            super::part::make_symlink(&path, &target).map_err(|source| (path, source))
        })
    };
    let made = blocking::unblock(make).await;
    made.map_err(|(path, source)| GetError::io(path, source))
}

#[cfg(not(unix))]
async fn make_symlinks<E>(symlinks: Vec<(PathBuf, Vec<u8>)>) -> Result<(), GetError<E>> {
    match symlinks.into_iter().next() {
        None => Ok(()),
        Some((path, _)) => Err(GetError::Unsupported {
            path,
            reason: "it is a symbolic link, which anypath makes on Unix only",
        }),
    }
}
