//! What others offer: content, relaying, roles.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    Output,
    departed::Departed,
    limits::{Bucket, Rate},
    table::Table,
};
use crate::{Body, Content, Role, Service, config::Config};

/// Announcements of one author for one service: what a busy node says at once, then one in five seconds.
const AUTHOR: Rate = Rate {
    per_second: 0.2,
    burst: 8.0,
};

/// Announcements of a service that its author may miss until it is forgotten.
const MISSED: u32 = 5;
/// The same for content, which comes more seldom.
const MISSED_CONTENT: u32 = 3;

/// What an announcement says, whichever its encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Offer {
    Body(Body),
    /// The seed's relays announce addresses only.
    #[cfg_attr(not(feature = "json"), expect(dead_code, reason = "they speak JSON"))]
    RelayAt(Vec<Multiaddr>),
}

impl Offer {
    pub(super) fn service(&self) -> Service {
        match self {
            Self::Body(body) => body.service(),
            Self::RelayAt(_) => Service::Relay,
        }
    }

    /// Whether it says that something is offered no longer, and nothing else.
    fn is_withdrawal(&self) -> bool {
        match self {
            Self::Body(Body::Content { items, .. }) => items.is_empty(),
            Self::Body(Body::Relay(relay)) => relay.is_empty(),
            Self::Body(Body::Role(_)) => false,
            Self::RelayAt(addresses) => addresses.is_empty(),
        }
    }
}

#[derive(Debug)]
enum Value {
    Content(VecDeque<(Content, Instant)>),
    Relay(Bytes),
    RelayAt(Vec<Multiaddr>),
    Role(Role),
}

#[derive(Debug)]
struct Record {
    sequence: u64,
    bucket: Bucket,
    value: Value,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// Old, too soon, or there is no room.
    No,
    /// Its author is unknown: whoever passed it on has to be asked first, see [`Offers::admit`].
    Newcomer,
}

#[derive(Debug)]
struct Known {
    table: Table<Record>,
    departed: Departed<u64>,
    ttl: Duration,
}

/// The announcers of each service in use.
#[derive(Debug)]
pub(super) struct Offers {
    max_content: usize,
    services: BTreeMap<Service, Known>,
    providers: BTreeMap<Cid, BTreeSet<PeerId>>,
}

impl Offers {
    pub(super) fn new(config: &Config) -> Self {
        let known = |service| {
            let ttl = match service {
                Service::Content => config.content_interval() * MISSED_CONTENT,
                Service::Relay | Service::Role => config.service_interval() * MISSED,
            };
            let known = Known {
                table: Table::new(config.max_peers()),
                departed: Departed::new(config.max_peers()),
                ttl,
            };
            (service, known)
        };
        Self {
            max_content: config.max_content_per_peer(),
            services: config.services().map(known).collect(),
            providers: BTreeMap::new(),
        }
    }

    /// Whether a message of `author` is worth reading.
    pub(super) fn allows(&mut self, service: Service, author: &PeerId, now: Instant) -> bool {
        let record = self
            .services
            .get_mut(&service)
            .and_then(|known| known.table.get_mut(author));
        record.is_none_or(|record| record.bucket.take(AUTHOR, now))
    }

    /// Takes an offer of a known author.
    pub(super) fn update(
        &mut self,
        author: PeerId,
        sequence: u64,
        offer: Offer,
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) -> Taken {
        let service = offer.service();
        let Some(known) = self.services.get_mut(&service) else {
            return Taken::No;
        };
        let Some(record) = known.table.get_mut(&author) else {
            let departed = known.departed.get_mut(&author);
            let is_old = departed.is_some_and(|last| sequence <= *last);
            return if is_old || offer.is_withdrawal() {
                Taken::No
            } else {
                Taken::Newcomer
            };
        };
        if sequence <= record.sequence {
            return Taken::No;
        }
        record.sequence = sequence;
        if offer.is_withdrawal() && service != Service::Content {
            self.remove(service, author, now, outputs);
            return Taken::Yes;
        }
        let ttl = known.ttl;
        match (&mut record.value, offer) {
            (Value::Content(have), Offer::Body(Body::Content { items, withdrawn })) => {
                let changes = Changes::make(have, items, &withdrawn, self.max_content, now, ttl);
                changes.tell(author, &mut self.providers, outputs);
            }
            (value, offer) => {
                let new = single(offer);
                let changed = match (&*value, &new) {
                    (Value::Relay(a), Value::Relay(b)) => a != b,
                    (Value::RelayAt(a), Value::RelayAt(b)) => a != b,
                    (Value::Role(a), Value::Role(b)) => a != b,
                    _ => true,
                };
                if changed {
                    outputs.extend(output(author, &new));
                    *value = new;
                }
            }
        }
        known.table.touch(&author, (now, now + ttl));
        Taken::Yes
    }

