//! Connections that are up and lead nowhere.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "test code on tokio, whose helpers may panic"
)]

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anypath_holepunch::{Behaviour, Config, Event};
use async_io::Async;
use common::{Running, secured};
use futures::{AsyncReadExt as _, future, io};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{ConnectionId, Swarm, SwarmEvent, dial_opts::DialOpts};
use tokio::{sync::oneshot, task::JoinHandle};

/// Listens on TCP and speaks no ping: a refusal is a sign of life as well.
async fn node() -> (Running<Behaviour>, Multiaddr) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let transport = secured(
        libp2p_tcp::tokio::Transport::new(libp2p_tcp::Config::default().nodelay(true)),
        &keypair,
    );
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60));
    let behaviour = Behaviour::new(id, Config::default());
    let mut swarm = Swarm::new(transport, behaviour, id, config);
    let at: Multiaddr = "/ip4/127.0.0.1/tcp/0".parse().unwrap();
    swarm.listen_on(at).unwrap();
    let mut node = Running::start(swarm);
    let mut address = node.listening().await;
    address.pop();
    (node, address)
}

fn socket(address: &Multiaddr) -> SocketAddr {
    let port = address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    (Ipv4Addr::LOCALHOST, port.unwrap()).into()
}

/// Carries one connection to `target`, until it is told to carry nothing more. The sockets stay open as long as the task.
fn detour(target: SocketAddr) -> (Multiaddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = Async::<TcpListener>::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.get_ref().local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = Async::<TcpStream>::connect(target).await.unwrap();
        let (near_read, mut near_write) = near.split();
        let (far_read, mut far_write) = far.split();
        let there = io::copy(near_read, &mut far_write);
        let back = io::copy(far_read, &mut near_write);
        let carry = future::join(Box::pin(there), Box::pin(back));
        future::select(carry, stopped).await;
        future::pending::<()>().await;
    });
    let at = Multiaddr::from(Ipv4Addr::LOCALHOST).with(Protocol::Tcp(port));
    (at, stop, task)
}

async fn connect(node: &mut Running<Behaviour>, peer: PeerId, address: Multiaddr) -> ConnectionId {
    let opts = DialOpts::peer_id(peer).addresses(vec![address]).build();
    let connection = opts.connection_id();
    node.with(move |swarm| swarm.dial(opts)).await.unwrap();
    node.wait("connection", |event| match event {
        SwarmEvent::ConnectionEstablished { connection_id, .. } => {
            (*connection_id == connection).then_some(())
        }
        _ => None,
    })
    .await;
    connection
}

#[tokio::test]
async fn a_connection_on_which_a_peer_is_silent_is_closed_and_one_on_which_it_answers_is_not() {
    let (mut asker, _) = node().await;
    let (alive, at_alive) = node().await;
    let (gone, at_gone) = node().await;
    let (detour, stop, task) = detour(socket(&at_gone));
    let kept = connect(&mut asker, alive.id, at_alive).await;
    let dead = connect(&mut asker, gone.id, detour).await;
    stop.send(()).unwrap();
    let (alive, gone) = (alive.id, gone.id);
    asker
        .with(move |swarm| {
            swarm.behaviour_mut().doubt(alive, kept);
            swarm.behaviour_mut().doubt(gone, dead);
        })
        .await;
    let lost = asker
        .wait("lost connection", |event| match event {
            SwarmEvent::Behaviour(Event::ConnectionLost { peer, connection }) => {
                Some((*peer, *connection))
            }
            _ => None,
        })
        .await;
    assert_eq!(lost, (gone, dead));
    let closed = asker
        .wait("closed connection", |event| match event {
            SwarmEvent::ConnectionClosed { connection_id, .. } => Some(*connection_id),
            _ => None,
        })
        .await;
    assert_eq!(closed, dead);
    // Asked at the same moment as the other: the time of both is over.
    assert!(
        asker.with(move |swarm| swarm.is_connected(&alive)).await,
        "{kept}"
    );
    task.abort();
}
