//! A chat among those who type the same room, over one gossipsub: who is there comes from discovery.
//!
//! ```text
//! cargo run -p anypath-discovery-pubsub --example chat -- my-room /ip4/0.0.0.0/tcp/0
//! cargo run -p anypath-discovery-pubsub --example chat -- my-room /ip4/0.0.0.0/tcp/0 <an address the first printed>
//! ```

use std::error::Error;

use anypath_discovery_pubsub::{AutoConnect, Behaviour, Config, Event, rendezvous_topic};
use futures::StreamExt as _;
use libp2p_core::{Multiaddr, Transport as _, upgrade::Version};
use libp2p_gossipsub::{self as gossipsub, IdentTopic};
use libp2p_identity::Keypair;
use libp2p_swarm::{Swarm, SwarmEvent};
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let room = args
        .next()
        .ok_or("say in which room: chat <room> [<listen> [<peer>]]")?;
    let key = Keypair::generate_ed25519();
    let config = Config::builder()
        .topics([rendezvous_topic(&room)])
        // Rooms on one machine or one network are what an example is for.
        .allow_loopback(true)
        .auto_connect(Some(AutoConnect::default()))
        .build()?;
    let mut behaviour = Behaviour::new(key.clone(), config)?;
    let chat = IdentTopic::new(room);
    behaviour.gossipsub_mut().subscribe(&chat)?;
    let transport = libp2p_tcp::tokio::Transport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&key)?)
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let config = libp2p_swarm::Config::with_tokio_executor();
    let mut swarm = Swarm::new(transport, behaviour, key.public().to_peer_id(), config);
    swarm.listen_on(
        args.next()
            .as_deref()
            .unwrap_or("/ip4/0.0.0.0/tcp/0")
            .parse()?,
    )?;
    if let Some(peer) = args.next() {
        swarm.dial(peer.parse::<Multiaddr>()?)?;
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line? else { break };
                if let Err(error) = swarm.behaviour_mut().gossipsub_mut().publish(chat.clone(), line) {
                    println!("nobody heard that: {error}");
                }
            }
            event = swarm.select_next_some() => match event {
                SwarmEvent::NewListenAddr { address, .. } => println!("listening on {address}"),
                SwarmEvent::Behaviour(Event::Discovered { peer, .. }) => println!("{peer} is here"),
                SwarmEvent::Behaviour(Event::Expired { peer }) => println!("{peer} has left"),
                SwarmEvent::Behaviour(Event::Gossipsub(gossipsub::Event::Message { message, .. })) => {
                    let author = message.source.map(|peer| peer.to_string()).unwrap_or_default();
                    println!("{author}: {}", String::from_utf8_lossy(&message.data));
                }
                _ => {}
            }
        }
    }
    // Goodbye, and a moment for it to leave.
    swarm.behaviour_mut().shutdown();
    let moment = tokio::time::sleep(std::time::Duration::from_millis(200));
    tokio::select! {
        () = moment => {}
        () = async { loop { swarm.select_next_some().await; } } => {}
    }
    Ok(())
}