    /// Enters a newcomer whom `source` brought.
    pub(super) fn admit(
        &mut self,
        (author, source, proven): (PeerId, PeerId, bool),
        sequence: u64,
        offer: Offer,
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) -> Taken {
        let service = offer.service();
        let Some(known) = self.services.get_mut(&service) else {
            return Taken::No;
        };
        let mut bucket = Bucket::full(AUTHOR, now);
        bucket.take(AUTHOR, now);
        let value = match &offer {
            Offer::Body(Body::Content { .. }) => Value::Content(VecDeque::new()),
            offer => single(offer.clone()),
        };
        // Content comes with the update below.
        let told = output(author, &value);
        let before = sequence.saturating_sub(1);
        let record = Record {
            sequence: before,
            bucket,
            value,
        };
        let times = (now, now + known.ttl);
        match known.table.insert(author, source, proven, record, times) {
            Ok(Some((evicted, record))) => self.left(service, evicted, &record, now, outputs),
            Ok(None) => {}
            Err(()) => return Taken::No,
        }
        outputs.extend(told);
        if sequence == before {
            return Taken::Yes;
        }
        self.update(author, sequence, offer, now, outputs)
    }

    pub(super) fn prove(&mut self, peer: &PeerId) {
        for known in self.services.values_mut() {
            known.table.prove(peer);
        }
    }

