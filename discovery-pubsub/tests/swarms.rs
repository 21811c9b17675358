//! Real swarms over the memory transport.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::{future::Future, time::Duration};

use anypath_discovery_pubsub::{
    Behaviour, Config, ConfigBuilder, DEFAULT_TOPIC, Event, ProtocolViolation,
};
use futures::future::select_all;
use libp2p_gossipsub::{self as gossipsub, IdentTopic, MessageAuthenticity, ValidationMode};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt as _;
use prost::Message as _;

fn config() -> ConfigBuilder {
    Config::builder()
        .announce_interval(Duration::from_secs(1))
        .peer_ttl(Duration::from_secs(3))
}

async fn node(config: ConfigBuilder) -> Swarm<Behaviour> {
    let config = config.build().unwrap();
    listening(|key| Behaviour::new(key, config).unwrap()).await
}

async fn listening<B>(behaviour: impl FnOnce(Keypair) -> B) -> Swarm<B>
where
    B: NetworkBehaviour + Send,
    B::ToSwarm: std::fmt::Debug,
{
    let mut swarm = Swarm::new_ephemeral_tokio(behaviour);
    swarm.listen().with_memory_addr_external().await;
    swarm
}

/// Runs all swarms until `found` says so of an event of one of them, given with the swarm's index.
async fn run_until<T, B>(
    swarms: &mut [Swarm<B>],
    mut found: impl FnMut(usize, SwarmEvent<B::ToSwarm>) -> Option<T>,
) -> T
where
    B: NetworkBehaviour + Send,
    B::ToSwarm: std::fmt::Debug,
{
    loop {
        let events = swarms.iter_mut().map(|swarm| swarm.next_swarm_event());
        let (event, index, _) = select_all(events).await;
        if let Some(value) = found(index, event) {
            return value;
        }
    }
}

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), test)
        .await
        .expect("takes too long")
}

#[derive(Clone, PartialEq, prost::Message)]
struct RawPeer {
    #[prost(bytes = "vec", tag = "1")]
    public_key: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addrs: Vec<Vec<u8>>,
}

fn forged_announcement(victim: &Keypair) -> Vec<u8> {
    let address: libp2p_core::Multiaddr = "/ip4/6.6.6.6/tcp/666".parse().unwrap();
    RawPeer {
        public_key: victim.public().encode_protobuf(),
        addrs: vec![address.to_vec()],
    }
    .encode_to_vec()
}

