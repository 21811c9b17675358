//! The behaviour on libp2p-mdns and ours, on this machine's network. Without one it says so loudly and checks nothing; the lab of
//! `interop-tests` has networks of its own.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use anypath_discovery_mdns::{Behaviour, Config, Event, stock};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_swarm::{NetworkBehaviour, Swarm};
use libp2p_swarm_test::SwarmExt as _;

fn has_network() -> bool {
    let addresses = if_addrs::get_if_addrs().unwrap_or_default();
    let found = addresses
        .iter()
        .any(|it| it.ip().is_ipv4() && !it.is_loopback());
    if !found {
        eprintln!("\n##### SKIPPED: this machine has no network #####\n");
    }
    found
}

fn node<B: NetworkBehaviour<ToSwarm = Event> + Send>(
    new: impl Fn(PeerId, Config) -> std::io::Result<B>,
) -> Swarm<B> {
    let mut swarm = Swarm::new_ephemeral_tokio(|key| {
        new(key.public().to_peer_id(), Config::default()).unwrap()
    });
    let any: Multiaddr = "/ip4/0.0.0.0/tcp/0".parse().unwrap();
    swarm.listen_on(any).unwrap();
    swarm
}

fn found(event: &Event, peer: PeerId) -> bool {
    match event {
        Event::Discovered {
            peer: it,
            addresses,
        } => {
            *it == peer
                && addresses
                    .iter()
                    .all(|address| address.iter().last() == Some(Protocol::P2p(peer)))
        }
        _ => false,
    }
}

#[tokio::test]
async fn the_stock_behaviour_and_ours_find_each_other() {
    if !has_network() {
        return;
    }
    let (mut stock, mut ours) = (node(stock::Behaviour::new), node(Behaviour::new));
    let (stock_id, ours_id) = (*stock.local_peer_id(), *ours.local_peer_id());
    let (mut stock_knows, mut we_know) = (false, false);
    let both = async {
        while !(stock_knows && we_know) {
            tokio::select! {
                event = stock.next_behaviour_event() => stock_knows |= found(&event, ours_id),
                event = ours.next_behaviour_event() => we_know |= found(&event, stock_id),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), both)
        .await
        .unwrap();
}

#[test]
fn outside_of_a_tokio_context_it_says_what_it_needs() {
    let error = stock::Behaviour::new(PeerId::random(), Config::default());
    let error = error.err().unwrap().to_string();
    assert!(error.contains("tokio context"), "{error}");
}