    /// Forgets what nobody repeats.
    pub(super) fn handle_timeout(&mut self, now: Instant, outputs: &mut VecDeque<Output>) {
        let services: Vec<_> = self.services.keys().copied().collect();
        for service in services {
            while let Some(known) = self.services.get(&service)
                && let Some((until, peer)) = known.table.next_expiry()
                && until <= now
            {
                self.remove(service, peer, now, outputs);
            }
            if let Some(known) = self.services.get_mut(&service) {
                known.departed.forget(now);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let tables = self.services.values();
        tables
            .filter_map(|known| known.table.next_expiry().map(|(at, _)| at))
            .min()
    }

    pub(super) fn providers(&self, cid: &Cid) -> impl Iterator<Item = &PeerId> {
        self.providers.get(cid).into_iter().flatten()
    }

    pub(super) fn content(&self, peer: &PeerId) -> impl Iterator<Item = &Content> {
        let items = match self.value(Service::Content, peer) {
            Some(Value::Content(items)) => Some(items),
            _ => None,
        };
        items.into_iter().flatten().map(|(content, _)| content)
    }

    pub(super) fn role(&self, peer: &PeerId) -> Option<&Role> {
        match self.value(Service::Role, peer)? {
            Value::Role(role) => Some(role),
            _ => None,
        }
    }

    pub(super) fn relays(&self) -> impl Iterator<Item = (&PeerId, &Bytes)> {
        let known = self.services.get(&Service::Relay).into_iter();
        known
            .flat_map(|known| known.table.iter())
            .filter_map(|(peer, record)| match &record.value {
                Value::Relay(bytes) => Some((peer, bytes)),
                _ => None,
            })
    }

    pub(super) fn len(&self, service: Service) -> usize {
        self.services
            .get(&service)
            .map_or(0, |known| known.table.len())
    }

    fn value(&self, service: Service, peer: &PeerId) -> Option<&Value> {
        let known = self.services.get(&service)?;
        known.table.get(peer).map(|record| &record.value)
    }

    fn remove(
        &mut self,
        service: Service,
        peer: PeerId,
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) {
        let known = self.services.get_mut(&service);
        if let Some(record) = known.and_then(|known| known.table.remove(&peer)) {
            self.left(service, peer, &record, now, outputs);
        }
    }

    fn left(
        &mut self,
        service: Service,
        peer: PeerId,
        record: &Record,
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) {
        if let Some(known) = self.services.get_mut(&service) {
            known
                .departed
                .insert(peer, now + known.ttl, record.sequence);
        }
        if let Value::Content(items) = &record.value {
            for (content, _) in items {
                unlist(&mut self.providers, &content.cid, &peer);
            }
        }
        outputs.push_back(Output::OfferExpired { peer, service });
    }
}

/// The value of a service that has one of each author.
fn single(offer: Offer) -> Value {
    match offer {
        Offer::Body(Body::Relay(bytes)) => Value::Relay(bytes),
        Offer::Body(Body::Role(role)) => Value::Role(role),
        Offer::Body(Body::Content { .. }) => Value::Content(VecDeque::new()),
        Offer::RelayAt(addresses) => Value::RelayAt(addresses),
    }
}

fn output(peer: PeerId, value: &Value) -> Option<Output> {
    match value {
        Value::Content(_) => None,
        Value::Relay(announcement) => Some(Output::Relay {
            peer,
            announcement: announcement.clone(),
        }),
        Value::RelayAt(addresses) => Some(Output::RelayAddresses {
            peer,
            addresses: addresses.clone(),
        }),
        Value::Role(role) => Some(Output::Role {
            peer,
            role: role.clone(),
        }),
    }
}

fn unlist(providers: &mut BTreeMap<Cid, BTreeSet<PeerId>>, cid: &Cid, peer: &PeerId) {
    if let Some(peers) = providers.get_mut(cid) {
        peers.remove(peer);
        if peers.is_empty() {
            providers.remove(cid);
        }
    }
}

/// What an announcement of content changes in what is known of its author.
struct Changes {
    added: Vec<Content>,
    removed: Vec<Cid>,
}

impl Changes {
    fn make(
        have: &mut VecDeque<(Content, Instant)>,
        items: Vec<Content>,
        withdrawn: &[Cid],
        max: usize,
        now: Instant,
        ttl: Duration,
    ) -> Self {
        let mut added = Vec::new();
        let mut removed = Vec::new();
        have.retain(|(content, heard)| {
            let stays = *heard + ttl > now && !withdrawn.contains(&content.cid);
            if !stays {
                removed.push(content.cid);
            }
            stays
        });
        for content in items {
            let before = have.iter().position(|(known, _)| known.cid == content.cid);
            let known = before.and_then(|at| have.remove(at));
            if known.is_none_or(|(known, _)| known != content) {
                added.retain(|other: &Content| other.cid != content.cid);
                added.push(content.clone());
            }
            have.push_back((content, now));
        }
        while have.len() > max
            && let Some((content, _)) = have.pop_front()
        {
            added.retain(|other| other.cid != content.cid);
            removed.push(content.cid);
        }
        removed.retain(|cid| have.iter().all(|(content, _)| content.cid != *cid));
        Self { added, removed }
    }

    fn tell(
        self,
        peer: PeerId,
        providers: &mut BTreeMap<Cid, BTreeSet<PeerId>>,
        outputs: &mut VecDeque<Output>,
    ) {
        for cid in &self.removed {
            unlist(providers, cid, &peer);
        }
        for content in &self.added {
            providers.entry(content.cid).or_default().insert(peer);
        }
        if !self.added.is_empty() {
            outputs.push_back(Output::Content {
                peer,
                items: self.added,
            });
        }
        if !self.removed.is_empty() {
            outputs.push_back(Output::ContentWithdrawn {
                peer,
                cids: self.removed,
            });
        }
    }
}
