use std::time::Duration;

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use crate::{CircuitLimit, StatusCode};

/// What happened to reservations and circuits of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// This node can be reached at `address` from now on.
    Reserved {
        /// Who relays.
        relay: PeerId,
        /// Where other peers reach this node: `…/p2p/<relay>/p2p-circuit/p2p/<this node>`.
        address: Multiaddr,
        /// Whether it prolongs a reservation that was held already.
        renewal: bool,
        /// What the relay allows each circuit to carry; `None`: unlimited.
        limit: Option<CircuitLimit>,
    },
    /// This node can no longer be reached through `relay`. It is asked again, or replaced,
    /// without further ado. The address is taken back some seconds later, unless the reservation
    /// is made again before.
    Lost {
        /// Who relayed.
        relay: PeerId,
        /// Why.
        why: LossReason,
    },
    /// A relay was asked and did not give a reservation. It is asked again after its backoff.
    Failed {
        /// Who was asked.
        relay: PeerId,
        /// Why.
        why: LossReason,
    },
    /// Fewer reservations than wanted are held or on their way, and no known candidate is left
    /// to ask: answer with [`add_candidate`](super::Behaviour::add_candidate). Repeated every
    /// `candidates_interval` while it stays so.
    CandidatesWanted {
        /// How many reservations are missing.
        missing: usize,
    },
    /// Another number of reservations is held.
    Status {
        /// Reservations held: while there is one, others reach this node.
        held: usize,
        /// Reservations wanted, see [`Config`](super::Config).
        target: usize,
    },
    /// A relayed connection is up, in either direction. Comes once for each, right after the
    /// swarm's `ConnectionEstablished`.
    Circuit {
        /// The relayed connection.
        connection: ConnectionId,
        /// Who is at its other end.
        peer: PeerId,
        /// Who relays.
        relay: PeerId,
        /// What the relay allows it to carry; `None`: unlimited. Where the relay's announcement
        /// could not be matched to the connection, this is [`CircuitLimit::REFERENCE`].
        limit: Option<CircuitLimit>,
    },
}

/// Why there is no reservation at a relay (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LossReason {
    /// The relay could not be dialled.
    #[error("the relay could not be reached")]
    Unreachable,
    /// The connection to the relay closed.
    #[error("the connection to the relay closed")]
    ConnectionClosed,
    /// The relay said no.
    #[error("{0}")]
    Refused(StatusCode),
    /// The peer is no relay, or its relay is switched off.
    #[error("the peer does not relay")]
    Unsupported,
    /// The relay's answer is none that the specification allows: too long, cut short, or with a status that it does not know.
    #[error("the relay violated the protocol")]
    ProtocolViolation,
    /// The stream to the relay failed or timed out.
    #[error("the stream to the relay failed")]
    Stream,
    /// The relay did not answer pings any more.
    #[error("the relay fell silent")]
    Silent,
    /// This node's network changed, and the relay did not answer over the old connection.
    #[error("this node's network changed")]
    NetworkChanged,
    /// The reservation ended before it could be renewed.
    #[error("the reservation expired")]
    Expired,
    /// It is not needed any more: this node is publicly reachable, or has better relays.
    #[error("the reservation is not needed any more")]
    Released,
}

impl LossReason {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::ConnectionClosed => "connection_closed",
            Self::Refused(status) => status.as_str(),
            Self::Unsupported => "unsupported",
            Self::ProtocolViolation => "protocol_violation",
            Self::Stream => "stream",
            Self::Silent => "silent",
            Self::NetworkChanged => "network_changed",
            Self::Expired => "expired",
            Self::Released => "released",
        }
    }
}

/// A reservation that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reservation {
    /// Who relays.
    pub relay: PeerId,
    /// Where other peers reach this node through it.
    pub address: Multiaddr,
    /// Whether the relay was named with [`add_relay`](super::Behaviour::add_relay).
    pub configured: bool,
    /// What the relay allows each circuit to carry; `None`: unlimited.
    pub limit: Option<CircuitLimit>,
    /// Since when it is held without a gap.
    pub since: Instant,
    /// When it ends, unless it is renewed before.
    pub expires: Instant,
    /// The round trip to the relay, smoothed; `None` before the first ping.
    pub rtt: Option<Duration>,
}
