//! The directory in which a node keeps everything: identity, blocks, configuration, the address of its API.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::config::DEFAULT_API_PORT;

/// A node's data directory, created with mode 0700.
///
/// | path | what |
/// |---|---|
/// | `config.toml` | the configuration file, see [`crate::config`] |
/// | `identity.key` | the private key, mode 0600, see [`crate::identity`] |
/// | `swarm.key` | the key of a private network, put there by its user, see [`crate::swarm_key`] |
/// | `webrtc.pem` | certificate and key of WebRTC-direct, mode 0600, once the node has listened there |
/// | `store/` | blocks, pins and small values, see `anypath-tiered-store` |
/// | `api.json` | address and token of the running node's API, mode 0600 |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Where the directory is: `explicit` if given, else the platform's place for application data (on Linux
    /// `~/.local/share/anypath`), and below it `port-<n>` for an API port other than the default, so that a second
    /// instance on one machine has its own.
    pub fn locate(explicit: Option<PathBuf>, api_port: u16) -> Result<PathBuf, DataDirError> {
        if let Some(path) = explicit {
            return Ok(path);
        }
        let default =
            directories::ProjectDirs::from("", "", "anypath").ok_or(DataDirError::NoHome)?;
        let default = default.data_dir();
        Ok(match api_port {
            DEFAULT_API_PORT => default.to_owned(),
            port => default.join(format!("port-{port}")),
        })
    }

    /// Opens the directory, creating it if it is not there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        let created = create_private_directory(&path);
        created.map_err(|source| DataDirError::Create {
            path: path.clone(),
            source,
        })?;
        // Absolute, because a running node and its clients have different working directories.
        let path =
            fs::canonicalize(&path).map_err(|source| DataDirError::Create { path, source })?;
        Ok(Self(path))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the blocks are.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// The configuration file, which need not exist.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// The private key.
    #[must_use]
    pub fn identity_file(&self) -> PathBuf {
        self.0.join("identity.key")
    }

    /// The key of a private network, which need not exist.
    #[must_use]
    pub fn swarm_key_file(&self) -> PathBuf {
        self.0.join("swarm.key")
    }

    /// Certificate and key of WebRTC-direct, which need not exist.
    #[must_use]
    pub fn webrtc_certificate_file(&self) -> PathBuf {
        self.0.join("webrtc.pem")
    }

    /// Says where the running node's API is.
    #[must_use]
    pub fn api_file(&self) -> PathBuf {
        self.0.join("api.json")
    }

    /// The size of the disk tier when none is configured: the smaller of 10 GiB and half the space that is free or
    /// taken by the store itself (else the tier would shrink as it fills), but never less than the store can work with.
    pub fn default_disk_capacity(&self) -> io::Result<u64> {
        const SMALLEST: u64 = 64 * 1024 * 1024;
        let available = fs4::available_space(&self.0)?.saturating_add(bytes_in(&self.store())?);
        Ok((available / 2).clamp(SMALLEST, crate::config::MAX_DEFAULT_DISK_CAPACITY))
    }

    /// What `api.json` says, if it is there and whole. The node that wrote it may be gone: the caller finds out by
    /// connecting.
    pub fn read_api(&self) -> io::Result<Option<ApiFile>> {
        match fs::read(self.api_file()) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes `api.json` with mode 0600, replacing what a node that died has left.
    pub fn write_api(&self, api: &ApiFile) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(api)?;
        let temporary = write_private(&self.api_file(), &bytes)?;
        fs::rename(temporary, self.api_file())
    }

    /// Removes `api.json` if it is the one of this process.
    pub fn remove_api(&self) -> io::Result<()> {
        match self.read_api()? {
            Some(api) if api.pid == std::process::id() => fs::remove_file(self.api_file()),
            _ => Ok(()),
        }
    }
}

/// How a local client reaches the running node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiFile {
    /// Where the API listens, always on loopback.
    pub address: SocketAddr,
    /// Authorises what changes state, sent as `Authorization: Bearer <token>`: 64 hexadecimal digits.
    pub token: String,
    /// The node's process.
    pub pid: u32,
}

/// Why there is no data directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// The platform names no home directory.
    #[error(
        "no home directory is known; give the data directory with --data-dir or ANYPATH_DATA_DIR"
    )]
    NoHome,
    /// The directory cannot be created or opened.
    #[error("cannot use the data directory {}: {source}; choose another with --data-dir or ANYPATH_DATA_DIR", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Writes a file that only its owner can read next to `path` and returns its name; the caller puts it in place.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    use io::Write as _;
    let temporary = path.with_extension(format!("{:016x}.tmp", rand::random::<u64>()));
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    match written {
        Ok(()) => Ok(temporary),
        Err(error) => {
            fs::remove_file(&temporary)?;
            Err(error)
        }
    }
}

/// Puts a file in place that only its owner can read, whole or not at all. False: another process has put one there meanwhile, which stays.
pub(crate) fn create_private(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let temporary = write_private(path, bytes)?;
    // A link, unlike a rename, replaces nothing.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Bytes of the files in a directory, which need not exist.
fn bytes_in(directory: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            bytes += bytes_in(&entry.path())?;
        } else if kind.is_file() {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

fn create_private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_api_port_has_its_own_directory_unless_one_is_given() {
        let default = DataDir::locate(None, DEFAULT_API_PORT).unwrap();
        assert_eq!(
            DataDir::locate(None, 9001).unwrap(),
            default.join("port-9001")
        );
        assert_eq!(
            DataDir::locate(Some("/x".into()), 9001).unwrap(),
            Path::new("/x")
        );
    }

    #[test]
    fn what_the_store_holds_counts_as_room_for_it() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(bytes_in(&directory.path().join("missing")).unwrap(), 0);
        fs::create_dir(directory.path().join("segments")).unwrap();
        fs::write(directory.path().join("segments/1"), [0; 1000]).unwrap();
        fs::write(directory.path().join("FORMAT"), [0; 10]).unwrap();
        assert_eq!(bytes_in(directory.path()).unwrap(), 1010);
    }

    #[cfg(unix)]
    #[test]
    fn the_api_file_is_readable_by_its_owner_only_and_removed_by_its_writer_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::open(directory.path().join("new")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(data.path()), 0o700);
        assert_eq!(data.read_api().unwrap(), None);

        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        let mut api = ApiFile {
            address,
            token: "secret".to_owned(),
            pid: u32::MAX,
        };
        data.write_api(&api).unwrap();
        assert_eq!(mode(&data.api_file()), 0o600);
        data.remove_api().unwrap();
        assert_eq!(
            data.read_api().unwrap(),
            Some(api.clone()),
            "it belongs to another process"
        );

        api.pid = std::process::id();
        data.write_api(&api).unwrap();
        data.remove_api().unwrap();
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
    }
}
