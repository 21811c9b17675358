//! What a peer can do wrong.

/// A peer's breach of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolViolation {
    /// A frame longer than `max_frame_bytes` was announced; the stream was closed.
    #[error("frame of {declared} bytes announced, {limit} are allowed")]
    FrameTooLarge {
        /// The length it declared.
        declared: u64,
        /// What we allow.
        limit: u64,
    },
    /// A frame was no protobuf message; the stream was closed.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// More streams than `max_inbound_streams`; the newest was dropped.
    #[error("more than {limit} concurrent inbound streams")]
    TooManyStreams {
        /// What we allow.
        limit: usize,
    },
    /// Most of what the peer sends is blocks nobody asked for (a corrupt block shows up as one).
    #[error("{bytes} bytes of blocks that were not asked for")]
    UnwantedBlocks {
        /// How many bytes since the connection came up.
        bytes: u64,
    },
}
