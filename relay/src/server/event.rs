use std::{fmt, io, time::Duration};

use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

use crate::{ProtocolViolation, StatusCode};

/// What happened at this relay.
///
/// Every `ReservationAccepted` with `renewed: false` is followed by exactly one `ReservationClosed` for the same peer, and
/// every `CircuitAccepted` by one `CircuitClosed` for the same circuit, as long as the server lives: counting them gives the
/// true numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A peer may now be reached through this relay.
    ReservationAccepted {
        /// Who reserved.
        peer: PeerId,
        /// The connection that carries the reservation.
        connection: ConnectionId,
        /// Whether it prolongs a reservation of this peer: one that this connection carries, or one that moved here from
        /// another connection because there was no room for a second.
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
        /// The connection that carried it last.
        connection: ConnectionId,
        /// Why it ended.
        reason: CloseReason,
    },
    /// A circuit is open.
    CircuitAccepted {
        /// Its number, which no other circuit of this relay ever has.
        circuit: CircuitId,
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
        /// Which one.
        circuit: CircuitId,
        /// Who opened it.
        source: PeerId,
        /// Who was reached.
        destination: PeerId,
        /// What it carried.
        traffic: Traffic,
        /// How long it was open.
        duration: Duration,
        /// Why it ended.
        end: CircuitEnd,
    },
    /// Whether this node relays has changed, by [`set_status`](super::Behaviour::set_status), by its public addresses or by
    /// [`drain`](super::Behaviour::drain).
    StatusChanged {
        /// Whether it relays from now on.
        enabled: bool,
    },
    /// A peer sent what the protocol does not allow. It was told so, and its stream closed.
    ProtocolViolation {
        /// Who.
        peer: PeerId,
        /// What.
        violation: ProtocolViolation,
    },
    /// A peer asked so often that its connections were closed. New ones are refused for
    /// [`ban_duration`](super::ConfigBuilder::ban_duration).
    Banned {
        /// Who.
        peer: PeerId,
    },
    /// [`drain`](super::Behaviour::drain) is through: nothing is relayed any more and the node may stop.
    Drained {
        /// Circuits that the deadline cut.
        cut: usize,
    },
}

/// Why a reservation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer's last connection that could carry it closed.
    ConnectionClosed,
    /// The peer did not renew it in time.
    Expired,
    /// The relay was drained.
    Drained,
    /// The relay was switched off.
    Disabled,
}

impl CloseReason {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ConnectionClosed => "connection_closed",
            Self::Expired => "expired",
            Self::Drained => "drained",
            Self::Disabled => "disabled",
        }
    }
}

/// A circuit of one relay, for as long as the relay lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CircuitId(pub(crate) u64);

impl fmt::Display for CircuitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes that a circuit carried, without the messages that set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Traffic {
    /// From the peer that opened the circuit to the one that holds the reservation.
    pub to_destination: u64,
    /// The other way.
    pub to_source: u64,
}

impl Traffic {
    /// Both ways together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.to_destination.saturating_add(self.to_source)
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            to_destination: self.to_destination.saturating_add(other.to_destination),
            to_source: self.to_source.saturating_add(other.to_source),
        }
    }
}

/// Why a circuit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CircuitEnd {
    /// Both peers closed it.
    Completed,
    /// It carried as many bytes in one direction as it may, and there were more.
    ByteLimit,
    /// It was open for as long as it may be.
    TimeLimit,
    /// The stream to the peer that opened it broke.
    SourceLost(io::ErrorKind),
    /// The stream to the peer that holds the reservation broke.
    DestinationLost(io::ErrorKind),
    /// A connection below it closed.
    ConnectionClosed,
    /// The relay's deadline for [`drain`](super::Behaviour::drain) came.
    Drained,
}

impl CircuitEnd {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ByteLimit => "byte_limit",
            Self::TimeLimit => "time_limit",
            Self::SourceLost(_) => "source_lost",
            Self::DestinationLost(_) => "destination_lost",
            Self::ConnectionClosed => "connection_closed",
            Self::Drained => "drained",
        }
    }
}
