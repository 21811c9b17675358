//! What others say: who is believed, what it changes, who is forgotten for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    Core, HEAR_GAP, Known, Output, Past, Received, Verdict,
    offers::{Offer, Taken},
    topics::Codec,
};
use crate::{
    Announcement, Config, ProtocolViolation, Service,
    address::{Trust, believed},
    message::PeerAnnouncement,
};

/// A goodbye is a key and nothing else; an RSA key of 4,096 bits takes 560 bytes.
const MAX_GOODBYE_BYTES: usize = 600;

impl Core {
    pub(super) fn violation(
        &mut self,
        source: PeerId,
        author: PeerId,
        violation: ProtocolViolation,
        now: Instant,
    ) -> Verdict {
        if self.sources.complaint(source, now) {
            self.outputs.push_back(Output::ProtocolViolation {
                peer: author,
                source,
                violation,
            });
        }
        // Others pass on whatever is signed, as gossipsub does of itself: only the author should have known.
        if source == author {
            Verdict::Reject
        } else {
            Verdict::Ignore
        }
    }

    pub(super) fn on_peer(
        &mut self,
        message: &Received<'_>,
        author: PeerId,
        codec: Codec,
        now: Instant,
    ) -> Result<bool, ProtocolViolation> {
        if self.is_too_soon(message.topic, &author, now) && !self.is_goodbye(message, author) {
            return Ok(false);
        }
        let digest = (digest(message.data), self.generation);
        if self
            .peers
            .get(&author)
            .is_some_and(|known| known.digest == digest)
        {
            let addresses = None;
            return Ok(self.update(message, author, codec, addresses, now));
        }
        let max_bytes = self.config.max_announcement_bytes();
        let (codec, addresses) = self.read_peer(message, author, codec, max_bytes)?;
        let trust = self.trust(&author);
        // A crowd that names the host of another cannot shut out that one itself.
        let is_connected = self.connections.contains_key(&author);
        let mut seen = BTreeSet::new();
        let addresses: Vec<_> = addresses
            .into_iter()
            .filter_map(|address| {
                believed(address, author, trust, |relay| {
                    self.connections.contains_key(relay)
                })
            })
            .filter(|address| is_connected || self.hosts.admits(&author, address))
            .filter(|address| seen.insert(address.clone()))
            .take(self.config.max_addresses_per_peer())
            .collect();
        if !self.peers.contains(&author) {
            return Ok(self.admit(message, author, codec, (addresses, digest), now));
        }
        Ok(self.update(message, author, codec, Some((addresses, digest)), now))
    }

    /// Whether a known peer, which spoke only just now, says that it goes.
    fn is_goodbye(&self, message: &Received<'_>, author: PeerId) -> bool {
        self.peers.contains(&author)
            && message.data.len() <= MAX_GOODBYE_BYTES
            && PeerAnnouncement::decode(message.data, author, MAX_GOODBYE_BYTES)
                .is_ok_and(|announcement| announcement.addresses.is_empty())
    }

    fn read_peer(
        &self,
        message: &Received<'_>,
        author: PeerId,
        codec: Codec,
        max_bytes: usize,
    ) -> Result<(Codec, Vec<Multiaddr>), ProtocolViolation> {
        if message.data.len() > max_bytes {
            return Err(ProtocolViolation::Oversized);
        }
        #[cfg(feature = "json")]
        if codec == Codec::Json || (self.config.json() && crate::json::is_json(message.data)) {
            let (addresses, _) = crate::json::peer(message.data, author)?;
            return Ok((Codec::Json, addresses));
        }
        let announcement = PeerAnnouncement::decode(message.data, author, max_bytes)?;
        Ok((codec, announcement.addresses))
    }

    /// Of which addresses `peer` is believed.
    fn trust(&self, peer: &PeerId) -> Trust {
        let connected = self.connections.get(peer).copied().unwrap_or_default();
        connected.or(Trust {
            machine: self.config.allow_loopback(),
            private: self.config.allow_private() || self.config.allow_loopback(),
        })
    }

