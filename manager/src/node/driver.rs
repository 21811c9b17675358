//! The task that owns the swarm: executes commands, feeds the cores, does what they ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    pin::Pin,
    time::Duration,
};

use anypath_bitswap as bitswap;
use anypath_dht as dht;
use anypath_relay::server;
use anypath_tiered_store::Store;
use cid::Cid;
use futures::{
    FutureExt as _, Stream as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered,
};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::ConnectedPoint,
    multiaddr::Protocol,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::{broadcast, mpsc, oneshot};
use web_time::Instant;

use super::{Command, metrics::Metrics, now};
use crate::{
    behaviour::{Behaviour, BehaviourEvent},
    bootstrap::{self, Found, KnownPeers, Registry, known, with_peer},
    config::Config,
    error::{ConnectError, DhtError, StartError},
    event::{Discovery, Event},
    fetch::{Delivery, Fetches, Reply},
    status::{ConnectionCounts, ConnectionStatus, PeerStatus, ReservationStatus, Status},
    strategy::{self, BestPath, DialId, Established, Output, Path, Purpose, Strategy},
    streams::path_of,
    unrelayed::Unrelayed,
    wiring::{self, Wiring},
};

/// How often waiting things are looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often the file registry is read, in the first minute and later.
const REGISTRY_INTERVALS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// Connected peers from which on announcements over gossipsub lead to no further connections.
const ENOUGH_PEERS: usize = 32;
/// Connected peers from which on the local network does not either.
const ENOUGH_LOCAL_PEERS: usize = 128;
/// Peers of the last run that are dialled at start.
const KNOWN_PEERS_DIALLED: usize = 8;
/// How often the peers that worked are written down.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long a shutdown waits for the other ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

struct Connection {
    address: Multiaddr,
    path: Path,
    limited: bool,
    inbound: bool,
}

#[derive(Default)]
struct PeerState {
    agent: Option<String>,
    connections: BTreeMap<ConnectionId, Connection>,
}

/// Who waits for a dial to an address that names no peer.
enum Unknown {
    Connect(Multiaddr, oneshot::Sender<Result<PeerId, ConnectError>>),
    Session(u64),
}

/// Who waits for a DHT query.
enum DhtWaiter {
    Provide(oneshot::Sender<Result<(), DhtError>>),
    Find(Vec<PeerId>, oneshot::Sender<Result<Vec<PeerId>, DhtError>>),
}

/// What was done off the driver.
enum Done {
    Stored(bitswap::Ticket, Cid, usize),
    Registry(Registry, io::Result<Vec<Found>>),
    Saved,
}

pub(super) struct Driver {
    config: Config,
    swarm: Swarm<Behaviour>,
    store: Store,
    commands: mpsc::Receiver<Command>,
    events: broadcast::Sender<Event>,
    strategy: Strategy,
    wiring: Wiring,
    fetches: Fetches,
    metrics: Metrics,
    known: KnownPeers,
    registry: Option<Registry>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    peers: BTreeMap<PeerId, PeerState>,
    dials: BTreeMap<ConnectionId, DialId>,
    unknown: BTreeMap<ConnectionId, Unknown>,
    connecting: BTreeMap<PeerId, Vec<oneshot::Sender<Result<PeerId, ConnectError>>>>,
    dial_errors: BTreeMap<PeerId, String>,
    dht_waiters: BTreeMap<dht::Ticket, DhtWaiter>,
    started: Instant,
    next_tick: Instant,
    next_registry: Instant,
    next_save: Instant,
    shutdown: Vec<oneshot::Sender<()>>,
}

