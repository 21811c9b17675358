//! What the kernel counts for this process, and the page cache. Linux only, like all figures that need it.

use super::super::Error;
use std::fs::File;
use std::path::Path;

/// Counters of `/proc/self/io`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Io {
    /// Read calls.
    pub(super) reads: u64,
    /// Bytes that came from the device.
    pub(super) read_bytes: u64,
    /// Bytes that go to the device, less what was dropped before it got there.
    pub(super) write_bytes: u64,
}

impl Io {
    /// As of now.
    pub(super) fn now() -> Result<Self, Error> {
        let text = std::fs::read_to_string("/proc/self/io")?;
        let field = |name: &str| -> Result<u64, Error> {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .ok_or_else(|| format!("no {name} in /proc/self/io"))?;
            Ok(value.trim().parse()?)
        };
        Ok(Self {
            reads: field("syscr")?,
            read_bytes: field("read_bytes")?,
            write_bytes: field("write_bytes")?.saturating_sub(field("cancelled_write_bytes")?),
        })
    }

    /// Read calls since `self`, without those that counting them takes.
    pub(super) fn reads_since(&self) -> Result<u64, Error> {
        let (before, after) = (Self::now()?, Self::now()?);
        let own = after.reads - before.reads;
        Ok((before.reads - self.reads).saturating_sub(own))
    }
}

/// Anonymous memory of this process in bytes.
pub(super) fn anonymous_memory() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .ok_or("no RssAnon in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Every file below a directory.
pub(super) fn files(directory: &Path) -> Result<Vec<std::path::PathBuf>, Error> {
    let (mut files, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// Takes every file below a directory out of the page cache. It must be synced: dirty pages stay.
pub(super) fn drop_page_cache(directory: &Path) -> Result<(), Error> {
    for path in files(directory)? {
        rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Writes what the whole file system has in memory, so that nothing of one run is written during the next.
pub(super) fn sync_file_system(directory: &Path) -> Result<(), Error> {
    Ok(rustix::fs::syncfs(File::open(directory)?)?)
}

/// Whether a directory lies in memory, where nothing is ever durable.
pub(super) fn is_tmpfs(directory: &Path) -> Result<bool, Error> {
    /// `TMPFS_MAGIC` of linux/magic.h.
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    Ok(rustix::fs::statfs(directory)?.f_type == TMPFS)
}
