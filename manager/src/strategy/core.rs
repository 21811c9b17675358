use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol, swarm::ConnectionId};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use web_time::Instant;

use super::{
    BestPath, Config, Path,
    peer::{Connection, Peer, RelayWait},
};

/// One dial that the strategy asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(u64);

/// Why a peer is wanted; decides how long it is dialled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// One attempt, then [`Output::Unreachable`] ends it; so does a connection.
    Once,
    /// Somebody waits for it: dialled until [`Strategy::release`], at short intervals.
    Session,
    /// Named by the configuration: dialled for ever, at growing intervals.
    Static,
}

/// What the owner has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Dial, and answer with `on_established` or `on_dial_failed`.
    Dial {
        /// Names the dial.
        dial: DialId,
        /// Whom.
        peer: PeerId,
        /// Where; empty: wherever the swarm's behaviours know the peer.
        addresses: Vec<Multiaddr>,
    },
    /// Close this connection: a better one is there.
    Close {
        /// The connection.
        connection: ConnectionId,
    },
    /// Another connection is the best one now, or none is left.
    PathChanged {
        /// The peer.
        peer: PeerId,
        /// Its best connection.
        best: Option<BestPath>,
    },
    /// Every dial to a wanted peer failed.
    Unreachable {
        /// The peer.
        peer: PeerId,
    },
}

/// A connection that came up.
#[derive(Debug, Clone, Copy)]
pub struct Established {
    /// Its id.
    pub connection: ConnectionId,
    /// Who is at its other end.
    pub peer: PeerId,
    /// How it reaches the peer.
    pub path: Path,
    /// Whether it is QUIC.
    pub quic: bool,
    /// Our dial that led to it.
    pub dial: Option<DialId>,
}

/// The connection strategy of one node. See the [module's documentation](super).
#[derive(Debug)]
pub struct Strategy {
    local: PeerId,
    config: Config,
    rng: StdRng,
    peers: BTreeMap<PeerId, Peer>,
    connections: BTreeMap<ConnectionId, PeerId>,
    dials: BTreeMap<DialId, (PeerId, Path)>,
    next_dial: u64,
    observed: bool,
    outputs: VecDeque<Output>,
}

impl Strategy {
    /// A node without connections.
    #[must_use]
    pub fn new(local: PeerId, config: Config, seed: [u8; 32]) -> Self {
        Self {
            local,
            config,
            rng: StdRng::from_seed(seed),
            peers: BTreeMap::new(),
            connections: BTreeMap::new(),
            dials: BTreeMap::new(),
            next_dial: 0,
            observed: false,
            outputs: VecDeque::new(),
        }
    }

    /// Reach `peer`, at these addresses or wherever behaviours know it. Further calls add addresses.
    /// False if [`Config::max_targets`] peers are wanted already, or if it is this node.
    pub fn want(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        purpose: Purpose,
        now: Instant,
    ) -> bool {
        let targets = self.peers.values().filter(|peer| peer.is_wanted()).count();
        let known = self.peers.get(&peer).is_some_and(Peer::is_wanted);
        if peer == self.local || (!known && targets >= self.config.max_targets) {
            return false;
        }
        let max = self.config.max_addresses;
        let state = self.peers.entry(peer).or_default();
        add_addresses(state, addresses, max);
        if purpose == Purpose::Once && state.best().is_some() {
            return true;
        }
        *state.purposes.entry(purpose).or_default() += 1;
        self.start_round(peer, now);
        true
    }

