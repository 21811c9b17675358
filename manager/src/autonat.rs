//! AutoNAT v2's client, stripped of its say and made to ask again.
//!
//! What it finds is a verdict, not a confirmation: stock libp2p-autonat confirms an address to the
//! swarm after one successful dial-back. Only `holepunch::nat` confirms addresses here (DESIGN.md
//! §3), so this adapter swallows the confirmation and leaves the event, which names the server, the
//! address and the outcome. A confirmation that other crates issue reaches the inner behaviour
//! unchanged.
//!
//! Stock libp2p-autonat 0.16 tests every address once in its life, at one server. Two servers can
//! never agree then, and nobody notices when the address stops working. So there are rounds: every
//! [`Timing::interval`] the inner behaviour is replaced by a new one that knows the same connections
//! and addresses and has tested nothing. It learns which peers are servers from its handlers, which
//! hear it when a protocol appears; [`Repeater`] lets it disappear and appear.
//!
//! A test that comes to nothing is one that the inner behaviour begins again at its next tick. When
//! the interval is over, nobody is asked again before the next round, or an address that no server
//! tells of (js-libp2p over QUIC needs longer than libp2p-autonat waits) would hold up all others.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use either::Either;
use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    autonat::v2::client,
    core::{ConnectedPoint, Endpoint, transport::PortUse, upgrade::DeniedUpgrade},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionHandlerSelect,
        ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate, NotifyHandler,
        SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::ConnectionEstablished,
        handler::{ConnectionEvent, ProtocolSupport, ProtocolsChange},
    },
};
use web_time::Instant;

use crate::node::now;

/// What a server of AutoNAT v2 speaks (libp2p-autonat does not export it).
const DIAL_REQUEST: StreamProtocol = StreamProtocol::new("/libp2p/autonat/2/dial-request");
/// Addresses that are tested. Every peer can claim to see us under another one.
const MAX_CANDIDATES: usize = 64;
/// Reports of one address that a new round is told of, as many as tell it from the others: js-libp2p hears two requests of a
/// connection at a time, and the first ones had better be about the address that most peers see.
const MAX_REPORTS: u32 = 16;
/// Rounds with a verdict after which there is no hurry: more servers than `holepunch` needs to
/// believe an address.
const EARLY_ROUNDS: u32 = 3;
/// Time between those.
const EARLY_INTERVAL: Duration = Duration::from_secs(20);

/// One server's verdict about one of our addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The server that dialled us back, or failed to.
    pub(crate) server: PeerId,
    /// The address it was asked to dial.
    pub(crate) address: Multiaddr,
    /// Whether the dial-back arrived.
    pub(crate) reachable: bool,
}

impl From<client::Event> for Verdict {
    fn from(event: client::Event) -> Self {
        Self {
            server: event.server,
            address: event.tested_addr,
            reachable: event.result.is_ok(),
        }
    }
}

/// When addresses are tested.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// How often untested addresses are looked for.
    pub(crate) tick: Duration,
    /// How long after a test an address is tested again.
    pub(crate) interval: Duration,
    /// How long a test may take: libp2p-autonat gives up after 10 s.
    pub(crate) settle: Duration,
}

impl Timing {
    /// Tests repeated at this interval, with libp2p-autonat's tick.
    pub(crate) fn every(interval: Duration) -> Self {
        Self {
            tick: Duration::from_secs(5),
            interval,
            settle: Duration::from_secs(12),
        }
    }
}

/// The AutoNAT v2 client of the node.
pub(crate) struct Behaviour {
    inner: client::Behaviour,
    timing: Timing,
    tick: Delay,
    connections: BTreeMap<ConnectionId, (PeerId, ConnectedPoint)>,
    /// Our possible addresses, and how often each was reported.
    candidates: BTreeMap<Multiaddr, u32>,
    round_began: Instant,
    /// When this round's first test began, and its last one.
    tested: Option<(Instant, Instant)>,
    has_verdict: bool,
    rounds_with_verdict: u32,
    commands: VecDeque<ToSwarm<Verdict, THandlerInEvent<Self>>>,
}

impl Behaviour {
    pub(crate) fn new(timing: Timing) -> Self {
        Self {
            inner: new_inner(timing),
            timing,
            tick: Delay::new(timing.tick),
            connections: BTreeMap::new(),
            candidates: BTreeMap::new(),
            round_began: now(),
            tested: None,
            has_verdict: false,
            rounds_with_verdict: 0,
            commands: VecDeque::new(),
        }
    }

