//! What two nodes do about the NATs between them: a pure function of what they stand behind.
//!
//! Both sides compute it from the same two reports and come to mirrored plans. Measured for every
//! pair in a lab (UDP and TCP give the same table): with mappings that do not depend on the
//! destination on both sides everything can be punched; a mapping that does is punched from a side
//! whose filter looks at addresses alone, if the harder side is the client.

use std::num::NonZeroI16;

use super::nat::report::{Filtering, Mapping, NatReport, TransportNat};
use crate::{Role, Transport};

/// One end of a pair of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// This node.
    Us,
    /// The node at the other end.
    Peer,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::Us => Self::Peer,
            Self::Peer => Self::Us,
        }
    }
}

/// Who begins on the punched path: the QUIC client, or the side that is multistream's and the
/// handshake's dialer on TCP. The other one opens its NAT and accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Client {
    /// This node.
    Us,
    /// The node at the other end.
    Peer,
    /// One of the NATs is unknown, so that either may be the one that works: try both.
    Both,
}

impl From<Side> for Client {
    fn from(side: Side) -> Self {
        match side {
            Side::Us => Self::Us,
            Side::Peer => Self::Peer,
        }
    }
}

/// What two nodes do about one transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plan {
    /// The peer lets strangers in: dial it, no punch is needed.
    Direct,
    /// This node lets strangers in and the peer does not: the peer dials.
    Reversal,
    /// Both send at the same time.
    Punch {
        /// Who begins.
        client: Client,
    },
    /// As a punch, towards ports that follow those that `by` was last seen at.
    Predict {
        /// The side with the predictable NAT. It begins.
        by: Side,
        /// From one of its public ports to the next.
        step: NonZeroI16,
    },
    /// No punch gets through, but this side's gateway has mapped its port: the other one dials that.
    /// As soon as servers have confirmed it, the plan is a reversal or a direct dial.
    MapPort {
        /// The side whose port is mapped.
        by: Side,
    },
    /// No attempt is worth it.
    RelayOnly(NoPunch),
}

impl Plan {
    /// What to do about one transport, from what each side stands behind there. `role` is this
    /// node's part in the exchange and decides where nothing else does: the responder, who opened
    /// the relayed connection, is then the client, as in the
    /// [specification](https://github.com/libp2p/specs/blob/master/relay/DCUtR.md).
    #[must_use]
    pub fn new(role: Role, ours: &TransportNat, peers: &TransportNat) -> Self {
        if let Some(side) = first(ours.blocked, peers.blocked) {
            return Self::RelayOnly(NoPunch::Blocked(side));
        }
        match (ours.lets_strangers_in(), peers.lets_strangers_in()) {
            (true, true) if by_role(role) == Side::Us => return Self::Direct,
            (true, _) => return Self::Reversal,
            (false, true) => return Self::Direct,
            (false, false) => {}
        }
        let (our_mapping, peers_mapping) = (ours.effective_mapping(), peers.effective_mapping());
        let (Some(our_mapping), Some(peers_mapping)) = (our_mapping, peers_mapping) else {
            return Self::Punch {
                client: Client::Both,
            };
        };
        match (is_open(our_mapping), is_open(peers_mapping)) {
            (true, true) => {
                let client = harder(ours, peers).unwrap_or_else(|| by_role(role));
                Self::Punch {
                    client: client.into(),
                }
            }
            (false, true) => with_one_symmetric(Side::Us, ours, peers),
            (true, false) => with_one_symmetric(Side::Peer, peers, ours),
            (false, false) => match (ours.can_map_port, peers.can_map_port) {
                (true, true) => Self::MapPort { by: by_role(role) },
                (true, false) => Self::MapPort { by: Side::Us },
                (false, true) => Self::MapPort { by: Side::Peer },
                (false, false) => Self::RelayOnly(NoPunch::BothSymmetric),
            },
        }
    }

    /// Whether dialling is part of it: whether an exchange with the peer can lead to anything.
    #[must_use]
    pub fn is_attempt(self) -> bool {
        !matches!(self, Self::RelayOnly(_))
    }

    /// Whether a later attempt from a port that the NATs have not seen may do better: they can spoil a
    /// pair of ports, and the new one's public port can be told.
    pub(crate) fn gains_by_fresh_ports(self, ours: &TransportNat, peers: &TransportNat) -> bool {
        let may_be_told = |nat: &TransportNat| nat.effective_mapping().is_none_or(is_open);
        matches!(self, Self::Punch { .. }) && may_be_told(ours) && may_be_told(peers)
    }

    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Reversal => "reversal",
            Self::Punch { .. } => "punch",
            Self::Predict { .. } => "predict",
            Self::MapPort { .. } => "map_port",
            Self::RelayOnly(_) => "relay_only",
        }
    }
}

