//! When to announce and whom to believe: pure, on virtual time. For those who own a gossipsub
//! themselves (`examples/core.rs`); everybody else uses `Behaviour` (feature `swarm`), which is this core
//! with libp2p's gossipsub around it.
//!
//! Facts go in by `on_*` and [`Core::handle_timeout`]; drain [`Core::poll_output`] after each, and
//! call `handle_timeout` at [`Core::poll_timeout`].

pub(crate) mod connect;
mod departed;
mod hear;
mod hosts;
mod limits;
mod offers;
mod own;
mod say;
mod sequences;
mod table;
mod topics;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use libp2p_core::Multiaddr;
use libp2p_identity::{PeerId, PublicKey};
use rand::{SeedableRng as _, rngs::StdRng};
use web_time::Instant;

pub use self::{connect::AutoConnect, own::Origin};
use self::{
    connect::Connector,
    departed::Departed,
    hosts::Hosts,
    limits::{Rate, Sources},
    offers::Offers,
    own::Own,
    sequences::Sequences,
    table::Table,
    topics::{Channel, Codec, Topics},
};
use crate::{
    AnnounceError, Config, Content, ProtocolViolation, Role, Service, TopicError,
    address::{self, Trust, reach},
    announcement::{check_content, check_relay, check_role},
};

/// Shortest time between two announcements of ours on one topic.
const MIN_GAP: Duration = Duration::from_secs(1);

/// Shortest time between two announcements of another peer on one topic: what it says in between is ignored. Half of
/// [`MIN_GAP`], because messages do not all take the same time: one that is ignored is not passed on either, and what
/// was new in it is not told again for a whole interval.
const HEAR_GAP: Duration = Duration::from_millis(500);

/// Neighbours that are remembered for what they passed on.
const MAX_SOURCES: usize = 4096;

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
    /// Connect to this peer, and report [`Core::on_connected`] or [`Core::on_dial_failed`]. Only with
    /// [`Config::auto_connect`].
    Dial {
        /// The peer.
        peer: PeerId,
        /// Where it says it is.
        addresses: Vec<Multiaddr>,
    },
    /// See `Event::Discovered`.
    Discovered {
        /// The peer.
        peer: PeerId,
        /// All its usable addresses.
        addresses: Vec<Multiaddr>,
        /// Where it was announced.
        topic: String,
    },
    /// See `Event::Expired`.
    Expired {
        /// The peer.
        peer: PeerId,
    },
    /// See `Event::Content`.
    Content {
        /// The provider.
        peer: PeerId,
        /// What it provides from now on.
        items: Vec<Content>,
    },
    /// See `Event::ContentWithdrawn`.
    ContentWithdrawn {
        /// The provider.
        peer: PeerId,
        /// What it provides no longer.
        cids: Vec<Cid>,
    },
    /// See `Event::Relay`.
    Relay {
        /// The relay.
        peer: PeerId,
        /// Its `RelayAnnouncement`.
        announcement: Bytes,
    },
    /// See `Event::RelayAddresses`.
    RelayAddresses {
        /// The relay.
        peer: PeerId,
        /// Where it says it is.
        addresses: Vec<Multiaddr>,
    },
    /// See `Event::Role`.
    Role {
        /// The peer.
        peer: PeerId,
        /// What it does.
        role: Role,
    },
    /// See `Event::OfferExpired`.
    OfferExpired {
        /// The peer.
        peer: PeerId,
        /// What it announces no longer.
        service: Service,
    },
    /// See `Event::ProtocolViolation`.
    ProtocolViolation {
        /// The author.
        peer: PeerId,
        /// The neighbour that passed it on.
        source: PeerId,
        /// What was wrong.
        violation: ProtocolViolation,
    },
}

/// A message of gossipsub on one of our topics.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The neighbour that passed it on.
    pub source: PeerId,
    /// The peer whose signature it bears: whoever makes this value has verified the signature.
    pub author: Option<PeerId>,
    /// The message's sequence number.
    pub sequence: Option<u64>,
    /// Its content.
    pub data: &'a [u8],
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

