//! Keeps a behaviour off relayed connections.
//!
//! Gossipsub and Kademlia would spend what a relay allows on chatter, and the limit of a circuit is
//! known only after the connection is up. They lose little: DHT servers are public, gossip comes
//! round by other peers, and a go peer that sees gossipsub on a relayed and then on a direct
//! connection stops gossiping with us (notes/rust-libp2p.md §6). So they see direct connections
//! only, numbered as if there were no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    task::{Context, Poll, ready},
};

use either::Either;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
        dummy,
    },
};

use crate::strategy::Path;

/// `B` on direct connections, nothing on relayed ones.
pub(crate) struct Unrelayed<B> {
    inner: B,
    direct: BTreeMap<PeerId, BTreeSet<ConnectionId>>,
}

impl<B> Unrelayed<B> {
    pub(crate) fn new(inner: B) -> Self {
        Self {
            inner,
            direct: BTreeMap::new(),
        }
    }

    pub(crate) fn inner(&self) -> &B {
        &self.inner
    }

    pub(crate) fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Unrelayed<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner
            .handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if Path::of(local) == Path::Relayed {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner
            .handle_established_inbound_connection(connection, peer, local, remote)
            .map(Either::Left)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner
            .handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if Path::of(address) == Path::Relayed {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner
            .handle_established_outbound_connection(connection, peer, address, role, port_use)
            .map(Either::Left)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) if event.endpoint.is_relayed() => {}
            FromSwarm::ConnectionEstablished(event) => {
                let direct = self.direct.entry(event.peer_id).or_default();
                let other_established = direct.len();
                direct.insert(event.connection_id);
                let event = ConnectionEstablished {
                    other_established,
                    ..event
                };
                self.inner
                    .on_swarm_event(FromSwarm::ConnectionEstablished(event));
            }
            FromSwarm::ConnectionClosed(event) => {
                let Some(direct) = self.direct.get_mut(&event.peer_id) else {
                    return;
                };
                if !direct.remove(&event.connection_id) {
                    return;
                }
                let remaining_established = direct.len();
                if remaining_established == 0 {
                    self.direct.remove(&event.peer_id);
                }
                let event = ConnectionClosed {
                    remaining_established,
                    ..event
                };
                self.inner
                    .on_swarm_event(FromSwarm::ConnectionClosed(event));
            }
            FromSwarm::AddressChange(event) if event.new.is_relayed() => {}
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Either::Left(event) => self
                .inner
                .on_connection_handler_event(peer, connection, event),
            Either::Right(never) => match never {},
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            let action = ready!(self.inner.poll(cx));
            let ToSwarm::NotifyHandler {
                peer_id,
                handler,
                event,
            } = action
            else {
                return Poll::Ready(action.map_in(Either::Left));
            };
            // "Any" means any that it knows of.
            let connection = match handler {
                NotifyHandler::One(connection) => Some(connection),
                NotifyHandler::Any => self
                    .direct
                    .get(&peer_id)
                    .and_then(|direct| direct.first().copied()),
            };
            if let Some(connection) = connection {
                return Poll::Ready(ToSwarm::NotifyHandler {
                    peer_id,
                    handler: NotifyHandler::One(connection),
                    event: Either::Left(event),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{core::ConnectedPoint, multiaddr::Protocol};

    use super::*;

    /// Remembers what it was told.
    #[derive(Default)]
    struct Recorder(Vec<(ConnectionId, usize)>);

    impl NetworkBehaviour for Recorder {
        type ConnectionHandler = dummy::ConnectionHandler;
        type ToSwarm = std::convert::Infallible;

        fn handle_established_inbound_connection(
            &mut self,
            _: ConnectionId,
            _: PeerId,
            _: &Multiaddr,
            _: &Multiaddr,
        ) -> Result<THandler<Self>, ConnectionDenied> {
            Ok(dummy::ConnectionHandler)
        }

        fn handle_established_outbound_connection(
            &mut self,
            _: ConnectionId,
            _: PeerId,
            _: &Multiaddr,
            _: Endpoint,
            _: PortUse,
        ) -> Result<THandler<Self>, ConnectionDenied> {
            Ok(dummy::ConnectionHandler)
        }

        fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
            match event {
                FromSwarm::ConnectionEstablished(event) => {
                    self.0.push((event.connection_id, event.other_established));
                }
                FromSwarm::ConnectionClosed(event) => {
                    self.0
                        .push((event.connection_id, event.remaining_established));
                }
                _ => {}
            }
        }

        fn on_connection_handler_event(
            &mut self,
            _: PeerId,
            _: ConnectionId,
            event: THandlerOutEvent<Self>,
        ) {
            match event {}
        }

        fn poll(
            &mut self,
            _: &mut Context<'_>,
        ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
            Poll::Pending
        }
    }

    #[test]
    fn relayed_connections_are_not_seen_and_the_others_are_counted_without_them() {
        let direct: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let circuit = direct
            .clone()
            .with(Protocol::P2p(PeerId::random()))
            .with(Protocol::P2pCircuit);
        let dialler = |address: &Multiaddr| ConnectedPoint::Dialer {
            address: address.clone(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        let (direct, circuit) = (dialler(&direct), dialler(&circuit));
        let peer_id = PeerId::random();
        let mut behaviour = Unrelayed::new(Recorder::default());
        let steps = [(1, &circuit), (2, &direct), (3, &direct)];
        for (other_established, (id, endpoint)) in steps.into_iter().enumerate() {
            behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id: ConnectionId::new_unchecked(id),
                endpoint,
                failed_addresses: &[],
                other_established,
            }));
        }
        for (remaining_established, (id, endpoint)) in steps.into_iter().rev().enumerate() {
            behaviour.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id: ConnectionId::new_unchecked(id),
                endpoint,
                cause: None,
                remaining_established: 2 - remaining_established,
            }));
        }
        let seen: Vec<_> = [(2, 0), (3, 1), (3, 1), (2, 0)]
            .map(|(id, others)| (ConnectionId::new_unchecked(id), others))
            .into();
        assert_eq!(behaviour.inner().0, seen);
        assert!(behaviour.direct.is_empty());
    }
}
