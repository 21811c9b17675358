use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::Arc,
    task::{Context, Poll},
};

use cid::Cid;
use either::Either;
use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p_core::{Endpoint, Multiaddr, transport::ListenerId, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_kad::{
    self as kad, GetProvidersOk, GetRecordError, GetRecordOk, InboundRequest, PutRecordError,
    QueryId, QueryResult, Quorum, Record, RecordKey, RoutingUpdate, store::RecordStore as _,
};
use libp2p_swarm::{
    ConnectionDenied, ConnectionHandler as _, ConnectionHandlerSelect, ConnectionId,
    ExpiredListenAddr, ExternalAddresses, FromSwarm, NetworkBehaviour, NewListenAddr, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use web_time::Instant;

use crate::{
    BucketInserts, Config, Event, Mode, Peer, QueryError, Target, Ticket,
    core::{Announcement, Answer, Core, Output, Question, candidates::Candidates},
    handler::{Listed, Watcher},
    scope::{self, Filter},
    store::{Store, no_validator},
    value::Validator,
};

type Kad = kad::Behaviour<Store>;
// kad does not export its handler; it is the same for every store.
type KadHandler = <kad::Behaviour<kad::store::MemoryStore> as NetworkBehaviour>::ConnectionHandler;
type Handler = ConnectionHandlerSelect<KadHandler, Watcher>;
type Action = ToSwarm<Event, THandlerInEvent<Behaviour>>;

/// The longest message that is read: twice the engine's default.
const MAX_MESSAGE_BYTES: usize = 32 << 10;

/// One node of a Kademlia DHT.
///
/// Commands return a [`Ticket`] at once; [`Event`]s carry it, and exactly one of them finishes it.
pub struct Behaviour {
    config: Config,
    local: PeerId,
    mode: Mode,
    kad: Kad,
    core: Core<QueryId>,
    candidates: Candidates,
    external: ExternalAddresses,
    listen: Vec<(ListenerId, Multiaddr)>,
    /// The store has a copy.
    filter: Filter,
    timer: Option<(Instant, Delay)>,
    outbox: VecDeque<Action>,
    #[cfg(feature = "metrics")]
    metrics: Option<crate::metrics::Metrics>,
}

impl Behaviour {
    /// A node that knows nobody yet: add addresses, or connect to peers of the same DHT.
    pub fn new(local: PeerId, config: Config) -> Self {
        let filter = Filter {
            public_only: scope::is_public_only(
                config.address_scope(),
                config.mode(),
                std::iter::empty(),
            ),
            max_addresses: config.max_addresses_per_peer(),
        };
        let store = Store::new(local, &config, filter);
        let mut kad = Kad::with_config(local, store, kad_config(&config));
        kad.set_mode(Some(kad_mode(config.mode())));
        Self {
            local,
            mode: config.mode(),
            kad,
            core: Core::new(local, &config),
            candidates: Candidates::new(config.max_addresses_per_peer()),
            external: ExternalAddresses::default(),
            listen: Vec::new(),
            filter,
            timer: None,
            outbox: VecDeque::new(),
            #[cfg(feature = "metrics")]
            metrics: None,
            config,
        }
    }

    /// Values of a namespace, which a key has between its first two slashes, are judged so: without a validator they are
    /// neither put nor got nor kept for others. [`PublicKeys`](crate::PublicKeys) judges `pk` and [`Ipns`](crate::Ipns) `ipns` from
    /// the beginning, as every node of the public network does.
    #[must_use]
    pub fn with_validator(
        mut self,
        namespace: impl Into<String>,
        validator: impl Validator + 'static,
    ) -> Self {
        let values = &mut self.kad.store_mut().values;
        values.validators.set(namespace.into(), Arc::new(validator));
        self
    }

    /// Whether this node answers others.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Starts or stops answering others, on existing connections too. Nothing else changes the mode.
    pub fn set_mode(&mut self, mode: Mode) {
        if mode != self.mode {
            self.mode = mode;
            self.kad.set_mode(Some(kad_mode(mode)));
            self.update_scope();
        }
    }

    /// Tells where a server of this DHT listens. Returns whether the address was kept: not if it is outside
    /// the [`AddressScope`](crate::AddressScope), names another peer, or the peer's bucket is full.
    pub fn add_address(&mut self, peer: PeerId, address: Multiaddr) -> bool {
        if !self.filter.keeps(&address) {
            return false;
        }
        match self.kad.add_address(&peer, address) {
            RoutingUpdate::Success | RoutingUpdate::Pending => true,
            RoutingUpdate::Failed => false,
        }
    }

    /// Takes a peer out of the routing table; returns whether it was there.
    pub fn remove_peer(&mut self, peer: &PeerId) -> bool {
        self.kad.remove_peer(peer).is_some()
    }

    /// The peers of the routing table with their addresses, nearest bucket first.
    pub fn routing_table(&mut self) -> Vec<Peer> {
        self.kad
            .kbuckets()
            .flat_map(|bucket| {
                let entries = bucket.iter().map(|entry| Peer {
                    id: *entry.node.key.preimage(),
                    addresses: entry.node.value.iter().cloned().collect(),
                });
                entries.collect::<Vec<_>>()
            })
            .collect()
    }

    /// Refreshes the routing table: looks up our own place and one in every farther bucket.
    pub fn bootstrap(&mut self) -> Ticket {
        self.ask(Question::Bootstrap, |kad| {
            kad.bootstrap().map_err(|_| QueryError::NoKnownPeers)
        })
    }

    /// Announces that this node has the block, now and every
    /// [`provider_republish_interval`](Config::provider_republish_interval) until
    /// [`stop_providing`](Self::stop_providing). The key is the CID's multihash, as all IPFS nodes do,
    /// so CIDv0 and CIDv1 of one block are the same.
    pub fn provide(&mut self, cid: Cid) -> Ticket {
        let key = record_key(&cid);
        let local = self.local;
        let alone = self.is_alone();
        self.ask(Question::Provide(cid), |kad| {
            if alone {
                // Kept, and announced once the node has joined.
                let record = kad::ProviderRecord::new(key, local, Vec::new());
                kad.store_mut()
                    .add_provider(record)
                    .map_err(|_| QueryError::StoreFull)?;
                return Err(QueryError::NoKnownPeers);
            }
            kad.start_providing(key).map_err(|_| QueryError::StoreFull)
        })
    }

    /// Announces the block no more. The records that others have expire by themselves.
    pub fn stop_providing(&mut self, cid: &Cid) {
        let key = record_key(cid);
        self.core.on_stopped_providing(key.as_ref());
        self.kad.stop_providing(&key);
    }

    /// Whether this node announces the block.
    pub fn is_providing(&mut self, cid: &Cid) -> bool {
        let local = self.local;
        let records = self.kad.store_mut().providers(&record_key(cid));
        records.iter().any(|record| record.provider == local)
    }

    /// Keys that this node announces.
    pub fn provided_keys(&mut self) -> usize {
        self.kad.store_mut().providers.provided().len()
    }

    /// Looks for peers that have the block; [`finish`](Self::finish) it when there are enough.
    pub fn find_providers(&mut self, cid: Cid) -> Ticket {
        let alone = self.is_alone();
        self.ask(Question::FindProviders(cid), |kad| {
            let key = record_key(&cid);
            if alone && kad.store_mut().providers(&key).is_empty() {
                return Err(QueryError::NoKnownPeers);
            }
            Ok(kad.get_providers(key))
        })
    }

    /// Keeps a value under a key `/<namespace>/…` and puts it at the nodes closest to it, now and every
    /// [`value_republish_interval`](Config::value_republish_interval) until [`remove_value`](Self::remove_value), or until it
    /// ceases to be valid ([`Event::ValueExpired`]). When another node has put a better one here, that is put again instead.
    pub fn put_value(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Ticket {
        let (key, value) = (key.into(), value.into());
        let alone = self.is_alone();
        let mut kept = false;
        let ticket = self.ask(Question::PutValue(key.clone()), |kad| {
            // The engine would keep it as well, but does not say why it could not.
            let values = &mut kad.store_mut().values;
            values.put_own(key.clone(), value.clone())?;
            kept = true;
            if alone {
                return Err(QueryError::NoKnownPeers);
            }
            put(kad, key.clone(), value).ok_or(QueryError::ValuesFull)
        });
        if kept {
            self.core.on_put_value(&key, now());
        }
        ticket
    }

    /// Puts our value of this key no more. What is on its way is not called back, and what others keep of it expires by itself.
    pub fn remove_value(&mut self, key: &[u8]) {
        self.core.on_removed_value(key);
        self.kad.store_mut().values.remove_own(key);
    }

    /// Looks for the best value of a key `/<namespace>/…`; [`finish`](Self::finish) it when it is good enough.
    pub fn get_value(&mut self, key: impl Into<Vec<u8>>) -> Ticket {
        let key = key.into();
        let alone = self.is_alone();
        self.ask(Question::GetValue(key.clone()), |kad| {
            let values = &kad.store_mut().values;
            if values.validators.of(&key).is_none() {
                return Err(no_validator(&key));
            }
            if alone && values.get(&key).is_none() {
                return Err(QueryError::NoKnownPeers);
            }
            Ok(kad.get_record(key.into()))
        })
    }

    /// Looks for the [`replication`](Config::replication) servers closest to a peer id or a block.
    pub fn get_closest_peers(&mut self, target: impl Into<Target>) -> Ticket {
        let target = target.into();
        let key = target.key();
        let alone = self.is_alone();
        self.ask(Question::ClosestPeers(target), |kad| {
            if alone {
                Err(QueryError::NoKnownPeers)
            } else {
                Ok(kad.get_closest_peers(key))
            }
        })
    }

    /// Ends a query early: its terminal event comes soon, with what was found so far. An announcement goes
    /// to the closest nodes found so far. Unknown tickets are ignored.
    pub fn finish(&mut self, ticket: Ticket) {
        self.core.finish(ticket);
        self.drain_core();
    }

    /// Registers the metrics of this behaviour, with the prefix `dht_`.
    #[cfg(feature = "metrics")]
    pub fn register_metrics(&mut self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics = Some(crate::metrics::Metrics::register(registry));
    }

    fn ask(
        &mut self,
        question: Question,
        start: impl FnOnce(&mut Kad) -> Result<QueryId, QueryError>,
    ) -> Ticket {
        let ticket = match self.core.ask(question, now()) {
            Ok(ticket) => {
                match start(&mut self.kad) {
                    Ok(id) => self.core.on_started(ticket, id),
                    Err(error) => self.core.on_refused(ticket, error),
                }
                ticket
            }
            Err(ticket) => ticket,
        };
        self.drain_core();
        ticket
    }

    fn is_alone(&mut self) -> bool {
        self.kad.kbuckets().all(|bucket| bucket.is_empty())
    }

    /// Takes private addresses out of what we serve, or lets them in, when the scope changed.
    fn update_scope(&mut self) {
        let scope = self.config.address_scope();
        let public_only = scope::is_public_only(scope, self.mode, self.external.iter());
        if public_only == self.filter.public_only {
            return;
        }
        self.filter.public_only = public_only;
        self.kad.store_mut().filter = self.filter;
        tracing::debug!(public_only, "address scope of the DHT changed");
        for (listener_id, addr) in &self.listen {
            if scope::is_public(addr) {
                continue;
            }
            let listener_id = *listener_id;
            self.kad.on_swarm_event(if public_only {
                FromSwarm::ExpiredListenAddr(ExpiredListenAddr { listener_id, addr })
            } else {
                FromSwarm::NewListenAddr(NewListenAddr { listener_id, addr })
            });
        }
        if public_only {
            for peer in self.routing_table() {
                self.drop_private(peer.id, &peer.addresses);
            }
        }
    }

    fn drop_private(&mut self, peer: PeerId, addresses: &[Multiaddr]) {
        for address in addresses
            .iter()
            .filter(|address| !scope::is_public(address))
        {
            self.kad.remove_address(&peer, address);
        }
    }

    /// A connected server listens at these addresses.
    fn route(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        if self.config.bucket_inserts() == BucketInserts::OnConnected {
            for address in addresses {
                self.add_address(peer, address);
            }
        }
    }

    fn on_listed(&mut self, peer: PeerId, listed: Listed) {
        match listed {
            Listed::Server => {
                let addresses = self.candidates.on_server(&peer);
                self.route(peer, addresses);
            }
            Listed::Client => {
                self.candidates.on_client(&peer);
                self.remove_peer(&peer);
            }
        }
    }

    fn on_kad_event(&mut self, event: kad::Event) {
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.metrics {
            metrics.on_kad_event(&event);
        }
        match event {
            kad::Event::OutboundQueryProgressed {
                id,
                result,
                stats,
                step,
            } => {
                self.on_progress(id, result, stats.num_successes() > 0, step.last);
            }
            // Whatever becomes of them, the engine has acknowledged them: if it is told to refuse one it leaves the stream open until
            // the other's timeout (libp2p-kad 0.49 wakes nobody after `HandlerIn::Reset`).
            kad::Event::InboundRequest {
                request:
                    InboundRequest::AddProvider {
                        record: Some(record),
                    },
            } => {
                if let Err(error) = self.kad.store_mut().add_provider(record) {
                    tracing::debug!(%error, "provider record of a peer not stored");
                }
            }
            kad::Event::InboundRequest {
                request:
                    InboundRequest::PutRecord {
                        source,
                        record: Some(record),
                        ..
                    },
            } => {
                tracing::trace!(%source, key = ?record.key, "a peer puts a value");
                self.keep(record);
            }
            kad::Event::RoutablePeer { peer, address } => {
                if let Some(more) = self.candidates.on_speaks(&peer) {
                    self.route(peer, std::iter::once(address).chain(more));
                }
            }
            kad::Event::UnroutablePeer { peer } => {
                let addresses = self.candidates.on_speaks(&peer);
                self.route(peer, addresses.into_iter().flatten());
            }
            kad::Event::RoutingUpdated {
                peer,
                is_new_peer,
                addresses,
                old_peer,
                ..
            } => {
                if self.filter.public_only {
                    self.drop_private(peer, &addresses.into_vec());
                }
                if is_new_peer {
                    let event = Event::PeerRouted {
                        peer,
                        evicted: old_peer,
                    };
                    self.outbox.push_back(ToSwarm::GenerateEvent(event));
                }
            }
            kad::Event::InboundRequest { .. }
            | kad::Event::PendingRoutablePeer { .. }
            | kad::Event::ModeChanged { .. } => {}
        }
    }

    fn on_progress(&mut self, id: QueryId, result: QueryResult, answered: bool, last: bool) {
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { key, providers })) => {
                let new = self.core.on_providers(id, providers);
                for peer in new {
                    self.report_addresses(&key, peer);
                }
                // `last` is never set here: `FinishedWithNoAdditionalRecord` follows.
            }
            QueryResult::GetProviders(Ok(GetProvidersOk::FinishedWithNoAdditionalRecord {
                ..
            })) => self.core.on_finished(id, Answer::Done, answered, Ok(())),
            QueryResult::GetProviders(Err(_)) => {
                self.core
                    .on_finished(id, Answer::Done, answered, Err(QueryError::Timeout));
            }
            QueryResult::StartProviding(result) | QueryResult::RepublishProvider(result) => {
                let result = result.map(drop).map_err(|_| QueryError::Timeout);
                self.core.on_finished(id, Answer::Done, answered, result);
            }
            QueryResult::GetClosestPeers(result) => {
                let (peers, result) = match result {
                    Ok(found) => (found.peers, Ok(())),
                    Err(kad::GetClosestPeersError::Timeout { peers, .. }) => {
                        (peers, Err(QueryError::Timeout))
                    }
                };
                let peers = peers.into_iter().map(|peer| Peer {
                    id: peer.peer_id,
                    addresses: self.filter.select(peer.addrs),
                });
                let answer = Answer::Peers(peers.collect());
                self.core.on_finished(id, answer, answered, result);
            }
            QueryResult::Bootstrap(result) => {
                let result = result.map(drop).map_err(|_| QueryError::Timeout);
                let joined = answered && result.is_ok();
                self.core.on_part(id, result.clone(), now());
                if last {
                    self.core.on_finished(id, Answer::Done, answered, result);
                }
                if joined {
                    self.core.on_joined();
                }
            }
            QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => {
                let Record { key, value, .. } = found.record;
                let validators = &self.kad.store_mut().values.validators;
                self.core
                    .on_value(id, found.peer, key.as_ref(), value, validators);
            }
            QueryResult::GetRecord(
                Ok(GetRecordOk::FinishedWithNoAdditionalRecord { .. })
                | Err(GetRecordError::NotFound { .. }),
            ) => self.core.on_finished(id, Answer::Done, answered, Ok(())),
            QueryResult::GetRecord(Err(GetRecordError::Timeout { .. })) => {
                self.core
                    .on_finished(id, Answer::Done, answered, Err(QueryError::Timeout));
            }
            QueryResult::PutRecord(result) | QueryResult::RepublishRecord(result) => {
                let (stored, late) = match result {
                    Ok(_) => (self.config.replication(), false),
                    Err(PutRecordError::QuorumFailed { success, .. }) => (success.len(), false),
                    Err(PutRecordError::Timeout { success, .. }) => (success.len(), true),
                };
                let result = match stored {
                    0 if late => Err(QueryError::Timeout),
                    0 if !answered => Err(QueryError::Unreachable),
                    0 => Err(QueryError::NotStored),
                    _ => Ok(()),
                };
                self.core
                    .on_finished(id, Answer::Stored(stored), answered, result);
            }
        }
        self.drain_core();
    }

    /// Gives the swarm the addresses of a provider. The engine knows them only while the query runs, and it
    /// tells them only to a dial.
    fn report_addresses(&mut self, key: &RecordKey, peer: PeerId) {
        let connection = ConnectionId::new_unchecked(usize::MAX);
        let known = self.kad.handle_pending_outbound_connection(
            connection,
            Some(peer),
            &[],
            Endpoint::Dialer,
        );
        let stored = self.kad.store_mut().providers(key);
        let stored = stored.into_iter().filter(|record| record.provider == peer);
        let addresses = stored
            .flat_map(|record| record.addresses)
            .chain(known.unwrap_or_default())
            .collect::<Vec<_>>();
        for address in self.filter.select(addresses) {
            self.outbox.push_back(ToSwarm::NewExternalAddrOfPeer {
                peer_id: peer,
                address,
            });
        }
    }

    fn drain_core(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Event(event) => {
                    #[cfg(feature = "metrics")]
                    if let Some(metrics) = &self.metrics {
                        metrics.on_event(&event);
                    }
                    self.outbox.push_back(ToSwarm::GenerateEvent(event));
                }
                Output::Finish(id) => {
                    if let Some(mut query) = self.kad.query_mut(&id) {
                        query.finish();
                    }
                }
                Output::Announce(announcement) => {
                    let id = self.announce(&announcement);
                    self.core.on_announcing(announcement, id);
                }
                Output::Correct {
                    key,
                    value,
                    peers,
                    us,
                } => {
                    let record = Record::new(key, value);
                    if us {
                        self.keep(record.clone());
                    }
                    if !peers.is_empty() {
                        self.kad
                            .put_record_to(record, peers.into_iter(), Quorum::All);
                    }
                }
            }
        }
    }

    fn announce(&mut self, announcement: &Announcement) -> Option<QueryId> {
        match announcement {
            Announcement::Provider(key) => self.kad.start_providing(key.clone().into()).ok(),
            Announcement::Value(key) => {
                let values = &mut self.kad.store_mut().values;
                values.own(key)?;
                // The best one that we know, which may be another node's by now.
                let best = values.get(key).map(|record| record.value.clone());
                if best.is_none() {
                    values.remove_own(key);
                    self.core.on_removed_value(key);
                    let event = Event::ValueExpired { key: key.clone() };
                    self.outbox.push_back(ToSwarm::GenerateEvent(event));
                }
                put(&mut self.kad, key.clone(), best?)
            }
        }
    }

    /// Keeps another node's value, if it is as good as what we have.
    fn keep(&mut self, record: Record) {
        let key = record.key.clone();
        if let Err(error) = self.kad.store_mut().values.put_remote(record, now()) {
            tracing::debug!(?key, %error, "another node's value is not kept");
        }
    }

    /// Returns whether the timer fired.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let next_expiry = self.kad.store_mut().next_expiry();
        let next = self
            .core
            .poll_timeout()
            .into_iter()
            .chain(next_expiry)
            .min();
        let Some(at) = next else {
            self.timer = None;
            return false;
        };
        if self.timer.as_ref().is_none_or(|(armed, _)| *armed != at) {
            let delay = Delay::new(at.saturating_duration_since(now()));
            self.timer = Some((at, delay));
        }
        let fired = self
            .timer
            .as_mut()
            .is_some_and(|(_, delay)| delay.poll_unpin(cx).is_ready());
        if fired {
            self.timer = None;
        }
        fired
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter's clock; the core is given it"
)]
fn now() -> Instant {
    Instant::now()
}

