//! The messages of the hop and stop protocols, checked.
//!
//! [circuit-v2](https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md). Decoding accepts what the specification allows
//! and nothing else; no length that a peer declares allocates anything beyond the message itself, which the reader bounds by
//! [`MAX_BYTES`].

use std::time::Duration;

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use prost::{Message as _, bytes::Bytes};

use crate::{
    CircuitLimit, StatusCode,
    generated::circuit::{self as wire, hop_message, stop_message},
};

/// The longest message, without its length prefix. The specification names no figure; 4,096 bytes is what go-libp2p
/// (`maxMessageSize`) and rust-libp2p (`MAX_MESSAGE_SIZE`) read.
pub(crate) const MAX_BYTES: usize = 4096;

/// Bytes that a response keeps free of addresses: type, status, limit, expiry and field headers take under 48, and a peer's
/// stack may add a field of its own.
const RESPONSE_HEADROOM: usize = 96;

/// A request to a relay. <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#hop-protocol>
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HopRequest {
    /// "a peer […] sends a `HopMessage` with `type = RESERVE`" (§ Reservation).
    Reserve,
    /// "the initiator opens a connection and sends a `HopMessage` of `type = CONNECT`" (§ Connection Initiation).
    Connect {
        /// "the peer `ID` of the target peer". Its addresses, for active relays only, are ignored.
        destination: PeerId,
    },
}

/// A relay's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HopResponse {
    /// `status = OK`.
    Accepted {
        /// Present in the answer to `RESERVE`.
        reservation: Option<Reservation>,
        /// "When omitted, it indicates that the relay does not apply any limits."
        limit: Option<CircuitLimit>,
    },
    /// "a value other than `OK`".
    Refused(StatusCode),
}

/// What a relay grants with `RESERVE`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reservation {
    /// "the expiration time as a UTC UNIX time", in seconds; `None` if the relay does not say.
    pub(crate) expires: Option<u64>,
    /// "all the public relay addrs, including the peer ID of the relay node but not the trailing `p2p-circuit` part".
    pub(crate) addresses: Vec<Multiaddr>,
    /// "the binary representation of the reservation voucher": [`Voucher`](crate::Voucher).
    pub(crate) voucher: Option<Bytes>,
}

/// A relay's request to the destination. <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#stop-protocol>
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopRequest {
    /// "the peer `ID` of the connection initiator".
    pub(crate) source: PeerId,
    /// "the limits applied to the relayed connection".
    pub(crate) limit: Option<CircuitLimit>,
}

/// The destination's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopResponse {
    /// `status = OK`.
    Accepted,
    /// "the `status` code set to something other than `OK`".
    Refused(StatusCode),
}

/// A message that the specification does not allow: the peer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolViolation {
    /// The length prefix declares more than 4,096 bytes, or is no varint.
    #[error("a message longer than 4096 bytes")]
    TooLong,
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Truncated,
    /// The bytes are no protobuf of the expected shape.
    #[error("bytes that are no message")]
    Undecodable,
    /// The message has no type, or one that the specification does not know.
    #[error("a message of an unknown type")]
    UnknownType,
    /// The type is known and has no place here: a status as a request, a request as an answer.
    #[error("a message of a type that has no place here")]
    UnexpectedType,
    /// `CONNECT` without a peer, or with bytes that are no peer id.
    #[error("no valid peer id")]
    NoPeer,
    /// `STATUS` without a status, or with a code that the specification does not know.
    #[error("no known status")]
    UnknownStatus,
}

impl ProtocolViolation {
    /// What the peer is told.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::UnexpectedType => StatusCode::UnexpectedMessage,
            _ => StatusCode::MalformedMessage,
        }
    }
}

