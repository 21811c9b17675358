//! The engine: facts in, packets and events out. No clock, no socket, no task; see [`Core`].

mod answers;
mod link;
mod scope;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use rand::{SeedableRng as _, rngs::StdRng};
use web_time::Instant;

use crate::{
    Config, Event, Family,
    dns::{self, Asked, Message, Query, Response, Text},
};
use link::{LinkState, Said};
use table::{Change, Table, Witness};

/// Records are forgotten after this time whatever they declare: the longest that RFC 6762 §10 recommends.
const MAX_TTL: Duration = Duration::from_secs(75 * 60);
/// Listen addresses that are looked at; libp2p gives one per interface and transport.
const MAX_LISTENING: usize = 1024;

/// An interface in one address family: what a packet comes in by and leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId {
    /// The operating system's index of the interface.
    pub interface: u32,
    /// The address family.
    pub family: Family,
}

/// An address of an interface, and which others are on the same link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// The interface's own address.
    pub address: IpAddr,
    /// Bits that all addresses on the link have in common: 0 to 32, or to 128.
    pub prefix: u8,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To the family's group on the link, port 5353.
    Group,
    /// To one host on the link.
    Host(SocketAddr),
}

/// What the engine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send this packet, from port 5353 of this link.
    Send {
        /// By which link.
        link: LinkId,
        /// To whom.
        to: Destination,
        /// The DNS message: at most 1,400 bytes.
        packet: Vec<u8>,
    },
    /// Tell the application.
    Event(Event),
}

/// What happened so far, for the metrics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Packets that came in.
    pub received: u64,
    /// Packets refused because they are no DNS messages.
    pub malformed: u64,
    /// Packets ignored because their sender is not on the link (RFC 6762 §11).
    pub off_link: u64,
    /// Records ignored because nobody could dial them, or because they have no business on this link.
    pub unusable: u64,
    /// Records ignored, or dropped for others, because a bound was reached.
    pub over_limit: u64,
    /// Queries sent.
    pub queries: u64,
    /// Queries not sent because another host had just asked the same (RFC 6762 §7.3).
    pub queries_suppressed: u64,
    /// Answers and announcements sent, in packets.
    pub answers: u64,
    /// Answers not given because the asker knew them (RFC 6762 §7.1).
    pub answers_suppressed: u64,
}

/// Multicast DNS for libp2p peers as a state machine.
///
/// Every method that takes `&mut self` may produce outputs: drain [`Core::poll_output`] afterwards, then arm a timer for
/// [`Core::poll_timeout`] and call [`Core::handle_timeout`] when it fires. All collections are bounded by [`Config`]; nothing that a packet
/// contains panics or stays longer than 75 minutes.
#[derive(Debug)]
pub struct Core {
    local: PeerId,
    config: Config,
    rng: StdRng,
    links: BTreeMap<LinkId, LinkState>,
    listening: BTreeSet<Multiaddr>,
    table: Table,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Core {
    /// An engine for the peer `local`. The seed decides its names and its delays; take it from the system's randomness.
    pub fn new(local: PeerId, config: Config, seed: [u8; 32]) -> Self {
        Self {
            local,
            rng: StdRng::from_seed(seed),
            links: BTreeMap::new(),
            listening: BTreeSet::new(),
            table: Table::new(&config),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            config,
        }
    }

    /// The link can be used, or its addresses have changed: `networks` are those of its family. Beyond
    /// [`Config::max_interfaces`] links it is ignored.
    pub fn on_link_up(&mut self, id: LinkId, networks: Vec<Network>, loopback: bool, now: Instant) {
        let room = self.links.len() < self.config.max_interfaces();
        match self.links.get_mut(&id) {
            Some(link) => {
                if link.networks == networks && link.loopback == loopback {
                    return;
                }
                link.networks = networks;
                link.loopback = loopback;
                // What was no use before may be of use now.
                link.instances.forget_said();
                // RFC 6762 §8: what is known may be wrong after a change of the network.
                link.queries.restart(&mut self.rng, now);
            }
            None if room => {
                let link = LinkState::new(networks, loopback, &self.config, &mut self.rng, now);
                self.links.insert(id, link);
            }
            None => return,
        }
        self.refresh_announcement(id, now);
    }

    /// The link is gone, with everything that was learned over it.
    pub fn on_link_down(&mut self, id: LinkId, _now: Instant) {
        if self.links.remove(&id).is_some() {
            let changes = self.table.forget(|witness| witness.link == id);
            self.emit(changes);
        }
    }

    /// The node listens on `address`. Unspecified addresses are no help: pass those of the interfaces, as libp2p's listeners do.
    pub fn on_listening(&mut self, address: &Multiaddr, now: Instant) {
        if self.listening.len() < MAX_LISTENING && self.listening.insert(address.clone()) {
            self.refresh_announcements(now);
        }
    }

    /// The node does not listen on `address` any more.
    pub fn on_not_listening(&mut self, address: &Multiaddr, now: Instant) {
        if self.listening.remove(address) {
            self.refresh_announcements(now);
        }
    }

    /// The node has a connection to `peer`, so it exists: it is not given up for others when the table is full.
    pub fn on_connected(&mut self, peer: &PeerId) {
        self.table.set_connected(peer, true);
    }

    /// The last connection to `peer` is closed.
    pub fn on_disconnected(&mut self, peer: &PeerId) {
        self.table.set_connected(peer, false);
    }

    /// A packet came in by `id`, sent by `source`.
    pub fn on_packet(&mut self, id: LinkId, source: SocketAddr, packet: &[u8], now: Instant) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        self.counters.received += 1;
        // RFC 6762 §11: only those on the same link.
        if !scope::is_on_link(source.ip(), link) {
            self.counters.off_link += 1;
            return;
        }
        match dns::decode(packet, &link.names) {
            Ok(Some(Message::Query(query))) => self.on_query(id, source, &query, now),
            Ok(Some(Message::Response(response))) => {
                self.on_response(id, source.ip(), &response, now);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::trace!(%source, %error, "not a DNS message");
                self.counters.malformed += 1;
            }
        }
    }

