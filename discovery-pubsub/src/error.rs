/// Why a behaviour could not be started.
#[cfg(feature = "swarm")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Gossipsub refused its configuration.
    #[error("gossipsub does not start: {0}")]
    Gossipsub(String),
    /// A topic could not be subscribed to.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

/// Why a topic could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// An empty or very long name.
    #[error("topic {0:?} must be 1 to 256 bytes long")]
    Invalid(String),
    /// Other nodes would not accept our subscriptions.
    #[error("there are 100 topics already: remove one first")]
    TooMany,
    /// Gossipsub's subscription filter forbids it.
    #[error("gossipsub does not allow topic {topic:?}: {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// What gossipsub said.
        reason: String,
    },
}

/// Why an announcement of ours was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// The service is not among [`Config::services`](crate::Config::services).
    #[error("{0} is not announced: add it to the configuration's services")]
    Off(crate::Service),
    /// Readers would refuse it.
    #[error("an announcement's {field} of {len} bytes is too long: at most {max}")]
    TooLong {
        /// Which part.
        field: &'static str,
        /// Its length.
        len: usize,
        /// The longest one allowed.
        max: usize,
    },
}

/// What was wrong with an announcement: always the fault of the peer that signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolViolation {
    /// Larger than [`Config::max_announcement_bytes`](crate::Config::max_announcement_bytes).
    #[error("announcement is too large")]
    Oversized,
    /// Not a message of the topic's kind.
    #[error("announcement cannot be read")]
    Malformed,
    /// The key is not a libp2p public key.
    #[error("announcement carries no valid public key")]
    InvalidKey,
    /// The key is that of another peer than the one that signed the message.
    #[error("announced peer is not the author of the message")]
    ForeignKey,
    /// A list or a text is longer than the protocol allows.
    #[error("announcement's {0} exceed what the protocol allows")]
    TooMany(&'static str),
    /// A CID that is none.
    #[error("announcement carries an invalid CID")]
    InvalidCid,
    /// A sealed announcement with a bad signature.
    #[error("announcement's envelope is not signed by its author")]
    InvalidEnvelope,
}
