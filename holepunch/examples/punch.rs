//! Two nodes behind NATs and a relay between them (any Circuit Relay v2 server, for example
//! `cargo run -p anypath-relay --example relay`).
//!
//! ```text
//! cargo run -p anypath-holepunch --example punch -- <relay>/p2p/<id>/p2p-circuit
//! cargo run -p anypath-holepunch --example punch -- <the relayed address that it printed>
//! ```

use std::time::Duration;

use anypath_holepunch::{
    self as holepunch,
    transport::{Ports, Tcp},
};
use futures::StreamExt;
use libp2p_core::{Multiaddr, Transport, multiaddr::Protocol, upgrade::Version};
use libp2p_identify as identify;
use libp2p_identity::Keypair;
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Node {
    relay: libp2p_relay::client::Behaviour,
    holepunch: holepunch::Behaviour,
    identify: identify::Behaviour,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (relayed, relay) = libp2p_relay::client::new(id);
    let ports = Ports::default();
    let transport = relayed
        // Later attempts leave from ports of their own.
        .or_transport(Tcp::new(&ports))
        .or_transport(libp2p_tcp::tokio::Transport::default())
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&keypair)?)
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let config = holepunch::Config::builder().allow_loopback(true).build()?;
    let identify = identify::Config::new("/punch/1".to_owned(), keypair.public());
    let behaviour = Node {
        relay,
        holepunch: holepunch::Behaviour::new(id, config).with_fresh_ports(ports),
        identify: identify::Behaviour::new(identify),
    };
    let swarm_config =
        Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
    let mut swarm = Swarm::new(transport, behaviour, id, swarm_config);
    swarm.listen_on("/ip4/0.0.0.0/tcp/0".parse()?)?;

    let address: Multiaddr = std::env::args()
        .nth(1)
        .ok_or("give a relay's circuit address or a relayed address")?
        .parse()?;
    let listens = matches!(address.iter().last(), Some(Protocol::P2pCircuit));
    let relay: Multiaddr = address
        .iter()
        .take_while(|protocol| !matches!(protocol, Protocol::P2pCircuit))
        .collect();
    // The relay tells us our own address; without it there is nothing to punch with.
    swarm.dial(relay)?;
    let mut waiting = Some(address);
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(NodeEvent::Identify(identify::Event::Received {
                connection_id,
                peer_id,
                info,
                ..
            })) => {
                let holepunch = &mut swarm.behaviour_mut().holepunch;
                holepunch.on_observed(connection_id, peer_id, None, info.observed_addr);
            }
            SwarmEvent::NewExternalAddrCandidate { address } => {
                println!("candidate {address}");
                match waiting.take() {
                    Some(address) if listens => {
                        swarm.listen_on(address)?;
                    }
                    Some(address) => swarm.dial(address)?,
                    None => {}
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => println!("listening on {address}"),
            SwarmEvent::Behaviour(NodeEvent::Holepunch(event)) => println!("{event:?}"),
            _ => {}
        }
    }
}
