//! A node behind a NAT. It is told of one peer, finds out that it relays, and is reachable through it.
//!
//! ```text
//! cargo run -p anypath-relay --example node -- <the address that `--example relay` printed>
//! ```

use anypath_relay::client;
use futures::StreamExt;
use libp2p_core::{Multiaddr, Transport, upgrade::Version};
use libp2p_identify as identify;
use libp2p_identity::Keypair;
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Node {
    client: client::Behaviour,
    /// Hears from others whether they relay, and tells them where this node is.
    identify: identify::Behaviour,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let key = Keypair::generate_ed25519();
    let id = key.public().to_peer_id();
    let (circuits, client) = client::new(id, client::Config::default());
    let transport = circuits
        .or_transport(libp2p_tcp::tokio::Transport::default())
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&key)?)
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let identify = identify::Config::new("/relay/1".to_owned(), key.public());
    let identify = identify::Behaviour::new(identify);
    let node = Node { client, identify };
    let mut swarm = Swarm::new(transport, node, id, Config::with_tokio_executor());
    for peer in std::env::args().skip(1) {
        swarm.dial(peer.parse::<Multiaddr>()?)?;
    }
    loop {
        if let SwarmEvent::Behaviour(NodeEvent::Client(event)) = swarm.select_next_some().await {
            println!("{event:?}");
        }
    }
}
