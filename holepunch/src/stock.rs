//! Hole punching by libp2p-dcutr, as it was before this crate had a DCUtR of its own. Feature `stock`.
//!
//! The same events, candidates and reachability as [`Behaviour`](crate::Behaviour), with the exchange and the dials of
//! libp2p-dcutr 0.15: for comparisons, and for whoever wants to go back.
//!
//! - Candidates are read when the relayed connection comes up (the stock handler keeps a copy). A side that knows none by
//!   then ends the exchange.
//! - The responder is not told when the initiator gives up; it knows after
//!   [`outcome_timeout`](crate::Config::outcome_timeout) (35 s).
//! - libp2p-dcutr keeps a few bytes for each attempt for ever.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use libp2p_core::{ConnectedPoint, Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, behaviour::toggle::Toggle,
};

use crate::{
    Config, Event, PunchError, Role, Transport,
    behaviour::{Alarm, Punching, now},
    core::punches::Punches,
};

/// [`Behaviour`](crate::Behaviour) on top of libp2p-dcutr.
pub type Behaviour = crate::Behaviour<Dcutr>;

/// A behaviour for the node `local`.
#[must_use]
pub fn new(local: PeerId, config: Config) -> Behaviour {
    let punching = Dcutr::new(local, config.clone());
    Behaviour::with(punching, config)
}

/// libp2p-dcutr with one outcome for each attempt on both sides.
pub struct Dcutr {
    stock: Toggle<libp2p_dcutr::Behaviour>,
    punches: Punches,
    /// Candidates given to the stock behaviour, up to as many as it keeps.
    candidates: VecDeque<Multiaddr>,
    alarm: Alarm,
}

/// How many candidates libp2p-dcutr 0.15 keeps.
const STOCK_CANDIDATES: usize = 20;

impl Dcutr {
    fn new(local: PeerId, config: Config) -> Self {
        let stock = config
            .enabled()
            .then(|| libp2p_dcutr::Behaviour::new(local));
        Self {
            stock: Toggle::from(stock),
            punches: Punches::new(config),
            candidates: VecDeque::new(),
            alarm: Alarm::default(),
        }
    }

    fn on_event(&mut self, event: libp2p_dcutr::Event) {
        // A success shows as a connection, on both sides alike.
        if let Err(error) = event.result {
            tracing::debug!(peer = %event.remote_peer_id, %error, "punch failed");
            self.punches
                .on_failed(event.remote_peer_id, classify(&error), now());
        }
    }

    fn on_candidate(&mut self, address: &Multiaddr) {
        if self.candidates.contains(address) {
            return;
        }
        if self.candidates.len() >= STOCK_CANDIDATES {
            self.candidates.pop_front();
        }
        self.candidates.push_back(address.clone());
    }

    fn on_established(&mut self, connection: ConnectionId, peer: PeerId, at: &ConnectedPoint) {
        if at.is_relayed() {
            let role = if at.is_listener() {
                Role::Initiator
            } else {
                Role::Responder
            };
            self.punches.on_relayed(connection, peer, role, now());
        } else {
            let transport = Transport::of(at.get_remote_address());
            self.punches.on_direct(connection, peer, transport, now());
        }
    }
}

impl Punching for Dcutr {
    fn has_candidates(&self) -> bool {
        !self.candidates.is_empty()
    }
}

impl NetworkBehaviour for Dcutr {
    type ConnectionHandler = THandler<Toggle<libp2p_dcutr::Behaviour>>;
    type ToSwarm = Event;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.stock
            .handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.stock
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.stock
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
        self.stock
            .handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::NewExternalAddrCandidate(candidate) => self.on_candidate(candidate.addr),
            FromSwarm::ConnectionEstablished(event) => {
                self.on_established(event.connection_id, event.peer_id, event.endpoint);
            }
            FromSwarm::ConnectionClosed(event) => {
                self.punches
                    .on_closed(event.connection_id, event.peer_id, now());
            }
            _ => {}
        }
        self.stock.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.stock
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        loop {
            if let Some(event) = self.punches.poll_output() {
                return Poll::Ready(ToSwarm::GenerateEvent(event));
            }
            match self.stock.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    self.on_event(event);
                    continue;
                }
                Poll::Ready(action) => {
                    return Poll::Ready(action.map_out(|_| unreachable!("matched above")));
                }
                Poll::Pending => {}
            }
            if !self.alarm.rings(self.punches.poll_timeout(), cx) {
                return Poll::Pending;
            }
            self.punches.handle_timeout(now());
        }
    }
}

/// libp2p-dcutr 0.15 keeps the kind of its errors private; their text is all that tells.
fn classify(error: &libp2p_dcutr::Error) -> PunchError {
    if error.to_string().contains("Giving up after") {
        PunchError::DialsFailed
    } else {
        PunchError::ExchangeFailed
    }
}
