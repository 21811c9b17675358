use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::task::noop_waker_ref;
use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, ExternalAddresses, FromSwarm, ListenAddresses,
    NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    behaviour::{ExternalAddrConfirmed, ExternalAddrExpired},
};

use super::{CloseReason, Config, Event};
use crate::{
    StatusCode,
    core::{admission::Admission, circuits::Circuits},
    is_relayed,
};

type Stock = libp2p_relay::Behaviour;
type Action = ToSwarm<Event, THandlerInEvent<Behaviour>>;

/// Whether this node relays for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// The node offers the hop protocol and takes reservations.
    Enabled,
    /// The node offers nothing. Open circuits run on until they end.
    Disabled,
}

impl From<Status> for libp2p_relay::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Enabled => Self::Enable,
            Status::Disabled => Self::Disable,
        }
    }
}

/// A relay.
///
/// It wraps `libp2p_relay::Behaviour` and repairs what hurts there: the status is what
/// [`set_status`](Self::set_status) says and never follows external addresses (a relayed address
/// would switch the stock server on); a full relay still renews; limits hold exactly; events and
/// counters tell each reservation and circuit once; relayed addresses are not handed out as the
/// relay's own.
///
/// It starts [`Status::Disabled`].
pub struct Behaviour {
    stock: Stock,
    status: Status,
    shared: Arc<Mutex<Shared>>,
    circuits: Circuits,
    external: ExternalAddresses,
    listen: ListenAddresses,
    /// What the stock server was told its addresses are.
    advertised: Vec<Multiaddr>,
    advertise_listen_addresses: bool,
    actions: VecDeque<Action>,
    waker: Option<Waker>,
}

/// What the stock server's rate limiter, our only hook into its decision, sees.
struct Shared {
    admission: Admission,
    /// The connection whose request is being decided.
    asking: Option<ConnectionId>,
}

/// Where an event of the stock server comes from.
#[derive(Clone, Copy)]
enum Origin {
    Handler(ConnectionId),
    Closed(ConnectionId),
    Other,
}

impl Behaviour {
    /// Makes a relay that is switched off. `local` is this node's own id.
    #[must_use]
    pub fn new(local: PeerId, config: Config) -> Self {
        let shared = Arc::new(Mutex::new(Shared {
            admission: Admission::new(config.max_reservations()),
            asking: None,
        }));
        let mut stock = Stock::new(local, stock_config(&config, Arc::clone(&shared)));
        stock.set_status(Some(Status::Disabled.into()));
        Self {
            stock,
            status: Status::Disabled,
            shared,
            circuits: Circuits::default(),
            external: ExternalAddresses::default(),
            listen: ListenAddresses::default(),
            advertised: Vec::new(),
            advertise_listen_addresses: config.advertise_listen_addresses(),
            actions: VecDeque::new(),
            waker: None,
        }
    }

    /// Switches relaying on or off, for connections that exist as well as for new ones.
    pub fn set_status(&mut self, status: Status) {
        if self.status == status {
            return;
        }
        self.status = status;
        self.stock.set_status(Some(status.into()));
        self.actions
            .push_back(ToSwarm::GenerateEvent(Event::StatusChanged { status }));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether this node relays, as [`set_status`](Self::set_status) left it.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// How many reservations are held at this moment.
    #[must_use]
    pub fn reservations(&self) -> usize {
        self.shared().admission.len()
    }

    /// How many circuits are open at this moment.
    #[must_use]
    pub fn circuits(&self) -> usize {
        self.circuits.len()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Nothing panics while it is held; if something did, the numbers are still right.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the stock server has to say, knowing where it comes from. Its `poll` only
    /// empties a queue, so no waker is needed here; the swarm polls us after every event.
    fn drain(&mut self, origin: Origin) {
        let mut cx = Context::from_waker(noop_waker_ref());
        while let Poll::Ready(action) = self.stock.poll(&mut cx) {
            match action {
                ToSwarm::GenerateEvent(event) => {
                    let event = self.translate(event, origin);
                    self.actions.extend(event.map(ToSwarm::GenerateEvent));
                }
                other => self
                    .actions
                    .push_back(other.map_out(|_| unreachable!("matched above"))),
            }
        }
    }

    fn translate(&mut self, event: libp2p_relay::Event, origin: Origin) -> Option<Event> {
        use libp2p_relay::Event as Stock;
        match (event, origin) {
            (Stock::ReservationReqAccepted { src_peer_id, .. }, Origin::Handler(connection)) => {
                let new = self.shared().admission.on_accepted(connection);
                Some(Event::ReservationAccepted {
                    peer: src_peer_id,
                    connection,
                    renewed: !new,
                })
            }
            (
                Stock::ReservationReqDenied {
                    src_peer_id,
                    status,
                },
                Origin::Handler(connection),
            ) => {
                self.shared().admission.on_refused(connection);
                Some(Event::ReservationDenied {
                    peer: src_peer_id,
                    status: StatusCode::from_stock(&status),
                })
            }
            #[expect(
                deprecated,
                reason = "the answer did not arrive: the place is free again"
            )]
            (
                Stock::ReservationReqAcceptFailed { .. } | Stock::ReservationReqDenyFailed { .. },
                Origin::Handler(connection),
            ) => {
                self.shared().admission.on_refused(connection);
                None
            }
            (Stock::ReservationTimedOut { src_peer_id }, Origin::Handler(connection)) => {
                self.reservation_ended(src_peer_id, connection, CloseReason::Expired)
            }
            (
                Stock::CircuitReqAccepted {
                    src_peer_id,
                    dst_peer_id,
                },
                Origin::Handler(connection),
            ) => {
                self.circuits
                    .on_accepted(src_peer_id, connection, dst_peer_id);
                Some(Event::CircuitAccepted {
                    source: src_peer_id,
                    destination: dst_peer_id,
                })
            }
            (
                Stock::CircuitReqDenied {
                    src_peer_id,
                    dst_peer_id,
                    status,
                },
                _,
            ) => Some(Event::CircuitDenied {
                source: src_peer_id,
                destination: dst_peer_id,
                status: StatusCode::from_stock(&status),
            }),
            (
                Stock::CircuitClosed {
                    src_peer_id,
                    dst_peer_id,
                    error,
                },
                origin,
            ) => {
                let news = match origin {
                    Origin::Handler(connection) => {
                        self.circuits.on_handler_closed(connection, dst_peer_id)
                    }
                    Origin::Closed(connection) => {
                        self.circuits
                            .on_connection_closed(connection, src_peer_id, dst_peer_id)
                    }
                    Origin::Other => false,
                };
                news.then_some(Event::CircuitClosed {
                    source: src_peer_id,
                    destination: dst_peer_id,
                    error: error.map(|error| error.kind()),
                })
            }
            // A closed connection, which we look at ourselves; or a stream that broke before
            // anything was decided, which libp2p-relay is about to stop reporting.
            (event, _) => {
                tracing::trace!(?event, "not reported");
                None
            }
        }
    }

