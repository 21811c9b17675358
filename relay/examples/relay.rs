//! A relay. Prints its address, which `--example node` takes, and what happens.
//!
//! ```text
//! cargo run -p anypath-relay --example relay
//! ```

use anypath_relay::server;
use futures::StreamExt;
use libp2p_core::{Transport, upgrade::Version};
use libp2p_identify as identify;
use libp2p_identity::Keypair;
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Relay {
    server: server::Behaviour,
    /// Tells others that this node relays.
    identify: identify::Behaviour,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let key = Keypair::generate_ed25519();
    let id = key.public().to_peer_id();
    let transport = libp2p_tcp::tokio::Transport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&key)?)
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let mut server = server::Behaviour::new(&key, server::Config::default());
    server.set_status(server::Status::Enabled);
    let identify = identify::Config::new("/relay/1".to_owned(), key.public());
    let identify = identify::Behaviour::new(identify);
    let relay = Relay { server, identify };
    let mut swarm = Swarm::new(transport, relay, id, Config::with_tokio_executor());
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => println!("{address}/p2p/{id}"),
            SwarmEvent::Behaviour(RelayEvent::Server(event)) => println!("{event:?}"),
            _ => {}
        }
    }
}
