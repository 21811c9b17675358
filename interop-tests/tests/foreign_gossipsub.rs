//! Messages and announcements both ways over gossipsub.
#![cfg(feature = "foreign")]

use anypath_discovery_pubsub as pubsub;
use anypath_interop_tests::peers::{
    BehaviourEvent, Cells, Error, Implementation, Node, NodeSettings, Peer, Settings, Transport,
};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId};
use std::time::Duration;
use tokio::time::Instant;

const TOPIC: &str = "anypath-interop/chat/1";

/// Longer than the slowest heartbeat with subscriptions takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of gossipsub, in every implementation.
const HEARTBEAT: Duration = Duration::from_secs(1);

async fn talk(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Gossipsub", column, test);
    let mut peer = Peer::start(
        implementation,
        &Settings {
            listen: vec![transport.loopback()],
            ..Settings::default()
        },
    )
    .await?;
    let mut node = Node::start(transport, NodeSettings::default()).await?;
    peer.subscribe(TOPIC).await?;
    node.subscribe(TOPIC).await?;
    node.dial(peer.address()?).await?;

    cells
        .works("subscriptions are known both ways", async {
            node.subscribed(peer.id(), TOPIC).await?;
            they_know(&mut peer, node.id()).await
        })
        .await;
    cells
        .works("they hear us, signed", async {
            node.publish(TOPIC, "from anypath").await?;
            let heard = peer.message(TOPIC).await?;
            equal(&heard.from, &node.id().to_string())?;
            equal(&heard.data.as_ref(), &b"from anypath".as_slice())
        })
        .await;
    cells
        .works("we hear them, signed", async {
            let (from, data) = they_publish(&mut peer, &mut node, b"to anypath").await?;
            equal(&from, &Some(peer.id()))?;
            equal(&data.as_slice(), &b"to anypath".as_slice())
        })
        .await;
    cells
        .works("60 KiB in one message, both ways", async {
            let large = vec![7; 60 << 10];
            node.publish(TOPIC, large.clone()).await?;
            equal(&peer.message(TOPIC).await?.data.as_ref(), &large.as_slice())?;
            let large = vec![9; 60 << 10];
            equal(&they_publish(&mut peer, &mut node, &large).await?.1, &large)
        })
        .await;
    cells
        .works(
            "a message of one of them reaches another through us",
            async {
                let mut other = Peer::start(implementation, &Settings::default()).await?;
                other.subscribe(TOPIC).await?;
                other.dial(node.address()).await?;
                node.subscribed(other.id(), TOPIC).await?;
                they_know(&mut other, node.id()).await?;
                let (from, _) = they_publish(&mut other, &mut node, b"passed on").await?;
                equal(&from, &Some(other.id()))?;
                let heard = peer.message(TOPIC).await?;
                equal(&heard.from, &other.id().to_string())
            },
        )
        .await;
    cells.finish()
}

/// Publishes until we hear it: what go publishes before its next heartbeat has made a mesh (1 s) goes to nobody.
async fn they_publish(
    peer: &mut Peer,
    node: &mut Node,
    data: &[u8],
) -> Result<(Option<PeerId>, Vec<u8>), Error> {
    let began = Instant::now();
    loop {
        peer.publish(TOPIC, data).await?;
        let heard = tokio::time::timeout(HEARTBEAT, node.message(TOPIC)).await;
        match heard {
            Ok(heard) => return heard,
            Err(_) if began.elapsed() < PATIENCE => {}
            Err(_) => {
                return Err(Error::Timeout {
                    what: "message of theirs".to_owned(),
                    within: PATIENCE,
                });
            }
        }
    }
}

async fn they_know(peer: &mut Peer, us: PeerId) -> Result<(), Error> {
    let began = Instant::now();
    while !peer.subscribers(TOPIC).await?.contains(&us) {
        if began.elapsed() > PATIENCE {
            return Err(Error::Timeout {
                what: "subscription at the peer".to_owned(),
                within: PATIENCE,
            });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn equal<T: PartialEq + std::fmt::Debug>(got: &T, expected: &T) -> Result<(), Error> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::Wrong("another message than was sent".to_owned()))
    }
}

