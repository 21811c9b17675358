//! Which addresses other peers saw this node at, and which of them may help to punch.

use std::{collections::BTreeMap, net::IpAddr};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

use crate::{
    Config, PrivateCandidates, Transport,
    address::{Scope, ip_of, without_peer},
};

/// Remembers observed addresses and says which become candidates.
#[derive(Debug)]
pub(crate) struct Observations {
    config: Config,
    /// The address seen longest ago stands first. Each has an observer.
    seen: Vec<Seen>,
    /// Not ours any more. Drained by [`withdrawn`](Self::withdrawn).
    withdrawn: Vec<Multiaddr>,
    /// A peer that came back sees this node at another IP address. Drained by [`has_moved`](Self::has_moved).
    moved: bool,
}

#[derive(Debug)]
struct Seen {
    address: Multiaddr,
    scope: Scope,
    observers: BTreeMap<PeerId, Since>,
    /// Whether it was made known to the swarm already.
    announced: bool,
}

/// What an observer's word rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    /// A connection that is up.
    Up(ConnectionId),
    /// A connection that is gone.
    Gone,
    /// Nobody told which connection.
    Untold,
}

/// An address at which other peers saw this node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObservedAddress {
    /// As it was observed, with the port that the NAT gave.
    pub address: Multiaddr,
    /// How many different peers saw it, counted up to
    /// [`max_observers_per_address`](crate::Config::max_observers_per_address).
    pub observers: usize,
}

