//! `/anypath/nat-probe/1` between nodes that help each other to know their NATs: an adapter for the
//! cores in [`crate::core::probe`].

mod handler;
mod message;
mod protocol;

use std::{
    collections::{BTreeMap, VecDeque},
    task::{Context, Poll},
};

use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p_core::{ConnectedPoint, Endpoint as Side, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
    behaviour::ConnectionEstablished,
    dial_opts::{DialOpts, PeerCondition},
};
use web_time::Instant;

use self::{
    handler::{AskId, FromBehaviour, InboundId, Order, Report, ToBehaviour},
    message::{Request, Response},
};
use crate::{
    Config,
    behaviour::now,
    core::{
        nat::Endpoint,
        probe::{
            Outcome,
            client::Client,
            server::{self, Answer, Asker, Helper, MIN_PADDING, Server, Ticket},
        },
    },
};

pub(crate) use handler::Handler;
pub use protocol::PROBE_PROTOCOL_NAME;

/// What a server at the other end of `connection` told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probed {
    pub(crate) connection: ConnectionId,
    pub(crate) observed: Option<Multiaddr>,
    pub(crate) answer: Answer,
}

pub(crate) struct Behaviour {
    config: Config,
    client: Client,
    server: Server,
    /// The swarm limits them.
    connections: BTreeMap<ConnectionId, Connection>,
    /// Connections that were made to dial back, and what for.
    dials: BTreeMap<ConnectionId, Ticket>,
    tickets: BTreeMap<Ticket, (PeerId, ConnectionId, InboundId)>,
    asks: BTreeMap<AskId, Purpose>,
    next: u64,
    actions: VecDeque<ToSwarm<Probed, Order>>,
    timer: Option<(Instant, Delay)>,
}

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    /// `None` through a relay.
    direct: Option<Direct>,
    is_server: bool,
}

#[derive(Debug)]
struct Direct {
    remote: Multiaddr,
    inbound: bool,
    own_port: bool,
}

/// Why a server was asked.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Probe(ConnectionId),
    Help(Ticket, ConnectionId),
}

