//! Three servers in memory: the first provides a block, the last finds it.
//!
//! ```text
//! cargo run -p anypath-dht --example provide_and_find
//! ```

use std::error::Error;

use anypath_dht::{Behaviour, Config, Event, Mode};
use cid::Cid;
use libp2p_swarm::{Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt as _;
use multihash_codetable::{Code, MultihashDigest as _};

async fn server() -> Result<Swarm<Behaviour>, Box<dyn Error>> {
    let config = Config::builder().mode(Mode::Server).build()?;
    let mut swarm =
        Swarm::new_ephemeral_tokio(|key| Behaviour::new(key.public().to_peer_id(), config));
    swarm.listen().with_memory_addr_external().await;
    Ok(swarm)
}

fn introduce(swarm: &mut Swarm<Behaviour>, to: &Swarm<Behaviour>) {
    for address in to.external_addresses().cloned() {
        swarm
            .behaviour_mut()
            .add_address(*to.local_peer_id(), address);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut a, mut b, mut c) = (server().await?, server().await?, server().await?);
    introduce(&mut a, &b);
    introduce(&mut b, &c);
    introduce(&mut c, &b);

    let cid = Cid::new_v1(0x55, Code::Sha2_256.digest(b"hello"));
    println!("{} provides {cid}", a.local_peer_id());
    a.behaviour_mut().provide(cid);
    loop {
        tokio::select! {
            _ = b.next_swarm_event() => {}
            event = a.next_swarm_event() => {
                if let SwarmEvent::Behaviour(Event::ProvideFinished { result, .. }) = event {
                    result?;
                    c.behaviour_mut().find_providers(cid);
                }
            }
            event = c.next_swarm_event() => match event {
                SwarmEvent::Behaviour(Event::ProvidersFound { providers, .. }) => {
                    println!("found {providers:?}");
                }
                SwarmEvent::Behaviour(Event::FindProvidersFinished { found, result, .. }) => {
                    println!("{found} provider(s) in all");
                    return Ok(result?);
                }
                _ => {}
            }
        }
    }
}
