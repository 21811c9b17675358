//! The processes of a measurement: a relay, a node that holds a reservation, and one that dials it through the relay.

use crate::compare::swarm::{IDLE, Transport};
use crate::compare::{Error, endpoint};
use anypath_holepunch::{
    self as holepunch,
    transport::{Ports, Quic, Tcp},
};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{
    self, Boxed, DialOpts, ListenerId, Transport as _, TransportError, TransportEvent,
};
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, dcutr, identify, identity, noise, quic, relay, tcp,
    yamux,
};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// When a run without a direct connection is over.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long after the first direct connection those that are left are counted.
const SETTLE: Duration = Duration::from_millis(1500);

/// Port of the relay, for both transports.
const RELAY_PORT: u16 = 4001;

/// What punches.
pub(super) trait Puncher: NetworkBehaviour {
    /// A behaviour for the node of this key.
    fn new(local: PeerId, ports: Ports) -> Result<Self, Error>
    where
        Self: Sized;
    /// A peer told at which address it sees us.
    fn on_observed(&mut self, connection: ConnectionId, peer: PeerId, observed: Multiaddr);
    /// Whether a punch ended, and well.
    fn outcome(event: &Self::ToSwarm) -> Option<bool>;
    /// How streams are negotiated, as a node with this behaviour does it.
    fn version() -> Version;
}

impl Puncher for holepunch::Behaviour {
    fn new(local: PeerId, ports: Ports) -> Result<Self, Error> {
        Ok(Self::new(local, holepunch::Config::default()).with_fresh_ports(ports))
    }

    fn on_observed(&mut self, connection: ConnectionId, peer: PeerId, observed: Multiaddr) {
        Self::on_observed(self, connection, peer, None, observed);
    }

    fn outcome(event: &holepunch::Event) -> Option<bool> {
        match event {
            holepunch::Event::Outcome(outcome) => Some(outcome.result.is_ok()),
            _ => None,
        }
    }

    fn version() -> Version {
        Version::V1Lazy
    }
}

impl Puncher for dcutr::Behaviour {
    fn new(local: PeerId, _: Ports) -> Result<Self, Error> {
        Ok(Self::new(local))
    }

    // identify has told it already.
    fn on_observed(&mut self, _: ConnectionId, _: PeerId, _: Multiaddr) {}

    fn outcome(event: &dcutr::Event) -> Option<bool> {
        Some(event.result.is_ok())
    }

    fn version() -> Version {
        Version::V1
    }
}

#[derive(NetworkBehaviour)]
pub(super) struct Node<P: Puncher> {
    relay: relay::client::Behaviour,
    identify: identify::Behaviour,
    punch: P,
}

#[derive(NetworkBehaviour)]
struct Relay {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
}

fn identify(key: &identity::Keypair) -> identify::Behaviour {
    let protocol = "/anypath/compare/1".to_owned();
    identify::Behaviour::new(identify::Config::new(protocol, key.public()))
}