impl Driver {
    pub(super) fn new(
        config: Config,
        mut swarm: Swarm<Behaviour>,
        store: Store,
        known: KnownPeers,
        commands: mpsc::Receiver<Command>,
        events: broadcast::Sender<Event>,
    ) -> Self {
        let local = *swarm.local_peer_id();
        let now = now();
        let metrics = Metrics::new(swarm.behaviour_mut(), &store);
        let registry = config
            .file_registry()
            .then(|| Registry::new(config.file_registry_dir(), local))
            .flatten();
        Self {
            strategy: Strategy::new(local, strategy::Config::default(), rand::random()),
            wiring: Wiring::new(config.enable_relay_client()),
            fetches: Fetches::new(config.direct_path_timeout()),
            metrics,
            known,
            registry,
            jobs: FuturesUnordered::new(),
            peers: BTreeMap::new(),
            dials: BTreeMap::new(),
            unknown: BTreeMap::new(),
            connecting: BTreeMap::new(),
            dial_errors: BTreeMap::new(),
            dht_waiters: BTreeMap::new(),
            started: now,
            next_tick: now + TICK,
            next_registry: now,
            next_save: now + SAVE_INTERVAL,
            shutdown: Vec::new(),
            config,
            swarm,
            store,
            commands,
            events,
        }
    }

    /// Sets the roles and starts the bootstrap, once the node listens.
    pub(super) fn begin(&mut self) -> Result<(), StartError> {
        let now = now();
        for address in self.config.external_addrs() {
            self.swarm.add_external_address(address.clone());
        }
        let behaviour = self.swarm.behaviour_mut();
        behaviour
            .relay_server
            .set_status(if self.config.enable_relay_server() {
                server::Status::Enabled
            } else {
                server::Status::Disabled
            });
        if self.config.enable_relay_client() {
            for address in self.config.relays() {
                behaviour
                    .relay_client
                    .add_relay(address.clone())
                    .map_err(|source| StartError::Relay {
                        address: address.clone(),
                        source: source.into(),
                    })?;
            }
        }
        self.set_public(!self.config.external_addrs().is_empty());

        for address in self.config.bootstrap_peers().to_vec() {
            match with_peer(&address) {
                Some((peer, address)) => {
                    self.strategy.want(peer, [address], Purpose::Static, now);
                }
                None => self.dial_unknown(address, None),
            }
        }
        if self.config.dials_public_bootstrap() {
            for (peer, address) in bootstrap::public() {
                self.strategy.want(peer, [address], Purpose::Once, now);
            }
        }
        if !self.config.private() {
            let known: Vec<_> = self.known.iter().take(KNOWN_PEERS_DIALLED).collect();
            for (peer, address) in known {
                self.strategy.want(peer, [address], Purpose::Once, now);
            }
        }
        Ok(())
    }

