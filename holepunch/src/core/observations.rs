//! Which addresses other peers saw this node at, and which of them may help to punch.

use std::collections::BTreeSet;

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use crate::{
    Config, PrivateCandidates,
    address::{Scope, without_peer},
};

/// Remembers observed addresses and says which become candidates.
#[derive(Debug)]
pub(crate) struct Observations {
    config: Config,
    /// The address seen longest ago stands first. Each has an observer.
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    address: Multiaddr,
    scope: Scope,
    observers: BTreeSet<PeerId>,
    /// Whether it was made known to the swarm already.
    announced: bool,
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
        }
    }

    /// A peer told what address it sees. Call [`new_candidates`](Self::new_candidates) next.
    pub(crate) fn on_observation(&mut self, observer: PeerId, address: &Multiaddr) {
        let address = without_peer(address);
        let scope = Scope::of(&address);
        if !self.may_ever_help(scope) {
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
                    observers: BTreeSet::new(),
                    announced: false,
                }
            }
        };
        if seen.observers.len() < self.config.max_observers_per_address() {
            seen.observers.insert(observer);
        }
        self.seen.push(seen);
    }

    /// A peer that claims one address after another keeps only its latest claims.
    fn withdraw_oldest_claim(&mut self, observer: PeerId) {
        let mut claims = self.seen.iter_mut();
        let oldest = claims.find(|seen| seen.observers.contains(&observer));
        if let Some(oldest) = oldest
            && claims.filter(|s| s.observers.contains(&observer)).count() + 1
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
        self.may_ever_help(scope) && wanted(&self.config, scope, self.has_public())
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
