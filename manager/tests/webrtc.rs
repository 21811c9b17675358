//! Real nodes on loopback: WebRTC-direct.
#![cfg(feature = "webrtc")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

#[expect(dead_code, reason = "the other test of nodes needs all of it")]
mod common;

use anypath::{
    SessionOptions,
    libp2p::{Multiaddr, multiaddr::Protocol},
};
use common::{Host, SOON, TCP, alone, blocks, tokio_executor};
use tokio::{net::UdpSocket, time::timeout};

const WEBRTC: &str = "/ip4/127.0.0.1/udp/0/webrtc-direct";

async fn host(listen: &[&str]) -> Host {
    Host::start(alone(listen), tokio_executor()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_fetched_over_webrtc() {
    let (a, b) = (host(&[WEBRTC]).await, host(&[WEBRTC]).await);
    let options = SessionOptions::default().peers(a.addresses());
    let session = b.node.session(options);
    for data in blocks(20, 256 * 1024).iter().chain(&blocks(2, 2 << 20)) {
        let cid = a.put(data).await;
        let got = timeout(SOON, session.get(cid)).await.unwrap();
        assert!(got.unwrap()[..] == data[..]);
    }
    let peers = b.node.peers().await.unwrap();
    let connections = peers.iter().flat_map(|peer| &peer.connections);
    let transports: Vec<_> = connections.map(|connection| connection.transport).collect();
    assert_eq!(transports, ["webrtc"]);
    a.node.shutdown().await;
    b.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_listens_on_both_ip_versions_dials_from_the_right_one() {
    const WEBRTC6: &str = "/ip6/::1/udp/0/webrtc-direct";
    let dialler = host(&[WEBRTC6, WEBRTC]).await;
    for listen in [WEBRTC, WEBRTC6] {
        let listener = host(&[listen]).await;
        let address = listener.addresses().remove(0);
        let connected = timeout(SOON, dialler.node.connect(address)).await;
        assert_eq!(connected.unwrap().unwrap(), listener.node.peer_id());
        listener.node.shutdown().await;
    }
    dialler.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_listen_for_webrtc_dials_gives_and_takes() {
    let (listener, dialler) = (host(&[WEBRTC]).await, host(&[TCP]).await);
    let connected = timeout(SOON, dialler.node.connect(listener.addresses().remove(0))).await;
    assert_eq!(connected.unwrap().unwrap(), listener.node.peer_id());
    for (from, to) in [(&listener, &dialler), (&dialler, &listener)] {
        let data = &blocks(1, 2 << 20)[0];
        let cid = from.put(data).await;
        let session = to.node.session(SessionOptions::default());
        assert!(timeout(SOON, session.get(cid)).await.unwrap().unwrap()[..] == data[..]);
    }
    listener.node.shutdown().await;
    dialler.node.shutdown().await;
}

/// The address with another part in the place of that one.
fn with(address: &Multiaddr, replace: impl Fn(Protocol<'_>) -> Protocol<'static>) -> Multiaddr {
    address.iter().map(replace).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_and_another_peer_are_refused() {
    let (listener, dialler) = (host(&[WEBRTC]).await, host(&[TCP]).await);
    let address = listener.addresses().remove(0);
    let other = host(&[WEBRTC]).await;
    let others = other.addresses().remove(0);
    let certhash = others
        .iter()
        .find(|part| matches!(part, Protocol::Certhash(_)));
    let certhash = certhash.unwrap().acquire();
    let wrong_certificate = with(&address, |part| match part {
        Protocol::Certhash(_) => certhash.clone(),
        other => other.acquire(),
    });
    let wrong_peer = with(&address, |part| match part {
        Protocol::P2p(_) => Protocol::P2p(other.node.peer_id()),
        other => other.acquire(),
    });
    for wrong in [wrong_certificate, wrong_peer] {
        let connected = timeout(SOON, dialler.node.connect(wrong)).await.unwrap();
        assert!(connected.is_err());
    }
    timeout(SOON, dialler.node.connect(address))
        .await
        .unwrap()
        .unwrap();
    for host in [listener, dialler, other] {
        host.node.shutdown().await;
    }
}

/// A STUN binding request ([RFC 8489](https://www.rfc-editor.org/rfc/rfc8489#section-5)) with a name, and no proof that its sender knows it.
fn binding_request(number: u16) -> Vec<u8> {
    let name = format!("libp2p+webrtc+v1/{number:08}");
    let name = format!("{name}:{name}");
    let name = name.as_bytes();
    let length = u16::try_from(name.len()).unwrap();
    let padding = vec![0; name.len().next_multiple_of(4) - name.len()];
    let attribute = [&[0, 6], &length.to_be_bytes()[..], name, &padding].concat();
    let length = u16::try_from(attribute.len()).unwrap();
    [
        &[0, 1],
        &length.to_be_bytes()[..],
        &[0x21, 0x12, 0xa4, 0x42],
        &[7; 12],
        &attribute,
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_send_anything_keep_nobody_off() {
    let target = host(&[WEBRTC]).await;
    let address = target.addresses().remove(0);
    let port = address.iter().find_map(|part| match part {
        Protocol::Udp(port) => Some(port),
        _ => None,
    });
    for number in 0..500 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for packet in [binding_request(number), vec![22; 100], vec![0; 20]] {
            let to = ("127.0.0.1", port.unwrap());
            socket.send_to(&packet, to).await.unwrap();
        }
    }
    let dialler = host(&[TCP]).await;
    timeout(SOON, dialler.node.connect(address))
        .await
        .unwrap()
        .unwrap();
    for host in [target, dialler] {
        host.node.shutdown().await;
    }
}
