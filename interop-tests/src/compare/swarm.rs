//! What the endpoints' swarms have in common: the same transports, defaults, timeouts and lazy negotiation for ours and for stock libp2p.
//! (beetswap, a process of its own, negotiates eagerly: over QUIC it never begins otherwise.)

use super::{Error, endpoint::stdin_closed};
use futures::StreamExt as _;
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, identity, tcp};
use std::future::Future;
use std::time::Duration;

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// TCP, Noise, Yamux.
    Tcp,
    /// QUIC.
    Quic,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Quic];

    /// As it stands in figures and arguments.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
        }
    }

    /// A free port of loopback.
    #[must_use]
    pub fn loopback(self) -> Multiaddr {
        let address = Multiaddr::empty().with(Protocol::Ip4(std::net::Ipv4Addr::LOCALHOST));
        match self {
            Self::Tcp => address.with(Protocol::Tcp(0)),
            Self::Quic => address.with(Protocol::Udp(0)).with(Protocol::QuicV1),
        }
    }
}

/// No connection of a measurement is idle for so long.
pub(crate) const IDLE: Duration = Duration::from_secs(120);

/// A swarm with both transports and one behaviour.
pub(crate) fn direct<B: NetworkBehaviour>(behaviour: B) -> Result<Swarm<B>, Error> {
    direct_with(|_| behaviour)
}

/// As [`direct`], for a behaviour that asks for our own key.
pub(crate) fn direct_with<B: NetworkBehaviour>(
    behaviour: impl FnOnce(&identity::Keypair) -> B,
) -> Result<Swarm<B>, Error> {
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            // The node's own: faster, and one that takes the frames of js-libp2p.
            anypath::noise::Config::new,
            anypath::yamux::Config::default,
        )?
        .with_quic()
        .with_behaviour(|key| behaviour(key))?
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(IDLE)
                .with_substream_upgrade_protocol_override(Version::V1Lazy)
        })
        .build())
}

/// Listens on loopback; the address ends in our `/p2p/`.
pub(crate) async fn listen<B: NetworkBehaviour>(
    swarm: &mut Swarm<B>,
    transport: Transport,
) -> Result<Multiaddr, Error> {
    listen_on(swarm, transport.loopback()).await
}

/// Listens; the address ends in our `/p2p/`.
pub(crate) async fn listen_on<B: NetworkBehaviour>(
    swarm: &mut Swarm<B>,
    address: Multiaddr,
) -> Result<Multiaddr, Error> {
    swarm.listen_on(address)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => {
                return Ok(address.with(Protocol::P2p(*swarm.local_peer_id())));
            }
            SwarmEvent::ListenerClosed { reason, .. } => reason?,
            SwarmEvent::ListenerError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
}

/// Dials and waits for the connection.
pub(crate) async fn connect<B: NetworkBehaviour>(
    swarm: &mut Swarm<B>,
    address: Multiaddr,
) -> Result<PeerId, Error> {
    let peer = match address.iter().last() {
        Some(Protocol::P2p(peer)) => peer,
        _ => return Err(format!("{address} names no peer").into()),
    };
    swarm.dial(address)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => {
                return Ok(peer);
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
}

/// Keeps the swarm going while `work` runs, which talks to it through a control; returns what `work` returns.
pub(crate) async fn beside<B: NetworkBehaviour, T>(
    swarm: &mut Swarm<B>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = swarm.select_next_some() => {}
        }
    }
}

/// Tells `compare` the address and serves until it closes our stdin.
pub(crate) async fn serve<B: NetworkBehaviour>(swarm: &mut Swarm<B>, address: &Multiaddr) {
    println!("listening {address}");
    beside(swarm, stdin_closed()).await;
}
