//! One error for each operation of a node.

use std::{io, time::Duration};

use cid::Cid;
use libp2p::{Multiaddr, PeerId, StreamProtocol};

/// The node was shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node has been shut down")]
pub struct Stopped;

/// Any foreign error, for its text.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The port that was asked for is taken.
    #[error(
        "port {port} is in use: stop the other program, or choose another port with {key} (0 lets the system choose)"
    )]
    PortInUse {
        /// The port.
        port: u16,
        /// The key of the configuration that names it.
        key: &'static str,
    },
    /// None of the ports that are tried by default is free.
    #[error("no P2P port from {first} to {last} is free: set p2p_port, 0 lets the system choose")]
    NoFreePort {
        /// The first port that was tried.
        first: u16,
        /// The last one.
        last: u16,
    },
    /// The node cannot listen there.
    #[error("cannot listen on {address}: {source}; check listen_addrs")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The key of the private network cannot be had.
    #[error(transparent)]
    SwarmKey(#[from] crate::swarm_key::SwarmKeyError),
    /// There is no certificate for WebRTC-direct.
    #[cfg(feature = "webrtc")]
    #[error(transparent)]
    WebRtcCertificate(#[from] crate::webrtc::CertificateError),
    /// A relay's address cannot be used.
    #[error("cannot use the relay {address}: {source}")]
    Relay {
        /// The address.
        address: Multiaddr,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// A part of the node does not accept its configuration.
    #[error("cannot set up {part}: {source}")]
    Setup {
        /// Which part.
        part: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// Why a peer could not be connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Every address failed.
    #[error("cannot reach {target}: {reason}")]
    Unreachable {
        /// The peer, or the address where its id is not known.
        target: String,
        /// What each dial said.
        reason: String,
    },
    /// The address names this node.
    #[error("{0} is this node itself")]
    Myself(PeerId),
    /// As many peers as the strategy follows are being dialled.
    #[error("too many peers are being dialled: try again in a moment")]
    TooMany,
    /// The node was shut down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStreamError {
    /// The peer does not speak the protocol.
    #[error("the peer does not support {0}")]
    UnsupportedProtocol(StreamProtocol),
    /// No address of the peer led to it.
    #[error("cannot reach {peer}: connect to it with an address first")]
    Unreachable {
        /// The peer.
        peer: PeerId,
    },
    /// No usable connection came up in time.
    #[error("no connection that may carry a stream came up in time")]
    Timeout,
    /// The connection failed while the protocol was negotiated.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    /// Too many opens wait for a connection.
    #[error("too many streams are waiting for a connection")]
    TooManyWaiting,
    /// The node was shut down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a protocol could not be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Somebody accepts its streams already.
    #[error("{0} is registered already: drop its `IncomingStreams` first")]
    Taken(StreamProtocol),
    /// The most that a node offers.
    #[error("128 protocols are registered: drop some first")]
    TooMany,
    /// The node was shut down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why the DHT was not told, or did not tell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DhtError {
    /// The node takes no part in a DHT.
    #[error("this node takes part in no DHT: set enable_dht_discovery = true and private = false")]
    Disabled,
    /// The query did not succeed.
    #[error("the DHT query failed: {0}")]
    Query(#[source] BoxError),
    /// The node was shut down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why something is not announced over gossipsub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// The node announces nothing of the kind.
    #[error(
        "this node does not announce that: set enable_pubsub_discovery = true and announce_content = true"
    )]
    Disabled,
    /// Others would not take it.
    #[error("not announced: {0}")]
    Refused(#[source] BoxError),
    /// The node was shut down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a message was not published on a topic.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The node has no gossipsub.
    #[error("this node has no gossipsub: set enable_pubsub_discovery = true")]
    Disabled,
    /// Not a topic for messages.
    #[error("{0:?} is no topic for messages: use 1 to 256 bytes, and none of the discovery's own")]
    Topic(String),
    /// No peer that is connected directly is subscribed to the topic.
    #[error(
        "nobody listens to this topic: connect to a peer that is subscribed to it, or wait for one"
    )]
    NobodyListens,
    /// Gossipsub would not carry it.
    #[error(
        "a message of {len} bytes is too large: at most {max}; publish the CID of something larger"
    )]
    TooLarge {
        /// Its length.
        len: usize,
        /// The longest one.
        max: usize,
    },
    /// What was to be published cannot be written as JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Gossipsub did not take it; if its queues are full, try again later.
    #[error("not published: {0}")]
    Refused(#[source] BoxError),
    /// The node was shut down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a topic could not be subscribed to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The node has no gossipsub.
    #[error("this node has no gossipsub: set enable_pubsub_discovery = true")]
    Disabled,
    /// Not a topic for messages.
    #[error("{0:?} is no topic for messages: use 1 to 256 bytes, and none of the discovery's own")]
    Topic(String),
    /// Other nodes would not accept more of one peer.
    #[error("this node is subscribed to 64 topics already: drop another subscription first")]
    TooMany,
    /// Gossipsub does not allow it.
    #[error("not subscribed: {0}")]
    Refused(#[source] BoxError),
    /// The node was shut down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Something is not the JSON that was expected, or cannot be written as JSON.
#[derive(Debug, thiserror::Error)]
#[error("JSON: {0}")]
pub struct JsonError(#[source] pub(crate) BoxError);

/// Why a block could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Nobody who can be reached has the block.
    #[error(
        "no provider of {cid} was found in {} s: check the CID, name a peer that has it, or try again later",
        waited.as_secs()
    )]
    NoProviders {
        /// The block.
        cid: Cid,
        /// How long nothing came.
        waited: Duration,
    },
    /// The only path is a relay that allows less than the transfer needs.
    #[error(
        "the relay allows {allowed} bytes and no direct path came up within {} s: use a relay without a limit, or open a port on one side",
        waited.as_secs()
    )]
    WaitingForDirect {
        /// Bytes left on the circuit.
        allowed: u64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The store failed to read.
    #[error("cannot read the local store: {0}")]
    Store(#[source] BoxError),
    /// The node was shut down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}
