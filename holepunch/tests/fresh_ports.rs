//! Fresh ports with real sockets: where the first attempt leads nowhere, the second one finds them.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test helper may panic, and runs on tokio"
)]

mod common;

use std::{net::UdpSocket, time::Duration};

use anypath_holepunch::{
    self as holepunch, Config, Outcome, Transport,
    transport::{Ports, Quic},
};
use common::secured;
use futures::StreamExt as _;
use libp2p_core::{
    ConnectedPoint, Multiaddr, Transport as _,
    multiaddr::Protocol,
    muxing::StreamMuxerBox,
    transport::{Boxed, DialOpts, PortUse, TransportError},
    upgrade::Version,
};
use libp2p_identify as identify;
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Node {
    relay: libp2p_relay::client::Behaviour,
    identify: identify::Behaviour,
    holepunch: holepunch::Behaviour,
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Relay {
    relay: libp2p_relay::Behaviour,
    identify: identify::Behaviour,
}

fn identify(keypair: &Keypair) -> identify::Behaviour {
    identify::Behaviour::new(identify::Config::new("/test".to_owned(), keypair.public()))
}

fn quic(keypair: &Keypair) -> libp2p_quic::tokio::Transport {
    libp2p_quic::tokio::Transport::new(libp2p_quic::Config::new(keypair))
}

fn loopback() -> Multiaddr {
    "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()
}

/// A stock relay's address with its id.
async fn relay() -> Multiaddr {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let behaviour = Relay {
        relay: libp2p_relay::Behaviour::new(id, libp2p_relay::Config::default()),
        identify: identify(&keypair),
    };
    let transport = quic(&keypair)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let config = libp2p_swarm::Config::with_tokio_executor();
    let mut swarm = Swarm::new(transport, behaviour, id, config);
    swarm.listen_on(loopback()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    swarm.add_external_address(address.clone());
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    address.with(Protocol::P2p(id))
}

fn transport(
    keypair: &Keypair,
    circuits: libp2p_relay::client::Transport,
    ports: &Ports,
) -> Boxed<(PeerId, StreamMuxerBox)> {
    let of_port = keypair.clone();
    let direct = Quic::new(ports, move || quic(&of_port))
        .or_transport(quic(keypair))
        .map(|either, _| either.into_inner())
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    secured(circuits, keypair)
        .or_transport(direct)
        .map(|either, _| either.into_inner())
        .boxed()
}

/// What the tests look at.
#[derive(Debug)]
enum Seen {
    Reserved,
    Direct(PeerId, ConnectedPoint),
    Gone(PeerId),
    Outcome(Outcome),
}

/// A node that believes itself at `believed`, and what it sees. It reserves at the relay, or dials `peer` through it.
async fn node(
    relay: Multiaddr,
    believed: Multiaddr,
    peer: Option<PeerId>,
) -> (PeerId, mpsc::Receiver<Seen>, mpsc::Sender<PeerId>) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (circuits, client) = libp2p_relay::client::new(id);
    let ports = Ports::default();
    let config = Config::builder()
        .allow_loopback(true)
        .close_duplicates(false)
        .attempt_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let mut punch = holepunch::Behaviour::new(id, config).with_fresh_ports(ports.clone());
    punch.on_observation(PeerId::random(), None, believed);
    let transport = transport(&keypair, circuits, &ports);
    let behaviour = Node {
        relay: client,
        identify: identify(&keypair),
        holepunch: punch,
    };
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60))
        .with_substream_upgrade_protocol_override(Version::V1Lazy);
    let mut swarm = Swarm::new(transport, behaviour, id, config);
    // It listens nowhere: what identify suggests by itself answers to nobody.
    let (tell, seen) = mpsc::channel(1000);
    let (disconnect, mut disconnects) = mpsc::channel::<PeerId>(1);
    let circuit = relay.clone().with(Protocol::P2pCircuit);
    match peer {
        Some(peer) => swarm.dial(circuit.with(Protocol::P2p(peer))).unwrap(),
        None => {
            swarm.listen_on(circuit).unwrap();
        }
    }
    tokio::spawn(async move {
        let mut first = None;
        let mut disconnected = None;
        loop {
            let event = tokio::select! {
                event = swarm.select_next_some() => event,
                Some(peer) = disconnects.recv() => {
                    disconnected = Some(peer);
                    let _ = swarm.disconnect_peer_id(peer);
                    continue;
                }
            };
            let told = match event {
                SwarmEvent::Behaviour(NodeEvent::Identify(identify::Event::Received {
                    connection_id,
                    peer_id,
                    info,
                })) => {
                    // The truth about the listening port is kept from the node: its first attempt must fail.
                    if *first.get_or_insert(connection_id) != connection_id {
                        let punch = &mut swarm.behaviour_mut().holepunch;
                        punch.on_observed(connection_id, peer_id, None, info.observed_addr);
                    }
                    continue;
                }
                SwarmEvent::Behaviour(NodeEvent::Relay(
                    libp2p_relay::client::Event::ReservationReqAccepted { .. },
                )) => Seen::Reserved,
                SwarmEvent::Behaviour(NodeEvent::Holepunch(holepunch::Event::Outcome(outcome))) => {
                    Seen::Outcome(outcome)
                }
                // The other side's dial got through as well, a moment later.
                SwarmEvent::ConnectionEstablished { peer_id, .. }
                    if disconnected == Some(peer_id) =>
                {
                    let _ = swarm.disconnect_peer_id(peer_id);
                    continue;
                }
                SwarmEvent::ConnectionEstablished {
                    peer_id, endpoint, ..
                } if !endpoint.is_relayed() => Seen::Direct(peer_id, endpoint),
                SwarmEvent::ConnectionClosed {
                    peer_id,
                    num_established: 0,
                    ..
                } => Seen::Gone(peer_id),
                _ => continue,
            };
            if tell.send(told).await.is_err() {
                return;
            }
        }
    });
    (id, seen, disconnect)
}