/// libp2p-relay without limits; prints `listening <peer id>`.
pub(super) async fn relay(address: Ipv4Addr) -> Result<(), Error> {
    let unlimited = relay::Config {
        max_circuit_bytes: 0,
        max_circuit_duration: IDLE,
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_quic()
        .with_behaviour(|key| Relay {
            relay: relay::Behaviour::new(key.public().to_peer_id(), unlimited),
            identify: identify(key),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
        .build();
    for transport in Transport::ALL {
        swarm.listen_on(relay_address(Ipv4Addr::UNSPECIFIED, transport))?;
        swarm.add_external_address(relay_address(address, transport));
    }
    println!("listening {}", swarm.local_peer_id());
    loop {
        swarm.select_next_some().await;
    }
}

/// Where the relay at `address` listens.
pub(super) fn relay_address(address: Ipv4Addr, transport: Transport) -> Multiaddr {
    let address = Multiaddr::empty().with(Protocol::Ip4(address));
    match transport {
        Transport::Tcp => address.with(Protocol::Tcp(RELAY_PORT)),
        Transport::Quic => address
            .with(Protocol::Udp(RELAY_PORT))
            .with(Protocol::QuicV1),
    }
}

/// Dials later than it is told to, like a node that is busy.
struct Late<T> {
    inner: T,
    by: Duration,
}

impl<T> transport::Transport for Late<T>
where
    T: transport::Transport + Unpin,
    T::Dial: Send + 'static,
{
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<T::Output, T::Error>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<T::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<T::Error>> {
        let (dial, by) = (self.inner.dial(address, opts)?, self.by);
        Ok(async move {
            tokio::time::sleep(by).await;
            dial.await
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<T::ListenerUpgrade, T::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// TCP and QUIC, and the same from fresh ports.
fn transport(
    key: &identity::Keypair,
    ports: &Ports,
    late: Duration,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, Error> {
    let config = quic::Config::new(key);
    let usual = quic::tokio::Transport::new(config.clone());
    let quic = Quic::new(ports, move || quic::tokio::Transport::new(config.clone()))
        .or_transport(usual)
        .map(|either, _| either.into_inner())
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    let tcp = Tcp::new(ports)
        .or_transport(tcp::tokio::Transport::default())
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key)?)
        .multiplex(yamux::Config::default())
        .boxed();
    let inner = quic.or_transport(tcp).map(|either, _| either.into_inner());
    Ok(Late { inner, by: late }.boxed())
}

fn node<P: Puncher>(late: Duration) -> Result<Swarm<Node<P>>, Error> {
    let ports = Ports::default();
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_other_transport(|key| transport(key, &ports, late))?
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|key, relay| {
            Ok(Node {
                relay,
                identify: identify(key),
                punch: P::new(key.public().to_peer_id(), ports)?,
            })
        })?
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(IDLE)
                .with_substream_upgrade_protocol_override(P::version())
        })
        .build())
}

/// How a node is set up.
#[derive(Debug, Clone, clap::Args)]
pub struct Setup {
    /// Over what.
    transport: Transport,
    /// Through whom.
    relay: Multiaddr,
    /// Milliseconds by which each dial is late.
    #[arg(long, default_value_t = 0)]
    late: u64,
    /// Other servers that it is connected to.
    #[arg(long)]
    server: Vec<Multiaddr>,
}

/// A node that listens, is connected to the relay and the servers, and knows under which addresses they see it.
async fn connected<P: Puncher>(setup: &Setup) -> Result<Swarm<Node<P>>, Error> {
    let mut swarm = node::<P>(Duration::from_millis(setup.late))?;
    let any = Multiaddr::empty().with(Protocol::Ip4(Ipv4Addr::UNSPECIFIED));
    swarm.listen_on(match setup.transport {
        Transport::Tcp => any.with(Protocol::Tcp(0)),
        Transport::Quic => any.with(Protocol::Udp(0)).with(Protocol::QuicV1),
    })?;
    // A dial before the listener has its address would come from another port.
    let mut is_listening = false;
    let mut settled = std::pin::pin!(tokio::time::sleep(Duration::from_millis(100)));
    loop {
        tokio::select! {
            event = swarm.select_next_some() => {
                is_listening |= matches!(event, SwarmEvent::NewListenAddr { .. });
            }
            () = &mut settled, if is_listening => break,
        }
    }
    let servers = [&setup.relay].into_iter().chain(&setup.server);
    for server in servers {
        swarm.dial(server.clone())?;
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(NodeEvent::Identify(event)) => {
                    let is_told = matches!(event, identify::Event::Received { .. });
                    on_identify(&mut swarm, event);
                    if is_told {
                        break;
                    }
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(swarm)
}

fn on_identify<P: Puncher>(swarm: &mut Swarm<Node<P>>, event: identify::Event) {
    if let identify::Event::Received {
        connection_id,
        peer_id,
        info,
        ..
    } = event
    {
        let punch = &mut swarm.behaviour_mut().punch;
        punch.on_observed(connection_id, peer_id, info.observed_addr);
    }
}

/// Reserves; prints `reserved <peer id>`, then `outcome <ok|failed>` for every punch.
pub(super) async fn listen<P: Puncher>(setup: Setup) -> Result<(), Error> {
    let mut swarm = connected::<P>(&setup).await?;
    swarm.listen_on(setup.relay.with(Protocol::P2pCircuit))?;
    let mut ended = std::pin::pin!(endpoint::stdin_closed());
    loop {
        let event = tokio::select! {
            event = swarm.select_next_some() => event,
            () = &mut ended, if !is_in_lab() => return Ok(()),
        };
        match event {
            SwarmEvent::Behaviour(NodeEvent::Relay(
                relay::client::Event::ReservationReqAccepted { .. },
            )) => println!("reserved {}", swarm.local_peer_id()),
            SwarmEvent::Behaviour(NodeEvent::Punch(event)) => {
                if let Some(ok) = P::outcome(&event) {
                    println!("outcome {}", if ok { "ok" } else { "failed" });
                }
            }
            SwarmEvent::Behaviour(NodeEvent::Identify(event)) => on_identify(&mut swarm, event),
            SwarmEvent::ListenerClosed {
                reason: Err(error), ..
            } => return Err(error.into()),
            _ => {}
        }
    }
}

/// In the lab stdin is closed from the beginning, and whoever started us kills us.
fn is_in_lab() -> bool {
    crate::lab::is_inside()
}

/// Dials through the relay; prints `relayed`, then `direct <nanoseconds since>` and `left <connections>`, or `failed
/// <nanoseconds>`.
pub(super) async fn dial<P: Puncher>(setup: Setup, peer: PeerId) -> Result<(), Error> {
    let mut swarm = connected::<P>(&setup).await?;
    let circuit = setup
        .relay
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(peer));
    swarm.dial(circuit)?;
    let mut relayed: Option<Instant> = None;
    let mut direct: BTreeSet<ConnectionId> = BTreeSet::new();
    let mut first: Option<Duration> = None;
    let mut over = std::pin::pin!(tokio::time::sleep(PATIENCE));
    loop {
        let event = tokio::select! {
            event = swarm.select_next_some() => event,
            () = &mut over => break,
        };
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } if peer_id == peer => {
                let since = *relayed.get_or_insert_with(Instant::now);
                if endpoint.is_relayed() {
                    println!("relayed");
                    over.as_mut().reset(Instant::now() + PATIENCE);
                    continue;
                }
                direct.insert(connection_id);
                if first.is_none() {
                    let elapsed = since.elapsed();
                    println!("direct {}", elapsed.as_nanos());
                    first = Some(elapsed);
                    over.as_mut().reset(Instant::now() + SETTLE);
                }
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                direct.remove(&connection_id);
            }
            SwarmEvent::Behaviour(NodeEvent::Punch(event))
                if first.is_none() && P::outcome(&event) == Some(false) =>
            {
                let elapsed = relayed.map_or(Duration::ZERO, |since| since.elapsed());
                println!("failed {}", elapsed.as_nanos());
                return Ok(());
            }
            SwarmEvent::Behaviour(NodeEvent::Identify(event)) => on_identify(&mut swarm, event),
            SwarmEvent::OutgoingConnectionError { error, .. } if relayed.is_none() => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    match first {
        Some(_) => println!("left {}", direct.len()),
        None => println!("failed {}", PATIENCE.as_nanos()),
    }
    Ok(())
}
