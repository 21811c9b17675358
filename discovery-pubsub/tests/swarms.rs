//! Real swarms over the memory transport.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![expect(
    clippy::disallowed_methods,
    reason = "real swarms on a real clock; an attacker runs beside them"
)]

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anypath_discovery_pubsub::{
    AutoConnect, Behaviour, Config, ConfigBuilder, Content, DEFAULT_TOPIC, Event, Load,
    ProtocolViolation, Role, Service,
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
        // The memory transport's addresses are this machine's.
        .allow_loopback(true)
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
    tokio::time::timeout(Duration::from_secs(120), test)
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
    let address: libp2p_core::Multiaddr = "/ip4/6.6.6.6/tcp/6666".parse().unwrap();
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
            SwarmEvent::Behaviour(Event::ProtocolViolation {
                peer, violation, ..
            }) => Some((peer, violation)),
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

#[tokio::test]
async fn content_relays_and_roles_are_told_and_taken_back() {
    in_time(async {
        let config = || config().services(Service::ALL);
        let (mut a, mut b) = (node(config()).await, node(config()).await);
        let b_id = *b.local_peer_id();
        let digest = cid::multihash::Multihash::wrap(0x12, &[7; 32]).unwrap();
        let cid = cid::Cid::new_v1(0x55, digest);
        let content = Content {
            cid,
            size: Some(7),
            name: Some("seven".to_owned()),
        };
        let role = Role {
            name: "worker".to_owned(),
            load: Load::new(0.5),
        };
        let told = b.behaviour_mut();
        told.announce_content(content.clone()).unwrap();
        told.set_relay(Some(bytes::Bytes::from_static(b"relay")))
            .unwrap();
        told.set_role(Some(role.clone())).unwrap();
        a.connect(&mut b).await;
        let mut swarms = [a, b];
        let mut heard = 0;
        run_until(&mut swarms, |index, event| {
            let SwarmEvent::Behaviour(event) = event else {
                return None;
            };
            assert!(index == 0 || matches!(event, Event::Gossipsub(_) | Event::Discovered { .. }));
            match event {
                Event::Content { peer, items } => {
                    assert_eq!((peer, &items[..]), (b_id, &[content.clone()][..]));
                    heard += 1;
                }
                Event::Relay { peer, announcement } => {
                    assert_eq!((peer, &announcement[..]), (b_id, &b"relay"[..]));
                    heard += 1;
                }
                Event::Role { peer, role: told } => {
                    assert_eq!((peer, &told), (b_id, &role));
                    heard += 1;
                }
                Event::Discovered { .. } if index == 0 => heard += 1,
                _ => {}
            }
            (heard == 4).then_some(())
        })
        .await;
        let known: Vec<_> = swarms[0].behaviour().core().providers(&cid).collect();
        assert_eq!(known, [&b_id]);

        // The end of the node is told at once, long before anything expires.
        swarms[1].behaviour_mut().shutdown();
        let mut gone = (false, false, false);
        run_until(&mut swarms, |index, event| {
            match event {
                SwarmEvent::Behaviour(Event::OfferExpired { peer, service }) => {
                    assert_eq!((index, peer, service), (0, b_id, Service::Relay));
                    gone.0 = true;
                }
                SwarmEvent::Behaviour(Event::Expired { peer }) if index == 0 => {
                    assert_eq!(peer, b_id);
                    gone.1 = true;
                }
                SwarmEvent::Behaviour(Event::ContentWithdrawn { peer, cids }) => {
                    assert_eq!((index, peer, &cids[..]), (0, b_id, &[cid][..]));
                    gone.2 = true;
                }
                _ => {}
            }
            (gone == (true, true, true)).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_found_peer_is_connected_to_if_asked_for() {
    in_time(async {
        let auto = config().auto_connect(Some(AutoConnect::default()));
        let mut swarms = [node(config()).await, node(auto).await, node(config()).await];
        let b_id = *swarms[2].local_peer_id();
        let [hub, a, b] = &mut swarms;
        a.connect(hub).await;
        b.connect(hub).await;
        run_until(&mut swarms, |index, event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if index == 1 => {
                (peer_id == b_id).then_some(())
            }
            _ => None,
        })
        .await;
    })
    .await;
}

/// Publishes what it likes as fast as it can, and comes back when it is thrown out.
async fn flood(
    mut evil: Swarm<gossipsub::Behaviour>,
    target: libp2p_core::Multiaddr,
    bodies: Vec<Vec<u8>>,
    published: Arc<AtomicU64>,
    thrown_out: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    use futures::StreamExt as _;

    evil.dial(target.clone()).unwrap();
    let topic = IdentTopic::new(DEFAULT_TOPIC);
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next = bodies.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            event = evil.select_next_some() => {
                if let SwarmEvent::ConnectionClosed { .. } = event {
                    thrown_out.fetch_add(1, Ordering::Relaxed);
                    let _ = evil.dial(target.clone());
                }
            }
            _ = pause.tick() => {
                for body in next.by_ref().take(100) {
                    // Its queue is full: on a slow machine the connection has to get its turn.
                    if evil.behaviour_mut().publish(topic.clone(), body.clone()).is_err() {
                        break;
                    }
                    published.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_forgeries_does_not_keep_honest_peers_from_finding_each_other() {
    in_time(async {
        let victim = Keypair::generate_ed25519();
        let victim_id = victim.public().to_peer_id();
        let forged = forged_announcement(&victim);
        let mut hub = node(config()).await;
        let address = hub.external_addresses().next().unwrap().clone();
        let stop = Arc::new(AtomicBool::new(false));
        let counts: [Arc<AtomicU64>; 4] = Default::default();
        let bodies = vec![forged.clone(), vec![0x0a; 9_000], b"\x0a\xff".to_vec()];
        // One signs what is not its own; the other does not sign at all, in the victim's name.
        let signed = attacker(MessageAuthenticity::Signed).await;
        let unsigned = attacker(|_| MessageAuthenticity::Author(victim_id)).await;
        let tasks = [(signed, bodies), (unsigned, vec![forged])];
        let tasks: Vec<_> = tasks
            .into_iter()
            .zip(counts.chunks(2))
            .map(|((evil, bodies), counts)| {
                let (published, thrown_out) = (counts[0].clone(), counts[1].clone());
                let stop = stop.clone();
                let address = address.clone();
                tokio::spawn(flood(evil, address, bodies, published, thrown_out, stop))
            })
            .collect();
        // Until both were noticed; the unsigned one by gossipsub's score alone.
        let begin = Instant::now();
        let noticed = || counts[1].load(Ordering::Relaxed) > 0 && counts[3].load(Ordering::Relaxed) > 0;
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while !noticed() {
            tokio::select! {
                event = hub.next_swarm_event() => {
                    assert!(!matches!(event, SwarmEvent::Behaviour(Event::Discovered { .. })));
                }
                _ = look.tick() => {}
            }
            if begin.elapsed() > Duration::from_secs(60) {
                let counts = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
                let gossipsub = hub.behaviour().gossipsub();
                let scores: Vec<_> = gossipsub
                    .all_peers()
                    .map(|(peer, _)| gossipsub.peer_score(peer))
                    .collect();
                panic!("not noticed: {counts:?} published and thrown out, scores {scores:?}");
            }
        }
        let noticed_after = begin.elapsed();

        let (mut a, mut b) = (node(config()).await, node(config()).await);
        let (a_id, b_id) = (*a.local_peer_id(), *b.local_peer_id());
        for peer in [&mut a, &mut b] {
            peer.dial(address.clone()).unwrap();
        }
        let mut swarms = [hub, a, b];
        let joined = Instant::now();
        let mut found = (false, false);
        run_until(&mut swarms, |index, event| {
            if let SwarmEvent::Behaviour(Event::Discovered { peer, .. }) = event {
                assert_ne!(peer, victim_id);
                found.0 |= index == 1 && peer == b_id;
                found.1 |= index == 2 && peer == a_id;
            }
            (found == (true, true)).then_some(())
        })
        .await;
        stop.store(true, Ordering::Relaxed);
        let count = |n: usize| counts[n].load(Ordering::Relaxed);
        println!(
            "forgeries published: {} signed, {} unsigned in {:?}; thrown out {} and {} times, first after \
             {noticed_after:?}; two honest peers found each other {:?} after they came",
            count(0),
            count(2),
            begin.elapsed(),
            count(1),
            count(3),
            joined.elapsed(),
        );
        let mut known: Vec<_> = swarms[0].behaviour().peers().copied().collect();
        known.retain(|peer| *peer != a_id && *peer != b_id);
        assert_eq!(known, []);
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
}

/// What a browser says: js-libp2p's message with the addresses of a page that is behind a relay.
fn announcement_of_a_page(page: &Keypair, relay: PeerId) -> Vec<u8> {
    let peer = page.public().to_peer_id();
    let addrs = [
        format!("/dns4/relay.example.org/tcp/443/tls/ws/p2p/{relay}/p2p-circuit/p2p/{peer}"),
        format!("/dns4/relay.example.org/tcp/443/tls/ws/p2p/{relay}/p2p-circuit/webrtc/p2p/{peer}"),
    ];
    RawPeer {
        public_key: page.public().encode_protobuf(),
        addrs: addrs
            .iter()
            .map(|text| text.parse::<libp2p_core::Multiaddr>().unwrap().to_vec())
            .collect(),
    }
    .encode_to_vec()
}

/// Nobody here has a DHT, and the hub is none of ours: gossipsub and nothing else, as in js.
#[tokio::test]
async fn a_browsers_page_and_a_node_find_each_other_through_a_hub_without_a_dht() {
    in_time(async {
        let strict = || {
            gossipsub::ConfigBuilder::default()
                .validation_mode(ValidationMode::Strict)
                .build()
                .unwrap()
        };
        let stock = |key| -> gossipsub::Behaviour {
            gossipsub::Behaviour::new(MessageAuthenticity::Signed(key), strict()).unwrap()
        };
        let topic = IdentTopic::new(DEFAULT_TOPIC);
        let mut hub = listening(stock).await;
        let hub_id = *hub.local_peer_id();
        let page_key = Keypair::generate_ed25519();
        let page_id = page_key.public().to_peer_id();
        let data = announcement_of_a_page(&page_key, hub_id);
        // The page signs with its key; whose connection carries it does not matter.
        let mut page = listening(|_| stock(page_key)).await;
        for swarm in [&mut hub, &mut page] {
            swarm.behaviour_mut().subscribe(&topic).unwrap();
        }
        let mut node = node(config()).await;
        let node_id = *node.local_peer_id();
        page.connect(&mut hub).await;
        node.connect(&mut hub).await;
        let (mut found, mut heard) = (None, None);
        let mut interval = tokio::time::interval(Duration::from_millis(600));
        while found.is_none() || heard.is_none() {
            tokio::select! {
                _ = hub.next_swarm_event() => {}
                _ = interval.tick() => {
                    // Refused as long as nobody is subscribed.
                    let _ = page.behaviour_mut().publish(topic.clone(), data.clone());
                }
                event = page.next_swarm_event() => {
                    if let SwarmEvent::Behaviour(gossipsub::Event::Message { message, .. }) = event
                        && message.source == Some(node_id)
                    {
                        heard = Some(RawPeer::decode(&message.data[..]).unwrap());
                    }
                }
                event = node.next_swarm_event() => {
                    if let SwarmEvent::Behaviour(Event::Discovered { peer, addresses, .. }) = event
                        && peer == page_id
                    {
                        found = Some(addresses);
                    }
                }
            }
        }
        let relayed = found.unwrap();
        assert_eq!(relayed.len(), 2);
        let webrtc = libp2p_core::multiaddr::Protocol::WebRTC;
        assert!(
            relayed
                .iter()
                .any(|address| address.iter().any(|it| it == webrtc))
        );
        // What the page would dial: the node's key and addresses that lead to it.
        let heard = heard.unwrap();
        let key = libp2p_identity::PublicKey::try_decode_protobuf(&heard.public_key).unwrap();
        assert_eq!(key.to_peer_id(), node_id);
        let addresses = heard.addrs.into_iter();
        let addresses: Vec<libp2p_core::Multiaddr> =
            addresses.map(|bytes| bytes.try_into().unwrap()).collect();
        assert!(!addresses.is_empty());
    })
    .await;
}

/// A node behind a relay.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Relayed {
    server: libp2p_swarm::behaviour::toggle::Toggle<libp2p_relay::Behaviour>,
    client: libp2p_relay::client::Behaviour,
    pubsub: Behaviour,
}

fn relayed(is_relay: bool) -> Swarm<Relayed> {
    use libp2p_core::{Transport as _, transport::MemoryTransport, upgrade::Version};

    let key = Keypair::generate_ed25519();
    let id = key.public().to_peer_id();
    let (circuits, client) = libp2p_relay::client::new(id);
    let transport = circuits
        .or_transport(MemoryTransport::default())
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&key).unwrap())
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let server = is_relay.then(|| libp2p_relay::Behaviour::new(id, Default::default()));
    let behaviour = Relayed {
        server: server.into(),
        client,
        // Not `allow_loopback`: what is believed is the relay that both are connected to.
        pubsub: Behaviour::new(key, Config::default()).unwrap(),
    };
    let config = libp2p_swarm::Config::with_tokio_executor();
    Swarm::new(transport, behaviour, id, config)
}

#[tokio::test]
async fn two_peers_that_nobody_can_dial_meet_and_connect_through_a_relay() {
    use libp2p_core::multiaddr::Protocol;

    in_time(async {
        let mut swarms = [relayed(true), relayed(false), relayed(false)];
        let [relay, a, b] = &mut swarms;
        relay.listen_on("/memory/0".parse().unwrap()).unwrap();
        let address = relay
            .wait(|event| match event {
                SwarmEvent::NewListenAddr { address, .. } => Some(address),
                _ => None,
            })
            .await;
        relay.add_external_address(address.clone());
        let circuit = address
            .with(Protocol::P2p(*relay.local_peer_id()))
            .with(Protocol::P2pCircuit);
        for peer in [&mut *a, &mut *b] {
            peer.listen_on(circuit.clone()).unwrap();
        }
        let (a_id, b_id) = (*a.local_peer_id(), *b.local_peer_id());
        // The first of the two that finds the other dials it.
        let (finder, found) = run_until(&mut swarms, |index, event| match event {
            SwarmEvent::Behaviour(RelayedEvent::Pubsub(Event::Discovered { peer, .. })) => {
                (peer == a_id || peer == b_id)
                    .then_some((index, peer))
                    .filter(|_| index > 0)
            }
            _ => None,
        })
        .await;
        swarms[finder].dial(found).unwrap();
        let at = run_until(&mut swarms, |index, event| match event {
            SwarmEvent::ConnectionEstablished {
                peer_id, endpoint, ..
            } if index == finder && peer_id == found => Some(endpoint.get_remote_address().clone()),
            _ => None,
        })
        .await;
        assert!(
            at.iter().any(|protocol| protocol == Protocol::P2pCircuit),
            "{at}"
        );
    })
    .await;
}

/// A js hub, say: it passes on whatever is signed.
#[tokio::test]
async fn a_neighbour_that_passes_on_the_garbage_of_another_is_not_blamed() {
    in_time(async {
        let config_of_js = gossipsub::ConfigBuilder::default()
            .validation_mode(ValidationMode::Strict)
            .build()
            .unwrap();
        let mut hub: Swarm<gossipsub::Behaviour> = listening(|key| {
            gossipsub::Behaviour::new(MessageAuthenticity::Signed(key), config_of_js).unwrap()
        })
        .await;
        let hub_id = *hub.local_peer_id();
        let topic = IdentTopic::new(DEFAULT_TOPIC);
        hub.behaviour_mut().subscribe(&topic).unwrap();
        let mut evil = attacker(MessageAuthenticity::Signed).await;
        let evil_id = *evil.local_peer_id();
        let (mut a, mut b) = (node(config()).await, node(config()).await);
        let b_id = *b.local_peer_id();
        evil.connect(&mut hub).await;
        a.connect(&mut hub).await;
        let mut again = tokio::time::interval(Duration::from_millis(20));
        let (mut garbage, mut complaints) = (0u64, 0);
        let mut found = false;
        let mut connected = false;
        // Long enough for the score to be looked at twice, if it were bad.
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end || !found {
            tokio::select! {
                _ = hub.next_swarm_event() => {}
                _ = evil.next_swarm_event() => {}
                _ = b.next_swarm_event() => {}
                event = a.next_swarm_event() => match event {
                    SwarmEvent::Behaviour(Event::ProtocolViolation { peer, source, .. }) => {
                        assert_eq!((peer, source), (evil_id, hub_id));
                        complaints += 1;
                    }
                    SwarmEvent::Behaviour(Event::Discovered { peer, .. }) => found |= peer == b_id,
                    SwarmEvent::ConnectionClosed { cause, .. } => panic!("{cause:?}"),
                    _ => {}
                },
                _ = again.tick() => {
                    garbage += 1;
                    let data = garbage.to_be_bytes();
                    let _ = evil.behaviour_mut().publish(topic.clone(), data);
                    if garbage == 50 && !connected {
                        connected = true;
                        b.dial(hub.external_addresses().next().unwrap().clone()).unwrap();
                    }
                }
            }
        }
        assert!(
            (1..=7).contains(&complaints),
            "told, and not again and again: {complaints}"
        );
        let score = a.behaviour().gossipsub().peer_score(&hub_id).unwrap();
        assert!(score >= 0.0, "{score}");
    })
    .await;
}
