//! The libp2p adapter.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use cid::Cid;
use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};

use crate::{
    BlockSource, CircuitLimit, Config, Event, Ledger, Priority, SessionId, SessionOptions, Ticket,
    Transfers, WantOptions, WantlistEntry,
};

/// Bitswap as a libp2p behaviour.
pub struct Behaviour {
    _config: Config,
    _source: Arc<dyn BlockSource>,
}

#[expect(
    unused_variables,
    clippy::todo,
    reason = "signatures first; bodies follow in the next commits"
)]
impl Behaviour {
    /// A node that serves the blocks of `source`.
    pub fn new(config: Config, source: Arc<dyn BlockSource>) -> Self {
        Self {
            _config: config,
            _source: source,
        }
    }
    /// Opens a session with default options.
    pub fn new_session(&mut self) -> SessionId {
        self.new_session_with(SessionOptions::default())
    }
    /// Opens a session.
    pub fn new_session_with(&mut self, options: SessionOptions) -> SessionId {
        todo!()
    }
    /// Ends a session; its wants are cancelled.
    pub fn end_session(&mut self, session: SessionId) {
        todo!()
    }
    /// Asks for a block. An unknown session is treated as a new one.
    pub fn want(&mut self, session: SessionId, cid: Cid, priority: Priority) -> Ticket {
        self.want_with(session, cid, WantOptions::default().priority(priority))
    }
    /// Asks for a block, with options.
    pub fn want_with(&mut self, session: SessionId, cid: Cid, options: WantOptions) -> Ticket {
        todo!()
    }
    /// Withdraws a want.
    pub fn cancel(&mut self, ticket: Ticket) {
        todo!()
    }
    /// Names peers that provide the block of a ticket.
    pub fn add_providers(&mut self, ticket: Ticket, peers: impl IntoIterator<Item = PeerId>) {
        todo!()
    }
    /// Names a peer that probably has the blocks of a session.
    pub fn add_session_peer(&mut self, session: SessionId, peer: PeerId) {
        todo!()
    }
    /// Acknowledges a delivered block.
    pub fn taken(&mut self, ticket: Ticket, bytes: usize) {
        todo!()
    }
    /// Tells waiting peers that these blocks are in the source now.
    pub fn notify_new_blocks(&mut self, cids: &[Cid]) {
        todo!()
    }
    /// Declares a connection a limited (`Some`) or unlimited (`None`) relayed circuit.
    pub fn set_circuit_limit(&mut self, connection: ConnectionId, limit: Option<CircuitLimit>) {
        todo!()
    }
    /// Bitswap work on a connection.
    pub fn transfers_on(&self, connection: ConnectionId) -> Transfers {
        todo!()
    }
    /// What others want from us.
    pub fn wantlist(&self) -> Vec<WantlistEntry> {
        todo!()
    }
    /// What went to and came from a peer.
    pub fn ledger(&self, peer: PeerId) -> Option<Ledger> {
        todo!()
    }
    /// Share of our upload that a peer gets relative to others; default 1.
    pub fn set_peer_weight(&mut self, peer: PeerId, weight: f64) {
        todo!()
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Event;

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
    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}
    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        libp2p_core::util::unreachable(event)
    }
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
