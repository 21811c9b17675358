//! What the engine sends.

use std::net::IpAddr;

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use web_time::Instant;

use super::{Core, Destination, LinkId, Output, port_of, scope};
use crate::dns::{self, ATTRIBUTE, MAX_STRING, Service};

impl Core {
    pub(super) fn refresh_announcements(&mut self, now: Instant) {
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        for id in ids {
            self.refresh_announcement(id, now);
        }
    }

    /// Finds out what to tell on a link, and tells it if that is something new.
    pub(super) fn refresh_announcement(&mut self, id: LinkId, now: Instant) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        let mut service = Service::default();
        for address in &self.listening {
            if !scope::is_told(address, id, link, self.config.scope()) {
                continue;
            }
            let Some(attribute) = attribute(address, self.local) else {
                tracing::debug!(%address, "too long for a TXT record: not told to the local network");
                continue;
            };
            service.attributes.push(attribute);
            if service.ips.is_empty() {
                service.port = port_of(address).unwrap_or_default();
            }
            let ip = match address.iter().next() {
                Some(Protocol::Ip4(ip)) => Some(IpAddr::V4(ip)),
                Some(Protocol::Ip6(ip)) => Some(IpAddr::V6(ip)),
                _ => None,
            };
            service
                .ips
                .extend(ip.filter(|ip| !service.ips.contains(ip)));
        }
        if service == link.service {
            return;
        }
        if service.attributes.is_empty() {
            self.send_goodbye(id);
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.service = service;
            if link.service.attributes.is_empty() {
                link.answers.cancel();
            } else {
                link.announce(&mut self.rng, now);
            }
        }
    }

    pub(super) fn send_due_query(&mut self, id: LinkId, now: Instant) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.refresh_instances(&mut self.rng, now);
        if !link.queries.is_due(now) {
            return;
        }
        let packet = dns::query(
            &link.names,
            link.queries.is_first(),
            link.instances.known_answers(now),
        );
        link.queries.sent(&mut self.rng, now);
        self.counters.queries += 1;
        self.send(id, Destination::Group, packet);
    }

    pub(super) fn send_due_answers(&mut self, id: LinkId, now: Instant) {
        let ttl = self.ttl_seconds();
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let mut packets = Vec::new();
        if link.answers.take_due(&mut self.rng, now) {
            let told = dns::announcement(&link.names, &link.service, ttl, 0);
            packets.extend(told.into_iter().map(|packet| (Destination::Group, packet)));
        }
        while let Some((to, query)) = link.answers.take_due_unicast(now) {
            let told = dns::announcement(&link.names, &link.service, ttl, query);
            packets.extend(
                told.into_iter()
                    .map(|packet| (Destination::Host(to), packet)),
            );
        }
        if link.answers.take_due_meta(now) {
            packets.push((Destination::Group, dns::meta_answer(&link.names, ttl)));
        }
        self.counters.answers += packets.len() as u64;
        for (to, packet) in packets {
            self.send(id, to, packet);
        }
    }

    pub(super) fn send_goodbye(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        for packet in dns::announcement(&link.names, &link.service, 0, 0) {
            self.send(id, Destination::Group, packet);
        }
    }

    fn send(&mut self, link: LinkId, to: Destination, packet: Vec<u8>) {
        self.outputs.push_back(Output::Send { link, to, packet });
    }

    fn ttl_seconds(&self) -> u32 {
        u32::try_from(self.config.ttl().as_secs()).unwrap_or(u32::MAX)
    }
}

/// `dnsaddr=<address>/p2p/<peer>`, if a TXT record can hold it.
fn attribute(address: &Multiaddr, local: libp2p_identity::PeerId) -> Option<Vec<u8>> {
    let address = address.clone().with_p2p(local).ok()?;
    let mut attribute = ATTRIBUTE.to_vec();
    attribute.extend_from_slice(address.to_string().as_bytes());
    (attribute.len() <= MAX_STRING).then_some(attribute)
}
