//! The certificate of WebRTC-direct on disk. Its hash (`/certhash/…`) is part of the node's addresses, so it stays the same across restarts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use libp2p_webrtc::tokio::Certificate;

use crate::data_dir::create_private;

/// The certificate in `path`, or a new one that is put there with mode 0600; without a path, one for this run alone.
///
/// Of two processes that create it at the same time both end up with the same one.
pub(super) fn load_or_create(path: Option<&Path>) -> Result<Certificate, CertificateError> {
    let Some(path) = path else {
        return generate();
    };
    if let Some(certificate) = load(path)? {
        return Ok(certificate);
    }
    let io_error = |source| CertificateError::Io {
        path: path.to_owned(),
        source,
    };
    let certificate = generate()?;
    if create_private(path, certificate.serialize_pem().as_bytes()).map_err(io_error)? {
        return Ok(certificate);
    }
    load(path)?.ok_or_else(|| io_error(io::ErrorKind::NotFound.into()))
}

fn generate() -> Result<Certificate, CertificateError> {
    Certificate::generate(&mut rand::rng()).map_err(|_| CertificateError::Generate)
}

fn load(path: &Path) -> Result<Option<Certificate>, CertificateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CertificateError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    let certificate = String::from_utf8(text)
        .ok()
        .filter(|text| begins_with_its_end(text))
        .and_then(|text| Certificate::from_pem(&text).ok());
    certificate
        .map(Some)
        .ok_or_else(|| CertificateError::Damaged {
            path: path.to_owned(),
        })
}

/// Whether the first block is eight bytes in base64, the end of the certificate's life: webrtc-rs panics if they are fewer.
fn begins_with_its_end(text: &str) -> bool {
    let mut lines = text.lines();
    let is_eight_bytes =
        |line: &str| line.len() == 12 && line.ends_with('=') && !line.ends_with("==");
    lines.next() == Some("-----BEGIN EXPIRES-----")
        && lines.next().is_some_and(is_eight_bytes)
        && lines.next() == Some("-----END EXPIRES-----")
}

/// Why a node has no certificate for WebRTC.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The file cannot be read or written.
    #[error("cannot use the WebRTC certificate in {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is something else, or was changed.
    #[error(
        "{} is damaged or no WebRTC certificate; restore it, or move it away to get a new one (pages then need the node's new \
         WebRTC addresses: their certhash is another)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// None could be made.
    #[error("cannot make a certificate for WebRTC")]
    Generate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_stays_the_same_and_is_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("webrtc.pem");
        let first = load_or_create(Some(&path)).unwrap().fingerprint();
        assert_eq!(load_or_create(Some(&path)).unwrap().fingerprint(), first);
        assert_ne!(load_or_create(None).unwrap().fingerprint(), first);
        let entries = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(entries, 1, "no temporary file is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_damaged_certificate_is_told_of_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("webrtc.pem");
        let whole = load_or_create(None).unwrap().serialize_pem();
        let without_key = whole.replace("PRIVATE_KEY", "PUBLIC_KEY");
        let short = "-----BEGIN EXPIRES-----\r\nAAAA\r\n-----END EXPIRES-----\r\n\n";
        for damaged in [
            "",
            "no certificate",
            short,
            &whole[..whole.len() / 2],
            &whole[..whole.len() - 20],
            &without_key,
        ] {
            fs::write(&path, damaged).unwrap();
            let error = load_or_create(Some(&path)).unwrap_err();
            assert!(
                matches!(error, CertificateError::Damaged { .. }),
                "{damaged}: {error}"
            );
            assert!(error.to_string().contains("webrtc.pem"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), damaged.as_bytes());
        }
        fs::write(&path, [0xff; 100]).unwrap();
        assert!(load_or_create(Some(&path)).is_err());
    }
}
