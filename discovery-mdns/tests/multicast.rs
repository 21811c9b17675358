//! Real multicast between two swarms on this machine, over loopback and over its network. Where the machine does not deliver a
//! multicast packet to itself (IPv6 over loopback, or no interface but loopback) a test says so loudly and checks nothing; the
//! lab of `interop-tests` has interfaces of its own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anypath_discovery_mdns::{Behaviour, Config, ConfigBuilder, Event, Family};
use futures::StreamExt as _;
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_swarm::{Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt as _;
use socket2::{Domain, Socket, Type};

const MDNS_PORT: u16 = 5353;

/// The first address of this machine in the family that is not loopback (nor, for IPv6, link-local, which
/// nobody can dial).
async fn local_address(family: Family) -> Option<IpAddr> {
    let mut watcher = if_watch::smol::IfWatcher::new().ok()?;
    // The watcher tells the present state at once and then waits for changes.
    loop {
        let event = tokio::time::timeout(Duration::from_millis(500), watcher.select_next_some());
        let if_watch::IfEvent::Up(net) = event.await.ok()?.ok()? else {
            continue;
        };
        match (family, net.addr()) {
            (_, ip) if ip.is_loopback() => {}
            (Family::V4, IpAddr::V4(ip)) => return Some(ip.into()),
            (Family::V6, IpAddr::V6(ip)) if !ip.is_unicast_link_local() => return Some(ip.into()),
            _ => {}
        }
    }
}

/// Sends a packet to the mDNS group and waits until it comes back.
fn multicast_reaches_us(address: IpAddr) -> io::Result<()> {
    let (domain, any, group): (_, IpAddr, IpAddr) = match address {
        IpAddr::V4(_) => (
            Domain::IPV4,
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(224, 0, 0, 251).into(),
        ),
        IpAddr::V6(_) => (
            Domain::IPV6,
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into(),
        ),
    };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::new(any, MDNS_PORT).into())?;
    match (address, group) {
        (IpAddr::V4(local), IpAddr::V4(group)) => {
            socket.join_multicast_v4(&group, &local)?;
        }
        (IpAddr::V6(local), IpAddr::V6(group)) => {
            socket.join_multicast_v6(&group, u32::from(local.is_loopback()))?;
        }
        _ => unreachable!("same family"),
    }
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let receiver = UdpSocket::from(socket);
    let from = if address.is_ipv4() { address } else { any };
    let sender = UdpSocket::bind((from, 0))?;
    let probe = format!("anypath probe {}", std::process::id());
    let mut buffer = [0; 4096];
    for _ in 0..10 {
        sender.send_to(probe.as_bytes(), (group, MDNS_PORT))?;
        while let Ok(len) = receiver.recv(&mut buffer) {
            if buffer[..len] == *probe.as_bytes() {
                return Ok(());
            }
        }
    }
    Err(io::Error::other("a packet to the group did not come back"))
}

/// Whether the family can be tested here; if not, says so where nobody can miss it.
fn can_test(family: Family, address: Option<IpAddr>) -> bool {
    let outcome = match address {
        None => Err(io::Error::other("no interface but loopback")),
        Some(address) => multicast_reaches_us(address),
    };
    if let Err(cause) = &outcome {
        eprintln!("\n##### SKIPPED: no multicast over {family:?} on this machine: {cause} #####\n");
    }
    outcome.is_ok()
}

fn config() -> ConfigBuilder {
    Config::builder()
        .ttl(Duration::from_secs(2))
        .query_interval(Duration::from_secs(1))
}

/// What is listened on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Network,
    Loopback,
}

async fn node(config: &Config, family: Family, place: Where) -> Swarm<Behaviour> {
    let mut swarm = Swarm::new_ephemeral_tokio(|key| {
        Behaviour::new(key.public().to_peer_id(), config.clone()).unwrap()
    });
    let any = match (family, place) {
        (Family::V4, Where::Network) => Protocol::Ip4(Ipv4Addr::UNSPECIFIED),
        (Family::V6, Where::Network) => Protocol::Ip6(Ipv6Addr::UNSPECIFIED),
        (Family::V4, Where::Loopback) => Protocol::Ip4(Ipv4Addr::LOCALHOST),
        (Family::V6, Where::Loopback) => Protocol::Ip6(Ipv6Addr::LOCALHOST),
    };
    swarm
        .listen_on(Multiaddr::empty().with(any).with(Protocol::Tcp(0)))
        .unwrap();
    swarm
}

