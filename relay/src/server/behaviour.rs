use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use futures_timer::Delay;
use libp2p_core::{Endpoint, Multiaddr, multiaddr::Protocol, transport::PortUse};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, ExternalAddresses, FromSwarm, ListenAddresses,
    NetworkBehaviour, NotifyHandler, Stream, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use web_time::{Instant, SystemTime};

use super::{
    Access, CircuitId, Config, Event, Traffic,
    exchange::Grant,
    handler::{Command, Handler, Report, RequestId},
    pump::{PIECE_BYTES, SMALL_PIECE_BYTES, Tally, Terms, Throttle},
};
use crate::{
    Load, StatusCode,
    core::server::{Opening, Output, Refusal, Server, bandwidth::Bandwidth},
    is_relayed,
    message::{HopRequest, StopRequest},
    public::is_public,
};

type Action = ToSwarm<Event, THandlerInEvent<Behaviour>>;

/// When this node relays for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Always.
    Enabled,
    /// Never. Reservations end; open circuits run on until they end.
    Disabled,
    /// While it is known to be reachable: while an external address is confirmed that the internet can dial. A relayed,
    /// private or local one does not count.
    Automatic,
}

/// A circuit that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Circuit {
    /// Its number.
    pub id: CircuitId,
    /// Who opened it.
    pub source: PeerId,
    /// Who holds the reservation.
    pub destination: PeerId,
    /// What it has carried so far.
    pub traffic: Traffic,
}

/// Runs circuits as tasks of their own.
#[derive(Clone)]
pub(super) struct Executor(Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>);

impl Executor {
    pub(super) fn spawn(&self, task: BoxFuture<'static, ()>) {
        (self.0)(task);
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
    }
}

/// A relay: [circuit-v2](https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md)'s hop protocol for those who ask,
/// its stop protocol towards those who hold a reservation.
///
/// It starts [`Status::Disabled`].
#[derive(Debug)]
pub struct Behaviour {
    local: PeerId,
    key: Arc<Keypair>,
    config: Arc<Config>,
    status: Status,
    core: Server,
    /// Circuits that are open or being set up, as many as the core has.
    circuits: HashMap<CircuitId, Running>,
    /// By circuits that have ended.
    carried: Traffic,
    bandwidth: Option<Arc<Mutex<Bandwidth>>>,
    executor: Option<Executor>,
    external: ExternalAddresses,
    listen: ListenAddresses,
    /// What reservations list.
    advertised: Arc<[Multiaddr]>,
    /// The connections, to tell them whether hop is offered.
    connections: HashMap<ConnectionId, PeerId>,
    /// Those of them that are QUIC.
    quic: HashSet<ConnectionId>,
    actions: VecDeque<Action>,
    timer: Option<(Instant, Delay)>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Running {
    request: RequestId,
    ends: [PeerId; 2],
    terms: Terms,
    open: bool,
}

impl Behaviour {
    /// Makes a relay that is switched off. `key` is this node's own; it signs vouchers.
    #[must_use]
    pub fn new(key: &Keypair, config: Config) -> Self {
        let local = key.public().to_peer_id();
        let rates = config.rates();
        let bandwidth =
            (!rates.is_unlimited()).then(|| Arc::new(Mutex::new(Bandwidth::new(rates))));
        let config = Arc::new(config);
        Self {
            local,
            key: Arc::new(key.clone()),
            status: Status::Disabled,
            core: Server::new(local, Arc::clone(&config)),
            config,
            circuits: HashMap::new(),
            carried: Traffic::default(),
            bandwidth,
            executor: None,
            external: ExternalAddresses::default(),
            listen: ListenAddresses::default(),
            advertised: Arc::new([]),
            connections: HashMap::new(),
            quic: HashSet::new(),
            actions: VecDeque::new(),
            timer: None,
            waker: None,
        }
    }

    /// Runs every circuit as a task of its own instead of within the task of its source's connection: on more cores, for
    /// somewhat more work in all.
    #[must_use]
    pub fn with_executor(
        mut self,
        spawn: impl Fn(BoxFuture<'static, ()>) + Send + Sync + 'static,
    ) -> Self {
        self.executor = Some(Executor(Arc::new(spawn)));
        self
    }

    /// Switches relaying on or off, for connections that exist as well as for new ones.
    pub fn set_status(&mut self, status: Status) {
        self.status = status;
        self.apply_status();
    }

    /// When this node relays, as [`set_status`](Self::set_status) left it.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether it relays at this moment.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.core.is_offering()
    }