    /// Does what is due. Early, late and spurious calls are fine.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, link)| link.next_timeout().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.send_due_query(id, now);
            self.send_due_answers(id, now);
        }
        let changes = self.table.expire(now);
        self.emit(changes);
    }

    /// When [`Core::handle_timeout`] is wanted next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.links
            .values()
            .filter_map(LinkState::next_timeout)
            .chain(self.table.next_expiry())
            .min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Says goodbye on all links (RFC 6762 §10.1), so that others forget this node at once. Send what comes out and drop the engine.
    pub fn shut_down(&mut self) {
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        for id in ids {
            self.send_goodbye(id);
        }
        self.links.clear();
    }

    /// The peers that are known now, in order of their ids.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &PeerId> {
        self.table.peers()
    }

    /// The known addresses of `peer`, each ending in `/p2p/<peer>`; empty for an unknown peer.
    pub fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.table.addresses(peer)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The service that is searched and the name under which this node is in it, on its first link.
    #[cfg(test)]
    pub(crate) fn names(&self) -> &crate::dns::Names {
        &self.links.values().next().unwrap().names
    }

    fn on_query(&mut self, id: LinkId, source: SocketAddr, query: &Query, now: Instant) {
        let ttl = self.config.ttl();
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if query.meta.is_some() {
            link.answer_meta(&mut self.rng, now);
        }
        if query.peers == Some(Asked::Multicast)
            && source.port() == MDNS_PORT
            && link.knows_all(&query.known, now)
            && link.queries.asked_by_another(&mut self.rng, now)
        {
            self.counters.queries_suppressed += 1;
        }
        // RFC 6762 §7.1: an asker who knows the record for more than half of its life gets no answer.
        let half = ttl.as_secs() / 2;
        let known = query
            .known
            .iter()
            .any(|(name, ttl)| *name == link.names.instance && u64::from(*ttl) >= half);
        let asked = match (query.peers, query.ourselves) {
            (_, Some(asked)) => asked,
            (Some(_), None) if known => {
                self.counters.answers_suppressed += 1;
                return;
            }
            (Some(asked), None) => asked,
            (None, None) => return,
        };
        link.answer(asked, source, query.id, &mut self.rng, now);
    }

    fn on_response(&mut self, id: LinkId, source: IpAddr, response: &Response<'_>, now: Instant) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let mut changes = Vec::new();
        for (instance, ttl) in &response.pointers {
            if *instance == link.names.instance {
                continue;
            }
            if *ttl == 0 {
                // Whoever sends this must be the one who told the addresses; the table looks.
                let witness = Witness::new(id, source, instance);
                match link.instances.owner(instance) {
                    Some(owner) if !self.table.is_witness(&owner, &witness) => {}
                    owner => {
                        link.instances.remove(instance);
                        let gone = owner.map(|owner| self.table.forget_instance(owner, &witness));
                        changes.extend(gone.into_iter().flatten());
                    }
                }
            } else {
                let ttl = Duration::from_secs((*ttl).into()).min(MAX_TTL);
                link.instances.insert(instance, ttl, now);
            }
        }
        for text in &response.texts {
            let ours = self
                .links
                .get(&id)
                .is_some_and(|link| link.names.instance == text.name);
            if !ours {
                changes.extend(self.on_text(id, source, text, now));
            }
        }
        self.emit(changes);
    }

    /// What one name says about its peer.
    fn on_text(
        &mut self,
        id: LinkId,
        source: IpAddr,
        text: &Text<'_>,
        now: Instant,
    ) -> Vec<Change> {
        let Some(link) = self.links.get_mut(&id) else {
            return Vec::new();
        };
        let witness = Witness::new(id, source, &text.name);
        let ttl = Duration::from_secs(text.ttl.into()).min(MAX_TTL);
        // Most of what is heard has been heard before: the same bytes need no parsing.
        let said = Said::new(source, text);
        if text.ttl > 0
            && let Some((owner, addresses)) = link.instances.said_before(&text.name, &said)
            && self.table.refresh(owner, &witness, ttl, now) >= addresses
        {
            return Vec::new();
        }
        let mut changes = Vec::new();
        // One name is one peer.
        let mut owner = None;
        for string in text.strings() {
            let Some((peer, address)) = scope::parse_attribute(string) else {
                self.counters.unusable += u64::from(!string.is_empty());
                continue;
            };
            if peer == self.local {
                continue;
            }
            if *owner.get_or_insert(peer) != peer
                || !scope::is_believed(&address, source, link, self.config.scope())
            {
                self.counters.unusable += 1;
            } else if text.ttl == 0 {
                changes.extend(self.table.forget_address(peer, &address, &witness));
            } else {
                changes.extend(self.table.insert(peer, address, &witness, ttl, now));
            }
        }
        if let Some(owner) = owner
            && text.ttl > 0
        {
            if text.flush {
                self.table.flush(owner, &witness, now);
            }
            let addresses = self.table.count(&owner, &witness, now);
            // What found no place is read again next time: there may be one then.
            let said = (!changes.contains(&Change::Refused)).then_some((said, addresses));
            link.instances.set_owner(&text.name, owner, said);
        }
        changes
    }

    /// Turns changes of the table into events, one a peer and kind.
    fn emit(&mut self, changes: Vec<Change>) {
        let mut gone: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
        let mut new: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
        for change in changes {
            self.counters.over_limit +=
                u64::from(matches!(change, Change::Displaced(..) | Change::Refused));
            match change {
                Change::Learned(peer, address) => new.entry(peer).or_default().push(address),
                Change::Lost(peer, address) | Change::Displaced(peer, address)
                    if forget(&mut new, &peer, &address) => {}
                Change::Lost(peer, address) | Change::Displaced(peer, address) => {
                    gone.entry(peer).or_default().push(address);
                }
                Change::Refused => {}
            }
        }
        let gone = gone
            .into_iter()
            .map(|(peer, addresses)| Event::Expired { peer, addresses });
        let new = new
            .into_iter()
            .map(|(peer, addresses)| Event::Discovered { peer, addresses });
        self.outputs.extend(gone.chain(new).map(Output::Event));
    }
}

/// Takes an address back that nobody has been told of yet.
fn forget(new: &mut BTreeMap<PeerId, Vec<Multiaddr>>, peer: &PeerId, address: &Multiaddr) -> bool {
    let Some(addresses) = new.get_mut(peer) else {
        return false;
    };
    let before = addresses.len();
    addresses.retain(|known| known != address);
    let found = addresses.len() < before;
    if addresses.is_empty() {
        new.remove(peer);
    }
    found
}

/// The port of multicast DNS (RFC 6762 §3).
pub(crate) const MDNS_PORT: u16 = 5353;

/// The port of an address, for the SRV record.
fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|protocol| match protocol {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