impl Observations {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            seen: Vec::new(),
            withdrawn: Vec::new(),
            moved: false,
        }
    }

    /// A peer told what address it sees, on this connection where that is known. Call
    /// [`new_candidates`](Self::new_candidates) next.
    pub(crate) fn on_observation(
        &mut self,
        observer: PeerId,
        connection: Option<ConnectionId>,
        address: &Multiaddr,
    ) {
        let address = without_peer(address);
        let scope = Scope::of(&address);
        if !can_be_punched(&address) || !self.may_ever_help(scope) {
            return;
        }
        let known = self.seen.iter().position(|seen| seen.address == address);
        let mut seen = match known {
            Some(position) => self.seen.remove(position),
            None => {
                self.withdraw_oldest_claim(observer);
                self.make_room();
                Seen {
                    address,
                    scope,
                    observers: BTreeMap::new(),
                    announced: false,
                }
            }
        };
        let has_room = seen.observers.len() < self.config.max_observers_per_address();
        if has_room || seen.observers.contains_key(&observer) {
            let since = connection.map_or(Since::Untold, Since::Up);
            seen.observers.insert(observer, since);
        }
        self.seen.push(seen);
        self.move_claims(observer);
    }

    /// A connection is gone, and with it what its peer's word rests on.
    pub(crate) fn on_closed(&mut self, observer: PeerId, connection: ConnectionId) {
        for seen in &mut self.seen {
            if let Some(since) = seen.observers.get_mut(&observer)
                && *since == Since::Up(connection)
            {
                *since = Since::Gone;
            }
        }
        self.move_claims(observer);
    }

    /// The node has got another public address: a peer that comes back, perhaps over another transport, sees
    /// it there now. What that peer alone vouched for is of old; the ports of old are the best guess for
    /// the new address until somebody sees them, since most NATs keep them.
    fn move_claims(&mut self, observer: PeerId) {
        let public = |seen: &Seen| ip_of(&seen.address).filter(|_| seen.scope == Scope::Public);
        let mut sightings = self.seen.iter().rev();
        let now_at = sightings.find_map(|seen| {
            let is_up = matches!(seen.observers.get(&observer), Some(Since::Up(_)));
            public(seen).filter(|_| is_up)
        });
        let Some(ip) = now_at else {
            return;
        };
        let is_old = |seen: &Seen| {
            seen.observers.get(&observer) == Some(&Since::Gone)
                && public(seen).is_some_and(|old| old != ip && old.is_ipv4() == ip.is_ipv4())
        };
        let mut moved = Vec::new();
        for seen in &mut self.seen {
            if is_old(seen) {
                self.moved = true;
                seen.observers.remove(&observer);
                if seen.observers.values().all(|since| *since == Since::Gone) {
                    seen.observers.clear();
                    moved.push(with_ip(&seen.address, ip));
                    self.withdrawn.push(seen.address.clone());
                }
            }
        }
        self.seen.retain(|seen| !seen.observers.is_empty());
        for address in moved {
            if !self.seen.iter().any(|seen| seen.address == address) {
                let scope = Scope::of(&address);
                // Below what was seen.
                self.seen.insert(
                    0,
                    Seen {
                        address,
                        scope,
                        observers: BTreeMap::from([(observer, Since::Gone)]),
                        announced: false,
                    },
                );
            }
        }
    }

    /// A peer that claims one address after another keeps only its latest claims.
    fn withdraw_oldest_claim(&mut self, observer: PeerId) {
        let mut claims = self.seen.iter_mut();
        let oldest = claims.find(|seen| seen.observers.contains_key(&observer));
        if let Some(oldest) = oldest
            && claims
                .filter(|s| s.observers.contains_key(&observer))
                .count()
                + 1
                >= self.config.max_addresses_per_observer()
        {
            oldest.observers.remove(&observer);
        }
        self.seen.retain(|seen| !seen.observers.is_empty());
    }

    /// The address with the fewest observers goes first, of several the one seen longest ago.
    fn make_room(&mut self) {
        if self.seen.len() < self.config.max_observed_addresses() {
            return;
        }
        let weakest = self.seen.iter().enumerate();
        let weakest = weakest.min_by_key(|(_, seen)| seen.observers.len());
        if let Some(position) = weakest.map(|(position, _)| position) {
            self.seen.remove(position);
        }
    }

    /// Candidates that the swarm does not know yet, those with most observers first. They count
    /// as known from then on.
    pub(crate) fn new_candidates(&mut self) -> Vec<Multiaddr> {
        let any_public = self.has_public();
        let mut fresh: Vec<(usize, Multiaddr)> = Vec::new();
        for seen in &mut self.seen {
            let counts = seen.observers.len() >= self.config.min_observers();
            if seen.announced || !counts || !wanted(&self.config, seen.scope, any_public) {
                continue;
            }
            seen.announced = true;
            fresh.push((seen.observers.len(), seen.address.clone()));
        }
        fresh.sort_by_key(|(observers, _)| std::cmp::Reverse(*observers));
        fresh.into_iter().map(|(_, address)| address).collect()
    }

    /// Addresses that this node has no more: it has got another IP address.
    pub(crate) fn withdrawn(&mut self) -> Vec<Multiaddr> {
        std::mem::take(&mut self.withdrawn)
    }

    /// Whether a peer that saw this node before sees it at another public IP address now, whatever others still believe.
    pub(crate) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// What to offer now, best first: the addresses with most observers, of several the latest.
    pub(crate) fn candidates(&self) -> Vec<Multiaddr> {
        let any_public = self.has_public();
        let mut candidates: Vec<&Seen> = self
            .seen
            .iter()
            .rev()
            .filter(|seen| seen.observers.len() >= self.config.min_observers())
            .filter(|seen| wanted(&self.config, seen.scope, any_public))
            .collect();
        candidates.sort_by_key(|seen| std::cmp::Reverse(seen.observers.len()));
        let addresses = candidates.into_iter();
        addresses.map(|seen| seen.address.clone()).collect()
    }

    /// Whether a candidate that somebody else suggests should be offered to peers.
    pub(crate) fn accepts(&self, address: &Multiaddr) -> bool {
        let scope = Scope::of(address);
        can_be_punched(address)
            && self.may_ever_help(scope)
            && wanted(&self.config, scope, self.has_public())
    }

    /// Every observed address that may be a candidate, those with most observers first.
    pub(crate) fn addresses(&self) -> Vec<ObservedAddress> {
        let mut addresses: Vec<ObservedAddress> = self
            .seen
            .iter()
            .map(|seen| ObservedAddress {
                address: seen.address.clone(),
                observers: seen.observers.len(),
            })
            .collect();
        addresses.sort_by_key(|seen| std::cmp::Reverse(seen.observers));
        addresses
    }

    fn has_public(&self) -> bool {
        self.seen.iter().any(|seen| {
            seen.scope == Scope::Public && seen.observers.len() >= self.config.min_observers()
        })
    }

    fn may_ever_help(&self, scope: Scope) -> bool {
        match scope {
            Scope::Useless => false,
            Scope::Loopback => self.config.allow_loopback(),
            Scope::Private => self.config.private_candidates() != PrivateCandidates::Never,
            Scope::Public => true,
        }
    }
}

/// WebRTC has sockets of its own, from which no punch is sent.
fn can_be_punched(address: &Multiaddr) -> bool {
    Transport::of(address) != Transport::WebRtc
}

fn with_ip(address: &Multiaddr, ip: IpAddr) -> Multiaddr {
    let parts = address.iter().map(|part| match part {
        Protocol::Ip4(_) | Protocol::Ip6(_) => Protocol::from(ip),
        same => same,
    });
    parts.collect()
}

fn wanted(config: &Config, scope: Scope, any_public: bool) -> bool {
    match (scope, config.private_candidates()) {
        (Scope::Private, PrivateCandidates::WhenNoPublic) => !any_public,
        (Scope::Private, PrivateCandidates::Never) | (Scope::Useless, _) => false,
        (Scope::Private, PrivateCandidates::Always) | (Scope::Public | Scope::Loopback, _) => true,
    }
}

#[cfg(test)]
#[path = "observations_tests.rs"]
mod tests;