    fn is_too_soon(&mut self, topic: &str, author: &PeerId, now: Instant) -> bool {
        let heard = match self.peers.get(author) {
            Some(known) => known.heard_on.get(topic).copied(),
            None => self.departed.get_mut(author).and_then(|past| past.heard),
        };
        heard.is_some_and(|heard| now < heard + HEAR_GAP)
    }

    /// Hears a known peer again, with these addresses or those it had; returns whether that is news to others.
    fn update(
        &mut self,
        message: &Received<'_>,
        author: PeerId,
        codec: Codec,
        addresses: Option<(Vec<Multiaddr>, (u64, u64))>,
        now: Instant,
    ) -> bool {
        let Some(known) = self.peers.get_mut(&author) else {
            return false;
        };
        let sequence = message.sequence;
        if !sequence.is_none_or(|sequence| known.past.sequences.accept(sequence)) {
            return false;
        }
        let last = known.heard_on.insert(message.topic.to_owned(), now);
        known.heard = now;
        if let Some(last) = last {
            let gap = now.saturating_duration_since(last);
            known.past.pace = gap
                .max(known.past.pace.mul_f64(0.9))
                .min(self.config.peer_ttl());
        }
        let patience = patience(&self.config, codec, known.past.pace);
        if let Some((addresses, digest)) = addresses {
            if addresses.is_empty() {
                // It says goodbye, or it is nowhere that we could go.
                self.forget(author, now);
                return true;
            }
            known.digest = digest;
            let same = known.addresses.len() == addresses.len()
                && addresses
                    .iter()
                    .all(|address| known.addresses.contains(address));
            if !same {
                let before = std::mem::replace(&mut known.addresses, addresses.clone());
                self.hosts.remove(&author, &before);
                self.hosts.insert(author, &addresses);
                self.outputs.push_back(Output::Discovered {
                    peer: author,
                    addresses,
                    topic: message.topic.to_owned(),
                });
            }
        }
        self.peers.touch(&author, (now, now + patience));
        true
    }

    /// Enters a newcomer; returns whether there is room.
    fn admit(
        &mut self,
        message: &Received<'_>,
        author: PeerId,
        codec: Codec,
        (addresses, digest): (Vec<Multiaddr>, (u64, u64)),
        now: Instant,
    ) -> bool {
        if addresses.is_empty() {
            return false;
        }
        let mut past = self.departed.get_mut(&author).cloned().unwrap_or_default();
        if !message
            .sequence
            .is_none_or(|sequence| past.sequences.accept(sequence))
        {
            return false;
        }
        // A neighbour may always announce itself: connections are limited elsewhere.
        if message.source != author && !self.sources.newcomer(message.source, now) {
            return false;
        }
        if let Some(last) = past.heard {
            let gap = now.saturating_duration_since(last);
            past.pace = past.pace.max(gap).min(self.config.peer_ttl());
        }
        let times = (now, now + patience(&self.config, codec, past.pace));
        let proven = self.connections.contains_key(&author);
        let known = Known {
            addresses: addresses.clone(),
            heard: now,
            heard_on: BTreeMap::from([(message.topic.to_owned(), now)]),
            digest,
            past,
        };
        match self
            .peers
            .insert(author, message.source, proven, known, times)
        {
            Ok(Some((evicted, known))) => self.left(evicted, known, now),
            Ok(None) => {}
            Err(()) => return false,
        }
        self.departed.take(&author);
        self.hosts.insert(author, &addresses);
        self.outputs.push_back(Output::Discovered {
            peer: author,
            addresses,
            topic: message.topic.to_owned(),
        });
        if !proven && let Some(connector) = &mut self.connector {
            connector.on_found(author, now, &mut self.rng);
        }
        true
    }

    pub(super) fn forget(&mut self, peer: PeerId, now: Instant) {
        if let Some(known) = self.peers.remove(&peer) {
            self.left(peer, known, now);
        }
    }

