//! When to announce and whom to believe: pure, on virtual time. For those who own a gossipsub
//! themselves; everybody else uses [`Behaviour`](crate::Behaviour), which is this core with libp2p's
//! gossipsub around it.
//!
//! Facts go in by `on_*` and [`Core::handle_timeout`]; drain [`Core::poll_output`] after each, and
//! call `handle_timeout` at [`Core::poll_timeout`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::{PeerId, PublicKey};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use web_time::Instant;

use crate::{
    Config, ProtocolViolation, TopicError,
    config::{MAX_TOPICS, is_topic},
    message::{Announcement, usable},
};

/// Shortest time between two announcements on one topic, of ours and of others: a peer that has
/// more to say than that is ignored in between.
const MIN_GAP: Duration = Duration::from_secs(1);

/// An announcement that is due at once waits up to this long, so that all the nodes that see the same
/// subscriber do not answer it in the same instant.
const SPREAD: Duration = Duration::from_millis(100);

/// A peer that missed this many announcements makes room in a full table.
const MISSED: u32 = 3;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Publish this, signed, on this topic.
    Publish {
        /// The topic's name.
        topic: String,
        /// The encoded announcement.
        data: Vec<u8>,
    },
    /// See [`Event::Discovered`](crate::Event::Discovered).
    Discovered {
        /// The peer.
        peer: PeerId,
        /// All its usable addresses.
        addresses: Vec<Multiaddr>,
        /// Where it was announced.
        topic: String,
    },
    /// See [`Event::Expired`](crate::Event::Expired).
    Expired {
        /// The peer.
        peer: PeerId,
    },
    /// See [`Event::ProtocolViolation`](crate::Event::ProtocolViolation).
    ProtocolViolation {
        /// The author.
        peer: PeerId,
        /// What was wrong.
        violation: ProtocolViolation,
    },
}

/// What becomes of a message; gossipsub's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Pass it on.
    Accept,
    /// Do not pass it on; nobody is to blame.
    Ignore,
    /// Do not pass it on; who sent it should not have.
    Reject,
}

/// The origin of an address of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Confirmed as reachable from outside, relayed ones included.
    External,
    /// A listener's.
    Listen,
}

#[derive(Debug, Default)]
struct Topic {
    subscribers: BTreeSet<PeerId>,
    last: Option<Instant>,
    next: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<Multiaddr>,
    heard: Instant,
    /// The last announcement on each topic; at most one entry a topic of ours.
    heard_on: BTreeMap<String, Instant>,
}