impl Behaviour {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            client: Client::new(config.clone()),
            server: Server::new(config.clone()),
            config,
            connections: BTreeMap::new(),
            dials: BTreeMap::new(),
            tickets: BTreeMap::new(),
            asks: BTreeMap::new(),
            next: 0,
            actions: VecDeque::new(),
            timer: None,
        }
    }

    /// The network may be another one: ask all servers again.
    pub(crate) fn on_changed(&mut self) {
        self.client.on_changed(now());
    }

    fn handler(&self, address: &Multiaddr) -> Handler {
        let is_direct = Endpoint::of(address).is_some();
        Handler::new(self.config.probe_server() && is_direct)
    }

    fn ask(&mut self, connection: ConnectionId, purpose: Purpose, request: Request) {
        let Some(peer_id) = self.connections.get(&connection).map(|known| known.peer) else {
            return;
        };
        self.next += 1;
        let id = AskId(self.next);
        self.asks.insert(id, purpose);
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(connection),
            event: Order(FromBehaviour::Ask { id, request }),
        });
    }

    fn on_established(&mut self, event: ConnectionEstablished<'_>) {
        let is_direct = Endpoint::of(event.endpoint.get_remote_address()).is_some();
        let direct = is_direct.then(|| Direct {
            remote: event.endpoint.get_remote_address().clone(),
            inbound: event.endpoint.is_listener(),
            own_port: matches!(
                event.endpoint,
                ConnectedPoint::Dialer {
                    port_use: PortUse::Reuse,
                    ..
                }
            ),
        });
        if let Some(ticket) = self.dials.remove(&event.connection_id) {
            self.server.on_dialled(ticket, true);
            self.actions.push_back(ToSwarm::CloseConnection {
                peer_id: event.peer_id,
                connection: libp2p_swarm::CloseConnection::One(event.connection_id),
            });
            return;
        }
        self.connections.insert(
            event.connection_id,
            Connection {
                peer: event.peer_id,
                direct,
                is_server: false,
            },
        );
    }

    fn on_closed(&mut self, connection: ConnectionId) {
        self.connections.remove(&connection);
        self.client.on_gone(connection, now());
        let lost: Vec<AskId> = self
            .asks
            .iter()
            .filter(|(_, purpose)| purpose.connection() == connection)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.on_answered(id, None);
        }
    }

    fn on_server(&mut self, connection: ConnectionId, is_server: bool) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        known.is_server = is_server;
        let at = known
            .direct
            .as_ref()
            .filter(|direct| is_server && direct.own_port)
            .and_then(|direct| Endpoint::of(&direct.remote));
        match at {
            Some(at) if self.config.probe_servers() > 0 => {
                self.client.on_server(connection, at, now());
            }
            _ => self.client.on_gone(connection, now()),
        }
    }

    fn on_asked(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        id: InboundId,
        request: Request,
    ) {
        let known = self.connections.get(&connection);
        let Some(direct) = known.and_then(|known| known.direct.as_ref()) else {
            return;
        };
        let asker = Asker {
            peer,
            remote: direct.remote.clone(),
            inbound: direct.inbound,
        };
        let ticket = match request {
            Request::Probe { known } => {
                let helpers = self.helpers();
                self.server.on_probe(&asker, &known, &helpers, now())
            }
            Request::Help {
                peer,
                address,
                padding,
            } => {
                let connected = self.connections.values().any(|known| known.peer == peer);
                self.server
                    .on_help(&asker, peer, &address, padding, connected, now())
            }
        };
        self.tickets.insert(ticket, (peer, connection, id));
    }

    /// Servers that this node dialled first: they are reachable, and little stands in the way of
    /// their own dials. Of each kind those that came up last first.
    fn helpers(&self) -> Vec<Helper> {
        let mut helpers: Vec<(bool, Helper)> = self
            .connections
            .iter()
            .rev()
            .filter(|(_, known)| known.is_server)
            .filter_map(|(connection, known)| {
                let direct = known.direct.as_ref()?;
                let helper = Helper {
                    peer: known.peer,
                    connection: *connection,
                    ip: Endpoint::of(&direct.remote)?.ip(),
                };
                Some((direct.inbound, helper))
            })
            .collect();
        helpers.sort_by_key(|(inbound, _)| *inbound);
        helpers.into_iter().map(|(_, helper)| helper).collect()
    }

    fn on_answered(&mut self, id: AskId, response: Option<Response>) {
        match (self.asks.remove(&id), response) {
            (Some(Purpose::Probe(connection)), Some(response)) => {
                self.actions.push_back(ToSwarm::GenerateEvent(Probed {
                    connection,
                    observed: response.observed,
                    answer: response.answer,
                }));
            }
            (Some(Purpose::Help(ticket, _)), response) => {
                let outcome = response.map_or(Outcome::NotTried, |response| {
                    response.answer.from_other_address
                });
                self.server.on_helped(ticket, outcome);
            }
            _ => {}
        }
    }

    fn on_output(&mut self, output: server::Output) {
        match output {
            server::Output::Dial {
                ticket,
                peer,
                address,
            } => {
                let opts = DialOpts::peer_id(peer)
                    .condition(PeerCondition::Always)
                    .addresses(vec![address])
                    .allocate_new_port()
                    .build();
                self.dials.insert(opts.connection_id(), ticket);
                self.actions.push_back(ToSwarm::Dial { opts });
            }
            server::Output::AskHelp {
                ticket,
                helper,
                peer,
                address,
            } => {
                let request = Request::Help {
                    peer,
                    address,
                    padding: MIN_PADDING,
                };
                self.ask(helper, Purpose::Help(ticket, helper), request);
            }
            server::Output::Answer { ticket, answer } => {
                let Some((peer_id, connection, id)) = self.tickets.remove(&ticket) else {
                    return;
                };
                let Some(known) = self.connections.get(&connection) else {
                    return;
                };
                let observed = known.direct.as_ref().map(|direct| direct.remote.clone());
                self.actions.push_back(ToSwarm::NotifyHandler {
                    peer_id,
                    handler: NotifyHandler::One(connection),
                    event: Order(FromBehaviour::Answer {
                        id,
                        response: Response { answer, observed },
                    }),
                });
            }
        }
    }

    /// Arms the timer for the next deadline of either core. True if that has passed.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let deadlines = [self.client.poll_timeout(), self.server.poll_timeout()];
        let Some(deadline) = deadlines.into_iter().flatten().min() else {
            self.timer = None;
            return false;
        };
        let armed = self.timer.take().filter(|(at, _)| *at == deadline);
        let (at, mut delay) = armed.unwrap_or_else(|| {
            let wait = deadline.saturating_duration_since(now());
            (deadline, Delay::new(wait))
        });
        if delay.poll_unpin(cx).is_ready() {
            return true;
        }
        self.timer = Some((at, delay));
        false
    }
}

impl Purpose {
    fn connection(self) -> ConnectionId {
        match self {
            Self::Probe(connection) | Self::Help(_, connection) => connection,
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Probed;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(remote))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        address: &Multiaddr,
        _: Side,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(address))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(event.connection_id),
            FromSwarm::DialFailure(event) => {
                if let Some(ticket) = self.dials.remove(&event.connection_id) {
                    self.server.on_dialled(ticket, false);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        Report(event): THandlerOutEvent<Self>,
    ) {
        match event {
            ToBehaviour::Server(is_server) => self.on_server(connection, is_server),
            ToBehaviour::Asked { id, request } => self.on_asked(peer, connection, id, request),
            ToBehaviour::Answered { id, response } => self.on_answered(id, response),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            if let Some(output) = self.server.poll_output() {
                self.on_output(output);
                continue;
            }
            if let Some(ask) = self.client.poll_output() {
                let request = Request::Probe { known: ask.known };
                self.ask(ask.connection, Purpose::Probe(ask.connection), request);
                continue;
            }
            if self.poll_timer(cx) {
                let now = now();
                self.client.handle_timeout(now);
                self.server.handle_timeout(now);
                continue;
            }
            return Poll::Pending;
        }
    }
}
