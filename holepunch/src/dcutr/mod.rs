//! DCUtR of our own: the adapter between the swarm and the core that coordinates punches.

mod fresh;
mod handler;
mod protocol;

use std::{
    collections::{BTreeMap, VecDeque},
    task::{Context, Poll},
};

use libp2p_core::{ConnectedPoint, Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dial_opts::{DialOpts, PeerCondition},
};

use crate::{
    Config, Event, NatReport, Outcome, Role, Transport,
    address::{Scope, without_peer},
    behaviour::{Alarm, now},
    core::punch::{As, DialId, Exchange, Opener, Output, Own, Punches},
    transport::Ports,
};
use fresh::Fresh;
use handler::{Command, Handler, Report};
pub use protocol::{EARLY_PROTOCOL_NAME, PROTOCOL_NAME};

/// Addresses of our own that are remembered from each source. The swarm knows no bound for them.
const MAX_OWN: usize = 32;

/// Replaces relayed connections by direct ones. Part of [`Behaviour`](crate::Behaviour).
pub struct Dcutr {
    config: Config,
    core: Punches,
    /// As peers saw us, best first.
    observed: Vec<Multiaddr>,
    /// Confirmed, or vouched for by the operator.
    external: Vec<Multiaddr>,
    /// What others suggest, the latest last: identify, port mappings, predictions.
    suggested: VecDeque<Multiaddr>,
    listening: Vec<Multiaddr>,
    nat: NatReport,
    /// The dials of ours that are under way, by the connection that they may become.
    dials: BTreeMap<ConnectionId, DialId>,
    fresh: Fresh,
    /// Where packets have left for that no dial tells of. Drained by [`Behaviour`](crate::Behaviour).
    contacts: Vec<Multiaddr>,
    /// Peers whose direct connections may be dead. Drained by [`Behaviour`](crate::Behaviour).
    doubted: Vec<PeerId>,
    actions: VecDeque<ToSwarm<Event, Command>>,
    alarm: Alarm,
}

impl Dcutr {
    pub(crate) fn new(local: PeerId, config: Config) -> Self {
        Self {
            core: Punches::new(local, config.clone()),
            fresh: Fresh::new(config.clone()),
            config,
            observed: Vec::new(),
            external: Vec::new(),
            suggested: VecDeque::new(),
            listening: Vec::new(),
            nat: NatReport::default(),
            dials: BTreeMap::new(),
            contacts: Vec::new(),
            doubted: Vec::new(),
            actions: VecDeque::new(),
            alarm: Alarm::default(),
        }
    }

    /// Attempts after the first may leave from ports of their own.
    pub(crate) fn set_ports(&mut self, ports: Ports) {
        self.fresh.set_ports(ports);
        self.update();
    }

    /// A peer saw us there on this connection. Tells whether that is about a fresh port, and not about the
    /// node.
    pub(crate) fn is_about_fresh_port(
        &mut self,
        connection: Option<ConnectionId>,
        observer: PeerId,
        observed: &Multiaddr,
    ) -> bool {
        if let Some(connection) = connection
            && let Some((port, public)) =
                self.fresh
                    .on_observed(connection, observed, &self.core.own().candidates)
        {
            // It has served its purpose: NATs keep the mapping for a while.
            self.actions.push_back(close(observer, connection));
            self.core.on_port(port, public, now());
        }
        self.fresh.owns(connection, observed)
    }

    /// Whether this address of ours is that of a fresh port.
    pub(crate) fn is_fresh_port(&self, address: &Multiaddr) -> bool {
        self.fresh.owns(None, address)
    }

    /// Where packets have left for that no dial tells of.
    pub(crate) fn take_contacts(&mut self) -> Vec<Multiaddr> {
        std::mem::take(&mut self.contacts)
    }