/// The state of the discovery of one node.
#[derive(Debug)]
pub struct Core {
    local: PeerId,
    public_key: PublicKey,
    config: Config,
    rng: StdRng,
    topics: BTreeMap<String, Topic>,
    ours: BTreeSet<(Origin, Multiaddr)>,
    peers: BTreeMap<PeerId, Known>,
    /// `peers` by the time they were last heard of.
    by_age: BTreeSet<(Instant, PeerId)>,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A core for the owner of `public_key`; `seed` feeds the jitter alone.
    pub fn new(public_key: PublicKey, config: Config, seed: [u8; 32]) -> Self {
        Self {
            local: public_key.to_peer_id(),
            public_key,
            rng: StdRng::from_seed(seed),
            topics: config
                .topics()
                .map(|topic| (topic.to_owned(), Topic::default()))
                .collect(),
            config,
            ours: BTreeSet::new(),
            peers: BTreeMap::new(),
            by_age: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The topics in use.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// Whether messages on this topic are announcements.
    pub fn has_topic(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// Adds a topic; returns whether it is new.
    pub fn add_topic(&mut self, topic: &str) -> Result<bool, TopicError> {
        if !is_topic(topic) {
            return Err(TopicError::Invalid(topic.to_owned()));
        }
        if self.has_topic(topic) {
            return Ok(false);
        }
        if self.topics.len() >= MAX_TOPICS {
            return Err(TopicError::TooMany);
        }
        self.topics.insert(topic.to_owned(), Topic::default());
        Ok(true)
    }

    /// Removes a topic; returns whether it was there. Peers found there stay until they expire.
    pub fn remove_topic(&mut self, topic: &str) -> bool {
        for known in self.peers.values_mut() {
            known.heard_on.remove(topic);
        }
        self.topics.remove(topic).is_some()
    }

    /// We can be reached at `address`.
    pub fn on_address(&mut self, origin: Origin, address: Multiaddr, now: Instant) {
        let Some(address) = usable(address, self.local, self.config.allow_loopback()) else {
            return;
        };
        let known = self.ours.iter().any(|(_, ours)| *ours == address);
        self.ours.insert((origin, address));
        if !known {
            self.topics_changed(now);
        }
    }

    /// We can no longer be reached at `address`.
    pub fn on_address_gone(&mut self, origin: Origin, address: Multiaddr, now: Instant) {
        if let Some(address) = usable(address, self.local, true)
            && self.ours.remove(&(origin, address.clone()))
            && !self.ours.iter().any(|(_, ours)| *ours == address)
        {
            self.topics_changed(now);
        }
    }

    /// A connected peer subscribed to a topic.
    pub fn on_subscribed(&mut self, topic: &str, peer: PeerId, now: Instant) {
        let limit = self.config.max_peers();
        let Some(state) = self.topics.get_mut(topic) else {
            return;
        };
        if state.subscribers.len() < limit && state.subscribers.insert(peer) {
            self.bring_forward(topic, now);
        }
    }

    /// A connected peer is no longer subscribed to a topic.
    pub fn on_unsubscribed(&mut self, topic: &str, peer: &PeerId) {
        if let Some(state) = self.topics.get_mut(topic) {
            state.subscribers.remove(peer);
            if state.subscribers.is_empty() {
                state.next = None;
            }
        }
    }

    /// The last connection to a peer is gone.
    pub fn on_disconnected(&mut self, peer: &PeerId) {
        for state in self.topics.values_mut() {
            state.subscribers.remove(peer);
            if state.subscribers.is_empty() {
                state.next = None;
            }
        }
    }

    /// A message arrived on a discovery topic. `author` is the peer whose signature it bears: whoever calls
    /// this has verified the signature.
    pub fn on_message(
        &mut self,
        topic: &str,
        author: Option<PeerId>,
        data: &[u8],
        now: Instant,
    ) -> Verdict {
        if !self.has_topic(topic) {
            return Verdict::Accept;
        }
        let Some(author) = author else {
            return Verdict::Reject;
        };
        if author == self.local || self.is_too_soon(topic, &author, now) {
            return Verdict::Ignore;
        }
        match Announcement::decode(data, author, self.config.max_announcement_bytes()) {
            Ok(announcement) => {
                self.learn(topic, author, announcement.addresses, now);
                Verdict::Accept
            }
            Err(violation) => {
                self.outputs.push_back(Output::ProtocolViolation {
                    peer: author,
                    violation,
                });
                Verdict::Reject
            }
        }
    }

    /// Announces and forgets what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let ttl = self.config.peer_ttl();
        while let Some((heard, peer)) = self.by_age.first().copied()
            && heard + ttl <= now
        {
            self.forget(peer);
        }
        let due: Vec<_> = self
            .topics
            .iter()
            .filter(|(_, state)| state.next.is_some_and(|at| at <= now))
            .map(|(topic, _)| topic.clone())
            .collect();
        for topic in due {
            self.announce(topic, now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self
            .by_age
            .first()
            .map(|(heard, _)| *heard + self.config.peer_ttl());
        self.topics
            .values()
            .filter_map(|state| state.next)
            .chain(expiry)
            .min()
    }

    /// Drain after every `&mut` call.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The known peers, in order of their ids.
    pub fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.peers.keys()
    }

    /// The announced addresses of `peer`; empty for an unknown peer.
    pub fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.peers
            .get(peer)
            .map(|known| known.addresses.as_slice())
            .unwrap_or_default()
    }

    fn is_too_soon(&self, topic: &str, author: &PeerId, now: Instant) -> bool {
        self.peers
            .get(author)
            .and_then(|known| known.heard_on.get(topic))
            .is_some_and(|heard| now < *heard + MIN_GAP)
    }

    fn learn(&mut self, topic: &str, peer: PeerId, addresses: Vec<Multiaddr>, now: Instant) {
        let allow_loopback = self.config.allow_loopback();
        let mut seen = BTreeSet::new();
        let addresses: Vec<_> = addresses
            .into_iter()
            .filter_map(|address| usable(address, peer, allow_loopback))
            .filter(|address| seen.insert(address.clone()))
            .take(self.config.max_addresses_per_peer())
            .collect();
        if addresses.is_empty() || !self.make_room(peer, now) {
            return;
        }
        let known = self.peers.entry(peer).or_insert_with(|| Known {
            addresses: Vec::new(),
            heard: now,
            heard_on: BTreeMap::new(),
        });
        self.by_age.remove(&(known.heard, peer));
        self.by_age.insert((now, peer));
        known.heard = now;
        known.heard_on.insert(topic.to_owned(), now);
        let same = known.addresses.len() == addresses.len()
            && addresses
                .iter()
                .all(|address| known.addresses.contains(address));
        if !same {
            known.addresses.clone_from(&addresses);
            let topic = topic.to_owned();
            self.outputs.push_back(Output::Discovered {
                peer,
                addresses,
                topic,
            });
        }
    }

    /// Whether there is room for `peer`, if need be in place of one that went silent.
    fn make_room(&mut self, peer: PeerId, now: Instant) -> bool {
        if self.peers.contains_key(&peer) || self.peers.len() < self.config.max_peers() {
            return true;
        }
        let silence = self.config.announce_interval() * MISSED;
        match self.by_age.first().copied() {
            Some((heard, silent)) if heard + silence <= now => {
                self.forget(silent);
                true
            }
            _ => false,
        }
    }

    fn forget(&mut self, peer: PeerId) {
        if let Some(known) = self.peers.remove(&peer) {
            self.by_age.remove(&(known.heard, peer));
            self.outputs.push_back(Output::Expired { peer });
        }
    }

    fn topics_changed(&mut self, now: Instant) {
        let topics: Vec<_> = self.topics.keys().cloned().collect();
        for topic in topics {
            self.bring_forward(&topic, now);
        }
    }

    /// Announces soon, if there is somebody to hear it.
    fn bring_forward(&mut self, topic: &str, now: Instant) {
        let spread = SPREAD.mul_f64(self.rng.random());
        let Some(state) = self.topics.get_mut(topic) else {
            return;
        };
        if self.config.listen_only() || state.subscribers.is_empty() {
            return;
        }
        let soon = state.last.map_or(now, |last| now.max(last + MIN_GAP)) + spread;
        state.next = Some(state.next.map_or(soon, |next| next.min(soon)));
    }

    fn announce(&mut self, topic: String, now: Instant) {
        let jitter = self.rng.random_range(0.9..1.1);
        let interval = self.config.announce_interval().mul_f64(jitter);
        let addresses = self.announced_addresses();
        let Some(state) = self.topics.get_mut(&topic) else {
            return;
        };
        if addresses.is_empty() {
            // Nothing to say; a new address brings the topic forward.
            state.next = None;
            return;
        }
        state.last = Some(now);
        state.next = Some(now + interval);
        let public_key = self.public_key.clone();
        let data = Announcement {
            public_key,
            addresses,
        }
        .encode();
        self.outputs.push_back(Output::Publish { topic, data });
    }

    /// Ours, the most useful first: confirmed direct ones, relayed ones, listeners' own.
    fn announced_addresses(&self) -> Vec<Multiaddr> {
        let rank = |origin: &Origin, address: &Multiaddr| {
            let relayed = address
                .iter()
                .any(|protocol| protocol == Protocol::P2pCircuit);
            (*origin, relayed)
        };
        let mut ranked: Vec<_> = self
            .ours
            .iter()
            .map(|(origin, address)| (rank(origin, address), address))
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut seen = BTreeSet::new();
        ranked
            .into_iter()
            .map(|(_, address)| address)
            .filter(|address| seen.insert(*address))
            .take(self.config.max_addresses_per_peer())
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests;
