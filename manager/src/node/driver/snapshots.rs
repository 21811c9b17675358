//! What the node tells of itself: addresses, counts, status and peers.

use std::{collections::BTreeSet, time::Duration};

use anypath_dht as dht;
use libp2p::{Multiaddr, multiaddr::Protocol};

use super::Driver;
use crate::{
    bootstrap::with_peer,
    node::now,
    status::{
        ConnectionCounts, ConnectionStatus, PeerStatus, PortMappingStatus, ReservationStatus,
        Status,
    },
    strategy::Path,
};

impl Driver {
    /// Where others can reach this node, with its peer id.
    pub(super) fn own_addresses(&self) -> Vec<Multiaddr> {
        let local = *self.swarm.local_peer_id();
        let listeners = self
            .swarm
            .listeners()
            .chain(self.swarm.external_addresses());
        listeners
            .map(|address| match with_peer(address) {
                Some(_) => address.clone(),
                None => address.clone().with(Protocol::P2p(local)),
            })
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    fn counts(&self) -> ConnectionCounts {
        let connections = self
            .peers
            .values()
            .flat_map(|peer| peer.connections.values());
        connections.fold(ConnectionCounts::default(), |mut counts, connection| {
            match connection.path {
                Path::Direct => counts.direct += 1,
                Path::Relayed => counts.relayed += 1,
            }
            counts
        })
    }

    pub(super) fn count_connections(&self) {
        self.metrics
            .set_connections(self.counts(), self.peers.len());
    }

    pub(super) fn status(&self) -> Status {
        let behaviour = self.swarm.behaviour();
        let text = |addresses: Vec<&Multiaddr>| {
            addresses
                .into_iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        Status {
            peer_id: self.swarm.local_peer_id().to_string(),
            agent: crate::behaviour::AGENT.to_owned(),
            listen_addrs: text(self.swarm.listeners().collect()),
            external_addrs: text(self.swarm.external_addresses().collect()),
            observed_addrs: behaviour
                .holepunch
                .observed_addresses()
                .into_iter()
                .map(|observed| observed.address.to_string())
                .collect(),
            nat_status: behaviour.holepunch.nat_status().as_str().to_owned(),
            nat: behaviour.holepunch.nat_report().into(),
            port_mappings: behaviour
                .holepunch
                .port_mappings()
                .iter()
                .map(|mapping| PortMappingStatus {
                    protocol: mapping.protocol.as_str(),
                    address: mapping.address.to_string(),
                    local: mapping.local.to_string(),
                    confirmed: self
                        .swarm
                        .external_addresses()
                        .any(|confirmed| *confirmed == mapping.address),
                })
                .collect(),
            reservations: behaviour
                .relay_client
                .reservations()
                .into_iter()
                .map(|reservation| ReservationStatus {
                    relay: reservation.relay.to_string(),
                    address: reservation.address.to_string(),
                    limit_bytes: reservation.limit.and_then(|limit| limit.bytes),
                    configured: reservation.configured,
                    rtt_ms: reservation.rtt.map(whole_ms),
                    age_ms: whole_ms(now().saturating_duration_since(reservation.since)),
                })
                .collect(),
            relays_known: behaviour.relay_client.known_relays(),
            relay_server: behaviour.relay_server.is_enabled(),
            dht_mode: match behaviour.dht.as_ref().map(|dht| dht.inner().mode()) {
                None => "off",
                Some(dht::Mode::Client) => "client",
                Some(dht::Mode::Server) => "server",
            }
            .to_owned(),
            connections: self.counts(),
            peers: self.peers.len(),
            uptime_secs: now().saturating_duration_since(self.started).as_secs(),
        }
    }

    pub(super) fn peer_statuses(&self) -> Vec<PeerStatus> {
        let streams = &self.swarm.behaviour().streams;
        let peers = self.peers.iter();
        peers
            .map(|(peer, state)| PeerStatus {
                peer_id: peer.to_string(),
                agent: state.agent.clone(),
                connections: state
                    .connections
                    .iter()
                    .map(|(id, connection)| ConnectionStatus {
                        id: id.to_string(),
                        address: connection.address.to_string(),
                        path: connection.path,
                        limited: connection.limited,
                        transport: transport_of(&connection.address),
                        inbound: connection.inbound,
                        streams: streams.streams_on(*id),
                    })
                    .collect(),
            })
            .collect()
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn transport_of(address: &Multiaddr) -> &'static str {
    let until_circuit = address
        .iter()
        .take_while(|part| *part != Protocol::P2pCircuit);
    anypath_holepunch::Transport::of(&until_circuit.collect()).as_str()
}
