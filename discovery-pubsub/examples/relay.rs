//! Two peers that nobody can dial, and one relay: they listen through the relay, find each other on the topic that
//! the relay passes on, and connect through it. No DHT, no list of peers.
//!
//! ```text
//! cargo run -p anypath-discovery-pubsub --example relay
//! ```

use std::error::Error;

use anypath_discovery_pubsub::{Config, Event};
use futures::StreamExt as _;
use libp2p_core::{
    Multiaddr, Transport as _, multiaddr::Protocol, transport::MemoryTransport, upgrade::Version,
};
use libp2p_identity::Keypair;
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent, behaviour::toggle::Toggle};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Behaviour {
    server: Toggle<libp2p_relay::Behaviour>,
    client: libp2p_relay::client::Behaviour,
    pubsub: anypath_discovery_pubsub::Behaviour,
}

fn node(is_relay: bool) -> Result<Swarm<Behaviour>, Box<dyn Error>> {
    let key = Keypair::generate_ed25519();
    let id = key.public().to_peer_id();
    let (relayed, client) = libp2p_relay::client::new(id);
    let transport = relayed
        .or_transport(MemoryTransport::default())
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&key)?)
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let server =
        is_relay.then(|| libp2p_relay::Behaviour::new(id, libp2p_relay::Config::default()));
    // The peers' addresses lead through a relay that both are connected to, so they are believed although the memory
    // transport's are this machine's.
    let pubsub = anypath_discovery_pubsub::Behaviour::new(key, Config::default())?;
    let behaviour = Behaviour {
        server: server.into(),
        client,
        pubsub,
    };
    let config = libp2p_swarm::Config::with_tokio_executor();
    Ok(Swarm::new(transport, behaviour, id, config))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut relay, mut alice, mut bob) = (node(true)?, node(false)?, node(false)?);
    let address: Multiaddr = "/memory/4001".parse()?;
    relay.listen_on(address.clone())?;
    relay.add_external_address(address.clone());
    let circuit = address
        .with(Protocol::P2p(*relay.local_peer_id()))
        .with(Protocol::P2pCircuit);
    for peer in [&mut alice, &mut bob] {
        peer.listen_on(circuit.clone())?;
    }
    let (alice_id, bob_id) = (*alice.local_peer_id(), *bob.local_peer_id());
    println!("alice is {alice_id}\nbob is {bob_id}");
    loop {
        tokio::select! {
            _ = relay.select_next_some() => {}
            event = bob.select_next_some() => {
                if let SwarmEvent::NewListenAddr { address, .. } = event {
                    println!("bob listens on {address}");
                }
            }
            event = alice.select_next_some() => match event {
                SwarmEvent::Behaviour(BehaviourEvent::Pubsub(Event::Discovered { peer, addresses, .. })) => {
                    println!("alice discovered {peer} at {addresses:?}");
                    if peer == bob_id {
                        alice.dial(peer)?;
                    }
                }
                SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == bob_id => {
                    println!("alice is connected to bob at {}", endpoint.get_remote_address());
                    return Ok(());
                }
                _ => {}
            }
        }
    }
}
