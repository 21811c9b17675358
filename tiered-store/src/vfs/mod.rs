//! The file system and the clock, as seen by the store: a trait, so that power cuts and failing devices can be simulated.

mod real;
mod sim;

use std::{any::Any, io, io::IoSlice, path::Path, sync::Arc};

pub use real::RealVfs;
pub use sim::{Fault, Image, Op, SimVfs};

/// A flat file system with explicit durability.
///
/// A write is durable after [`VfsFile::sync_data`] of its file, a created, renamed or removed name after [`Vfs::sync_dir`].
pub trait Vfs: Send + Sync + 'static {
    /// Creates a directory and its parents, and makes their names durable where that can be done; no error if it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names of the files in a directory, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a file for reading and writing, empty, replacing an old one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Files that are open stay readable.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock file at `path` and writes the process id into it; `None` if somebody else has it.
    /// Dropping the value releases the lock.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;
    /// Wall clock, in milliseconds since 1970. Times to live are measured with it.
    fn now_ms(&self) -> u64;
}

/// An open file. Reads and writes name their offset, so that one handle serves all threads.
pub trait VfsFile: Send + Sync {
    /// Fills `buf` from `offset`; [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all parts one after the other from `offset`.
    fn write_all_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;
    /// Makes the file's bytes and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Says that these bytes will be read soon, so that the device can begin. A hint: it reads nothing itself and cannot fail.
    fn will_need(&self, _offset: u64, _len: u64) {}
}