#[tokio::test]
async fn two_peers_of_a_third_find_each_other_and_can_dial_by_peer_id() {
    in_time(async {
        let mut swarms = [
            node(config()).await,
            node(config()).await,
            node(config()).await,
        ];
        let [hub, a, b] = &mut swarms;
        let (a_id, b_id) = (*a.local_peer_id(), *b.local_peer_id());
        a.connect(hub).await;
        b.connect(hub).await;

        let (mut a_knows, mut b_knows) = (None, None);
        run_until(&mut swarms, |index, event| {
            if let SwarmEvent::Behaviour(Event::Discovered {
                peer,
                addresses,
                topic,
            }) = event
            {
                assert_eq!(topic, DEFAULT_TOPIC);
                match index {
                    1 if peer == b_id => a_knows = Some(addresses),
                    2 if peer == a_id => b_knows = Some(addresses),
                    _ => {}
                }
            }
            (a_knows.is_some() && b_knows.is_some()).then_some(())
        })
        .await;
        let [_, a, b] = &mut swarms;
        let listened: Vec<_> = b.external_addresses().cloned().collect();
        let listened = listened[0].clone().with_p2p(b_id).unwrap();
        assert!(a_knows.unwrap().contains(&listened));

        a.dial(b_id).unwrap();
        run_until(&mut swarms, |index, event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if index == 1 && peer_id == b_id => {
                Some(())
            }
            _ => None,
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_went_away_expires() {
    in_time(async {
        let (mut a, mut b) = (node(config()).await, node(config()).await);
        let b_id = *b.local_peer_id();
        a.connect(&mut b).await;
        let mut swarms = [a, b];
        run_until(&mut swarms, |index, event| match event {
            SwarmEvent::Behaviour(Event::Discovered { peer, .. }) if index == 0 => {
                (peer == b_id).then_some(())
            }
            _ => None,
        })
        .await;
        let [a, b] = swarms;
        drop(b);
        let mut swarms = [a];
        run_until(&mut swarms, |_, event| match event {
            SwarmEvent::Behaviour(Event::Expired { peer }) => (peer == b_id).then_some(()),
            _ => None,
        })
        .await;
        assert_eq!(swarms[0].behaviour().peers().count(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_listen_only_node_learns_and_stays_unknown() {
    in_time(async {
        let (mut quiet, mut b) = (node(config().listen_only(true)).await, node(config()).await);
        let b_id = *b.local_peer_id();
        quiet.connect(&mut b).await;
        let mut swarms = [quiet, b];
        run_until(&mut swarms, |index, event| match event {
            SwarmEvent::Behaviour(Event::Discovered { peer, .. }) => {
                assert_eq!((index, peer), (0, b_id));
                Some(())
            }
            _ => None,
        })
        .await;
        // `b` has spoken and been heard, so the connection works both ways; it has heard nothing.
        assert_eq!(swarms[1].behaviour().peers().count(), 0);
    })
    .await;
}

/// A gossipsub node that publishes what it likes.
async fn attacker(
    authenticity: impl FnOnce(Keypair) -> MessageAuthenticity,
) -> Swarm<gossipsub::Behaviour> {
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::None)
        .build()
        .unwrap();
    listening(|key| gossipsub::Behaviour::new(authenticity(key), config).unwrap()).await
}

/// Lets the attacker publish as soon as it knows a subscriber, and runs both until `found`.
async fn attack<T>(
    attacker: &mut Swarm<gossipsub::Behaviour>,
    target: &mut Swarm<Behaviour>,
    data: &[u8],
    mut found: impl FnMut(SwarmEvent<Event>) -> Option<T>,
) -> T {
    attacker.connect(target).await;
    loop {
        tokio::select! {
            event = attacker.next_swarm_event() => {
                if let SwarmEvent::Behaviour(gossipsub::Event::Subscribed { .. }) = event {
                    let topic = IdentTopic::new(DEFAULT_TOPIC);
                    attacker.behaviour_mut().publish(topic, data).unwrap();
                }
            }
            event = target.next_swarm_event() => {
                if let Some(value) = found(event) {
                    return value;
                }
            }
        }
    }
}

fn permissive(key: Keypair) -> Behaviour {
    let builder = &mut gossipsub::ConfigBuilder::default();
    let permissive = builder
        .validation_mode(ValidationMode::Permissive)
        .build()
        .unwrap();
    let public_key = key.public();
    let gossipsub = gossipsub::Behaviour::new(MessageAuthenticity::Signed(key), permissive);
    let config = config().build().unwrap();
    Behaviour::with_gossipsub(gossipsub.unwrap(), public_key, config).unwrap()
}

#[tokio::test]
async fn an_unsigned_announcement_in_anothers_name_is_rejected() {
    in_time(async {
        let victim = Keypair::generate_ed25519();
        let victim_id = victim.public().to_peer_id();
        let data = forged_announcement(&victim);

        // It would work against a gossipsub that believes unsigned authors: the attack is a real one.
        let mut evil = attacker(|_| MessageAuthenticity::Author(victim_id)).await;
        let mut gullible = listening(permissive).await;
        attack(&mut evil, &mut gullible, &data, |event| match event {
            SwarmEvent::Behaviour(Event::Discovered { peer, .. }) => {
                (peer == victim_id).then_some(())
            }
            _ => None,
        })
        .await;

        // The same against ours: the message arrives before the end of the connection that carries it.
        let mut evil = attacker(|_| MessageAuthenticity::Author(victim_id)).await;
        let mut careful = node(config()).await;
        let careful_id = *careful.local_peer_id();
        evil.connect(&mut careful).await;
        // The gullible node had it within milliseconds.
        let mut enough = tokio::time::interval(Duration::from_millis(500));
        let mut published = false;
        loop {
            tokio::select! {
                event = evil.next_swarm_event() => {
                    if let SwarmEvent::Behaviour(gossipsub::Event::Subscribed { .. }) = event {
                        let topic = IdentTopic::new(DEFAULT_TOPIC);
                        evil.behaviour_mut().publish(topic, data.clone()).unwrap();
                        published = true;
                        enough.reset();
                    }
                }
                event = careful.next_swarm_event() => match event {
                    SwarmEvent::Behaviour(Event::Discovered { .. }) => panic!("believed"),
                    SwarmEvent::ConnectionClosed { .. } => break,
                    _ => {}
                },
                _ = enough.tick(), if published => {
                    let _ = evil.disconnect_peer_id(careful_id);
                }
            }
        }
        assert_eq!(careful.behaviour().peers().count(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_announcement_signed_by_another_key_is_a_violation_of_its_author() {
    in_time(async {
        let victim = Keypair::generate_ed25519();
        let mut evil = attacker(MessageAuthenticity::Signed).await;
        let evil_id = *evil.local_peer_id();
        let mut careful = node(config()).await;
        let data = forged_announcement(&victim);
        let (peer, violation) = attack(&mut evil, &mut careful, &data, |event| match event {
            SwarmEvent::Behaviour(Event::ProtocolViolation { peer, violation }) => {
                Some((peer, violation))
            }
            SwarmEvent::Behaviour(Event::Discovered { .. }) => panic!("believed"),
            _ => None,
        })
        .await;
        assert_eq!((peer, violation), (evil_id, ProtocolViolation::ForeignKey));
    })
    .await;
}

#[tokio::test]
async fn garbage_is_a_violation_and_discovery_goes_on() {
    in_time(async {
        let mut evil = attacker(MessageAuthenticity::Signed).await;
        let mut a = node(config()).await;
        let violation = attack(&mut evil, &mut a, b"\x0a\xff", |event| match event {
            SwarmEvent::Behaviour(Event::ProtocolViolation { violation, .. }) => Some(violation),
            _ => None,
        })
        .await;
        assert_eq!(violation, ProtocolViolation::Malformed);

        let mut b = node(config()).await;
        let b_id: PeerId = *b.local_peer_id();
        a.connect(&mut b).await;
        run_until(&mut [a, b], |index, event| match event {
            SwarmEvent::Behaviour(Event::Discovered { peer, .. }) if index == 0 => {
                (peer == b_id).then_some(())
            }
            _ => None,
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn messages_on_other_topics_reach_the_owner_and_are_passed_on() {
    in_time(async {
        let mut swarms = [
            node(config()).await,
            node(config()).await,
            node(config()).await,
        ];
        let chat = IdentTopic::new("universal-connectivity");
        for swarm in &mut swarms {
            swarm
                .behaviour_mut()
                .gossipsub_mut()
                .subscribe(&chat)
                .unwrap();
        }
        let [hub, a, b] = &mut swarms;
        a.connect(hub).await;
        b.connect(hub).await;
        let a_id = *a.local_peer_id();
        // Again and again, because gossipsub does not tell when its mesh stands.
        let mut again = tokio::time::interval(Duration::from_millis(100));
        let mut count = 0u8;
        loop {
            let heard = run_until(&mut swarms, |index, event| match event {
                SwarmEvent::Behaviour(Event::Gossipsub(gossipsub::Event::Message {
                    message,
                    ..
                })) => {
                    assert_eq!((message.source, message.topic), (Some(a_id), chat.hash()));
                    (index == 2).then_some(())
                }
                _ => None,
            });
            tokio::select! {
                () = heard => break,
                _ = again.tick() => {
                    count += 1;
                    // Refused as long as nobody is subscribed.
                    let _ = swarms[1].behaviour_mut().gossipsub_mut().publish(chat.hash(), [count]);
                }
            }
        }
    })
    .await;
}
