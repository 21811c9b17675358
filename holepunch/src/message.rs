//! The messages of DCUtR, checked.
//!
//! [DCUtR](https://github.com/libp2p/specs/blob/master/relay/DCUtR.md). No length that a peer declares allocates anything
//! beyond the message itself, which the reader bounds by [`MAX_BYTES`]; of its addresses at most [`MAX_ADDRESSES`] are looked at.

use std::num::NonZeroI16;

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use prost::{Message as _, bytes::Bytes};

use crate::{
    PunchError,
    core::nat::report::{Filtering, Mapping, NatReport, NatType, TransportNat},
    generated::punch::{self as wire, hole_punch, nat},
};

/// The longest message, without its length prefix: "Implementations SHOULD limit the size of messages" to 4 KiB, which
/// go-libp2p (`maxMsgSize`) and rust-libp2p (`MAX_MESSAGE_SIZE_BYTES`) do.
pub(crate) const MAX_BYTES: usize = 4096;

/// Addresses of one message that are looked at. A message of [`MAX_BYTES`] could name 500.
const MAX_ADDRESSES: usize = 64;

/// Bytes of a message that addresses leave free, for the type and for what else Anypath says.
const HEADROOM: usize = 64;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Connect,
    Sync,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub(crate) kind: Kind,
    /// "observed (and possibly predicted) addresses", best first, never relayed ones.
    pub(crate) addresses: Vec<Multiaddr>,
    /// What an Anypath node adds. `None` from every other.
    pub(crate) extras: Option<Extras>,
}

/// What only Anypath nodes tell each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Extras {
    /// 1 for the first.
    pub(crate) attempt: u8,
    /// What the sender stands behind.
    pub(crate) nat: NatReport,
    /// Addresses in the sender's own network.
    pub(crate) local: Vec<Multiaddr>,
    /// Why the sender ends the punch.
    pub(crate) failure: Option<PunchError>,
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
    /// `SYNC` where `CONNECT` belongs, or the other way round.
    #[error("a message of a type that has no place here")]
    UnexpectedType,
}

impl Message {
    /// At most [`MAX_BYTES`]: addresses that do not fit are left out, the last ones first.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut room = MAX_BYTES - HEADROOM;
        let mut fitting = |addresses: &[Multiaddr]| -> Vec<Bytes> {
            let bytes = addresses.iter().map(Multiaddr::to_vec);
            bytes
                .take_while(|address| {
                    // A tag and up to two bytes of length.
                    let size = address.len() + 3;
                    let fits = size <= room;
                    room = room.saturating_sub(size);
                    fits
                })
                .map(Bytes::from)
                .collect()
        };
        let obs_addrs = fitting(&self.addresses);
        let anypath = self.extras.as_ref().map(|extras| wire::Anypath {
            attempt: Some(extras.attempt.into()),
            udp: nat_to_wire(&extras.nat.udp),
            tcp: nat_to_wire(&extras.nat.tcp),
            local_addrs: fitting(&extras.local),
            failure: extras
                .failure
                .map(|failure| failure_to_wire(failure).into()),
        });
        wire::HolePunch {
            r#type: Some(match self.kind {
                Kind::Connect => hole_punch::Type::Connect.into(),
                Kind::Sync => hole_punch::Type::Sync.into(),
            }),
            obs_addrs,
            anypath,
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProtocolViolation> {
        if bytes.len() > MAX_BYTES {
            return Err(ProtocolViolation::TooLong);
        }
        let message = wire::HolePunch::decode(bytes).map_err(|_| ProtocolViolation::Undecodable)?;
        let kind = match message.r#type.map(hole_punch::Type::try_from) {
            Some(Ok(hole_punch::Type::Connect)) => Kind::Connect,
            Some(Ok(hole_punch::Type::Sync)) => Kind::Sync,
            Some(Err(_)) | None => return Err(ProtocolViolation::UnknownType),
        };
        Ok(Self {
            kind,
            addresses: addresses(&message.obs_addrs),
            extras: message.anypath.map(|anypath| Extras {
                attempt: anypath
                    .attempt
                    .map_or(1, |attempt| u8::try_from(attempt).unwrap_or(u8::MAX)),
                nat: NatReport {
                    udp: nat_from_wire(anypath.udp),
                    tcp: nat_from_wire(anypath.tcp),
                    ..NatReport::default()
                },
                local: addresses(&anypath.local_addrs),
                failure: anypath.failure.map(failure_from_wire),
            }),
        })
    }

    /// Why the sender ends the punch, if it does.
    pub(crate) fn failure(&self) -> Option<PunchError> {
        self.extras.as_ref().and_then(|extras| extras.failure)
    }

    /// Which attempt the message belongs to; 1 where the peer does not say.
    pub(crate) fn attempt(&self) -> u8 {
        self.extras.as_ref().map_or(1, |extras| extras.attempt)
    }
}

