//! The certificate of WebRTC-direct and its file. Its hash (`/certhash/…`) is part of the node's addresses, so it stays the same across
//! restarts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dimpl::DtlsCertificate;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use super::core::Fingerprint;
use crate::data_dir::create_private;

/// ECDSA on P-256, signed by its own key, without an end: whoever dials compares its hash, and nothing else.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    /// Certificate in X.509 and key in PKCS #8, both in DER.
    pub(super) der: DtlsCertificate,
    pub(super) fingerprint: Fingerprint,
}

impl Certificate {
    /// A new one.
    pub(super) fn generate() -> Result<Self, CertificateError> {
        let signed = || {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let certificate = CertificateParams::default().self_signed(&key)?;
            Ok::<_, rcgen::Error>(Self::new(certificate.der().to_vec(), key.serialize_der()))
        };
        signed().map_err(|_| CertificateError::Generate)
    }

    fn new(certificate: Vec<u8>, private_key: Vec<u8>) -> Self {
        Self {
            fingerprint: Fingerprint::of(&certificate),
            der: DtlsCertificate {
                certificate,
                private_key,
            },
        }
    }

    fn to_pem(&self) -> String {
        let mut text = String::new();
        for (label, der) in [
            (CERTIFICATE, &self.der.certificate),
            (PRIVATE_KEY, &self.der.private_key),
        ] {
            text.push_str(&format!("-----BEGIN {label}-----\n"));
            let encoded = STANDARD.encode(der);
            let mut rest = encoded.as_str();
            while !rest.is_empty() {
                // RFC 7468 §2.
                let (line, after) = rest.split_at(rest.len().min(64));
                text.push_str(line);
                text.push('\n');
                rest = after;
            }
            text.push_str(&format!("-----END {label}-----\n"));
        }
        text
    }

    fn from_pem(text: &str) -> Option<Self> {
        let (certificate, rest) = block(text, CERTIFICATE)?;
        let (private_key, rest) = block(rest, PRIVATE_KEY)?;
        let key = KeyPair::try_from(&private_key[..]).ok()?;
        let belongs = certificate
            .windows(key.public_key_raw().len())
            .any(|part| part == key.public_key_raw());
        let is_whole = rest.trim().is_empty() && is_one_sequence(&certificate);
        (belongs && is_whole).then(|| Self::new(certificate, private_key))
    }
}

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// The bytes of the next block, which is to have this label, and the text after it.
fn block<'a>(text: &'a str, label: &str) -> Option<(Vec<u8>, &'a str)> {
    let begin = format!("-----BEGIN {label}-----");
    let (body, rest) = text
        .trim_start()
        .strip_prefix(&begin)?
        .split_once(&format!("-----END {label}-----"))?;
    let joined: String = body.split_ascii_whitespace().collect();
    Some((STANDARD.decode(joined).ok()?, rest))
}

/// Whether it is a DER sequence with a length in two bytes, as certificates are, and nothing after it.
fn is_one_sequence(der: &[u8]) -> bool {
    match der {
        [0x30, 0x82, high, low, rest @ ..] => {
            usize::from(u16::from_be_bytes([*high, *low])) == rest.len()
        }
        [0x30, 0x81, length, rest @ ..] => usize::from(*length) == rest.len(),
        _ => false,
    }
}

/// The certificate in `path`, or a new one that is put there with mode 0600; without a path, one for this run alone.
///
/// Of two processes that create it at the same time both end up with the same one.
pub(super) fn load_or_create(path: Option<&Path>) -> Result<Certificate, CertificateError> {
    let Some(path) = path else {
        return Certificate::generate();
    };
    if let Some(certificate) = load(path)? {
        return Ok(certificate);
    }
    let io_error = |source| CertificateError::Io {
        path: path.to_owned(),
        source,
    };
    let certificate = Certificate::generate()?;
    if create_private(path, certificate.to_pem().as_bytes()).map_err(io_error)? {
        return Ok(certificate);
    }
    load(path)?.ok_or_else(|| io_error(io::ErrorKind::NotFound.into()))
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
    let certificate = str::from_utf8(&text).ok().and_then(Certificate::from_pem);
    certificate
        .map(Some)
        .ok_or_else(|| CertificateError::Damaged {
            path: path.to_owned(),
        })
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
        let first = load_or_create(Some(&path)).unwrap().fingerprint;
        assert_eq!(load_or_create(Some(&path)).unwrap().fingerprint, first);
        assert_ne!(load_or_create(None).unwrap().fingerprint, first);
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
        let whole = Certificate::generate().unwrap().to_pem();
        let key = |text: &str| text[text.find("-----BEGIN PRIVATE KEY").unwrap()..].to_owned();
        let without_key = whole.replace("PRIVATE KEY", "PUBLIC KEY");
        let other = Certificate::generate().unwrap().to_pem();
        let of_another = whole.replace(&key(&whole), &key(&other));
        for damaged in [
            "",
            "no certificate",
            &whole[..whole.len() / 2],
            &whole[..whole.len() - 40],
            &without_key,
            &of_another,
            &format!("{whole}more"),
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