    pub(super) fn left(&mut self, peer: PeerId, known: Known, now: Instant) {
        self.hosts.remove(&peer, &known.addresses);
        if let Some(connector) = &mut self.connector {
            connector.on_expired(&peer);
        }
        let past = Past {
            heard: Some(known.heard),
            ..known.past
        };
        self.departed
            .insert(peer, now + self.config.peer_ttl(), past);
        self.outputs.push_back(Output::Expired { peer });
    }

    pub(super) fn on_offer(
        &mut self,
        message: &Received<'_>,
        author: PeerId,
        service: Service,
        codec: Codec,
        now: Instant,
    ) -> Result<bool, ProtocolViolation> {
        if !self.offers.allows(service, &author, now) {
            return Ok(false);
        }
        let Some((sequence, offer)) = self.read_offer(message, author, service, codec)? else {
            return Ok(false);
        };
        if offer.service() != service {
            return Err(ProtocolViolation::Malformed);
        }
        let outputs = &mut self.outputs;
        let taken = match self
            .offers
            .update(author, sequence, offer.clone(), now, outputs)
        {
            Taken::Newcomer => {
                if message.source != author && !self.sources.newcomer(message.source, now) {
                    return Ok(false);
                }
                let who = (
                    author,
                    message.source,
                    self.connections.contains_key(&author),
                );
                self.offers.admit(who, sequence, offer, now, outputs)
            }
            taken => taken,
        };
        Ok(taken == Taken::Yes)
    }

    fn read_offer(
        &self,
        message: &Received<'_>,
        author: PeerId,
        service: Service,
        codec: Codec,
    ) -> Result<Option<(u64, Offer)>, ProtocolViolation> {
        let max_bytes = self.config.max_announcement_bytes();
        if message.data.len() > max_bytes {
            return Err(ProtocolViolation::Oversized);
        }
        match codec {
            Codec::Protobuf => {
                let announcement = Announcement::decode(message.data, max_bytes)?;
                Ok(announcement
                    .map(|Announcement { sequence, body }| (sequence, Offer::Body(body))))
            }
            #[cfg(feature = "json")]
            Codec::Json => self
                .read_json_offer(message.data, author, service)
                .map(Some),
            #[cfg(not(feature = "json"))]
            Codec::Json => {
                let _ = (author, service);
                Ok(None)
            }
        }
    }

    #[cfg(feature = "json")]
    fn read_json_offer(
        &self,
        data: &[u8],
        author: PeerId,
        service: Service,
    ) -> Result<(u64, Offer), ProtocolViolation> {
        if service == Service::Content {
            let (content, sequence) = crate::json::content(data, author)?;
            let body = crate::Body::Content {
                items: vec![content],
                withdrawn: Vec::new(),
            };
            return Ok((sequence, Offer::Body(body)));
        }
        let (addresses, sequence) = crate::json::peer(data, author)?;
        let trust = self.trust(&author);
        let addresses = addresses
            .into_iter()
            .filter_map(|address| {
                believed(address, author, trust, |relay| {
                    self.connections.contains_key(relay)
                })
            })
            .take(self.config.max_addresses_per_peer())
            .collect();
        Ok((sequence, Offer::RelayAt(addresses)))
    }
}

/// Tells one announcement of a peer from the next; nobody gains by a collision with an announcement of their own.
fn digest(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    hasher.finish()
}

/// How long a peer of this pace may be silent until it counts as gone.
fn patience(config: &Config, codec: Codec, pace: Duration) -> Duration {
    // The seed's peers say something every five minutes.
    if codec == Codec::Json {
        return config.peer_ttl();
    }
    let pace = pace.max(config.announce_interval());
    let percent = f64::from(config.stale_after_percent()) / 100.0;
    let patience = Duration::try_from_secs_f64(pace.as_secs_f64() * percent);
    patience.unwrap_or(Duration::MAX).min(config.peer_ttl())
}