    /// Peers that come over a relay although they have a direct connection.
    pub(crate) fn take_doubted(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.doubted)
    }

    /// The peer answers on this connection.
    pub(crate) fn on_alive(&mut self, connection: ConnectionId, peer: PeerId) {
        self.core.on_alive(connection, peer);
    }

    /// The peer does not answer on this connection any more.
    pub(crate) fn on_lost(&mut self, connection: ConnectionId, peer: PeerId) {
        self.core.on_lost(connection, peer, now());
    }

    /// Whether this node knows an address of its own to offer.
    pub(crate) fn has_candidates(&self) -> bool {
        !self.core.own().candidates.is_empty()
    }

    /// As peers see this node now, best first.
    pub(crate) fn on_observed(&mut self, observed: Vec<Multiaddr>) {
        self.observed = observed;
        self.update();
    }

    /// Nobody reaches this node there any more.
    pub(crate) fn on_withdrawn(&mut self, address: &Multiaddr) {
        self.suggested.retain(|other| other != address);
        self.update();
    }

    /// What this node stands behind.
    pub(crate) fn on_nat(&mut self, nat: NatReport) {
        self.nat = nat;
        self.update();
    }

    /// The last outcomes, the oldest first.
    pub(crate) fn history(&self) -> Vec<Outcome> {
        self.core.history().cloned().collect()
    }

    /// Everything that we know of ourselves, best first, each address once.
    fn update(&mut self) {
        let mut candidates: Vec<Multiaddr> = Vec::new();
        let known = self.external.iter().chain(&self.observed);
        for address in known.chain(self.suggested.iter().rev()) {
            if !candidates.contains(address) {
                candidates.push(address.clone());
            }
        }
        candidates.truncate(self.config.max_candidates());
        let own = Own {
            candidates,
            local: self.listening.clone(),
            nat: self.nat,
            can_open: self.fresh.transports(),
        };
        if *self.core.own() != own {
            self.core.on_own(own, now());
        }
    }

    fn on_established(&mut self, connection: ConnectionId, peer: PeerId, at: &ConnectedPoint) {
        let dial = self.dials.remove(&connection);
        if self.fresh.on_established(connection, peer, at) {
            self.actions.push_back(close(peer, connection));
        }
        if at.is_relayed() {
            self.core.on_relayed(connection, peer, role_on(at), now());
        } else {
            let transport = Transport::of(at.get_remote_address());
            self.core
                .on_direct(connection, peer, transport, dial, now());
        }
    }

    fn on_output(&mut self, output: Output) -> Option<ToSwarm<Event, Command>> {
        let notify = |peer_id, relayed, event| ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(relayed),
            event,
        };
        Some(match output {
            Output::Connect {
                peer,
                exchange: Exchange {
                    relayed, number, ..
                },
                message,
            } => notify(peer, relayed, Command::Connect { number, message }),
            Output::Reply {
                peer,
                exchange: Exchange {
                    relayed, number, ..
                },
                message,
            } => notify(peer, relayed, Command::Reply { number, message }),
            Output::Sync {
                peer,
                exchange: Exchange {
                    relayed, number, ..
                },
                message,
            } => notify(peer, relayed, Command::Sync { number, message }),
            Output::Farewell {
                peer,
                relayed,
                message,
            } => notify(peer, relayed, Command::Farewell { message }),
            Output::Abandon { peer, exchange } => {
                let Exchange {
                    relayed,
                    opener,
                    number,
                } = exchange;
                notify(peer, relayed, Command::Abandon { opener, number })
            }
            Output::Release { peer, relayed } => notify(peer, relayed, Command::Release),
            Output::Hold { peer, relayed } => notify(peer, relayed, Command::Hold),
            Output::Doubt(peer) => {
                self.doubted.push(peer);
                return None;
            }
            Output::Dial {
                dial,
                peer,
                address,
                how,
                from,
            } => {
                tracing::debug!(%peer, %address, ?how, ?from, "punching");
                if let Some(port) = from {
                    self.fresh.dial_from(port, &address);
                }
                let opts = DialOpts::peer_id(peer)
                    .condition(PeerCondition::Always)
                    .addresses(vec![address]);
                let opts = match how {
                    As::Client | As::Server if from.is_some() => {
                        let opts = opts.allocate_new_port();
                        if how == As::Server {
                            opts.override_role()
                        } else {
                            opts
                        }
                    }
                    As::Client => opts,
                    As::Server => opts.override_role(),
                    As::Stranger => opts.allocate_new_port(),
                    // libp2p-quic 0.14 sends random packets for this combination alone, from the
                    // socket that it listens on.
                    As::Opener => opts.override_role().allocate_new_port(),
                }
                .build();
                self.dials.insert(opts.connection_id(), dial);
                ToSwarm::Dial { opts }
            }
            Output::OpenPort(opening) => {
                let Some((opts, contacts)) = self.fresh.open(&opening) else {
                    tracing::debug!(?opening, "no server could see a fresh port");
                    self.core.on_port(opening.port, None, now());
                    return None;
                };
                self.contacts.extend(contacts);
                ToSwarm::Dial { opts }
            }
            Output::ClosePort(port) => {
                let (connection, peer) = self.fresh.close(port)?;
                close(peer, connection)
            }
            Output::Close { peer, connection } => close(peer, connection),
            Output::Event(event) => ToSwarm::GenerateEvent(event),
        })
    }
}

