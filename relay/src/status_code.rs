use std::fmt;

/// Why a relay refused a reservation or a circuit: the specification's
/// [`Status`](https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#protobuf).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StatusCode {
    /// The relay does not want this peer as a guest (200).
    ReservationRefused,
    /// One of the relay's limits is reached; later may be better (201).
    ResourceLimitExceeded,
    /// The relay's access rules forbid it (202).
    PermissionDenied,
    /// The relay could not reach the destination (203).
    ConnectionFailed,
    /// The destination has no reservation at the relay (204).
    NoReservation,
    /// The request was not understood (400).
    MalformedMessage,
    /// The request came at the wrong moment (401).
    UnexpectedMessage,
}

impl StatusCode {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ReservationRefused => "reservation_refused",
            Self::ResourceLimitExceeded => "resource_limit_exceeded",
            Self::PermissionDenied => "permission_denied",
            Self::ConnectionFailed => "connection_failed",
            Self::NoReservation => "no_reservation",
            Self::MalformedMessage => "malformed_message",
            Self::UnexpectedMessage => "unexpected_message",
        }
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReservationRefused => "the relay refused the reservation",
            Self::ResourceLimitExceeded => "the relay has reached one of its limits",
            Self::PermissionDenied => "the relay's access rules forbid it",
            Self::ConnectionFailed => "the relay could not reach the destination",
            Self::NoReservation => "the destination has no reservation at the relay",
            Self::MalformedMessage => "the relay did not understand the request",
            Self::UnexpectedMessage => "the relay did not expect the request",
        })
    }
}
