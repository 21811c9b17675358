//! The libp2p adapter: swarm events become facts for the cores, their outputs become commands to
//! the connection handlers, reads of the block source, and events.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use cid::Cid;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use futures_timer::Delay;
use libp2p_core::{ConnectedPoint, Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished,
    dial_opts::DialOpts,
};
use smallvec::SmallVec;
use web_time::Instant;

#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
use crate::{
    BlockSource, CircuitLimit, Class, Config, Event, Ledger, MostWanted, Priority,
    ProtocolViolation, RequestFilter, SessionId, SessionOptions, Ticket, Transfers, UploadLimits,
    WantOptions, WantlistEntry,
    budget::Budget,
    buffers::Buffers,
    core::{
        ConnKey, Path,
        client::{self, Client},
        give_back,
        server::{self, ReadId, Server},
    },
    handler::{Command, Handler, Protocols, Report},
    message::Message,
    protocol::Interest,
};

type Action = ToSwarm<Event, Command>;
type Read = (ReadId, Option<Bytes>, Vec<Cid>);

/// What the adapter knows about a connection.
struct Connection {
    key: ConnKey,
    peer: PeerId,
    /// What the handler was last told.
    keep_alive: bool,
    /// It had work when we last looked.
    working: bool,
}

/// A block fetched because others want it.
struct Prefetch {
    cid: Cid,
    /// It was handed to the user, who is storing it.
    came: bool,
}

/// Bitswap as a libp2p behaviour: fetches blocks for tickets and serves those of a [`BlockSource`].
///
/// With the swarm's `V1Lazy` negotiation the first request on a connection costs one round trip.
pub struct Behaviour {
    config: Arc<Config>,
    protocols: Protocols,
    source: Arc<dyn BlockSource>,
    client: Client,
    server: Server,
    connections: HashMap<ConnectionId, Connection>,
    by_peer: HashMap<PeerId, SmallVec<[ConnectionId; 2]>>,
    by_key: HashMap<ConnKey, ConnectionId>,
    next_key: u64,
    budget: Budget,
    buffers: Buffers,
    /// Of each peer with a connection; of others that had one coming, a bounded number.
    interests: HashMap<PeerId, Interest>,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
    /// Blocks fetched because others want them, and the session they are wanted in.
    prefetches: BTreeMap<Ticket, Prefetch>,
    prefetching: Option<SessionId>,
    actions: VecDeque<Action>,
    /// Peers whose connections may have become busy or idle.
    touched: BTreeSet<PeerId>,
    timer: Option<(Instant, Delay)>,
    waker: Option<Waker>,
    #[cfg(feature = "metrics")]
    metrics: Option<Metrics>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter is where the cores' clock comes from"
)]
fn now() -> Instant {
    Instant::now()
}

impl Behaviour {
    /// A node that serves the blocks of `source`.
    pub fn new(config: Config, source: Arc<dyn BlockSource>) -> Self {
        let now = now();
        Self {
            protocols: Protocols::new(&config.protocol_prefix()),
            client: Client::new(config.clone(), rand::random(), now),
            server: Server::new(config.clone(), rand::random(), now),
            budget: Budget::new(config.max_inbound_bytes()),
            buffers: Buffers::default(),
            interests: HashMap::new(),
            config: Arc::new(config),
            source,
            connections: HashMap::new(),
            by_peer: HashMap::new(),
            by_key: HashMap::new(),
            next_key: 0,
            reads: FuturesUnordered::new(),
            prefetches: BTreeMap::new(),
            prefetching: None,
            actions: VecDeque::new(),
            touched: BTreeSet::new(),
            timer: None,
            waker: None,
            #[cfg(feature = "metrics")]
            metrics: None,
        }
    }

    /// Counts into `registry`, with names that start with `bitswap_`.
    #[cfg(feature = "metrics")]
    pub fn register_metrics(&mut self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics = Some(Metrics::register(registry));
    }

    /// Opens a session with default options.
    pub fn new_session(&mut self) -> SessionId {
        self.new_session_with(SessionOptions::default())
    }

    /// Opens a session.
    pub fn new_session_with(&mut self, options: SessionOptions) -> SessionId {
        self.client.new_session(options)
    }

    /// Ends a session: its wants are cancelled, its unacknowledged bytes forgotten.
    pub fn end_session(&mut self, session: SessionId) {
        self.client.end_session(session, now());
        self.wake();
    }