/// pubsub-peer-discovery, which only js-libp2p has: two peers that know only us find each other, and both of them us.
#[tokio::test]
async fn announcements_are_understood_both_ways_with_js() -> Result<(), Error> {
    let mut cells = Cells::new("Gossipsub", "js tcp", "gossipsub-js-discovery");
    let settings = Settings {
        listen: vec![Transport::Tcp.loopback()],
        discovery: true,
        ..Settings::default()
    };
    let mut node = Node::start(Transport::Tcp, NodeSettings::default()).await?;
    let mut one = Peer::start(Implementation::Js, &settings).await?;
    one.dial(node.address()).await?;
    cells
        .works("pubsub-peer-discovery: we find them", async {
            let addresses = finds(&mut node, one.id()).await?;
            equal(&addresses.contains(&one.address()?), &true)
        })
        .await;
    cells
        .works("pubsub-peer-discovery: they find us", async {
            let addresses = one.discovered(node.id()).await?;
            let without_name = node
                .address()
                .iter()
                .filter(|part| !matches!(part, Protocol::P2p(_)))
                .collect();
            let ours = [node.address().clone(), without_name];
            equal(&addresses.iter().any(|at| ours.contains(at)), &true)
        })
        .await;
    cells
        .works(
            "pubsub-peer-discovery: they find each other through us",
            async {
                let mut two = Peer::start(Implementation::Js, &settings).await?;
                two.dial(node.address()).await?;
                one.discovered(two.id()).await?;
                two.discovered(one.id()).await.map(drop)
            },
        )
        .await;
    cells.finish()
}

/// Waits until a node of ours has found another.
async fn finds(node: &mut Node, other: PeerId) -> Result<Vec<Multiaddr>, Error> {
    node.wait("announcement", |event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Pubsub(pubsub::Event::Discovered {
            peer,
            addresses,
            ..
        })) if *peer == other => Some(addresses.clone()),
        _ => None,
    })
    .await
}

/// py-libp2p, which has no pubsub-peer-discovery, between two of ours that know nobody else.
#[tokio::test]
async fn announcements_pass_through_py() -> Result<(), Error> {
    let mut cells = Cells::new("Gossipsub", "py tcp", "gossipsub-py-discovery");
    for cell in [
        "pubsub-peer-discovery: we find them",
        "pubsub-peer-discovery: they find us",
        "pubsub-peer-discovery: they find each other through us",
    ] {
        cells.unsupported(cell, "py-libp2p has no pubsub-peer-discovery");
    }
    let settings = Settings {
        listen: vec![Transport::Tcp.loopback()],
        ..Settings::default()
    };
    let mut between = Peer::start(Implementation::Py, &settings).await?;
    between.subscribe(pubsub::DEFAULT_TOPIC).await?;
    let mut one = Node::start(Transport::Tcp, NodeSettings::default()).await?;
    let mut two = Node::start(Transport::Tcp, NodeSettings::default()).await?;
    one.dial(between.address()?).await?;
    two.dial(between.address()?).await?;
    cells
        .works(
            "pubsub-peer-discovery: we find each other through them",
            async {
                let at = finds(&mut one, two.id()).await?;
                equal(&at.contains(two.address()), &true)?;
                let at = finds(&mut two, one.id()).await?;
                equal(&at.contains(one.address()), &true)
            },
        )
        .await;
    cells.finish()
}

#[tokio::test]
async fn we_and_go_hear_each_other_over_tcp() -> Result<(), Error> {
    talk(Implementation::Go, Transport::Tcp, "gossipsub-go-tcp").await
}

#[tokio::test]
async fn we_and_go_hear_each_other_over_quic() -> Result<(), Error> {
    talk(Implementation::Go, Transport::Quic, "gossipsub-go-quic").await
}

#[tokio::test]
async fn we_and_js_hear_each_other_over_tcp() -> Result<(), Error> {
    talk(Implementation::Js, Transport::Tcp, "gossipsub-js-tcp").await
}

#[tokio::test]
async fn we_and_js_hear_each_other_over_quic() -> Result<(), Error> {
    talk(Implementation::Js, Transport::Quic, "gossipsub-js-quic").await
}

#[tokio::test]
async fn we_and_py_hear_each_other_over_tcp() -> Result<(), Error> {
    talk(Implementation::Py, Transport::Tcp, "gossipsub-py-tcp").await
}

#[tokio::test]
async fn we_and_py_hear_each_other_over_quic() -> Result<(), Error> {
    talk(Implementation::Py, Transport::Quic, "gossipsub-py-quic").await
}
