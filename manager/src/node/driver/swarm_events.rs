//! What the swarm reports: connections that come and go, dials that fail, listeners.

use libp2p::{
    PeerId,
    core::ConnectedPoint,
    multiaddr::Protocol,
    swarm::{ConnectionId, SwarmEvent},
};

use super::{Connection, Driver, dials::Unknown, snapshots::transport_of};
use crate::{
    behaviour::BehaviourEvent,
    bootstrap::with_peer,
    event::Event,
    node::now,
    strategy::{Established, Path},
    streams::path_of,
};

impl Driver {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => {
                self.metrics.record(&event);
                for command in self.wiring.on_event(event) {
                    self.on_wiring(command);
                }
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                tracing::debug!(peer = %peer_id, connection = %connection_id, ?cause, "connection closed");
                if let Some(state) = self.peers.get_mut(&peer_id) {
                    state.connections.remove(&connection_id);
                    if state.connections.is_empty() {
                        self.peers.remove(&peer_id);
                    }
                }
                self.wiring.on_closed(connection_id);
                self.strategy.on_closed(connection_id, now());
                self.count_connections();
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => {
                self.on_unknown_failed(connection_id, &error);
                if let Some(peer) = peer_id.filter(|_| self.dials.contains_key(&connection_id)) {
                    self.note_dial_error(peer, &error);
                }
                self.on_dial_failed(connection_id, &error);
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::info!(%address, "listening");
                self.emit(Event::Listening { address });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } if Path::of(&address) == Path::Direct => {
                self.strategy.on_network_changed();
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a listener failed");
            }
            _ => {}
        }
    }

    fn on_established(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        let path = path_of(endpoint);
        let address = endpoint.get_remote_address().clone();
        tracing::debug!(%peer, %connection, %address, ?path, "connected");
        let dial = self.dials.remove(&connection);
        match (self.unknown.remove(&connection), endpoint) {
            (Some(Unknown::Connect(_, reply)), _) => drop(reply.send(Ok(peer))),
            (Some(Unknown::Session(session)), _) => {
                let bitswap = &mut self.swarm.behaviour_mut().bitswap;
                self.fetches.add_peer(session, peer, None, bitswap);
            }
            (None, _) => {}
        }
        if path == Path::Direct {
            let local = match endpoint {
                ConnectedPoint::Listener { local_addr, .. } => Some(local_addr.clone()),
                ConnectedPoint::Dialer { .. } => None,
            };
            // What others see of a dial tells of the NAT only where it came from the listening socket.
            if local.is_some() || matches!(transport_of(&address), "tcp" | "quic") {
                self.wiring.on_direct(connection, local);
            }
            if endpoint.is_dialer() {
                let with_id = if with_peer(&address).is_some() {
                    address.clone()
                } else {
                    address.clone().with(Protocol::P2p(peer))
                };
                self.known.on_dialled(peer, with_id);
            }
        }
        self.peers.entry(peer).or_default().connections.insert(
            connection,
            Connection {
                path,
                limited: path == Path::Relayed,
                inbound: endpoint.is_listener(),
                address: address.clone(),
            },
        );
        self.dial_errors.remove(&peer);
        for reply in self.connecting.remove(&peer).unwrap_or_default() {
            drop(reply.send(Ok(peer)));
        }
        let quic = transport_of(&address) == "quic";
        self.strategy.on_established(
            Established {
                connection,
                peer,
                path,
                quic,
                dial,
            },
            now(),
        );
        self.protect(peer);
        self.count_connections();
    }
}
