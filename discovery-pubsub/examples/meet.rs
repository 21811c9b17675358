//! Three nodes: two meet through the third without being told of each other, and one says goodbye.
//!
//! ```text
//! cargo run -p anypath-discovery-pubsub --example meet
//! ```

use anypath_discovery_pubsub::{Behaviour, Config, Event};
use libp2p_swarm::{Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt as _;

async fn node() -> Swarm<Behaviour> {
    // In-memory transports; applications use libp2p's SwarmBuilder. Their addresses are this machine's, and believed
    // only if asked for.
    let mut swarm = Swarm::new_ephemeral_tokio(|key| {
        let config = Config::builder().allow_loopback(true).build();
        #[expect(clippy::expect_used, reason = "an example")]
        Behaviour::new(key, config.expect("nothing is out of range")).expect("gossipsub starts")
    });
    swarm.listen().with_memory_addr_external().await;
    swarm
}

#[tokio::main]
async fn main() {
    let (mut hub, mut alice, mut bob) = (node().await, node().await, node().await);
    alice.connect(&mut hub).await;
    bob.connect(&mut hub).await;
    let (alice_id, bob_id) = (*alice.local_peer_id(), *bob.local_peer_id());
    println!("alice is {alice_id}\nbob is {bob_id}");
    loop {
        tokio::select! {
            _ = hub.next_swarm_event() => {}
            _ = bob.next_swarm_event() => {}
            event = alice.next_swarm_event() => match event {
                SwarmEvent::Behaviour(Event::Discovered { peer, addresses, topic }) => {
                    println!("alice discovered {peer} at {addresses:?} on {topic}");
                    if peer == bob_id && let Err(error) = alice.dial(peer) {
                        println!("alice cannot dial bob: {error}");
                    }
                }
                SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == bob_id => {
                    println!("alice is connected to bob, who says goodbye");
                    bob.behaviour_mut().shutdown();
                }
                SwarmEvent::Behaviour(Event::Expired { peer }) if peer == bob_id => {
                    println!("alice knows that bob is gone");
                    return;
                }
                _ => {}
            }
        }
    }
}