/// An address of a kind that we do not know says nothing about the others. "Relayed addresses" are of no use.
fn addresses(wire: &[Bytes]) -> Vec<Multiaddr> {
    wire.iter()
        .take(MAX_ADDRESSES)
        .filter_map(|bytes| Multiaddr::try_from(bytes.to_vec()).ok())
        .filter(|address| !address.is_empty())
        .filter(|address| !address.iter().any(|part| part == Protocol::P2pCircuit))
        .collect()
}

/// `None` where nothing is known.
fn nat_to_wire(nat: &TransportNat) -> Option<wire::Nat> {
    if *nat == TransportNat::default() {
        return None;
    }
    let flag = |flag: bool| flag.then_some(true);
    Some(wire::Nat {
        r#type: Some(
            match nat.nat_type {
                NatType::Unknown => nat::Type::Unknown,
                NatType::Public => nat::Type::Public,
                NatType::FullCone => nat::Type::FullCone,
                NatType::RestrictedCone => nat::Type::RestrictedCone,
                NatType::PortRestrictedCone => nat::Type::PortRestrictedCone,
                NatType::Symmetric => nat::Type::Symmetric,
            }
            .into(),
        ),
        mapping: nat.mapping.map(|mapping| {
            match mapping {
                Mapping::EndpointIndependent => nat::Dependence::EndpointIndependent,
                Mapping::AddressDependent => nat::Dependence::AddressDependent,
                Mapping::AddressAndPortDependent => nat::Dependence::AddressAndPortDependent,
            }
            .into()
        }),
        filtering: nat.filtering.map(|filtering| {
            match filtering {
                Filtering::EndpointIndependent => nat::Dependence::EndpointIndependent,
                Filtering::AddressDependent => nat::Dependence::AddressDependent,
                Filtering::AddressAndPortDependent => nat::Dependence::AddressAndPortDependent,
            }
            .into()
        }),
        port_step: nat.port_step.map(|step| step.get().into()),
        blocked: flag(nat.blocked),
        confirmed: flag(nat.confirmed),
        can_map_port: flag(nat.can_map_port),
    })
}

fn nat_from_wire(wire: Option<wire::Nat>) -> TransportNat {
    let Some(wire) = wire else {
        return TransportNat::default();
    };
    let dependence = |value: Option<i32>| value.and_then(|v| nat::Dependence::try_from(v).ok());
    TransportNat {
        nat_type: match wire.r#type.and_then(|v| nat::Type::try_from(v).ok()) {
            Some(nat::Type::Public) => NatType::Public,
            Some(nat::Type::FullCone) => NatType::FullCone,
            Some(nat::Type::RestrictedCone) => NatType::RestrictedCone,
            Some(nat::Type::PortRestrictedCone) => NatType::PortRestrictedCone,
            Some(nat::Type::Symmetric) => NatType::Symmetric,
            Some(nat::Type::Unknown) | None => NatType::Unknown,
        },
        mapping: match dependence(wire.mapping) {
            Some(nat::Dependence::EndpointIndependent) => Some(Mapping::EndpointIndependent),
            Some(nat::Dependence::AddressDependent) => Some(Mapping::AddressDependent),
            Some(nat::Dependence::AddressAndPortDependent) => {
                Some(Mapping::AddressAndPortDependent)
            }
            Some(nat::Dependence::NotKnown) | None => None,
        },
        filtering: match dependence(wire.filtering) {
            Some(nat::Dependence::EndpointIndependent) => Some(Filtering::EndpointIndependent),
            Some(nat::Dependence::AddressDependent) => Some(Filtering::AddressDependent),
            Some(nat::Dependence::AddressAndPortDependent) => {
                Some(Filtering::AddressAndPortDependent)
            }
            Some(nat::Dependence::NotKnown) | None => None,
        },
        port_step: wire
            .port_step
            .and_then(|step| i16::try_from(step).ok())
            .and_then(NonZeroI16::new),
        blocked: wire.blocked(),
        confirmed: wire.confirmed(),
        can_map_port: wire.can_map_port(),
        ..TransportNat::default()
    }
}

fn failure_to_wire(failure: PunchError) -> wire::Failure {
    match failure {
        PunchError::DialsFailed => wire::Failure::DialsFailed,
        PunchError::ExchangeFailed => wire::Failure::ExchangeFailed,
        PunchError::TimedOut => wire::Failure::TimedOut,
        PunchError::Busy => wire::Failure::Busy,
        PunchError::NoAddresses => wire::Failure::NoAddresses,
        PunchError::Impossible => wire::Failure::Impossible,
        PunchError::RelayedConnectionClosed => wire::Failure::Other,
    }
}

fn failure_from_wire(failure: i32) -> PunchError {
    match wire::Failure::try_from(failure) {
        Ok(wire::Failure::DialsFailed) => PunchError::DialsFailed,
        Ok(wire::Failure::TimedOut) => PunchError::TimedOut,
        Ok(wire::Failure::Busy) => PunchError::Busy,
        Ok(wire::Failure::NoAddresses) => PunchError::NoAddresses,
        Ok(wire::Failure::Impossible) => PunchError::Impossible,
        Ok(wire::Failure::ExchangeFailed | wire::Failure::Other) | Err(_) => {
            PunchError::ExchangeFailed
        }
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