    /// Whether the address is one of those that are tested.
    fn on_candidate(&mut self, address: &Multiaddr) -> bool {
        if let Some(reports) = self.candidates.get_mut(address) {
            *reports = reports.saturating_add(1);
            return true;
        }
        let has_room = self.candidates.len() < MAX_CANDIDATES;
        if has_room {
            self.candidates.insert(address.clone(), 1);
        }
        has_room
    }

    fn interval(&self) -> Duration {
        if self.rounds_with_verdict < EARLY_ROUNDS {
            self.timing.interval.min(EARLY_INTERVAL)
        } else {
            self.timing.interval
        }
    }

    /// Whether the round is about to end: a test that begins now would hold it up.
    fn is_late(&self, now: Instant) -> bool {
        // Nothing was tested: what is untested is tested as soon as there is a server, and all of it at one tick.
        let Some((first, _)) = self.tested else {
            return false;
        };
        now.saturating_duration_since(self.round_began) >= self.interval()
            && now.saturating_duration_since(first) >= self.timing.tick / 2
    }

    fn is_round_over(&self, now: Instant) -> bool {
        let Some((_, last)) = self.tested else {
            return false;
        };
        // A dial-back that comes after the end of its round would count as a failure.
        now.saturating_duration_since(self.round_began) >= self.interval()
            && now.saturating_duration_since(last) >= self.timing.settle
    }

    fn begin_round(&mut self, now: Instant) {
        self.round_began = now;
        self.tested = None;
        self.rounds_with_verdict += u32::from(std::mem::take(&mut self.has_verdict));
        if self.candidates.len() >= MAX_CANDIDATES {
            self.keep_the_most_reported();
        }
        self.inner = new_inner(self.timing);
        for (connection_id, (peer_id, endpoint)) in &self.connections {
            let (connection_id, peer_id) = (*connection_id, *peer_id);
            self.inner
                .on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                    peer_id,
                    connection_id,
                    endpoint,
                    failed_addresses: &[],
                    other_established: 0,
                }));
            self.commands.push_back(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(connection_id),
                event: Either::Right(Repeat),
            });
        }
        for (addr, reports) in &self.candidates {
            for _ in 0..(*reports).min(MAX_REPORTS) {
                let candidate = NewExternalAddrCandidate { addr };
                self.inner
                    .on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
            }
        }
    }

    /// Makes room for addresses that turned up since.
    fn keep_the_most_reported(&mut self) {
        let mut ranked: Vec<_> = std::mem::take(&mut self.candidates).into_iter().collect();
        ranked.sort_by_key(|(_, reports)| std::cmp::Reverse(*reports));
        ranked.truncate(MAX_CANDIDATES / 2);
        self.candidates = ranked.into_iter().collect();
    }
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut address = address.clone();
    if matches!(address.iter().last(), Some(Protocol::P2p(_))) {
        address.pop();
    }
    address
}

fn new_inner(timing: Timing) -> client::Behaviour {
    let config = client::Config::default().with_probe_interval(timing.tick);
    client::Behaviour::new(rand::make_rng(), config)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = ConnectionHandlerSelect<THandler<client::Behaviour>, Repeater>;
    type ToSwarm = Verdict;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner
            .handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_inbound_connection(connection, peer, local, remote)
            .map(|handler| handler.select(Repeater::default()))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner
            .handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_outbound_connection(connection, peer, address, role, port_use)
            .map(|handler| handler.select(Repeater::default()))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::NewExternalAddrCandidate(candidate) => {
                // Some peers end what they see with our name (js-libp2p over QUIC): the same address.
                let addr = &without_peer(candidate.addr);
                if self.on_candidate(addr) {
                    let candidate = NewExternalAddrCandidate { addr };
                    self.inner
                        .on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
                }
                return;
            }
            FromSwarm::ConnectionEstablished(event) => {
                let known = (event.peer_id, event.endpoint.clone());
                self.connections.insert(event.connection_id, known);
            }
            FromSwarm::ConnectionClosed(event) => {
                self.connections.remove(&event.connection_id);
            }
            _ => {}
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Either::Left(event) => self
                .inner
                .on_connection_handler_event(peer, connection, event),
            Either::Right(never) => match never {},
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(command) = self.commands.pop_front() {
                return Poll::Ready(command);
            }
            if self.tick.poll_unpin(cx).is_ready() {
                self.tick.reset(self.timing.tick);
                let now = now();
                if self.is_round_over(now) {
                    self.begin_round(now);
                }
                continue;
            }
            let action = std::task::ready!(self.inner.poll(cx));
            match &action {
                ToSwarm::ExternalAddrConfirmed(_) => continue,
                ToSwarm::GenerateEvent(_) => self.has_verdict = true,
                ToSwarm::NotifyHandler { .. } => {
                    let now = now();
                    if self.is_late(now) {
                        continue;
                    }
                    let first = self.tested.map_or(now, |(first, _)| first);
                    self.tested = Some((first, now));
                }
                _ => {}
            }
            return Poll::Ready(action.map_out(Verdict::from).map_in(Either::Left));
        }
    }
}

