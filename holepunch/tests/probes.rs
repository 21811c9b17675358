//! `/anypath/nat-probe/1` between real swarms, on three addresses of the loopback interface.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "test code on tokio"
)]

use std::{collections::BTreeSet, time::Duration};

use anypath_holepunch::{self as holepunch, Config, PROBE_PROTOCOL_NAME};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identify as identify;
use libp2p_identity::PeerId;
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt as _;
use tokio::time::timeout;

/// No test takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Node {
    holepunch: holepunch::Behaviour,
    identify: identify::Behaviour,
}

async fn node(host: u8, probe_servers: usize) -> (Swarm<Node>, Multiaddr) {
    let mut swarm = Swarm::new_ephemeral_tokio(|keypair| {
        let config = Config::builder()
            .allow_loopback(true)
            .probe_servers(probe_servers)
            .build()
            .unwrap();
        let identify = identify::Config::new("/test".to_owned(), keypair.public());
        Node {
            holepunch: holepunch::Behaviour::new(keypair.public().to_peer_id(), config),
            identify: identify::Behaviour::new(identify),
        }
    });
    let address = Multiaddr::from(std::net::Ipv4Addr::new(127, 0, 0, host)).with(Protocol::Tcp(0));
    swarm.listen_on(address).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return (swarm, address);
        }
    }
}

/// The remote peer of an inbound connection that is established.
fn inbound(event: &SwarmEvent<NodeEvent>) -> Option<PeerId> {
    match event {
        SwarmEvent::ConnectionEstablished {
            peer_id, endpoint, ..
        } if endpoint.is_listener() => Some(*peer_id),
        _ => None,
    }
}

#[tokio::test]
async fn a_server_dials_back_from_another_port_and_has_a_stranger_dial_as_well() {
    let (mut stranger, stranger_at) = node(3, 0).await;
    let (mut server, server_at) = node(2, 0).await;
    let (mut client, _) = node(1, 1).await;
    let (server_id, stranger_id) = (*server.local_peer_id(), *stranger.local_peer_id());
    let dials = async {
        server.dial(stranger_at).unwrap();
        let mut identified = 0;
        while identified < 2 {
            tokio::select! {
                event = server.select_next_some() => {
                    identified += usize::from(matches!(
                        event,
                        SwarmEvent::Behaviour(NodeEvent::Identify(
                            identify::Event::Received { .. } | identify::Event::Sent { .. }
                        ))
                    ));
                }
                _ = stranger.select_next_some() => {}
            }
        }
        tokio::spawn(stranger.loop_on_next());
        tokio::spawn(server.loop_on_next());
        client.dial(server_at).unwrap();
        let (mut dialled, mut closed) = (BTreeSet::new(), 0);
        while closed < 2 {
            let event = client.select_next_some().await;
            dialled.extend(inbound(&event));
            let is_closed = matches!(&event, SwarmEvent::ConnectionClosed { endpoint, .. }
                if endpoint.is_listener());
            closed += usize::from(is_closed);
        }
        assert_eq!(dialled, BTreeSet::from([server_id, stranger_id]));
        assert!(client.is_connected(&server_id), "what was there stays");
        assert!(!client.is_connected(&stranger_id));
    };
    timeout(PATIENCE, dials).await.unwrap();
}

/// What a hostile peer writes: a stream for each message, until the server answers or closes it.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Hostile {
    stream: libp2p_stream::Behaviour,
}

#[tokio::test]
async fn garbage_and_private_addresses_are_not_dialled_and_the_node_stays_up() {
    let (server, server_at) = node(2, 0).await;
    let server_id = *server.local_peer_id();
    let (events, mut seen) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut server = server;
        loop {
            let event = server.select_next_some().await;
            if let SwarmEvent::Dialing { .. } = event {
                events.send(()).unwrap();
            }
        }
    });
    let mut hostile = Swarm::new_ephemeral_tokio(|_| Hostile {
        stream: libp2p_stream::Behaviour::new(),
    });
    let mut control = hostile.behaviour().stream.new_control();
    hostile.dial(server_at).unwrap();
    while !hostile.is_connected(&server_id) {
        hostile.next_swarm_event().await;
    }
    tokio::spawn(hostile.loop_on_next());
    // A request for help towards 10.0.0.1, well padded.
    let target: Multiaddr = "/ip4/10.0.0.1/tcp/80".parse().unwrap();
    let mut help = Vec::new();
    for (tag, value) in [
        (0x0a_u8, PeerId::random().to_bytes()),
        (0x12, target.to_vec()),
        (0x1a, vec![0; 4096]),
    ] {
        help.push(tag);
        prost::encoding::encode_varint(value.len() as u64, &mut help);
        help.extend(value);
    }
    let mut request = vec![0x12];
    prost::encoding::encode_varint(help.len() as u64, &mut request);
    request.extend(help);
    let messages = [vec![0xff; 64], vec![0x7f], vec![0; 9000], {
        let mut framed = Vec::new();
        prost::encoding::encode_varint(request.len() as u64, &mut framed);
        framed.extend(request);
        framed
    }];
    let attack = async {
        for message in messages {
            let mut stream = control
                .open_stream(server_id, PROBE_PROTOCOL_NAME)
                .await
                .unwrap();
            stream.write_all(&message).await.ok();
            stream.close().await.ok();
            let mut answer = Vec::new();
            // An answer, or the end of the stream.
            stream.read_to_end(&mut answer).await.ok();
            // Status 1, refused, and nothing tried.
            assert!(answer.is_empty() || answer.get(1..3) == Some(&[8, 1]));
        }
    };
    timeout(PATIENCE, attack).await.unwrap();
    assert!(seen.try_recv().is_err(), "nobody was dialled");
}
