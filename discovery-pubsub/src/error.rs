/// Why a behaviour could not be started.
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

/// What was wrong with an announcement: always the fault of the peer that signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolViolation {
    /// Larger than [`Config::max_announcement_bytes`](crate::Config::max_announcement_bytes).
    #[error("announcement is too large")]
    Oversized,
    /// Not a `Peer` message.
    #[error("announcement is not a Peer message")]
    Malformed,
    /// The key is not a libp2p public key.
    #[error("announcement carries no valid public key")]
    InvalidKey,
    /// The key is that of another peer than the one that signed the message.
    #[error("announced peer is not the author of the message")]
    ForeignKey,
}
