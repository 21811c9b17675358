//! The kinds of NAT and their nftables rule sets (`notes/nat-lab.md` §2).
//!
//! Every box has the devices `lan` and `wan`, and drops what arrives unsolicited from `wan`: a packet
//! that were merely not forwarded would be tracked as local traffic, and the kernel would then change
//! the port of the very flow that a hole punch opens. Two kinds answer instead ([`NatKind::ANSWERING`]).

use super::probe::{Behaviour, Class, Filtering, Mapping};
use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;
use std::str::FromStr;

/// What stands between a host and the public network, in the terms of RFC 4787 and RFC 5382.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NatKind {
    /// Nothing: each host has a public address of its own.
    None,
    /// Endpoint-independent mapping and filtering, ports kept.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering, ports kept.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering, ports kept.
    PortRestricted,
    /// As [`FullCone`](Self::FullCone), but the public port differs from the host's.
    FullConeShifting,
    /// As [`AddressRestricted`](Self::AddressRestricted), but the public port differs from the host's.
    AddressRestrictedShifting,
    /// As [`PortRestricted`](Self::PortRestricted), but the public port differs from the host's.
    PortRestrictedShifting,
    /// A new random port for every destination.
    Symmetric,
    /// A new port for every destination, counted up.
    SymmetricSequential,
    /// Two port-restricted NATs in a row: the home router and the carrier's.
    CarrierGrade,
    /// As [`CarrierGrade`](Self::CarrierGrade), but the carrier's changes the port.
    CarrierGradeShifting,
    /// Port-restricted for TCP; no UDP passes.
    UdpBlocked,
    /// As [`PortRestricted`](Self::PortRestricted), but the box takes what nobody asked for to be its own:
    /// the host's next flow to where it came from gets another port. Plain Linux.
    PortRestrictedAccepting,
    /// As [`PortRestricted`](Self::PortRestricted), but the box refuses what nobody asked for: with a reset
    /// or "port unreachable".
    PortRestrictedRejecting,
}

impl NatKind {
    /// Kinds that answer what nobody asked for. What they look like depends on what has arrived before.
    pub const ANSWERING: [Self; 2] = [Self::PortRestrictedAccepting, Self::PortRestrictedRejecting];

    /// Every kind that always looks the same.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::FullConeShifting,
        Self::AddressRestrictedShifting,
        Self::PortRestrictedShifting,
        Self::Symmetric,
        Self::SymmetricSequential,
        Self::CarrierGrade,
        Self::CarrierGradeShifting,
        Self::UdpBlocked,
    ];

    /// The short name that the command line takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::FullConeShifting => "full-cone-shifting",
            Self::AddressRestrictedShifting => "address-restricted-shifting",
            Self::PortRestrictedShifting => "port-restricted-shifting",
            Self::Symmetric => "symmetric",
            Self::SymmetricSequential => "symmetric-sequential",
            Self::CarrierGrade => "carrier-grade",
            Self::CarrierGradeShifting => "carrier-grade-shifting",
            Self::UdpBlocked => "udp-blocked",
            Self::PortRestrictedAccepting => "port-restricted-accepting",
            Self::PortRestrictedRejecting => "port-restricted-rejecting",
        }
    }

    /// How the classifier must see it.
    pub fn expected(self) -> Class {
        use Filtering as F;
        use Mapping as M;
        let class = |mapping, filtering, port_kept| {
            let behaviour = Behaviour {
                mapping,
                filtering,
                port_kept,
                sequential: false,
            };
            Class {
                udp: Some(behaviour),
                tcp: Some(behaviour),
            }
        };
        match self {
            Self::None | Self::FullCone => {
                class(M::EndpointIndependent, F::EndpointIndependent, true)
            }
            Self::AddressRestricted => class(M::EndpointIndependent, F::AddressDependent, true),
            Self::PortRestricted
            | Self::CarrierGrade
            | Self::PortRestrictedAccepting
            | Self::PortRestrictedRejecting => {
                class(M::EndpointIndependent, F::AddressAndPortDependent, true)
            }
            Self::FullConeShifting => class(M::EndpointIndependent, F::EndpointIndependent, false),
            Self::AddressRestrictedShifting => {
                class(M::EndpointIndependent, F::AddressDependent, false)
            }
            Self::PortRestrictedShifting | Self::CarrierGradeShifting => {
                class(M::EndpointIndependent, F::AddressAndPortDependent, false)
            }
            Self::Symmetric => class(
                M::AddressAndPortDependent,
                F::AddressAndPortDependent,
                false,
            ),
            Self::SymmetricSequential => {
                let behaviour = Behaviour {
                    mapping: M::AddressAndPortDependent,
                    filtering: F::AddressAndPortDependent,
                    port_kept: false,
                    sequential: true,
                };
                Class {
                    udp: Some(behaviour),
                    tcp: Some(behaviour),
                }
            }
            Self::UdpBlocked => Class {
                udp: None,
                ..Self::PortRestricted.expected()
            },
        }
    }

    /// Whether the customer's own router stands before the box.
    pub(crate) fn has_home_router(self) -> bool {
        matches!(self, Self::CarrierGrade | Self::CarrierGradeShifting)
    }

    /// What the box does with packets for itself.
    fn input(self) -> String {
        let unsolicited = match self {
            Self::PortRestrictedAccepting => "accept",
            Self::PortRestrictedRejecting => {
                "meta l4proto tcp reject with tcp reset\n  iifname \"wan\" reject with icmp port-unreachable"
            }
            _ => "drop",
        };
        format!(
            r#" chain input {{ type filter hook input priority filter; policy accept;
  iifname "wan" ct state established,related accept
  iifname "wan" meta l4proto icmp accept
  iifname "wan" {unsolicited}
 }}"#
        )
    }

    /// The rule set of a box with this public address; none where no box stands.
    /// A carrier-grade NAT is this box, the carrier's, behind a port-restricted one at home.
    pub(crate) fn rules(self, public: Ipv4Addr) -> Option<String> {
        let masquerade = "oifname \"wan\" masquerade;";
        let body = match self {
            Self::None => return None,
            Self::PortRestricted
            | Self::CarrierGrade
            | Self::UdpBlocked
            | Self::PortRestrictedAccepting
            | Self::PortRestrictedRejecting => postrouting(masquerade),
            Self::Symmetric => postrouting("oifname \"wan\" masquerade fully-random;"),
            Self::SymmetricSequential => postrouting(&sequential(public)),
            Self::FullCone => format!(
                "{EIM}\n{}\n{}\n{}",
                prerouting(""),
                postrouting(masquerade),
                learning(LEARN_INBOUND),
            ),
            Self::AddressRestricted => format!(
                "{EIM}\n{SEEN}\n{}\n{}\n{}",
                prerouting("meta l4proto . th dport . ip saddr @seen"),
                postrouting(masquerade),
                learning(&format!("{LEARN_SEEN}\n{LEARN_INBOUND}")),
            ),
            Self::FullConeShifting => format!(
                "{EIM_OUT}\n{EIM}\n{}\n{}\n{}",
                prerouting(""),
                postrouting(SHIFTED),
                learning(&format!("{LEARN_OUTBOUND}\n{LEARN_INBOUND}")),
            ),
            Self::AddressRestrictedShifting => format!(
                "{EIM_OUT}\n{EIM}\n{SEEN}\n{}\n{}\n{}",
                prerouting("meta l4proto . th dport . ip saddr @seen"),
                postrouting(SHIFTED),
                learning(&format!("{LEARN_SEEN}\n{LEARN_OUTBOUND}\n{LEARN_INBOUND}")),
            ),
            Self::PortRestrictedShifting | Self::CarrierGradeShifting => {
                format!(
                    "{EIM_OUT}\n{}\n{}",
                    postrouting(SHIFTED),
                    learning(LEARN_OUTBOUND)
                )
            }
        };
        let udp = if self == Self::UdpBlocked {
            "meta l4proto udp drop"
        } else {
            ""
        };
        Some(format!(
            "table ip nat {{\n{}\n{}\n{body}\n}}\n",
            self.input(),
            forwarding(udp)
        ))
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for NatKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let all = || Self::ALL.into_iter().chain(Self::ANSWERING);
        all().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<_> = all().map(Self::name).collect();
            let names = names.join(", ");
            format!("no NAT kind is called {name}; there are {names}")
        })
    }
}