    pub(super) async fn run(mut self) {
        let mut timer = futures_timer::Delay::new(Duration::ZERO);
        let mut armed = None;
        loop {
            self.drain_strategy();
            let strategy = self.strategy.poll_timeout().unwrap_or(self.next_tick);
            let deadline = strategy.min(self.next_tick);
            if armed != Some(deadline) {
                armed = Some(deadline);
                timer.reset(deadline.saturating_duration_since(now()));
            }
            futures::select! {
                command = self.commands.recv().fuse() => match command {
                    Some(Command::Shutdown(reply)) => {
                        self.shutdown.push(reply);
                        break;
                    }
                    Some(command) => self.on_command(command),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                done = next_job(&mut self.jobs).fuse() => self.on_done(done),
                () = (&mut timer).fuse() => {
                    self.on_timer();
                    // An elapsed timer has to be armed again, even for the same deadline.
                    armed = None;
                }
            }
        }
        self.stop().await;
    }

    // ---- commands -------------------------------------------------------------------------------

    fn on_command(&mut self, command: Command) {
        let now = now();
        match command {
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Peers(reply) => drop(reply.send(self.peer_statuses())),
            Command::Metrics(reply) => drop(reply.send(self.metrics.text())),
            Command::Connect { address, reply } => self.connect(address, reply),
            Command::Provide { cid, reply } => match self.dht() {
                Some(dht) => {
                    let ticket = dht.provide(cid);
                    self.dht_waiters.insert(ticket, DhtWaiter::Provide(reply));
                }
                None => drop(reply.send(Err(DhtError::Disabled))),
            },
            Command::StopProviding { cid } => {
                if let Some(dht) = self.dht() {
                    dht.stop_providing(&cid);
                }
            }
            Command::FindProviders { cid, reply } => match self.dht() {
                Some(dht) => {
                    let ticket = dht.find_providers(cid);
                    self.dht_waiters
                        .insert(ticket, DhtWaiter::Find(Vec::new(), reply));
                }
                None => drop(reply.send(Err(DhtError::Disabled))),
            },
            Command::OpenStream(request) => {
                let peer = request.peer;
                self.swarm.behaviour_mut().streams.open(request);
                if !self.swarm.is_connected(&peer)
                    && !self.strategy.want(peer, [], Purpose::Once, now)
                {
                    self.swarm.behaviour_mut().streams.fail_waiting(peer);
                }
            }
            Command::Register { protocol, reply } => {
                drop(reply.send(self.swarm.behaviour_mut().streams.register(protocol)));
            }
            Command::NewSession(shared) => self.open_session(&shared),
            Command::Want {
                session,
                cid,
                reply,
            } => {
                self.open_session(&session);
                // It may have come while the want was on its way.
                if self.store.has(&cid) {
                    drop(reply.send(Reply::Stored));
                    return;
                }
                let bitswap = &mut self.swarm.behaviour_mut().bitswap;
                self.fetches.want(session.id, cid, reply, bitswap, now);
            }
            Command::EndSession(session) => self.close_session(session),
            Command::NotifyBlocks(cids) => {
                self.swarm.behaviour_mut().bitswap.notify_new_blocks(&cids);
            }
            Command::Shutdown(reply) => self.shutdown.push(reply),
        }
    }

    fn dht(&mut self) -> Option<&mut dht::Behaviour> {
        self.swarm
            .behaviour_mut()
            .dht
            .as_mut()
            .map(Unrelayed::inner_mut)
    }

    fn connect(
        &mut self,
        address: Multiaddr,
        reply: oneshot::Sender<Result<PeerId, ConnectError>>,
    ) {
        let Some((peer, address)) = with_peer(&address) else {
            self.dial_unknown(address.clone(), Some(Unknown::Connect(address, reply)));
            return;
        };
        if peer == *self.swarm.local_peer_id() {
            drop(reply.send(Err(ConnectError::Myself(peer))));
        } else if self.swarm.is_connected(&peer) {
            drop(reply.send(Ok(peer)));
        } else if self.strategy.want(peer, [address], Purpose::Once, now()) {
            self.connecting.entry(peer).or_default().push(reply);
        } else {
            drop(reply.send(Err(ConnectError::TooMany)));
        }
    }

    fn dial_unknown(&mut self, address: Multiaddr, waiter: Option<Unknown>) {
        let opts = DialOpts::unknown_peer_id().address(address).build();
        let connection = opts.connection_id();
        if let Some(waiter) = waiter {
            self.unknown.insert(connection, waiter);
        }
        if let Err(error) = self.swarm.dial(opts) {
            self.on_unknown_failed(connection, &error);
        }
    }

    fn open_session(&mut self, shared: &std::sync::Arc<crate::fetch::Shared>) {
        let bitswap = &mut self.swarm.behaviour_mut().bitswap;
        for address in self.fetches.open(shared, bitswap, now()) {
            match with_peer(&address) {
                Some((peer, address)) => {
                    let best = self.strategy.best(&peer);
                    let bitswap = &mut self.swarm.behaviour_mut().bitswap;
                    self.fetches.add_peer(shared.id, peer, best, bitswap);
                    self.strategy.want(peer, [address], Purpose::Session, now());
                    self.protect(peer);
                }
                None => self.dial_unknown(address, Some(Unknown::Session(shared.id))),
            }
        }
    }

    fn close_session(&mut self, session: u64) {
        let bitswap = &mut self.swarm.behaviour_mut().bitswap;
        for peer in self.fetches.close(session, bitswap) {
            self.strategy.release(peer, Purpose::Session);
            self.protect(peer);
        }
    }

    fn protect(&mut self, peer: PeerId) {
        let protected = self.strategy.is_protected(&peer);
        self.swarm
            .behaviour_mut()
            .streams
            .set_keep_alive(peer, protected);
    }

    // ---- the swarm ------------------------------------------------------------------------------

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => {
                self.metrics.record(&event);
                for command in self.wiring.on_event(event) {
                    self.on_wiring(command);
                }
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                tracing::debug!(peer = %peer_id, connection = %connection_id, ?cause, "connection closed");
                if let Some(state) = self.peers.get_mut(&peer_id) {
                    state.connections.remove(&connection_id);
                    if state.connections.is_empty() {
                        self.peers.remove(&peer_id);
                    }
                }
                self.wiring.on_closed(connection_id);
                self.strategy.on_closed(connection_id, now());
                self.count_connections();
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => {
                self.on_unknown_failed(connection_id, &error);
                if let Some(peer) = peer_id.filter(|_| self.dials.contains_key(&connection_id)) {
                    self.note_dial_error(peer, &error);
                }
                self.on_dial_failed(connection_id, &error);
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::info!(%address, "listening");
                self.emit(Event::Listening { address });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } if Path::of(&address) == Path::Direct => {
                self.strategy.on_network_changed();
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a listener failed");
            }
            _ => {}
        }
    }

