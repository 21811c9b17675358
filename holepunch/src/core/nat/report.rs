//! The words for what a NAT does: RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5780, and the older names
//! that people know.

use std::{fmt, num::NonZeroI16};

/// Which flows of one local port share a public port
/// ([RFC 4787 §4.1](https://www.rfc-editor.org/rfc/rfc4787#section-4.1)). The later, the harder to
/// punch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mapping {
    /// All: what one peer sees, every peer can use. Also where nothing is translated.
    EndpointIndependent,
    /// Those to one address.
    AddressDependent,
    /// Each has its own. Assumed of a mapping that depends on its destination while nothing tells
    /// on what of it.
    AddressAndPortDependent,
}

impl Mapping {
    /// Whether peers can tell each other the public port.
    #[must_use]
    pub fn is_endpoint_independent(self) -> bool {
        self == Self::EndpointIndependent
    }
}

/// Who may send to a public port
/// ([RFC 4787 §5](https://www.rfc-editor.org/rfc/rfc4787#section-5)). The later, the harder to punch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// Whoever has the address of somebody it was sent to.
    AddressDependent,
    /// Only the very address and port that it was sent to.
    AddressAndPortDependent,
}

/// What stands in the way of one transport, by the names of RFC 3489. The later, the harder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum NatType {
    /// Too little is known to tell.
    #[default]
    Unknown,
    /// Nothing: no address is translated, and strangers are let in.
    Public,
    /// One public port for all destinations, open to everybody.
    FullCone,
    /// One public port for all destinations, open to addresses that were sent to. Also a firewall
    /// that does so without translating.
    RestrictedCone,
    /// One public port for all destinations, open to addresses and ports that were sent to. Also a
    /// firewall that does so without translating.
    PortRestrictedCone,
    /// Another public port for every destination.
    Symmetric,
}

impl NatType {
    /// The type of a transport with this mapping and filtering; `translated` where the public
    /// address is not the host's own.
    #[must_use]
    pub fn new(mapping: Option<Mapping>, filtering: Option<Filtering>, translated: bool) -> Self {
        match (mapping, filtering) {
            (Some(Mapping::AddressDependent | Mapping::AddressAndPortDependent), _) => {
                Self::Symmetric
            }
            (None, _) | (_, None) => Self::Unknown,
            (Some(_), Some(Filtering::EndpointIndependent)) if translated => Self::FullCone,
            (Some(_), Some(Filtering::EndpointIndependent)) => Self::Public,
            (Some(_), Some(Filtering::AddressDependent)) => Self::RestrictedCone,
            (Some(_), Some(Filtering::AddressAndPortDependent)) => Self::PortRestrictedCone,
        }
    }

    /// Whether bytes must be expected to go over a relay: behind a symmetric NAT, and while nothing
    /// is known. Behind the others hole punching works with most peers.
    #[must_use]
    pub fn needs_relay(self) -> bool {
        matches!(self, Self::Unknown | Self::Symmetric)
    }

    /// Whether strangers get in without help.
    #[must_use]
    pub fn lets_strangers_in(self) -> bool {
        matches!(self, Self::Public | Self::FullCone)
    }

    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Public => "public",
            Self::FullCone => "full_cone",
            Self::RestrictedCone => "restricted_cone",
            Self::PortRestrictedCone => "port_restricted_cone",
            Self::Symmetric => "symmetric",
        }
    }

    /// The mapping that the name implies.
    pub(crate) fn mapping(self) -> Option<Mapping> {
        match self {
            Self::Unknown => None,
            Self::Symmetric => Some(Mapping::AddressAndPortDependent),
            _ => Some(Mapping::EndpointIndependent),
        }
    }

    /// The filtering that the name implies. Behind a symmetric NAT it is not decisive.
    pub(crate) fn filtering(self) -> Option<Filtering> {
        match self {
            Self::Unknown | Self::Symmetric => None,
            Self::Public | Self::FullCone => Some(Filtering::EndpointIndependent),
            Self::RestrictedCone => Some(Filtering::AddressDependent),
            Self::PortRestrictedCone => Some(Filtering::AddressAndPortDependent),
        }
    }
}

impl fmt::Display for NatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How sure a classification is, in percent. It grows with the number of servers that agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Confidence(u8);

impl Confidence {
    /// At most 100.
    #[must_use]
    pub fn new(percent: u8) -> Self {
        Self(percent.min(100))
    }

    /// From 0 (a guess) to 100.
    #[must_use]
    pub fn percent(self) -> u8 {
        self.0
    }
}

/// What is known of one transport's way out over IPv4. A peer of ours tells its own in the DCUtR
/// exchange; of any other everything is unknown, as in the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct TransportNat {
    /// The well-known name of it.
    pub nat_type: NatType,
    /// Which flows share a public port.
    pub mapping: Option<Mapping>,
    /// Who may answer.
    pub filtering: Option<Filtering>,
    /// Whether the public port is the local one.
    pub port_preserving: Option<bool>,
    /// Every new flow gets the next public port, so many further: the next one can be predicted.
    pub port_step: Option<NonZeroI16>,
    /// Nothing passes, in either direction.
    pub blocked: bool,
    /// An address is confirmed: strangers get in there, whatever the NAT does otherwise. By UPnP,
    /// NAT-PMP or PCP, by the operator's word, or because servers got through.
    pub confirmed: bool,
    /// The gateway maps ports on request, and has mapped this node's.
    pub can_map_port: bool,
    /// How sure the type is.
    pub confidence: Confidence,
}

impl TransportNat {
    /// Of this type, and nothing more known.
    #[must_use]
    pub fn of(nat_type: NatType) -> Self {
        Self {
            nat_type,
            ..Self::default()
        }
    }

    /// Whether strangers get in without help, at a port that is known.
    #[must_use]
    pub fn lets_strangers_in(&self) -> bool {
        self.confirmed || self.nat_type.lets_strangers_in()
    }

    /// As measured, or as the type's name implies.
    pub(crate) fn effective_mapping(&self) -> Option<Mapping> {
        self.mapping.or_else(|| self.nat_type.mapping())
    }

    /// As measured, or as the type's name implies.
    pub(crate) fn effective_filtering(&self) -> Option<Filtering> {
        self.filtering.or_else(|| self.nat_type.filtering())
    }
}

/// What is known of the NATs that a node stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct NatReport {
    /// The way of QUIC and whatever else uses UDP.
    pub udp: TransportNat,
    /// The way of TCP.
    pub tcp: TransportNat,
    /// Whether there is a second NAT behind the first, a carrier's for example. `None` where no
    /// gateway tells its outer address.
    pub double_nat: Option<bool>,
    /// Whether hosts behind the same NAT reach each other at public addresses.
    pub hairpin: Option<bool>,
    /// Whether a firewall keeps strangers from global IPv6 addresses. `None` without such an
    /// address.
    pub ipv6_firewall: Option<bool>,
}

impl NatReport {
    /// The type for the transport that gets through most easily, of those that pass at all: TCP's
    /// where UDP is blocked, UDP's where both are known.
    #[must_use]
    pub fn nat_type(&self) -> NatType {
        if self.udp.blocked || self.udp.nat_type == NatType::Unknown {
            self.tcp.nat_type
        } else {
            self.udp.nat_type
        }
    }

    /// See [`NatType::needs_relay`]; false if an address is confirmed.
    #[must_use]
    pub fn needs_relay(&self) -> bool {
        !self.udp.confirmed && !self.tcp.confirmed && self.nat_type().needs_relay()
    }
}