    /// Says who may use the relay from now on. What exists goes on as it was granted.
    pub fn set_access(&mut self, access: Access) {
        self.core.set_access(access);
    }

    /// Prepares for the end: nothing is granted any more, neither new nor renewed, and the hop protocol is withdrawn, so that
    /// clients look for other relays. Open circuits run on until they end, at most for `deadline`. [`Event::Drained`] says
    /// when nothing is left.
    ///
    /// There is no way back. Calling it again moves the deadline, as long as something is left to wait for.
    pub fn drain(&mut self, deadline: Duration) {
        let now = now();
        // A deadline beyond the clock's end is none.
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        self.core.drain(now + deadline.min(year));
        self.after_core();
    }

    /// How many reservations are held at this moment.
    #[must_use]
    pub fn reservations(&self) -> usize {
        self.core.reservations()
    }

    /// How many circuits are open or being set up at this moment.
    #[must_use]
    pub fn circuits(&self) -> usize {
        self.core.circuits()
    }

    /// How much of the relay is taken, for its [`Announcement`](crate::Announcement).
    #[must_use]
    pub fn load(&self) -> Load {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Load {
            reservations: count(self.reservations()),
            max_reservations: count(self.config.max_reservations()),
            circuits: count(self.circuits()),
            max_circuits: count(self.config.max_circuits()),
        }
    }

    /// The circuits that are open at this moment, and what each has carried so far, in the order in which they were opened.
    #[must_use]
    pub fn open_circuits(&self) -> Vec<Circuit> {
        let open = self.circuits.iter().filter(|(_, running)| running.open);
        let mut circuits: Vec<Circuit> = open
            .map(|(id, running)| {
                let [source, destination] = running.ends;
                Circuit {
                    id: *id,
                    source,
                    destination,
                    traffic: running.terms.tally.traffic(),
                }
            })
            .collect();
        circuits.sort_unstable_by_key(|circuit| circuit.id);
        circuits
    }

    /// What all circuits have carried so far, those that have ended and those that are open.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let open = self.circuits.values();
        open.map(|running| running.terms.tally.traffic())
            .fold(self.carried, Traffic::plus)
    }

    fn apply_status(&mut self) {
        let enabled = match self.status {
            Status::Enabled => true,
            Status::Disabled => false,
            Status::Automatic => self.external.iter().any(is_public),
        };
        self.core.set_enabled(enabled);
        self.after_core();
    }