    fn on_established(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        let path = path_of(endpoint);
        let address = endpoint.get_remote_address().clone();
        tracing::debug!(%peer, %connection, %address, ?path, "connected");
        let dial = self.dials.remove(&connection);
        match (self.unknown.remove(&connection), endpoint) {
            (Some(Unknown::Connect(_, reply)), _) => drop(reply.send(Ok(peer))),
            (Some(Unknown::Session(session)), _) => {
                let bitswap = &mut self.swarm.behaviour_mut().bitswap;
                self.fetches.add_peer(session, peer, None, bitswap);
            }
            (None, _) => {}
        }
        if path == Path::Direct {
            let local = match endpoint {
                ConnectedPoint::Listener { local_addr, .. } => Some(local_addr.clone()),
                ConnectedPoint::Dialer { .. } => None,
            };
            self.wiring.on_direct(connection, local);
            if endpoint.is_dialer() {
                let with_id = if with_peer(&address).is_some() {
                    address.clone()
                } else {
                    address.clone().with(Protocol::P2p(peer))
                };
                self.known.on_dialled(peer, with_id);
            }
        }
        self.peers.entry(peer).or_default().connections.insert(
            connection,
            Connection {
                path,
                limited: path == Path::Relayed,
                inbound: endpoint.is_listener(),
                address: address.clone(),
            },
        );
        self.dial_errors.remove(&peer);
        for reply in self.connecting.remove(&peer).unwrap_or_default() {
            drop(reply.send(Ok(peer)));
        }
        let quic = transport_of(&address) == "quic";
        self.strategy.on_established(
            Established {
                connection,
                peer,
                path,
                quic,
                dial,
            },
            now(),
        );
        self.protect(peer);
        self.count_connections();
    }

    fn on_dial_failed(&mut self, connection: ConnectionId, error: &DialError) {
        let Some(dial) = self.dials.remove(&connection) else {
            return;
        };
        tracing::debug!(%connection, %error, "dial failed");
        self.strategy.on_dial_failed(dial, now());
    }

    fn on_unknown_failed(&mut self, connection: ConnectionId, error: &DialError) {
        if let Some(Unknown::Connect(address, reply)) = self.unknown.remove(&connection) {
            let (target, reason) = (address.to_string(), describe(error));
            drop(reply.send(Err(ConnectError::Unreachable { target, reason })));
        }
    }

