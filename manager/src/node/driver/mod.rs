//! The task that owns the swarm: executes commands, feeds the cores, does what they ask.

mod announcements;
mod commands;
mod dials;
mod housekeeping;
mod relays;
mod snapshots;
mod swarm_events;
mod topics;
mod wiring;

use std::{collections::BTreeMap, time::Duration};

use anypath_dht as dht;
use anypath_relay::server;
use anypath_tiered_store::Store;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    identity::Keypair,
    swarm::{ConnectionId, SwarmEvent},
};
use tokio::sync::{broadcast, mpsc, oneshot};
use web_time::Instant;

use self::{
    dials::Unknown,
    housekeeping::{Done, SAVE_INTERVAL, TICK, next_job},
    wiring::DhtWaiter,
};
use super::{Command, metrics::Metrics, now};
use crate::{
    behaviour::{Behaviour, BehaviourEvent},
    bootstrap::{self, KnownPeers, Registry, with_peer},
    config::Config,
    error::{ConnectError, StartError},
    event::Event,
    fetch::Fetches,
    strategy::{self, DialId, Path, Purpose, Strategy},
    wiring::Wiring,
};

/// Peers of the last run that are dialled at start.
const KNOWN_PEERS_DIALLED: usize = 8;

pub(super) struct Driver {
    config: Config,
    swarm: Swarm<Behaviour>,
    store: Store,
    commands: mpsc::Receiver<Command>,
    events: broadcast::Sender<Event>,
    strategy: Strategy,
    /// When the relays were asked for a sign of life last.
    relays_doubted: Option<Instant>,
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
    next_relay_announcement: Instant,
    relay_search: relays::Search,
    keypair: Keypair,
    topics: topics::Topics,
    shutdown: Vec<oneshot::Sender<()>>,
}

#[derive(Default)]
struct PeerState {
    agent: Option<String>,
    connections: BTreeMap<ConnectionId, Connection>,
}

struct Connection {
    address: Multiaddr,
    path: Path,
    limited: bool,
    inbound: bool,
}

impl Driver {
    pub(super) fn new(
        config: Config,
        keypair: Keypair,
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
            relays_doubted: None,
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
            next_relay_announcement: now,
            relay_search: relays::Search::default(),
            keypair,
            topics: topics::Topics::new(),
            shutdown: Vec::new(),
            config,
            swarm,
            store,
            commands,
            events,
        }
    }

    /// Sets the roles and starts the bootstrap, once the node listens. `early` is what the swarm told until then.
    pub(super) fn begin(
        &mut self,
        early: Vec<SwarmEvent<BehaviourEvent>>,
    ) -> Result<(), StartError> {
        let now = now();
        for address in self.config.external_addrs() {
            self.swarm.add_external_address(address.clone());
        }
        let behaviour = self.swarm.behaviour_mut();
        behaviour
            .relay_server
            .set_status(if self.config.enable_relay_server() {
                server::Status::Enabled
            } else if self.config.relay_when_public() {
                server::Status::Automatic
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
        for event in early {
            self.on_swarm_event(event);
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

    fn emit(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}
