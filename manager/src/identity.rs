//! The node's key pair on disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use libp2p::identity::Keypair;

use crate::data_dir::create_private;

/// The key pair in `path`, or a new Ed25519 one that is written there with mode 0600.
///
/// The file holds libp2p's protobuf encoding of a private key, as kubo's `PrivKey` does before base64. It appears
/// whole or not at all; of two processes that create it at the same time both end up with the same key.
pub fn load_or_create(path: &Path) -> Result<Keypair, IdentityError> {
    if let Some(keypair) = load(path)? {
        return Ok(keypair);
    }
    let io_error = |source| IdentityError::Io {
        path: path.to_owned(),
        source,
    };
    let keypair = Keypair::generate_ed25519();
    let bytes = keypair
        .to_protobuf_encoding()
        .map_err(|_| IdentityError::Corrupt {
            path: path.to_owned(),
        })?;
    if create_private(path, &bytes).map_err(io_error)? {
        return Ok(keypair);
    }
    load(path)?.ok_or_else(|| io_error(io::ErrorKind::NotFound.into()))
}

fn load(path: &Path) -> Result<Option<Keypair>, IdentityError> {
    match fs::read(path) {
        Ok(bytes) => match Keypair::from_protobuf_encoding(&bytes) {
            Ok(keypair) => Ok(Some(keypair)),
            Err(_) => Err(IdentityError::Corrupt {
                path: path.to_owned(),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot use the identity in {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is not a private key.
    #[error("{} is not a libp2p private key; move it away to get a new identity", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_stays_the_same_and_is_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.key");
        let first = load_or_create(&path).unwrap().public();
        assert_eq!(load_or_create(&path).unwrap().public(), first);
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }

    #[test]
    fn a_corrupt_identity_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.key");
        fs::write(&path, "no key").unwrap();
        assert!(matches!(
            load_or_create(&path),
            Err(IdentityError::Corrupt { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"no key");
    }

    #[test]
    fn processes_that_race_for_the_first_start_agree_on_one_identity() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_create(&path).unwrap().public()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
