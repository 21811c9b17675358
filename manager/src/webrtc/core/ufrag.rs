//! The names of connections.

use std::sync::Arc;

/// The name of one connection, which its client makes up. It is the ICE user name and password of the server, and of the client where that
/// can choose its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ufrag(Arc<str>);

/// The second is of clients that cannot choose their own name: their password is the rest of it, which a server that sends no checks does
/// not need (go-libp2p takes both, too).
const PREFIXES: [&str; 2] = ["libp2p+webrtc+v1/", "libp2p+webrtc+v2/"];

impl Ufrag {
    pub(crate) fn new(name: &str) -> Option<Self> {
        Self::is_well_formed(name).then(|| Self(name.into()))
    }

    /// One that nobody else has, if the bytes are random.
    pub(crate) fn random(bytes: [u8; 32]) -> Self {
        let [prefix, _] = PREFIXES;
        Self(format!("{prefix}{}", hex::encode(bytes)).into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// `ice-char`s, of which a name has at most 256 (RFC 8839 §5.4).
    pub(super) fn is_well_formed(name: &str) -> bool {
        let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
        rest.is_some_and(|rest| {
            let is_ice = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
            rest.len() >= 4 && name.len() <= 256 && rest.bytes().all(is_ice)
        })
    }
}
