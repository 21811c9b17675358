//! AutoNAT v2's client, stripped of its say: what it finds is a verdict, not a confirmation.
//!
//! Stock libp2p-autonat confirms an address to the swarm after one successful dial-back. Only
//! `holepunch::nat` confirms addresses here (DESIGN.md §3), so this adapter swallows the
//! confirmation and leaves the event, which names the server, the address and the outcome. A
//! confirmation that other crates issue reaches the inner behaviour unchanged.

use std::task::{Context, Poll};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::client,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

/// One server's verdict about one of our addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The server that dialled us back, or failed to.
    pub(crate) server: PeerId,
    /// The address it was asked to dial.
    pub(crate) address: Multiaddr,
    /// Whether the dial-back arrived.
    pub(crate) reachable: bool,
}

/// The AutoNAT v2 client of the node.
pub(crate) struct Behaviour {
    inner: client::Behaviour,
}

impl Behaviour {
    pub(crate) fn new(config: client::Config) -> Self {
        Self {
            inner: client::Behaviour::new(rand::make_rng(), config),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <client::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Verdict;

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
        self.inner
            .handle_established_inbound_connection(connection, peer, local, remote)
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
        self.inner
            .handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            match std::task::ready!(self.inner.poll(cx)) {
                ToSwarm::ExternalAddrConfirmed(_) => {}
                other => {
                    return Poll::Ready(other.map_out(|event| Verdict {
                        server: event.server,
                        address: event.tested_addr,
                        reachable: event.result.is_ok(),
                    }));
                }
            }
        }
    }
}
