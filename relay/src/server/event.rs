use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

use super::Status;
use crate::StatusCode;

/// What happened at this relay.
///
/// Every `ReservationAccepted` with `renewed: false` is followed by exactly one
/// `ReservationClosed` for the same connection, and every `CircuitAccepted` by one
/// `CircuitClosed`, as long as the server lives: counting them gives the true numbers. (The stock
/// behaviour reports a closed reservation for every connection that closes, and some circuits
/// twice.)
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A peer may now be reached through this relay.
    ReservationAccepted {
        /// Who reserved.
        peer: PeerId,
        /// The connection that carries the reservation.
        connection: ConnectionId,
        /// Whether it prolongs a reservation that this connection holds already.
        renewed: bool,
    },
    /// A reservation was refused.
    ReservationDenied {
        /// Who asked.
        peer: PeerId,
        /// What the peer was told.
        status: StatusCode,
    },
    /// A reservation ended.
    ReservationClosed {
        /// Who held it.
        peer: PeerId,
        /// The connection that carried it.
        connection: ConnectionId,
        /// Why it ended.
        reason: CloseReason,
    },
    /// A circuit is open.
    CircuitAccepted {
        /// Who opened it.
        source: PeerId,
        /// Who holds the reservation.
        destination: PeerId,
    },
    /// A circuit was refused.
    CircuitDenied {
        /// Who asked.
        source: PeerId,
        /// Whom the source wanted to reach.
        destination: PeerId,
        /// What the source was told.
        status: StatusCode,
    },
    /// A circuit ended.
    CircuitClosed {
        /// Who opened it.
        source: PeerId,
        /// Who was reached.
        destination: PeerId,
        /// `None` after an orderly end; otherwise the kind of failure, with
        /// [`TimedOut`](std::io::ErrorKind::TimedOut) for a circuit that outlived
        /// `max_circuit_duration` and [`Other`](std::io::ErrorKind::Other) for one that used up
        /// `max_circuit_bytes`.
        error: Option<std::io::ErrorKind>,
    },
    /// [`set_status`](super::Behaviour::set_status) changed whether this node relays.
    StatusChanged {
        /// The status from now on.
        status: Status,
    },
}

/// Why a reservation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The connection that carried it closed.
    ConnectionClosed,
    /// The peer did not renew it in time.
    Expired,
}