impl HopRequest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, peer) = match self {
            Self::Reserve => (hop_message::Type::Reserve, None),
            Self::Connect { destination } => {
                (hop_message::Type::Connect, Some(wire_peer(*destination)))
            }
        };
        wire::HopMessage {
            r#type: Some(kind.into()),
            peer,
            ..Default::default()
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProtocolViolation> {
        let message = hop_message(bytes)?;
        match hop_type(&message)? {
            hop_message::Type::Reserve => Ok(Self::Reserve),
            hop_message::Type::Connect => Ok(Self::Connect {
                destination: peer(message.peer)?,
            }),
            hop_message::Type::Status => Err(ProtocolViolation::UnexpectedType),
        }
    }
}

impl HopResponse {
    /// At most [`MAX_BYTES`]: addresses that do not fit are left out, the last ones first.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let status = wire::HopMessage {
            r#type: Some(hop_message::Type::Status.into()),
            ..Default::default()
        };
        match self {
            Self::Refused(code) => wire::HopMessage {
                status: Some(status_to_wire(*code).into()),
                ..status
            },
            Self::Accepted { reservation, limit } => wire::HopMessage {
                reservation: reservation.as_ref().map(wire_reservation),
                limit: limit.map(wire_limit),
                status: Some(wire::Status::Ok.into()),
                ..status
            },
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProtocolViolation> {
        let message = hop_message(bytes)?;
        if hop_type(&message)? != hop_message::Type::Status {
            return Err(ProtocolViolation::UnexpectedType);
        }
        Ok(match status_from_wire(message.status)? {
            Some(refusal) => Self::Refused(refusal),
            None => Self::Accepted {
                reservation: message.reservation.map(reservation_from_wire),
                limit: limit_from_wire(message.limit),
            },
        })
    }
}

impl StopRequest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        wire::StopMessage {
            r#type: Some(stop_message::Type::Connect.into()),
            peer: Some(wire_peer(self.source)),
            limit: self.limit.map(wire_limit),
            status: None,
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProtocolViolation> {
        let message = stop_message(bytes)?;
        match stop_type(&message)? {
            stop_message::Type::Connect => Ok(Self {
                source: peer(message.peer)?,
                limit: limit_from_wire(message.limit),
            }),
            stop_message::Type::Status => Err(ProtocolViolation::UnexpectedType),
        }
    }
}

