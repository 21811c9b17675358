//! A file system in memory that remembers what was synced, takes pictures of what a power cut could leave, and fails on demand.

use std::{
    any::Any,
    collections::BTreeMap,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Vfs, VfsFile};

/// What devices write atomically: power cuts tear writes at multiples of it, in bytes.
const SECTOR: usize = 512;

/// The kind of a call, for fault injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// Opening or creating a file, listing or locking.
    Open,
    /// Reading.
    Read,
    /// Writing or changing a length.
    Write,
    /// Syncing a file or a directory.
    Sync,
    /// Renaming or removing.
    Name,
}

/// What happens at a call that was chosen to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// An error of this kind, nothing done.
    Error(io::ErrorKind),
    /// A write stores the first half of its bytes, then fails with "no space"; other calls fail with EIO.
    Short,
}

/// What a power cut left on the device: files and their bytes.
pub type Image = BTreeMap<PathBuf, Vec<u8>>;

/// Decides for the n-th call (counted from 0) whether it fails.
type Injector = Box<dyn FnMut(u64, Op) -> Option<Fault> + Send>;

/// Looks at the disk as it is.
type Hook = Arc<dyn Fn(&SimVfs) + Send + Sync>;

/// The simulated file system. Clones share it.
#[derive(Clone, Default)]
pub struct SimVfs {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    /// Names as of the last `sync_dir`.
    durable_names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    locked: std::collections::BTreeSet<PathBuf>,
    now_ms: u64,
    calls: u64,
    reads: u64,
    bytes_written: u64,
    injector: Option<Injector>,
    /// Called before every sync with the disk as it is.
    on_sync: Option<Hook>,
}

#[derive(Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// Unsynced changes in order.
    pending: Vec<Change>,
}

enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

fn apply(data: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, bytes) => write(data, *offset, bytes),
        Change::Length(len) => data.resize(usize::try_from(*len).unwrap_or(usize::MAX), 0),
    }
}

fn write(data: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(bytes.len());
    if data.len() < end {
        data.resize(end, 0);
    }
    if let Some(target) = data.get_mut(start..end) {
        target.copy_from_slice(bytes);
    }
}

impl SimVfs {
    /// An empty file system whose clock stands at 1,000,000,000 s.
    pub fn new() -> Self {
        let vfs = SimVfs::default();
        vfs.disk.lock().now_ms = 1_000_000_000_000;
        vfs
    }

    /// A file system that holds what a power cut left.
    pub fn from_image(image: Image, now_ms: u64) -> Self {
        let vfs = SimVfs::default();
        {
            let mut disk = vfs.disk.lock();
            disk.now_ms = now_ms;
            for (path, data) in image {
                let inode = Arc::new(Mutex::new(Inode {
                    durable: data.clone(),
                    data,
                    pending: Vec::new(),
                }));
                disk.names.insert(path.clone(), inode.clone());
                disk.durable_names.insert(path, inode);
            }
        }
        vfs
    }

    /// Moves the clock.
    pub fn advance_ms(&self, ms: u64) {
        self.disk.lock().now_ms += ms;
    }

    /// Number of calls so far that could fail.
    pub fn calls(&self) -> u64 {
        self.disk.lock().calls
    }

    /// Number of reads so far.
    pub fn reads(&self) -> u64 {
        self.disk.lock().reads
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.disk.lock().bytes_written
    }

    /// Bytes of all files whose name contains `part`, now.
    pub fn file_bytes(&self, part: &str) -> u64 {
        let disk = self.disk.lock();
        disk.names
            .iter()
            .filter(|(path, _)| path.to_string_lossy().contains(part))
            .map(|(_, inode)| inode.lock().data.len() as u64)
            .sum()
    }

    /// Asks `injector` before every call; it gets the call's number and kind.
    pub fn inject(&self, injector: impl FnMut(u64, Op) -> Option<Fault> + Send + 'static) {
        self.disk.lock().injector = Some(Box::new(injector));
    }

    /// No more faults.
    pub fn heal(&self) {
        self.disk.lock().injector = None;
    }

    /// Calls `hook` before every sync, when the most is unsynced.
    pub fn on_sync(&self, hook: impl Fn(&SimVfs) + Send + Sync + 'static) {
        self.disk.lock().on_sync = Some(Arc::new(hook));
    }

    /// What the files hold now, synced or not: what the death of the process alone would leave.
    pub fn live_image(&self) -> Image {
        let disk = self.disk.lock();
        disk.names
            .iter()
            .map(|(path, inode)| (path.clone(), inode.lock().data.clone()))
            .collect()
    }

    /// What a power cut could leave now. `random` returns arbitrary numbers and decides, for every unsynced change, whether it
    /// is lost, kept or torn at a sector, in any order of survival; and whether unsynced names survive.
    pub fn crash_image(&self, mut random: impl FnMut() -> u64) -> Image {
        let disk = self.disk.lock();
        let mut names = disk.durable_names.clone();
        for (path, inode) in &disk.names {
            let durable = names.get(path).is_some_and(|old| Arc::ptr_eq(old, inode));
            if !durable && random().is_multiple_of(2) {
                names.insert(path.clone(), inode.clone());
            }
        }
        let removed: Vec<PathBuf> = names
            .keys()
            .filter(|path| !disk.names.contains_key(*path))
            .cloned()
            .collect();
        for path in removed {
            if random().is_multiple_of(2) {
                names.remove(&path);
            }
        }
        let mut image = Image::new();
        for (path, inode) in names {
            let inode = inode.lock();
            let mut data = inode.durable.clone();
            // 0: nothing unsynced survived; 1: a prefix; otherwise each change for itself.
            let mode = random() % 4;
            let cut = usize::try_from(random()).unwrap_or(0) % (inode.pending.len() + 1);
            for (n, change) in inode.pending.iter().enumerate() {
                match mode {
                    0 => break,
                    1 if n >= cut => break,
                    1 => apply(&mut data, change),
                    _ => survive(&mut data, change, &mut random),
                }
            }
            image.insert(path, data);
        }
        image
    }

