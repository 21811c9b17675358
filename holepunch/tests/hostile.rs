//! A peer that means ill, at the other end of a relayed connection.

#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

mod common;

use std::time::Duration;

use anypath_holepunch::{Config, PROTOCOL_NAME};
use common::{NodeEvent, Running, node, relay, reserve, secured};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p_core::{
    Multiaddr, Transport as _, multiaddr::Protocol, transport::MemoryTransport, upgrade::Version,
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream as stream;
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Raw {
    relay: libp2p_relay::client::Behaviour,
    streams: stream::Behaviour,
}

/// A node that opens streams and writes what it likes.
fn raw() -> (Running<Raw>, stream::Control) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (transport, relay) = libp2p_relay::client::new(id);
    let transport = secured(transport.or_transport(MemoryTransport::default()), &keypair);
    let streams = stream::Behaviour::new();
    let control = streams.new_control();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60))
        .with_substream_upgrade_protocol_override(Version::V1);
    let swarm = Swarm::new(transport, Raw { relay, streams }, id, config);
    (Running::start(swarm), control)
}

/// A `CONNECT` with these addresses, behind its length.
fn connect(addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<u8> {
    let mut message = vec![0x08, 100];
    for address in addresses {
        let address = address.to_vec();
        message.extend([0x12, u8::try_from(address.len()).unwrap()]);
        message.extend(address);
    }
    let mut framed = Vec::new();
    prost::encoding::encode_varint(message.len() as u64, &mut framed);
    framed.extend(message);
    framed
}

const SYNC: [u8; 4] = [3, 0x08, 0xac, 0x02];

/// Where nobody listens.
fn nowhere(number: u64) -> Multiaddr {
    Protocol::Memory(u64::MAX - number).into()
}

/// Opens an exchange and goes through with it, as far as the peer lets it.
async fn exchange(control: &mut stream::Control, peer: PeerId, message: &[u8]) -> bool {
    let Ok(mut stream) = control.open_stream(peer, PROTOCOL_NAME).await else {
        return false;
    };
    let mut through = async || -> std::io::Result<()> {
        stream.write_all(message).await?;
        stream.flush().await?;
        let mut length = [0];
        stream.read_exact(&mut length).await?;
        stream.write_all(&SYNC).await?;
        stream.close().await
    };
    through().await.is_ok()
}

#[tokio::test]
async fn thousands_of_addresses_in_endless_exchanges_make_no_storm_of_dials() {
    let (_relay, at) = relay().await;
    let (mut victim, its_address) = node(Config::default()).await;
    let (mut attacker, mut control) = raw();
    let relayed = reserve(&mut attacker, &at).await;
    victim.observed_at(its_address).await;
    victim.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    let peer = attacker.id;
    victim
        .wait("relayed connection", |event| {
            matches!(event, SwarmEvent::ConnectionEstablished { peer_id, .. } if *peer_id == peer)
                .then_some(())
        })
        .await;

    let id = victim.id;
    assert!(
        !exchange(&mut control, id, &connect((0..3000).map(nowhere))).await,
        "a message beyond 4 KiB is refused"
    );
    let mut answered = 0;
    for number in 0..100 {
        let message = connect((0..300).map(|n| nowhere(300 * number + n)));
        answered += usize::from(exchange(&mut control, id, &message).await);
    }
    let config = Config::default();
    assert!(answered >= 1);
    assert!(answered <= config.max_exchanges() as usize, "{answered}");

    let mut dials = 0;
    let outcome = victim
        .wait("outcome", |event| match event {
            SwarmEvent::Dialing { .. } => {
                dials += 1;
                None
            }
            SwarmEvent::Behaviour(NodeEvent::Holepunch(anypath_holepunch::Event::Outcome(
                outcome,
            ))) => Some(outcome.clone()),
            _ => None,
        })
        .await;
    assert!(outcome.result.is_err());
    let bound = config.max_dials_per_peer() * usize::from(config.attempts());
    assert!((1..=bound).contains(&dials), "{dials} dials");
    // It is still of use to others.
    let (mut friend, friends_address) = node(Config::default()).await;
    let relayed = reserve(&mut friend, &at).await;
    friend.observed_at(friends_address).await;
    victim.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    let outcome = friend.outcome().await;
    assert!(outcome.result.is_ok(), "{outcome:?}");
}

#[tokio::test]
async fn private_and_foreign_addresses_are_not_dialled() {
    let (_relay, at) = relay().await;
    let (mut victim, _) = node(Config::default()).await;
    let (mut attacker, mut control) = raw();
    let relayed = reserve(&mut attacker, &at).await;
    // A node with a public address of its own.
    let public: Multiaddr = "/ip4/203.0.113.10/tcp/9100".parse().unwrap();
    victim.observed_at(public).await;
    victim.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    let peer = attacker.id;
    victim
        .wait("relayed connection", |event| {
            matches!(event, SwarmEvent::ConnectionEstablished { peer_id, .. } if *peer_id == peer)
                .then_some(())
        })
        .await;
    let someone = PeerId::random();
    let message = connect(
        [
            "/ip4/192.168.0.1/tcp/80".to_owned(),
            "/ip4/10.0.0.1/udp/53/quic-v1".to_owned(),
            "/ip4/127.0.0.1/tcp/22".to_owned(),
            "/ip4/169.254.169.254/tcp/80".to_owned(),
            "/ip6/::1/tcp/22".to_owned(),
            "/ip6/fe80::1/tcp/22".to_owned(),
            "/ip6/::ffff:192.168.0.1/tcp/80".to_owned(),
            "/ip4/255.255.255.255/udp/53/quic-v1".to_owned(),
            "/ip4/224.0.0.251/udp/5353/quic-v1".to_owned(),
            "/ip4/0.0.0.0/tcp/22".to_owned(),
            "/dns4/example.com/tcp/80".to_owned(),
            "/ip4/203.0.113.9/tcp/80/ws".to_owned(),
            "/ip4/203.0.113.9/udp/53".to_owned(),
            format!("/ip4/203.0.113.9/tcp/25/p2p/{someone}"),
        ]
        .map(|text| text.parse().unwrap()),
    );
    assert!(exchange(&mut control, victim.id, &message).await);
    let mut dials = 0;
    let outcome = victim
        .wait("outcome", |event| match event {
            SwarmEvent::Dialing { .. } => {
                dials += 1;
                None
            }
            SwarmEvent::Behaviour(NodeEvent::Holepunch(anypath_holepunch::Event::Outcome(
                outcome,
            ))) => Some(outcome.clone()),
            _ => None,
        })
        .await;
    assert!(outcome.result.is_err());
    assert_eq!((dials, outcome.tried.len()), (0, 0), "{outcome:?}");
}