    /// Asks for a block. The ticket ends with one [`Event::Block`]; while nobody has the block it
    /// stays open, until it is cancelled. A session that was ended is opened again.
    pub fn want(&mut self, session: SessionId, cid: Cid, priority: Priority) -> Ticket {
        self.want_with(session, cid, WantOptions::default().priority(priority))
    }

    /// Asks for a block, with options.
    pub fn want_with(&mut self, session: SessionId, cid: Cid, options: WantOptions) -> Ticket {
        self.wake();
        self.client.want(session, cid, options, now())
    }

    /// Withdraws a want, everywhere. Without effect once its block was delivered.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.client.cancel(ticket, now());
        self.wake();
    }

    /// Answers [`Event::ProvidersWanted`]: connected providers are asked, others are dialled by
    /// peer id (their addresses come from other behaviours) and asked when they connect.
    pub fn add_providers(&mut self, ticket: Ticket, peers: impl IntoIterator<Item = PeerId>) {
        self.client.add_providers(ticket, peers, now());
        self.wake();
    }

    /// A peer that probably has the blocks of a session: it is asked for them with want-block at
    /// once, or the moment it connects. It is not dialled.
    pub fn add_session_peer(&mut self, session: SessionId, peer: PeerId) {
        self.client.add_session_peer(session, peer, now());
        self.wake();
    }

    /// The owner has stored `bytes` of a delivered block. Until then they count against
    /// `max_unacknowledged_bytes`, and nothing more is asked for once that is reached.
    pub fn taken(&mut self, ticket: Ticket, bytes: usize) {
        self.client.taken(ticket, bytes, now());
        if let Some(Prefetch { cid, came: true }) = self.prefetches.get(&ticket) {
            self.server.on_prefetched(cid, now());
            self.end_prefetch(ticket);
        }
        self.wake();
    }

    /// These blocks are in the source now: peers that wait for them are served.
    pub fn notify_new_blocks(&mut self, cids: &[Cid]) {
        let source = &self.source;
        self.server
            .on_new_blocks(cids, &|cid| source.size(cid), now());
        self.wake();
    }

    /// Declares what a relayed connection may carry; `None`: no limit. A connection whose address
    /// is relayed counts as relayed without limit until this is called.
    pub fn set_circuit_limit(&mut self, connection: ConnectionId, limit: Option<CircuitLimit>) {
        let Some(Connection { key, peer, .. }) = self.connections.get(&connection) else {
            return;
        };
        let path = match limit.and_then(|limit| limit.bytes) {
            Some(bytes) => Path::Limited(bytes),
            None => Path::Relayed,
        };
        let (now, source) = (now(), &self.source);
        self.client.on_path(*peer, *key, path, now);
        self.server
            .on_path(*peer, *key, path, &|cid| source.size(cid), now);
        self.touched.insert(*peer);
        self.wake();
    }

    /// Bitswap work on a connection.
    pub fn transfers_on(&self, connection: ConnectionId) -> Transfers {
        let found = self.connections.get(&connection);
        found.map_or(Transfers::default(), |Connection { key, peer, .. }| {
            Transfers {
                wants_sent: self.client.wants_on(peer, *key),
                serving_bytes: self.server.serving_on(peer, *key),
            }
        })
    }

    /// What others want from us, with who wants it.
    pub fn wantlist(&self) -> Vec<WantlistEntry> {
        self.server.wantlist()
    }

    /// What went to and came from a peer. Kept for `max_ledgers` peers after they are gone.
    pub fn ledger(&self, peer: PeerId) -> Option<Ledger> {
        let mut ledger = self.server.ledger(&peer)?;
        if let Some(received) = self.client.received(&peer) {
            ledger.blocks_received += received.blocks;
            ledger.bytes_received += received.bytes;
            ledger.unwanted_bytes += received.unwanted_bytes;
        }
        Some(ledger)
    }

    /// Share of the upload of its class that a peer gets relative to others, 0.01 to 100. Default 1.
    /// Remembered for `max_ledgers` peers.
    pub fn set_peer_weight(&mut self, peer: PeerId, weight: f64) {
        self.server.set_weight(peer, weight);
    }

    /// Which upload limit a peer's blocks count against, and who goes before it. Remembered for
    /// `max_ledgers` peers.
    pub fn set_peer_class(&mut self, peer: PeerId, class: Class) {
        self.server.set_class(peer, class, now());
        self.wake();
    }

    /// Changes the limits given by the configuration, at once.
    pub fn set_upload_limits(&mut self, limits: &UploadLimits) {
        self.server.set_upload_limits(limits, now());
        self.wake();
    }

    /// From now on, a block exists for a peer only if the filter says so: other wants are answered
    /// with DONT_HAVE and forgotten. The filter is asked for every want and must be quick. `None`:
    /// everybody may have everything, as at the start.
    pub fn set_request_filter(&mut self, filter: Option<RequestFilter>) {
        self.server.set_filter(filter);
    }

    /// What was asked for most, lately, whether we have it or not: at most `limit`, the hottest first.
    pub fn most_wanted(&self, limit: usize) -> Vec<MostWanted> {
        let lookup = |cid: &Cid| self.source.size(cid);
        self.server.most_wanted(limit, &lookup, now())
    }

    /// Blocks to be here before anybody asks: each is fetched while this node wants nothing else, and
    /// ends with [`Event::Prefetched`], or with `notify_new_blocks` or `unassign` before. What nobody
    /// has is tried again every ten minutes. Returns how many were accepted: not those we have,
    /// nor more than `max_assigned` in all, and none at a [leecher](crate::Role::Leecher).
    pub fn assign(&mut self, cids: &[Cid]) -> usize {
        self.wake();
        let source = &self.source;
        self.server.assign(cids, &|cid| source.size(cid), now())
    }

    /// Takes assignments back.
    pub fn unassign(&mut self, cids: &[Cid]) {
        self.server.unassign(cids, now());
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        self.next_key += 1;
        let key = ConnKey(self.next_key);
        let connection = Connection {
            key,
            peer,
            keep_alive: true,
            working: false,
        };
        self.connections.insert(id, connection);
        self.by_peer.entry(peer).or_default().push(id);
        self.by_key.insert(key, id);
        let path = match endpoint.is_relayed() {
            true => Path::Relayed,
            false => Path::Direct,
        };
        let (now, source) = (now(), &self.source);
        self.client.on_connected(peer, key, path, now);
        self.server
            .on_connected(peer, key, path, &|cid| source.size(cid), now);
        self.touched.insert(peer);
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId, remaining: usize) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        self.by_key.remove(&connection.key);
        if let Some(ids) = self.by_peer.get_mut(&peer) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
        give_back(&mut self.connections);
        give_back(&mut self.by_key);
        give_back(&mut self.by_peer);
        give_back(&mut self.interests);
        if remaining == 0
            && let Some(received) = self.client.received(&peer)
        {
            self.server.settle(&peer, received);
        }
        let now = now();
        self.client.on_disconnected(peer, connection.key, now);
        self.server.on_disconnected(peer, connection.key, now);
        if remaining == 0 {
            self.interests.remove(&peer);
        }
        self.touched.insert(peer);
    }

    fn on_message(&mut self, peer: PeerId, key: ConnKey, message: &Message) {
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.metrics {
            metrics.on_message(message);
        }
        let (now, source) = (now(), &self.source);
        self.client.on_message(peer, key, message, now);
        if !message.entries.is_empty() || message.full {
            self.server
                .on_asked(peer, key, &|cid| source.size(cid), now);
            self.server
                .on_message(peer, message, &|cid| source.size(cid), now);
        }
    }

    fn on_report(&mut self, peer: PeerId, key: ConnKey, report: Report) {
        let now = now();
        match report {
            Report::Received(message, _held) => self.on_message(peer, key, &message),
            Report::Version(version) => {
                self.client.on_version(peer, key, version, now);
                self.server.on_version(peer, key, now);
            }
            Report::Unsupported => {
                let source = &self.source;
                self.client.on_unsupported(peer, key, now);
                self.server
                    .on_unsupported(peer, key, &|cid| source.size(cid), now);
            }
            Report::WantsWritten => self.client.on_written(peer, now),
            Report::AnswersWritten => self.server.on_answers_written(peer, now),
            Report::BlocksWritten { blocks, bytes } => {
                #[cfg(feature = "metrics")]
                if let Some(metrics) = &self.metrics {
                    metrics.on_sent(blocks, bytes);
                }
                self.server.on_written(peer, key, blocks, bytes, now);
            }
            Report::Silent { owes } => {
                if let Some(connection) = self.by_key.get(&key).copied() {
                    let event = Event::PeerSilent {
                        peer,
                        connection,
                        owes,
                    };
                    self.actions.push_back(ToSwarm::GenerateEvent(event));
                }
            }
            Report::StreamLost => self.client.on_stream_lost(peer, key, now),
            Report::Returned(blocks) => self.server.on_returned(peer, key, blocks, now),
            Report::TakenBack(blocks) => self.server.on_taken_back(peer, key, &blocks, now),
            Report::Violation(violation) => self.on_violation(peer, violation),
        }
        self.touched.insert(peer);
    }

    /// Tells the readers whether blocks of the peer may be of use.
    fn update_interest(&self, peer: &PeerId) {
        if let Some(interest) = self.interests.get(peer) {
            interest.set(self.client.expects_blocks(peer));
        }
    }

    fn handler(&mut self, peer: PeerId) -> Handler {
        // Of connections that other behaviours denied we hear no more.
        if self.interests.len() > 2 * self.connections.len() + 64 {
            self.interests.retain(|_, interest| interest.is_shared());
        }
        let expected = self.client.expects_blocks(&peer);
        let interest = self
            .interests
            .entry(peer)
            .or_insert_with(|| Interest::new(expected, self.buffers.clone()));
        Handler::new(
            Arc::clone(&self.config),
            self.protocols.clone(),
            self.budget.connection(),
            interest.clone(),
        )
    }

    fn on_violation(&mut self, peer: PeerId, violation: ProtocolViolation) {
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.metrics {
            metrics.on_violation();
        }
        tracing::debug!(%peer, %violation, "bitswap peer broke the protocol");
        let event = Event::ProtocolViolation { peer, violation };
        self.actions.push_back(ToSwarm::GenerateEvent(event));
    }

    fn command(&mut self, key: ConnKey, command: Command) {
        if let Some((id, peer)) = self
            .by_key
            .get(&key)
            .and_then(|id| Some((*id, self.connections.get(id)?.peer)))
        {
            self.touched.insert(peer);
            self.actions.push_back(ToSwarm::NotifyHandler {
                peer_id: peer,
                handler: NotifyHandler::One(id),
                event: command,
            });
        }
    }

    fn on_client_output(&mut self, output: client::Output) {
        let event = match output {
            client::Output::Send {
                peer,
                conn,
                entries,
                full,
            } => {
                self.update_interest(&peer);
                return self.command(conn, Command::Wants { entries, full });
            }
            client::Output::Dial(peer) => {
                let opts = DialOpts::peer_id(peer).build();
                self.actions.push_back(ToSwarm::Dial { opts });
                return;
            }
            client::Output::Block {
                ticket,
                block,
                from,
            } if self.prefetches.contains_key(&ticket) => {
                if let Some(prefetch) = self.prefetches.get_mut(&ticket) {
                    prefetch.came = true;
                }
                #[cfg(feature = "metrics")]
                if let Some(metrics) = &self.metrics {
                    metrics.on_prefetched(block.data().len());
                }
                Event::Prefetched {
                    ticket,
                    block,
                    peer: from.map(|(peer, _)| peer),
                }
            }
            client::Output::Block {
                ticket,
                block,
                from,
            } => Event::Block {
                ticket,
                block,
                peer: from.map(|(peer, _)| peer),
                connection: from.and_then(|(_, key)| self.by_key.get(&key).copied()),
            },
            client::Output::ProvidersWanted { ticket, cid } => {
                Event::ProvidersWanted { ticket, cid }
            }
            client::Output::WaitingForDirect {
                ticket,
                peer,
                allowed,
            } => Event::WaitingForDirect {
                ticket,
                peer,
                allowed,
            },
            client::Output::Silent { conn, .. } => return self.command(conn, Command::Listen),
            client::Output::UnwantedBlocks { peer, bytes } => {
                return self.on_violation(peer, ProtocolViolation::UnwantedBlocks { bytes });
            }
        };
        self.actions.push_back(ToSwarm::GenerateEvent(event));
    }

    fn on_server_output(&mut self, output: server::Output) {
        match output {
            server::Output::Read { id, cid, links } => {
                let source = Arc::clone(&self.source);
                let get = source.get(&cid);
                let read = async move {
                    let data = get.await.unwrap_or_else(|error| {
                        tracing::warn!(%cid, error, "block source failed");
                        None
                    });
                    let links = match &data {
                        Some(data) if links => source.links(&cid, data),
                        _ => Vec::new(),
                    };
                    (id, data, links)
                };
                self.reads.push(read.boxed());
            }
            server::Output::Block {
                conn,
                block,
                promised,
                pending_bytes,
                ..
            } => self.command(
                conn,
                Command::Block {
                    block,
                    promised,
                    pending_bytes,
                },
            ),
            server::Output::Presences {
                conn, presences, ..
            } => {
                #[cfg(feature = "metrics")]
                if let Some(metrics) = &self.metrics {
                    metrics.on_presences(&presences);
                }
                self.command(conn, Command::Presences(presences));
            }
            server::Output::Withdraw { conn, .. } => self.command(conn, Command::Withdraw),
            server::Output::TakeBack { conn, cids, .. } => {
                self.command(conn, Command::TakeBack(cids));
            }
            server::Output::Prefetch(cid) => self.prefetch(cid),
            server::Output::EndPrefetch(cid) => {
                let found = self.prefetches.iter().find(|(_, other)| other.cid == cid);
                if let Some(ticket) = found.map(|(ticket, _)| *ticket) {
                    self.client.cancel(ticket, now());
                    self.end_prefetch(ticket);
                }
            }
        }
    }

    fn prefetch(&mut self, cid: Cid) {
        let client = &mut self.client;
        let session = *self
            .prefetching
            .get_or_insert_with(|| client.new_session(SessionOptions::default().background(true)));
        // Servers that know priorities send it after all they send us besides.
        let options = WantOptions::default().priority(Priority(i32::MIN));
        let ticket = client.want(session, cid, options, now());
        let came = false;
        self.prefetches.insert(ticket, Prefetch { cid, came });
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.metrics {
            metrics.on_prefetch();
        }
    }

    /// The session ends with the last one.
    fn end_prefetch(&mut self, ticket: Ticket) {
        self.prefetches.remove(&ticket);
        if self.prefetches.is_empty()
            && let Some(session) = self.prefetching.take()
        {
            self.client.end_session(session, now());
        }
    }

    /// Tells handlers whether their connection is needed, and the user when one has become idle.
    fn review(&mut self) {
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &mut self.metrics {
            metrics.observe(self.server.counters(), self.server.denied());
        }
        for peer in std::mem::take(&mut self.touched) {
            self.update_interest(&peer);
            let busy = self.client.is_busy(&peer) || self.server.is_busy(&peer);
            for id in self.by_peer.get(&peer).cloned().unwrap_or_default() {
                let idle = self.transfers_on(id).is_idle();
                let Some(connection) = self.connections.get_mut(&id) else {
                    continue;
                };
                if connection.keep_alive != busy {
                    connection.keep_alive = busy;
                    self.actions.push_back(ToSwarm::NotifyHandler {
                        peer_id: peer,
                        handler: NotifyHandler::One(id),
                        event: Command::KeepAlive(busy),
                    });
                }
                if std::mem::replace(&mut connection.working, !idle) && idle {
                    let event = Event::TransfersEnded {
                        peer,
                        connection: id,
                    };
                    self.actions.push_back(ToSwarm::GenerateEvent(event));
                }
            }
        }
    }

    /// Drains the cores, finished reads and the timer. False: nothing happened.
    fn progress(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progressed = false;
        while let Some(output) = self.client.poll_output() {
            self.on_client_output(output);
            progressed = true;
        }
        while let Some(output) = self.server.poll_output() {
            self.on_server_output(output);
            progressed = true;
        }
        while let Poll::Ready(Some((id, data, links))) = self.reads.poll_next_unpin(cx) {
            let source = &self.source;
            self.server
                .on_read(id, data, links, &|cid| source.size(cid), now());
            progressed = true;
        }
        if !progressed {
            self.review();
            progressed = !self.actions.is_empty() || self.poll_timer(cx);
        }
        progressed
    }

    /// Arms one timer for both cores. It is moved to earlier instants only: to fire for nothing now
    /// and then is cheaper than to follow every deadline. True: it fired.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let next = [self.client.poll_timeout(), self.server.poll_timeout()];
        let Some(at) = next.into_iter().flatten().min() else {
            self.timer = None;
            return false;
        };
        let now = now();
        if self.timer.as_ref().is_none_or(|(armed, _)| at < *armed) {
            self.timer = Some((at, Delay::new(at.saturating_duration_since(now))));
        }
        let fired = at <= now
            || self
                .timer
                .as_mut()
                .is_some_and(|(_, delay)| delay.poll_unpin(cx).is_ready());
        if fired {
            self.timer = None;
            self.client.handle_timeout(now);
            self.server.handle_timeout(now);
        }
        fired
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => self.on_established(peer_id, connection_id, endpoint),
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                remaining_established,
                ..
            }) => self.on_closed(peer_id, connection_id, remaining_established),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        report: THandlerOutEvent<Self>,
    ) {
        if let Some(key) = self
            .connections
            .get(&connection)
            .map(|connection| connection.key)
        {
            self.on_report(peer, key, report);
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
            if !self.progress(cx) {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
    }
}
