//! A chat over the local network: start it on a few machines (or a few times on one) and type.
//!
//! ```text
//! cargo run -p anypath-discovery-mdns --example lan_chat
//! ```

use std::{error::Error, io::BufRead as _, thread};

use anypath_discovery_mdns as mdns;
use futures::StreamExt as _;
use libp2p::{
    SwarmBuilder, gossipsub, noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};

#[derive(NetworkBehaviour)]
struct Chat {
    mdns: mdns::Behaviour,
    gossipsub: gossipsub::Behaviour,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )?
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

    let (typed, mut lines) = futures::channel::mpsc::channel(16);
    thread::spawn(move || {
        let mut typed = typed;
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            futures::executor::block_on(futures::SinkExt::send(&mut typed, line)).ok();
        }
    });
    loop {
        tokio::select! {
            Some(line) = lines.next() => {
                if let Err(error) = swarm.behaviour_mut().gossipsub.publish(topic.clone(), line) {
                    println!("nobody heard it: {error}");
                }
            }
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(ChatEvent::Mdns(mdns::Event::Discovered { peer, .. })) => {
                    println!("* {peer} is here");
                    swarm.dial(peer).ok();
                }
                SwarmEvent::Behaviour(ChatEvent::Mdns(mdns::Event::Expired { peer, .. })) => {
                    println!("* {peer} is gone");
                }
                SwarmEvent::Behaviour(ChatEvent::Gossipsub(gossipsub::Event::Message { message, .. })) => {
                    println!("> {}", String::from_utf8_lossy(&message.data));
                }
                _ => {}
            },
        }
    }
}