async fn wait<T>(seen: &mut mpsc::Receiver<Seen>, mut pick: impl FnMut(Seen) -> Option<T>) -> T {
    let find = async {
        loop {
            if let Some(found) = pick(seen.recv().await.unwrap()) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, find).await.unwrap()
}

/// An address at which nobody answers while the socket lives.
fn silent() -> (UdpSocket, Multiaddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let address = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
    (socket, address.parse().unwrap())
}

fn udp_port(address: &Multiaddr) -> u16 {
    let port = address.iter().find_map(|part| match part {
        Protocol::Udp(port) => Some(port),
        _ => None,
    });
    port.unwrap()
}

#[tokio::test]
async fn a_second_attempt_meets_on_fresh_ports_which_go_with_their_connection() {
    let relay = relay().await;
    let ((_one, here), (_other, there)) = (silent(), silent());
    let (listener, mut at_listener, _) = node(relay.clone(), there, None).await;
    wait(&mut at_listener, |seen| {
        matches!(seen, Seen::Reserved).then_some(())
    })
    .await;
    let (dialer, mut at_dialer, disconnect) = node(relay, here, Some(listener)).await;
    let mut fresh = Vec::new();
    for (seen, peer) in [(&mut at_listener, dialer), (&mut at_dialer, listener)] {
        let outcome = wait(seen, |seen| match seen {
            Seen::Outcome(outcome) => Some(outcome),
            Seen::Direct(of, at) if of == peer => {
                // Nobody listens but on fresh ports.
                let listens = match at {
                    ConnectedPoint::Listener { local_addr, .. } => local_addr,
                    ConnectedPoint::Dialer { address, .. } => address,
                };
                fresh.push(udp_port(&listens));
                None
            }
            _ => None,
        })
        .await;
        assert!(outcome.result.is_ok(), "{outcome:?}");
        assert_eq!(outcome.attempts, 2, "{outcome:?}");
        assert_eq!(outcome.transport, Some(Transport::Quic));
    }
    let port = *fresh.first().unwrap();
    assert!(
        UdpSocket::bind(("127.0.0.1", port)).is_err(),
        "the connection has it"
    );
    disconnect.send(listener).await.unwrap();
    for (seen, peer) in [(&mut at_listener, dialer), (&mut at_dialer, listener)] {
        wait(seen, |seen| match seen {
            Seen::Gone(of) if of == peer => Some(()),
            _ => None,
        })
        .await;
    }
    // QUIC keeps a closed connection for three timeouts.
    let free = async {
        while UdpSocket::bind(("127.0.0.1", port)).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.unwrap();
}

#[tokio::test]
async fn what_nobody_announced_is_left_to_other_transports() {
    let keypair = Keypair::generate_ed25519();
    let ports = Ports::default();
    let mut fresh = Quic::new(&ports, move || quic(&keypair));
    for port_use in [PortUse::New, PortUse::Reuse] {
        let opts = DialOpts {
            role: libp2p_core::Endpoint::Dialer,
            port_use,
        };
        let address: Multiaddr = "/ip4/127.0.0.1/udp/9/quic-v1".parse().unwrap();
        match fresh.dial(address.clone(), opts) {
            Err(TransportError::MultiaddrNotSupported(given)) => assert_eq!(given, address),
            _ => panic!("took a dial of nobody's"),
        }
    }
}