#[derive(Debug)]
struct Known {
    addresses: Vec<Multiaddr>,
    /// The last announcement, and the last one on each topic of ours.
    heard: Instant,
    heard_on: BTreeMap<String, Instant>,
    /// Of the last announcement, and what was known of connections then: the same again needs no reading.
    digest: (u64, u64),
    past: Past,
}

/// What outlives a peer's entry.
#[derive(Debug, Clone, Default)]
struct Past {
    sequences: Sequences,
    /// The longest time that the peer lately let pass between two announcements on a topic.
    pace: Duration,
    heard: Option<Instant>,
}

/// The state of the discovery of one node.
#[derive(Debug)]
pub struct Core {
    local: PeerId,
    public_key: PublicKey,
    config: Config,
    rng: StdRng,
    topics: Topics,
    own: Own,
    peers: Table<Known>,
    departed: Departed<Past>,
    hosts: Hosts,
    sources: Sources,
    offers: Offers,
    connections: BTreeMap<PeerId, Trust>,
    /// Changes with `connections`.
    generation: u64,
    connector: Option<Connector>,
    /// A moment, and what the clock on the wall showed then.
    epoch: (Instant, Duration),
    stopped: bool,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A core for the owner of `public_key`. `seed` feeds the jitter alone. `since_1970` is the wall clock at
    /// `now`: the numbers of announcements are taken from it, so that they grow over restarts.
    pub fn new(
        public_key: PublicKey,
        config: Config,
        seed: [u8; 32],
        now: Instant,
        since_1970: Duration,
    ) -> Self {
        let max = config.max_peers();
        let per_second = config.max_messages_per_second() as f64;
        let messages = Rate {
            per_second,
            burst: 2.0 * per_second,
        };
        // A full table turns over in a minute at most, which leaves those who are there six times the time they
        // need to be heard again; a quarter of it may come at once.
        let newcomers = Rate {
            per_second: (max as f64 / 60.0).max(0.2),
            burst: (max as f64 / 4.0).max(1.0),
        };
        Self {
            local: public_key.to_peer_id(),
            public_key,
            rng: StdRng::from_seed(seed),
            topics: Topics::new(&config),
            own: Own::new(),
            peers: Table::new(max),
            departed: Departed::new(max),
            hosts: Hosts::new(config.max_peers_per_host()),
            sources: Sources::new(messages, newcomers, MAX_SOURCES),
            offers: Offers::new(&config),
            connections: BTreeMap::new(),
            generation: 0,
            connector: config
                .auto_connect()
                .map(|auto| Connector::new(auto.clone(), max)),
            epoch: (now, since_1970),
            stopped: false,
            outputs: VecDeque::new(),
            config,
        }
    }

