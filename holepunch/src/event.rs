use std::time::Duration;

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

#[cfg(feature = "portmap")]
use crate::PortMapping;
use crate::{NatReport, NatStatus, NatType, NoPunch, Transport};

/// What happened between this node and the NATs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A relayed connection to a peer without a direct one is up, and both sides now try to
    /// replace it. Exactly one [`Event::Outcome`] with the same `relayed` follows.
    PunchStarted {
        /// Who is at the other end.
        peer: PeerId,
        /// The relayed connection.
        relayed: ConnectionId,
        /// This node's part.
        role: Role,
    },
    /// The attempt is over.
    Outcome(Outcome),
    /// A peer that was asked for a sign of life gave none for a quarter of its time. If it is this node that nobody hears, others will not
    /// answer either: doubt those that are needed most, relays for example, so that not one is waited for after the other.
    AnswerLate {
        /// Who is at the other end.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
    },
    /// A peer gives no sign of life on a connection any more, within [`Config::liveness_timeout`](crate::Config::liveness_timeout). It is being closed,
    /// which may take its transport some time; dial the peer now, if it is needed. If it was the last direct one and a
    /// relayed one is up, a punch begins on that.
    ConnectionLost {
        /// Who was at the other end.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
    },
    /// Whether other nodes can reach this one without help is known, or no longer known.
    NatStatusChanged {
        /// Before.
        old: NatStatus,
        /// From now on.
        new: NatStatus,
    },
    /// What is known of this node's NATs has changed.
    Reachability {
        /// Before.
        old: NatReport,
        /// From now on.
        new: NatReport,
    },
    /// The gateway maps a port. The address is confirmed once AutoNAT servers got through.
    #[cfg(feature = "portmap")]
    PortMapped(PortMapping),
    /// It no longer does, or no longer says so.
    #[cfg(feature = "portmap")]
    PortMappingLost(PortMapping),
}

/// How one attempt to replace a relayed connection ended. Both sides get one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Who is at the other end.
    pub peer: PeerId,
    /// The relayed connection that the attempt was for. It is not closed by this crate.
    pub relayed: Option<ConnectionId>,
    /// This node's part.
    pub role: Role,
    /// The first direct connection to the peer, however it came about, or why there is none.
    pub result: Result<ConnectionId, PunchError>,
    /// The transport of the direct connection.
    pub transport: Option<Transport>,
    /// From the relayed connection to the result.
    pub elapsed: Duration,
    /// Attempts begun. 0 if the direct connection came before the first.
    pub attempts: u8,
    /// Of the relayed path, as this node measured it in the last exchange that it opened.
    pub round_trip: Option<Duration>,
    /// The peer's addresses that this node dialled.
    pub tried: Vec<Multiaddr>,
    /// Why the peer ended the punch, if it said so.
    pub peer_failure: Option<PunchError>,
    /// Why no attempt was worth it, with [`PunchError::Impossible`].
    pub no_punch: Option<NoPunch>,
    /// What this node stood behind, as far as it knew.
    pub our_nat: NatType,
    /// What the peer stands behind, as far as it told.
    pub peer_nat: NatType,
}

/// Which side of the DCUtR exchange a node is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Accepted the relayed connection and opens the exchange, as the
    /// [specification](https://github.com/libp2p/specs/blob/master/relay/DCUtR.md) has it.
    Initiator,
    /// Opened the relayed connection and answers.
    Responder,
}

impl Role {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
        }
    }
}

/// Why a relayed connection was not replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum PunchError {
    /// The exchange worked, but no dial got through. Often one side's NAT gives every
    /// destination another port.
    #[error("no direct dial got through")]
    DialsFailed,
    /// The peers could not agree on an attempt: the stream failed, the peer does not speak DCUtR,
    /// or one side knew no address of its own.
    #[error("the exchange with the peer failed")]
    ExchangeFailed,
    /// Nothing happened in time. A peer that is not one of ours has no message for telling why.
    #[error("no direct connection in time")]
    TimedOut,
    /// The relayed connection closed first.
    #[error("the relayed connection closed before a direct one was up")]
    RelayedConnectionClosed,
    /// One side has too many punches under way.
    #[error("too many punches at the same time")]
    Busy,
    /// Neither side had an address for the other to dial.
    #[error("no address to dial")]
    NoAddresses,
    /// What both sides stand behind leaves only a relay; nothing was dialled.
    #[error("no punch gets through these two NATs")]
    Impossible,
}

impl PunchError {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::DialsFailed => "dials_failed",
            Self::ExchangeFailed => "exchange_failed",
            Self::TimedOut => "timed_out",
            Self::RelayedConnectionClosed => "relayed_connection_closed",
            Self::Busy => "busy",
            Self::NoAddresses => "no_addresses",
            Self::Impossible => "impossible",
        }
    }
}