/// Tell the other handlers of the connection again whether the peer is a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repeat;

/// Repeats the news that a peer is a server of AutoNAT v2, for a behaviour that came later.
#[derive(Debug, Default)]
pub(crate) struct Repeater {
    is_server: bool,
    reports: VecDeque<ProtocolSupport>,
}

impl ConnectionHandler for Repeater {
    type FromBehaviour = Repeat;
    type ToBehaviour = Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn on_behaviour_event(&mut self, Repeat: Repeat) {
        if self.is_server && self.reports.is_empty() {
            let server = HashSet::from([DIAL_REQUEST]);
            self.reports
                .push_back(ProtocolSupport::Removed(server.clone()));
            self.reports.push_back(ProtocolSupport::Added(server));
        }
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Infallible>> {
        match self.reports.pop_front() {
            Some(report) => Poll::Ready(ConnectionHandlerEvent::ReportRemoteProtocols(report)),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, DeniedUpgrade, DeniedUpgrade, (), ()>,
    ) {
        let ConnectionEvent::RemoteProtocolsChange(change) = event else {
            return;
        };
        match change {
            ProtocolsChange::Added(added) => {
                self.is_server |= added.into_iter().any(|id| *id == DIAL_REQUEST);
            }
            ProtocolsChange::Removed(removed) => {
                self.is_server &= !removed.into_iter().any(|id| *id == DIAL_REQUEST);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{
        Swarm, SwarmBuilder, autonat, futures::StreamExt as _, identify, noise, swarm::SwarmEvent,
        tcp, yamux,
    };

    use super::*;
    use crate::autonat_server;

    #[derive(NetworkBehaviour)]
    struct Server {
        identify: identify::Behaviour,
        autonat: autonat::v2::server::Behaviour,
    }

    #[derive(NetworkBehaviour)]
    struct Client {
        identify: identify::Behaviour,
        autonat: Behaviour,
    }

    fn swarm<B: NetworkBehaviour>(
        behaviour: impl FnOnce(&libp2p::identity::Keypair) -> B,
    ) -> Swarm<B> {
        SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(|key| Ok(behaviour(key)))
            .unwrap()
            .with_swarm_config(|config| {
                config.with_idle_connection_timeout(Duration::from_secs(60))
            })
            .build()
    }

    fn identify(key: &libp2p::identity::Keypair) -> identify::Behaviour {
        identify::Behaviour::new(identify::Config::new("/test/1".to_owned(), key.public()))
    }

    async fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
        swarm
            .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
            .unwrap();
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return address;
            }
        }
    }

    /// The stock client tests an address once; `holepunch` believes two servers, and notices what
    /// changes only if it is told again.
    #[tokio::test]
    async fn an_address_is_tested_again_after_the_interval() {
        let mut server = swarm(|key| Server {
            identify: identify(key),
            autonat: autonat::v2::server::Behaviour::new(rand::make_rng()),
        });
        let at = listen(&mut server).await;
        // A round ends the tests of the one before: longer than a test takes on a busy machine.
        let timing = Timing {
            tick: Duration::from_millis(100),
            interval: Duration::from_millis(1500),
            settle: Duration::from_millis(200),
        };
        let mut client = swarm(|key| Client {
            identify: identify(key),
            autonat: Behaviour::new(timing),
        });
        let own = listen(&mut client).await;
        client.dial(at).unwrap();
        client
            .behaviour_mut()
            .autonat
            .on_swarm_event(FromSwarm::NewExternalAddrCandidate(
                NewExternalAddrCandidate { addr: &own },
            ));
        let verdicts = async {
            let mut verdicts = 0;
            while verdicts < 3 {
                tokio::select! {
                    _ = server.select_next_some() => {}
                    event = client.select_next_some() => {
                        if let SwarmEvent::Behaviour(ClientEvent::Autonat(verdict)) = event
                            && verdict.address == own
                        {
                            assert!(verdict.reachable);
                            assert_eq!(verdict.server, *server.local_peer_id());
                            verdicts += 1;
                        }
                    }
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), verdicts)
            .await
            .expect("the address is tested three times");
    }

    #[derive(NetworkBehaviour)]
    struct Refusing {
        identify: identify::Behaviour,
        autonat: autonat_server::Behaviour,
    }

    /// Whoever refuses is asked again at every tick; the address that is reached has its turn all the same.
    #[tokio::test]
    async fn an_address_that_no_server_tells_of_does_not_hold_up_the_others() {
        let tcp_alone = autonat_server::Transports {
            quic: false,
            websocket: false,
            webrtc: false,
        };
        let limits = autonat_server::Limits::default();
        let mut server = swarm(|key| Refusing {
            identify: identify(key),
            autonat: autonat_server::Behaviour::new(limits, tcp_alone, autonat_server::PATIENCE),
        });
        let at = listen(&mut server).await;
        let timing = Timing {
            tick: Duration::from_millis(200),
            interval: Duration::from_millis(500),
            settle: Duration::from_secs(3),
        };
        let mut client = swarm(|key| Client {
            identify: identify(key),
            autonat: Behaviour::new(timing),
        });
        let own = listen(&mut client).await;
        let refused = "/ip4/127.0.0.1/udp/9/quic-v1".parse().unwrap();
        client.dial(at).unwrap();
        for addr in [&own, &refused] {
            let candidate = NewExternalAddrCandidate { addr };
            let event = FromSwarm::NewExternalAddrCandidate(candidate);
            client.behaviour_mut().autonat.on_swarm_event(event);
        }
        let mut verdict = async || {
            loop {
                tokio::select! {
                    _ = server.select_next_some() => {}
                    event = client.select_next_some() => {
                        if let SwarmEvent::Behaviour(ClientEvent::Autonat(verdict)) = event
                            && verdict.address == own
                        {
                            return verdict.reachable;
                        }
                    }
                }
            }
        };
        let first = tokio::time::timeout(Duration::from_secs(30), verdict()).await;
        assert_eq!(first, Ok(true));
        // Less than the 12.5 s that a round with an address under test all the time once took.
        let second = tokio::time::timeout(Duration::from_secs(10), verdict()).await;
        assert_eq!(second, Ok(true));
    }

    #[test]
    fn who_is_asked_when_the_interval_is_over_is_asked_in_the_next_round() {
        let timing = Timing::every(Duration::from_secs(10));
        let mut behaviour = Behaviour::new(timing);
        let began = behaviour.round_began;
        let after = |seconds| began + Duration::from_secs(seconds);
        assert!(!behaviour.is_late(after(60)), "nothing was tested");
        assert!(!behaviour.is_round_over(after(60)));
        behaviour.tested = Some((after(5), after(5)));
        assert!(!behaviour.is_late(after(9)));
        assert!(behaviour.is_late(after(10)));
        behaviour.tested = Some((after(60), after(60)));
        assert!(!behaviour.is_late(after(60)), "the other addresses");
        assert!(behaviour.is_late(after(65)));
        assert!(!behaviour.is_round_over(after(71)));
        assert!(behaviour.is_round_over(after(72)));
        behaviour.begin_round(after(72));
        assert!(!behaviour.is_late(after(90)));
    }

    #[test]
    fn an_address_that_ends_in_our_name_is_the_same() {
        let mut behaviour = Behaviour::new(Timing::every(Duration::from_secs(300)));
        let address: Multiaddr = "/ip4/203.0.113.1/udp/4001/quic-v1".parse().unwrap();
        let named = address.clone().with(Protocol::P2p(PeerId::random()));
        for addr in [&named, &address] {
            let candidate = NewExternalAddrCandidate { addr };
            behaviour.on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
        }
        assert_eq!(behaviour.candidates, BTreeMap::from([(address, 2)]));
    }

    #[test]
    fn peers_that_see_us_everywhere_fill_a_bounded_list_and_common_addresses_stay() {
        let mut behaviour = Behaviour::new(Timing::every(Duration::from_secs(300)));
        let address =
            |n: usize| -> Multiaddr { format!("/ip4/203.0.113.1/tcp/{}", n + 1).parse().unwrap() };
        for n in [0, 0].into_iter().chain(1..10 * MAX_CANDIDATES) {
            let addr = &address(n);
            let candidate = NewExternalAddrCandidate { addr };
            behaviour.on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
        }
        assert_eq!(behaviour.candidates.len(), MAX_CANDIDATES);
        behaviour.begin_round(now());
        assert!(behaviour.candidates.contains_key(&address(0)));
        assert!(
            behaviour.candidates.len() < MAX_CANDIDATES,
            "new ones have a chance"
        );
    }
}
