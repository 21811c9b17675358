//! The key of a private network (libp2p's [PSK v1](https://github.com/libp2p/specs/blob/master/pnet/Private-Networks-PSK-V1.md)),
//! in the format of kubo's `swarm.key`.
//!
//! Every TCP, WebSocket and relayed connection is enciphered with it before anything else is said, so that two nodes with different
//! keys, or one with and one without, cannot tell each other from noise.

use std::{
    io,
    path::{Path, PathBuf},
};

use libp2p::pnet::PreSharedKey;

/// The first line of a key file; [`BASE16`] and a line of 64 hexadecimal digits follow.
const KIND: &str = "/key/swarm/psk/1.0.0/";
const BASE16: &str = "/base16/";

/// A larger file is none of these.
const MAX_FILE_BYTES: u64 = 4096;

/// A new key.
#[must_use]
pub fn generate() -> PreSharedKey {
    PreSharedKey::new(rand::random())
}

/// Reads a key: the text of a key file, or only its 64 hexadecimal digits.
pub fn parse(text: &str) -> Result<PreSharedKey, SwarmKeyError> {
    // libp2p-pnet's own parser takes signs for digits and panics on some that are not ASCII.
    let lines: Vec<_> = text.trim().lines().map(str::trim_end).take(4).collect();
    let ([digits] | [KIND, BASE16, digits]) = lines.as_slice() else {
        return Err(SwarmKeyError::Malformed);
    };
    let mut key = [0; 32];
    hex::decode_to_slice(digits, &mut key).map_err(|_| SwarmKeyError::Malformed)?;
    Ok(PreSharedKey::new(key))
}

/// Reads a key file.
pub fn load(path: &Path) -> Result<PreSharedKey, SwarmKeyError> {
    let read = || {
        let file = std::fs::File::open(path)?;
        io::read_to_string(io::Read::take(file, MAX_FILE_BYTES))
    };
    let text = read().map_err(|source| SwarmKeyError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    parse(&text).map_err(|_| SwarmKeyError::NoKey {
        path: path.to_owned(),
    })
}

/// What go-libp2p and libp2p-pnet agree to call the key by, from which nobody learns it.
pub(crate) fn fingerprint(key: &PreSharedKey) -> [u8; 16] {
    let mut bytes = [0; 16];
    // It is written as 32 digits, and in no other way.
    let written = hex::decode_to_slice(key.fingerprint().to_string(), &mut bytes);
    debug_assert!(written.is_ok());
    bytes
}

/// Why there is no key. No text shows any of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwarmKeyError {
    /// The text is not a key.
    #[error(
        "not a swarm key; expected 64 hexadecimal digits, or the text of a key file (/key/swarm/psk/1.0.0/ and /base16/ above the \
         digits), as `anypath swarm-key` makes one"
    )]
    Malformed,
    /// The file holds something else.
    #[error(
        "{} is not a swarm key; expected the lines /key/swarm/psk/1.0.0/, /base16/ and 64 hexadecimal digits, as `anypath swarm-key` \
         prints them",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the swarm key {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "/key/swarm/psk/1.0.0/\n/base16/\n";
    const DIGITS: &str = "6189c5cf0b87fb800c1a9feeda73c6ab5e998db48fb9e6a978575c770ceef683";

    #[test]
    fn a_key_of_kubo_is_read_with_and_without_what_is_around_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("swarm.key");
        for text in [
            DIGITS.to_owned(),
            DIGITS.to_uppercase(),
            format!("{HEADER}{DIGITS}"),
            format!("{HEADER}{DIGITS}\n").replace('\n', "\r\n"),
        ] {
            std::fs::write(&path, &text).unwrap();
            for key in [parse(&text), load(&path)] {
                // What go-ipfs says of this key.
                let fingerprint = key.unwrap().fingerprint().to_string();
                assert_eq!(fingerprint, "45fc986bbc9388a11d939df26f730f0c");
            }
        }
        let new = generate();
        assert_eq!(parse(&new.to_key_file()).unwrap(), new);
        assert_ne!(generate(), new);
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("swarm.key");
        for text in [
            String::new(),
            DIGITS[1..].to_owned(),
            format!("{DIGITS}0"),
            format!("+{}", &DIGITS[1..]),
            format!("/key/swarm/psk/1.0.0/\n/base64/\n{DIGITS}"),
            format!("/key/swarm/psk/2.0.0/\n/base16/\n{DIGITS}"),
            format!("{HEADER}a{}b", "é".repeat(31)),
        ] {
            std::fs::write(&path, &text).unwrap();
            for error in [parse(&text).unwrap_err(), load(&path).unwrap_err()] {
                let text = format!("{error} {error:?}");
                assert!(
                    text.contains("swarm key") && !text.contains("89c5cf0b"),
                    "{text}"
                );
            }
        }
        let missing = load(&directory.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
