//! Whether other nodes can reach this one without help, as AutoNAT servers tell.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use web_time::Instant;

use crate::{
    Config,
    address::{Scope, without_peer},
};

/// Whether other nodes can reach this one without help.
///
/// An AutoNAT server dials back from an address that this node contacted before, so "public" may
/// be wrong behind a NAT that lets known addresses in (an address-restricted one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum NatStatus {
    /// Too little was tested to tell.
    #[default]
    Unknown,
    /// At least one address can be dialled from outside.
    Public,
    /// Servers tried and failed.
    Private,
}

impl NatStatus {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Public => "public",
            Self::Private => "private",
        }
    }
}

/// What the adapter is to do or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// The address can be dialled from outside: confirm it to the swarm.
    Confirm(Multiaddr),
    /// It no longer can: withdraw it.
    Expire(Multiaddr),
    StatusChanged {
        old: NatStatus,
        new: NatStatus,
    },
}

/// Collects verdicts and decides which addresses to believe.
#[derive(Debug)]
pub(crate) struct Nat {
    config: Config,
    addresses: BTreeMap<Multiaddr, Verdicts>,
    /// Addresses that the operator vouches for.
    configured: BTreeSet<Multiaddr>,
    status: NatStatus,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Verdicts {
    by_server: BTreeMap<PeerId, Verdict>,
    confirmed: bool,
    last: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Verdict {
    reachable: bool,
    at: Instant,
}

impl Nat {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            addresses: BTreeMap::new(),
            configured: BTreeSet::new(),
            status: NatStatus::Unknown,
            outputs: VecDeque::new(),
        }
    }

    /// A server tried an address.
    pub(crate) fn on_verdict(
        &mut self,
        server: PeerId,
        address: &Multiaddr,
        reachable: bool,
        now: Instant,
    ) {
        // A relay or a neighbour reaching us proves nothing about everybody else.
        let public = Scope::of(address) == Scope::Public;
        let loopback = Scope::of(address) == Scope::Loopback && self.config.allow_loopback();
        if !public && !loopback {
            return;
        }
        let address = without_peer(address);
        if !self.addresses.contains_key(&address)
            && self.addresses.len() >= self.config.max_verdict_addresses()
        {
            self.forget_oldest();
        }
        let verdicts = self.addresses.entry(address).or_insert(Verdicts {
            by_server: BTreeMap::new(),
            confirmed: false,
            last: now,
        });
        verdicts.last = now;
        if !verdicts.by_server.contains_key(&server)
            && verdicts.by_server.len() >= self.config.max_verdicts_per_address()
        {
            let oldest = verdicts.by_server.iter().min_by_key(|(_, v)| v.at);
            if let Some(oldest) = oldest.map(|(server, _)| *server) {
                verdicts.by_server.remove(&oldest);
            }
        }
        verdicts
            .by_server
            .insert(server, Verdict { reachable, at: now });
        self.judge();
    }

    /// The operator vouches for an external address.
    pub(crate) fn on_configured(&mut self, address: &Multiaddr) {
        let address = without_peer(address);
        let ours = self
            .addresses
            .get(&address)
            .is_some_and(|verdicts| verdicts.confirmed);
        if ours || Scope::of(&address) != Scope::Public {
            return;
        }
        // The swarm keeps them all as well; the operator is trusted with the number.
        self.configured.insert(address);
        self.judge();
    }

    /// The operator, or the swarm, withdrew an external address.
    pub(crate) fn on_withdrawn(&mut self, address: &Multiaddr) {
        let address = without_peer(address);
        self.configured.remove(&address);
        if let Some(verdicts) = self.addresses.get_mut(&address) {
            verdicts.confirmed = false;
            verdicts.by_server.clear();
        }
        self.judge();
    }

    /// Something may be due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let Some(ttl) = self.config.verdict_ttl() else {
            return;
        };
        for verdicts in self.addresses.values_mut() {
            verdicts
                .by_server
                .retain(|_, verdict| now.saturating_duration_since(verdict.at) < ttl);
        }
        self.judge();
    }

    /// Drain after every call that changes something.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let ttl: Duration = self.config.verdict_ttl()?;
        let verdicts = self.addresses.values().flat_map(|v| v.by_server.values());
        verdicts.map(|verdict| verdict.at + ttl).min()
    }

    pub(crate) fn status(&self) -> NatStatus {
        self.status
    }

    fn judge(&mut self) {
        let needed = self.config.public_confidence();
        for (address, verdicts) in &mut self.addresses {
            let believed = verdicts.believed(needed);
            if believed == verdicts.confirmed {
                continue;
            }
            verdicts.confirmed = believed;
            self.outputs.push_back(if believed {
                Output::Confirm(address.clone())
            } else {
                Output::Expire(address.clone())
            });
        }
        self.addresses
            .retain(|_, verdicts| !verdicts.by_server.is_empty());
        let new = self.judge_status();
        if new != self.status {
            self.outputs.push_back(Output::StatusChanged {
                old: self.status,
                new,
            });
            self.status = new;
        }
    }

    fn judge_status(&self) -> NatStatus {
        if !self.configured.is_empty() || self.addresses.values().any(|v| v.confirmed) {
            return NatStatus::Public;
        }
        let verdicts = || self.addresses.values().flat_map(|v| v.by_server.values());
        let failures = verdicts().filter(|verdict| !verdict.reachable).count();
        let successes = verdicts().any(|verdict| verdict.reachable);
        if !successes && failures >= self.config.private_confidence() {
            NatStatus::Private
        } else {
            NatStatus::Unknown
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self
            .addresses
            .iter()
            .filter(|(_, verdicts)| !verdicts.confirmed)
            .min_by_key(|(_, verdicts)| verdicts.last)
            .or_else(|| self.addresses.iter().min_by_key(|(_, v)| v.last));
        let Some(oldest) = oldest.map(|(address, _)| address.clone()) else {
            return;
        };
        if self.addresses.remove(&oldest).is_some_and(|v| v.confirmed) {
            self.outputs.push_back(Output::Expire(oldest));
        }
    }
}

impl Verdicts {
    /// Enough servers reached it, and more than failed to. One believed already stays so on a
    /// draw, so that it does not flap.
    fn believed(&self, needed: usize) -> bool {
        let reached = self.by_server.values().filter(|v| v.reachable).count();
        let failed = self.by_server.len() - reached;
        if self.confirmed {
            reached > 0 && reached >= failed
        } else {
            reached >= needed && reached > failed
        }
    }
}

#[cfg(test)]
#[path = "nat_tests.rs"]
mod tests;