/// Public port to the host behind it.
const EIM: &str = " map eim { type inet_proto . inet_service : ipv4_addr . inet_service; \
                   flags dynamic,timeout; timeout 300s; size 65535; }";
/// Host's port to the public one that it was given first.
const EIM_OUT: &str = " map eimout { type inet_proto . ipv4_addr . inet_service : \
                       ipv4_addr . inet_service; flags dynamic,timeout; timeout 300s; size 65535; }";
/// Public port and whom it has sent to.
const SEEN: &str = " set seen { type inet_proto . inet_service . ipv4_addr; \
                    flags dynamic,timeout; timeout 300s; size 65535; }";

// `ct direction original`, or replies of translated flows overwrite the map with the peer's address.
const LEARN_INBOUND: &str = r#"  oifname "wan" ct direction original meta l4proto { tcp, udp } update @eim { meta l4proto . th sport : ct original ip saddr . ct original proto-src }"#;
const LEARN_OUTBOUND: &str = r#"  oifname "wan" ct direction original meta l4proto { tcp, udp } update @eimout { meta l4proto . ct original ip saddr . ct original proto-src : ip saddr . th sport }"#;
const LEARN_SEEN: &str = r#"  oifname "wan" meta l4proto { tcp, udp } update @seen { meta l4proto . th sport . ip daddr }"#;

const SHIFTED: &str = r#"
  oifname "wan" meta l4proto { tcp, udp } snat ip addr . port to meta l4proto . ip saddr . th sport map @eimout
  oifname "wan" meta l4proto { tcp, udp } masquerade fully-random
  oifname "wan" masquerade;"#;

fn forwarding(first: &str) -> String {
    format!(
        r#" chain forw {{ type filter hook forward priority filter; policy accept;
  {first}
  iifname "wan" ct state established,related accept
  iifname "wan" ct status dnat accept
  iifname "wan" drop
 }}"#
    )
}

fn prerouting(condition: &str) -> String {
    format!(
        r#" chain pre {{ type nat hook prerouting priority dstnat;
  iifname "wan" meta l4proto {{ tcp, udp }} {condition} dnat ip addr . port to meta l4proto . th dport map @eim;
 }}"#
    )
}

fn postrouting(statements: &str) -> String {
    format!(" chain post {{ type nat hook postrouting priority srcnat; {statements}\n }}")
}

fn learning(statements: &str) -> String {
    format!(" chain learn {{ type filter hook postrouting priority 300;\n{statements}\n }}")
}

/// `snat to :numgen` would count in host byte order, in steps of 256: hence the map.
fn sequential(public: Ipv4Addr) -> String {
    let mut ports = String::new();
    for step in 0..256_u16 {
        let separator = if step == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(ports, "{separator}{step} : {}", 40_000 + step);
    }
    format!(
        "\n  oifname \"wan\" meta l4proto {{ tcp, udp }} snat ip to {public} : \
         numgen inc mod 256 map {{ {ports} }}\n  oifname \"wan\" masquerade;"
    )
}
