//! The operating system's file system.

use std::{
    any::Any,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, IoSlice, Write},
    path::Path,
    sync::Arc,
};

use web_time::{SystemTime, UNIX_EPOCH};

use super::{Vfs, VfsFile};

/// The operating system's files and clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealVfs;

impl Vfs for RealVfs {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .collect();
        fs::create_dir_all(path)?;
        for made in missing {
            let parent = made.parent().filter(|path| !path.as_os_str().is_empty());
            // Not every parent can be opened; then nothing can be done about it.
            let _ = self.sync_dir(parent.unwrap_or(Path::new(".")));
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(RealFile(
            OpenOptions::new().read(true).write(true).open(path)?,
        )))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Windows has no handle to a directory's entries; NTFS journals them.
        if cfg!(unix) {
            File::open(dir)?.sync_all()
        } else {
            Ok(())
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        Ok(Some(Box::new(file)))
    }

    fn now_ms(&self) -> u64 {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the adapter that reads the clock"
        )]
        let now = SystemTime::now();
        now.duration_since(UNIX_EPOCH)
            .map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            .unwrap_or(0)
    }
}

struct RealFile(File);

impl VfsFile for RealFile {
    #[cfg(unix)]
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(&self.0, buf, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    offset += read as u64;
                    buf = buf.get_mut(read..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn write_all_at(&self, mut offset: u64, mut parts: &[IoSlice<'_>]) -> io::Result<()> {
        /// The kernel's UIO_MAXIOV.
        const MAX_PARTS: usize = 1024;
        while !parts.is_empty() {
            let (now, later) = parts.split_at(parts.len().min(MAX_PARTS));
            let wanted: usize = now.iter().map(|part| part.len()).sum();
            let mut written = rustix::io::pwritev(&self.0, now, offset)?;
            if written < wanted {
                // Short: finish what is left of these parts one by one; that names the error if there is one.
                let mut at = offset + written as u64;
                for part in now {
                    let done = written.min(part.len());
                    written -= done;
                    let rest = part.get(done..).unwrap_or_default();
                    std::os::unix::fs::FileExt::write_all_at(&self.0, rest, at)?;
                    at += rest.len() as u64;
                }
            }
            offset += wanted as u64;
            parts = later;
        }
        Ok(())
    }

    #[cfg(all(unix, not(target_os = "linux")))]
    fn write_all_at(&self, mut offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        for part in parts {
            std::os::unix::fs::FileExt::write_all_at(&self.0, part, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    #[cfg(windows)]
    fn write_all_at(&self, mut offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        for part in parts {
            let mut rest: &[u8] = part;
            while !rest.is_empty() {
                let written = std::os::windows::fs::FileExt::seek_write(&self.0, rest, offset)?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                offset += written as u64;
                rest = rest.get(written..).unwrap_or_default();
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    #[cfg(target_os = "linux")]
    fn will_need(&self, offset: u64, len: u64) {
        /// The kernel cuts a hint to what the device takes at once, silently.
        const MOST: u64 = 256 * 1024;
        let end = offset.saturating_add(len);
        for at in (offset..end).step_by(MOST as usize) {
            let part = std::num::NonZeroU64::new(MOST.min(end - at));
            let advice = rustix::fs::Advice::WillNeed;
            if rustix::fs::fadvise(&self.0, at, part, advice).is_err() {
                // Where the file system does not do it, reading waits for the device as before.
                return;
            }
        }
    }
}
