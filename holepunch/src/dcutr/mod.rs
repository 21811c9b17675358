//! DCUtR of our own: the adapter between the swarm and the core that coordinates punches.

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
};
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
    alarm: Alarm,
}

impl Dcutr {
    pub(crate) fn new(local: PeerId, config: Config) -> Self {
        Self {
            core: Punches::new(local, config.clone()),
            config,
            observed: Vec::new(),
            external: Vec::new(),
            suggested: VecDeque::new(),
            listening: Vec::new(),
            nat: NatReport::default(),
            dials: BTreeMap::new(),
            alarm: Alarm::default(),
        }
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
        };
        if *self.core.own() != own {
            self.core.on_own(own, now());
        }
    }

    fn on_established(&mut self, connection: ConnectionId, peer: PeerId, at: &ConnectedPoint) {
        let dial = self.dials.remove(&connection);
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
            Output::Dial {
                dial,
                peer,
                address,
                how,
            } => {
                tracing::debug!(%peer, %address, ?how, "punching");
                let opts = DialOpts::peer_id(peer)
                    .condition(PeerCondition::Always)
                    .addresses(vec![address]);
                let opts = match how {
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
            Output::Close { peer, connection } => ToSwarm::CloseConnection {
                peer_id: peer,
                connection: CloseConnection::One(connection),
            },
            Output::Event(event) => ToSwarm::GenerateEvent(event),
        })
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
                self.core
                    .on_closed(event.connection_id, event.peer_id, now());
            }
            FromSwarm::DialFailure(event) => {
                if let Some(dial) = self.dials.remove(&event.connection_id) {
                    tracing::debug!(error = %event.error, "a punching dial failed");
                    self.core.on_dial_failed(dial, now());
                }
            }
            FromSwarm::NewExternalAddrOfPeer(event) => {
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