async fn discover_dial_and_expire(family: Family, place: Where, service: &str) {
    let config = config()
        .enable_loopback(place == Where::Loopback)
        .service_name(service)
        .enable_ipv4(family == Family::V4)
        .enable_ipv6(family == Family::V6)
        .build()
        .unwrap();
    #[expect(clippy::disallowed_methods, reason = "measures")]
    let begin = Instant::now();
    let (mut a, mut b) = (
        node(&config, family, place).await,
        node(&config, family, place).await,
    );
    assert_eq!(a.behaviour().families().collect::<Vec<_>>(), [family]);
    let (a_id, b_id) = (*a.local_peer_id(), *b.local_peer_id());
    let (mut a_knows, mut b_knows) = (false, false);
    while !(a_knows && b_knows) {
        tokio::select! {
            event = a.next_behaviour_event() => {
                if let Event::Discovered { peer, addresses } = event && peer == b_id {
                    a_knows = true;
                    for address in addresses {
                        assert_eq!(address.iter().last(), Some(Protocol::P2p(b_id)));
                    }
                }
            }
            event = b.next_behaviour_event() => {
                b_knows |= matches!(event, Event::Discovered { peer, .. } if peer == a_id);
            }
        }
    }
    eprintln!("{family:?}: both discovered after {:?}", begin.elapsed());

    a.dial(b_id).unwrap();
    loop {
        tokio::select! {
            event = a.next_swarm_event() => {
                if matches!(event, SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == b_id) {
                    break;
                }
            }
            _ = b.next_swarm_event() => {}
        }
    }
    // Far sooner than its records would run out: it says goodbye.
    #[expect(clippy::disallowed_methods, reason = "measures")]
    let left = Instant::now();
    drop(b);
    loop {
        let event = a.next_behaviour_event().await;
        if matches!(event, Event::Expired { peer, .. } if peer == b_id)
            && a.behaviour().addresses(&b_id).next().is_none()
        {
            break;
        }
    }
    eprintln!(
        "{family:?}: forgotten {:?} after it had left",
        left.elapsed()
    );
    assert!(left.elapsed() < config.ttl() / 2);
}

/// Other tests, and other nodes of this machine, have other names.
async fn test(family: Family, place: Where, service: &str) {
    let can = match (place, family) {
        (Where::Network, _) => can_test(family, local_address(family).await),
        (_, Family::V4) => can_test(family, Some(Ipv4Addr::LOCALHOST.into())),
        (_, Family::V6) => can_test(family, Some(Ipv6Addr::LOCALHOST.into())),
    };
    if can {
        let test = discover_dial_and_expire(family, place, service);
        tokio::time::timeout(Duration::from_secs(30), test)
            .await
            .expect("takes too long");
    }
}

#[tokio::test]
async fn two_nodes_find_each_other_over_ipv4_and_forget_the_one_that_left() {
    test(Family::V4, Where::Network, "_test-v4._udp.local").await;
}

#[tokio::test]
async fn two_nodes_find_each_other_over_ipv6_and_forget_the_one_that_left() {
    test(Family::V6, Where::Network, "_test-v6._udp.local").await;
}

#[tokio::test]
async fn two_nodes_find_each_other_over_loopback() {
    test(Family::V4, Where::Loopback, "_test-lo4._udp.local").await;
    test(Family::V6, Where::Loopback, "_test-lo6._udp.local").await;
}

/// No runtime but this thread: the sockets bring their own reactor.
#[test]
fn the_behaviour_needs_no_tokio() {
    let config = config().enable_loopback(true).build().unwrap();
    let peer = libp2p_identity::PeerId::random();
    let mut behaviour = Behaviour::new(peer, config).unwrap();
    let polled = futures::executor::block_on(futures::future::poll_fn(|cx| {
        std::task::Poll::Ready(libp2p_swarm::NetworkBehaviour::poll(&mut behaviour, cx))
    }));
    assert!(polled.is_pending());
    assert_eq!(behaviour.families().next(), Some(Family::V4));
}
