//! Real nodes on loopback in a DHT of their own: relays that it alone knows, and values.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

#[expect(dead_code, reason = "the other test of nodes needs all of it")]
mod common;

use std::time::{Duration, SystemTime};

use anypath::{
    DhtError, Event,
    config::ConfigBuilder,
    dht::{Ipns, IpnsRecord},
    libp2p::identity::Keypair,
};
use common::{Host, SOON, TCP, alone, tokio_executor};
use futures::StreamExt as _;
use tokio::time::timeout;

/// In the DHT, and in nothing else by which peers find each other.
fn in_the_dht() -> ConfigBuilder {
    alone(&[TCP]).private(false).connect_to_bootstrap(false)
}

/// A server of the DHT: it knows its own address, as servers do.
fn server() -> ConfigBuilder {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = format!("/ip4/127.0.0.1/tcp/{port}");
    in_the_dht()
        .enable_relay_client(false)
        .listen_addrs(vec![address.parse().unwrap()])
        .external_addrs(vec![address.parse().unwrap()])
}

async fn start(config: ConfigBuilder) -> Host {
    Host::start(config, tokio_executor()).await
}

/// The key that relays provide, see `node::driver::relays`.
const RELAYS: &str = "bafkreie3mhfpmqstmuanmg7wnagembh7fuj4xi72k3jarus43urufcmqzq";

/// The relay is named to nobody, announces itself to nobody, and the node asks before it has joined the DHT.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_the_dht_alone_knows_gives_a_reservation() {
    let hub = start(server()).await;
    let relay = start(
        server()
            .enable_relay_server(true)
            .bootstrap_peers(hub.addresses()),
    )
    .await;
    let node = start(in_the_dht()).await;
    let mut events = node.node.events();
    timeout(SOON, node.node.connect(hub.addresses().remove(0)))
        .await
        .unwrap()
        .unwrap();
    let reserved = async {
        loop {
            if let Some(Event::Reserved { relay, .. }) = events.next().await {
                return relay;
            }
        }
    };
    let by = timeout(SOON, reserved).await.unwrap();
    assert_eq!(by, relay.node.peer_id());
    // Others find it by the key that everybody knows.
    let key = RELAYS.parse().unwrap();
    let found = timeout(SOON, hub.node.find_providers(key)).await.unwrap();
    assert!(found.unwrap().contains(&relay.node.peer_id()));
    for host in [node, relay, hub] {
        host.node.shutdown().await;
    }
}

/// Whether this node relays at this moment.
async fn relays(host: &Host) -> bool {
    let text = timeout(SOON, host.node.metrics_text()).await;
    let text = text.unwrap().unwrap();
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with("relay_server_enabled "));
    line.unwrap().ends_with(" 1")
}

/// A worker's part: it relays when it is of use, which is while the internet reaches it, and serves the DHT then.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_relays_while_the_internet_reaches_it_if_it_may() {
    let willing = || {
        in_the_dht()
            .enable_relay_client(false)
            .relay_when_public(true)
    };
    // From a range for documentation: nobody dials it.
    let public = "/ip4/203.0.113.7/tcp/9100".parse().unwrap();
    let reachable = start(willing().external_addrs(vec![public])).await;
    let hidden = start(willing()).await;
    assert!(!relays(&hidden).await);
    let node = start(alone(&[TCP]).relays(reachable.addresses())).await;
    let mut events = node.node.events();
    let reserved = async {
        loop {
            if let Some(Event::Reserved { relay, .. }) = events.next().await {
                return relay;
            }
        }
    };
    assert_eq!(
        timeout(SOON, reserved).await.unwrap(),
        reachable.node.peer_id()
    );
    assert!(relays(&reachable).await);
    assert!(!relays(&hidden).await);
    for host in [node, reachable, hidden] {
        host.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_one_node_publishes_is_resolved_by_another() {
    let hub = start(server()).await;
    let publisher = start(in_the_dht().bootstrap_peers(hub.addresses())).await;
    let reader = start(in_the_dht().bootstrap_peers(hub.addresses())).await;
    for host in [&publisher, &reader] {
        let connected = host.node.connect(hub.addresses().remove(0));
        timeout(SOON, connected).await.unwrap().unwrap();
    }
    let pair = Keypair::generate_ed25519();
    let name = pair.public().to_peer_id();
    let record = IpnsRecord {
        value: b"/ipfs/bafkqaaa".to_vec(),
        sequence: 1,
        valid_until: SystemTime::now() + Duration::from_secs(3600),
        ttl: Duration::from_secs(60),
    };
    let signed = record.sign(&pair).unwrap();
    // The hub is in the table once it is identified.
    let put = async {
        loop {
            match publisher
                .node
                .put_value(Ipns::key(&name), signed.clone())
                .await
            {
                Ok(stored) => return stored,
                Err(DhtError::Query(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    assert_eq!(timeout(SOON, put).await.unwrap(), 1);
    let get = async {
        loop {
            match reader.node.get_value(Ipns::key(&name)).await {
                Ok(found) => return found.unwrap(),
                Err(DhtError::Query(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    let found = timeout(SOON, get).await.unwrap();
    assert_eq!(IpnsRecord::verify(&name, &found), Ok(record));

    let other = publisher.node.put_value(b"/ipns/x".to_vec(), signed).await;
    assert!(matches!(other, Err(DhtError::Query(_))));
    publisher.node.remove_value(Ipns::key(&name)).await.unwrap();
    for host in [publisher, reader, hub] {
        host.node.shutdown().await;
    }
}