    /// Takes back one [`want`](Self::want). An open connection stays.
    pub fn release(&mut self, peer: PeerId, purpose: Purpose) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        if let Some(count) = state.purposes.get_mut(&purpose) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.purposes.remove(&purpose);
            }
        }
        if !state.is_wanted() {
            state.retry_at = None;
        }
        self.forget(peer);
    }

    /// Whether somebody wants this peer for longer than one attempt.
    #[must_use]
    pub fn is_protected(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|state| {
            state.purposes.contains_key(&Purpose::Session)
                || state.purposes.contains_key(&Purpose::Static)
        })
    }

    /// New addresses of a peer. A wanted peer that is waiting for its next attempt is dialled there
    /// at once.
    pub fn on_addresses(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        now: Instant,
    ) {
        let max = self.config.max_addresses;
        let Some(state) = self.peers.get_mut(&peer).filter(|state| state.is_wanted()) else {
            return;
        };
        if add_addresses(state, addresses, max) && state.best().is_none() && !state.is_dialled() {
            self.start_round(peer, now);
        }
    }

    /// A connection is up.
    pub fn on_established(&mut self, established: Established, now: Instant) {
        let Established {
            connection,
            peer,
            path,
            quic,
            dial,
        } = established;
        if let Some(dial) = dial {
            self.take_dial(dial);
        }
        self.connections.insert(connection, peer);
        let state = self.peers.entry(peer).or_default();
        let before = state.best();
        state.connections.insert(
            connection,
            Connection {
                path,
                // Until the relay's limit is known the circuit is taken for limited.
                limited: path == Path::Relayed,
                quic,
                since: now,
                idle_since: Some(now),
                closing: false,
                lost: false,
            },
        );
        state.failures = 0;
        state.purposes.remove(&Purpose::Once);
        if path == Path::Direct {
            state.retry_at = None;
            state.relay_wait = None;
            state.direct_since.get_or_insert(now);
        } else if state.is_wanted() && state.direct_dials.is_empty() && !state.has(Path::Direct) {
            state.retry_at = Some(now + self.config.upgrade_retry);
        }
        if state.connections.len() > 1 {
            state.inspect_at = Some(now + self.config.inspect_interval);
        }
        self.report(peer, before);
        self.on_relay_connected(peer, now);
    }

    /// What a relay lets through the circuit below a connection is known.
    pub fn on_circuit(&mut self, connection: ConnectionId, limited: bool) {
        let Some((peer, state)) = self.of_connection(connection) else {
            return;
        };
        let before = state.best();
        if let Some(connection) = state.connections.get_mut(&connection) {
            connection.limited = limited;
        }
        self.report(peer, before);
    }

    /// A connection is gone.
    pub fn on_closed(&mut self, connection: ConnectionId, now: Instant) {
        let Some((peer, state)) = self.of_connection(connection) else {
            return;
        };
        // What is being closed was not counted any more.
        let before = state.best();
        let closed = state.connections.remove(&connection);
        self.connections.remove(&connection);
        if closed.is_some_and(|closed| closed.lost) {
            // What follows from that has been done, or has its time.
            self.report(peer, before);
        } else {
            // At once the first time: a connection that worked is likely to work again.
            self.on_fewer(peer, before, now, Duration::ZERO);
        }
        self.forget(peer);
    }

    /// A connection is of no use any more and is being closed by somebody else. Who loses one soon after the other waits longer and
    /// longer before the next.
    pub fn on_lost(&mut self, connection: ConnectionId, now: Instant) {
        let Some((peer, state)) = self.of_connection(connection) else {
            return;
        };
        let before = state.best();
        if let Some(connection) = state.connections.get_mut(&connection) {
            connection.closing = true;
            connection.lost = true;
        }
        let recent = |at: Instant| now.saturating_duration_since(at) < LOSSES_COUNT;
        state.losses = match state.lost_at.replace(now) {
            Some(at) if recent(at) => state.losses.saturating_add(1),
            _ => 0,
        };
        let wait = match state.losses {
            // A circuit that goes with its direct connection, or the other way round.
            0 | 1 => Duration::ZERO,
            more => {
                let doubled = 2_u32.saturating_pow(more.min(16) - 2);
                let wait = self.config.backoff_initial.saturating_mul(doubled);
                wait.min(self.config.backoff_max_urgent)
            }
        };
        self.on_fewer(peer, before, now, wait);
    }

    fn on_fewer(&mut self, peer: PeerId, before: Option<BestPath>, now: Instant, wait: Duration) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        if !state.has(Path::Direct) {
            state.direct_since = None;
        }
        let redial = state.is_wanted() && state.best().is_none() && !state.is_dialled();
        if redial && !wait.is_zero() {
            state.retry_at = Some(now + wait);
        }
        self.report(peer, before);
        if redial && wait.is_zero() {
            self.start_round(peer, now);
        }
    }

    /// One of our dials failed.
    pub fn on_dial_failed(&mut self, dial: DialId, now: Instant) {
        let Some(peer) = self.take_dial(dial) else {
            return;
        };
        self.on_relay_unreachable(peer, now);
        self.finish_round(peer, now);
    }

    /// Somebody told us under which address it sees us.
    pub fn on_observed(&mut self, now: Instant) {
        self.observed = true;
        let waiting: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, state)| state.relay_wait.is_some())
            .map(|(peer, _)| *peer)
            .collect();
        for peer in waiting {
            self.dial_circuits(peer, now);
        }
    }

    /// The network changed: what was observed before says nothing any more.
    pub fn on_network_changed(&mut self) {
        self.observed = false;
    }

    /// A hole punch failed; the peer's direct addresses are tried again later.
    pub fn on_punch_failed(&mut self, peer: PeerId, now: Instant) {
        let retry = now + self.config.upgrade_retry;
        if let Some(state) = self.peers.get_mut(&peer)
            && state.is_wanted()
            && !state.has(Path::Direct)
        {
            state.retry_at = Some(retry);
        }
    }

    /// The connections whose activity decides something: report each with
    /// [`on_activity`](Self::on_activity) before [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn contested(&self) -> Vec<ConnectionId> {
        self.peers
            .values()
            .filter(|state| state.inspect_at.is_some())
            .flat_map(|state| state.open().map(|(id, _)| *id))
            .collect()
    }

    /// Whether a bitswap transfer or a stream opened through the node is on a connection.
    pub fn on_activity(&mut self, connection: ConnectionId, busy: bool, now: Instant) {
        let Some((_, state)) = self.of_connection(connection) else {
            return;
        };
        let Some(connection) = state.connections.get_mut(&connection) else {
            return;
        };
        match (busy, connection.idle_since) {
            (true, _) => connection.idle_since = None,
            (false, None) => connection.idle_since = Some(now),
            (false, Some(_)) => {}
        }
    }

    /// Time passed. Early, late and needless calls do no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, state)| state.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            let Some(state) = self.peers.get_mut(&peer) else {
                continue;
            };
            if state.inspect_at.is_some_and(|at| at <= now) {
                self.settle(peer, now);
            }
            let Some(state) = self.peers.get_mut(&peer) else {
                continue;
            };
            if state.relay_wait.is_some_and(|wait| wait.until <= now) {
                self.dial_circuits(peer, now);
            }
            let Some(state) = self.peers.get_mut(&peer) else {
                continue;
            };
            if state.retry_at.is_some_and(|at| at <= now) {
                state.retry_at = None;
                self.start_round(peer, now);
            }
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peers.values().filter_map(Peer::deadline).min()
    }

    /// The best connection to a peer.
    #[must_use]
    pub fn best(&self, peer: &PeerId) -> Option<BestPath> {
        self.peers.get(peer)?.best()
    }

    /// Whether a dial to the peer is under way.
    #[must_use]
    pub fn is_dialling(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(Peer::is_dialled)
    }

    /// Peers, connections and dials that are remembered, for tests of the bounds.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.peers.len() + self.connections.len() + self.dials.len()
    }

    /// Dials what is missing: directly if no direct connection is there, through relays if none is.
    fn start_round(&mut self, peer: PeerId, now: Instant) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        state.retry_at = None;
        if state.has(Path::Direct) {
            return;
        }
        let direct = state.addresses_of(Path::Direct);
        let circuits = state.addresses_of(Path::Relayed);
        let connected = state.best().is_some();
        let nowhere = direct.is_empty() && circuits.is_empty() && !connected;
        if state.direct_dials.is_empty() && (nowhere || !direct.is_empty()) {
            self.dial(peer, direct, Path::Direct);
        }
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let idle = state.relayed_dials.is_empty() && state.relay_wait.is_none();
        if circuits.is_empty() || connected || !idle {
            return;
        }
        match circuits.iter().find_map(relay_of) {
            Some((relay, address)) if !self.observed => {
                self.wait_for_relay(peer, relay, address, now);
            }
            _ => self.dial_circuits(peer, now),
        }
    }

    fn wait_for_relay(&mut self, peer: PeerId, relay: PeerId, address: Multiaddr, now: Instant) {
        let relay_state = self.peers.get(&relay);
        let connected = relay_state.is_some_and(|relay| relay.best().is_some());
        let dialled = relay_state.is_some_and(Peer::is_dialled);
        let wait = if connected {
            self.config.observation_wait
        } else {
            self.config.relay_wait
        };
        if let Some(state) = self.peers.get_mut(&peer) {
            state.relay_wait = Some(RelayWait {
                relay,
                until: now + wait,
            });
        }
        if !connected && !dialled {
            self.peers.entry(relay).or_default();
            self.dial(relay, vec![address], Path::Direct);
        }
    }

    fn on_relay_connected(&mut self, relay: PeerId, now: Instant) {
        let until = now + self.config.observation_wait;
        for state in self.peers.values_mut() {
            if let Some(wait) = state.relay_wait.as_mut().filter(|wait| wait.relay == relay) {
                wait.until = wait.until.min(until);
            }
        }
    }

    /// A circuit through this relay fails as well, but with a reason that the user can read.
    fn on_relay_unreachable(&mut self, relay: PeerId, now: Instant) {
        let waiting: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, state)| state.relay_wait.is_some_and(|wait| wait.relay == relay))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in waiting {
            self.dial_circuits(peer, now);
        }
    }

    fn dial_circuits(&mut self, peer: PeerId, _now: Instant) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        state.relay_wait = None;
        let circuits = state.addresses_of(Path::Relayed);
        if !circuits.is_empty() && state.best().is_none() && state.relayed_dials.is_empty() {
            self.dial(peer, circuits, Path::Relayed);
        }
    }

    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, path: Path) {
        let dial = DialId(self.next_dial);
        self.next_dial += 1;
        self.dials.insert(dial, (peer, path));
        let state = self.peers.entry(peer).or_default();
        match path {
            Path::Direct => state.direct_dials.insert(dial),
            Path::Relayed => state.relayed_dials.insert(dial),
        };
        self.outputs.push_back(Output::Dial {
            dial,
            peer,
            addresses,
        });
    }

    fn take_dial(&mut self, dial: DialId) -> Option<PeerId> {
        let (peer, _) = self.dials.remove(&dial)?;
        let state = self.peers.get_mut(&peer)?;
        state.direct_dials.remove(&dial);
        state.relayed_dials.remove(&dial);
        Some(peer)
    }

    fn finish_round(&mut self, peer: PeerId, now: Instant) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        if state.is_dialled() {
            return;
        }
        if state.best().is_some() {
            if state.is_wanted() && !state.has(Path::Direct) && state.retry_at.is_none() {
                state.retry_at = Some(now + self.config.upgrade_retry);
            }
            return;
        }
        if state.is_wanted() {
            self.outputs.push_back(Output::Unreachable { peer });
        }
        state.purposes.remove(&Purpose::Once);
        let max = if state.purposes.contains_key(&Purpose::Session) {
            self.config.backoff_max_urgent
        } else {
            self.config.backoff_max_static
        };
        if state.is_wanted() {
            let doubled = 2_u32.saturating_pow(state.failures.min(16));
            let wait = self.config.backoff_initial.saturating_mul(doubled).min(max);
            state.failures = state.failures.saturating_add(1);
            state.retry_at = Some(now + jittered(wait, &mut self.rng));
        }
        self.forget(peer);
    }

    /// Closes what a better connection has made superfluous.
    fn settle(&mut self, peer: PeerId, now: Instant) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let before = state.best();
        let superfluous = state.superfluous();
        state.inspect_at = (!superfluous.is_empty()).then_some(now + self.config.inspect_interval);
        let direct_for = state
            .direct_since
            .map(|since| now.saturating_duration_since(since));
        for id in superfluous {
            let Some(connection) = state.connections.get_mut(&id) else {
                continue;
            };
            let idle_for = connection
                .idle_since
                .map(|since| now.saturating_duration_since(since));
            let replaced = connection.path == Path::Relayed && direct_for.is_some();
            let age = now.saturating_duration_since(connection.since);
            // Whoever comes over a relay in spite of a direct connection has lost that, perhaps.
            let is_later = direct_for.is_some_and(|direct_for| age < direct_for);
            if replaced && is_later && age < self.config.duplicate_grace {
                continue;
            }
            let close = if let (true, Some(direct_for)) = (replaced, direct_for) {
                let idle_for = idle_for.map(|idle| idle.min(direct_for));
                idle_for.is_some_and(|idle| idle >= self.config.idle_grace)
                    || direct_for >= self.config.relayed_limit
            } else {
                let patience = if self.local > peer {
                    self.config.duplicate_grace
                } else {
                    self.config.duplicate_patience
                };
                idle_for.is_some_and(|idle| idle >= patience)
            };
            if close {
                connection.closing = true;
                self.outputs.push_back(Output::Close { connection: id });
            }
        }
        if state.open().count() < 2 {
            state.inspect_at = None;
        }
        self.report(peer, before);
    }

    fn report(&mut self, peer: PeerId, before: Option<BestPath>) {
        let best = self.best(&peer);
        if best != before {
            self.outputs.push_back(Output::PathChanged { peer, best });
        }
    }

    fn of_connection(&mut self, connection: ConnectionId) -> Option<(PeerId, &mut Peer)> {
        let peer = *self.connections.get(&connection)?;
        Some((peer, self.peers.get_mut(&peer)?))
    }

    fn forget(&mut self, peer: PeerId) {
        if self.peers.get(&peer).is_some_and(Peer::is_forgettable) {
            self.peers.remove(&peer);
        }
    }
}

/// How long after the last one a lost connection counts as another of a row.
const LOSSES_COUNT: Duration = Duration::from_secs(60);

/// Whether any of them is new. The oldest makes room.
fn add_addresses(
    state: &mut Peer,
    addresses: impl IntoIterator<Item = Multiaddr>,
    max: usize,
) -> bool {
    let mut any = false;
    for address in addresses {
        if !state.addresses.contains(&address) {
            if state.addresses.len() >= max {
                state.addresses.remove(0);
            }
            state.addresses.push(address);
            any = true;
        }
    }
    any
}

/// The relay of a relayed address, and where it is.
fn relay_of(address: &Multiaddr) -> Option<(PeerId, Multiaddr)> {
    let transport: Multiaddr = address
        .iter()
        .take_while(|part| *part != Protocol::P2pCircuit)
        .collect();
    match transport.iter().last() {
        Some(Protocol::P2p(relay)) => Some((relay, transport)),
        _ => None,
    }
}

/// Between three quarters and five quarters of `wait`, so that peers do not dial in step.
fn jittered(wait: Duration, rng: &mut StdRng) -> Duration {
    let share = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    wait.mul_f64(0.75 + 0.5 * share)
}
