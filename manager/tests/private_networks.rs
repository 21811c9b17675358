//! Real nodes on loopback: private networks, and WebSocket with and without one.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

#[expect(dead_code, reason = "the other test of nodes needs all of it")]
mod common;

use anypath::{
    Config, ConnectError, Node, SessionOptions, StartError,
    config::ConfigBuilder,
    libp2p::{Multiaddr, identity::Keypair, pnet::PreSharedKey},
    swarm_key::{self, SwarmKeyError},
};
use common::{Host, QUIC, SOON, TCP, alone, store, tokio_executor};
use tokio::time::timeout;

#[cfg(feature = "websocket")]
const WS: &str = "/ip4/127.0.0.1/tcp/0/ws";

async fn host(listen: &str, key: Option<PreSharedKey>) -> Host {
    Host::start(alone(&[listen]).swarm_key(key), tokio_executor()).await
}

async fn connect(from: &Host, to: Multiaddr) -> Result<(), ConnectError> {
    let connected = timeout(SOON, from.node.connect(to)).await;
    connected.unwrap().map(drop)
}

/// Half a megabyte, over the only address of `from`.
async fn fetch(from: &Host, to: &Host) {
    let data = vec![7; 500_000];
    let cid = from.put(&data).await;
    let options = SessionOptions::default().peers(from.addresses());
    let session = to.node.session(options);
    let got = timeout(SOON, session.get(cid)).await.unwrap();
    assert_eq!(&got.unwrap()[..], data);
}

async fn stop<const N: usize>(hosts: [Host; N]) {
    for host in hosts {
        host.node.shutdown().await;
    }
}

async fn members_meet_and_others_do_not(listen: &str) {
    let key = swarm_key::generate();
    let member = host(listen, Some(key)).await;
    let other_member = host(listen, Some(key)).await;
    fetch(&member, &other_member).await;
    let outsider = host(listen, None).await;
    let other_network = host(listen, Some(swarm_key::generate())).await;
    for (from, to) in [
        (&outsider, &member),
        (&member, &outsider),
        (&other_network, &member),
        (&member, &other_network),
    ] {
        let error = connect(from, to.addresses().remove(0)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
        let says_why = error.to_string().contains("the same swarm key");
        assert_eq!(
            says_why,
            !std::ptr::eq(from, &raw const outsider),
            "{error}"
        );
    }
    let peers = member.node.peers().await.unwrap();
    let peers: Vec<_> = peers.iter().map(|peer| peer.peer_id.clone()).collect();
    assert_eq!(peers, [other_member.node.peer_id().to_string()]);
    stop([member, other_member, outsider, other_network]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_key_connects_over_tcp() {
    members_meet_and_others_do_not(TCP).await;
}

#[cfg(feature = "websocket")]
#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_key_connects_over_websocket() {
    members_meet_and_others_do_not(WS).await;
}

#[cfg(feature = "websocket")]
#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_fetched_over_websocket() {
    let (a, b) = (host(WS, None).await, host(TCP, None).await);
    fetch(&a, &b).await;
    let peers = b.node.peers().await.unwrap();
    let connections = peers.iter().flat_map(|peer| &peer.connections);
    let transports: Vec<_> = connections.map(|connection| connection.transport).collect();
    assert_eq!(transports, ["websocket"]);
    stop([a, b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_meet_through_a_relay_that_is_a_member() {
    let key = Some(swarm_key::generate());
    // A relay has to know an address of its own to give reservations.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let address = format!("/ip4/127.0.0.1/tcp/{port}");
    let relaying = alone(&[&address]).swarm_key(key).enable_relay_server(true);
    let relaying = relaying.external_addrs(vec![address.parse().unwrap()]);
    let relay = Host::start(relaying.enable_dcutr(false), tokio_executor()).await;
    let at = relay.addresses().remove(0);
    let reserving = |config: ConfigBuilder| config.relays(vec![at.clone()]).enable_dcutr(false);
    let hidden = Host::start(reserving(alone(&[TCP]).swarm_key(key)), tokio_executor()).await;
    let id = hidden.node.peer_id();
    let circuit: Multiaddr = format!("{at}/p2p-circuit/p2p/{id}").parse().unwrap();
    let member = host(TCP, key).await;
    let mut again = tokio::time::interval(std::time::Duration::from_millis(50));
    let reserved = async {
        while hidden.node.status().await.unwrap().reservations.is_empty() {
            again.tick().await;
        }
    };
    timeout(SOON, reserved).await.unwrap();
    connect(&member, circuit).await.unwrap();
    stop([relay, hidden, member]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_dial_quic_and_is_told_why() {
    let (a, b) = (
        host(QUIC, None).await,
        host(TCP, Some(swarm_key::generate())).await,
    );
    let error = connect(&b, a.addresses().remove(0)).await.unwrap_err();
    assert!(
        error.to_string().contains("a TCP or WebSocket address"),
        "{error}"
    );
    stop([a, b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_read_from_a_file_and_a_node_without_it_does_not_start() {
    let key = swarm_key::generate();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("swarm.key");
    let from_file = || alone(&[TCP]).swarm_key_file(Some(path.clone()));
    let start = async |config: Config| {
        let store = store(&directory.path().join("store")).await;
        let started = Node::start(
            config,
            Keypair::generate_ed25519(),
            store.clone(),
            tokio_executor(),
        );
        let started = started.await;
        store.close().await.unwrap();
        started.map(drop).unwrap_err()
    };
    let error = start(from_file().build().unwrap()).await;
    assert!(
        matches!(
            error,
            StartError::SwarmKey(SwarmKeyError::Unreadable { .. })
        ),
        "{error}"
    );
    std::fs::write(&path, "no key").unwrap();
    let error = start(from_file().build().unwrap()).await;
    assert!(error.to_string().contains("anypath swarm-key"), "{error}");
    std::fs::write(&path, key.to_key_file()).unwrap();
    let (a, b) = (
        Host::start(from_file(), tokio_executor()).await,
        host(TCP, Some(key)).await,
    );
    fetch(&a, &b).await;
    stop([a, b]).await;
}
