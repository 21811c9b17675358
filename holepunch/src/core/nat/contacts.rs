//! Whom this node has sent packets to, as a filter remembers it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::endpoint::{Endpoint, Proto};

/// Ports of one address that are told apart; beyond that all count as sent to.
const MAX_PORTS: usize = 32;

/// What a filter can know of a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acquaintance {
    /// Nothing was sent to its address.
    Stranger,
    /// Something was sent to its address, but not to this port.
    OtherPort,
    /// Something was sent to this very socket, or that cannot be told any more.
    Known,
}

/// Addresses that were sent to since the node came to this network. A filter forgets sooner; whom it
/// might have forgotten is not counted as a stranger.
#[derive(Debug)]
pub(crate) struct Contacts {
    max: usize,
    addresses: BTreeMap<(Proto, IpAddr), BTreeSet<u16>>,
    /// More addresses than could be kept: from then on nobody is certainly a stranger.
    overflowed: bool,
}

impl Contacts {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            addresses: BTreeMap::new(),
            overflowed: false,
        }
    }

    pub(crate) fn insert(&mut self, to: Endpoint) {
        let key = (to.proto, to.ip());
        if !self.addresses.contains_key(&key) && self.addresses.len() >= self.max {
            self.overflowed = true;
            return;
        }
        let ports = self.addresses.entry(key).or_default();
        if ports.len() < MAX_PORTS {
            ports.insert(to.socket.port());
        }
    }

    pub(crate) fn acquaintance(&self, from: Endpoint) -> Acquaintance {
        match self.addresses.get(&(from.proto, from.ip())) {
            Some(ports) if ports.len() >= MAX_PORTS || ports.contains(&from.socket.port()) => {
                Acquaintance::Known
            }
            Some(_) => Acquaintance::OtherPort,
            None if self.overflowed => Acquaintance::Known,
            None => Acquaintance::Stranger,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.addresses.clear();
        self.overflowed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(socket: &str) -> Endpoint {
        Endpoint {
            proto: Proto::Udp,
            socket: socket.parse().unwrap(),
        }
    }

    #[test]
    fn an_address_that_was_sent_to_is_no_stranger_and_its_ports_are_told_apart() {
        let mut contacts = Contacts::new(8);
        contacts.insert(at("198.51.100.1:1"));
        assert_eq!(
            contacts.acquaintance(at("198.51.100.1:1")),
            Acquaintance::Known
        );
        assert_eq!(
            contacts.acquaintance(at("198.51.100.1:2")),
            Acquaintance::OtherPort
        );
        assert_eq!(
            contacts.acquaintance(at("198.51.100.2:1")),
            Acquaintance::Stranger
        );
        let tcp = Endpoint {
            proto: Proto::Tcp,
            ..at("198.51.100.1:1")
        };
        assert_eq!(contacts.acquaintance(tcp), Acquaintance::Stranger);
    }

    #[test]
    fn what_was_forgotten_is_not_taken_for_a_stranger() {
        let mut contacts = Contacts::new(8);
        for host in 0..100 {
            contacts.insert(at(&format!("198.51.100.{host}:1")));
        }
        assert_eq!(contacts.addresses.len(), 8);
        assert_eq!(
            contacts.acquaintance(at("203.0.113.1:1")),
            Acquaintance::Known
        );
        contacts.clear();
        for port in 0..100 {
            contacts.insert(at(&format!("198.51.100.1:{port}")));
        }
        assert_eq!(
            contacts.acquaintance(at("198.51.100.1:200")),
            Acquaintance::Known
        );
    }
}
