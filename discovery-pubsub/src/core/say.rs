//! What this node says of itself, and when.

use std::time::Duration;

use bytes::Bytes;
use libp2p_core::Multiaddr;
use web_time::Instant;

#[cfg(feature = "json")]
use super::topics;
use super::{
    Core, Output,
    topics::{Channel, Codec},
};
use crate::{Service, message::PeerAnnouncement};

impl Core {
    pub(super) fn addresses_changed(&mut self, now: Instant) {
        for topic in self.topics.of_peers() {
            self.bring_forward(&topic, now);
        }
    }

    pub(super) fn bring_service_forward(&mut self, service: Service, now: Instant) {
        for topic in self.topics.of_service(service) {
            self.bring_forward(&topic, now);
        }
    }

    /// Announces soon, if there is somebody to hear it.
    pub(super) fn bring_forward(&mut self, topic: &str, now: Instant) {
        if !self.config.listen_only() && !self.stopped {
            self.topics.bring_forward(topic, now, &mut self.rng);
        }
    }

    pub(super) fn announce(&mut self, topic: String, now: Instant) {
        let Some(channel) = self.topics.get(&topic) else {
            return;
        };
        let messages = match channel {
            Channel::Peers(codec) => self.own_peer(codec, now).into_iter().collect(),
            Channel::Service(service, Codec::Protobuf) => {
                self.own_offer(service, now).into_iter().collect()
            }
            Channel::Service(service, Codec::Json) => self.own_json_offers(service, now),
        };
        let unsaid =
            channel == Channel::Service(Service::Content, Codec::Protobuf) && self.own.has_unsaid();
        let said = !messages.is_empty();
        self.topics
            .on_announced(&topic, said, unsaid, now, &mut self.rng);
        let publish = messages.into_iter().map(|data| Output::Publish {
            topic: topic.clone(),
            data,
        });
        self.outputs.extend(publish);
    }

    fn own_peer(&mut self, codec: Codec, now: Instant) -> Option<Vec<u8>> {
        let addresses = self.own.addresses(self.config.max_addresses_per_peer());
        // Nothing to say; a new address brings the topic forward.
        if addresses.is_empty() {
            return None;
        }
        Some(match codec {
            Codec::Protobuf => self.peer_announcement(addresses),
            #[cfg(feature = "json")]
            Codec::Json => {
                let role = self.own.role().map(|role| role.name.as_str());
                crate::json::encode_peer(self.local, &addresses, role, self.wall_clock(now))
            }
            #[cfg(not(feature = "json"))]
            Codec::Json => {
                let _ = (self.wall_clock(now), self.own.role());
                return None;
            }
        })
    }

    pub(super) fn peer_announcement(&self, addresses: Vec<Multiaddr>) -> Vec<u8> {
        PeerAnnouncement {
            public_key: self.public_key.clone(),
            addresses,
        }
        .encode()
    }

    fn own_offer(&mut self, service: Service, now: Instant) -> Option<Vec<u8>> {
        if service == Service::Content && !self.own.has_unsaid() {
            self.own.repeat_content();
        }
        let max_bytes = self.config.max_announcement_bytes();
        let millis = self.wall_millis(now);
        self.own
            .announcement(service, max_bytes, millis)
            .map(|announcement| announcement.encode())
    }

    #[cfg(feature = "json")]
    fn own_json_offers(&mut self, service: Service, now: Instant) -> Vec<Vec<u8>> {
        let addresses = self.own.addresses(self.config.max_addresses_per_peer());
        let clock = self.wall_clock(now);
        match service {
            Service::Content => {
                // Each has a message of its own, told apart by its time.
                let items = self.own.content().take(topics::JSON_BATCH).zip(0u64..);
                items
                    .map(|(content, n)| {
                        let clock = clock + Duration::from_millis(n);
                        crate::json::encode_content(self.local, &addresses, content, clock)
                    })
                    .collect()
            }
            Service::Relay if self.own.relay().is_some() && !addresses.is_empty() => {
                vec![crate::json::encode_relay(self.local, &addresses, clock)]
            }
            _ => Vec::new(),
        }
    }

    #[cfg(not(feature = "json"))]
    fn own_json_offers(&mut self, _: Service, _: Instant) -> Vec<Vec<u8>> {
        let _ = (self.own.content().count(), self.own.relay());
        Vec::new()
    }

    /// Says that this node relays no longer.
    pub(super) fn end_relay(&mut self, now: Instant) {
        let millis = self.wall_millis(now);
        for topic in self.topics.announced() {
            if self.topics.get(&topic) == Some(Channel::Service(Service::Relay, Codec::Protobuf)) {
                let body = crate::Body::Relay(Bytes::new());
                let data = self.own.numbered(body, millis).encode();
                self.outputs.push_back(Output::Publish { topic, data });
            }
        }
    }

    /// Says that this node provides nothing any more.
    pub(super) fn end_content(&mut self, now: Instant) {
        let cids: Vec<_> = self.own.content().map(|content| content.cid).collect();
        for cid in cids {
            self.own.remove_content(&cid);
        }
        for topic in self.topics.announced() {
            if self.topics.get(&topic) == Some(Channel::Service(Service::Content, Codec::Protobuf))
            {
                while let Some(data) = self.own_offer(Service::Content, now) {
                    let topic = topic.clone();
                    self.outputs.push_back(Output::Publish { topic, data });
                }
            }
        }
    }

    fn wall_clock(&self, now: Instant) -> Duration {
        let (start, since_1970) = self.epoch;
        since_1970 + now.saturating_duration_since(start)
    }

    fn wall_millis(&self, now: Instant) -> u64 {
        u64::try_from(self.wall_clock(now).as_millis()).unwrap_or(u64::MAX)
    }
}
