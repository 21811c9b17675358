//! Real nodes on loopback: WebRTC-direct.
#![cfg(feature = "webrtc")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

#[expect(dead_code, reason = "the other test of nodes needs all of it")]
mod common;

use anypath::{SessionOptions, libp2p::multiaddr::Protocol};
use common::{Host, SOON, TCP, alone, blocks, tokio_executor};
use tokio::{
    net::UdpSocket,
    time::{interval, timeout},
};

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

/// A STUN binding request ([RFC 8489](https://www.rfc-editor.org/rfc/rfc8489#section-5)) with the user name that libp2p-webrtc takes
/// for the first packet of a connection.
fn binding_request(number: u16) -> Vec<u8> {
    let name = format!("{number:08}:{number:08}");
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

/// One packet each, from so many sockets.
async fn flood(host: &Host, sockets: u16) {
    let webrtc = host.addresses().into_iter().find_map(|address| {
        address.iter().find_map(|part| match part {
            Protocol::Udp(port) => Some(port),
            _ => None,
        })
    });
    for number in 0..sockets {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let packet = binding_request(number);
        socket
            .send_to(&packet, ("127.0.0.1", webrtc.unwrap()))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_begin_handshakes_keep_others_off_webrtc_for_seconds_and_off_tcp_not_at_all()
{
    let target = host(&[WEBRTC, TCP]).await;
    flood(&target, 200).await;
    let of = |text: &str| {
        let mut addresses = target.addresses().into_iter();
        addresses
            .find(|address| address.to_string().contains(text))
            .unwrap()
    };
    let over_tcp = host(&[TCP]).await;
    let connected = timeout(SOON, over_tcp.node.connect(of("tcp"))).await;
    connected.unwrap().unwrap();
    let over_webrtc = host(&[WEBRTC]).await;
    let mut again = interval(std::time::Duration::from_millis(100));
    let connected = async {
        while over_webrtc.node.connect(of("webrtc")).await.is_err() {
            again.tick().await;
        }
    };
    timeout(SOON, connected).await.unwrap();
    for host in [target, over_tcp, over_webrtc] {
        host.node.shutdown().await;
    }
}
