//! Which addresses other nodes can reach, as AutoNAT servers tell.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use web_time::Instant;

use crate::{
    Config, Transport,
    address::{Scope, without_peer},
};

/// Whether other nodes can reach this one without help.
///
/// An AutoNAT server dials back from an address that this node contacted before, which a NAT may
/// let in for that very reason. So "public" needs more than its word: the address is one of this
/// node's own, or a connection came from somebody whom it had never contacted, or a port is mapped.
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

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// The address can be dialled from outside: confirm it to the swarm.
    Confirm(Multiaddr),
    /// It no longer can: withdraw it.
    Expire(Multiaddr),
    StatusChanged {
        old: NatStatus,
        new: NatStatus,
    },
}

/// Collects verdicts and decides which addresses to believe. Call [`judge`](Self::judge) after every
/// change.
#[derive(Debug)]
pub(super) struct Verdicts {
    config: Config,
    addresses: BTreeMap<Multiaddr, OfAddress>,
    /// Addresses that the operator vouches for.
    configured: BTreeSet<Multiaddr>,
    status: NatStatus,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct OfAddress {
    by_server: BTreeMap<PeerId, Verdict>,
    confirmed: bool,
    last: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Verdict {
    reachable: bool,
    at: Instant,
}

impl Verdicts {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            addresses: BTreeMap::new(),
            configured: BTreeSet::new(),
            status: NatStatus::Unknown,
            outputs: VecDeque::new(),
        }
    }

    /// A server tried an address.
    pub(super) fn on_verdict(
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
        // Most servers do not speak WebRTC, and fail for that alone.
        let is_known = self.addresses.contains_key(&address);
        if !reachable && !is_known && Transport::of(&address) == Transport::WebRtc {
            return;
        }
        if !is_known && self.addresses.len() >= self.config.max_verdict_addresses() {
            self.forget_oldest();
        }
        let verdicts = self.addresses.entry(address).or_insert(OfAddress {
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
    }

    /// The operator vouches for an external address.
    pub(super) fn on_configured(&mut self, address: &Multiaddr) {
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
    }

    /// The operator, or the swarm, withdrew an external address.
    pub(super) fn on_withdrawn(&mut self, address: &Multiaddr) {
        let address = without_peer(address);
        self.configured.remove(&address);
        if let Some(verdicts) = self.addresses.get_mut(&address) {
            verdicts.confirmed = false;
            verdicts.by_server.clear();
        }
    }

    /// Something may be due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let Some(ttl) = self.config.verdict_ttl() else {
            return;
        };
        for verdicts in self.addresses.values_mut() {
            verdicts
                .by_server
                .retain(|_, verdict| now.saturating_duration_since(verdict.at) < ttl);
        }
    }

    /// Drain after every call that changes something.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let ttl: Duration = self.config.verdict_ttl()?;
        let verdicts = self.addresses.values().flat_map(|v| v.by_server.values());
        verdicts.map(|verdict| verdict.at + ttl).min()
    }

    pub(super) fn status(&self) -> NatStatus {
        self.status
    }

    /// Confirms and withdraws addresses. `is_open`: whether it is known otherwise that whoever
    /// dials the address gets in, whether or not this node has contacted them.
    pub(super) fn judge(&mut self, is_open: impl Fn(&Multiaddr) -> bool) {
        let needed = self.config.public_confidence();
        for (address, verdicts) in &mut self.addresses {
            let believed = verdicts.believed(needed) && is_open(address);
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

impl OfAddress {
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
#[path = "verdicts_tests.rs"]
mod tests;
