//! What a NAT does, found out from behind it: mapping and filtering in the terms of RFC 4787 (UDP) and
//! RFC 5382 (TCP), with the method of RFC 5780: two server addresses with two ports each.
//!
//! Mapping: one local port talks to all four and compares the ports that they saw. Filtering: a fresh
//! local port talks to one of the four and asks another one to answer (UDP) or to connect (TCP).

mod client;
mod server;

pub use client::classify;
pub use server::Server;

use std::fmt;
use std::net::Ipv4Addr;

/// The two ports of each server address: STUN's and the next one.
pub const PORTS: [u16; 2] = [3478, 3479];

/// Which flows of one local port share a public port (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Mapping {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// Who may send to a public port (RFC 4787 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Filtering {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// How a NAT treats one transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// Which flows share a public port.
    pub mapping: Mapping,
    /// Who may answer.
    pub filtering: Filtering,
    /// The public port equals the local one.
    pub port_kept: bool,
    /// Every new mapping takes the next port: the following one can be guessed.
    pub sequential: bool,
}

/// How a NAT treats UDP and TCP; `None` where nothing passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// UDP.
    pub udp: Option<Behaviour>,
    /// TCP.
    pub tcp: Option<Behaviour>,
}

/// The four destinations, in the order in which they are asked.
pub(crate) fn destinations(addresses: [Ipv4Addr; 2]) -> [(Ipv4Addr, u16); 4] {
    let ([first, second], [low, high]) = (addresses, PORTS);
    [(first, low), (first, high), (second, low), (second, high)]
}

/// Judges the public ports that the four destinations saw.
fn judge(local: u16, seen: [u16; 4], filtering: Filtering) -> Behaviour {
    let [a, b, c, d] = seen;
    let mapping = if a == b && c == d {
        if b == c {
            Mapping::EndpointIndependent
        } else {
            Mapping::AddressDependent
        }
    } else {
        Mapping::AddressAndPortDependent
    };
    Behaviour {
        mapping,
        filtering,
        port_kept: seen.iter().all(|port| *port == local),
        sequential: seen.is_sorted_by(|one, next| one.checked_add(1) == Some(*next)),
    }
}

/// Judges who got through: the same address from another port, and the other address.
fn judge_filtering(same_address: bool, other_address: bool) -> Filtering {
    match (same_address, other_address) {
        (_, true) => Filtering::EndpointIndependent,
        (true, false) => Filtering::AddressDependent,
        (false, false) => Filtering::AddressAndPortDependent,
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address- and port-dependent",
        })
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address- and port-dependent",
        })
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = match (self.port_kept, self.sequential) {
            (true, _) => "port kept",
            (false, true) => "ports counted up",
            (false, false) => "other port",
        };
        write!(
            formatter,
            "mapping {}, filtering {}, {ports}",
            self.mapping, self.filtering
        )
    }
}

impl fmt::Display for Class {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, behaviour) in [("UDP", self.udp), ("; TCP", self.tcp)] {
            match behaviour {
                Some(behaviour) => write!(formatter, "{name}: {behaviour}")?,
                None => write!(formatter, "{name}: blocked")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_tell_the_mapping() {
        let judge = |seen| judge(5000, seen, Filtering::AddressDependent);
        let kept = judge([5000; 4]);
        assert_eq!(
            (kept.mapping, kept.port_kept),
            (Mapping::EndpointIndependent, true)
        );
        let shifted = judge([6000; 4]);
        assert_eq!(
            (shifted.mapping, shifted.port_kept),
            (Mapping::EndpointIndependent, false)
        );
        assert_eq!(
            judge([6000, 6000, 7000, 7000]).mapping,
            Mapping::AddressDependent
        );
        let counted = judge([6000, 6001, 6002, 6003]);
        assert_eq!(
            (counted.mapping, counted.sequential),
            (Mapping::AddressAndPortDependent, true)
        );
        assert!(!judge([6000, 6001, 6003, 6004]).sequential);
    }
}