    fn notify(&mut self, connection: ConnectionId, peer: PeerId, command: Command) {
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: command,
        });
    }

    fn tell(&mut self, event: Event) {
        self.actions.push_back(ToSwarm::GenerateEvent(event));
    }

    /// Carries out what the core decided.
    fn after_core(&mut self) {
        while let Some(output) = self.core.poll_output() {
            self.on_output(output);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn on_output(&mut self, output: Output) {
        match output {
            Output::Offer(enabled) => {
                let mut connections: Vec<_> = self
                    .connections
                    .iter()
                    .map(|(id, peer)| (*id, *peer))
                    .collect();
                connections.sort_unstable();
                for (connection, peer) in connections {
                    self.notify(connection, peer, Command::Offer(enabled));
                }
                self.tell(Event::StatusChanged { enabled });
            }
            Output::Hold {
                connection,
                peer,
                held,
            } => self.notify(connection, peer, Command::Hold(held)),
            Output::ReservationClosed {
                peer,
                connection,
                reason,
            } => self.tell(Event::ReservationClosed {
                peer,
                connection,
                reason,
            }),
            Output::CircuitFailed {
                circuit,
                source,
                peer,
                destination,
                status,
            } => {
                if let Some(failed) = self.circuits.remove(&circuit) {
                    let request = failed.request;
                    self.notify(source, peer, Command::Refuse { request, status });
                }
                self.tell(Event::CircuitDenied {
                    source: peer,
                    destination,
                    status,
                });
            }
            Output::CircuitClosed {
                circuit,
                source,
                destination,
                duration,
                end,
                ..
            } => {
                let mut traffic = Traffic::default();
                if let Some(closed) = self.circuits.remove(&circuit) {
                    closed.terms.tally.cut();
                    traffic = closed.terms.tally.traffic();
                }
                self.carried = self.carried.plus(traffic);
                self.tell(Event::CircuitClosed {
                    circuit,
                    source,
                    destination,
                    traffic,
                    duration,
                    end,
                });
            }
            Output::CircuitMoved {
                circuit,
                source,
                destination,
                from,
                through,
            } => {
                self.notify(from, destination, Command::Cancel(circuit));
                if let Some(running) = self.circuits.get(&circuit) {
                    let limit = running.terms.limit;
                    let request = StopRequest { source, limit };
                    self.notify(through, destination, Command::Stop { circuit, request });
                }
            }
            Output::CircuitForgotten {
                circuit,
                through,
                destination,
            } => {
                self.circuits.remove(&circuit);
                self.notify(through, destination, Command::Cancel(circuit));
            }
            Output::Ban { peer } => {
                self.actions.push_back(ToSwarm::CloseConnection {
                    peer_id: peer,
                    connection: CloseConnection::All,
                });
                self.tell(Event::Banned { peer });
            }
            Output::Drained { cut } => self.tell(Event::Drained { cut }),
        }
    }

    fn on_reserve(&mut self, connection: ConnectionId, peer: PeerId, request: RequestId) {
        match self.core.reserve(connection, now()) {
            Ok(granted) => {
                let expires = self.expiry();
                let grant = Grant {
                    key: Arc::clone(&self.key),
                    relay: self.local,
                    peer,
                    expires,
                    addresses: Arc::clone(&self.advertised),
                    limit: granted.limit,
                };
                self.after_core();
                self.notify(connection, peer, Command::Grant { request, grant });
                if granted.is_new_here {
                    self.core.ask_again(connection);
                    self.after_core();
                }
                self.tell(Event::ReservationAccepted {
                    peer,
                    connection,
                    renewed: granted.renewed,
                });
            }
            Err(refusal) => {
                self.after_core();
                if let Some(status) = self.refuse(connection, peer, request, refusal) {
                    self.tell(Event::ReservationDenied { peer, status });
                }
            }
        }
    }

    /// "The `expire` field contains the expiration time as a UTC UNIX time."
    /// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
    fn expiry(&self) -> u64 {
        #[expect(clippy::disallowed_methods, reason = "the adapter's clock")]
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        now.as_secs()
            .saturating_add(self.config.reservation_duration().as_secs())
    }

    fn on_connect(
        &mut self,
        connection: ConnectionId,
        source: PeerId,
        request: RequestId,
        destination: PeerId,
    ) {
        let decision = self.core.connect(connection, destination, now());
        self.after_core();
        let Opening {
            circuit,
            through,
            limit,
            class,
        } = match decision {
            Ok(opening) => opening,
            Err(refusal) => {
                if let Some(status) = self.refuse(connection, source, request, refusal) {
                    self.tell(Event::CircuitDenied {
                        source,
                        destination,
                        status,
                    });
                }
                return;
            }
        };
        let ends = [source, destination];
        let throttle = self.bandwidth.as_ref().map(|bandwidth| {
            let piece = self.config.rates().piece(SMALL_PIECE_BYTES);
            Throttle::new(Arc::clone(bandwidth), piece, class, ends)
        });
        let ends_in_quic = [connection, through]
            .iter()
            .any(|end| self.quic.contains(end));
        let terms = Terms {
            limit,
            throttle,
            piece: if ends_in_quic {
                SMALL_PIECE_BYTES
            } else {
                PIECE_BYTES
            },
            tally: Arc::new(Tally::default()),
        };
        self.circuits.insert(
            circuit,
            Running {
                request,
                ends,
                terms,
                open: false,
            },
        );
        let request = StopRequest { source, limit };
        self.notify(through, destination, Command::Stop { circuit, request });
    }

    fn refuse(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        request: RequestId,
        refusal: Refusal,
    ) -> Option<StatusCode> {
        match refusal {
            Refusal::Told(status) => {
                self.notify(connection, peer, Command::Refuse { request, status });
                Some(status)
            }
            Refusal::Ignored => {
                self.notify(connection, peer, Command::Ignore { request });
                None
            }
        }
    }

    fn on_stop(&mut self, circuit: CircuitId, result: Result<Stream, StatusCode>) {
        let stream = match result {
            Ok(stream) => stream,
            Err(status) => {
                self.core.on_circuit_refused(circuit, status);
                return self.after_core();
            }
        };
        // It may be gone, with its source; then the stream goes too.
        let Some((connection, [source, destination])) = self.core.on_circuit_open(circuit, now())
        else {
            return self.after_core();
        };
        let Some(running) = self.circuits.get_mut(&circuit) else {
            return;
        };
        running.open = true;
        let command = Command::Bridge {
            request: running.request,
            circuit,
            destination: stream,
            terms: running.terms.clone(),
        };
        self.notify(connection, source, command);
        self.tell(Event::CircuitAccepted {
            circuit,
            source,
            destination,
        });
    }

    /// "The `addrs` field contains all the public relay addrs, including the peer ID of the relay node but not the trailing
    /// `p2p-circuit` part."
    /// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
    fn advertise(&mut self) {
        let direct = |address: &&Multiaddr| !is_relayed(address);
        let mut addresses: Vec<Multiaddr> = self.external.iter().filter(direct).cloned().collect();
        if addresses.is_empty() && self.config.advertise_listen_addresses() {
            addresses.extend(self.listen.iter().filter(direct).cloned());
            addresses.sort();
        }
        let named = |address: Multiaddr| match address.iter().last() {
            Some(Protocol::P2p(_)) => address,
            _ => address.with(Protocol::P2p(self.local)),
        };
        self.advertised = addresses.into_iter().map(named).collect();
    }

    fn check_ban(&mut self, peer: PeerId, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        if self.core.is_banned(peer, remote, now()) {
            return Err(ConnectionDenied::new(Flooded));
        }
        Ok(())
    }

    fn new_handler(&self) -> Handler {
        let timeout = self.config.handshake_timeout();
        Handler::new(self.core.is_offering(), timeout, self.executor.clone())
    }
}

/// Why a connection is refused before anybody knows whose it is.
#[derive(Debug, thiserror::Error)]
#[error(
    "peers that flooded the relay keep coming back from this address; few connections from there may begin"
)]
struct Beside;