    fn reservation_ended(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        reason: CloseReason,
    ) -> Option<Event> {
        let held = self.shared().admission.on_ended(connection);
        held.then_some(Event::ReservationClosed {
            peer,
            connection,
            reason,
        })
    }

    /// Tells the stock server which addresses to hand out with reservations.
    fn advertise(&mut self) {
        let external = self.external.iter().filter(|address| !is_relayed(address));
        let mut wanted: Vec<Multiaddr> = external.cloned().collect();
        if wanted.is_empty() && self.advertise_listen_addresses {
            let listen = self.listen.iter().filter(|address| !is_relayed(address));
            wanted.extend(listen.cloned());
            wanted.sort();
        }
        for addr in &self.advertised {
            if !wanted.contains(addr) {
                self.stock
                    .on_swarm_event(FromSwarm::ExternalAddrExpired(ExternalAddrExpired { addr }));
            }
        }
        for addr in &wanted {
            if !self.advertised.contains(addr) {
                self.stock.on_swarm_event(FromSwarm::ExternalAddrConfirmed(
                    ExternalAddrConfirmed { addr },
                ));
            }
        }
        self.advertised = wanted;
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <Stock as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Event;

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
        let external = self.external.on_swarm_event(&event);
        let listen = self.listen.on_swarm_event(&event);
        if external || listen {
            self.advertise();
        }
        match event {
            FromSwarm::ExternalAddrConfirmed(_) | FromSwarm::ExternalAddrExpired(_) => {}
            FromSwarm::ConnectionClosed(closed) => {
                self.stock.on_swarm_event(event);
                let connection = closed.connection_id;
                self.drain(Origin::Closed(connection));
                self.circuits.forget_connection(connection);
                let ended = self.reservation_ended(
                    closed.peer_id,
                    connection,
                    CloseReason::ConnectionClosed,
                );
                self.actions.extend(ended.map(ToSwarm::GenerateEvent));
            }
            _ => self.stock.on_swarm_event(event),
        }
        self.drain(Origin::Other);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let renewing = self.shared().admission.is_renewing(connection);
        if renewing && is_reservation_timeout(&event) {
            // libp2p-relay 0.22 forgets the connection now and panics when the handler reports the answer to the renewal.
            self.actions.push_back(ToSwarm::CloseConnection {
                peer_id: peer,
                connection: CloseConnection::One(connection),
            });
            return;
        }
        self.shared().asking = Some(connection);
        self.stock
            .on_connection_handler_event(peer, connection, event);
        self.shared().asking = None;
        self.drain(Origin::Handler(connection));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Action> {
        if self.actions.is_empty() {
            // `set_status` may have queued something.
            self.drain(Origin::Other);
        }
        if let Some(action) = self.actions.pop_front() {
            return Poll::Ready(action);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// libp2p-relay 0.22 keeps its handler's events private; their text is all that tells.
fn is_reservation_timeout(event: &THandlerOutEvent<Behaviour>) -> bool {
    format!("{event:?}").contains("Event::ReservationTimedOut")
}

fn stock_config(config: &Config, shared: Arc<Mutex<Shared>>) -> libp2p_relay::Config {
    let mut stock = libp2p_relay::Config {
        // The stock server compares the peer's count with `>`, which lets one more in.
        max_reservations_per_peer: config.max_reservations_per_peer().saturating_sub(1),
        max_circuits_per_peer: config.max_circuits_per_peer().saturating_sub(1),
        // `Admission` decides instead: the stock server would refuse renewals too.
        max_reservations: usize::MAX,
        reservation_duration: config.reservation_duration(),
        max_circuits: config.max_circuits(),
        max_circuit_duration: config.max_circuit_duration(),
        // 0 is the stock server's "unlimited".
        max_circuit_bytes: config.max_circuit_bytes().unwrap_or(0),
        ..libp2p_relay::Config::default()
    };
    if !config.rate_limits() {
        stock.reservation_rate_limiters.clear();
        stock.circuit_src_rate_limiters.clear();
    }
    let admit = move |_: PeerId, _: &Multiaddr, _: web_time::Instant| {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.asking {
            Some(connection) => shared.admission.admit(connection),
            None => true,
        }
    };
    // First, so that a request which finds no room costs its sender no token.
    stock.reservation_rate_limiters.insert(0, Box::new(admit));
    stock
}
