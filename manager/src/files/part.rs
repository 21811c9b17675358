//! The output while it is incomplete: `<output>.<end of the CID>.part`, locked, renamed when whole.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest as _};

/// Characters of the CID in the name: enough that two files under one output name do not meet.
const SUFFIX: usize = 12;

/// An open and locked directory that is incomplete. All methods block.
#[derive(Debug)]
pub(super) struct PartDirectory {
    path: PathBuf,
    #[cfg_attr(
        not(unix),
        expect(dead_code, reason = "only Unix opens and locks directories")
    )]
    lock: Option<File>,
}

impl PartDirectory {
    /// Opens or creates it; `WouldBlock` if another process is writing it.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        make_directory(&path)?;
        if cfg!(not(unix)) {
            return Ok(Self { path, lock: None });
        }
        let lock = File::open(&path)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path,
                lock: Some(lock),
            }),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes everything in it durable, and gives it its final name.
    pub(super) fn finish(self, output: &Path) -> io::Result<()> {
        self.sync()?;
        fs::rename(&self.path, output)?;
        sync_directory(output)
    }

    /// All of the file system at once: a hundred thousand files one by one would take minutes.
    #[cfg(target_os = "linux")]
    fn sync(&self) -> io::Result<()> {
        match &self.lock {
            Some(directory) => Ok(rustix::fs::syncfs(directory)?),
            None => Ok(()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn sync(&self) -> io::Result<()> {
        let mut pending = vec![self.path.clone()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    pending.push(entry.path());
                } else if kind.is_file() {
                    File::options().write(true).open(entry.path())?.sync_all()?;
                }
            }
            #[cfg(unix)]
            File::open(&directory)?.sync_all()?;
        }
        Ok(())
    }
}

/// Makes a directory, or finds one there that is none by a symbolic link only.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match fs::symlink_metadata(path)?.is_dir() {
                true => Ok(()),
                false => Err(error),
            }
        }
        made => made,
    }
}

/// Makes a symbolic link, or leaves the one of an earlier run.
#[cfg(unix)]
pub(super) fn make_symlink(path: &Path, target: &[u8]) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let target = Path::new(std::ffi::OsStr::from_bytes(target));
    match std::os::unix::fs::symlink(target, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::read_link(path) {
            Ok(found) if found == target => Ok(()),
            _ => Err(error),
        },
        made => made,
    }
}

/// Where the incomplete output of a [`get`](super::get()) is, until it is renamed to `output`.
#[must_use]
pub fn part_path(output: &Path, cid: &Cid) -> PathBuf {
    let text = cid.to_string();
    let suffix = text
        .get(text.len().saturating_sub(SUFFIX)..)
        .unwrap_or(&text);
    let mut name = output.as_os_str().to_owned();
    name.push(format!(".{suffix}.part"));
    PathBuf::from(name)
}

/// An open and locked part file. All methods block.
#[derive(Debug, Clone)]
pub(super) struct Part {
    path: PathBuf,
    file: Arc<File>,
}

impl Part {
    /// Opens or creates it; `WouldBlock` if another process is writing it.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                path,
                file: Arc::new(file),
            }),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Opens or creates a file of a directory that is incomplete itself, and locked. What is in its place and no regular file was not
    /// made by an earlier run.
    pub(super) fn open_in_directory(path: PathBuf) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use rustix::fs::OFlags;
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let flags = flags.bits().cast_signed();
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
        }
        let file = options.open(&path)?;
        match file.metadata()?.is_file() {
            true => Ok(Self {
                path,
                file: Arc::new(file),
            }),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub(super) fn write(&self, mut offset: u64, run: &[Bytes]) -> io::Result<u64> {
        for data in run {
            write_all_at(&self.file, data, offset)?;
            offset += data.len() as u64;
        }
        Ok(offset)
    }

    /// Whether the `size` bytes at `offset` are the block `cid`.
    pub(super) fn holds(&self, cid: &Cid, offset: u64, size: u64) -> io::Result<bool> {
        // More than any block that can be fetched: not worth reading, and nothing to allocate.
        const LARGEST_BLOCK: u64 = 4 * 1024 * 1024;
        let (Ok(size), Ok(code)) = (
            usize::try_from(size.min(LARGEST_BLOCK + 1)),
            Code::try_from(cid.hash().code()),
        ) else {
            return Ok(false);
        };
        if size as u64 > LARGEST_BLOCK {
            return Ok(false);
        }
        let mut data = vec![0; size];
        match read_exact_at(&self.file, &mut data, offset) {
            Ok(()) => Ok(code.digest(&data).digest() == cid.hash().digest()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Cuts off what an earlier run has left behind the file.
    pub(super) fn set_length(&self, length: u64) -> io::Result<()> {
        match self.length()? == length {
            true => Ok(()),
            false => self.file.set_len(length),
        }
    }

    /// Makes the content durable and gives the file its final name.
    pub(super) fn finish(self, length: u64, output: &Path) -> io::Result<()> {
        self.file.set_len(length)?;
        self.file.sync_all()?;
        fs::rename(&self.path, output)?;
        sync_directory(output)
    }
}

/// Makes the new name durable.
#[cfg(unix)]
pub(super) fn sync_directory(output: &Path) -> io::Result<()> {
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
pub(super) fn sync_directory(_output: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn write_all_at(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, offset)
}

#[cfg(unix)]
fn read_exact_at(file: &File, data: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, data, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut data: &[u8], mut offset: u64) -> io::Result<()> {
    while !data.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, data, offset)?;
        data = data.get(written..).unwrap_or_default();
        offset += written as u64;
    }
    Ok(())
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut data: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !data.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, data, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                data = data.get_mut(read..).unwrap_or_default();
                offset += read as u64;
            }
        }
    }
    Ok(())
}