/// Why no punch is attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum NoPunch {
    /// Nothing of this transport passes at one side.
    #[error("{} blocks the transport", whose(.0))]
    Blocked(Side),
    /// Each side's NAT gives another port to every destination, so that none can be told.
    #[error("both NATs give every destination another port")]
    BothSymmetric,
    /// One side's NAT gives another port to every destination, and the other's lets in only ports
    /// that it knows.
    #[error("{} NAT gives every destination another port, and the other lets in only known ports", whose(.0))]
    SymmetricAndPortRestricted(Side),
}

impl NoPunch {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blocked(_) => "blocked",
            Self::BothSymmetric => "both_symmetric",
            Self::SymmetricAndPortRestricted(_) => "symmetric_and_port_restricted",
        }
    }
}

fn whose(side: &Side) -> &'static str {
    match side {
        Side::Us => "our",
        Side::Peer => "the peer's",
    }
}

/// What two nodes do about each transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plans {
    /// Over QUIC.
    pub quic: Plan,
    /// Over TCP.
    pub tcp: Plan,
}

impl Plans {
    /// See [`Plan::new`].
    #[must_use]
    pub fn new(role: Role, ours: &NatReport, peers: &NatReport) -> Self {
        Self {
            quic: Plan::new(role, &ours.udp, &peers.udp),
            tcp: Plan::new(role, &ours.tcp, &peers.tcp),
        }
    }

    /// The plan for a transport; those on top of TCP follow it, those on top of UDP follow QUIC.
    #[must_use]
    pub fn of(&self, transport: Transport) -> Plan {
        match transport {
            Transport::Quic | Transport::WebRtc => self.quic,
            Transport::Tcp | Transport::WebSocket | Transport::Other => self.tcp,
        }
    }

    /// Whether dialling over any transport is part of it.
    #[must_use]
    pub fn is_attempt(&self) -> bool {
        self.quic.is_attempt() || self.tcp.is_attempt()
    }

    /// Why no punch is attempted over any transport, if so: over the transport that passes.
    #[must_use]
    pub fn no_punch(&self) -> Option<NoPunch> {
        match (self.quic, self.tcp) {
            (Plan::RelayOnly(NoPunch::Blocked(_)), Plan::RelayOnly(why))
            | (Plan::RelayOnly(why), Plan::RelayOnly(_)) => Some(why),
            _ => None,
        }
    }
}

/// `side` has the symmetric NAT. Nobody can be told its port, so it begins, and the other's filter
/// decides.
fn with_one_symmetric(side: Side, symmetric: &TransportNat, other: &TransportNat) -> Plan {
    if other.effective_filtering() != Some(Filtering::AddressAndPortDependent) {
        return Plan::Punch {
            client: side.into(),
        };
    }
    if let Some(step) = symmetric.port_step {
        return Plan::Predict { by: side, step };
    }
    if other.can_map_port {
        Plan::MapPort {
            by: side.opposite(),
        }
    } else if symmetric.can_map_port {
        Plan::MapPort { by: side }
    } else {
        Plan::RelayOnly(NoPunch::SymmetricAndPortRestricted(side))
    }
}

fn is_open(mapping: Mapping) -> bool {
    mapping.is_endpoint_independent()
}

fn first(ours: bool, peers: bool) -> Option<Side> {
    match (ours, peers) {
        (true, _) => Some(Side::Us),
        (_, true) => Some(Side::Peer),
        _ => None,
    }
}

fn by_role(role: Role) -> Side {
    match role {
        Role::Initiator => Side::Peer,
        Role::Responder => Side::Us,
    }
}

/// The side whose filter lets in less; an unknown one counts as the hardest.
fn harder(ours: &TransportNat, peers: &TransportNat) -> Option<Side> {
    let hardness = |nat: &TransportNat| {
        let filtering = nat.effective_filtering();
        filtering.unwrap_or(Filtering::AddressAndPortDependent)
    };
    match hardness(ours).cmp(&hardness(peers)) {
        std::cmp::Ordering::Greater => Some(Side::Us),
        std::cmp::Ordering::Less => Some(Side::Peer),
        std::cmp::Ordering::Equal => None,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
