//! A relay, and a node that holds a reservation at it.
//!
//! ```text
//! cargo run -p anypath-relay --example relay
//! cargo run -p anypath-relay --example relay -- <the address that the first one printed>
//! ```

use anypath_relay::{client, server};
use futures::StreamExt;
use libp2p_core::{Multiaddr, Transport, upgrade::Version};
use libp2p_identify as identify;
use libp2p_identity::Keypair;
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Node {
    client: client::Behaviour,
    server: server::Behaviour,
    /// Tells others that this node relays, and at which address it sees them.
    identify: identify::Behaviour,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (relayed, client) = client::new(id, client::Config::default());
    let transport = relayed
        .or_transport(libp2p_tcp::tokio::Transport::default())
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&keypair)?)
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let server = server::Behaviour::new(&keypair, server::Config::default());
    let identify = identify::Config::new("/relay/1".to_owned(), keypair.public());
    let behaviour = Node {
        client,
        server,
        identify: identify::Behaviour::new(identify),
    };
    let mut swarm = Swarm::new(transport, behaviour, id, Config::with_tokio_executor());
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;

    let node = swarm.behaviour_mut();
    match std::env::args().nth(1) {
        Some(relay) => {
            node.client.add_relay(relay.parse::<Multiaddr>()?)?;
        }
        None => node.server.set_status(server::Status::Enabled),
    }
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => {
                println!("{}", address.clone().with_p2p(id).unwrap_or(address));
            }
            SwarmEvent::Behaviour(NodeEvent::Client(event)) => println!("{event:?}"),
            SwarmEvent::Behaviour(NodeEvent::Server(event)) => println!("{event:?}"),
            _ => {}
        }
    }
}
