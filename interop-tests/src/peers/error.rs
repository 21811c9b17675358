use std::time::Duration;

/// Why a step with a foreign peer did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program is not there.
    #[error(
        "cannot start {program}: {source}; run `interop-tests/install-peers DIR`, which installs the peers, and name DIR in PEERS_DIR"
    )]
    Start {
        /// What was to be started.
        program: String,
        /// Why it was not.
        source: std::io::Error,
    },
    /// The peer answered that it could not.
    #[error("the peer says: {0}")]
    Peer(String),
    /// The process ended.
    #[error("the peer ended: {0}")]
    Ended(String),
    /// Nothing came within the time that everything takes at most.
    #[error("no {what} within {within:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        within: Duration,
    },
    /// It came and was not what it had to be.
    #[error("{0}")]
    Wrong(String),
    /// Our side, or the machine.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

macro_rules! other {
    ($($source:ty),* $(,)?) => {
        $(impl From<$source> for Error {
            fn from(source: $source) -> Self {
                Self::Other(source.into())
            }
        })*
    };
}
other!(
    Box<dyn std::error::Error + Send + Sync>,
    crate::lab::LabError,
    std::io::Error,
    serde_json::Error,
    base64::DecodeError,
    cid::Error,
    anypath_bitswap::BlockError,
    std::string::FromUtf8Error,
);
