//! What a directory has in it, before any of it is read.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    AddError, MAX_DIRECTORY_DEPTH, MAX_ENTRIES, Profile,
    add::{LINK, RECORD, dag_size},
    directory::check_name,
};

/// What was found in a directory: the order of work for [`add_directory`](super::add_directory).
#[derive(Debug)]
pub struct Scan {
    pub(super) steps: Vec<Step>,
    /// Regular files.
    pub files: u64,
    /// Bytes in those files.
    pub bytes: u64,
    /// Bytes that all of it takes in the store, at most.
    pub stored: u64,
    /// Hidden files and directories that were left out.
    pub left_out: u64,
}

/// In the order of a walk, names sorted.
#[derive(Debug)]
pub(super) enum Step {
    /// What follows is in this directory, until [`Step::Leave`].
    Enter(String),
    Leave,
    File {
        name: String,
        bytes: u64,
    },
    Symlink {
        name: String,
        target: Vec<u8>,
    },
}

/// Looks through a directory and all below it. Blocks. `hidden`: take files and directories whose names begin with a dot, too, which
/// `ipfs add` leaves out as well unless told otherwise.
///
/// # Errors
///
/// Something cannot be read; or cannot be added: a device, a pipe, a socket, a name that is not UTF-8, a directory 128 levels down, more
/// than a million entries.
pub fn scan(directory: &Path, profile: Profile, hidden: bool) -> Result<Scan, AddError> {
    let mut walk = Walk {
        scan: Scan {
            steps: Vec::new(),
            files: 0,
            bytes: 0,
            stored: RECORD,
            left_out: 0,
        },
        profile,
        hidden,
    };
    walk.enter(directory, 0)?;
    Ok(walk.scan)
}

struct Walk {
    scan: Scan,
    profile: Profile,
    hidden: bool,
}

impl Walk {
    fn enter(&mut self, directory: &Path, depth: usize) -> Result<(), AddError> {
        let unsupported = |path: PathBuf, reason| Err(AddError::Unsupported { path, reason });
        if depth > MAX_DIRECTORY_DEPTH {
            let path = directory.to_owned();
            return unsupported(path, "it is more than 128 directories down");
        }
        for (name, entry) in self.entries(directory)? {
            if self.scan.steps.len() >= MAX_ENTRIES {
                let path = directory.to_owned();
                return unsupported(path, "there are more than a million files; add parts of it");
            }
            let path = entry.path();
            let cannot_read = |source| AddError::ReadPath {
                path: path.clone(),
                source,
            };
            self.scan.stored += LINK + RECORD + name.len() as u64;
            // Of the entry itself, not of what a link leads to.
            let metadata = entry.metadata().map_err(cannot_read)?;
            if metadata.is_dir() {
                self.scan.steps.push(Step::Enter(name));
                self.enter(&path, depth + 1)?;
                self.scan.steps.push(Step::Leave);
            } else if metadata.is_file() {
                let bytes = metadata.len();
                self.scan.files += 1;
                self.scan.bytes = self.scan.bytes.saturating_add(bytes);
                let stored = dag_size(self.profile, bytes);
                self.scan.stored = self.scan.stored.saturating_add(stored);
                self.scan.steps.push(Step::File { name, bytes });
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(cannot_read)?;
                let Some(target) = bytes_of(target) else {
                    return unsupported(path, "it is a symbolic link to a name that is not UTF-8");
                };
                self.scan.stored += target.len() as u64;
                self.scan.steps.push(Step::Symlink { name, target });
            } else {
                return unsupported(path, "it is a device, a pipe or a socket");
            }
        }
        Ok(())
    }

    /// The entries of a directory, by name.
    fn entries(&mut self, directory: &Path) -> Result<Vec<(String, fs::DirEntry)>, AddError> {
        let read = || fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>();
        let found = read().map_err(|source| AddError::ReadPath {
            path: directory.to_owned(),
            source,
        })?;
        let mut entries = Vec::with_capacity(found.len());
        for entry in found {
            let name = entry.file_name();
            if !self.hidden && name.as_encoded_bytes().starts_with(b".") {
                self.scan.left_out += 1;
                continue;
            }
            let name = name.into_string();
            match name {
                Ok(name) if check_name(name.as_bytes()).is_ok() => entries.push((name, entry)),
                _ => {
                    return Err(AddError::Unsupported {
                        path: entry.path(),
                        reason: "its name is not UTF-8, which UnixFS requires; rename it",
                    });
                }
            }
        }
        entries.sort_unstable_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
        Ok(entries)
    }
}

#[cfg(unix)]
fn bytes_of(target: PathBuf) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt as _;
    Some(target.into_os_string().into_vec())
}

/// With slashes, as every other system writes it.
#[cfg(not(unix))]
fn bytes_of(target: PathBuf) -> Option<Vec<u8>> {
    let target = target.into_os_string().into_string().ok()?;
    Some(target.replace('\\', "/").into_bytes())
}
