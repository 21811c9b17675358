//! Relay addresses: `<how to reach the relay>/p2p/<relay>[/p2p-circuit[/p2p/<destination>]]`.

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

/// Whether an address leads through a relay.
///
/// Such an address never proves that a node is reachable by itself: kad's mode, a relay server's
/// status and everything else that asks "am I public?" must leave it out.
#[must_use]
pub fn is_relayed(address: &Multiaddr) -> bool {
    address
        .iter()
        .any(|protocol| matches!(protocol, Protocol::P2pCircuit))
}

/// The address names no relay that could be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRelayAddress {
    /// The address does not say who the relay is.
    #[error("`{address}` names no relay: end it with `/p2p/<peer id of the relay>`")]
    MissingPeerId {
        /// What was given.
        address: Multiaddr,
    },
    /// The address says who the relay is, but not where.
    #[error("`{address}` does not say where the relay is: begin it with `/ip4/…` or `/dns/…`")]
    MissingTransport {
        /// What was given.
        address: Multiaddr,
    },
    /// The relay could only be reached through another relay, which the specification forbids.
    #[error("`{address}` leads to a relay through another relay: give the relay's own address")]
    ThroughAnotherRelay {
        /// What was given.
        address: Multiaddr,
    },
    /// The relay would be this node.
    #[error("`{address}` leads to this node itself: name another relay")]
    Itself {
        /// What was given, without `/p2p-circuit`.
        address: Multiaddr,
    },
    /// As many relays are configured as `max_relays` allows.
    #[error("{max} relays are known already: raise `max_relays` or name fewer")]
    TooMany {
        /// The limit.
        max: usize,
    },
}

/// A relay and how to reach it, without `/p2p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelayAddress {
    pub(crate) relay: PeerId,
    pub(crate) transport: Multiaddr,
}

impl RelayAddress {
    /// Reads `…/p2p/<relay>`, with or without a trailing `/p2p-circuit`.
    pub(crate) fn parse(address: &Multiaddr) -> Result<Self, InvalidRelayAddress> {
        let mut transport = Multiaddr::empty();
        let mut relay = None;
        let mut protocols = address.iter().peekable();
        while let Some(protocol) = protocols.next() {
            match protocol {
                Protocol::P2p(peer) if relay.is_none() => relay = Some(peer),
                Protocol::P2pCircuit if relay.is_some() && protocols.peek().is_none() => {}
                Protocol::P2pCircuit | Protocol::P2p(_) => {
                    return Err(InvalidRelayAddress::ThroughAnotherRelay {
                        address: address.clone(),
                    });
                }
                other => transport.push(other),
            }
        }
        let Some(relay) = relay else {
            return Err(InvalidRelayAddress::MissingPeerId {
                address: address.clone(),
            });
        };
        if transport.is_empty() {
            return Err(InvalidRelayAddress::MissingTransport {
                address: address.clone(),
            });
        }
        Ok(Self { relay, transport })
    }

    /// What to listen on in order to reserve.
    pub(crate) fn listen(&self) -> Multiaddr {
        self.dial().with(Protocol::P2pCircuit)
    }

    /// What to dial in order to reach the relay.
    pub(crate) fn dial(&self) -> Multiaddr {
        self.transport.clone().with(Protocol::P2p(self.relay))
    }

    /// Where `local` is reachable through the relay.
    pub(crate) fn of(&self, local: PeerId) -> Multiaddr {
        self.listen().with(Protocol::P2p(local))
    }
}

/// A circuit: the relay, perhaps where it is, and whom to reach through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CircuitAddress {
    pub(crate) relay: PeerId,
    /// Without `/p2p`. Empty where the address names the relay only.
    pub(crate) transport: Multiaddr,
    pub(crate) destination: PeerId,
}

impl CircuitAddress {
    /// Reads `[…]/p2p/<relay>/p2p-circuit/p2p/<destination>`. What stands behind the destination
    /// is for the destination, and ignored.
    pub(crate) fn parse(address: &Multiaddr) -> Result<Self, InvalidRelayAddress> {
        let mut protocols = address.iter();
        let mut transport = Multiaddr::empty();
        let mut relay = None;
        for protocol in protocols.by_ref() {
            match protocol {
                Protocol::P2pCircuit => break,
                Protocol::P2p(peer) => relay = Some(peer),
                other => transport.push(other),
            }
        }
        let mut destination = None;
        for protocol in protocols {
            match protocol {
                // "circuit over circuit" is no path that a relay may take (§ Connection Initiation).
                Protocol::P2pCircuit => {
                    return Err(InvalidRelayAddress::ThroughAnotherRelay {
                        address: address.clone(),
                    });
                }
                Protocol::P2p(peer) => destination = Some(peer),
                _ => {}
            }
        }
        let (Some(relay), Some(destination)) = (relay, destination) else {
            return Err(InvalidRelayAddress::MissingPeerId {
                address: address.clone(),
            });
        };
        Ok(Self {
            relay,
            transport,
            destination,
        })
    }
}

/// Splits a relayed address into the relay's own address (without `/p2p`) and its id, if named.
pub(crate) fn split_relayed(address: &Multiaddr) -> Option<(Multiaddr, Option<PeerId>)> {
    let mut transport = Multiaddr::empty();
    let mut relay = None;
    for protocol in address {
        match protocol {
            Protocol::P2pCircuit => return Some((transport, relay)),
            Protocol::P2p(peer) => relay = Some(peer),
            other => transport.push(other),
        }
    }
    None
}

/// The address without a trailing `/p2p/…`.
pub(crate) fn without_peer(address: &Multiaddr) -> Multiaddr {
    address
        .iter()
        .filter(|protocol| !matches!(protocol, Protocol::P2p(_)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_address_is_read_with_and_without_a_trailing_circuit() {
        let relay = PeerId::random();
        let short: Multiaddr = format!("/ip4/203.0.113.100/tcp/9100/p2p/{relay}")
            .parse()
            .unwrap();
        let long = short.clone().with(Protocol::P2pCircuit);
        let parsed = RelayAddress::parse(&short).unwrap();
        assert_eq!(parsed.relay, relay);
        assert_eq!(RelayAddress::parse(&long).unwrap(), parsed);
        assert_eq!(parsed.listen(), long);
    }

    #[test]
    fn addresses_that_name_no_reachable_relay_are_refused() {
        let relay = PeerId::random();
        let bare: Multiaddr = "/ip4/203.0.113.100/tcp/9100".parse().unwrap();
        assert!(matches!(
            RelayAddress::parse(&bare),
            Err(InvalidRelayAddress::MissingPeerId { .. })
        ));
        let nowhere: Multiaddr = format!("/p2p/{relay}").parse().unwrap();
        assert!(matches!(
            RelayAddress::parse(&nowhere),
            Err(InvalidRelayAddress::MissingTransport { .. })
        ));
        let chained: Multiaddr = format!("/ip4/1.2.3.4/tcp/1/p2p/{relay}/p2p-circuit/p2p/{relay}")
            .parse()
            .unwrap();
        assert!(matches!(
            RelayAddress::parse(&chained),
            Err(InvalidRelayAddress::ThroughAnotherRelay { .. })
        ));
    }
}