    /// The discovery topics and those of services.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.names()
    }

    /// Whether messages on this topic are announcements.
    pub fn has_topic(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some()
    }

    /// Adds a discovery topic; returns whether it is new.
    ///
    /// # Errors
    /// When the name is no good or there are too many.
    pub fn add_topic(&mut self, topic: &str) -> Result<bool, TopicError> {
        self.topics.add(topic, self.config.json())
    }

    /// Removes a discovery topic; returns whether it was one. Peers found there stay until they expire.
    pub fn remove_topic(&mut self, topic: &str) -> bool {
        if !matches!(self.topics.get(topic), Some(Channel::Peers(_))) {
            return false;
        }
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer in peers {
            if let Some(known) = self.peers.get_mut(&peer) {
                known.heard_on.remove(topic);
            }
        }
        self.topics.remove(topic)
    }

    /// We can be reached at `address`.
    pub fn on_address(&mut self, origin: Origin, address: Multiaddr, now: Instant) {
        let address = address::own(address, self.local, self.config.allow_loopback());
        if let Some(address) = address
            && self.own.add_address(origin, address)
        {
            self.addresses_changed(now);
        }
    }

    /// We can no longer be reached at `address`.
    pub fn on_address_gone(&mut self, origin: Origin, address: Multiaddr, now: Instant) {
        if let Some(address) = address::own(address, self.local, true)
            && self.own.remove_address(origin, address)
        {
            self.addresses_changed(now);
        }
    }

    /// A connection to `peer` came up; `remote` is its end.
    pub fn on_connected(&mut self, peer: PeerId, remote: &Multiaddr, now: Instant) {
        // Who comes through a relay is not where the relay is.
        let trust = reach(remote)
            .filter(|_| !address::is_relayed(remote))
            .map_or(Trust::default(), Trust::of);
        self.generation += 1;
        let known = self.connections.entry(peer).or_default();
        *known = known.or(trust);
        self.peers.prove(&peer);
        self.offers.prove(&peer);
        if let Some(connector) = &mut self.connector {
            connector.on_connected(peer, now);
        }
        self.drive_connector(now);
    }

    /// The last connection to a peer is gone.
    pub fn on_disconnected(&mut self, peer: &PeerId, now: Instant) {
        self.generation += 1;
        self.connections.remove(peer);
        self.topics.on_disconnected(peer);
        let known = self.peers.contains(peer);
        if let Some(connector) = &mut self.connector {
            connector.on_disconnected(*peer, known, now);
        }
        self.drive_connector(now);
    }

    /// A dial that [`Output::Dial`] asked for failed.
    pub fn on_dial_failed(&mut self, peer: PeerId, now: Instant) {
        let known = self.peers.contains(&peer);
        if let Some(connector) = &mut self.connector {
            connector.on_dial_failed(peer, known, now);
        }
        self.drive_connector(now);
    }

    /// A connected peer subscribed to a topic.
    pub fn on_subscribed(&mut self, topic: &str, peer: PeerId, now: Instant) {
        if self.topics.on_subscribed(topic, peer) {
            if let Some(Channel::Service(Service::Content, _)) = self.topics.get(topic) {
                self.own.repeat_content();
            }
            self.bring_forward(topic, now);
        }
    }

    /// A connected peer is no longer subscribed to a topic.
    pub fn on_unsubscribed(&mut self, topic: &str, peer: &PeerId) {
        self.topics.on_unsubscribed(topic, peer);
    }

    /// A message arrived.
    pub fn on_message(&mut self, message: &Received<'_>, now: Instant) -> Verdict {
        let Some(channel) = self.topics.get(message.topic) else {
            return Verdict::Accept;
        };
        let Some(author) = message.author else {
            return Verdict::Reject;
        };
        // The cheapest questions first: a flood costs no more than them.
        if author == self.local || !self.sources.message(message.source, now) {
            return Verdict::Ignore;
        }
        let heard = match channel {
            Channel::Peers(codec) => self.on_peer(message, author, codec, now),
            Channel::Service(service, codec) => self.on_offer(message, author, service, codec, now),
        };
        match heard {
            Ok(true) => Verdict::Accept,
            Ok(false) => Verdict::Ignore,
            Err(violation) => self.violation(message.source, author, violation, now),
        }
    }

    /// Announces content that this node provides, until [`withdraw_content`](Self::withdraw_content) or until
    /// [`Config::max_content_per_peer`] newer ones were announced.
    ///
    /// # Errors
    /// When content is not announced, or its name is too long.
    pub fn announce_content(
        &mut self,
        content: Content,
        now: Instant,
    ) -> Result<(), AnnounceError> {
        self.offered(Service::Content)?;
        check_content(&content)?;
        self.own
            .add_content(content, self.config.max_content_per_peer());
        self.bring_service_forward(Service::Content, now);
        Ok(())
    }

    /// Whether this node announces that it provides `cid`.
    pub fn announces(&self, cid: &Cid) -> bool {
        self.own.content().any(|content| content.cid == *cid)
    }

    /// This node provides the content no longer; returns whether it was announced.
    pub fn withdraw_content(&mut self, cid: &Cid, now: Instant) -> bool {
        let withdrawn = self.own.remove_content(cid);
        if withdrawn {
            self.bring_service_forward(Service::Content, now);
        }
        withdrawn
    }

    /// Announces this node as a relay, in the words of the relay crate; `None`: it relays no longer.
    ///
    /// # Errors
    /// When relays are not announced, or the announcement is too long.
    pub fn set_relay(&mut self, relay: Option<Bytes>, now: Instant) -> Result<(), AnnounceError> {
        self.offered(Service::Relay)?;
        let relay = relay.filter(|relay| !relay.is_empty());
        relay.as_ref().map_or(Ok(()), check_relay)?;
        let ended = relay.is_none();
        if self.own.set_relay(relay) {
            if ended {
                self.end_relay(now);
            } else {
                self.bring_service_forward(Service::Relay, now);
            }
        }
        Ok(())
    }

    /// Announces this node's role and load.
    ///
    /// # Errors
    /// When roles are not announced, or the role's name is too long.
    pub fn set_role(&mut self, role: Option<Role>, now: Instant) -> Result<(), AnnounceError> {
        self.offered(Service::Role)?;
        let role = role.filter(|role| !role.name.is_empty());
        role.as_ref().map_or(Ok(()), check_role)?;
        if self.own.set_role(role) {
            self.bring_service_forward(Service::Role, now);
        }
        Ok(())
    }

    /// Says goodbye on all topics and takes back what it announced, so that nobody has to wait until this node expires,
    /// and announces nothing from now on. The outputs are the last ones worth publishing.
    pub fn shutdown(&mut self, now: Instant) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        for topic in self.topics.announced() {
            if let Some(Channel::Peers(Codec::Protobuf)) = self.topics.get(&topic) {
                let data = self.peer_announcement(Vec::new());
                self.outputs.push_back(Output::Publish { topic, data });
            }
        }
        if self.own.set_relay(None) {
            self.end_relay(now);
        }
        self.end_content(now);
        self.topics.stop();
    }

    /// Announces and forgets what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((until, peer)) = self.peers.next_expiry()
            && until <= now
        {
            self.forget(peer, now);
        }
        self.departed.forget(now);
        self.offers.handle_timeout(now, &mut self.outputs);
        for topic in self.topics.due(now) {
            self.announce(topic, now);
        }
        self.drive_connector(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self.peers.next_expiry().map(|(at, _)| at);
        let connected = self.connections.len();
        let dial = self
            .connector
            .as_ref()
            .and_then(|connector| connector.poll_timeout(connected));
        let times = [expiry, self.offers.poll_timeout(), self.topics.next(), dial];
        times.into_iter().flatten().min()
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

    /// The peers that announced that they provide `cid`, in order of their ids.
    pub fn providers(&self, cid: &Cid) -> impl Iterator<Item = &PeerId> {
        self.offers.providers(cid)
    }

    /// What `peer` announced that it provides, the latest last.
    pub fn content(&self, peer: &PeerId) -> impl Iterator<Item = &Content> {
        self.offers.content(peer)
    }

    /// The role that `peer` announced.
    pub fn role(&self, peer: &PeerId) -> Option<&Role> {
        self.offers.role(peer)
    }

    /// The relays that announced themselves, in order of their ids.
    pub fn relays(&self) -> impl Iterator<Item = (&PeerId, &Bytes)> {
        self.offers.relays()
    }

    /// Announcers of a service, for metrics.
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "for metrics"))]
    pub(crate) fn announcers(&self, service: Service) -> usize {
        self.offers.len(service)
    }

    /// Known peers, for metrics.
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "for metrics"))]
    pub(crate) fn known(&self) -> usize {
        self.peers.len()
    }

    fn offered(&self, service: Service) -> Result<(), AnnounceError> {
        if self.config.services().any(|offered| offered == service) {
            Ok(())
        } else {
            Err(AnnounceError::Off(service))
        }
    }

    fn drive_connector(&mut self, now: Instant) {
        let Some(connector) = &mut self.connector else {
            return;
        };
        let peers = &self.peers;
        let addresses = |peer: &PeerId| {
            peers
                .get(peer)
                .map(|known| known.addresses.as_slice())
                .unwrap_or_default()
        };
        while let Some(peer) = connector.next(self.connections.len(), now, addresses) {
            self.outputs.push_back(Output::Dial {
                peer,
                addresses: addresses(&peer).to_vec(),
            });
        }
    }
}

#[cfg(test)]
mod tests;
