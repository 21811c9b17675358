//! For those who own their gossipsub: the core alone, driven by thirty lines. Two of them talk through a
//! function call here; in an application the bytes go to `gossipsub.publish` and come from
//! `gossipsub::Event::Message`.
//!
//! ```text
//! cargo run -p anypath-discovery-pubsub --no-default-features --example core
//! ```

use std::time::Duration;

use anypath_discovery_pubsub::{
    Config, DEFAULT_TOPIC,
    core::{Core, Origin, Output, Received},
};
use libp2p_identity::Keypair;
use web_time::Instant;

#[expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "an example, and the adapter's clock"
)]
fn main() {
    let mut now = Instant::now();
    let since_1970 = web_time::SystemTime::now()
        .duration_since(web_time::UNIX_EPOCH)
        .unwrap_or_default();
    let [alice, bob] = [0, 1].map(|_| Keypair::generate_ed25519());
    let [alice_id, bob_id] = [&alice, &bob].map(|key| key.public().to_peer_id());
    let core = |key: &Keypair| Core::new(key.public(), Config::default(), [0; 32], now, since_1970);
    let (mut alice, mut bob) = (core(&alice), core(&bob));

    // Facts: what gossipsub and the swarm say.
    let address = "/ip4/1.2.3.4/tcp/4001".parse().expect("a multiaddr");
    alice.on_address(Origin::External, address, now);
    alice.on_subscribed(DEFAULT_TOPIC, bob_id, now);
    for _ in 0..3 {
        // A timer, armed for `poll_timeout`, and `handle_timeout` when it fires.
        now = alice
            .poll_timeout()
            .unwrap_or(now + Duration::from_secs(10));
        alice.handle_timeout(now);
        while let Some(output) = alice.poll_output() {
            let Output::Publish { topic, data } = output else {
                continue;
            };
            println!("alice publishes {} bytes on {topic}", data.len());
            // A message: gossipsub checked that `author` signed it.
            let received = Received {
                topic: &topic,
                source: alice_id,
                author: Some(alice_id),
                sequence: None,
                data: &data,
            };
            let verdict = bob.on_message(&received, now);
            println!("bob: {verdict:?}");
            while let Some(output) = bob.poll_output() {
                println!("bob: {output:?}");
            }
        }
    }
    println!("bob knows {:?}", bob.peers().collect::<Vec<_>>());
}
