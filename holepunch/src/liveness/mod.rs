//! Asks peers whether they are still there, with a ping: the adapter between the swarm and [`crate::core::liveness`].

mod handler;

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};

use crate::{
    Config, Transport,
    behaviour::{Alarm, now},
    core::liveness::{self, Kind, Liveness},
};
pub(crate) use handler::Handler;
use handler::{Answered, Ask};

/// What became of a doubt.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// The peer answers on this connection.
    Alive {
        peer: PeerId,
        connection: ConnectionId,
    },
    /// It does not yet.
    Late {
        peer: PeerId,
        connection: ConnectionId,
    },
    /// It does not on this one, which is closed.
    Lost {
        peer: PeerId,
        connection: ConnectionId,
    },
}

/// Part of [`Behaviour`](crate::Behaviour).
pub(crate) struct Behaviour {
    config: Config,
    core: Liveness,
    closing: VecDeque<ToSwarm<Verdict, Ask>>,
    alarm: Alarm,
}

impl Behaviour {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            core: Liveness::new(config.liveness_timeout()),
            config,
            closing: VecDeque::new(),
            alarm: Alarm::default(),
        }
    }

    /// Something speaks against this connection.
    pub(crate) fn doubt(&mut self, connection: ConnectionId, peer: PeerId) {
        self.core.doubt(connection, peer, now());
    }

    /// Something speaks against the direct connections to this peer.
    pub(crate) fn doubt_direct(&mut self, peer: PeerId) {
        self.core.doubt_direct(peer, now());
    }

    /// This node has another address, says a peer on this connection.
    pub(crate) fn on_new_address(&mut self, told_on: ConnectionId, by: PeerId) {
        self.core.on_new_address(told_on, by, now());
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Verdict;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.config.liveness_timeout()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.config.liveness_timeout()))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                let kind = Kind {
                    relayed: event.endpoint.is_relayed(),
                    quic: Transport::of(event.endpoint.get_remote_address()) == Transport::Quic,
                    dialled: event.endpoint.is_dialer(),
                };
                self.core
                    .on_connected(event.connection_id, event.peer_id, kind, now());
            }
            FromSwarm::ConnectionClosed(event) => {
                self.core.on_closed(event.connection_id, event.peer_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        Answered: THandlerOutEvent<Self>,
    ) {
        self.core.on_answer(connection, peer, now());
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Verdict, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.closing.pop_front() {
                return Poll::Ready(action);
            }
            if let Some(output) = self.core.poll_output() {
                return Poll::Ready(match output {
                    liveness::Output::Ask { peer, connection } => ToSwarm::NotifyHandler {
                        peer_id: peer,
                        handler: NotifyHandler::One(connection),
                        event: Ask,
                    },
                    liveness::Output::Alive { peer, connection } => {
                        ToSwarm::GenerateEvent(Verdict::Alive { peer, connection })
                    }
                    liveness::Output::Late { peer, connection } => {
                        ToSwarm::GenerateEvent(Verdict::Late { peer, connection })
                    }
                    liveness::Output::Lost { peer, connection } => {
                        tracing::debug!(%peer, %connection, "no sign of life");
                        self.closing.push_back(ToSwarm::CloseConnection {
                            peer_id: peer,
                            connection: CloseConnection::One(connection),
                        });
                        ToSwarm::GenerateEvent(Verdict::Lost { peer, connection })
                    }
                });
            }
            if !self.alarm.rings(self.core.poll_timeout(), cx) {
                return Poll::Pending;
            }
            self.core.handle_timeout(now());
        }
    }
}
