//! Both relay clients behind one small trait, so that everything but the client is the same code.

use crate::compare::swarm::{self, IDLE, Transport};
use crate::compare::{Error, endpoint};
use anypath_relay::client as anypath;
use futures::future::{self, try_join_all};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, Transport as _, identity, noise, relay,
    tcp, yamux,
};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/anypath/compare/bytes/1.0.0");

/// Circuits that are set up one after the other for a mean.
const CIRCUITS: u32 = 16;

/// A behaviour with a relay client and with streams.
pub(super) trait Client: NetworkBehaviour {
    /// Asks for a reservation.
    fn reserve(swarm: &mut Swarm<Self>, relay: Multiaddr) -> Result<(), Error>
    where
        Self: Sized;
    /// Whether this says that the reservation is held.
    fn is_reserved(event: &Self::ToSwarm) -> bool;
    /// Opens and accepts streams.
    fn control(&self) -> libp2p_stream::Control;
}

/// anypath-relay's client.
#[derive(NetworkBehaviour)]
pub(super) struct Ours {
    relay: anypath::Behaviour,
    stream: libp2p_stream::Behaviour,
}

/// libp2p-relay's client.
#[derive(NetworkBehaviour)]
pub(super) struct Stock {
    relay: relay::client::Behaviour,
    stream: libp2p_stream::Behaviour,
}

impl Client for Ours {
    fn reserve(swarm: &mut Swarm<Self>, relay: Multiaddr) -> Result<(), Error> {
        swarm.behaviour_mut().relay.add_relay(relay)?;
        Ok(())
    }

    fn is_reserved(event: &OursEvent) -> bool {
        matches!(event, OursEvent::Relay(anypath::Event::Reserved { .. }))
    }

    fn control(&self) -> libp2p_stream::Control {
        self.stream.new_control()
    }
}

impl Client for Stock {
    fn reserve(swarm: &mut Swarm<Self>, relay: Multiaddr) -> Result<(), Error> {
        swarm.listen_on(relay.with(Protocol::P2pCircuit))?;
        Ok(())
    }

    fn is_reserved(event: &StockEvent) -> bool {
        matches!(
            event,
            StockEvent::Relay(relay::client::Event::ReservationReqAccepted { .. })
        )
    }

    fn control(&self) -> libp2p_stream::Control {
        self.stream.new_control()
    }
}

