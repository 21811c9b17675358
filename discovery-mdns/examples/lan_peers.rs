//! Prints the libp2p peers of the local network as they come and go. Start it twice:
//!
//! ```text
//! cargo run -p anypath-discovery-mdns --example lan_peers
//! ```

use std::error::Error;

use anypath_discovery_mdns::{Behaviour, Config, Event};
use futures::StreamExt as _;
use libp2p_swarm::{Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt as _;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt::init();
    // A swarm with TCP; applications use libp2p's SwarmBuilder.
    let mut mdns = None;
    let mut swarm = Swarm::new_ephemeral_tokio(|key| {
        match Behaviour::new(key.public().to_peer_id(), Config::default()) {
            Ok(behaviour) => libp2p_swarm::behaviour::toggle::Toggle::from(Some(behaviour)),
            Err(error) => {
                mdns = Some(error);
                None.into()
            }
        }
    });
    if let Some(error) = mdns {
        return Err(error.into());
    }
    println!("I am {}", swarm.local_peer_id());
    swarm.listen_on("/ip4/0.0.0.0/tcp/0".parse()?)?;
    swarm.listen_on("/ip6/::/tcp/0".parse()?)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => println!("listening on {address}"),
            SwarmEvent::Behaviour(Event::Discovered { peer, addresses }) => {
                println!("+ {peer} {addresses:?}");
            }
            SwarmEvent::Behaviour(Event::Expired { peer, addresses }) => {
                println!("- {peer} {addresses:?}");
            }
            _ => {}
        }
    }
}