fn record_key(cid: &Cid) -> RecordKey {
    RecordKey::from(cid.hash().to_bytes())
}

/// Begins to put a value of ours; `None` if it may not be any more.
fn put(kad: &mut Kad, key: Vec<u8>, value: Vec<u8>) -> Option<QueryId> {
    // Of as many nodes as there are: the engine ends early when the quorum is reached.
    kad.put_record(Record::new(key, value), Quorum::All).ok()
}

fn kad_mode(mode: Mode) -> kad::Mode {
    match mode {
        Mode::Client => kad::Mode::Client,
        Mode::Server => kad::Mode::Server,
    }
}

fn kad_config(config: &Config) -> kad::Config {
    let count = |value| NonZeroUsize::new(value).unwrap_or(NonZeroUsize::MIN);
    let mut kad = kad::Config::new(config.protocol().clone());
    kad.set_query_timeout(config.query_timeout())
        .set_replication_factor(count(config.replication()))
        .set_parallelism(count(config.parallelism()))
        .set_provider_record_ttl(Some(config.provider_ttl()))
        .set_provider_publication_interval(Some(config.provider_republish_interval()))
        .set_periodic_bootstrap_interval(config.bootstrap_interval())
        .set_record_ttl(Some(config.value_ttl()))
        // The core does it.
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_caching(kad::Caching::Disabled)
        // A value and the closest peers beside it.
        .set_max_packet_size(MAX_MESSAGE_BYTES)
        // Addresses pass our filter before they enter the table; records pass the store's.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_record_filtering(kad::StoreInserts::FilterBoth);
    kad
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let kad = self
            .kad
            .handle_established_inbound_connection(connection, peer, local, remote)?;
        Ok(kad.select(Watcher::new(self.config.protocol().clone())))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role_override: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let kad = self.kad.handle_established_outbound_connection(
            connection,
            peer,
            address,
            role_override,
            port_use,
        )?;
        Ok(kad.select(Watcher::new(self.config.protocol().clone())))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let mut known = self
            .kad
            .handle_pending_outbound_connection(connection, peer, addresses, role)?;
        // A public node does not scan its own network because a stranger named an address in it.
        known.retain(|address| self.filter.keeps(address));
        Ok(known)
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Either::Left(event) => {
                self.kad
                    .on_connection_handler_event(peer, connection, event);
            }
            Either::Right(listed) => self.on_listed(peer, listed),
        }
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::NewListenAddr(NewListenAddr { listener_id, addr }) => {
                self.listen.push((listener_id, addr.clone()));
                if self.filter.keeps(addr) {
                    self.kad.on_swarm_event(event);
                }
                return;
            }
            FromSwarm::ExpiredListenAddr(ExpiredListenAddr { listener_id, addr }) => {
                self.listen
                    .retain(|known| *known != (listener_id, addr.clone()));
            }
            FromSwarm::ConnectionEstablished(established) => {
                self.candidates.on_connected(established.peer_id);
            }
            FromSwarm::ConnectionClosed(closed) if closed.remaining_established == 0 => {
                self.candidates.on_disconnected(&closed.peer_id);
            }
            FromSwarm::NewExternalAddrOfPeer(new)
                if self.candidates.on_address(&new.peer_id, new.addr) =>
            {
                self.route(new.peer_id, [new.addr.clone()]);
            }
            _ => {}
        }
        let changed = self.external.on_swarm_event(&event);
        self.kad.on_swarm_event(event);
        if changed {
            self.update_scope();
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.outbox.pop_front() {
                return Poll::Ready(action);
            }
            // Before the timer, so that the engine reports its own timeouts with what it found.
            match self.kad.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    self.on_kad_event(event);
                    continue;
                }
                Poll::Ready(action) => {
                    let action = action.map_in(Either::Left);
                    return Poll::Ready(action.map_out(|_| unreachable!("matched above")));
                }
                Poll::Pending => {}
            }
            if self.poll_timer(cx) {
                let now = now();
                self.core.handle_timeout(now);
                self.kad.store_mut().expire(now);
                self.drain_core();
                continue;
            }
            #[cfg(feature = "metrics")]
            if let Some(metrics) = &self.metrics {
                let routed = self.kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
                let store = self.kad.store_mut();
                metrics.on_idle(routed, store, &self.core);
            }
            return Poll::Pending;
        }
    }
}