fn close(peer_id: PeerId, connection: ConnectionId) -> ToSwarm<Event, Command> {
    ToSwarm::CloseConnection {
        peer_id,
        connection: CloseConnection::One(connection),
    }
}

fn role_on(relayed: &ConnectedPoint) -> Role {
    if relayed.is_listener() {
        Role::Initiator
    } else {
        Role::Responder
    }
}

impl NetworkBehaviour for Dcutr {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let config = &self.config;
        Ok(if is_relayed(local) && config.enabled() {
            Handler::relayed(Role::Initiator, config.early(), config.exchange_timeout())
        } else {
            Handler::direct()
        })
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let config = &self.config;
        Ok(if is_relayed(address) && config.enabled() {
            Handler::relayed(Role::Responder, config.early(), config.exchange_timeout())
        } else {
            Handler::direct()
        })
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                self.on_established(event.connection_id, event.peer_id, event.endpoint);
            }
            FromSwarm::ConnectionClosed(event) => {
                if let Some(port) = self.fresh.on_gone(event.connection_id) {
                    self.core.on_port(port, None, now());
                }
                self.core
                    .on_closed(event.connection_id, event.peer_id, now());
            }
            FromSwarm::DialFailure(event) => {
                if let Some(port) = self.fresh.on_gone(event.connection_id) {
                    tracing::debug!(error = %event.error, "no fresh port");
                    self.core.on_port(port, None, now());
                }
                if let Some(dial) = self.dials.remove(&event.connection_id) {
                    tracing::debug!(error = %event.error, "a punching dial failed");
                    self.core.on_dial_failed(dial, now());
                }
            }
            FromSwarm::NewExternalAddrOfPeer(event) => {
                self.fresh.on_peer_address(event.peer_id, event.addr);
                self.core.on_peer_address(event.peer_id, event.addr);
            }
            FromSwarm::NewExternalAddrCandidate(event) => {
                let address = without_peer(event.addr);
                self.suggested.retain(|other| *other != address);
                if self.suggested.len() >= MAX_OWN {
                    self.suggested.pop_front();
                }
                self.suggested.push_back(address);
                self.update();
            }
            FromSwarm::ExternalAddrConfirmed(event) => {
                let address = without_peer(event.addr);
                let may_help = Scope::of(&address) != Scope::Useless;
                if may_help && !self.external.contains(&address) && self.external.len() < MAX_OWN {
                    self.external.push(address);
                    self.update();
                }
            }
            FromSwarm::ExternalAddrExpired(event) => {
                let address = without_peer(event.addr);
                self.external.retain(|other| *other != address);
                self.update();
            }
            FromSwarm::NewListenAddr(event) => {
                let address = without_peer(event.addr);
                let scope = Scope::of(&address);
                let may_help = match scope {
                    Scope::Useless => false,
                    Scope::Loopback => self.config.allow_loopback(),
                    Scope::Private | Scope::Public => true,
                };
                if may_help && !self.listening.contains(&address) && self.listening.len() < MAX_OWN
                {
                    self.listening.push(address);
                    self.update();
                }
            }
            FromSwarm::ExpiredListenAddr(event) => {
                let address = without_peer(event.addr);
                self.listening.retain(|other| *other != address);
                self.update();
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        relayed: ConnectionId,
        report: THandlerOutEvent<Self>,
    ) {
        let now = now();
        let of = |opener, number| Exchange {
            relayed,
            opener,
            number,
        };
        match report {
            Report::Opened { number, message } => {
                self.core
                    .on_connect(of(Opener::Peer, number), &message, now);
            }
            Report::Answered {
                number,
                message,
                round_trip,
            } => {
                let exchange = of(Opener::Us, number);
                self.core.on_connected(exchange, &message, round_trip, now);
            }
            Report::Synchronised { number, message } => {
                self.core.on_sync(of(Opener::Peer, number), &message, now);
            }
            Report::Failed {
                opener,
                number,
                error,
            } => {
                tracing::debug!(%peer, ?opener, %error, "an exchange failed");
                self.core.on_exchange_failed(of(opener, number), now);
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            if let Some(output) = self.core.poll_output() {
                if let Some(action) = self.on_output(output) {
                    return Poll::Ready(action);
                }
                continue;
            }
            if !self.alarm.rings(self.core.poll_timeout(), cx) {
                return Poll::Pending;
            }
            self.core.handle_timeout(now());
        }
    }
}

fn is_relayed(address: &Multiaddr) -> bool {
    use libp2p_core::multiaddr::Protocol;
    address.iter().any(|part| part == Protocol::P2pCircuit)
}