    // ---- wiring ---------------------------------------------------------------------------------

    fn on_wiring(&mut self, command: wiring::Command) {
        use wiring::Command as Wire;
        let now = now();
        let behaviour = self.swarm.behaviour_mut();
        match command {
            Wire::Observe {
                observer,
                local,
                observed,
            } => {
                behaviour
                    .holepunch
                    .on_observation(observer, local, observed);
                self.strategy.on_observed(now);
            }
            Wire::Verdict(verdict) => {
                behaviour
                    .holepunch
                    .on_autonat(verdict.server, verdict.address, verdict.reachable);
            }
            Wire::AddRelayCandidate { peer, addresses } => {
                behaviour.relay_client.add_candidate(peer, addresses);
            }
            Wire::AddDhtAddress { peer, addresses } => {
                if let Some(dht) = behaviour.dht.as_mut().map(Unrelayed::inner_mut) {
                    for address in addresses {
                        dht.add_address(peer, address);
                    }
                }
            }
            Wire::FindProviders { ticket, cid } => {
                if let Some(dht) = behaviour.dht.as_mut().map(Unrelayed::inner_mut) {
                    let query = dht.find_providers(cid);
                    self.wiring.on_search(query, ticket);
                }
            }
            Wire::AddProviders { ticket, peers } => behaviour.bitswap.add_providers(ticket, peers),
            Wire::SetCircuitLimit {
                peer,
                connection,
                limit,
                limited,
            } => {
                behaviour.bitswap.set_circuit_limit(connection, limit);
                behaviour.streams.set_limited(peer, connection, limited);
                self.strategy.on_circuit(connection, limited);
                if let Some(state) = self.peers.get_mut(&peer)
                    && let Some(connection) = state.connections.get_mut(&connection)
                {
                    connection.limited = limited;
                }
            }
            Wire::AutoConnect {
                peer,
                addresses,
                by,
            } => self.auto_connect(peer, addresses, by),
            Wire::PunchFailed { peer } => self.strategy.on_punch_failed(peer, now),
            Wire::SetPublic(public) => self.set_public(public),
            Wire::Identified { peer, agent } => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.agent = Some(agent);
                }
            }
            Wire::Deliver {
                ticket,
                block,
                connection,
            } => self.deliver(ticket, block, connection),
            Wire::WaitingForDirect {
                ticket,
                peer,
                allowed,
            } => {
                self.fetches.on_waiting(ticket, peer, allowed, now);
            }
            Wire::DhtFound { ticket, providers } => {
                if let Some(DhtWaiter::Find(found, _)) = self.dht_waiters.get_mut(&ticket) {
                    found.extend(providers);
                }
            }
            Wire::DhtFinished { ticket, result } => {
                let failed = |reason: String| DhtError::Query(reason.into());
                match self.dht_waiters.remove(&ticket) {
                    Some(DhtWaiter::Provide(reply)) => drop(reply.send(result.map_err(failed))),
                    // What was found counts, even if the search ended early.
                    Some(DhtWaiter::Find(found, reply)) if !found.is_empty() => {
                        drop(reply.send(Ok(found)));
                    }
                    Some(DhtWaiter::Find(found, reply)) => {
                        drop(reply.send(result.map(|()| found).map_err(failed)));
                    }
                    None => {}
                }
            }
            Wire::Disconnect { peer } => {
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            Wire::Emit(event) => self.emit(event),
        }
    }

    fn auto_connect(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, by: Discovery) {
        let enough = match by {
            Discovery::Pubsub => ENOUGH_PEERS,
            Discovery::Mdns | Discovery::FileRegistry => ENOUGH_LOCAL_PEERS,
        };
        let now = now();
        self.strategy.on_addresses(peer, addresses.clone(), now);
        let idle = !self.swarm.is_connected(&peer) && !self.strategy.is_dialling(&peer);
        if idle && self.peers.len() < enough {
            self.strategy.want(peer, addresses, Purpose::Once, now);
        }
    }

    fn set_public(&mut self, public: bool) {
        let public = public || !self.config.external_addrs().is_empty();
        if let Some(dht) = self.dht() {
            dht.set_mode(if public {
                dht::Mode::Server
            } else {
                dht::Mode::Client
            });
        }
    }

    fn deliver(
        &mut self,
        ticket: bitswap::Ticket,
        block: bitswap::Block,
        connection: Option<(PeerId, ConnectionId)>,
    ) {
        let bytes = block.data().len();
        let path = connection.and_then(|(peer, connection)| {
            Some(self.peers.get(&peer)?.connections.get(&connection)?.path)
        });
        match self.fetches.deliver(ticket, block, path, now()) {
            Some(Delivery { ticket, cid, data }) => {
                let store = self.store.clone();
                self.jobs.push(
                    async move {
                        // The block is delivered whether or not there is room for it.
                        if let Err(error) = store.put(cid, data).await {
                            tracing::debug!(%cid, %error, "a fetched block is not kept");
                        }
                        Done::Stored(ticket, cid, bytes)
                    }
                    .boxed(),
                );
            }
            None => self.swarm.behaviour_mut().bitswap.taken(ticket, bytes),
        }
    }

    // ---- strategy -------------------------------------------------------------------------------

    fn drain_strategy(&mut self) {
        while let Some(output) = self.strategy.poll_output() {
            match output {
                Output::Dial {
                    dial,
                    peer,
                    addresses,
                } => self.dial(dial, peer, addresses),
                Output::Close { connection } => {
                    tracing::debug!(%connection, "closing: a better connection is there");
                    self.swarm.close_connection(connection);
                }
                Output::PathChanged { peer, best } => self.on_path(peer, best),
                Output::Unreachable { peer } => self.on_unreachable(peer),
            }
        }
    }

    fn dial(&mut self, dial: DialId, peer: PeerId, addresses: Vec<Multiaddr>) {
        tracing::debug!(%peer, ?addresses, "dialling");
        let opts = DialOpts::peer_id(peer).condition(PeerCondition::Always);
        let opts = if addresses.is_empty() {
            opts.build()
        } else {
            opts.addresses(addresses).build()
        };
        let connection = opts.connection_id();
        self.dials.insert(connection, dial);
        if let Err(error) = self.swarm.dial(opts) {
            self.note_dial_error(peer, &error);
            self.on_dial_failed(connection, &error);
        }
    }

    /// Remembers what to tell those who wait for the peer; nobody else asks.
    fn note_dial_error(&mut self, peer: PeerId, error: &DialError) {
        if self.connecting.contains_key(&peer) {
            self.dial_errors.insert(peer, describe(error));
        }
    }

    fn on_path(&mut self, peer: PeerId, best: Option<BestPath>) {
        self.fetches.on_path(peer, best);
        self.emit(Event::PathChanged {
            peer,
            path: best.map(|best| best.path),
        });
    }

    fn on_unreachable(&mut self, peer: PeerId) {
        let reason = self
            .dial_errors
            .remove(&peer)
            .unwrap_or_else(|| "no address worked".to_owned());
        for reply in self.connecting.remove(&peer).unwrap_or_default() {
            let (target, reason) = (peer.to_string(), reason.clone());
            drop(reply.send(Err(ConnectError::Unreachable { target, reason })));
        }
        if !self.swarm.is_connected(&peer) {
            self.swarm.behaviour_mut().streams.fail_waiting(peer);
        }
    }

    // ---- time -----------------------------------------------------------------------------------

    fn on_timer(&mut self) {
        let now = now();
        for connection in self.strategy.contested() {
            let behaviour = self.swarm.behaviour();
            let busy = behaviour.streams.streams_on(connection) > 0
                || !behaviour.bitswap.transfers_on(connection).is_idle();
            self.strategy.on_activity(connection, busy, now);
        }
        self.strategy.handle_timeout(now);
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        let bitswap = &mut self.swarm.behaviour_mut().bitswap;
        for session in self.fetches.sweep(bitswap, now) {
            self.close_session(session);
        }
        if now >= self.next_registry
            && let Some(mut registry) = self.registry.take()
        {
            let (first, later) = REGISTRY_INTERVALS;
            let young = now.saturating_duration_since(self.started) < Duration::from_secs(60);
            self.next_registry = now + if young { first } else { later };
            let addresses = self.own_addresses();
            self.jobs.push(
                blocking::unblock(move || {
                    let found = registry.sync(&addresses, since_1970());
                    Done::Registry(registry, found)
                })
                .boxed(),
            );
        }
        if now >= self.next_save {
            self.next_save = now + SAVE_INTERVAL;
            if let Some(bytes) = self.known.encode_if_changed() {
                let store = self.store.clone();
                self.jobs
                    .push(save(store, bytes).map(|()| Done::Saved).boxed());
            }
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Stored(ticket, cid, bytes) => {
                self.fetches.stored(&cid);
                self.swarm.behaviour_mut().bitswap.taken(ticket, bytes);
            }
            Done::Registry(registry, found) => {
                self.registry = Some(registry);
                match found {
                    Ok(found) => {
                        for Found { peer, addresses } in found {
                            if !self.swarm.is_connected(&peer) {
                                self.auto_connect(peer, addresses, Discovery::FileRegistry);
                            }
                        }
                    }
                    Err(error) => tracing::debug!(%error, "the file registry cannot be used"),
                }
            }
            Done::Saved => {}
        }
    }

    async fn stop(mut self) {
        let mut closing: BTreeSet<_> = self.swarm.connected_peers().copied().collect();
        for peer in &closing {
            let _ = self.swarm.disconnect_peer_id(*peer);
        }
        let mut timeout = futures_timer::Delay::new(CLOSE_TIMEOUT).fuse();
        while !closing.is_empty() {
            futures::select! {
                event = self.swarm.select_next_some() => {
                    if let SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } = event {
                        closing.remove(&peer_id);
                    }
                }
                () = timeout => break,
            }
        }
        // Blocks that were delivered are stored before the store is written out.
        while let Some(done) = self.jobs.next().await {
            if let Done::Registry(registry, _) = done {
                self.registry = Some(registry);
            }
        }
        if let Some(mut registry) = self.registry.take() {
            let removed = blocking::unblock(move || registry.deregister()).await;
            if let Err(error) = removed {
                tracing::debug!(%error, "the file registry keeps an entry of this node");
            }
        }
        if let Some(bytes) = self.known.encode_if_changed() {
            save(self.store.clone(), bytes).await;
        }
        if let Err(error) = self.store.flush().await {
            tracing::error!(%error, "the store could not be written out");
        }
        let replies = std::mem::take(&mut self.shutdown);
        // Sockets are closed when the caller hears that the node has stopped.
        drop(self);
        for reply in replies {
            let _ = reply.send(());
        }
    }

    // ---- snapshots ------------------------------------------------------------------------------

    /// Where others can reach this node, with its peer id.
    fn own_addresses(&self) -> Vec<Multiaddr> {
        let local = *self.swarm.local_peer_id();
        let listeners = self
            .swarm
            .listeners()
            .chain(self.swarm.external_addresses());
        listeners
            .map(|address| match with_peer(address) {
                Some(_) => address.clone(),
                None => address.clone().with(Protocol::P2p(local)),
            })
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    fn counts(&self) -> ConnectionCounts {
        let connections = self
            .peers
            .values()
            .flat_map(|peer| peer.connections.values());
        connections.fold(ConnectionCounts::default(), |mut counts, connection| {
            match connection.path {
                Path::Direct => counts.direct += 1,
                Path::Relayed => counts.relayed += 1,
            }
            counts
        })
    }

    fn count_connections(&self) {
        self.metrics
            .set_connections(self.counts(), self.peers.len());
    }

    fn status(&self) -> Status {
        let behaviour = self.swarm.behaviour();
        let text = |addresses: Vec<&Multiaddr>| {
            addresses
                .into_iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        Status {
            peer_id: self.swarm.local_peer_id().to_string(),
            agent: crate::behaviour::AGENT.to_owned(),
            listen_addrs: text(self.swarm.listeners().collect()),
            external_addrs: text(self.swarm.external_addresses().collect()),
            observed_addrs: behaviour
                .holepunch
                .observed_addresses()
                .into_iter()
                .map(|observed| observed.address.to_string())
                .collect(),
            nat_status: behaviour.holepunch.nat_status().as_str().to_owned(),
            reservations: behaviour
                .relay_client
                .reservations()
                .into_iter()
                .map(|reservation| ReservationStatus {
                    relay: reservation.relay.to_string(),
                    address: reservation.address.to_string(),
                    limit_bytes: reservation.limit.and_then(|limit| limit.bytes),
                })
                .collect(),
            relay_server: behaviour.relay_server.status() == server::Status::Enabled,
            dht_mode: match behaviour.dht.as_ref().map(|dht| dht.inner().mode()) {
                None => "off",
                Some(dht::Mode::Client) => "client",
                Some(dht::Mode::Server) => "server",
            }
            .to_owned(),
            connections: self.counts(),
            peers: self.peers.len(),
            uptime_secs: now().saturating_duration_since(self.started).as_secs(),
        }
    }

    fn peer_statuses(&self) -> Vec<PeerStatus> {
        let streams = &self.swarm.behaviour().streams;
        let peers = self.peers.iter();
        peers
            .map(|(peer, state)| PeerStatus {
                peer_id: peer.to_string(),
                agent: state.agent.clone(),
                connections: state
                    .connections
                    .iter()
                    .map(|(id, connection)| ConnectionStatus {
                        id: id.to_string(),
                        address: connection.address.to_string(),
                        path: connection.path,
                        limited: connection.limited,
                        transport: transport_of(&connection.address),
                        inbound: connection.inbound,
                        streams: streams.streams_on(*id),
                    })
                    .collect(),
            })
            .collect()
    }

    fn emit(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

/// The next job that is done; never, while there is none.
async fn next_job(jobs: &mut FuturesUnordered<BoxFuture<'static, Done>>) -> Done {
    std::future::poll_fn(|cx| match Pin::new(&mut *jobs).poll_next(cx) {
        std::task::Poll::Ready(Some(done)) => std::task::Poll::Ready(done),
        _ => std::task::Poll::Pending,
    })
    .await
}

async fn save(store: Store, bytes: Vec<u8>) {
    if let Err(error) = store.put_value(known::KEY, bytes.into(), None).await {
        tracing::warn!(%error, "the peers of this run cannot be written down");
    }
}

fn transport_of(address: &Multiaddr) -> &'static str {
    let quic = |part: &Protocol<'_>| matches!(part, Protocol::QuicV1 | Protocol::Quic);
    let until_circuit = address
        .iter()
        .take_while(|part| *part != Protocol::P2pCircuit);
    if until_circuit.into_iter().any(|part| quic(&part)) {
        "quic"
    } else {
        "tcp"
    }
}

/// What each address of a failed dial said, in one line.
fn describe(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => errors
            .iter()
            .map(|(address, error)| format!("{address}: {error}"))
            .collect::<Vec<_>>()
            .join("; "),
        DialError::NoAddresses => "no address of it is known".to_owned(),
        error => error.to_string(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the file registry's entries carry wall-clock time"
)]
fn since_1970() -> Duration {
    web_time::SystemTime::now()
        .duration_since(web_time::UNIX_EPOCH)
        .unwrap_or_default()
}