pub(super) fn ours() -> Result<Swarm<Ours>, Error> {
    let key = identity::Keypair::generate_ed25519();
    let (transport, relay) = anypath::new(key.public().to_peer_id(), anypath::Config::default());
    Ok(SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_quic()
        .with_other_transport(|key| {
            Ok(transport
                .upgrade(Version::V1Lazy)
                .authenticate(noise::Config::new(key)?)
                .multiplex(yamux::Config::default()))
        })?
        .with_behaviour(|_| Ours {
            relay,
            stream: libp2p_stream::Behaviour::new(),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
        .build())
}

pub(super) fn stock() -> Result<Swarm<Stock>, Error> {
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|_, relay| Stock {
            relay,
            stream: libp2p_stream::Behaviour::new(),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
        .build())
}

/// `count` swarms that each reserve where there is a relay, then send what streams ask for until our stdin closes.
pub(super) async fn listen<C>(
    make: fn() -> Result<Swarm<C>, Error>,
    transport: Transport,
    count: u64,
    relay: Option<Multiaddr>,
) -> Result<(), Error>
where
    C: Client + Send,
    C::ToSwarm: Send,
{
    let mut serving = JoinSet::new();
    for _ in 0..count {
        let mut swarm = make()?;
        let incoming = swarm.behaviour().control().accept(PROTOCOL)?;
        let address = match relay.clone() {
            None => swarm::listen(&mut swarm, transport).await?,
            Some(relay) => {
                hold_reservation(&mut swarm, relay.clone()).await?;
                relay
                    .with(Protocol::P2pCircuit)
                    .with(Protocol::P2p(*swarm.local_peer_id()))
            }
        };
        println!("listening {address}");
        serving.spawn(async move { swarm::beside(&mut swarm, serve(incoming)).await });
    }
    tokio::select! {
        Some(ended) = serving.join_next() => ended??,
        () = endpoint::stdin_closed() => {}
    }
    Ok(())
}

async fn serve(mut incoming: libp2p_stream::IncomingStreams) -> std::io::Result<()> {
    let chunk = vec![0; 64 << 10];
    while let Some((_, mut stream)) = incoming.next().await {
        let mut length = [0; 8];
        stream.read_exact(&mut length).await?;
        let mut left = u64::from_be_bytes(length);
        while left > 0 {
            let size = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            stream
                .write_all(chunk.get(..size).unwrap_or_default())
                .await?;
            left -= size as u64;
        }
        stream.close().await?;
    }
    Ok(())
}

/// Sets up connections one after the other, then fetches over the last; one swarm for each address, all at the same time.
pub(super) async fn dial<C>(
    make: fn() -> Result<Swarm<C>, Error>,
    addresses: Vec<Multiaddr>,
    bytes: u64,
) -> Result<(), Error>
where
    C: Client + Send,
    C::ToSwarm: Send,
{
    let mut connected = Vec::new();
    let mut connecting = Duration::ZERO;
    for address in addresses {
        let mut swarm = make()?;
        let (peer, took) = set_up(&mut swarm, address).await?;
        connecting += took;
        connected.push((swarm, peer));
    }
    let mean = connecting / CIRCUITS / u32::try_from(connected.len())?;
    println!("connected {}", mean.as_nanos());

    let began = Instant::now();
    let mut fetching = JoinSet::new();
    for (mut swarm, peer) in connected {
        let control = swarm.behaviour().control();
        fetching.spawn(async move { swarm::beside(&mut swarm, fetch(control, peer, bytes)).await });
    }
    let mut received = 0;
    while let Some(fetched) = fetching.join_next().await {
        received += fetched??;
    }
    println!("done {received} {}", began.elapsed().as_nanos());
    Ok(())
}

async fn set_up<C: Client>(
    swarm: &mut Swarm<C>,
    address: Multiaddr,
) -> Result<(PeerId, Duration), Error> {
    // The connection to the relay comes first: a circuit is what is timed.
    let relay: Multiaddr = address
        .iter()
        .take_while(|part| *part != Protocol::P2pCircuit)
        .collect();
    let relayed = relay != address;
    if relayed {
        swarm::connect(swarm, relay).await?;
    }
    let began = Instant::now();
    let mut peer = swarm::connect(swarm, address.clone()).await?;
    let mut connecting = began.elapsed();
    for _ in 1..CIRCUITS {
        hang_up(swarm, peer).await;
        let began = Instant::now();
        peer = swarm::connect(swarm, address.clone()).await?;
        connecting += began.elapsed();
    }
    Ok((peer, connecting))
}

async fn fetch(
    mut control: libp2p_stream::Control,
    peer: PeerId,
    bytes: u64,
) -> Result<u64, std::io::Error> {
    let mut stream = control
        .open_stream(peer, PROTOCOL)
        .await
        .map_err(std::io::Error::other)?;
    stream.write_all(&bytes.to_be_bytes()).await?;
    stream.flush().await?;
    let mut chunk = vec![0; 64 << 10];
    let mut received = 0;
    loop {
        match stream.read(&mut chunk).await? {
            0 if received == bytes => return Ok(received),
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            size => received += size as u64,
        }
    }
}

/// `clients` swarms that hold a reservation each, and then `circuits` of them that are connected to another one; tells both
/// moments and holds everything until our stdin closes.
pub(super) async fn hold<C>(
    make: fn() -> Result<Swarm<C>, Error>,
    clients: usize,
    circuits: usize,
    relay: Multiaddr,
) -> Result<(), Error>
where
    C: Client + Send,
    C::ToSwarm: Send,
{
    let mut swarms = Vec::new();
    while swarms.len() < clients {
        // A few at a time, so that none waits until it gives up.
        let few = 32.min(clients - swarms.len());
        let mut new = (0..few).map(|_| make()).collect::<Result<Vec<_>, _>>()?;
        try_join_all(
            new.iter_mut()
                .map(|swarm| hold_reservation(swarm, relay.clone())),
        )
        .await?;
        swarms.append(&mut new);
    }
    let peers: Vec<PeerId> = swarms.iter().map(|swarm| *swarm.local_peer_id()).collect();
    let mut running = JoinSet::new();
    let mut sources = swarms.split_off(clients - circuits);
    for mut swarm in swarms {
        running.spawn(async move { swarm::beside(&mut swarm, future::pending::<()>()).await });
    }
    println!("reserved {clients}");
    endpoint::next_line().await?;
    for (swarm, peer) in sources.iter_mut().zip(peers) {
        let address = relay
            .clone()
            .with(Protocol::P2pCircuit)
            .with(Protocol::P2p(peer));
        swarm::connect(swarm, address).await?;
    }
    println!("circuits {circuits}");
    for mut swarm in sources {
        running.spawn(async move { swarm::beside(&mut swarm, future::pending::<()>()).await });
    }
    endpoint::stdin_closed().await;
    Ok(())
}

/// `clients` swarms that connect and reserve at the same time.
pub(super) async fn reserve<C: Client>(
    make: fn() -> Result<Swarm<C>, Error>,
    clients: u64,
    relay: Multiaddr,
) -> Result<(), Error> {
    let mut swarms = (0..clients)
        .map(|_| make())
        .collect::<Result<Vec<_>, _>>()?;
    let began = Instant::now();
    try_join_all(
        swarms
            .iter_mut()
            .map(|swarm| hold_reservation(swarm, relay.clone())),
    )
    .await?;
    println!("reserved {clients} {}", began.elapsed().as_nanos());
    Ok(())
}

async fn hold_reservation<C: Client>(swarm: &mut Swarm<C>, relay: Multiaddr) -> Result<(), Error> {
    C::reserve(swarm, relay)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(event) if C::is_reserved(&event) => return Ok(()),
            SwarmEvent::ListenerClosed { reason, .. } => {
                reason?;
                return Err("the relay closed the connection".into());
            }
            _ => {}
        }
    }
}

async fn hang_up<C: Client>(swarm: &mut Swarm<C>, peer: PeerId) {
    // An error says that it is gone already.
    let _ = swarm.disconnect_peer_id(peer);
    while swarm.is_connected(&peer) {
        swarm.select_next_some().await;
    }
}