impl StopResponse {
    pub(crate) fn encode(self) -> Vec<u8> {
        let status = match self {
            Self::Accepted => wire::Status::Ok,
            Self::Refused(code) => status_to_wire(code),
        };
        wire::StopMessage {
            r#type: Some(stop_message::Type::Status.into()),
            status: Some(status.into()),
            ..Default::default()
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProtocolViolation> {
        let message = stop_message(bytes)?;
        if stop_type(&message)? != stop_message::Type::Status {
            return Err(ProtocolViolation::UnexpectedType);
        }
        Ok(status_from_wire(message.status)?.map_or(Self::Accepted, Self::Refused))
    }
}

fn hop_message(bytes: &[u8]) -> Result<wire::HopMessage, ProtocolViolation> {
    bounded(bytes)?;
    wire::HopMessage::decode(bytes).map_err(|_| ProtocolViolation::Undecodable)
}

fn stop_message(bytes: &[u8]) -> Result<wire::StopMessage, ProtocolViolation> {
    bounded(bytes)?;
    wire::StopMessage::decode(bytes).map_err(|_| ProtocolViolation::Undecodable)
}

fn bounded(bytes: &[u8]) -> Result<(), ProtocolViolation> {
    if bytes.len() > MAX_BYTES {
        return Err(ProtocolViolation::TooLong);
    }
    Ok(())
}

fn hop_type(message: &wire::HopMessage) -> Result<hop_message::Type, ProtocolViolation> {
    let kind = message.r#type.ok_or(ProtocolViolation::UnknownType)?;
    hop_message::Type::try_from(kind).map_err(|_| ProtocolViolation::UnknownType)
}

fn stop_type(message: &wire::StopMessage) -> Result<stop_message::Type, ProtocolViolation> {
    let kind = message.r#type.ok_or(ProtocolViolation::UnknownType)?;
    stop_message::Type::try_from(kind).map_err(|_| ProtocolViolation::UnknownType)
}

fn peer(peer: Option<wire::Peer>) -> Result<PeerId, ProtocolViolation> {
    let id = peer
        .and_then(|peer| peer.id)
        .ok_or(ProtocolViolation::NoPeer)?;
    PeerId::from_bytes(&id).map_err(|_| ProtocolViolation::NoPeer)
}

fn wire_peer(peer: PeerId) -> wire::Peer {
    wire::Peer {
        id: Some(peer.to_bytes().into()),
        addrs: Vec::new(),
    }
}

fn wire_limit(limit: CircuitLimit) -> wire::Limit {
    wire::Limit {
        // Whole seconds; a limit that is none is left out, as "if 0, there is no limit applied".
        duration: limit
            .duration
            .map(|duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)),
        data: limit.bytes,
    }
}

fn limit_from_wire(limit: Option<wire::Limit>) -> Option<CircuitLimit> {
    let limit = limit?;
    let duration = limit
        .duration
        .map(|seconds| Duration::from_secs(seconds.into()));
    CircuitLimit::announced(duration, limit.data)
}

fn wire_reservation(reservation: &Reservation) -> wire::Reservation {
    let voucher = reservation.voucher.clone();
    let mut room = MAX_BYTES
        .saturating_sub(RESPONSE_HEADROOM)
        .saturating_sub(voucher.as_ref().map_or(0, Bytes::len));
    let addresses = reservation.addresses.iter().map(|address| address.to_vec());
    let fitting = addresses.take_while(|address| {
        // A tag and up to two bytes of length.
        let size = address.len() + 3;
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    });
    wire::Reservation {
        expire: reservation.expires,
        addrs: fitting.map(Bytes::from).collect(),
        voucher,
    }
}

fn reservation_from_wire(reservation: wire::Reservation) -> Reservation {
    let addresses = reservation
        .addrs
        .into_iter()
        // An address of a kind that we do not know says nothing about the others.
        .filter_map(|address| Multiaddr::try_from(address.to_vec()).ok())
        .filter(|address| !address.is_empty());
    Reservation {
        expires: reservation.expire,
        addresses: addresses.collect(),
        voucher: reservation.voucher,
    }
}

fn status_to_wire(code: StatusCode) -> wire::Status {
    match code {
        StatusCode::ReservationRefused => wire::Status::ReservationRefused,
        StatusCode::ResourceLimitExceeded => wire::Status::ResourceLimitExceeded,
        StatusCode::PermissionDenied => wire::Status::PermissionDenied,
        StatusCode::ConnectionFailed => wire::Status::ConnectionFailed,
        StatusCode::NoReservation => wire::Status::NoReservation,
        StatusCode::MalformedMessage => wire::Status::MalformedMessage,
        StatusCode::UnexpectedMessage => wire::Status::UnexpectedMessage,
    }
}

/// `None` is `OK`.
fn status_from_wire(status: Option<i32>) -> Result<Option<StatusCode>, ProtocolViolation> {
    let status = status.ok_or(ProtocolViolation::UnknownStatus)?;
    let status = wire::Status::try_from(status).map_err(|_| ProtocolViolation::UnknownStatus)?;
    Ok(Some(match status {
        wire::Status::Ok => return Ok(None),
        wire::Status::ReservationRefused => StatusCode::ReservationRefused,
        wire::Status::ResourceLimitExceeded => StatusCode::ResourceLimitExceeded,
        wire::Status::PermissionDenied => StatusCode::PermissionDenied,
        wire::Status::ConnectionFailed => StatusCode::ConnectionFailed,
        wire::Status::NoReservation => StatusCode::NoReservation,
        wire::Status::MalformedMessage => StatusCode::MalformedMessage,
        wire::Status::UnexpectedMessage => StatusCode::UnexpectedMessage,
    }))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