/// Why a connection is refused.
#[derive(Debug, thiserror::Error)]
#[error("this peer has flooded the relay with requests and is not let in for now")]
struct Flooded;

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if self.core.may_begin(remote, now()) {
            Ok(())
        } else {
            Err(ConnectionDenied::new(Beside))
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check_ban(peer, remote)?;
        Ok(self.new_handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        // We want this one, whatever the peer did.
        Ok(self.new_handler())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        let external = self.external.on_swarm_event(&event);
        let listen = self.listen.on_swarm_event(&event);
        if external || listen {
            self.advertise();
        }
        if external {
            self.apply_status();
        }
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                let (connection, peer) = (established.connection_id, established.peer_id);
                let remote = established.endpoint.get_remote_address();
                let relayed = established.endpoint.is_relayed();
                self.core.on_connected(connection, peer, remote, relayed);
                self.connections.insert(connection, peer);
                if is_quic(remote) {
                    self.quic.insert(connection);
                }
                // The status may have changed since the handler was made.
                let offered = self.core.is_offering();
                self.notify(connection, peer, Command::Offer(offered));
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.connections.remove(&closed.connection_id);
                self.quic.remove(&closed.connection_id);
                self.core.on_disconnected(closed.connection_id, now());
                self.after_core();
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        report: THandlerOutEvent<Self>,
    ) {
        match report {
            Report::Request { request, hop } => match hop {
                HopRequest::Reserve => self.on_reserve(connection, peer, request),
                HopRequest::Connect { destination } => {
                    self.on_connect(connection, peer, request, destination);
                }
            },
            Report::Violation(violation) => {
                if self.core.on_violation(connection, now()) {
                    self.tell(Event::ProtocolViolation { peer, violation });
                }
                self.after_core();
            }
            // What comes over another connection was given up.
            Report::Stop { circuit, result } if self.core.is_asked(circuit, connection) => {
                self.on_stop(circuit, result);
            }
            Report::Stop { .. } => {}
            Report::Ended { circuit, end } => {
                self.core.on_circuit_ended(circuit, end, now());
                self.after_core();
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            let Some(due) = self.core.poll_timeout() else {
                self.timer = None;
                break;
            };
            if self.timer.as_ref().is_none_or(|(at, _)| *at != due) {
                let wait = due.saturating_duration_since(now());
                self.timer = Some((due, Delay::new(wait)));
            }
            let rings = self
                .timer
                .as_mut()
                .is_some_and(|(_, timer)| timer.poll_unpin(cx).is_ready());
            if !rings {
                break;
            }
            self.timer = None;
            self.core.handle_timeout(now());
            self.after_core();
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn is_quic(address: &Multiaddr) -> bool {
    let mut protocols = address.iter();
    protocols.any(|protocol| matches!(protocol, Protocol::QuicV1 | Protocol::Quic))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter is where the core's clock comes from"
)]
fn now() -> Instant {
    Instant::now()
}
