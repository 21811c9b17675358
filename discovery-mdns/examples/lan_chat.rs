//! A chat over the local network: start it on a few machines (or a few times on one) and type.
//!
//! `cargo run -p anypath-discovery-mdns --example lan_chat`

use anypath_discovery_mdns as mdns;
use futures::StreamExt as _;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{SwarmBuilder, gossipsub, noise, yamux};
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[derive(NetworkBehaviour)]
struct Chat {
    mdns: mdns::Behaviour,
    gossipsub: gossipsub::Behaviour,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let yamux = yamux::Config::default;
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(Default::default(), noise::Config::new, yamux)?
        .with_behaviour(|key| {
            let local = key.public().to_peer_id();
            let sign = gossipsub::MessageAuthenticity::Signed(key.clone());
            Ok(Chat {
                mdns: mdns::Behaviour::new(local, mdns::Config::default())?,
                gossipsub: gossipsub::Behaviour::new(sign, gossipsub::Config::default())?,
            })
        })?
        .build();
    let topic = gossipsub::IdentTopic::new("lan-chat");
    swarm.behaviour_mut().gossipsub.subscribe(&topic)?;
    swarm.listen_on("/ip4/0.0.0.0/tcp/0".parse()?)?;
    swarm.listen_on("/ip6/::/tcp/0".parse()?)?;

    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            Ok(Some(line)) = lines.next_line() => {
                if let Err(error) = swarm.behaviour_mut().gossipsub.publish(topic.clone(), line) {
                    println!("nobody heard it: {error}");
                }
            }
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(ChatEvent::Mdns(mdns::Event::Discovered { peer, .. })) => {
                    println!("* {peer} is here");
                    swarm.dial(peer).ok();
                }
                SwarmEvent::Behaviour(ChatEvent::Mdns(mdns::Event::Expired { peer, .. })) =>
                    println!("* {peer} is gone"),
                SwarmEvent::Behaviour(ChatEvent::Gossipsub(gossipsub::Event::Message { message, .. })) =>
                    println!("> {}", String::from_utf8_lossy(&message.data)),
                _ => {}
            },
        }
    }
}
