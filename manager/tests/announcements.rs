//! Real nodes on loopback that know of each other by announcements over gossipsub alone.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

#[expect(dead_code, reason = "the other test of nodes needs all of it")]
mod common;

use std::time::Duration;

use anypath::{AnnounceError, Discovery, Event, config::ConfigBuilder};
use common::{Host, SOON, TCP, alone, tokio_executor};
use futures::StreamExt as _;
use tokio::time::timeout;

fn gossiping() -> ConfigBuilder {
    alone(&[TCP])
        .enable_pubsub_discovery(true)
        .pubsub_announce_interval(Duration::from_secs(1))
}

async fn start(config: ConfigBuilder) -> Host {
    Host::start(config, tokio_executor()).await
}

/// The relay is named to nobody and is nobody's neighbour but the hub's, which does not relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_known_by_its_announcement_alone_gives_a_reservation() {
    let hub = start(gossiping().enable_relay_client(false)).await;
    // Its external address has to be known when it starts, as it is of a server.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address = format!("/ip4/127.0.0.1/tcp/{port}");
    let relay = start(
        gossiping()
            .enable_relay_client(false)
            .enable_relay_server(true)
            .listen_addrs(vec![address.parse().unwrap()])
            .external_addrs(vec![address.parse().unwrap()]),
    )
    .await;
    let client = start(gossiping()).await;
    let mut events = client.node.events();
    for node in [&relay, &client] {
        let address = hub.addresses().remove(0);
        timeout(SOON, node.node.connect(address))
            .await
            .unwrap()
            .unwrap();
    }
    let reserved = async {
        loop {
            if let Some(Event::Reserved { relay, .. }) = events.next().await {
                return relay;
            }
        }
    };
    let by = timeout(SOON, reserved).await.unwrap();
    assert_eq!(by, relay.node.peer_id());
    for host in [client, relay, hub] {
        host.node.shutdown().await;
    }
}

/// They are connected by loopback; what they may tell others is an external address.
#[tokio::test(flavor = "multi_thread")]
async fn a_rendezvous_is_joined_once_and_those_who_are_there_are_found() {
    let external = "/ip4/203.0.113.7/tcp/9100";
    let named = gossiping().external_addrs(vec![external.parse().unwrap()]);
    let (a, b) = (start(named).await, start(gossiping()).await);
    let mut events = b.node.events();
    timeout(SOON, b.node.connect(a.addresses().remove(0)))
        .await
        .unwrap()
        .unwrap();
    for host in [&a, &b] {
        assert!(host.node.discover("my-application").await.unwrap());
        assert!(!host.node.discover("my-application").await.unwrap());
    }
    let found = async {
        loop {
            if let Some(Event::Discovered {
                peer,
                addresses,
                by: Discovery::Pubsub,
            }) = events.next().await
            {
                return (peer, addresses);
            }
        }
    };
    let (peer, addresses) = timeout(SOON, found).await.unwrap();
    assert_eq!(peer, a.node.peer_id());
    assert!(
        addresses
            .iter()
            .any(|address| address.to_string().starts_with(external))
    );
    let silent = start(alone(&[TCP])).await;
    let refused = silent.node.discover("my-application").await;
    assert!(matches!(refused, Err(AnnounceError::Disabled)));
    let cid = a.put(b"block").await;
    a.node
        .announce_content(cid, Some(5), Some("five".to_owned()))
        .await
        .unwrap();
    for host in [a, b, silent] {
        host.node.shutdown().await;
    }
}
