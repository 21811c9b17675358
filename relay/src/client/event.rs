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
    ReservationAccepted {
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
    /// without further ado.
    ReservationLost {
        /// Who relayed.
        relay: PeerId,
        /// Why.
        reason: LossReason,
    },
    /// A relay was asked and did not give a reservation. It is asked again after its backoff.
    ReservationFailed {
        /// Who was asked.
        relay: PeerId,
        /// Why.
        reason: LossReason,
    },
    /// Fewer reservations than wanted are held or on their way, and no known candidate is left
    /// to ask: answer with [`add_candidate`](super::Behaviour::add_candidate). Repeated every
    /// `candidates_interval` while it stays so.
    CandidatesWanted {
        /// How many reservations are missing.
        missing: usize,
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
    /// The relay broke the protocol, for example by naming no address of its own.
    #[error("the relay violated the protocol")]
    ProtocolViolation,
    /// The stream to the relay failed or timed out.
    #[error("the stream to the relay failed")]
    Stream,
    /// The connection is fine, but the reservation on it was given up. libp2p-relay 0.22 does
    /// that when a circuit that this node opened through the same relay times out.
    #[error("the reservation was dropped")]
    Dropped,
    /// The transport does not take the relay's address.
    #[error("the relay's address cannot be listened on")]
    AddressNotSupported,
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
}