    fn before(&self, op: Op) -> io::Result<Option<Fault>> {
        let hook = (op == Op::Sync)
            .then(|| self.disk.lock().on_sync.clone())
            .flatten();
        if let Some(hook) = hook {
            hook(self);
        }
        let mut disk = self.disk.lock();
        let call = disk.calls;
        disk.calls += 1;
        disk.reads += u64::from(op == Op::Read);
        match disk
            .injector
            .as_mut()
            .and_then(|injector| injector(call, op))
        {
            Some(Fault::Error(kind)) => {
                Err(io::Error::new(kind, format!("injected at call {call}")))
            }
            Some(Fault::Short) if op != Op::Write => {
                Err(io::Error::other(format!("injected at call {call}")))
            }
            fault => Ok(fault),
        }
    }
}

/// One unsynced change meets the power cut: lost, whole, or some of its sectors.
fn survive(data: &mut Vec<u8>, change: &Change, random: &mut impl FnMut() -> u64) {
    match (random() % 3, change) {
        (0, _) => {}
        (1, change) => apply(data, change),
        (_, Change::Length(len)) => apply(data, &Change::Length(*len)),
        (_, Change::Write(offset, bytes)) => {
            let mut at = *offset;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let to_boundary = SECTOR - usize::try_from(at % SECTOR as u64).unwrap_or(0);
                let (sector, later) = rest.split_at(rest.len().min(to_boundary));
                if random().is_multiple_of(2) {
                    write(data, at, sector);
                }
                at += sector.len() as u64;
                rest = later;
            }
        }
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} does not exist", path.display()),
    )
}

impl Vfs for SimVfs {
    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        self.before(Op::Open).map(drop)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.before(Op::Open)?;
        let disk = self.disk.lock();
        Ok(disk
            .names
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.before(Op::Open)?;
        let inode = Arc::new(Mutex::new(Inode::default()));
        self.disk
            .lock()
            .names
            .insert(path.to_owned(), inode.clone());
        Ok(Arc::new(SimFile {
            vfs: self.clone(),
            inode,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.before(Op::Open)?;
        let inode = self
            .disk
            .lock()
            .names
            .get(path)
            .cloned()
            .ok_or_else(|| not_found(path))?;
        Ok(Arc::new(SimFile {
            vfs: self.clone(),
            inode,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Op::Name)?;
        let mut disk = self.disk.lock();
        let inode = disk.names.remove(from).ok_or_else(|| not_found(from))?;
        disk.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(Op::Name)?;
        self.disk
            .lock()
            .names
            .remove(path)
            .map(drop)
            .ok_or_else(|| not_found(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.before(Op::Sync)?;
        let mut disk = self.disk.lock();
        let names = disk.names.clone();
        disk.durable_names
            .retain(|path, _| path.parent() != Some(dir));
        disk.durable_names.extend(
            names
                .into_iter()
                .filter(|(path, _)| path.parent() == Some(dir)),
        );
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.before(Op::Open)?;
        if !self.disk.lock().locked.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(SimLock {
            vfs: self.clone(),
            path: path.to_owned(),
        })))
    }

    fn now_ms(&self) -> u64 {
        self.disk.lock().now_ms
    }
}

struct SimLock {
    vfs: SimVfs,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.vfs.disk.lock().locked.remove(&self.path);
    }
}

struct SimFile {
    vfs: SimVfs,
    inode: Arc<Mutex<Inode>>,
}

impl VfsFile for SimFile {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.vfs.before(Op::Read)?;
        let inode = self.inode.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = inode
            .data
            .get(start..start.saturating_add(buf.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let fault = self.vfs.before(Op::Write)?;
        let mut bytes = parts
            .iter()
            .flat_map(|part| part.iter().copied())
            .collect::<Vec<u8>>();
        if fault.is_some() {
            bytes.truncate(bytes.len() / 2);
        }
        self.vfs.disk.lock().bytes_written += bytes.len() as u64;
        let mut inode = self.inode.lock();
        let change = Change::Write(offset, bytes);
        apply(&mut inode.data, &change);
        inode.pending.push(change);
        match fault {
            Some(_) => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "injected short write",
            )),
            None => Ok(()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.vfs.before(Op::Sync)?;
        let mut inode = self.inode.lock();
        let pending = std::mem::take(&mut inode.pending);
        for change in &pending {
            apply(&mut inode.durable, change);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inode.lock().data.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.vfs.before(Op::Write)?;
        let mut inode = self.inode.lock();
        let change = Change::Length(len);
        apply(&mut inode.data, &change);
        inode.pending.push(change);
        Ok(())
    }
}
